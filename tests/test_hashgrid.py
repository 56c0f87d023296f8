"""The hash encoding and the harmonics against loops written from the paper."""

import math
from contextlib import nullcontext
from decimal import Decimal, localcontext
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import sph_harm_y

from tests.benchmarks import hashgrid as benchmark
from zoo.layers import hashgrid
from zoo.layers.harmonics import spherical_harmonics
from zoo.layers.hashgrid import (
    SUMS,
    HashGrid,
    Level,
    add_up,
    corners,
    encode,
    interpolate,
    levels,
)

PAPER = levels(16, 16, 2048, 2**19)
# Dense and hashed levels, a row count that is no power of two, and coordinates up to 2^20.
GRIDS = {
    "3-D": (levels(4, 2, 33, 64), 3),
    "3-D, T = 50": (levels(3, 2, 2**20, 50), 3),
    "2-D": (levels(4, 2, 100, 81, dimensions=2), 2),
}
GRID = pytest.mark.parametrize("grid, d", GRIDS.values(), ids=GRIDS)
METHOD = pytest.mark.parametrize("sums", SUMS)
CASES = [("3-D", "scatter"), ("3-D", "sort"), ("2-D", "scatter")]
CASE = pytest.mark.parametrize("grid, d, sums", [(*GRIDS[name], sums) for name, sums in CASES])

jitted = jax.jit(encode, static_argnames=("levels", "sums"))


@partial(jax.jit, static_argnums=1)
def jitted_corners(points: Any, grid: tuple[Level, ...]) -> Any:
    """Of all levels, rows and weights [L, k, n]; rows of the whole table."""
    index, weight = zip(*(corners(points, level) for level in grid), strict=True)
    first = np.asarray([level.first for level in grid], np.uint32)[:, None, None]
    return jnp.stack(index) + first, jnp.stack(weight)


def points_of(d: int, count: int = 60) -> np.ndarray:
    """Random points and all that have only 0, 1/2 and 1: with so few bits that the products with
    the cells are exact, and every weight is what it would be in real numbers."""
    drawn = np.random.default_rng(d).integers(0, 2**6, (count, d), endpoint=True) / 2**6
    border = list(product([0, 0.5, 1], repeat=d))
    return np.concatenate([drawn, border]).astype(np.float32)


def table_of(grid: tuple[Level, ...], features: int = 2) -> np.ndarray:
    shape = (sum(level.rows for level in grid), features)
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def weights_by_loop(x: np.ndarray, grid: tuple[Level, ...]) -> np.ndarray:
    """How much of each row of the table goes into each level, [L, Σ rows], for one point [d]:
    section 3 of the paper, steps 1 to 4 of figure 3, in Python's own numbers."""
    d, most = len(x), max(level.rows for level in grid)
    found = np.zeros((len(grid), sum(level.rows for level in grid)))
    for number, level in enumerate(grid):
        scaled = [float(value) * level.cells for value in x]
        sides = [(math.floor(value), math.ceil(value)) for value in scaled]
        for ends in product([0, 1], repeat=d):
            corner = [side[end] for side, end in zip(sides, ends, strict=True)]
            weight = 1.0
            for value, end in zip(scaled, ends, strict=True):
                fraction = value - math.floor(value)
                weight *= fraction if end else 1 - fraction
            if (level.cells + 1) ** d <= most:  # one row for every corner
                row = sum(at * (level.cells + 1) ** axis for axis, at in enumerate(corner))
            else:
                primes, row = (1, 2654435761, 805459861), 0
                for at, prime in zip(corner, primes[:d], strict=True):
                    row ^= at * prime % 2**32
                row %= most
            found[number, level.first + row] += weight
    return found


def encoded_by_loop(table: np.ndarray, points: np.ndarray, grid: tuple[Level, ...]) -> np.ndarray:
    """[n, L, F], in float64."""
    rows = np.stack([weights_by_loop(x, grid) for x in points])
    return np.einsum("nlr,rf->nlf", rows, table.astype(np.float64))


# Levels.


