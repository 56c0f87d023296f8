"""A run that begins with weights: which leaves it takes, where they lie, and that it reads them
once."""

import json
import shlex
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import runner, test_processes
from train import evaluate, loop, optim, pretrained, serialise, workdir
from train.__main__ import main, parse
from train.check import check
from train.config import (
    Checkpoint,
    ConfigError,
    Experiment,
    Images,
    Init,
    Model,
    Optim,
    Parallel,
    Step,
)
from train.state import State, Task
from train.tasks.classify import Classify
from zoo import tree
from zoo.card import Preprocess

MODELS = {
    "resnet": Model("resnet20", {"depths": (2,), "widths": (8,), "stem_width": 8}),
    "vit": Model("vit_ti16", {"patch": 2, "width": 16, "depth": 2, "heads": 2, "mlp": 32}),
}
FACTS = {"num_classes": 7, "in_channels": 1, "image_size": 8}
PREPROCESS = Preprocess(8, 1.0, mean=(0.3,), std=(0.35,))
TRUNK = r"(?!head).*"


def create(name: str, **changes):
    model = MODELS[name]
    return zoo.create(model.name, **model.options | FACTS | changes)


@cache
def variables_of(name: str, **changes):
    """Every leaf drawn, also what an initialisation makes 0 or 1."""
    model, rng = create(name, **changes), np.random.default_rng(1)

    def draw(path, leaf):
        values = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        return np.abs(values) if path.endswith("/var") else values

    shapes = jax.eval_shape(lambda: zoo.init(model, jax.random.key(0)))
    return tree.map_named(draw, shapes)


def save(directory: Path, name: str, preprocess: Preprocess | None = PREPROCESS, **changes) -> str:
    model = create(name, **changes)
    card = zoo.Card(MODELS[name].name, asdict(model.config), preprocess=preprocess)
    zoo.save(model, variables_of(name, **changes), directory, card=card)
    return str(directory)


@pytest.fixture(scope="module", params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def weights(name, tmp_path_factory) -> str:
    """A checkpoint of seven classes."""
    return save(tmp_path_factory.mktemp(name) / "weights", name)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("resnet") / "weights", "resnet")


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("vit") / "weights", "vit")


def experiment(name: str, source: str | None, **changes) -> Experiment:
    fields = {
        "model": MODELS[name],
        "init": Init(source),
        "data": Images(batch_size=32, mean=(0.3,), std=(0.35,), threads=0),
        "task": Classify(),
        "optim": Optim("sgd", lr=0.1, schedule="constant"),
        "steps": 2,
        "evaluate_every": 2,
        "log_every": 1,
        "log": "plain",
        "tensorboard": False,
    }
    return Experiment(**fields | changes)


def fit(cfg: Experiment, directory: Path):
    workdir.claim(directory, cfg)
    return loop.fit(cfg, directory)


def newest(run: loop.Run, directory: Path) -> State:
    with loop.checkpoints(run, directory, writable=False) as saved:
        found = saved.restore(run.abstract)
    assert found is not None
    return found.state


def whole(state: State) -> dict[str, np.ndarray]:
    return tree.flatten({"params": state.params, **state.vars})


def trunk(leaves):
    return {path: leaf for path, leaf in leaves.items() if not path.startswith("params/head")}


def assert_equal(a, b) -> None:
    assert a.keys() == b.keys()
    assert [path for path in a if not np.array_equal(a[path], b[path])] == []


# ---- the first state ----


