"""Sparse models of COLMAP (colmap.github.io/format.html), binary and text.

    cameras.{bin,txt}     lenses: a camera model by name, the picture's size, its parameters
    images.{bin,txt}      pictures: the pose from world to camera, the lens, the file's name
    points3D.{bin,txt}    points that several pictures show

COLMAP's cameras are OpenCV's: x right, y down, z along the view. Its quaternions are (w, x, y, z),
the centre of its first pixel is (0.5, 0.5), its unit and its origin are arbitrary.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from train.config import ConfigError, Data, Missing, on_disk
from train.data.posed_views import (
    LARGEST,
    Array,
    Found,
    Lens,
    View,
    around,
    check_folder,
    pictures_folder,
    rigid,
)
from train.data.sources import EXTENSIONS, bad_source

PARAMETERS = {  # the camera models that are read, and the order of their parameters
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
}
NUMBERED = (  # camera models in the order of the numbers that binary files have for them
    *("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"),
    *("FULL_OPENCV", "FOV", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE"),
    "RAD_TAN_THIN_PRISM_FISHEYE",
)
UNIT = 1e-3  # by which the length of a quaternion may differ from 1


def check(path: str, cfg: Data) -> None:
    """Raises ConfigError unless a model and pictures are there."""
    root = check_folder(path, cfg, "images/")
    if find_model(root) is None:
        raise bad_source(cfg, f"there is no sparse/0/cameras.bin or .txt in {root}", Missing)


def read(path: str, factor: int) -> Found:
    """The views of a capture; its points and cameras say where the scene lies."""
    root = on_disk(path, "data.source")
    pictures, points = read_model(find_model(root) or root)
    folder, shrink = pictures_folder(root, factor)
    files = files_of(folder, [name for _, name, _, _ in pictures])
    views = [
        View(where, file, pose, partial(same, lens))
        for (where, _, pose, lens), file in zip(pictures, files, strict=True)
    ]
    return Found(views, *around(np.stack([view.pose for view in views]), points), shrink)


def same(lens: Lens, _: tuple[int, int]) -> Lens:
    return lens  # which knows the size of its pictures


def files_of(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of those names, else pictures that differ in the ending: smaller copies may be
    PNG."""
    paths = [folder / name for name in names]
    if all(path.is_file() for path in paths):
        return paths
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    by_stem = {path.with_suffix(""): path for path in reversed(pictures)}
    return [path if path.is_file() else by_stem.get(path.with_suffix(""), path) for path in paths]


# ---- the model ----


def find_model(root: Path) -> Path | None:
    """The folder with the model of a capture: root/sparse/0, root/sparse or root."""
    for folder in (root / "sparse" / "0", root / "sparse", root):
        if any((folder / f"cameras{suffix}").is_file() for suffix in READERS):
            return folder
    return None


def read_model(folder: Path) -> tuple[list[tuple[str, str, Array, Lens]], Array]:
    """(pictures, points) of the model in a folder; binary files go before text.

    A picture is what an error calls it, its name, its pose float64 [3, 4] (camera to world, OpenGL)
    and its lens. points: float64 [n, 3]. Raises ConfigError for files that are missing or damaged,
    camera models that are not read, and a model without pictures or points.
    """
    suffix = next(s for s in READERS if (folder / f"cameras{s}").is_file())
    paths = [folder / f"{name}{suffix}" for name in ("cameras", "images", "points3D")]
    for path in paths:
        if not path.is_file():
            raise Missing(f"there is no {path}: export the whole model, with its points")
    cameras, images, points = READERS[suffix]
    lenses = {number: lens_of(paths[0], number, *row) for number, *row in cameras(paths[0])}
    pictures = [picture(paths[1], lenses, *row) for row in images(paths[1])]
    places = np.array(list(points(paths[2])), np.float64)
    if not pictures:
        raise ConfigError(f"{paths[1]} has no pictures: the mapper has placed none")
    if not len(places):
        raise ConfigError(
            f"{paths[2]} has no points, which say how large the scene is: export the model as the "
            "mapper made it"
        )
    usable = (np.abs(places) < LARGEST).all(axis=1)
    if not usable.all():
        first = usable.argmin()
        raise ConfigError(f"{paths[2]}: row {first + 1} is the point {places[first].tolist()}")
    return pictures, places


def lens_of(
    path: Path, number: int, model: str, size: Sequence[int], values: Sequence[float]
) -> Lens:
    """The lens of a row of cameras. Raises ConfigError for numbers that make none."""
    names = PARAMETERS[model].split()
    usable = len(values) == len(names) and (np.abs(values) < LARGEST).all()
    if not usable or not 0 < min(size) <= max(size) < LARGEST:
        raise ConfigError(
            f"{path}: camera {number} is a {model} for {size[0]}×{size[1]} pixels with the "
            f"parameters {[*values]}, but needs {len(names)} numbers: {PARAMETERS[model]}"
        )
    said = dict(zip(names, values, strict=True))
    focal = (said.get("fx", said.get("f", 0.0)), said.get("fy", said.get("f", 0.0)))
    if min(focal) <= 0:
        raise ConfigError(f"{path}: camera {number} has the focal length {min(focal)}")
    distortion = tuple(said.get(key, 0.0) for key in ("k1", "k2", "k3", "p1", "p2"))
    return Lens(size[0], size[1], focal, (said["cx"], said["cy"]), distortion)


