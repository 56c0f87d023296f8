"""What every page of the zoo promises; a new page is checked here without an edit.

Every variant has its published count. Every family, at its `TINY`, runs one compiled step, shared
by the claims on it: outputs in evaluation; outputs, moved statistics and gradients in training.
"""

import contextlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import zoo
import zoo.models
import zoo.weights
from zoo import registry, sharding, tree
from zoo.__main__ import main
from zoo.tree import stacked
from zoo.weights import store

BATCH = 4
GOLDEN = Path(__file__).parent / "golden"
VARIANTS = list(registry.entries())


@dataclass(frozen=True)
class Family:
    """A page at its `TINY`, with variables that let every path of the model matter."""

    page: ModuleType

    @property
    def config(self) -> Any:
        return self.page.TINY

    @cached_property
    def model(self) -> nn.Module:
        return self.with_config()

    def with_config(self, **changes: Any) -> nn.Module:
        return zoo.module_class(self.page)(replace(self.config, **changes))

    def has(self, *fields: str) -> bool:
        return all(hasattr(self.config, field) for field in fields)

    @property
    def scan_start(self) -> int:
        """The block from which a scan's stack begins."""
        return store.table(self.page.__name__.rpartition(".")[2]).SCAN_START

    @cached_property
    def variables(self) -> dict[str, Any]:
        """Zero-initialised scales and biases would hide what lies behind them: add noise to all."""
        rng = np.random.default_rng(0)
        return jax.tree.map(
            lambda x: x + 0.1 * (2 * rng.random(x.shape, dtype=np.float32) - 1),
            zoo.init(self.model, jax.random.key(0)),
        )

    @cached_property
    def inputs(self) -> dict[str, jax.Array]:
        return self.draw(seed=0)

    def draw(self, seed: int) -> dict[str, jax.Array]:
        """Uniform in the ranges that the page states."""
        rng, stated = np.random.default_rng(seed), self.page.example(self.config)
        return {
            key: jnp.asarray(rng.uniform(stated[key].low, stated[key].high, x.shape), x.dtype)
            for key, x in zoo.example(self.model, BATCH).items()
        }

    @cached_property
    def step(self) -> Callable[..., dict[str, Any]]:
        return jax.jit(step_of(self.model))

    @cached_property
    def results(self) -> dict[str, Any]:
        return self.step(self.variables, self.inputs)


def step_of(model: nn.Module) -> Callable[..., dict[str, Any]]:
    def loss(params: Any, others: Any, inputs: Any) -> tuple[jax.Array, Any]:
        outputs, moved = model.apply({**others, "params": params}, **inputs, **TRAIN)
        return sum(map(weighted, jax.tree.leaves(outputs)), jnp.float32(0)), (outputs, moved)

    def step(variables: Any, inputs: Any) -> dict[str, Any]:
        others = {name: values for name, values in variables.items() if name != "params"}
        grads, (outputs, moved) = jax.grad(loss, has_aux=True)(variables["params"], others, inputs)
        return {
            "evaluation": model.apply(variables, **inputs),
            "training": outputs,
            "moved": moved,
            "grads": grads,
        }

    return step


TRAIN: dict[str, Any] = {"train": True, "mutable": ["batch_stats"]}
UNMOVED = {  # the parameters that a step may leave as they are, and why
    r".*/attn/k/bias": "adds the same to every score of a query, which the softmax does not see",
    r"mask_token": "stands for the patches of a mask, and the step has none",
}


def weighted(x: jax.Array) -> jax.Array:
    """A sum with different weights: the plain sum of normalised outputs has no gradient."""
    weights = np.random.default_rng(1).normal(size=x.shape)
    return (x.astype(jnp.float32) * weights).sum()


@cache
def family_of(page: str) -> Family:
    return Family(import_module(f"zoo.models.{page}"))


@pytest.fixture(params=store.families())
def family(request: pytest.FixtureRequest) -> Family:
    return family_of(request.param)


