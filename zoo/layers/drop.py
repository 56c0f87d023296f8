"""Regularisation by leaving out: whole residual branches, whole patches."""

import jax
import jax.numpy as jnp


def stochastic_depth(rng: jax.Array, rates: jax.Array, branches: int, batch: int) -> jax.Array:
    """Which residual branches of a stack each example has (Huang et al., 2016, arXiv:1603.09382).

    rates: [depth], the probability of being left out, in [0, 1).
    Returns factors [depth, branches, batch], float32, for `drop_path`: 0 for a branch left out,
    else 1 / (1 - rate), so that their mean is 1. They are drawn outside the blocks, which get one
    row each: a loop and a scan over the same blocks then lose the same branches.
    """
    kept = 1 - jnp.asarray(rates, jnp.float32)[:, None, None]
    drawn = jax.random.bernoulli(rng, kept, (len(rates), branches, batch))
    return jnp.where(drawn, 1 / kept, 0)


def drop_path(branch: jax.Array, factors: jax.Array | None) -> jax.Array:
    """A branch [b, …] times a factor for each example [b]; None leaves it as it is."""
    if factors is None:
        return branch
    columns = factors.reshape(-1, *(1,) * (branch.ndim - 1))
    return (branch * columns).astype(branch.dtype)


def keep_patches(rng: jax.Array, patches: jax.Array, share: float) -> jax.Array:
    """Patch dropout (Li et al., 2022, arXiv:2212.00794): leaves out that share of the patches.

    patches [b, n, d] → [b, m, d] with m = (1 - share) n, rounded, at least 1: as many for every
    example, but others, in their order.
    """
    b, n, _ = patches.shape
    m = max(1, round(n * (1 - share)))
    shuffled = jax.random.uniform(rng, (b, n)).argsort(axis=1)
    kept = jnp.sort(shuffled[:, :m], axis=1)
    return jnp.take_along_axis(patches, kept[:, :, None], axis=1)
