"""NeRF against NumPy, written from the paper's figure 7, with random weights."""

import math
import re
from dataclasses import replace
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.checkpoints import random_variables
from zoo import tree
from zoo.models.nerf import TINY, Config, NeRF, encode
from zoo.weights.convert import WeightsError

MODEL = NeRF(replace(TINY, position_octaves=5, depth=4))
BOTH = ("coarse_field", "fine_field")


def drawn(model: NeRF) -> Any:
    """Kernels of N(0, 2 / fan-in), biases of N(0, 0.1): numbers of about 1 leave every layer. The
    seed is one whose densities the ReLU cuts in some places of each field, and not in all."""
    return tree.map_named(
        lambda path, x: x * (math.sqrt(2 / len(x)) if path.endswith("kernel") else 0.1),
        random_variables(model, seed=2),
    )


@pytest.fixture(scope="module")
def variables() -> Any:
    return drawn(MODEL)


def places(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Points of the unit cube, its corners among them, and unit directions."""
    rng = np.random.default_rng(3)
    points, towards = rng.uniform(size=(count, 3)), rng.normal(size=(count, 3))
    points[:2] = [[0, 0, 0], [1, 1, 1]]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    return points.astype(np.float32), towards.astype(np.float32)


POINTS, DIRECTIONS = places()


@jax.jit
def ask(variables: Any, points: Any, directions: Any) -> Any:
    return MODEL.apply(variables, points, directions)


# The paper's functions, one place at a time. `seen` gets what every layer gives, by its name.


def gamma(numbers: Any, octaves: int) -> np.ndarray:
    """Equation 4 of each number, the numbers themselves in front."""
    found = [float(p) for p in numbers]
    for octave in range(octaves):
        found += [math.sin(2**octave * math.pi * float(p)) for p in numbers]
        found += [math.cos(2**octave * math.pi * float(p)) for p in numbers]
    return np.asarray(found)


def radiance(params: Any, point: Any, direction: Any, config: Config) -> Any:
    """Figure 7: (sigma, rgb), and what every layer gives."""
    seen: dict[str, np.ndarray] = {}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        seen[name] = x @ params[name]["kernel"].astype(np.float64) + params[name]["bias"]
        return seen[name]

    encoded = gamma([2 * float(p) - 1 for p in point], config.position_octaves)
    x = np.maximum(layer("fc1", encoded), 0)
    for i in range(2, config.depth + 1):
        beside = np.concatenate([encoded, x]) if i == config.skip + 1 else x
        x = np.maximum(layer(f"fc{i}", beside), 0)
    sigma = max(layer("density", x)[0], 0)
    feature = layer("feature", x)
    beside = np.concatenate([feature, gamma(direction, config.direction_octaves)])
    x = np.maximum(layer("view", beside), 0)
    return sigma, 1 / (1 + np.exp(-layer("colour", x))), seen


def assert_near(found: Any, expected: Any, what: str = "") -> None:
    """Within 1e-5 of the largest expected value."""
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest, err_msg=what)


# Fields.


def test_both_fields_match_numpy_in_every_layer(variables):
    @jax.jit
    def captured(variables: Any) -> Any:
        _, found = MODEL.apply(
            variables, POINTS, DIRECTIONS, capture_intermediates=True, mutable=["intermediates"]
        )
        return tree.flatten(found["intermediates"])

    found, layers = ask(variables, POINTS, DIRECTIONS), captured(variables)
    for field, (sigma, rgb) in zip(BOTH, found, strict=True):
        params = variables["params"][field]
        expected = [
            radiance(params, *place, MODEL.config) for place in zip(POINTS, DIRECTIONS, strict=True)
        ]
        sigmas, colours, seen = zip(*expected, strict=True)
        assert 5 < np.count_nonzero(sigmas) < len(POINTS)  # the ReLU cuts some
        assert_near(sigma, sigmas, f"{field}: sigma")
        assert_near(rgb, np.stack(colours), f"{field}: rgb")
        assert seen[0].keys() == {
            "fc1",
            "fc2",
            "fc3",
            "fc4",
            "density",
            "feature",
            "view",
            "colour",
        }
        for name in seen[0]:
            ours = layers[f"{field}/{name}/__call__/0"]
            assert_near(ours, np.stack([row[name] for row in seen]), f"{field}/{name}")


def test_methods_ask_one_field_and_the_density_is_the_fine_ones(variables):
    found = ask(variables, POINTS, DIRECTIONS)
    for method, expected in zip(("coarse", "fine"), found, strict=True):
        one = MODEL.apply(variables, POINTS, DIRECTIONS, method=method)
        for x, y in zip(one, expected, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    density = MODEL.apply(variables, POINTS, method="density")
    np.testing.assert_allclose(density, found[1][0], atol=1e-5)
    assert np.abs(density - found[0][0]).max() > 0.1


def test_colours_see_the_direction_and_densities_do_not(variables):
    for (sigma, rgb), (again, other) in zip(
        ask(variables, POINTS, DIRECTIONS), ask(variables, POINTS, -DIRECTIONS), strict=True
    ):
        np.testing.assert_array_equal(sigma, again)
        assert np.abs(rgb - other).max(axis=1).min() > 1e-4


def test_the_highest_octave_is_exact_to_a_few_roundings():
    """2⁹ π x in float32 would be wrong by 1e-4 where x is 1."""
    x = np.random.default_rng(0).uniform(-1, 1, (300, 3)).astype(np.float32)
    found = jax.jit(encode, static_argnums=1)(x, 10)
    assert found.shape == (300, 63) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.stack([gamma(row, 10) for row in x]), atol=1e-6)


def test_outputs_and_gradients_are_finite_far_outside(variables):
    corners = list(product([-1e8, 1e8], repeat=3))
    far = np.asarray([*corners, [-3, 0.5, 4], [0, 0, 0]], np.float32)
    towards = np.asarray([*[[0, 0, 0]] * 8, [1, 0, 0], [1e4, 0, 1e8]], np.float32)

    def loss(variables: Any, points: Any) -> Any:
        found = ask(variables, points, towards)
        return sum(x.sum() for x in jax.tree.leaves(found)), found

    grads, found = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, far)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((grads, found)))
    largest = {path: np.abs(x).max() for path, x in tree.flatten(grads[0]["params"]).items()}
    assert max(largest[f"{field}/fc1/kernel"] for field in BOTH) > 1e6  # nothing is cut off


def test_the_layers_compute_as_their_kernels_are_and_the_sines_in_float32(variables):
    """Positions are float32 in a bfloat16 step, or the highest octave would be noise."""
    half = tree.cast(variables, jnp.bfloat16)
    lowered = ask.lower(half, POINTS, DIRECTIONS).as_text()
    products = re.findall(r"stablehlo\.dot_general.* : \((.*)\) ->", lowered)
    assert len(products) == 2 * 8 and all("f32" not in operands for operands in products)
    found, expected = (ask(v, POINTS, DIRECTIONS) for v in (half, variables))
    for ours, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == jnp.float32
        assert 0 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.03


def test_a_new_field_has_density_to_learn_from():
    """Where a ReLU is 0 in all places nothing is learnt; of this seed, the fine field's would be
    in all but one of 40, if the density's bias began at 0."""
    fresh = zoo.init(MODEL, jax.random.key(12))
    unbiased = tree.map_named(lambda path, x: 0 * x if path.endswith("bias") else x, fresh)
    (_, (sigma, _)), (_, (without, _)) = (ask(v, POINTS, DIRECTIONS) for v in (fresh, unbiased))
    assert np.count_nonzero(without) <= 1 and np.count_nonzero(sigma) > 10


# Counts.


def test_the_parameters_are_those_of_figure_7_and_the_authors_program():
    """γ has 3 · (1 + 2 L) numbers: 63 and 27."""
    points, towards, d = 3 * (1 + 2 * 10), 3 * (1 + 2 * 4), 256
    trunk = [(points, d), *[(d, d)] * 4, (points + d, d), *[(d, d)] * 2]
    ends = [(d, 1), (d, d), (d + towards, d // 2), (d // 2, 3)]
    one = sum(inputs * outputs + outputs for inputs, outputs in [*trunk, *ends])
    assert one == 595_844
    assert zoo.registry.entry("nerf").params == 2 * one
    model = zoo.create("nerf")
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))["params"]
    for field in BOTH:
        kernels = [shapes[field][f"fc{i}"]["kernel"].shape for i in range(1, 9)]
        assert kernels == trunk  # the points come again into the sixth, beside the fifth's 256


# What is refused.


@pytest.mark.parametrize(
    "points, directions, message",
    [
        ((5, 2), (5, 2), r"points have shape \(5, 2\), but a NeRF takes \[n, 3\]"),
        ((3,), (3,), r"points have shape \(3,\), but"),
        ((5, 3), (1, 3), r"points \(5, 3\) and directions \(1, 3\), but a NeRF takes as many"),
    ],
)
def test_other_shapes_are_refused(points, directions, message):
    shapes = [jax.ShapeDtypeStruct(shape, "f4") for shape in (points, directions)]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(MODEL.init, jax.random.key(0), *shapes)


def test_a_skip_behind_the_last_layer_is_refused():
    with pytest.raises(ValueError, match="skip 8 must be below depth 8"):
        zoo.create("nerf", skip=8)


def test_a_format_of_others_is_answered_with_our_own(variables, tmp_path):
    with pytest.raises(WeightsError, match="nerf has no format 'hf'; it has flax"):
        zoo.save(MODEL, variables, tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()
