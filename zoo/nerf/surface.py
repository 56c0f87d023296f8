"""Surfaces of a field: a mesh by marching cubes, and the points that its views show.

    renderer → densities at the corners of cells → triangles where they pass a threshold → Mesh
    renderer, cameras → depths of whole pictures → places in the world → Cloud

Everything is in the scene's world.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from zoo.nerf.cameras import Camera, pixel_centres, rays, select
from zoo.nerf.out import SEEN, library, write_ply
from zoo.nerf.paths import resized
from zoo.nerf.scene import Scene, Space
from zoo.nerf.view import Renderer
from zoo.nerf.volume import LARGEST

Array = np.ndarray
Progress = Callable[[int, int], None]

RESOLUTION = 256  # cells along the longest side of the box
THICKNESS = 1 / 64  # of a surface, in longest sides of the box: half of the light ends in it
COUNT = 1_000_000  # points of a cloud, about
AT_ONCE = 2**20  # points that a field is asked about


class Cloud(NamedTuple):
    """points float32 [n, 3]; normals float32 [n, 3], of length 1, outward; colours uint8 [n, 3]."""

    points: Array
    normals: Array
    colours: Array

    def save(self, path: Path, faces: Array | None = None) -> None:
        """Writes a PLY file."""
        places = zip("xyz", self.points.T, strict=True)
        normals = zip(("nx", "ny", "nz"), self.normals.T, strict=True)
        colours = zip(("red", "green", "blue"), self.colours.T, strict=True)
        write_ply(path, dict([*places, *normals, *colours]), faces)


class Mesh(NamedTuple):
    """corners: points of a surface; faces int32 [f, 3]: the numbers of the corners of triangles,
    against the clock as seen from outside."""

    corners: Cloud
    faces: Array

    def save(self, path: Path) -> None:
        """Writes a PLY file."""
        self.corners.save(path, self.faces)


def nothing(done: int, total: int) -> None:
    """Tells nobody."""


# ---- a mesh ----


def mesh(
    renderer: Renderer,
    *,
    resolution: int = RESOLUTION,
    threshold: float | None = None,
    progress: Progress = nothing,
) -> Mesh:
    """Where the density passes a threshold (None: `usual_threshold`), in the space's box: closed,
    where the box cuts through something, too.

    By marching cubes (Lorensen and Cline, 1987; Lewiner et al., 2003), `resolution` cells along the
    box's longest side. Colours are the field's, seen against the normal. progress: is told (slabs
    done, all). Raises ValueError where no density is as high, and without scikit-image.
    """
    low, high = box(renderer.space)
    threshold = usual_threshold(renderer.space) if threshold is None else threshold
    cells = np.ceil((high - low) / (high - low).max() * resolution - 1e-6).astype(int)
    sides = (high - low) / cells
    sigma = densities(renderer, low, sides, cells, progress)
    check_threshold(sigma, threshold)
    # Bounded, and ½ at the threshold: a straight line from 0 to 10⁴ passes 20 at once.
    sigma = np.minimum(sigma, LARGEST)
    share = sigma / (sigma + threshold)
    # Outside there is nothing: what is cut gets a face, flat once the corners are back in the box.
    places, faces = march(np.pad(share, 1))
    points = np.clip(low + (places - 1) * sides, low, high).astype(np.float32)
    normals = corner_normals(points, faces)
    return Mesh(Cloud(points, normals, to_bytes(renderer.colour(points, -normals))), faces)


def march(share: Array) -> tuple[Array, Array]:
    """Where numbers [x, y, z] pass ½: corners float32 [v, 3], in steps of their axes, and triangles
    int32 [f, 3], against the clock as seen from where they are lower."""
    measure = library("skimage.measure")
    with warnings.catch_warnings():  # scikit-image 0.26 shapes its tables as NumPy 2.5 regrets
        warnings.simplefilter("ignore", DeprecationWarning)
        places, faces, _, _ = measure.marching_cubes(share, 0.5, gradient_direction="ascent")
    return places, faces.astype(np.int32)


def box(space: Space) -> tuple[Array, Array]:
    """The corners [3] within which a mesh is made: without bounds, those around the unit ball."""
    if space.unbounded:
        return np.full(3, -1.0), np.full(3, 1.0)
    return np.array(space.low, np.float64), np.array(space.high, np.float64)


def usual_threshold(space: Space) -> float:
    """The density, 1 / world unit, by which half of the light ends within `THICKNESS`."""
    low, high = box(space)
    return math.log(2) / (THICKNESS * float((high - low).max()))


def densities(
    renderer: Renderer, low: Array, sides: Array, cells: Array, progress: Progress
) -> Array:
    """float32 [x + 1, y + 1, z + 1]: at the corners of cells [3] with such sides [3]."""
    x, y, z = (a + side * np.arange(n + 1) for a, side, n in zip(low, sides, cells, strict=True))
    parts = math.ceil(len(x) * len(y) * len(z) / AT_ONCE)
    slabs = np.array_split(x, min(parts, len(x)))
    found = []
    for i, slab in enumerate(slabs):
        points = np.stack(np.meshgrid(slab, y, z, indexing="ij"), axis=-1)
        sigma = renderer.density(points.reshape(-1, 3).astype(np.float32))
        found.append(sigma.reshape(points.shape[:3]))
        progress(i + 1, len(slabs))
    return np.concatenate(found).astype(np.float32)


def check_threshold(sigma: Array, threshold: float) -> None:
    """Raises ValueError for a threshold that is none or that nothing reaches, and for densities
    that are no numbers."""
    if not 0 < threshold < math.inf:
        raise ValueError(f"the threshold is {threshold:g}, but must be a density above 0")
    if np.isnan(sigma).any():
        share = np.isnan(sigma).mean()
        raise ValueError(f"{share:.1%} of the densities are no numbers: the training diverged")
    if sigma.max() <= threshold:
        half, most = np.quantile(sigma, [0.5, 0.99])
        raise ValueError(
            f"nothing in the box is denser than the threshold, {threshold:.3g}: half of it is "
            f"below {half:.3g}, 99 % below {most:.3g}, and the most is {sigma.max():.3g}; lower it"
        )


def corner_normals(points: Array, faces: Array) -> Array:
    """float32 [v, 3], of length 1: the mean of those of the triangles around, by their areas; up
    where these cancel each other."""
    a, b, c = (points[faces[:, i]].astype(np.float64) for i in range(3))
    across = np.cross(b - a, c - a)  # as long as twice the area
    summed = np.zeros(points.shape)
    for i in range(3):
        np.add.at(summed, faces[:, i], across)
    return unit(summed, np.array([0.0, 0.0, 1.0])).astype(np.float32)


# ---- a cloud ----


def cloud(
    renderer: Renderer,
    scene: Scene,
    *,
    views: Sequence[int] | None = None,
    count: int = COUNT,
    progress: Progress = nothing,
) -> Cloud:
    """The mean depth of what views show, where more than half of the light ends, in the world.

    views: their numbers, None: those of the training. Their pictures become as many times
    smaller as it takes for about `count` points. Normals are the field's, turned to the camera.
    progress: is told (views done, all). Raises ValueError where no view shows anything.
    """
    chosen = scene.splits["train"] if views is None else views
    old = scene.height, scene.width
    shrink = math.ceil(math.sqrt(len(chosen) * scene.height * scene.width / count))
    size = max(scene.height // shrink, 1), max(scene.width // shrink, 1)
    cameras = resized(select(scene.cameras, list(chosen)), old, size)
    found = []
    for i in range(len(chosen)):
        found.append(shown_points(renderer, select(cameras, i), size))
        progress(i + 1, len(chosen))
    points, directions, colours = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not len(points):
        raise ValueError(f"none of {len(chosen)} views shows anything: opacities are below {SEEN}")
    normals = renderer.normals(points)
    away = (normals * directions).sum(1, keepdims=True) > 0
    normals = unit(np.where(away, -normals, normals), -directions)
    return Cloud(points, normals.astype(np.float32), to_bytes(colours))


compiled_rays = jax.jit(rays)  # once for all views


def shown_points(renderer: Renderer, camera: Camera, size: tuple[int, int]) -> tuple[Array, ...]:
    """Of one camera: points, the directions in which it sees them, and their colours, [m, 3]."""
    view = renderer.view(camera, *size)
    through = compiled_rays(camera, pixel_centres(*size))
    seen = view.opacity > SEEN
    origins, directions = (np.asarray(x)[seen] for x in through)
    return origins + view.depth[seen][:, None] * directions, directions, view.colour[seen]


# ---- both ----


def unit(vectors: Array, otherwise: Array) -> Array:
    """Vectors [n, 3] at length 1, and `otherwise` in place of those that are 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 0, vectors / np.where(length > 0, length, 1), otherwise)


def to_bytes(colours: Array) -> Array:
    """uint8 of colours in [0, 1]."""
    return np.round(255 * np.clip(colours, 0, 1)).astype(np.uint8)
