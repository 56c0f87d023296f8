"""The folder of a run: whose it is, and whether the run in it is complete. Needs no jax.

config.json            the whole experiment; `python -m train DIR/config.json` reads it
metrics.jsonl          one JSON object a line, each with `step` and `split`
checkpoints/           see train.checkpoint
tensorboard/           events
model/                 the best weights, for `zoo.load`
result.json            written last: what was reached
*.png, *.txt           pictures and tables
"""

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config import ConfigError, Experiment
from train.serialise import differences, to_dict

CONFIG, RESULT = "config.json", "result.json"


def claim(directory: Path, cfg: Experiment, *, accept_changes: bool = False) -> None:
    """Makes the folder and writes `config.json`.

    Raises ConfigError where the folder cannot be written, or holds checkpoints of another
    experiment: a run goes on only with the settings that it began with, unless `accept_changes`.
    """
    values = to_dict(cfg)
    check_writable(directory)
    newest = newest_step(directory)
    begun = newest is not None or (directory / RESULT).exists()
    changed = differences(read(directory, CONFIG) or values, values) if begun else []
    if changed and not accept_changes:
        lines = "\n  ".join(changed)
        raise ConfigError(
            f"--workdir {directory} holds another experiment:\n  {lines}\n"
            "Choose another --workdir, or go on with these changes by --accept-changes"
        )
    if newest is not None and newest > cfg.steps:
        raise ConfigError(
            f"steps is {cfg.steps}, but --workdir {directory} has been trained for {newest}: "
            "raise it, or choose another --workdir"
        )
    if changed:
        (directory / RESULT).unlink(missing_ok=True)  # it is that of the old settings
    write(directory, CONFIG, values)


def newest_step(directory: Path) -> int | None:
    """That of the newest checkpoint, sealed or not yet; None where there is none."""
    names = (path.name.partition(".")[0] for path in (directory / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def check_writable(directory: Path) -> None:
    """Creates `directory` if missing; raises ConfigError unless files can be made in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        target = f"{directory} -> {directory.readlink()}" if directory.is_symlink() else directory
        raise ConfigError(
            f"--workdir {target} cannot be written: {error.strerror}; "
            "make it a directory that you may write, or choose another --workdir"
        ) from error


def result(directory: Path) -> dict[str, Any] | None:
    """What a complete run reached; None while it is not."""
    return read(directory, RESULT)


def read(directory: Path, name: str) -> dict[str, Any] | None:
    """Raises ConfigError for a file that is not JSON."""
    path = directory / name
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; remove it or restore it") from error


def write(directory: Path, name: str, values: Mapping[str, Any]) -> None:
    """Whole or not at all, whichever of a run's processes come together here."""
    partial = directory / f".{name}.{uuid.uuid4().hex}.partial"
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, directory / name)


def phrase(metrics: Mapping[str, float]) -> str:
    """`loss 0.1234, accuracy 98.61 %`."""
    shares = ("accuracy", "top5")
    return ", ".join(
        f"{key} {100 * value:.2f} %" if key in shares else f"{key} {value:.4g}"
        for key, value in metrics.items()
    )
