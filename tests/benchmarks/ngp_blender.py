"""`ngp_blender` on the eight scenes of NeRF-synthetic: PSNR and SSIM of the test views, seconds of
training, and those to 30, 33 and 35 dB.

    pip install -e '.[train,cuda]'
    python tests/benchmarks/ngp_blender.py [--root data/nerf_synthetic] [--out ngp_blender.json]

--scene takes other sources, which become scenes by their names; further options go to the trainer.
A mesh, drawn as NeRF-synthetic is, on a machine without a GPU:

    pip install -e '.[train,mesh]'
    python tests/benchmarks/ngp_blender.py --scene mesh:truck.glb --every 250 --steps 1000
        --data.size 100 --task.room 8192 --data.batch-size 2048

Each scene is a run of `python -m train ngp_blender` below --workdir; one that was stopped goes on.
Views to train on are the training views alone; the seconds to a PSNR are those until the validation
views first have it, looked at every --every steps, while the clock stands still. Compilation and
updates of the grid are in the clock. The bars are nerfacc's, of its own occupancy grid after 20,000
steps: 33.11 dB in the mean, 35.67 dB on lego.
Writes one JSON object, and prints it as a table.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SCENES = ("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship")
BARS = {"lego": 35.7, "mean": 33.1}  # dB
LEVELS = (30, 33, 35)  # dB, the time to which is told
MACHINE = """
import json, jax
from importlib.metadata import version
names = ("jax", "jaxlib", "flax", "optax", "numpy")
versions = {name: version(name) for name in names}
print(json.dumps({"device": jax.devices()[0].device_kind, "versions": versions}))
"""


def train(source: str, workdir: Path, options: Sequence[str]) -> None:
    """Exits where the trainer fails; it has said why."""
    command = [sys.executable, "-m", "train", "ngp_blender", "--data.source", source]
    command += ["--workdir", str(workdir), "--log", "plain", *options]
    code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode
    if code or not (workdir / "result.json").is_file():
        sys.exit(code or f"{workdir}: the run was stopped; the same command goes on with it")


def found(workdir: Path) -> dict[str, Any]:
    """What a complete run reached."""
    names = ("result.json", "config.json", "model/scene.json")
    result, cfg, scene = (json.loads((workdir / name).read_text()) for name in names)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "psnr": result["test"]["psnr"],
        "ssim": result["test"]["ssim"],
        "seconds": result["training_seconds"],
        "seconds_to": {str(level): seconds_to(rows, level) for level in LEVELS},
        "steps": result["steps"],
        "best_step": result["best_step"],
        "source": cfg["data"]["source"],
        "background": {
            "training": cfg["task"]["background"],
            "judging": scene["space"]["background"],
        },
    }


def seconds_to(rows: Sequence[Mapping[str, Any]], level: float) -> float | None:
    """Of training, until the validation views first have that PSNR; None where they never do."""
    spent = {row["step"]: row["seconds"] for row in rows if row["split"] == "train"}
    judged = (row for row in rows if row["split"] == "validation")
    return next((spent[row["step"]] for row in judged if row["psnr"] >= level), None)


def machine() -> dict[str, Any]:
    """Device and versions, asked for in a process of its own, which then lets go of the device."""
    run = subprocess.run(
        [sys.executable, "-c", MACHINE], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def table(scenes: Mapping[str, Mapping[str, Any]], mean: float) -> Iterable[str]:
    levels = "".join(f"{f'{level} dB':>9}" for level in LEVELS)
    yield f"{'scene':<12}{'PSNR':>8}{'bar':>7}{'SSIM':>8}{'seconds':>9}{levels}"
    for name, scene in scenes.items():
        times = "".join(f"{'never' if t is None else f'{t:.0f} s':>9}" for t in times_of(scene))
        yield (
            f"{name:<12}{scene['psnr']:>8.2f}{BARS.get(name, ''):>7}{scene['ssim']:>8.4f}"
            f"{scene['seconds']:>9.0f}{times}"
        )
    bar = BARS["mean"] if set(scenes) == set(SCENES) else ""  # it is that of all eight
    yield f"{'mean':<12}{mean:>8.2f}{bar:>7}"


def times_of(scene: Mapping[str, Any]) -> list[float | None]:
    return [scene["seconds_to"][str(level)] for level in LEVELS]


def named(sources: Sequence[str], root: Path) -> dict[str, str]:
    """scene → source, from wherever it is read. Raises ValueError where two have one name."""
    sources = sources or [f"blender:{root / name}" for name in SCENES]
    names = {Path(source.partition(":")[2] or source).stem: absolute(source) for source in sources}
    if len(names) < len(sources):
        raise ValueError(f"two of these have one name, of a folder or a file: {', '.join(sources)}")
    return names


def absolute(source: str) -> str:
    kind, _, path = source.partition(":")
    return f"{kind}:{Path(path).expanduser().absolute()}" if path else kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--root", type=Path, default=Path("data/nerf_synthetic"))
    parser.add_argument("--scene", nargs="+", default=[], metavar="SOURCE")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ngp_blender"))
    parser.add_argument("--out", type=Path, default=Path("ngp_blender.json"))
    parser.add_argument("--every", type=int, default=1000, help="steps between looks at the PSNR")
    own, options = parser.parse_known_args()
    try:
        sources = named(own.scene, own.root)
    except ValueError as error:
        parser.error(str(error))
    about, scenes = machine(), {}
    for name, source in sources.items():
        workdir = (own.workdir / name).absolute()
        train(source, workdir, ["--evaluate-every", str(own.every), *options])
        scenes[name] = found(workdir) | about
        mean = statistics.mean(scene["psnr"] for scene in scenes.values())
        facts = {"scenes": scenes, "mean_psnr": mean, "bars": BARS}
        own.out.write_text(json.dumps(facts, indent=1) + "\n")  # after each, so that none is lost
    print("\n".join(table(scenes, mean)))


if __name__ == "__main__":
    main()
