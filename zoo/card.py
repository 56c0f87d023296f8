"""What must travel with weights for them to be used: preprocessing, labels, licence, source."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a model's input: resize the shorter side to `size / crop`, cut the centre
    `size` × `size`, scale to [0, 1], subtract `mean`, divide by `std` (one or one per channel)."""

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
    preprocess: Preprocess = Preprocess()
    labels: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Card":
        sizes = dict(facts.get("preprocess", {}))
        for key in ("mean", "std"):
            sizes[key] = tuple(sizes.get(key, IMAGENET[key]))
        rest = {
            **facts,
            "labels": tuple(facts.get("labels", ())),
            "preprocess": Preprocess(**sizes),
        }
        return cls(**rest)


def from_hugging_face(facts: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """The card's fields that `config.json` and `preprocessor_config.json` of a repository state."""
    labels = facts.get("id2label", {})
    size = processor.get("size", 224)
    size = size.get("shortest_edge", size.get("height", 224)) if isinstance(size, dict) else size
    resampling = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # of PIL
    return {
        "labels": tuple(labels[key] for key in sorted(labels, key=int)),
        "preprocess": Preprocess(
            size=size,
            crop=processor.get("crop_pct", 0.875),
            interpolation=resampling[processor.get("resample", 2)],
            mean=tuple(processor.get("image_mean", IMAGENET["mean"])),
            std=tuple(processor.get("image_std", IMAGENET["std"])),
        ),
    }
