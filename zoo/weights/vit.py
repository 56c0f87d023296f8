"""ViT and DeiT: names of Hugging Face (PyTorch and the removed Flax classes), timm and Google's JAX
files (vit_jax, big_vision)."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from zoo.models.vit import Config
from zoo.weights.convert import (
    CONV,
    DENSE,
    SAME,
    Format,
    Op,
    Row,
    WeightsError,
    biased_conv,
    check_architecture,
    dense,
    layer_norm,
    layout,
    linen,
    stacked,
)
from zoo.weights.facts import (
    NO_EMBED_CLASS,
    check_depth,
    choice,
    count,
    hf_classes,
    labels,
    read_facts,
    side,
    square,
    timm_args,
    timm_attention,
    timm_classes,
    timm_model_args,
    timm_sizes,
    timm_vit_json,
    write_facts,
)
from zoo.weights.hub import Tag

logger = logging.getLogger("zoo")
SCAN_START = 0
MODEL_TYPES = ("vit", "deit")
TOKEN = layout("1 1 d", "d")
TOKENS = layout("1 n d", "n d")


# Hugging Face. The names are those of files: transformers 5 has others in memory, and saves these.


def hf(config: Config) -> list[Row]:
    """A base model's names have no prefix, a DeiT's has a second token."""
    base = "vit." if config.distillation == "none" else "deit."
    base = base if config.num_classes else ""
    rows = [
        Row(f"{base}embeddings.cls_token", "params/class_token", TOKEN),
        Row(f"{base}embeddings.distillation_token", "params/distillation_token", TOKEN),
        Row(f"{base}embeddings.position_embeddings", "params/positions", TOKENS),
        *biased_conv(f"{base}embeddings.patch_embeddings.projection", "embed"),
    ]
    for i in range(config.depth):
        theirs, ours = f"{base}encoder.layer.{i}", f"block_{i}"
        rows += layer_norm(f"{theirs}.layernorm_before", f"{ours}/norm1")
        for name, leaf in (("query", "q"), ("key", "k"), ("value", "v")):
            rows += dense(f"{theirs}.attention.attention.{name}", f"{ours}/attn/{leaf}")
        rows += dense(f"{theirs}.attention.output.dense", f"{ours}/attn/out")
        rows += layer_norm(f"{theirs}.layernorm_after", f"{ours}/norm2")
        rows += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1")
        rows += dense(f"{theirs}.output.dense", f"{ours}/mlp/fc2")
    rows += layer_norm(f"{base}layernorm", "norm")
    rows += dense(f"{base}pooler.dense", "representation")
    head = "cls_classifier" if config.distillation == "head" else "classifier"
    return [*rows, *dense(head, "head"), *dense("distillation_classifier", "head_distillation")]


def hf_flax(config: Config) -> list[Row]:
    """The same names with slashes, ending in our leaves, and in our layouts but for the tokens."""
    return [
        Row(_slashed(row), row.ours, SAME if row.op in (CONV, DENSE) else row.op)
        for row in hf(config)
    ]


def _slashed(row: Row) -> str:
    foreign, ours = str(row.foreign).replace(".", "/"), str(row.ours)
    return foreign.replace("/weight", ours[ours.rindex("/") :])


GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
KINDS = {  # by distillation: model_type, the class's name, and its end where there is a head
    "none": ("vit", "ViT", "ForImageClassification"),
    "token": ("deit", "DeiT", "ForImageClassification"),
    "head": ("deit", "DeiT", "ForImageClassificationWithTeacher"),
}


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of ViTConfig or DeiTConfig, in its old and new forms; which heads there
    are, and how wide, from the tensors."""
    stated = read_facts(facts, {"pooler_act": "tanh", "attention_probs_dropout_prob": 0.0})
    check_depth(tensors, facts)
    classes = hf_classes(tensors, facts, "classifier.bias", "cls_classifier.bias")
    distilled = any(name.endswith("embeddings.distillation_token") for name in tensors)
    pooler = None if classes else tensors.get("pooler.dense.bias")
    heads = "head" if "distillation_classifier.bias" in tensors else "token"
    if not classes and pooler is None:
        logger.warning("the file has no pooler: the model returns the class token as it is")
    return Config(
        **stated,
        mlp=facts.get("intermediate_size", 3072),
        distillation=heads if distilled else "none",
        representation=0 if pooler is None else pooler.shape[0],
        gelu=choice(facts, "hidden_act", GELUS, "gelu"),
        epsilon=facts.get("layer_norm_eps", 1e-12),
        dropout=facts.get("hidden_dropout_prob", 0.0),
        num_classes=classes,
    )