def test_the_papers_levels_have_the_papers_parameters():
    """L = 16, F = 2, T = 2^19, N_min = 16, N_max = 2048 (table 1): b = 1.3819."""
    cells = [16, 22, 30, 42, 58, 80, 111, 153, 212, 294, 406, 561, 776, 1072, 1482, 2048]
    assert [level.cells for level in PAPER] == cells
    dense = [17**3, 23**3, 31**3, 43**3, 59**3]  # 81³ is more than 2^19
    assert [level.rows for level in PAPER] == dense + [2**19] * 11
    assert [level.first for level in PAPER] == np.cumsum([0, *dense, *[2**19] * 10]).tolist()
    grid = HashGrid(PAPER, 2)
    [table] = jax.tree.leaves(jax.eval_shape(grid.init, jax.random.key(0), jnp.zeros((1, 3))))
    assert table.size == 2 * sum(min((n + 1) ** 3, 2**19) for n in cells) == 12_197_850


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 23])
@pytest.mark.parametrize("coarsest, finest", [(1, 2), (16, 256), (16, 2048), (3, 1000), (2, 2**23)])
def test_the_resolutions_are_those_of_the_equations(count, coarsest, finest):
    finest = coarsest if count == 1 else finest
    found = [level.cells for level in levels(count, coarsest, finest, 1)]
    assert (found[0], found[-1]) == (coarsest, finest)
    with localcontext(prec=60):
        growth = (Decimal(finest).ln() - Decimal(coarsest).ln()) / max(count - 1, 1)
        exact = [coarsest * (growth * level).exp() for level in range(count)]
        assert found == [math.floor(n + Decimal("1e-40")) for n in exact]


def test_a_level_is_dense_up_to_as_many_corners_as_rows():
    assert [level.rows for level in levels(2, 2, 3, 27)] == [27, 27]
    assert [level.rows for level in levels(2, 2, 3, 26)] == [26, 26]
    assert [level.rows for level in levels(2, 2, 3, 64, dimensions=3)] == [27, 64]
    assert [level.rows for level in levels(2, 2, 3, 64, dimensions=2)] == [9, 16]
    index, _ = corners(jnp.zeros((1, 3)), *levels(1, 2, 2, 27))
    assert index[:, 0].tolist() == [0, 1, 3, 4, 9, 10, 12, 13]


@pytest.mark.parametrize(
    "numbers, message",
    [
        ((16, 16, 2048, 2**19, 4), "2 or 3 dimensions, not 4"),
        ((0, 16, 16, 2**19), "count 0, .* must be positive"),
        ((2, 0, 16, 2**19), "coarsest 0 and"),
        ((2, 1, 16, 0), "rows 0 must be positive"),
        ((2, 16, 8, 2**19), "2 levels do not lead from 16 cells to 8"),
        ((1, 16, 32, 2**19), "1 levels do not lead from 16 cells to 32"),
        ((2, 16, 2**24, 2**19), "finest is 16777216, but float32"),
        ((16, 1024, 2048, 2**28), "rows, more than int32 counts: lower rows"),
    ],
)
def test_numbers_that_give_no_grid_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        levels(*numbers)


# Corners.


@GRID
def test_rows_and_weights_match_a_python_loop(grid, d):
    points = points_of(d)
    index, weight = map(np.asarray, jitted_corners(points, grid))
    assert index.dtype == np.uint32 and weight.dtype == np.float32
    assert index.shape == weight.shape == (len(grid), 2**d, len(points))
    for number, x in enumerate(points):
        expected = weights_by_loop(x, grid)
        for level in range(len(grid)):
            found = np.zeros(expected.shape[1])
            np.add.at(found, index[level, :, number], weight[level, :, number])
            np.testing.assert_allclose(found, expected[level], rtol=0, atol=1e-6)


@GRID
def test_the_grids_of_these_tests_have_collisions(grid, d):
    """Otherwise they could not show what becomes of them."""
    index = np.asarray(jitted_corners(points_of(d), grid)[0])
    assert any(len(set(cell)) < 2**d for level in index for cell in level.T)


