"""Instant Neural Graphics Primitives (Müller et al., 2022, arXiv:2201.05989).

Tables that are looked up, not computed, hold a scene; what collides in them, small networks tell
apart.

    points [n, 3] → hash grid [n, L·F] → density network [n, 16] → density [n]
    directions [n, 3] → harmonics [n, 16], beside these 16 → colour network → colour [n, 3]

    points [n, 2] → hash grid [n, L·F] → network → colour [n, 3]                    (a picture)

n points, in the unit cube or square · L levels · F features of each · T rows of a level at most.
Differs from the paper: the logarithm of the density is lowered by `emptiness`, so that volume that
no ray has seen begins nearly empty, and bounded by `DENSEST`, so that density and gradient stay
finite; `proposals` are not of this paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers.harmonics import spherical_harmonics
from zoo.layers.hashgrid import HashGrid, Level, levels
from zoo.spec import Count, Input, Variant

DENSEST = 15.0  # e^15 = 3e6 to a unit of length: opaque within any step


@dataclass(frozen=True)
class Config:
    """Table 1, and the networks of sections 4 and 5.4.

    proposals: how many proposal networks (Barron et al., 2021, arXiv:2111.12077, section 3) say
    where the field is worth asking.
    """

    levels: int = 16  # L
    rows: int = 2**19  # T
    features: int = 2  # F
    coarsest: int = 16  # N_min
    finest: int = 2048  # N_max
    width: int = 64  # of every hidden layer
    density_depth: Count = 1  # hidden layers
    colour_depth: Count = 2  # also of a picture's network
    geometry: int = 16  # what the density network hands on; the first is the density's logarithm
    emptiness: float = 1.5
    proposals: Count = 0
    dimensions: Literal[2, 3] = 3  # 2: a picture (section 5.1), without density and directions

    @property
    def grid(self) -> tuple[Level, ...]:
        return levels(self.levels, self.coarsest, self.finest, self.rows, self.dimensions)

    @property
    def proposal_grids(self) -> tuple[tuple[Level, ...], ...]:
        """Small ones, each twice as fine as the one before: nerfstudio's nerfacto has these two."""
        return tuple(
            levels(5, 16, 128 * 2**i, min(2**17, self.rows)) for i in range(self.proposals)
        )

    def check(self) -> None:
        """Raises ValueError for numbers that give no grid, and for a picture with proposals."""
        _ = self.grid, self.proposal_grids
        if self.dimensions == 2 and self.proposals:
            raise ValueError(f"a picture is not sampled along rays: proposals is {self.proposals}")


class NGP(nn.Module):
    """A radiance field (section 5.4); with `dimensions=2` a picture (section 5.1).

    A field takes points [n, 3] in the unit cube and directions [n, 3] of length 1, and returns
    (sigma [n] ≥ 0, rgb [n, 3] in [0, 1]). A picture takes points [n, 2] in the unit square alone,
    and returns rgb [n, 3] without bounds. Both are float32 at least, whatever the networks are.
    A point outside is taken for the nearest one inside. Raises ValueError for other shapes.
    """

    config: Config

    def setup(self) -> None:  # what is not called has no parameters
        c = self.config
        encoded = partial(Encoded, c.grid, c.features, c.width)
        self.picture = encoded(c.colour_depth, 3)
        self.geometry = encoded(c.density_depth, c.geometry)
        self.colour = Network(c.width, c.colour_depth, 3)
        # 16 wide, 1 deep: as small as nerfacto's.
        self.proposals = [Encoded(grid, 2, 16, 1, 1) for grid in c.proposal_grids]

    def __call__(
        self, points: jax.Array, directions: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        self._check(points, directions)
        if directions is None:
            return _float32(self.picture(points))
        if self.is_initializing():  # nothing else in here asks them
            for proposal in self.proposals:
                proposal(points)
        geometry = self.geometry(points)
        seen = jnp.concatenate([geometry, spherical_harmonics(directions)], axis=1)
        return self._density(geometry), nn.sigmoid(_float32(self.colour(seen)))

    def density(self, points: jax.Array) -> jax.Array:
        """sigma [n] at points [n, 3], as `__call__` returns it."""
        return self._density(self.geometry(points))

    def proposal(self, points: jax.Array, index: int) -> jax.Array:
        """sigma [n] at points [n, 3], as the index-th proposal network guesses it. Raises
        ValueError where there is none."""
        if not 0 <= index < len(self.proposals):
            raise ValueError(
                f"no proposal {index}: this NGP has {len(self.proposals)}; "
                f"create it with proposals={index + 1}"
            )
        return self._density(self.proposals[index](points))

    def _density(self, geometry: jax.Array) -> jax.Array:
        exponent = _float32(geometry[:, 0]) - self.config.emptiness
        return jnp.exp(jnp.minimum(exponent, DENSEST))

    def _check(self, points: jax.Array, directions: jax.Array | None) -> None:
        n, d = points.shape[:1], self.config.dimensions
        wanted = {2: ((*n, 2), None), 3: ((*n, 3), (*n, 3))}[d]
        given = points.shape, None if directions is None else directions.shape
        if given != wanted:
            raise ValueError(
                f"points {given[0]} and directions {given[1]}, but this NGP takes {TAKES[d]}"
            )


class Encoded(nn.Module):
    """Figure 3: points [n, d] → hash grid → network → [n, outputs]."""

    levels: Sequence[Level]
    features: int
    width: int
    depth: int
    outputs: int

    @nn.compact
    def __call__(self, points: jax.Array) -> jax.Array:
        y = HashGrid(self.levels, self.features, name="grid")(points)
        return Network(self.width, self.depth, self.outputs, name="network")(y)


class Network(nn.Module):
    """`depth` hidden layers with ReLU and a linear one (section 4), [n, …] → [n, outputs]."""

    width: int
    depth: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = nn.relu(Linear(self.width, name=f"fc{i + 1}")(x))
        return Linear(self.outputs, name="out")(x)


class Linear(nn.Module):
    """x W, in the dtype of W: positions and tables stay float32 where networks need not. No bias:
    the paper speaks of weights alone."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.glorot_uniform()
        kernel = self.param("kernel", init, (x.shape[-1], self.width))
        return x.astype(kernel.dtype) @ kernel


def _float32(x: jax.Array) -> jax.Array:
    """Densities and colours are float32 at least: exponents have no digits to spare."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


TAKES = {
    2: "points [n, 2] and no directions: it is a picture",
    3: "points [n, 3] and directions [n, 3]",
}

VARIANTS = {  # counted by formula: Σ_l F · min((N_l + 1)^d, T), and the networks' matrices
    "ngp": Variant(Config(), params=12_207_258),
    "ngp_360": Variant(Config(proposals=2), params=13_843_894),
    # A photograph is no gigapixel: T and N_max from the lower ends of table 1.
    "ngp_picture": Variant(Config(rows=2**14, finest=512, dimensions=2), params=291_646),
}

TINY = Config(levels=3, rows=64, coarsest=2, finest=8, width=16, geometry=8)

KEEP_FLOAT32 = (r"(.*/)?grid/table",)


def example(config: Config) -> dict[str, Input]:
    points = {"points": Input(("b", config.dimensions))}
    directions = {"directions": Input(("b", 3), low=-1, high=1)}
    return points if config.dimensions == 2 else points | directions
