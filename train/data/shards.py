"""Tar shards in WebDataset's form, read at random without being unpacked. Needs no jax.

    000.jpg 000.txt | 000.json …      the members with one key, in any order, are an example

A key is the path of a member up to the first dot of its name. Each shard is read through once, for
where its pictures and captions lie; that is kept in ~/.cache/flax-zoo/shards, 50 bytes an example,
and made anew when the shard's size or time changes.
"""

import contextlib
import hashlib
import json
import os
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from train.config import ConfigError
from train.data.corpora import unit_hash
from train.data.sources import EXTENSIONS
from zoo.preprocess import Unreadable

ENTRY = np.dtype(
    [
        ("shard", "<i4"),  # which of the files
        ("place", "<f8"),  # in [0, 1), by the hash of shard and key
        ("image", "<i8"),  # byte at which the picture begins; −1: there is none
        ("image_size", "<i8"),
        ("caption", "<i8"),
        ("caption_size", "<i8"),
        ("json", "?"),  # whether the caption is in a JSON object, else text alone
        ("again", "?"),  # whether an earlier example of the shard has the same key
    ]
)
FORMAT = 1  # of what is kept
BLOCK = tarfile.BLOCKSIZE
ROLES = {ending.removeprefix("."): "image" for ending in EXTENSIONS} | {
    "txt": "txt",
    "json": "json",
}

Span = tuple[int, int]  # where in a shard: its first byte, how many
NOWHERE: Span = (-1, 0)


def indexed(shards: Mapping[str, Path]) -> np.ndarray:
    """ENTRY [examples] of all shards, by the names under which they are known.

    Raises ConfigError for a shard that is no tar file, packed, cut short or damaged.
    """
    found = [_kept(path, name) for name, path in shards.items()]
    for number, entries in enumerate(found):
        entries["shard"] = number
    return np.concatenate(found)


def read(path: Path, start: int, size: int) -> bytes:
    """A span of a shard. Raises Unreadable where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
    except OSError as error:
        raise Unreadable(str(path), error.strerror or str(error)) from error
    if len(content) < size:
        raise Unreadable(str(path), f"ends before byte {start + size}: it has changed")
    return content


def title(path: Path, start: int) -> str:
    """The name of the member whose content begins there, as far as its header holds it."""
    with contextlib.suppress(tarfile.HeaderError, Unreadable):
        header = read(path, start - BLOCK, BLOCK)
        return tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace").name
    return f"byte {start}"


# ---- what is kept ----


def _kept(path: Path, name: str) -> np.ndarray:
    """`index`, or what was kept of it when the file was the same."""
    stat = path.stat()
    key = json.dumps([FORMAT, name, str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    file = cache_root() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        entries = np.load(file)
        if entries.dtype == ENTRY and entries.ndim == 1:
            return entries
    entries = index(path, name)
    # What cannot be kept is made again.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{uuid.uuid4().hex}.npy")
        try:
            np.save(partial, entries)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    return entries


def cache_root() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return home.expanduser() / "flax-zoo" / "shards"


# ---- what is in a shard ----


def index(path: Path, name: str) -> np.ndarray:
    """ENTRY [examples] of a shard, in the order in which their keys first come."""
    members: dict[str, dict[str, list[Span]]] = {}
    for member in _members(path):
        stem, _, ending = member.name.rpartition("/")[2].partition(".")
        role = ROLES.get(ending.lower())
        # Sparse files lie in pieces, and names such as ._a.jpg are a Mac's notes.
        if role and stem and member.isreg() and not member.issparse():
            spans = members.setdefault(member.name.removesuffix(f".{ending}"), {})
            spans.setdefault(role, []).append((member.offset_data, member.size))
    entries = [
        entry for key, spans in members.items() for entry in _entries(f"{name}:{key}", spans)
    ]
    return np.array(entries, ENTRY)


def _entries(key: str, spans: Mapping[str, list[Span]]) -> Iterator[tuple]:
    """An example, and one more for each time that its key comes again."""
    place, kind = unit_hash(key), "txt" if "txt" in spans else "json"
    images, captions = spans.get("image", []), spans.get(kind, [])
    for n in range(max(len(images), len(captions))):
        image, caption = (some[n] if n < len(some) else NOWHERE for some in (images, captions))
        yield (0, place, *image, *caption, kind == "json", n > 0)


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Raises ConfigError, with the byte, where the archive ends before its end."""
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            while member := archive.next():
                yield member
                cast(Any, archive).members.clear()  # else all are held
            end = archive.offset
    except tarfile.ReadError as error:
        raise ConfigError(f"data.source: {_damage(path, error)}") from error
    except OSError as error:
        raise ConfigError(f"data.source: {path} cannot be read: {error.strerror}") from error
    # tarfile takes a header that is cut or damaged for the end, which is a block of zeros.
    if path.stat().st_size < end + BLOCK:
        raise ConfigError(f"data.source: {_cut(path)}")
    if any(read(path, end, BLOCK)):
        raise ConfigError(f"data.source: {path} is damaged at byte {end}: fetch it again")


def _damage(path: Path, error: tarfile.ReadError) -> str:
    if any(word in str(error) for word in ("end of data", "truncated", "empty")):
        return _cut(path)
    return (
        f"{path} is no tar file that can be read at random ({error}): unpack what is compressed "
        "(gunzip), or leave it out"
    )


def _cut(path: Path) -> str:
    return f"{path} is cut short: it ends at byte {path.stat().st_size}; fetch it again"
