"""The leaves against slow, obvious programs, and what ViT and DINOv2 make of them.

`golden/positions.npz` holds what torch and SciPy compute; `golden/record_positions.py` made it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.golden.fill import image as draw_image
from zoo import tree
from zoo.layers import attention, drop, posemb, rope
from zoo.layers.attention import Attention, attend
from zoo.layers.mlp import Mlp, SwiGlu, gelu, gelu_tanh
from zoo.layers.norm import RMSNorm
from zoo.layers.stack import stack
from zoo.models import dinov2, vit

POSITIONS = Path(__file__).parent / "golden" / "positions.npz"


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(model: Any) -> Any:
    """Variables without zeros, which would hide what lies behind them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))
    draws = [normal(seed, *x.shape) for seed, x in enumerate(jax.tree.leaves(shapes))]
    around = tree.map_named(lambda path, _: np.float32(path.endswith("/scale")), shapes)
    drawn = jax.tree.unflatten(jax.tree.structure(shapes), draws)
    return jax.tree.map(lambda centre, x: jnp.asarray(centre + 0.3 * x), around, drawn)


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    """max |Δ| ≤ tolerance · max |theirs|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# Attention.

CAUSAL = pytest.mark.parametrize("causal", [False, True])
LENGTHS = pytest.mark.parametrize("lengths", [None, [5, 7, 1]])


def queries_keys_values(n: int = 7, width: int = 4) -> tuple[np.ndarray, ...]:
    return tuple(normal(seed, 3, n, 2, width) for seed in range(3))


def attend_by_loop(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    causal: bool,
    lengths: list[int] | None,
    segments: list[list[int]] | None = None,
    window: int | None = None,
    start: list[int] | None = None,
) -> np.ndarray:
    """One query at a time, over the keys that it sees, in float64."""

    def sees(b: int, i: int, j: int) -> bool:
        place = i if start is None else start[b] + i
        return (
            (not causal or j <= place)
            and (window is None or place - j < window)
            and (lengths is None or j < lengths[b])
            and (segments is None or segments[b][i] == segments[b][j])
        )

    y, group = np.zeros(q.shape), q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = [j for j in range(k.shape[1]) if sees(b, i, j)]
        scores = [float(q[b, i, h] @ k[b, j, h // group]) / math.sqrt(q.shape[-1]) for j in seen]
        weights = [math.exp(score - max(scores)) for score in scores]
        for weight, j in zip(weights, seen, strict=True):
            y[b, i, h] += weight / sum(weights) * v[b, j, h // group]
    return y


def as_lengths(lengths: list[int] | None) -> jax.Array | None:
    return None if lengths is None else jnp.asarray(lengths, jnp.int32)


@CAUSAL
@LENGTHS
def test_attention_matches_a_python_loop(causal, lengths):
    q, k, v = queries_keys_values()
    y = attend(q, k, v, causal=causal, lengths=as_lengths(lengths))
    assert y.dtype == jnp.float32
    assert_close(y, attend_by_loop(q, k, v, causal, lengths), 1e-6)


SEGMENTS = [[1, 1, 1, 2, 2, 3, 3], [1] * 7, [1, 2, 2, 2, 2, 0, 0]]


@pytest.mark.parametrize("heads", [2, 6], ids=["one key each", "grouped"])
@pytest.mark.parametrize(
    "masks",
    [
        {"causal": True, "window": 3},
        {"causal": True, "window": 1},
        {"causal": True, "segments": SEGMENTS},
        {"causal": False, "segments": SEGMENTS},
        {"causal": True, "segments": SEGMENTS, "window": 2},
        {"causal": True, "lengths": [5, 7, 1], "window": 3},
    ],
    ids=lambda masks: "+".join(masks),
)
def test_windows_segments_and_groups_match_a_python_loop(heads, masks):
    _, k, v = queries_keys_values()
    q = normal(3, 3, 7, heads, 4)
    seen = {name: jnp.asarray(m) if isinstance(m, list) else m for name, m in masks.items()}
    expected = attend_by_loop(q, k, v, **{"lengths": None, **masks})
    if "lengths" in masks:  # a query whose whole window is padding sees nothing that means anything
        real = [(b, i) for b in range(3) for i in range(7) if i < masks["lengths"][b]]
        rows = tuple(np.transpose(real))
        assert_close(attend(q, k, v, **seen)[rows], expected[rows], 1e-6)
    else:
        assert_close(attend(q, k, v, **seen), expected, 1e-6)


@pytest.mark.parametrize("window", [None, 2])
def test_a_query_in_the_middle_of_the_keys_matches_a_python_loop(window):
    _, k, v = queries_keys_values()
    q, start = normal(3, 3, 1, 6, 4), [4, 0, 6]
    y = attend(q, k, v, causal=True, window=window, start=jnp.asarray(start))
    expected = attend_by_loop(q, k, v, True, None, window=window, start=start)
    assert_close(y, expected, 1e-6)


def test_a_window_without_a_direction_is_refused():
    with pytest.raises(ValueError, match="window 3 .* needs causal=True"):
        attend(*map(jnp.asarray, queries_keys_values()), window=3)


@CAUSAL
@LENGTHS
def test_attention_in_bfloat16_is_close_and_stays_bfloat16(causal, lengths):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in queries_keys_values())
    y = attend(q, k, v, causal=causal, lengths=as_lengths(lengths))
    assert y.dtype == jnp.bfloat16
    expected = attend_by_loop(*(np.asarray(x, np.float32) for x in (q, k, v)), causal, lengths)
    assert_close(y, expected, 2**-7)  # weights and result are rounded to 8 bits


def test_scores_are_not_rounded_to_bfloat16():
    """Two scores, 256 and 257, are one number in bfloat16; their weights are 0.27 and 0.73."""
    q = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    k = jnp.asarray([[128, 128, 128, 128], [130, 128, 128, 128]], jnp.bfloat16)[None, :, None]
    v = jnp.asarray([[0, 0, 0, 0], [1, 1, 1, 1]], jnp.bfloat16)[None, :, None]
    assert_close(attend(q, k, v), np.full((1, 1, 1, 4), 1 / (1 + math.exp(-1))), 2**-8)


@pytest.mark.parametrize("of", [1, 2], ids=["keys", "values"])
def test_padding_gets_no_gradient(of):
    inputs, lengths = queries_keys_values(), jnp.asarray([5, 7, 1], jnp.int32)
    grad = jax.grad(lambda *x: (attend(*x, lengths=lengths) ** 2).sum(), argnums=of)(*inputs)
    for example, length in zip(grad, lengths, strict=True):
        assert not np.any(example[length:])
        assert of == 1 and length == 1 or np.all(np.any(example[:length], axis=(1, 2)))


@pytest.mark.parametrize("of", [1, 2], ids=["keys", "values"])
def test_a_causal_query_gets_no_gradient_from_what_follows(of):
    inputs = queries_keys_values()
    grad = jax.grad(lambda *x: (attend(*x, causal=True)[:, 3] ** 2).sum(), argnums=of)(*inputs)
    assert not np.any(grad[:, 4:])
    assert np.all(np.any(grad[:, :4], axis=(2, 3)))


@CAUSAL
def test_a_row_without_keys_is_zero_and_gets_no_gradient(causal):
    lengths = jnp.asarray([0, 7, 0], jnp.int32)

    def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, causal=causal, lengths=lengths)

    inputs = queries_keys_values()
    y = attended(*inputs)
    assert not np.any(y[0]) and not np.any(y[2]) and np.all(y[1])
    for grad in jax.grad(lambda *x: attended(*x).sum(), argnums=(0, 1, 2))(*inputs):
        assert not np.any(grad[0]) and not np.any(grad[2]) and np.isfinite(grad).all()


def test_extreme_scores_stay_finite():
    q, k, v = queries_keys_values()
    lengths = jnp.asarray([5, 7, 0], jnp.int32)

    def loss(*x: jax.Array) -> jax.Array:
        return (attend(*x, causal=True, lengths=lengths) ** 2).sum()

    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(100 * q, 100 * k, v)
    assert np.abs(np.einsum("bnhc,bmhc->bhnm", 100 * q, 100 * k)).max() > 1e4
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(
    "dtype, width, has, fused",
    [
        ("bfloat16", 64, True, True),
        ("float16", 256, True, True),
        ("float32", 64, True, False),
        ("bfloat16", 60, True, False),
        ("bfloat16", 264, True, False),
        ("bfloat16", 64, False, False),
    ],
)
def test_the_fused_kernel_runs_where_it_can(dtype, width, has, fused, monkeypatch):
    ran = []
    for name in ("flash", "plain"):
        monkeypatch.setattr(attention, name, lambda q, *_, name=name, **__: ran.append(name) or q)
    monkeypatch.setattr(attention, "_has_flash", lambda: has)
    x = jnp.zeros((1, 2, 1, width), dtype)
    attend(x, x, x)
    assert ran == ["flash" if fused else "plain"]


def test_what_the_fused_kernel_refuses_is_computed_plainly(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in queries_keys_values(width=8))
    expected = attend(q, k, v, causal=True)
    monkeypatch.setattr(attention, "_has_flash", lambda: True)
    monkeypatch.setattr(attention, "flash", refuse)
    np.testing.assert_array_equal(attend(q, k, v, causal=True), expected)


@pytest.mark.parametrize(
    "capability, has",
    [
        ("7.5", False),
        ("8.0", True),
        ("9.0", True),
        ("12.0", True),
        ("gfx942", False),
        (None, False),
    ],
)
def test_the_fused_kernel_needs_ampere(capability, has, monkeypatch):
    device = type("Device", (), {} if capability is None else {"compute_capability": capability})()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attention._has_flash.__wrapped__() == has


FUSED = [
    *({"causal": c, "lengths": m} for c in (True, False) for m in (None, [5, 7, 1])),
    *({"causal": c, "lengths": None, "segments": SEGMENTS} for c in (True, False)),
    {"causal": True, "lengths": None, "window": 3},
]


@pytest.mark.parametrize("masks", FUSED, ids=lambda masks: "+".join(k for k in masks if masks[k]))
@pytest.mark.parametrize("n", [7, 8])
def test_the_fused_kernel_gets_even_lengths_and_the_same_meaning(n, masks, monkeypatch):
    """cuDNN is stood in for by XLA, with cuDNN's way of filling absent lengths."""
    called, original = [], jax.nn.dot_product_attention
    if "segments" in masks:
        masks = {**masks, "segments": [[*row, 4][:n] for row in SEGMENTS]}

    def stand_in(q: Any, k: Any, v: Any, *, implementation: str, **given: Any) -> jax.Array:
        called.append(implementation)
        assert q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0 and v.shape[1] % 2 == 0
        assert masks["lengths"] or n % 2 or given["key_value_seq_lengths"] is None
        return original(q, k, v, implementation="xla", **given)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    inputs = queries_keys_values(n, width=8)
    seen = {name: jnp.asarray(m) if isinstance(m, list) else m for name, m in masks.items()}
    y = attention.flash(*map(jnp.asarray, inputs), **seen)
    assert called == ["cudnn"]
    assert_close(y, attend_by_loop(*inputs, **masks), 1e-6)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_are_slices_of_the_width(bias, qk_norm):
    x, heads, c = normal(0, 3, 7, 8), 2, 4
    model = Attention(heads, bias=bias, qk_norm=qk_norm)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    leaves = {p: normal(i, *s.shape) for i, (p, s) in enumerate(tree.flatten(shapes).items())}
    assert [leaf for leaf in "qkv" if f"{leaf}/bias" in leaves] == (list("qkv") if bias else [])

    def dense(leaf: str, x: np.ndarray) -> np.ndarray:
        return x @ leaves[f"{leaf}/kernel"] + leaves.get(f"{leaf}/bias", 0)

    def normed(leaf: str, x: np.ndarray) -> np.ndarray:
        if not qk_norm or leaf == "v":
            return x
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
        return x * leaves[f"{leaf}_norm/scale"] + leaves[f"{leaf}_norm/bias"]

    each = []
    for head in range(heads):
        part = slice(head * c, (head + 1) * c)
        q, k, v = (normed(leaf, dense(leaf, x)[:, :, None, part]) for leaf in "qkv")
        each.append(attend_by_loop(q, k, v, False, None)[:, :, 0])
    y = model.apply({"params": tree.unflatten(leaves)}, x)
    assert_close(y, dense("out", np.concatenate(each, axis=-1)), 1e-5)


