"""ResNet against transformers, torchvision and an ONNX graph, and what a fault would look like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from tests.golden import fill
from tests.golden.replay import Case, check_evaluation, check_training, plant
from zoo.layers import conv, norm
from zoo.models import resnet
from zoo.weights import convert
from zoo.weights import resnet as table

pytestmark = pytest.mark.quick

BOTTLENECK = Case("resnet_hf_bottleneck", resnet, "hf")
BASIC = Case("resnet_hf_basic", resnet, "hf")
BOTTLENECK_TRAIN = Case("resnet_hf_bottleneck_train", resnet, "hf")
BASIC_TRAIN = Case("resnet_hf_basic_train", resnet, "hf")
TORCHVISION = Case("resnet_torchvision_bottleneck", resnet, "torchvision")


def test_the_random_stream_is_the_one_that_was_recorded():
    # If numpy's generator moves, this fails and names it, rather than every comparison below.
    literals = np.float32([0.13168192, -0.18235874, 0.12605736])
    np.testing.assert_array_equal(fill.fill("fc.bias", (3,)), literals)
    literals = np.float32([0.62312037, -1.3637251])
    np.testing.assert_array_equal(fill.image("x", (2,)), literals)
    np.testing.assert_array_equal(BASIC.image, BASIC.recorded["input"])


@pytest.mark.parametrize("case", [BOTTLENECK, BASIC, TORCHVISION], ids=lambda case: case.name)
def test_every_block_agrees_with_the_reference(case):
    check_evaluation(case)


@pytest.mark.parametrize("case", [BOTTLENECK_TRAIN, BASIC_TRAIN], ids=lambda case: case.name)
def test_a_training_step_agrees_with_the_reference(case):
    check_training(case)


def test_a_full_resnet50_agrees_with_the_onnx_graph():
    case = Case("resnet_onnx", resnet, rows=onnx_rows())
    operators = [operator for operator, _, _ in case.meta["nodes"]]
    # A graph with other nodes would not be the network that the rows below describe.
    assert operators.count("Conv") == operators.count("BatchNormalization") == 53
    assert operators.count("Sum") == 16
    np.testing.assert_array_equal(case.image[:, :4, :4], case.recorded["input/corner"])
    check_evaluation(case)


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
        check_evaluation(BOTTLENECK)


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_the_comparison_of_a_training_step_sees(fault, monkeypatch):
    plant(monkeypatch, TRAINING_FAULTS[fault], resnet, table)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check_training(BASIC_TRAIN)


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
