"""ResNetV2 from timm; its counts and names are recorded with those of ResNet."""

from functools import partial
from typing import Any

from references.common import (
    Case,
    Reference,
    blocks,
    evaluate,
    filled,
    import_torchvision,
    train,
    versions,
)


def timm_resnetv2(**config: Any) -> Reference:
    """`config`: depths, widths, stem_width, num_classes; norms and blocks are those of resnetv2_50.

    timm rounds stem and bottlenecks to multiples of 8: choose widths that are multiples of 32.
    """
    import_torchvision()
    import timm

    model = timm.create_model(
        "resnetv2_50",
        layers=config["depths"],
        channels=config["widths"],
        stem_chs=config["stem_width"],
        num_classes=config["num_classes"],
    )
    stages = blocks(config["depths"], "stages.{stage}.blocks.{block}")
    return Reference(
        filled(model),
        config,
        parts={"stem": "stem", **stages, "norm": "norm"},
        pool="head.global_pool",
        versions=versions("timm", "torch"),
    )


TIMM_BOTTLENECK = partial(
    timm_resnetv2,
    depths=(1, 2, 1, 1),
    widths=(32, 64, 96, 128),
    stem_width=8,
    num_classes=5,
)
TIMM_NARROW = partial(  # whose gradients fit into a file
    timm_resnetv2,
    depths=(1, 2, 1, 1),
    widths=(32, 32, 32, 32),
    stem_width=8,
    num_classes=5,
)

# Uneven padding shows where a layer that strides meets an even side: 33, 47 → 17, 24 → 9, 12 → 5, 6
# → 3, 3 → 2, 2. In training the last maps are 1 × 1, so that 8 images give a channel 8 values and a
# biased variance is off by 1/8.
CASES = (
    Case("resnetv2_timm", "timm", partial(evaluate, TIMM_BOTTLENECK, (2, 33, 31))),
    Case("resnetv2_timm_train", "timm", partial(train, TIMM_NARROW, (8, 17, 15))),
)
