"""The task on posed views: rays that belong to their pixels, one update on every mesh, a grid that
is kept up, and evaluations that a loop agrees with."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import zoo
from tests.test_step import assert_agree
from train import loop, novelviews, radiance
from train.check import check
from train.config import (
    ConfigError,
    Experiment,
    Images,
    Model,
    Optim,
    Parallel,
    Step,
    Views,
)
from train.data import views
from train.tasks.nerf import NeRF, space_of
from zoo.nerf import cameras, samplers
from zoo.nerf import scene as scenes
from zoo.nerf.scene import Hierarchical, Occupancy, Proposals, Sampler, Space
from zoo.nerf.view import Renderer

SIDE, BATCH = 16, 64
NGP = Model("ngp", {"levels": 2, "rows": 64, "coarsest": 4, "finest": 8, "width": 8})
NERF = Model("nerf", {"depth": 3, "skip": 2, "width": 16, "colour_width": 8})
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # 2004
SMALL_GRID = Occupancy(resolution=8, steps=16, slots=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scene")


def experiment(folder, **changes) -> Experiment:
    fields = {
        "model": NGP,
        "data": Views(
            size=SIDE,
            samples=1,
            views=(4, 2, 2),
            batch_size=BATCH,
            judged=3 * BATCH,
            cache=str(folder),
        ),
        "task": NeRF(SMALL_GRID, room=256, every=2, whole=2, drawn=1),
        "optim": Optim("sgd", lr=0.1, schedule="constant"),
        "steps": 4,
        "tensorboard": False,
        "log": "plain",
    }
    return Experiment(**fields | changes)


def steps(cfg: Experiment, count: int = 3):
    """(state, metrics of each step) of `count` updates, and the run."""
    run = loop.prepare(cfg)
    state, shown, stream = run.first(), [], run.data.train()
    for _ in range(count):
        state, metrics = run.update(state, run.put(next(stream)))
        shown.append(jax.device_get(metrics))
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng))), shown


# ---- data ----


def opened(folder, draw="device"):
    """The views that train are not the first ones."""
    data = replace(experiment(folder).data, draw=draw).open()
    splits = {"train": np.array([1, 3, 6, 7]), "validation": np.array([0, 4])}
    return replace(data, scene=replace(data.scene, splits=splits | {"test": np.array([2, 5])}))


@pytest.mark.parametrize("draw", ["device", "host"])
def test_a_ray_goes_through_the_pixel_whose_colour_it_has(draw, folder):
    data = opened(folder, draw)
    stream = data.train()
    batch = {**next(stream), **data.resident()}
    batch = jax.device_get(jax.jit(data.drawn)(batch, jax.random.key(0)))
    scene = data.scene
    assert batch["ray"].shape == (BATCH,) and batch["colour"].shape == (BATCH, 4)
    found = jax.jit(lambda b: radiance.seen(data, b, "white"))(batch)
    for i, ray in enumerate(batch["ray"]):
        view, pixel = divmod(int(ray), SIDE * SIDE)
        row, column = divmod(pixel, SIDE)
        assert view in scene.splits["train"]
        np.testing.assert_array_equal(batch["colour"][i], scene.images[view, row, column])
        camera = cameras.select(scene.cameras, view)
        wanted = cameras.rays(camera, jnp.array([column + 0.5, row + 0.5]))
        np.testing.assert_allclose(found.rays.directions[i], wanted.directions, atol=1e-6)
        np.testing.assert_allclose(found.rays.origins[i], wanted.origins, atol=1e-6)
        red, green, blue, alpha = scene.images[view, row, column] / 255
        over_white = alpha * np.array([red, green, blue]) + 1 - alpha
        np.testing.assert_allclose(found.colour[i], over_white, atol=1e-6)


def test_a_device_draws_from_all_pixels_that_train_and_anew_each_step(folder):
    data = opened(folder)
    batch = {"slot": jnp.arange(20000), **data.resident()}
    draw = jax.jit(data.drawn)
    first, second = (np.asarray(draw(batch, jax.random.key(i))["ray"]) for i in range(2))
    views, counts = np.unique(first // SIDE**2, return_counts=True)
    np.testing.assert_array_equal(views, data.scene.splits["train"])
    assert counts.min() > 4600 and counts.max() < 5400  # 5000 ± 61
    assert len(np.unique(first % SIDE**2)) == SIDE**2
    assert (first == second).mean() < 0.01
    some = {**batch, "slot": batch["slot"][100:200]}  # a share of them
    np.testing.assert_array_equal(draw(some, jax.random.key(0))["ray"], first[100:200])


def test_a_stream_goes_on_where_its_state_was_taken(folder):
    data = opened(folder, "host")
    first, second = data.train(), data.train()
    for _ in range(3):
        next(first)
    second.restore(json.loads(json.dumps(first.state())))
    assert_agree(next(first), next(second), 0)
    other = first.state() | {"content": "of other pictures"}
    with pytest.raises(ConfigError, match="but other ones"):
        second.restore(other)


@pytest.mark.parametrize("draw, key", [("device", "slot"), ("host", "ray")])
def test_processes_share_a_batch_and_an_evaluation(draw, key, folder):
    data = opened(folder, draw)
    whole = next(data.train())
    shares = [next(data.stream(i, 2)) for i in range(2)]
    assert [len(share[key]) for share in shares] == [BATCH // 2] * 2
    np.testing.assert_array_equal(np.concatenate([s[key] for s in shares]), whole[key])
    batches = zip(*(data.in_order("test", i, 2) for i in range(2)), strict=True)
    alone, _ = data.evaluate("test")
    for (a, b), one in zip(batches, alone, strict=True):
        for key in ("ray", "mask", "colour"):
            np.testing.assert_array_equal(np.concatenate([a[key], b[key]]), one[key])


def test_every_pixel_of_a_split_is_judged_once_in_order(folder):
    data = experiment(folder).data.open()
    batches, _ = data.evaluate("validation")
    found = [(b["ray"], b["mask"]) for b in batches]
    assert {len(ray) for ray, _ in found} == {3 * BATCH}
    rays = np.concatenate([ray[mask > 0] for ray, mask in found])
    first, second = data.scene.splits["validation"]
    each = np.arange(SIDE * SIDE)
    np.testing.assert_array_equal(rays, np.concatenate([first * 256 + each, second * 256 + each]))


# ---- learning ----


@pytest.mark.parametrize(
    "parallel",
    [Parallel(data=8), Parallel(data=2, fsdp=4)],
    ids=["data", "fsdp"],
)
def test_a_mesh_of_devices_learns_as_one_does(folder, parallel, monkeypatch):
    many, shown = steps(experiment(folder, parallel=parallel))
    with monkeypatch.context() as alone:
        alone.setattr(loop.parallel, "make_mesh", one_device(loop.parallel.make_mesh))
        one, expected = steps(experiment(folder))
    for ours, theirs in zip(shown, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["rays"] == theirs["rays"] and ours["samples"] == pytest.approx(
            theirs["samples"]
        )
    assert_agree(many.params, one.params, 1e-5)
    np.testing.assert_array_equal(many.extra["grid"].occupied, one.extra["grid"].occupied)


def one_device(make):
    return lambda cfg: make(cfg, jax.devices()[:1])


def test_rays_in_groups_say_what_they_say_together(folder):
    """With room for all, a group needs nothing of another."""
    task = NeRF(SMALL_GRID, room=BATCH * SMALL_GRID.steps, drawn=1)
    whole, _ = steps(experiment(folder, task=task), 1)
    apart, _ = steps(experiment(folder, task=replace(task, groups=8)), 1)
    assert_agree(apart.params, whole.params, 1e-6)


def test_rays_without_room_do_not_count(folder):
    task = NeRF(SMALL_GRID, room=64, prune=4, drawn=1)  # nothing is hidden yet
    _, [shown] = steps(experiment(folder, task=task), 1)
    assert 0 < shown["rays"] < 0.5
    assert shown["rays"] * BATCH * shown["samples"] <= 64


def test_where_all_may_be_occupied_rays_take_coarser_steps(folder):
    _, [shown] = steps(experiment(folder, task=NeRF(SMALL_GRID, room=128, drawn=1)), 1)
    assert shown["rays"] > 0.6 and shown["samples"] < SMALL_GRID.steps / 2
    task = NeRF(SMALL_GRID, room=128, thin=False, drawn=1)
    _, [shown] = steps(experiment(folder, task=task), 1)
    assert shown["rays"] < 0.3 and shown["samples"] > SMALL_GRID.steps / 2


def test_the_grid_forgets_what_is_empty_and_keeps_what_is_not(folder):
    """Of a field that is a ball, the cells that touch it stay, and those far away go."""
    cfg = experiment(folder)
    task = replace(cfg.task, every=2, whole=2)
    space = Space(sampler=SMALL_GRID)
    update = radiance.renewing_grid(
        lambda state, batch: (state.replace(step=state.step + 1), {}),
        task,
        lambda variables: ball(),
        space,
    )
    state = loop.prepare(cfg).first()
    state = state.replace(extra={**state.extra, "grid": samplers.create_grid(space)})
    seen = []
    for _ in range(3):
        state, _ = jax.jit(update)(state, {})
        seen.append(np.asarray(state.extra["grid"].occupied[0]))
    middles = (np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1) + 0.5) / 4 - 1
    distance = np.linalg.norm(middles, axis=-1)
    assert seen[0][distance < 0.5 - 0.22].all() and not seen[0][distance > 0.5 + 0.22].any()
    np.testing.assert_array_equal(seen[0], seen[1])  # nothing is due at step 1
    # Of half of the cells, a ball is still found where it was.
    assert seen[2][distance < 0.5 - 0.22].all() and not seen[2][distance > 0.5 + 0.22].any()


def ball() -> samplers.Asked:
    """Opaque and red within half a unit of the origin, nothing beyond."""

    def density(points):
        return jnp.where(jnp.linalg.norm(points, axis=-1) < 0.5, 100.0, 0.0)

    def field(points, directions):
        return density(points), jnp.broadcast_to(jnp.array([0.8, 0.1, 0.1]), points.shape)

    return samplers.Asked(field, field, density, [density, density])


def test_cameras_that_are_refined_find_back_to_their_places(folder):
    """Pictures of a known field, whose cameras are said to be elsewhere by some degrees."""
    data = experiment(folder).data.open()
    space = Space(low=(-1.5,) * 3, high=(1.5,) * 3, sampler=Occupancy(8, steps=64, slots=64))

    def field(points, directions):
        density = 40 * jax.nn.sigmoid(20 * (0.7 - jnp.linalg.norm(points, axis=-1)))
        return density, 0.5 + 0.5 * jnp.sin(4 * points)

    asked = samplers.Asked(field, field, lambda x: field(x, x)[0], [])
    grid = samplers.create_grid(space)
    true = jax.tree.map(jnp.asarray, data.scene.cameras)
    pixels = jnp.broadcast_to(
        cameras.pixel_centres(SIDE, SIDE).reshape(1, -1, 2), (8, SIDE * SIDE, 2)
    )
    rays = cameras.rays(jax.tree.map(lambda x: x[:, None], true), pixels)
    flat = cameras.Rays(*(x.reshape(-1, 3) for x in rays))
    seen = samplers.shown(asked, space, flat, grid, jnp.ones(3)).colour
    pictures = np.asarray(255 * seen).round().astype(np.uint8).reshape(8, SIDE, SIDE, 3)
    turn, shift = np.float32(np.random.default_rng(0).normal(size=(2, 8, 3))) * [[[0.03]], [[0.05]]]
    said = cameras.moved(true, jnp.float32(turn), jnp.float32(shift))
    moved = replace(data, scene=replace(data.scene, images=pictures, cameras=said))

    task = NeRF(space.sampler, refine=0.5, background="scene", loss="squared", room=2**14)
    loss = radiance.objective(task, moved, lambda variables: asked, space)
    adam = optax.adam(optax.cosine_decay_schedule(8e-3, 600), b2=0.99)
    train = data.scene.splits["train"]

    @jax.jit
    def fit(params, key):
        def step(carry, key):
            params, state = carry
            draw, along = jax.random.split(key)
            places = jax.random.randint(draw, (2, 512), 0, SIDE * SIDE)
            ray = jnp.asarray(train)[places[0] % len(train)] * SIDE * SIDE + places[1]
            colour = jnp.asarray(pictures.reshape(-1, 3))[ray]
            batch = {"ray": ray, "colour": colour, "grid": grid, "step": 0}
            slope = jax.grad(lambda params: loss(params, {}, batch, along)[0])(params)
            change, state = adam.update(slope, state)
            return (optax.apply_updates(params, change), state), None

        keys = jax.random.split(key, 600)
        return jax.lax.scan(step, (params, adam.init(params)), keys)[0][0]

    def away(found):
        """Degrees, and the distance to the true place, of the views that train."""
        turned = np.einsum("vij,vik->vjk", found.pose[..., :3], true.pose[..., :3])
        angle = np.arccos(np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1))
        place = np.linalg.norm(found.pose[..., 3] - true.pose[..., 3], axis=1)
        return np.degrees(angle)[train].mean(), place[train].mean()

    params = fit(radiance.besides(task, moved), jax.random.key(0))
    run = {"params": {**params, "field": 0}}
    model, scene = radiance.exported(task, companion_of(moved, space), run)
    assert model == {"params": {"field": 0}}
    before, after = away(said), away(scene.cameras)
    assert after[0] < 0.2 * before[0] and after[1] < 0.2 * before[1]
    still = np.setdiff1d(np.arange(8), train)  # what trains no view moves none
    np.testing.assert_array_equal(scene.cameras.pose[still], said.pose[still])


def test_sparsity_empties_what_nothing_else_speaks_for():
    """Its gradient is that of the opacity of a hundredth of the diagonal, at even places."""
    space = Space(low=(-1, -1, -1), high=(1, 1, 1), sampler=SMALL_GRID)
    length = 12**0.5 / 100

    def of(sigma, key):
        def left(points):
            return jnp.where(points[:, 0] < 0, sigma, 0)

        return radiance.opacity_anywhere(ball()._replace(density=left), space, key)

    keys = jax.random.split(jax.random.key(0), 50)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(of), (None, 0)))(3.0, keys)
    np.testing.assert_allclose(value.mean(), (1 - np.exp(-3 * length)) / 2, rtol=0.02)
    np.testing.assert_allclose(slope.mean(), length * np.exp(-3 * length) / 2, rtol=0.02)
    assert value.std() > 0 and np.isfinite(of(jnp.inf, keys[0]))


def companion_of(data, space):
    scene = data.scene
    return scenes.Scene(space, SIDE, SIDE, scene.cameras, scene.names, scene.splits)


def test_what_is_learnt_besides_the_field_is_saved_with_the_scene(folder, tmp_path, monkeypatch):
    """Opaque pictures of a green nothing: the colour behind all is found, and the model that is
    saved has neither it nor the cameras' moves among its weights."""
    scene = experiment(folder).data.open().scene
    green = np.broadcast_to(np.uint8([20, 200, 60]), (*scene.images.shape[:3], 3))
    opaque = replace(scene, images=green, depth=None)
    monkeypatch.setattr(views.posed, "open_scene", lambda *_, **__: opaque)
    task = NeRF(SMALL_GRID, room=2048, every=50, drawn=1, background="learned", refine=0.1)
    optim = Optim("adamw", lr=0.1, schedule="constant", weight_decay=0)
    cfg = experiment(folder, task=task, optim=optim, steps=60, evaluate_every=60)
    result = loop.fit(cfg, tmp_path)
    assert result is not None and result["test"]["psnr"] > 30
    found = scenes.load(tmp_path / "model")
    np.testing.assert_allclose(found.space.background, np.array([20, 200, 60]) / 255, atol=0.03)
    model, variables = zoo.load(tmp_path / "model")
    assert variables["params"].keys() == {"geometry", "colour"}
    off = np.abs(found.cameras.pose - scene.cameras.pose).max(axis=(1, 2))
    assert (off[scene.splits["train"]] > 0).all() and not off[scene.splits["test"]].any()
    shown = Renderer(model.apply, variables, found.space).view(
        cameras.select(found.cameras, 0), SIDE, SIDE
    )
    np.testing.assert_allclose(shown.colour.mean((0, 1)), np.array([20, 200, 60]) / 255, atol=0.05)


