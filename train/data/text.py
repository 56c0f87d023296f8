"""Text, opened: what `Text.open` gives to the trainer."""

import contextlib
import hashlib
import json
import lzma
import os
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config import LabelledText, Text, on_disk
from train.data import corpora, labelled, packing, tokens
from train.data.pipeline import Batch, Skips, Stream, this_process
from zoo.text import Tokenizer

COMPRESSED = 2**26  # bytes: xz sees no farther back, and takes two minutes for them
SPECIALS = ("<|endoftext|>",)  # of a BPE that is trained here
MASKED_SPECIALS = (*SPECIALS, "<mask>")


@dataclass(frozen=True)
class Dataset:
    """A corpus as token files, seen by this process of the run."""

    cfg: Text
    source: corpora.Corpus
    files: tokens.TokenFiles

    @property
    def tokenizer(self) -> Tokenizer:
        return self.files.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.cfg.length

    def train(self) -> Stream:
        """Endless shuffled batches whose position can be stored."""
        content = self.files.header["splits"]["train"]["sha256"]
        rows = self._rows("train")
        return packing.train_stream(
            rows, self._masking, self.cfg, content=content, **this_process()
        )

    def evaluate(self, split: str) -> tuple[Iterator[Batch], Skips]:
        """Every row of "validation" or "test" once, with a `mask`; no row is ever unreadable."""
        rows = self._rows(split, overlap=self.cfg.overlap)
        batches = packing.eval_batches(rows, self._masking, self.cfg, **this_process())
        return batches, Skips(split, len(rows))

    def _rows(self, split: str, overlap: int = 0) -> packing.Rows:
        return packing.rows(self.files.splits[split], self.tokenizer, self.cfg, overlap=overlap)

    @cached_property
    def _masking(self) -> packing.Masking | None:
        return packing.masking(self.tokenizer, self.cfg)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global training batch."""
        shape = jax.ShapeDtypeStruct((self.cfg.batch_size, self.cfg.length), jnp.int32)
        keys = ("tokens", "targets")
        keys += ("segments", "positions") if self.cfg.packing == "documents" else ()
        return dict.fromkeys(keys, shape)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """int32 [vocab]: bytes of the text that each id adds; 0 for special tokens and ids that no
        token has."""
        spelling, lengths = self.tokenizer.spelling, np.zeros(self.vocab_size, np.int32)
        for i, piece in spelling.pieces.items():
            lengths[i] = 0 if i in spelling.special else len(piece)
        return lengths

    def statistics(self, split: str) -> dict[str, Any]:
        """ "documents", "bytes" (of their UTF-8), "tokens", "sha256_of_names" of a split, one
        name a line, "sha256" of its token file; with what is known of the corpus, such as the
        version of "python"."""
        return {**self.files.header["splits"][split], **self.source.facts}

    def compressors(self, split: str) -> dict[str, float]:
        """Bits per byte that general compressors need for a split: "zlib" (level 9), "xz" (preset
        9e), and "xz_seen", what xz needs for it after the training split.

        Computed once and kept beside the token files. {} where the two have more than COMPRESSED
        bytes together.
        """
        sizes = self.files.header["splits"]
        if sizes["train"]["bytes"] + sizes[split]["bytes"] > COMPRESSED:
            return {}
        path = self.files.folder / f"compressors-{split}.json"
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
        found = compressors(self._text("train"), self._text(split))
        # What cannot be kept is computed again.
        with contextlib.suppress(OSError):
            partial = path.with_name(f".{uuid.uuid4().hex}.partial")
            partial.write_text(json.dumps(found), encoding="utf-8")
            os.replace(partial, path)
        return found

    def _text(self, split: str) -> bytes:
        pieces = corpora.divided(self.source, self.cfg)
        return b"".join(piece.text.encode() for piece in pieces if piece.split == split)


def compressors(seen: bytes, text: bytes) -> dict[str, float]:
    """Bits per byte of `text`, by zlib and xz, and by xz after it has `seen` other text."""
    with ThreadPoolExecutor(2) as pool:  # xz takes a second for a megabyte, and lets others run
        both, before, alone = pool.map(_xz, (seen + text, seen, text))
    sizes = {"zlib": len(zlib.compress(text, 9)), "xz": alone, "xz_seen": both - before}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def _xz(content: bytes) -> int:
    return len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


@dataclass(frozen=True)
class LabelledDataset:
    """Texts with labels, seen by this process of the run. `labels` name the classes."""

    cfg: LabelledText
    source: labelled.Texts
    tokenizer: Tokenizer

    @property
    def labels(self) -> tuple[str, ...]:
        return self.source.labels

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.cfg.length

    @cached_property
    def _rows(self) -> dict[str, labelled.LabelledRows]:
        found = self.source.splits.items()
        return {split: labelled.rows(some, self.tokenizer, self.cfg) for split, some in found}

    def train(self) -> Stream:
        """Endless shuffled batches whose position can be stored."""
        rows = self._rows["train"]
        content = hashlib.sha256(rows.tokens.tobytes() + rows.labels.tobytes()).hexdigest()
        return packing.train_stream(rows, None, self.cfg, content=content, **this_process())

    def evaluate(self, split: str) -> tuple[Iterator[Batch], Skips]:
        """Every example of "validation" or "test" once, with a `mask`; none is ever unreadable."""
        rows = self._rows[split]
        batches = packing.eval_batches(rows, None, self.cfg, **this_process())
        return batches, Skips(split, len(rows))

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a global training batch."""
        b, n = self.cfg.batch_size, self.cfg.length
        key, shape = ("labels", (b, n)) if self.cfg.tagging else ("label", (b,))
        shapes = {"tokens": (b, n), "lengths": (b,), key: shape}
        return {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key, shape in shapes.items()}


