"""The pictures of a folder in the order in which a text fits them, by an index that is kept.

    folder → names, sizes, times ┐
    index of the last time ──────┴→ new and changed pictures → [m, e] → index [n, e], written whole
    query → [e] ──────────────────────────────────────────────────────→ hits, the best first

An index is an .npz with the embeddings of pictures and, as JSON, what they were made of: a key (the
model, how it takes pictures, the folder) and the size and time of each file. Where any of it
differs, an embedding is made anew, so that nothing in an index has to be believed.

n pictures · m of them new · e width of the common space.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import zoo
from zoo import zeroshot
from zoo.card import Preprocess
from zoo.preprocess import Unreadable, prepare
from zoo.weights import hub

Array = np.ndarray
FORMAT = 1  # of an index: part of its key
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")


class Stamp(NamedTuple):
    """What a file looks like from outside: bytes, and nanoseconds of its last change."""

    size: int
    modified: int


class Index(NamedTuple):
    """files: names below the folder, sorted. embeddings: float32 [n, e], a row for each."""

    files: Mapping[str, Stamp]
    embeddings: Array


class Hit(NamedTuple):
    """A picture: its name below the folder, its cosine with the query, and its share of the softmax
    over all pictures."""

    name: str
    cosine: float
    share: float


class Reader(NamedTuple):
    """How a model takes pictures. embed: float32 [b, H, W, channels] → [b, e]."""

    embed: zeroshot.Embed
    preprocess: Preprocess
    channels: int
    batch: int = 32


Note = Callable[[str], None]
Progress = Callable[[int, int], None]


def silent(*_: Any) -> None:
    """Says nothing."""


def rank(index: Index, query: Array, scale: float) -> list[Hit]:
    """All pictures, the best first. query: float32 [e]. scale: the model's, of cosines."""
    places, cosines = zeroshot.nearest(query[None], index.embeddings, len(index.files))
    names, shares = list(index.files), zeroshot.softmax(scale * cosines[0])
    found = zip(places[0], cosines[0].tolist(), shares.tolist(), strict=True)
    return [Hit(names[place], cosine, share) for place, cosine, share in found]


def refresh(
    place: Path,
    folder: Path,
    model: str,
    reader: Reader,
    *,
    leave_out: Path | None = None,
    note: Note = silent,
    progress: Progress = silent,
) -> Index:
    """The index of a folder's pictures as they are now, read from and written to `place`.

    place: what is there and no such index is written over, see `check_place`.
    model: the `identity` of the weights. leave_out: a file that is no picture of the folder's.
    note: is told what is skipped or made anew. progress: of (pictures, all that are new).
    What was embedded is kept if it is interrupted. Raises ValueError where there is no folder, no
    picture in it, and none that can be read.
    """
    prepare([], reader.preprocess, channels=reader.channels)  # raises for what fits no picture
    key = _key(model, reader, folder)
    found = pictures(folder, leave_out, note)
    known = read(place, key, note)
    old = dict(zip(known.files.items(), known.embeddings, strict=True))
    kept = {name: old[name, stamp] for name, stamp in found.items() if (name, stamp) in old}
    missing = [name for name in found if name not in kept]
    try:
        for name, vector in _embedded(folder, missing, reader, note, progress):
            kept[name] = vector
    finally:
        files = {name: stamp for name, stamp in found.items() if name in kept}
        index = Index(files, np.array([kept[name] for name in files], np.float32))
        if files != known.files:
            _keep(place, key, index, note)
    if not files:
        raise ValueError(f"none of the {len(found)} pictures in {folder} can be read")
    return index


