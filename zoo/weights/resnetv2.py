"""ResNetV2: timm names (`resnetv2_50.a1h_in1k`)."""

import re
from collections.abc import Mapping
from typing import Any

from zoo.models.resnetv2 import Config
from zoo.weights.convert import Format, Op, Row, check_architecture, conv, counters, norm

SCAN_START = 1  # a stage's first block stands alone
MODEL_TYPES = ()

# timm classifies with a 1×1 convolution [classes, width, 1, 1].
POINTWISE = Op(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])


def timm(config: Config) -> list[Row]:
    rows = [conv("stem.conv", "stem")]
    width = config.stem_width
    for stage, (depth, wide) in enumerate(zip(config.depths, config.widths, strict=True)):
        for block in range(depth):
            theirs, ours = f"stages.{stage}.blocks.{block}", f"stage{stage + 1}/block_{block}"
            for i in (1, 2, 3):
                rows += norm(f"{theirs}.norm{i}", f"{ours}/norm{i}")
                rows.append(conv(f"{theirs}.conv{i}", f"{ours}/conv{i}"))
            if block == 0 and (stage > 0 or width != wide):
                rows.append(conv(f"{theirs}.downsample.conv", f"{ours}/shortcut"))
    rows += norm("norm", "norm")
    rows.append(Row("head.fc.weight", "params/head/kernel", POINTWISE))
    return [*rows, Row("head.fc.bias", "params/head/bias")]


def timm_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes alone."""
    check_architecture(facts, r"resnetv2_\d+")
    depths, widths = [], []
    while f"stages.{len(depths)}.blocks.0.conv3.weight" in tensors:
        stage = f"stages.{len(depths)}"
        found = {m[1] for n in tensors if (m := re.match(rf"{stage}\.blocks\.(\d+)\.", n))}
        depths.append(len(found))
        widths.append(tensors[f"{stage}.blocks.0.conv3.weight"].shape[0])
    stem_width, in_channels, _, _ = tensors["stem.conv.weight"].shape
    return Config(
        depths=tuple(depths),
        widths=tuple(widths),
        stem_width=stem_width,
        in_channels=in_channels,
        num_classes=tensors["head.fc.weight"].shape[0],
    )


FORMATS = {
    "timm": Format(
        rows=timm,
        marker="stages.0.blocks.0.norm3.running_var",
        ignored=(r".*\.num_batches_tracked",),
        config=timm_config,
        constants=counters,
    ),
}
