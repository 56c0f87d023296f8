"""Where a camera goes through a scene: an orbit, a way through its views, a file.

    scene, frames → Camera of NumPy arrays [frames, …]

Pictures are those of pinholes, of the scene's height × width pixels (`resized` makes others). Poses
are in the scene's world, z up.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.nerf.cameras import Camera, check_pose
from zoo.nerf.scene import Scene

Array = np.ndarray
FRAMES = 120  # of a path, where nobody says how many
PARALLEL = 1e-2  # the least eigenvalue with which optical axes meet: they differ by 6° or so
TEST = "test"  # the split whose views a path goes through


def along(path: str, scene: Scene, frames: int | None = None) -> Camera:
    """The path that is named: one of `PATHS`, with `frames` frames (None: `FRAMES`), or a JSON
    file, which has frames of its own.

    Raises ValueError for any other, and for a number of frames beside a file.
    """
    if path in PATHS:
        return PATHS[path](scene, FRAMES if frames is None else frames)
    if not Path(path).is_file():
        raise ValueError(f"a path is one of {', '.join(PATHS)}, or a JSON file; not {path!r}")
    if frames is not None:
        raise ValueError(f"{path} has frames of its own: leave the number of frames out")
    return from_file(path, scene)


# ---- an orbit ----


def orbit(scene: Scene, frames: int) -> Camera:
    """A circle about the z axis, seen from above against the clock, that begins beside the first
    view; the frame after the last one would be the first again.

    As far from the origin, as high and of the focal length that the scene's cameras are in the
    mean; it looks at what they look at. Raises ValueError where that is on the path itself.
    """
    places = np.asarray(scene.cameras.pose, np.float64)[:, :, 3]
    height, distance = places[:, 2].mean(), np.linalg.norm(places, axis=1).mean()
    radius = math.sqrt(max(distance**2 - height**2, 0))
    angle = math.atan2(places[0, 1], places[0, 0]) + 2 * np.pi * np.arange(frames) / frames
    circle = [radius * np.cos(angle), radius * np.sin(angle), np.full(frames, height)]
    poses = look_at(np.stack(circle, axis=1), looked_at(scene.cameras.pose))
    focal = np.asarray(scene.cameras.focal).mean(0)
    middle = np.array([scene.width, scene.height]) / 2
    return pinholes(poses, np.tile(focal, (frames, 1)), np.tile(middle, (frames, 1)))


def looked_at(poses: Any) -> Array:
    """The point [3] nearest to the optical axes of poses [n, 3, 4], in the sense of least squares;
    the origin where these are nearly parallel, or most cameras have that point behind them."""
    poses = np.asarray(poses, np.float64)
    places, forward = poses[:, :, 3], -poses[:, :, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    mean = across.mean(0)
    if np.linalg.eigvalsh(mean)[0] <= PARALLEL:
        return np.zeros(3)
    met = np.linalg.solve(mean, np.einsum("nij,nj->i", across, places) / len(places))
    ahead = ((met - places) * forward).sum(1) > 0
    return met if ahead.mean() > 0.5 else np.zeros(3)


def look_at(places: Array, target: Array) -> Array:
    """Poses [n, 3, 4] at places [n, 3] that look at a point [3], upright; what looks straight down
    or up has y above. Raises ValueError for a place that is the point."""
    back = places - target
    distance = np.linalg.norm(back, axis=1, keepdims=True)
    if distance.min() < 1e-6:
        raise ValueError(
            f"a camera at {np.round(target, 3).tolist()} cannot look at that very point: the views "
            "lie around no orbit; take the path through them, interpolate"
        )
    back = back / distance
    steep = np.abs(back[:, 2:]) > 1 - 1e-9
    up = np.where(steep, [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    right = np.cross(up, back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, places], axis=2)


# ---- through views ----


def interpolate(scene: Scene, frames: int, views: Sequence[int] | None = None) -> Camera:
    """Through views in the order of their names, from the first to the last, as long from each to
    the next; views: their numbers, None: those held out for the test, else all.

    Places follow a Catmull-Rom spline, rotations turn the short way round at an even speed, lenses
    change evenly. Raises ValueError for fewer than two views.
    """
    if views is None:
        held_out = scene.splits.get(TEST, ())
        views = held_out if len(held_out) > 1 else range(len(scene.names))
    order = sorted(views, key=lambda i: natural(scene.names[i]))
    if len(order) < 2:
        raise ValueError(f"a path leads through two views or more, not through {len(order)}")
    pose, focal, centre, _ = (np.asarray(x, np.float64)[order] for x in scene.cameras)
    t = np.linspace(0, len(order) - 1, frames)
    places = catmull_rom(pose[:, :, 3], t)
    poses = np.concatenate([slerp(pose[:, :, :3], t), places[:, :, None]], axis=2)
    return pinholes(poses, linear(focal, t), linear(centre, t))


def natural(name: str) -> list[Any]:
    """What names are sorted by: r_2 comes before r_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def catmull_rom(points: Array, t: Array) -> Array:
    """[m, d]: the curve through points [n, d] at t [m], point i at t = i (Catmull and Rom, 1974).
    Beyond its ends the first and last steps go on."""
    before, after = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    p = np.concatenate([before[None], points, after[None]])
    i, s = segments(len(points), t)
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    cubic = 3 * (b - c) + d - a
    return b + s / 2 * (c - a + s * (2 * a - 5 * b + 4 * c - d + s * cubic))


