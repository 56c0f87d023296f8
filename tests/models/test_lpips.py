"""LPIPS against the authors' package, what a fault would look like, what files say, and what a
distance promises."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import zoo
from tests.checkpoints import assert_same, edit_tensors, random_variables, saved
from tests.golden import fill, replay
from tests.golden.replay import HERE, Case, check_case, plant
from zoo import registry, tree
from zoo.models import lpips
from zoo.weights import convert, formats
from zoo.weights import lpips as table
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

CASES = {name: Case(name, lpips, "lpips") for name in ("lpips_alex", "lpips_vgg")}
MANIFESTS = json.loads((HERE / "lpips_manifests.json").read_text())["lpips"]


@pytest.mark.parametrize("name", CASES)
def test_stages_distances_and_gradients_agree_with_the_reference(name):
    check_case(CASES[name])


def test_the_gradient_by_the_first_picture_is_among_them():
    for case in CASES.values():
        grad = case.recorded["grad/image"]
        assert grad.shape == case.image.shape and np.abs(grad).max() > 0


# A fault is one passage of a source changed. With it the claim above must not hold, and the part
# that is wrong first tells where it is: the case, the fault, that part; "" for a checkpoint that
# does not load.
FIRST = "hidden/stage1"
FAULTS = {
    "colours not scaled": (
        "lpips_alex",
        (lpips, "((_float32(image) - mean) / std)", "_float32(image)"),
        FIRST,
    ),
    "colours scaled as if in [−1, 1]": (
        "lpips_alex",
        (lpips, "((_float32(image) - mean) / std)", "((_float32(image) + 1 - 2 * mean) / 2 / std)"),
        FIRST,
    ),
    "red and blue swapped": (
        "lpips_alex",
        (lpips, "MEAN = (0.485, 0.456, 0.406)", "MEAN = (0.406, 0.456, 0.485)"),
        FIRST,
    ),
    "features tapped before the ReLU": (
        "lpips_vgg",
        (
            lpips,
            "            x = nn.relu(x)\n        return x",
            "            y, x = x, nn.relu(x)\n        return y",
        ),
        FIRST,
    ),
    "features tapped behind the pooling": (
        "lpips_alex",
        (
            lpips,
            "            x = nn.relu(x)\n        return x",
            "            x = nn.relu(x)\n"
            "        return nn.max_pool(x, (2, 2), (2, 2)) if i == 0 else x",
        ),
        FIRST,
    ),
    "AlexNet's first convolution padded by 5": (
        "lpips_alex",
        (lpips, "(2, 2, 1, 1, 1), 4", "(5, 2, 1, 1, 1), 4"),
        FIRST,
    ),
    "pooling over 2 × 2 in AlexNet": (
        "lpips_alex",
        (lpips, "4, 3, (1, 2)", "4, 2, (1, 2)"),
        "hidden/stage2",
    ),
    "poolings padded": (
        "lpips_alex",
        (lpips, 'padding="VALID"', 'padding="SAME"'),
        "hidden/stage2",
    ),
    "a pooling in front of AlexNet's third stage lost": (
        "lpips_alex",
        (lpips, "4, 3, (1, 2)", "4, 3, (1,)"),
        "",  # torchvision counts it
    ),
    "lengths not normalised": (
        "lpips_alex",
        (lpips, "(unit(x) - unit(y)) ** 2", "(_float32(x) - _float32(y)) ** 2"),
        "hidden/distance1",
    ),
    "lengths over height and width": (
        "lpips_alex",
        (lpips, "(x**2).sum(axis=-1, keepdims=True)", "(x**2).sum(axis=(1, 2), keepdims=True)"),
        "hidden/distance1",
    ),
    "differences not squared": (
        "lpips_alex",
        (lpips, "(unit(x) - unit(y)) ** 2", "abs(unit(x) - unit(y))"),
        "hidden/distance1",
    ),
    "weights inside the square": (
        "lpips_alex",
        (lpips, "_float32(weight), precision", "_float32(weight) ** 2, precision"),
        "hidden/distance1",
    ),
    "a sum over height and width": (
        "lpips_alex",
        (lpips, "squares.mean((1, 2))", "squares.sum((1, 2))"),
        "hidden/distance1",
    ),
    "the last stage left out": (
        "lpips_alex",
        (lpips, "sum(found[1:], start", "sum(found[1:-1], start"),
        "distances",
    ),
    "a mean over stages": (
        "lpips_alex",
        (lpips, "return sum(found[1:], start=found[0])", "return sum(found) / len(found)"),
        "distances",
    ),
    "kernels transposed": (
        "lpips_alex",
        (convert, 'CONV = layout("o i h w", "h', 'CONV = layout("o i w h", "h'),
        FIRST,
    ),
    "no gradient through the lengths": (
        "lpips_alex",
        (lpips, "return x / (jnp.sqrt(", "return x / jax.lax.stop_gradient(jnp.sqrt("),
        "image",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees(fault, monkeypatch):
    name, change, where = FAULTS[fault]
    plant(monkeypatch, change, lpips, table)
    replay.assert_seen(CASES[name], where)


# Files.


def shapes_in_files(config) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that the package's file of a model of this config has."""
    model = lpips.LPIPS(config)
    shapes = tree.flatten(jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model)))
    found = {}
    for row in table.rows(config):
        found |= zip(convert.names(row.foreign), convert.foreign_shapes(row, shapes), strict=True)
    return found | {name: x.shape for name, x in table.scaling([]).items()}


