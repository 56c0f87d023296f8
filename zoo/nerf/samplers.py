"""From rays to pixels by each way of choosing samples: the same in training and in what is shown.

    rays [n] → near, far [n] → samples [n, s] → field → Rendered

A field is asked in world units; what it computes in, the unit cube, it is mapped to here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.nerf import occupancy, proposal, sampling
from zoo.nerf.cameras import Rays
from zoo.nerf.occupancy import Grid
from zoo.nerf.sampling import Samples
from zoo.nerf.scene import Hierarchical, Occupancy, Proposals, Space
from zoo.nerf.volume import Field, Rendered, contract, pack, render, render_early, render_packed

Density = Callable[[jax.Array], jax.Array]

FARTHEST = 1e3  # of rays without bounds, in radii of the ball that the cameras are about
SETTLED = 8  # looks at every cell that a grid needs, of a field that no longer changes
PACKED = 4  # one of so many slots is used, as a rule
SEGMENT = 8  # slots that are rendered at a time where more are used


class Asked(NamedTuple):
    """A model's functions of points [m, 3] in the world (and directions [m, 3])."""

    field: Field
    coarse: Field
    density: Density
    proposals: Sequence[Density]


# ---- spaces ----


def corners(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """low and high [3] of all that the field covers: the widest cascade."""
    low, high = (np.asarray(corner, np.float32) for corner in (space.low, space.high))
    width = 2 ** (getattr(space.sampler, "cascades", 1) - 1) * (high - low)
    return (low + high - width) / 2, (low + high + width) / 2


def unit(space: Space, points: jax.Array) -> jax.Array:
    """Points [m, 3] of the world in the unit cube."""
    if space.unbounded:
        return (contract(points) + 2) / 4
    low, high = (jnp.broadcast_to(corner, points.shape) for corner in corners(space))
    return (points - low) / (high - low)


def reach(space: Space, rays: Rays) -> tuple[jax.Array, jax.Array]:
    """near and far [n] of rays."""
    if space.unbounded:
        n = len(rays.origins)
        return jnp.full(n, space.near), jnp.full(n, FARTHEST)
    return sampling.intersect_box(*rays, *corners(space), nearest=space.near)


def ask(apply: Callable[..., Any], variables: Any, space: Space) -> Asked:
    """The functions of a model; apply: as Linen's, with `method`."""

    def of(method: str | None, **keywords: Any) -> Callable[..., Any]:
        how = keywords | ({"method": method} if method else {})
        return lambda points, *directions: apply(variables, unit(space, points), *directions, **how)

    two = isinstance(space.sampler, Hierarchical)
    count = len(space.sampler.counts) - 1 if isinstance(space.sampler, Proposals) else 0
    return Asked(
        field=of("fine" if two else None),
        coarse=of("coarse" if two else None),
        density=of("density"),
        proposals=[of("proposal", index=i) for i in range(count)],
    )


# ---- the occupancy grid ----


def step_of(space: Space) -> float:
    """The length of a step, world units: the diagonal of the first box, in so many."""
    how = space.sampler
    assert isinstance(how, Occupancy)
    return diagonal(space) / how.steps


def diagonal(space: Space) -> float:
    """That of the first box, world units."""
    return float(np.linalg.norm(np.subtract(space.high, space.low)))


def threshold(space: Space) -> float:
    """The density from which a cell is occupied: the paper's, whose steps are the diagonal / 1024,
    however long the steps are here. What is thinner is a haze, which costs more than it shows."""
    return occupancy.THRESHOLD * 1024 / diagonal(space)


def create_grid(space: Space) -> Grid:
    """Every cell occupied."""
    how = space.sampler
    assert isinstance(how, Occupancy)
    return occupancy.create(space.low, space.high, resolution=how.resolution, levels=how.cascades)


def settled_grid(density: Density, space: Space, key: jax.Array) -> Grid:
    """That of a field that no longer changes."""

    def look(grid: Grid, key: jax.Array) -> tuple[Grid, None]:
        return occupancy.update(grid, density, key, threshold=threshold(space), every=True), None

    return jax.lax.scan(look, create_grid(space), jax.random.split(key, SETTLED))[0]


def marched(
    space: Space,
    rays: Rays,
    grid: Grid,
    key: jax.Array | None = None,
    *,
    slots: int | None = None,
) -> Samples:
    """The samples of rays in occupied cells; slots: as `occupancy.march` has it."""
    how = space.sampler
    assert isinstance(how, Occupancy)
    cone = occupancy.CONE if how.cascades > 1 else 0.0
    sizes = {"slots": slots, "steps": how.steps, "step": step_of(space), "cone": cone}
    return occupancy.march(grid, rays, *reach(space, rays), key=key, **sizes)


# ---- rendering ----


def shown(asked: Asked, space: Space, rays: Rays, grid: Grid | None, background: Any) -> Rendered:
    """What is seen along rays [n], without randomness; grid: where the sampler is Occupancy."""
    return RENDER[type(space.sampler)](asked, space, rays, grid, background)


def with_grid(
    asked: Asked, space: Space, rays: Rays, grid: Grid | None, background: Any
) -> Rendered:
    assert grid is not None and isinstance(space.sampler, Occupancy)
    samples = marched(space, rays, grid, slots=space.sampler.slots)
    n, slots = samples.t.shape
    segment = next(k for k in range(min(SEGMENT, slots), 0, -1) if slots % k == 0)
    room = max(1, n * slots // PACKED)

    def packed(samples: Samples) -> Rendered:
        few, _ = pack(samples, room)
        seen = render_packed(asked.field, rays, few, background, longest=slots)
        weights = jnp.zeros((n, slots)).at[few.ray, few.place].set(seen.weights, mode="drop")
        return seen._replace(weights=weights)

    def early(samples: Samples) -> Rendered:
        return render_early(asked.field, rays, samples, background, segment=segment)

    return jax.lax.cond((samples.delta > 0).sum() <= room, packed, early, samples)


def twice(
    asked: Asked,
    space: Space,
    rays: Rays,
    background: Any,
    key: jax.Array | None = None,
) -> tuple[Rendered, Rendered]:
    """By the coarse field, and by the fine one at the places of both (NeRF, section 5.2)."""
    how = space.sampler
    assert isinstance(how, Hierarchical)
    near, far = reach(space, rays)
    keys = [None, None] if key is None else jax.random.split(key)
    t = sampling.stratified(keys[0], near, far, how.coarse)
    coarse = render(asked.coarse, rays, sampling.intervals(t, far), background)
    between = (t[:, 1:] + t[:, :-1]) / 2
    more = sampling.importance(keys[1], between, coarse.weights[:, 1:-1], how.fine)
    samples = sampling.intervals(sampling.union(t, more), far)
    return coarse, render(asked.field, rays, samples, background)


def proposed(
    asked: Asked,
    space: Space,
    rays: Rays,
    background: Any,
    key: jax.Array | None = None,
    anneal: jax.Array | float = 1.0,
) -> tuple[Rendered, Samples]:
    """Where the proposals expect something; the samples carry what they thought."""
    how = space.sampler
    assert isinstance(how, Proposals)
    samples = proposal.sample(
        asked.proposals,
        rays,
        *reach(space, rays),
        counts=how.counts,
        spacing="disparity" if space.unbounded else "linear",
        anneal=anneal,
        key=key,
    )
    return render(asked.field, rays, samples, background), samples


RENDER: dict[type, Callable[..., Rendered]] = {
    Occupancy: with_grid,
    Hierarchical: lambda asked, space, rays, grid, background: twice(
        asked, space, rays, background
    )[1],
    Proposals: lambda asked, space, rays, grid, background: proposed(
        asked, space, rays, background
    )[0],
}