def hf_flax_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    return hf_config({name.replace("/", "."): spec for name, spec in tensors.items()}, facts)


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    kind, name, head = KINDS[config.distillation]
    gelus = {ours: theirs for theirs, ours in GELUS.items()}
    return {
        "architectures": [name + (head if config.num_classes else "Model")],
        "model_type": kind,
        **write_facts(config),
        "intermediate_size": config.mlp,
        "hidden_act": gelus[config.gelu],
        "hidden_dropout_prob": config.dropout,
        "pooler_act": "tanh",
        "pooler_output_size": config.representation or config.width,
        **labels(config.num_classes, card),
    }


def hf_flax_facts(config: Config, card: Any) -> dict[str, Any]:
    if config.distillation != "none":
        raise WeightsError('transformers had no DeiT in Flax: save with format="hf" or "flax"')
    return hf_facts(config, card)


# timm.


def timm(config: Config) -> list[Row]:
    """`pre_logits` and its tanh are in files of before timm 0.6."""
    rows = [
        Row("cls_token", "params/class_token", TOKEN),
        Row("dist_token", "params/distillation_token", TOKEN),
        Row("pos_embed", "params/positions", TOKENS),
        *biased_conv("patch_embed.proj", "embed"),
    ]
    for i in range(config.depth):
        theirs, ours = f"blocks.{i}", f"block_{i}"
        rows += layer_norm(f"{theirs}.norm1", f"{ours}/norm1")
        rows += timm_attention(f"{theirs}.attn", f"{ours}/attn")
        rows += layer_norm(f"{theirs}.norm2", f"{ours}/norm2")
        rows += dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1")
        rows += dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2")
    rows += layer_norm("norm", "norm")
    rows += dense("pre_logits.fc", "representation")
    return [*rows, *dense("head", "head"), *dense("head_dist", "head_distillation")]


# Other architectures of timm have the very tensors of these, and compute something else.
ARCHITECTURES = (
    r"(vit|deit)_(tiny|small|base|large|huge|giant|gigantic)"
    r"(_distilled)?_patch\d+(_gap)?_\d+(_miil)?"
)
TIMM_GELUS = {None: "erf", "gelu": "erf", "gelu_tanh": "tanh"}
POOLS = {"token": "class", "avg": "mean"}
# Of `model_args` what this file reads, and what changes nothing that is computed from pictures of
# the right size.
READ = (
    "img_size patch_size in_chans num_classes embed_dim depth num_heads mlp_ratio qkv_bias qk_norm "
    "class_token global_pool act_layer drop_rate pos_drop_rate patch_drop_rate proj_drop_rate "
    "attn_drop_rate drop_path_rate weight_init fix_init dynamic_img_size strict_img_size"
).split()
FIXED = {"fc_norm": (False, None), "no_embed_class": (False,), "init_values": (None,)}


