"""What skipping empty space gives and costs, on the embedded scene (`ngp_scene`).

    python -m train ngp_scene --workdir runs/ngp_scene
    python tests/benchmarks/occupancy.py runs/ngp_scene [--views 20] [--rounds 5] [--steps 50]

Cost: the test views drawn from the trained weights with the grid and with every cell asked, against
the truth: PSNR of both. Gain: rays a second of training updates whose steps all fit into `room`,
with the trained grid and with every cell occupied; the two sides run in turns, in one process, each
after updates that are not counted. Neither takes coarser steps where its samples would fill the
room (`task.thin`): with every cell occupied a ray needs a sample for each step.
Prints one JSON object.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # so what follows is imported below it (E402)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from train import loop, novelviews, serialise  # noqa: E402
from zoo.nerf import samplers  # noqa: E402
from zoo.nerf.cameras import select  # noqa: E402
from zoo.nerf.view import Renderer  # noqa: E402

UNCOUNTED = 5  # updates before those that count


def restored(directory: Path) -> tuple[Any, Any]:
    """(run, its best state)."""
    run = loop.prepare(serialise.load(str(directory)))
    with loop.checkpoints(run, directory, writable=False) as saved:
        found = saved.restore(run.abstract, best=True)
    if found is None:
        sys.exit(f"{directory} has no checkpoint: train ngp_scene first")
    return run, found.state


def pictures(run: Any, state: Any, views: int) -> dict[str, float]:
    """Mean PSNR of test views, dB, with the grid and without, and between the two."""
    scene, space = run.data.scene, run.task.companion.space
    dense = replace(space, sampler=replace(space.sampler, slots=space.sampler.steps))
    model, variables = run.task.model, state.variables()
    sides = {
        "with_grid": Renderer(model.apply, variables, space, state.extra["grid"]),
        "without": Renderer(model.apply, variables, dense, samplers.create_grid(dense)),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for view in scene.splits["test"][:views]:
        truth = novelviews.composed(scene.images[view], np.ones(3, np.float32))
        for name, renderer in sides.items():
            shown = renderer.view(select(scene.cameras, view), *truth.shape[:2])
            found[name].append(novelviews.psnr(shown.colour, truth))
    means = {f"psnr_{name}": statistics.mean(values) for name, values in found.items()}
    return means | {"psnr_difference": means["psnr_with_grid"] - means["psnr_without"]}


def throughput(run: Any, state: Any, rounds: int, steps: int) -> dict[str, float]:
    """Rays a second that a training update learns from: median of the rounds."""
    cfg = run.cfg
    how, task = cfg.task.sampler, replace(cfg.task, thin=False, every=10**9)
    sides = {}
    for name in ("with_grid", "without"):
        own, grid = cfg, state.extra["grid"]
        if name == "without":
            dense = replace(how, slots=how.steps)
            own = replace(cfg, task=replace(task, sampler=dense))
            grid = grid._replace(occupied=np.ones(grid.occupied.shape, bool))
        else:
            own = replace(cfg, task=task)
        side = loop.prepare(own)
        # Its own copy: an update consumes the state that it is given. No step is due at step 1.
        first = state.replace(extra={**state.extra, "grid": jax.tree.map(jnp.asarray, grid)})
        first = jax.tree.map(lambda x: x.copy(), first)
        first = first.replace(step=first.step * 0 + 1)
        batches = [side.put(batch) for batch, _ in zip(side.data.train(), range(8), strict=False)]
        sides[name] = [side.update, first, batches]
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            update, current, batches = side
            for batch in batches[:UNCOUNTED]:
                current, _ = update(current, batch)
            jax.block_until_ready(current.params)
            start, learned = time.perf_counter(), []
            for i in range(steps):
                current, metrics = update(current, batches[i % len(batches)])
                learned.append(metrics["rays"])
            jax.block_until_ready(current.params)
            rays = float(np.sum(jax.device_get(learned))) * cfg.data.batch_size
            found[name].append(rays / (time.perf_counter() - start))
            side[1] = current
    rates = {f"rays_per_second_{name}": statistics.median(x) for name, x in found.items()}
    ratio = rates["rays_per_second_with_grid"] / rates["rays_per_second_without"]
    return rates | {"throughput_factor": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    run, state = restored(options.workdir)
    found = {
        "occupied": float(np.mean(jax.device_get(state.extra["grid"].occupied))),
        **pictures(run, state, options.views),
        **throughput(run, state, options.rounds, options.steps),
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
