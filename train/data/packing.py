"""Rows of tokens: cut from a token file, masked for BERT, shuffled to train on, in order to judge.

    tokens [T] → row i: tokens i·n to (i + 1)·n
               → {"tokens", "targets" int32 [b, n], "index" int64 [b],
                  "segments", "positions" int32 [b, n] where attention stays within documents}

b: rows of this process, `data.batch_size // process_count`. n: `data.length`. All documents of a
split are one long line of tokens, so that every row but the last is full and an epoch holds every
token once. Each row is read by its number: which comes when depends only on `data.seed` and its
position in the stream, not on threads, processes or resumption.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import grain
import numpy as np

from train.config import Data, Text
from train.data.pipeline import Batch, Skips, Stream, batched, global_order, local_size
from train.data.tokens import Tokens, no_mask
from zoo.text import Tokenizer

UNSCORED = -1  # the target of a token that the loss leaves out

# ---- rows ----


@dataclass(frozen=True)
class Rows:
    """The rows of a split, `rows[i]` without the batch axis.

    length     n, tokens of a row; only the last can have fewer, followed by `fill`
    documents  rows have segments (1, 2, … within the row, 0 after the end) and positions (from 0
               in each piece of a document)
    overlap    tokens of a row that the row before has scored: they are context, their targets −1
    """

    tokens: Tokens
    length: int
    documents: bool
    fill: int
    overlap: int = 0

    def __len__(self) -> int:
        after = max(0, len(self.tokens) - self.length)  # what the first row does not score
        return 1 + -(-after // (self.length - self.overlap))

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start = i * (self.length - self.overlap)
        window = self.tokens.read(start, self.length + 1)
        targets = window[1:].copy()
        targets[: self.overlap if i else 0] = UNSCORED
        row = {"tokens": window[:-1], "targets": targets}
        row |= self._segments(start, len(targets)) if self.documents else {}
        return self._padded(row, index=i)

    def blank(self) -> Batch:
        """A row of padding, its index −1."""
        none = np.zeros(0, np.int32)
        keys = ("tokens", "targets", *(("segments", "positions") if self.documents else ()))
        return self._padded(dict.fromkeys(keys, none), index=-1)

    def _segments(self, start: int, count: int) -> Batch:
        starts = self.tokens.starts
        # What is before the first document that begins inside is a piece as well.
        first = np.searchsorted(starts, start, side="right")
        segments, positions = np.ones(count, np.int32), np.arange(count, dtype=np.int32)
        for begin in starts[first : np.searchsorted(starts, start + count)] - start:
            segments[begin:] += 1
            positions[begin:] -= positions[begin]
        return {"segments": segments, "positions": positions}

    def _padded(self, row: Batch, index: int) -> Batch:
        if len(row["tokens"]) < self.length:
            fill = {"tokens": self.fill, "targets": UNSCORED}
            after = (0, self.length - len(row["tokens"]))
            row = {k: np.pad(v, after, constant_values=fill.get(k, 0)) for k, v in row.items()}
        return {**row, "index": np.asarray(index, np.int64)}


def rows(tokens: Tokens, tokenizer: Tokenizer, cfg: Text, *, overlap: int = 0) -> Rows:
    pad = tokenizer.specials.pad
    fill = tokens.opening if pad is None else pad
    return Rows(tokens, cfg.length, cfg.packing == "documents", fill, overlap)


# ---- masking ----


class Masking(NamedTuple):
    """What section 3.1 of BERT (Devlin et al., 2018) needs to know of a vocabulary.

    share    of the tokens of a row that are to be predicted
    mask     the id of [MASK]
    words    ids that can be put for another: all but special ones
    special  bool [vocab]: ids that are never predicted
    """

    share: float
    mask: int
    words: np.ndarray
    special: np.ndarray


def masking(tokenizer: Tokenizer, cfg: Text) -> Masking | None:
    """None where `data.mask` is 0. Raises ConfigError for a tokenizer without a mask token."""
    if not cfg.mask:
        return None
    if tokenizer.specials.mask is None:
        raise no_mask(cfg)
    spelling = tokenizer.spelling
    special = np.ones(tokenizer.vocab_size, bool)
    special[[i for i in spelling.pieces if i not in spelling.special]] = False
    return Masking(cfg.mask, tokenizer.specials.mask, np.flatnonzero(~special), special)


def masked(row: Batch, rng: np.random.Generator, masking: Masking) -> Batch:
    """The row with some tokens hidden; "targets" has what they were, −1 elsewhere.

    A share of the tokens is chosen, one at least. Of these 80 % become [MASK], 10 % another token
    at random and 10 % stay (section 3.1), each by its own draw.
    """
    tokens, real = row["tokens"].copy(), row["targets"] != UNSCORED
    candidates = np.flatnonzero(real & ~masking.special[tokens])
    count = min(len(candidates), max(1, round(masking.share * len(candidates))))
    chosen = rng.permutation(candidates)[:count]
    targets = np.full_like(tokens, UNSCORED)
    targets[chosen] = tokens[chosen]
    draw = rng.random(count)
    tokens[chosen[draw < 0.8]] = masking.mask
    other = chosen[(draw >= 0.8) & (draw < 0.9)]
    tokens[other] = rng.choice(masking.words, len(other))
    return {**row, "tokens": tokens, "targets": targets}


# ---- batches ----


class Readable(Protocol):
    """What a stream reads: rows by number, and one that stands for none."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Batch: ...
    def blank(self) -> Batch: ...


def train_stream(
    rows: Readable,
    masking: Masking | None,
    cfg: Data,
    *,
    process_index: int = 0,
    process_count: int = 1,
    content: str | None = None,
) -> Stream:
    """Endless batches of `rows`, in a new order every epoch; epochs follow without a gap.

    Position p of the global order goes to process p mod `process_count`; what is masked follows p
    too, so that it is another choice in every epoch. content: a digest of the rows, by which a
    state that is restored is known. Raises ConfigError where processes do not divide the batch.
    """
    batch_size = local_size(cfg, process_count)
    order, seed = global_order(len(rows), cfg.seed)
    if masking is None:
        examples = order.map(rows.__getitem__)
    else:
        examples = order.random_map(lambda i, rng: masked(rows[i], rng, masking), seed=seed)
    mine = batched(examples[process_index::process_count], cfg, batch_size)
    return Stream(mine, Skips("train", len(rows)), process_count, content)


def eval_batches(
    rows: Readable,
    masking: Masking | None,
    cfg: Data,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every row once, in order, with "mask" float32 [b]: 0 on padding rows.

    Every token is scored once; with `masking`, those are that are hidden, the same at each call.
    All batches have one size and every process yields equally many.
    """

    def load(i: int) -> Batch:
        if i >= len(rows):
            return {**rows.blank(), "mask": np.asarray(0, np.float32)}
        row = rows[i]
        if masking is not None:
            row = masked(row, np.random.default_rng((cfg.seed, i)), masking)
        return {**row, "mask": np.asarray(1, np.float32)}

    batch_size = local_size(cfg, process_count)
    padded = -(-len(rows) // cfg.batch_size) * cfg.batch_size
    examples = grain.MapDataset.range(padded).map(load)[process_index::process_count]
    with contextlib.closing(batched(examples, cfg, batch_size)) as batches:
        yield from batches