def slerp(rotations: Array, t: Array) -> Array:
    """[m, 3, 3]: from each of the rotations [n, 3, 3] to the next on the shortest arc, at an even
    speed (Shoemake, 1985); rotation i at t = i [m]."""
    q = quaternions(rotations)
    i, s = segments(len(q), t)
    angle = np.arccos(np.clip((q[i] * q[i + 1]).sum(1, keepdims=True), -1, 1))
    # In proportion to sin(s·angle), and to s where there is no angle.
    one, two = (part * np.sinc(part * angle / np.pi) for part in (1 - s, s))
    return matrices(one * q[i] + two * q[i + 1])


def linear(values: Array, t: Array) -> Array:
    """[m, d]: straight from each of the values [n, d] to the next."""
    i, s = segments(len(values), t)
    return (1 - s) * values[i] + s * values[i + 1]


def segments(n: int, t: Array) -> tuple[Array, Array]:
    """Between which of n things each of t [m] is: the number of the one before [m], and how far on
    to the next, in [0, 1], [m, 1]."""
    i = np.clip(t.astype(int), 0, n - 2)
    return i, (t - i)[:, None]


def quaternions(rotations: Array) -> Array:
    """[n, 4], (x, y, z, w), of rotations [n, 3, 3]: of the two that each has, the one nearer to
    that of the rotation before. Bar-Itzhack, 2000: the largest eigenvector of a matrix of sums and
    differences, well conditioned at every angle."""
    (a, b, c), (d, e, f), (g, h, i) = np.moveaxis(rotations, 0, -1)
    rows = [
        [a - e - i, b + d, c + g, h - f],
        [b + d, e - a - i, f + h, c - g],
        [c + g, f + h, i - a - e, d - b],
        [h - f, c - g, d - b, a + e + i],
    ]
    q = np.linalg.eigh(np.moveaxis(np.array(rows), -1, 0))[1][:, :, -1]
    turned = np.where((q[1:] * q[:-1]).sum(1) < 0, -1.0, 1.0)
    return q * np.cumprod([1.0, *turned])[:, None]


def matrices(q: Array) -> Array:
    """Rotations [n, 3, 3] of quaternions [n, 4], (x, y, z, w), of any length but 0."""
    x, y, z, w = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


PATHS: dict[str, Callable[[Scene, int], Camera]] = {"orbit": orbit, "interpolate": interpolate}


# ---- from a file ----


