"""Where rays are asked: boxes, strata, drawn densities and proposals, against slow loops."""

import math
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from zoo.nerf import proposal, sampling
from zoo.nerf.cameras import Rays
from zoo.nerf.sampling import Histogram

LOW, HIGH = np.float32([-1, -2, 0.5]), np.float32([1, 0.5, 3])
intersect = jax.jit(partial(sampling.intersect_box, low=LOW, high=HIGH))
importance = jax.jit(sampling.importance, static_argnames="count")
interlevel = jax.jit(proposal.interlevel)


def normalised(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


# ---- boxes ----


def intersection_by_loop(origin, direction, low, high):
    """Face by face: what is left of [0, ∞) in front of one and behind the other."""
    near, far = 0.0, math.inf
    for axis in range(3):
        o, d, faces = float(origin[axis]), float(direction[axis]), (low[axis], high[axis])
        if d == 0:
            if not faces[0] <= o <= faces[1]:
                return 0.0, 0.0
            continue
        first, second = sorted((float(face) - o) / d for face in faces)
        near, far = max(near, first), min(far, second)
    return (near, far) if far > near else (0.0, 0.0)


def test_a_box_is_met_where_a_loop_over_its_faces_says():
    rng = np.random.default_rng(0)
    origins = rng.uniform(-4, 4, (300, 3)).astype(np.float32)
    directions = rng.normal(size=(300, 3))
    met = LOW + (HIGH - LOW) * rng.uniform(size=(100, 3))
    directions[:100] = met - origins[:100]
    directions[50:150, 1] = 0  # parallel to two faces
    directions[130:150, 0] = 0  # and to four
    origins[40:60] = LOW + (HIGH - LOW) * rng.uniform(size=(20, 3))  # inside
    directions = normalised(directions)
    near, far = intersect(origins, directions)
    expected = [
        intersection_by_loop(*ray, LOW, HIGH) for ray in zip(origins, directions, strict=True)
    ]
    np.testing.assert_allclose(near, [x[0] for x in expected], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(far, [x[1] for x in expected], rtol=1e-5, atol=1e-6)
    assert 60 < (far > near).sum() < 250 and (near[40:60] == 0).all() and (far[40:60] > 0).all()


def test_a_ray_may_begin_later():
    near, far = sampling.intersect_box(
        *jnp.float32([[[0, 0, 0]] * 2, [[0, 0, 1], [0, 0, -1]]]), LOW, HIGH, nearest=2.0
    )
    assert near.tolist() == [2, 0] and far.tolist() == [3, 0]


def test_boxes_at_the_ends_of_the_numbers_give_finite_distances_and_gradients():
    origins = np.float32(
        [[0, 0, 1], [1, 0, 1], [-1, -2, 0.5], [5, 0, 1], [1e8, 1e8, 1e8], [1e9, 0, 1]]
    )
    directions = np.float32(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1e-30, 1, 0], [1, -1e-12, 1e-12], [-1, 0, 0]]
    )

    def total(origins, directions):
        near, far = sampling.intersect_box(origins, directions, LOW, HIGH)
        return (near + far).sum(), (near, far)

    grad = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    slopes, (near, far) = grad(origins, directions)
    assert all(np.isfinite(x).all() for x in (*slopes, near, far))
    # The last meets the box, but 1e9 has no neighbours in float32 that near and far could be.
    assert (far > near).tolist() == [True, True, True, False, False, False]
    assert (near >= 0).all() and near[3] == far[3]


# ---- strata and drawn densities ----


def test_strata_hold_one_sample_each():
    near, far = jnp.array([1.0, 2.0]), jnp.array([2.0, 6.0])
    t = sampling.stratified(jax.random.key(0), near, far, 8)
    place = (t - near[:, None]) / (far - near)[:, None] * 8
    assert np.floor(place).tolist() == [list(range(8))] * 2
    assert len(np.unique(place % 1)) == 16
    middle = sampling.stratified(None, near, far, 2)
    np.testing.assert_allclose(middle, [[1.25, 1.75], [3, 5]])


