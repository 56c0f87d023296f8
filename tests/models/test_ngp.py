"""NGP against NumPy, written from the paper, with random weights in every table and network."""

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.checkpoints import assert_same, random_variables
from tests.test_hashgrid import encoded_by_loop, points_of, real_harmonics
from zoo import tree
from zoo.models.ngp import DENSEST, KEEP_FLOAT32, NGP, TINY, Config
from zoo.weights.convert import WeightsError

FIELD = NGP(TINY)
PICTURE = NGP(replace(TINY, dimensions=2))


def drawn(model: NGP) -> Any:
    """Tables of N(0, 1) and kernels of N(0, 1 / fan-in): numbers of about 1 leave every layer."""
    return tree.map_named(
        lambda path, x: x / math.sqrt(len(x)) if path.endswith("kernel") else x,
        random_variables(model),
    )


def directions_of(count: int) -> np.ndarray:
    towards = np.random.default_rng(5).normal(size=(count, 3))
    return (towards / np.linalg.norm(towards, axis=1, keepdims=True)).astype(np.float32)


POINTS = points_of(3)
DIRECTIONS = directions_of(len(POINTS))


@pytest.fixture(scope="module")
def variables() -> Any:
    return drawn(FIELD)


@jax.jit
def ask(variables: Any, points: Any, directions: Any) -> Any:
    return FIELD.apply(variables, points, directions)


# The paper's functions, in float64. `seen` gets what every layer gives, by its path.


def network(params: Any, x: np.ndarray, path: str, seen: dict[str, np.ndarray]) -> np.ndarray:
    """Section 4: hidden layers with ReLU, and a linear one."""
    for name in sorted(params):
        x = np.stack([row @ params[name]["kernel"].astype(np.float64) for row in x])
        seen[f"{path}/{name}"] = x
        x = x if name == "out" else np.where(x > 0, x, 0)
    return x


def encoded(params: Any, points: Any, grid: Any, path: str, seen: dict[str, Any]) -> np.ndarray:
    """Figure 3."""
    y = encoded_by_loop(params["grid"]["table"], points, grid).reshape(len(points), -1)
    seen[f"{path}/grid"] = y
    return network(params["network"], y, f"{path}/network", seen)


def radiance(params: Any, points: np.ndarray, directions: np.ndarray, config: Config) -> Any:
    """Section 5.4: (sigma, rgb), and what every layer gives."""
    seen: dict[str, np.ndarray] = {}
    geometry = encoded(params["geometry"], points, config.grid, "geometry", seen)
    beside = np.concatenate([geometry, real_harmonics(directions)], axis=1)
    colour = network(params["colour"], beside, "colour", seen)
    return (np.exp(geometry[:, 0] - config.emptiness), 1 / (1 + np.exp(-colour))), seen


def assert_near(found: Any, expected: np.ndarray, what: str = "") -> None:
    """Within 1e-5 of the largest expected value."""
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest, err_msg=what)


def hidden(model: NGP, variables: Any, *inputs: Any) -> dict[str, Any]:
    """What every layer gives, by its path."""

    @jax.jit
    def apply(variables: Any, *inputs: Any) -> Any:
        return model.apply(
            variables, *inputs, capture_intermediates=True, mutable=["intermediates"]
        )

    _, captured = apply(variables, *inputs)
    found = tree.flatten(captured["intermediates"])
    return {path.removesuffix("/__call__/0"): x for path, x in found.items()}


# The field.


def test_a_field_matches_numpy_in_every_layer(variables):
    (sigma, rgb), layers = radiance(variables["params"], POINTS, DIRECTIONS, TINY)
    found = ask(variables, POINTS, DIRECTIONS)
    assert [(x.shape, x.dtype) for x in found] == [(sigma.shape, "f4"), (rgb.shape, "f4")]
    assert_near(found[0], sigma, "sigma")
    assert_near(found[1], rgb, "rgb")
    ours = hidden(FIELD, variables, POINTS, DIRECTIONS)
    assert {"geometry/grid", "geometry/network/fc1", "colour/fc2", "colour/out"} <= layers.keys()
    assert layers.keys() <= ours.keys()
    for path, expected in layers.items():
        assert_near(ours[path], expected, path)


def test_the_density_is_the_fields_own_and_sees_no_direction(variables):
    sigma, rgb = ask(variables, POINTS, DIRECTIONS)
    again, other = ask(variables, POINTS, -DIRECTIONS)
    np.testing.assert_array_equal(sigma, again)
    assert np.abs(rgb - other).max(axis=1).min() > 1e-3
    density = jax.jit(partial(FIELD.apply, method="density"))
    alone = density(variables, POINTS)
    np.testing.assert_allclose(alone, sigma, rtol=1e-6)


