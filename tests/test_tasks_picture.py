"""One picture as a field: pixels where they are, none that is held out is seen, and it is learned.

That a run resumes bit for bit is a claim of test_configs.
"""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from tests.test_step import assert_agree, compiled
from train import loop
from train.check import check
from train.config import ConfigError, Experiment, Model, Optim, Parallel, Picture, Step
from train.data import pixels
from train.tasks import picture
from train.tasks.picture import FitPicture
from zoo.layers.hashgrid import HashGrid, levels

WIDTH, HEIGHT, BATCH = 20, 12, 32  # the last batch of an evaluation is padded
GRID = {"levels": 3, "coarsest": 2, "finest": 8}
SMALL = Model("ngp_picture", {**GRID, "width": 16, "colour_depth": 1})


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return f"picture:{path}"


def drawn():
    """Whose red tells the column and whose green the row of a pixel."""
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([10 * column, 20 * row, 3 * row * column // 4], axis=-1).astype(np.uint8)


def places(colour):
    """(row, column) of each colour, as `drawn` has them."""
    return colour[:, 1].astype(int) // 20, colour[:, 0].astype(int) // 10


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    source = save(tmp_path_factory.mktemp("picture") / "drawn.png", drawn())
    return Picture(source=source, batch_size=BATCH, holdout=0.1)


@pytest.fixture(scope="module")
def data(cfg):
    return cfg.open()


def take(stream, count):
    return list(itertools.islice(stream, count))


def stacked(batches, key):
    return np.concatenate([batch[key] for batch in batches])


def same(batches, others):
    both = list(zip(batches, others, strict=True))
    return all(np.array_equal(a[k], b[k]) for a, b in both for k in a.keys() | b.keys())


# Where pixels are, and which are held out.


def test_a_colour_lies_at_the_centre_of_its_pixel(data):
    batches = [*take(data.train(), 4), *data.evaluate("test")[0]]
    colour = stacked(batches, "colour")
    points = data.points(jnp.asarray(stacked(batches, "pixel")))
    assert points.dtype == jnp.float32
    row, column = places(colour)
    expected = [((c + 0.5) / WIDTH, (r + 0.5) / HEIGHT) for r, c in zip(row, column, strict=True)]
    np.testing.assert_allclose(points, expected, atol=1e-7)
    assert (drawn()[row, column] == colour).all()


def test_the_splits_are_apart_and_together_the_picture(cfg, data):
    assert {name: len(part) for name, part in data.splits.items()} == {
        "train": 192,
        "validation": 24,
        "test": 24,
    }
    assert sorted(np.concatenate([*data.splits.values()])) == [*range(WIDTH * HEIGHT)]
    for seed, agree in ((cfg.seed, True), (7, False)):
        other = replace(cfg, seed=seed).open()
        assert np.array_equal(other.splits["test"], data.splits["test"]) == agree


def test_all_pixels_that_train_are_drawn_alike_and_no_others(data):
    """By the χ² of 8,000 draws, which has 191 degrees of freedom."""
    seen = stacked(take(data.train(), 250), "pixel")
    counts = np.bincount(seen, minlength=WIDTH * HEIGHT)
    assert set(np.flatnonzero(counts)) == set(data.splits["train"])
    expected = len(seen) / 192
    chi2 = ((counts[data.splits["train"]] - expected) ** 2 / expected).sum()
    assert abs(chi2 - 191) < 5 * math.sqrt(2 * 191)


def test_an_evaluation_has_every_pixel_in_order_and_masks_its_split(data):
    for split in ("validation", "test"):
        found, skips = data.evaluate(split)
        batches = list(found)
        assert {len(batch["mask"]) for batch in batches} == {BATCH}
        count, mask = WIDTH * HEIGHT, stacked(batches, "mask")
        assert (stacked(batches, "colour")[:count] == drawn().reshape(-1, 3)).all()
        assert np.array_equal(np.flatnonzero(mask), data.splits[split])
        assert skips.length == len(data.splits[split]) and skips.count == 0


def test_a_batch_is_what_its_spec_says(data):
    batch = next(data.train())
    found = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in batch.items()}
    assert found == data.spec()


# The stream.


@pytest.mark.parametrize("threads", [0, 2])
def test_a_stream_that_resumes_is_the_one_that_never_stopped(threads, cfg):
    data = replace(cfg, threads=threads).open()
    straight, states, batches = data.train(), [], []
    for _ in range(6):
        states.append(json.loads(json.dumps(straight.state())))
        batches.append(next(straight))
    assert not same(batches[:1], batches[1:2])
    resumed = data.train()
    for t in (3, 0, 4):
        resumed.restore(states[t])
        assert same(take(resumed, 2), batches[t : t + 2]), f"after batch {t}"
    for stream in (straight, resumed):
        stream.close()


def test_seeds_give_other_draws(cfg, data):
    other = pixels.Dataset(replace(cfg, seed=7), data.source, data.splits)
    assert not same([next(data.train())], [next(other.train())])


def test_a_stream_goes_on_in_its_own_picture_alone(cfg, data, tmp_path):
    state = data.train().state()
    changed = drawn()
    copy = replace(cfg, source=save(tmp_path / "copy.png", changed))
    copy.open().train().restore(state)
    changed[0, 0] += 1
    other = replace(cfg, source=save(tmp_path / "other.png", changed))
    with pytest.raises(ConfigError, match="as many examples .* but other ones"):
        other.open().train().restore(state)
    turned = replace(cfg, source=save(tmp_path / "turned.png", drawn().reshape(WIDTH, HEIGHT, 3)))
    with pytest.raises(ConfigError, match="but other ones"):
        turned.open().train().restore(state)


def test_processes_share_the_same_global_batches_in_order(data):
    """In order, so that what an evaluation draws is the picture."""

    def whole(parts):
        return [
            {key: np.concatenate([part[key] for part in row]) for key in row[0]}
            for row in zip(*parts, strict=True)
        ]

    straight = take(data.stream(), 3)
    for count in (2, 4):
        ours = [(i, count) for i in range(count)]
        assert same(whole([take(data.stream(*who), 3) for who in ours]), straight)
        parts = [list(data.in_order("test", *who)) for who in ours]
        assert same(whole(parts), [*data.in_order("test")])
    two, four = data.stream(1, 2), data.stream(0, 4)
    next(four)
    two.restore(four.state())  # another number of processes goes on
    assert same([next(two)], [{key: x[BATCH // 2 :] for key, x in straight[1].items()}])
    with pytest.raises(ConfigError, match="not a multiple of 3 processes"):
        data.stream(0, 3)


# What can be said without a field.


def test_the_mean_of_the_neighbours_matches_a_loop(cfg):
    data = replace(cfg, holdout=0.45).open()
    known, image = set(data.splits["train"].tolist()), drawn() / 255
    alone, mean = 0, np.mean([image[i // WIDTH, i % WIDTH] for i in known], axis=0)
    found = data.between_neighbours().reshape(HEIGHT, WIDTH, 3)
    for row, column in itertools.product(range(HEIGHT), range(WIDTH)):
        four = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        near = [
            image[r, c]
            for r, c in four
            if 0 <= r < HEIGHT and 0 <= c < WIDTH and r * WIDTH + c in known
        ]
        alone += not near
        np.testing.assert_allclose(
            found[row, column], np.mean(near, axis=0) if near else mean, atol=1e-6
        )
    assert alone > 0


# Sources.


def test_the_photograph_is_there():
    source = Picture().open().source
    assert source.pixels.shape == (600, 512, 3) and source.pixels.dtype == np.uint8
    assert source.pixels.std() > 40 and "public domain" in source.licence


def test_a_picture_is_turned_and_made_rgb(cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise by a quarter
    source = save(tmp_path / "turned.png", drawn()[..., 0], exif=exif)
    found = replace(cfg, source=source).open()
    assert found.sides == (WIDTH, HEIGHT)
    expected = np.rot90(drawn()[..., :1], -1).repeat(3, axis=-1)
    assert np.array_equal(found.source.pixels, expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "foto"}, "did you mean photo"),
        ({"source": "picture"}, "must have the form picture:FILE"),
        ({"source": "photo:x"}, "must have the form photo"),
        ({"source": "picture:{}/none.png"}, "there is no file .*none.png"),
        ({"source": "picture:{}"}, "is a folder; name a picture in it"),
        ({"source": "picture:{}/text.png"}, r"text\.png: no picture format"),
        ({"holdout": 0.5}, "data.holdout = 0.5.*leaves a split empty"),
        ({"holdout": 0.0}, "data.holdout = 0.0.*leaves a split empty"),
    ],
)
def test_bad_data_are_refused_with_the_way_out(changes, message, cfg, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    changed = {key: str(x).format(tmp_path) if key == "source" else x for key, x in changes.items()}
    with pytest.raises(ConfigError, match=message):
        replace(cfg, **changed).open()


def test_what_can_be_seen_on_the_disk_is_checked_without_jax():
    code = (
        "import sys\n"
        "from train.check import check\nfrom train.config import ConfigError\n"
        "from train.serialise import load\n"
        "from dataclasses import replace\n"
        "cfg = check(load('ngp_picture'))\n"
        "try:\n"
        "    check(replace(cfg, data=replace(cfg.data, source='picture:none.png')))\n"
        "except ConfigError as error:\n"
        "    print(error, 'jax' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("there is no file none.png False\n"), done.stderr


# The task.


@pytest.fixture(scope="module")
def experiment(cfg):
    return Experiment(
        model=SMALL,
        data=cfg,
        task=FitPicture(),
        optim=Optim("adamw", lr=1e-2, schedule="constant", b2=0.99, eps=1e-15),
        steps=200,
        log="plain",
        tensorboard=False,
    )


@pytest.fixture(scope="module")
def run(experiment):
    return loop.prepare(experiment)


def judge(run, state, split="test"):
    return run.task.evaluate(state, map(run.put, run.data.evaluate(split)[0]))


pairs = partial(zip, strict=True)


def decibels(errors):
    return -10 * math.log10(sum(float(e) ** 2 for e in errors) / len(errors))


def test_an_evaluation_matches_a_loop_over_pixels(run, monkeypatch):
    """With weights that are drawn, so that the fit leaves [0, 1] on both sides."""
    state = run.first()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype) / 2, state.params)
    state = state.replace(params=params)
    found, artifacts = judge(run, state)
    at = [((x + 0.5) / WIDTH, (y + 0.5) / HEIGHT) for y in range(HEIGHT) for x in range(WIDTH)]
    asked = jax.jit(run.task.model.apply)
    fit = np.asarray(asked(state.variables(), jnp.array(at, jnp.float32)))
    assert fit.min() < 0 and fit.max() > 1
    truth, held = drawn().reshape(-1, 3) / 255, run.data.splits["test"]
    cut = fit.clip(0, 1)
    assert found == pytest.approx(
        {
            "loss": np.mean([(a - b) ** 2 for i in held for a, b in pairs(fit[i], truth[i])]),
            "psnr": decibels([a - b for i in held for a, b in pairs(cut[i], truth[i])]),
            "psnr_all": decibels((cut - truth).ravel()),
        },
        rel=1e-5,
    )
    left, right = np.split(artifacts["picture"], 2, axis=1)
    assert np.array_equal(left, drawn())
    assert np.abs(right / 255 - cut.reshape(HEIGHT, WIDTH, 3)).max() < 0.501 / 255

    monkeypatch.setattr(picture, "SIDE", 7)  # every third pixel
    smaller = judge(run, state)[1]["picture"]
    assert np.array_equal(smaller[:, : smaller.shape[1] // 2], drawn()[::3, ::3])


def test_a_smooth_picture_is_learned_also_where_it_was_not_seen(run):
    state, losses = run.first(), []
    for batch in take(run.data.train(), 200):
        state, metrics = run.update(state, run.put(batch))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < losses[0] / 100
    for split in ("validation", "test"):
        found, _ = judge(run, state, split)
        assert found["psnr"] > 30 and found["psnr_all"] > 30
        beside = run.task.beside(split)["psnr_neighbours"]
        held = run.data.splits[split]
        error = run.data.between_neighbours()[held] - drawn().reshape(-1, 3)[held] / 255
        assert beside == pytest.approx(decibels(error.ravel()), rel=1e-5)


def test_two_devices_under_pmap_do_as_one_does(experiment):
    """By plain descent: Adam with so small an ε makes whole steps of what is left by rounding."""
    found = []
    for devices, compiler in ((1, "jit"), (2, "pmap")):
        sgd, mesh = Optim("sgd", lr=0.1, schedule="constant"), Parallel(compiler=compiler)
        cfg = replace(experiment, optim=sgd, parallel=mesh)
        state, update, put = compiled(cfg, devices)
        for batch in take(cfg.data.open().train(), 3):
            state, metrics = update(state, put(batch))
        found.append(jax.device_get((state.params, metrics["loss"])))
    assert_agree(found[1], found[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": Model("resnet20")}, "resnet20 is no field .*such as ngp_picture"),
        (
            {"model": Model("ngp_picture", {"dimensions": 3})},
            "dimensions is 3, but the data have 2",
        ),
        ({"step": Step(precision="bfloat16")}, "step.precision is bfloat16"),
    ],
)
def test_what_cannot_fit_a_picture_is_refused(changes, message, experiment):
    with pytest.raises(ConfigError, match=message):
        loop.prepare(check(replace(experiment, **changes)))


# The hash grid alone.


def distance_to_a_sphere(points):
    return jnp.linalg.norm(points - 0.5, axis=1) - 0.3


def error_of_a_fit(grid, seen, unseen):
    """The mean error, at points [n, 3] that were not seen, of a grid whose features, summed, are
    fitted to the distance at points [steps, n, 3]."""
    optimizer = optax.adam(optax.linear_schedule(2e-2, 0, len(seen)), b2=0.99, eps=1e-15)

    def error(params, points):
        return grid.apply({"params": params}, points).sum(axis=1) - distance_to_a_sphere(points)

    def step(carry, points):
        params, state = carry
        slope = jax.grad(lambda params: jnp.square(error(params, points)).mean())(params)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def left(seen, unseen):
        params = grid.init(jax.random.key(0), unseen)["params"]
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), seen)
        return jnp.abs(error(params, unseen)).mean()

    return left(seen, unseen)


def test_the_hash_grid_alone_fits_a_signed_distance_function():
    """Without a network. What is left is what interpolation cannot say, and that is of second
    order: a second grid of cells half as long leaves a quarter of it."""
    rng = np.random.default_rng(0)
    seen, unseen = (jnp.asarray(rng.random(n, np.float32)) for n in ((250, 512, 3), (4096, 3)))
    blank = jnp.abs(distance_to_a_sphere(unseen)).mean()
    coarse, both = (
        error_of_a_fit(HashGrid(levels(count, 4, 4 * count, 2**12), features=1), seen, unseen)
        for count in (1, 2)
    )
    assert coarse < blank / 15
    assert 3.2 < coarse / both < 4.8