# ---- judging ----


@pytest.mark.parametrize(
    "model, sampler",
    [(NGP, SMALL_GRID), (NERF, Hierarchical(4, 4)), (NGP, Proposals((4, 4, 4)))],
    ids=["occupancy", "hierarchical", "proposals"],
)
def test_an_evaluation_is_what_a_renderer_shows_view_by_view(model, sampler, folder, tmp_path):
    cfg = experiment(folder, model=model, task=NeRF(sampler, room=512, drawn=2))
    run = loop.prepare(cfg)
    state = run.first()
    batches, _ = run.data.evaluate("test")
    found, drawn = run.task.evaluator("test")(state, map(run.put, batches))
    scene = run.data.scene
    renderer = Renderer(
        run.task.model.apply, state.variables(), run.task.companion.space, state.extra.get("grid")
    )
    shown = [
        renderer.view(cameras.select(scene.cameras, i), SIDE, SIDE) for i in scene.splits["test"]
    ]
    truth = [
        novelviews.composed(scene.images[i], np.ones(3, np.float32)) for i in scene.splits["test"]
    ]
    each = [
        peak_signal_noise_ratio(t, s.colour, data_range=1.0)
        for t, s in zip(truth, shown, strict=True)
    ]
    assert found["psnr"] == pytest.approx(np.mean(each), abs=1e-3)
    assert found["psnr_min"] == pytest.approx(np.min(each), abs=1e-3)
    solid = scene.images[scene.splits["test"]][..., 3] > 0
    off = np.stack([s.colour for s in shown])[solid] - np.stack(truth)[solid]
    assert found["psnr_foreground"] == pytest.approx(-10 * np.log10((off**2).mean()), abs=1e-3)
    alike = [
        structural_similarity(t, s.colour, channel_axis=2, data_range=1.0, **WANG)
        for t, s in zip(truth, shown, strict=True)
    ]
    assert found["ssim"] == pytest.approx(np.mean(alike), abs=1e-4)
    true = scene.depth[scene.splits["test"]]
    both = np.isfinite(true) & (np.stack([s.opacity for s in shown]) > 0.5)
    both = both if both.any() else np.isfinite(true)
    off = np.abs(np.stack([s.depth for s in shown]) - np.where(both, true, 0))[both]
    assert found["depth_error"] == pytest.approx(off.mean(), rel=0.05)
    assert drawn["views"].shape == (2 * SIDE, 4 * SIDE, 3) and drawn["views"].dtype == np.uint8


