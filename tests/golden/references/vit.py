"""ViT and DeiT from transformers and timm, and Google's JAX files as timm reads them."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fill import fill

from references.common import (
    Case,
    Reference,
    evaluate,
    filled,
    filled_file,
    import_torchvision,
    saved,
    timm_manifest,
    train,
    transformers_manifest,
    versions,
)


def transformers_vit(kind: str, interpolate: bool = False, **config: Any) -> Reference:
    """kind: the class in transformers; interpolate: its positions, for another image size."""
    import transformers

    cls = getattr(transformers, kind)
    bare = (
        {"add_pooling_layer": False} if kind == "ViTModel" and not config["representation"] else {}
    )
    model = filled_file(cls(transformers_config(cls, **config), **bare), **bare)
    base = "" if kind.endswith("Model") else f"{cls.base_model_prefix}."
    layers = {f"block_{i}": f"{base}layers.{i}" for i in range(config["depth"])}
    return Reference(
        model,
        config,
        parts={**layers, "norm": f"{base}layernorm"},
        versions=versions("transformers", "torch"),
        files=saved,
        inputs={"interpolate_pos_encoding": interpolate},
    )


def transformers_config(cls: Any, **config: Any) -> Any:
    return cls.config_class(
        hidden_size=config["width"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["heads"],
        intermediate_size=config["mlp"],
        hidden_act={"erf": "gelu", "tanh": "gelu_new"}[config.get("gelu", "erf")],
        layer_norm_eps=config["epsilon"],
        image_size=config["image_size"],
        patch_size=config["patch"],
        qkv_bias=config.get("qkv_bias", True),
        pooler_output_size=config.get("representation"),
        num_labels=config["num_classes"] or 2,
    )


def timm_vit(name: str = "vit_base_patch16_224", dynamic: bool = False, **config: Any) -> Reference:
    """name: the model in timm whose sizes are changed; dynamic: it takes other image sizes."""
    model = filled(timm_model(name, dynamic, **config))
    return Reference(
        model, config, parts=timm_parts(config["depth"]), versions=versions("timm", "torch")
    )


def timm_model(name: str, dynamic: bool, **config: Any) -> Any:
    import_torchvision()
    import timm

    options = {"class_token": False, "fc_norm": False} if config.get("pool") == "mean" else {}
    return timm.create_model(
        name,
        img_size=config["image_size"],
        patch_size=config["patch"],
        embed_dim=config["width"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=config["mlp"] / config["width"],
        qkv_bias=config.get("qkv_bias", True),
        qk_norm=config.get("qk_norm", False),
        act_layer={"erf": "gelu", "tanh": "gelu_tanh"}[config.get("gelu", "erf")],
        global_pool={"class": "token", "mean": "avg"}[config.get("pool", "class")],
        num_classes=config["num_classes"],
        dynamic_img_size=dynamic,
        **options,
    )


def timm_parts(depth: int) -> dict[str, str]:
    return {**{f"block_{i}": f"blocks.{i}" for i in range(depth)}, "norm": "norm"}


def jax_vit(layout: str, **config: Any) -> Reference:
    """A file in the layout of Google's JAX code, as timm reads it: `vit_jax` (AugReg and before) or
    `big_vision`, whose layers may be stacked (`big_vision_scan`).

    That code's GELU is the tanh approximation, so timm is asked for it.
    """
    model = timm_model("vit_base_patch16_224", False, **config)
    shapes = dict(LAYOUTS[layout](**config))
    arrays = {name: fill(name, shape) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        np.savez(path, **arrays)
        model.load_pretrained(str(path))
    return Reference(
        model,
        config,
        parts=timm_parts(config["depth"]),
        versions=versions("timm", "torch"),
        files=lambda model: arrays,
    )


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def vit_jax_shapes(**config: Any) -> Shapes:
    yield "Transformer/posembed_input/pos_embedding", (1, 1 + patches(**config), config["width"])
    yield from ends("", **config)
    for i in range(config["depth"]):
        yield from layer(f"Transformer/encoderblock_{i}", (1, 3, 2), (), **config)


def big_vision_shapes(**config: Any) -> Shapes:
    yield "params/pos_embedding", (1, 1 + patches(**config), config["width"])
    yield from ends("params/", **config)
    for i in range(config["depth"]):
        yield from layer(f"params/Transformer/encoderblock_{i}", (0, 0, 1), (), **config)


def big_vision_scan_shapes(**config: Any) -> Shapes:
    yield "params/pos_embedding", (1, 1 + patches(**config), config["width"])
    yield from ends("params/", **config)
    yield from layer("params/Transformer/encoderblock", (0, 0, 1), (config["depth"],), **config)


LAYOUTS = {
    "vit_jax": vit_jax_shapes,
    "big_vision": big_vision_shapes,
    "big_vision_scan": big_vision_scan_shapes,
}


def patches(*, image_size: int, patch: int, **_: Any) -> int:
    return (image_size // patch) ** 2


def ends(prefix: str, *, width: int, patch: int, num_classes: int, **_: Any) -> Shapes:
    """What is there before and after the layers."""
    yield f"{prefix}cls", (1, 1, width)
    yield f"{prefix}embedding/kernel", (patch, patch, 3, width)
    yield f"{prefix}embedding/bias", (width,)
    yield f"{prefix}Transformer/encoder_norm/scale", (width,)
    yield f"{prefix}Transformer/encoder_norm/bias", (width,)
    yield f"{prefix}head/kernel", (width, num_classes)
    yield f"{prefix}head/bias", (num_classes,)


def layer(
    prefix: str,
    numbers: tuple[int, int, int],
    stack: tuple[int, ...],
    *,
    width: int,
    heads: int,
    mlp: int,
    **_: Any,
) -> Shapes:
    """One layer, or a stack of them. numbers: those of attention, MLP and the second norm."""
    attention, dense, norm = numbers
    split = (heads, width // heads)
    for name in ("query", "key", "value"):
        yield (
            f"{prefix}/MultiHeadDotProductAttention_{attention}/{name}/kernel",
            (*stack, width, *split),
        )
        yield f"{prefix}/MultiHeadDotProductAttention_{attention}/{name}/bias", (*stack, *split)
    yield f"{prefix}/MultiHeadDotProductAttention_{attention}/out/kernel", (*stack, *split, width)
    yield f"{prefix}/MultiHeadDotProductAttention_{attention}/out/bias", (*stack, width)
    for i, sides in enumerate([(width, mlp), (mlp, width)]):
        yield f"{prefix}/MlpBlock_{dense}/Dense_{i}/kernel", (*stack, *sides)
        yield f"{prefix}/MlpBlock_{dense}/Dense_{i}/bias", (*stack, sides[1])
    for i in (0, norm):
        yield f"{prefix}/LayerNorm_{i}/scale", (*stack, width)
        yield f"{prefix}/LayerNorm_{i}/bias", (*stack, width)


# Names of full-size models.


HUB = {  # class, and where its config differs from the defaults
    "google/vit-base-patch16-224": ("ViTForImageClassification", {"num_labels": 1000}),
    "google/vit-base-patch16-224-in21k": ("ViTModel", {}),
    "facebook/deit-base-distilled-patch16-224": (
        "DeiTForImageClassificationWithTeacher",
        {"num_labels": 1000},
    ),
}
TIMM = ("vit_base_patch16_224.augreg_in21k_ft_in1k", "deit_tiny_distilled_patch16_224.fb_in1k")


# An ε of 1e-3 shows where another is used: published ones are too small to change a tiny model.
SIZES = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp": 24}
CLASSIFIER = {**SIZES, "epsilon": 1e-3, "num_classes": 5}
BASE = {**SIZES, "epsilon": 1e-3, "num_classes": 0}
HF = {
    "vit_hf": partial(transformers_vit, "ViTForImageClassification", **CLASSIFIER, image_size=16),
    "vit_hf_up": partial(
        transformers_vit, "ViTForImageClassification", True, **CLASSIFIER, image_size=16
    ),
    "vit_hf_down": partial(
        transformers_vit, "ViTModel", True, **BASE, representation=0, image_size=24
    ),
    "vit_hf_pooler": partial(
        transformers_vit,
        "ViTModel",
        **BASE,
        representation=12,
        gelu="tanh",
        qkv_bias=False,
        image_size=(12, 20),
    ),
    "deit_hf_token": partial(
        transformers_vit,
        "DeiTForImageClassification",
        **CLASSIFIER,
        distillation="token",
        image_size=16,
    ),
    "deit_hf_head": partial(
        transformers_vit,
        "DeiTForImageClassificationWithTeacher",
        True,
        **CLASSIFIER,
        distillation="head",
        image_size=16,
    ),
    "deit_hf_pooler": partial(
        transformers_vit,
        "DeiTModel",
        **BASE,
        distillation="token",
        representation=16,
        image_size=16,
    ),
}
LIKE_TIMM = {**SIZES, "positions": "antialias", "num_classes": 5}
TIMM_CASES = {
    "vit_timm_up": partial(timm_vit, dynamic=True, **LIKE_TIMM, image_size=16),
    "vit_timm_down": partial(
        timm_vit, dynamic=True, **LIKE_TIMM, qk_norm=True, qkv_bias=False, image_size=24
    ),
    "vit_timm_mean": partial(
        timm_vit,
        **LIKE_TIMM,
        pool="mean",
        class_token=False,
        gelu="tanh",
        image_size=(12, 20),
    ),
    "deit_timm_head": partial(
        timm_vit,
        "deit_tiny_distilled_patch16_224",
        **LIKE_TIMM,
        distillation="head",
        image_size=16,
    ),
}
JAX = {
    f"vit_{layout}": partial(
        jax_vit, layout, **SIZES, gelu="tanh", positions="linear", num_classes=5, image_size=16
    )
    for layout in LAYOUTS
}
# Images, and where they differ from `image_size`: larger, smaller, and not square.
IMAGES = {
    "vit_hf_up": (2, 24, 20),
    "vit_hf_down": (2, 16, 12),
    "vit_hf_pooler": (2, 12, 20),
    "deit_hf_head": (2, 20, 28),
    "vit_timm_up": (2, 24, 20),
    "vit_timm_down": (2, 16, 12),
    "vit_timm_mean": (2, 12, 20),
}


def case(library: str, name: str, build: Any) -> Case:
    return Case(name, library, partial(evaluate, build, IMAGES.get(name, (2, 16, 16))))


CASES = (
    *(case("transformers", name, build) for name, build in HF.items()),
    Case("vit_hf_train", "transformers", partial(train, HF["vit_hf"], (4, 16, 16))),
    *(case("timm", name, build) for name, build in {**TIMM_CASES, **JAX}.items()),
    Case("vit_manifests.json", "transformers", partial(transformers_manifest, HUB)),
    Case("vit_manifests.json", "timm", partial(timm_manifest, TIMM)),
)