@pytest.mark.quick
@pytest.mark.parametrize("sizes", [Parallel(), Parallel(data=1, fsdp=8)], ids=["data", "fsdp"])
def test_the_first_state_holds_the_loaded_arrays_in_its_shards(name, weights, sizes):
    cfg = experiment(name, weights, parallel=sizes, step=Step(ema=0.9), optim=Optim("adamw"))
    run = loop.prepare(cfg)
    state = loop.begin(run)
    held = trunk(tree.flatten(zoo.load(weights)[1]))
    assert_equal(trunk(whole(state)), held)
    assert_equal(tree.flatten(state.ema), whole(state))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt))

    def same_place(leaf, abstract):
        assert (leaf.shape, leaf.dtype) == (abstract.shape, abstract.dtype)
        assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)

    jax.tree.map(same_place, state, run.abstract)
    split = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
    assert bool(split) == (sizes.fsdp == 8)


def test_a_head_of_other_classes_is_the_runs_own_and_told(resnet, capsys):
    def kernel(source, seed):
        cfg = experiment("resnet", source, seed=seed)
        return np.asarray(loop.begin(loop.prepare(cfg)).params["head"]["kernel"])

    first, second = kernel(resnet, 0), kernel(resnet, 1)
    assert "head: new, 10 classes instead of 7" in capsys.readouterr().out
    assert np.array_equal(first, kernel(None, 0)) and not np.array_equal(first, second)


def test_a_head_of_as_many_classes_is_kept_and_one_that_was_not_there_is_new(tmp_path, capsys):
    for classes, told in ((10, "head: kept, 10 classes"), (0, "head: new, 10 classes")):
        source = save(tmp_path / str(classes), "vit", num_classes=classes)
        state = loop.begin(loop.prepare(experiment("vit", source)))
        assert told in capsys.readouterr().out
        expected = tree.flatten(zoo.load(source)[1])
        assert_equal({p: leaf for p, leaf in whole(state).items() if p in expected}, expected)
        assert ("params/head/kernel" in expected) == (classes == 10)


def test_halves_are_widened_to_float32(name, tmp_path):
    halves = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), variables_of(name))
    zoo.save(create(name), halves, tmp_path)
    state = loop.begin(loop.prepare(experiment(name, str(tmp_path))))
    assert {leaf.dtype for leaf in whole(state).values()} == {np.dtype(np.float32)}
    expected = {path: np.float32(leaf) for path, leaf in tree.flatten(halves).items()}
    assert_equal(trunk(whole(state)), trunk(expected))


SCANNED = {"resnet": 1, "vit": 0}  # the first block of the scan: a stage's first is by itself


def layers(name: str, leaves):
    """The leaves of every layer under its own name, whether they lie in a loop or a scan."""
    found = {}
    for path, leaf in leaves.items():
        rows = enumerate(np.asarray(leaf), SCANNED[name]) if "/blocks/" in path else [(None, leaf)]
        found |= {path.replace("/blocks/", f"/block_{i}/"): row for i, row in rows}
    return found


@pytest.mark.parametrize("held, wanted", [("loop", "scan"), ("scan", "loop"), ("scan", "scan")])
def test_blocks_in_a_loop_or_a_scan_are_the_same_weights(name, held, wanted, tmp_path):
    source = save(tmp_path, name, layers=held)
    model = MODELS[name]
    model = replace(model, options=model.options | {"layers": wanted})
    state = loop.begin(loop.prepare(experiment(name, source, model=model)))
    assert any("/blocks/" in path for path in whole(state)) == (wanted == "scan")
    expected = tree.flatten(variables_of(name, layers=held))
    assert any("/blocks/" in path for path in expected) == (held == "scan")
    assert_equal(trunk(layers(name, whole(state))), trunk(layers(name, expected)))


def test_positions_are_resized_to_the_runs_pictures(tmp_path):
    source = save(tmp_path, "vit", image_size=16)
    state = loop.begin(loop.prepare(experiment("vit", source)))
    _, resized = zoo.load(source, image_size=8)
    assert state.params["positions"].shape == (1 + 16, 16)
    assert_equal(trunk(whole(state)), trunk(tree.flatten(resized)))


