"""Where the bytes of a tensor lie in a file.

Each format's reader finds the slots of a file's tensors without reading any of them; a slot reads
one tensor into fresh memory. No page of the file stays mapped beside it.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp  # which makes NumPy know bfloat16 and the float8 types
import numpy as np

from zoo.weights.convert import WeightsError

AGAIN = "fetch the file again"
INSTEAD = "save it as safetensors where it was made"
RANKS = 32  # axes of a tensor at most
ALIGNMENT = 64  # bytes, as XLA wants them: jax.device_put on CPU then shares the memory


class Slot(NamedTuple):
    """One tensor: little-endian bytes from `offset` on, in row-major order unless `strides` (in
    elements) say otherwise.

    crc: CRC-32 that ends at the tensor's last byte, 0 where nobody computed it; `before` is that of
    what the checksum covers in front of the tensor.
    """

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    crc: int = 0
    before: int = 0

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    @property
    def count(self) -> int:
        """Elements from the first to the last, with those that strides leave out."""
        if self.strides is None or 0 in self.shape:
            return math.prod(self.shape)
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    @property
    def end(self) -> int:
        """Offset in the file behind the last byte."""
        return self.offset + self.count * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The tensor, contiguous and in memory of its own. Raises WeightsError where the file has
        changed since its slots were found, or differs from its checksum."""
        content = aligned(self.end - self.offset)
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            found = file.readinto(content.data)
        if found != len(content) or (
            self.crc and zlib.crc32(content.data, self.before) != self.crc
        ):
            raise WeightsError(f"{self.file}: damaged at byte {self.offset}; {AGAIN}")
        flat = content.view(self.dtype)
        if self.strides is None or 0 in self.shape:
            return flat.reshape(self.shape)
        steps = [step * self.dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps).copy()


class Joined(NamedTuple):
    """One tensor in pieces: its elements in row-major order, cut into several flat slots."""

    shape: tuple[int, ...]
    pieces: tuple[Slot, ...]

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.pieces[0].dtype)

    def read(self) -> np.ndarray:
        whole, start = np.empty(math.prod(self.shape), self.pieces[0].dtype), 0
        for piece in self.pieces:
            whole[start : start + piece.count] = piece.read()
            start += piece.count
        return whole.reshape(self.shape)


Slots = dict[str, Slot | Joined]


def aligned(size: int) -> np.ndarray:
    """`size` bytes of uninitialised memory that starts at a multiple of ALIGNMENT."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def is_number(dtype: np.dtype) -> bool:
    """Whether JAX computes with it: booleans, bfloat16 and float8 too, but no objects or texts."""
    return dtype == np.bool_ or bool(jnp.issubdtype(dtype, np.number))


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that is there twice: readers do not agree on which counts."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:200]} is there twice")
        found[name] = value
    return found


@contextmanager
def parsing(path: Path, kind: str) -> Iterator[BinaryIO]:
    """The open file; whatever its parsers raise leaves as a WeightsError that names the file."""
    try:
        with open(path, "rb") as file:
            yield file
    except WeightsError:
        raise
    except Exception as error:  # parsers of damaged bytes have no common error below Exception
        raise WeightsError(
            f"{path} is no {kind} that can be read ({type(error).__name__}: {str(error)[:200]}); "
            f"{AGAIN}, or {INSTEAD}"
        ) from error


def checked(path: Path, pairs: Iterable[tuple[str, Slot | Joined]]) -> Slots:
    """The slots of one file by name. Raises ValueError for a name that is there twice, a shape that
    NumPy cannot have and a tensor that does not lie inside the file."""
    size, found = path.stat().st_size, unique(pairs)
    for name, slot in found.items():
        nonzero = math.prod(max(n, 1) for n in slot.shape) * slot.spec.dtype.itemsize
        if len(slot.shape) > RANKS or nonzero >= 2**63:
            raise ValueError(f"{name[:200]} has a shape that no array has")
        pieces = slot.pieces if isinstance(slot, Joined) else (slot,)
        if any(piece.offset < 0 or piece.end > size for piece in pieces):
            raise ValueError(f"{name[:200]} ends behind the file's {size} bytes")
    return found
