"""A small GPT that writes Python, on the standard library of the interpreter that runs it.

    python -m train gpt_stdlib

8 MB of source to train on and about 5 % of the files each to validate and to test, by a hash of
their paths; tests, generated tables and near-duplicates across the splits are left out. 4,096 ids
of byte-level BPE, trained on the training split. Each evaluation prints the bits per byte of the
held-out files beside what zlib, xz, and xz after the training split need for them, and writes a
sample to validation_samples.txt.

Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Text
from train.tasks.lm import LM


def experiment() -> Experiment:
    return Experiment(
        model=Model(
            "gpt2",
            {"width": 192, "depth": 4, "heads": 4, "mlp": 768, "context": 256, "bias": False},
        ),
        data=Text(source="stdlib", tokenizer="bpe:4096", length=256, batch_size=8, threads=0),
        task=LM(prompt="def "),
        optim=Optim(
            "muon", lr=0.02, schedule="linear", warmup=50, b2=0.95, weight_decay=0.1, clip=1.0
        ),
        steps=1000,
        evaluate_every=250,
    )
