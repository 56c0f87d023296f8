"""Loading a ViT-B-sized safetensors file: time and peak memory beside transformers.

    pip install torch==2.13.0 transformers==5.23.0      # a CPU build on Python 3.11
    python tests/benchmarks/load.py [--rounds 5]

transformers writes ViT-B/16 with random weights into a temporary directory; then, in turns, each
side loads it in a process of its own, after its imports. Seconds are of the load call alone,
ours until every array is ready, and of the call with a sum over every weight after it: transformers
maps the file, and reads a weight when it is used. Memory is the peak of the process's resident set
above what it was just before the call, as a share of the file's size.
Prints one JSON object.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

MEASURE = """
import json, re, resource, sys, time
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

SETUP
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before, start = resident(), time.perf_counter()
CALL
seconds = time.perf_counter() - start
used = peak() - before
total = sum(float(x.sum()) for x in WEIGHTS)
summed = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "summed": summed, "bytes": used}))
"""

SIDES = {
    "flax-zoo": (
        "import jax, numpy, zoo; from zoo.weights import hub, store; jax.devices()",
        "model, variables = zoo.load(sys.argv[1]); jax.block_until_ready(variables)",
        "map(numpy.asarray, jax.tree.leaves(variables))",
    ),
    "transformers": (
        "import torch; from transformers import ViTForImageClassification",
        "model = ViTForImageClassification.from_pretrained(sys.argv[1])",
        "(x.detach().numpy() for x in model.parameters())",
    ),
}

MEDIANS = ("median_seconds", "median_seconds_with_a_sum")


def write(directory: str) -> int:
    """The bytes of the file that transformers writes."""
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(directory)
    return (Path(directory) / "model.safetensors").stat().st_size


def measure(side: str, directory: str) -> dict[str, float]:
    setup, call, weights = SIDES[side]
    program = MEASURE.replace("SETUP", setup).replace("CALL", call).replace("WEIGHTS", weights)
    arguments = [sys.executable, "-c", program, directory]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        size = write(directory)
        for side in SIDES:  # the file is in the page cache then, for both
            measure(side, directory)
        found = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side in SIDES:
                found[side].append(measure(side, directory))
    result = {
        side: {
            "median_seconds": statistics.median(run["seconds"] for run in runs),
            "seconds": [round(run["seconds"], 3) for run in runs],
            "median_seconds_with_a_sum": statistics.median(run["summed"] for run in runs),
            "peak_share_of_file": max(run["bytes"] for run in runs) / size,
        }
        for side, runs in found.items()
    }
    medians = {key: [found[key] for found in result.values()] for key in MEDIANS}
    libraries = ("jax", "flax", "safetensors", "torch", "transformers")
    facts = {
        "file_bytes": size,
        **{f"ratio_of_{key}": ours / theirs for key, (ours, theirs) in medians.items()},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in libraries},
    }
    print(json.dumps(result | facts, indent=1))


if __name__ == "__main__":
    main()
