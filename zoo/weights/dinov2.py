"""DINOv2, with and without registers: names of Hugging Face, timm and Meta's own files."""

from collections.abc import Mapping
from typing import Any

from zoo.models.dinov2 import Config
from zoo.weights.convert import (
    DENSE,
    SAME,
    Format,
    Row,
    WeightsError,
    biased_conv,
    check_architecture,
    dense,
    layer_norm,
    layout,
    split,
)
from zoo.weights.facts import (
    NO_EMBED_CLASS,
    check_depth,
    choice,
    hf_classes,
    labels,
    read_facts,
    timm_args,
    timm_attention,
    timm_classes,
    timm_model_args,
    timm_sizes,
    timm_vit_json,
    write_facts,
)
from zoo.weights.hub import Tag

SCAN_START = 0
MODEL_TYPES = ("dinov2", "dinov2_with_registers")
TOKEN = layout("1 1 d", "d")
TOKENS = layout("1 n d", "n d")
MASK = layout("1 d", "d")


# Hugging Face. The names are those of files: transformers 5 has others in memory, and saves these.


def hf(config: Config) -> list[Row]:
    """A base model's names have no prefix."""
    base = f"{_kind(config)}." if config.num_classes else ""
    rows = [
        Row(f"{base}embeddings.cls_token", "params/class_token", TOKEN),
        Row(f"{base}embeddings.mask_token", "params/mask_token", MASK),
        Row(f"{base}embeddings.register_tokens", "params/registers", TOKENS),
        Row(f"{base}embeddings.position_embeddings", "params/positions", TOKENS),
        *biased_conv(f"{base}embeddings.patch_embeddings.projection", "embed"),
    ]
    for i in range(config.depth):
        theirs, ours = f"{base}encoder.layer.{i}", f"block_{i}"
        rows += layer_norm(f"{theirs}.norm1", f"{ours}/norm1")
        for name, leaf in (("query", "q"), ("key", "k"), ("value", "v")):
            rows += dense(f"{theirs}.attention.attention.{name}", f"{ours}/attn/{leaf}")
        rows += dense(f"{theirs}.attention.output.dense", f"{ours}/attn/out")
        rows.append(Row(f"{theirs}.layer_scale1.lambda1", f"params/{ours}/scale1"))
        rows += layer_norm(f"{theirs}.norm2", f"{ours}/norm2")
        rows += feed_forward(
            f"{theirs}.mlp", f"{ours}/mlp", config.ffn, "weights_in", "weights_out"
        )
        rows.append(Row(f"{theirs}.layer_scale2.lambda1", f"params/{ours}/scale2"))
    return [*rows, *layer_norm(f"{base}layernorm", "norm"), *dense("classifier", "head")]


def feed_forward(theirs: str, ours: str, ffn: str, into: str, out: str) -> list[Row]:
    """fc1 and fc2 of an MLP. Of a SwiGLU the gate and what it opens are one tensor, `into`."""
    if ffn == "mlp":
        return [*dense(f"{theirs}.fc1", f"{ours}/fc1"), *dense(f"{theirs}.fc2", f"{ours}/fc2")]
    kernels = (f"params/{ours}/gate/kernel", f"params/{ours}/up/kernel")
    biases = (f"params/{ours}/gate/bias", f"params/{ours}/up/bias")
    return [
        Row(f"{theirs}.{into}.weight", kernels, split(DENSE, 2)),
        Row(f"{theirs}.{into}.bias", biases, split(SAME, 2)),
        *dense(f"{theirs}.{out}", f"{ours}/down"),
    ]


def _kind(config: Config) -> str:
    return "dinov2_with_registers" if config.registers else "dinov2"


