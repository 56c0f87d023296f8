"""A small Llama that writes Python: gpt_stdlib with rotary positions, RMSNorm and a gated MLP.

    python -m train llama_stdlib

Data, tokenizer, optimizer and reports are those of gpt_stdlib. Two heads of keys and values serve
six of queries, and the head is tied to the embeddings.

Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Text
from train.tasks.lm import LM


def experiment() -> Experiment:
    sizes = {"width": 192, "depth": 4, "heads": 6, "kv_heads": 2, "mlp": 512, "context": 256}
    return Experiment(
        model=Model("smollm2_135m", {**sizes, "base": 10_000.0}),
        data=Text(source="stdlib", tokenizer="bpe:4096", length=256, batch_size=8, threads=0),
        task=LM(prompt="def "),
        optim=Optim(
            "muon", lr=0.02, schedule="linear", warmup=50, b2=0.95, weight_decay=0.1, clip=1.0
        ),
        steps=1000,
        evaluate_every=250,
    )
