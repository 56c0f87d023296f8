"""Everything a run prints and notes: progress, metrics.jsonl, TensorBoard, pictures, the last line.

Each line of `metrics.jsonl` has `step`, `split` and numbers; a resumed run drops the lines after
its checkpoint, so that no step is told twice. In a run of several processes
only the first one writes.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train import pictures
from train.config import Experiment
from train.workdir import phrase

METRICS = "metrics.jsonl"


def say(line: str) -> None:
    """One plain line to the terminal, from the first process."""
    if jax.process_index() == 0:
        print(line, flush=True)


class Logger:
    """The record of one run in `workdir`, from `start` (the step it resumes from) on.

    A context manager. `train` is called with every step's device metrics, and fetches them only
    every `log_every` steps, so that the devices never wait for the terminal.
    """

    def __init__(self, workdir: Path, cfg: Experiment, start: int):
        self._cfg, self._path = cfg, workdir / METRICS
        self._workdir = workdir
        self._first = jax.process_index() == 0
        self._window: list[dict[str, jax.Array]] = []
        self._told: dict[str, int] = {}  # unreadable pictures by split
        self._seconds = truncate(self._path, start) if self._first else 0.0
        self._began = time.perf_counter() - self._seconds
        bar = cfg.log == "bar" or (cfg.log == "auto" and sys.stdout.isatty())
        self._show = Bar(cfg.steps, start) if bar and self._first else Plain(cfg.steps, start)
        self._board = None
        if cfg.tensorboard and self._first:
            from tensorboardX import SummaryWriter  # 0.5 s

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start or None)

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *_: object) -> None:
        self._show.close()
        if self._board is not None:
            self._board.close()

    def train(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """Notes a step; returns the mean since the last line where one is due, else {}."""
        self._window.append(metrics)
        return self.flush(step) if step % self._cfg.log_every == 0 else {}

    def flush(self, step: int) -> dict[str, float]:
        """Writes and returns the mean over the steps since the last line, {} if there were none."""
        if not self._window:
            return {}
        rows = jax.device_get(self._window)
        seconds = self._clock() - self._seconds
        row = {key: finite_mean([r[key] for r in rows]) for key in rows[0]}
        row["skipped"] = int(rows[-1]["skipped"])
        unit, each = self._cfg.data.speed
        counted = len(rows) * self._cfg.data.batch_size * each
        row[f"{unit}_per_second"] = counted / max(seconds, 1e-9)
        row["seconds"] = self._seconds = self._seconds + seconds
        self._window = []
        self._write(step, "train", row)
        self._show.train(step, row)
        return row

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock of the training: inside is evaluation or saving."""
        before = self._clock()
        yield
        self._began += self._clock() - before

    def _clock(self) -> float:
        return time.perf_counter() - self._began

    def evaluation(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._write(step, split, metrics)
        self._show.line(step, f"{split}: {phrase(metrics)}")

    def skips(self, step: int, skips: Any) -> None:
        """Tells how many examples were left out, when these are twice as many as were told of
        (`data.pipeline.Skips`): of the web's, every step may have some."""
        if skips.count >= max(1, 2 * self._told.get(skips.name, 0)):
            self._told[skips.name] = skips.count
            self._show.line(
                step,
                f"{skips.summary} and are left out: {'; '.join(skips.first)}",
            )

    @property
    def seconds(self) -> float:
        """Time spent training, without evaluations, also before the run was resumed."""
        return self._seconds

    def artifacts(self, step: int, named: Mapping[str, np.ndarray | str]) -> None:
        """A picture as `NAME.png`, a text as `NAME.txt`, the newest replacing the one before."""
        for name, found in named.items() if self._first else ():
            if isinstance(found, str):
                (self._workdir / f"{name}.txt").write_text(found + "\n", encoding="utf-8")
                continue
            pictures.save_png(self._workdir / f"{name}.png", found)
            if self._board is not None:
                self._board.add_image(name, found, step, dataformats="HWC")

    def curves(self) -> None:
        """Learning curves of the whole run, as `learning_curves.png`."""
        if self._first and self._path.exists():
            picture = pictures.learning_curves(read(self._path))
            self.artifacts(self._cfg.steps, {"learning_curves": picture})

    def _write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if not self._first:
            return
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        row = {"step": step, "split": split, **metrics}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for key, value in metrics.items():
                self._board.add_scalar(f"{split}/{key}", value, step)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def truncate(path: Path, step: int) -> float:
    """Drops what was written after `step`, and the test, which is read when a run ends.

    Returns the seconds of training up to there.
    """
    if not path.exists():
        return 0.0
    rows = [r for r in read(path) if r["step"] <= step and r["split"] != "test"]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)
    return max((row["seconds"] for row in rows if row["split"] == "train"), default=0.0)


def finite_mean(values: Sequence[np.ndarray]) -> float:
    """The mean of those that are finite; NaN if none is."""
    finite = [float(value) for value in values if np.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


class Plain:
    """A line per log interval: for logs, pipes and `--log plain`."""

    def __init__(self, steps: int, start: int):
        self._steps, self._start, self._began = steps, start, time.perf_counter()

    def train(self, step: int, row: Mapping[str, float]) -> None:
        spent = time.perf_counter() - self._began
        left = spent / max(step - self._start, 1) * (self._steps - step)
        self.line(
            step,
            f"loss {row['loss']:.4f}, {speed(row)}, {clock(left)} left",
        )

    def line(self, step: int | None, text: str) -> None:
        say(text if step is None else f"step {step}/{self._steps}: {text}")

    def close(self) -> None:
        pass


class Bar:
    """One progress bar; evaluations and messages scroll by above it."""

    def __init__(self, steps: int, start: int):
        from rich import progress

        self._steps = steps
        self._progress = progress.Progress(
            progress.TextColumn("training"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[shown]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=steps, completed=start, shown="compiling …")
        self._progress.start()

    def train(self, step: int, row: Mapping[str, float]) -> None:
        shown = f"loss {row['loss']:.4f} · {speed(row)}"
        self._progress.update(self._task, completed=step, shown=shown)

    def line(self, step: int | None, text: str) -> None:
        where = "" if step is None else f"step {step}/{self._steps}: "
        self._progress.console.print(where + text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def speed(row: Mapping[str, float]) -> str:
    """images/s, tokens/s: what the row has."""
    counted = ((key.removesuffix(SPEED), x) for key, x in row.items() if key.endswith(SPEED))
    return ", ".join(f"{x:,.0f} {unit}/s" for unit, x in counted)


SPEED = "_per_second"


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
