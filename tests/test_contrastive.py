"""Contrastive losses and their gradients against NumPy in float64, however they are computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from tests.test_losses import sizes
from train import contrastive, parallel, step
from train.config import Parallel
from train.state import State

B, FEATURES, E, CHUNK, MICRO = 16, 6, 4, 4, 2
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(B, FEATURES)).astype(np.float32),
    "tokens": RNG.normal(size=(B, FEATURES)).astype(np.float32),
}
PARAMS = {
    "image": RNG.normal(size=(FEATURES, E)).astype(np.float32),
    "text": RNG.normal(size=(FEATURES, E)).astype(np.float32),
    "log_scale": np.float32(np.log(10)),
    "bias": np.float32(-3),
}
FORMS = ("softmax", "sigmoid")


# The truth, in float64: one matrix of logits, and gradients by hand.


def softmax_truth(image, text, scale, bias):
    """(loss, gradient with respect to the logits)."""
    logits = scale * image @ text.T
    shares = [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, logits.T)]
    loss = -sum(np.log(np.diagonal(share)).mean() for share in shares) / 2
    return loss, (shares[0] + shares[1].T - 2 * np.eye(len(image))) / (2 * len(image))


def sigmoid_truth(image, text, scale, bias):
    sign = 2 * np.eye(len(image)) - 1
    against = np.exp(-sign * (scale * image @ text.T + bias))
    loss = np.log1p(against).sum() / len(image)
    return loss, -sign * against / (1 + against) / len(image)


TRUTHS = {"softmax": softmax_truth, "sigmoid": sigmoid_truth}


def truth(form, params=PARAMS, batch=BATCH):
    """(loss, gradient of every parameter) of linear towers, whose outputs get length 1."""
    params, batch = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, batch))
    scale, raw = np.exp(params["log_scale"]), {}
    for key, tower in (("image", "image"), ("text", "tokens")):
        raw[key] = batch[tower] @ params[key]
    length = {key: np.linalg.norm(x, axis=1, keepdims=True) for key, x in raw.items()}
    unit = {key: raw[key] / length[key] for key in raw}
    loss, slope = TRUTHS[form](unit["image"], unit["text"], scale, params["bias"])
    found = {
        "log_scale": (slope * scale * (unit["image"] @ unit["text"].T)).sum(),
        "bias": slope.sum() if form == "sigmoid" else 0.0,
    }
    towards = {"image": scale * slope @ unit["text"], "text": scale * slope.T @ unit["image"]}
    for key, tower in (("image", "image"), ("text", "tokens")):
        along = (towards[key] * unit[key]).sum(axis=1, keepdims=True)
        found[key] = batch[tower].T @ ((towards[key] - along * unit[key]) / length[key])
    return loss, found


def agree(found, expected, tolerance=1e-5):
    """‖Δ‖₂ ≤ tolerance · max(‖θ‖₂, 1e-3 · √size) for every tensor."""

    def check(ours, theirs):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        limit = tolerance * max(np.linalg.norm(theirs), 1e-3 * np.sqrt(theirs.size))
        assert np.linalg.norm(ours - theirs) <= limit

    jax.tree.map(check, dict(found), dict(expected))


def test_the_truth_has_the_gradients_of_finite_differences():
    for form in FORMS:
        _, gradients = truth(form)
        for key, index in (("image", (1, 2)), ("text", (5, 0)), ("log_scale", ()), ("bias", ())):
            values = []
            for sign in (1, -1):
                moved = {k: np.array(v, np.float64) for k, v in PARAMS.items()}
                moved[key][index] += sign * 1e-5
                values.append(truth(form, moved)[0])
            slope = (values[0] - values[1]) / 2e-5
            np.testing.assert_allclose(np.asarray(gradients[key])[index], slope, atol=1e-8)


# Ours, by the functions that the task is made of.


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def embed(params, vars, batch, rng):
    return (unit(batch["image"] @ params["image"]), unit(batch["tokens"] @ params["text"])), vars


def both_losses(params, batch, chunk, micro, axis, embed=embed):
    """By form: {"softmax": loss, "sigmoid": loss}."""
    own = partial(embed, params)
    found, _ = contrastive.in_micro_batches(own, micro, {}, batch, jax.random.key(0))
    scale, how = jnp.exp(params["log_scale"]), {"chunk": chunk, "axis": axis}
    return {form: contrastive.LOSSES[form](*found, scale, params["bias"], **how) for form in FORMS}


def one_loss(params, batch, form, *how):
    return both_losses(params, batch, *how)[form]


def computed(compiler, devices, chunk, micro):
    """{form: (loss, gradients)} on that many devices."""

    def both(params, batch, axis=None):
        found = {
            form: jax.value_and_grad(one_loss)(params, batch, form, chunk, micro, axis)
            for form in FORMS
        }
        return found if axis is None else jax.lax.pmean(found, axis)

    mesh = parallel.make_mesh(Parallel(), jax.devices()[:devices])
    if compiler == "jit":
        found = jax.jit(both)(PARAMS, parallel.put(mesh, BATCH))
    else:
        parts = {k: v.reshape(devices, -1, FEATURES) for k, v in BATCH.items()}
        mapped = jax.pmap(
            partial(both, axis="data"),
            axis_name="data",
            in_axes=(None, 0),
            out_axes=None,
            devices=jax.devices()[:devices],
        )
        found = mapped(PARAMS, parts)
    return jax.device_get(found)


def assert_true(found):
    for form in FORMS:
        loss, gradients = truth(form)
        np.testing.assert_allclose(found[form][0], loss, rtol=1e-5)
        agree(found[form][1], gradients)


WAYS = [(devices, *how) for devices in (1, 2, 4, 8) for how in ((0, 1), (CHUNK, MICRO))]
WAYS += [(8, CHUNK, 1), (8, 0, MICRO)]


@pytest.mark.parametrize("compiler", ["jit", "pmap"])
@pytest.mark.parametrize(("devices", "chunk", "micro"), WAYS)
def test_losses_and_gradients_are_those_of_numpy(compiler, devices, chunk, micro):
    assert_true(computed(compiler, devices, chunk, micro))


def collected_without_gradient(own, axis, **options):
    return jax.lax.stop_gradient(GATHER(own, axis, **options))


GATHER = jax.lax.all_gather
FAULTS = {
    "gradients of other devices lost": ("all_gather", collected_without_gradient),
    "gradients not averaged": ("pmean", lambda x, axis: x),
    "gradients summed": ("pmean", jax.lax.psum),
    "partners off by the rank": ("axis_index", lambda axis: 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_over_devices_is_caught(fault, monkeypatch):
    name, wrong = FAULTS[fault]
    monkeypatch.setattr(jax.lax, name, wrong)
    with pytest.raises(AssertionError):
        assert_true(computed("pmap", 2, 0, 1))


def test_a_temperature_without_gradient_is_caught(monkeypatch):
    monkeypatch.setattr(jnp, "exp", lambda x: jax.lax.stop_gradient(jax.lax.exp(x)))
    with pytest.raises(AssertionError):
        assert_true(computed("jit", 1, 0, MICRO))


def test_a_chunk_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(ValueError, match="16 pairs is no multiple of chunk 5"):
        both_losses(PARAMS, BATCH, 5, 1, None)


# Memory.

WIDE = {k: np.zeros((64, FEATURES), np.float32) for k in BATCH}


@pytest.mark.parametrize(("chunk", "limit"), [(0, 64 * 64), (8, 64 * 8)])
def test_with_a_chunk_the_matrix_never_exists(chunk, limit):
    """Of all arrays, in loops too, forward and backward; without one it does."""
    traced = jax.make_jaxpr(jax.grad(one_loss), static_argnums=(2, 3, 4, 5))
    for form in FORMS:
        assert max(sizes(traced(PARAMS, WIDE, form, chunk, 1, None).jaxpr)) == limit


@pytest.mark.parametrize(("chunk", "limit"), [(0, 64 * 64 // 8), (8, 64 * FEATURES)])
def test_a_device_of_eight_has_an_eighth_of_the_matrix_or_a_chunk(chunk, limit):
    """In what XLA made of the global program for each device."""
    mesh = parallel.make_mesh(Parallel())
    gradient = jax.jit(jax.grad(one_loss), static_argnums=(2, 3, 4, 5))
    placed = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh, parallel.BATCH))
        for k, v in WIDE.items()
    }
    for form in FORMS:
        program = gradient.lower(PARAMS, placed, form, chunk, 1, None).compile().as_text()
        assert max(elements(program)) <= limit


def elements(program):
    """Sizes of the arrays in an HLO text, `f32[64,8]{1,0}`."""
    import math
    import re

    for dims in re.findall(r"\bf32\[([\d,]+)\]", program):
        yield math.prod(map(int, dims.split(",")))


def test_a_micro_batch_keeps_its_embeddings_alone():
    """A hidden layer of a micro-batch is the largest array that exists; never that of all."""
    params = {"in": np.zeros((FEATURES, 1000)), "out": np.zeros((1000, E))}

    def loss(params, batch, micro):
        def deep(vars, batch, rng):
            hidden = [jnp.tanh(batch[k] @ params["in"]) for k in ("image", "tokens")]
            return [unit(1 + h @ params["out"]) for h in hidden], vars

        found, _ = contrastive.in_micro_batches(deep, micro, {}, batch, jax.random.key(0))
        return contrastive.softmax_loss(*found, jnp.float32(10))

    for micro in (1, 8):
        traced = jax.make_jaxpr(jax.grad(loss), static_argnums=2)(params, WIDE, micro)
        assert max(sizes(traced.jaxpr)) == 64 // micro * 1000


# Micro-batches.


def noisy(params, vars, batch, rng):
    """Towers with dropout and with statistics that move."""
    kept = jax.random.bernoulli(rng, 0.5, batch["image"].shape)
    found, _ = embed(params, vars, {**batch, "image": jnp.where(kept, batch["image"], 0)}, rng)
    return found, {"seen": 0.5 * vars["seen"] + batch["image"].mean()}


def by_hand(params, batch, rng):
    """The same in plain sight: embeddings of all micro-batches, none of them computed again."""
    vars, parts = {"seen": jnp.float32(0)}, []
    for i, key in enumerate(jax.random.split(rng, MICRO)):
        part = {k: v[i::MICRO] for k, v in batch.items()}
        found, vars = noisy(params, vars, part, key)
        parts.append(found)
    images, texts = (jnp.stack(both, axis=1).reshape(B, E) for both in zip(*parts, strict=True))
    return contrastive.softmax_loss(images, texts, jnp.exp(params["log_scale"])), vars


def in_scan(params, batch, rng):
    vars = {"seen": jnp.float32(0)}
    found, vars = contrastive.in_micro_batches(partial(noisy, params), MICRO, vars, batch, rng)
    return contrastive.softmax_loss(*found, jnp.exp(params["log_scale"])), vars


def test_both_passes_draw_the_same_and_statistics_move_once_a_micro_batch():
    gradient = jax.jit(jax.value_and_grad(in_scan, has_aux=True))
    truth = jax.jit(jax.value_and_grad(by_hand, has_aux=True))
    (loss, vars), found = gradient(PARAMS, BATCH, jax.random.key(1))
    (expected, moved), gradients = truth(PARAMS, BATCH, jax.random.key(1))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(vars["seen"], moved["seen"], rtol=1e-6)
    agree(found, gradients)
    _, others = truth(PARAMS, BATCH, jax.random.key(2))
    with pytest.raises(AssertionError):  # other draws are seen
        agree(found, others)


@pytest.mark.parametrize("micro", [1, MICRO])
def test_a_frozen_tower_has_no_backward_pass(micro):
    """Its derivative is never asked for; and what is not frozen gets the gradient that it has."""
    asked = []

    @jax.custom_vjp
    def wired(x):
        return x

    wired.defvjp(lambda x: (x, None), lambda _, slope: (asked.append(1) or slope,))

    def loss(params, vars, batch, rng):
        def both(vars, batch, rng):
            return embed({**params, "image": wired(params["image"])}, vars, batch, rng)

        found, vars = contrastive.in_micro_batches(both, micro, vars, batch, rng)
        return contrastive.softmax_loss(*found, jnp.exp(params["log_scale"])), (vars, {})

    state = State.create(jax.random.key(0), PARAMS, {})
    gradients = {}
    for frozen in ((), ("image",)):
        asked.clear()
        gradients[frozen], *_ = step.gradients(loss, state, BATCH, state.rng, frozen=frozen)
        assert bool(asked) != bool(frozen)
    free, locked = gradients.values()
    assert not np.any(locked.pop("image")) and np.any(free.pop("image"))
    agree(locked, free)


# Accuracy and extremes.


def test_accuracy_counts_the_pictures_whose_own_text_is_best():
    image, text = (unit(RNG.normal(size=(B, E)).astype(np.float32)) for _ in range(2))
    text = text.at[3].set(image[3]).at[7].set(image[7])
    logits = np.asarray(image) @ np.asarray(text).T
    expected = (logits.argmax(axis=1) == np.arange(B)).mean()
    assert 0 < expected < 1
    for chunk in (0, CHUNK):
        assert contrastive.accuracy(image, text, chunk=chunk) == pytest.approx(expected)
    alike = jnp.ones((B, E)) / 2
    assert contrastive.accuracy(alike, alike) == 0, "a tie is a miss"


@pytest.mark.parametrize(("chunk", "dtype"), [(0, jnp.bfloat16), (CHUNK, jnp.float32)])
def test_losses_and_gradients_stay_finite_at_the_largest_scale(chunk, dtype):
    right = unit(jnp.eye(B, E) + 1e-3).astype(dtype)
    for form, loss in contrastive.LOSSES.items():
        both = jax.jit(jax.value_and_grad(partial(loss, chunk=chunk), argnums=(0, 1, 2)))
        for text in (right, -right):
            value, gradients = both(right, text, jnp.float32(100), jnp.float32(-10))
            assert value.dtype == jnp.float32 and np.isfinite(value), form
            assert all(np.isfinite(g.astype(jnp.float32)).all() for g in gradients)


def test_parameters_are_kept_within_bounds_but_not_what_is_frozen():
    bounds = {"log_.*": (0.0, 1.0), "bias": (-1.0, 1.0)}
    found = step.bounded(PARAMS, bounds, frozen=("bias",))
    assert found["log_scale"] == 1 and found["bias"] == -3
    assert found["image"] is PARAMS["image"]
