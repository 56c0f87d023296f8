"""The pure update: one result on every mesh, under jit and pmap, accumulated or not."""

from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from train import parallel, step
from train.config import ConfigError, Experiment, Images, Model, Optim, Parallel, Setup, Step
from train.state import State
from train.tasks.classify import Classify

SGD = Optim("sgd", lr=0.1, schedule="constant", weight_decay=1e-3)
TINY = {"depths": (1, 1), "widths": (8, 16), "stem_width": 8}


def experiment(**changes) -> Experiment:
    """A small ResNet on digits, under SGD: Adam would hide a gradient of the wrong scale."""
    model = Model("resnet20", TINY)
    data = Images(batch_size=32, mean=(0.3,), std=(0.35,))
    return Experiment(**{"model": model, "data": data, "task": Classify(), "optim": SGD} | changes)


@cache
def batches(count: int = 10, batch_size: int = 32) -> list[dict[str, np.ndarray]]:
    data = Images(batch_size=batch_size).open()
    stream = data.train()
    found = [{k: v for k, v in next(stream).items() if k in data.spec()} for _ in range(count)]
    stream.close()
    return found


def compiled(cfg: Experiment, devices: int):
    """(first state, update, put) of the experiment on that many devices."""
    mesh = parallel.make_mesh(cfg.parallel, jax.devices()[:devices])
    data = cfg.data.open()
    task = cfg.task.build(Setup(cfg, data, parallel.axis(cfg.parallel)))
    first, abstract = parallel.initialise(
        task.init, jax.random.key(0), data.spec(), mesh, task.rules
    )
    update = parallel.compile_update(task.update, abstract, mesh, cfg.parallel)
    return first(), update, lambda batch: parallel.put(mesh, batch)


def trained(cfg: Experiment, devices: int = 1, steps: int = 10):
    state, update, put = compiled(cfg, devices)
    for batch in batches()[:steps]:
        state, metrics = update(state, put(batch))
    return jax.device_get(state), jax.device_get(metrics)


@cache
def one_device():
    return trained(experiment())[0]


def assert_agree(ours, reference, tolerance: float = 1e-5) -> None:
    """‖Δ‖₂ ≤ tolerance · max(‖θ‖₂, 1e-3 · √size) for every tensor."""
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, reference)

    def check(path, a, b):
        scale = max(np.linalg.norm(b), 1e-3 * np.sqrt(b.size))
        error = np.linalg.norm(np.asarray(a, np.float64) - b) / scale
        assert error <= tolerance, f"{zoo.tree.name(path)}: {error:.2e} > {tolerance}"

    jax.tree_util.tree_map_with_path(check, ours, reference)


@pytest.mark.quick
@pytest.mark.parametrize(
    "sizes",
    [
        {"devices": 2},
        {"devices": 8},
        {"devices": 8, "fsdp": 8, "data": 1},
        {"devices": 8, "fsdp": 2, "data": 4},
        {"devices": 8, "compiler": "pmap"},
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()),
)
def test_ten_steps_agree_with_one_device(sizes):
    sizes = dict(sizes)
    devices = sizes.pop("devices")
    state, _ = trained(experiment(parallel=Parallel(**sizes)), devices)
    assert_agree((state.params, state.vars), (one_device().params, one_device().vars))


def test_statistics_of_one_device_only_are_caught(monkeypatch):
    monkeypatch.setattr("zoo.layers.norm.BatchNorm._average", _local_mean)
    state, _ = trained(experiment(parallel=Parallel(compiler="pmap")), 8)
    with pytest.raises(AssertionError):
        assert_agree(state.vars, one_device().vars)


def _local_mean(self, y):
    return y.mean(axis=tuple(range(y.ndim - 1)))


@pytest.mark.parametrize("compiler", ["jit", "pmap"])
def test_sharded_parameters_are_sharded(compiler):
    cfg = experiment(
        parallel=Parallel(
            data=1 if compiler == "jit" else -1,
            fsdp=8 if compiler == "jit" else 1,
            compiler=compiler,
        )
    )
    state, update, put = compiled(cfg, 8)
    kernel = state.params["stage2"]["block_0"]["conv2"]["kernel"]
    shards = {"jit": 8, "pmap": 1}[compiler]
    assert kernel.addressable_shards[0].data.size * shards == kernel.size