def test_qk_norm_takes_the_size_of_queries_and_keys_out_of_the_scores():
    x = normal(0, 3, 7, 8)
    model = Attention(2, bias=False, qk_norm=True)
    params = model.init(jax.random.key(0), x)["params"]
    larger = {name: {"kernel": 50 * params[name]["kernel"]} for name in "qk"}
    y = model.apply({"params": {**params, **larger}}, x)
    assert_close(y, model.apply({"params": params}, x), 1e-4)  # but for ε


def test_what_is_remembered_is_what_all_at_once_attends_to():
    """Ragged prompts of 4, 2 and 3 tokens, then one at a time; what lay behind is not read."""
    n, lengths = 7, jnp.asarray([4, 2, 3])
    q, k, v = (jnp.asarray(normal(seed, 3, n, heads, 4)) for seed, heads in enumerate((6, 2, 2)))
    expected = attend(q, k, v, causal=True, window=3)
    cache = {name: jnp.full((3, n, 2, 4), 9.0) for name in "kv"}
    y, cache = attention.read(q[:, :4], k[:, :4], v[:, :4], cache, jnp.zeros(3, jnp.int32), 3)
    for b, length in enumerate(lengths):
        assert_close(y[b, :length], expected[b, :length], 1e-6)
    rows, start = jnp.arange(3), lengths
    for _ in range(3):
        q1, k1, v1 = (x[rows, start][:, None] for x in (q, k, v))
        y, cache = attention.read(q1, k1, v1, cache, start, 3)
        assert_close(y[:, 0], expected[rows, start], 1e-6)
        start = start + 1


