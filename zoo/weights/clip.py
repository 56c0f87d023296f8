"""CLIP: names of Hugging Face, and those of OpenAI, which open_clip's own models have too."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from zoo.card import Preprocess
from zoo.models.clip import Config
from zoo.preprocess import CONVENTIONS
from zoo.spec import sides
from zoo.weights.convert import (
    DENSE,
    SAME,
    Format,
    Row,
    WeightsError,
    conv,
    counters,
    dense,
    layer_norm,
    norm,
    split,
)
from zoo.weights.facts import check_layers, choice, count, number, ratio, side, size, square
from zoo.weights.hub import Tag
from zoo.weights.pictures import open_clip_pictures, processor

logger = logging.getLogger("zoo")
SCAN_START = 0
MODEL_TYPES = ("clip",)
EOS = Config.eos  # of CLIP's tokenizer


# Hugging Face.


def hf(config: Config) -> list[Row]:
    if config.stages:
        raise WeightsError("transformers' CLIP has no ResNet: save with format='openai'")
    image, text = "vision_model", "text_model"
    return [
        Row(f"{image}.embeddings.class_embedding", "params/image/class_token"),
        conv(f"{image}.embeddings.patch_embedding", "image/embed"),
        Row(f"{image}.embeddings.position_embedding.weight", "params/image/positions"),
        *layer_norm(f"{image}.pre_layrnorm", "image/norm_pre"),
        *hf_layers(image, "image", config.depth),
        *layer_norm(f"{image}.post_layernorm", "image/norm"),
        *dense("visual_projection", "image/proj", bias=False),
        Row(f"{text}.embeddings.token_embedding.weight", "params/text/embed/embedding"),
        Row(f"{text}.embeddings.position_embedding.weight", "params/text/positions"),
        *hf_layers(text, "text", config.text_depth),
        *layer_norm(f"{text}.final_layer_norm", "text/norm"),
        *dense("text_projection", "text/proj", bias=False),
        Row("logit_scale", "params/log_scale"),
    ]


def hf_layers(theirs: str, ours: str, depth: int) -> list[Row]:
    rows = []
    for i in range(depth):
        layer, block = f"{theirs}.encoder.layers.{i}", f"{ours}/block_{i}"
        rows += layer_norm(f"{layer}.layer_norm1", f"{block}/norm1")
        for name in ("q", "k", "v", "out"):
            rows += dense(f"{layer}.self_attn.{name}_proj", f"{block}/attn/{name}")
        rows += layer_norm(f"{layer}.layer_norm2", f"{block}/norm2")
        rows += dense(f"{layer}.mlp.fc1", f"{block}/mlp/fc1")
        rows += dense(f"{layer}.mlp.fc2", f"{block}/mlp/fc2")
    return rows


GELUS = {
    "quick_gelu": "quick",
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
DROPOUTS = {"attention_dropout": 0.0, "dropout": 0.0}  # what this page has not
# What transformers takes where a file is silent; both towers have what stands in BOTH.
BOTH = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
DEFAULTS = {
    "text_config": {
        **BOTH,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "eos_token_id": EOS,
    },
    "vision_config": {
        **BOTH,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
    },
}
# transformers pools as OpenAI where a file names this id, which older files do wrongly
# (modeling_clip.py, CLIPTextModel.forward; transformers' pull request 24773).
OLD_EOS = 2


def hf_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From `config.json` of CLIPConfig in its old and new forms."""
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    text, vision = _tower(facts, "text_config"), _tower(facts, "vision_config")
    for tower, name in ((text, "text_model"), (vision, "vision_model")):
        found = count(tensors, f"{name}.encoder.layers.{{}}.layer_norm1.weight")
        check_layers(tower["num_hidden_layers"], found)
        for key, value in DROPOUTS.items():
            choice(tower, key, {value: value}, value)
    for key in ("hidden_act", "layer_norm_eps"):
        if text[key] != vision[key]:
            raise WeightsError(
                f"config.json: {key} is {text[key]!r} for texts and {vision[key]!r} for pictures: "
                "one for both is supported"
            )
    eos = number(text, "eos_token_id", None)
    image_size: Any = size(vision["image_size"])
    return Config(
        embed=facts.get("projection_dim", 512),
        patch=side(vision["patch_size"]),
        width=vision["hidden_size"],
        heads=vision["num_attention_heads"],
        depth=vision["num_hidden_layers"],
        mlp=vision["intermediate_size"],
        text_width=text["hidden_size"],
        text_depth=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_mlp=text["intermediate_size"],
        vocab=text["vocab_size"],
        context=text["max_position_embeddings"],
        end="argmax" if eos == OLD_EOS else "id",
        eos=EOS if eos == OLD_EOS else eos,
        gelu=choice(text, "hidden_act", GELUS, None),
        epsilon=text["layer_norm_eps"],
        image_size=image_size,
        in_channels=vision["num_channels"],
    )


