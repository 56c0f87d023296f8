"""SigLIP: names of Hugging Face, of open_clip and of the authors' own files (big_vision)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from zoo.card import Preprocess
from zoo.models.siglip import VARIANTS, Config
from zoo.spec import sides
from zoo.weights.convert import (
    DENSE,
    SAME,
    Format,
    Row,
    WeightsError,
    biased_conv,
    dense,
    layer_norm,
    layout,
    linen,
    split,
    stacked,
)
from zoo.weights.facts import check_layers, choice, count, ratio, side, square
from zoo.weights.hub import Tag
from zoo.weights.pictures import open_clip_pictures, processor
from zoo.weights.vit import BIG_VISION, jax_layer

SCAN_START = 0
MODEL_TYPES = ("siglip",)
SCALAR = layout("1", "")
TOKENS = layout("1 n d", "n d")
PROBE = layout("1 1 d", "1 d")


class Names(NamedTuple):
    """What the parts of a layer are called. qkv: of one tensor or several what stands in front of
    "weight", and which of ours it holds."""

    norm1: str
    qkv: tuple[tuple[str, str], ...]
    out: str
    norm2: str
    fc1: str
    fc2: str


HF = Names(
    "layer_norm1",
    (("self_attn.q_proj.", "q"), ("self_attn.k_proj.", "k"), ("self_attn.v_proj.", "v")),
    "self_attn.out_proj",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
)
TIMM = Names("norm1", (("attn.qkv.", "qkv"),), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
OPEN_CLIP = Names(
    "ln_1", (("attn.in_proj_", "qkv"),), "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"
)


def layers(names: Names, theirs: str, ours: str, depth: int) -> list[Row]:
    rows = []
    for i in range(depth):
        layer, block = f"{theirs}.{i}", f"{ours}/block_{i}"
        rows += layer_norm(f"{layer}.{names.norm1}", f"{block}/norm1")
        for name, leaves in names.qkv:
            rows += fused(f"{layer}.{name}", f"{block}/attn", leaves)
        rows += dense(f"{layer}.{names.out}", f"{block}/attn/out")
        rows += layer_norm(f"{layer}.{names.norm2}", f"{block}/norm2")
        rows += dense(f"{layer}.{names.fc1}", f"{block}/mlp/fc1")
        rows += dense(f"{layer}.{names.fc2}", f"{block}/mlp/fc2")
    return rows


def fused(theirs: str, ours: str, leaves: str) -> list[Row]:
    """torch's Linear that is several of ours. theirs: what stands in front of "weight"."""
    kernels, biases = (
        tuple(f"params/{ours}/{leaf}/{kind}" for leaf in leaves) for kind in ("kernel", "bias")
    )
    return [
        Row(f"{theirs}weight", kernels, split(DENSE, len(leaves))),
        Row(f"{theirs}bias", biases, split(SAME, len(leaves))),
    ]


# Hugging Face.


def hf(config: Config) -> list[Row]:
    image, text = "vision_model", "text_model"
    return [
        *biased_conv(f"{image}.embeddings.patch_embedding", "image/embed"),
        Row(f"{image}.embeddings.position_embedding.weight", "params/image/positions"),
        *layers(HF, f"{image}.encoder.layers", "image", config.depth),
        *layer_norm(f"{image}.post_layernorm", "image/norm"),
        *hf_pool(f"{image}.head", "image/pool"),
        Row(f"{text}.embeddings.token_embedding.weight", "params/text/embed/embedding"),
        Row(f"{text}.embeddings.position_embedding.weight", "params/text/positions"),
        *layers(HF, f"{text}.encoder.layers", "text", config.text_depth),
        *layer_norm(f"{text}.final_layer_norm", "text/norm"),
        *dense(f"{text}.head", "text/proj"),
        Row("logit_scale", "params/log_scale", SCALAR),
        Row("logit_bias", "params/bias", SCALAR),
    ]


def hf_pool(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.probe", f"params/{ours}/attn/probe", PROBE),
        *fused(f"{theirs}.attention.in_proj_", f"{ours}/attn", "qkv"),
        *dense(f"{theirs}.attention.out_proj", f"{ours}/attn/out"),
        *layer_norm(f"{theirs}.layernorm", f"{ours}/norm"),
        *dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1"),
        *dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2"),
    ]