def test_lpips_is_reported_where_its_weights_are_given(folder, tmp_path):
    model = zoo.create("lpips_alex", widths=(8, 8, 8, 8, 8))
    variables = zoo.init(model, jax.random.key(0))
    zoo.save(model, variables, tmp_path / "weights")
    cfg = experiment(folder, data=Views(size=32, samples=1, views=(4, 2, 2), cache=str(folder)))
    task = replace(cfg.task, drawn=2, lpips=str(tmp_path / "weights"))
    run = loop.prepare(replace(cfg, task=task))
    batches, _ = run.data.evaluate("test")
    found, drawn = run.task.evaluator("test")(run.first(), map(run.put, batches))
    tiles = np.float32(drawn["views"].reshape(2, 32, 4, 32, 3) / 255)
    truth, ours = tiles[:, :, 0], tiles[:, :, 1]
    wanted = float(np.mean(model.apply(variables, truth, ours)))
    assert wanted > 0 and found["lpips"] == pytest.approx(wanted, rel=0.05)  # of eight bits
    other = zoo.create("resnet20")
    zoo.save(other, zoo.init(other, jax.random.key(0)), tmp_path / "other")
    small = experiment(folder)
    for wrong, path, message in (
        (cfg, "nowhere", "task.lpips = 'nowhere'"),
        (cfg, str(tmp_path / "other"), "holds a resnet, not weights of LPIPS"),
        (small, str(tmp_path / "weights"), "pictures of 16×16 are too small for its alex"),
    ):
        with pytest.raises(ConfigError, match=message):
            loop.prepare(replace(wrong, task=replace(wrong.task, lpips=path)))


