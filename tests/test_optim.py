"""Optimizers and schedules against the formulas of their sources, written as plain loops."""

import itertools
import math
import re
from dataclasses import replace
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import optim, schedules
from train.config import ConfigError, Optim
from zoo import tree
from zoo.tree import stacked

STEPS = 40
PLAIN = Optim(schedule="constant", lr=0.1, weight_decay=0.0)


def random_like(shapes, seed=0):
    rng = np.random.default_rng(seed)

    def draw(shape):
        return rng.normal(size=shape).astype(np.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def resnet():
    block = {"conv1": {"kernel": (3, 3, 4, 4)}, "norm1": {"scale": (4,), "bias": (4,)}}
    shapes = {
        "head": {"kernel": (4, 3), "bias": (3,)},
        "stage1": {"block_0": block, "block_1": block, "block_2": block},
        "stage2": {f"block_{i}": block for i in range(11)},
        "stem": {"conv": {"kernel": (3, 3, 3, 4)}, "norm": {"scale": (4,)}},
    }
    return random_like(shapes)


def small():
    whole = resnet()
    return {name: whole[name] for name in ("head", "stem")} | {
        "stage1": {"block_0": whole["stage1"]["block_0"]}
    }


def vit():
    block = {"attn": {"q": {"kernel": (8, 8)}}, "norm1": {"scale": (8,)}}
    shapes = {
        "cls": (1, 1, 8),
        "embed": {"kernel": (4, 4, 3, 8)},
        "head": {"kernel": (8, 3)},
        "norm": {"scale": (8,)},
        "pos_embed": (1, 5, 8),
        **{f"block_{i}": block for i in range(12)},
    }
    return random_like(shapes)


def run(cfg, params, gradients, steps=100):
    """Parameters after one update per gradient tree."""
    tx = optim.optimizer(cfg, params, steps)
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def gradients_like(params, n=5):
    return [random_like(jax.tree.map(np.shape, params), seed) for seed in range(1, n + 1)]


def assert_close(a, b, tol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


def shares_of(cfg, steps=STEPS):
    """The obvious formula of each schedule, step by step, as a share of the peak."""
    w, n = cfg.warmup, steps - cfg.warmup

    def triangle(t):
        phase = (t + (cfg.cycle / 2 if w else 0)) % cfg.cycle
        up = phase / (cfg.cycle / 2)
        return cfg.final + (1 - cfg.final) * (up if up <= 1 else 2 - up)

    def half_cosine(t, n):
        return cfg.final + (1 - cfg.final) * (1 + math.cos(math.pi * t / n)) / 2

    def one_cycle(t):
        top = 0 if w else round(cfg.rise * n)
        return 0.04 + 0.96 * t / top if t < top else half_cosine(t - top, n - top)

    def wsd(t):
        left, fall = n - t, round(cfg.cooldown * steps)
        return cfg.final + (1 - cfg.final) * min(left / fall, 1)

    formulas = {
        "constant": lambda t: 1.0,
        "cosine": lambda t: half_cosine(t, n),
        "linear": lambda t: 1 - (1 - cfg.final) * t / n,
        "rsqrt": lambda t: max(cfg.final, math.sqrt(max(w, 1) / (t + max(w, 1)))),
        "wsd": wsd,
        "cyclic": triangle,
        "one_cycle": one_cycle,
    }
    f = formulas[cfg.schedule]
    return [s / w if s < w else f(s - w) for s in range(steps + 1)]


def test_the_tables_hold_what_a_config_may_name():
    kinds = get_type_hints(Optim)
    assert tuple(schedules.SCHEDULES) == get_args(kinds["schedule"])
    assert tuple(optim.OPTIMIZERS) == get_args(kinds["name"])


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("warmup, final", [(0, 0.0), (7, 0.1)])
def test_a_schedule_equals_its_formula_at_every_step(name, warmup, final):
    cfg = Optim(schedule=name, lr=0.3, warmup=warmup, final=final, cycle=10)
    lr = jax.jit(jax.vmap(schedules.schedule(cfg, STEPS)))(jnp.arange(STEPS + 1))
    assert lr.dtype == jnp.float32
    np.testing.assert_allclose(lr, 0.3 * np.array(shares_of(cfg)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_warmup_starts_at_zero_and_reaches_the_peak_at_its_last_step(name):
    lr = schedules.schedule(Optim(schedule=name, lr=0.3, warmup=8, cycle=10), STEPS)
    np.testing.assert_allclose([lr(0), lr(4), lr(8)], [0, 0.15, 0.3], rtol=1e-6)
    assert lr(jnp.arange(STEPS)).max() <= 0.3 * (1 + 1e-6)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "one_cycle"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_a_decaying_schedule_ends_at_the_final_share_and_stays(name, warmup):
    lr = schedules.schedule(Optim(schedule=name, lr=0.3, warmup=warmup, final=0.1), STEPS)
    np.testing.assert_allclose([lr(STEPS), lr(2 * STEPS)], [0.03, 0.03], rtol=1e-5)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 100])
def test_a_schedule_never_jumps(name, warmup):
    cfg = Optim(schedule=name, lr=1.0, warmup=warmup, final=0.1, cycle=200)
    lr = schedules.schedule(cfg, 1000)(jnp.arange(1001))
    # rsqrt without warm-up is steep by nature: 1, √½, √⅓, …
    start = 10 if name == "rsqrt" else 0
    assert jnp.abs(jnp.diff(lr[start:])).max() < 0.02


def test_a_schedule_that_does_not_fit_is_refused_by_key():
    with pytest.raises(ConfigError, match=r"optim.warmup is 40 steps of a run of 40"):
        schedules.schedule(Optim(warmup=40), 40)
    with pytest.raises(ConfigError, match=r"optim.cooldown is 36 of 40 steps"):
        schedules.schedule(Optim(schedule="wsd", warmup=10, cooldown=0.9), 40)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_sgd_equals_torch_s_formula(nesterov, weight_decay):
    params = small()
    gradients = gradients_like(params)
    cfg = replace(PLAIN, name="sgd", nesterov=nesterov, weight_decay=weight_decay, decay=(".*",))

    def loop(p, gs):
        buffer = np.zeros_like(p)
        for g in gs:
            g = g + weight_decay * p
            buffer = 0.9 * buffer + g
            p = p - 0.1 * (g + 0.9 * buffer if nesterov else buffer)
        return p

    expected = jax.tree.map(lambda p, *gs: loop(p, gs), params, *gradients)
    assert_close(run(cfg, params, gradients)[0], expected, 1e-5)


def test_adamw_equals_algorithm_2_and_decays_kernels_only():
    params = small()
    gradients = gradients_like(params)
    cfg = replace(PLAIN, weight_decay=0.3, b2=0.95, eps=1e-3)

    def loop(path, p, *gs):
        decay = 0.3 if path.endswith("kernel") else 0.0
        m = v = np.zeros_like(p)
        for t, g in enumerate(gs, 1):
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
            p = p - 0.1 * (direction + decay * p)
        return p

    flat, *others = (tree.flatten(x) for x in (params, *gradients))
    expected = {path: loop(path, p, *(x[path] for x in others)) for path, p in flat.items()}
    assert_close(tree.flatten(run(cfg, params, gradients)[0]), expected, 1e-5)


def test_lamb_and_lars_equal_their_algorithms():
    p = {"kernel": np.array([[3.0, 4.0]], np.float32), "bias": np.array([2.0], np.float32)}
    g = {"kernel": np.array([[0.6, -0.8]], np.float32), "bias": np.array([0.5], np.float32)}
    lars, _ = run(replace(PLAIN, name="lars", weight_decay=0.2), p, [g])
    local = 0.001 * 5 / (1 + 0.2 * 5)  # η ‖w‖ / (‖g‖ + β ‖w‖)
    assert_close(lars["kernel"], p["kernel"] - 0.1 * local * (g["kernel"] + 0.2 * p["kernel"]))
    assert_close(lars["bias"], p["bias"] - 0.1 * g["bias"])  # neither decayed nor rescaled

    lamb, _ = run(replace(PLAIN, name="lamb", weight_decay=0.2), p, [g])
    r = np.sign(g["kernel"]) + 0.2 * p["kernel"]  # Adam's first step is the sign
    assert_close(lamb["kernel"], p["kernel"] - 0.1 * 5 / np.linalg.norm(r) * r)
    assert_close(lamb["bias"], p["bias"] - 0.1 * np.sign(g["bias"]))


@pytest.mark.parametrize("name", [n for n in optim.OPTIMIZERS if n not in ("sgd", "lars", "lamb")])
def test_weight_decay_is_decoupled_and_scaled_by_the_rate(name):
    # Without a gradient, only decay moves a parameter: by lr · decay of itself.
    params = small()
    zero = jax.tree.map(np.zeros_like, params)
    moved, _ = run(replace(PLAIN, name=name, weight_decay=0.5), params, [zero])
    expected = tree.map_named(lambda k, p: p * (0.95 if k.endswith("kernel") else 1.0), params)
    assert_close(moved, expected)


def test_muon_orthogonalises_hidden_kernels_and_leaves_the_rest_to_adam():
    params = small()
    (gradient,) = gradients_like(params, 1)
    updates = jax.tree.map(
        lambda a, b: (a - b) / -0.1, run(replace(PLAIN, name="muon"), params, [gradient])[0], params
    )
    adam = jax.tree.map(np.sign, gradient)
    for path in ("stem/conv/kernel", "head/kernel", "head/bias", "stage1/block_0/norm1/scale"):
        assert_close(tree.flatten(updates)[path], tree.flatten(adam)[path], 1e-4)
    hidden = updates["stage1"]["block_0"]["conv1"]["kernel"].reshape(36, 4)
    # Newton–Schulz leaves singular values in about [0.7, 1.2]; 0.2 √36 scales them.
    values = np.linalg.svd(hidden, compute_uv=False) / (0.2 * 6)
    assert (values > 0.6).all() and (values < 1.3).all()


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_layers_in_a_scan_train_as_in_a_loop(name):
    loop = random_like({f"block_{i}": {"kernel": (5, 7), "bias": (7,)} for i in range(3)})
    loop = jax.tree.map(lambda x: x * np.float32(3), loop)
    loop["block_1"] = jax.tree.map(lambda x: x * np.float32(9), loop["block_1"])
    gradients = gradients_like(loop, 2)
    cfg = replace(PLAIN, name=name, lr=0.01, weight_decay=0.1, layer_decay=0.5)
    scan, _ = run(cfg, stacked(loop), [stacked(gradient) for gradient in gradients])
    assert_close(scan, stacked(run(cfg, loop, gradients)[0]), 1e-5)


def test_lr_scale_takes_the_first_row_that_matches():
    params = small()
    gradients = gradients_like(params, 2)
    rows = ((r"head/.*", 2.0), (r".*kernel", 0.5))
    plain, _ = run(PLAIN, params, gradients)
    scaled, _ = run(replace(PLAIN, lr_scale=rows), params, gradients)
    moved = tree.flatten(jax.tree.map(lambda a, b, p: (a - p) / (b - p), scaled, plain, params))
    factors = {"head/kernel": 2.0, "stage1/block_0/conv1/kernel": 0.5, "stem/norm/scale": 1.0}
    for path, factor in factors.items():
        np.testing.assert_allclose(moved[path], factor, rtol=1e-4)


def test_layer_decay_counts_a_resnet_down_from_its_head():
    found = tree.flatten(optim.layer_rates(resnet(), 0.5))
    expected = {  # natural order: block_10 is the last of stage2's eleven, not the third
        "head/kernel": 0,
        "stage2/block_10/conv1/kernel": 1,
        "stage2/block_9/norm1/bias": 2,
        "stage2/block_0/conv1/kernel": 11,
        "stage1/block_2/conv1/kernel": 12,
        "stage1/block_0/conv1/kernel": 14,
        "stem/conv/kernel": 15,
        "stem/norm/scale": 15,
    }
    assert {path: found[path] for path in expected} == {k: 0.5**n for k, n in expected.items()}


def test_layer_decay_counts_a_vit_down_from_its_head():
    found = tree.flatten(optim.layer_rates(vit(), 0.5))
    bottom = {"cls": 13, "pos_embed": 13, "embed/kernel": 13}
    blocks = {f"block_{i}/norm1/scale": 12 - i for i in range(12)}
    expected = {"head/kernel": 0, "norm/scale": 0, **bottom, **blocks}
    assert {path: found[path] for path in expected} == {k: 0.5**n for k, n in expected.items()}


def test_layer_decay_counts_each_tower_by_itself():
    tower = {
        "block_0": {"kernel": (2, 2)},
        "block_1": {"kernel": (2, 2)},
        "embed": {"kernel": (2, 2)},
    }
    deeper = {**tower, "block_2": {"kernel": (2, 2)}}
    params = random_like({"image": tower, "text": deeper, "logit_scale": (1,)})
    found = tree.flatten(optim.layer_rates(params, 0.5))
    assert found["image/block_1/kernel"] == found["text/block_2/kernel"] == 0.5
    assert (found["image/embed/kernel"], found["text/embed/kernel"]) == (0.125, 0.0625)
    assert found["logit_scale"] == 1


def test_a_layer_in_a_scan_has_its_own_rate():
    loop = resnet()
    rates = optim.layer_rates(loop, 0.7)
    scan = dict(loop, stage2=stacked(loop["stage2"], start=1))
    found = optim.layer_rates(scan, 0.7)
    kernel = found["stage2"]["blocks"]["conv1"]["kernel"]
    expected = [rates["stage2"][f"block_{i}"]["conv1"]["kernel"] for i in range(1, 11)]
    assert kernel.shape == (10, 1, 1, 1, 1)
    np.testing.assert_allclose(kernel.ravel(), expected)
    assert found["stem"] == rates["stem"] and found["stage1"] == rates["stage1"]


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_frozen_parameters_stay_bitwise_and_have_no_moments(name):
    params = small()
    cfg = replace(PLAIN, name=name, weight_decay=0.1, freeze=(r"stem/.*", r"stage1/.*"))
    moved, state = run(cfg, params, gradients_like(params, 2))
    for path, before in tree.flatten(params).items():
        after = tree.flatten(moved)[path]
        assert np.array_equal(before, after) == path.startswith(("stem", "stage1")), path
    moments = [path for path in tree.flatten(state) if re.search("stem|stage1", path)]
    assert not moments
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_frozen_gradients_do_not_count_for_clipping():
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    gradient = {"a": np.array([3, 4], np.float32), "b": np.array([12], np.float32)}
    sgd = replace(PLAIN, name="sgd", lr=1.0, momentum=0.0, nesterov=False, clip=1.0)
    both, _ = run(sgd, params, [gradient])
    assert_close(both, jax.tree.map(lambda g: -g / 13, gradient))
    one, _ = run(replace(sgd, freeze=("b",)), params, [gradient])
    assert_close(one, {"a": -gradient["a"] / 5, "b": np.zeros(1)})
    large, _ = run(replace(sgd, clip=20.0), params, [gradient])
    assert_close(large, jax.tree.map(np.negative, gradient))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"decay": ("kernels",), "weight_decay": 0.1}, "optim.decay: .*'kernels' matches no path"),
        ({"freeze": ("stm/.*",)}, r"optim.freeze: .*'stm/.\*' matches no path; near it: .*stem"),
        ({"lr_scale": ((r"head(.*", 2.0),)}, r"optim.lr_scale: regex 'head\(.\*': missing \)"),
        ({"freeze": (".*",)}, "optim.freeze: .* freezes every parameter"),
    ],
)
def test_a_table_that_cannot_work_is_refused_by_key(change, message):
    with pytest.raises(ConfigError, match=message):
        optim.optimizer(replace(PLAIN, **change), jax.eval_shape(resnet), STEPS)


