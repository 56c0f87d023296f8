"""DINOv2, with and without registers, from transformers, timm and Meta's own code."""

from functools import partial
from typing import Any

from fill import mask as draw_mask

from references.common import (
    Case,
    Recording,
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
from references.vit import commit


def transformers_dinov2(**config: Any) -> Reference:
    """The class is that of a model with or without registers, with or without a head."""
    import transformers

    kind = "Dinov2WithRegisters" if config.get("registers") else "Dinov2"
    head = "ForImageClassification" if config["num_classes"] else "Model"
    cls = getattr(transformers, kind + head)
    base = f"{cls.base_model_prefix}." if config["num_classes"] else ""
    layers = {f"block_{i}": f"{base}encoder.layer.{i}" for i in range(config["depth"])}
    return Reference(
        filled_file(cls(transformers_config(cls, **config))),
        config,
        parts={**layers, "norm": f"{base}layernorm"},
        versions=versions("transformers", "torch"),
        files=saved,
    )


def transformers_config(cls: Any, **config: Any) -> Any:
    registers = {"num_register_tokens": config["registers"]} if config.get("registers") else {}
    return cls.config_class(
        hidden_size=config["width"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["heads"],
        mlp_ratio=4,
        use_swiglu_ffn=config["ffn"] == "swiglu",
        layer_norm_eps=config["epsilon"],
        image_size=config["image_size"],
        patch_size=config["patch"],
        num_labels=config["num_classes"] or 2,
        **registers,
    )


def timm_dinov2(name: str, **config: Any) -> Reference:
    """name: the model in timm whose sizes are changed. A packed SwiGLU counts both its halves."""
    import_torchvision()
    import timm

    halves = {"mlp": 1, "swiglu": 2}[config["ffn"]]
    model = timm.create_model(
        name,
        img_size=config["image_size"],
        patch_size=config["patch"],
        embed_dim=config["width"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=halves * config["hidden"] / config["width"],
        num_classes=0,
        dynamic_img_size=True,
    )
    layers = {f"block_{i}": f"blocks.{i}" for i in range(config["depth"])}
    return Reference(
        filled(model), config, parts={**layers, "norm": "norm"}, versions=versions("timm", "torch")
    )


def meta_dinov2(masks: Any = None, **config: Any) -> Reference:
    """Meta's own code, which no package has: record.py says where it is.

    It is run at the size that its positions are for, so none are resized. At others its models
    without registers resize by the plain bicubic kernel, and by a factor of (n + 0.1) / m instead
    of n / m; those with registers by the antialiased one, without the 0.1 (hub/backbones.py).
    Neither transformers nor our page has the 0.1.

    masks: bool [b, n], which patches are hidden.
    """
    from dinov2.models.vision_transformer import DinoVisionTransformer

    model = DinoVisionTransformer(
        img_size=config["image_size"],
        patch_size=config["patch"],
        embed_dim=config["width"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=4,
        ffn_layer=config["ffn"],
        num_register_tokens=config.get("registers", 0),
        init_values=1.0,  # without it there is no LayerScale
        block_chunks=0,  # as in the published files: chunked blocks have two numbers in their names
    )
    layers = {f"block_{i}": f"blocks.{i}" for i in range(config["depth"])}
    return Reference(
        filled(model),
        config,
        parts={**layers, "norm": "norm"},
        versions={"dinov2": commit("dinov2"), **versions("torch")},
        inputs={"masks": masks},
    )


def meta_masked(case: str, **config: Any) -> Recording:
    import torch

    mask = draw_mask(case, (2, 16))
    build = partial(meta_dinov2, masks=torch.from_numpy(mask), **config)
    return {**evaluate(build, (2, 16, 16), case), "mask": mask}


HUB = {
    "facebook/dinov2-small": ("Dinov2Model", {"hidden_size": 384, "num_attention_heads": 6}),
    "facebook/dinov2-giant": (
        "Dinov2Model",
        {
            "hidden_size": 1536,
            "num_attention_heads": 24,
            "num_hidden_layers": 40,
            "use_swiglu_ffn": True,
        },
    ),
}
HUB = {name: (kind, {**sizes, "image_size": 518}) for name, (kind, sizes) in HUB.items()}
TIMM = ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m")


# An ε of 1e-3 shows where another is used: published ones are too small to change a tiny model.
# transformers and Meta take the hidden width from the width: 4 · 16, and of SwiGLU 2/3 of it in
# whole eights, 48.
SIZES = {"patch": 4, "width": 16, "depth": 2, "heads": 2}
HF = {**SIZES, "epsilon": 1e-3}
MLP, SWIGLU = {"ffn": "mlp", "hidden": 64}, {"ffn": "swiglu", "hidden": 48}
REGISTERS = {"registers": 3, "positions": "antialias"}
TIMM_SIZES = {**SIZES, "mask_token": False, "positions": "antialias", "num_classes": 0}
RESIZED = {  # trained at 16 or 24, run larger and smaller
    "dinov2_hf_up": partial(transformers_dinov2, **HF, **MLP, num_classes=0, image_size=16),
    "dinov2_hf_swiglu": partial(transformers_dinov2, **HF, **SWIGLU, num_classes=5, image_size=24),
    "dinov2_hf_registers": partial(
        transformers_dinov2, **HF, **MLP, **REGISTERS, num_classes=5, image_size=24
    ),
    "dinov2_timm": partial(
        timm_dinov2, "vit_small_patch14_dinov2", **TIMM_SIZES, ffn="mlp", hidden=24, image_size=16
    ),
    "dinov2_timm_registers": partial(
        timm_dinov2,
        "vit_giant_patch14_reg4_dinov2",
        **TIMM_SIZES,
        ffn="swiglu",
        hidden=20,
        registers=4,
        image_size=24,
    ),
}
MASKED = partial(transformers_dinov2, **HF, **SWIGLU, **REGISTERS, num_classes=0, image_size=16)
TRAINED = partial(transformers_dinov2, **HF, **SWIGLU, num_classes=5, image_size=16)
LIKE_META = {**SIZES, "num_classes": 0, "image_size": 16}
META = partial(meta_dinov2, **LIKE_META, **SWIGLU, **REGISTERS)
IMAGES = {16: (2, 24, 20), 24: (2, 16, 12)}


def case(name: str, build: Any) -> Case:
    library = "timm" if "timm" in name else "transformers"
    return Case(name, library, partial(evaluate, build, IMAGES[build.keywords["image_size"]]))


CASES = (
    *(case(name, build) for name, build in RESIZED.items()),
    Case(
        "dinov2_hf_masked",
        "transformers",
        partial(evaluate, MASKED, (2, 16, 16), mask=(2, 16)),
    ),
    Case("dinov2_hf_train", "transformers", partial(train, TRAINED, (4, 16, 16))),
    Case("dinov2_meta_masked", "dinov2", partial(meta_masked, **LIKE_META, **MLP)),
    Case("dinov2_meta_registers", "dinov2", partial(evaluate, META, (2, 16, 16))),
    Case("dinov2_manifests.json", "transformers", partial(transformers_manifest, HUB)),
    Case("dinov2_manifests.json", "timm", partial(timm_manifest, TIMM)),
)
