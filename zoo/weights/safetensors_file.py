"""safetensors: a JSON header with the dtype, shape and byte offsets of each tensor, then the bytes.

    8 bytes, little-endian: length of the header · the header · the tensors one after the other

Format: https://huggingface.co/docs/safetensors, "Format". The safetensors library decides what is a
valid file; the bytes are read here, because it maps the file, and those pages stay in memory
beside what is made from them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from zoo.weights.convert import WeightsError
from zoo.weights.slots import Slot, Slots, checked, parsing, unique

DTYPES = {
    "BOOL": "bool",
    **{f"{letter}{bits}": f"{word}{bits}" for letter, word in (("I", "int"), ("U", "uint"))
       for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def slots(path: Path) -> Slots:
    """Raises WeightsError for a damaged file and for a dtype that JAX has not."""
    with parsing(path, "safetensors file") as file:
        with safe_open(str(path), framework="numpy"):
            pass  # the header is valid, and its offsets cover the file without gap or overlap
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length), object_pairs_hook=unique)
        header.pop("__metadata__", None)
        found = ((name, _slot(path, 8 + length, name, entry)) for name, entry in header.items())
        return checked(path, found)


def holds(dtype: np.dtype) -> bool:
    return dtype.name in DTYPES.values()


def _slot(path: Path, start: int, name: str, entry: dict[str, Any]) -> Slot:
    if entry["dtype"] not in DTYPES:
        raise WeightsError(f"{path}: {name} is of dtype {entry['dtype']}, which JAX has not")
    begin, _ = entry["data_offsets"]
    return Slot(path, start + begin, np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]))
