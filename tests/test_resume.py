"""A run that is stopped, however, and started again is the run that never stopped."""

import json
import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import runner
from train import loop
from train.workdir import RESULT


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    process = runner.start(runner.experiment(), directory, directory.with_suffix(".trace"))
    process.join()
    assert process.exitcode == 0, directory.with_suffix(".log").read_text()
    return directory


def final_state(directory: Path):
    run = loop.prepare(runner.experiment())
    with loop.checkpoints(run, directory, writable=False) as saved:
        found = saved.restore(run.abstract)
    assert found is not None and found.step == 60
    return found.state


def assert_same_run(directory: Path, whole: Path) -> None:
    """Bit for bit: the state, every recorded number, the result, and each step's batch."""
    a, b = final_state(directory), final_state(whole)
    a, b = (state.replace(rng=jax.random.key_data(state.rng)) for state in (a, b))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(_bits(x), _bits(y)), a, b)
    assert _rows(directory) == _rows(whole)
    assert _result(directory) == _result(whole)


def assert_same_batches(directory: Path, whole: Path) -> None:
    """No sample lost or repeated: a step that was run twice was given the same batch twice."""
    expected = dict(line.split() for line in whole.with_suffix(".trace").read_text().splitlines())
    executed = [line.split() for line in directory.with_suffix(".trace").read_text().splitlines()]
    assert {step for step, _ in executed} == set(expected) == {str(i) for i in range(60)}
    assert all(expected[step] == digest for step, digest in executed)


def _bits(x) -> np.ndarray:
    return np.asarray(x).reshape(-1).view(np.uint8)


def _rows(directory: Path) -> list[dict]:
    """Without what a clock measured; training rows are means since the row before, which a restart
    may cut elsewhere."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] != "train"]


def _result(directory: Path) -> dict:
    result = json.loads((directory / RESULT).read_text())
    return {key: value for key, value in result.items() if key != "training_seconds"}


@pytest.mark.parametrize(
    "kills", [3, pytest.param(50, marks=pytest.mark.full)], ids=lambda n: f"{n} kills"
)
def test_sigkill_at_random_moments_changes_no_bit(kills, tmp_path, uninterrupted):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    directory, trace = tmp_path / "run", tmp_path / "run.trace"
    killed, during_save = 0, 0
    while killed < kills:
        process = runner.start(runner.experiment(), directory, trace)
        wait_for_step(process, trace)
        if killed % 2:
            wait_for_save(process, directory)
        time.sleep(rng.uniform(0, 0.02 if killed % 2 else 0.4))
        during_save += any((directory / "checkpoints").glob("*.staged"))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was done: begin again
            directory.rename(tmp_path / f"done-{killed}-{time.time_ns()}")
            trace.unlink()
            continue
        assert process.exitcode == -signal.SIGKILL
        killed += 1
    process = runner.start(runner.experiment(), directory, trace)
    process.join()
    log = directory.with_suffix(".log").read_text()
    assert process.exitcode == 0, log
    print(f"{killed} kills, {during_save} of them during a save, seed {seed}")
    assert during_save > 0 or kills < 20
    assert_same_run(directory, uninterrupted)
    assert_same_batches(directory, uninterrupted)


def wait_for_step(process, trace: Path) -> None:
    """Returns when the run has executed another step, or is over."""
    before = trace.read_text().count("\n") if trace.exists() else 0
    while process.is_alive() and (not trace.exists() or trace.read_text().count("\n") <= before):
        time.sleep(0.01)


def wait_for_save(process, directory: Path) -> None:
    """Returns when a save has begun, or the run is over."""
    while process.is_alive() and not any((directory / "checkpoints").glob("*.staged")):
        time.sleep(0.001)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)],  # test_processes has it
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_saves_and_leaves_with_success(number, tmp_path, uninterrupted):
    directory, trace = tmp_path / "run", tmp_path / "run.trace"
    process = runner.start(runner.experiment(), directory, trace)
    wait_for_step(process, trace)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 3, directory.with_suffix(".log").read_text()  # fit returned None
    last = len(trace.read_text().splitlines())
    assert 0 < last < 60
    assert str(last) in {path.name for path in (directory / "checkpoints").iterdir()}
    process = runner.start(runner.experiment(), directory, trace)
    process.join()
    assert process.exitcode == 0, directory.with_suffix(".log").read_text()
    assert len(trace.read_text().splitlines()) == 60  # not one step was run twice
    assert_same_run(directory, uninterrupted)
    assert_same_batches(directory, uninterrupted)
