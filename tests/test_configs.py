"""Every config in configs/, shrunk, takes two steps, and resumes to the same bits."""

import dataclasses
import re
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from train import loop, parallel, serialise, workdir
from train.config import (
    Checkpoint,
    Data,
    Experiment,
    Images,
    Init,
    Pairs,
    Picture,
    Task,
    Text,
    Views,
)
from train.state import State
from train.tasks.contrastive import Contrastive
from train.tasks.lm import LM
from train.tasks.nerf import NeRF
from zoo import registry, tree
from zoo.nerf.scene import Hierarchical, Occupancy, Proposals

CONFIGS = serialise.shipped()
# What a task takes from the data, or decides.
DATA_FACTS = ("num_classes", "in_channels", "image_size", "vocab", "head", "eos")
DATA_FACTS += ("proposals", "dimensions")


def shrunk(cfg: Experiment, folder: Path) -> Experiment:
    """The same kind of model, task and optimizer at the sizes of tests, on data that are there."""
    tiny = registry.page(cfg.model.name).TINY
    sizes = {f.name: getattr(tiny, f.name) for f in dataclasses.fields(tiny)}
    options = {key: value for key, value in sizes.items() if key not in DATA_FACTS}
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, options=cfg.model.options | options),
        init=Init(),  # weights of other sizes
        data=small(cfg.data, folder),
        task=quick(cfg.task),
        optim=dataclasses.replace(cfg.optim, warmup=min(cfg.optim.warmup, 1)),
        checkpoint=Checkpoint(every=1),
        steps=2,
        evaluate_every=2,
        log_every=1,
        log="plain",
        tensorboard=False,
    )


def small(data: Data, folder: Path) -> Data:
    return next(make(data, folder) for kind, make in SMALL.items() if isinstance(data, kind))


def digits(data: Images, _: Path) -> Images:
    """With as many channels as the config normalises."""
    size = min(data.image_size or 16, 16)
    channels = 3 if len(data.mean) == 3 else None
    return dataclasses.replace(
        data, source="digits", data_dir=None, batch_size=64, image_size=size, channels=channels
    )


def pages(data: Text, folder: Path) -> Text:
    """Short documents, in the rows and by the kind of tokenizer that the config has."""
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"def page_{i}(x):\n    return x + {i}\n")
    return dataclasses.replace(
        data,
        source=f"text:{folder}/*.txt",
        tokenizer="bpe:270" if data.mask else "bytes",
        length=16,
        batch_size=32,
        holdout=0.2,
        cache=str(folder / "cache"),
    )


def captioned(data: Pairs, folder: Path) -> Pairs:
    """Noise with captions, in the channels and rows of tokens that the config has."""
    rng, rows = np.random.default_rng(0), ["image,caption"]
    for i in range(160):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,picture {i % 7} of {i % 11}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return dataclasses.replace(
        data,
        source=f"pairs:{folder}/pairs.csv",
        tokenizer="words",
        length=8,
        batch_size=32,
        holdout=0.2,
        image_size=16,
        channels=3 if len(data.mean) == 3 else 1,
        distinct=False,
        threads=0,
    )


def scene(data: Views, folder: Path) -> Views:
    """The embedded scene, of few and small pictures."""
    sizes = {"size": 16, "samples": 1, "views": (4, 2, 2), "batch_size": 64, "judged": 256}
    return dataclasses.replace(data, source="scene", factor=1, cache=str(folder / "cache"), **sizes)