# Rotary positions and RMSNorm.


def test_rotation_matches_complex_numbers():
    """The pair (i, i + c/2) is a complex number times exp(i · position · base^(−2i/c))."""
    x, positions = normal(0, 2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 100]])
    turn = positions[:, :, None] * 100.0 ** (-np.arange(4) / 4)
    expected = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * turn)[:, :, None]
    angles = rope.angles(jnp.asarray(positions), rope.frequencies(8, 100.0))
    y = rope.rotate(jnp.asarray(x), *angles)
    assert_close(y, np.concatenate([expected.real, expected.imag], axis=-1), 1e-5)


def test_rotated_scores_depend_on_distances_alone():
    q, k = (jnp.asarray(normal(seed, 1, 4, 1, 8)) for seed in range(2))
    frequencies = rope.frequencies(8, 10_000.0)

    def scores(first: int) -> jax.Array:
        angles = rope.angles(first + jnp.arange(4)[None], frequencies)
        return jnp.einsum("bnhc,bmhc->bhnm", rope.rotate(q, *angles), rope.rotate(k, *angles))

    assert_close(scores(50), scores(0), 1e-4)


def test_rms_norm_matches_numpy_and_keeps_its_statistics_in_float32():
    x, scale = 50 * normal(0, 2, 3, 8), normal(1, 8)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * scale
    model = RMSNorm(epsilon=0.1)
    assert_close(model.apply({"params": {"scale": scale}}, x), expected, 1e-6)
    large = jnp.full((1, 4), 3e38, jnp.bfloat16)  # whose square is no bfloat16 but for the sum
    assert (
        RMSNorm(1e-6).apply({"params": {"scale": jnp.ones(4)}}, large / 1e20).dtype == large.dtype
    )


