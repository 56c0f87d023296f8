"""Cameras: from pixels to rays, and from points to pixels.

    pixel → (pixel − centre) / focal → undistorted → (x, −y, −1) in the camera → ray in the world

Points of the picture's plane are written (x, y) = (X, Y) / Z, x to the right and y down, as OpenCV
has them. A camera's axes broadcast against those of what it is asked for, as NumPy's do: one camera
takes a whole picture of pixels [h, w, 2], and b cameras take one pixel each, [b, 2].
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 12  # of Newton's method: strong lenses are exact to float32 after 6
WIDEST = 100.0  # of the picture's plane: rays 89.4° off the axis; beyond, powers would overflow
RIGID = 1e-3  # how far a rotation may be from orthogonal


class Camera(NamedTuple):
    """One camera, or several along the leading axes; float32.

    pose [..., 3, 4]: camera to world, whose columns are the camera's right, up, back and place.
    focal, centre [..., 2]: pixels, (x, y). distortion [..., 5]: k1, k2, k3, p1, p2 of OpenCV's
    radial-tangential model, which OpenCV itself lists as k1, k2, p1, p2, k3; 0 for a pinhole.
    """

    pose: Any
    focal: Any
    centre: Any
    distortion: Any


class Rays(NamedTuple):
    """origins and directions [..., 3], float32, world; directions are of length 1."""

    origins: jax.Array
    directions: jax.Array

    def at(self, t: jax.Array) -> jax.Array:
        """The points [..., s, 3] at distances t [..., s]."""
        return self.origins[..., None, :] + t[..., None] * self.directions[..., None, :]


def rays(camera: Camera, pixels: Any) -> Rays:
    """Through pixels [..., 2]; their centres are at +0.5 (`pixel_centres`). Differentiable."""
    return Rays(*_ray(*_aligned((2, 1, 1, 1, 1), *camera, pixels)))


def project(camera: Camera, points: Any) -> tuple[jax.Array, jax.Array]:
    """Of points [..., 3]: pixels [..., 2], and depths [...] along the camera's axis, world units.

    Points that are not in front of the camera have infinite pixels, which lie on no picture. A
    strong distortion may fold points from far outside the picture into it.
    """
    return _pixel(*_aligned((2, 1, 1, 1, 1), *camera, points))


def pixel_centres(height: int, width: int) -> jax.Array:
    """[height, width, 2], (x, y); the first one is (0.5, 0.5)."""
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    return jnp.stack([x, y], axis=-1)


def select(cameras: Camera, index: Any) -> Camera:
    """Those of the leading axis that `index` names: a number, a slice or an array of numbers."""
    return jax.tree.map(lambda x: x[index], cameras)


def moved(camera: Camera, turn: jax.Array, shift: jax.Array) -> Camera:
    """The camera turned about its own place by rotation vectors `turn` [..., 3], radians, along its
    own axes, and then shifted by `shift` [..., 3], world units. Differentiable, also at 0."""
    place = camera.pose[..., 3] + shift
    rotation = jnp.matmul(camera.pose[..., :3], _rotation(turn), precision="highest")
    return camera._replace(pose=jnp.concatenate([rotation, place[..., None]], axis=-1))


def _rotation(turn: jax.Array) -> jax.Array:
    """Rodrigues' formula, I + sin θ / θ · K + (1 − cos θ) / θ² · K² with K v = turn × v,
    [..., 3, 3]."""
    squared = jnp.sum(turn * turn, axis=-1)[..., None, None]
    small = squared < 1e-6  # there the series, whose next terms are below float32's rounding
    angle = jnp.sqrt(jnp.where(small, 1, squared))
    once = jnp.where(small, 1 - squared / 6, jnp.sin(angle) / angle)
    twice = jnp.where(small, 0.5 - squared / 24, (1 - jnp.cos(angle)) / angle**2)
    x, y, z = jnp.moveaxis(turn, -1, 0)
    zero = jnp.zeros_like(x)
    rows = [jnp.stack(row, axis=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    cross = jnp.stack(rows, axis=-2)
    both = jnp.matmul(cross, cross, precision="highest")
    return jnp.broadcast_to(jnp.eye(3), cross.shape) + once * cross + twice * both


# ---- conventions ----


def opengl(pose: Any) -> Any:
    """The pose [..., 3, 4] of a camera that looks along +z with y down (OpenCV) as ours, which
    looks along −z with y up; and the reverse. NumPy stays NumPy, of its dtype."""
    signs = np.broadcast_to([1, -1, -1, 1], pose.shape)
    return pose * signs.astype(pose.dtype)


def from_colmap(quaternion: Any, translation: Any) -> np.ndarray:
    """Our pose [3, 4], float64, of what COLMAP writes: world to camera, OpenCV's axes, as a
    quaternion (w, x, y, z) and a translation. On the host."""
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    to_camera = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    place = -to_camera.T @ np.asarray(translation, np.float64)
    return opengl(np.column_stack([to_camera.T, place]))


def check_pose(pose: Any, name: str = "the pose") -> None:
    """Raises ValueError, which begins with `name`, unless the pose [3, 4] is finite and rigid: a
    rotation to 1e-3, and no reflection. On the host."""
    pose = np.asarray(pose, np.float64)
    if pose.shape != (3, 4):
        raise ValueError(f"{name} has shape {pose.shape}; a pose is [3, 4], camera to world")
    if not np.isfinite(pose).all():
        raise ValueError(f"{name} is not finite: {pose.tolist()}; leave that frame out")
    rotation = pose[:, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > RIGID:
        raise ValueError(
            f"{name} is not rigid: its axes are off orthonormal by {error:.2g}, more than {RIGID}; "
            "divide a scale out of its first three columns"
        )
    if np.linalg.det(rotation) < 0:
        raise ValueError(f"{name} is a reflection: one of its axes has the wrong sign")


# ---- the lens ----


def distort(points: Any, distortion: Any) -> jax.Array:
    """Where the lens puts points [..., 2] of the picture's plane, distortion [..., 5]."""
    return _distort(*_aligned((1, 1), points, distortion))


