"""Real runs in processes of their own, quick to start, for tests that kill them.

A fork server has imported the trainer; each run is forked from it, before any device exists.
"""

import hashlib
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np

from train.config import Checkpoint, Experiment, Images, Model, Optim, Step
from train.tasks.classify import Classify

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.runner", "train.loop", "train.data.images"])
TINY = {"depths": (1, 1), "widths": (8, 16), "stem_width": 8}


def experiment(**changes) -> Experiment:
    """Sixty steps with all that a State can hold, saved every third step, asynchronously."""
    fields = {
        "model": Model("resnet20", TINY),
        "data": Images(batch_size=64, augment=("crop:1",), mean=(0.3,), std=(0.35,)),
        "task": Classify(mixup=0.2),
        "optim": Optim("adamw", lr=3e-3, warmup=5),
        "step": Step(ema=0.9),
        "checkpoint": Checkpoint(every=3, keep=2),
        "steps": 60,
        "evaluate_every": 20,
        "log_every": 10,
        "log": "plain",
        "tensorboard": False,
    }
    return Experiment(**fields | changes)


def start(cfg: Experiment, directory: Path, trace: Path | None = None, **environment: str):
    """A running process that fits `cfg` in `directory`; its output goes to `directory`.log."""
    process = CONTEXT.Process(target=run, args=(cfg, directory, trace, environment))
    process.start()
    return process


def run(cfg: Experiment, directory: Path, trace: Path | None, environment: dict) -> None:
    os.environ |= environment
    output = os.open(f"{directory}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from train import loop, parallel, workdir

    if trace is not None:
        parallel.compile_update = traced(parallel.compile_update, trace)
    workdir.claim(directory, cfg)
    sys.exit(0 if loop.fit(cfg, directory) else 3)


def traced(compile_update, trace: Path):
    """Writes `step digest` of the batch that every executed update was given."""

    def compiled(*arguments):
        update = compile_update(*arguments)

        def step(state, batch):
            pixels = hashlib.sha256(
                b"".join(np.asarray(batch[k]).tobytes() for k in sorted(batch))
            ).hexdigest()
            with trace.open("a") as file:
                file.write(f"{int(state.step)} {pixels}\n")
            return update(state, batch)

        return step

    return compiled
