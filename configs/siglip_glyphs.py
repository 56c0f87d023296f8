"""SigLIP on the characters of the DejaVu fonts and their Unicode names: pairs without a download.

    python -m train siglip_glyphs

The data and the figures are those of clip_glyphs; the loss is of each pair by itself. The image
tower is a ViT of 64 patches, the text tower sees the padding of its 12 tokens and reads the last.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Pairs
from train.tasks.contrastive import Contrastive

IMAGE = {"embed": 128, "patch": 4, "depth": 2, "heads": 4, "mlp": 512}
TEXT = {"text_width": 128, "text_depth": 2, "text_heads": 4, "text_mlp": 512}


def experiment() -> Experiment:
    return Experiment(
        model=Model("siglip_b16", {**IMAGE, **TEXT}),
        data=Pairs(
            source="glyphs",
            batch_size=128,
            length=12,
            distinct=True,
            mean=(0.1,),
            std=(0.28,),
            threads=0,
        ),
        task=Contrastive(loss="sigmoid"),
        optim=Optim("adamw", lr=1e-3, warmup=200, b2=0.95, weight_decay=0.05),
        steps=3000,
        evaluate_every=1000,
        log_every=100,
    )