def test_a_corner_is_hashed_as_in_equation_4():
    """In the finest level of the paper's grid; 2^32 is passed by any product with π₂."""
    x = np.asarray([[1000, 2000, 3]]) / 2048
    index, _ = corners(jnp.asarray(x, jnp.float32), PAPER[-1])
    at = [(a, b, c) for c in (3, 4) for b in (2000, 2001) for a in (1000, 1001)]
    expected = [(a ^ b * 2654435761 % 2**32 ^ c * 805459861 % 2**32) % 2**19 for a, b, c in at]
    assert index[:, 0].tolist() == expected


def test_products_wrap_at_32_bits():
    """With T that divides no power of two the bits above the 32nd, and a sign, would show."""
    index, _ = corners(jnp.ones((1, 3)), Level(2**20, 999_983, 0))
    wrapped = [2**20 * prime % 2**32 for prime in (1, 2654435761, 805459861)]
    expected = (wrapped[0] ^ wrapped[1] ^ wrapped[2]) % 999_983
    assert index[-1, 0] == expected
    assert expected != (2**20 ^ 2**20 * 2654435761 ^ 2**20 * 805459861) % 999_983


def test_weights_sum_to_one_at_any_point():
    points = np.random.default_rng(0).uniform(size=(500, 3)).astype(np.float32)
    _, weight = jitted_corners(points, PAPER)
    np.testing.assert_allclose(weight.sum(axis=1), 1, atol=1e-6)
    # A fraction of a cell is what float32 leaves of x · N.
    assert weight.min() > -2048 * 2**-24


# The encoding.


