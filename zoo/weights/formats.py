"""Files of tensors, read and written, whichever format they have.

`read` serves safetensors, PyTorch zip files, NumPy .npz and Flax .msgpack, one file or several with
an index; the structure is read at once and each tensor when it is asked for, so that what is made
of one can take its place. Nothing in a file is ever run. `write` leaves a directory that `read`
reads as what was written, or as it was.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.flax import save_file

from zoo.weights import flax_file, npz_file, safetensors_file, torch_file
from zoo.weights.convert import WeightsError
from zoo.weights.slots import Slots

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
READERS: dict[str, Callable[[Path], Slots]] = {  # in the order in which lone files are preferred
    ".safetensors": safetensors_file.slots,
    ".npz": npz_file.slots,
    ".pt": torch_file.slots,
    ".pth": torch_file.slots,
    ".bin": torch_file.slots,
    ".msgpack": flax_file.slots,
}
NAMED = (  # what is read of a directory that holds several
    FILE,
    INDEX,
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
    "model.npz",
)
SHARD = "-?????-of-?????"  # model-00001-of-00003.safetensors, as transformers names them


class Tensors(Mapping[str, np.ndarray]):
    """Name → array, read from the file each time it is asked for.

    specs: name → shape and dtype, which are known without reading.
    """

    def __init__(self, slots: Slots):
        self._slots = slots
        self.specs: dict[str, jax.ShapeDtypeStruct] = {
            name: slot.spec for name, slot in slots.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._slots[name].read()

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._slots

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


def read(path: Path) -> Tensors:
    """The tensors of a file, or of the first of these in a directory: NAMED, a lone file of one of
    READERS.

    Raises WeightsError where there is none, for a damaged file, for one that holds more than
    tensors, and for an index that its shards do not agree with.
    """
    file = _chosen(path) if path.is_dir() else path
    if file.name.endswith(".index.json"):
        return Tensors(_shards(file))
    if file.suffix not in READERS:
        raise WeightsError(f"{file}: weights are read from {', '.join(READERS)}")
    return Tensors(READERS[file.suffix](file))


def _chosen(directory: Path) -> Path:
    """The file or index that is read of a directory."""
    files = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    for name in NAMED:
        if directory / name in files:
            return directory / name
    for suffix in READERS:
        if lone := [path for path in files if path.suffix == suffix]:
            if len(lone) > 1:
                names = ", ".join(path.name for path in lone)
                raise WeightsError(f"{directory} holds {names}: pass the path of one of them")
            return lone[0]
    raise WeightsError(
        f"{directory} holds neither {FILE} nor {INDEX} nor another file of weights: "
        f"{', '.join(NAMED[2:])}, *{', *'.join(READERS)}"
    )


def _shards(index: Path) -> Slots:
    """The tensors of all files that an index names. Where two shards have a name, its own counts.

    Raises WeightsError for a shard that is missing or elsewhere, and for a tensor that its shard
    lacks.
    """
    places = read_json(index).get("weight_map", {})
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise WeightsError(f"{index}: weight_map should say which file holds each tensor")
    shards = sorted(set(places.values()))
    outside = [x for x in shards if Path(x).name != x or Path(x).suffix not in READERS]
    if outside:
        raise WeightsError(f"{index} names what is no file of weights beside it: {outside}")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise WeightsError(f"{index} names shards that are missing: {missing}")
    held = {shard: READERS[Path(shard).suffix](index.parent / shard) for shard in shards}
    lacking = [f"{name} ({x})" for name, x in places.items() if name not in held[x]]
    if lacking:
        raise WeightsError(f"{index} names tensors that are not in their shards: {lacking[:10]}")
    named = {name: held[shard][name] for name, shard in places.items()}
    return {name: slot for slots in held.values() for name, slot in slots.items()} | named


def read_json(path: Path) -> dict[str, Any]:
    """Raises WeightsError for a file that is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds {type(found).__name__}, not an object with keys")
    return found


def write(
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    texts: Mapping[str, dict[str, Any] | None],
    file: str = FILE,
    shard_bytes: float = 5e9,
) -> None:
    """Writes a file of weights (`model.safetensors`, `model.npz` or `flax_model.msgpack`) and JSON
    files into a directory, each file whole; nothing changes if one of them cannot be written.

    safetensors above `shard_bytes` become shards with an index. A file whose text is None and that
    is not written is removed, as are weights that `read` would prefer to these and the shards of
    earlier ones: they speak of other weights. Raises WeightsError for a dtype that the format does
    not hold.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = _cut(tensors, shard_bytes) if file == FILE else [tensors]
    contents: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
    weights = dict(zip(_shard_names(file, len(shards)), shards, strict=True))
    if len(shards) > 1:
        contents[f"{file}.index.json"] = _index(weights)
    partial = {name: directory / f".{name}.partial" for name in (*contents, *weights)}
    try:
        for name, content in contents.items():
            text = json.dumps(content, indent=2) + "\n"
            partial[name].write_text(text, encoding="utf-8")
        for name, part in weights.items():
            _save(part, partial[name], Path(name).suffix)
        for name, path in partial.items():
            os.replace(path, directory / name)
        for path in _stale(directory, file, set(partial)) | {directory / name for name in texts}:
            if path.name not in partial:
                path.unlink(missing_ok=True)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _save(tensors: Mapping[str, np.ndarray], path: Path, suffix: str) -> None:
    holds, save = WRITERS[suffix]
    unknown = [f"{name} ({x.dtype})" for name, x in tensors.items() if not holds(x.dtype)]
    if unknown:
        raise WeightsError(f"{suffix} files do not hold the dtype of {', '.join(unknown[:10])}")
    save(tensors, path)


def _save_safetensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    arrays: Any = dict(tensors)  # NumPy arrays do as well as those of JAX
    save_file(arrays, str(path), metadata={"format": "pt"})


WRITERS = {  # what the format holds, and how it is written
    ".safetensors": (safetensors_file.holds, _save_safetensors),
    ".npz": (npz_file.holds, npz_file.save),
    ".msgpack": (flax_file.holds, flax_file.save),
}


def _cut(tensors: Mapping[str, np.ndarray], limit: float) -> list[dict[str, np.ndarray]]:
    """In order, into parts of at most `limit` bytes; a larger tensor is a part of its own."""
    parts: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if parts[-1] and used + tensor.nbytes > limit:
            parts.append({})
            used = 0
        parts[-1][name] = tensor
        used += tensor.nbytes
    return parts


def _shard_names(file: str, count: int) -> list[str]:
    if count == 1:
        return [file]
    stem, suffix = Path(file).stem, Path(file).suffix
    return [f"{stem}-{i:05}-of-{count:05}{suffix}" for i in range(1, count + 1)]


def _index(shards: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    places = {name: shard for shard, part in shards.items() for name in part}
    size = sum(tensor.nbytes for part in shards.values() for tensor in part.values())
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}


def _stale(directory: Path, file: str, written: set[str]) -> set[Path]:
    """What `read` would prefer to the file that was written, and shards that no index names now."""
    entry = file if file in written else f"{file}.index.json"
    old = {*NAMED[: NAMED.index(entry)], file, f"{file}.index.json"} - {entry}
    stems = {Path(name.removesuffix(".index.json")) for name in old}
    shards = [path for x in stems for path in directory.glob(f"{x.stem}{SHARD}{x.suffix}")]
    return {*shards, *(directory / name for name in old)}