def test_two_processes_begin_with_the_same_weights(resnet, tmp_path):
    still = Optim("sgd", lr=1e-30, schedule="constant")
    cfg = replace(
        runner.experiment(task=Classify(), optim=still, steps=2, evaluate_every=2),
        model=MODELS["resnet"],
        init=Init(resnet),
        parallel=Parallel(data=1, fsdp=4),
        step=Step(),
    )
    log = tmp_path / "run.log"
    assert test_processes.pair(cfg, tmp_path / "run") == [0, 0], log.read_text()
    assert log.read_text().count("init from") == 1
    params = tree.flatten({"params": zoo.load(tmp_path / "run" / "model")[1]["params"]})
    assert_equal(trunk(params), trunk(tree.flatten({"params": zoo.load(resnet)[1]["params"]})))


# ---- the run that follows ----


def test_a_stopped_run_goes_on_to_the_same_bits_without_the_weights(resnet, tmp_path, monkeypatch):
    source = shutil.copytree(resnet, tmp_path / "weights")
    saving = Checkpoint(every=1)
    cfg = experiment("resnet", str(source), checkpoint=saving, step=Step(ema=0.9))
    run = loop.prepare(cfg)
    monkeypatch.setattr(loop, "prepare", lambda _: run)  # compiles once for all
    result = fit(cfg, tmp_path / "whole")
    assert result is not None
    with monkeypatch.context() as stopping:
        stopping.setattr(loop.Interrupts, "check", lambda self, step: step == 1)
        assert fit(cfg, tmp_path / "stopped") is None
    shutil.rmtree(source)
    resumed = fit(cfg, tmp_path / "stopped")
    assert resumed is not None and resumed["test"] == result["test"]
    a, b = (newest(run, tmp_path / which) for which in ("whole", "stopped"))
    assert_equal(*(tree.flatten(s.replace(rng=jax.random.key_data(s.rng))) for s in (a, b)))
    # Nor does judging it again need them.
    assert evaluate.evaluate(tmp_path / "stopped").metrics == result["test"]


def test_a_frozen_trunk_stays_as_it_was_loaded(name, weights):
    run = loop.prepare(experiment(name, weights, optim=Optim("adamw", lr=0.1, freeze=(TRUNK,))))
    state = loop.begin(run)
    head = np.asarray(state.params["head"]["kernel"])
    batch = run.put(next(run.data.train()))
    for _ in range(2):  # in the first one a head that is 0 lets no gradient through
        state, _ = run.update(state, batch)
    assert_equal(trunk(whole(state)), trunk(tree.flatten(zoo.load(weights)[1])))
    assert not np.array_equal(state.params["head"]["kernel"], head)


def test_layer_decay_scales_the_first_update_of_a_vit_block_by_block(tmp_path):
    source = save(tmp_path, "vit", num_classes=10, representation=16)
    options = MODELS["vit"].options | {"representation": 16}

    def moved(layer_decay):
        sgd = Optim("sgd", lr=1.0, schedule="constant", momentum=0.0, layer_decay=layer_decay)
        model = Model("vit_ti16", options)
        run = loop.prepare(experiment("vit", source, model=model, optim=sgd))
        state = loop.begin(run)
        before = jax.device_get(state.params)
        state, _ = run.update(state, run.put(next(run.data.train())))
        return tree.flatten(jax.tree.map(np.subtract, jax.device_get(state.params), before))

    plain, decayed = moved(None), moved(0.5)
    powers = {"block_0": 2, "block_1": 1, "embed": 3, "positions": 3, "class_token": 3}
    powers |= {"norm": 0, "representation": 0, "head": 0}
    assert {path.partition("/")[0] for path in plain} == powers.keys()
    for path, update in plain.items():
        rate = 0.5 ** powers[path.partition("/")[0]]
        scale = np.abs(update).max()
        if not path.endswith("k/bias"):  # softmax does not see it: its gradient is rounding
            assert scale > 0, path
        np.testing.assert_allclose(decayed[path], rate * update, atol=1e-3 * scale + 1e-7)


