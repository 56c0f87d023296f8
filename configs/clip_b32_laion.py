"""CLIP B/32 on LAION-400M, as open_clip trained it (github.com/mlfoundations/open_clip, 89fb801).

    python -m train clip_b32_laion --data.source 'wds:DIR/*.tar' --data.tokenizer DIR

The shards are those that img2dataset writes; the tokenizer is CLIP's, a folder with its
tokenizer.json (that of openai/clip-vit-base-patch32). Numbers and where they stand there:

batch 32,768: 128 devices × 256; 62.96 % zero-shot on ImageNet after 36 h (docs/PRETRAINED.md)
32 epochs, 2,000 steps of warm-up, QuickGELU as in the released weights (README.md, "SLURM";
    src/open_clip/pretrained.py), 407,332,084 pairs (src/open_clip_train/data.py)
AdamW, lr 5e-4, β 0.9 and 0.98, ε 1e-6, decay 0.2 of what has two axes or more, cosine to 0, scale
    clipped at 100 (params.py, legacy_main.py, train.py; table 18 of CLIP, arXiv:2103.00020)
crops of 90 to 100 % of a picture (src/open_clip/transform.py)

Differs from it: pictures are resized bilinearly, not bicubically; to judge them, here and by the
card of the weights, their shorter side becomes 256 and the middle 224 × 224 is cut out (crop
0.875), where open_clip makes that side 224; bfloat16, not float16; one pair in 20,000 each is kept
back to validate and to test. The first open walks through every header of every shard on every
host, and keeps what it found (train/data/shards.py); each process holds about 50 bytes an example,
20 GB: what that takes is not measured. Each device holds [256, 32768] of the logits,
34 MB; with fewer devices set task.chunk, and step.accumulate where memory ends: both leave the loss
as it is. The mesh is `--parallel.data -1`, all devices of all processes.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Pairs, Step
from train.tasks.contrastive import Contrastive
from zoo.card import OPENAI

PAIRS, BATCH = 407_332_084, 32_768
EPOCH = PAIRS // BATCH  # steps


def experiment() -> Experiment:
    return Experiment(
        model=Model("clip_b32"),
        data=Pairs(
            source="wds:*.tar",
            tokenizer="clip",
            length=77,
            batch_size=BATCH,
            holdout=1 / 20_000,
            image_size=224,
            channels=3,
            augment=("random_resized_crop:0.9",),
            mean=OPENAI["mean"],
            std=OPENAI["std"],
            threads=32,
        ),
        task=Contrastive(),
        optim=Optim(
            "adamw",
            lr=5e-4,
            warmup=2000,
            b2=0.98,
            eps=1e-6,
            weight_decay=0.2,
            decay=(r".*kernel", r".*embedding", r".*positions"),
        ),
        step=Step(precision="bfloat16"),
        steps=32 * EPOCH,
        evaluate_every=EPOCH,
        log_every=100,
    )
