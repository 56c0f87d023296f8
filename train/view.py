"""`python -m train.view DIR [--port 8080]`: the scene of a run in the browser, while it is learnt.

The newest checkpoint is shown, and each newer one soon after it was written; a run without any is
waited for. Writes nothing: a training may go on in DIR. A GPU that one process trains on has no
room left, as a rule: then look with JAX_PLATFORMS=cpu.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from train import serialise, workdir
from train.check import check
from train.config import ConfigError, Parallel


def main(arguments: list[str] | None = None) -> int:
    """0 after Ctrl-C; exits with 2 and one message where there is nothing to look at."""
    parser = argparse.ArgumentParser(
        prog="python -m train.view",
        description="Watch a scene being learnt, in a browser. Writes nothing.",
    )
    parser.add_argument("workdir", type=Path, metavar="DIR", help="the workdir of the run")
    parser.add_argument("--port", type=int, default=8080, help="of the page (default 8080)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines look (default 127.0.0.1)"
    )
    options = parser.parse_args(arguments)
    try:
        view(options.workdir, options.host, options.port)
    except ValueError as error:  # ConfigError among them
        parser.exit(2, f"error: {error}\n")
    return 0


def view(directory: Path, host: str, port: int) -> None:
    """Serves until Ctrl-C. Raises ConfigError for a folder without a run, a run that is of no
    scene, and checkpoints that are all damaged; ValueError as `zoo.nerf.viewer.serve` does."""
    if not (directory / workdir.CONFIG).is_file():
        raise ConfigError(f"{directory} has no {workdir.CONFIG}: it is not the workdir of a run")
    cfg = check(serialise.load(str(directory)))
    # On the devices that are here, not on those that train.
    cfg = replace(cfg, parallel=Parallel(), step=replace(cfg.step, accumulate=1))

    from train import log, loop  # jax only now
    from zoo.nerf import viewer
    from zoo.nerf.scene import Scene

    viewer.library("viser", "viewer")
    viewer.check_free(host, port)  # before the data are opened
    run = loop.prepare(cfg)
    scene = run.task.companion
    if not isinstance(scene, Scene):
        raise ConfigError(f"{directory} is a run of {type(cfg.task).__name__}, which has no scene")
    with loop.checkpoints(run, directory, writable=False) as saved:
        viewer.serve(Newest(run, saved), scene, host=host, port=port, say=log.say)


class Newest:
    """The newest checkpoint of a run as a `zoo.nerf.viewer.Field`, loaded when there is a newer
    one; None before the first."""

    def __init__(self, run: Any, saved: Any):
        self._run, self._saved = run, saved
        self._field: Any = None

    def __call__(self) -> Any:
        """Raises ConfigError where nothing was shown yet and no checkpoint can be."""
        from train.checkpoint import CheckpointError

        newest = self._saved.latest()
        if newest is None or (self._field is not None and newest <= self._field.step):
            return self._field
        try:
            found = self._saved.restore(self._run.abstract)
        except CheckpointError as error:
            if self._field is None:
                raise ConfigError(str(error)) from error
            return self._field  # the run may have removed it meanwhile, for a newer one
        if found is not None:
            self._field = self._taken(found)
        return self._field

    def _taken(self, found: Any) -> Any:
        """Into the renderer that is there, which is compiled."""
        import jax

        from train import parallel
        from zoo.nerf.view import Renderer
        from zoo.nerf.viewer import Field

        state = (found.state.variables(), found.state.extra.get("grid"))
        variables, grid = jax.device_put(parallel.whole(state), jax.local_devices()[0])
        task = self._run.task
        variables, scene = task.saved(variables)
        if self._field is None:
            return Field(Renderer(task.model.apply, variables, scene.space, grid), found.step)
        self._field.renderer.renew(variables, grid, scene.space.background)
        return Field(self._field.renderer, found.step)


if __name__ == "__main__":
    sys.exit(main())
