"""CLIP from transformers (ViT) and from open_clip (ViT and ResNet), whose names are OpenAI's."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from fill import tokens

from references.common import (
    Case,
    Inputs,
    Recording,
    Reference,
    evaluate_pairs,
    filled,
    filled_file,
    import_torchvision,
    saved,
    tensors,
    train_pairs,
    transformers_manifest,
    versions,
)


def texts(config: Mapping[str, Any], shape: tuple[int, int], case: str) -> Inputs:
    """Texts of WORDS, ended by `eos` and padded with it; one may fill its row and have no end."""
    eos = config["eos"]
    found = tokens(case, shape, 0, config["vocab"] - 1)
    found += found >= eos
    for row, words in zip(found, WORDS, strict=False):
        row[words:] = eos
    return {"tokens": found}


# transformers.


def transformers_clip(interpolate: bool = False, **config: Any) -> Reference:
    """interpolate: the positions, for another image size."""
    from transformers import CLIPConfig, CLIPModel

    vision, text = "vision_model", "text_model"
    parts = {
        "image.norm_pre": f"{vision}.pre_layrnorm",
        **{f"image.block_{i}": f"{vision}.encoder.layers.{i}" for i in range(config["depth"])},
        "image.norm": f"{vision}.post_layernorm",
        "image.proj": "visual_projection",
        **{f"text.block_{i}": f"{text}.encoder.layers.{i}" for i in range(config["text_depth"])},
        "text.norm": f"{text}.final_layer_norm",
        "text.proj": "text_projection",
    }
    return Reference(
        filled_file(CLIPModel(CLIPConfig(**stated(config)))),
        config,
        parts=parts,
        versions=versions("transformers", "torch"),
        files=saved,
        inputs={"interpolate_pos_encoding": interpolate},
    )


def stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our Config in the words of transformers."""
    gelus = {"quick": "quick_gelu", "erf": "gelu"}
    both = {
        "hidden_act": gelus[config.get("gelu", "quick")],
        "layer_norm_eps": config["epsilon"],
    }
    vision = {
        "hidden_size": config["width"],
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
        "vocab_size": config["vocab"],
        "max_position_embeddings": config["context"],
        # 2, which older files have, makes it look for the largest id.
        "eos_token_id": config["eos"] if config.get("end") == "id" else 2,
        "bos_token_id": None,
    }
    return {
        "projection_dim": config["embed"],
        "vision_config": vision | both,
        "text_config": text | both,
    }


# open_clip.


def open_clip_clip(head_width: int, **config: Any) -> Reference:
    """head_width: channels of a head of the image tower."""
    open_clip = import_open_clip()
    vision = {"width": config["width"], "head_width": head_width}
    if "stages" in config:
        vision |= {"layers": (*config["stages"], 1, 1)[:4], "patch_size": None}
        parts = resnet_parts(config["stages"])
    else:
        vision |= {"layers": config["depth"], "patch_size": config["patch"]}
        vision |= {"mlp_ratio": config["mlp"] / config["width"]}
        parts = {
            "image.norm_pre": "visual.ln_pre",
            **{
                f"image.block_{i}": f"visual.transformer.resblocks.{i}"
                for i in range(config["depth"])
            },
            "image.proj": "visual",
        }
    text = {
        "width": config["text_width"],
        "heads": config["text_heads"],
        "layers": config["text_depth"],
        "mlp_ratio": config["text_mlp"] / config["text_width"],
        "vocab_size": config["vocab"],
        "context_length": config["context"],
        **({"pool_type": "eos", "eos_id": config["eos"]} if config.get("end") == "id" else {}),
    }
    blocks = {f"text.block_{i}": f"transformer.resblocks.{i}" for i in range(config["text_depth"])}
    vision |= {"image_size": config["image_size"]}
    quick = config.get("gelu", "quick") == "quick"
    model = open_clip.CLIP(config["embed"], vision, text, quick_gelu=quick)
    if len(config.get("stages", ())) == 2:
        cut(model.visual, **config)
    return Reference(
        filled(model),
        config,
        parts={**parts, **blocks, "text.norm": "ln_final"},
        versions=versions("open_clip_torch", "torch"),
        call=torch_texts,
    )


