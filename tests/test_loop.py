"""What a run does when something is wrong, and what it leaves behind when nothing is."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import zoo
from tests import runner
from train import loop, workdir
from train.config import Checkpoint, Optim, Step
from train.tasks.classify import Classify


def short(**changes):
    return runner.experiment(**{"steps": 6, "evaluate_every": 3, "log_every": 1} | changes)


def fit(cfg, directory):
    workdir.claim(directory, cfg)
    return loop.fit(cfg, directory)


@pytest.mark.quick
def test_a_run_leaves_a_record_and_weights_that_load(tmp_path):
    cfg = replace(short(), tensorboard=True)
    result = fit(cfg, tmp_path)
    assert result is not None and result == workdir.result(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "config.json",
        "metrics.jsonl",
        "learning_curves.png",
        "test_confusion_matrix.png",
        "test_per_class.txt",
        "model",
        "tensorboard",
    }
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "split"} <= set(row) for row in rows)
    assert [r["step"] for r in rows if r["split"] == "test"] == [6]  # read once, at the end

    model, variables = zoo.load(tmp_path / "model")
    run = loop.prepare(cfg)
    with loop.checkpoints(run, tmp_path, writable=False) as saved:
        best = saved.restore(run.abstract, result["best_step"])
    assert best is not None
    jax.tree.map(np.testing.assert_array_equal, variables, best.state.variables())
    card = zoo.card(tmp_path / "model")
    assert card.labels == tuple("0123456789") and card.results["test"] == result["test"]
    image = run.data.normalise(np.zeros((1, 8, 8, 1), np.uint8))
    assert model.apply(variables, image).shape == (1, 10)


def test_the_checkpoint_is_chosen_on_validation(tmp_path, monkeypatch):
    """Not the last one, and not by the test split."""
    given = iter([0.9, 0.5, 0.1])  # validation at 3, at 6, then the test split

    def evaluate(run, state, split, step, record, signals=None):
        metrics = {"accuracy": next(given)}
        record.evaluation(step, split, metrics)
        return metrics

    monkeypatch.setattr(loop, "evaluate", evaluate)
    result = fit(short(), tmp_path)
    assert result is not None
    assert (result["best_step"], result["validation"]) == (3, {"accuracy": 0.9})
    assert result["test"] == {"accuracy": 0.1}


EXPLODES = Optim("sgd", lr=1e30, schedule="constant")


def test_abort_stops_at_a_loss_that_is_not_finite_and_keeps_the_last_good_checkpoint(tmp_path):
    cfg = short(optim=EXPLODES, step=Step(), checkpoint=Checkpoint(every=1))
    with pytest.raises(loop.NonFinite, match=r"optim\.lr"):
        fit(cfg, tmp_path)
    run = loop.prepare(cfg)
    with loop.checkpoints(run, tmp_path, writable=False) as saved:
        newest = saved.restore(run.abstract)
    assert newest is not None and newest.step < 6
    state = newest.state.replace(rng=0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_skip_counts_what_it_leaves_out_and_goes_on(tmp_path):
    cfg = short(optim=EXPLODES, step=Step(nonfinite="skip"), task=Classify())
    assert fit(cfg, tmp_path) is not None
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [row["skipped"] for row in rows if row["split"] == "train"]
    assert skipped == sorted(skipped) and skipped[-1] > 0


def test_one_batch_can_be_learned_and_says_when_it_cannot(capsys):
    regularised = Classify(label_smoothing=0.1, mixup=0.2)  # which no model learns by heart
    learner = Optim("adamw", lr=3e-2, schedule="constant")
    cfg = runner.experiment(task=regularised, optim=learner, steps=150)
    assert loop.overfit(cfg)
    assert "can learn this batch" in capsys.readouterr().out
    assert not loop.overfit(replace(cfg, optim=Optim(lr=1e-6), steps=3))
    assert "did not fall" in capsys.readouterr().out
