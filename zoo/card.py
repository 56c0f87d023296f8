"""What must travel with weights for them to be used: preprocessing, labels, licence, source."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from zoo.spec import Size

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OPENAI = {  # of CLIP's pictures
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # PIL's numbers
Mode = Literal["crop", "squash"]
Convention = Literal["zoo", "transformers", "timm"]


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a model's input: resize, cut the centre `size` out, scale to [0, 1],
    subtract `mean`, divide by `std` (one or one per channel). See `zoo.preprocess`.

    mode: "crop" keeps the shape of the picture and resizes it until it covers `size / crop`;
    "squash" resizes it to exactly `size / crop`. `size` is the side of a square or (height, width).
    convention: whose arithmetic of half pixels. "zoo": sides are rounded, and a picture that has
    `size` already is neither resized nor cut. "transformers": sides are rounded down. "timm" (and
    torchvision): so too, and the corner of the cut is rounded half to even.
    Raises ValueError for what no picture can be prepared with.
    """

    size: Size = 224
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET["mean"]
    std: tuple[float, ...] = IMAGENET["std"]
    mode: Mode = "crop"
    convention: Convention = "zoo"

    def __post_init__(self) -> None:
        lengths = (self.size,) if isinstance(self.size, int) else tuple(self.size)
        if len(lengths) > 2 or not all(type(x) is int and x > 0 for x in lengths):
            raise ValueError(f"preprocess: size is {self.size!r}: a side or (height, width)")
        if not 0 < self.crop <= 1:
            raise ValueError(f"preprocess: crop is {self.crop!r}: a share of the side, at most 1")
        if not self.mean or not self.std or 0 in self.std:
            raise ValueError(f"preprocess: mean {self.mean!r} and std {self.std!r}: std is not 0")
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise ValueError(
                    f"preprocess: {key} is {getattr(self, key)!r}: one of {', '.join(known)}"
                )


CHOICES = {
    "interpolation": RESAMPLING,
    "mode": get_args(Mode),
    "convention": get_args(Convention),
}


@dataclass(frozen=True)
class Card:
    """Saved as `card.json` beside weights and in workdirs. Unknown facts stay empty; `notes` say
    why, where the source states one that cannot be held."""

    model: str
    config: Mapping[str, Any]
    paper: str = ""
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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


# What others state.


def stated(
    facts: Mapping[str, Any], processor: Mapping[str, Any], readme: str = ""
) -> dict[str, Any]:
    """The card's fields that a repository's `config.json` (Hugging Face's or timm's) or
    `open_clip_config.json`, `preprocessor_config.json` and README state, and no others.

    What `Preprocess` cannot represent is None, with the reason among the notes.
    """
    timm = facts.get("pretrained_cfg") or (facts if "input_size" in facts else {})
    known: dict[str, Any] = {
        "labels": _timm_labels({**timm, **facts}) if timm else _labels(facts.get("id2label") or {}),
        "licence": timm.get("license") or _front_matter(readme).get("license", ""),
    }
    try:
        if timm:
            known["preprocess"] = _timm(timm)
        elif "preprocess_cfg" in facts:
            known["preprocess"] = _open_clip(facts["preprocess_cfg"], facts["model_cfg"])
        elif processor:
            known["preprocess"] = _transformers(processor, facts.get("model_type", ""))
    except Unrepresentable as reason:
        known |= {"preprocess": None, "notes": (f"no preprocessing: {reason}",)}
    return {key: value for key, value in known.items() if value}


class Unrepresentable(ValueError):
    """A way of preparing pictures that `Preprocess` has no words for."""


def _labels(names: Mapping[str, str]) -> tuple[str, ...]:
    """Of `id2label`, in the order of its numbers; those that only count on are no names."""
    labels = tuple(names[key] for key in sorted(names, key=int))
    return () if labels == tuple(f"LABEL_{i}" for i in range(len(labels))) else labels