@GRID
@pytest.mark.parametrize("features", [2, 3])
def test_the_encoding_matches_a_python_loop(grid, d, features):
    table, points = table_of(grid, features), points_of(d)
    found = jitted(table, points, grid)
    assert found.dtype == jnp.float32
    expected = encoded_by_loop(table, points, grid).reshape(len(points), -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_module_draws_its_table_as_the_paper_does():
    grid = levels(3, 4, 16, 2**10)
    module = HashGrid(grid, 4)
    points = points_of(3)
    table = module.init(jax.random.key(0), points)["params"]["table"]
    assert table.shape == (sum(level.rows for level in grid), 4) and table.dtype == jnp.float32
    assert 0.99e-4 < table.max() <= 1e-4 and -1e-4 <= table.min() < -0.99e-4
    assert abs(table.mean()) < 3e-6
    found = module.apply({"params": {"table": table}}, points)
    np.testing.assert_array_equal(found, jitted(table, points, grid))


@METHOD
def test_a_batch_of_batches_is_encoded_as_one(sums):
    grid, d = GRIDS["2-D"]
    table, points = table_of(grid), points_of(d, 60)[:60].reshape(3, 20, d)

    def loss(table: Any, points: Any) -> jax.Array:
        return (encode(table, points, grid, sums=sums) ** 2).sum()

    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(table, points)
    whole = jax.jit(jax.grad(loss))(table, points.reshape(60, d))
    np.testing.assert_allclose(each.sum(axis=0), whole, atol=1e-5)


@pytest.mark.parametrize(
    "table, points, message",
    [
        ((100, 2), (5, 2), "the table has shape .100, 2., but the levels take .235, F."),
        ((235,), (5, 2), "the table has shape .235,., but"),
        ((235, 2), (5, 3), "points have 3 dimensions, but the levels are made for others"),
        ((235, 2), (5, 4), r"points have shape \(5, 4\), but a hash grid takes \[n, 2 or 3\]"),
        ((235, 2), (2, 5, 2), r"points have shape \(2, 5, 2\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(table, points, message):
    grid, _ = GRIDS["2-D"]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(encode, levels=grid), jnp.zeros(table), jnp.zeros(points))


def test_sums_that_are_not_there_are_refused_before_the_backward_pass():
    grid, _ = GRIDS["2-D"]
    table, points = jnp.zeros((235, 2)), jnp.zeros((5, 2))
    for sums in ("nope", ""):
        with pytest.raises(ValueError, match=f"sums is '{sums}', .* scatter, sort"):
            jax.eval_shape(partial(encode, levels=grid, sums=sums), table, points)


def test_levels_of_three_dimensions_refuse_points_of_two():
    table = jax.ShapeDtypeStruct((sum(level.rows for level in PAPER), 2), jnp.float32)
    with pytest.raises(ValueError, match="points have 2 dimensions, but"):
        jax.eval_shape(partial(encode, levels=PAPER), table, jnp.zeros((5, 2)))


# Gradients.


@METHOD
@GRID
def test_the_tables_gradient_matches_the_naive_scatter(grid, d, sums):
    """Row by row, for an upstream gradient that differs everywhere; collisions add up."""
    table, points = table_of(grid), points_of(d)
    upstream = np.random.default_rng(1).normal(size=(len(points), 2 * len(grid)))
    upstream = upstream.astype(np.float32)
    _, pull = jax.vjp(lambda table: jitted(table, points, grid, sums=sums), table)
    [found] = pull(upstream)
    assert found.dtype == jnp.float32
    rows = np.stack([weights_by_loop(x, grid) for x in points])
    expected = np.einsum("nlr,nlf->rf", rows, upstream.reshape(len(points), len(grid), 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@CASE
def test_gradients_match_finite_differences(grid, d, sums):
    """Of a function that is linear neither in the table nor in the points, in float64; the points
    stay away from the faces of cells, where the encoding has a kink."""
    rng = np.random.default_rng(2)
    coarse = tuple(level for level in grid if level.cells <= 100)
    with jax.enable_x64(True):
        table = jnp.asarray(rng.normal(size=table_of(coarse).shape))
        points = jnp.asarray(rng.uniform(0.01, 0.99, (20, d)))
        ways = jnp.asarray(rng.normal(size=table.shape)), jnp.asarray(rng.normal(size=(20, d)))

        @jax.jit
        @partial(jax.value_and_grad, argnums=(0, 1))
        def f(table: Any, points: Any) -> jax.Array:
            return jnp.sin(encode(table, points, coarse, sums=sums)).sum()

        _, gradients = f(table, points)
        for number, step in ((0, 1e-6), (1, 1e-9)):
            move = [jnp.zeros_like(way) for way in ways]
            move[number] = step * ways[number]
            ahead, _ = f(table + move[0], points + move[1])
            behind, _ = f(table - move[0], points - move[1])
            slope = (gradients[number] * ways[number]).sum()
            np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-5)


def test_both_modes_give_the_same_slope_along_a_point():
    grid, d = GRIDS["3-D"]
    table, points = table_of(grid), points_of(d)
    way = np.random.default_rng(3).normal(size=points.shape).astype(np.float32)

    def f(points: Any) -> jax.Array:
        return jnp.sin(encode(table, points, grid)).sum()

    _, forward = jax.jit(lambda points, way: jax.jvp(f, (points,), (way,)))(points, way)
    backward = (jax.jit(jax.grad(f))(points) * way).sum()
    np.testing.assert_allclose(forward, backward, rtol=1e-5)


@METHOD
def test_a_loss_on_slopes_reaches_the_table(sums):
    """Normals are slopes: the gradient of the sum of all squared slopes of f, by finite
    differences."""
    rng = np.random.default_rng(4)
    grid = levels(2, 2, 9, 64)
    with jax.enable_x64(True):
        table, way = (jnp.asarray(rng.normal(size=table_of(grid).shape)) for _ in range(2))
        points = jnp.asarray(rng.uniform(0.01, 0.99, (20, 3)))

        def f(table: Any, points: Any) -> jax.Array:
            return jnp.sin(encode(table, points, grid, sums=sums)).sum()

        @jax.jit
        @jax.value_and_grad
        def loss(table: Any) -> jax.Array:
            slopes = jax.grad(f, argnums=(0, 1))(table, points)
            return sum((slope**2).sum() for slope in slopes)

        _, gradient = loss(table)
        near = (loss(table + 1e-6 * way)[0] - loss(table - 1e-6 * way)[0]) / 2e-6
        np.testing.assert_allclose(near, (gradient * way).sum(), rtol=1e-6)


def test_the_border_has_its_cells_slope_and_beyond_it_there_is_none():
    """One level of one cell, 0 at x = 0 and 1 at x = 1."""
    grid = levels(1, 1, 1, 4, dimensions=2)
    table = jnp.asarray([[0.0], [1.0], [0.0], [1.0]])
    x = jnp.asarray([-1e8, -0.5, 0, 0.5, 1, 1.5, 1e8, -jnp.inf, jnp.inf])
    points = jnp.stack([x, jnp.full_like(x, 0.5)], axis=1)
    found, slope = jax.jit(jax.value_and_grad(lambda p: encode(table, p, grid).sum()))(points)
    np.testing.assert_array_equal(slope[:, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(slope[:, 1], 0)
    assert found == 4.5


@CASE
def test_far_away_everything_is_finite(grid, d, sums):
    far = [0, -0.0, 1, 1 - 2**-24, 1e-38, -1e8, 1e8, 3e38, np.inf, -np.inf]
    points = np.asarray(list(product(far, repeat=2)), np.float32)
    points = np.concatenate([points, points], axis=1)[:, :d]

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def f(table: Any, points: Any) -> jax.Array:
        return (encode(table, points, grid, sums=sums) ** 2).sum()

    found, expected = f(table_of(grid), points), f(table_of(grid), np.clip(points, 0, 1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1][0], expected[1][0], rtol=1e-5, atol=1e-4)


@METHOD
def test_a_point_that_is_no_number_spoils_no_other(sums):
    """Nor any row of the gradient but those that it looks up itself."""
    grid, d = GRIDS["3-D"]
    table, points = table_of(grid), points_of(d)
    spoiled = points.copy()
    spoiled[5] = np.nan
    upstream = np.ones((len(points), 2 * len(grid)), np.float32)
    upstream[5] = 0  # 0 · NaN is NaN: to those rows it still matters

    def both(points: Any) -> list[np.ndarray]:
        found, pull = jax.vjp(lambda table: jitted(table, points, grid, sums=sums), table)
        return [np.array(x) for x in (found, *pull(upstream))]

    (found, slope), (expected, wanted) = both(spoiled), both(points)
    np.testing.assert_array_equal(np.delete(found, 5, 0), np.delete(expected, 5, 0))
    assert np.isnan(found[5]).all()
    lost = np.isnan(slope).any(axis=1)
    assert 0 < lost.sum() <= 2**d * len(grid) < len(table)
    np.testing.assert_allclose(slope[~lost], wanted[~lost], atol=1e-5)


@METHOD
def test_gradients_add_up_in_float32_whatever_flows_back(sums):
    """3,008 ones, a number of bfloat16's: sums in it would stop at 256."""
    grid = levels(1, 1, 1, 8)
    points = jnp.zeros((3008, 3), jnp.bfloat16)

    def f(table: Any) -> jax.Array:
        return encode(table, points, grid, sums=sums).astype(jnp.bfloat16)

    for dtype in (jnp.float32, jnp.bfloat16):
        table, upstream = jnp.zeros((8, 2), dtype), jnp.ones((3008, 2), jnp.bfloat16)
        found = jax.jit(lambda t, u: jax.vjp(f, t)[1](u)[0])(table, upstream)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.astype(jnp.float32), [[3008, 3008], *[[0, 0]] * 7])


def test_a_point_in_bfloat16_is_worked_out_in_float32():
    grid, d = GRIDS["3-D"]
    points = jnp.asarray(points_of(d), jnp.bfloat16)
    found = jitted(table_of(grid), points, grid)
    np.testing.assert_array_equal(found, jitted(table_of(grid), points.astype(jnp.float32), grid))


@METHOD
def test_rows_that_nobody_looked_up_have_no_gradient(sums):
    """Also the last one, beside which the sorted sums put what they drop."""
    table = jnp.zeros((9, 2))
    index = jnp.asarray([[7, 0, 0], [3, 3, 7]], jnp.uint32)
    weight = jnp.asarray([[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]])
    slope = jax.grad(lambda table: interpolate(table, index, weight, sums).sum())
    found = jax.jit(slope)(table)
    np.testing.assert_array_equal(found[:, 0], [8, 0, 0, 6, 0, 0, 0, 7, 0])


@METHOD
@pytest.mark.parametrize("count", [1, 7, 8])
def test_all_may_look_up_one_row(sums, count):
    values = [jnp.arange(count, dtype=jnp.float32)[:, None]]
    found = add_up(values, jnp.zeros((1, count), jnp.uint32), 2, sums)
    np.testing.assert_array_equal(found, [[sum(range(count))], [0]])


@pytest.mark.parametrize(
    "platform, jaxlib, name",
    [
        ("cpu", "0.10.2", "scatter"),
        ("cuda 12090", "0.10.1", "scatter"),
        ("cuda 12090", "0.10.2", "sort"),
        ("cuda 12090", "0.11.0", "sort"),
        ("cuda 12090", "0.11.1", "scatter"),
        ("cuda 12090", "0.12.0.1", "scatter"),
        ("rocm 60300", "0.11.0", "scatter"),
        ("tpu", "0.11.0", "scatter"),
    ],
)
def test_only_a_gpu_whose_scatter_loops_sorts(platform, jaxlib, name, monkeypatch):
    monkeypatch.setattr(hashgrid, "_platform", lambda: f"PJRT C API\n{platform}")
    monkeypatch.setattr(hashgrid, "version", lambda _: jaxlib)
    assert hashgrid.default_sums() == name


def test_the_default_is_that_of_this_machine():
    """Whose platform can be asked for, and is NVIDIA's only where JAX finds a GPU."""
    assert "cuda" not in hashgrid._platform() or jax.default_backend() == "gpu"
    assert hashgrid.default_sums() in SUMS


# The benchmark.


def test_the_benchmark_tells_numbers_apart_that_have_the_same_moments():
    """Rows exchanged and signs turned: what a wrong hash or corner would do."""
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for other, agree in ((x + 1e-7, True), (x[::-1], False), (-x, False), (2 * x, False)):
        runs = {
            "ours": [{"gradient, sort": benchmark.fingerprint(x)}],
            "theirs": [{"gradient": benchmark.fingerprint(other)}],
        }
        with nullcontext() if agree else pytest.raises(AssertionError, match="sort differs"):
            benchmark.compare(runs)


# Harmonics.


def real_harmonics(directions: np.ndarray) -> np.ndarray:
    """[n, 3] → [n, 16] from SciPy's complex harmonics, which carry the factor (−1)^m."""
    x, y, z = directions.T.astype(np.float64)
    theta, phi = np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x)
    columns = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(order), theta, phi)
            part = value.imag if order < 0 else value.real
            columns.append(part * (math.sqrt(2) * (-1) ** order if order else 1))
    return np.stack(columns, axis=1)


def test_the_harmonics_are_scipys():
    drawn = np.random.default_rng(0).normal(size=(200, 3))
    drawn = np.concatenate([drawn, np.eye(3), -np.eye(3)])
    directions = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    found = spherical_harmonics(jnp.asarray(directions))
    assert found.shape == (206, 16) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, real_harmonics(directions), atol=1e-6)


def test_the_harmonics_are_orthonormal():
    """By a quadrature that is exact for polynomials of the products' degree, 6."""
    z, weight = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * (2 * math.pi / 16)
    r = np.sqrt(1 - z**2)[:, None]
    columns = [r * np.cos(phi), r * np.sin(phi), np.broadcast_to(z[:, None], (8, 16))]
    found = np.asarray(spherical_harmonics(jnp.asarray(np.stack(columns, axis=-1), jnp.float32)))
    assert found.shape == (8, 16, 16)
    products = np.einsum("zpa,zpb,z->ab", found, found, weight * 2 * math.pi / 16)
    np.testing.assert_allclose(products, np.eye(16), atol=1e-6)


def test_the_harmonics_stay_finite_and_keep_their_dtype():
    far = [[1e8, -1e8, 1e8], [1e12, -1e12, 1e12]]
    directions = jnp.asarray([[0, 0, 0], [0, 0, 1], *far], jnp.float32)
    found = jax.value_and_grad(lambda x: spherical_harmonics(x).sum())(directions)
    assert all(np.isfinite(x).all() for x in found)
    half = jnp.asarray([[0.6, 0.48, 0.64]], jnp.bfloat16)
    found = spherical_harmonics(half)
    assert found.dtype == jnp.bfloat16
    expected = spherical_harmonics(half.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found.astype(jnp.float32), expected.astype(jnp.float32))
