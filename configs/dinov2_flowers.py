"""Linear probing of DINOv2: a head on frozen features tells 102 kinds of flowers apart.

    python -m train dinov2_flowers --data.data-dir DIR

The weights are facebook/dinov2-small from the hub (another copy: `--init.from PATH`), its positions
resized from 518 to 224 pixels. Everything but the head is frozen; the head reads the class token
beside the mean of the patches, as in the paper's evaluation (arXiv:2304.07193, appendix B.3), and
starts near zero. Another size: `--model.name dinov2_b14 --init.from facebook/dinov2-base`.
Oxford Flowers must be prepared by TFDS once (the trainer prints the command): 1,020 pictures to
train, 1,020 to validate, 6,149 to test.
Result: not yet run.
"""

from train.config import Experiment, Images, Init, Model, Optim
from train.tasks.classify import Classify
from zoo.card import IMAGENET


def experiment() -> Experiment:
    return Experiment(
        model=Model("dinov2_s14"),
        init=Init("facebook/dinov2-small"),
        data=Images(
            source="tfds:oxford_flowers102",
            batch_size=128,
            image_size=224,
            channels=3,
            augment=("random_resized_crop:0.3", "flip"),
            mean=IMAGENET["mean"],
            std=IMAGENET["std"],
            threads=4,
        ),
        task=Classify(),
        optim=Optim("sgd", lr=0.05, schedule="cosine", freeze=(r"(?!head/).*",)),
        steps=1000,
        evaluate_every=100,
    )
