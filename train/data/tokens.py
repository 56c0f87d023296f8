"""Token files: the ids of a corpus on disk, written once, mapped into memory by every run.

    CACHE/KEY/header.json                       what it was made of, and how much there is
    CACHE/KEY/tokenizer/                        as `zoo.text.load` reads it
    CACHE/KEY/{train,validation,test}.bin       ids one after the other, uint16 or uint32
    CACHE/KEY/{train,validation,test}.npy       int64 [documents + 1]: where each begins; the end

A document is an opening id and the ids of its text: each id's target is the next one, and the
opening of what follows is what its last id is to predict. Where a tokenizer has two tokens for
begin and end (Llama's, BERT's), the closing one stands before the next opening.
KEY is a SHA-256 over the source, the tokenizer and how splits are cut. A folder is made under
another name and renamed, so that it is whole or not there, however many processes write it.
"""

import hashlib
import json
import os
import tempfile
import tokenize
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from train.config import ConfigError, LabelledText, Missing, Pairs, Text, on_disk
from train.data.corpora import SPLITS, Piece
from train.manifest import sync
from zoo import text as zoo_text

FORMAT = 2  # of these files: part of the key
HEADER, TOKENIZER = "header.json", "tokenizer"
AT_ONCE = 2**22  # characters that are tokenized together
LARGEST = 2**20  # ids of a BPE that is trained here
LEARNED_FROM = 2**26  # bytes of the training split that a BPE is trained on
ORDER = 0  # the seed of the order of documents, the same whatever `data.seed` is


# ---- reading ----


@dataclass(frozen=True)
class Tokens:
    """The ids of a split.

    starts: int64 [documents + 1]. opening: the id that begins a document, also the one that the
    last id of all is to predict. vocab_size: ids are below it.
    """

    path: Path
    ids: np.ndarray
    starts: np.ndarray
    opening: int
    vocab_size: int

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, count: int) -> np.ndarray:
        """int32 ids `start` to `start + count`: fewer at the end, where one opening id follows.

        Raises ConfigError for ids that no token has: the file has changed on disk.
        """
        found = self.ids[start : start + count].astype(np.int32)
        if found.size and int(found.max()) >= self.vocab_size:
            raise ConfigError(
                f"{self.path} holds the id {found.max()}, but the tokenizer's end at "
                f"{self.vocab_size - 1}: the file is damaged; remove its folder"
            )
        return np.append(found, np.int32(self.opening)) if len(found) < count else found


@dataclass(frozen=True)
class TokenFiles:
    """An opened folder. header: `splits` has the statistics of each, `facts` what else is known."""

    folder: Path
    header: Mapping[str, Any]
    tokenizer: zoo_text.Tokenizer

    @cached_property
    def splits(self) -> dict[str, Tokens]:
        return {split: self._split(split) for split in SPLITS}

    def _split(self, name: str) -> Tokens:
        facts, path = self.header["splits"][name], self.folder / f"{name}.bin"
        dtype = np.dtype(self.header["dtype"])
        # As plain arrays: each slice of a memmap object takes many times longer.
        starts = np.asarray(np.load(path.with_suffix(".npy"), mmap_mode="r"))
        whole = path.stat().st_size == facts["tokens"] * dtype.itemsize
        if not (whole and starts.shape == (facts["documents"] + 1,)):
            raise ValueError(f"{path} has another size than its header says")
        ids = np.asarray(np.memmap(path, dtype, mode="r"))
        return Tokens(path, ids, starts, self.header["opening"], self.tokenizer.vocab_size)


def opened(folder: Path, key: Mapping[str, Any]) -> TokenFiles | None:
    """The token files of a folder; None where they are missing, cut short, or not of this key."""
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if header["key"] != key:
            return None
        files = TokenFiles(folder, header, zoo_text.load(folder / TOKENIZER))
        return files if files.splits else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, tokenize.TokenError):
        return None  # the last two are what NumPy makes of a damaged header


# ---- writing ----


