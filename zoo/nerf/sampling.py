"""Where along a ray a field is asked.

s samples, in ascending order, at distances t [..., s] in world units. Randomness comes from `key`;
without one, None, every sample is in the middle of the part that it would be drawn from. No
gradient goes through the places drawn from a density: where to look is not learnt by what is seen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PARALLEL = 1e-10  # a component of a unit direction below it is none
EMPTY = 1e-10  # weights that sum to less say nothing about where to look


class Histogram(NamedTuple):
    """edges [n, s + 1], ascending, of intervals with weights [n, s]."""

    edges: jax.Array
    weights: jax.Array


class Samples(NamedTuple):
    """t [n, s]: a place in each interval, ascending; delta [n, s]: the intervals' lengths.

    An unused slot has delta 0 and stands last. levels: what proposals thought, for their loss.
    unit [n, s + 1]: the intervals' edges in normalised distances, in [0, 1], where they were drawn
    in such, by proposals; else None.
    """

    t: jax.Array
    delta: jax.Array
    levels: tuple[Histogram, ...] = ()
    unit: jax.Array | None = None


def intersect_box(
    origins: jax.Array, directions: jax.Array, low: Any, high: Any, *, nearest: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """(near, far), each [...]: where rays [..., 3] enter and leave a box with the corners [3].

    near is at least `nearest`, so 0 where a ray begins inside. A ray that misses the box, or leaves
    it before `nearest`, has near = far = 0. The faces belong to the box.
    """
    low, high = (jnp.broadcast_to(jnp.asarray(x), origins.shape) for x in (low, high))
    parallel = jnp.abs(directions) < PARALLEL
    along = jnp.where(parallel, 1, directions)
    ends = (low - origins) / along, (high - origins) / along
    within = (low <= origins) & (origins <= high)
    # Between two faces that it is parallel to, a ray is always or never.
    enter = jnp.where(parallel, jnp.where(within, -jnp.inf, jnp.inf), jnp.minimum(*ends))
    leave = jnp.where(parallel, jnp.inf, jnp.maximum(*ends))
    near, far = jnp.maximum(enter.max(axis=-1), nearest), leave.min(axis=-1)
    hit = far > near
    return jnp.where(hit, near, 0), jnp.where(hit, far, 0)


def stratified(key: jax.Array | None, near: jax.Array, far: jax.Array, count: int) -> jax.Array:
    """t [..., count]: one, uniform, in each of `count` equal parts of [near, far] (NeRF, eq. 2)."""
    return linear(_uniform(key, near.shape, count), near[..., None], far[..., None])


def importance(
    key: jax.Array | None, edges: jax.Array, weights: jax.Array, count: int
) -> jax.Array:
    """[..., count] places, ascending, of a density constant between edges [..., s + 1] and in
    proportion to weights [..., s] ≥ 0 from one edge to the next (NeRF, section 5.2).

    By the inverse of the distribution function, at one uniform number in each of `count` equal
    parts of [0, 1]. Where all weights are 0, every interval is as likely.
    """
    return _inverse(_uniform(key, weights.shape[:-1], count), edges, weights)


def resample(key: jax.Array | None, edges: jax.Array, weights: jax.Array, count: int) -> jax.Array:
    """The edges [..., count + 1] of intervals of about equal weight, exactly without a key, between
    the first and the last of `edges`, which stay."""
    middle = _uniform(key, weights.shape[:-1], count - 1)
    inner = _inverse((0.5 + (count - 1) * middle) / count, edges, weights)
    return jnp.concatenate([edges[..., :1], inner, edges[..., -1:]], axis=-1)


def _inverse(shares: jax.Array, edges: jax.Array, weights: jax.Array) -> jax.Array:
    """The places [..., k] below which these shares [..., k] of the weights lie."""
    total = weights.sum(axis=-1, keepdims=True)
    summed = jnp.cumsum(jnp.where(total > EMPTY, weights, 1), axis=-1)
    begins = [(0, 0)] * (summed.ndim - 1) + [(1, 0)]
    distribution = jnp.pad(summed / summed[..., -1:], begins)  # ends at 1 to the bit
    return jax.lax.stop_gradient(_interpolate(shares, distribution, edges))


def union(*t: jax.Array) -> jax.Array:
    """The places of all, each [..., s_i], in ascending order (NeRF, section 5.2)."""
    return jnp.sort(jnp.concatenate(t, axis=-1), axis=-1)


def intervals(t: jax.Array, far: jax.Array) -> Samples:
    """From each place t [n, s] to the next, from the last to far [n] (NeRF, section 4)."""
    ends = jnp.concatenate([t[:, 1:], far[:, None]], axis=1)
    return Samples(t, jnp.maximum(ends - t, 0))


def middles(edges: jax.Array) -> Samples:
    """The intervals between edges [n, s + 1], asked in their middles."""
    return Samples((edges[:, 1:] + edges[:, :-1]) / 2, jnp.maximum(jnp.diff(edges, axis=1), 0))


# How normalised distances s in [0, 1] lie between near and far, [..., 1] each.


def linear(s: jax.Array, near: jax.Array, far: jax.Array) -> jax.Array:
    """Evenly."""
    return near + s * (far - near)


def disparity(s: jax.Array, near: jax.Array, far: jax.Array) -> jax.Array:
    """Evenly in 1 / t (Mip-NeRF 360, eq. 11, g(t) = 1 / t). Distances below 1e-6 count as that."""
    near, far = jnp.maximum(near, 1e-6), jnp.maximum(far, 1e-6)
    return 1 / (s / far + (1 - s) / near)


SPACINGS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "linear": linear,
    "disparity": disparity,
}


def _uniform(key: jax.Array | None, shape: tuple[int, ...], count: int) -> jax.Array:
    """[*shape, count] numbers of [0, 1], ascending: one in each of `count` equal parts."""
    shape = (*shape, count)
    inside = 0.5 if key is None else jax.random.uniform(key, shape)
    return (jax.lax.broadcasted_iota(jnp.float32, shape, len(shape) - 1) + inside) / count


# The inverse of a piecewise linear function: interpolation with the axes exchanged.
_interpolate = jnp.vectorize(jnp.interp, signature="(k),(s),(s)->(k)")