EDGES = np.float32([1, 1.5, 2, 4, 4.25, 6])
WEIGHTS = np.float32([0.1, 0, 0.4, 0.3, 0.05])


def inverse_by_loop(u, edges, weights):
    """The place below which the share u of the weights lies: walk until it is used up."""
    left = u * sum(map(float, weights))
    for (low, high), weight in zip(pairwise(edges), map(float, weights), strict=True):
        if left < weight:
            return low + (high - low) * left / weight
        left -= weight
    return edges[-1]


def test_importance_sampling_is_the_inverse_of_the_distribution_function():
    """In the middles of the strata, for which no key is needed."""
    ours = importance(None, EDGES[None], WEIGHTS[None], count=50)[0]
    expected = [inverse_by_loop((i + 0.5) / 50, EDGES, WEIGHTS) for i in range(50)]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_importance_sampling_has_the_densitys_distribution():
    """χ² over four parts of each interval; one sample a ray, so that they are independent."""
    n = 20_000
    rows = (np.broadcast_to(x, (n, len(x))) for x in (EDGES, WEIGHTS))
    found = np.asarray(importance(jax.random.key(0), *rows, count=1))[:, 0]
    parts = np.concatenate([np.linspace(a, b, 5)[:-1] for a, b in pairwise(EDGES)] + [[6]])
    counts = np.histogram(found, parts)[0].reshape(5, 4)
    assert counts[1].sum() == 0
    expected = n * np.repeat(WEIGHTS[:, None], 4, axis=1) / 4 / WEIGHTS.sum()
    filled = expected > 0
    statistic = ((counts - expected)[filled] ** 2 / expected[filled]).sum()
    assert chi2.ppf(1e-3, 15) < statistic < chi2.ppf(1 - 1e-3, 15)


def test_importance_samples_are_ascending_and_keep_to_their_strata():
    edges, weights = (np.broadcast_to(x, (9, len(x))) for x in (EDGES, WEIGHTS))
    t = np.asarray(sampling.importance(jax.random.key(1), edges, weights, count=20))
    assert (np.diff(t, axis=1) >= 0).all() and len(np.unique(t)) == 180
    distribution = np.append(0, np.cumsum(WEIGHTS) / WEIGHTS.sum())
    place = np.interp(t, EDGES, distribution) * 20
    assert (np.abs(place - np.arange(20) - 0.5) <= 0.5 + 1e-4).all()


@pytest.mark.parametrize(
    "edges, weights",
    [
        ([1, 2, 3], [0, 0]),
        ([1, 2, 3], [1e-30, 0]),
        ([1, 2, 3], [0, 1e30]),
        ([2, 2, 2], [1, 1]),
        ([2, 2], [0]),
        ([0, 1e8, 2e8], [1, 0]),
    ],
)
def test_importance_sampling_of_extremes_stays_finite_and_between_the_edges(edges, weights):
    edges, weights = np.float32([edges]), np.float32([weights])
    t = importance(jax.random.key(0), edges, weights, count=8)
    assert np.isfinite(t).all() and (t >= edges[0, 0]).all() and (t <= edges[0, -1]).all()


def test_resampled_edges_part_the_weights_evenly_and_keep_the_ends():
    edges, weights = (np.broadcast_to(x, (9, len(x))) for x in (EDGES, WEIGHTS))
    distribution = np.append(0, np.cumsum(WEIGHTS) / WEIGHTS.sum())
    resample = jax.jit(sampling.resample, static_argnames="count")
    even = np.asarray(resample(None, edges, weights, count=7))
    assert even.shape == (9, 8)
    np.testing.assert_allclose(np.interp(even[0], EDGES, distribution), np.arange(8) / 7, atol=1e-6)
    drawn = np.asarray(resample(jax.random.key(1), edges, weights, count=7))
    place = np.interp(drawn, EDGES, distribution) * 7 - np.arange(8)
    assert (drawn[:, [0, -1]] == EDGES[[0, -1]]).all() and place[:, 1:-1].std() > 0.2
    assert np.abs(place).max() <= 0.5 + 1e-4


