"""DeiT-S on ImageNet for 300 epochs, without a teacher (Touvron et al., 2020, arXiv:2012.12877).

    python -m train vit_imagenet_deit --data.data-dir DIR

Table 9: batch 1,024, AdamW with peak rate 5e-4 · 1024 / 512 after 5 epochs of warm-up and a cosine,
weight decay 0.05 on kernels, label smoothing 0.1, stochastic depth 0.1, RandAugment 9, mixup 0.8,
cutmix 1.0, random erasing 0.25. Ti, S and B share it (`--model.name vit_ti16`, `vit_b16`).

Differs from the paper: no repeated augmentation, each picture is seen once an epoch; RandAugment's
magnitude is not noisy (0.5 there); the rate decays to 0 instead of 1e-5; pictures are resized
bilinearly; weights start as in the paper of ViT (Xavier, a head of zeros).
ImageNet must be prepared by TFDS once (the trainer prints the command).
Result: not yet run.
"""

from train.config import Experiment, Images, Model, Optim, Step
from train.tasks.classify import Classify
from zoo.card import IMAGENET

EPOCH = 1_268_355 // 1024  # steps, without the 1 % held out


def experiment() -> Experiment:
    return Experiment(
        model=Model("vit_s16", {"drop_path": 0.1}),
        data=Images(
            source="tfds:imagenet2012",
            batch_size=1024,
            holdout=0.01,
            image_size=224,
            channels=3,
            augment=("random_resized_crop", "flip", "randaugment:2:9", "erase:0.25"),
            mean=IMAGENET["mean"],
            std=IMAGENET["std"],
            threads=32,
        ),
        task=Classify(label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        optim=Optim("adamw", lr=1e-3, schedule="cosine", warmup=5 * EPOCH, weight_decay=0.05),
        step=Step(precision="bfloat16"),
        steps=300 * EPOCH,
        evaluate_every=5 * EPOCH,
        log_every=100,
    )