def test_a_new_field_is_nearly_empty_everywhere():
    """The tables begin near 0, so that the density is e^−emptiness in every place."""
    fresh = zoo.init(FIELD, jax.random.key(0))
    sigma, rgb = ask(fresh, POINTS, DIRECTIONS)
    np.testing.assert_allclose(sigma, math.exp(-1.5), rtol=1e-3)
    assert rgb.std() > 0  # but the colours have seen the directions


def test_a_point_outside_is_taken_for_the_nearest_inside(variables):
    outside = np.where(POINTS == 0, -3, np.where(POINTS == 1, 1e8, POINTS)).astype(np.float32)
    assert (outside != POINTS).any(axis=1).sum() > 20
    for x, y in zip(
        ask(variables, outside, DIRECTIONS), ask(variables, POINTS, DIRECTIONS), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("scale", [1, 1e4, -1e4])
def test_outputs_and_gradients_are_finite_at_the_ends(variables, scale):
    """Logarithms of densities far above and below what float32 has an exponential of; points at the
    borders and far outside; directions of no length."""
    far = np.asarray([[0, 1, 1e8], [-1e8, 0.5, 3e38], [0.3, 0.4, 0.5]], np.float32)
    towards = np.asarray([[0, 0, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    scaled = jax.tree.map(lambda x: np.float32(scale) * x, variables)

    def loss(variables: Any, points: Any) -> Any:
        sigma, rgb = ask(variables, points, towards)
        return sigma.sum() + rgb.sum(), (sigma, rgb)

    grads, (sigma, rgb) = jax.grad(loss, argnums=(0, 1), has_aux=True)(scaled, far)
    leaves = [*jax.tree.leaves(grads), sigma, rgb]
    assert all(np.isfinite(x).all() for x in leaves)
    assert (sigma >= 0).all() and (sigma <= math.exp(DENSEST) * 1.001).all()
    assert (rgb >= 0).all() and (rgb <= 1).all()
    assert abs(scale) == 1 or sigma.max() > 1e6, "the bound is not reached"


def test_the_networks_compute_as_their_kernels_are_and_the_rest_in_float32(variables):
    """Positions and tables are float32 in a bfloat16 step, or a scene could have 256 places."""
    half = tree.cast(variables, jnp.bfloat16, keep=[f"params/{path}" for path in KEEP_FLOAT32])
    kinds = {path: str(x.dtype) for path, x in tree.flatten(half["params"]).items()}
    assert {path for path, kind in kinds.items() if kind == "float32"} == {"geometry/grid/table"}
    lowered = ask.lower(half, POINTS, DIRECTIONS).as_text()
    products = re.findall(r"stablehlo\.dot_general.* : \((.*)\) ->", lowered)
    assert len(products) == 5 and all("f32" not in operands for operands in products)
    for found, expected in zip(
        ask(half, POINTS, DIRECTIONS), ask(variables, POINTS, DIRECTIONS), strict=True
    ):
        assert found.dtype == jnp.float32
        distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 0 < distance < 0.02


# Counts.


def formula(count: int, coarsest: int, finest: int, rows: int, d: int) -> int:
    """Σ_l F · min((N_l + 1)^d, T) for F = 2, N_l = ⌊N_min · b^l⌋."""
    growth = (finest / coarsest) ** (1 / (count - 1))
    cells = [math.floor(coarsest * growth**level + 1e-6) for level in range(count)]
    assert cells[-1] == finest
    return sum(2 * min((n + 1) ** d, rows) for n in cells)


NETWORKS = {  # matrices of the variant's networks, in the order of their layers
    "ngp": 32 * 64 + 64 * 16 + (16 + 16) * 64 + 64 * 64 + 64 * 3,
    "ngp_picture": 32 * 64 + 64 * 64 + 64 * 3,
    "proposal": 10 * 16 + 16 * 1,
}


def test_the_parameters_are_those_of_the_formula():
    """Per level F · min((N_l + 1)³, T); no biases; 16 harmonics beside 16 numbers of geometry."""
    field = formula(16, 16, 2048, 2**19, 3) + NETWORKS["ngp"]
    proposals = sum(formula(5, 16, n, 2**17, 3) + NETWORKS["proposal"] for n in (128, 256))
    picture = formula(16, 16, 512, 2**14, 2) + NETWORKS["ngp_picture"]
    expected = {"ngp": field, "ngp_360": field + proposals, "ngp_picture": picture}
    found = {name: zoo.registry.entry(name).params for name in expected}
    assert found == expected
    assert found["ngp"] == 12_207_258


def test_the_networks_are_the_papers():
    model = zoo.create("ngp")
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))["params"]
    assert {path: x.shape for path, x in tree.flatten(shapes).items()} == {
        "geometry/grid/table": (12_197_850 // 2, 2),
        "geometry/network/fc1/kernel": (32, 64),
        "geometry/network/out/kernel": (64, 16),
        "colour/fc1/kernel": (32, 64),
        "colour/fc2/kernel": (64, 64),
        "colour/out/kernel": (64, 3),
    }


# Proposals.


def test_each_proposal_is_a_small_field_of_density_of_its_own():
    model = NGP(replace(TINY, proposals=2))
    variables, points = drawn(model), points_of(3)[:4]

    def guess(variables: Any, index: int) -> Any:
        found = model.apply(variables, points, index, method="proposal")
        return found.sum(), found

    @jax.jit
    def guesses(variables: Any) -> Any:
        return [jax.grad(guess, has_aux=True)(variables, index) for index in (0, 1)]

    for index, (grads, found) in enumerate(guesses(variables)):
        grid = model.config.proposal_grids[index]
        sizes = (len(grid), grid[0].cells, grid[-1].cells, grid[-1].rows)
        assert sizes == (5, 16, (128, 256)[index], min(2**17, model.config.rows))
        params = variables["params"][f"proposals_{index}"]
        expected = np.exp(encoded(params, points, grid, "", {})[:, 0] - TINY.emptiness)
        assert_near(found, expected)
        moved = {path.split("/")[0] for path, x in tree.flatten(grads["params"]).items() if x.any()}
        assert moved == {f"proposals_{index}"}


def test_a_proposal_that_is_not_there_is_refused(variables):
    with pytest.raises(ValueError, match="no proposal 1: this NGP has 0; create it with propos"):
        FIELD.apply(variables, POINTS, 1, method="proposal")


# Pictures.


def test_a_picture_matches_numpy_in_every_layer():
    variables, points = drawn(PICTURE), points_of(2)
    assert variables["params"].keys() == {"picture"}
    layers: dict[str, np.ndarray] = {}
    rgb = encoded(variables["params"]["picture"], points, PICTURE.config.grid, "picture", layers)
    ours = hidden(PICTURE, variables, points)
    for path, expected in layers.items():
        assert_near(ours[path], expected, path)
    assert ours["__call__/0"].dtype == jnp.float32
    assert_near(ours["__call__/0"], rgb)
    assert rgb.min() < 0  # linear to the end


# What is refused.


@pytest.mark.parametrize(
    "model, points, directions, message",
    [
        (FIELD, (5, 2), (5, 3), r"points \(5, 2\) and directions \(5, 3\), .* points \[n, 3\]"),
        (FIELD, (5, 3), (4, 3), r"points \(5, 3\) and directions \(4, 3\), but this NGP takes"),
        (FIELD, (5, 3), None, r"directions None, but this NGP takes points \[n, 3\] and dir"),
        (FIELD, (3,), (3,), r"points \(3,\) and directions \(3,\), but"),
        (PICTURE, (5, 2), (5, 3), r"directions \(5, 3\), but .* no directions: it is a picture"),
        (PICTURE, (5, 3), None, r"points \(5, 3\) and directions None, but .* points \[n, 2\]"),
    ],
)
def test_other_shapes_are_refused_with_both_and_what_is_taken(model, points, directions, message):
    shapes = [None if s is None else jax.ShapeDtypeStruct(s, "f4") for s in (points, directions)]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *shapes)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ngp", {"finest": 8}, "16 levels do not lead from 16 cells to 8"),
        ("ngp", {"dimensions": 4}, "ngp has no dimensions=4; it is one of 2, 3"),
        ("ngp", {"levels": 0}, "levels=0; it takes a positive whole number"),
        ("ngp_picture", {"proposals": 2}, "a picture is not sampled along rays: proposals is 2"),
        ("ngp", {"proposals": 20}, "finest is 16777216, but float32"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_runs(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create(name, **options)


# Files.


@pytest.mark.parametrize("changes", [{"dimensions": 2}, {"proposals": 1}])
def test_pictures_and_proposals_are_saved_and_loaded(changes, tmp_path):
    model = NGP(replace(TINY, **changes))
    variables = random_variables(model)
    zoo.save(model, variables, tmp_path)
    loaded_model, loaded = zoo.load(tmp_path)
    assert loaded_model == model
    assert_same(loaded, variables)


def test_a_format_of_others_is_answered_with_our_own(variables, tmp_path):
    with pytest.raises(WeightsError, match="ngp has no format 'hf'; it has flax"):
        zoo.save(FIELD, variables, tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()