class Linear:
    """A loss without batch statistics: examples are independent."""

    @staticmethod
    def loss(params, vars, batch, rng):
        logits = batch["x"] @ params["w"]
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
        return value, (vars, {})

    @staticmethod
    def state(optimizer) -> State:
        params = {"w": jax.random.normal(jax.random.key(0), (5, 3))}
        return State.create(jax.random.key(1), params, optimizer.init(params))

    @staticmethod
    def batch(n=24):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n, 5)).astype(np.float32)
        return {"x": x, "y": rng.integers(0, 3, n).astype(np.int32)}


def linear(cfg: Step, optimizer=None, **options):
    optimizer = optimizer or optax.sgd(0.5)
    update = step.supervised(
        Linear.loss, optimizer, cfg, schedule=lambda _: jnp.ones(()), **options
    )
    return jax.jit(update), Linear.state(optimizer)


def test_pmap_averages_gradients_and_a_sum_is_caught(monkeypatch):
    """The fault of a step moved to shard_map: gradients as many times too large as devices."""
    update, state = linear(Step())
    whole, _ = update(state, Linear.batch())
    mesh = parallel.make_mesh(Parallel())

    def mapped():
        update = step.supervised(
            Linear.loss, optax.sgd(0.5), Step(), schedule=lambda _: jnp.ones(()), axis="data"
        )
        new, _ = parallel.with_pmap(update, state, mesh)(state, parallel.put(mesh, Linear.batch()))
        return jax.device_get(new.params)

    chex.assert_trees_all_close(mapped(), whole.params, atol=1e-6)
    monkeypatch.setattr(jax.lax, "pmean", jax.lax.psum)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(mapped(), whole.params, atol=1e-6)


def test_a_step_that_overflows_from_finite_gradients_is_left_out():
    """Loss and gradients are finite, their product with the rate is not."""
    update, state = linear(Step(), optax.sgd(3e38))
    batch = Linear.batch()
    batch["x"] *= 100
    after, metrics = update(state, batch)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    chex.assert_trees_all_equal(after.params, state.params)
    assert int(metrics["skipped"]) == 1


@pytest.mark.quick
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_large_batch(accumulate):
    update, state = linear(Step())
    whole, metrics = update(state, Linear.batch())
    update, state = linear(Step(accumulate=accumulate))
    parts, others = update(state, Linear.batch())
    chex.assert_trees_all_close(parts.params, whole.params, atol=1e-6)
    chex.assert_trees_all_close(others, metrics, atol=1e-6)


def test_accumulation_under_batch_norm_moves_the_statistics_once_a_micro_batch():
    """As documented: four micro-batches are four batches to the running statistics."""
    cfg = experiment(step=Step(accumulate=4))
    state, _ = trained(cfg, steps=1)
    first, *_ = compiled(experiment(), 1)
    data = Images(mean=(0.3,), std=(0.35,)).open()
    model = zoo.create("resnet20", num_classes=10, in_channels=1, image_size=8, **TINY)
    stats = {"batch_stats": first.vars["batch_stats"]}
    for i in range(4):
        image = data.normalise(batches()[0]["image"][i::4])
        _, stats = model.apply(
            {"params": first.params, **stats}, image, train=True, mutable=["batch_stats"]
        )
    assert_agree(state.vars, jax.device_get(stats))


@pytest.mark.quick
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing_but_the_counters(bad):
    update, state = linear(Step(ema=0.9), optax.adam(0.1))
    state = state.replace(ema={"params": state.params})
    state, _ = update(state, Linear.batch())
    batch = Linear.batch()
    batch["x"][3, 2] = bad
    after, metrics = update(state, batch)
    assert int(after.step) == int(state.step) + 1
    assert int(after.extra["skipped"]) == int(metrics["skipped"]) == 1
    for part in ("params", "opt", "vars", "ema"):
        chex.assert_trees_all_equal(getattr(after, part), getattr(state, part))
    again, metrics = update(after, Linear.batch())
    assert int(metrics["skipped"]) == 1
    assert np.isfinite(again.params["w"]).all()