def timm_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the shapes, and what they do not show from `config.json` (architecture, `model_args`):
    heads, pooling, GELU, a rectangular image."""
    check_architecture(facts, ARCHITECTURES)
    args = timm_args(facts, READ, FIXED)
    class_token, distilled = "cls_token" in tensors, "dist_token" in tensors
    stated = args.get("global_pool") or facts.get("global_pool")
    pool = stated or ("token" if class_token else "avg")
    pre_logits = tensors.get("pre_logits.fc.bias")
    return Config(
        **timm_sizes(tensors, facts, class_token + distilled),
        mlp=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        pool=choice({"global_pool": pool}, "global_pool", POOLS, None),
        class_token=class_token,
        distillation="head" if distilled else "none",
        representation=0 if pre_logits is None else pre_logits.shape[0],
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
        gelu=choice(args, "act_layer", TIMM_GELUS, None),
        num_classes=timm_classes(tensors, facts),
    )


def timm_facts(config: Config, card: Any) -> dict[str, Any]:
    """What `timm.create_model("local-dir:PATH", pretrained=True)` needs, whatever the sizes are."""
    unheld = {
        "a distillation token without a head of its own": config.distillation == "token",
        "two tokens without heads": config.distillation == "head" and not config.num_classes,
        "a layer before the head": bool(config.representation),
    }
    for what, present in unheld.items():
        if present:
            raise WeightsError(f'timm\'s ViT has not {what}: save with format="flax"')
    gelus = {ours: theirs for theirs, ours in TIMM_GELUS.items()}
    pools = {ours: theirs for theirs, ours in POOLS.items()}
    distilled = config.distillation == "head"
    architecture = "deit_base_distilled_patch16_224" if distilled else "vit_base_patch16_224"
    pool = pools[config.pool]
    tokens = {} if distilled else {"class_token": config.class_token, "fc_norm": False}
    args = {
        **timm_model_args(config, config.mlp),
        "qk_norm": config.qk_norm,
        "act_layer": gelus[config.gelu],
        "global_pool": pool,
        **tokens,
    }
    heads = ["head", "head_dist"] if distilled else "head"
    return timm_vit_json(architecture, config, args, pool, heads, card)


# Google's JAX code, read and run at these commits:
#
#     github.com/google-research/vision_transformer  c6de1e5  vit_jax/models_vit.py, checkpoint.py
#     github.com/google-research/big_vision          0127fb6  big_vision/models/vit.py
#
# In both, GELU is the tanh approximation, which `flax.linen.gelu` is unless told otherwise (class
# MlpBlock), and positions are resized by `scipy.ndimage.zoom` of order 1 (interpolate_posembed,
# resample_posemb). The files state neither.


class Layout(NamedTuple):
    """Where a file has its tensors. attention, mlp, norm2: the numbers that Flax gave these parts
    of a layer, counting each kind by itself or, before Linen, all of them. embed_class: whether the
    class token has a position, or joins the patches when theirs have been added."""

    prefix: str
    positions: str
    layer: str
    attention: int
    mlp: int
    norm2: int
    embed_class: bool


# vit_jax: the original files and AugReg's, which its loader renumbers, and what its modules call
# their tensors today. big_vision: with `scan=True` each tensor of the layers is one of all layers.
VIT_JAX = Layout(
    "", "Transformer/posembed_input/pos_embedding", "Transformer/encoderblock_{}", 1, 3, 2, True
)
VIT_JAX_LINEN = VIT_JAX._replace(attention=0, mlp=0, norm2=1)
BIG_VISION = Layout(
    "params/", "params/pos_embedding", "params/Transformer/encoderblock_{}", 0, 0, 1, False
)
BIG_VISION_SCAN = BIG_VISION._replace(layer="params/Transformer/encoderblock")


def jax_rows(names: Layout, config: Config) -> list[Row]:
    rows = jax_ends(names, config)
    for i in range(config.depth):
        for name, leaf, op in jax_layer(names, config.heads):
            rows.append(Row(name.format(i), f"params/block_{i}/{leaf}", op))
    return rows


def jax_scanned_rows(names: Layout, config: Config) -> list[Row]:
    rows = jax_ends(names, config)
    for name, leaf, op in jax_layer(names, config.heads):
        leaves = tuple(f"params/block_{i}/{leaf}" for i in range(config.depth))
        rows.append(Row(name, leaves, stacked(op)))
    return rows


def jax_ends(names: Layout, config: Config) -> list[Row]:
    """What is there before and after the layers."""
    cls = f"{names.prefix}cls"
    rows = [
        Row(cls, "params/class_token", TOKEN),
        Row(names.positions, "params/positions", TOKENS),
    ]
    if config.class_token and not names.embed_class:
        ours = ("params/class_token", "params/positions")
        rows = [Row((cls, names.positions), ours, NO_EMBED_CLASS)]
    return [
        *rows,
        *linen(f"{names.prefix}embedding", "embed", "kernel", "bias"),
        *linen(f"{names.prefix}Transformer/encoder_norm", "norm", "scale", "bias"),
        *linen(f"{names.prefix}pre_logits", "representation", "kernel", "bias"),
        *linen(f"{names.prefix}head", "head", "kernel", "bias"),
    ]


def jax_layer(names: Layout, heads: int) -> list[tuple[str, str, Op]]:
    """(their name, our leaf of a block, op) of a layer."""
    attn = f"{names.layer}/MultiHeadDotProductAttention_{names.attention}"
    rows = [
        (f"{attn}/out/kernel", "attn/out/kernel", layout("h c d", "(h c) d", h=heads)),
        (f"{attn}/out/bias", "attn/out/bias", SAME),
    ]
    for name, leaf in (("query", "q"), ("key", "k"), ("value", "v")):
        rows += [
            (f"{attn}/{name}/kernel", f"attn/{leaf}/kernel", layout("d h c", "d (h c)", h=heads)),
            (f"{attn}/{name}/bias", f"attn/{leaf}/bias", layout("h c", "(h c)", h=heads)),
        ]
    same = {
        f"MlpBlock_{names.mlp}/Dense_0": ("mlp/fc1", "kernel", "bias"),
        f"MlpBlock_{names.mlp}/Dense_1": ("mlp/fc2", "kernel", "bias"),
        "LayerNorm_0": ("norm1", "scale", "bias"),
        f"LayerNorm_{names.norm2}": ("norm2", "scale", "bias"),
    }
    for name, (ours, *leaves) in same.items():
        rows += [(f"{names.layer}/{name}/{leaf}", f"{ours}/{leaf}", SAME) for leaf in leaves]
    return rows


def jax_config(names: Layout, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes alone."""
    patch, across, channels, width = tensors[f"{names.prefix}embedding/kernel"].shape
    first, class_token = names.layer.format(0), f"{names.prefix}cls" in tensors
    bias = tensors[f"{first}/MultiHeadDotProductAttention_{names.attention}/query/bias"].shape
    biases = (f"{names.prefix}pre_logits/bias", f"{names.prefix}head/bias")
    representation, classes = (tensors[n].shape[0] if n in tensors else 0 for n in biases)
    scanned = len(bias) == 3
    patches = tensors[names.positions].shape[1] - (class_token and names.embed_class)
    return Config(
        patch=side([patch, across]),
        width=width,
        depth=bias[0] if scanned else count(tensors, f"{names.layer}/LayerNorm_0/scale"),
        heads=bias[-2],
        mlp=tensors[f"{first}/MlpBlock_{names.mlp}/Dense_0/bias"].shape[-1],
        pool="class" if class_token else "mean",
        class_token=class_token,
        representation=representation,
        gelu="tanh",
        positions="linear",
        image_size=square(patches, patch),
        in_channels=channels,
        num_classes=classes,
    )


