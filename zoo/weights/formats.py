"""Files of tensors, read and written: safetensors, one file or several with an index."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from zoo.weights.convert import WeightsError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Tensors(Mapping[str, np.ndarray]):
    """Name → array over safetensors files, each array read when it is asked for.

    Raises WeightsError for a damaged file and for an index that names a missing one.
    """

    def __init__(self, files: list[Path]):
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            try:
                self._open[file] = safe_open(str(file), framework="flax")
                names = list(self._open[file].keys())
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{file}: {error}; fetch the file again") from error
            self._files |= dict.fromkeys(names, file)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._open[self._files[name]].get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read(path: Path) -> Tensors:
    """The tensors of a .safetensors file or of a directory that holds one (or shards and an index).

    Raises WeightsError where there is none.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return Tensors([path])
    if (path / FILE).is_file():
        return Tensors([path / FILE])
    if (path / INDEX).is_file():
        shards = set(read_json(path / INDEX).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (path / shard).is_file())
        if missing:
            raise WeightsError(f"{path / INDEX} names shards that are missing: {missing}")
        return Tensors([path / shard for shard in sorted(shards)])
    raise WeightsError(f"{path} holds neither {FILE} nor {INDEX}: no weights that can be read")


def read_json(path: Path) -> dict[str, Any]:
    """Raises WeightsError for a file that is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds {type(found).__name__}, not an object with keys")
    return found


def write(
    directory: Path, tensors: Mapping[str, np.ndarray], texts: Mapping[str, dict[str, Any] | None]
) -> None:
    """Writes `model.safetensors` and JSON files into a directory, each file whole; nothing changes
    if one of them cannot be written. A text that is None is removed: it spoke of other weights."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [name for name, content in texts.items() if content is not None]
    partial = {name: directory / f".{name}.partial" for name in (*written, FILE)}
    arrays: Any = dict(tensors)  # NumPy arrays do as well as those of JAX
    try:
        for name in written:
            partial[name].write_text(json.dumps(texts[name], indent=2) + "\n", encoding="utf-8")
        save_file(arrays, str(partial[FILE]), metadata={"format": "pt"})
        for name in texts.keys() - set(written):
            (directory / name).unlink(missing_ok=True)
        for name, path in partial.items():
            os.replace(path, directory / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
