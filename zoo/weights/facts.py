"""What files of several ViTs say in the same way, both ways; most of it stands in `config.json`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.spec import sides
from zoo.weights.convert import DENSE, SAME, Op, Row, WeightsError, dense, layer_norm, split


def choice(facts: Mapping[str, Any], key: str, known: Mapping[Any, Any], default: Any) -> Any:
    """What the value of a key means. Raises WeightsError for a value that is not known."""
    value = facts.get(key, default)
    if value not in known:
        supported = " or ".join(repr(name) for name in known)
        raise WeightsError(f"config.json: {key} is {value!r}, only {supported} is supported")
    return known[value]


def number(facts: Mapping[str, Any], key: str, default: Any, *, least: float = 0) -> Any:
    """What a key states, or the default. Raises WeightsError for what is no number, such as null,
    and for one below the least."""
    value = facts.get(key, default)
    if type(value) not in (int, float) or not value >= least:
        raise WeightsError(f"config.json: {key} is {value!r}, not a number of {least} or more")
    return value


def size(value: int | list[int]) -> int | tuple[int, ...]:
    """A side or (height, width), as JSON has it."""
    return value if isinstance(value, int) else tuple(value)


def side(value: int | list[int]) -> int:
    """Of a square. Raises WeightsError for another rectangle."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise WeightsError(f"patches {value} are not square: only square ones are supported")
    return sides.pop()


def square(patches: int, patch: int) -> int:
    """The side of a square image of so many patches."""
    side = math.isqrt(patches)
    if side**2 != patches:
        raise WeightsError(
            f"{patches} positions are of no square image, and nothing states its size"
        )
    return side * patch


def count(tensors: Mapping[str, Any], pattern: str) -> int:
    """How many layers there are: names with 0, 1, …"""
    found = 0
    while pattern.format(found) in tensors:
        found += 1
    return found


def sum_of(cls: np.ndarray, position: np.ndarray) -> np.ndarray:
    """To the bit the first where the second is 0."""
    return cls + position if position.any() else cls


# (token [1, 1, d], positions [1, n, d]) of files whose class token has no position: it is added to
# the token itself when weights come to such a file, and is 0 when they come from one.
NO_EMBED_CLASS = Op(
    lambda cls, patches: (cls[0, 0], np.concatenate([np.zeros_like(cls[0]), patches[0]])),
    lambda cls, rows: (sum_of(cls, rows[0])[None, None], rows[None, 1:]),
)


# Hugging Face.


def read_facts(facts: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that all of Hugging Face's ViTs state under the same keys, as fields of a Config.

    Raises WeightsError without a `config.json` and for a key whose value is not as `fixed` says.
    """
    if not facts:
        raise WeightsError("these names need the config.json that belongs to them: put it beside")
    for key, value in fixed.items():
        choice(facts, key, {value: value}, value)
    return {
        "patch": side(facts.get("patch_size", 16)),
        "width": facts.get("hidden_size", 768),
        "depth": facts.get("num_hidden_layers", 12),
        "heads": facts.get("num_attention_heads", 12),
        "qkv_bias": facts.get("qkv_bias", True),
        "image_size": size(facts.get("image_size", 224)),
        "in_channels": facts.get("num_channels", 3),
    }


def write_facts(config: Any) -> dict[str, Any]:
    """The inverse of `read_facts`, with what both read in their own way."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.image_size,
        "num_channels": config.in_channels,
        "qkv_bias": config.qkv_bias,
        "layer_norm_eps": config.epsilon,
        "attention_probs_dropout_prob": 0.0,
    }


