"""ResNetV2 against timm, and what a fault would look like."""

import re
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest

import zoo
from tests.golden import fill
from tests.golden.replay import Case, check_case, plant
from zoo.card import Card
from zoo.layers import conv, norm
from zoo.models import resnetv2
from zoo.weights import convert, formats
from zoo.weights import resnetv2 as table
from zoo.weights.convert import WeightsError

pytestmark = pytest.mark.quick

TAPS = {  # timm counts the pooling to the stem and the last ReLU to the norm
    "stem": lambda seen: conv.max_pool(seen["stem"], 3, stride=2),
    "norm": lambda seen: nn.relu(seen["norm"]),
}
EVALUATION = Case("resnetv2_timm", resnetv2, "timm", TAPS)
TRAINING = Case("resnetv2_timm_train", resnetv2, "timm")


def test_every_block_agrees_with_the_reference():
    check_case(EVALUATION)


def test_a_training_step_agrees_with_the_reference():
    check_case(TRAINING)


# A fault is one passage of a source changed; the claims above must not hold with it.
FAULTS = {
    "shortcut before the pre-activation": (resnetv2, 'name="shortcut")(y)', 'name="shortcut")(x)'),
    "every shortcut pre-activated": (
        resnetv2,
        "        if self.stride != 1",
        "        x = y\n        if self.stride != 1",
    ),
    "stride in the first 1×1": (
        resnetv2,
        """1, name="conv1")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = Conv(self.width // 4, 3, self.stride,""",
        """1, self.stride, name="conv1")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = Conv(self.width // 4, 3,""",
    ),
    "no ReLU after the last norm": (
        resnetv2,
        'x = nn.relu(BatchNorm(axis=self.axis, name="norm")(x, train=train))',
        'x = BatchNorm(axis=self.axis, name="norm")(x, train=train)',
    ),
    "ReLU after the sum": (
        resnetv2,
        'return x + Conv(self.width, 1, name="conv3")(y)',
        'return nn.relu(x + Conv(self.width, 1, name="conv3")(y))',
    ),
    "ε of 1e-4": (norm, "epsilon: float = 1e-5", "epsilon: float = 1e-4"),
    "convolutions padded as SAME": (conv, "padding=((pad, pad), (pad, pad))", 'padding="SAME"'),
    "pooling padded as SAME": (
        conv,
        "sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))",
        'sides = "SAME"',
    ),
    "pooling padded with zeros": (conv, "-jnp.inf, jax.lax.max", "0.0, jax.lax.max"),
    "kernels transposed": (convert, 'CONV = layout("o i h w", "h', 'CONV = layout("o i w h", "h'),
}
TRAINING_FAULTS = {
    "biased running variance": (norm, "var * (n / max(n - 1, 1))", "var"),
    "momentum of 0.99": (norm, "momentum: float = 0.9\n", "momentum: float = 0.99\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees(fault, monkeypatch):
    plant(monkeypatch, FAULTS[fault], resnetv2, table)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(EVALUATION)


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(fault, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[fault], resnetv2, table)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_case(TRAINING)


# Files.


def test_an_export_is_the_file_of_the_reference(tmp_path):
    model = EVALUATION.model()
    zoo.save(model, EVALUATION.variables(model), tmp_path, format="timm")
    tensors = formats.read(tmp_path)
    recorded = {name: (tuple(shape), dtype) for name, shape, dtype in EVALUATION.meta["tensors"]}
    assert {n: (spec.shape, str(spec.dtype)) for n, spec in tensors.specs.items()} == recorded
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, fill.fill(name, tensor.shape))
    assert zoo.load(tmp_path)[0] == model


def test_a_model_without_classes_returns_what_enters_the_head():
    model = EVALUATION.model()
    variables = EVALUATION.variables(model)
    bare = model.clone(config=replace(model.config, num_classes=0))
    head = variables["params"].pop("head")
    pooled = jax.jit(bare.apply)(variables, EVALUATION.image)
    np.testing.assert_allclose(pooled, EVALUATION.recorded["pooled"], atol=1e-5)
    logits = pooled @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, EVALUATION.recorded["logits"], atol=1e-5)


SMALL = resnetv2.Config((1, 2), (32, 64), stem_width=8, num_classes=5)


def zeros(config):
    model = resnetv2.ResNetV2(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))
    return model, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def leave_out(pattern: str):
    def edit(tensors, facts):
        for name in [name for name in tensors if re.fullmatch(pattern, name)]:
            del tensors[name]

    return edit


def state(**facts_to_state):
    return lambda tensors, facts: facts.update(facts_to_state)


EDITS = {
    "BiT": (state(architecture="resnetv2_50x1_bit"), "architecture is 'resnetv2_50x1_bit'"),
    "a deep stem": (state(architecture="resnetv2_50t"), "architecture is 'resnetv2_50t'"),
    "norms of groups": (leave_out(r".*\.running_.*"), "group normalisation, as in BiT"),
    "another activation": (
        state(model_args={"act_layer": "silu"}),
        "model_args has act_layer='silu': not supported",
    ),
    "another pooling": (state(global_pool="catavgmax"), "global_pool is 'catavgmax', only 'avg'"),
    "no head": (leave_out(r"head\.fc\..*"), "5 classes, but the file's head has 0"),
    "an extra tensor": (
        lambda tensors, facts: tensors.update({"stem.norm.weight": np.zeros(8, np.float32)}),
        "+ stem.norm.weight: no place in the model",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_another_file_is_refused_by_name(edit, tmp_path):
    change, words = EDITS[edit]
    zoo.save(*zeros(SMALL), tmp_path / "old", format="timm")
    tensors = dict(formats.read(tmp_path / "old"))
    facts = formats.read_json(tmp_path / "old" / "config.json")
    change(tensors, facts)
    formats.write(tmp_path / "new", tensors, {"config.json": facts})
    with pytest.raises(WeightsError, match=re.escape(words)):
        zoo.load(tmp_path / "new")


def test_a_file_without_head_is_a_model_without_classes(tmp_path):
    model, variables = zeros(replace(SMALL, num_classes=0))
    zoo.save(model, variables, tmp_path, format="timm")
    assert "head.fc.weight" not in formats.read(tmp_path)
    assert zoo.load(tmp_path)[0] == model


def test_timms_config_says_what_its_architecture_does_not():
    facts = table.timm_facts(SMALL, Card("", {}))
    assert (facts["architecture"], facts["num_features"]) == ("resnetv2_50", 64)
    args = {"layers": [1, 2], "channels": [32, 64], "stem_chs": 8, "in_chans": 3}
    assert facts["model_args"] == args
    deep = resnetv2.VARIANTS["resnetv2_101"].config
    assert table.timm_facts(deep, Card("", {}))["architecture"] == "resnetv2_101"


@pytest.mark.parametrize(
    "changes", [{"widths": (16, 24)}, {"stem_width": 12}, {"stem": "cifar"}], ids=str
)
def test_what_timm_cannot_build_is_not_written_for_it(changes):
    with pytest.raises(WeightsError, match='timm\'s ResNetV2 .* save with format="flax"'):
        table.timm_facts(replace(SMALL, **changes), Card("", {}))