GELUS = {"gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu": "erf"}
TOWERS = ("vision_config", "text_config")


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of SiglipConfig, which leaves out what is as in the base model."""
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    image, text = (facts.get(tower) or {} for tower in TOWERS)
    choice(image, "vision_use_head", {True: True}, True)
    for tower in (image, text):
        choice(tower, "attention_dropout", {0.0: 0.0}, 0.0)
    for tower, name in ((image, "vision"), (text, "text")):
        found = count(tensors, name + "_model.encoder.layers.{}.layer_norm1.weight")
        check_layers(tower.get("num_hidden_layers", 12), found)
    gelus = {choice(tower, "hidden_act", GELUS, "gelu_pytorch_tanh") for tower in (image, text)}
    epsilons = {tower.get("layer_norm_eps", 1e-6) for tower in (image, text)}
    for key, found in (("hidden_act", gelus), ("layer_norm_eps", epsilons)):
        if len(found) > 1:
            raise WeightsError(f"config.json: {key} is not the same in {' and '.join(TOWERS)}")
    return Config(
        embed=image.get("hidden_size", 768),
        patch=side(image.get("patch_size", 16)),
        **_tower(image),
        text_width=text.get("hidden_size", 768),
        **{f"text_{key}": value for key, value in _tower(text).items()},
        vocab=text.get("vocab_size", 32_000),
        context=text.get("max_position_embeddings", 64),
        gelu=gelus.pop(),
        epsilon=epsilons.pop(),
        image_size=image.get("image_size", 224),
        in_channels=image.get("num_channels", 3),
    )


def _tower(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "depth": facts.get("num_hidden_layers", 12),
        "heads": facts.get("num_attention_heads", 12),
        "mlp": facts.get("intermediate_size", 3072),
    }


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    height, width = sides(config.image_size)
    if height != width:
        raise WeightsError(
            f"transformers' SigLIP has no pictures of {height}×{width}, only square ones: "
            'save with format="flax"'
        )
    gelus = {"tanh": "gelu_pytorch_tanh", "erf": "gelu"}
    both = {
        "hidden_act": gelus[config.gelu],
        "layer_norm_eps": config.epsilon,
        "attention_dropout": 0.0,
    }
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": config.embed,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": config.mlp,
            "image_size": height,
            "patch_size": config.patch,
            "num_channels": config.in_channels,
            **both,
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "hidden_size": config.text_width,
            "num_hidden_layers": config.text_depth,
            "num_attention_heads": config.text_heads,
            "intermediate_size": config.text_mlp,
            "projection_size": config.embed,
            "vocab_size": config.vocab,
            "max_position_embeddings": config.context,
            **both,
        },
    }


def hf_sizes(known: Preprocess) -> dict[str, Any] | None:
    """What SiglipImageProcessor resizes to; None where the shape is kept or something cut off,
    which it has no words for."""
    height, width = sides(known.size)
    squashed = (known.mode, known.crop) == ("squash", 1)
    return {"size": {"height": height, "width": width}} if squashed else None


# big_vision: github.com/google-research/big_vision, read and run at 0127fb6 (models/vit.py,
# models/proj/image_text/two_towers.py and text_transformer.py). GELU is the tanh approximation,
# positions are resized by `scipy.ndimage.zoom` of order 1; the files state neither. With
# `scan=True` each tensor of the layers is one of all layers.


LAYER = "encoderblock_{}"
IMAGE, TEXT = "params/img/Transformer/", "params/txt/Encoder_0/"
MAP = "params/img/MAPHead_0"


def big_vision(blocks: Callable[..., list[Row]], config: Config) -> list[Row]:
    return [
        *linen("params/img/embedding", "image/embed", "kernel", "bias"),
        Row("params/img/pos_embedding", "params/image/positions", TOKENS),
        *blocks(IMAGE, "image", config.depth, config.heads),
        *linen(f"{IMAGE}encoder_norm", "image/norm", "scale", "bias"),
        *big_vision_pool(config.heads),
        *linen("params/txt/Embed_0", "text/embed", "embedding"),
        Row("params/txt/pos_embedding", "params/text/positions", TOKENS),
        *blocks(TEXT, "text", config.text_depth, config.text_heads),
        *linen(f"{TEXT}encoder_norm", "text/norm", "scale", "bias"),
        *linen("params/txt/head", "text/proj", "kernel", "bias"),
        Row("params/t", "params/log_scale", SCALAR),
        Row("params/b", "params/bias", SCALAR),
    ]


def big_vision_pool(heads: int) -> list[Row]:
    """A layer whose attention has a probe, and no norm in front of it."""
    ours = {"norm1": "norm"}
    rows = [Row(f"{MAP}/probe", "params/image/pool/attn/probe", PROBE)]
    for name, leaf, op in jax_layer(BIG_VISION._replace(layer=MAP), heads):
        part, _, rest = leaf.partition("/")
        rows.append(Row(name, f"params/image/pool/{ours.get(part, part)}/{rest}", op))
    return rows


def loop(theirs: str, ours: str, depth: int, heads: int) -> list[Row]:
    return [
        Row(name.format(i), f"params/{ours}/block_{i}/{leaf}", op)
        for i in range(depth)
        for name, leaf, op in jax_layer(BIG_VISION._replace(layer=theirs + LAYER), heads)
    ]


def scan(theirs: str, ours: str, depth: int, heads: int) -> list[Row]:
    names = BIG_VISION._replace(layer=f"{theirs}encoderblock")
    return [
        Row(name, tuple(f"params/{ours}/block_{i}/{leaf}" for i in range(depth)), stacked(op))
        for name, leaf, op in jax_layer(names, heads)
    ]


def big_vision_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes alone."""
    patch, across, channels, embed = tensors["params/img/embedding/kernel"].shape
    vocab, width = tensors["params/txt/Embed_0/embedding"].shape
    patch = side([patch, across])
    return Config(
        embed=embed,
        patch=patch,
        **_big_vision_tower(tensors, IMAGE),
        text_width=width,
        **{f"text_{key}": value for key, value in _big_vision_tower(tensors, TEXT).items()},
        vocab=vocab,
        context=tensors["params/txt/pos_embedding"].shape[1],
        positions="linear",
        image_size=square(tensors["params/img/pos_embedding"].shape[1], patch),
        in_channels=channels,
    )