def undistort(points: Any, distortion: Any) -> jax.Array:
    """The points [..., 2] that the lens puts at `points`, by Newton's method.

    Exact to float32's rounding, about 1e-7 of the picture's width. Where the distortion folds over,
    no point is put there: the result is finite and means nothing.
    """
    return _undistort(*_aligned((1, 1), points, distortion))


def _distorted(point: jax.Array, distortion: jax.Array) -> jax.Array:
    """OpenCV's documentation of camera calibration, the model without rational terms. [2] → [2]."""
    x, y = point
    k1, k2, k3, p1, p2 = distortion
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return jnp.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ]
    )


def _undistorted(wanted: jax.Array, distortion: jax.Array) -> jax.Array:
    wanted = jnp.clip(wanted, -WIDEST, WIDEST)
    fixed = jax.lax.stop_gradient((wanted, distortion))
    point = jax.lax.fori_loop(0, STEPS, lambda _, point: _newton(point, *fixed), fixed[0])
    # The last step carries the derivative: that of the implicit function, whatever came before.
    return _newton(point, wanted, distortion)


def _newton(point: jax.Array, wanted: jax.Array, distortion: jax.Array) -> jax.Array:
    (a, b), (c, d) = jax.jacfwd(_distorted)(point, distortion)
    x, y = _distorted(point, distortion) - wanted
    determinant = jnp.maximum(a * d - b * c, 1e-3)
    step = jnp.stack([d * x - b * y, a * y - c * x]) / determinant
    return point - jnp.clip(step, -1, 1)  # a fold must not throw it out of the numbers


# ---- for one pixel, then for all ----


def _aligned(own: tuple[int, ...], *arrays: Any) -> list[jax.Array]:
    """With as many leading axes each, of size 1 where there were none; the last `own` axes of an
    array are no leading ones. Said out loud, for those who have JAX refuse to do it silently."""
    arrays = tuple(map(jnp.asarray, arrays))
    leading = [x.ndim - axes for x, axes in zip(arrays, own, strict=True)]
    missing = [max(leading) - n for n in leading]
    return [x.reshape((1,) * n + x.shape) for x, n in zip(arrays, missing, strict=True)]


_distort = jnp.vectorize(_distorted, signature="(i),(k)->(i)")
_undistort = jnp.vectorize(_undistorted, signature="(i),(k)->(i)")


@partial(jnp.vectorize, signature="(r,m),(i),(i),(k),(i)->(r),(r)")
def _ray(
    pose: jax.Array,
    focal: jax.Array,
    centre: jax.Array,
    distortion: jax.Array,
    pixel: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, y = _undistorted((pixel - centre) / focal, distortion)
    direction = _times(pose[:, :3], jnp.stack([x, -y, -jnp.ones_like(x)]))
    return pose[:, 3], direction / jnp.linalg.norm(direction)


@partial(jnp.vectorize, signature="(r,m),(i),(i),(k),(r)->(i),()")
def _pixel(
    pose: jax.Array,
    focal: jax.Array,
    centre: jax.Array,
    distortion: jax.Array,
    point: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    offset = point - pose[:, 3]
    x, y, z = _times(pose[:, :3].T, offset)  # the inverse of a rotation
    seen = -z > 1e-6 * jnp.max(jnp.abs(offset))
    plane = jnp.where(seen, jnp.stack([x, -y]) / jnp.where(seen, -z, 1), 0)
    pixel = focal * _distorted(plane, distortion) + centre
    return jnp.where(seen, pixel, jnp.inf), -z


def _times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """In full float32: a GPU's or TPU's default would put the ray pixels away."""
    return jnp.matmul(matrix, vector, precision="highest")