def assert_close(ours: Any, theirs: Any, tolerance: float, floor: float = 0.0) -> None:
    """‖Δ‖₂ ≤ tolerance · ‖theirs‖₂ for every leaf; `floor` is a norm below which none is asked."""
    ours, theirs = tree.flatten(ours), tree.flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, x in ours.items():
        ours_at, theirs_at = np.asarray(x, np.float64), np.asarray(theirs[path], np.float64)
        assert ours_at.shape == theirs_at.shape, path
        norm = np.linalg.norm(theirs_at)
        difference = np.linalg.norm(ours_at - theirs_at)
        assert difference <= tolerance * max(norm, floor), f"{path}: {difference:.1e} of {norm:.1e}"


# Counts.


@pytest.mark.quick
@pytest.mark.parametrize("name", VARIANTS)
def test_the_count_is_the_published_one(name):
    # Traced once for all layers; that a stack has what a loop has is a claim below.
    scanned = {"layers": "scan"} if "layers" in registry.entry(name).fields else {}
    model = zoo.create(name, **scanned)
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))
    assert tree.count(shapes["params"]) == registry.entry(name).params


def test_the_counts_that_references_print_are_ours():
    recorded = json.loads((GOLDEN / "resnet_counts.json").read_text())
    counts = {**recorded["torchvision"]["params"], **recorded["timm"]["params"]}
    counts |= {
        name.replace("microsoft/resnet-", "resnet"): count
        for name, count in recorded["transformers"]["params"].items()
    }
    absent = {"resnet26", "resnetv2_18", "resnetv2_34"}  # not in the papers, and not in the zoo
    ours = {name: registry.entry(name).params for name in counts if name not in absent}
    assert ours == {name: count for name, count in counts.items() if name not in absent}
    assert len(ours) == 8


@pytest.mark.parametrize("page", store.families())
def test_the_registry_reads_what_the_page_says(page):
    module = import_module(f"zoo.models.{page}")
    entries = [entry for entry in registry.entries().values() if entry.page == page]
    assert [entry.name for entry in entries] == list(module.VARIANTS)
    for entry in entries:
        assert entry.params == module.VARIANTS[entry.name].params
        assert entry.fields == tuple(module.Config.__dataclass_fields__)
        assert module.__doc__.startswith(entry.paper)


# Every family.


@pytest.mark.quick
def test_outputs_are_finite_float32_with_the_batch_first(family):
    for part in ("evaluation", "training"):
        for output in jax.tree.leaves(family.results[part]):
            assert output.dtype == jnp.float32 and output.shape[0] == BATCH
            assert np.isfinite(output).all()
    if family.has("num_classes"):
        assert family.results["evaluation"].shape == (BATCH, family.config.num_classes)


def test_variables_are_float32(family):
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(family.variables)} == {"float32"}


def test_every_submodule_has_a_name_of_ours(family):
    """Linen numbers those without one (`Conv_0`), and the number would be frozen in checkpoints."""
    keys = {key for path in tree.flatten(family.variables) for key in path.split("/")}
    assert not [key for key in keys if re.fullmatch(r"[A-Z]\w*_\d+", key)]


@pytest.mark.quick
def test_jit_equals_eager(family):
    eager = family.model.apply(family.variables, **family.inputs)
    assert_close(family.results["evaluation"], eager, 1e-5)


def test_one_example_does_not_see_the_others_in_evaluation(family):
    others = jax.tree.map(
        lambda x, y: jnp.concatenate([x[:1], y[1:]]), family.inputs, family.draw(seed=1)
    )
    results = family.step(family.variables, others)
    first = jax.tree.map(lambda x: x[:1], results["evaluation"])
    assert_close(first, jax.tree.map(lambda x: x[:1], family.results["evaluation"]), 1e-6)
    rest = [
        np.abs(x[1:] - y[1:]).max()
        for x, y in zip(
            jax.tree.leaves(results["evaluation"]),
            jax.tree.leaves(family.results["evaluation"]),
            strict=True,
        )
    ]
    assert min(rest) > 1e-3, "the other examples do not matter to their own outputs"


