"""The occupancy grid against loops over cells and rays, and a field that learns with it."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.nerf import occupancy, volume
from zoo.nerf.cameras import Rays
from zoo.nerf.sampling import intersect_box, middles

LOW, HIGH = np.float32([-1, -1, -1]), np.float32([1, 1, 1])
update = jax.jit(occupancy.update, static_argnames=("density", "every", "chunk"))
march = jax.jit(occupancy.march, static_argnames=("slots", "steps", "step", "cone"))


# ---- learning where density is ----


def centre_of_cell(grid, level, index):
    """Level k spans 2^k times the box about its centre."""
    resolution = grid.density.shape[1]
    middle = (np.asarray(grid.low) + np.asarray(grid.high)) / 2
    reach = (np.asarray(grid.high) - np.asarray(grid.low)) / 2 * 2**level
    return middle - reach + 2 * reach * (np.array(index) + 0.5) / resolution


def lumps(points):
    """Not less than 0 and constant in each cell of 1/2, and so in all that are of that size."""
    cell = jnp.floor(2 * points)
    return jnp.abs(jnp.sin(cell[:, 0] + 2.2 * cell[:, 1] + 3.1 * cell[:, 2])) * 10


def filled(levels=1, resolution=4, low=LOW, high=HIGH, seed=0):
    """A grid in the middle of its life."""
    grid = occupancy.create(low, high, resolution=resolution, levels=levels)
    rng = np.random.default_rng(seed)
    density = rng.exponential(5, grid.density.shape).astype(np.float32)
    occupied = rng.uniform(size=density.shape) < 0.4
    return grid._replace(density=jnp.asarray(density), occupied=jnp.asarray(occupied))


def updated_by_loop(grid, threshold):
    """Appendix E.2, one cell after the other, for a density that is constant in each."""
    density = np.zeros(grid.density.shape)
    for cell in np.ndindex(density.shape):
        found = float(lumps(jnp.float32(centre_of_cell(grid, cell[0], cell[1:]))[None])[0])
        density[cell] = max(0.95 * float(grid.density[cell]), found)
    return density, density >= min(threshold, density.mean() / 2)


@pytest.mark.parametrize("threshold", [1.0, 100.0])
def test_an_update_of_all_cells_matches_a_loop(threshold):
    grid = filled()
    ours = update(grid, lumps, jax.random.key(0), threshold=threshold, every=True)
    density, occupied = updated_by_loop(grid, threshold)
    np.testing.assert_allclose(ours.density, density, rtol=1e-5)
    np.testing.assert_array_equal(ours.occupied, occupied)
    assert occupied.any() and not occupied.all()


def test_an_update_in_chunks_is_the_same():
    ours, whole = (
        update(filled(), lumps, jax.random.key(0), threshold=1.0, every=True, chunk=chunk)
        for chunk in (30, 64)
    )
    for found, expected in zip(ours, whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_cells_that_are_not_asked_about_decay_and_those_occupied_are_asked_more():
    """One density everywhere, above all that was, shows which cells were asked."""
    grid, asked = filled(resolution=8), []

    def found(points):
        asked.append(len(points))
        return jnp.full(len(points), 1e3)

    ours = update(grid, found, jax.random.key(0), threshold=1.0, every=False)
    assert asked == [256]  # of 512 cells: half as many, some of them twice
    hit = np.asarray(ours.density == 1e3)
    left = np.asarray(0.95 * grid.density)
    np.testing.assert_allclose(ours.density[~hit], left[~hit], rtol=1e-6)
    # 128 draws from 512 cells reach 1 − exp(−1/4) = 22 % of the empty ones; 128 more from about 200
    # leave exp(−1/4 − 128/200) of those occupied.
    occupied = np.asarray(grid.occupied)
    share = math.exp(-0.25 - 128 / occupied.sum())
    assert abs(hit[~occupied].mean() - 0.22) < 0.07
    assert abs(hit[occupied].mean() - (1 - share)) < 0.09


def test_cells_are_asked_at_random_places_inside_them():
    low, high = np.float32([0, -1, 2]), np.float32([1, 3, 2.5])
    grid = occupancy.create(low, high, resolution=3, levels=3)

    @jax.jit
    def places(key):
        asked = []
        occupancy.update(grid, lambda x: asked.append(x) or x[:, 0], key, threshold=1.0, every=True)
        return asked[0]

    points = np.stack([places(jax.random.key(seed)) for seed in range(20)])
    points = points.reshape(20, *grid.density.shape, 3)
    for cell in np.ndindex(grid.density.shape):
        side = (high - low) * 2 ** cell[0] / 3
        inside = (points[:, *cell] - centre_of_cell(grid, cell[0], cell[1:])) / side
        assert np.abs(inside).max() <= 0.5 + 1e-4 and inside.std() > 0.2


def test_a_field_that_is_thin_everywhere_keeps_its_cells():
    """All densities are far below the threshold at first; without this, none would ever grow."""
    grid = occupancy.create(LOW, HIGH, resolution=4)
    for field in (lambda x: 0 * x[:, 0], lambda x: 0.2 + 0.01 * x[:, 0]):
        assert update(grid, field, jax.random.key(0), threshold=5.0, every=True).occupied.all()


def test_infinite_density_leaves_the_grid_finite():
    def infinite(points):
        return points[:, 0] / 0

    grid = filled()
    for every in (True, False):
        grid = update(grid, infinite, jax.random.key(0), threshold=1.0, every=every)
        assert np.isfinite(grid.density).all()
    assert grid.occupied.any()


def test_a_density_that_is_no_number_keeps_its_cell_and_spoils_no_other():
    def broken(points):
        return jnp.where((points < -0.5).all(axis=1), jnp.nan, lumps(points))

    grid = filled()
    ours = update(grid, broken, jax.random.key(0), threshold=1.0, every=True)
    density, _ = updated_by_loop(grid, 1.0)
    density[0, 0, 0, 0] = volume.LARGEST
    np.testing.assert_allclose(ours.density, density, rtol=1e-5)
    np.testing.assert_array_equal(ours.occupied, density >= 1.0)
    healed = update(ours, lumps, jax.random.key(1), threshold=1.0, every=True)
    np.testing.assert_allclose(healed.density[0, 0, 0, 0], 0.95 * volume.LARGEST, rtol=1e-6)
    assert np.isfinite(healed.density).all() and not healed.occupied.all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"low": HIGH}, "are no corners of a box"),
        ({"high": np.ones(2)}, "are no corners of a box"),
        ({"resolution": 0}, "resolution 0 and levels 1 must be at least 1"),
    ],
)
def test_a_grid_that_is_none_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        occupancy.create(**{"low": LOW, "high": HIGH, **changes})


# ---- marching ----


def rays_through(grid, n=24, seed=0):
    """From around the scene to places in it, the last two past it; near and far of the whole."""
    rng = np.random.default_rng(seed)
    low, high = (np.asarray(x) for x in occupancy.bounds(grid))
    origins = (low + high) / 2 + 2 * (high - low) * rng.uniform(-1, 1, (n, 3))
    origins[: n // 3] = low + (high - low) * rng.uniform(0.3, 0.7, (n // 3, 3))  # inside
    directions = low + (high - low) * rng.uniform(0.3, 0.7, (n, 3)) - origins
    directions[-2:] *= -1
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rays = Rays(*(jnp.float32(x) for x in (origins, directions)))
    return rays, *intersect_box(*rays, low, high)


def longer(t, step, longest, cone):
    """Where the step that begins at t ends: dt/di = cone · t, between two bounds."""
    for _ in range(2000):
        t += min(max(cone * t, step), longest) / 2000
    return t


def cell_of(grid, point, delta):
    """The finest level that covers the point and whose cells are longer than the step; None where
    no level covers it."""
    levels, resolution = grid.density.shape[:2]
    middle, half = (np.asarray(x) for x in ((grid.low + grid.high) / 2, (grid.high - grid.low) / 2))
    covering = [k for k in range(levels) if (np.abs(point - middle) <= half * 2**k).all()]
    if not covering:
        return None
    fitting = [k for k in covering if 2 * half.min() * 2**k / resolution > delta]
    level = min(fitting) if fitting else max(covering)
    index = (point - middle + half * 2**level) / (2 * half * 2**level) * resolution
    return level, *(min(int(i), resolution - 1) for i in index)


def marched_by_loop(grid, rays, near, far, ray, step, cone):
    """(t, delta) of the steps of one ray whose middles are in occupied cells."""
    longest = step * 2 ** (len(grid.density) - 1)
    origin, direction = (np.float64(x[ray]) for x in rays)
    t, far, found = float(near[ray]), float(far[ray]), []
    while t < far - 1e-6:
        end = min(longer(t, step, longest, cone), far)
        cell = cell_of(grid, origin + (t + end) / 2 * direction, end - t)
        if cell is not None and grid.occupied[cell]:
            found.append(((t + end) / 2, end - t))
        t = end
    return found


@pytest.mark.parametrize("levels, cone", [(1, 0.0), (3, 0.0), (3, 0.1)])
def test_marching_matches_a_loop_over_one_ray(levels, cone):
    grid = filled(levels, resolution=8)  # with the cone, steps are longer than the finest cells
    rays, near, far = rays_through(grid)
    ours = march(grid, rays, near, far, slots=128, steps=128, step=0.12, cone=cone)
    used = np.asarray(ours.delta > 0)
    assert (np.diff(np.asarray(ours.t), axis=1) >= 0).all()
    for ray in range(len(near)):
        found = marched_by_loop(grid, rays, near, far, ray, 0.12, cone)
        t, delta = np.transpose(found) if found else np.zeros((2, 0))
        assert used[ray].tolist() == [True] * len(t) + [False] * (128 - len(t))
        np.testing.assert_allclose(ours.t[ray][: len(t)], t, atol=2e-4)
        np.testing.assert_allclose(ours.delta[ray][: len(t)], delta, atol=2e-4)
    assert used[:-2].any(axis=1).sum() > 15 and not used[-2:].any()


@pytest.mark.parametrize("levels", [1, 2])
def test_nothing_is_sampled_outside_of_the_grid(levels):
    grid = occupancy.create(LOW, HIGH, resolution=4, levels=levels)
    rays, near, far = rays_through(grid)
    found = march(grid, rays, 0 * near, far + 5, slots=None, steps=256, step=0.05)
    places = np.asarray(rays.at(found.t))
    low, high = (np.asarray(x) for x in occupancy.bounds(grid))
    inside = ((places >= low) & (places <= high)).all(axis=-1)
    np.testing.assert_array_equal(np.asarray(found.delta) > 0, inside)
    assert inside.any() and not inside.all()


def test_more_samples_than_slots_are_spread_over_the_whole_ray():
    grid = filled()
    rays, near, far = rays_through(grid)
    settings = {"steps": 64, "step": 0.06}
    key = jax.random.key(0)
    every, few = (march(grid, rays, near, far, slots=k, **settings, key=key) for k in (64, 8))
    count = np.asarray((every.delta > 0).sum(axis=1))
    assert (count > 8).sum() > 10
    np.testing.assert_array_equal((few.delta > 0).sum(axis=1), np.minimum(count, 8))
    for ray in np.flatnonzero(count > 8):
        length = float(every.delta[ray].sum())
        np.testing.assert_allclose(few.delta[ray].sum(), length, rtol=0.1)
        among = np.asarray(every.t[ray][: count[ray]])[None]
        nearest = np.abs(np.asarray(few.t[ray])[:, None] - among).argmin(axis=1)
        parts = np.arange(9) * count[ray] / 8
        assert (nearest >= np.floor(parts[:-1])).all() and (nearest <= parts[1:]).all()


def test_slots_that_are_spread_see_as_much_as_all_samples_in_the_mean():
    """A density that varies along the ray; its sum over the few, in the mean over many draws."""
    grid = occupancy.create(LOW, HIGH, resolution=4)
    ray = Rays(jnp.float32([[-2, 0.1, 0.1]]), jnp.float32([[1, 0, 0]]))
    near, far = intersect_box(*ray, LOW, HIGH)

    def thickness(slots, key=None):
        samples = march(grid, ray, near, far, slots=slots, steps=64, step=1 / 32, key=key)
        return jnp.sum(samples.t**3 * samples.delta)

    draws = jax.jit(jax.vmap(partial(thickness, 23)))(jax.random.split(jax.random.key(0), 500))
    np.testing.assert_allclose(draws.mean(), thickness(64), rtol=5e-3)
    assert draws.std() > 1e-3 * draws.mean()


def test_samples_lie_at_random_places_of_their_steps():
    grid = occupancy.create(LOW, HIGH, resolution=4)
    rays, near, far = rays_through(grid, n=2000)
    settings = {"slots": 64, "steps": 64, "step": 0.0625}
    middle = march(grid, rays, near, far, **settings)
    moved = march(grid, rays, near, far, **settings, key=jax.random.key(0))
    full = np.asarray(middle.delta) > 0.0624
    offset = (np.asarray(moved.t - middle.t) / 0.0625)[full]
    assert np.abs(offset).max() <= 0.501 and abs(offset.std() - 12**-0.5) < 0.02
    np.testing.assert_allclose(moved.delta, middle.delta, atol=1e-6)


def test_a_ray_that_needs_more_steps_takes_longer_ones():
    grid = occupancy.create(LOW, HIGH, resolution=4)
    rays, near, far = rays_through(grid)
    few = march(grid, rays, near, far, slots=8, steps=8, step=0.01)
    np.testing.assert_allclose(few.delta.sum(axis=1), far - near, atol=1e-5)


def test_marching_far_away_stays_finite():
    grid = filled(levels=5)
    directions = np.float32([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    rays = Rays(jnp.float32([[-1e8, 0, 0], [1e8, 1e8, 1e8], [0, 0, 0]]), jnp.asarray(directions))
    near, far = jnp.float32([1e8 - 100, 0, 5]), jnp.float32([1e8 + 100, 1e8, 5])
    found = march(grid, rays, near, far, slots=8, steps=16, step=0.01, cone=1 / 256)
    assert np.isfinite(found.t).all() and np.isfinite(found.delta).all()
    assert not (found.delta[1:] > 0).any()


def test_skipping_empty_space_changes_nothing_that_is_seen():
    """A ball in the corner of a box: a tenth of the samples, the same picture."""

    def density(points):
        return jnp.where(jnp.sum((points - 0.4) ** 2, axis=1) < 0.16, 30.0, 0.0)

    def field(points, directions):
        return density(points), jnp.abs(points)

    grid = full = occupancy.create(LOW, HIGH, resolution=16)
    for seed in range(16):
        grid = update(grid, density, jax.random.key(seed), threshold=0.5, every=True)
    rays, near, far = rays_through(grid, n=200)
    settings = {"slots": 128, "steps": 128, "step": 1 / 32}
    plain, skipped = (march(g, rays, near, far, **settings) for g in (full, grid))
    a, b = (volume.render(field, rays, s, jnp.ones(3)).colour for s in (plain, skipped))
    assert jnp.mean((a - b) ** 2) < 1e-5  # 50 dB
    assert (skipped.delta > 0).sum() < 0.25 * (plain.delta > 0).sum()


# ---- a field that learns with the grid ----

SIZE, CELLS, STEP = 16, 4, 1 / 32  # voxels and cells along a side of the unit cube
RAYS = 128
FIELD, NOTHING, GRID = range(3)  # whose density says what is hidden


def truth():
    """Posts one voxel wide in every cell, with gaps of three between them, about a solid block:
    rays pass many cells that are dense somewhere and empty where the ray is."""
    x, y, z = np.indices((SIZE,) * 3)
    posts = (x % 4 == 1) & (y % 4 == 1)
    block = (abs(x - 7.5) < 4) & (abs(y - 7.5) < 4) & (abs(z - 7.5) < 4)
    colour = np.stack([x, y, z], axis=-1) / SIZE
    sigma = np.where(posts | block, 200.0, 0.0)
    return jnp.float32(sigma), jnp.float32(np.where(block[..., None], colour, [0.8, 0.1, 0.1]))


def at(values, points):
    """Of a cube of values [r, r, r, …], those of the voxels that the points are in."""
    size = len(values)
    index = jnp.clip(jnp.floor(points * size), 0, size - 1).astype(jnp.int32)
    return values[tuple(jnp.moveaxis(index, -1, 0))]


def six_sides(key, n=RAYS):
    """Parallel to the axes, from all six sides."""
    pick, place = jax.random.split(key)
    side = jax.random.randint(pick, (n,), 0, 6)
    axis, sign = jax.nn.one_hot(side // 2, 3), (1.0 - 2 * (side % 2))[:, None]
    directions = axis * sign
    inside = jax.random.uniform(place, (n, 3))
    return Rays(inside * (1 - axis) + 0.5 * axis - 1.5 * directions, directions)


def learn(hidden_by, rounds=14, steps=10, rate=0.1):
    """From the truth, blurred and grey. Of each round, [rounds]: the error in the end, of rays that
    are always the same and see all; the mean loss; the share of slots that was asked about."""
    grid = occupancy.create(np.zeros(3), np.ones(3), resolution=CELLS)
    judged = six_sides(jax.random.key(1))
    room = 32 * RAYS
    edges = jnp.broadcast_to(1 + STEP * jnp.arange(33.0)[None], (RAYS, 33))  # face to face
    even, _ = volume.pack(middles(edges), room)

    def seen(sigma, colour, rays, samples):
        def field(points, _):
            return at(sigma, points), at(colour, points)

        return volume.render_packed(field, rays, samples, jnp.ones(3), longest=32).colour

    def parts(params):
        return jnp.exp(params[..., 0]), jax.nn.sigmoid(params[..., 1:])

    def loss(params, rays, samples, wanted):
        return jnp.mean((seen(*parts(params), rays, samples) - wanted) ** 2)

    def descend(grid, state, key):
        params, mean, square, i = state
        where, when = jax.random.split(key)
        rays = six_sides(where)
        near, far = intersect_box(*rays, grid.low, grid.high)

        def density(points):
            own, cells = at(parts(params)[0], points), at(grid.density[0], points)
            return jnp.stack([own, jnp.zeros_like(own), cells])[hidden_by]

        found = occupancy.march(grid, rays, near, far, slots=None, steps=32, step=STEP, key=when)
        samples, _ = volume.pack(found, room)
        samples, _ = volume.prune(density, rays, samples, room, opaque=0.01, longest=32)
        wanted = seen(*truth(), rays, even)
        value, slope = jax.value_and_grad(loss)(params, rays, samples, wanted)
        mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        step = mean / (1 - 0.9**i) / (jnp.sqrt(square / (1 - 0.99**i)) + 1e-5)  # Adam
        return (params - rate * step, mean, square, i + 1), (value, (samples.delta > 0).mean())

    def one_round(state, key):
        grid, training = state
        keys, sigma = jax.random.split(key, steps + 1), parts(training[0])[0]
        grid = occupancy.update(grid, partial(at, sigma), keys[0], threshold=0.5, every=True)
        training, found = jax.lax.scan(partial(descend, grid), training, keys[1:])
        error = loss(training[0], judged, even, seen(*truth(), judged, even))
        return (grid, training), (error, *(x.mean() for x in found))

    begin = jnp.where(truth()[0] > 0, 3.0, -2.0)[..., None] * jnp.eye(4)[0].reshape(1, 1, 1, 4)
    nothing = jnp.zeros_like(begin)
    start = grid, (begin, nothing, nothing, 1)
    return jax.lax.scan(one_round, start, jax.random.split(jax.random.key(0), rounds))[1]


@pytest.fixture(scope="module")
def learnt():
    return [np.asarray(x) for x in jax.jit(jax.vmap(learn))(jnp.arange(3))]


def test_a_field_that_learns_with_its_grid_and_prunes_by_itself_does_not_collapse(learnt):
    """The error keeps falling, as it does without pruning, and fewer samples are asked about."""
    errors, _, shares = learnt
    assert (np.diff(errors[FIELD]) < 0).all() and errors[FIELD][-1] < 0.4 * errors[FIELD][0]
    assert (errors[FIELD] < 1.05 * errors[NOTHING]).all()
    assert (shares[FIELD] < 0.85 * shares[NOTHING]).all()


def test_pruning_by_the_grids_density_collapses(learnt):
    """So the scene has what it takes: behind each edge of a post, the background leaks."""
    _, losses, _ = learnt
    assert losses[GRID][-1] > 1.5 * losses[GRID].min()
    assert losses[GRID][-1] > 3 * losses[FIELD][-1]