def test_layer_decay_without_layers_is_refused_by_key():
    with pytest.raises(ConfigError, match="optim.layer_decay: no parameter is in a layer"):
        optim.optimizer(replace(PLAIN, layer_decay=0.5), {"fc1": {"kernel": np.ones((2, 2))}}, 10)


def test_without_weight_decay_the_default_regex_may_match_nothing():
    params = {"grid": np.ones(3, np.float32)}
    optim.optimizer(PLAIN, params, STEPS)
    with pytest.raises(ConfigError, match="optim.decay"):
        optim.optimizer(replace(PLAIN, weight_decay=0.1), params, STEPS)


RATES = dict(adamw=0.1, sgd=0.1, lamb=0.1, lars=100.0, lion=0.05, adafactor=0.1, muon=0.3)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_with_every_schedule_reduces_a_quadratic(name):
    params = random_like({"block_0": {"kernel": (3, 5), "bias": (5,)}, "head": {"kernel": (5, 2)}})

    def square(p):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(p))

    for schedule, warmup in zip(schedules.SCHEDULES, itertools.cycle((0, 2)), strict=False):
        cfg = Optim(name, RATES[name], schedule, warmup, cycle=6, decay=(".*",), clip=100.0)
        tx = optim.optimizer(cfg, params, 10)

        def train(params, tx=tx):
            def step(_, carry):
                params, state = carry
                updates, state = tx.update(jax.grad(square)(params), state, params)
                return optax.apply_updates(params, updates), state

            return jax.lax.fori_loop(0, 10, step, (params, tx.init(params)))

        trained, state = jax.jit(train)(params)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((trained, state)))
        assert square(trained) < 0.9 * square(params), schedule


def test_ema_moves_floats_and_copies_the_rest():
    old = {"w": jnp.array([1.0, 3.0]), "half": jnp.ones(2, jnp.bfloat16), "count": jnp.int32(3)}
    new = {"w": jnp.array([2.0, 1.0]), "half": jnp.zeros(2, jnp.bfloat16), "count": jnp.int32(7)}
    average = optim.ema(old, new, 0.75, 1000)
    np.testing.assert_allclose(average["w"], [1.25, 2.5])
    assert average["half"].dtype == jnp.bfloat16 and average["half"][0] == 0.75
    assert average["count"] == 7


def test_ema_forgets_its_start():
    move = jax.jit(optim.ema, static_argnums=2)
    ones, zeros = {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}
    decays = [move(ones, zeros, 0.9, t)["w"][0] for t in (0, 5, 1000)]
    np.testing.assert_allclose(decays, [0.1, 0.4, 0.9], rtol=1e-6)
