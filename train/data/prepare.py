"""Writes the IDX files of MNIST and its relatives as a TFDS data set, without TensorFlow.

    python -m train.data.prepare fashion_mnist FOLDER [--data-dir DIR]

FOLDER holds the four official files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz (or the same
unpacked). Afterwards `data.source = "tfds:fashion_mnist"` opens the result, and so does the stock
`tfds.data_source("fashion_mnist", …)`: name, version and features are those of TFDS's own builder.
"""

import argparse
import contextlib
import gzip
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.config import ConfigError
from train.data.sources import IDX_NAMES, tfds_root

KINDS = ("images-idx3", "labels-idx1")
SPLITS = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08  # the only IDX element type in these files


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not.

    The format: two zero bytes, the element type, the rank, one big-endian uint32 per axis, data.
    Raises ConfigError, naming the file, if it cannot be read, is no IDX file or has another size.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); fetch the file again") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise ConfigError(f"{path}: begins with {data[:4].hex()}, which is no IDX file of uint8")
    rank = data[3]
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", data[4:start]) if len(data) >= start else ()
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        raise ConfigError(
            f"{path}: has {len(data)} bytes, but its header announces {expected}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_split(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] and labels [n] below 10, uint8, of one pair of files.

    Raises ConfigError if a file is missing or damaged, or if the two do not fit together.
    """
    images, labels = (_find(folder, f"{prefix}-{kind}-ubyte") for kind in KINDS)
    x, y = read_idx(images), read_idx(labels)
    if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or not len(y) or y.max() > 9:
        raise ConfigError(
            f"{images}, {labels}: images {x.shape} and labels {y.shape} up to "
            f"{y.max(initial=0)}, but [n, 28, 28] and [n] up to 9 are needed"
        )
    return x, y


def _find(folder: Path, stem: str) -> Path:
    candidates = [folder / f"{stem}.gz", folder / stem]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(f"{folder}: has neither {stem}.gz nor {stem}")


def prepare(name: str, folder: Path, data_dir: Path) -> Path:
    """Writes the data set `name` under `data_dir` and returns its folder, complete or not there.

    Raises ConfigError for bad files, an unknown name, or a data set that is already there.
    """
    if name not in IDX_NAMES:
        raise ConfigError(f"unknown data set {name!r}; one of {', '.join(IDX_NAMES)}")
    splits = {split: read_split(folder, prefix) for split, prefix in SPLITS.items()}
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as scratch:
        builder = _builder(name, splits, scratch)
        written = Path(builder.data_dir)
        target = data_dir / written.relative_to(scratch)
        if target.exists():
            raise ConfigError(f"{target}: is already there; remove it to prepare it again")
        _write(builder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, target)
    return target


def _builder(name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]], data_dir: str) -> Any:
    import tensorflow_datasets as tfds  # slow, and needed only once the files are known to be good
    from tensorflow_datasets.core.registered import skip_registration

    stock: Any = tfds.builder_cls(name)
    with skip_registration():  # the stock class keeps the name in this process

        class FromIdx(stock):  # its own way in downloads and, with TensorFlow, encodes
            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {split: self._generate_examples(*data) for split, data in splits.items()}

            def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield i, {"image": _png(image), "label": int(label)}

    FromIdx.name = name
    return FromIdx(data_dir=data_dir, file_format="array_record")


def _write(builder: Any) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS announces a download, and a folder that is about to be renamed.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)


def _png(image: np.ndarray) -> io.BytesIO:
    # TFDS takes encoded bytes as they are, but needs TensorFlow to encode an array.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def main(arguments: list[str] | None = None) -> None:
    """The command; exits with status 1 and one line on stderr where `prepare` raises."""
    parser = argparse.ArgumentParser(
        prog="python -m train.data.prepare",
        description="Write IDX files as a TFDS data set, without TensorFlow.",
    )
    parser.add_argument("name", choices=IDX_NAMES)
    parser.add_argument("folder", type=Path, help="holds the four IDX files")
    parser.add_argument("--data-dir", help="where tfds keeps its data sets")
    options = parser.parse_args(arguments)
    try:
        target = prepare(options.name, options.folder, tfds_root(options.data_dir))
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.name} is ready in {target}")


if __name__ == "__main__":
    main()
