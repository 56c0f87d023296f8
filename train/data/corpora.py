"""Where text comes from: documents, read one after the other, and the split that each is in.

    stdlib                 the source of Python's own standard library, nothing to fetch
    text:GLOB              text files, one document each: "text:~/books/**/*.txt"
    jsonl:GLOB             JSON objects, one a line, .jsonl or .jsonl.gz; `data.field` is the text
    tfds:NAME[:VERSION]    a TFDS data set with a text `data.field`, prepared beforehand

Every corpus has a train, a validation and a test split. Those that TFDS stores are kept, as for
pictures; what is missing is cut from train, a share of `data.holdout` each. Documents without text
are left out. Nothing here holds more than one document, or one piece of a long file, but for
`stdlib`, which is 10 MB.
"""

import codecs
import glob
import gzip
import hashlib
import json
import os
import platform
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from train.config import ConfigError, Data, Missing, Text, on_disk
from train.data import sources
from train.data.sources import Kind, bad_source

SPLITS = ("train", "validation", "test")
PIECE = 2**22  # bytes of a file that are read at once


class Document(NamedTuple):
    """name   of a file, a line or a record: no two are equal
    pieces    its text, in order; a long file has several
    stored    the split that its source has put it in; what is cut off is cut from train
    kin       the name of the first document that it is nearly the same as: both are on one side
    """

    name: str
    pieces: Iterable[str]
    stored: str = "train"
    kin: str = ""


@dataclass(frozen=True)
class Corpus:
    """documents    all of them, in the same order at each call
    fingerprint  changes when the documents do, as far as can be seen without reading them
    stored       the splits that the source has
    facts        what else to know, by name
    """

    name: str
    licence: str
    documents: Callable[[], Iterator[Document]]
    fingerprint: Any
    stored: tuple[str, ...] = ("train",)
    facts: Mapping[str, Any] = field(default_factory=dict)


def check_corpus(cfg: Text) -> None:
    """Raises ConfigError for what is wrong with `data.source`, as far as a look at the disk shows.

    Imports neither jax nor, unless it fails, tensorflow_datasets.
    """
    kind, argument = sources.choose(cfg, CORPORA)
    kind.check(argument, cfg)


def open_corpus(cfg: Text) -> Corpus:
    """The corpus that `data.source` names. Raises ConfigError as `check_corpus` does; reading its
    documents raises it for what is no text."""
    kind, argument = sources.choose(cfg, CORPORA)
    kind.check(argument, cfg)
    return kind.open(argument, cfg)


# ---- splits ----


class Piece(NamedTuple):
    """A part of a document, whole or not, in its split. begins: the first part that is there."""

    split: str
    name: str
    text: str
    begins: bool


def divided(corpus: Corpus, cfg: Text) -> Iterator[Piece]:
    """All text of a corpus once, document by document, each part with its split.

    `data.split` = "hash": whole documents by the SHA-256 of their names, so that a document stays
    where it is when others come. "position": the text in its order, of which the first part is
    train, then comes validation, then test; the document at a cut is divided between two
    characters. Either way a split takes `data.holdout` of the documents, or of the bytes. Raises
    ConfigError for what cannot be read.
    """
    missing = tuple(name for name in ("test", "validation") if name not in corpus.stored)
    try:
        yield from DIVISIONS[cfg.split](corpus, missing, cfg.holdout)
    except OSError as error:  # else it would be taken for one of writing what is read
        raise bad_source(cfg, f"cannot be read: {error}") from error


def by_hash(corpus: Corpus, missing: Sequence[str], share: float) -> Iterator[Piece]:
    for document in corpus.documents():
        place = unit_hash(document.kin or document.name)
        cut = [name for k, name in enumerate(missing, 1) if place < k * share]
        split = cut[0] if cut and document.stored == "train" else document.stored
        texts = filter(None, document.pieces)
        yield from (Piece(split, document.name, t, n == 0) for n, t in enumerate(texts))