def test_every_parameter_gets_a_gradient(family):
    norms = {path: np.linalg.norm(g) for path, g in tree.flatten(family.results["grads"]).items()}
    assert norms.keys() == tree.flatten(family.variables["params"]).keys()
    # A parameter that cancels, such as a bias in front of a norm, gets rounding noise, 1e-8.
    still = [path for path, norm in norms.items() if not norm > 1e-5 * max(norms.values())]
    still = [path for path in still if not any(re.fullmatch(p, path) for p in UNMOVED)]
    assert not still, f"no gradient reaches {still}"


def test_a_step_moves_every_running_statistic(family):
    before, after = (tree.flatten(family.variables), tree.flatten(family.results["moved"]))
    assert all(path in before for path in after)
    assert after.keys() == {path for path in before if path.startswith("batch_stats/")}
    assert [path for path in after if np.array_equal(before[path], after[path])] == []


@pytest.mark.parametrize(
    "layers, remat",
    [("loop", True), pytest.param("scan", False, marks=pytest.mark.full), ("scan", True)],
)
def test_scan_and_remat_change_neither_outputs_nor_gradients(family, layers, remat):
    if not family.has("layers", "remat"):
        pytest.skip("the page has no stack of equal blocks")
    model = family.with_config(layers=layers, remat=remat)
    start = family.scan_start
    arrange = {"loop": lambda t: t, "scan": lambda t: stacked(t, start=start)}[layers]
    variables = {name: arrange(values) for name, values in family.variables.items()}
    step = step_of(model)
    program = str(jax.make_jaxpr(step)(variables, family.inputs))
    assert ("scan[" in program, "remat" in program) == (layers == "scan", remat)
    results = jax.jit(step)(variables, family.inputs)
    expected = {
        name: {key: arrange(value) for key, value in part.items()} if name == "moved" else part
        for name, part in family.results.items()
    }
    expected["grads"] = arrange(expected["grads"])
    # The order of float32 sums differs; gradients through batch statistics amplify that.
    floor = 1e-3 * np.linalg.norm([np.linalg.norm(g) for g in jax.tree.leaves(expected["grads"])])
    assert_close(results["grads"], expected["grads"], 1e-4, floor)
    for part in ("evaluation", "training", "moved"):
        assert_close(results[part], expected[part], 1e-5)


def test_tiny_is_deep_enough_that_a_scan_has_an_order(family):
    if not family.has("layers"):
        pytest.skip("the page has no stack of equal blocks")
    leaves = tree.flatten(stacked(family.variables, family.scan_start))
    lengths = {len(x) for path, x in leaves.items() if "blocks" in path}
    assert max(lengths) > 1


def test_a_loop_and_a_scan_lose_the_same_branches(family):
    if not family.has("drop_path", "layers"):
        pytest.skip("the page has no stochastic depth")
    loop = family.with_config(drop_path=0.8)
    scan = family.with_config(drop_path=0.8, layers="scan")
    variables = {k: stacked(v, start=family.scan_start) for k, v in family.variables.items()}
    drawn = {**family.inputs, **TRAIN, "rngs": {"dropout": jax.random.key(0)}}
    outputs, _ = loop.apply(family.variables, **drawn)
    assert_close(outputs, scan.apply(variables, **drawn)[0], 1e-5)
    with pytest.raises(AssertionError):  # some branch is lost
        assert_close(outputs, family.results["training"], 1e-2)
    evaluation = loop.apply(family.variables, **family.inputs)
    assert_close(evaluation, family.results["evaluation"], 1e-5)


def test_without_classes_the_representation_is_returned(family):
    if not family.has("num_classes"):
        pytest.skip("the page has no classes")
    headless = family.with_config(num_classes=0)
    params = family.variables["params"]
    rest = {name: leaves for name, leaves in params.items() if not name.startswith("head")}
    assert rest.keys() < params.keys()
    initialised = jax.eval_shape(headless.init, jax.random.key(0), **family.inputs)["params"]
    assert jax.tree.structure(initialised) == jax.tree.structure(rest)
    output = headless.apply({**family.variables, "params": rest}, **family.inputs)
    assert output.ndim == 2 and len(output) == BATCH and np.isfinite(output).all()


