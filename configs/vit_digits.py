"""The ViT of vit_glyphs on handwritten digits, from its weights or from none.

    python -m train vit_digits --init.from runs/vit_glyphs/model

Result: not yet run.
"""

from train.config import Experiment, Images, Model, Optim
from train.tasks.classify import Classify


def experiment() -> Experiment:
    return Experiment(
        model=Model("vit_ti16", {"patch": 2, "width": 64, "depth": 4, "heads": 4, "mlp": 256}),
        data=Images(
            source="digits",
            batch_size=64,
            augment=("crop:1", "rotate:10"),
            mean=(0.3,),
            std=(0.35,),
            threads=0,
        ),
        task=Classify(label_smoothing=0.1),
        optim=Optim("adamw", lr=1e-3, warmup=20, weight_decay=0.05, clip=1.0),
        steps=200,
        evaluate_every=200,
    )
