"""ResNet against transformers, torchvision and an ONNX graph, and what a fault would look like."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import zoo
from tests.golden import fill
from tests.golden.replay import Case, check_case, plant
from zoo.card import Card, Preprocess
from zoo.layers import conv, norm
from zoo.models import resnet
from zoo.weights import convert, formats
from zoo.weights import resnet as table
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

BOTTLENECK = Case("resnet_hf_bottleneck", resnet, "hf")
BASIC = Case("resnet_hf_basic", resnet, "hf")
BOTTLENECK_TRAIN = Case("resnet_hf_bottleneck_train", resnet, "hf")
BASIC_TRAIN = Case("resnet_hf_basic_train", resnet, "hf")
BASE = Case("resnet_hf_base", resnet, "hf")  # saved alone, without classes
FLAX = Case("resnet_flax", resnet, "hf_flax")
FLAX_BASIC = Case("resnet_flax_basic", resnet, "hf_flax")
TORCHVISION = Case("resnet_torchvision_bottleneck", resnet, "torchvision")
EVALUATIONS = (BOTTLENECK, BASIC, BASE, FLAX, FLAX_BASIC, TORCHVISION)


def test_the_random_stream_is_the_one_that_was_recorded():
    # If numpy's generator moves, this fails and names it, rather than every comparison below.
    literals = np.float32([0.13168192, -0.18235874, 0.12605736])
    np.testing.assert_array_equal(fill.fill("fc.bias", (3,)), literals)
    literals = np.float32([0.62312037, -1.3637251])
    np.testing.assert_array_equal(fill.image("x", (2,)), literals)
    np.testing.assert_array_equal(BASIC.image, BASIC.recorded["input"])


@pytest.mark.parametrize("case", EVALUATIONS, ids=lambda case: case.name)
def test_every_block_agrees_with_the_reference(case):
    check_case(case)


@pytest.mark.parametrize("case", [BOTTLENECK_TRAIN, BASIC_TRAIN], ids=lambda case: case.name)
def test_a_training_step_agrees_with_the_reference(case):
    check_case(case)


def test_a_full_resnet50_agrees_with_the_onnx_graph():
    operators = [operator for operator, _, _ in ONNX.meta["nodes"]]
    # A graph with other nodes would not be the network that the rows below describe.
    assert operators.count("Conv") == operators.count("BatchNormalization") == 53
    assert operators.count("Sum") == 16
    np.testing.assert_array_equal(ONNX.image[:, :4, :4], ONNX.recorded["input/corner"])
    check_case(ONNX)


def onnx_rows() -> list[convert.Row]:
    """Caffe2's names: res2 to res5, branch2a to branch2c, branch1 for the shortcut."""
    rows = onnx_conv_norm("gpu_0/conv1", "gpu_0/res_conv1", "stem/conv", "stem/norm")
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            theirs, ours = f"gpu_0/res{stage + 2}_{block}_branch", f"stage{stage + 1}/block_{block}"
            branches = {"2a": "{}1", "2b": "{}2", "2c": "{}3"}
            branches |= {"1": "shortcut/{}"} if block == 0 else {}
            for branch, pattern in branches.items():
                names = [f"{ours}/{pattern.format(kind)}" for kind in ("conv", "norm")]
                rows += onnx_conv_norm(theirs + branch, theirs + branch, *names)
    return [
        *rows,
        convert.Row("gpu_0/pred_w_0", "params/head/kernel", convert.DENSE),
        convert.Row("gpu_0/pred_b_0", "params/head/bias"),
    ]


def onnx_conv_norm(their_conv: str, their_norm: str, our_conv: str, our_norm: str) -> list:
    return [
        convert.Row(f"{their_conv}_w_0", f"params/{our_conv}/kernel", convert.CONV),
        convert.Row(f"{their_norm}_bn_s_0", f"params/{our_norm}/scale"),
        convert.Row(f"{their_norm}_bn_b_0", f"params/{our_norm}/bias"),
        convert.Row(f"{their_norm}_bn_rm_0", f"batch_stats/{our_norm}/mean"),
        convert.Row(f"{their_norm}_bn_riv_0", f"batch_stats/{our_norm}/var"),
    ]


ONNX = Case("resnet_onnx", resnet, rows=onnx_rows())