# Feed-forward.


def gelu_by_erf(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def gelu_by_tanh(x: float) -> float:
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


@pytest.mark.parametrize("ours, loop", [(gelu, gelu_by_erf), (gelu_tanh, gelu_by_tanh)])
def test_the_mlp_matches_its_formula(ours, loop):
    x = 2 * normal(0, 2, 3, 8)
    model = Mlp(16, ours, bias_init=nn.initializers.normal(1.0))
    variables = model.init(jax.random.key(0), x)
    fc1, fc2 = (variables["params"][leaf] for leaf in ("fc1", "fc2"))
    assert_close(model.apply(variables, x), dense(fc2, np.vectorize(loop)(dense(fc1, x))), 1e-6)


def test_swiglu_matches_its_formula():
    x = 2 * normal(0, 2, 3, 8)
    model = SwiGlu(16, bias_init=nn.initializers.normal(1.0))
    variables = model.init(jax.random.key(0), x)
    gate, up, down = (variables["params"][leaf] for leaf in ("gate", "up", "down"))
    gates = dense(gate, x)
    expected = dense(down, gates / (1 + np.exp(-gates)) * dense(up, x))
    assert_close(model.apply(variables, x), expected, 1e-6)


# Leaving out.


def test_branches_are_lost_as_often_as_their_rates_say_and_keep_their_mean():
    rates, batch = np.asarray([0.0, 0.25, 0.5]), 4096
    factors = np.asarray(drop.stochastic_depth(jax.random.key(0), jnp.asarray(rates), 2, batch))
    assert factors.shape == (3, 2, batch)
    for rate, row in zip(rates, factors, strict=True):
        assert set(np.unique(row)) == ({1.0} if rate == 0 else {0.0, np.float32(1 / (1 - rate))})
        deviation = math.sqrt(rate * (1 - rate) / row.size)
        assert abs((row == 0).mean() - rate) <= 4 * deviation
    lost = (factors[1:] == 0).reshape(4, batch)  # blocks and branches are drawn apart
    assert np.abs(np.corrcoef(lost) - np.eye(4)).max() < 4 / math.sqrt(batch)


def test_a_branch_is_scaled_example_by_example():
    branch, factors = normal(0, 3, 5, 4), jnp.asarray([0.0, 2.0, 1.0])
    y = drop.drop_path(jnp.asarray(branch), factors)
    np.testing.assert_array_equal(y, np.stack([0 * branch[0], 2 * branch[1], branch[2]]))
    assert drop.drop_path(jnp.asarray(branch, jnp.bfloat16), factors).dtype == jnp.bfloat16
    np.testing.assert_array_equal(drop.drop_path(jnp.asarray(branch), None), branch)


@pytest.mark.parametrize("share, kept", [(0.5, 5), (0.24, 8), (0.26, 7), (0.99, 1)])
def test_as_many_patches_are_kept_of_every_example_in_their_order(share, kept):
    numbers = jnp.broadcast_to(jnp.arange(10.0)[None, :, None], (512, 10, 2))
    y = np.asarray(drop.keep_patches(jax.random.key(0), numbers, share))
    assert y.shape == (512, kept, 2)
    assert (np.diff(y[:, :, 0], axis=1) > 0).all() and (y[:, :, 0] == y[:, :, 1]).all()
    counts = np.bincount(y[:, :, 0].astype(int).ravel(), minlength=10)
    expected = 512 * kept / 10  # every patch as often as the others
    assert np.abs(counts - expected).max() <= 5 * math.sqrt(expected * (1 - kept / 10))


# Stacks.


class Affine(nn.Module):
    """Does not commute, so that the order of blocks and rows shows."""

    @nn.compact
    def __call__(self, x: jax.Array, *, shift: jax.Array, gain: float) -> jax.Array:
        return gain * x * self.param("scale", nn.initializers.normal(), ()) + shift


class Stacked(nn.Module):
    mode: Any
    remat: Any

    @nn.compact
    def __call__(self, x: jax.Array, shifts: jax.Array) -> jax.Array:
        each = {"shift": shifts}
        return stack(Affine, 3, x, mode=self.mode, remat=self.remat, each=each, gain=2.0)


@pytest.mark.parametrize("remat", [False, True, "dots"])
@pytest.mark.parametrize("mode", ["loop", "scan"])
def test_each_block_gets_its_row(mode, remat):
    x, shifts, scales = normal(0, 4), normal(1, 3, 4), normal(2, 3)
    params = {f"block_{i}": {"scale": scale} for i, scale in enumerate(scales)}
    params = params if mode == "loop" else tree.stacked(params)
    expected = x
    for scale, shift in zip(scales, shifts, strict=True):
        expected = 2 * expected * scale + shift
    y = Stacked(mode, remat).apply({"params": params}, jnp.asarray(x), jnp.asarray(shifts))
    assert_close(y, expected, 1e-6)


@pytest.mark.parametrize("mode", ["loop", "scan"])
def test_a_policy_says_which_matrix_products_are_computed_again(mode):
    """None without remat, those of attention weights for "dots", all of a block for True."""

    def products(remat: Any) -> int:
        model = zoo.create("gpt2", **small, layers=mode, remat=remat)
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens)

        def loss(variables: Any) -> jax.Array:
            return model.apply(variables, tokens).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(variables)).count("dot_general")

    small = {"width": 8, "depth": 1, "heads": 2, "mlp": 16, "vocab": 11, "context": 4}
    tokens = jnp.zeros((1, 4), jnp.int32)
    once, dots, block = products(False), products("dots"), products(True)
    # q, k, v, out and fc1, and scores and their sums; nobody asks for what fc2 gave.
    assert (dots - once, block - once) == (2, 7)


