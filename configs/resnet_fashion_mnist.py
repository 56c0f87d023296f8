"""A wide, shallow CIFAR ResNet on Fashion-MNIST: the TFDS path on real data, on a CPU.

    python -m train resnet_fashion_mnist --data.data-dir DIR

60,000 pictures of 28×28 pixels, 6,000 of them held out to choose the checkpoint; 10,000 to test.
Prepare it once: `python -m train.data.prepare fashion_mnist IDX_FOLDER --data-dir DIR`.

Result: test accuracy 93.72 % (validation 93.50 %; 1 run, seed 0) after 932 s of training on 2 cores
(x86-64, no accelerator), Python 3.13, jax 0.12.0.1. In 125 s of training, 2.1 epochs, 91.02 %
(validation 91.35 %; 1 run) with

    python -m train resnet_fashion_mnist --data.data-dir DIR --workdir runs/short --steps 900
        --evaluate-every 900 --data.augment flip --task.label-smoothing 0
        --model.options '{"depths": [1, 1, 1], "widths": [16, 32, 64], "zero_init": false}'

for which optimizer, zero-init, crops and smoothing were chosen on validation data in runs of 300
steps.
"""

from train.config import Experiment, Images, Model, Optim
from train.tasks.classify import Classify


def experiment() -> Experiment:
    return Experiment(
        model=Model(
            "resnet20",
            {"depths": (1, 1, 1), "widths": (32, 64, 128), "stem_width": 32, "zero_init": False},
        ),
        data=Images(
            source="tfds:fashion_mnist",
            batch_size=128,
            augment=("crop:2", "flip"),
            mean=(0.286,),
            std=(0.353,),
            threads=0,
        ),
        task=Classify(label_smoothing=0.1),
        optim=Optim("muon", lr=0.03, momentum=0.95, schedule="one_cycle", weight_decay=0.02),
        steps=2800,
        evaluate_every=400,
    )
