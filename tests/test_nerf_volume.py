"""Rendering and geometry against slow loops in float64, and at the ends of the numbers."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.nerf import proposal, volume
from zoo.nerf.cameras import Rays
from zoo.nerf.sampling import Samples, middles

composite = jax.jit(volume.composite)
render = jax.jit(volume.render, static_argnames="field")


def drawn(seed=0, n=5, s=7):
    """sigma, rgb, t, delta of n rays, float32; the last slot of each is unused."""
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.uniform(1, 4, (n, s + 1)), axis=1)
    delta = np.diff(edges, axis=1)
    delta[:, -1] = 0
    sigma = rng.exponential(2, (n, s))
    return [np.float32(x) for x in (sigma, rng.uniform(size=(n, s, 3)), edges[:, :-1], delta)]


def composite_by_loop(sigma, rgb, t, delta, background):
    """Equation 3 one sample after the other: what is absorbed is seen, what is left goes on."""
    colour, depth, opacity, weights = [], [], [], np.zeros(sigma.shape)
    for ray in range(len(sigma)):
        left, seen, distance = 1.0, np.zeros(rgb.shape[2]), 0.0
        for i in range(sigma.shape[1]):
            alpha = 1 - math.exp(-float(sigma[ray, i]) * float(delta[ray, i]))
            weights[ray, i] = left * alpha
            seen += left * alpha * rgb[ray, i]
            distance += left * alpha * float(t[ray, i])
            left *= 1 - alpha
        colour.append(seen + left * background[ray])
        depth.append(distance / (1 - left))
        opacity.append(1 - left)
    return np.array(colour), np.array(depth), np.array(opacity), weights


@pytest.mark.parametrize("each", [False, True], ids=["one background", "one each"])
def test_compositing_matches_a_python_loop(each):
    inputs = drawn()
    background = np.random.default_rng(1).uniform(size=(5, 3)).astype(np.float32)
    if not each:
        background = background[:1].repeat(5, axis=0)
    ours = composite(*inputs, background if each else background[0])
    for found, expected in zip(ours, composite_by_loop(*inputs, background), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_compositing_of_bfloat16_sums_in_float32():
    """A thousand samples that absorb 1/1024 each leave 1/e of the light."""
    sigma, delta = jnp.ones((1, 1024), jnp.bfloat16), jnp.full((1, 1024), 1 / 1024)
    rgb = jnp.ones((1, 1024, 3), jnp.bfloat16)
    ours = composite(sigma, rgb, jnp.zeros((1, 1024)), delta, jnp.zeros(3))
    assert {x.dtype for x in ours} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(ours.colour, 1 - math.exp(-1), rtol=1e-5)


def test_faint_samples_keep_their_digits():
    """1 − exp(−3e-9) is 0 in float32; the weight is not."""
    weights, _ = jax.jit(volume.weigh)(jnp.full((1, 2), 3e-4), jnp.full((1, 2), 1e-5))
    np.testing.assert_allclose(weights, 3e-9, rtol=1e-6)


# (sigma, t, delta) of two samples on one ray, over white; what is seen of black samples.
EXTREMES = {
    "nothing is there": ([0, 0], [1, 2], [1, 1], 1),
    "infinitely dense": ([math.inf, 1], [1, 2], [1, 1], 0),
    "infinitely dense in unused slots": ([math.inf, math.inf], [1, 2], [0, 0], 1),
    "infinitely dense behind nothing": ([0, math.inf], [1, 2], [1, 1], 0),
    "infinitely long": ([0, 1], [1, 2], [1, math.inf], 0),
    "the ray misses": ([5, 5], [0, 0], [0, 0], 1),
    "far away": ([1, 1], [1e8, 2e8], [1e8, 1e8], 0),
    "one sample": ([math.log(2)], [1], [1], 0.5),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_stay_finite_and_so_do_their_gradients(name):
    *inputs, left = EXTREMES[name]
    sigma, t, delta = (jnp.float32(x)[None] for x in inputs)
    rgb = jnp.zeros((*sigma.shape, 3))

    def total(sigma, rgb, t, delta):
        rendered = volume.composite(sigma, rgb, t, delta, jnp.ones(3))
        return sum(x.sum() for x in rendered), rendered

    grad = jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)
    (_, rendered), slopes = jax.jit(grad)(sigma, rgb, t, delta)
    assert all(np.isfinite(x).all() for x in (*rendered, *slopes))
    np.testing.assert_allclose(rendered.colour, left, atol=1e-6)
    np.testing.assert_allclose(rendered.opacity, 1 - left, atol=1e-6)


# ---- a field along rays ----


def balls(points, directions):
    """An opaque red ball about the origin in a thin blue mist, [m, 3] → [m], [m, 3]."""
    inside = jnp.sum(points**2, axis=1) < 1
    red, blue = jnp.array([[1.0, 0, 0]]), jnp.array([[0, 0, 1.0]])
    return jnp.where(inside, 40.0, 0.1), jnp.where(inside[:, None], red, blue)


def views(n=6, s=16):
    """Rays along x, some of which meet the ball, and samples of which more or fewer are unused."""
    origins = np.zeros((n, 3), np.float32)
    origins[:, 0], origins[:, 1] = -4, np.linspace(-1.5, 1.5, n)
    t = np.broadcast_to(np.linspace(0.25, 7.75, s, dtype=np.float32), (n, s))
    delta = np.where(np.arange(s) < s - 2 * np.arange(n)[:, None], 0.5, 0).astype(np.float32)
    directions = np.broadcast_to(np.float32([1, 0, 0]), (n, 3))
    samples = Samples(jnp.asarray(t), jnp.asarray(delta))
    return Rays(jnp.asarray(origins), jnp.asarray(directions)), samples


def test_a_field_is_asked_where_the_samples_are():
    rays, samples = views()
    seen = render(balls, rays, samples, jnp.ones(3))
    for ray, origin in enumerate(np.asarray(rays.origins)):
        points = np.array([origin + t * rays.directions[ray] for t in np.asarray(samples.t[ray])])
        inside = (points**2).sum(axis=1) < 1
        inputs = np.where(inside, 40, 0.1), np.where(inside[:, None], [1, 0, 0], [0, 0, 1])
        row = [x[None] for x in (*inputs, samples.t[ray], samples.delta[ray])]
        expected = composite_by_loop(*row, np.ones((1, 3)))
        np.testing.assert_allclose(seen.colour[ray], expected[0][0], atol=1e-6)
        np.testing.assert_allclose(seen.weights[ray], expected[3][0], atol=1e-6)


def test_only_used_slots_are_asked_about_where_there_is_room_for_few():
    rays, samples = views()
    plain = render(balls, rays, samples, jnp.ones(3))
    asked = []

    def counted(points, directions):
        asked.append(len(points))
        return balls(points, directions)

    @partial(jax.jit, static_argnums=0)
    def packed(room):
        few, whole = volume.pack(samples, room)
        return volume.render_packed(counted, rays, few, jnp.ones(3)), whole

    used = int((samples.delta > 0).sum())
    rendered, whole = packed(used)
    assert asked == [used] and used < samples.t.size and whole.all()
    weights = np.asarray(plain.weights)[np.asarray(samples.delta) > 0]
    for found, expected in zip(rendered, plain._replace(weights=weights), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    rendered, whole = packed(used - 1)  # the last ray finds one place less than it needs
    assert whole.tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(rendered.colour[:5], plain.colour[:5], atol=1e-6)


def test_packed_slots_get_the_gradient_of_plain_ones():
    rays, samples = views()

    def loss(render, scale):
        def field(points, directions):
            sigma, rgb = balls(points, directions)
            return sigma * scale[0] * (1 + points[:, 1] ** 2), rgb * scale[1]

        return (render(field, rays, samples, jnp.ones(3)).colour ** 2).sum()

    def packed(longest, field, rays, samples, background):
        few, _ = volume.pack(samples, 90)
        return volume.render_packed(field, rays, few, background, longest=longest)

    plain, *ours = (
        jax.jit(jax.grad(partial(loss, render)))(jnp.float32([0.2, 0.9]))
        for render in (volume.render, partial(packed, None), partial(packed, 16))
    )
    for found in ours:
        np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_packed_samples_are_those_of_the_rays_in_turn():
    """Wherever a ray's unused slots are."""
    delta = np.float32([[0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 4, 5]])
    t = np.arange(12, dtype=np.float32).reshape(3, 4)
    packed, whole = jax.jit(volume.pack, static_argnums=1)(Samples(t, delta), 7)
    assert packed.ray.tolist() == [0, 0, 2, 2, 2, 3, 3] and whole.all()
    assert packed.place[:5].tolist() == [0, 1, 0, 1, 2]
    assert packed.t[:5].tolist() == [1, 3, 8, 10, 11]
    assert packed.delta.tolist() == [2, 1, 3, 4, 5, 0, 0]
    few, whole = volume.pack(Samples(t, delta), 4)
    assert few.ray.tolist() == [0, 0, 2, 2] and whole.tolist() == [True, True, False]


