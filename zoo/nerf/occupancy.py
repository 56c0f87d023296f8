"""Skipping empty space: a grid that remembers where the field has density.

Müller et al., 2022 (Instant-NGP, arXiv:2201.05989), appendix E. K cubic grids of r³ cells lie in
one another; the first fills the scene's box, each further one is twice as wide about its centre.

    update: cells [m] → density at a random place of each → highest of late → occupied or not
    march: rays [n] → candidates [n, s] → those in occupied cells → Samples of k slots a ray

n rays · s steps, the candidates · m cells that are asked · k slots.
Differs from the paper: steps are found in closed form, not one after the other; the threshold is
never above half the mean density, so that a field that is still thin everywhere keeps its cells;
cells are stored in C order, one bool each; a ray with more samples than slots spreads its slots
over all of them, so that nothing is cut off.

The grid says where nothing is, never what is hidden: its densities are the highest of each cell, by
which a ray that passes the edge of something ends there. Hidden samples are for `volume.prune`.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from zoo.nerf.cameras import Rays
from zoo.nerf.sampling import Samples
from zoo.nerf.volume import LARGEST

THRESHOLD = 0.01  # the opacity of the shortest step below which a cell is empty (appendix E.2)
DECAY = 0.95
CONE = 1 / 256  # the step's length by distance, in scenes without bounds (appendix E.1)


class Grid(NamedTuple):
    """low, high [3]: corners of the first level. density float32 [K, r, r, r]: the highest of late
    in each cell, 1 / world unit. occupied bool [K, r, r, r]."""

    low: jax.Array
    high: jax.Array
    density: jax.Array
    occupied: jax.Array


def create(low: Any, high: Any, *, resolution: int = 128, levels: int = 1) -> Grid:
    """A grid whose cells are all occupied, until the first update. Raises ValueError for corners
    that span no box and for sizes below 1."""
    low, high = (np.asarray(x, np.float32) for x in (low, high))
    if low.shape != (3,) or high.shape != (3,) or not (low < high).all():
        raise ValueError(f"low {low.tolist()} and high {high.tolist()} are no corners of a box")
    if resolution < 1 or levels < 1:
        raise ValueError(f"resolution {resolution} and levels {levels} must be at least 1")
    shape = (levels, resolution, resolution, resolution)
    corners = jnp.asarray(low), jnp.asarray(high)
    return Grid(*corners, jnp.zeros(shape), jnp.ones(shape, bool))


def bounds(grid: Grid) -> tuple[jax.Array, jax.Array]:
    """The corners of the last level, which holds all others."""
    centre, half = (grid.high + grid.low) / 2, (grid.high - grid.low) / 2
    reach = half * 2 ** (len(grid.density) - 1)
    return centre - reach, centre + reach


# ---- learning where density is ----


def update(
    grid: Grid,
    density: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    *,
    threshold: Any,
    every: bool,
    decay: float = DECAY,
    chunk: int = 2**18,
) -> Grid:
    """Appendix E.2, steps 1 to 3, which the paper takes every 16 training steps.

    density: points [m, 3] → sigma [m] ≥ 0, asked for at most `chunk` points at a time. every: ask
    about all cells, as in the first 256 training steps; else about half as many, one half of them
    drawn from all cells and the other from those occupied. decay: what is left of a cell's density
    at the next update; the paper's is for one in 16 steps. threshold: the density, 1 / world unit,
    from which a cell is occupied: THRESHOLD / the length of a step. A density that is no number
    counts as `LARGEST`: its cell stays occupied, and decays once there are numbers again.
    """
    which, where = jax.random.split(key)
    size = grid.density.size
    cells = jnp.arange(size) if every else _drawn(which, grid.occupied.reshape(-1))
    places = _places(grid, cells, jax.random.uniform(where, (len(cells), 3)))
    found = _in_chunks(density, places, chunk).astype(jnp.float32)
    found = jnp.clip(jnp.nan_to_num(found, nan=LARGEST), 0, LARGEST)

    highest = (decay * grid.density.reshape(-1)).at[cells].max(found)
    highest = highest.reshape(grid.density.shape)
    occupied = highest >= jnp.minimum(threshold, highest.mean() / 2)
    return grid._replace(density=highest, occupied=occupied)


def _drawn(key: jax.Array, occupied: jax.Array) -> jax.Array:
    """int32 [m], m about half of the cells, flat: half from all, half from those occupied [cells].
    The i-th occupied cell is where their running count reaches i: nothing need be rejected."""
    anywhere, among = jax.random.split(key)
    half = max(1, occupied.size // 4)
    counted = jnp.cumsum(occupied)
    rank = jax.random.randint(among, (half,), 0, jnp.maximum(counted[-1], 1))
    chosen = jnp.minimum(jnp.searchsorted(counted, rank + 1), occupied.size - 1)
    return jnp.concatenate([jax.random.randint(anywhere, (half,), 0, occupied.size), chosen])


def _places(grid: Grid, cells: jax.Array, inside: jax.Array) -> jax.Array:
    """Points [m, 3] of the cells [m], at the part `inside` [m, 3] in [0, 1) of each side."""
    resolution = grid.density.shape[1]
    level, *index = jnp.unravel_index(cells, grid.density.shape)
    unit = 2 * (jnp.stack(index, axis=1) + inside) / resolution - 1
    half = (grid.high - grid.low)[None] / 2
    return (grid.low + grid.high)[None] / 2 + half * unit * (2.0 ** level[:, None])


def _in_chunks(
    density: Callable[[jax.Array], jax.Array], points: jax.Array, chunk: int
) -> jax.Array:
    if len(points) <= chunk:
        return density(points)
    missing = -len(points) % chunk
    padded = jnp.pad(points, [(0, missing), (0, 0)], mode="edge")
    found = jax.lax.map(density, rearrange(padded, "(i m) d -> i m d", m=chunk))
    return found.reshape(-1)[: len(points)]


# ---- looking there alone ----


def march(
    grid: Grid,
    rays: Rays,
    near: jax.Array,
    far: jax.Array,
    *,
    slots: int | None,
    steps: int,
    step: Any,
    cone: float = 0.0,
    key: jax.Array | None = None,
) -> Samples:
    """Samples of n rays between near and far [n] that lie in occupied cells, `slots` a ray; None:
    all of them, unused slots between them, for `volume.pack`.

    step: the length of a step in world units, √3/1024 of the unit cube in the paper; with a `cone`
    it is cone · t, but no shorter than `step` and no longer than a step of the widest level. A ray
    gets `steps` candidates at most: one that needs more takes longer steps, and one with more
    samples than slots takes every so many-th, which then stands for the others too. key: the place
    within its steps, and which of them, are drawn for each ray; None: their middles. Samples carry
    no gradient.
    """
    t, delta = _candidates(near, far, steps, step, step * 2 ** (len(grid.density) - 1), cone, key)
    cells, covered = _cells(grid, rays, t, delta)
    kept = covered & (delta > 0) & grid.occupied.reshape(-1)[cells]
    if slots is None:
        found = Samples(t, jnp.where(kept, delta, 0))
    else:
        found = _compact(t, delta, kept, far, slots, key)
    return jax.lax.stop_gradient(found)


def _candidates(
    near: jax.Array,
    far: jax.Array,
    steps: int,
    step: Any,
    longest: Any,
    cone: float,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """t and delta [n, steps] from near to far [n]; steps that would begin behind far have delta 0.

    How many steps lie between the camera and t is a sum of three parts: of length `step`, of cone ·
    t, and of `longest`. Its inverse gives the ends of the steps.
    """

    def count(t: jax.Array) -> jax.Array:
        if not cone:
            return t / step
        growing = jnp.log(jnp.clip(t, first, last) / first) / cone
        return jnp.minimum(t, first) / step + growing + jnp.maximum(t - last, 0) / longest

    def distance(i: jax.Array) -> jax.Array:
        if not cone:
            return i * step
        growing = first * jnp.expm1(cone * (jnp.clip(i, turn, end) - turn))
        return jnp.minimum(i, turn) * step + growing + jnp.maximum(i - end, 0) * longest

    if cone:
        first, last = step / cone, longest / cone  # between them, a step is cone · t long
        turn, end = 1 / cone, (1 + jnp.log(longest / step)) / cone
    begin = count(near)
    stride = jnp.maximum(1, (count(far) - begin) / steps)
    index = begin[:, None] + stride[:, None] * jnp.arange(steps + 1.0)[None]
    edges = jnp.clip(distance(index), near[:, None], far[:, None])
    delta = jnp.diff(edges, axis=1)
    inside = jnp.array(0.5)
    if key is not None:
        inside = jax.random.uniform(jax.random.fold_in(key, 0), (len(near), 1))
    return edges[:, :-1] + inside * delta, delta


def _cells(grid: Grid, rays: Rays, t: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the places t [n, s] of rays, with steps delta: flat cells [n, s], and whether any level
    has them.

    The level is the finest that covers the place and whose cells are longer than the step.
    """
    levels, resolution = grid.density.shape[:2]
    centre, half = (grid.high + grid.low) / 2, (grid.high - grid.low) / 2
    # Axis by axis: XLA computes arrays that end in an axis of 3 several times as slowly.
    origins, directions = (rays.origins - centre[None]) / half[None], rays.directions / half[None]
    unit = [origins[:, i, None] + t * directions[:, i, None] for i in range(3)]
    reach = reduce(jnp.maximum, map(jnp.abs, unit))
    if levels == 1:
        cells, covered = jnp.zeros(t.shape, jnp.int32), reach <= 1
    else:
        scales, side = 2.0 ** jnp.arange(levels), 2 * half.min() / resolution
        beyond = jnp.searchsorted(scales, reach, method="compare_all")
        shorter = jnp.searchsorted(side * scales, delta, side="right", method="compare_all")
        cells = jnp.minimum(jnp.maximum(beyond, shorter), levels - 1)
        unit, covered = [x / scales[cells] for x in unit], beyond < levels
    for x in unit:
        index = jnp.clip((x + 1) / 2 * resolution, 0, resolution - 1)
        cells = cells * resolution + index.astype(jnp.int32)
    return cells, covered


def _compact(
    t: jax.Array,
    delta: jax.Array,
    kept: jax.Array,
    far: jax.Array,
    slots: int,
    key: jax.Array | None,
) -> Samples:
    """The kept of the candidates [n, s], in front; more of them than slots: every `stride`-th."""
    counted = jnp.cumsum(kept, axis=1)
    count = counted[:, -1:]
    stride = jnp.maximum(1, count / slots)
    # Below 1 by more than a rounding of the sum: the first of the next step is not this one's.
    draw = partial(jax.random.uniform, shape=count.shape, maxval=0.999)
    shift = 0.5 if key is None else draw(jax.random.fold_in(key, 1))
    slot = jnp.arange(slots)[None]
    rank = jnp.floor((slot + shift) * stride).astype(jnp.int32)
    filled = slot < count
    place = jax.vmap(jnp.searchsorted)(counted, jnp.minimum(rank, count - 1) + 1)
    place = jnp.minimum(place, t.shape[1] - 1)
    t, delta = (jnp.take_along_axis(x, place, axis=1) for x in (t, delta))
    return Samples(jnp.where(filled, t, far[:, None]), jnp.where(filled, delta * stride, 0))
