"""Two processes are one run: the same batches, the same result, one record."""

import json
import os
import signal
import socket
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests import runner
from train import loop
from train.config import Checkpoint, Optim, Parallel
from train.tasks.classify import Classify

# SGD and no device's own randomness, so that both runs compute the same.
CFG = runner.experiment(
    task=Classify(),
    optim=Optim("sgd", lr=0.05, schedule="constant"),
    steps=8,
    evaluate_every=4,
    checkpoint=Checkpoint(),
)


def pair(cfg, directory, interrupt=lambda both: None):
    """Two processes of two devices each; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:" + str(free.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=2"
    both = [
        runner.start(
            cfg,
            directory,
            XLA_FLAGS=flags,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(rank),
        )
        for rank in (0, 1)
    ]
    interrupt(both)
    for process in both:
        process.join(600)  # only a hang: on a machine with other work each step takes its time
        process.kill()
    return [process.exitcode for process in both]


@pytest.mark.parametrize(
    "sizes",
    [pytest.param({}, marks=pytest.mark.full), {"data": 1, "fsdp": 4}],
    ids=["data", "fsdp"],
)
def test_two_processes_train_like_one(sizes, tmp_path):
    cfg = replace(CFG, parallel=Parallel(**sizes))
    assert pair(cfg, tmp_path / "two") == [0, 0], (tmp_path / "two.log").read_text()
    alone = runner.start(
        cfg, tmp_path / "one", XLA_FLAGS="--xla_force_host_platform_device_count=4"
    )
    alone.join()
    assert alone.exitcode == 0, (tmp_path / "one.log").read_text()

    def rows(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["split"] != "train"]

    assert [r["step"] for r in rows("two")] == [r["step"] for r in rows("one")] == [4, 8, 8]
    for a, b in zip(rows("two"), rows("one"), strict=True):
        assert a["accuracy"] == b["accuracy"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)

    run = loop.prepare(CFG)  # in this process, on its eight devices

    def parameters(name):
        with loop.checkpoints(run, tmp_path / name, writable=False) as saved:
            return saved.restore(run.abstract).state.params

    def check(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5)

    jax.tree.map(check, parameters("two"), parameters("one"))


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)],  # test_resume has it
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_to_one_process_stops_both_at_one_step(number, tmp_path):
    """Both save, leave with success, and go on together."""
    cfg = replace(CFG, steps=100, evaluate_every=100)
    directory = tmp_path / "run"

    def interrupt(both):
        while not (directory / "metrics.jsonl").exists() and all(p.is_alive() for p in both):
            time.sleep(0.05)
        os.kill(both[1].pid, number)

    assert pair(cfg, directory, interrupt) == [3, 3], (tmp_path / "run.log").read_text()
    (step,) = [int(path.name) for path in (directory / "checkpoints").iterdir()]
    assert 0 < step < 100
    assert pair(cfg, directory) == [0, 0], (tmp_path / "run.log").read_text()
