"""Contrastive losses with their gradients: milliseconds and memory, whole and in chunks, beside
open_clip's on one device.

    pip install torch==2.13.0 torchvision==0.28.0 open-clip-torch==3.3.0   # Python 3.11, CPU
    python tests/benchmarks/contrastive.py [--pairs 4096] [--width 512] [--rounds 5]

Embeddings are random, of length 1; the scale is 100, with a bias of −10 for the sigmoid form. In
each round every side is run once, one after the other, after a first that is not counted. Memory is
what XLA allots beside inputs and outputs. All must find the same losses. Prints one JSON object.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from train import contrastive

# torchvision is built for CUDA, and wants an operator that torch for CPUs lacks: never called here.
LIBRARY = torch.library.Library("torchvision", "DEF")
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
SCALE, BIAS = 100.0, -10.0


def embeddings(pairs: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [rng.normal(size=(pairs, width)).astype(np.float32) for _ in range(2)]
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in found]


def ours(form: str, chunk: int, rows: list[np.ndarray]) -> tuple[Callable[[], float], float]:
    """(what runs once and gives the loss, MiB that XLA allots)."""
    arguments = [*map(jnp.asarray, rows), jnp.float32(SCALE), jnp.float32(BIAS)]

    def loss(*arguments: jax.Array) -> jax.Array:
        return contrastive.LOSSES[form](*arguments, chunk=chunk)

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arguments).compile()

    def run() -> float:
        value, _ = jax.block_until_ready(compiled(*arguments))
        return float(value)

    return run, compiled.memory_analysis().temp_size_in_bytes / 2**20


def theirs(form: str, rows: list[np.ndarray]) -> Callable[[], float]:
    from open_clip.loss import ClipLoss, SigLipLoss  # only now: see LIBRARY

    image, text, scale = (torch.tensor(x, requires_grad=True) for x in (*rows, SCALE))
    extra = () if form == "softmax" else (torch.tensor(BIAS),)
    criterion = {"softmax": ClipLoss, "sigmoid": SigLipLoss}[form]()

    def run() -> float:
        loss = criterion(image, text, scale, *extra)
        torch.autograd.grad(loss, (image, text, scale))
        return loss.item()

    return run


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """(milliseconds, loss)."""
    start = time.perf_counter()
    loss = run()
    return 1000 * (time.perf_counter() - start), loss


def measure(form: str, pairs: int, width: int, rounds: int) -> dict[str, Any]:
    rows, memory = embeddings(pairs, width), {}
    sides: dict[str, Callable[[], float]] = {"open_clip": theirs(form, rows)}
    for chunk in (0, pairs // 4, pairs // 16):
        name = f"chunk {chunk}" if chunk else "whole"
        sides[name], memory[name] = ours(form, chunk, rows)
    losses = {name: timed(run)[1] for name, run in sides.items()}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            found[name].append(timed(run)[0])
    return {
        "milliseconds": {name: round(statistics.median(x), 1) for name, x in found.items()},
        "mebibytes": {name: round(x, 1) for name, x in memory.items()},
        "same_loss": bool(np.allclose(list(losses.values()), losses["open_clip"], rtol=1e-5)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = {form: measure(form, **vars(options)) for form in contrastive.LOSSES}
    about = {
        **vars(options),
        "threads": torch.get_num_threads(),
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("jax", "torch", "open-clip-torch")},
    }
    print(json.dumps(result | about, indent=1))


if __name__ == "__main__":
    main()
