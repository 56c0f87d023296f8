"""A character model of any text, at the setting that nanoGPT has for a CPU.

    python -m train gpt_text --data.source 'text:DIR/*.txt'

4 layers, 4 heads, width 128, no biases; rows of 64 bytes, 12 to a batch, 2,000 steps of AdamW
(b2 0.99, decay 0.1 on all matrices, embeddings among them; clipped at 1.0), 1e-3 after 100 steps of
warm-up, by a cosine to 1e-4 (nanoGPT's README and config/train_shakespeare_char.py). Attention
crosses documents, and the first part of all text is the one to train on, as there.

Differs from nanoGPT: bytes instead of the characters of the text; 5 % of the text each to validate
and to test instead of 10 % to validate; evaluations read the whole split, not batches at random;
rows to train on are fixed slices of the text that do not overlap, each read once an epoch, where
nanoGPT draws offsets at random, with replacement.
Result: validation loss 1.9195 nats per byte (mean of 3 seeds: 1.9205, 1.9128, 1.9252) on the works
of Shakespeare (42 texts, 5.1 MB, from the package shakespeare 0.6), 151 to 157 s of training each,
compilation included. The same recipe written in PyTorch 2.13.0, on the same token file and from the
same initial distribution: 1.9188 (1.9192, 1.9207, 1.9166), 86 to 92 s. 2 cores (x86-64, no
accelerator, nothing beside it), Python 3.13.0, jax 0.12.0.1, with

    python tests/benchmarks/nanogpt.py 'works/*/shksprdata/texts/*_gut.txt' --torch PYTHON
"""

from train.config import Experiment, Model, Optim, Text
from train.tasks.lm import LM


def experiment() -> Experiment:
    sizes = {"width": 128, "depth": 4, "heads": 4, "mlp": 512, "context": 64}
    return Experiment(
        model=Model("gpt2", {**sizes, "gelu": "erf", "bias": False}),
        data=Text(
            source="text:*.txt",
            tokenizer="bytes",
            length=64,
            packing="stream",
            split="position",
            batch_size=12,
            threads=0,
        ),
        task=LM(),
        optim=Optim(
            "adamw",
            lr=1e-3,
            warmup=100,
            final=0.1,
            b2=0.99,
            weight_decay=0.1,
            decay=(r".*kernel", r"embed/embedding", r"positions"),
            clip=1.0,
        ),
        steps=2000,
        evaluate_every=250,
    )