def test_samples_that_are_thinned_stand_for_those_left_out():
    """A density that varies along the rays: its sum over those taken, in the mean of many draws."""
    n, s, room = 4, 60, 50
    t = jnp.broadcast_to((jnp.arange(s) + 0.5)[None] / s, (n, s))
    delta = jnp.where(t > 0.2, 1 / s, 0)
    thin = jax.jit(lambda key: volume.thin(Samples(t, delta), room, key).delta)
    found = np.asarray(jax.vmap(thin)(jax.random.split(jax.random.key(0), 400)))
    k = int((delta > 0).sum()) // room
    assert k == 3
    np.testing.assert_allclose(found[found > 0], k / s, rtol=1e-6)
    for ray in found.reshape(-1, s):
        assert (np.diff(np.flatnonzero(ray)) == k).all()
    assert (found.max(axis=0) > 0).all(axis=0)[12:].all()  # each is taken at some time
    wanted = float((t[0] ** 3 * delta[0]).sum())
    np.testing.assert_allclose((found * np.asarray(t) ** 3).sum(2).mean(0), wanted, rtol=0.02)
    every = volume.thin(Samples(t, delta), int((delta > 0).sum() // 2 + 1), jax.random.key(0))
    np.testing.assert_array_equal(every.delta, delta)  # what fits less than twice stays


def test_rendering_that_ends_early_sees_the_same():
    rays, samples = views()
    plain = render(balls, rays, samples, jnp.ones(3))
    early = jax.jit(partial(volume.render_early, balls, segment=4))(rays, samples, jnp.ones(3))
    for found, expected in zip(early, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)  # depth: 1e-4 of 8 units
    np.testing.assert_allclose(early.colour, plain.colour, atol=2e-4)
    with pytest.raises(ValueError, match="16 slots a ray do not divide into segments of 5"):
        volume.render_early(balls, rays, samples, jnp.ones(3), segment=5)


def test_nothing_is_asked_behind_what_is_opaque_nor_behind_the_last_sample():
    """The field is no number there. Ray 2 meets the ball at t = 3 and has samples up to t = 6."""
    rays, samples = views()
    rays, samples = (jax.tree.map(lambda x: x[2:3], tree) for tree in (rays, samples))

    def fails_from(x, points, directions):
        sigma, rgb = balls(points, directions)
        return jnp.where(points[:, 0] < x, sigma, jnp.nan), rgb

    @jax.jit
    def rendered(x, samples):
        field = partial(fails_from, x)
        return volume.render_early(field, rays, samples, jnp.ones(3), segment=4).colour

    assert np.isfinite(rendered(0.0, samples)).all()  # t = 4, the end of the second segment
    assert np.isnan(rendered(-0.5, samples)).any()
    before = samples._replace(delta=jnp.where(samples.t < 2, samples.delta, 0))
    assert np.isfinite(rendered(-2.0, before)).all()  # t = 2, the end of the first segment


def test_pruning_leaves_out_what_is_hidden_and_nothing_else():
    rays, samples = views()
    origins, t, delta = (np.asarray(x) for x in (rays.origins, samples.t, samples.delta))
    wanted = []
    for ray in range(len(t)):
        left = 1.0
        for i in np.flatnonzero(delta[ray]):
            if left >= 1e-4:
                wanted.append((ray, float(t[ray, i]), float(delta[ray, i])))
            inside = ((origins[ray] + t[ray, i] * np.array([1, 0, 0])) ** 2).sum() < 1
            left *= math.exp(-(40 if inside else 0.1) * delta[ray, i])
    every, _ = volume.pack(samples, 96)
    assert 0 < len(wanted) < 0.8 * (samples.delta > 0).sum()
    for room, whole in ((96, [True] * 6), (len(wanted) - 1, [True] * 5 + [False])):
        pruned, fits = jax.jit(pruning, static_argnums=1)(samples, room)
        used = np.asarray(pruned.delta) > 0
        assert used.tolist() == (np.arange(room) < len(wanted)).tolist()
        found = zip(
            *(x[used].tolist() for x in map(np.asarray, pruned[:1] + pruned[2:])), strict=True
        )
        assert list(found) == wanted[:room] and fits.tolist() == whole
        few = (volume.render_packed(balls, rays, s, jnp.ones(3)).colour for s in (every, pruned))
        np.testing.assert_allclose(*(x[: sum(whole)] for x in few), atol=2e-4)


def pruning(samples, room, scale=1.0):
    """`prune` by the density of the balls, asked about all used slots."""
    few, _ = volume.pack(samples, 96)
    return volume.prune(
        lambda points: scale * balls(points, points)[0], views()[0], few, room, longest=16
    )


def test_pruning_has_no_gradient():
    _, samples = views()
    slope = jax.jit(jax.grad(lambda scale: pruning(samples, 96, scale)[0].delta.sum()))
    assert slope(1.0) == 0


# ---- backgrounds ----


def test_backgrounds_are_what_their_names_say():
    key = jax.random.key(0)
    assert volume.draw_background("white", 2).tolist() == [[1, 1, 1]] * 2
    assert volume.draw_background("black", 2).tolist() == [[0, 0, 0]] * 2
    drawn = volume.draw_background("random", 1000, key=key)
    assert drawn.min() >= 0 and drawn.max() <= 1 and abs(drawn.mean() - 0.5) < 0.03
    assert len(np.unique(drawn)) > 2900  # another colour for each ray, of three channels each
    learned = volume.draw_background("learned", 2, logits=jnp.array([0.0, 20, -20]))
    np.testing.assert_allclose(learned, [[0.5, 1, 0]] * 2, atol=1e-6)


@pytest.mark.parametrize(
    "kind, message",
    [("grey", "white, black, random, learned; not 'grey'"), ("random", "'random' needs key=")],
)
def test_a_background_that_cannot_be_made_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        volume.draw_background(kind, 2)


def test_alpha_is_straight():
    rgba = jnp.array([[0.8, 0.4, 0.2, 0.5], [0.8, 0.4, 0.2, 1], [0.8, 0.4, 0.2, 0]])
    expected = [[0.9, 0.7, 0.6], [0.8, 0.4, 0.2], [1, 1, 1]]
    np.testing.assert_allclose(volume.over(rgba, jnp.ones(3)), expected, atol=1e-6)


# ---- geometry ----


def test_normals_point_out_of_a_ball():
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    ours = jax.jit(partial(volume.normals, lambda x: jnp.exp(-jnp.sum(x * x, axis=1))))(points)
    expected = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("slope", [0.0, 1e-30, 1.0, 1e30])
def test_normals_and_their_gradients_are_finite_for_any_slope(slope):
    points = jnp.array([[1.0, 2, 3], [0, 0, 0]])

    def normal(points):
        return volume.normals(lambda x: slope * (x[:, 0] + x[:, 1] ** 2), points)

    found, bend = jax.jit(normal)(points), jax.jit(jax.jacfwd(normal))(points)
    assert np.isfinite(found).all() and np.isfinite(bend).all()
    expected = np.float32([[-1, -4, 0], [-1, 0, 0]]) / np.sqrt([[17], [1]])
    np.testing.assert_allclose(found, expected if slope else 0 * expected, atol=1e-6)


def contracted_by_formula(x):
    length = np.linalg.norm(x)
    return x if length <= 1 else (2 - 1 / length) * x / length


def test_contraction_matches_its_formula_and_its_inverse():
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(100, 3)) * 10 ** rng.uniform(-2, 3, (100, 1))).astype(np.float32)
    ours = jax.jit(volume.contract)(points)
    np.testing.assert_allclose(ours, [contracted_by_formula(x) for x in points], atol=1e-6)
    assert (np.linalg.norm(points, axis=1) > 1).any() and (np.linalg.norm(points, axis=1) < 1).any()
    distance = np.linalg.norm(points, axis=1, keepdims=True)
    back = jax.jit(volume.expand)(ours)
    assert (np.abs(back - points) / np.maximum(distance, distance**2)).max() < 1e-6