def check_depth(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """`check_layers` of an encoder's tensors."""
    numbers = (re.search(r"encoder\.layer\.(\d+)\.", name) for name in tensors)
    found = len({number[1] for number in numbers if number})
    check_layers(facts.get("num_hidden_layers", 12), found)


def check_layers(stated: Any, found: int) -> None:
    """Raises WeightsError where `config.json` speaks of another number of layers than the tensors
    are of: a wrong one may be so large that nothing could be built."""
    if stated != found:
        raise WeightsError(f"config.json: {stated} layers, but the tensors are of {found}")


def hf_classes(tensors: Mapping[str, Any], facts: Mapping[str, Any], *heads: str) -> int:
    """How many classes the biases `heads` have, 0 where there is none. Raises WeightsError where
    `config.json` speaks of another number, or of a classifier that the file has not."""
    found = {tensors[name].shape[0] for name in heads if name in tensors}
    classes = found.pop() if found else 0
    promised = [name for name in facts.get("architectures") or () if "Classification" in name]
    if promised and not classes:
        raise WeightsError(
            f"config.json: architectures is {promised}, but the file has no classifier; "
            "fetch it again, or name the class of the base model there"
        )
    names = facts.get("id2label")
    labels = facts.get("num_labels", classes) if names is None else len(names)
    if classes and labels != classes:
        raise WeightsError(f"config.json: {labels} labels, but the classifier has {classes}")
    return classes


def labels(classes: int, card: Any) -> dict[str, Any]:
    """The names of the classes, which Hugging Face counts to know how many there are."""
    if not classes:
        return {}
    if card.labels and len(card.labels) != classes:
        raise WeightsError(
            f"the card has {len(card.labels)} labels, but the model {classes} classes"
        )
    names = card.labels or tuple(f"LABEL_{i}" for i in range(classes))
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


# timm.


def timm_attention(theirs: str, ours: str) -> list[Row]:
    kernels = tuple(f"params/{ours}/{name}/kernel" for name in "qkv")
    biases = tuple(f"params/{ours}/{name}/bias" for name in "qkv")
    return [
        Row(f"{theirs}.qkv.weight", kernels, split(DENSE, 3)),
        Row(f"{theirs}.qkv.bias", biases, split(SAME, 3)),
        *layer_norm(f"{theirs}.q_norm", f"{ours}/q_norm"),
        *layer_norm(f"{theirs}.k_norm", f"{ours}/k_norm"),
        *dense(f"{theirs}.proj", f"{ours}/out"),
    ]


def timm_args(
    facts: Mapping[str, Any], read: Sequence[str], fixed: Mapping[str, tuple[Any, ...]]
) -> Mapping[str, Any]:
    """`model_args`, where a model differs from its architecture. Raises WeightsError for one that
    is neither read nor has the only value that is supported."""
    args = facts.get("model_args") or {}
    for key, value in args.items():
        if key not in read and value not in fixed.get(key, ()):
            raise WeightsError(f"config.json: model_args has {key}={value!r}: not supported")
    return args


def timm_classes(tensors: Mapping[str, Any], facts: Mapping[str, Any], head: str = "head") -> int:
    """How many classes the head has, 0 where there is none. Raises WeightsError where `config.json`
    speaks of another number."""
    found = (f"{head}.weight", f"{head}.bias")
    classes = next((tensors[name].shape[0] for name in found if name in tensors), 0)
    stated = facts.get("num_classes", classes)
    if stated != classes:
        raise WeightsError(f"config.json: {stated} classes, but the file's head has {classes}")
    return classes


def timm_sizes(tensors: Mapping[str, Any], facts: Mapping[str, Any], prefix: int) -> dict[str, Any]:
    """What all of timm's ViTs show in the same way, as fields of a Config. prefix: how many tokens
    with a position stand in front of the patches."""
    width, channels, patch, across = tensors["patch_embed.proj.weight"].shape
    return {
        "patch": side([patch, across]),
        "width": width,
        "depth": count(tensors, "blocks.{}.norm1.weight"),
        "heads": timm_heads(tensors, facts, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "positions": "antialias",
        "image_size": timm_image(facts, tensors["pos_embed"].shape[1] - prefix, patch),
        "in_channels": channels,
    }


# Published models, by width.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
ODD_HEADS = {"vit_base_patch16_gap_224": 16}


def timm_heads(tensors: Mapping[str, Any], facts: Mapping[str, Any], width: int) -> int:
    """Raises WeightsError where neither `config.json` nor a norm of each head shows how many."""
    if "blocks.0.attn.q_norm.weight" in tensors:
        return width // tensors["blocks.0.attn.q_norm.weight"].shape[0]
    heads = (facts.get("model_args") or {}).get("num_heads")
    heads = heads or ODD_HEADS.get(facts.get("architecture", ""), HEADS.get(width))
    if heads is None:
        raise WeightsError(
            f"how many heads share the width {width} is not in the tensors: put a config.json "
            'beside them with "model_args": {"num_heads": …}'
        )
    return heads


def timm_image(facts: Mapping[str, Any], patches: int, patch: int) -> Any:
    """As `config.json` states it, if it has as many patches; else of a square image. timm writes
    the size of a square as a pair too."""
    stated = (facts.get("model_args") or {}).get("img_size")
    tested = (facts.get("pretrained_cfg") or facts).get("input_size") or (0, 0, 0)
    height, width = sides(stated) if stated else tested[1:]
    if not stated and (height // patch) * (width // patch) != patches:
        return square(patches, patch)
    return height if height == width else (height, width)


def timm_model_args(config: Any, hidden: int) -> dict[str, Any]:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch,
        "in_chans": config.in_channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": ratio(hidden, config.width),
        "qkv_bias": config.qkv_bias,
    }


def ratio(hidden: int, width: int) -> float:
    """The number that times the width, rounded down, is the hidden width."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)


def timm_json(
    architecture: str,
    config: Any,
    args: Mapping[str, Any],
    card: Any,
    *,
    width: int,
    pool: str,
    ends: tuple[str, Any],
    fixed: bool,
) -> dict[str, Any]:
    """timm's `config.json`; of the pictures only what the card knows.

    width: of the features that enter the head. ends: timm's names of the first layer and of the
    head, or of several heads. fixed: whether pictures of another size need other weights.
    """
    known, pictures = card.preprocess, {}
    if known is not None:
        modes = {"crop": "center", "squash": "squash"}
        pictures = {
            "crop_pct": known.crop,
            "crop_mode": modes[known.mode],
            "interpolation": known.interpolation,
            "mean": list(known.mean),
            "std": list(known.std),
        }
    first, head = ends
    return {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": width,
        "global_pool": pool,
        **({"label_names": list(card.labels)} if card.labels else {}),
        "model_args": dict(args),
        "pretrained_cfg": {
            "input_size": [config.in_channels, *sides(config.image_size)],
            "fixed_input_size": fixed,
            "num_classes": config.num_classes,
            "first_conv": first,
            "classifier": head,
            **pictures,
            **({"license": card.licence} if card.licence else {}),
        },
    }


def timm_vit_json(
    architecture: str, config: Any, args: Mapping[str, Any], pool: str, head: Any, card: Any
) -> dict[str, Any]:
    facts = {"width": config.width, "pool": pool, "fixed": True}
    return timm_json(architecture, config, args, card, ends=("patch_embed.proj", head), **facts)
