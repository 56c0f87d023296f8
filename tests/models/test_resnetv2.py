"""ResNetV2 against timm, and what a fault would look like."""

import flax.linen as nn
import pytest

from tests.golden.replay import Case, check_evaluation, check_training, plant
from zoo.layers import conv, norm
from zoo.models import resnetv2
from zoo.weights import convert
from zoo.weights import resnetv2 as table

pytestmark = pytest.mark.quick

TAPS = {  # timm counts the pooling to the stem and the last ReLU to the norm
    "stem": lambda seen: conv.max_pool(seen["stem"], 3, stride=2),
    "norm": lambda seen: nn.relu(seen["norm"]),
}
EVALUATION = Case("resnetv2_timm", resnetv2, "timm", TAPS)
TRAINING = Case("resnetv2_timm_train", resnetv2, "timm")


def test_every_block_agrees_with_the_reference():
    check_evaluation(EVALUATION)


def test_a_training_step_agrees_with_the_reference():
    check_training(TRAINING)


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
        check_evaluation(EVALUATION)


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(fault, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[fault], resnetv2, table)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_training(TRAINING)
