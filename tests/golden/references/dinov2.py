"""DINOv2, with and without registers, from transformers and timm."""

from functools import partial
from typing import Any

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
# transformers takes the hidden width from the width, 4 · 16, and of SwiGLU 2/3, in eights: 48.
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
    Case("dinov2_manifests.json", "transformers", partial(transformers_manifest, HUB)),
    Case("dinov2_manifests.json", "timm", partial(timm_manifest, TIMM)),
)
