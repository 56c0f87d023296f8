"""Pictures of a trained field: whole views, and the field itself at points of the world."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.nerf import samplers, volume
from zoo.nerf.cameras import Camera, pixel_centres, rays
from zoo.nerf.occupancy import Grid
from zoo.nerf.scene import Corner, Occupancy, Space

AT_ONCE = 4096  # rays
POINTS = 2**16  # points


class View(NamedTuple):
    """colour float32 [h, w, 3] in [0, 1], over the scene's background; depth float32 [h, w]:
    distance along the unit ray, 0 where nothing is; opacity float32 [h, w]."""

    colour: np.ndarray
    depth: np.ndarray
    opacity: np.ndarray


class Renderer:
    """A field that is looked at. Everything goes in and comes out as NumPy arrays, world units."""

    def __init__(self, apply: Callable[..., Any], variables: Any, space: Space, grid: Any = None):
        self.space, self._variables, self._grid = space, variables, grid

        def ask(variables: Any) -> samplers.Asked:
            return samplers.ask(apply, variables, space)

        @jax.jit
        def shown(
            variables: Any, grid: Grid | None, behind: jax.Array, camera: Camera, pixels: jax.Array
        ) -> Any:
            found = samplers.shown(ask(variables), space, rays(camera, pixels), grid, behind)
            return jnp.clip(found.colour, 0, 1), found.depth, found.opacity

        self._behind = backdrop(space.background)
        self._shown = shown
        self._density = jax.jit(lambda variables, points: ask(variables).density(points))
        self._field = jax.jit(lambda variables, *where: ask(variables).field(*where))
        self._normals = jax.jit(
            lambda variables, points: volume.normals(ask(variables).density, points)
        )
        if grid is None and isinstance(space.sampler, Occupancy):
            settle = jax.jit(
                lambda variables, key: samplers.settled_grid(ask(variables).density, space, key)
            )
            self._grid = settle(variables, jax.random.key(0))

    def renew(self, variables: Any, grid: Grid | None, background: str | Corner) -> None:
        """The same field after more training: what was compiled for it stays."""
        self._variables, self._grid, self._behind = variables, grid, backdrop(background)

    def view(self, camera: Camera, height: int, width: int) -> View:
        """What one camera sees, in a picture of height × width pixels."""
        pixels = np.asarray(pixel_centres(height, width)).reshape(-1, 2)
        one = jax.tree.map(jnp.asarray, camera)
        look = partial(self._shown, self._variables, self._grid, self._behind, one)
        colour, depth, opacity = in_chunks(look, AT_ONCE, pixels)
        sides = (height, width)
        return View(colour.reshape(*sides, 3), depth.reshape(sides), opacity.reshape(sides))

    def density(self, points: np.ndarray) -> np.ndarray:
        """sigma [m] at points [m, 3], 1 / world unit."""
        return in_chunks(partial(self._density, self._variables), POINTS, points)

    def colour(self, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """rgb [m, 3] of points [m, 3] seen along unit directions [m, 3]."""
        return in_chunks(partial(self._field, self._variables), POINTS, points, directions)[1]

    def normals(self, points: np.ndarray) -> np.ndarray:
        """−∇σ at points [m, 3], of length 1; 0 where the density is even."""
        return in_chunks(partial(self._normals, self._variables), POINTS, points)


def renderer(model: Any, variables: Any, space: Space, *, grid: Grid | None = None) -> Renderer:
    """grid: that of the training; None: it is made from the field, where its sampler needs one."""
    return Renderer(model.apply, variables, space, grid)


def backdrop(background: str | Corner) -> jax.Array:
    """The colour [3] behind what is shown, as `Space` has it."""
    if isinstance(background, str):
        return volume.draw_background(background, 1)[0]
    return jnp.asarray(background, jnp.float32)


def in_chunks(function: Callable[..., Any], size: int, *rows: np.ndarray) -> Any:
    """function(*rows), which gives arrays with a row for each; `size` rows at a time, the last
    ones padded, so that it is compiled once."""
    rows = tuple(np.asarray(x, np.float32) for x in rows)
    n = len(rows[0])
    parts = [jax.device_get(function(*part)) for part in padded(size, rows)]
    return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)


def padded(size: int, rows: tuple[np.ndarray, ...]) -> Iterator[tuple[np.ndarray, ...]]:
    for start in range(0, max(len(rows[0]), 1), size):
        part = [x[start : start + size] for x in rows]
        missing = size - len(part[0])
        yield tuple(
            np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)], mode="constant") for x in part
        )