def unit_hash(name: str) -> float:
    """A number in [0, 1) that is spread evenly over names: the first eight bytes of a SHA-256."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def by_position(corpus: Corpus, missing: Sequence[str], share: float) -> Iterator[Piece]:
    total = sum(
        len(text.encode())
        for document in corpus.documents()
        if document.stored == "train"
        for text in document.pieces
    )
    cuts = [round(total * (1 - k * share)) for k in range(len(missing), 0, -1)]
    parts = dict(zip(["train", *reversed(missing)], [*cuts, total], strict=True))
    position = 0
    for document in corpus.documents():
        began: set[str] = set()
        for text in filter(None, document.pieces):
            if document.stored != "train":
                found = [(document.stored, text)]
            else:
                found = list(_cut(text, position, parts))
                position += len(text.encode())
            for split, part in found:
                yield Piece(split, document.name, part, split not in began)
                began.add(split)


def _cut(text: str, start: int, ends: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The parts of `text`, which begins at byte `start`, that lie before each of the `ends`."""
    content = text.encode()
    for split, end in ends.items():
        # A character on the cut belongs to what comes after it.
        part = content[: max(0, end - start)].decode("utf-8", "ignore")
        taken = len(part.encode())
        content, start = content[taken:], start + taken
        if part:
            yield split, part


DIVISIONS = {"hash": by_hash, "position": by_position}


def check_splits(documents: Mapping[str, int], cfg: Text) -> None:
    """Raises ConfigError where a split has no document."""
    empty = [name for name in SPLITS if not documents[name]]
    if not empty:
        return
    total = sum(documents.values())
    if not total:
        raise bad_source(cfg, "has no document with text")
    change = "lower" if "train" in empty else "raise"
    ways = {
        "hash": f'add documents, {change} it, or cut the text itself: data.split = "position"',
        "position": "choose a share between 0 and 0.5, or add text",
    }
    raise ConfigError(
        f"data.holdout = {cfg.holdout}: cutting {total} documents of {cfg.source!r} by {cfg.split} "
        f"leaves {' and '.join(empty)} empty; {ways[cfg.split]}"
    )


# ---- files ----


def found_files(pattern: str, cfg: Data) -> dict[str, Path]:
    """The files that a pattern finds, sorted, by their paths below what is fixed in it.

    Raises ConfigError where there is none."""
    path = on_disk(pattern, "data.source")
    if path.is_file():
        return {path.name: path}
    root = path
    while re.search(r"[*?[]", str(root)):
        root = root.parent
    found = (Path(name) for name in glob.glob(str(path), recursive=True))
    files = {file.relative_to(root).as_posix(): file for file in found if file.is_file()}
    if not files:
        raise bad_source(cfg, f"no file is found by {path}{_hint(path, cfg)}", Missing)
    return dict(sorted(files.items()))


ENDINGS = {"jsonl": "*.jsonl", "wds": "*.tar"}  # what a folder of such a source may hold


def _hint(path: Path, cfg: Data) -> str:
    if path.is_dir():
        ending = ENDINGS.get(cfg.source.partition(":")[0], "*.txt")
        return f"; a folder is written {path / '**' / ending}"
    return "; a bracket that is part of a name is written [[]" if "[" in str(path) else ""


def check_files(pattern: str, cfg: Data) -> None:
    found_files(pattern, cfg)