def test_no_gradient_goes_to_where_samples_are_drawn_from():
    grad = jax.grad(lambda *x: sampling.importance(None, *x, 8).sum(), argnums=(0, 1))
    slopes = jax.jit(grad)
    assert not any(np.any(x) for x in slopes(EDGES[None], WEIGHTS[None]))


def test_unions_are_sorted_and_intervals_reach_from_one_sample_to_the_next():
    t = sampling.union(jnp.array([[1.0, 4], [2, 3]]), jnp.array([[2.0], [1]]))
    assert t.tolist() == [[1, 2, 4], [1, 2, 3]]
    assert sampling.intervals(t, jnp.array([5.0, 2])).delta.tolist() == [[1, 2, 1], [1, 1, 0]]
    middle = sampling.middles(jnp.array([[1.0, 2, 4]]))
    assert middle.t.tolist() == [[1.5, 3]] and middle.delta.tolist() == [[1, 2]]


def test_disparity_is_even_in_the_inverse_of_distance():
    s = jnp.array([[0, 0.25, 0.5, 1]])
    t = sampling.disparity(s, jnp.array([[0.5]]), jnp.array([[4.0]]))
    np.testing.assert_allclose(1 / t, [[2, 2 - 0.25 * 1.75, 2 - 0.5 * 1.75, 0.25]], rtol=1e-6)
    nowhere = jnp.zeros((1, 1))
    assert np.isfinite(sampling.disparity(s, nowhere, nowhere)).all()


# ---- proposals ----

N, X = 4, np.float32([[1, 0, 0]])
RAYS = Rays(jnp.zeros((N, 3)), jnp.asarray(X.repeat(N, axis=0)))
NEAR, FAR = jnp.array([0.5, 1, 2, 3]), jnp.array([4.0, 4, 5, 3])  # the last ray misses


def wall(points):
    """Dense from x = 2.5 to 3, thin elsewhere."""
    return jnp.where((points[:, 0] > 2.5) & (points[:, 0] < 3), 8.0, 0.05)


def slope(points):
    return 0.3 * points[:, 0]


def weights_by_loop(sigma, delta):
    weights, left = [], 1.0
    for s, d in zip(sigma, delta, strict=True):
        weights.append(left * (1 - math.exp(-float(s) * float(d))))
        left *= math.exp(-float(s) * float(d))
    return np.array(weights)


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
def test_proposals_match_a_loop_over_rays(spacing):
    counts = (12, 10, 6)
    between = {
        "linear": lambda s, a, b: a + s * (b - a),
        "disparity": lambda s, a, b: 1 / (s / b + (1 - s) / a),
    }
    draw = jax.jit(partial(proposal.sample, [slope, wall], counts=counts, spacing=spacing))
    samples = draw(RAYS, NEAR, FAR, anneal=0.7)
    for ray in range(N):
        near, far = float(NEAR[ray]), float(FAR[ray])
        unit, weights = np.array([0.0, 1]), np.array([1.0])
        for level, count in enumerate(counts):
            parts = [(i + 1) / count for i in range(count - 1)]
            powers = weights**0.7 if weights.sum() > 0 else np.ones(len(weights))
            unit = np.array([0, *(inverse_by_loop(u, unit, powers) for u in parts), 1])
            edges = between[spacing](unit, near, far)
            middle, delta = (edges[1:] + edges[:-1]) / 2, np.maximum(np.diff(edges), 0)
            if level < 2:
                found = samples.levels[level]
                points = jnp.asarray(middle)[:, None] * X
                weights = weights_by_loop((slope, wall)[level](points), delta)
                np.testing.assert_allclose(found.edges[ray], edges, rtol=1e-4)
                np.testing.assert_allclose(found.weights[ray], weights, rtol=1e-3, atol=1e-5)
        if far > near:  # else there is nothing to part, and rounding says where
            np.testing.assert_allclose(samples.unit[ray], unit, rtol=1e-4)
        np.testing.assert_allclose(samples.t[ray], middle, rtol=1e-4)
        np.testing.assert_allclose(samples.delta[ray], delta, rtol=1e-3, atol=1e-5)