def test_both_heads_of_a_distilled_vit_go_on_training(tmp_path):
    source = save(tmp_path, "vit", num_classes=10, distillation="head")
    model = Model("vit_ti16", MODELS["vit"].options | {"distillation": "head"})
    run = loop.prepare(experiment("vit", source, model=model))
    state, metrics = run.update(loop.begin(run), run.put(next(run.data.train())))
    _, loaded = zoo.load(source)
    for head in ("head", "head_distillation"):
        before, after = (tree["params"][head]["kernel"] for tree in (loaded, state.variables()))
        assert not np.array_equal(before, after), head
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", ["dinov2_s14", "vit_s16"])
def test_every_leaf_outside_of_the_blocks_is_a_bottom_or_a_top(name):
    """With all that the pages can have: only what follows the last block keeps its rate."""
    extras = {
        "dinov2_s14": {"registers": 2, "num_classes": 10},
        "vit_s16": {"representation": 8, "distillation": "head"},
    }
    model = zoo.create(name, depth=2, **extras[name])
    shapes = jax.eval_shape(lambda: zoo.init(model, jax.random.key(0)))["params"]
    rates = tree.flatten(optim.layer_rates(shapes, 0.5))
    outside = {path: rate for path, rate in rates.items() if not path.startswith("block_")}
    tops = {path.partition("/")[0] for path, rate in outside.items() if rate == 1}
    assert tops == {"norm", "head", "representation", "head_distillation"} & shapes.keys()
    assert {rate for rate in outside.values()} == {1, 0.5**3}


def test_one_batch_is_learned_from_the_weights(resnet, capsys):
    loop.overfit(experiment("resnet", resnet), steps=1)
    assert f"init from {resnet}" in capsys.readouterr().out


# ---- what is refused ----


def refused(cfg: Experiment) -> str:
    with pytest.raises(ConfigError) as caught:
        loop.begin(loop.prepare(cfg))
    return str(caught.value)


def test_another_architecture_is_answered_with_the_options_that_make_it(resnet, capsys):
    """And they do."""
    message = refused(replace(experiment("resnet", resnet), model=Model("resnet20")))
    assert "depths (2,), not (3, 3, 3)" in message and "stem_width 8, not 16" in message
    assert "image_size" not in message and "num_classes" not in message
    cfg = ["--init.from", resnet, *shlex.split(message.partition("take ")[2])]
    corrected, _ = parse("resnet_digits", cfg)
    assert loop.begin(loop.prepare(check(corrected))) is not None


@pytest.mark.parametrize(
    "field, value",
    [("heads", 4), ("gelu", "tanh"), ("epsilon", 1e-12), ("pool", "mean"), ("qk_norm", True)],
)
def test_what_no_shape_shows_is_compared_too(field, value, vit):
    """Models of the very same tensors that compute something else."""
    held = MODELS["vit"].options
    assert value != held.get(field)
    model = Model(MODELS["vit"].name, held | {field: value})
    assert f"{field} " in refused(replace(experiment("vit", vit), model=model))


def test_another_family_is_named(resnet):
    message = refused(replace(experiment("vit", None), init=Init(resnet)))
    assert "it is a resnet, but the run's model is a vit" in message
    assert "--model.name resnet20 --model.options" in message


def test_grey_pictures_for_a_model_of_colours_are_told_the_channels(tmp_path):
    source = save(tmp_path, "resnet", in_channels=3)
    assert "set --data.channels 3" in refused(experiment("resnet", source))
    grey = Images(batch_size=32, channels=3, mean=(0.3,), std=(0.35,))
    assert loop.begin(loop.prepare(experiment("resnet", source, data=grey))) is not None