# Patches and positions.


def test_cut_patches_are_embedded_as_by_a_strided_convolution():
    image, kernel = normal(0, 2, 12, 8, 3), normal(1, 4, 4, 3, 5)
    y = jnp.einsum("bhwpqc,pqcd->bhwd", posemb.cut(jnp.asarray(image), 4, 3), kernel)
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(image, kernel, (4, 4), "VALID", None, None, numbers)
    assert_close(y, expected, 1e-6)


def resize_by_loop(grid: np.ndarray, wanted: tuple[int, int], kernel: str) -> np.ndarray:
    """One wanted point at a time, from the held points that the kernel reaches."""
    resized = np.zeros((*wanted, grid.shape[-1]))
    for y, x in np.ndindex(*wanted):
        for i, weight_y in POINTS[kernel](y, grid.shape[0], wanted[0]):
            for j, weight_x in POINTS[kernel](x, grid.shape[1], wanted[1]):
                resized[y, x] += weight_y * weight_x * grid[i, j]
    return resized


def keys(t: float, a: float) -> float:
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def bicubic_points(at: int, held: int, wanted: int) -> Iterator[tuple[int, float]]:
    point = (at + 0.5) * held / wanted - 0.5
    for i in range(math.floor(point) - 1, math.floor(point) + 3):
        yield min(max(i, 0), held - 1), keys(point - i, -0.75)


def antialias_points(at: int, held: int, wanted: int) -> Iterator[tuple[int, float]]:
    point, width = (at + 0.5) * held / wanted - 0.5, max(held / wanted, 1.0)
    weights = {i: keys((point - i) / width, -0.5) for i in range(held)}
    yield from ((i, weight / sum(weights.values())) for i, weight in weights.items())


def linear_points(at: int, held: int, wanted: int) -> Iterator[tuple[int, float]]:
    point = at * (held - 1) / (wanted - 1) if wanted > 1 else 0.0
    below = min(math.floor(point), held - 1)
    yield below, 1 - (point - below)
    yield min(below + 1, held - 1), point - below


POINTS: dict[str, Callable[[int, int, int], Iterator[tuple[int, float]]]] = {
    "bicubic": bicubic_points,
    "antialias": antialias_points,
    "linear": linear_points,
}
KERNEL = pytest.mark.parametrize("kernel", posemb.KERNELS)


@KERNEL
@pytest.mark.parametrize(
    "held, wanted",
    [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((5, 3), (8, 2)), ((3, 4), (1, 1)), ((1, 1), (2, 3))],
)
def test_resizing_matches_a_python_loop(kernel, held, wanted):
    grid = normal(0, *held, 2)
    resized = posemb.resize_grid(jnp.asarray(grid), wanted, kernel)
    assert_close(resized, resize_by_loop(grid, wanted, kernel), 1e-6)


def recorded_positions() -> dict[str, np.ndarray]:
    with np.load(POSITIONS) as file:
        return {name: file[name] for name in file if name != "versions"}


def test_resizing_matches_torch_and_scipy():
    recorded = recorded_positions()
    assert {name.partition("/")[0] for name in recorded} == set(posemb.KERNELS)
    sizes = {"7x7": (4, 4), "4x4": (7, 7), "8x2": (5, 3), "6x9": (6, 6), "3x2": (1, 1)}
    sizes |= {"1x1": (3, 4), "24x24": (14, 14), "14x15": (24, 24)}
    assert len(recorded) == 3 * len(sizes)
    for name, expected in recorded.items():
        kernel, _, size = name.partition("/")
        grid = jnp.asarray(draw_image(size, (*sizes[size], 2)))
        assert_close(posemb.resize_grid(grid, expected.shape[:2], kernel), expected, 1e-6)