def from_file(path: str | Path, scene: Scene) -> Camera:
    """The frames of a JSON file, whose poses are in the scene's world, camera to world, OpenGL's
    axes:

        camera_path.json   of nerfstudio's viewer: `camera_path`, each with `camera_to_world` (16
                           numbers, row by row) and `fov` (degrees, from top to bottom)
        transforms.json    `frames`, each with `transform_matrix`; `camera_angle_x` (radians), or
                           fl_x, fl_y, cx, cy with w and h, of the file or of a frame

    Lenses are scaled to the scene's pictures by their heights; without w and h they are for those
    already. Raises ValueError, which names file and frame, for what is no path.
    """
    path = Path(path)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    kinds = [key for key in FORMS if isinstance(said, dict) and isinstance(said.get(key), list)]
    if not kinds or not said[kinds[0]]:
        raise ValueError(f"{path} has no frames: a list {' or '.join(FORMS)} with one at least")
    key, read = kinds[0], FORMS[kinds[0]]
    found = [read(frame, said, scene, f"{path}, {key}[{i}]") for i, frame in enumerate(said[key])]
    return pinholes(*map(np.stack, zip(*found, strict=True)))


def of_nerfstudio(
    frame: Any, said: Mapping[str, Any], scene: Scene, where: str
) -> tuple[Array, Array, Array]:
    pose = matrix(frame, "camera_to_world", where)
    focal = scene.height / 2 / math.tan(math.radians(number(frame, "fov", where, below=180)) / 2)
    return pose, np.array([focal, focal]), np.array([scene.width, scene.height]) / 2


def of_transforms(
    frame: Any, said: Mapping[str, Any], scene: Scene, where: str
) -> tuple[Array, Array, Array]:
    pose = matrix(frame, "transform_matrix", where)
    lens = {**said, **frame}
    old = np.array(
        [number(lens, k, where, v) for k, v in (("w", scene.width), ("h", scene.height))]
    )
    if "fl_x" in lens:
        x = number(lens, "fl_x", where)
        focal = np.array([x, number(lens, "fl_y", where, x)])
    else:
        angle = number(lens, "camera_angle_x", where, below=math.pi)
        focal = np.full(2, old[0] / 2 / math.tan(angle / 2))
    centre = np.array(
        [number(lens, k, where, v) for k, v in zip(("cx", "cy"), old / 2, strict=True)]
    )
    return pose, *scaled(focal, centre, old, np.array([scene.width, scene.height]))


FORMS = {"camera_path": of_nerfstudio, "frames": of_transforms}


def matrix(frame: Any, key: str, where: str) -> Array:
    """The pose [3, 4] under a key, [4, 4] or [3, 4] or flat. Raises ValueError for any other."""
    try:
        pose = np.array(frame[key], np.float64).reshape(-1, 4)[:3]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{where} has no {key}: 4 × 4 numbers, camera to world") from error
    check_pose(pose, f"{where}: {key}")
    return pose


def number(
    said: Mapping[str, Any],
    key: str,
    where: str,
    default: float | None = None,
    *,
    below: float = math.inf,
) -> float:
    value = said.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        wanted = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{where}: {key} is {value!r}, but must be a number above 0{wanted}")
    return float(value)


# ---- lenses ----


def pinholes(poses: Array, focal: Array, centre: Array) -> Camera:
    """Cameras of poses [n, 3, 4], focal and centre [n, 2], without distortion; float32."""
    distortion = np.zeros((len(poses), 5))
    return Camera(*(x.astype(np.float32) for x in (poses, focal, centre, distortion)))


def resized(cameras: Camera, old: tuple[int, int], new: tuple[int, int]) -> Camera:
    """Cameras of pictures of (height, width) pixels for pictures of another size, which show as
    much from top to bottom, and from side to side what their shape makes of it."""
    sides = np.array(old[::-1], np.float64), np.array(new[::-1], np.float64)
    focal, centre = scaled(np.asarray(cameras.focal), np.asarray(cameras.centre), *sides)
    lens = {"focal": focal.astype(np.float32), "centre": centre.astype(np.float32)}
    return cameras._replace(**lens)


def scaled(focal: Array, centre: Array, old: Array, new: Array) -> tuple[Array, Array]:
    """Focal lengths and centres [..., 2] of pictures of (width, height) pixels, by the heights."""
    scale = new[1] / old[1]
    return focal * scale, (centre - old / 2) * scale + new / 2
