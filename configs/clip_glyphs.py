"""CLIP on the characters of the DejaVu fonts and their Unicode names: pairs without a download.

    python -m train clip_glyphs [--seed N --data.seed N]

A picture is 32×32, a caption such as "greek small letter alpha with tonos". The 500 captions of the
test split were never seen, nor their pictures or twins of these; each of their words stands in four
other captions at least. `recall1` is of the picture for a caption, among 500; `recall10_all` among
those of all concepts. `order` is of pairs whose captions are the same words in another order, of
which both are kept back. Beside it stand a text tower that cannot know the order of words,
`--data.bag`, and an untrained one, `--steps 1 --optim.warmup 0 --optim.lr 1e-12`.

The image tower is CLIP's ResNet made small: three convolutions, two stages of one block, attention
pooling of 16 places; the text tower has two blocks of width 192. A rectangle of every other picture
is noise (`erase`). Four like captions come together in a batch (`data.alike`), hard negatives of
one another, which word order tells apart.

Result: mean ± standard deviation of seeds 0, 1 and 2, on 2 cores (x86-64, no accelerator), Python
3.13.0, jax 0.12.0.1, 312 to 325 s of training, with
`python -m train clip_glyphs --seed N --data.seed N`. Beside it the bag of words (`--data.bag`, the
same seeds) and the untrained model (seed 0), in %:

                   as here       bag of words    untrained
    recall1        66.1 ± 2.2    65.7 ± 1.9      0.4        a caption's picture among 500
    recall5        86.0 ± 0.7    85.2 ± 0.7      1.4
    recall10       89.6 ± 0.4    89.5 ± 1.3      2.8
    text_recall1   66.4 ± 0.9    65.1 ± 1.3      0.2        a picture's caption among 500
    text_recall10  89.8 ± 0.4    89.4 ± 1.1      1.4
    recall10_all   70.9 ± 2.1    69.5 ± 1.9      0.2        among the pictures of all concepts
    order          78.7 ± 1.9    50.0 ± 0.0      50.0       of 61 pairs

The 95 % interval of order is 70.2 to 84.7 % for seed 0, 72.8 to 86.8 % for 1, and 68.8 to 83.6 %
for 2. What is missed has few relatives: "tifinagh letter ya" comes 198th of 500.

Test figures of earlier settings, all with AdamW, had been read: recall1, recall10, recall10_all
and order of 58.8, 85.4, 63.6, 75.0 %; with one alike 62.6, 88.0, 64.6, 63.9; 58.0, 84.4, 65.2,
77.9; and 58.6, 87.4, 63.8, 70.9. What was changed since was chosen by `glyphs_dev`, where 500
captions of the training side are tested (`--data.source glyphs_dev --steps 1200 --evaluate-every
1200`, seed 0, one run each, one core each; recall1, recall10, recall10_all, order of 24 pairs, %):

    52.2, 87.6, 61.6, 64.6    AdamW, 1e-3, decay 0.2
    49.8, 86.2, 62.0, 61.5    and shifted by two pixels (`crop:2`)
    50.8, 88.2, 63.6, 62.5    and "a {}", "picture of {}" as templates
    61.8, 90.4, 71.2, 64.6    Muon, 4e-3, decay 0.1, as here
    59.6, 90.8, 70.8, 61.5    2e-3
    54.8, 87.8, 68.2, 59.4    8e-3
    62.0, 89.6, 72.6, 61.5    4e-3, eight alike
    61.6, 91.2, 70.2, 61.5    4e-3, those templates
    69.0, 89.6, 76.8, 60.4    and `erase:0.25`, 2,400 steps
    66.4, 89.8, 76.0, 57.3    or eight alike, 2,400 steps

Half of the groups of like words that train were held back there, which left too few to learn order
from. Since then `glyphs_dev` holds back a third (18 pairs), where 1,600 steps give 62.4, 89.4, 72.8
and 73.6 % as here, and 61.2, 90.0, 71.4 and 70.8 % with a text tower of width 128, `embed` 128 and
four heads, which was tried because the first of those test figures had been its own. The number of
steps was chosen by time. Widths, `erase` and four alike had been chosen with AdamW, on captions of
the training side too, by a script that is not kept.
"""

from train.config import Experiment, Model, Optim, Pairs
from train.tasks.contrastive import Contrastive

IMAGE = {"stages": (1, 1), "patch": 8, "width": 32, "heads": 8, "depth": 0, "mlp": 0}
TEXT = {"text_width": 192, "text_depth": 2, "text_heads": 6, "text_mlp": 768, "context": 12}


def experiment() -> Experiment:
    return Experiment(
        model=Model("clip_b32", {"embed": 256, "gelu": "erf", **IMAGE, **TEXT}),
        data=Pairs(
            source="glyphs",
            batch_size=128,
            length=12,
            distinct=True,
            alike=4,
            mean=(0.1,),
            std=(0.28,),
            augment=("erase:0.5",),
            threads=0,
        ),
        task=Contrastive(),
        optim=Optim("muon", lr=4e-3, warmup=100, b2=0.98, momentum=0.95, weight_decay=0.1),
        steps=2000,
        evaluate_every=1000,
        log_every=100,
    )