def test_leaves_that_do_not_fit_are_listed(resnet, monkeypatch):
    """A page whose Config left out what its weights depend on would show here."""
    monkeypatch.setattr(pretrained, "FREE", (*pretrained.FREE, "widths"))
    model = Model("resnet20", MODELS["resnet"].options | {"widths": (24,)})
    message = refused(experiment("resnet", resnet, model=model))
    assert "does not fit" in message and "params/head" not in message
    path = "params/stage1/block_0/conv1/kernel"
    assert f"{path}: (3, 3, 8, 8), not (3, 3, 8, 24)" in message


def test_a_task_without_one_model_takes_no_weights(resnet):
    state: State = loop.begin(loop.prepare(experiment("resnet", None)))
    task = Task(init=lambda *_: state, update=lambda *_: (state, {}), evaluate=None, best="loss")
    with pytest.raises(ConfigError, match="--init.from: this task has no single model"):
        pretrained.start(Init(resnet), state, task)
    assert pretrained.start(Init(), state, task) is state


def damage(source: Path, how: str) -> None:
    """Cuts the file off, or takes a tensor's file or the configuration away."""
    file = source / "model.safetensors"
    actions = {
        "truncated": lambda: file.write_bytes(file.read_bytes()[:-100]),
        "empty": lambda: file.unlink(),
        "torn": lambda: (source / "config.json").write_text("{"),
    }
    actions[how]()


@pytest.mark.parametrize("how", ["truncated", "empty", "torn"])
def test_damaged_weights_end_the_command_with_code_2_and_leave_nothing_in_the_way(
    how, resnet, tmp_path, capsys
):
    source = shutil.copytree(resnet, tmp_path / "weights")
    damage(source, how)
    options = ["--model.options", json.dumps(MODELS["resnet"].options), "--log", "plain"]
    command = ["resnet_digits", "--workdir", str(tmp_path / "run"), *options]
    assert main([*command, "--init.from", str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --init.from {source}: ") and "Traceback" not in error
    # The corrected command is not held up by the wrong one.
    workdir.claim(tmp_path / "run", serialise.load("resnet_digits"))


NOWHERE = {  # what is given, PLACE being a folder of the test → parts of the message
    "PLACE/none": "PLACE/none: there is no such file",
    "./none": "./none: there is no such file",
    "tests/golden/none": "there is no such file",
}


@pytest.mark.parametrize("source", NOWHERE)
def test_a_path_that_is_not_there_is_refused_before_anything_is_written(
    source, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(loop, "fit", lambda *_: pytest.fail("the run began"))
    given = source.replace("PLACE", str(tmp_path))
    assert main(["resnet_digits", "--workdir", str(tmp_path / "new"), "--init.from", given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --init.from") and not (tmp_path / "new").exists()
    assert NOWHERE[source].replace("PLACE", str(tmp_path)) in error


def test_a_revision_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="init.revision is given, but not --init.from"):
        check(experiment("resnet", None, init=Init(revision="main")))


@pytest.mark.quick
def test_the_option_is_called_from(tmp_path):
    cfg, _ = parse("resnet_digits", ["--init.from", "a/b", "--init.revision", "main"])
    assert cfg.init == Init("a/b", "main")
    # What a config or a workdir says can be taken back.
    workdir.write(tmp_path, workdir.CONFIG, serialise.to_dict(cfg))
    again, _ = parse(str(tmp_path), ["--init.from", "None"])
    assert again == replace(cfg, init=Init(None, "main"))


def test_other_normalisation_is_told_with_both(tmp_path, capsys):
    told = {}
    for mean in (0.3, 0.5):
        card = replace(PREPROCESS, mean=(mean,) * 3)
        loop.begin(loop.prepare(experiment("resnet", save(tmp_path, "resnet", card))))
        told[mean] = capsys.readouterr().out
    assert "warning" not in told[0.3]  # one value for all channels is the same as three
    assert "warning" in told[0.5]
    assert "data.mean (0.5, 0.5, 0.5)" in told[0.5] and "this run has (0.3,)" in told[0.5]