def test_skipping_empty_space_does_not_change_a_picture(folder):
    """A ball is drawn with its settled grid as with every cell asked, to less than 0.1 dB."""
    data = experiment(folder).data.open()
    how = Occupancy(resolution=32, steps=256, slots=256)
    space = Space(low=(-1.5,) * 3, high=(1.5,) * 3, sampler=how)
    camera = cameras.select(data.scene.cameras, int(data.scene.splits["test"][0]))
    pixels = cameras.pixel_centres(SIDE, SIDE).reshape(-1, 2)
    rays = cameras.rays(camera, pixels)

    @jax.jit
    def picture(grid):
        return samplers.shown(ball(), space, rays, grid, jnp.ones(3))

    every = samplers.create_grid(space)
    grid = jax.jit(lambda key: samplers.settled_grid(ball().density, space, key))(jax.random.key(0))
    assert grid.occupied.mean() < 0.1
    skipped, whole = picture(grid), picture(every)
    assert whole.opacity.max() > 0.99
    assert np.mean((skipped.colour - whole.colour) ** 2) < 1e-4 * 0.023  # 0.1 dB at 40 dB


def test_known_numbers_stand_beside(folder):
    run = loop.prepare(experiment(folder))
    beside, scene = run.task.beside("test"), run.data.scene
    blank, nearest = [], []
    for i in scene.splits["test"]:
        truth = novelviews.composed(scene.images[i], np.ones(3))
        blank.append(peak_signal_noise_ratio(truth, np.ones_like(truth), data_range=1.0))
        away = {
            j: np.linalg.norm(scene.cameras.pose[i, :, 3] - scene.cameras.pose[j, :, 3])
            for j in scene.splits["train"]
        }
        other = novelviews.composed(scene.images[min(away, key=lambda j: away[j])], np.ones(3))
        nearest.append(peak_signal_noise_ratio(truth, other, data_range=1.0))
    assert beside["psnr_blank"] == pytest.approx(np.mean(blank), abs=1e-4)
    assert beside["psnr_nearest"] == pytest.approx(np.mean(nearest), abs=1e-4)