def test_proposals_find_a_wall_and_never_leave_a_gap():
    draw = jax.jit(partial(proposal.sample, [wall, wall], counts=(32, 32, 16)))
    samples = draw(RAYS, NEAR, FAR, key=jax.random.key(0))
    on_wall = (samples.t > 2.4) & (samples.t < 3.1)
    assert on_wall[:3].mean() > 0.7
    np.testing.assert_allclose(samples.delta.sum(axis=1), FAR - NEAR, atol=1e-5)
    even = draw(RAYS, NEAR, FAR, anneal=0.0)
    np.testing.assert_allclose(even.delta[0], 3.5 / 16, rtol=1e-4)


def interlevel_by_loop(edges, weights, begin, end, found):
    """Equations 12 and 13: sum what overlaps, pay for what is not covered."""
    total = 0.0
    for a, b, w in zip(begin, end, found, strict=True):
        overlapping = (
            float(v)
            for (low, high), v in zip(pairwise(edges), weights, strict=True)
            if low < b and high > a
        )
        total += max(0.0, float(w) - sum(overlapping)) ** 2 / (float(w) + 2**-23)
    return total


def histogram(seed, s, total):
    rng = np.random.default_rng(seed)
    edges, weights = np.sort(rng.uniform(1, 4, (3, s + 1)), axis=1), rng.uniform(size=(3, s))
    edges[:, 0], edges[:, -1] = 1, 4
    return Histogram(
        *map(jnp.float32, (edges, total * weights / weights.sum(axis=1, keepdims=True)))
    )


def test_the_interlevel_loss_matches_a_double_loop():
    levels = histogram(0, 5, 0.6), histogram(1, 9, 0.9)
    edges, weights = histogram(2, 7, 1.0)
    samples = sampling.middles(edges)._replace(levels=levels)
    ours = interlevel(samples, weights)
    for ray in range(3):
        expected = sum(
            interlevel_by_loop(
                *(np.asarray(x[ray]) for x in level),
                np.asarray(edges[ray, :-1]),
                np.asarray(edges[ray, 1:]),
                np.asarray(weights[ray]),
            )
            for level in levels
        )
        assert expected > 0.01
        np.testing.assert_allclose(ours[ray], expected, rtol=1e-4)


def test_a_proposal_that_bounds_the_weights_pays_nothing_and_gradients_go_to_it_alone():
    fine, coarse = histogram(0, 6, 0.9), histogram(1, 3, 0.1)

    def loss(proposed, weights):
        samples = sampling.middles(fine.edges)._replace(levels=(proposed,))
        return proposal.interlevel(samples, weights).sum()

    same = Histogram(fine.edges, fine.weights + 1e-6)
    assert jax.jit(loss)(same, fine.weights) < 1e-9
    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
    to_coarse, to_weights = grad(coarse, fine.weights)
    assert (to_coarse.weights <= 0).all() and np.any(to_coarse.weights) and not np.any(to_weights)


@pytest.mark.parametrize("density", [0.0, math.inf])
def test_proposals_of_extreme_density_stay_finite_with_their_gradients(density):
    def total(offset):
        def field(points):
            return density + offset + 0 * points[:, 0]

        samples = proposal.sample([field], RAYS, NEAR, FAR, counts=(4, 1))
        return proposal.interlevel(samples, jnp.ones((N, 1))).sum(), samples

    (loss, samples), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(0.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, samples, slopes)))


def test_the_power_of_the_weights_grows_from_0_to_1():
    assert proposal.annealed(0.0) == 0 and proposal.annealed(1.0) == 1
    np.testing.assert_allclose(proposal.annealed(0.1), 1 / 1.9)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"counts": (4,)}, "1 proposals need one count more than that; not \\(4,\\)"),
        ({"counts": (4, 4), "spacing": "even"}, "linear, disparity; not 'even'"),
    ],
)
def test_what_proposals_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        proposal.sample([wall], RAYS, NEAR, FAR, **changes)
