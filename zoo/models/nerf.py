"""NeRF: Representing Scenes as Neural Radiance Fields (Mildenhall et al., 2020, arXiv:2003.08934).

A network holds a scene: asked about a place and a direction, it says how dense the place is and
which colour it sends there. Sines of many frequencies let it tell near places apart.

    points [n, 3] → γ [n, 63] → 8 layers, γ again after the fifth → density [n], feature [n, d]
    directions [n, 3] → γ [n, 27], beside the feature → layer [n, d/2] → colour [n, 3]

n points, in the unit cube · d width. Two such networks: the coarse one, asked about places spread
evenly along a ray, shows where the fine one is worth asking (section 5.2).
Differs from the paper: γ has the numbers themselves beside their sines, as in the authors' program;
the density's bias begins at 0.2, or a ReLU that is 0 everywhere could end a run at its start.
"""

from dataclasses import dataclass
from math import pi

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.spec import Count, Input, Variant


@dataclass(frozen=True)
class Config:
    """Figure 7 and section 5.1."""

    position_octaves: Count = 10  # L of the points
    direction_octaves: Count = 4  # L of the directions
    width: int = 256
    depth: int = 8
    skip: int = 5  # beside this layer's activation the points are put again
    colour_width: int = 128

    def check(self) -> None:
        """Raises ValueError for a skip that is behind the last layer."""
        if self.skip >= self.depth:
            raise ValueError(f"skip {self.skip} must be below depth {self.depth}")


class NeRF(nn.Module):
    """Section 5: two fields of one kind, coarse and fine.

    A field takes points [n, 3] in the unit cube and directions [n, 3] of length 1; it returns
    (sigma [n] ≥ 0, rgb [n, 3] in [0, 1]), in float32 at least. The model asks both about the same
    points and returns (coarse, fine); `coarse` and `fine` ask one.
    """

    config: Config

    def setup(self) -> None:
        self.coarse_field = Field(self.config)
        self.fine_field = Field(self.config)

    def __call__(
        self, points: jax.Array, directions: jax.Array, *, train: bool = False
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        return self.coarse(points, directions), self.fine(points, directions)

    def coarse(self, points: jax.Array, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.coarse_field(points, directions)

    def fine(self, points: jax.Array, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.fine_field(points, directions)

    def density(self, points: jax.Array) -> jax.Array:
        """sigma [n] at points [n, 3], of the fine field."""
        sigma, _ = self.fine_field.trunk(points)
        return sigma


class Field(nn.Module):
    """Figure 7. Raises ValueError for points and directions of other shapes."""

    config: Config

    @nn.compact
    def __call__(self, points: jax.Array, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        c = self.config
        if points.shape != directions.shape:
            raise ValueError(
                f"points {points.shape} and directions {directions.shape}, "
                "but a NeRF takes as many of both, [n, 3]"
            )
        sigma, x = self.trunk(points)
        feature = Dense(c.width, name="feature")(x)
        seen = jnp.concatenate([feature, encode(directions, c.direction_octaves)], axis=1)
        x = nn.relu(Dense(c.colour_width, name="view")(seen))
        return sigma, nn.sigmoid(_float32(Dense(3, name="colour")(x)))

    @nn.compact
    def trunk(self, points: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What no direction changes: sigma [n], and the activation of the last layer [n, d]."""
        c = self.config
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points have shape {points.shape}, but a NeRF takes [n, 3]")
        encoded = encode(2 * _float32(points) - 1, c.position_octaves)  # in [−1, 1], as section 5.1
        x = encoded
        for i in range(1, c.depth + 1):
            x = nn.relu(Dense(c.width, name=f"fc{i}")(x))
            if i == c.skip:
                x = jnp.concatenate([encoded, x], axis=1)
        sigma = Dense(1, bias_init=nn.initializers.constant(0.2), name="density")(x)
        return nn.relu(_float32(sigma)[:, 0]), x


class Dense(nn.Module):
    """x W + b, in the dtype of W: positions stay float32 where the network need not."""

    width: int
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.glorot_uniform()
        kernel = self.param("kernel", init, (x.shape[-1], self.width))
        bias = self.param("bias", self.bias_init, (self.width,))
        return x.astype(kernel.dtype) @ kernel + jnp.broadcast_to(bias, (len(x), self.width))


def encode(x: jax.Array, octaves: int) -> jax.Array:
    """γ: [n, k] → [n, k · (1 + 2 · octaves)]: x, then sin(2⁰πx), cos(2⁰πx), sin(2¹πx), … (eq. 4),
    in float32 at least."""
    x, numbers = _float32(x), []
    for octave in range(octaves):
        half_turns = 2**octave * x  # exact, as is what whole turns leave of them
        angle = pi * (half_turns - 2 * jnp.round(half_turns / 2))
        numbers += [jnp.sin(angle), jnp.cos(angle)]
    return jnp.concatenate([x, *numbers], axis=1)


def _float32(x: jax.Array) -> jax.Array:
    """At least: frequencies, densities and colours have no digits to spare."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


VARIANTS = {  # figure 7; the count of the authors' program, 595,844 for each network
    "nerf": Variant(Config(), params=1_191_688),
}

TINY = Config(2, 1, width=16, depth=3, skip=2, colour_width=16)


def example(config: Config) -> dict[str, Input]:
    return {"points": Input(("b", 3)), "directions": Input(("b", 3), low=-1, high=1)}