@pytest.mark.parametrize("name", lpips.VARIANTS)
def test_the_table_has_the_names_and_shapes_of_the_package(name):
    published = {name: tuple(shape) for name, shape, _ in MANIFESTS["tensors"][name]}
    config = lpips.VARIANTS[name].config
    assert shapes_in_files(config) == published
    specs = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in published.items()}
    assert table.config(specs, {}) == config


def test_the_counts_are_those_of_the_package():
    assert {n: registry.entry(n).params for n in lpips.VARIANTS} == MANIFESTS["params"]


def test_an_export_is_the_file_of_the_reference(tmp_path):
    case = CASES["lpips_vgg"]
    model = case.model()
    zoo.save(model, case.variables(model), tmp_path, format="lpips")
    tensors = formats.read(tmp_path)
    recorded = {name: (tuple(shape), dtype) for name, shape, dtype in case.meta["tensors"]}
    assert {n: (spec.shape, str(spec.dtype)) for n, spec in tensors.specs.items()} == recorded
    for name, tensor in tensors.items():
        if not name.startswith("scaling_layer."):
            np.testing.assert_array_equal(tensor, fill.fill(name, tensor.shape))
    loaded, _ = zoo.load(tmp_path)
    assert loaded.config == model.config


def test_the_scaling_layer_is_written_with_the_packages_numbers():
    written = {name: x.ravel() for name, x in table.scaling([]).items()}
    shift = np.array([-0.030, -0.088, -0.188], np.float32)
    np.testing.assert_allclose(written["scaling_layer.shift"], shift, rtol=1e-6)
    scale = np.array([0.458, 0.448, 0.450], np.float32)
    np.testing.assert_array_equal(written["scaling_layer.scale"], scale)


@pytest.mark.parametrize("kept", ["lin{}.model.1.weight", "lins.{}.model.1.weight", "both"])
def test_weights_load_by_either_of_their_names(kept, tmp_path):
    """torch writes both; safetensors, which shares no memory, the one or the other."""
    model, variables = saved(lpips, tmp_path, "lpips")
    file = dict(formats.read(tmp_path))
    for i in range(5):
        first, second = f"lin{i}.model.1.weight", f"lins.{i}.model.1.weight"
        file[second] = file[first]
        if kept != "both":
            del file[first if kept.format(i) == second else second]
    save_file(file, tmp_path / "lpips.safetensors")
    loaded_model, loaded = zoo.load(tmp_path / "lpips.safetensors")
    assert loaded_model.config.widths == model.config.widths
    assert_same(loaded, variables)


