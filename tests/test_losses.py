"""Losses and mixing against NumPy loops that are given the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3])
IMAGES = RNG.normal(size=(4, 6, 9, 2)).astype(np.float32)
SHARES = np.eye(5, dtype=np.float32)[[0, 3, 3, 1]]


def loop(logits, targets, smoothing):
    """−Σ target log p, one example and one class at a time, in float64."""
    result = []
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        log_total = np.log(sum(np.exp(x) for x in row))
        smooth = [(1 - smoothing) * t + smoothing / len(row) for t in target]
        result.append(-sum(t * (x - log_total) for t, x in zip(smooth, row, strict=True)))
    return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_matches_a_loop_over_classes(smoothing):
    expected = loop(LOGITS, np.eye(5)[LABELS], smoothing)
    ours = losses.cross_entropy(jnp.array(LOGITS), jnp.array(LABELS), smoothing)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)

    soft = RNG.dirichlet(np.ones(5), size=6).astype(np.float32)
    ours = losses.cross_entropy(jnp.array(LOGITS), jnp.array(soft), smoothing)
    np.testing.assert_allclose(ours, loop(LOGITS, soft, smoothing), rtol=1e-5)


def test_the_gradient_is_softmax_minus_target():
    def total(logits):
        return losses.cross_entropy(logits, jnp.array(LABELS), 0.1).sum()

    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = p - (0.9 * np.eye(5)[LABELS] + 0.1 / 5)
    np.testing.assert_allclose(jax.grad(total)(jnp.array(LOGITS)), expected, atol=1e-6)


def test_a_masked_example_has_neither_loss_nor_gradient():
    mask = jnp.array([1, 0, 1, 1, 0.5, 0], jnp.float32)

    def call(x):
        return losses.cross_entropy(x, jnp.array(LABELS), mask=mask)

    plain = losses.cross_entropy(jnp.array(LOGITS), jnp.array(LABELS))
    np.testing.assert_allclose(call(jnp.array(LOGITS)), plain * mask, rtol=1e-6)
    gradient = jax.grad(lambda x: call(x).sum())(jnp.array(LOGITS))
    assert np.array_equal(np.abs(gradient).sum(axis=1) > 0, mask > 0)
    padding = jnp.array(LOGITS).at[1].set(jnp.nan)
    assert jnp.isfinite(call(padding)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_gradient_stay_finite_at_extreme_logits(dtype):
    logits = jnp.array([[3e4, -3e4, 0], [-jnp.inf, 1, 2]], dtype)

    def call(x):
        return losses.cross_entropy(x, jnp.array([1, 2]))

    assert call(logits).dtype == jnp.float32
    np.testing.assert_allclose(call(logits)[0], 6e4, rtol=1e-2)
    gradient = jax.grad(lambda x: call(x).sum())(logits)
    assert jnp.isfinite(call(logits)).all() and jnp.isfinite(gradient).all()


def test_a_class_out_of_range_gives_nan():
    loss = losses.cross_entropy(jnp.array(LOGITS[:3]), jnp.array([-1, 5, 4]))
    assert np.isnan(loss).tolist() == [True, True, False]


HIDDEN = RNG.normal(size=(2, 7, 4)).astype(np.float32)
HEAD = RNG.normal(size=(4, 5)).astype(np.float32)
TARGETS = np.array([[0, 4, -1, 2, 1, 3, 3], [2, -1, -1, 0, 1, 1, 4]], np.int32)


def test_token_scores_match_a_loop_over_tokens():
    logits = (HIDDEN @ HEAD).astype(np.float64)
    found = jax.device_get(losses.token_scores(jnp.array(logits, jnp.float32), TARGETS))
    for row, token in np.ndindex(TARGETS.shape):
        target, scores = TARGETS[row, token], logits[row, token]
        log_z = np.log(sum(np.exp(x) for x in scores))
        hit = max(range(5), key=lambda c, scores=scores: scores[c]) == target
        expected = (log_z - scores[target], log_z, hit) if target >= 0 else (0, 0, 0)
        ours = [found[name][row, token] for name in ("nats", "log_z", "hit")]
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_the_z_loss_is_that_of_numpy():
    scores = losses.token_scores(jnp.array(HIDDEN @ HEAD), TARGETS)
    plain, hits = losses.token_loss(scores, TARGETS)
    loss, _ = losses.token_loss(scores, TARGETS, z_loss=0.1)
    scored = TARGETS >= 0
    log_z = np.log(np.exp((HIDDEN @ HEAD).astype(np.float64)).sum(axis=-1))[scored]
    np.testing.assert_allclose(loss - plain, 0.1 * (log_z**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(plain, scores["nats"][scored].mean(), rtol=1e-6)
    np.testing.assert_allclose(hits, scores["hit"][scored].mean(), rtol=1e-6)


def test_without_targets_the_token_loss_is_0():
    nothing = np.full_like(TARGETS, -1)
    scores = losses.token_scores(jnp.array(HIDDEN @ HEAD), nothing)
    assert losses.token_loss(scores, nothing, z_loss=0.1) == (0, 0)


def test_a_token_out_of_the_vocabulary_gives_nan():
    targets = np.where(TARGETS == 4, 5, TARGETS)
    found = losses.token_scores(jnp.array(HIDDEN @ HEAD), targets)["nats"]
    assert np.array_equal(np.isnan(found), targets == 5)


def in_chunks_of(chunk, hidden, head):
    """The loss with a z-loss; all logits at once where chunk is 0."""

    def score(hidden, targets):
        return losses.token_scores(hidden @ head, targets)

    if not chunk:
        return losses.token_loss(score(hidden, TARGETS), TARGETS, 0.1)[0]
    scores = losses.in_chunks(score, chunk, hidden, jnp.array(TARGETS))
    return losses.token_loss(scores, TARGETS, 0.1)[0]


@pytest.mark.parametrize("chunk", [1, 3, 7, 9])
def test_a_loss_in_chunks_has_the_value_and_the_gradients_of_the_whole(chunk):
    both = jax.value_and_grad(in_chunks_of, argnums=(1, 2))
    whole, parts = (both(c, jnp.array(HIDDEN), jnp.array(HEAD)) for c in (0, chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)


def sizes(jaxpr):
    """Of all arrays that are computed, in loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def test_in_chunks_all_logits_never_exist_at_once():
    hidden, head = jnp.zeros((2, 7, 4)), jnp.zeros((4, 100))
    largest = {}
    for chunk in (0, 2):
        gradient = jax.grad(in_chunks_of, argnums=(1, 2))
        traced = jax.make_jaxpr(gradient, static_argnums=0)(chunk, hidden, head)
        largest[chunk] = max(sizes(traced.jaxpr))
    assert largest == {0: 2 * 7 * 100, 2: 2 * 2 * 100}


