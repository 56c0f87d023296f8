"""The hash encoding of Instant-NGP's table 1 (L = 16, F = 2, T = 2^19, N from 16 to 2048), ours and
a straightforward PyTorch program of the same formula: points a second, forward and backward.

    pip install -e . torch==2.13.0             # a CPU build on Python 3.11
    python tests/benchmarks/hashgrid.py [--points 65536] [--rounds 3] [--repeats 10]

Both sides get the same points, uniform in the unit cube, and the same table. Forward: the encoding.
Backward: the encoding and the gradient of its table, for one upstream gradient. The sides run in
turns, each round in a process of its own, after calls that are not counted (ours compiles there);
points a second are those of the median call of all rounds. Ours runs on JAX's default backend, with
each of `zoo.layers.hashgrid.SUMS` that --sums names; PyTorch on --device.
--torch names the Python of the PyTorch side, if it is another one. The numbers of both sides must
agree, else it stops.
Prints one JSON object.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
COUNT, FEATURES, COARSEST, FINEST = 16, 2, 16, 2048
PRIMES = (1, 2654435761, 805459861)
UNCOUNTED = 3  # calls before those that count
SEEDS = 4  # random directions of a fingerprint
AGREE = 1e-4  # by which the sides may differ: a fraction of 2048 cells has some 1e-4 of rounding


def inputs(points: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [n, 3], table [rows, F], upstream gradient [n, L·F]; equal on both sides."""
    rng = np.random.default_rng(0)
    drawn = rng.random((points, 3), np.float32), rng.random((rows, FEATURES), np.float32)
    return *drawn, rng.random((points, COUNT * FEATURES), np.float32)


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Of each call; `run` returns when the device has finished."""
    found = []
    for _ in range(UNCOUNTED + repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found[UNCOUNTED:]


def fingerprint(x: Any) -> list[float]:
    """The length of x, and its direction along a few random ones: about 1 each. By these the sides
    are compared; a wrong row, corner or weight changes them, wherever it is."""
    x = np.asarray(x, np.float64).ravel()
    length = np.linalg.norm(x)
    ways = (np.random.default_rng(seed).standard_normal(x.size) for seed in range(SEEDS))
    return [float(length), *(float(x @ way / length) for way in ways)]


# Ours.


def ours(points: int, log_rows: int, repeats: int, sums: list[str]) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    import jax

    from zoo.layers import hashgrid

    levels = hashgrid.levels(COUNT, COARSEST, FINEST, 2**log_rows)
    drawn = inputs(points, sum(level.rows for level in levels))
    x, table, upstream = map(jax.device_put, drawn)

    # All arrays are arguments: of constants XLA would compute the result while it compiles.
    @jax.jit
    def forward(x: Any, table: Any) -> Any:
        return hashgrid.encode(table, x, levels)

    @partial(jax.jit, static_argnames="name")
    def backward(x: Any, table: Any, upstream: Any, name: str) -> Any:
        encoded, pull = jax.vjp(lambda t: hashgrid.encode(t, x, levels, sums=name), table)
        return encoded, pull(upstream)[0]

    def run(name: str) -> Any:
        return jax.block_until_ready(backward(x, table, upstream, name))

    result: dict[str, Any] = {
        "forward": seconds(lambda: forward(x, table).block_until_ready(), repeats),
        "encoded": fingerprint(forward(x, table)),
    }
    for name in sums:
        result[f"backward, {name}"] = seconds(partial(run, name), repeats)
        result[f"gradient, {name}"] = fingerprint(run(name)[1])
    device = jax.devices()[0].device_kind
    return result | {"default": hashgrid.default_sums(), "device": device}


# In PyTorch.


def theirs(points: int, log_rows: int, repeats: int, device: str) -> dict[str, Any]:
    import torch

    steps = [(FINEST / COARSEST) ** (level / (COUNT - 1)) for level in range(COUNT)]
    cells = [int(COARSEST * step + 1e-6) for step in steps]
    rows = [min((n + 1) ** 3, 2**log_rows) for n in cells]
    drawn = inputs(points, sum(rows))
    x, whole, upstream = (torch.from_numpy(array).to(device) for array in drawn)
    tables = [part.clone().requires_grad_() for part in whole.split(rows)]
    ends = torch.tensor(list(product([0, 1], repeat=3)), device=device)  # [k, 3]

    def encode() -> Any:
        found = []
        for n, table in zip(cells, tables, strict=True):
            scaled = x * n
            low = scaled.floor().clamp(max=n - 1)
            fraction = (scaled - low)[:, None]
            corner = low.long()[:, None] + ends  # [n, k, 3]
            weight = torch.where(ends == 1, fraction, 1 - fraction).prod(dim=2)
            a, b, c = corner.unbind(dim=2)
            if len(table) == (n + 1) ** 3:
                index = a + b * (n + 1) + c * (n + 1) ** 2
            else:
                index = (a * PRIMES[0] ^ b * PRIMES[1] ^ c * PRIMES[2]) % len(table)
            looked_up = torch.nn.functional.embedding(index, table)  # [n, k, F]
            found.append((weight[:, :, None] * looked_up).sum(dim=1))
        return torch.cat(found, dim=1)

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def forward() -> Any:
        with torch.no_grad():
            found = encode()
        wait()
        return found

    def backward() -> Any:
        found = torch.autograd.grad(encode(), tables, upstream)
        wait()
        return found

    name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    return {
        "forward": seconds(forward, repeats),
        "encoded": fingerprint(forward().cpu()),
        "backward": seconds(backward, repeats),
        "gradient": fingerprint(torch.cat(backward()).cpu()),
        "device": name,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=2**16)
    parser.add_argument("--log-rows", type=int, default=19, help="the binary logarithm of T")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10, help="calls of a round that count")
    parser.add_argument("--sums", nargs="+", default=["scatter", "sort"])
    parser.add_argument("--torch", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--device", default="cpu", help="of PyTorch: cpu or cuda")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.points, options.log_rows, options.repeats
    if options.side == "ours":  # in a process of its own
        print(json.dumps(ours(*sizes, options.sums)))
        return
    if options.side == "theirs":
        print(json.dumps(theirs(*sizes, options.device)))
        return
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for _ in range(options.rounds):
        for side, python in (("ours", sys.executable), ("theirs", options.torch)):
            command = [python, __file__, *sys.argv[1:], "--side", side]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[side].append(json.loads(lines.splitlines()[-1]))
    print(json.dumps(summary(runs, options.points) | facts(options), indent=1))


def compare(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Raises AssertionError unless the numbers of both sides agree, in encoding and gradients."""
    [mine, *_], [other, *_] = runs["ours"], runs["theirs"]
    for key, value in mine.items():
        kind = key.partition(",")[0]
        if kind in ("encoded", "gradient"):
            np.testing.assert_allclose(
                value, other[kind], rtol=AGREE, atol=AGREE, err_msg=f"{key} differs"
            )


