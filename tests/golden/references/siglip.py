"""SigLIP from transformers, open_clip and the authors' own JAX code (big_vision)."""

import sys
from collections.abc import Mapping
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fill import fill, image, tokens

from references.common import (
    Case,
    Inputs,
    Recording,
    Reference,
    evaluate_pairs,
    filled,
    filled_file,
    import_torchvision,
    meta,
    saved,
    tensors,
    train_pairs,
    transformers_manifest,
    versions,
)
from references.flax import flatten, unflatten
from references.vit import commit


def texts(case: str, count: int = 3) -> Inputs:
    """As long as the context."""
    return {"tokens": tokens(case, (count, SIZES["context"]), 0, SIZES["vocab"])}


# transformers.


def transformers_siglip(interpolate: bool = False, **config: Any) -> Reference:
    """interpolate: the positions, for another image size."""
    from transformers import SiglipConfig, SiglipModel

    parts = {
        **{f"image/block_{i}": f"vision_model.encoder.layers.{i}" for i in range(config["depth"])},
        "image/norm": "vision_model.post_layernorm",
        "image/pool": "vision_model.head",
        **{
            f"text/block_{i}": f"text_model.encoder.layers.{i}" for i in range(config["text_depth"])
        },
        "text/norm": "text_model.final_layer_norm",
        "text/proj": "text_model.head",
    }
    return Reference(
        filled_file(SiglipModel(SiglipConfig(**stated(**config)))),
        config,
        parts=parts,
        versions=versions("transformers", "torch"),
        files=saved,
        inputs={"interpolate_pos_encoding": interpolate},
    )