CLASSES = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
# transformers resizes the positions of a model with registers by the antialiased kernel
# (modeling_dinov2_with_registers.py, interpolate_pos_encoding), of one without by the plain one.
KERNELS: Mapping[str, Any] = {"dinov2": "bicubic", "dinov2_with_registers": "antialias"}
FIXED = {"hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of Dinov2Config or Dinov2WithRegistersConfig; the head, the registers and
    the hidden width from the tensors."""
    stated = read_facts({"patch_size": 14, **facts} if facts else facts, FIXED)
    kind = choice(facts, "model_type", {name: name for name in MODEL_TYPES}, None)
    check_depth(tensors, facts)
    classes = hf_classes(tensors, facts, "classifier.bias")
    base = f"{kind}." if classes else ""
    swiglu = facts.get("use_swiglu_ffn", False)
    into, halves = ("weights_in", 2) if swiglu else ("fc1", 1)
    return Config(
        **stated,
        ffn="swiglu" if swiglu else "mlp",
        hidden=tensors[f"{base}encoder.layer.0.mlp.{into}.bias"].shape[0] // halves,
        registers=tokens(tensors, f"{base}embeddings.register_tokens"),
        mask_token=f"{base}embeddings.mask_token" in tensors,
        epsilon=facts.get("layer_norm_eps", 1e-6),
        positions=KERNELS[kind],
        drop_path=facts.get("drop_path_rate", 0.0),
        num_classes=classes,
    )


def tokens(tensors: Mapping[str, Any], name: str) -> int:
    """How many tokens [1, n, d] a tensor holds, 0 where there is none."""
    return tensors[name].shape[1] if name in tensors else 0


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    kind = _kind(config)
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    if config.registers and not config.mask_token:
        raise WeightsError("transformers' DINOv2 with registers has a mask token, this model none")
    return {
        "architectures": [
            CLASSES[kind] + ("ForImageClassification" if config.num_classes else "Model")
        ],
        "model_type": kind,
        **write_facts(config),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "mlp_ratio": mlp_ratio(config),
        "use_swiglu_ffn": config.ffn == "swiglu",
        "use_mask_token": config.mask_token,
        "drop_path_rate": config.drop_path,
        **registers,
        **labels(config.num_classes, card),
    }


def mlp_ratio(config: Config) -> int:
    """The whole number from which transformers takes this hidden width: times the width, and of a
    SwiGLU 2/3 of it, rounded up to eights. Raises WeightsError where there is none."""
    for ratio in range(1, 65):
        hidden = ratio * config.width
        if config.ffn == "swiglu":
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        if hidden == config.hidden:
            return ratio
    raise WeightsError(
        f"transformers' DINOv2 has no hidden width {config.hidden} at width {config.width}: "
        'save with format="flax"'
    )


# timm and Meta.


def timm(config: Config) -> list[Row]:
    """With registers the positions are those of the patches alone."""
    rows = [
        Row("cls_token", "params/class_token", TOKEN),
        Row("pos_embed", "params/positions", TOKENS),
    ]
    if config.registers:
        ours = ("params/class_token", "params/positions")
        registers = Row("reg_token", "params/registers", TOKENS)
        rows = [Row(("cls_token", "pos_embed"), ours, NO_EMBED_CLASS), registers]
    return [*rows, *layers(config, "fc1", "fc2")]


def meta(config: Config) -> list[Row]:
    """github.com/facebookresearch/dinov2: dinov2_vits14_pretrain.pth."""
    return [
        Row("cls_token", "params/class_token", TOKEN),
        Row("mask_token", "params/mask_token", MASK),
        Row("register_tokens", "params/registers", TOKENS),
        Row("pos_embed", "params/positions", TOKENS),
        *layers(config, "w12", "w3"),
    ]


def layers(config: Config, into: str, out: str) -> list[Row]:
    """What timm and Meta name alike. into, out: the two tensors of a SwiGLU."""
    rows = biased_conv("patch_embed.proj", "embed")
    for i in range(config.depth):
        theirs, ours = f"blocks.{i}", f"block_{i}"
        rows += layer_norm(f"{theirs}.norm1", f"{ours}/norm1")
        rows += timm_attention(f"{theirs}.attn", f"{ours}/attn")
        rows.append(Row(f"{theirs}.ls1.gamma", f"params/{ours}/scale1"))
        rows += layer_norm(f"{theirs}.norm2", f"{ours}/norm2")
        rows += feed_forward(f"{theirs}.mlp", f"{ours}/mlp", config.ffn, into, out)
        rows.append(Row(f"{theirs}.ls2.gamma", f"params/{ours}/scale2"))
    return [*rows, *layer_norm("norm", "norm")]


# Of `model_args` what this file reads, and what changes nothing that is computed from pictures of
# the right size.
READ = (
    "img_size patch_size in_chans num_classes embed_dim depth num_heads mlp_ratio qkv_bias "
    "init_values reg_tokens drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate "
    "drop_path_rate weight_init fix_init dynamic_img_size strict_img_size"
).split()


def timm_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes, and the heads and a rectangular image from `config.json`."""
    check_architecture(facts, r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2")
    registers = tokens(tensors, "reg_token")
    timm_args(facts, READ, {"global_pool": ("token",), "no_embed_class": (bool(registers),)})
    if timm_classes(tensors, facts):
        raise WeightsError("a head on timm's DINOv2 reads the class token alone: not supported")
    into, hidden = (tensors[f"blocks.0.mlp.fc{i}.weight"].shape[i - 1] for i in (1, 2))
    return Config(
        **timm_sizes(tensors, facts, prefix=0 if registers else 1),
        ffn="mlp" if into == hidden else "swiglu",
        hidden=hidden,
        registers=registers,
        mask_token=False,
    )


def timm_facts(config: Config, card: Any) -> dict[str, Any]:
    """What `timm.create_model("local-dir:PATH", pretrained=True)` needs, whatever the sizes are.
    The feed-forward is that of the architecture; SwiGLU's hidden width counts both halves."""
    size, halves = {"mlp": ("small", 1), "swiglu": ("giant", 2)}[config.ffn]
    reg = "_reg4" if config.registers else ""
    registers = {"reg_tokens": config.registers} if config.registers else {}
    args = {**timm_model_args(config, halves * config.hidden), **registers}
    return timm_vit_json(f"vit_{size}_patch14{reg}_dinov2", config, args, "token", "head", card)


def meta_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes; the heads are those of the published width."""
    registers = tokens(tensors, "register_tokens")
    swiglu = "blocks.0.mlp.w3.weight" in tensors
    out = "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight"
    kernel = {"positions": "antialias" if registers else "bicubic"}
    return Config(
        **{**timm_sizes(tensors, facts, prefix=1), **kernel},
        ffn="swiglu" if swiglu else "mlp",
        hidden=tensors[out].shape[1],
        registers=registers,
        mask_token="mask_token" in tensors,
    )


def meta_facts(config: Config, card: Any) -> dict[str, Any]:
    """Meta's files stand alone. This is for `meta_config`, where a width was never published."""
    return {"model_args": {"num_heads": config.heads, "img_size": config.image_size}}


# What is left to say of a model that computes the same without: how it is run, trained or resized.
LOST = ("layers", "remat", "positions")
BASES = ("", *(f"{kind}." for kind in MODEL_TYPES))
FORMATS = {
    "hf": Format(
        rows=hf,
        marker=tuple(f"{base}encoder.layer.0.layer_scale1.lambda1" for base in BASES),
        ignored=(),
        config=hf_config,
        facts=hf_facts,
        lost=LOST,
    ),
    "timm": Format(
        rows=timm,
        marker="blocks.0.ls1.gamma",
        ignored=(),
        config=timm_config,
        facts=timm_facts,
        lost=(*LOST, "drop_path"),
        absent=("mask_token",),
    ),
    "meta": Format(
        rows=meta,
        marker="mask_token",
        ignored=(),
        config=meta_config,
        facts=meta_facts,
        lost=(*LOST, "drop_path"),
    ),
}
SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
TAGS = {
    f"dinov2_{letter}14{reg}.lvd142m": Tag(f"facebook/dinov2{long}-{size}", licence="apache-2.0")
    for letter, size in SIZES.items()
    for reg, long in (("", ""), ("_reg", "-with-registers"))
}
