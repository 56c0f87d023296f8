"""ResNet-50 on ImageNet for 90 epochs, after Goyal et al. (2017, arXiv:1706.02677).

    python -m train resnet_imagenet --data.data-dir DIR

Batch 1,024, SGD with Nesterov momentum 0.9, peak rate 0.1 · 1024 / 256 after 5 epochs of warm-up,
cosine decay, weight decay 1e-4 on kernels, label smoothing 0.1, the last γ of each block zero.
ImageNet must be prepared by TFDS once (the trainer prints the command). Its validation split is the
test split here; the best checkpoint is chosen on 1 % of the training split, which is held out.
Result: not yet run.
"""

from train.config import Experiment, Images, Model, Optim, Step
from train.tasks.classify import Classify
from zoo.card import IMAGENET

EPOCH = 1_268_355 // 1024  # steps, without the 1 % held out


def experiment() -> Experiment:
    return Experiment(
        model=Model("resnet50"),
        data=Images(
            source="tfds:imagenet2012",
            batch_size=1024,
            holdout=0.01,
            image_size=224,
            channels=3,
            augment=("random_resized_crop", "flip"),
            mean=IMAGENET["mean"],
            std=IMAGENET["std"],
            threads=16,
        ),
        task=Classify(label_smoothing=0.1),
        optim=Optim("sgd", lr=0.4, schedule="cosine", warmup=5 * EPOCH, weight_decay=1e-4),
        step=Step(precision="bfloat16"),
        steps=90 * EPOCH,
        evaluate_every=EPOCH,
        log_every=100,
    )