def picture(
    path: Path,
    lenses: Mapping[int, Lens],
    number: int,
    quaternion: Sequence[float],
    translation: Sequence[float],
    camera: int,
    name: str,
) -> tuple[str, str, Array, Lens]:
    """A row of images. Raises ConfigError for a pose or a camera that is none."""
    from zoo.nerf.cameras import from_colmap  # jax, which a look at the disk does without

    where = f"{path}, image {number} ({name})"
    length = float(np.linalg.norm(quaternion))
    if not abs(length - 1) <= UNIT:
        raise ConfigError(
            f"{where}: the pose is no pose: its quaternion {[*quaternion]} has the length {length}"
        )
    if camera not in lenses:
        raise ConfigError(f"{where}: its camera {camera} is not among {sorted(lenses)}")
    return where, name, rigid(from_colmap(quaternion, translation), where), lenses[camera]


def check_model(path: Path, number: int, model: str) -> None:
    if model not in PARAMETERS:
        raise ConfigError(
            f"{path}: camera {number} has the camera model {model}, but only "
            f"{', '.join(PARAMETERS)} are read: let colmap image_undistorter make it a PINHOLE"
        )


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


# ---- binary ----


class Binary:
    """A file of little-endian numbers, read one after the other."""

    def __init__(self, path: Path):
        self.path, self.data, self.at = path, contents(path), 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values, of a form as `struct` has it."""
        start = self.at
        self.skip(struct.calcsize("<" + form))
        return struct.unpack_from("<" + form, self.data, start)

    def skip(self, size: int) -> None:
        """Raises ConfigError where fewer bytes are left."""
        self.at += size
        if self.at > len(self.data):
            raise ConfigError(
                f"{self.path} is cut short: it has {len(self.data)} bytes of {self.at} at least; "
                "copy it again"
            )

    def text(self) -> str:
        """Up to the next zero."""
        start, end = self.at, self.data.find(b"\0", self.at)
        self.skip((end if end >= 0 else len(self.data)) + 1 - start)
        return self.data[start : self.at - 1].decode("utf-8", "surrogateescape")

    def count(self) -> Iterator[int]:
        """Counts the rows that the file begins with the number of. Raises ConfigError for more."""
        [count] = self.take("Q")
        yield from range(count)
        if self.at != len(self.data):
            raise ConfigError(
                f"{self.path} is damaged: {count} rows end at byte {self.at} of {len(self.data)}"
            )


def binary_cameras(path: Path) -> Iterator[tuple[Any, ...]]:
    """(number, camera model, (width, height), parameters)."""
    file = Binary(path)
    for _ in file.count():
        number, kind, *size = file.take("iiQQ")
        model = NUMBERED[kind] if 0 <= kind < len(NUMBERED) else f"number {kind}"
        check_model(path, number, model)
        yield number, model, size, file.take(f"{len(PARAMETERS[model].split())}d")


def binary_images(path: Path) -> Iterator[tuple[Any, ...]]:
    """(number, quaternion, translation, number of the camera, name)."""
    file = Binary(path)
    for _ in file.count():
        number, *pose, camera = file.take("i7di")
        name = file.text()
        [shown] = file.take("Q")
        file.skip(shown * struct.calcsize("<ddq"))  # the points in it
        yield number, pose[:4], pose[4:], camera, name


def binary_points(path: Path) -> Iterator[tuple[float, ...]]:
    """(x, y, z)."""
    file = Binary(path)
    for _ in file.count():
        _, *place, _, _, _, _, shown = file.take("Q3d3BdQ")  # its number, colour and error
        file.skip(shown * struct.calcsize("<ii"))  # the pictures that show it
        yield tuple(place)


# ---- text ----


def text_cameras(path: Path) -> Iterator[tuple[Any, ...]]:
    """As `binary_cameras`."""

    def parse(line: str) -> tuple[Any, ...]:
        number, model, width, height, *values = line.split()
        return int(number), model, (int(width), int(height)), [float(value) for value in values]

    for number, model, size, values in parsed(path, lines(path), parse):
        check_model(path, number, model)
        yield number, model, size, values


def text_images(path: Path) -> Iterator[tuple[Any, ...]]:
    """As `binary_images`. Every second line has the points that a picture shows, or is empty; where
    one is left out, all that follow would be taken for the other kind."""

    def parse(line: str) -> tuple[Any, ...]:
        number, *values, camera, name = line.strip().split(maxsplit=9)
        w, x, y, z, a, b, c = (float(value) for value in values)
        return int(number), (w, x, y, z), (a, b, c), int(camera), name

    rows = lines(path)
    for number, line in rows[1::2]:
        if not are_points(line):
            raise ConfigError(
                f"{path}, line {number}: {line[:80]!r} is no list of points (x y number, …), as "
                "every second line must be, empty where there are none: export the model again"
            )
    return parsed(path, rows[::2], parse)


def are_points(line: str) -> bool:
    """Three numbers for each, or nothing at all."""
    try:
        return len([float(word) for word in line.split()]) % 3 == 0
    except ValueError:
        return False


def text_points(path: Path) -> Iterator[tuple[float, ...]]:
    """As `binary_points`."""

    def parse(line: str) -> tuple[float, ...]:
        _, x, y, z, _, _, _, _, *_ = line.split()  # its number, colour, error; the pictures
        return float(x), float(y), float(z)

    return parsed(path, lines(path), parse)


def lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of all lines that are no comments."""
    text = contents(path).decode("utf-8", "surrogateescape")
    return [row for row in enumerate(text.split("\n"), 1) if not row[1].startswith("#")]


def parsed(
    path: Path, rows: Sequence[tuple[int, str]], parse: Callable[[str], tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    """`parse(line)` of all lines but empty ones. Raises ConfigError for what it cannot parse."""
    for number, line in rows:
        if line.strip():
            try:
                yield parse(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: {line[:80]!r} is damaged") from error


READERS = {
    ".bin": (binary_cameras, binary_images, binary_points),
    ".txt": (text_cameras, text_images, text_points),
}