def test_depths_are_compared_where_both_see_something():
    distance = np.full((16, 16), np.inf)
    distance[4:12, 4:12] = 2.0
    opacity = np.zeros((16, 16))
    opacity[4:8, 4:12] = opacity[0, 0] = 1.0
    blank = np.zeros((16, 16, 3))
    depth = np.where(opacity > 0, 2.25, 7.0)
    view = novelviews.Shown(blank, blank, depth, opacity, np.isfinite(distance), distance)
    off = novelviews.judged(view).off
    assert len(off) == 32 and off == pytest.approx(0.25)


# ---- what is kept ----


def test_a_scene_comes_back_from_its_file(folder, tmp_path):
    companion = loop.prepare(experiment(folder)).task.companion
    companion.save(tmp_path)
    found = scenes.load(tmp_path)
    assert found.space == companion.space
    assert (found.height, found.width, found.names) == (SIDE, SIDE, companion.names)
    jax.tree.map(np.testing.assert_array_equal, found.cameras, companion.cameras)
    assert {k: [*v] for k, v in found.splits.items()} == {
        k: [*map(int, v)] for k, v in companion.splits.items()
    }
    (tmp_path / scenes.FILE).write_text('{"space": {}}')
    with pytest.raises(ValueError, match="scene.json is no scene: KeyError"):
        scenes.load(tmp_path)
    with pytest.raises(ValueError, match="there is no .*scene.json"):
        scenes.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": NeRF(room=0)}, "task.room is 0"),
        (
            {"task": NeRF(room=64)},
            "task.sampler.steps is 1024, but a group of rays has room for 64",
        ),
        ({"task": NeRF(Occupancy(steps=0))}, "task.sampler.steps is 0"),
        ({"task": NeRF(Proposals(()))}, r"task.sampler.counts is \(\)"),
        ({"task": NeRF(Hierarchical(coarse=2))}, "task.sampler.coarse is 2, but must be 3"),
        ({"task": NeRF(Sampler())}, "task.sampler is a Sampler; choose one of Occupancy"),
        ({"parallel": Parallel(compiler="pmap")}, "--data.draw host, or jit"),
        (
            {"parallel": Parallel(compiler="pmap"), "data": Views(draw="host")},
            "with a group for each device",
        ),
        ({"data": Views(size=8, samples=1, views=(2, 1, 1))}, "in windows of 11"),
        ({"task": NeRF(room=130, groups=4)}, "task.room is 130: not a multiple of task.groups 4"),
        ({"task": NeRF(Hierarchical())}, "take Hierarchical"),
        ({"model": NERF}, "take Hierarchical"),
        ({"model": Model("resnet20")}, "resnet20 is no radiance field"),
        ({"step": Step(precision="bfloat16")}, "needs float32"),
        ({"step": Step(accumulate=2)}, "rays are not accumulated"),
        ({"task": NeRF(SMALL_GRID, background="learned")}, "the pictures of scene are transparent"),
        (
            {"task": NeRF(Proposals((4, 4, 4)), sparsity=1e-3)},
            "task.sparsity asks places of the scene's box",
        ),
        ({"task": NeRF(refine=-1.0)}, "task.refine is -1.0"),
        ({"data": Images()}, "learns from Views"),
        ({"data": Views(views=(3, 0, 2))}, "data.views is"),
        ({"data": Views(factor=0)}, "data.factor is 0"),
        ({"data": Views(source="blender:nowhere")}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_by_key(changes, message, folder):
    if isinstance(data := changes.get("data"), Views):
        changes = changes | {"data": replace(data, cache=str(folder))}
    cfg = experiment(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        loop.prepare(check(cfg))


def test_cascades_end_at_the_scenes_box(folder):
    scene = experiment(folder).data.open().scene
    space = space_of(NeRF(replace(SMALL_GRID, cascades=3)), scene)
    np.testing.assert_allclose(samplers.corners(space), scene.box)
    np.testing.assert_allclose(space.high, scene.box[1] / 4)
