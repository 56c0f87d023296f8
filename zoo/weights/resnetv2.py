"""ResNetV2: timm's names (`resnetv2_50.a1h_in1k`)."""

import re
from collections.abc import Mapping
from typing import Any

from zoo.models.resnetv2 import VARIANTS, Config
from zoo.weights.convert import (
    Format,
    Op,
    Row,
    WeightsError,
    check_architecture,
    conv,
    counters,
    norm,
)
from zoo.weights.facts import choice, timm_args, timm_classes, timm_json
from zoo.weights.hub import Tag

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
    """From the shapes; of timm's `config.json` only that it asks for nothing else. Raises
    WeightsError for the other architectures of these names: BiT normalises groups of channels."""
    check_architecture(facts, r"resnetv2_\d+")
    timm_args(facts, READ, FIXED)
    choice(facts, "global_pool", {"avg": "avg"}, "avg")
    if "stages.0.blocks.0.norm3.running_var" not in tensors:
        raise WeightsError(
            "the norms have no running statistics: group normalisation, as in BiT "
            "(resnetv2_50x1_bit), is not supported"
        )
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
        num_classes=timm_classes(tensors, facts, "head.fc"),
    )


# Of `model_args` what the shapes show, and what changes training alone.
READ = (
    "layers channels stem_chs in_chans num_classes drop_rate drop_path_rate zero_init_last"
).split()
FIXED = {"global_pool": ("avg",)}


def timm_facts(config: Config, card: Any) -> dict[str, Any]:
    """What `timm.create_model("local-dir:PATH", pretrained=True)` needs, whatever the sizes are.
    Raises WeightsError for a model that timm's ResNetV2 cannot be."""
    odd = config.stem_width % 8 or any(width % 32 for width in config.widths)
    if config.stem != "imagenet" or odd:
        raise WeightsError(
            f"timm's ResNetV2 has a stem for ImageNet, whose width {config.stem_width} it rounds "
            f"to a multiple of 8, and bottlenecks, whose quarter of {config.widths} too: "
            'save with format="flax"'
        )
    args = {
        "layers": list(config.depths),
        "channels": list(config.widths),
        "stem_chs": config.stem_width,
        "in_chans": config.in_channels,
    }
    known = {variant.config.depths: name for name, variant in VARIANTS.items()}
    architecture = known.get(config.depths, "resnetv2_50")
    facts = {"width": config.widths[-1], "pool": "avg", "fixed": False}
    return timm_json(architecture, config, args, card, ends=("stem.conv", "head.fc"), **facts)


FORMATS = {
    "timm": Format(
        rows=timm,
        marker="stages.0.blocks.0.norm3.weight",
        ignored=(r".*\.num_batches_tracked",),
        config=timm_config,
        facts=timm_facts,
        constants=counters,
    ),
}
TAGS = {  # what `timm.list_pretrained` lists (1.0.31)
    name: Tag(f"timm/{name}", licence="apache-2.0")
    for name in ("resnetv2_50.a1h_in1k", "resnetv2_101.a1h_in1k")
}
