"""What must travel with weights for them to be used: preprocessing, labels, licence, source."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a model's input: resize the shorter side to `size / crop`, cut the centre
    `size` × `size`, scale to [0, 1], subtract `mean`, divide by `std` (one or one per channel).
    A picture that is `size` × `size` already is neither resized nor cut."""

    size: int = 224
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET["mean"]
    std: tuple[float, ...] = IMAGENET["std"]


@dataclass(frozen=True)
class Card:
    """Saved as `card.json` beside weights and in workdirs. Unknown facts stay empty."""

    model: str
    config: Mapping[str, Any]
    paper: str = ""
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Card":
        """The inverse of `to_json`; keys of a later version are left out."""
        known = {f.name: facts[f.name] for f in fields(cls) if f.name in facts}
        known = {key: _tuples(value) for key, value in known.items()}
        if sizes := known.get("preprocess"):
            known["preprocess"] = Preprocess(**sizes)
        return cls(**known)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # PIL's numbers


def stated(facts: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """The card's fields that a repository's `config.json` (Hugging Face's or timm's) and
    `preprocessor_config.json` state, and no others."""
    labels = facts.get("id2label", {})
    names = {"labels": tuple(labels[key] for key in sorted(labels, key=int))}
    if cfg := facts.get("pretrained_cfg"):
        timm = Preprocess(
            size=cfg["input_size"][-1],
            crop=cfg["crop_pct"],
            interpolation=cfg["interpolation"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
        )
        return {**names, "preprocess": timm, "licence": cfg.get("license") or ""}
    if processor:
        size = processor.get("size", 224)
        if isinstance(size, Mapping):
            size = size.get("shortest_edge", size.get("height", 224))
        hugging_face = Preprocess(
            size=size,
            crop=processor.get("crop_pct") or 0.875,
            interpolation=RESAMPLING[processor.get("resample", 2)],
            mean=tuple(processor.get("image_mean", IMAGENET["mean"])),
            std=tuple(processor.get("image_std", IMAGENET["std"])),
        )
        return {**names, "preprocess": hugging_face}
    return names