def test_mixup_equals_a_loop_with_the_same_share():
    images, labels = losses.mixup(
        jax.random.key(3), jnp.array(IMAGES), jnp.array(SHARES), jnp.float32(0.3)
    )
    for i in range(4):
        expected = 0.3 * IMAGES[i] + 0.7 * IMAGES[i - 1]
        np.testing.assert_allclose(images[i], expected, atol=1e-6)
        expected = 0.3 * SHARES[i] + 0.7 * SHARES[i - 1]
        np.testing.assert_allclose(labels[i], expected, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_cutmix_equals_a_loop_with_the_same_box(share):
    rng, share = jax.random.key(1), jnp.float32(share)
    top, bottom, left, right = losses.box(rng, 6, 9, share)
    images, labels = losses.cutmix(rng, jnp.array(IMAGES), jnp.array(SHARES), share)
    expected, pasted = IMAGES.copy(), 0
    for y in range(top, bottom):
        for x in range(left, right):
            expected[:, y, x] = IMAGES[[3, 0, 1, 2], y, x]
            pasted += 1
    assert np.array_equal(images, expected)
    kept = 1 - pasted / (6 * 9)
    expected = kept * SHARES + (1 - kept) * SHARES[[3, 0, 1, 2]]
    np.testing.assert_allclose(labels, expected, atol=1e-6)


def test_a_box_has_the_paper_s_sides_around_a_centre_anywhere():
    share = np.linspace(0, 1, 50, dtype=np.float32)
    keys = jax.random.split(jax.random.key(1), 50)
    boxes = np.array(jax.vmap(lambda rng, share: losses.box(rng, 40, 60, share))(keys, share))
    centres = np.array(
        jax.vmap(lambda rng: jax.random.randint(rng, (2,), 0, jnp.array([40, 60])))(keys)
    )
    assert (centres.min(axis=0) < 5).all() and (centres.max(axis=0) > (34, 54)).all()
    for found, s, centre in zip(boxes.reshape(50, 2, 2), share, centres, strict=True):
        for (low, high), side, middle in zip(found, (40, 60), centre, strict=True):
            half = int(np.sqrt(1 - s) * np.float32(side)) // 2
            assert (low, high) == (max(middle - half, 0), min(middle + half, side))


def test_the_share_of_mixup_follows_its_beta_distribution():
    # Of labels that alternate between two classes, the mixed share is λ itself.
    labels = jnp.eye(2)[jnp.array([0, 1])]
    mix = jax.vmap(lambda rng: losses.mix(rng, jnp.zeros((2, 1, 1, 1)), labels, 0.4)[1][0, 0])
    share = mix(jax.random.split(jax.random.key(0), 2000))
    variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(0.4, 0.4); its mean is 1/2
    assert abs(share.mean() - 0.5) < 0.03 and abs(share.var() - variance) < 0.01


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_conserves_the_mass_of_every_class(alphas):
    images, labels = jax.jit(losses.mix, static_argnums=(3, 4))(
        jax.random.key(2), jnp.array(IMAGES), jnp.array(SHARES), *alphas
    )
    assert images.shape == IMAGES.shape and images.dtype == jnp.float32
    assert not np.array_equal(images, IMAGES)
    np.testing.assert_allclose(labels.sum(axis=0), SHARES.sum(axis=0), atol=1e-5)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(images.sum(axis=0), IMAGES.sum(axis=0), atol=1e-5)


def test_with_both_on_each_is_drawn_half_of_the_time():
    mix = jax.vmap(lambda rng: losses.mix(rng, IMAGES, SHARES, 1.0, 1.0)[0])
    mixed = np.array(mix(jax.random.split(jax.random.key(0), 200)))
    # cutmix takes every pixel from one image or the other, mixup blends them all.
    pasted = ((mixed == IMAGES) | (mixed == np.roll(IMAGES, 1, axis=0))).all(axis=(1, 2, 3, 4))
    assert 70 < pasted.sum() < 130


def test_with_both_off_nothing_is_touched():
    images, labels = losses.mix(jax.random.key(0), IMAGES, SHARES)
    assert images is IMAGES and labels is SHARES


def test_integers_are_not_mixed():
    for images, labels in ((IMAGES.astype(np.uint8), SHARES), (IMAGES, np.array([0, 3, 3, 1]))):
        with pytest.raises(ValueError, match="cannot mix u?int"):
            losses.mix(jax.random.key(0), images, labels, 0.4)


def test_mixing_keeps_the_precision_of_its_input():
    half = jnp.array(IMAGES, jnp.bfloat16)
    images, labels = losses.mix(jax.random.key(0), half, jnp.array(SHARES), 0.4, 1.0)
    assert images.dtype == jnp.bfloat16 and labels.dtype == jnp.float32


def test_a_sharded_batch_mixes_as_a_whole_one():
    devices = jax.devices()[:4]
    mesh = jax.make_mesh((4,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    mix = jax.jit(lambda rng, x, y: losses.mix(rng, x, y, 0.4, 1.0))
    whole = mix(jax.random.key(5), IMAGES, SHARES)
    parts = mix(jax.random.key(5), *jax.device_put((IMAGES, SHARES), spread))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
