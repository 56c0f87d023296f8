"""Checkpoints that are whole or absent: Orbax writes them, a manifest of SHA-256 seals them.

    checkpoints/
      1200/                         sealed
        state/                      the State as an Orbax pytree of plain nested dicts
        data/process_0-of-1.json    each process's position in its data
        manifest.json               step, metrics, leaves, files with size and hash
      1400.staged/                  being written, or left by a kill; never listed

Life of a save: staged → hashed → manifest → renamed to its step → older ones deleted. A rename is
atomic and comes last, so a directory named by a number is complete, and a kill at any moment leaves
every checkpoint that was there before. Every file is compared with the manifest before it is used.
"""

import json
import logging
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from train.config import ConfigError
from train.manifest import (
    MANIFEST,
    CheckpointError,
    CorruptCheckpoint,
    read_manifest,
    seal,
    sync,
    verify,
)
from train.state import State
from train.workdir import check_writable
from zoo import tree

STAGED, TRASH = ".staged", ".trash"
NOTHING, REFUSED = -1, -2  # what process 0 may tell the others instead of a step

# What Orbax logs as an error it also raises; its tracebacks would tear the progress bar.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)


class Restored(NamedTuple):
    """What `Checkpoints.restore` found.

    `data` is this process's position in the data, or that of process 0 where another number of
    processes saved.
    """

    step: int
    state: State
    data: Any
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one run in one directory. A context manager: leaving it waits and seals.

    keep          newest checkpoints that stay, beside the best one
    best          the metric that names the best one; "-loss" where less is better
    asynchronous  `save` returns once the state is copied off the devices
    strict        a damaged checkpoint raises instead of falling back to an older one
    warn          is told, in one line each, what was cleaned up, skipped or lost
    writable      False only reads: nothing is created, finished or removed, so that another
                  process may be training in the same directory

    All processes of a run make the same calls in the same order; process 0 alone seals, renames and
    deletes. Raises ConfigError where `directory` cannot be written or `keep` is below 1.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        keep: int = 2,
        best: str = "accuracy",
        asynchronous: bool = True,
        strict: bool = False,
        warn: Callable[[str], None],
        writable: bool = True,
    ):
        if keep < 1:
            raise ConfigError(f"checkpoint.keep is {keep}: keep at least 1 checkpoint")
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._metric = best.removeprefix("-")
        self._sign = -1 if best.startswith("-") else 1
        self._asynchronous = asynchronous
        self._strict = strict
        self._warn = warn
        self._writable = writable
        self._damaged: set[int] = set()
        self._pending: Future[None] | None = None
        if writable:
            check_writable(self.directory)
        if writable and jax.process_index() == 0:
            self._recover()

    def save(
        self,
        step: int,
        state: State,
        data: Any = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes `state`, this process's JSON-able `data` and `metrics` as checkpoint `step`.

        Waits for the save before this one. The caller may donate `state` as soon as this returns. A
        checkpoint of the same step is replaced. Raises CheckpointError if this save or the one
        before it fails, ConfigError if `metrics` lack the one that chooses the best.
        """
        self.wait()
        if not self._writable:
            raise CheckpointError(f"{self.directory} was opened for reading only")
        if metrics and self._metric not in metrics:
            raise ConfigError(
                f"checkpoints are chosen by {self._metric!r}, but the evaluation gave: "
                + ", ".join(sorted(metrics))
            )
        leaves = _savable(state)
        record = {
            "step": step,
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "leaves": specs(leaves),
        }
        with self._nothing_half_written(step):
            if jax.process_index() == 0:
                self._recover()
            with ocp.Context(async_options=ASYNC):
                response = ocp.save_checkpointables_async(
                    str(self._staged(step)),
                    {"state": tree.unflatten(leaves), "data": DataState(data)},
                )
        self._pending = in_background(lambda: self._finish(step, response, record))
        if not self._asynchronous:
            self.wait()

    def poll(self) -> None:
        """Raises the CheckpointError of a background save that failed; else costs nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the save under way is sealed; raises CheckpointError if it failed."""
        if self._pending is None:
            return
        try:
            self._pending.result()
        finally:
            if self._pending.done():  # not after Ctrl-C: that save goes on
                self._pending = None

    close = wait

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The sealed steps in order, without those that `restore` found damaged."""
        return [step for step in self._sealed() if step not in self._damaged]

    def latest(self) -> int | None:
        """The newest of `steps`."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best metric, the later of equals; None if none was saved with one."""
        judged = [step for step in self.steps() if not math.isnan(self._score(step))]
        return max(judged, key=self._rank, default=None)

    def restore(
        self, abstract: State, step: int | None = None, *, best: bool = False
    ) -> Restored | None:
        """The newest undamaged checkpoint, or the best one (the newest if none was judged), or that
        of `step`; None where there is none at all.

        `abstract` is the run's State of `jax.ShapeDtypeStruct`: its shardings say where each leaf
        goes (the first device where a leaf has none), whatever mesh saved it. Raises
        CorruptCheckpoint if every checkpoint is damaged, or `step`, or the first under `strict`;
        CheckpointError with all differences if a leaf is missing, extra or of another shape or
        dtype, or if there is no checkpoint of `step`.
        """
        self.wait()
        chosen = self._agree(lambda: self._choose(step, best))
        return None if chosen is None else self._load(chosen, abstract)

    def _choose(self, step: int | None, best: bool) -> int | None:
        sealed = self._sealed()
        if step is not None and step not in sealed:
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}: {sealed}")
        order = sorted(sealed, key=self._rank if best else None, reverse=True)
        for candidate in order if step is None else [step]:
            try:
                verify(self._final(candidate))
                return candidate
            except CorruptCheckpoint as error:
                if self._strict or step is not None:
                    raise
                self._damaged.add(candidate)
                self._warn(f"DAMAGED CHECKPOINT {candidate} is skipped: {error}")
        if sealed:
            raise CorruptCheckpoint(
                f"every checkpoint in {self.directory} is damaged ({sealed}): put back a good "
                "copy, or train again from the start in another workdir"
            )
        return None

    def _agree(self, choose: Callable[[], int | None]) -> int | None:
        """What process 0 chose, on all: reading the files twice could end in two answers."""
        if jax.process_count() == 1:
            return choose()
        chosen, refusal = REFUSED, None
        if jax.process_index() == 0:
            try:
                found = choose()
                chosen = NOTHING if found is None else found
            except CheckpointError as error:
                refusal = error
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen == REFUSED:
            raise refusal or CheckpointError("process 0 could not restore: see its message")
        return None if chosen == NOTHING else chosen

    def _load(self, step: int, abstract: State) -> Restored:
        directory = self._final(step)
        manifest = read_manifest(directory)
        wanted = tree.flatten(abstract)
        # Orbax would cast another dtype without a word.
        if lines := differences(manifest["leaves"], specs(wanted)):
            raise CheckpointError(
                f"checkpoint {directory} does not fit this run:\n"
                + "\n".join(lines)
                + "\nResume with the settings that wrote it, or start in another workdir."
            )
        data = DataState()
        try:
            loaded = ocp.load_checkpointables(
                str(directory), {"state": tree.unflatten(_placed(wanted)), "data": data}
            )
        except Exception as error:
            raise CheckpointError(f"checkpoint {directory} cannot be loaded: {error}") from error
        if not data.found:
            self._warn(
                f"checkpoint {step} was saved by another number of processes than "
                f"{jax.process_count()}: the data go on from where process 0 was"
            )
        leaves = tree.flatten(loaded["state"])
        state = jax.tree.unflatten(jax.tree.structure(abstract), [leaves[path] for path in wanted])
        return Restored(step, state, data.value, manifest["metrics"])

    def _finish(self, step: int, response: Any, record: dict[str, Any]) -> None:
        with self._nothing_half_written(step):
            response.result()  # of all processes
            if jax.process_index() == 0:
                seal(self._staged(step), record)
                self._publish(step)
                self._delete_old(step)

    def _publish(self, step: int) -> None:
        """Gives a staged checkpoint its name, in place of an older one of the same step."""
        self._discard(step)
        self._staged(step).rename(self._final(step))
        sync(self.directory)
        self._damaged.discard(step)
        shutil.rmtree(self._path(step, TRASH), ignore_errors=True)

    def _discard(self, step: int) -> None:
        # Renamed first: a kill halfway through a deletion must not leave a damaged checkpoint.
        if self._final(step).exists():
            self._final(step).rename(self._path(step, TRASH))

    def _delete_old(self, saved: int) -> None:
        kept = {saved, self.best(), *self.steps()[-self._keep :]}
        for step in set(self.steps()) - kept:
            self._discard(step)
            shutil.rmtree(self._path(step, TRASH), ignore_errors=True)

    @contextmanager
    def _nothing_half_written(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if jax.process_index() == 0:
                self._remove_half_written()
            raise CheckpointError(
                f"checkpoint {step} could not be written to {self.directory}: {error}\n"
                f"Earlier checkpoints ({self.steps()}) are untouched. Make room or repair the "
                "directory, then start the same command again: it resumes from the newest."
            ) from error

    def _recover(self) -> None:
        """Finishes or removes what a kill or a failure left."""
        for path in self._unfinished():
            if path.name.endswith(STAGED) and (path / MANIFEST).exists():
                self._publish(int(path.stem))  # only its last rename was missing
            elif not path.name.endswith(TRASH):
                self._warn(f"removed {path}: its save was interrupted")
        sweep(self._unfinished)

    def _remove_half_written(self) -> None:
        """Leaves what is sealed: if the last rename failed, it may be all there is of a step."""

        def half_written() -> list[Path]:
            return [path for path in self._unfinished() if not (path / MANIFEST).exists()]

        sweep(half_written, calm=20)

    def _unfinished(self) -> list[Path]:
        """Everything this class or Orbax names `<step>.<suffix>`."""
        return [path for path in self._entries() if re.fullmatch(r"\d+\..+", path.name)]

    def _sealed(self) -> list[int]:
        return sorted(int(path.name) for path in self._entries() if path.name.isdecimal())

    def _entries(self) -> list[Path]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def _rank(self, step: int) -> tuple[float, int]:
        score = self._score(step)
        return (-math.inf if math.isnan(score) else score, step)

    def _score(self, step: int) -> float:
        try:
            metrics = read_manifest(self._final(step))["metrics"]
        except CorruptCheckpoint:  # reported when it is restored
            return math.nan
        return self._sign * metrics.get(self._metric, math.nan)

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.directory / f"{step}{suffix}"

    def _staged(self, step: int) -> Path:
        return self._path(step, STAGED)

    def _final(self, step: int) -> Path:
        return self._path(step)


class DataState:
    """One process's position in the data: a JSON file that Orbax lets each process write and read.

    `found` tells whether `load` had a file for this process among as many as now; if not, it takes
    that of process 0, since a position counts the examples of all.
    """

    def __init__(self, value: Any = None):
        self.value = value
        self.found = False
        self._text = json.dumps(value)  # now: the iterator moves on while the save is under way
        self._name = f"process_{jax.process_index()}-of-{jax.process_count()}.json"

    async def save(self, directory: Any) -> Any:
        async def write() -> None:
            (await directory.await_creation() / self._name).write_text(self._text)

        return write()

    async def load(self, directory: Any) -> Any:
        async def read() -> None:
            path = Path(directory) / self._name
            self.found = path.exists()
            path = path if self.found else next(Path(directory).glob("process_0-of-*.json"))
            self.value = json.loads(path.read_text())

        return read()


# Created in the background, a directory that fails to appear keeps Orbax's writers waiting for
# twenty minutes, and with them the end of the process.
ASYNC = ocp.options.AsyncOptions(create_directories_asynchronously=False)


def specs(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape by path, as text: `{"params/kernel": "float32[3, 4]"}`."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves.items()}


def differences(saved: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """One line for each path that differs: `-` only saved, `+` only wanted, `~` another spec."""
    removed = [f"- {p}: {saved[p]} is only in the checkpoint" for p in saved if p not in wanted]
    added = [f"+ {p}: {wanted[p]} is only in this run" for p in wanted if p not in saved]
    changed = [
        f"~ {p}: {saved[p]} in the checkpoint, {wanted[p]} in this run"
        for p in saved
        if p in wanted and saved[p] != wanted[p]
    ]
    return removed + added + changed


def _savable(state: State) -> dict[str, Any]:
    """The leaves by path; empty containers are left to the State that is restored into."""
    leaves = tree.flatten(state)
    if len(leaves) != len(jax.tree.leaves(state)):
        raise CheckpointError("two leaves of the state have the same path: rename a key with '/'")
    if empty := [path for path, leaf in leaves.items() if leaf.size == 0]:
        raise CheckpointError(f"Orbax cannot save arrays without elements: {', '.join(empty)}")
    return leaves


def _placed(abstract: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Without a sharding Orbax would look for the devices that saved, which may not exist."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        path: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or first
        )
        for path, leaf in abstract.items()
    }


def sweep(doomed: Callable[[], list[Path]], calm: int = 1) -> None:
    """Removes what `doomed` lists, until `calm` looks in a row, 0.05 s apart, find nothing; ten
    seconds at most. Orbax's writers of a failed save may still be making files: a folder that is
    being filled stays, and one that was removed comes back."""
    looks = 0
    for _ in range(200):
        found = doomed()
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        looks = 0 if found else looks + 1
        if looks == calm:
            return
        time.sleep(0.05)


def in_background(work: Callable[[], None]) -> Future[None]:
    """The future of `work` on a daemon thread, which cannot keep the process from ending."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future
