"""A small BERT that fills gaps in Python, on the standard library of the interpreter that runs it.

    python -m train bert_stdlib

15 % of the tokens are hidden as in BERT (arXiv:1810.04805, section 3.1), by another choice in every
epoch. 4,096 ids of byte-level BPE, trained on the training split, <mask> among them. Its weights
begin a classifier of texts or words by

    --init.from runs/bert_stdlib/model --data.tokenizer runs/bert_stdlib/model

for they know the ids of this tokenizer alone.

Differs from BERT: code for books, packed rows for pairs of sentences, and no guess of the next one.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Text
from train.tasks.mlm import MLM


def experiment() -> Experiment:
    sizes = {"width": 192, "depth": 4, "heads": 6, "mlp": 768, "context": 128}
    return Experiment(
        model=Model("bert_base", {**sizes, "types": 1, "epsilon": 1e-5}),
        data=Text(
            source="stdlib",
            tokenizer="bpe:4096",
            length=128,
            mask=0.15,
            batch_size=16,
            threads=0,
        ),
        task=MLM(),
        optim=Optim(
            "adamw",
            lr=1e-3,
            warmup=200,
            b2=0.98,
            weight_decay=0.01,
            decay=(r".*kernel", r"embed/embedding"),
            clip=1.0,
        ),
        steps=3000,
        evaluate_every=1000,
    )
