"""GPT-2 124M at full size, on any large corpus, for a mesh of GPUs or TPUs.

    python -m train gpt2_124m --data.source 'text:DIR/**/*.txt' --data.tokenizer DIR/gpt2.tiktoken

From published weights instead: --init.from gpt2, with fewer steps and a lower rate. The tokenizer
is GPT-2's, as a folder with its tokenizer.json or as its file of ranks.

The recipe is nanoGPT's (config/train_gpt2.py): 0.5 million tokens a batch, AdamW with b2 0.95 and
decay 0.1 on all matrices, clipped at 1.0, 6e-4 after 2,000 steps of warm-up (the rate is that of
GPT-3's table 2.1, arXiv:2005.14165), by a cosine to a tenth in 600,000 steps, bfloat16, no dropout.
llm.c trains on 10 billion tokens in 19,560 steps. Attention crosses documents, as there: fused
kernels are fastest without segments. A batch is computed in 4 parts; raise --step.accumulate where
memory is short, or set --task.chunk 128, so that the logits exist for 128 tokens of a row at a
time. --model.options '{"vocab": 50304}' pads the vocabulary to a multiple of 128, which matrix
units like; published weights have 50,257.

Differs from nanoGPT: biases, as the published weights have them.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Step, Text
from train.tasks.lm import LM


def experiment() -> Experiment:
    return Experiment(
        model=Model("gpt2"),
        data=Text(
            source="text:corpus/**/*.txt",
            tokenizer="gpt2.tiktoken",
            length=1024,
            packing="stream",
            batch_size=512,
            holdout=0.0005,
            threads=8,
        ),
        task=LM(),
        optim=Optim(
            "adamw",
            lr=6e-4,
            warmup=2000,
            final=0.1,
            b2=0.95,
            weight_decay=0.1,
            decay=(r".*kernel", r"embed/embedding", r"positions"),
            clip=1.0,
        ),
        step=Step(precision="bfloat16", accumulate=4),
        steps=600_000,
        evaluate_every=1000,
    )