def _timm_labels(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """`label_names`, a list or {number: name}, each in the words of `label_descriptions`."""
    names, words = facts.get("label_names") or (), facts.get("label_descriptions") or {}
    if isinstance(names, Mapping):
        names = [names.get(str(i), f"class {i}") for i in range(1 + max(map(int, names)))]
    return tuple(words.get(name, name) for name in names)


def _timm(cfg: Mapping[str, Any]) -> Preprocess:
    """Of the size that the weights are for (`input_size`), not the larger one that timm may test
    at. What is absent or null is as in timm.data.resolve_data_config."""
    stated = {key: value for key, value in cfg.items() if value is not None}
    modes: dict[str, Mode] = {"center": "crop", "squash": "squash"}
    mode, interpolation = stated.get("crop_mode", "center"), stated.get("interpolation", "bicubic")
    if mode not in modes:
        raise Unrepresentable(f"config.json: crop_mode {mode!r} pads the picture")
    if interpolation not in RESAMPLING:
        raise Unrepresentable(f"config.json: interpolation {interpolation!r} names no filter")
    _, height, width = stated.get("input_size", (3, 224, 224))
    return Preprocess(
        _size(height, width),
        stated.get("crop_pct", 0.875),
        interpolation,
        tuple(stated.get("mean", IMAGENET["mean"])),
        tuple(stated.get("std", IMAGENET["std"])),
        modes[mode],
        convention="timm",
    )


def _open_clip(cfg: Mapping[str, Any], model: Mapping[str, Any]) -> Preprocess:
    """What is absent is as in its PreprocessCfg (open_clip/transform.py); torchvision resizes."""
    modes: dict[str, Mode] = {"shortest": "crop", "squash": "squash"}
    mode, size = cfg.get("resize_mode", "shortest"), model["vision_cfg"].get("image_size", 224)
    if mode not in modes:
        raise Unrepresentable(f"open_clip_config.json: resize_mode {mode!r} pads the picture")
    interpolation = cfg.get("interpolation", "bicubic")
    if interpolation not in RESAMPLING:
        raise Unrepresentable(f"open_clip_config.json: interpolation is {interpolation!r}")
    mean, std = (tuple(cfg.get(key, OPENAI[key])) for key in ("mean", "std"))
    side: Any = size if isinstance(size, int) else tuple(size)
    return Preprocess(side, 1.0, interpolation, mean, std, modes[mode], convention="timm")


# Image processors by the beginning of their class's name: what each does where its file is silent.
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"resample": 2, "side": "square"},
    "DeiT": {"resample": 3, "side": "square", "do_center_crop": True},
    "Bit": {"resample": 3, "side": "shortest_edge", "do_center_crop": True},
    "CLIP": {"resample": 3, "side": "shortest_edge", "do_center_crop": True},
    "Siglip": {"resample": 3, "side": "square"},
    "ConvNext": {"resample": 3, "side": "crop_pct", "crop_pct": 224 / 256},
}
MODEL_PROCESSORS = {  # for files that name no class
    "clip": "CLIP",
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "siglip": "Siglip",
    "resnet": "ConvNext",
}
SQUASHED = 384  # from this size on a ConvNext processor squashes, and keeps everything in the cut


def _transformers(processor: Mapping[str, Any], model_type: str) -> Preprocess:
    """Of `preprocessor_config.json`, as its class reads it; the older files name a feature
    extractor, or no class, and give sizes as numbers."""
    name = processor.get("image_processor_type") or processor.get("feature_extractor_type") or ""
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    kind = kind or MODEL_PROCESSORS.get(model_type, "")
    if kind not in PROCESSORS:
        raise Unrepresentable(
            f"preprocessor_config.json: {name or 'no class'} is none of those known: "
            f"{', '.join(PROCESSORS)} (+ ImageProcessor)"
        )
    said = {key: value for key, value in processor.items() if value is not None}
    facts = {**PROCESSORS[kind], **said, "side": PROCESSORS[kind]["side"]}
    if not facts.get("do_resize", True):
        raise Unrepresentable("preprocessor_config.json: do_resize is false, all sizes pass")
    if facts["resample"] not in range(len(RESAMPLING)):
        raise Unrepresentable(f"preprocessor_config.json: resample is {facts['resample']!r}")
    size, crop, mode = _cut(facts)
    mean, std = _scale(facts)
    return Preprocess(size, crop, RESAMPLING[facts["resample"]], mean, std, mode, "transformers")