def test_the_average_follows_its_formula():
    update, state = linear(Step(ema=0.5))
    state = state.replace(ema={"params": state.params})
    average = np.asarray(state.params["w"])
    for t in range(5):
        state, _ = update(state, Linear.batch())
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema["params"]["w"], average, rtol=1e-5)
    chex.assert_trees_all_equal(state.variables(), state.ema)


def test_what_is_frozen_keeps_parameters_and_statistics_bit_for_bit():
    cfg = experiment(optim=replace(SGD, freeze=("stem/.*", "stage1/.*")))
    before, *_ = compiled(cfg, 1)
    before = jax.device_get(before)
    after, _ = trained(cfg, steps=3)
    for name in ("stem", "stage1"):
        chex.assert_trees_all_equal(after.params[name], before.params[name])
        stats = (after.vars["batch_stats"][name], before.vars["batch_stats"][name])
        chex.assert_trees_all_equal(*stats)
    for tree in (after.params, after.vars["batch_stats"]):
        assert "stage2" in tree
    moved = after.vars["batch_stats"]["stage2"]["block_0"]["norm1"]["mean"]
    assert (
        np.abs(moved - before.vars["batch_stats"]["stage2"]["block_0"]["norm1"]["mean"]).max() > 0
    )


def test_bfloat16_computes_low_and_keeps_the_state_in_float32():
    seen = []

    def apply(variables, image, **_):
        seen.append(
            (variables["params"]["w"].dtype, variables["batch_stats"]["m"].dtype, image.dtype)
        )
        return image @ variables["params"]["w"], {"batch_stats": variables["batch_stats"]}

    variables = {"params": {"w": jnp.ones((2, 2))}, "batch_stats": {"m": jnp.ones(2)}}
    logits, _ = step.precise(apply, Step(precision="bfloat16"))(variables, jnp.ones((1, 2)))
    assert seen == [(jnp.bfloat16, jnp.float32, jnp.bfloat16)] and logits.dtype == jnp.float32
    keep = step.precise(apply, Step(precision="bfloat16"), keep=["w"])
    keep(variables, jnp.ones((1, 2)))
    assert seen[-1][0] == jnp.float32
    state, metrics = trained(experiment(step=Step(precision="bfloat16")), steps=3)
    dtypes = {x.dtype for x in jax.tree.leaves((state.params, state.vars))}
    assert dtypes == {np.dtype("float32")}
    assert metrics["loss"] == pytest.approx(trained(experiment(), steps=3)[1]["loss"], abs=0.05)


def test_one_step_consumes_its_state():
    state, update, put = compiled(experiment(), 1)
    update(state, put(batches()[0]))
    assert state.params["head"]["kernel"].is_deleted()


def test_an_update_is_pure():
    """The same state and batch give the same bits, and the state is all there is."""
    a = trained(experiment(task=Classify(mixup=0.2, cutmix=1.0)), steps=3)
    b = trained(experiment(task=Classify(mixup=0.2, cutmix=1.0)), steps=3)
    chex.assert_trees_all_equal(a[0].params, b[0].params)


@pytest.mark.parametrize(
    ("sizes", "devices", "named"),
    [
        ({"compiler": "pmap", "fsdp": 2, "data": 4}, 8, "parallel.fsdp"),
        ({"compiler": "pmap", "tensor": 2, "data": 4}, 8, "parallel.tensor"),
        ({"data": 3}, 8, "parallel"),
    ],
)
def test_meshes_that_do_not_fit_are_refused_by_key(sizes, devices, named):
    with pytest.raises(ConfigError, match=named):
        compiled(experiment(parallel=Parallel(**sizes)), devices)


def test_a_batch_that_does_not_fit_the_mesh_is_refused_by_key():
    mesh = parallel.make_mesh(Parallel())
    with pytest.raises(ConfigError, match=r"data\.batch_size is 36.*multiple of 8"):
        parallel.check_batch(mesh, 36, 1)
    with pytest.raises(ConfigError, match=r"use a multiple of 16"):
        parallel.check_batch(mesh, 40, 2)
