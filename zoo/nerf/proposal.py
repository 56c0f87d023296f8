"""Proposal networks: small fields of density that say where the large one is worth asking.

Barron et al., 2021 (Mip-NeRF 360, arXiv:2111.12077), section 3.

    [0, 1] → edges → density of proposal 1 → weights → edges → … → edges → Samples

Each proposal learns by `interlevel` to bound the weights that the field finds in the end; it gets
no gradient from the picture, and the field none from it. Stands where `occupancy.march` stands.
Differs from the paper: the outermost edges are always near and far, so that no light passes beside
the intervals; histograms are not blurred before they are drawn from.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.nerf.cameras import Rays
from zoo.nerf.sampling import SPACINGS, Histogram, Samples, middles, resample
from zoo.nerf.volume import weigh

Density = Callable[[jax.Array], jax.Array]


def sample(
    proposals: Sequence[Density],
    rays: Rays,
    near: jax.Array,
    far: jax.Array,
    *,
    counts: Sequence[int],
    spacing: str = "linear",
    anneal: jax.Array | float = 1.0,
    key: jax.Array | None = None,
) -> Samples:
    """`counts[-1]` intervals of n rays between near and far [n], asked in their middles.

    proposals: points [m, 3] → sigma [m], asked one after the other about counts[0], counts[1], …
    intervals; `counts` has one number more than there are proposals. spacing: a key of
    `sampling.SPACINGS`. anneal: the power of the weights that are drawn from, 0 draws evenly
    (`annealed`). The samples carry their `unit` edges, for `volume.distortion`. Raises ValueError
    for other counts or another spacing.
    """
    if len(counts) != len(proposals) + 1:
        raise ValueError(f"{len(proposals)} proposals need one count more than that; not {counts}")
    if spacing not in SPACINGS:
        raise ValueError(f"a spacing is one of {', '.join(SPACINGS)}; not {spacing!r}")
    n = len(near)
    unit = jnp.broadcast_to(jnp.arange(2.0)[None], (n, 2))  # [0, 1] is the first interval
    weights, levels = jnp.ones((n, 1)), []
    for i, (density, count) in enumerate(zip([*proposals, None], counts, strict=True)):
        fresh = None if key is None else jax.random.fold_in(key, i)
        unit = resample(fresh, unit, weights**anneal, count)
        edges = jax.lax.stop_gradient(SPACINGS[spacing](unit, near[:, None], far[:, None]))
        if density is not None:
            weights = _weights(density, rays, middles(edges))
            levels.append(Histogram(edges, weights))
    return middles(edges)._replace(levels=tuple(levels), unit=unit)


def annealed(progress: jax.Array | float, slope: float = 10.0) -> jax.Array | float:
    """The power for `sample`, from 0 at progress 0 to 1 at progress 1: the supplement's annealing,
    whose slope in the beginning is b = 10."""
    return slope * progress / ((slope - 1) * progress + 1)


def interlevel(samples: Samples, weights: jax.Array) -> jax.Array:
    """[n]: equation 13, summed over the proposals that `samples` carry.

    weights [n, s]: what the field made of the samples; no gradient goes to them. Each proposal pays
    for the part of a weight that its own intervals, as far as they overlap, do not add up to.
    """
    weights = jax.lax.stop_gradient(weights)
    begin, end = samples.t - samples.delta / 2, samples.t + samples.delta / 2
    total = jnp.zeros(len(weights))
    for level in samples.levels:
        excess = jnp.maximum(0, weights - _bound(level, begin, end))
        total += jnp.sum(excess**2 / (weights + jnp.finfo(jnp.float32).eps), axis=1)
    return total


def _weights(density: Density, rays: Rays, samples: Samples) -> jax.Array:
    points = rearrange(rays.at(samples.t), "n s d -> (n s) d")
    return weigh(density(points).reshape(samples.t.shape), samples.delta)[0]


def _bound(level: Histogram, begin: jax.Array, end: jax.Array) -> jax.Array:
    """Equation 12: the sum of the weights of those intervals that [begin, end), [n, s], overlap."""
    n, s = level.weights.shape
    summed = jnp.concatenate([jnp.zeros((n, 1)), jnp.cumsum(level.weights, axis=1)], axis=1)
    first = jax.vmap(lambda e, x: jnp.searchsorted(e, x, side="right"))(level.edges, begin) - 1
    behind = jax.vmap(jnp.searchsorted)(level.edges, end)
    first, behind = (jnp.clip(x, 0, s) for x in (first, behind))
    last = jnp.take_along_axis(summed, behind, axis=1)
    return last - jnp.take_along_axis(summed, first, axis=1)
