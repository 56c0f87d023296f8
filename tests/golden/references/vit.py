"""ViT and DeiT from transformers, timm and Google's own JAX code."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from fill import fill, image

from references.common import (
    Case,
    Recording,
    Reference,
    evaluate,
    filled,
    filled_file,
    import_torchvision,
    meta,
    saved,
    tensors,
    timm_manifest,
    train,
    transformers_manifest,
    versions,
)
from references.flax import flatten, flatten_states, unflatten


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


# Google's own JAX code, which no package has: record.py says where it is. It computes in float32,
# by the dtypes that its modules name.


class Google(NamedTuple):
    """A model of theirs. states: (parameters, images) → output, hidden states by our names."""

    model: Any
    states: Callable[[Any, np.ndarray], tuple[Any, dict[str, Any]]]
    prefix: str = ""  # of the names in files


def vit_jax(**config: Any) -> Google:
    from vit_jax.models_vit import VisionTransformer

    model = VisionTransformer(
        num_classes=config["num_classes"],
        patches=SimpleNamespace(size=(config["patch"],) * 2),
        transformer={
            "num_layers": config["depth"],
            "num_heads": config["heads"],
            "mlp_dim": config["mlp"],
        },
        hidden_size=config["width"],
        representation_size=config.get("representation"),
        classifier="token",
    )
    parts = {f"block_{i}": f"Transformer/encoderblock_{i}" for i in range(config["depth"])}
    parts["norm"] = "Transformer/encoder_norm"

    def states(params: Any, x: np.ndarray) -> tuple[Any, dict[str, Any]]:
        output, seen = model.apply(
            {"params": params},
            x,
            train=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        seen = flatten_states(seen)
        return output, {ours: seen[theirs] for ours, theirs in parts.items()}

    return Google(model, states)


def big_vision(scan: bool = False, **config: Any) -> Google:
    # What it trains with, TensorFlow among it: the model's file imports this and calls it to load.
    sys.modules["big_vision.utils"] = ModuleType("big_vision.utils")
    from big_vision.models.vit import Model

    model = Model(
        config["num_classes"],
        patch_size=(config["patch"],) * 2,
        width=config["width"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_dim=config["mlp"],
        rep_size=config.get("representation", False),
        pool_type="tok" if config["class_token"] else "gap",
        scan=scan,
    )

    def states(params: Any, x: np.ndarray) -> tuple[Any, dict[str, Any]]:
        output, out = model.apply({"params": params}, x)
        blocks = {
            f"block_{i}": out["encoder"][f"block{i:02d}"]["+mlp"] for i in range(config["depth"])
        }
        return output, {**blocks, "norm": out["encoded"]}

    return Google(model, states, "params/")


LIBRARIES = {"vit_jax": vit_jax, "big_vision": big_vision}
# Before Linen, Flax counted all parts of a layer together: so they are called in vit_jax's files.
PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}


def google(
    library: str,
    case: str,
    *,
    names: Mapping[str, str] = MappingProxyType({}),
    options: Mapping[str, Any] = MappingProxyType({}),
    **config: Any,
) -> Recording:
    """Evaluation mode. names: what parts of a layer are called in files, where that differs;
    options: of the model, beside our `config`."""
    import jax
    from flax.training.checkpoints import convert_pre_linen

    jax.config.update("jax_platforms", "cpu")
    side = config["image_size"]
    reference, x = LIBRARIES[library](**options, **config), image(case, (2, side, side, 3))
    init = partial(reference.model.init, train=False)
    shapes = flatten(jax.eval_shape(init, jax.random.key(0), x)["params"])
    shapes = {_in_file(name, names): leaf.shape for name, leaf in shapes.items()}
    filled = {name: fill(reference.prefix + name, shape) for name, shape in shapes.items()}
    # Both repositories' loaders call it, whatever the file.
    output, hidden = reference.states(convert_pre_linen(unflatten(filled)), x)
    rows = tensors({reference.prefix + name: array for name, array in filled.items()})
    made_by = {library: commit(library), **versions("flax", "jax")}
    header = meta(case, made_by, config, x.shape, tensors=rows)
    arrays = {f"hidden/{name}": state for name, state in hidden.items()}
    arrays["logits" if config["num_classes"] else "representation"] = output
    return {"meta": header, "input": x, **{name: np.asarray(a) for name, a in arrays.items()}}


def _in_file(name: str, names: Mapping[str, str]) -> str:
    return "/".join(names.get(part, part) for part in name.split("/"))


def commit(library: str) -> str:
    """Of the clone that it is imported from."""
    (folder,) = import_module(library).__path__
    command = ["git", "-C", folder, "rev-parse", "--short=7", "HEAD"]
    return subprocess.check_output(command, text=True).strip()


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
LIKE_GOOGLE = {**SIZES, "gelu": "tanh", "positions": "linear", "image_size": 16, "num_classes": 5}
VIT_JAX = partial(google, "vit_jax", **LIKE_GOOGLE)
TOK = partial(google, "big_vision", **LIKE_GOOGLE, class_token=True)
GAP = partial(google, "big_vision", **LIKE_GOOGLE, class_token=False, pool="mean")
GOOGLE_CASES = {
    "vit_vit_jax": partial(VIT_JAX, names=PRE_LINEN),
    "vit_vit_jax_pre_logits": partial(VIT_JAX, names=PRE_LINEN, representation=12),
    "vit_vit_jax_linen": VIT_JAX,
    "vit_big_vision": GAP,
    "vit_big_vision_scan": partial(GAP, options={"scan": True}),
    "vit_big_vision_tok": TOK,
    "vit_big_vision_rep_size": partial(GAP, representation=12, num_classes=0),
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
    *(case("timm", name, build) for name, build in TIMM_CASES.items()),
    *(Case(name, record.args[0], record) for name, record in GOOGLE_CASES.items()),
    Case("vit_manifests.json", "transformers", partial(transformers_manifest, HUB)),
    Case("vit_manifests.json", "timm", partial(timm_manifest, TIMM)),
)
