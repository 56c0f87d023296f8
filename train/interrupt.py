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
    returns, so one that comes during a compilation takes effect after it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "Interrupts":
        self.pending = False
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self, step: int) -> bool:
        """Whether to stop after this step; over several processes, the same answer on all."""
        if jax.process_count() > 1:
            # jax.distributed takes SIGTERM for itself, and must be asked at every step.
            notice = multihost_utils.reached_preemption_sync_point(step)
            self.pending = bool(multihost_utils.process_allgather(self.pending or notice).any())
        return self.pending

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            os._exit(128 + number)
        self.pending = True
        os.write(2, b"\nfinishing the step, then saving; once more to leave at once\n")
