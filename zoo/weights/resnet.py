"""ResNet: names of Hugging Face (`microsoft/resnet-50`; PyTorch and the removed Flax classes),
torchvision and timm (`resnet50`), which share theirs."""

import re
from collections.abc import Mapping
from typing import Any

from zoo.models.resnet import VARIANTS, Config
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
from zoo.weights.facts import choice, hf_classes, labels, timm_args, timm_classes, timm_json
from zoo.weights.hub import Tag

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


# Hugging Face.


def hf(config: Config, layer: str = "layer.{}") -> list[Row]:
    """The names of a base model, which has no classes, stand without a prefix."""
    base = "resnet." if config.num_classes else ""
    stem = f"{base}embedder.embedder"
    rows = [conv(f"{stem}.convolution", "stem/conv"), *norm(f"{stem}.normalization", "stem/norm")]
    for stage, block, projects in blocks(config):
        theirs = f"{base}encoder.stages.{stage}.layers.{block}"
        ours = f"stage{stage + 1}/block_{block}"
        for i in range(CONVS[config.block]):
            part = f"{theirs}.{layer.format(i)}"
            rows.append(conv(f"{part}.convolution", f"{ours}/conv{i + 1}"))
            rows += norm(f"{part}.normalization", f"{ours}/norm{i + 1}")
        if projects:
            rows.append(conv(f"{theirs}.shortcut.convolution", f"{ours}/shortcut/conv"))
            rows += norm(f"{theirs}.shortcut.normalization", f"{ours}/shortcut/norm")
    return rows + dense("classifier.1", "head")


def hf_flax(config: Config) -> list[Row]:
    """The same modules as a tree, in our collections and layouts and with our leaves. In basic
    blocks, and only there, Flax's own numbering of a list was left as it is."""
    layer = {"basic": "layer.layer_{}", "bottleneck": "layer.{}"}[config.block]
    return [Row(_linen_name(row), row.ours) for row in hf(config, layer)]


def _linen_name(row: Row) -> str:
    """`resnet.embedder.embedder.convolution.weight` of `params/stem/conv/kernel` →
    `params/resnet/embedder/embedder/convolution/kernel`."""
    module = str(row.foreign).rpartition(".")[0].replace(".", "/")
    collection, *_, leaf = str(row.ours).split("/")
    return f"{collection}/{module}/{leaf}"


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of ResNetConfig in its old and new forms; the classes from the tensors.
    Raises WeightsError for a field that this page does not have."""
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    fixed = {
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,  # True: the stride is in the first 1×1 ("v1")
    }
    for key, value in fixed.items():
        choice(facts, key, {value: value}, value)
    return Config(
        depths=tuple(facts.get("depths", (3, 4, 6, 3))),
        widths=tuple(facts.get("hidden_sizes", (256, 512, 1024, 2048))),
        block=facts.get("layer_type", "bottleneck"),
        stem_width=facts.get("embedding_size", 64),
        in_channels=facts.get("num_channels", 3),
        num_classes=hf_classes(tensors, facts, *HF_HEADS),
    )


HF_HEADS = ("classifier.1.weight", "classifier.1.bias", "params/classifier/1/bias")


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    if config.stem != "imagenet" or config.shortcut != "projection":
        raise WeightsError(
            "transformers' ResNet has neither the CIFAR stem nor padded shortcuts: "
            'save with format="flax"'
        )
    kind = "ResNetForImageClassification" if config.num_classes else "ResNetModel"
    return {
        "architectures": [kind],
        "model_type": "resnet",
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "layer_type": config.block,
        "hidden_act": "relu",
        "num_channels": config.in_channels,
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        **labels(config.num_classes, card),
    }


# torchvision and timm.


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


def timm_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the shapes; of timm's `config.json`, which torchvision's files have not, only that it
    asks for nothing else."""
    check_architecture(facts, r"resnet\d+")
    timm_args(facts, READ, FIXED)
    choice(facts, "global_pool", {"avg": "avg"}, "avg")
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
        num_classes=timm_classes(tensors, facts, "fc"),
    )


# Of `model_args` what the shapes show, and what changes training alone.
READ = (
    "layers channels in_chans num_classes drop_rate drop_path_rate drop_block_rate zero_init_last"
).split()
FIXED = {"global_pool": ("avg",)}


