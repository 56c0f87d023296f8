"""Real spherical harmonics: a smooth encoding of directions (Müller et al., 2022, arXiv:2201.05989,
section 5.4).

    directions [..., 3] → degrees 0, 1, 2, 3 of 1, 3, 5, 7 numbers → [..., 16]
"""

from math import pi, sqrt

import jax
import jax.numpy as jnp


def spherical_harmonics(directions: jax.Array) -> jax.Array:
    """The first four degrees, "degree 4" in the paper: [..., 3] → [..., 16], in the directions'
    dtype, computed in float32 at least.

    directions: of length 1, by the caller; others give numbers that mean nothing, and that float32
    holds only up to lengths of about 1e12: the third degree has their cubes.
    The numbers go by degree l, then by order m from −l to l, without the Condon–Shortley phase;
    the integral of a product of two over the sphere is 1 for the same, else 0.
    """
    exact = jnp.promote_types(directions.dtype, jnp.float32)
    x, y, z = jnp.moveaxis(directions.astype(exact), -1, 0)
    xx, yy, zz = x * x, y * y, z * z
    numbers = [
        jnp.full_like(x, sqrt(1 / pi) / 2),
        sqrt(3 / pi) / 2 * y,
        sqrt(3 / pi) / 2 * z,
        sqrt(3 / pi) / 2 * x,
        sqrt(15 / pi) / 2 * x * y,
        sqrt(15 / pi) / 2 * y * z,
        sqrt(5 / pi) / 4 * (3 * zz - 1),
        sqrt(15 / pi) / 2 * x * z,
        sqrt(15 / pi) / 4 * (xx - yy),
        sqrt(35 / (2 * pi)) / 4 * y * (3 * xx - yy),
        sqrt(105 / pi) / 2 * x * y * z,
        sqrt(21 / (2 * pi)) / 4 * y * (5 * zz - 1),
        sqrt(7 / pi) / 4 * z * (5 * zz - 3),
        sqrt(21 / (2 * pi)) / 4 * x * (5 * zz - 1),
        sqrt(105 / pi) / 4 * z * (xx - yy),
        sqrt(35 / (2 * pi)) / 4 * x * (xx - 3 * yy),
    ]
    return jnp.stack(numbers, axis=-1).astype(directions.dtype)
