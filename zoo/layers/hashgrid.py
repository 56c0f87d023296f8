"""Multiresolution hash encoding (Müller et al., 2022, arXiv:2201.05989, section 3).

Space is covered by grids from coarse to fine whose corners hold features; a point gets from each
grid what its cell's corners have, interpolated. A grid with too many corners keeps them in a hash
table, where they may collide: the finer levels and the network behind them tell them apart.

    points [n, d] → on each of L levels corners [k, n] → rows of one table [Σ rows, F] → [n, L·F]

n points · d 2 or 3 dimensions · L levels · k = 2ᵈ corners of a cell · F features of a corner · T
rows of a level at most.

The gradient of the table is a sum over all that looked a row up, often thousands on the coarse
levels: it is computed in float32 by one of `SUMS`.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial, reduce
from importlib.metadata import version
from itertools import product
from operator import add, mul, xor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PRIMES = (1, 2654435761, 805459861)  # π of eq. 4


class Level(NamedTuple):
    """A grid of `cells` (N_l) along each axis; its corners are `rows` of a table, from `first`."""

    cells: int
    rows: int
    first: int


def levels(
    count: int, coarsest: int, finest: int, rows: int, dimensions: int = 3
) -> tuple[Level, ...]:
    """Grids of ⌊N_min · bˡ⌋ cells an axis, b = (N_max / N_min)^(1 / (L − 1)) (equations 2 and 3).

    count, coarsest, finest, rows: L, N_min, N_max and T of the paper. The last level has exactly
    N_max cells; each has min((N_l + 1)ᵈ, T) rows.
    Raises ValueError for numbers that give no such grids.
    """
    if dimensions not in (2, 3):
        raise ValueError(f"a hash grid has 2 or 3 dimensions, not {dimensions}")
    if min(count, coarsest, rows) < 1:
        raise ValueError(f"count {count}, coarsest {coarsest} and rows {rows} must be positive")
    if finest < coarsest or (count == 1 and finest != coarsest):
        raise ValueError(
            f"{count} levels do not lead from {coarsest} cells to {finest}: "
            "finest must be larger than coarsest, and equal to it for a single level"
        )
    if finest > 2**23:
        raise ValueError(f"finest is {finest}, but float32 tells at most {2**23} cells apart")
    found, first = [], 0
    for level in range(count):
        cells = _cells(level, count, coarsest, finest)
        found.append(Level(cells, min((cells + 1) ** dimensions, rows), first))
        first += found[-1].rows
    if first >= 2**31:
        raise ValueError(f"{count} levels have {first} rows, more than int32 counts: lower rows")
    return tuple(found)


def _cells(level: int, count: int, coarsest: int, finest: int) -> int:
    """N_l in whole numbers: in floats N_min · b^(L − 1) may fall just below N_max."""
    steps = max(count - 1, 1)
    near = round(coarsest * (finest / coarsest) ** (level / steps))  # the floor, or 1 above it
    reached = near**steps <= coarsest ** (steps - level) * finest**level
    return near if reached else near - 1


class HashGrid(nn.Module):
    """Figure 3 up to the network: points [n, d] → [n, L·F], float32 (`encode`).

    levels: of the function `levels`; features: F.
    The table is a float32 parameter, drawn from U(−1e-4, 1e-4); it is to stay so in a bfloat16
    step, since bfloat16 would swallow most of its updates.
    """

    levels: Sequence[Level]
    features: int = 2

    @nn.compact
    def __call__(self, points: jax.Array) -> jax.Array:
        shape = (sum(level.rows for level in self.levels), self.features)
        return encode(self.param("table", _table_init, shape), points, self.levels)


def _table_init(rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.uniform(rng, shape, jnp.float32, minval=-1e-4, maxval=1e-4)


def encode(
    table: jax.Array, points: jax.Array, levels: Sequence[Level], *, sums: str | None = None
) -> jax.Array:
    """Table [Σ rows, F] and points [n, d] in the unit cube → [n, L·F], levels in their order, in
    float32 at least.

    A point outside is taken for the nearest one inside, with gradient 0 along the axes on which it
    is outside. Differentiable with respect to points in both modes, to the table in reverse mode.
    sums: a key of `SUMS`, None for the backend's own (`default_sums`).
    Raises ValueError for a table or levels of other sizes, and for other sums.
    """
    _check(table, points, levels, sums)
    # Level by level, corner by corner: XLA then computes, looks up and adds in one loop that stores
    # neither rows nor weights; on a CPU that is several times as fast as one array of all corners.
    tables = jnp.split(table, [level.first for level in levels[1:]])
    features = [
        interpolate(own, *corners(points, level), sums)
        for own, level in zip(tables, levels, strict=True)
    ]
    return jnp.concatenate(features, axis=1)


def _check(table: jax.Array, points: jax.Array, levels: Sequence[Level], sums: str | None) -> None:
    if sums is not None and sums not in SUMS:
        raise ValueError(f"sums is {sums!r}, but must be None or one of {', '.join(SUMS)}")
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"points have shape {points.shape}, but a hash grid takes [n, 2 or 3]")
    d, most = points.shape[1], max(level.rows for level in levels)
    if any(level.rows != min((level.cells + 1) ** d, most) for level in levels):
        raise ValueError(f"points have {d} dimensions, but the levels are made for others")
    rows = sum(level.rows for level in levels)
    if table.ndim != 2 or len(table) != rows:
        raise ValueError(f"the table has shape {table.shape}, but the levels take [{rows}, F]")


def corners(points: jax.Array, level: Level) -> tuple[jax.Array, jax.Array]:
    """The corners around points [n, d]: their rows among the level's, uint32 [k, n], and their
    d-linear weights, which sum to 1, in float32 at least [k, n].

    The first axis is the fastest: corner 1 is a cell further along it than corner 0. A point on the
    far border is in the last cell.
    """
    d, side = points.shape[1], level.cells + 1
    exact = points.astype(jnp.promote_types(points.dtype, jnp.float32))
    # Not jnp.clip, which halves the gradient on the border itself.
    scaled = jnp.where(exact < 0, 0, jnp.where(exact > 1, 1, exact)) * level.cells
    low = jnp.clip(jnp.floor(scaled), 0, level.cells - 1)
    dense = level.rows == side**d
    factors, join = ([side**axis for axis in range(d)], add) if dense else (PRIMES, xor)
    keys, weights = [], []  # what the near and the far end of each axis contribute
    for axis in range(d):
        near, part = low[:, axis].astype(jnp.uint32), (scaled - low)[:, axis]
        # Eq. 4; the products wrap at 32 bits.
        keys.append([end * np.uint32(factors[axis]) for end in (near, near + 1)])
        weights.append([1 - part, part])
    index = [reduce(join, ends) % np.uint32(level.rows) for ends in product(*reversed(keys))]
    weight = [reduce(mul, ends) for ends in product(*reversed(weights))]
    return jnp.stack(index), jnp.stack(weight)


def interpolate(
    table: jax.Array, index: jax.Array, weight: jax.Array, sums: str | None = None
) -> jax.Array:
    """Σ_k weight · table[index]: table [R, F], index uint32 and weight [k, n] → [n, F].

    Computed in float32 at least, as is the gradient of the table: summed by `sums`.
    """
    exact = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    rows: Any = look_up(exact, index, sums)  # of custom_vjp, older versions of jax say no type
    return reduce(add, [w[:, None] * row for w, row in zip(weight, rows, strict=True)])


# Looking up and adding up are linear, and each is the other's transpose: so the gradient's gradient
# (a loss on normals) is again one of the two.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table: jax.Array, index: jax.Array, sums: str | None) -> list[jax.Array]:
    """table[index]: [R, F] at [k, n] → k times [n, F]."""
    return [table.at[row].get(mode="promise_in_bounds") for row in index]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def add_up(values: list[jax.Array], index: jax.Array, rows: int, sums: str | None) -> jax.Array:
    """Values, k times [n, F], added to the rows [k, n] of zeros [rows, F]."""
    return SUMS[sums or default_sums()](jnp.concatenate(values), index.reshape(-1), rows)


look_up.defvjp(
    lambda table, index, sums: (look_up(table, index, sums), (table, index)),
    lambda sums, kept, values: (add_up(values, kept[1], len(kept[0]), sums), None),
)
add_up.defvjp(
    lambda values, index, rows, sums: (add_up(values, index, rows, sums), index),
    lambda rows, sums, index, table: (look_up(table, index, sums), None),
)


def scatter_add(values: jax.Array, index: jax.Array, rows: int) -> jax.Array:
    """Values [m, F] added to the rows [m] of zeros, in turn or, on a GPU, by atomic additions."""
    zeros = jnp.zeros((rows, values.shape[-1]), values.dtype)
    return zeros.at[index].add(values, mode="promise_in_bounds")


def sorted_sums(values: jax.Array, index: jax.Array, rows: int) -> jax.Array:
    """The same, never two at a time to one row, and so the same bits each time on every device.

    The values are sorted by row; each takes over the sum that ends so many places before it, of the
    same row, for 1, 2, 4, … places; the last of each row then has them all.
    """
    order = jnp.argsort(index)
    index, values = index[order], values[order]
    place = jnp.arange(len(index), dtype=index.dtype)

    def same(step: jax.Array) -> jax.Array:
        return (place >= step) & (index == jnp.roll(index, step))

    def double(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, total = state
        before = jnp.roll(total, step, axis=0)
        return 2 * step, total + jnp.where(same(step)[:, None], before, 0)

    start = jnp.ones((), index.dtype), values
    _, total = jax.lax.while_loop(lambda state: same(state[0]).any(), double, start)
    last = jnp.append(index[1:] != index[:-1], True)
    # The others go to rows of their own behind the table, which are dropped.
    unique = jnp.where(last, index, rows + place)
    zeros = jnp.zeros((rows, values.shape[-1]), values.dtype)
    return zeros.at[unique].set(total, mode="drop", unique_indices=True)


SUMS: dict[str, Callable[[jax.Array, jax.Array, int], jax.Array]] = {
    "scatter": scatter_add,
    "sort": sorted_sums,
}


def default_sums() -> str:
    """The key of `SUMS` for the default backend.

    Scatter-add: on a CPU it is the fastest (tests/benchmarks/hashgrid.py), on GPUs it is one atomic
    addition each. But jaxlib 0.10.2 to 0.11.0 compiles it for NVIDIA GPUs to a loop that tries
    again as long as others write to the row (github.com/jax-ml/jax/issues/38806), thousands of
    times on the coarse levels: there the sums are sorted.
    """
    loops = (0, 10, 2) <= _jaxlib() <= (0, 11, 0)
    return "sort" if loops and "cuda" in _platform() else "scatter"


def _platform() -> str:
    """Of the default backend: has "cuda" or "rocm" in it where `jax.default_backend()` is "gpu"."""
    return jax.devices()[0].client.platform_version


def _jaxlib() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version("jaxlib"))[:3])