def summary(runs: dict[str, list[dict[str, Any]]], points: int) -> dict[str, Any]:
    """Points a second of each side, and ours over theirs; what they computed must agree."""
    compare(runs)
    [mine, *_], [other, *_] = runs["ours"], runs["theirs"]
    speed = {
        name: {
            key: points / statistics.median([s for run in runs[side] for s in run[key]])
            for key in runs[side][0]
            if key.startswith(("forward", "backward"))
        }
        for side, name in (("ours", "flax-zoo"), ("theirs", "PyTorch"))
    }
    ratios = {
        key: value / speed["PyTorch"][key.partition(",")[0]]
        for key, value in speed["flax-zoo"].items()
    }
    return {
        "points_per_second": {
            side: {key: round(value) for key, value in found.items()}
            for side, found in speed.items()
        },
        "ratio": {key: round(value, 2) for key, value in ratios.items()},
        "default_sums": mine["default"],
        "devices": {"flax-zoo": mine["device"], "PyTorch": other["device"]},
        "threads": other["threads"],
    }


def facts(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "points": options.points,
        "rows": f"2^{options.log_rows}",
        "rounds": options.rounds,
        "repeats": options.repeats,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {
            "flax-zoo": versions(sys.executable, "jax"),
            "PyTorch": versions(options.torch, "torch"),
        },
    }


def versions(python: str, library: str) -> str:
    program = f"from importlib.metadata import version; print(version({library!r}))"
    run = [python, "-c", program]
    found = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
    return f"{library} {found}"


if __name__ == "__main__":
    main()