# A fault is one passage of a source changed; the claims above must not hold with it.
FAULTS = {
    "stride in the first 1×1": (
        resnet,
        """1, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = Conv(self.width // 4, 3, self.stride,""",
        """1, self.stride, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = Conv(self.width // 4, 3,""",
    ),
    "no ReLU after the sum": (
        resnet,
        """        return nn.relu(y + shortcut(x, train=train))


class Shortcut""",
        """        return y + shortcut(x, train=train)


class Shortcut""",
    ),
    "ε of 1e-4": (norm, "epsilon: float = 1e-5", "epsilon: float = 1e-4"),
    "ε of 1e-3": (norm, "epsilon: float = 1e-5", "epsilon: float = 1e-3"),
    "convolutions padded as SAME": (conv, "padding=((pad, pad), (pad, pad))", 'padding="SAME"'),
    "pooling padded as SAME": (
        conv,
        "sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))",
        'sides = "SAME"',
    ),
    "kernels transposed": (convert, 'CONV = layout("o i h w", "h', 'CONV = layout("o i w h", "h'),
}
TRAINING_FAULTS = {
    "biased running variance": (norm, "var * (n / max(n - 1, 1))", "var"),
    "unbiased variance in the output": (
        norm,
        "jnp.square(y - _row(mean, y)))\n",
        "jnp.square(y - _row(mean, y))) * (8 / 7)\n",
    ),
    "no gradient through the variance": (
        norm,
        "self._average(jnp.square(y - _row(mean, y)))",
        "jax.lax.stop_gradient(self._average(jnp.square(y - _row(mean, y))))",
    ),
    "momentum of 0.99": (norm, "momentum: float = 0.9\n", "momentum: float = 0.99\n"),
    "running statistics not moved": (norm, "self._move(running_var,", "(lambda *_: None)("),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees(fault, monkeypatch):
    plant(monkeypatch, FAULTS[fault], resnet, table)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(BOTTLENECK)


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(fault, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[fault], resnet, table)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(BASIC_TRAIN)


def normal(name: str, *shape: int) -> np.ndarray:
    return fill.image(name, shape)


def test_the_cifar_stem_matches_a_python_loop():
    x, kernel, (b, h, w) = normal("stem", 2, 5, 4, 3), normal("kernel", 3, 3, 3, 6), (2, 5, 4)
    stem = resnet.Stem(6, "cifar", None)
    variables = stem.init(jax.random.key(0), x, train=False)
    variables["params"]["conv"]["kernel"] = jnp.asarray(kernel)

    padded = np.zeros((b, h + 2, w + 2, 3))
    padded[:, 1:-1, 1:-1] = x
    expected = np.zeros((b, h, w, 6))
    for n, i, j in np.ndindex(b, h, w):
        expected[n, i, j] = np.einsum("hwi,hwio->o", padded[n, i : i + 3, j : j + 3], kernel)
    expected = np.maximum(expected / np.sqrt(1 + 1e-5), 0)  # a fresh norm: mean 0, variance 1
    np.testing.assert_allclose(stem.apply(variables, x, train=False), expected, atol=1e-5)


def test_the_padded_shortcut_matches_a_python_loop():
    x = normal("shortcut", 2, 5, 6, 3)
    expected = np.zeros((2, 3, 3, 7), np.float32)
    for n, i, j, channel in np.ndindex(2, 3, 3, 3):
        expected[n, i, j, channel] = x[n, 2 * i, 2 * j, channel]
    shortcut = resnet.Shortcut(7, 2, "pad", None)
    variables = shortcut.init(jax.random.key(0), x, train=False)
    assert not variables  # option A has no parameters
    np.testing.assert_array_equal(shortcut.apply(variables, x, train=False), expected)


def test_batch_norm_is_exact_at_a_large_mean():
    """E[x²] − E[x]² in float32 would lose every digit of a variance of 1 beside a mean of 1e4."""
    x = 1e4 + normal("large mean", 16, 3, 3, 4)
    layer = norm.BatchNorm(momentum=0.75)
    variables = layer.init(jax.random.key(0), x)
    y, moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])

    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    # A float32 sum of 144 values of 1e4 is off by a few of its units, 1/8, so a mean by a few 1e-3.
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var + 1e-5), atol=1e-2)
    running = moved["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.25 * mean, rtol=1e-6)
    unbiased = exact.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(running["var"], 0.75 + 0.25 * unbiased, rtol=1e-4)
    one_pass = np.square(x).mean((0, 1, 2)) - np.square(x.mean((0, 1, 2)))
    assert np.abs(one_pass - var).max() > 1


def test_batch_norm_over_a_mapped_axis_is_that_of_the_global_batch():
    x = normal("mapped", 16, 2, 2, 3) + np.arange(16, dtype=np.float32).reshape(16, 1, 1, 1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()
    variables = norm.BatchNorm().init(jax.random.key(0), x)

    def train(x, axis=None):
        layer = norm.BatchNorm(axis=axis)
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    def on_each(x):
        return train(x, "data")

    expected = train(x)
    mapped = jax.shard_map(on_each, mesh=mesh, in_specs=split, out_specs=(split, whole))(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mapped, expected)
    y, moved = jax.pmap(on_each, axis_name="data")(x.reshape(8, 2, 2, 2, 3))
    np.testing.assert_allclose(y.reshape(x.shape), expected[0], atol=1e-5)
    for name, running in expected[1]["batch_stats"].items():
        np.testing.assert_allclose(moved["batch_stats"][name], np.tile(running, (8, 1)), atol=1e-5)
    # Statistics of each device alone would be others: the images differ from device to device.
    assert np.abs(np.asarray(train(x[:2])[0] - expected[0][:2])).max() > 0.1


# Files.


@pytest.mark.parametrize("case", EVALUATIONS, ids=lambda case: case.name)
def test_an_export_is_the_file_of_the_reference(case, tmp_path):
    model = case.model()
    zoo.save(model, case.variables(model), tmp_path, format=case.format)
    tensors = formats.read(tmp_path)
    recorded = {name: (tuple(shape), dtype) for name, shape, dtype in case.meta["tensors"]}
    assert {n: (spec.shape, str(spec.dtype)) for n, spec in tensors.specs.items()} == recorded
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, fill.fill(name, tensor.shape))
    assert zoo.load(tmp_path)[0] == model


def test_a_model_without_classes_returns_what_enters_the_head():
    model = BOTTLENECK.model()
    variables = BOTTLENECK.variables(model)
    bare = model.clone(config=replace(model.config, num_classes=0))
    head = variables["params"].pop("head")
    pooled = jax.jit(bare.apply)(variables, BOTTLENECK.image)
    logits = pooled @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, BOTTLENECK.recorded["logits"], atol=1e-5)


