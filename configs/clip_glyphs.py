"""CLIP on the characters of the DejaVu fonts and their Unicode names: pairs without a download.

    python -m train clip_glyphs [--seed N --data.seed N]

A picture is 32×32, a caption such as "greek small letter alpha with tonos". The 500 captions of the
test split were never seen, nor their pictures or twins of these; each of their words stands in four
other captions at least. `recall1` is of the picture for a caption, among 500; `recall10_all` among
those of all concepts. `order` is of pairs whose captions are the same words in another order, of
which both are kept back. Beside it stand a text tower that cannot know the order of words,
`--data.bag`, and an untrained one, `--steps 1 --optim.warmup 0 --optim.lr 1e-12`.

The image tower is CLIP's ResNet made small: three convolutions, two stages of one block, attention
pooling of 16 places; the text tower has two blocks of width 128.
Result: not yet run.
"""

from train.config import Experiment, Model, Optim, Pairs
from train.tasks.contrastive import Contrastive

IMAGE = {"stages": (1, 1), "patch": 8, "width": 32, "heads": 4, "depth": 0, "mlp": 0}
TEXT = {"text_width": 128, "text_depth": 2, "text_heads": 4, "text_mlp": 512, "context": 12}


def experiment() -> Experiment:
    return Experiment(
        model=Model("clip_b32", {"embed": 128, "gelu": "erf", **IMAGE, **TEXT}),
        data=Pairs(
            source="glyphs",
            batch_size=128,
            length=12,
            distinct=True,
            mean=(0.1,),
            std=(0.28,),
            threads=0,
        ),
        task=Contrastive(),
        optim=Optim("adamw", lr=2e-3, warmup=100, b2=0.98, weight_decay=0.2),
        steps=2000,
        evaluate_every=1000,
        log_every=100,
    )