@KERNEL
def test_a_constant_grid_stays_constant(kernel):
    for held in range(1, 30):
        for wanted in range(1, 30):
            np.testing.assert_allclose(posemb.KERNELS[kernel](held, wanted).sum(axis=1), 1)


def test_the_last_point_is_the_corner_also_where_scipy_rounds_it_away():
    for held, wanted in [(24, 22), (15, 26), (14, 24)]:
        weights = posemb.linear(held, wanted)
        np.testing.assert_allclose(weights[-1], np.eye(held)[-1], atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_tokens_in_front_keep_their_positions(prefix):
    positions = jnp.asarray(normal(0, prefix + 6, 4))
    resized = posemb.resize_positions(positions, prefix, (2, 3), (5, 4), "bicubic")
    np.testing.assert_array_equal(resized[:prefix], positions[:prefix])
    grid = positions[prefix:].reshape(2, 3, 4)
    expected = posemb.resize_grid(grid, (5, 4), "bicubic").reshape(20, 4)
    np.testing.assert_array_equal(resized[prefix:], expected)
    assert posemb.resize_positions(positions, prefix, (2, 3), (2, 3), "bicubic") is positions


def test_half_precision_is_resized_in_float32():
    grid = jnp.asarray(normal(0, 7, 7, 2), jnp.bfloat16)
    resized = posemb.resize_grid(grid, (5, 5), "antialias")
    assert resized.dtype == jnp.bfloat16
    whole = posemb.resize_grid(grid.astype(jnp.float32), (5, 5), "antialias")
    np.testing.assert_array_equal(resized, whole.astype(jnp.bfloat16))


# Pages.

PAGE = pytest.mark.parametrize("page", [vit, dinov2], ids=["vit", "dinov2"])


def model_of(page: Any, depth: int = 1, **changes: Any) -> Any:
    return zoo.module_class(page)(replace(page.TINY, depth=depth, **changes))


def image_of(height: int = 32, width: int = 32, batch: int = 2, seed: int = 0) -> jax.Array:
    return jnp.asarray(normal(seed, batch, height, width, 3))


@PAGE
@pytest.mark.parametrize("size", [(40, 24), (16, 16), (8, 48)])
def test_another_image_size_is_taken(page, size):
    model = model_of(page)

    def shape_of(method: str) -> Any:
        return jax.eval_shape(
            lambda v, x: model.apply(v, x, method=method), filled(model), image_of(*size)
        )

    prefix = {vit: 1, dinov2: 3}[page]
    assert shape_of("tokens").shape == (2, prefix + size[0] * size[1] // 64, 32)
    assert shape_of("features")[0].shape == (2, size[0] // 8, size[1] // 8, 32)


@PAGE
@pytest.mark.parametrize(
    "size, way_out",
    [((30, 32), "24×32 or 32×32"), ((35, 50), "32×48 or 40×56"), ((5, 16), "8×16 or 8×16")],
)
def test_a_size_that_is_no_multiple_is_refused_with_the_way_out(page, size, way_out):
    model = model_of(page)
    message = f"image {size[0]}×{size[1]} is not a multiple of patch 8; resize to {way_out}"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), image_of(*size))


@pytest.mark.parametrize(
    "page, changes",
    [
        (vit, {"positions": "bicubic"}),
        (vit, {"positions": "antialias", "distillation": "token"}),
        (vit, {"positions": "linear", "class_token": False, "pool": "mean"}),
        (dinov2, {"positions": "bicubic"}),
        (dinov2, {"positions": "antialias", "image_size": (24, 40)}),
    ],
)
def test_a_model_for_another_size_is_the_model_given_that_size(page, changes):
    """`resize` once, on load, or in every call: the same, and by the kernel of the config."""
    held = model_of(page, **changes)
    wanted = type(held)(replace(held.config, image_size=(48, 16)))
    params = filled(held)["params"]
    resized = {
        path: page.resize(path, leaf, held.config, wanted.config)
        for path, leaf in tree.flatten(params).items()
    }
    assert [p for p, x in tree.flatten(params).items() if resized[p] is not x] == ["positions"]
    image = image_of(48, 16)
    y = held.apply({"params": params}, image)
    assert_close(wanted.apply({"params": tree.unflatten(resized)}, image), y, 1e-5)
    for other in {"bicubic", "antialias"} - {held.config.positions}:
        config = replace(held.config, positions=other)
        assert np.abs(type(held)(config).apply({"params": params}, image) - y).max() > 1e-3


@PAGE
def test_tokens_and_positions_are_in_their_places(page):
    """Where attention says nothing, a change in one patch or position moves that token alone."""
    model = model_of(page)
    params, image = filled(model)["params"], image_of(batch=1)
    params = tree.map_named(lambda path, x: 0 * x if "attn/out" in path else x, params)

    def tokens(image: jax.Array, positions: jax.Array) -> jax.Array:
        variables = {"params": {**params, "positions": positions}}
        return model.apply(variables, image, method="tokens")[0]

    def moved(changed: jax.Array) -> list[int]:
        return np.flatnonzero(np.abs(changed - before).max(axis=1) > 1e-4).tolist()

    positions = params["positions"]
    before = tokens(image, positions)
    prefix = len(before) - 16  # the third patch of the second row is number 6
    assert moved(tokens(image.at[:, 8:16, 16:24].add(image_of(8, 8, 1)), positions)) == [prefix + 6]
    row = len(positions) - 16 + 6
    assert moved(tokens(image, positions.at[row].add(positions[0]))) == [prefix + 6]
    assert moved(tokens(image, positions.at[0].add(positions[row]))) == [0]
    [maps] = model.apply({"params": params}, image, method="features")
    np.testing.assert_array_equal(maps.reshape(16, 32), before[prefix:])


RATES = {"dropout": 0.5, "drop_path": 0.5, "patch_dropout": 0.5}


@PAGE
def test_bfloat16_stays_with_everything_left_out(page):
    fields = page.Config.__dataclass_fields__
    model = model_of(page, **{key: rate for key, rate in RATES.items() if key in fields})
    variables = tree.cast(filled(model), jnp.bfloat16)
    rngs = {"dropout": jax.random.key(0)}
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, rngs=rngs))
    y = step(variables, image_of().astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and np.isfinite(y.astype(jnp.float32)).all()


@pytest.mark.parametrize("rate", RATES)
def test_a_rate_works_in_training_alone(rate):
    plain, model = model_of(vit, depth=2), model_of(vit, depth=2, **{rate: 0.5})
    variables, image = filled(plain), image_of()
    expected = plain.apply(variables, image)
    np.testing.assert_array_equal(model.apply(variables, image), expected)
    first, second = (
        model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 1)
    )
    assert np.abs(first - expected).max() > 1e-3 < np.abs(first - second).max()