def edited(tmp_path, format, config, edit):
    """The directory of a model saved under `format`, its tensors and config.json edited."""
    model = resnet.ResNet(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))
    zoo.save(model, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), tmp_path / "whole")
    zoo.save(*zoo.load(tmp_path / "whole"), tmp_path / "old", format=format)
    tensors, path = dict(formats.read(tmp_path / "old")), tmp_path / "old" / "config.json"
    facts = formats.read_json(path) if path.exists() else {}
    edit(tensors, facts)
    formats.write(tmp_path / "new", tensors, {"config.json": facts} if facts else {})
    return tmp_path / "new"


def rename(old: str, new: str):
    def edit(tensors, facts):
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return edit


def leave_out(*names: str):
    return lambda tensors, facts: [tensors.pop(name) for name in names]


def state(**facts_to_state):
    return lambda tensors, facts: facts.update(facts_to_state)


def add(name: str):
    return lambda tensors, facts: tensors.update({name: np.zeros(3, np.float32)})


FOUR_STAGES = resnet.Config((1, 1, 1, 1), (16, 16, 24, 24), "bottleneck", num_classes=5)
EDITS = {
    "another prefix": ("hf", rename("resnet.", "model."), "neither config.json (model_type"),
    "a prefix too many": ("hf", rename("resnet.", "a.resnet."), "neither config.json (model_type"),
    "half a prefix": (
        "hf",
        rename("resnet.encoder.stages.1", "encoder.stages.1"),
        "+ encoder.stages.1.layers.0.layer.0.convolution.weight: no place in the model",
    ),
    "no classifier": (
        "hf",
        leave_out("classifier.1.weight", "classifier.1.bias"),
        "architectures is ['ResNetForImageClassification'], but the file has no classifier",
    ),
    "half a classifier": (
        "hf",
        leave_out("classifier.1.bias"),
        "- params/head/bias: no tensor classifier.1.bias",
    ),
    "an extra tensor": ("hf", add("resnet.extra"), "+ resnet.extra: no place in the model"),
    "other labels": ("hf", state(id2label={"0": "a"}), "1 labels, but the classifier has 5"),
    "another activation": ("hf", state(hidden_act="gelu"), "hidden_act is 'gelu', only 'relu'"),
    "a stride in the stem": (
        "hf",
        state(downsample_in_first_stage=True),
        "downsample_in_first_stage is True, only False",
    ),
    "a stride in the first 1×1": (
        "hf",
        state(downsample_in_bottleneck=True),
        "downsample_in_bottleneck is True, only False",
    ),
    "another block": ("hf", state(layer_type="x"), "block='x'; it is one of 'basic', 'bottleneck'"),
    "another family": ("hf", state(model_type="regnet"), "model_type 'regnet'"),
    "no config": ("hf", lambda tensors, facts: facts.clear(), "these names need the config.json"),
    "timm's deep stem": ("timm", state(architecture="resnet50d"), "architecture is 'resnet50d'"),
    "timm's wide": (
        "timm",
        state(architecture="wide_resnet50_2"),
        "architecture is 'wide_resnet50_2'",
    ),
    "timm's groups": (
        "timm",
        state(architecture="resnext50_32x4d"),
        "architecture is 'resnext50_32x4d'",
    ),
    "timm's blur": ("timm", state(architecture="resnetblur50"), "architecture is 'resnetblur50'"),
    "a stride that is none": (
        "timm",
        state(model_args={"output_stride": 8}),
        "model_args has output_stride=8: not supported",
    ),
    "another pooling": ("timm", state(global_pool="max"), "global_pool is 'max', only 'avg'"),
    "no head": (
        "timm",
        leave_out("fc.weight", "fc.bias"),
        "5 classes, but the file's head has 0",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_another_file_is_refused_by_name(edit, tmp_path):
    format, change, words = EDITS[edit]
    path = edited(tmp_path, format, FOUR_STAGES, change)
    with pytest.raises(WeightsError, match=re.escape(words)):
        zoo.load(path)


def without(*keys: str):
    return lambda tensors, facts: [facts.pop(key) for key in keys]


# What published files leave out: config.json of transformers 4.30 `downsample_in_bottleneck`
# (huggingface.co/sngsfydy/MyResNet50), timm's of 2023 `model_args` and `global_pool`
# (huggingface.co/timm/resnet18.a1_in1k); torchvision's files and DINO's backbones have none.
PUBLISHED = {
    "old hf": ("hf", without("downsample_in_bottleneck"), 5),
    "without counters": (
        "hf",
        leave_out("resnet.embedder.embedder.normalization.num_batches_tracked"),
        5,
    ),
    "old timm": ("timm", without("model_args", "global_pool"), 5),
    "backbone": ("torchvision", leave_out("fc.weight", "fc.bias"), 0),
}


@pytest.mark.parametrize("published", PUBLISHED)
def test_files_as_they_were_published_load(published, tmp_path):
    format, change, classes = PUBLISHED[published]
    model, variables = zoo.load(edited(tmp_path, format, FOUR_STAGES, change))
    assert model.config == replace(FOUR_STAGES, num_classes=classes)
    assert ("head" in variables["params"]) == bool(classes)


def test_timms_config_says_what_its_architecture_does_not():
    card = Card("", {}, preprocess=Preprocess(224, crop=0.95), licence="mit")
    facts = table.timm_facts(FOUR_STAGES, card)
    assert (facts["architecture"], facts["num_classes"]) == ("resnet50", 5)
    assert facts["model_args"] == {"layers": [1, 1, 1, 1], "channels": [4, 4, 6, 6], "in_chans": 3}
    cfg = facts["pretrained_cfg"]
    assert (cfg["first_conv"], cfg["classifier"], cfg["crop_pct"]) == ("conv1", "fc", 0.95)
    names = {
        name: table.timm_facts(resnet.VARIANTS[name].config, card)["architecture"]
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    }
    assert names == {name: name for name in names}


@pytest.mark.parametrize(
    "changes",
    [{"stem_width": 32}, {"depths": (1, 1), "widths": (16, 16)}, {"stem": "cifar"}],
    ids=str,
)
def test_what_timm_cannot_build_is_not_written_for_it(changes):
    with pytest.raises(WeightsError, match='timm\'s ResNet has .* save with format="flax"'):
        table.timm_facts(replace(FOUR_STAGES, **changes), Card("", {}))


def test_a_basic_block_is_numbered_as_flax_numbered_it(monkeypatch):
    plant(monkeypatch, (table, 'layer.layer_{}"', 'layer.{}"'), table)
    with pytest.raises(WeightsError, match=r"\+ .*/layer_0/convolution/kernel"):
        Case("resnet_flax_basic", resnet, "hf_flax").variables(FLAX_BASIC.model())


def test_every_published_resnet_has_a_tag():
    recorded = json.loads((Path(fill.__file__).parent / "resnet_counts.json").read_text())
    published = recorded["timm"]["published"]
    theirs = {name: card.get("license", "") for name, card in published.items()}
    tags = {name: tag for name, tag in table.TAGS.items() if tag.source.startswith("timm/")}
    wanted = {name: licence for name, licence in theirs.items() if not name.startswith("resnetv2")}
    assert {name: tag.licence for name, tag in tags.items()} == wanted
    assert all(tag.source == f"timm/{name}" for name, tag in tags.items())
    others = {tag.source for tag in table.TAGS.values()} - {tag.source for tag in tags.values()}
    assert others == set(recorded["transformers"]["params"]) - {"microsoft/resnet-26"}
    assert {name.partition(".")[0] for name in table.TAGS} <= set(resnet.VARIANTS)