def _tower(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What a file says of one tower. Files of 2022 say it twice, the second time in `…_dict` and
    only where it is no default; transformers believes that one."""
    again = facts.get(f"{key}_dict")
    return DEFAULTS[key] | ((facts.get(key) or {}) if again is None else again)


def hf_facts(config: Config, card: Any) -> dict[str, Any]:
    gelus = {ours: theirs for theirs, ours in GELUS.items()}
    both = {
        "hidden_act": gelus[config.gelu],
        "layer_norm_eps": config.epsilon,
        "attention_dropout": 0.0,
        "projection_dim": config.embed,
    }
    text = {
        "model_type": "clip_text_model",
        "hidden_size": config.text_width,
        "intermediate_size": config.text_mlp,
        "num_hidden_layers": config.text_depth,
        "num_attention_heads": config.text_heads,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "eos_token_id": OLD_EOS if config.end == "argmax" else config.eos,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_channels": config.in_channels,
        "image_size": config.image_size,
        "patch_size": config.patch,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed,
        "text_config": text | both,
        "vision_config": vision | both,
    }


def hf_sizes(known: Preprocess) -> dict[str, Any] | None:
    """What CLIPImageProcessor resizes to and cuts out; None for a rectangle in a picture that keeps
    its shape, which it has no words for."""
    cut, enlarged = sides(known.size), CONVENTIONS[known.convention].enlarged
    height, width = (enlarged(x / known.crop) for x in cut)
    stated = {"height": height, "width": width}
    if known.mode == "crop":
        if cut[0] != cut[1]:
            return None
        stated = {"shortest_edge": height}
    return {
        "size": stated,
        "do_center_crop": True,
        "crop_size": {"height": cut[0], "width": cut[1]},
    }


# OpenAI and open_clip.


def openai(config: Config) -> list[Row]:
    return [
        *(openai_resnet(config) if config.stages else openai_vit(config)),
        Row("token_embedding.weight", "params/text/embed/embedding"),
        Row("positional_embedding", "params/text/positions"),
        *openai_layers("transformer", "text", config.text_depth),
        *layer_norm("ln_final", "text/norm"),
        Row("text_projection", "params/text/proj/kernel"),  # [in, out], as ours
        Row("logit_scale", "params/log_scale"),
    ]


def openai_vit(config: Config) -> list[Row]:
    return [
        Row("visual.class_embedding", "params/image/class_token"),
        conv("visual.conv1", "image/embed"),
        Row("visual.positional_embedding", "params/image/positions"),
        *layer_norm("visual.ln_pre", "image/norm_pre"),
        *openai_layers("visual.transformer", "image", config.depth),
        *layer_norm("visual.ln_post", "image/norm"),
        Row("visual.proj", "params/image/proj/kernel"),
    ]


def openai_layers(theirs: str, ours: str, depth: int) -> list[Row]:
    rows = []
    for i in range(depth):
        layer, block = f"{theirs}.resblocks.{i}", f"{ours}/block_{i}"
        kernels, biases = (
            tuple(f"params/{block}/attn/{name}/{leaf}" for name in "qkv")
            for leaf in ("kernel", "bias")
        )
        rows += layer_norm(f"{layer}.ln_1", f"{block}/norm1")
        rows.append(Row(f"{layer}.attn.in_proj_weight", kernels, split(DENSE, 3)))
        rows.append(Row(f"{layer}.attn.in_proj_bias", biases, split(SAME, 3)))
        rows += dense(f"{layer}.attn.out_proj", f"{block}/attn/out")
        rows += layer_norm(f"{layer}.ln_2", f"{block}/norm2")
        rows += dense(f"{layer}.mlp.c_fc", f"{block}/mlp/fc1")
        rows += dense(f"{layer}.mlp.c_proj", f"{block}/mlp/fc2")
    return rows


def openai_resnet(config: Config) -> list[Row]:
    rows = _convs("visual", "image/stem")
    for stage, depth in enumerate(config.stages, start=1):
        for i in range(depth):
            theirs = f"visual.layer{stage}.{i}"
            ours = f"image/stage{stage}/" + (f"block_{i - 1}" if i else "first")
            rows += _convs(theirs, ours)
            if i == 0:
                rows.append(conv(f"{theirs}.downsample.0", f"{ours}/shortcut_conv"))
                rows += norm(f"{theirs}.downsample.1", f"{ours}/shortcut_norm")
    rows.append(Row("visual.attnpool.positional_embedding", "params/image/pool/positions"))
    for name, leaf in (("q", "q"), ("k", "k"), ("v", "v"), ("c", "out")):
        rows += dense(f"visual.attnpool.{name}_proj", f"image/pool/{leaf}")
    return rows


def _convs(theirs: str, ours: str) -> list[Row]:
    """The three convolutions of a stem or a bottleneck, each with its norm."""
    rows = []
    for i in (1, 2, 3):
        rows.append(conv(f"{theirs}.conv{i}", f"{ours}/conv{i}"))
        rows += norm(f"{theirs}.bn{i}", f"{ours}/norm{i}")
    return rows


# Of `open_clip_config.json` what this file reads, and what changes nothing that is computed here.
READ = {
    "model_cfg": "embed_dim vision_cfg text_cfg quick_gelu init_logit_scale",
    "vision_cfg": "layers width head_width mlp_ratio patch_size image_size patch_dropout "
    "attn_pooler_queries attn_pooler_heads final_ln_after_pool output_tokens",
    "text_cfg": "layers width heads mlp_ratio context_length vocab_size pool_type eos_id pad_id "
    "hf_tokenizer_name tokenizer_mode tokenizer_kwargs output_tokens",
}
NAMED = (("pos_embed_type", "learnable"), ("pool_type", "tok"), ("proj_type", "linear"))
POOLS = {"argmax": "argmax", "eos": "id"}
HEAD = 64  # channels of a head, where nothing states them
TEXT_HEADS = 8  # where an open_clip_config.json does not state them (CLIPTextCfg)


def openai_config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Config:
    """From the names and shapes, and from `open_clip_config.json` what they do not show: heads,
    GELU, pooling, a rectangular image. Without one all is as in OpenAI's models."""
    if not facts:
        logger.warning(
            "no open_clip_config.json: heads of %d channels and QuickGELU, as in OpenAI's", HEAD
        )
    model = _stated(facts, "model_cfg")
    vision, text = _stated(model, "vision_cfg"), _stated(model, "text_cfg")
    vocab, width = tensors["token_embedding.weight"].shape
    end = choice(text, "pool_type", POOLS, "argmax")
    resnet = "visual.attnpool.positional_embedding" in tensors
    tower = _resnet_sizes(tensors, vision) if resnet else _vit_sizes(tensors, vision)
    return Config(
        embed=tensors["text_projection"].shape[1],
        **tower,
        text_width=width,
        text_depth=count(tensors, "transformer.resblocks.{}.ln_1.weight"),
        text_heads=text.get("heads", TEXT_HEADS if facts else width // HEAD),
        text_mlp=tensors["transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
        vocab=vocab,
        context=tensors["positional_embedding"].shape[0],
        end=end,
        eos=text.get("eos_id", 2) if end == "id" else EOS,
        gelu="quick" if model.get("quick_gelu", not facts) else "erf",
        positions="antialias",
        in_channels=tensors["visual.conv1.weight"].shape[1],
    )


def _stated(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of the file. Raises WeightsError for what is switched on there and not read here."""
    found = facts.get(key) or {}
    for name, value in found.items():
        if value and name not in READ[key].split() and (name, value) not in NAMED:
            raise WeightsError(f"open_clip_config.json: {key} has {name}={value!r}: not supported")
    return found


def _vit_sizes(tensors: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    width, _, patch, across = tensors["visual.conv1.weight"].shape
    patch, patches = side([patch, across]), tensors["visual.positional_embedding"].shape[0] - 1
    return {
        "patch": patch,
        "width": width,
        "heads": width // vision.get("head_width", HEAD),
        "depth": count(tensors, "visual.transformer.resblocks.{}.ln_1.weight"),
        "mlp": tensors["visual.transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
        "patch_dropout": vision.get("patch_dropout", 0.0),
        "image_size": _image(vision, patches, patch),
    }


def _resnet_sizes(tensors: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    stages: list[int] = []
    while f"visual.layer{len(stages) + 1}.0.conv1.weight" in tensors:
        stages.append(count(tensors, f"visual.layer{len(stages) + 1}.{{}}.conv1.weight"))
    places, features = tensors["visual.attnpool.positional_embedding"].shape
    patch = 2 ** (len(stages) + 1)
    return {
        "patch": patch,
        "width": tensors["visual.conv3.weight"].shape[0],
        "heads": features // vision.get("head_width", HEAD),
        "stages": tuple(stages),
        "image_size": _image(vision, places - 1, patch),
    }


def _image(vision: Mapping[str, Any], patches: int, patch: int) -> Any:
    """As the file states it, if it has as many patches; else of a square image."""
    stated: Any = size(vision.get("image_size", 0))
    height, width = sides(stated)
    fits = (height // patch) * (width // patch) == patches
    return stated if fits else square(patches, patch)


def open_clip_facts(config: Config, card: Any) -> dict[str, Any]:
    """What `open_clip.create_model("local-dir:PATH")` needs, whatever the sizes are."""
    if config.in_channels != 3 or len(config.stages) not in (0, 4):
        raise WeightsError(
            "open_clip's CLIP has pictures of 3 channels, and a ResNet of 4 stages: "
            'save with format="flax"'
        )
    vit = {
        "layers": config.depth,
        "patch_size": config.patch,
        "mlp_ratio": ratio(config.mlp, config.width),
        "patch_dropout": config.patch_dropout,
    }
    vision = {
        "image_size": config.image_size,
        "width": config.width,
        "head_width": config.features // config.heads,
        **({"layers": list(config.stages), "patch_size": None} if config.stages else vit),
    }
    text = {
        "context_length": config.context,
        "vocab_size": config.vocab,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_depth,
        "mlp_ratio": ratio(config.text_mlp, config.text_width),
        **({"pool_type": "eos", "eos_id": config.eos} if config.end == "id" else {}),
    }
    return {
        "model_cfg": {
            "embed_dim": config.embed,
            "quick_gelu": config.gelu == "quick",
            "vision_cfg": vision,
            "text_cfg": text,
        },
        "preprocess_cfg": open_clip_pictures(config, card),
    }


# What is left to say of a model that computes the same without: how it is run, trained or resized.
LOST = ("layers", "remat", "positions")
FORMATS = {
    "hf": Format(
        rows=hf,
        marker="vision_model.pre_layrnorm.weight",
        # 0, 1, 2, …: in files of transformers before 4.31.
        ignored=(r"(vision|text)_model\.embeddings\.position_ids",),
        config=hf_config,
        facts=hf_facts,
        lost=(*LOST, "patch_dropout"),
        texts=partial(processor, "CLIP", hf_sizes),
    ),
    "openai": Format(
        rows=openai,
        marker=("visual.class_embedding", "visual.attnpool.positional_embedding"),
        # Numbers beside OpenAI's weights, and torch's counters of batches.
        ignored=("input_resolution", "context_length", "vocab_size", r".*\.num_batches_tracked"),
        config=openai_config,
        facts=open_clip_facts,
        constants=counters,
        lost=LOST,
        file="open_clip_model.safetensors",
        facts_file="open_clip_config.json",
    ),
}


def _mit(source: str) -> Tag:
    """OpenAI's licence is that of github.com/openai/CLIP, LAION's that of its repositories."""
    return Tag(source, licence="mit")


TAGS = {
    "clip_b32.openai": _mit("openai/clip-vit-base-patch32"),
    "clip_b16.openai": _mit("openai/clip-vit-base-patch16"),
    "clip_l14.openai": _mit("openai/clip-vit-large-patch14"),
    "clip_l14_336.openai": _mit("openai/clip-vit-large-patch14-336"),
    # timm/resnet50_clip.* hold the whole model in open_clip's files (open_clip 3.3, pretrained.py).
    "clip_rn50.openai": _mit("timm/resnet50_clip.openai:open_clip_model.safetensors"),
    "clip_rn50.cc12m": _mit("timm/resnet50_clip.cc12m:open_clip_model.safetensors"),
    "clip_rn50.yfcc15m": _mit("timm/resnet50_clip.yfcc15m:open_clip_model.safetensors"),
    "clip_b32.laion2b": _mit("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    "clip_b16.laion2b": _mit("laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    "clip_l14.laion2b": _mit("laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    "clip_b32.datacomp": _mit("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"),
    "clip_b16.datacomp": _mit("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
    "clip_l14.datacomp": _mit("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
}