def test_bfloat16_follows_from_casting_parameters_and_inputs(family):
    keep = [f"params/{path}" for path in getattr(family.page, "KEEP_FLOAT32", ())]
    variables = tree.cast(family.variables, jnp.bfloat16, keep=[*keep, "batch_stats/.*"])
    inputs = tree.cast(family.inputs, jnp.bfloat16)
    results = family.step(variables, inputs)
    for part in ("evaluation", "training"):
        for output in jax.tree.leaves(results[part]):
            assert output.dtype in (jnp.bfloat16, jnp.float32)
            assert np.isfinite(np.asarray(output, np.float32)).all()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(results["moved"])} <= {"float32"}
    # A float32 array that slips in makes float32 of all behind it; islands of it are few.
    text = jax.jit(family.model.apply).lower(variables, **inputs).as_text()
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).* : \((.*)\) ->", text)
    assert sum("bf16" in operands for operands in products) > len(products) / 2
    # bfloat16 rounds by 2⁻⁹ = 0.2 %, and some ten roundings follow each other.
    assert_close(results["evaluation"], family.results["evaluation"], 0.02)
    assert_close(results["moved"], family.results["moved"], 0.02)


def test_features_are_as_large_as_their_strides_say(family):
    if not hasattr(family.model, "features"):
        pytest.skip("the page is no backbone")
    maps = jax.eval_shape(
        lambda v, x: family.model.apply(v, **x, method="features"), family.variables, family.inputs
    )
    [image] = family.inputs.values()
    assert len(maps) == len(family.model.strides)
    for map, stride in zip(maps, family.model.strides, strict=True):
        assert map.ndim == 4
        assert map.shape[:3] == (BATCH, image.shape[1] // stride, image.shape[2] // stride)


def test_initialisation_into_shards_gives_the_same_values(family):
    mesh = jax.make_mesh((1, 8, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    sharded = zoo.init(family.model, jax.random.key(0), mesh=mesh)
    whole = zoo.init(family.model, jax.random.key(0))
    assert_close(sharded, whole, 1e-6)
    for path, leaf in tree.flatten(sharded).items():
        divisible = any(n % 8 == 0 for n in leaf.shape)
        assert leaf.addressable_shards[0].data.size == leaf.size // (8 if divisible else 1), path


@pytest.mark.quick
def test_the_nnx_bridge_wraps_the_model(family):
    wrapped = nnx.bridge.ToNNX(family.model, rngs=nnx.Rngs(0)).lazy_init(**family.inputs)
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    variables = {
        name: nnx.to_pure_dict(nnx.state(wrapped, kinds[name])) for name in family.variables
    }
    assert jax.tree.structure(variables) == jax.tree.structure(family.variables)
    assert_close(wrapped(**family.inputs), family.model.apply(variables, **family.inputs), 1e-6)


# Doors.


def test_a_pattern_lists_variants_in_page_order():
    assert zoo.list_models() == VARIANTS
    assert zoo.list_models("resnetv2*") == list(import_module("zoo.models.resnetv2").VARIANTS)
    assert zoo.list_models("nothing*") == []


def test_options_replace_fields_of_the_config():
    model = zoo.create("resnet50", num_classes=7, in_channels=1)
    assert (model.config.num_classes, model.config.in_channels) == (7, 1)
    assert model.config.depths == (3, 4, 6, 3)


@pytest.mark.parametrize("door", [zoo.create, zoo.describe])
def test_an_unknown_model_is_answered_with_the_nearest(door):
    with pytest.raises(zoo.UnknownModel, match="no model is named 'resnet5O'.*resnet50"):
        door("resnet5O")
    with pytest.raises(zoo.UnknownModel, match="see `python -m zoo list`"):
        door("!")


def test_an_unknown_option_is_answered_with_the_nearest():
    message = "resnet50 has no option 'num_clases'; did you mean 'num_classes'"
    with pytest.raises(TypeError, match=message):
        zoo.create("resnet50", num_clases=7)


def test_a_value_that_is_no_choice_is_answered_with_the_choices():
    message = "resnet20 has no shortcut='zero'; it is one of 'projection', 'pad'"
    with pytest.raises(ValueError, match=message):
        zoo.create("resnet20", shortcut="zero")


@pytest.mark.parametrize("name", ["resnet20", "resnetv2_164", "vit_ti16", "dinov2_s14"])
def test_another_number_of_channels_is_refused_with_both_numbers_and_the_way_out(name):
    model = zoo.create(name)
    with pytest.raises(ValueError, match=r"1 channels, but .* takes 3: .*in_channels=1"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))


@pytest.mark.parametrize("page", store.families())
def test_a_description_gives_paper_options_inputs_and_counts(page):
    name, variant = next(iter(import_module(f"zoo.models.{page}").VARIANTS.items()))
    text = zoo.describe(name)
    assert registry.entry(name).paper in text
    assert f"{variant.params:,} parameters" in text
    for key, value in asdict(variant.config).items():
        assert f"{key} = {value!r}" in text
    for key, value in zoo.example(zoo.create(name)).items():
        assert f"{key} {list(value.shape)} {value.dtype}" in text
    parts = [int(count.replace(",", "")) for count in re.findall(r"^  \w+ +([\d,]+)$", text, re.M)]
    assert sum(parts) == variant.params


# What is imported, seen from outside.


def third_party_after(*statements: str) -> set[str]:
    """What a fresh interpreter has imported from outside its standard library."""
    end = "print('imported', *{name.partition('.')[0] for name in set(sys.modules) - before})"
    program = ["import sys; before = set(sys.modules)", *statements, end]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = done.stdout.splitlines()[-1].split()[1:]
    return {name for name in names if name not in sys.stdlib_module_names} - {"__mp_main__"}


@pytest.mark.quick
def test_importing_zoo_imports_nothing_else():
    assert third_party_after("import zoo") == {"zoo"}


@pytest.mark.parametrize("command", ["list", "table"])
def test_the_command_line_lists_without_importing_anything_else(command):
    run = f"import zoo.__main__; assert zoo.__main__.main([{command!r}]) == 0"
    assert third_party_after(run) == {"zoo"}


def test_zoo_never_imports_what_belongs_to_training(tmp_path):
    work = f"""
import jax, zoo
model = zoo.create("resnet20", depths=(1, 1), widths=(8, 8), stem_width=8)
zoo.save(model, zoo.init(model, jax.random.key(0)), {str(tmp_path)!r})
model, variables = zoo.load({str(tmp_path)!r})
zoo.card({str(tmp_path)!r})
zoo.describe("resnet20")
"""
    added = third_party_after(work) - third_party_after("import jax, flax.linen")
    assert "safetensors" in added and "zoo" in added  # else the work was not done
    training = {"train", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "torch"}
    assert not added & training


@pytest.mark.quick
def test_a_listing_and_an_unknown_model_on_the_command_line(capsys):
    assert main(["list", "resnet1?"]) == 0
    assert capsys.readouterr().out.startswith("resnet18             11,689,512  Deep Residual")
    for arguments in (["describe", "resnet5O"], ["list", "nothing*"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("error: no model ")


# A new page.

PAGE = '''"""The Perceptron (Rosenblatt, 1958, arXiv:0000.00000).

    image [b, 8, 8, c] → logits [b, classes]

Differs from the paper: it learns by gradients.
"""

from dataclasses import dataclass

import flax.linen as nn

from zoo.spec import Count, Input, Variant


@dataclass(frozen=True)
class Config:
    width: int
    in_channels: int = 1
    num_classes: Count = 10


class Perceptron(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, image, *, train: bool = False):
        x = nn.relu(nn.Dense(self.config.width, name="fc1")(image.reshape(len(image), -1)))
        classes = self.config.num_classes
        return nn.Dense(classes, name="head")(x) if classes else x


VARIANTS = {"perceptron_s": Variant(Config(16), params=1_210)}
TINY = Config(5, num_classes=3)


def example(config):
    return {"image": Input(("b", 8, 8, config.in_channels), low=-1, high=1)}
'''
TABLE = '''"""Perceptron: names of our own making."""

from zoo.models.perceptron import Config
from zoo.weights.convert import Format, dense


def config(tensors, facts):
    width, inputs = tensors["first.weight"].shape
    return Config(width, inputs // 64, len(tensors["last.bias"]))


FORMATS = {
    "torch": Format(
        rows=lambda config: dense("first", "fc1") + dense("last", "head"),
        marker="first.weight",
        ignored=(),
        config=config,
    )
}
'''


@pytest.fixture
def perceptron(tmp_path, monkeypatch):
    """The zoo with a page and a table added to its folders; no file of its own is edited."""
    sources = {zoo.models: PAGE, zoo.weights: TABLE}
    for package, source in sources.items():
        folder = tmp_path / package.__name__
        shutil.copytree(package.__path__[0], folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "perceptron.py").write_text(source, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setattr(registry, "MODELS", tmp_path / zoo.models.__name__)
    registry.entries.cache_clear()
    yield
    for package in sources:
        sys.modules.pop(f"{package.__name__}.perceptron", None)
    registry.entries.cache_clear()


def test_a_new_page_needs_no_edit(perceptron, tmp_path, capsys):
    assert set(zoo.list_models()) == {*VARIANTS, "perceptron_s"}
    assert main(["list", "perceptron*"]) == 0 and "1,210" in capsys.readouterr().out
    assert main(["table"]) == 0 and "| `perceptron_s` | 1,210 |" in capsys.readouterr().out
    assert "Rosenblatt" in zoo.describe("perceptron_s")
    with pytest.raises(TypeError, match="did you mean 'width'"):
        zoo.create("perceptron_s", widht=3)

    model = zoo.create("perceptron_s", in_channels=2)
    variables = zoo.init(model, jax.random.key(0))
    for format in ("flax", "torch"):
        zoo.save(model, variables, tmp_path / format, format=format)
        loaded_model, loaded = zoo.load(tmp_path / format)
        assert loaded_model == model
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)

    resnet = family_of("resnet")  # and those that were there load as before
    zoo.save(resnet.model, resnet.variables, tmp_path / "hf", format="hf")
    jax.tree.map(np.testing.assert_array_equal, zoo.load(tmp_path / "hf")[1], resnet.variables)


def test_a_new_page_inherits_the_claims(perceptron):
    test_the_count_is_the_published_one("perceptron_s")
    test_the_registry_reads_what_the_page_says("perceptron")
    family = Family(import_module("zoo.models.perceptron"))
    functions = [f for name, f in globals().items() if name.startswith("test_")]
    claims = [f for f in functions if list(inspect.signature(f).parameters) == ["family"]]
    assert len(claims) > 10
    for claim in claims:
        # A claim about what the page has not (a stack, a backbone) says so by a skip.
        with contextlib.suppress(pytest.skip.Exception):
            claim(family)


def test_two_pages_may_not_share_a_name(perceptron):
    copy = PAGE.replace("perceptron_s", "resnet50")
    (registry.MODELS / "perceptron.py").write_text(copy, encoding="utf-8")
    registry.entries.cache_clear()
    with pytest.raises(ValueError, match=r"'resnet50' is listed in .*perceptron.* and .*resnet"):
        zoo.list_models()


def test_a_variant_without_a_count_is_refused(perceptron):
    copy = PAGE.replace(", params=1_210", "")
    (registry.MODELS / "perceptron.py").write_text(copy, encoding="utf-8")
    registry.entries.cache_clear()
    with pytest.raises(ValueError, match=r"perceptron\.py: every variant states its published"):
        zoo.list_models()


# Depth.


def test_a_thousand_layers_lower_to_the_program_of_eleven_and_compile():
    def lowered(**changes):
        model = zoo.create("resnetv2_1001", **changes)
        image = zoo.example(model, BATCH)["image"]
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        return jax.jit(step_of(model)).lower(variables, {"image": image})

    deep, shallow = lowered(), lowered(depths=(2, 2, 2))
    assert len(deep.as_text()) < 1.01 * len(shallow.as_text())
    deep.compile()