def timm_facts(config: Config, card: Any) -> dict[str, Any]:
    """What `timm.create_model("local-dir:PATH", pretrained=True)` needs, whatever the sizes are.
    Raises WeightsError for a model that timm's ResNet cannot be."""
    plain = config.stem == "imagenet" and config.shortcut == "projection"
    if not plain or config.stem_width != 64 or len(config.depths) != 4:
        raise WeightsError(
            "timm's ResNet has a stem for ImageNet of width 64, 4 stages and projections: "
            'save with format="flax"'
        )
    expansion = {"basic": 1, "bottleneck": 4}[config.block]
    args = {
        "layers": list(config.depths),
        "channels": [width // expansion for width in config.widths],
        "in_chans": config.in_channels,
    }
    known = {(v.config.block, v.config.depths): name for name, v in VARIANTS.items()}
    other = {"basic": "resnet18", "bottleneck": "resnet50"}[config.block]
    architecture = known.get((config.block, config.depths), other)
    facts = {"width": config.widths[-1], "pool": "avg", "fixed": False}
    return timm_json(architecture, config, args, card, ends=("conv1", "fc"), **facts)


IGNORED = (r".*\.num_batches_tracked",)
HF = Format(
    rows=hf,
    marker=(
        "resnet.embedder.embedder.convolution.weight",
        "embedder.embedder.convolution.weight",
    ),
    ignored=IGNORED,
    config=hf_config,
    facts=hf_facts,
    constants=counters,
)
TORCHVISION = Format(
    rows=torchvision,
    marker="layer1.0.bn1.weight",
    ignored=IGNORED,
    config=timm_config,
    constants=counters,
)
FORMATS = {
    "hf": HF,
    "hf_flax": Format(
        rows=hf_flax,
        marker=(
            "params/resnet/embedder/embedder/convolution/kernel",
            "params/embedder/embedder/convolution/kernel",
        ),
        ignored=(),
        config=hf_config,
        facts=hf_facts,
        file="flax_model.msgpack",
    ),
    "torchvision": TORCHVISION,
    "timm": TORCHVISION._replace(facts=timm_facts),
}

# Published weights: of Hugging Face huggingface.co/microsoft, of timm what `timm.list_pretrained`
# lists (1.0.31), with the licences that it states.
MICROSOFT = {
    f"resnet{depth}.in1k": Tag(f"microsoft/resnet-{depth}", licence="apache-2.0")
    for depth in (18, 34, 50, 101, 152)
}
TIMM = {
    "apache-2.0": (
        "resnet18.a1_in1k resnet18.a2_in1k resnet18.a3_in1k resnet18.gluon_in1k "
        "resnet34.a1_in1k resnet34.a2_in1k resnet34.a3_in1k resnet34.bt_in1k resnet34.gluon_in1k "
        "resnet34.ra4_e3600_r224_in1k "
        "resnet50.a1_in1k resnet50.a1h_in1k resnet50.a2_in1k resnet50.a3_in1k resnet50.am_in1k "
        "resnet50.b1k_in1k resnet50.b2k_in1k resnet50.bt_in1k resnet50.c1_in1k resnet50.c2_in1k "
        "resnet50.d_in1k resnet50.gluon_in1k resnet50.ra_in1k resnet50.ram_in1k "
        "resnet101.a1_in1k resnet101.a1h_in1k resnet101.a2_in1k resnet101.a3_in1k "
        "resnet101.gluon_in1k "
        "resnet152.a1_in1k resnet152.a1h_in1k resnet152.a2_in1k resnet152.a3_in1k "
        "resnet152.gluon_in1k"
    ),
    "bsd-3-clause": (
        "resnet18.tv_in1k resnet34.tv_in1k resnet50.tv_in1k resnet50.tv2_in1k resnet101.tv_in1k "
        "resnet101.tv2_in1k resnet152.tv_in1k resnet152.tv2_in1k"
    ),
    "cc-by-nc-4.0": (
        "resnet18.fb_ssl_yfcc100m_ft_in1k resnet18.fb_swsl_ig1b_ft_in1k "
        "resnet50.fb_ssl_yfcc100m_ft_in1k resnet50.fb_swsl_ig1b_ft_in1k"
    ),
    "": "resnet50.bamboo",
}
TAGS = MICROSOFT | {
    name: Tag(f"timm/{name}", licence=licence)
    for licence, names in TIMM.items()
    for name in names.split()
}
