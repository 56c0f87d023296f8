"""Greedy generation with GPT-2 124M at batch 1: tokens a second beside transformers.

    pip install torch==2.13.0 transformers==5.23.0      # a CPU build on Python 3.11
    python tests/benchmarks/generate.py [--rounds 5] [--tokens 128] [--prompt 32]

transformers writes GPT-2 with random weights into a temporary directory, which both sides load in
float32. In each round both continue the same prompt by so many tokens, one after the other, after a
first round that is not counted (ours compiles there; its seconds are told apart). Both must give
the same tokens.
Prints one JSON object.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import zoo


def ours(directory: str, prompt: list[int], count: int) -> Callable[[], list[int]]:
    model, variables = zoo.load(directory)

    def run() -> list[int]:
        [found] = zoo.generate(model, variables, [prompt], max_new_tokens=count, temperature=0)
        return list(found.tokens)

    return run


def theirs(directory: str, prompt: list[int], count: int) -> Callable[[], list[int]]:
    model = GPT2LMHeadModel.from_pretrained(directory).eval()
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}

    def run() -> list[int]:
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options
            )
        return found[0, len(prompt) :].tolist()

    return run


def timed(run: Callable[[], list[int]]) -> tuple[float, list[int]]:
    start = time.perf_counter()
    tokens = run()
    return time.perf_counter() - start, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(0)
    prompt = np.random.default_rng(0).integers(0, 50257, options.prompt).tolist()
    with tempfile.TemporaryDirectory() as directory:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
        sides = {
            "flax-zoo": ours(directory, prompt, options.tokens),
            "transformers": theirs(directory, prompt, options.tokens),
        }
        first = {side: timed(run) for side, run in sides.items()}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, run in sides.items():
                seconds[side].append(timed(run)[0])
    speed = {side: options.tokens / statistics.median(found) for side, found in seconds.items()}
    result = {
        "tokens_per_second": {side: round(found, 2) for side, found in speed.items()},
        "ratio": round(speed["flax-zoo"] / speed["transformers"], 3),
        "same_tokens": first["flax-zoo"][1] == first["transformers"][1],
        "first_call_seconds": {side: round(found[0], 2) for side, found in first.items()},
        "seconds": {side: [round(s, 3) for s in found] for side, found in seconds.items()},
        "prompt": options.prompt,
        "tokens": options.tokens,
        "threads": torch.get_num_threads(),
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("jax", "flax", "torch", "transformers")},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