# What is left to say of a model that computes the same without: how it is run, trained or resized.
RUN = ("layers", "remat")
TRAINED = ("drop_path", "patch_dropout", "positions")
FIRST = "layer.0.layernorm_before"


def _jax(
    names: Layout, rows: Callable[[Layout, Config], list[Row]] = jax_rows, **more: Any
) -> Format:
    return Format(
        rows=partial(rows, names),
        marker=f"{names.layer.format(0)}/LayerNorm_{names.norm2}/scale",
        ignored=(),
        config=partial(jax_config, names),
        lost=(*RUN, *TRAINED, "dropout"),
        file="model.npz",
        **more,
    )


FORMATS = {
    "hf": Format(
        rows=hf,
        marker=tuple(f"{base}encoder.{FIRST}.weight" for base in ("vit.", "deit.", "")),
        ignored=(),
        config=hf_config,
        facts=hf_facts,
        lost=(*RUN, *TRAINED),
    ),
    "hf_flax": Format(
        rows=hf_flax,
        marker=tuple(f"{base}encoder.{FIRST}.scale".replace(".", "/") for base in ("vit.", "")),
        ignored=(),
        config=hf_flax_config,
        facts=hf_flax_facts,
        lost=(*RUN, *TRAINED),
        file="flax_model.msgpack",
    ),
    "timm": Format(
        rows=timm,
        marker="blocks.0.attn.qkv.weight",
        ignored=(),
        config=timm_config,
        facts=timm_facts,
        lost=(*RUN, *TRAINED, "dropout"),
        absent=("blocks.0.ls1.gamma",),
    ),
    "vit_jax": _jax(VIT_JAX),
    # big_vision's layers have the same names, and without its prefix so have its whole files but
    # for the positions.
    "vit_jax_linen": _jax(
        VIT_JAX_LINEN, absent=(BIG_VISION.positions.removeprefix(BIG_VISION.prefix),)
    ),
    "big_vision": _jax(BIG_VISION, prefix=BIG_VISION.prefix, absent=(VIT_JAX.positions,)),
    "big_vision_scan": _jax(BIG_VISION_SCAN, jax_scanned_rows, prefix=BIG_VISION.prefix),
}


