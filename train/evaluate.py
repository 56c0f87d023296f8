"""`python -m train.evaluate DIR [--split test] [--step N]`: what a checkpoint of a run reaches.

The experiment is that of DIR/config.json, the checkpoint its best one. Writes nothing.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from train import serialise, workdir
from train.check import check
from train.config import ConfigError, Parallel


class Evaluation(NamedTuple):
    """What was found: numbers, and texts such as the table of classes, by name."""

    step: int
    metrics: dict[str, float]
    texts: dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """0; exits with 2 and one message where there is nothing to evaluate."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate",
        description="Evaluate a checkpoint of a run again. Writes nothing.",
    )
    parser.add_argument("workdir", type=Path, metavar="DIR", help="the workdir of the run")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--step", type=int, metavar="N", help="another checkpoint than the best")
    options = parser.parse_args(arguments)
    try:
        found = evaluate(options.workdir, options.split, options.step)
    except ConfigError as error:
        parser.exit(2, f"error: {error}\n")
    from train import log

    log.say(f"step {found.step}, {options.split}: {workdir.phrase(found.metrics)}")
    for text in found.texts.values():
        log.say(text)
    return 0


def evaluate(directory: Path, split: str = "test", step: int | None = None) -> Evaluation:
    """The checkpoint of `step` (None: the best) over a whole split, as the run itself judges it.

    Raises ConfigError for a folder without a run, a run without checkpoints, a step that has none,
    and a checkpoint that is damaged.
    """
    if not (directory / workdir.CONFIG).is_file():
        raise ConfigError(f"{directory} has no {workdir.CONFIG}: it is not the workdir of a run")
    if workdir.newest_step(directory) is None:
        raise ConfigError(f"{directory} has no checkpoint yet: train it first")
    cfg = check(serialise.load(str(directory)))
    # On the devices that are here, not on those that trained.
    cfg = replace(cfg, parallel=Parallel(), step=replace(cfg.step, accumulate=1))

    from train import loop  # jax only now: all that can be wrong without it has been checked
    from train.checkpoint import CheckpointError

    run = loop.prepare(cfg)
    try:
        with loop.checkpoints(run, directory, writable=False) as saved:
            found = saved.restore(run.abstract, step, best=True)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if found is None:
        raise ConfigError(f"{directory} has no whole checkpoint yet: train it first")
    batches, _ = run.data.evaluate(split)
    metrics, artifacts = run.task.evaluator(split)(found.state, map(run.put, batches))
    metrics |= run.task.beside(split)
    texts = {name: text for name, text in artifacts.items() if isinstance(text, str)}
    return Evaluation(found.step, metrics, texts)


if __name__ == "__main__":
    sys.exit(main())
