"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864): positions as rotations of q and k.

The pair (i, i + c/2) of a head's c channels is turned by position · frequency_i, as published Llama
weights have it; the paper's own pairs are neighbours (2i, 2i + 1), a permutation of the channels.
"""

import jax
import jax.numpy as jnp


def frequencies(width: int, base: float) -> jax.Array:
    """base^(−2i / c), i < c/2, radians per position, float32 (section 3.2.2)."""
    return base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def angles(positions: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of positions [b, n] times frequencies [c/2]: float32 [b, n, c/2]."""
    turned = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None]
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [b, n, h, c] turned by the angles of its token, cos and sin [b or 1, n, c/2]; equation 34,
    computed in float32, in x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
