"""flax_model.msgpack: a nested dict of arrays, as `flax.serialization.to_bytes` writes it.

MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md), in the part that flax uses:

    tree     a map of texts → tree or array
    array    an extension of type 1 (NumPy's scalars: 3) that holds [[sizes …], dtype name, bytes];
             above 1 GiB {"__msgpack_chunked_array__": true, "shape": {"0": size, …},
             "chunks": {"0": flat array, …}}

The nested keys are joined by "/". Only the structure is read at first: flax's own reader holds the
file and a copy of each array at once. What is outside this grammar is refused by name.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flax.serialization import msgpack_serialize

from zoo import tree
from zoo.weights.convert import WeightsError
from zoo.weights.slots import (
    INSTEAD,
    Joined,
    Slot,
    Slots,
    checked,
    is_number,
    parsing,
    unique,
)

CHUNKED = "__msgpack_chunked_array__"
DEPTH = 64  # levels of nesting; published trees have about 8
ARRAYS = (1, 3)  # types of extension
TRUE = 0xC3  # the only constant, for CHUNKED
NUMBERS, MAPS, LISTS, TEXTS = range(0x80), range(0x80, 0x90), range(0x90, 0xA0), range(0xA0, 0xC0)
# First byte → how many bytes of length follow it; of a number, how many bytes.
LONG_NUMBERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
LONG_MAPS = {0xDE: 2, 0xDF: 4}
LONG_LISTS = {0xDC: 2, 0xDD: 4}
LONG_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
LONG_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
LONG_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
SIZED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}  # first byte → length


def slots(path: Path) -> Slots:
    """Raises WeightsError for a damaged file, and for a list or a leaf that is no array."""
    with parsing(path, "Flax msgpack file") as file:
        leaves = list(_flat(Reader(file, path).root()))
        for name, leaf in leaves:
            if not isinstance(leaf, Slot | Joined):
                raise WeightsError(f"{path}: {name} is a number, not an array; {INSTEAD}")
        return checked(path, leaves)


holds = is_number


def save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Nests the names at each "/". Raises WeightsError for a name that is also the start of
    another."""
    names = set(tensors)
    for name in names:
        parts = name.split("/")
        if above := names & {"/".join(parts[:i]) for i in range(1, len(parts))}:
            raise WeightsError(f"{name} and {above.pop()} do not fit into one tree")
    nested = tree.unflatten({name: np.asarray(tensor) for name, tensor in tensors.items()})
    path.write_bytes(msgpack_serialize(nested))


def _flat(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


class Reader:
    """The structure of one file: nested dicts with a slot at each leaf."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file = file
        self.path = path

    def root(self) -> dict[str, Any]:
        found = self.value(())
        if not isinstance(found, dict) or self.file.read(1):
            raise ValueError("it is not one map")
        return found

    def value(self, keys: tuple[str, ...]) -> Any:
        """What stands at `keys`: a dict, a slot, or a number of a chunked array."""
        if len(keys) > DEPTH:
            raise ValueError(f"it nests deeper than {DEPTH} levels")
        first = self.take(1)[0]
        if (count := self.length(first, MAPS, LONG_MAPS)) is not None:
            return self.map(count, keys)
        if (size := self.extension(first)) is not None:
            return self.array(size)
        if (number := self.length(first, NUMBERS, LONG_NUMBERS)) is not None:
            return number
        if first == TRUE:
            return True
        raise WeightsError(
            f"{self.path}: {'/'.join(keys)[:200]} is neither a map nor an array; {INSTEAD}"
        )

    def map(self, count: int, keys: tuple[str, ...]) -> Any:
        found = unique((key := self.text(), self.value((*keys, key))) for _ in range(count))
        return self.joined(found) if CHUNKED in found else found

    def joined(self, chunked: Mapping[str, Any]) -> Joined:
        shape = tuple(chunked["shape"].values())
        pieces = tuple(chunked["chunks"].values())
        same = len({piece.dtype for piece in pieces}) == 1
        if not same or sum(piece.count for piece in pieces) != math.prod(shape):
            raise ValueError("a chunked array whose chunks do not fill it")
        return Joined(shape, pieces)

    def array(self, size: int) -> Slot:
        """The extension of `size` bytes, which are left unread."""
        if self.take(1)[0] not in ARRAYS:
            raise ValueError("an extension that is no array")
        end = self.file.tell() + size
        if self.required(LISTS, LONG_LISTS) != 3:
            raise ValueError("an array that is not three values")
        ranks = self.required(LISTS, LONG_LISTS)
        shape = tuple(self.required(NUMBERS, LONG_NUMBERS) for _ in range(ranks))
        dtype = np.dtype(self.text())
        length = self.required(range(0), LONG_BYTES)
        start = self.file.tell()
        whole = start + length == end and math.prod(shape) * dtype.itemsize == length
        if not (whole and is_number(dtype)):
            raise ValueError(f"an array of {dtype} {shape} in {length} bytes")
        self.file.seek(end)
        return Slot(self.path, start, dtype, shape)

    def text(self) -> str:
        return self.take(self.required(TEXTS, LONG_TEXTS)).decode()

    def take(self, count: int) -> bytes:
        found = self.file.read(count)
        if len(found) < count:
            raise ValueError("it ends too early")
        return found

    def required(self, short: range, long: Mapping[int, int]) -> int:
        found = self.length(self.take(1)[0], short, long)
        if found is None:
            raise ValueError("a value of another type was expected")
        return found

    def length(self, first: int, short: range, long: Mapping[int, int]) -> int | None:
        """What the first byte of a value and those after it say; None for another type."""
        if first in short:
            return first - short.start
        return int.from_bytes(self.take(long[first]), "big") if first in long else None

    def extension(self, first: int) -> int | None:
        return SIZED_EXTENSIONS.get(first) or self.length(first, range(0), LONG_EXTENSIONS)