def _cut(facts: Mapping[str, Any]) -> tuple[Size, float, Mode]:
    """(size, crop, mode) from `size`, and `crop_pct` or `crop_size`."""
    height, width = _stated_sides(facts, "size")
    mode, cuts = "squash" if _exact(facts) else "crop", facts.get("do_center_crop", False)
    if facts["side"] == "crop_pct":
        if mode == "squash" or cuts:
            raise Unrepresentable("preprocessor_config.json: its class takes a shortest_edge alone")
        return (height, 1.0, "squash") if height >= SQUASHED else (height, facts["crop_pct"], mode)
    if not cuts:
        if mode == "crop":
            raise Unrepresentable("preprocessor_config.json: no cut, so that sizes would differ")
        return _size(height, width), 1.0, mode
    cut = _stated_sides(facts, "crop_size")
    crop = _share(cut[0], height)
    if int(cut[1] / crop) != width or (mode == "crop" and cut[0] != cut[1]):
        raise Unrepresentable(
            f"preprocessor_config.json: {cut} cut out of {(height, width)} has another shape"
        )
    return _size(*cut), crop, mode


def _exact(facts: Mapping[str, Any]) -> bool:
    """Whether `size` is the height and width, rather than the shorter side."""
    if isinstance(facts["size"], Mapping):
        return "height" in facts["size"]
    return facts["side"] == "square"


SIDES = ({"shortest_edge"}, {"height", "width"})


def _stated_sides(facts: Mapping[str, Any], key: str) -> tuple[int, int]:
    """(height, width); of a shortest edge or a lone number, twice that."""
    if key not in facts:
        raise Unrepresentable(f"preprocessor_config.json: {key} is not stated")
    stated = facts[key] if isinstance(facts[key], Mapping) else {"shortest_edge": facts[key]}
    named = {name: value for name, value in stated.items() if value is not None}
    found = named.get("shortest_edge", (named.get("height"), named.get("width")))
    height, width = found if isinstance(found, tuple) else (found, found)
    if named.keys() not in SIDES or type(height) is not int or type(width) is not int:
        raise Unrepresentable(f"preprocessor_config.json: {key} is {facts[key]!r}")
    return height, width


def _share(size: int, resized: int) -> float:
    """The `crop` for which `size / crop`, rounded down, is `resized`."""
    if size > resized:
        raise Unrepresentable(
            f"preprocessor_config.json: {size} cut out of {resized} pads the picture"
        )
    share = size / resized
    return share if int(size / share) == resized else math.nextafter(share, 0)


def _scale(facts: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of pixels in [0, 1], whatever range the processor scales them to."""
    factor = facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
    unit = 255 * factor
    unit = 1.0 if math.isclose(unit, 1.0, rel_tol=1e-6) else unit  # 0.00392… is 1/255, cut short
    if not facts.get("do_normalize", True):
        return (0.0,), (1 / unit,)
    if missing := [key for key in ("image_mean", "image_std") if facts.get(key) is None]:
        raise Unrepresentable(f"preprocessor_config.json: {missing[0]} is not stated")
    mean, std = (_several(facts[key]) for key in ("image_mean", "image_std"))
    return tuple(x / unit for x in mean), tuple(x / unit for x in std)


def _several(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _size(height: int, width: int) -> Size:
    return height if height == width else (height, width)


def _front_matter(readme: str) -> dict[str, str]:
    """The one-line entries of the YAML between the lines `---` at the top; lists are left out."""
    found = re.match(r"---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    lines = found[1].splitlines() if found else []
    entries = (re.fullmatch(r"(\w+):\s+['\"]?([^'\"#\[]+?)['\"]?\s*", line) for line in lines)
    known = {entry[1]: entry[2] for entry in entries if entry}
    return known | ({"license": known["license_name"]} if "license_name" in known else {})