def _big_vision_tower(tensors: Mapping[str, Any], theirs: str) -> dict[str, Any]:
    scanned = f"{theirs}encoderblock/LayerNorm_0/scale" in tensors
    layer = theirs + ("encoderblock" if scanned else LAYER.format(0))
    *depth, heads, _ = tensors[f"{layer}/MultiHeadDotProductAttention_0/query/bias"].shape
    return {
        "depth": depth[0] if scanned else count(tensors, f"{theirs}{LAYER}/LayerNorm_0/scale"),
        "heads": heads,
        "mlp": tensors[f"{layer}/MlpBlock_0/Dense_0/bias"].shape[-1],
    }


# open_clip, whose picture tower is one of timm's by its name, which fixes all sizes of it.


def open_clip(config: Config) -> list[Row]:
    image = "visual.trunk"
    return [
        *biased_conv(f"{image}.patch_embed.proj", "image/embed"),
        Row(f"{image}.pos_embed", "params/image/positions", TOKENS),
        *layers(TIMM, f"{image}.blocks", "image", config.depth),
        *layer_norm(f"{image}.norm", "image/norm"),
        *timm_pool(f"{image}.attn_pool", "image/pool"),
        Row("text.token_embedding.weight", "params/text/embed/embedding"),
        Row("text.positional_embedding", "params/text/positions"),
        *layers(OPEN_CLIP, "text.transformer.resblocks", "text", config.text_depth),
        *layer_norm("text.ln_final", "text/norm"),
        *dense("text.text_projection", "text/proj"),
        Row("logit_scale", "params/log_scale"),
        Row("logit_bias", "params/bias"),
    ]


def timm_pool(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.latent", f"params/{ours}/attn/probe", PROBE),
        *dense(f"{theirs}.q", f"{ours}/attn/q"),
        *fused(f"{theirs}.kv.", f"{ours}/attn", "kv"),
        *dense(f"{theirs}.proj", f"{ours}/attn/out"),
        *layer_norm(f"{theirs}.norm", f"{ours}/norm"),
        *dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1"),
        *dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2"),
    ]


TRUNKS = {  # of timm, the variant whose picture tower it is
    "vit_base_patch16_siglip_224": "siglip_b16",
    "vit_base_patch16_siglip_256": "siglip_b16_256",
    "vit_base_patch16_siglip_384": "siglip_b16_384",
    "vit_base_patch16_siglip_512": "siglip_b16_512",
    "vit_large_patch16_siglip_256": "siglip_l16_256",
    "vit_large_patch16_siglip_384": "siglip_l16_384",
    "vit_so400m_patch14_siglip_224": "siglip_so400m14",
    "vit_so400m_patch14_siglip_384": "siglip_so400m14_384",
}
TOWER = ("embed", "patch", "depth", "heads", "mlp", "image_size", "in_channels")
VISION = {"timm_pool": "map", "timm_proj": "none"}
# Without act_kwargs its GELU is exact, in both towers, though the authors trained with another.
TEXTS = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "act_kwargs": None}
EPSILON = 1e-6


