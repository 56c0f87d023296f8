"""GPT-2 124M at full size, on any large corpus, for a mesh of GPUs or TPUs.

    python -m train gpt2_124m --data.source 'text:DIR/**/*.txt' --data.tokenizer DIR/gpt2.tiktoken

From published weights instead: --init.from gpt2, with fewer steps and a lower rate, and the same
--data.tokenizer, which --init.from does not set. The tokenizer is GPT-2's, as a folder with its
tokenizer.json or as its file of ranks. Of a few files, --data.holdout must be larger (0.1), so that
one falls to each split, or --data.split position.

The recipe is nanoGPT's (config/train_gpt2.py): 0.5 million tokens a batch, AdamW with b2 0.95 and
decay 0.1 on all matrices, clipped at 1.0, 6e-4 after 2,000 steps of warm-up (the rate is that of
GPT-3's table 2.1, arXiv:2005.14165), by a cosine to a tenth in 600,000 steps, bfloat16, no dropout.
llm.c trains on 10 billion tokens in 19,560 steps. Attention crosses documents, as there: fused
kernels are fastest without segments. A batch is computed in 4 parts; raise --step.accumulate where
memory is short, or set --task.chunk 128, so that the logits exist for 128 tokens of a row at a
time. --model.options '{"vocab": 50304}' pads the vocabulary to a multiple of 128, which matrix
units like; published weights have 50,257.

Differs from nanoGPT: biases, as the published weights have them; whole documents go to a split by a
hash of their names, and are shuffled; a row is a fixed slice of the tokens, read once an epoch,
where nanoGPT draws offsets at random, with replacement.
Result: not yet run to its end. Two steps of the full model from GPT-2-sized weights (random ones,
written by transformers), 4 rows of 1,024 tokens in 4 parts, float32, with an evaluation, a sample
and the export: peak memory 8.2 GB (resident, /usr/bin/time -v); 2 cores (x86-64, no accelerator),
Python 3.13, jax 0.12.0.1, other work beside it:

    python -m train gpt2_124m --init.from WEIGHTS --data.source 'text:WORKS/*_gut.txt'
        --data.tokenizer gpt2.tiktoken --data.split position --data.holdout 0.001
        --data.batch-size 4 --step.precision float32 --steps 2 --evaluate-every 2
        --optim.warmup 1 --task.sample 20
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
