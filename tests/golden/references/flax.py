"""ViT and ResNet from the Flax classes that transformers 4.57 was the last to have.

Each npz also holds, as bytes, the `flax_model.msgpack` and `config.json` that the class saved:

    file/flax_model.msgpack, file/config.json    uint8
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fill import fill, image

from references.common import Case, Recording, blocks, meta, versions

FILES = ("flax_model.msgpack", "config.json")


def evaluate(kind: str, size: tuple[int, int], case: str, **config: Any) -> Recording:
    """Evaluation mode, in float64. kind: the class; size: height and width of two images."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    model, x = build(kind, config), image(case, (2, *size, 3))
    flat = flatten(model.params)
    model.params = unflatten({name: fill(name, leaf.shape) for name, leaf in flat.items()})
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), model.params)
    output, seen = model.module.apply(
        wide if "params" in wide else {"params": wide},
        x.astype(np.float64),
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    states = {
        name.removesuffix("/__call__/0"): state for name, state in flatten_states(seen).items()
    }
    base = f"{model.base_model_prefix}/" if config["num_classes"] else ""
    hidden = {f"hidden/{ours}": states[base + theirs] for ours, theirs in parts(config).items()}
    logits = (
        {"logits": output.logits} if config["num_classes"] else {"representation": pooled(output)}
    )
    rows = [[name, list(leaf.shape), "float32"] for name, leaf in flat.items()]
    header = meta(case, versions("transformers", "flax", "jax"), config, x.shape, tensors=rows)
    arrays = {name: np.asarray(a, np.float32) for name, a in {**hidden, **logits}.items()}
    return {"meta": header, "input": x, **arrays, **saved(model)}


def build(kind: str, config: Mapping[str, Any]) -> Any:
    import jax.numpy as jnp
    import transformers

    cls = getattr(transformers, kind)
    stated = (vit_config if "patch" in config else resnet_config)(**config)
    return cls(cls.config_class(**stated, num_labels=config["num_classes"] or 2), dtype=jnp.float64)


def vit_config(**config: Any) -> dict[str, Any]:
    return {
        "hidden_size": config["width"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "intermediate_size": config["mlp"],
        "hidden_act": {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[config.get("gelu", "erf")],
        "layer_norm_eps": config["epsilon"],
        "image_size": config["image_size"],
        "patch_size": config["patch"],
        "qkv_bias": config.get("qkv_bias", True),
        "pooler_output_size": config.get("representation"),
    }


def resnet_config(**config: Any) -> dict[str, Any]:
    return {
        "embedding_size": config["stem_width"],
        "hidden_sizes": list(config["widths"]),
        "depths": list(config["depths"]),
        "layer_type": config["block"],
    }


def parts(config: Mapping[str, Any]) -> dict[str, str]:
    """Our name → the path of the Flax module whose output it is."""
    if "patch" in config:
        layers = {f"block_{i}": f"encoder/layer/{i}" for i in range(config["depth"])}
        return {**layers, "norm": "layernorm"}
    stages = blocks(config["depths"], "encoder/stages/{stage}/layers/{block}")
    return {"stem": "embedder", **stages}


def pooled(output: Any) -> Any:
    """Of a base model: [b, c], or [b, c, 1, 1] as a ResNet has it."""
    return output.pooler_output.reshape(output.pooler_output.shape[:2])


def flatten(tree: Any) -> dict[str, Any]:
    from flax.traverse_util import flatten_dict

    return flatten_dict(tree, sep="/")


def flatten_states(seen: Any) -> dict[str, Any]:
    """What every module returned by its path; of several values, which a layer may return, the
    first."""
    found = flatten(seen["intermediates"])
    return {name.removesuffix("/__call__"): first(values) for name, values in found.items()}


def first(value: Any) -> Any:
    while isinstance(value, tuple):
        value = value[0]
    return value


def unflatten(leaves: Mapping[str, Any]) -> Any:
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(dict(leaves), sep="/")


def saved(model: Any) -> Recording:
    """The bytes of what the class writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {f"file/{name}": np.fromfile(Path(folder) / name, np.uint8) for name in FILES}


# An ε of 1e-3 shows where another is used: published ones are too small to change a tiny model.
VIT = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp": 24, "epsilon": 1e-3}
RESNET = {"depths": (1, 2, 1, 1), "stem_width": 8}
MODELS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {  # class, image, our Config
    "vit_flax": (
        "FlaxViTForImageClassification",
        (16, 16),
        {**VIT, "image_size": 16, "num_classes": 5},
    ),
    "vit_flax_pooler": (
        "FlaxViTModel",
        (24, 24),
        {
            **VIT,
            "representation": 12,
            "gelu": "tanh",
            "qkv_bias": False,
            "image_size": 24,
            "num_classes": 0,
        },
    ),
    "resnet_flax": (
        "FlaxResNetForImageClassification",
        (33, 47),
        {**RESNET, "widths": (16, 16, 24, 24), "block": "bottleneck", "num_classes": 5},
    ),
    "resnet_flax_basic": (
        "FlaxResNetModel",
        (33, 31),
        {**RESNET, "widths": (8, 8, 8, 12), "block": "basic", "num_classes": 0},
    ),
}
CASES = tuple(
    Case(name, "flax", partial(evaluate, kind, size, **config))
    for name, (kind, size, config) in MODELS.items()
)