def _timm(name: str, licence: str = "apache-2.0") -> Tag:
    return Tag(f"timm/{name}", licence=licence)


TAGS = {
    "vit_b16.in1k": Tag("google/vit-base-patch16-224", licence="apache-2.0"),
    "vit_b16.in1k_384": Tag("google/vit-base-patch16-384", licence="apache-2.0"),
    "vit_b16.in21k": Tag("google/vit-base-patch16-224-in21k", licence="apache-2.0"),
    "vit_b32.in1k_384": Tag("google/vit-base-patch32-384", licence="apache-2.0"),
    "vit_b32.in21k": Tag("google/vit-base-patch32-224-in21k", licence="apache-2.0"),
    "vit_l16.in1k": Tag("google/vit-large-patch16-224", licence="apache-2.0"),
    "vit_l16.in21k": Tag("google/vit-large-patch16-224-in21k", licence="apache-2.0"),
    "vit_l32.in1k_384": Tag("google/vit-large-patch32-384", licence="apache-2.0"),
    "vit_h14.in21k": Tag("google/vit-huge-patch14-224-in21k", licence="apache-2.0"),
    "vit_ti16.augreg_in21k_ft_in1k": _timm("vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "vit_s32.augreg_in21k_ft_in1k": _timm("vit_small_patch32_224.augreg_in21k_ft_in1k"),
    "vit_s16.augreg_in21k_ft_in1k": _timm("vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "vit_b32.augreg_in21k_ft_in1k": _timm("vit_base_patch32_224.augreg_in21k_ft_in1k"),
    "vit_b16.augreg_in21k_ft_in1k": _timm("vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "vit_b16.augreg2_in21k_ft_in1k": _timm("vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    "vit_b8.augreg_in21k_ft_in1k": _timm("vit_base_patch8_224.augreg_in21k_ft_in1k"),
    "vit_l16.augreg_in21k_ft_in1k": _timm("vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "vit_b16.augreg_in21k": _timm("vit_base_patch16_224.augreg_in21k"),
    "vit_l16.augreg_in21k": _timm("vit_large_patch16_224.augreg_in21k"),
    "vit_b16.mae": _timm("vit_base_patch16_224.mae", "cc-by-nc-4.0"),
    "vit_b16.dino": _timm("vit_base_patch16_224.dino"),
    "vit_ti16.deit_in1k": Tag("facebook/deit-tiny-patch16-224", licence="apache-2.0"),
    "vit_s16.deit_in1k": Tag("facebook/deit-small-patch16-224", licence="apache-2.0"),
    "vit_b16.deit_in1k": Tag("facebook/deit-base-patch16-224", licence="apache-2.0"),
    "deit_ti16_distilled.in1k": Tag(
        "facebook/deit-tiny-distilled-patch16-224", licence="apache-2.0"
    ),
    "deit_s16_distilled.in1k": Tag(
        "facebook/deit-small-distilled-patch16-224", licence="apache-2.0"
    ),
    "deit_b16_distilled.in1k": Tag(
        "facebook/deit-base-distilled-patch16-224", licence="apache-2.0"
    ),
}