def open_clip_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `open_clip_config.json`."""
    stated = facts.get("model_cfg") or {}
    if not stated:
        raise WeightsError("these names need the open_clip_config.json that belongs to them")
    image, text = stated["vision_cfg"], stated["text_cfg"]
    variant = choice(image, "timm_model_name", TRUNKS, None)
    for tower, fixed in ((image, VISION), (text, TEXTS)):
        for key, value in fixed.items():
            if tower.get(key) != value:
                raise WeightsError(
                    f"open_clip_config.json: {key} is {tower.get(key)!r}, "
                    f"only {value!r} is supported"
                )
    choice(text.get("norm_kwargs") or {}, "eps", {EPSILON: EPSILON}, 1e-5)
    check_layers(text["layers"], count(tensors, "text.transformer.resblocks.{}.ln_1.weight"))
    known = VARIANTS[variant].config
    return Config(
        **_tower_of(known),
        text_width=text["width"],
        text_depth=text["layers"],
        text_heads=text["heads"],
        text_mlp=tensors["text.transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
        vocab=text["vocab_size"],
        context=text["context_length"],
        gelu="erf",
        epsilon=EPSILON,
        positions="antialias",
    )


def _tower_of(config: Config) -> dict[str, Any]:
    return {key: getattr(config, key) for key in TOWER}


def open_clip_facts(config: Config, card: Any) -> dict[str, Any]:
    sizes = {name: VARIANTS[variant].config for name, variant in TRUNKS.items()}
    names = [name for name, known in sizes.items() if _tower_of(known) == _tower_of(config)]
    if not names:
        raise WeightsError(
            "open_clip makes a SigLIP's picture tower by timm's name of its size, and none is of "
            'this size: save with format="hf" or "flax"'
        )
    text = {
        "context_length": config.context,
        "vocab_size": config.vocab,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_depth,
        "mlp_ratio": ratio(config.text_mlp, config.text_width),
        **{key: value for key, value in TEXTS.items() if value is not None},
        "norm_kwargs": {"eps": EPSILON},
    }
    pictures = open_clip_pictures(config, card)
    return {
        "model_cfg": {
            "embed_dim": config.embed,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": config.image_size,
                "timm_model_name": names[0],
                "timm_model_pretrained": False,
                **VISION,
            },
            "text_cfg": text,
        },
        **({"preprocess_cfg": pictures} if pictures else {}),
    }


# What is left to say of a model that computes the same without: how it is run, trained or resized.
LOST = ("layers", "remat", "patch_dropout", "positions")


def _big_vision(blocks: Callable[..., list[Row]], layer: str) -> Format:
    return Format(
        rows=partial(big_vision, blocks),
        marker=f"{IMAGE}{layer}/LayerNorm_1/scale",
        ignored=(),
        config=big_vision_config,
        lost=LOST,
        prefix="params/",
        file="model.npz",
    )


FORMATS = {
    "hf": Format(
        rows=hf,
        marker="vision_model.head.probe",
        # 0, 1, 2, …, where a file has them.
        ignored=(r"(vision|text)_model\.embeddings\.position_ids",),
        config=hf_config,
        facts=hf_facts,
        lost=LOST,
        texts=partial(processor, "Siglip", hf_sizes),
    ),
    "open_clip": Format(
        rows=open_clip,
        marker="visual.trunk.attn_pool.latent",
        ignored=(),
        config=open_clip_config,
        facts=open_clip_facts,
        lost=LOST,
        file="open_clip_model.safetensors",
        facts_file="open_clip_config.json",
    ),
    "big_vision": _big_vision(loop, LAYER.format(0)),
    "big_vision_scan": _big_vision(scan, "encoderblock"),
}


def _google(name: str) -> Tag:
    return Tag(f"google/siglip-{name}", licence="apache-2.0")


TAGS = {
    "siglip_b16.webli": _google("base-patch16-224"),
    "siglip_b16_256.webli": _google("base-patch16-256"),
    "siglip_b16_384.webli": _google("base-patch16-384"),
    "siglip_b16_512.webli": _google("base-patch16-512"),
    "siglip_l16_256.webli": _google("large-patch16-256"),
    "siglip_l16_384.webli": _google("large-patch16-384"),
    "siglip_so400m14.webli": _google("so400m-patch14-224"),
    "siglip_so400m14_384.webli": _google("so400m-patch14-384"),
}