def stated(**config: Any) -> dict[str, Any]:
    """Our Config in the words of transformers."""
    both = {
        "hidden_act": {"tanh": "gelu_pytorch_tanh", "erf": "gelu"}[config.get("gelu", "tanh")],
        "layer_norm_eps": config["epsilon"],
    }
    vision = {
        "hidden_size": config["embed"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "intermediate_size": config["mlp"],
        "image_size": config["image_size"],
        "patch_size": config["patch"],
    }
    text = {
        "hidden_size": config["text_width"],
        "num_hidden_layers": config["text_depth"],
        "num_attention_heads": config["text_heads"],
        "intermediate_size": config["text_mlp"],
        "projection_size": config["embed"],
        "vocab_size": config["vocab"],
        "max_position_embeddings": config["context"],
    }
    return {"vision_config": vision | both, "text_config": text | both}


# open_clip.


def open_clip_siglip(**config: Any) -> Reference:
    """Its own class, with timm's picture tower of other sizes than those of the name."""
    import_torchvision()
    import open_clip.timm_model
    import timm

    sizes = {
        "img_size": config["image_size"],
        "patch_size": config["patch"],
        "embed_dim": config["embed"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "mlp_ratio": config["mlp"] / config["embed"],
        "dynamic_img_size": True,
    }
    open_clip.timm_model.timm = SimpleNamespace(create_model=partial(timm.create_model, **sizes))
    image = {"timm_model_name": "vit_base_patch16_siglip_224"}
    image |= {"timm_pool": "map", "timm_proj": "none"}
    text = {
        "context_length": config["context"],
        "vocab_size": config["vocab"],
        "width": config["text_width"],
        "heads": config["text_heads"],
        "layers": config["text_depth"],
        "mlp_ratio": config["text_mlp"] / config["text_width"],
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    model = open_clip.CustomTextCLIP(config["embed"], image, text, init_logit_bias=-10.0)
    layers = {"image": "visual.trunk.blocks", "text": "text.transformer.resblocks"}
    depths = {"image": config["depth"], "text": config["text_depth"]}
    return Reference(
        filled(model),
        config,
        parts={
            **{f"{t}/block_{i}": f"{layers[t]}.{i}" for t in layers for i in range(depths[t])},
            "image/norm": "visual.trunk.norm",
            "image/pool": "visual.trunk.attn_pool",
            "text/norm": "text.ln_final",
            "text/proj": "text.text_projection",
        },
        versions=versions("open_clip_torch", "timm", "torch"),
    )


def open_clip_pairs(model: Any, pixels: Any, input_ids: Any) -> dict[str, Any]:
    image, text, scale, bias = model(pixels, input_ids)
    return {"image": image, "text": text, "logits": scale * image @ text.T + bias}


# big_vision, which no package has: record.py says where it is. It computes in float32.


def big_vision(case: str, *, scan: bool = False, **config: Any) -> Recording:
    import jax

    jax.config.update("jax_platforms", "cpu")
    side, model = config["image_size"], big_vision_model(scan, **config)
    batch = (image(case, (3, side, side, 3)), texts(case)["tokens"])
    shapes = flatten(jax.eval_shape(model.init, jax.random.key(0), *batch)["params"])
    filled = {name: fill(f"params/{name}", leaf.shape) for name, leaf in shapes.items()}
    of_image, of_text, seen = model.apply({"params": unflatten(filled)}, *batch)
    logits = seen["t"] * (of_image @ of_text.T) + seen["b"]
    arrays = {
        **{f"hidden/{name}": state for name, state in big_vision_states(seen, config).items()},
        "image": of_image,
        "text": of_text,
        "pairs": logits.diagonal(),
        "logits": logits,
    }
    rows = tensors({f"params/{name}": array for name, array in filled.items()})
    made_by = {"big_vision": commit("big_vision"), **versions("flax", "jax")}
    header = meta(case, made_by, config, batch[0].shape, tensors=rows)
    arrays = {"input": batch[0], "inputs/tokens": batch[1], **arrays}
    return {"meta": header, **{name: np.asarray(x) for name, x in arrays.items()}}


def big_vision_model(scan: bool, **config: Any) -> Any:
    # What it trains with, TensorFlow among it: the models' files import this and call it to load.
    sys.modules["big_vision.utils"] = ModuleType("big_vision.utils")
    from big_vision.models.proj.image_text.two_towers import Model

    image = {
        "patch_size": (config["patch"],) * 2,
        "width": config["embed"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "mlp_dim": config["mlp"],
        "pool_type": "map",
        "scan": scan,
    }
    text = {
        "width": config["text_width"],
        "depth": config["text_depth"],
        "num_heads": config["text_heads"],
        "mlp_dim": config["text_mlp"],
        "vocab_size": config["vocab"],
        "scan": scan,
    }
    return Model(image, text, out_dim=(None, config["embed"]), bias_init=-10.0)


def big_vision_states(seen: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The text tower's layers lie beside what else it returns."""
    image = {f"image/block_{i}": f"block{i:02d}" for i in range(config["depth"])}
    text = {f"text/block_{i}": f"txt/block{i:02d}" for i in range(config["text_depth"])}
    return {
        **{ours: seen["img/encoder"][theirs]["+mlp"] for ours, theirs in image.items()},
        "image/norm": seen["img/encoded"],
        "image/pool": seen["img/head_input"],
        **{ours: seen[theirs]["+mlp"] for ours, theirs in text.items()},
        "text/norm": seen["txt/transformed"],
        "text/proj": seen["txt/logits"],
    }


# Names and counts of full-size models.


def _pair(
    width: int, depth: int, heads: int, mlp: int, *, context: int = 64, **image: int
) -> dict[str, Any]:
    """Two towers of one size, where they differ from the defaults."""
    both = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
    }
    text = {"max_position_embeddings": context}
    return {"vision_config": both | image, "text_config": both | text}


L, SO400M = (1024, 24, 16, 4096), (1152, 27, 16, 4304)
HUB = {
    "google/siglip-base-patch16-224": {},
    "google/siglip-base-patch16-256": {"vision_config": {"image_size": 256}},
    "google/siglip-base-patch16-384": {"vision_config": {"image_size": 384}},
    "google/siglip-base-patch16-512": {"vision_config": {"image_size": 512}},
    "google/siglip-large-patch16-256": _pair(*L, image_size=256),
    "google/siglip-large-patch16-384": _pair(*L, image_size=384),
    "google/siglip-so400m-patch14-224": _pair(*SO400M, patch_size=14, context=16),
    "google/siglip-so400m-patch14-384": _pair(*SO400M, patch_size=14, image_size=384),
}
LISTED = ("google/siglip-base-patch16-224", "google/siglip-so400m-patch14-384")


def manifest(case: str) -> Recording:
    """Names of two, counts of all."""
    listed = {name: ("SiglipModel", HUB[name]) for name in LISTED}
    return {
        **transformers_manifest(listed, case),
        "params": {n: count(**c) for n, c in HUB.items()},
    }


def count(**config: Any) -> int:
    import torch
    from transformers import SiglipConfig, SiglipModel

    with torch.device("meta"):
        model = SiglipModel(SiglipConfig(**config))
    return sum(parameter.numel() for parameter in model.parameters())


# An ε of 1e-3 shows where another is used: published ones are too small to change a tiny model.
SIZES = {
    "embed": 16,
    "patch": 4,
    "depth": 1,
    "heads": 2,
    "mlp": 24,
    "text_width": 12,
    "text_depth": 1,
    "text_heads": 3,
    "text_mlp": 20,
    "vocab": 30,
    "context": 7,
    "image_size": 16,
}
DEEP = {"depth": 2, "text_depth": 2}
HF = {**SIZES, "epsilon": 1e-3}
BUILD = {
    "siglip_hf": partial(transformers_siglip, **HF),
    "siglip_hf_up": partial(transformers_siglip, True, **{**HF, **DEEP}, gelu="erf"),
    "siglip_hf_down": partial(transformers_siglip, True, **{**HF, "image_size": 24}),
    # As So400m/14 at 384: not whole patches.
    "siglip_hf_rest": partial(transformers_siglip, **{**HF, "image_size": 18}),
}
# Images where they are not three of 16 × 16: larger, smaller, not square, more.
IMAGES = {
    "siglip_hf_up": (3, 24, 20),
    "siglip_hf_down": (3, 16, 12),
    "siglip_hf_rest": (3, 18, 18),
    "siglip_hf_train": (4, 16, 16),
}
OPEN_CLIP = partial(open_clip_siglip, **SIZES, gelu="erf", positions="antialias")
LIKE_GOOGLE = {**SIZES, **DEEP, "positions": "linear"}


def case(name: str, record: Any, build: Any, *more: Any) -> Case:
    size = IMAGES.get(name, (3, 16, 16))
    return Case(name, "transformers", partial(record, build, size, *more))


CASES = (
    *(case(name, evaluate_pairs, build, texts) for name, build in BUILD.items()),
    case(
        "siglip_hf_train",
        train_pairs,
        partial(transformers_siglip, **{**HF, **DEEP}),
        partial(texts, count=4),
        "sigmoid",
    ),
    Case(
        "siglip_open_clip",
        "open_clip",
        partial(evaluate_pairs, OPEN_CLIP, (3, 24, 20), texts, run=open_clip_pairs),
    ),
    Case("siglip_big_vision", "big_vision", partial(big_vision, **LIKE_GOOGLE)),
    Case("siglip_big_vision_scan", "big_vision", partial(big_vision, scan=True, **LIKE_GOOGLE)),
    Case("siglip_manifests.json", "transformers", manifest),
)