EDITS = {
    "weights that differ": (
        {"lins.0.model.1.weight": np.ones((1, 8, 1, 1), np.float32)},
        "lin0.model.1.weight, lins.0.model.1.weight should be one tensor, but differ",
    ),
    "weights missing": (
        {"lin4.model.1.weight": None},
        "- params/distance5/weight: no tensor lin4.model.1.weight",
    ),
    "another tensor": (
        {"net.slice5.12.weight": np.ones(3, np.float32)},
        "+ net.slice5.12.weight: no place in the model",
    ),
    "stages without biases": (
        {f"net.slice{i}.{j}.bias": None for i, j in ((2, 3), (3, 6))},
        "widths for 3 stages, but alex has 5",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_another_file_is_refused_by_name(edit, tmp_path):
    changes, words = EDITS[edit]
    saved(lpips, tmp_path, "lpips")
    edit_tensors(tmp_path, changes)
    with pytest.raises(WeightsError, match=re.escape(words)):
        zoo.load(tmp_path)


# What a distance promises.


@pytest.fixture(scope="module", params=["alex", "vgg"])
def measure_of(request):
    """(a small model, its variables with weights that are not negative)."""
    model = lpips.LPIPS(lpips.Config(request.param, (6, 8, 10, 8, 6), image_size=35))
    variables = random_variables(model)
    return model, jax.tree.map(lambda x: abs(x) if x.ndim == 1 else x / 8, variables)


def pictures(shape=(3, 35, 37, 3), seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def test_equal_pictures_have_distance_0_and_a_finite_gradient(measure_of):
    model, variables = measure_of
    x = pictures()
    apply = jax.jit(jax.value_and_grad(lambda x, y: model.apply(variables, x, y).sum()))
    distance, slope = apply(x, x)
    assert distance == 0 and not np.asarray(slope).any()
    distance, slope = apply(x, x + 1e-4 * pictures(seed=1))
    assert 0 < distance < 1e-2 and np.isfinite(slope).all()


def test_a_distance_is_the_same_both_ways_and_grows_with_noise(measure_of):
    model, variables = measure_of
    x, noise = pictures(), pictures(seed=1) - 0.5
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(
        apply(variables, x, x + noise), apply(variables, x + noise, x), rtol=1e-5
    )
    grown = [apply(variables, x, x + scale * noise) for scale in (0.1, 0.3, 0.9)]
    assert (np.diff(grown, axis=0) > 0).all() and (grown[0] > 0).all()


def test_where_no_feature_is_seen_the_length_has_a_finite_gradient():
    """√ alone has none at 0; only the ReLU behind, which passes nothing there, would hide it."""
    x = jnp.asarray([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    np.testing.assert_allclose(lpips.unit(x), [[0, 0, 0], [0.6, 0, 0.8]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: lpips.unit(x)[:, 0].sum())(x)).all()


def test_with_weights_of_1_a_stage_measures_twice_the_cosine_distance():
    rng = np.random.default_rng(0)
    x, y = (rng.random((2, 3, 4, 5), np.float32) for _ in range(2))
    model = lpips.Distance()
    variables = model.init(jax.random.key(0), x, y)
    expected = np.zeros(2)
    for b, h, w in np.ndindex(2, 3, 4):
        u, v = x[b, h, w], y[b, h, w]
        expected[b] += 2 * (1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)) / 12
    np.testing.assert_allclose(model.apply(variables, x, y), expected, rtol=1e-5)


def test_distances_of_bfloat16_are_summed_in_float32(measure_of):
    model, variables = measure_of
    keep = [f"params/{path}" for path in lpips.KEEP_FLOAT32]
    half = tree.cast(variables, jnp.bfloat16, keep=keep)
    x, y = pictures(), pictures(seed=1)
    found = jax.jit(model.apply)(half, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, jax.jit(model.apply)(variables, x, y), rtol=0.03)


def test_training_keeps_weights_from_falling_below_0():
    paths = [path for path in tree.flatten(random_variables(lpips.LPIPS(lpips.TINY))["params"])]
    bounded = [path for path in paths if any(re.fullmatch(row, path) for row in lpips.CLAMP)]
    assert bounded == [f"distance{i}/weight" for i in range(1, 6)]
    assert all(low == 0 for low, _ in lpips.CLAMP.values())


@pytest.mark.parametrize("net", lpips.NETS)
def test_the_smallest_picture_leaves_something_to_every_stage(net):
    least = lpips.NETS[net].least
    model = lpips.LPIPS(lpips.Config(net, (4,) * 5))
    for side, finite in ((least, True), (least - 1, False)):
        image = jnp.zeros((1, side, side + 9, 3))
        if not finite:
            with pytest.raises(ValueError, match=f"pictures {side}×{side + 9}, but {net} needs"):
                jax.eval_shape(model.init, jax.random.key(0), image, image)
            continue
        variables = model.init(jax.random.key(0), image, image)
        _, seen = model.apply(variables, image, image, capture_intermediates=True)
        last = seen["intermediates"]["stage5"]["__call__"][0]
        assert last.shape[1] == 1 and last.shape[2] > 0


SHAPE = (2, 40, 40, 3)
WRONG = {
    "two shapes": (np.zeros(SHAPE), np.zeros((1, 40, 40, 3)), "LPIPS compares those of one shape"),
    "grey": (np.zeros((2, 40, 40, 1)), np.zeros((2, 40, 40, 1)), "repeat its channel of grey"),
    "one picture": (np.zeros(SHAPE[1:]), np.zeros(SHAPE[1:]), r"\[b, H, W, 3\]"),
    "bytes": (np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8), "uint8.*divide them by 255"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_pictures_are_refused_with_the_way_out(name):
    image, other, words = WRONG[name]
    image, other = (x.astype(np.float32) if x.dtype == float else x for x in (image, other))
    model = lpips.LPIPS(lpips.TINY)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), image, other)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"widths": (4, 4, 4)}, "widths for 3 stages, but alex has 5"),
        ({"image_size": 30}, "image_size is 30, but alex needs 31"),
        ({"net": "squeeze"}, "lpips_alex has no net='squeeze'; it is one of 'alex', 'vgg'"),
    ],
)
def test_another_config_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        zoo.create("lpips_alex", **changes)