def open_labelled(cfg: LabelledText) -> LabelledDataset:
    """Reads all examples. Raises ConfigError for what cannot be used."""
    source = labelled.read_labelled(cfg)
    seen = source.splits["train"]
    tokenizer = tokens.open_tokenizer(cfg, lambda: labelled.texts(seen), SPECIALS)
    return LabelledDataset(cfg, source, tokenizer)


def open_text(cfg: Text) -> Dataset:
    """Writes the token files where there are none. Raises ConfigError for a corpus or a tokenizer
    that cannot be used."""
    corpus = corpora.open_corpus(cfg)
    specials = MASKED_SPECIALS if cfg.mask else SPECIALS

    def texts() -> Iterator[str]:
        return (p.text for p in corpora.divided(corpus, cfg) if p.split == "train")

    def tokenizer() -> Tokenizer:
        return tokens.open_tokenizer(cfg, texts, specials)

    def write(folder: Path) -> dict[str, Any]:
        pieces = corpora.divided(corpus, cfg)
        shuffle = cfg.split == "hash"  # of the text in its order, order is the point
        found = tokens.write_splits(folder, pieces, tokenizer(), shuffle=shuffle)
        counts = {split: facts["documents"] for split, facts in found["splits"].items()}
        corpora.check_splits(counts, cfg)
        return found

    # What is trained here follows from the corpus.
    trained = cfg.tokenizer.startswith("bpe:")
    key = {
        "format": tokens.FORMAT,
        "source": [cfg.source, corpus.fingerprint],
        "split": [cfg.split, cfg.holdout],
        "tokenizer": [cfg.tokenizer, *specials] if trained else tokens.digest(tokenizer()),
    }
    dataset = Dataset(cfg, corpus, tokens.prepare(cache_root(cfg), key, write))
    packing.masking(dataset.tokenizer, cfg)  # before a run begins, rather than in it
    return dataset


def cache_root(cfg: Text) -> Path:
    """Where token files are kept: `data.cache`, else the user's own cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flax-zoo" / "text"
    return on_disk(str(cfg.cache or home), "data.cache")