def noise(data: Picture, folder: Path) -> Picture:
    """256 pixels, of which a tenth validates and a tenth tests."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return dataclasses.replace(
        data, source=f"picture:{folder}/noise.png", batch_size=32, holdout=0.1
    )


SMALL = {Images: digits, Text: pages, Pairs: captioned, Views: scene, Picture: noise}
FEW = {
    Occupancy: Occupancy(resolution=8, steps=16, slots=8),
    Hierarchical: Hierarchical(4, 4),
    Proposals: Proposals((4, 4, 4)),
}


def quick(task: Task) -> Task:
    """Without samples and galleries, which take longer than two steps."""
    slow = {LM: {"sample": 0}, Contrastive: {"gallery": 0}}
    if isinstance(task, NeRF):
        slow[NeRF] = {"room": 256, "drawn": 1, "sampler": FEW[type(task.sampler)]}
    return dataclasses.replace(task, **slow.get(type(task), {}))


def final_state(run: loop.Run, directory: Path) -> State:
    with loop.checkpoints(run, directory, writable=False) as saved:
        found = saved.restore(run.abstract)
    assert found is not None and found.step == 2
    return found.state


def bits(state: State) -> dict[str, np.ndarray]:
    leaves = tree.flatten(state.replace(rng=jax.random.key_data(state.rng)))
    return {path: np.asarray(leaf) for path, leaf in leaves.items()}


def fit(cfg: Experiment, directory: Path):
    workdir.claim(directory, cfg)
    return loop.fit(cfg, directory)


def first_of_its_kind(name: str) -> bool:
    """Whether no config before it has the same task and sampler; ResNets, which have running
    statistics, count apart."""

    def kind(name: str) -> tuple:
        cfg = serialise.load(name)
        running = registry.entry(cfg.model.name).page.startswith("resnet")
        return running, type(cfg.task), type(getattr(cfg.task, "sampler", None))

    return name == next(other for other in CONFIGS if kind(other) == kind(name))


FIRST = [name for name in CONFIGS if first_of_its_kind(name)]
OTHERS = [name for name in CONFIGS if name not in FIRST]


def prepared(name: str, folder: Path, monkeypatch) -> tuple[Experiment, loop.Run]:
    """Compiled once, however often it is fitted; on two of the devices, for which XLA compiles in
    two thirds of the time. What eight change is for test_step, test_tasks and test_resume."""
    two = partial(parallel.make_mesh, devices=jax.devices()[:2])
    monkeypatch.setattr(parallel, "make_mesh", two)
    (folder / "data").mkdir()
    cfg = shrunk(serialise.load(name), folder / "data")
    run = loop.prepare(cfg)
    monkeypatch.setattr(loop, "prepare", lambda _: run)
    return cfg, run


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_takes_two_steps(name, tmp_path, monkeypatch):
    """How it is evaluated and saved is what the first of its kind shows."""
    _, run = prepared(name, tmp_path, monkeypatch)
    state = loop.begin(run)
    with closing(run.data.train()) as stream:
        for _ in range(2):
            state, metrics = run.update(state, run.put(next(stream)))
    assert int(state.step) == 2 and int(metrics["skipped"]) == 0
    assert np.isfinite([float(x) for x in metrics.values()]).all()


@pytest.mark.parametrize(
    "name", [*FIRST, *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)]
)
def test_a_config_takes_two_steps_and_resumes_to_the_same_bits(name, tmp_path, monkeypatch):
    cfg, run = prepared(name, tmp_path, monkeypatch)
    whole = fit(cfg, tmp_path / "whole")
    assert whole is not None and whole["steps"] == 2
    assert np.isfinite(list(whole["test"].values())).all()

    with monkeypatch.context() as stopping:
        stopping.setattr(loop.Interrupts, "check", lambda self, step: step == 1)
        assert fit(cfg, tmp_path / "stopped") is None
    resumed = fit(cfg, tmp_path / "stopped")
    assert resumed is not None and resumed["test"] == whole["test"]

    first, second = (bits(final_state(run, tmp_path / d)) for d in ("whole", "stopped"))
    assert first.keys() == second.keys()
    assert [path for path in first if first[path].tobytes() != second[path].tobytes()] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_a_lab_record(name):
    """Its docstring has the command, and the result or that there is none yet."""
    text = CONFIGS[name].read_text(encoding="utf-8")
    record = text.partition('"""')[2].partition('"""')[0]
    assert re.search(rf"^    python -m train {name}\b", record, re.MULTILINE), "the command"
    result = re.search(r"^Result: (.+)", record, re.MULTILINE)
    assert result, "a line that begins with Result:"
    assert "not yet run" in result[1] or re.search(r"\d", result[1]), "figures, or `not yet run`"


def test_every_config_is_named_after_a_page_and_its_data():
    """`<page>_<data>.py`, the page being that of its model, or `<variant>_….py`."""
    for name in CONFIGS:
        variant = serialise.load(name).model.name
        page = registry.entry(variant).page
        assert name.startswith((f"{page}_", f"{variant}_")), name