def test_the_jacobian_of_the_contraction_is_that_of_finite_differences():
    points = np.random.default_rng(0).normal(size=(20, 3)) * 2
    ours = jax.jit(jax.vmap(jax.jacfwd(volume.contract)))(np.float32(points))
    for x, jacobian in zip(points, ours, strict=True):
        steps = 1e-6 * np.eye(3)
        columns = [contracted_by_formula(x + s) - contracted_by_formula(x - s) for s in steps]
        np.testing.assert_allclose(jacobian, np.stack(columns, axis=1) / 2e-6, atol=1e-5)


def test_contraction_stays_finite_with_its_gradients():
    points = jnp.array([[0.0, 0, 0], [1, 0, 0], [1e8, -1e8, 1e8], [-1e8, 0, 0], [1e-30, 0, 0]])
    for f in (volume.contract, lambda x: volume.expand(volume.contract(x))):
        found, slopes = jax.jit(f)(points), jax.jit(jax.vmap(jax.jacrev(f)))(points)
        assert np.isfinite(found).all() and np.isfinite(slopes).all()
    assert np.linalg.norm(volume.contract(points), axis=1).max() <= 2


def test_contraction_puts_points_whose_squares_no_float_holds_on_the_border():
    points = jnp.array([[1e20, 0, 0], [-1e37, 1e37, 0], [1e19, -1e25, 1e19]])
    found = jax.jit(volume.contract)(points)
    np.testing.assert_allclose(found, [[2, 0, 0], [-(2**0.5), 2**0.5, 0], [2e-6, -2, 2e-6]], 1e-6)
    assert np.isfinite(jax.jit(jax.vmap(jax.jacrev(volume.contract)))(points)).all()


