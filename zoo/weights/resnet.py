"""ResNet: Hugging Face (`microsoft/resnet-50`) and torchvision (`resnet50`) names."""

import re
from collections.abc import Mapping
from typing import Any

from zoo.models.resnet import Config
from zoo.weights.convert import (
    Format,
    Row,
    WeightsError,
    check_architecture,
    conv,
    counters,
    dense,
    norm,
)

SCAN_START = 1  # a stage's first block stands alone
MODEL_TYPES = ("resnet",)
CONVS = {"basic": 2, "bottleneck": 3}


def blocks(config: Config) -> list[tuple[int, int, bool]]:
    """(stage, block, whether its shortcut projects), all counted from 0."""
    width, found = config.stem_width, []
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            changes = block == 0 and (stage > 0 or width != config.widths[0])
            found.append((stage, block, changes and config.shortcut == "projection"))
    return found


def hf(config: Config) -> list[Row]:
    stem = "resnet.embedder.embedder"
    rows = [conv(f"{stem}.convolution", "stem/conv"), *norm(f"{stem}.normalization", "stem/norm")]
    for stage, block, projects in blocks(config):
        theirs = f"resnet.encoder.stages.{stage}.layers.{block}"
        ours = f"stage{stage + 1}/block_{block}"
        for i in range(CONVS[config.block]):
            rows.append(conv(f"{theirs}.layer.{i}.convolution", f"{ours}/conv{i + 1}"))
            rows += norm(f"{theirs}.layer.{i}.normalization", f"{ours}/norm{i + 1}")
        if projects:
            rows.append(conv(f"{theirs}.shortcut.convolution", f"{ours}/shortcut/conv"))
            rows += norm(f"{theirs}.shortcut.normalization", f"{ours}/shortcut/norm")
    return rows + dense("classifier.1", "head")


def torchvision(config: Config) -> list[Row]:
    rows = [conv("conv1", "stem/conv"), *norm("bn1", "stem/norm")]
    for stage, block, projects in blocks(config):
        theirs, ours = f"layer{stage + 1}.{block}", f"stage{stage + 1}/block_{block}"
        for i in range(1, 1 + CONVS[config.block]):
            rows.append(conv(f"{theirs}.conv{i}", f"{ours}/conv{i}"))
            rows += norm(f"{theirs}.bn{i}", f"{ours}/norm{i}")
        if projects:
            rows.append(conv(f"{theirs}.downsample.0", f"{ours}/shortcut/conv"))
            rows += norm(f"{theirs}.downsample.1", f"{ours}/shortcut/norm")
    return rows + dense("fc", "head")


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of ResNetConfig; labels count the classes. Raises WeightsError for a
    field that this page does not have."""
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    fixed = {
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    for key, value in fixed.items():
        if facts.get(key, value) != value:
            raise WeightsError(f"config.json: {key} is {facts[key]!r}, only {value!r} is supported")
    return Config(
        depths=tuple(facts.get("depths", (3, 4, 6, 3))),
        widths=tuple(facts.get("hidden_sizes", (256, 512, 1024, 2048))),
        block=facts.get("layer_type", "bottleneck"),
        stem_width=facts.get("embedding_size", 64),
        in_channels=facts.get("num_channels", 3),
        num_classes=len(facts["id2label"]) if "id2label" in facts else facts.get("num_labels", 2),
    )


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    if config.stem != "imagenet" or config.shortcut != "projection":
        raise WeightsError(
            "transformers' ResNet has neither the CIFAR stem nor padded shortcuts: "
            'save with format="flax"'
        )
    if card.labels and len(card.labels) != config.num_classes:
        raise WeightsError(
            f"the card has {len(card.labels)} labels, but the model {config.num_classes} classes"
        )
    labels = card.labels or tuple(f"LABEL_{i}" for i in range(config.num_classes))
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "layer_type": config.block,
        "hidden_act": "relu",
        "num_channels": config.in_channels,
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def torchvision_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes alone."""
    check_architecture(facts, r"resnet\d+")
    last = "conv3" if "layer1.0.conv3.weight" in tensors else "conv2"
    depths, widths = [], []
    while f"layer{len(depths) + 1}.0.conv1.weight" in tensors:
        stage = f"layer{len(depths) + 1}"
        found = {m[1] for name in tensors if (m := re.match(rf"{stage}\.(\d+)\.", name))}
        depths.append(len(found))
        widths.append(tensors[f"{stage}.0.{last}.weight"].shape[0])
    stem_width, in_channels, _, _ = tensors["conv1.weight"].shape
    return Config(
        depths=tuple(depths),
        widths=tuple(widths),
        block="bottleneck" if last == "conv3" else "basic",
        stem_width=stem_width,
        in_channels=in_channels,
        num_classes=tensors["fc.weight"].shape[0],
    )


IGNORED = (r".*\.num_batches_tracked",)
FORMATS = {
    "hf": Format(
        rows=hf,
        marker="resnet.embedder.embedder.convolution.weight",
        ignored=IGNORED,
        config=hf_config,
        facts=hf_facts,
        constants=counters,
    ),
    "torchvision": Format(
        rows=torchvision,
        marker="layer1.0.bn1.weight",
        ignored=IGNORED,
        config=torchvision_config,
        constants=counters,
    ),
}
