"""A pre-activation ResNet of two blocks a stage on handwritten digits.

    python -m train resnetv2_digits

The form of resnetv2_164 with depth 20. 1,257 digits to train, 180 to validate, 360 to test, fixed.
Result: not yet run.
"""

from train.config import Experiment, Images, Model, Optim
from train.tasks.classify import Classify


def experiment() -> Experiment:
    return Experiment(
        model=Model("resnetv2_164", {"depths": (2, 2, 2)}),
        data=Images(
            source="digits",
            batch_size=64,
            augment=("crop:1", "rotate:10"),
            mean=(0.3,),
            std=(0.35,),
            threads=0,
        ),
        task=Classify(label_smoothing=0.1),
        optim=Optim("sgd", lr=0.1, schedule="one_cycle", weight_decay=5e-4),
        steps=600,
        evaluate_every=100,
    )