# ---- the distortion loss ----


def distortion_by_loop(edges, weights):
    """Equation 15, every pair of intervals."""
    middle, total = (edges[1:] + edges[:-1]) / 2, 0.0
    for i, w in enumerate(weights):
        for j, v in enumerate(weights):
            total += w * v * abs(middle[i] - middle[j])
        total += w * w * (edges[i + 1] - edges[i]) / 3
    return total


@pytest.mark.parametrize("s", [1, 2, 9])
def test_distortion_matches_a_double_loop(s):
    rng = np.random.default_rng(s)
    edges, weights = np.sort(rng.uniform(size=(4, s + 1)), axis=1), rng.uniform(size=(4, s)) / s
    middle, delta = (edges[:, 1:] + edges[:, :-1]) / 2, np.diff(edges, axis=1)
    ours = jax.jit(volume.distortion)(*map(np.float32, (middle, delta, weights)))
    expected = [distortion_by_loop(*ray) for ray in zip(edges, weights, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=2e-6)


def test_the_distortion_of_proposals_is_that_of_their_normalised_distances():
    """From 1 to 100 in disparity, where distances themselves would give another number."""
    rays = Rays(jnp.zeros((1, 3)), jnp.float32([[1, 0, 0]]))
    near, far = jnp.ones(1), jnp.full(1, 100.0)

    def density(points):
        return 1 / points[:, 0]

    samples = proposal.sample([density], rays, near, far, counts=(8, 6), spacing="disparity")
    weights = volume.weigh(density(rays.at(samples.t)[0])[None], samples.delta)[0]
    t, delta, *_ = middles(samples.unit)
    edges = np.asarray(samples.unit[0], np.float64)
    begin, end = samples.t[0] - samples.delta[0] / 2, samples.t[0] + samples.delta[0] / 2
    np.testing.assert_allclose(1 / begin, 1 - edges[:-1] * 0.99, rtol=1e-4)
    np.testing.assert_allclose(1 / end, 1 - edges[1:] * 0.99, rtol=1e-4, atol=1e-5)
    expected = distortion_by_loop(edges, np.asarray(weights[0], np.float64))
    np.testing.assert_allclose(volume.distortion(t, delta, weights), [expected], rtol=1e-5)


def test_unused_slots_have_no_distortion_and_no_infinite_gradients():
    rng = np.random.default_rng(0)
    edges, weights = np.sort(rng.uniform(size=6)), rng.uniform(size=5)
    middle, delta = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    padded = [np.append(x, [end, end]) for x, end in ((middle, 1e8), (delta, 0), (weights, 0))]
    inputs = [jnp.float32(x)[None] for x in padded]
    grad = jax.value_and_grad(lambda *x: volume.distortion(*x).sum(), argnums=(0, 1, 2))
    found, slopes = jax.jit(grad)(*inputs)
    np.testing.assert_allclose(found, distortion_by_loop(edges, weights), rtol=1e-6)
    assert all(np.isfinite(x).all() for x in slopes)
