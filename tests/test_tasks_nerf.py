"""The task on posed views: rays that belong to their pixels, one update on every mesh, a grid that
is kept up, and evaluations that a loop agrees with."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.test_step import assert_agree
from train import loop, radiance
from train.config import (
    ConfigError,
    Experiment,
    Images,
    Model,
    Optim,
    Parallel,
    Step,
    Views,
    check,
)
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


def test_a_ray_goes_through_the_pixel_whose_colour_it_has(folder):
    data = experiment(folder).data.open()
    stream = data.train()
    batch = next(stream)
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


def test_a_stream_goes_on_where_its_state_was_taken(folder):
    data = experiment(folder).data.open()
    first, second = data.train(), data.train()
    for _ in range(3):
        next(first)
    second.restore(json.loads(json.dumps(first.state())))
    assert_agree(next(first), next(second), 0)
    other = first.state() | {"content": "of other pictures"}
    with pytest.raises(ConfigError, match="but other ones"):
        second.restore(other)


def test_processes_share_a_batch_and_an_evaluation(folder):
    data = experiment(folder).data.open()
    whole = next(data.train())
    shares = [next(data.stream(i, 2)) for i in range(2)]
    assert [len(share["ray"]) for share in shares] == [BATCH // 2] * 2
    np.testing.assert_array_equal(np.concatenate([s["ray"] for s in shares]), whole["ray"])
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
    _, [shown] = steps(experiment(folder, task=NeRF(SMALL_GRID, room=64, drawn=1)), 1)
    assert 0 < shown["rays"] < 0.5
    assert shown["rays"] * BATCH * shown["samples"] <= 64


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
        radiance.composed(scene.images[i], np.ones(3, np.float32)) for i in scene.splits["test"]
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
        truth = radiance.composed(scene.images[i], np.ones(3))
        blank.append(peak_signal_noise_ratio(truth, np.ones_like(truth), data_range=1.0))
        away = {
            j: np.linalg.norm(scene.cameras.pose[i, :, 3] - scene.cameras.pose[j, :, 3])
            for j in scene.splits["train"]
        }
        other = radiance.composed(scene.images[min(away, key=lambda j: away[j])], np.ones(3))
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
    view = radiance.Shown(blank, blank, depth, opacity, np.isfinite(distance), distance)
    off = radiance.judged(view).off
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
        ({"parallel": Parallel(compiler="pmap")}, "with a group for each device"),
        ({"data": Views(size=8, samples=1, views=(2, 1, 1))}, "in windows of 11"),
        ({"task": NeRF(room=130, groups=4)}, "task.room is 130: not a multiple of task.groups 4"),
        ({"task": NeRF(Hierarchical())}, "take Hierarchical"),
        ({"model": NERF}, "take Hierarchical"),
        ({"model": Model("resnet20")}, "resnet20 is no radiance field"),
        ({"step": Step(precision="bfloat16")}, "needs float32"),
        ({"step": Step(accumulate=2)}, "rays are not accumulated"),
        ({"data": Images()}, "learns from Views"),
        ({"data": Views(views=(3, 0, 2))}, "data.views is"),
        ({"data": Views(factor=0)}, "data.factor is 0"),
        ({"data": Views(source="blender:nowhere")}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_by_key(changes, message, folder):
    if isinstance(data := changes.get("data"), Views):
        changes = {"data": replace(data, cache=str(folder))}
    cfg = experiment(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        loop.prepare(check(cfg))


def test_cascades_end_at_the_scenes_box(folder):
    scene = experiment(folder).data.open().scene
    space = space_of(NeRF(replace(SMALL_GRID, cascades=3)), scene)
    np.testing.assert_allclose(samplers.corners(space), scene.box)
    np.testing.assert_allclose(space.high, scene.box[1] / 4)