def prepare(root: Path, key: Mapping[str, Any], write: Callable[[Path], Any]) -> TokenFiles:
    """The token files of this key below `root`, which `write(folder)` makes where there are none.

    Raises ConfigError where the folder cannot be written, and what `write` raises.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    key = json.loads(json.dumps(key))  # tuples are lists in a header
    if files := opened(root / name, key):
        return files
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as scratch:
            made = Path(scratch) / name
            made.mkdir()
            write_header(made, key=key, **write(made))
            install(made, root / name, lambda: opened(root / name, key) is not None)
    except OSError as error:
        raise ConfigError(
            f"data.cache: token files cannot be written below {root}: {error}; make room there, or "
            "set data.cache to a folder that can be written"
        ) from error
    files = opened(root / name, key)
    if files is None:
        raise ConfigError(f"{root / name} does not hold what was written; is its disk damaged?")
    return files


def write_header(folder: Path, **facts: Any) -> None:
    text = json.dumps(facts, indent=2) + "\n"
    (folder / HEADER).write_text(text, encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def install(made: Path, target: Path, is_good: Callable[[], bool]) -> None:
    """Renames `made`, unless another process was faster; what is there and no good goes."""
    if is_good():
        return
    if target.exists():
        os.replace(target, made.with_name("replaced"))  # goes with the scratch folder
    try:
        os.replace(made, target)
    except OSError:
        if not is_good():
            raise


def write_splits(
    folder: Path, pieces: Iterable[Piece], tokenizer: zoo_text.Tokenizer, *, shuffle: bool
) -> dict[str, Any]:
    """Writes the files of all splits; returns what the header says of them.

    shuffle: documents in a fixed random order, else in that of `pieces`. Text is held AT_ONCE
    characters at a time. "<|endoftext|>" in a text is text.
    """
    opening, closing = ends(tokenizer)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    tokenizer.save(folder / TOKENIZER)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(Writer(folder / f"{split}.bin", dtype, opening, closing))
            for split in SPLITS
        }
        for some in together(pieces):
            for piece, ids in zip(some, encode(tokenizer, some), strict=True):
                writers[piece.split].add(piece, ids)
    splits = {split: writer.finish(shuffle) for split, writer in writers.items()}
    return {"dtype": dtype.name, "opening": opening, "splits": splits}


def ends(tokenizer: zoo_text.Tokenizer) -> tuple[int, int | None]:
    """(id that begins a document, id that ends it; None where both are one, as GPT-2's are)."""
    roles = tokenizer.specials
    first = (i for i in (roles.bos, roles.cls, roles.eos) if i is not None)
    last = (i for i in (roles.eos, roles.sep) if i is not None)
    opening, closing = next(first, None), next(last, None)
    if opening is None:
        raise ConfigError("data.tokenizer has no token that begins or ends a text (bos, cls, eos)")
    return opening, None if closing == opening else closing


def together(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Consecutive pieces, as many as have AT_ONCE characters."""
    some, size = [], 0
    for piece in pieces:
        some.append(piece)
        size += len(piece.text)
        if size >= AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def encode(tokenizer: zoo_text.Tokenizer, pieces: Sequence[Piece]) -> list[list[int]]:
    """The ids of each piece, without any that a text does not say."""
    try:
        texts = [piece.text for piece in pieces]
        return tokenizer.encode_batch(texts, add_special=False, parse_special=False)
    except zoo_text.TokenizerError as error:
        first, last = pieces[0].name, pieces[-1].name
        raise ConfigError(f"data.tokenizer: {error} (in one of {first} to {last})") from error


class Writer:
    """Writes the documents of a split, piece by piece."""

    def __init__(self, path: Path, dtype: np.dtype, opening: int, closing: int | None):
        self.path, self.dtype = path, dtype
        self.opening, self.closing = [opening], [] if closing is None else [closing]
        self.starts, self.tokens, self.bytes = array("q"), 0, 0
        self.names = hashlib.sha256()

    def __enter__(self) -> "Writer":
        self.file = self.path.open("wb")
        return self

    def __exit__(self, *_: Any) -> None:
        self._write(self.closing if self.starts else [])
        self.file.close()

    def add(self, piece: Piece, ids: Sequence[int]) -> None:
        if piece.begins:
            self._write(self.closing if self.starts else [])
            self.starts.append(self.tokens)
            self._write(self.opening)
            self.names.update(f"{piece.name}\n".encode("utf-8", "surrogateescape"))
        self._write(ids)
        self.bytes += len(piece.text.encode())

    def _write(self, ids: Sequence[int]) -> None:
        self.file.write(np.array(ids, self.dtype).tobytes())
        self.tokens += len(ids)

    def finish(self, shuffle: bool) -> dict[str, Any]:
        """Puts the documents in order and writes where they begin; returns the statistics."""
        starts = np.array([*self.starts, self.tokens], np.int64)
        if shuffle and len(self.starts) > 1:
            starts = reorder(self.path, self.dtype, starts)
        np.save(self.path.with_suffix(".npy"), starts)
        with self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found = {"documents": len(self.starts), "bytes": self.bytes, "tokens": self.tokens}
        return {**found, "sha256": content, "sha256_of_names": self.names.hexdigest()}


def reorder(path: Path, dtype: np.dtype, starts: np.ndarray) -> np.ndarray:
    """Writes the documents of a file in a random order; returns where they then begin."""
    order = np.random.default_rng(ORDER).permutation(len(starts) - 1)
    lengths = np.diff(starts)[order]
    ids = np.memmap(path, dtype, mode="r")
    ordered = path.with_suffix(".ordered")
    with ordered.open("wb") as file:
        for i in order:
            file.write(ids[starts[i] : starts[i + 1]].tobytes())
    os.replace(ordered, path)
    return np.concatenate([[0], np.cumsum(lengths)])


# ---- tokenizers ----


def check_tokenizer(cfg: Text | LabelledText | Pairs) -> None:
    """Raises ConfigError for a `data.tokenizer` that cannot be there, or cannot mask."""
    known = ("words", "bytes") if isinstance(cfg, Pairs) else ("bytes",)
    if isinstance(cfg, Text) and cfg.mask and cfg.tokenizer == "bytes":
        raise no_mask(cfg)
    kind, _, size = cfg.tokenizer.partition(":")
    if kind == "bpe" and not size.isdecimal():
        raise bad_tokenizer(cfg, "must have the form bpe:SIZE, such as bpe:4096")
    if kind == "bpe":
        smallest = 257 + bool(getattr(cfg, "mask", 0))  # the bytes, the end of a text, the mask
        if not smallest <= int(size) <= LARGEST:
            raise bad_tokenizer(cfg, f"SIZE must lie between {smallest} and {LARGEST}")
    elif cfg.tokenizer not in known and not on_disk(cfg.tokenizer, "data.tokenizer").exists():
        names = " nor ".join((*known, "bpe:SIZE"))
        message = f"is neither {names}, and there is no file or directory of that name"
        raise bad_tokenizer(cfg, message, Missing)


def open_tokenizer(
    cfg: Text | LabelledText | Pairs, texts: Callable[[], Iterable[str]], specials: Sequence[str]
) -> zoo_text.Tokenizer:
    """The tokenizer of `data.tokenizer`, trained on the first LEARNED_FROM bytes of `texts()` if it
    is to be, with these special tokens. What is made here for captions ends each with the first of
    them, which has the largest id: there a text tower reads the whole."""
    check_tokenizer(cfg)
    closed = isinstance(cfg, Pairs)
    try:
        if cfg.tokenizer == "bytes":
            return zoo_text.ByteTokenizer({"add_eos_token": True} if closed else None)
        if cfg.tokenizer == "words":
            return zoo_text.train_words(_first(texts()), eos=specials[0])
        if cfg.tokenizer.startswith("bpe:"):
            size = int(cfg.tokenizer.removeprefix("bpe:"))
            return zoo_text.train_bpe(_first(texts()), size, specials=specials, closed=closed)
        return zoo_text.load(cfg.tokenizer)
    except zoo_text.TokenizerError as error:
        raise bad_tokenizer(cfg, str(error)) from error


def _first(texts: Iterable[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        if size >= LEARNED_FROM:
            return
        size += len(text.encode())
        yield text


def bad_tokenizer(
    cfg: Text | LabelledText | Pairs, message: str, kind: type[ConfigError] = ConfigError
) -> ConfigError:
    return kind(f"data.tokenizer = {cfg.tokenizer!r}: {message}")


def no_mask(cfg: Text) -> ConfigError:
    return ConfigError(
        f"data.mask is {cfg.mask}, but the tokenizer {cfg.tokenizer!r} has no mask token: use "
        "bpe:SIZE, which is then trained with one, or BERT's own"
    )


def digest(tokenizer: zoo_text.Tokenizer) -> str:
    """The SHA-256 of all that a tokenizer's files say."""
    found = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for path in sorted(Path(folder).iterdir()):
            found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