def test_dropout_follows_the_positions_and_all_dense_layers_but_q_k_v():
    """Appendix B.1 of the ViT paper."""
    found = []

    def spy(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            assert not context.module.deterministic
            found.append(("/".join(context.module.path), context.module.rate))
        return call(*args, **kwargs)

    model = model_of(vit, dropout=0.1)
    variables = filled(model)
    with nn.intercept_methods(spy):
        model.apply(variables, image_of(), train=True, rngs={"dropout": jax.random.key(0)})
    places = ["drop", "block_0/drop", "block_0/mlp/drop1", "block_0/mlp/drop2"]
    assert found == [(place, 0.1) for place in places]


def rates_seen(page: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seen = []

    def spy(rng: jax.Array, rates: jax.Array, branches: int, batch: int) -> jax.Array:
        seen.extend(rates.tolist())
        return jnp.ones((len(rates), branches, batch))

    monkeypatch.setattr(page, "stochastic_depth", spy)
    model = model_of(page, depth=3, drop_path=0.2)
    rngs = {"dropout": jax.random.key(0)}
    model.apply(filled(model), image_of(), train=True, rngs=rngs)
    return seen


@pytest.mark.parametrize("page, rates", [(vit, [0.0, 0.1, 0.2]), (dinov2, [0.2, 0.2, 0.2])])
def test_rates_grow_with_depth_in_vit_and_are_equal_in_dinov2(page, rates, monkeypatch):
    np.testing.assert_allclose(rates_seen(page, monkeypatch), rates, rtol=1e-6)


@PAGE
def test_a_lost_branch_adds_nothing(page, monkeypatch):
    """Without all of its branches a block is the identity; without one, it keeps the other."""
    model = model_of(page, depth=2, drop_path=0.5)
    variables, image = filled(model), image_of()

    def tokens(*kept: float) -> jax.Array:
        factors = jnp.broadcast_to(jnp.asarray(kept)[None, :, None], (2, 2, 2))
        monkeypatch.setattr(page, "stochastic_depth", lambda *_: factors)
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, image, train=True, rngs=rngs, method="tokens")

    shallow = {k: v for k, v in variables["params"].items() if not k.startswith("block")}
    embedder = type(model)(replace(model.config, depth=0))
    embedded = embedder.apply({"params": shallow}, image, method="tokens")
    assert_close(tokens(0, 0), embedded, 1e-6)
    assert_close(tokens(1, 1), model.apply(variables, image, method="tokens"), 1e-6)

    def without(*leaves: str) -> Any:
        silent = tree.flatten(variables)
        for path, leaf in silent.items():
            if any(end in path for end in leaves):
                silent[path] = jnp.zeros_like(leaf)
        return model.apply(tree.unflatten(silent), image, method="tokens")

    last = {vit: "mlp/fc2", dinov2: "mlp/down"}[page]
    assert_close(tokens(1, 0), without(last), 1e-6)
    assert_close(tokens(0, 1), without("attn/out"), 1e-6)


def test_patch_dropout_leaves_out_patches_but_no_tokens_and_no_features():
    model = model_of(vit, patch_dropout=0.25, distillation="token")
    variables, image = filled(model), image_of()

    rngs = {"dropout": jax.random.key(0)}

    def whole(method: str, train: bool) -> Any:
        return model.apply(variables, image, train=train, rngs=rngs, method=method)

    assert whole("tokens", train=True).shape == (2, 2 + 12, 32)
    assert whole("tokens", train=False).shape == (2, 2 + 16, 32)
    assert_close(whole("features", train=True)[0], whole("features", train=False)[0], 1e-6)
    # All but the patches left out are what they are without dropout, before they meet.
    silent = tree.map_named(lambda p, x: 0 * x if "attn/out" in p else x, variables)
    some = model.apply(silent, image, train=True, rngs=rngs, method="tokens")
    every = model.apply(silent, image, method="tokens")
    assert_close(some[:, :2], every[:, :2], 1e-6)
    for kept, patches in zip(np.asarray(some[:, 2:]), np.asarray(every[:, 2:]), strict=True):
        assert all((abs(patch - patches) < 1e-5).all(axis=1).any() for patch in kept)


def test_two_heads_answer_apart_in_training_and_as_one_after():
    model = model_of(vit, distillation="head")
    variables, image = filled(model), image_of()
    logits, distilled = model.apply(variables, image, train=True)
    assert_close(model.apply(variables, image), (logits + distilled) / 2, 1e-6)
    x = model.apply(variables, image, method="tokens")
    for token, name, answer in [(0, "head", logits), (1, "head_distillation", distilled)]:
        assert_close(answer, dense(variables["params"][name], np.asarray(x[:, token])), 1e-5)


@pytest.mark.parametrize(
    "changes, prefix",
    [
        ({}, 1),
        ({"distillation": "token"}, 2),
        ({"pool": "mean"}, 1),
        ({"pool": "mean", "distillation": "token"}, 2),
        ({"pool": "mean", "class_token": False}, 0),
    ],
)
def test_what_is_pooled(changes, prefix):
    model = model_of(vit, num_classes=0, **changes)
    variables, image = filled(model), image_of()
    x = np.asarray(model.apply(variables, image, method="tokens"))
    assert x.shape == (2, prefix + 16, 32)
    expected = x[:, prefix:].mean(axis=1) if "pool" in changes else x[:, 0]
    assert_close(model.apply(variables, image), expected, 1e-6)


def test_the_representation_is_a_tanh_layer():
    model = model_of(vit, num_classes=0, representation=24)
    variables, image = filled(model), image_of()
    token = np.asarray(model.apply(variables, image, method="tokens")[:, 0])
    expected = np.tanh(dense(variables["params"]["representation"], token))
    assert_close(model.apply(variables, image), expected, 1e-5)


def test_a_masked_patch_gives_its_place_to_the_mask_token():
    model = model_of(dinov2)
    variables, image = filled(model), image_of()
    mask = np.zeros((2, 16), bool)
    mask[0, 5] = mask[1, 10] = True  # rows and columns (1, 1) and (2, 2)
    y = model.apply(variables, image, mask=mask)
    changed = image.at[0, 8:16, 8:16].add(1.0).at[1, 16:24, 16:24].add(-2.0)
    np.testing.assert_array_equal(model.apply(variables, changed, mask=mask), y)
    assert np.abs(model.apply(variables, changed) - model.apply(variables, image)).max() > 1e-3

    def loss(params: Any) -> jax.Array:
        return (model.apply({"params": params}, image, mask=mask) ** 2).sum()

    assert np.all(jax.jit(jax.grad(loss))(variables["params"])["mask_token"])


def test_a_mask_without_a_mask_token_is_refused():
    model = model_of(dinov2, mask_token=False)
    with pytest.raises(ValueError, match="create the model with mask_token=True"):
        jax.eval_shape(
            lambda image, mask: model.init(jax.random.key(0), image, mask=mask),
            image_of(),
            np.zeros((2, 16), bool),
        )


def test_the_head_of_dinov2_sees_the_class_token_and_the_mean_patch():
    model = model_of(dinov2)
    variables, image = filled(model), image_of()
    x = np.asarray(model.apply(variables, image, method="tokens"))
    both = np.concatenate([x[:, 0], x[:, 3:].mean(axis=1)], axis=1)
    assert_close(model.apply(variables, image), dense(variables["params"]["head"], both), 1e-5)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("vit_s16", {"heads": 5}, "width 384 is no multiple of 5 heads"),
        ("vit_s16", {"image_size": 230}, "image_size 230 is no multiple of patch 16"),
        ("vit_s16", {"image_size": (224, 230)}, r"image_size \(224, 230\) is no multiple"),
        ("vit_s16", {"class_token": False}, "without a class token"),
        ("deit_s16_distilled", {"class_token": False, "pool": "mean"}, "without a class token"),
        ("vit_s16", {"dropout": 1.0}, r"in \[0, 1\), not 1.0"),
        ("vit_s16", {"drop_path": -0.1}, r"in \[0, 1\), not -0.1"),
        ("vit_s16", {"patch_dropout": 1.5}, r"in \[0, 1\), not 1.5"),
        ("dinov2_s14", {"heads": 5}, "width 384 is no multiple of 5 heads"),
        ("dinov2_s14", {"image_size": 224 + 1}, "image_size 225 is no multiple of patch 14"),
        ("dinov2_s14", {"drop_path": 1.0}, r"in \[0, 1\), not 1.0"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create(name, **options)
