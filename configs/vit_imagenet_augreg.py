"""ViT-S/16 on ImageNet for 300 epochs, after How to train your ViT? (2021, arXiv:2106.10270).

    python -m train vit_imagenet_augreg --data.data-dir DIR

Batch 4,096, Adam (b1 0.9, b2 0.999), peak rate 1e-3 after 10,000 steps of warm-up, cosine decay,
weight decay 0.1 on kernels, gradients clipped at norm 1, pictures in [-1, 1]. Augmentation and
regularisation are those of the authors' published S/16 for ImageNet-1k, as its file name tells
them: "medium2" (RandAugment 2/15, mixup 0.5), no dropout, no stochastic depth. Their others of 300
epochs:

    B/32   --model.name vit_b32 --model.options '{"gelu": "tanh", "positions": "linear",
           "dropout": 0.1, "drop_path": 0.1}'
    B/16   the same with vit_b16, and "strong2": --task.mixup 0.8 --data.augment
           random_resized_crop:0.05 flip randaugment:2:10 (RandAugment 2/20 there)

Ti/16, which they did not publish for ImageNet-1k alone, takes "light1" in their later big_vision
(configs/vit_i1k.py): --model.name vit_ti16, --task.mixup 0 and no randaugment. What they publish
was fine-tuned afterwards, in 20,000 steps of SGD at 224 or 384 pixels.

Differs from the paper: RandAugment's magnitude ends at 10, its own paper's strongest, not at 15 or
20; a softmax over classes and a head of zeros, where big_vision's later recipe (configs/vit_i1k.py)
has a sigmoid for each class and a tanh layer before the head. As there, 1 % of the training split
is held out to choose the checkpoint.
ImageNet must be prepared by TFDS once (the trainer prints the command).
Result: not yet run.
"""

from train.config import Experiment, Images, Model, Optim, Step
from train.tasks.classify import Classify

EPOCH = 1_268_355 // 4096  # steps, without the 1 % held out


def experiment() -> Experiment:
    return Experiment(
        model=Model("vit_s16", {"gelu": "tanh", "positions": "linear"}),
        data=Images(
            source="tfds:imagenet2012",
            batch_size=4096,
            holdout=0.01,
            image_size=224,
            channels=3,
            augment=("random_resized_crop:0.05", "flip", "randaugment:2:10"),
            threads=32,
        ),
        task=Classify(mixup=0.5),
        optim=Optim("adamw", lr=1e-3, schedule="cosine", warmup=10_000, weight_decay=0.1, clip=1.0),
        step=Step(precision="bfloat16"),
        steps=300 * EPOCH,
        evaluate_every=5 * EPOCH,
        log_every=100,
    )
