"""Ctrl-C and SIGTERM as a flag: finish the step, save, leave with 0; a second leaves at once."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """Raised between evaluation batches when a signal has come: the step's work is abandoned."""


class Interrupts:
    """A context in which SIGINT and SIGTERM set `pending` instead of ending the process.

    A second signal ends it at once with the shell's code, 128 + its number: checkpoints are whole
    or absent, so nothing is lost but what came after the last one. Python handles a signal when XLA
    returns, so one that comes during a compilation takes effect after it. Over several processes
    SIGTERM is left to JAX, which tells all of them of a step to stop at; SIGINT becomes one.
    """

    def __enter__(self) -> "Interrupts":
        self.pending, self._count = False, 0
        self._many = jax.process_count() > 1
        numbers = (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self, step: int) -> bool:
        """Whether to stop after this step; the same answer on all processes, which must all ask."""
        if self._many:
            self.pending = multihost_utils.reached_preemption_sync_point(step)
        return self.pending

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            os._exit(128 + number)
        os.write(2, b"\nfinishing the step, then saving; once more to leave at once\n")
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.pending = True