def pictures(folder: Path, leave_out: Path | None = None, note: Note = silent) -> dict[str, Stamp]:
    """Every picture below a folder, sorted by name. Hidden files and folders are passed over, and
    links to folders; folders that cannot be read are noted.

    Raises ValueError for no folder, and for one without pictures.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found, left, closed = {}, leave_out and leave_out.resolve(), []
    for path in _files(folder, closed.append):
        if path.resolve() != left and path.suffix.lower() in EXTENSIONS and path.is_file():
            facts = path.stat()
            found[path.relative_to(folder).as_posix()] = Stamp(facts.st_size, facts.st_mtime_ns)
    reasons = [f"{error.filename}: {error.strerror}" for error in closed]
    if not found:
        none = f"there is no picture ({' '.join(EXTENSIONS)}) in {folder}"
        raise ValueError("; ".join([none, *reasons]))
    for reason in reasons:
        note(f"skipped {reason}")
    return dict(sorted(found.items()))


def _files(folder: Path, failed: Callable[[OSError], None]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _embedded(
    folder: Path, names: Sequence[str], reader: Reader, note: Note, progress: Progress
) -> Iterator[tuple[str, Array]]:
    """(name, embedding float32 [e]) of every picture that can be read; the others are noted."""

    def image(name: str) -> Array | Unreadable:
        try:
            return prepare([folder / name], reader.preprocess, channels=reader.channels)[0]
        except Unreadable as error:
            return error
        except ValueError as error:  # too long to be resized
            return Unreadable(str(folder / name), str(error))

    with ThreadPoolExecutor() as pool:
        for some in zeroshot.chunks(len(names), reader.batch):
            images = dict(zip(names[some], pool.map(image, names[some]), strict=True))
            whole = {name: x for name, x in images.items() if not isinstance(x, Unreadable)}
            for error in images.values():
                if isinstance(error, Unreadable):
                    note(f"skipped {error}")
            if whole:
                rows = np.stack(list(whole.values()))
                yield from zip(
                    whole, zeroshot.in_batches(reader.embed, rows, reader.batch), strict=True
                )
            progress(min(some.stop, len(names)), len(names))


# The file.


def place_of(model: str, reader: Reader, folder: Path) -> Path:
    """Where the index of a folder is kept: in the user's own cache. Raises ValueError where the
    user has no home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"there is no place for the index ({error}): set XDG_CACHE_HOME, or name one by --index"
        ) from error
    return home / "flax-zoo" / "search" / f"{_key(model, reader, folder)[:32]}.npz"


def _key(model: str, reader: Reader, folder: Path) -> str:
    """A SHA-256 over all that embeddings depend on but the pictures, and over the folder."""
    picture = [asdict(reader.preprocess), reader.channels]
    facts = [FORMAT, zoo.__version__, model, picture, str(folder.resolve())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def identity(path: Path) -> str:
    """What is the same for the same weights alone: of the hub's files the repository and commit, of
    others a SHA-256 over the weights and all that is said of them beside."""
    origin = hub.origin(path)
    if origin != str(path):
        return f"{origin}/{path.name if path.is_file() else ''}"
    folder = path.parent if path.is_file() else path
    weights = [file for file in folder.iterdir() if file.suffix in hub.SUFFIXES]
    found = hashlib.sha256()
    for file in sorted([*([path] if path.is_file() else weights), *folder.glob("*.json")]):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").digest()
        found.update(file.name.encode() + b"\0" + digest)
    return found.hexdigest()


def read(place: Path, key: str, note: Note = silent) -> Index:
    """The index at `place`; an empty one where there is none, and, noted, for one that is damaged
    or of another key."""
    nothing = Index({}, np.zeros((0, 0), np.float32))
    if not place.exists():
        return nothing
    try:
        written, index = _parsed(place)
    except Exception as error:  # NumPy raises nearly anything on damaged files
        note(f"the index {place} is damaged and made anew: {str(error) or type(error).__name__}")
        return nothing
    if written != key:
        note(f"the index {place} is of another model or folder and made anew")
        return nothing
    return index


def check_place(place: Path) -> None:
    """Raises ValueError for a file that is there and no index: somebody else's, which `refresh`
    would write over. An index of another model or folder is one."""
    try:
        if place.exists():
            _parsed(place)
    except Exception as error:  # as above
        raise ValueError(
            f"{place} is there already and is no index of pictures "
            f"({str(error) or type(error).__name__}): give another path, or remove it"
        ) from error


def _parsed(place: Path) -> tuple[str, Index]:
    """(key, index). Raises whatever a file that is no index leads to."""
    with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        facts, embeddings = json.loads(arrays["facts"].tobytes()), arrays["embeddings"]
    files = {name: Stamp(*stamp) for name, stamp in facts["files"].items()}
    if embeddings.dtype != np.float32 or embeddings.shape[:1] != (len(files),):
        raise ValueError(f"{embeddings.dtype} {embeddings.shape} for {len(files)} pictures")
    return facts["key"], Index(files, embeddings)


def _keep(place: Path, key: str, index: Index, note: Note) -> None:
    """Writes an index; what prevents it is noted, since the answer is there without it."""
    try:
        write(place, key, index)
    except OSError as error:
        note(f"the index cannot be kept at {place}: {error.strerror or error}")


def write(place: Path, key: str, index: Index) -> None:
    """Whole or not at all. Raises OSError where it cannot be written."""
    facts = json.dumps({"key": key, "files": index.files}).encode()
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez(file, facts=np.frombuffer(facts, np.uint8), embeddings=index.embeddings)
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
