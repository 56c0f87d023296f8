"""The task on pairs: one update on every mesh, evaluations that a loop agrees with, frozen towers.

That the losses are right is a claim of test_contrastive, that a run resumes one of test_configs.
"""

import csv
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from tests.test_step import assert_agree, compiled
from train import loop, pictures, pretrained, retrieval
from train.check import check
from train.config import (
    Checkpoint,
    ConfigError,
    Experiment,
    Images,
    Init,
    Model,
    Optim,
    Pairs,
    Parallel,
    Step,
)
from train.data import pairs
from train.tasks import contrastive
from train.tasks.contrastive import Contrastive
from zoo import tree, zeroshot

SIDE, LENGTH, BATCH = 16, 6, 16
NAMES = {"black": 0, "grey": 90, "pale": 170, "white": 255}
TOWER = {"width": 16, "heads": 2, "depth": 1, "mlp": 32}
SIZES = {"embed": 8, "patch": 8, **TOWER, **{f"text_{key}": n for key, n in TOWER.items()}}
SIGLIP = {key: n for key, n in SIZES.items() if key != "width"}
CLIP = Model("clip_b32", SIZES)
SGD = Optim("sgd", lr=0.05, schedule="constant")


def drawn(top: str, bottom: str, seed: int) -> np.ndarray:
    """uint8 [SIDE, SIDE, 1]: two halves, with a little noise."""
    picture = np.repeat([NAMES[top], NAMES[bottom]], SIDE // 2)[:, None, None]
    noise = np.random.default_rng(seed).integers(-20, 20, (SIDE, SIDE, 1))
    return (picture + noise).clip(0, 255).astype(np.uint8)


COMBINATIONS = [(top, bottom) for top in NAMES for bottom in NAMES if top != bottom]


@dataclass(frozen=True)
class Toy(Pairs):
    """Pictures of one grey over another, every third with a second caption."""

    def open(self) -> "ToyDataset":
        real = super().open()
        return ToyDataset(real.cfg, real.source, real.tokenizer)


class ToyDataset(pairs.Dataset):
    def extra(self, split: str) -> pairs.Extra | None:
        if split == "validation":
            return None
        some = [drawn(top, bottom, 1000 + i) for i, (top, bottom) in enumerate(COMBINATIONS)]
        order = [(a, b) for a, b in COMBINATIONS if a < b]
        both = [[drawn(a, b, 7), drawn(b, a, 8)] for a, b in order]
        texts = [f"{x} over {y}" for a, b in order for x, y in ((a, b), (b, a))]
        tokens = self.rows(texts).reshape(len(order), 2, self.length)
        return pairs.Extra(np.stack(some), np.array(both), tokens)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """36 pictures to train on, 21 to validate, 12 to test."""
    folder = tmp_path_factory.mktemp("toy")
    splits = ["train"] * 36 + ["validation"] * 21 + ["test"] * 12
    rows = []
    for i, split in enumerate(splits):
        top, bottom = COMBINATIONS[i % len(COMBINATIONS)]
        Image.fromarray(drawn(top, bottom, i)[..., 0]).save(folder / f"{i}.png")
        captions = [f"{top} over {bottom}", f"{bottom} under {top}"]
        rows += [(f"{i}.png", caption, split) for caption in captions[: 2 if i % 3 == 0 else 1]]
    with open(folder / "toy.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return folder / "toy.csv"


@pytest.fixture(scope="module")
def experiment(table):
    """Makes experiments: experiment(task, data={…}, **changes)."""

    def experiment(task=None, data=(), **changes) -> Experiment:
        own = {"source": f"pairs:{table}", "length": LENGTH, "batch_size": BATCH, "threads": 0}
        fields = {
            "model": CLIP,
            "data": Toy(**{**own, **dict(data)}),
            "task": task or Contrastive(),
            "optim": Optim(lr=1e-2, schedule="constant"),
            "steps": 2,
            "evaluate_every": 2,
            "log_every": 1,
            "log": "plain",
            "tensorboard": False,
            "checkpoint": Checkpoint(asynchronous=False),
        }
        return Experiment(**fields | changes)

    return experiment


@pytest.fixture(scope="module")
def run(experiment):
    return loop.prepare(experiment(Contrastive(gallery=3)))


def first_batch(data) -> dict[str, np.ndarray]:
    with closing(data.train()) as stream:
        batch = next(stream)
    return {key: batch[key] for key in data.spec()}


# Updates.


@pytest.fixture(scope="module")
def updated(experiment):
    """Parameters and metrics after one step of SGD."""

    @cache
    def updated(devices, task, mesh, accumulate):
        cfg = experiment(task, optim=SGD, parallel=mesh, step=Step(accumulate=accumulate))
        state, update, put = compiled(cfg, devices)
        state, metrics = update(state, put(first_batch(cfg.data.open())))
        return jax.device_get((state.params, metrics))

    return updated


MESHES = {
    "jit": (4, Contrastive(chunk=4), Parallel(data=2, fsdp=2), 2),
    "pmap": (2, Contrastive(), Parallel(data=2, compiler="pmap"), 4),
}


def without_key_biases(params):
    """(the leaves by path, the biases of keys). These have no gradient, since what is added to all
    keys alike changes no softmax: what they have is rounding, in which no two programs agree."""
    leaves = tree.flatten(params)
    keys = {path for path in leaves if path.endswith("attn/k/bias")}
    rest = {path: leaf for path, leaf in leaves.items() if path not in keys}
    return rest, [leaves[path] for path in sorted(keys)]


@pytest.mark.parametrize("compiler", MESHES)
def test_an_update_over_devices_and_micro_batches_is_that_of_one(compiler, updated):
    devices, task, mesh, accumulate = MESHES[compiler]
    params, metrics = updated(devices, task, mesh, accumulate)
    expected, others = updated(1, Contrastive(), Parallel(), 1)
    (ours, keys), (theirs, _) = without_key_biases(params), without_key_biases(expected)
    assert_agree(ours, theirs)
    assert len(keys) == 2 and all(np.abs(bias).max() < 1e-7 for bias in keys)
    assert metrics.keys() >= {"loss", "accuracy", "scale", "lr", "grad_norm"}
    for key in metrics:
        assert metrics[key] == pytest.approx(others[key], rel=1e-5), key


def test_a_locked_tower_stays_as_it_is_with_its_statistics(experiment):
    """CLIP's ResNet, which has batch statistics, in two micro-batches."""
    sizes = {"stages": (1,), "patch": 4, "width": 8, "heads": 2, "depth": 0, "mlp": 0}
    changes = {"optim": replace(SGD, freeze=("image/.*",)), "step": Step(accumulate=2)}
    cfg = experiment(model=Model("clip_b32", {**SIZES, **sizes}), **changes)
    state, update, put = compiled(cfg, 1)
    before = jax.device_get((state.params, state.vars))
    state, _ = update(state, put(first_batch(cfg.data.open())))
    params, vars = jax.device_get((state.params, state.vars))
    assert jax.tree.leaves(vars), "there are statistics"
    locked = ((params["image"], before[0]["image"]), (vars, before[1]))
    for ours, theirs in locked:
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for free in ("text", "log_scale"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params[free], before[0][free])
        assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(("start", "end"), [(5.0, np.log(100)), (-0.5, 0.0)])
def test_the_temperature_stays_in_the_bounds_of_its_page(start, end, run):
    state = run.first()
    beyond = jax.device_put(np.float32(start), state.params["log_scale"].sharding)
    state = state.replace(params={**state.params, "log_scale": beyond})
    state, _ = run.update(state, run.put(first_batch(run.data)))
    assert float(state.params["log_scale"]) == pytest.approx(end, abs=1e-6)


def test_one_batch_is_learned_by_heart(run):
    """As far as that goes: some of its pictures share their captions."""
    batch = first_batch(run.data)
    state, found = run.first(), []
    for _ in range(60):
        state, shown = run.update(state, run.put(batch))
        found.append(float(shown["loss"]))
    assert found[0] > 2 and found[-1] < 0.6 * found[0]


# Evaluations.


@pytest.fixture(scope="module")
def judged(run):
    """split -> (metrics, pictures) of the first state."""

    @cache
    def judged(split):
        batches, _ = run.data.evaluate(split)
        return run.task.evaluator(split)(run.first(), map(run.put, batches))

    return judged


def embedded(run, state, split):
    """(images [n, e], texts [t, e], the picture of each text) of a split, in one go."""
    batches = list(run.data.evaluate(split)[0])
    whole = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    real = whole["mask"] > 0
    assert not real.all(), "the last batch is uneven"
    image = run.data.normalise(whole["image"][real])
    known = (whole["tokens"][real], whole["captions"][real])
    written = [row[:k] for row, k in zip(*known, strict=True)]
    owner = np.repeat(np.arange(len(written)), whole["captions"][real])
    return embed_image(run, state, image), embed_text(run, state, np.concatenate(written)), owner


def embed_image(run, state, image):
    return np.asarray(zeroshot.towers(run.task.model).image(state.variables(), image))


def embed_text(run, state, tokens):
    return np.asarray(zeroshot.towers(run.task.model).text(state.variables(), tokens))


def share_found(queries, gallery, right, k):
    """A loop over queries: of how many a right item is among the first k."""
    hits = 0
    for query, items in zip(queries, right, strict=True):
        scores = gallery @ query
        best = max(scores[i] for i in items)
        others = [j for j in range(len(gallery)) if j not in items]
        hits += sum(scores[j] >= best - zeroshot.TIE for j in others) < k
    return hits / len(queries)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_is_what_loops_find(split, run, judged):
    state, (found, drawn) = run.first(), judged(split)
    image, text, owner = embedded(run, state, split)
    texts_of = [np.flatnonzero(owner == i) for i in range(len(image))]
    assert max(map(len, texts_of)) == 2 and min(map(len, texts_of)) == 1
    expected = {}
    for k in (1, 5, 10):
        expected[f"recall{k}"] = share_found(text, image, owner[:, None], k)
        expected[f"text_recall{k}"] = share_found(image, text, texts_of, k)
    n = min(BATCH, len(image))
    logits = image[:n] @ text[[items[0] for items in texts_of[:n]]].T / 0.07
    nats = [np.log(np.exp(x).sum(axis=1)) - np.diagonal(x) for x in (logits, logits.T)]
    expected["loss"] = np.mean(nats)
    if split == "test":
        extra = run.data.extra(split)
        others = embed_image(run, state, run.data.normalise(extra.distractors))
        expected["recall10_all"] = share_found(
            text, np.concatenate([image, others]), owner[:, None], 10
        )
        expected |= {key: found[key] for key in ("order", "order_low", "order_high")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key
    assert drawn["gallery"].dtype == np.uint8


def test_order_counts_the_right_choices_of_pictures_and_captions(run):
    """Once something is learned: at chance, right and wrong ones are as many."""
    state, extra = run.first(), run.data.extra("test")
    with closing(run.data.train()) as stream:
        for _ in range(60):
            state, _ = run.update(state, run.put(next(stream)))
    found, _ = run.task.evaluator("test")(state, map(run.put, run.data.evaluate("test")[0]))
    p, images = len(extra.order_images), extra.order_images.reshape(-1, SIDE, SIDE, 1)
    images = embed_image(run, state, run.data.normalise(images)).reshape(p, 2, -1)
    texts = embed_text(run, state, extra.order_tokens.reshape(2 * p, -1)).reshape(p, 2, -1)
    hits = 0
    for pair, captions in zip(images, texts, strict=True):
        s = pair @ captions.T
        hits += int(s[0, 0] > s[0, 1]) + int(s[1, 1] > s[1, 0])  # of the captions, its own
        hits += int(s[0, 0] > s[1, 0]) + int(s[1, 1] > s[0, 1])  # of the pictures
    assert found["order"] == pytest.approx(hits / (4 * p)) and hits != 2 * p
    interval = retrieval.wilson(found["order"], 2 * p)
    assert (found["order_low"], found["order_high"]) == pytest.approx(interval)


def test_a_bag_of_words_is_at_chance_by_construction(experiment):
    data = experiment(data={"bag": True}).data.open()
    tokens = data.extra("test").order_tokens
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(9, 2, 5)), np.repeat(rng.normal(size=(9, 1, 5)), 2, axis=1)
    assert retrieval.order(images, texts)[""] == 0.5
    assert retrieval.order(images, 2 * images - texts)[""] > 0.7


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_the_interval_is_that_of_newcombe_s_table(hits, count, low, high):
    """Newcombe, 1998, Statistics in Medicine 17, table I, method 3."""
    assert retrieval.wilson(hits / count, count) == pytest.approx((low, high), abs=5e-5)


def test_a_batch_is_judged_a_chunk_at_a_time(experiment, run, judged, monkeypatch):
    monkeypatch.setattr(contrastive, "JUDGED", 5)  # four chunks of a batch of 16
    other = loop.prepare(experiment(Contrastive(chunk=8, gallery=0)))
    found, _ = other.task.evaluate(run.first(), map(run.put, run.data.evaluate("validation")[0]))
    assert found["loss"] == pytest.approx(judged("validation")[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("count", [1, 37, 1024, 1025, 1511, 32_768, 40_009])
def test_chunks_are_even_and_leave_out_fewer_pairs_than_they_are(count):
    kept, chunk = contrastive.in_even_chunks(count)
    assert chunk <= 1024 and (chunk > 500) == (count > 1024)
    assert kept % (chunk or count) == 0 and count - kept < kept / (chunk or count)


@pytest.mark.parametrize("name", ["words", "bytes", "bpe:262"])
def test_a_gallery_shows_captions_without_padding(name, experiment):
    data = experiment(data={"tokenizer": name, "length": 30}).data.open()
    [row] = data.rows(["white over black"])
    assert retrieval.said(row, data.tokenizer) == "white over black"


def test_a_rank_in_the_gallery_is_among_all_pictures_of_the_split(experiment, monkeypatch):
    """Also among those that are not kept to be shown: here the first two of four."""
    data = experiment().data.open()
    image = np.array([[0.6, 0.8], [0, 1], [1, 0], [0.8, 0.6]], np.float32)
    found = retrieval.Embedded(
        image=image,
        text=np.array([[1, 0]] * 4, np.float32),
        owner=np.arange(4),
        first=np.arange(4),
        tokens=data.rows(["white over black"] * 4),
        pictures=np.zeros((2, 8, 8, 1), np.uint8),
    )
    monkeypatch.setattr(pictures, "gallery", lambda rows: rows)
    rows = retrieval.gallery(found, 2, data.tokenizer)["gallery"]
    assert [(row.right, row.rank) for row in rows] == [(0, 3), (1, 4)]
    assert {len(row.pictures) for row in rows} == {2}


def test_the_right_picture_is_framed():
    some = np.full((3, 8, 8, 1), 120, np.uint8)
    shown = {
        right: pictures.gallery([pictures.Query("one", some, right, 2)]) for right in (1, None)
    }
    green = {right: (np.ptp(x, axis=2) > 60).sum() for right, x in shown.items()}
    assert green[1] > 200 and green[None] == 0


def test_a_run_leaves_weights_a_tokenizer_and_pictures(run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "prepare", lambda _: run)
    result = loop.fit(run.cfg, tmp_path)
    assert "recall10_all" in result["test"] and "recall10_all" not in result["validation"]
    for split in ("validation", "test"):
        assert (tmp_path / f"{split}_gallery.png").stat().st_size > 1000
    model, _ = zoo.load(tmp_path / "model")
    tokenizer = zoo.tokenizer(tmp_path / "model")
    tokens = zeroshot.tokenise(tokenizer, ["white over black"], LENGTH)
    np.testing.assert_array_equal(tokens, run.data.rows(["white over black"]))
    assert model.config == run.task.model.config
    assert zoo.card(tmp_path / "model").preprocess == run.data.preprocess


@pytest.mark.parametrize(("length", "context"), [(LENGTH, 77), (80, 80)])
def test_a_run_takes_weights_whose_texts_may_be_longer_than_its_rows(
    length, context, experiment, run, tmp_path
):
    """As published ones are: a text tower that looks for the end of a text reads shorter rows."""
    config = replace(run.task.model.config, context=context)
    model = type(run.task.model)(config)
    variables = zoo.init(model, jax.random.key(7))
    zoo.save(model, variables, tmp_path, card=zoo.Card("clip_b32", asdict(config)))
    begun = loop.prepare(experiment(init=Init(str(tmp_path)), data={"length": length}))
    assert begun.task.model.config.context == context
    state = pretrained.start(begun.cfg.init, begun.first(), begun.task)
    jax.tree.map(np.testing.assert_array_equal, state.params, dict(variables["params"]))
    state, shown = begun.update(state, begun.put(first_batch(begun.data)))
    assert np.isfinite(float(shown["loss"]))


# What cannot work.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": Contrastive("sigmoid")}, r"task\.loss is .sigmoid., but CLIP has no bias"),
        ({"model": replace(CLIP, options={**SIZES, "context": 4})}, r"context .* is 4"),
        (
            {"model": replace(CLIP, options={**SIZES, "end": "id", "eos": 3})},
            "the id 3 ends a text",
        ),
        ({"model": replace(CLIP, options={**SIZES, "in_channels": 3})}, "in_channels is 3"),
        ({"model": replace(CLIP, options={**SIZES, "image_size": 32})}, "image_size is 32"),
        ({"model": Model("siglip_b16", {**SIGLIP, "context": 8})}, r"data\.length"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_what_does_not_fit_is_refused_by_key(changes, message, experiment):
    with pytest.raises(ConfigError, match=message):
        loop.prepare(experiment(**changes))


def test_options_are_checked_without_data(experiment):
    for task in (Contrastive(chunk=-1), Contrastive(gallery=-1)):
        with pytest.raises(ConfigError, match="must be 0 or more"):
            check(experiment(task))
    with pytest.raises(ConfigError, match=r"data\.batch_size is 16: not a multiple of task\.chunk"):
        check(experiment(Contrastive(chunk=5)))
    with pytest.raises(ConfigError, match="vit_b16 is no pair of towers; take one, such as clip"):
        check(experiment(model=Model("vit_b16")))
    with pytest.raises(ConfigError, match="task Contrastive learns from Pairs, but data is Images"):
        check(Experiment(model=CLIP, data=Images(), task=Contrastive()))