def _fingerprint(files: Mapping[str, Path]) -> str:
    """Of the names, sizes and times of files: they may be too many bytes to read at each start."""
    digest = hashlib.sha256()
    for name, path in files.items():
        stat = path.stat()
        line = [name, str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


# ---- text ----


def open_text(pattern: str, cfg: Text) -> Corpus:
    """One document a file, named by its path below the fixed part of the pattern."""
    files = found_files(pattern, cfg)
    full = {name: path for name, path in files.items() if path.stat().st_size}

    def documents() -> Iterator[Document]:
        return (Document(name, read_text(path)) for name, path in full.items())

    facts = {"empty": len(files) - len(full)}
    licence = "not stated: the user's own files"
    return Corpus(pattern, licence, documents, _fingerprint(full), facts=facts)


def read_text(path: Path) -> Iterator[str]:
    """The text of a file, line ends as they are, in pieces of about PIECE bytes.

    They are cut before the end of a line, where there are lines: to most tokenizers that is between
    two tokens.

    Raises ConfigError for a file that cannot be read, and for one that is not UTF-8.
    """
    decoder, rest, offset = codecs.getincrementaldecoder("utf-8")(), "", 0
    try:
        with path.open("rb") as file:
            while block := file.read(PIECE):
                offset -= len(decoder.getstate()[0])  # bytes of a character that is cut in two
                rest += decoder.decode(block)
                offset = file.tell()
                if len(block) == PIECE:
                    line = rest.rfind("\n")
                    end = line if line > 0 else len(rest)
                    yield rest[:end]
                    rest = rest[end:]
        offset -= len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"data.source: {path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{offset + error.start}; convert it (iconv -t UTF-8), or leave it out"
        ) from error
    except OSError as error:
        raise ConfigError(f"data.source: {path} cannot be read: {error.strerror}") from error
    yield rest


# ---- stdlib ----

LARGEST = 200_000  # bytes: longer files are data
TESTS = {"test", "tests", "idle_test"}
INSTALLED = {"site-packages", "dist-packages"}
TABLES = (  # data, or written by a program
    "encodings/*",
    "pydoc_data/*",
    "_sysconfigdata_*.py",
    "config-*",
    "html/entities.py",
    "re/_casefix.py",
    "stringprep.py",
    "_opcode_metadata.py",
    "keyword.py",
    "token.py",
    "msilib/schema.py",
    "msilib/sequence.py",
)
ALIKE = 0.8  # of the lines of two files: then they are nearly the same


def check_stdlib(_: str, cfg: Data) -> None:
    if not stdlib_files():
        raise bad_source(cfg, f"{stdlib_root()} has no Python source; use text:GLOB instead")


def open_stdlib(_: str, cfg: Text) -> Corpus:
    """The Python source files of the running interpreter's standard library, by relative path.

    Left out: tests, what others have installed, tables that programs wrote, files over LARGEST
    bytes, and what is not UTF-8. Files that are nearly the same are in one split. What is there
    depends on the version of Python.
    """
    files = stdlib_files()

    def documents() -> Iterator[Document]:
        texts = {name: text for name, path in files.items() if (text := _utf8(path))}
        kin = families(texts)
        return (Document(name, (text,), kin=kin[name]) for name, text in texts.items())

    name, facts = f"stdlib {platform.python_version()}", {"python": platform.python_version()}
    return Corpus(name, "PSF-2.0", documents, _fingerprint(files), facts=facts)


def stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def stdlib_files() -> dict[str, Path]:
    """The files of `stdlib` by relative path, sorted; what is in them is not looked at."""
    root, found = stdlib_root(), {}
    for parent, folders, names in os.walk(root):
        folders[:] = set(folders) - TESTS - INSTALLED
        paths = (Path(parent, name) for name in names if name.endswith(".py"))
        found |= {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
    kept = (name for name in sorted(found) if not any(fnmatch(name, table) for table in TABLES))
    return {name: found[name] for name in kept if 0 < found[name].stat().st_size <= LARGEST}


def _utf8(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None


def families(texts: Mapping[str, str]) -> dict[str, str]:
    """For each text the name of the first in its family: those that share more than ALIKE of their
    lines (intersection over union, white space around them aside), and the families of these."""
    lines = {name: frozenset(map(str.strip, text.splitlines())) for name, text in texts.items()}
    first: dict[str, str] = {}
    for name, own in lines.items():
        kin = {first[other] for other in first if _alike(own, lines[other])}
        head = next((other for other in first if other in kin), name)
        first |= {other: head for other in first if first[other] in kin}
        first[name] = head
    return first


def _alike(a: frozenset[str], b: frozenset[str]) -> bool:
    if min(len(a), len(b)) <= ALIKE * max(len(a), len(b)):  # quick, and true of most pairs
        return False
    shared = len(a & b)
    return shared > ALIKE * (len(a) + len(b) - shared)


# ---- jsonl ----


def open_jsonl(pattern: str, cfg: Text) -> Corpus:
    """One document a line, named FILE:LINE."""
    files = found_files(pattern, cfg)

    def documents() -> Iterator[Document]:
        for name, path in files.items():
            for number, record in records(path):
                found = string(record, cfg.field, f"{path}, line {number}")
                yield Document(f"{name}:{number}", (found,))

    licence = "not stated: the user's own files"
    return Corpus(pattern, licence, documents, [_fingerprint(files), cfg.field])


def records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number from 1, object) of a file of JSON lines, packed by gzip if it ends in .gz; empty
    lines are passed over.

    Raises ConfigError, naming file and line, for what is no JSON object in UTF-8.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"data.source: {path} cannot be read after line {number}: {error}"
        ) from error


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"data.source: {where} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} of the line; convert it (iconv -t UTF-8)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"data.source: {where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ConfigError(f"data.source: {where} holds a JSON {kind}, not an object")
    return found


def string(record: Mapping[str, Any], key: str, where: str) -> str:
    """The text in a field. Raises ConfigError where it is missing or no text."""
    if key not in record:
        has = ", ".join(map(repr, record)) or "nothing"
        raise ConfigError(f"data.field = {key!r}: {where} has {has} instead")
    return as_text(record[key], f"data.field = {key!r}: {where}")


def as_text(value: Any, where: str) -> str:
    """A str, or the UTF-8 bytes of one, as str. Raises ConfigError for what is none."""
    if not isinstance(value, str | bytes):
        raise ConfigError(f"{where} holds {value!r:.80}, which is no text")
    try:
        return value.decode() if isinstance(value, bytes) else value.encode().decode()
    except UnicodeError as error:  # bytes in another encoding, or half a surrogate pair
        raise ConfigError(f"{where} holds what is no Unicode text: {error}") from error


# ---- tfds ----

AT_ONCE = 1000  # records that are read together, which is much faster than one by one


def open_tfds(name: str, cfg: Text) -> Corpus:
    """Any data set with a text in the feature `data.field`; documents are named SPLIT:NUMBER.

    TensorFlow is not needed and not imported. Raises ConfigError as for pictures, and where that
    feature is not a text.
    """
    builder = sources.tfds_builder(name, cfg)
    check_text_feature(builder.info.features, cfg.field)
    read = sources.tfds_splits(builder, name, cfg)
    stored = {ours: read[theirs] for ours, theirs in sources.stored_splits(read)}
    stored = {ours: split for ours, split in stored.items() if len(split)}
    sources.check_train(stored, read, cfg)
    if "test" not in stored and "validation" in stored:
        stored["test"] = stored.pop("validation")

    def documents() -> Iterator[Document]:
        for split, examples in stored.items():
            for number, example in enumerate(tfds_records(examples)):
                where = f"data.field = {cfg.field!r}: {split} record {number}"
                yield Document(f"{split}:{number}", (as_text(example[cfg.field], where),), split)

    title, licence = sources.tfds_title(builder)
    fingerprint = [title, str(builder.data_dir), cfg.field]
    return Corpus(title, licence, documents, fingerprint, tuple(stored))


def check_text_feature(features: Any, key: str) -> None:
    """Raises ConfigError unless `key` is a text among the features of a TFDS data set."""
    import tensorflow_datasets as tfds

    if key not in features or not isinstance(features[key], tfds.features.Text):
        raise ConfigError(f"data.field = {key!r} must be a text; it has {', '.join(features)}")


def tfds_records(split: Any) -> Iterator[Mapping[str, Any]]:
    """The examples of a split of `tfds.data_source`, in order."""
    for start in range(0, len(split), AT_ONCE):
        yield from split.__getitems__(range(start, min(start + AT_ONCE, len(split))))


# ---- the table ----


CORPORA = {
    "stdlib": Kind("stdlib", check_stdlib, open_stdlib),
    "text": Kind("text:GLOB", check_files, open_text),
    "jsonl": Kind("jsonl:GLOB", check_files, open_jsonl),
    "tfds": Kind("tfds:NAME[:VERSION]", sources.check_tfds, open_tfds),
}
