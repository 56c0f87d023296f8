"""A small GPT that writes Python, on the standard library of the interpreter that runs it.

    python -m train gpt_stdlib

8 MB of source to train on and about 5 % of the files each to validate and to test, by a hash of
their paths; tests, generated tables and near-duplicates across the splits are left out. 4,096 ids
of byte-level BPE, trained on the training split. Each evaluation prints the bits per byte of the
held-out files beside what zlib, xz, and xz after the training split need for them, and writes a
sample to validation_samples.txt.

Result: bits per byte of the 28 test files (439,132 bytes; 0.31 of the tokens guessed), beside zlib
2.049, xz 1.776, and xz after the training text 1.464:

    steps   seeds   bits per byte                          seconds of training
    1,000   3       1.466 ± 0.004 (1.463, 1.470, 1.465)    584, 569, 568
    2,500   1       1.306                                  2,808, on a machine that others used

on 2 cores (x86-64, no accelerator), Python 3.13.0, jax 0.12.0.1, compilation included, with

    for s in 0 1 2; do
        python -m train gpt_stdlib --seed $s --data.seed $s --workdir runs/stdlib-$s
    done
    python -m train gpt_stdlib --steps 2500 --evaluate-every 500 --workdir runs/stdlib-long

gpt_stdlib.png beside this file has the curves of the long run. SHA-256 of the names of the files,
one a line (they and the compressors' figures belong to Python 3.13.0):

    train       7fd7646f733f3d1699779437cf546157ace6e7565f5c7eb85e03c52f32f1e033
    validation  15f45a7daacac0eba06cd19a259d1ece90327ada8b74b6ffe21fb83e880edd24
    test        3603643a6be58ce24576b82c693e70e77961fb3d7ba407569801719688e9b98b

After "def " the long run wrote (its own double quotes are single here)

    def fast_int(c):
        '''Averalic meaning over a time the functional-compatin Based format, likely
        another time.  For time, return seconds, it is, and the matheaps of
        Id its minimulator, and higher case is not None.
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
