"""NumPy's .npz: a zip archive of .npy files, one per tensor. vit_jax and big_vision publish these,
with names such as `Transformer/encoderblock_0/LayerNorm_0/scale`.

NumPy knows no bfloat16: `np.savez` writes it as two raw bytes without a type (`|V2`). What is of
that type is bfloat16 here, in both directions, as in big_vision (`utils.recover_dtype`).
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zoo.weights.convert import WeightsError
from zoo.weights.slots import INSTEAD, Slot, Slots, checked, is_number, parsing
from zoo.weights.zip_file import Entry, entries

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
BFLOAT16 = np.dtype("bfloat16")


def slots(path: Path) -> Slots:
    """Raises WeightsError for a damaged file and for entries that are no arrays of numbers."""
    with parsing(path, ".npz file") as file:
        found = entries(file, path)
        slots = (_slot(path, file, name, entry) for name, entry in found.items())
        return checked(path, zip((name.removesuffix(".npy") for name in found), slots, strict=True))


def _slot(path: Path, file: BinaryIO, name: str, entry: Entry) -> Slot:
    file.seek(entry.offset)
    shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    start = file.tell()
    dtype = BFLOAT16 if dtype == np.dtype("V2") else dtype
    if not is_number(dtype):
        raise WeightsError(f"{path}: {name} holds {dtype}, which is no number; {INSTEAD}")
    if dtype.byteorder == ">":
        raise WeightsError(f"{path}: {name} is big-endian; {INSTEAD}")
    if start + math.prod(shape) * dtype.itemsize != entry.offset + entry.size:
        raise ValueError(f"{name} is not as long as its shape says")
    file.seek(entry.offset)
    before = zlib.crc32(file.read(start - entry.offset))
    strides = tuple(math.prod(shape[:i]) for i in range(len(shape))) if fortran else None
    return Slot(path, start, dtype, shape, strides, entry.crc, before)


def holds(dtype: np.dtype) -> bool:
    """Whether it is read back as it is: float8 and int4 would lose their names."""
    return dtype == BFLOAT16 or (is_number(dtype) and dtype.isbuiltin == 1)


def save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(tensor), allow_pickle=False)
