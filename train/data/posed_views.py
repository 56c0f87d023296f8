"""What every source of posed pictures says of them: views that are not opened yet, and where the
scene lies in the source's world."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.config import ConfigError, Data, Missing, on_disk
from train.data.sources import bad_source

Array = np.ndarray
Box = tuple[Array, Array]  # (low, high), float32 [3] each
LARGEST = 1e15  # number that a file may hold: its square is finite in float32


class Lens(NamedTuple):
    """For pictures of width × height pixels: focal lengths (x, y) and principal point in pixels,
    where the first pixel has its centre at (0.5, 0.5); distortion (k1, k2, k3, p1, p2) as OpenCV
    has it."""

    width: float
    height: float
    focal: tuple[float, float]
    centre: tuple[float, float]
    distortion: tuple[float, ...] = (0.0,) * 5


class View(NamedTuple):
    """A picture and its camera.

    where     what an error calls it: a file and the place in it
    path      of the picture
    pose      float64 [3, 4], camera to world, OpenGL's axes, the source's unit
    lens      that of a picture of (width, height) pixels
    split     that it is stored in: train, validation, test; "": none
    distance  a .npy file of true distances along the unit ray, float [h, w], the source's unit
    """

    where: str
    path: Path
    pose: Array
    lens: Callable[[tuple[int, int]], Lens]
    split: str = ""
    distance: Path | None = None


class Frame(NamedTuple):
    """Where a scene's world lies in its source's: ours = scale · rotation (theirs − origin).

    rotation float64 [3, 3], scale ours / theirs (a distance of ours over it is one of theirs),
    origin float64 [3].
    """

    rotation: Array
    scale: float
    origin: Array

    def enter(self, points: Array) -> Array:
        """Points [..., 3] of the source in our world."""
        return self.scale * (points - self.origin) @ self.rotation.T

    def leave(self, points: Array) -> Array:
        """Points [..., 3] of our world in the source's."""
        return points @ self.rotation / self.scale + self.origin


class Found(NamedTuple):
    """What a source says. box: in our world. shrink: how many times smaller its pictures are still
    to become."""

    views: list[View]
    frame: Frame
    box: Box
    shrink: int


# ---- where the scene lies ----

PER_UNIT, MIDDLE = 0.33, (0.5, 0.5, 0.5)  # instant-ngp's scale and offset, if none are stated
PARALLEL = 1e-2  # the least eigenvalue with which lines of sight meet: they differ by 6° or so


def in_cube(
    sides: float, scale: float = PER_UNIT, offset: Sequence[float] = MIDDLE
) -> tuple[Frame, Box]:
    """Where instant-ngp's cube becomes [-1, 1]³: all `scale · p + offset` in [0, 1]³, in which
    NeRF-synthetic lies. The box has `sides` of its."""
    corner = np.full(3, sides, np.float32)
    middle = (0.5 - np.asarray(offset, np.float64)) / scale
    return Frame(np.eye(3), 2 * scale, middle), (-corner, corner)


def around(poses: Array, points: Array) -> tuple[Frame, Box]:
    """Where the unit ball holds every camera and half of the points, and z is up.

    poses float64 [n, 3, 4], points float64 [m, 3], which may be none. The origin is where the
    cameras look. The box holds the cameras and the points, but for 1 % at either end of each axis.
    """
    places = poses[:, :, 3]
    origin = looked_at(places, -poses[:, :, 2], points)
    far = np.linalg.norm(places - origin, axis=1).max()
    half = np.median(np.linalg.norm(points - origin, axis=1)) if len(points) else 0.0
    frame = Frame(upright(poses[:, :, 1].mean(0)), 1 / (max(far, half) or 1.0), origin)
    if not len(points):
        return frame, (np.full(3, -1, np.float32), np.full(3, 1, np.float32))
    ends = np.quantile(frame.enter(points), [0.01, 0.99], axis=0)
    held = np.concatenate([ends, frame.enter(places)]).astype(np.float32)
    return frame, (held.min(0), held.max(0))


def looked_at(places: Array, directions: Array, points: Array) -> Array:
    """The point [3] that is nearest to all lines of sight, in the sense of least squares.

    Where these are nearly parallel, or most cameras have that point behind them, because they look
    away from one another: the middle of the points, else that of the cameras.
    """
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    mean = across.mean(0)
    if np.linalg.eigvalsh(mean)[0] > PARALLEL:
        met = np.linalg.solve(mean, np.einsum("nij,nj->i", across, places) / len(places))
        if np.mean(((met - places) * directions).sum(1) > 0) > 0.5:
            return met
    return np.median(points, axis=0) if len(points) else places.mean(0)


def upright(up: Array) -> Array:
    """The least rotation [3, 3] that turns `up` [3] to z; none where up is no direction."""
    length = np.linalg.norm(up)
    if length < 0.1:  # the mean of cameras that were held every way
        return np.eye(3)
    x, y, z = up / length
    if z < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    tilt = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])  # the cross product with up × z
    return np.eye(3) + tilt + tilt @ tilt / (1 + z)


# ---- checks ----


def rigid(matrix: Any, where: str) -> Array:
    """float64 [3, 4] of a pose [3, 4] or [4, 4], camera to world. Raises ConfigError for others."""
    from zoo.nerf.cameras import RIGID, check_pose  # jax, which a look at the disk does without

    try:
        pose = np.array(matrix, np.float64)
    except (TypeError, ValueError, OverflowError):
        pose = np.array(())
    if np.abs(pose).max(initial=0) > LARGEST:
        raise ConfigError(f"{where}: the pose is not finite: it has numbers beyond {LARGEST:g}")
    if pose.shape == (4, 4):
        if not np.abs(pose[3] - [0, 0, 0, 1]).max() <= RIGID:
            raise ConfigError(
                f"{where}: the last row of the pose is {pose[3].tolist()}, but must be 0 0 0 1; "
                "are rows and columns exchanged?"
            )
        pose = pose[:3]
    try:
        check_pose(pose, f"{where}: the pose")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return pose


def number(
    said: Mapping[str, Any],
    key: str,
    where: str,
    default: float | None = None,
    *,
    above: float = -LARGEST,
    below: float = LARGEST,
) -> float:
    """The number `said[key]`, between the two. Raises ConfigError for anything else."""
    value = said.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
        raise ConfigError(
            f"{where}: {key} is {value!r}, but must be a number between {above:g} and {below:g}"
        )
    return float(value)


def check_folder(path: str, cfg: Data, *names: str) -> Path:
    """The folder. Raises ConfigError where it is not there, or has none of these files, or of these
    folders, whose names end in a slash."""
    root = on_disk(path, "data.source")
    if not root.is_dir():
        raise bad_source(cfg, f"there is no folder {root}", Missing)
    if not any(
        (root / name).is_dir() if name[-1] == "/" else (root / name).is_file() for name in names
    ):
        raise bad_source(cfg, f"there is no {' and no '.join(names)} in {root}", Missing)
    return root


def read_array(path: Path, called: str) -> Array:
    """The array of a .npy file. Raises ConfigError, which begins with `called`, for anything else:
    archives, pickles, what is cut short."""
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{called} cannot be read: {error}") from error


def pictures_folder(root: Path, factor: int) -> tuple[Path, int]:
    """Where pictures are, and how many times smaller they are still to become: root/images_{factor}
    has them ready, else they are in root/images."""
    small = root / f"images_{factor}"
    return (small, 1) if small.is_dir() else (root / "images", factor)