def cut(visual: Any, *, image_size: int, width: int, heads: int, embed: int, **_: Any) -> None:
    """Takes the last two stages out of a ResNet."""
    import torch
    from open_clip.modified_resnet import AttentionPool2d

    visual.layer3 = visual.layer4 = torch.nn.Identity()
    visual.attnpool = AttentionPool2d(image_size // 8, 8 * width, heads, embed)


def import_open_clip() -> Any:
    import_torchvision()
    import open_clip

    return open_clip


def resnet_parts(stages: tuple[int, ...]) -> dict[str, str]:
    found = {"image.stem": "visual.avgpool"}
    for stage, depth in enumerate(stages, start=1):
        for i in range(depth):
            block = f"block_{i - 1}" if i else "first"
            found[f"image.stage{stage}.{block}"] = f"visual.layer{stage}.{i}"
    return {**found, "image.pool": "visual.attnpool"}


def torch_texts(inputs: Inputs) -> Mapping[str, Any]:
    import torch

    return {"texts": torch.from_numpy(inputs["tokens"]).long()}


def open_clip_pairs(model: Any, pixels: Any, texts: Any) -> dict[str, Any]:
    from open_clip.loss import ClipLoss

    of_image, of_text, scale = model(pixels, texts)
    return {
        "image": of_image,
        "text": of_text,
        "logits": scale * of_image @ of_text.T,
        "loss": ClipLoss()(of_image, of_text, scale),
    }


# Names and counts of full-size models.


HUB = {"openai/clip-vit-base-patch32": ("CLIPModel", {})}
OPEN_CLIP = {
    "ViT-B-32": True,  # whether its names are listed
    "ViT-B-16": False,
    "ViT-L-14": False,
    "ViT-L-14-336": False,
    "RN50": True,
}


def open_clip_manifest(case: str) -> Recording:
    """Names of two, counts and configs of all."""
    import torch

    open_clip = import_open_clip()
    found: dict[str, Any] = {"tensors": {}, "config": {}, "params": {}}
    for name, listed in OPEN_CLIP.items():
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            model = open_clip.CLIP(**config)
        found["config"][name] = {"model_cfg": config}  # as open_clip_config.json has it
        found["params"][name] = sum(parameter.numel() for parameter in model.parameters())
        if listed:
            found["tensors"][name] = tensors(model.state_dict())
    return {"versions": versions("open_clip_torch", "torch"), **found}


# An ε of 1e-3 shows where another is used: the published one is too small to change a tiny model.
TEXT = {
    "text_width": 12,
    "text_depth": 2,
    "text_heads": 3,
    "text_mlp": 20,
    "vocab": 37,
    "context": 9,
}
VIT = {"embed": 10, "patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp": 24, **TEXT}
WORDS = (3, 6, 8, 0, 5, 1, 7, 2)  # of each text
ARGMAX, ID = {"eos": 36}, {"end": "id", "eos": 5}
HF = {**VIT, "epsilon": 1e-3, "image_size": 16}
BUILD = {
    "clip_hf": partial(transformers_clip, **HF, **ARGMAX),
    "clip_hf_up": partial(transformers_clip, True, **HF, **ID, gelu="erf"),
    "clip_hf_down": partial(transformers_clip, True, **{**HF, "image_size": 24}, **ARGMAX),
}
LIKE_OPENAI = {**VIT, "positions": "antialias", "image_size": 16}
RESNET = {
    "embed": 8,
    "patch": 32,
    "stages": (1, 2, 1, 1),
    **TEXT,
    "positions": "antialias",
    **ARGMAX,
}
OPENAI = {
    "clip_openai": partial(open_clip_clip, 8, **LIKE_OPENAI, **ARGMAX),
    # A square projection: nothing but the numbers shows which way it is laid out.
    "clip_openai_id": partial(
        open_clip_clip, 8, **{**LIKE_OPENAI, "embed": TEXT["text_width"]}, **ID, gelu="erf"
    ),
    "clip_openai_resnet": partial(
        open_clip_clip, 32, **RESNET, width=4, heads=4, image_size=64, gelu="erf"
    ),
}
# The last stages hold most of the parameters, whose gradients would be too large a file.
SMALL = RESNET | {"stages": (1, 2), "patch": 8, "width": 4, "heads": 2, "image_size": 16}
RESNET_TRAIN = partial(open_clip_clip, 16, **{**SMALL, "text_depth": 1})
# Pictures, and where they differ from `image_size`: larger, smaller, and not square.
IMAGES = {
    "clip_hf_up": (3, 24, 20),
    "clip_hf_down": (3, 16, 12),
    "clip_openai_resnet": (2, 64, 64),
}
# Texts: open_clip takes none that are shorter than the context.
SHORT, WHOLE = 8, TEXT["context"]


def case(library: str, name: str, build: Any, length: int, **options: Any) -> Case:
    size = IMAGES.get(name, (3, 16, 16))
    draw = partial(texts, build.keywords, (size[0], length))
    return Case(name, library, partial(evaluate_pairs, build, size, draw, **options))


CASES = (
    *(case("transformers", name, build, SHORT) for name, build in BUILD.items()),
    Case(
        "clip_hf_train",
        "transformers",
        partial(
            train_pairs,
            BUILD["clip_hf"],
            (4, 16, 16),
            partial(texts, BUILD["clip_hf"].keywords, (4, SHORT)),
            "softmax",
        ),
    ),
    *(case("open_clip", name, build, WHOLE, run=open_clip_pairs) for name, build in OPENAI.items()),
    Case(
        "clip_openai_resnet_train",
        "open_clip",
        partial(
            train_pairs,
            RESNET_TRAIN,
            (8, 16, 16),
            partial(texts, RESNET_TRAIN.keywords, (8, WHOLE)),
            "softmax",
            run=open_clip_pairs,
        ),
    ),
    Case("clip_manifests.json", "transformers", partial(transformers_manifest, HUB)),
    Case("clip_manifests.json", "open_clip", open_clip_manifest),
)
