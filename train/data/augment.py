"""Augmentation: numpy and Pillow, uint8 [h, w, c] in and out, c = 1 or 3.

An augmentation is a function (image, rng) → image whose randomness comes from the numpy Generator
alone. A config names them in order, with numbers after colons: ("random_resized_crop", "flip",
"randaugment:2:9"). What moves in from outside a picture is black (0).
"""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from train.config import ConfigError, Pictures
from zoo.preprocess import from_picture, to_picture

Array = np.ndarray
Augmentation = Callable[[Array, np.random.Generator], Array]
BILINEAR = Image.Resampling.BILINEAR

CROP_RATIO = 0.875  # of the shorter side that the evaluation crop keeps: 224 of 256

# ---- size ----


def resize_and_crop(image: Array, size: int) -> Array:
    """Shorter side to size / CROP_RATIO, then the central size × size; as it is if of that size."""
    height, width, _ = image.shape
    if (height, width) == (size, size):
        return image
    scale = round(size / CROP_RATIO) / min(height, width)
    picture = to_picture(image).resize((round(width * scale), round(height * scale)), BILINEAR)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return from_picture(picture.crop((left, top, left + size, top + size)))


def random_resized_crop(
    image: Array, rng: np.random.Generator, min_area: float = 0.08, *, size: int | None
) -> Array:
    """A random part, resized to size × size (None: to the picture's own size).

    Area uniform in [min_area, 1] of the picture, aspect ratio log-uniform in [3/4, 4/3] (Szegedy et
    al., 2014, arXiv:1409.4842, section 6). Ten tries; then the largest central part within those
    ratios.
    """
    height, width, _ = image.shape
    left, top, w, h = _random_box(height, width, min_area, rng)
    target = (width, height) if size is None else (size, size)
    box = (left, top, left + w, top + h)
    return from_picture(to_picture(image).resize(target, BILINEAR, box=box))


def _random_box(
    height: int, width: int, min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = max(1, min(width, round(height * 4 / 3)))
    h = max(1, min(height, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h


# ---- place and colour ----


def crop(image: Array, rng: np.random.Generator, pad: int) -> Array:
    """Zero-pads each side by `pad` pixels and cuts the picture's size out at a random place."""
    height, width, channels = image.shape
    top, left = rng.integers(2 * pad + 1, size=2)
    padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), np.uint8)
    padded[pad : pad + height, pad : pad + width] = image  # np.pad takes ten times as long
    return padded[top : top + height, left : left + width]


def flip(image: Array, rng: np.random.Generator) -> Array:
    """Mirrors left and right, every other time."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def rotate(image: Array, rng: np.random.Generator, degrees: float) -> Array:
    """Turns about the centre by an angle uniform in ±degrees."""
    return from_picture(_turn(to_picture(image), rng.uniform(-degrees, degrees)))


def color_jitter(image: Array, rng: np.random.Generator, strength: float) -> Array:
    """Brightness, contrast and saturation in random order, each by a factor in 1 ± strength."""
    picture = to_picture(image)
    for i in rng.permutation(3):
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[i]
        picture = enhance(picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return from_picture(picture)


def erase(image: Array, rng: np.random.Generator, probability: float) -> Array:
    """Random Erasing (Zhong et al., 2017, arXiv:1708.04896), with noise for every pixel.

    A rectangle of 2–40 % of the area and aspect ratio in [0.3, 1/0.3], the paper's settings.
    """
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(100):
        area = height * width * rng.uniform(0.02, 0.4)
        ratio = rng.uniform(0.3, 1 / 0.3)
        h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            image = image.copy()
            image[top : top + h, left : left + w] = rng.integers(256, size=(h, w, channels))
            return image
    return image


# ---- AutoAugment's operations ----


def _turn(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, BILINEAR)


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, BILINEAR)


def _enhance(kind: Callable[[Image.Image], Any], picture: Image.Image, s: float) -> Image.Image:
    return kind(picture).enhance(1 + 0.9 * s)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    # (picture, s): s in [-1, 1] has a random sign; |s| = 1 is the strongest of table 6 of
    # Cubuk et al., 2018 (arXiv:1805.09501), s = 0 changes nothing where there is a strength.
    "identity": lambda picture, s: picture,
    "auto_contrast": lambda picture, s: ImageOps.autocontrast(picture),
    "equalize": lambda picture, s: ImageOps.equalize(picture),
    "invert": lambda picture, s: ImageOps.invert(picture),
    "shear_x": lambda picture, s: _affine(picture, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda picture, s: _affine(picture, 1, 0, 0, 0.3 * s, 1, 0),
    # 150 pixels of the 331 that their ImageNet pictures measure
    "translate_x": lambda picture, s: _affine(
        picture, 1, 0, 150 / 331 * picture.width * s, 0, 1, 0
    ),
    "translate_y": lambda picture, s: _affine(
        picture, 1, 0, 0, 0, 1, 150 / 331 * picture.height * s
    ),
    "rotate": lambda picture, s: _turn(picture, 30 * s),
    "solarize": lambda picture, s: ImageOps.solarize(picture, round(256 * (1 - abs(s)))),
    "posterize": lambda picture, s: ImageOps.posterize(picture, 8 - round(4 * abs(s))),
    "color": partial(_enhance, ImageEnhance.Color),
    "contrast": partial(_enhance, ImageEnhance.Contrast),
    "brightness": partial(_enhance, ImageEnhance.Brightness),
    "sharpness": partial(_enhance, ImageEnhance.Sharpness),
}

RANDAUGMENT = tuple(name for name in OPERATIONS if name != "invert")

# The ImageNet policy in the paper's appendix: 25 times two (operation, probability, magnitude 0…9),
# with 0 for operations that have no strength. The last five repeat earlier ones there, too.
AUTOAUGMENT = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)


def autoaugment(image: Array, rng: np.random.Generator) -> Array:
    """AutoAugment's ImageNet policy (Cubuk et al., 2018, arXiv:1805.09501).

    Differs from the paper: color, contrast, brightness and sharpness grow from the unchanged
    picture in a random direction, and solarize and posterize grow stronger with the magnitude.
    """
    picture = to_picture(image)
    for name, probability, magnitude in AUTOAUGMENT[rng.integers(len(AUTOAUGMENT))]:
        if rng.random() < probability:
            picture = OPERATIONS[name](picture, _signed(magnitude / 9, rng))
    return from_picture(picture)


def randaugment(image: Array, rng: np.random.Generator, count: int, magnitude: float) -> Array:
    """RandAugment (Cubuk et al., 2019, arXiv:1909.13719): `count` operations, drawn uniformly.

    The magnitude is on the paper's scale of 0 to 10; differs from the paper as `autoaugment` does.
    """
    picture = to_picture(image)
    for i in rng.integers(len(RANDAUGMENT), size=count):
        picture = OPERATIONS[RANDAUGMENT[i]](picture, _signed(magnitude / 10, rng))
    return from_picture(picture)


def _signed(strength: float, rng: np.random.Generator) -> float:
    return strength if rng.random() < 0.5 else -strength


# ---- the table ----


class Number(NamedTuple):
    """One number after a colon, within [low, high]; `default` None: it must be given."""

    name: str
    type: Callable[[str], float]
    low: float
    high: float
    default: float | None = None


class Entry(NamedTuple):
    """An augmentation and its numbers; `sized`: it also takes `data.image_size`."""

    apply: Callable[..., Array]
    numbers: tuple[Number, ...] = ()
    sized: bool = False


AUGMENTATIONS = {
    "random_resized_crop": Entry(
        random_resized_crop, (Number("MIN_AREA", float, 0.01, 1, default=0.08),), sized=True
    ),
    "crop": Entry(crop, (Number("PAD", int, 1, 1024),)),
    "flip": Entry(flip),
    "rotate": Entry(rotate, (Number("DEGREES", float, 0, 180),)),
    "color_jitter": Entry(color_jitter, (Number("STRENGTH", float, 0, 1),)),
    "erase": Entry(erase, (Number("PROBABILITY", float, 0, 1),)),
    "autoaugment": Entry(autoaugment),
    "randaugment": Entry(randaugment, (Number("N", int, 1, 14), Number("M", float, 0, 10))),
}


def parse(specs: Sequence[str], size: int | None = None) -> list[Augmentation]:
    """The functions that the entries of `data.augment` name, in their order.

    `size` is `data.image_size`. Raises ConfigError for an unknown name or a number that is missing,
    surplus, not a number or out of range.
    """
    return [_parse(spec, size) for spec in specs]


def _parse(spec: str, size: int | None) -> Augmentation:
    name, *texts = spec.split(":")
    if name not in AUGMENTATIONS:
        [near] = difflib.get_close_matches(name, AUGMENTATIONS, n=1, cutoff=0.0)
        raise _error(spec, f"unknown; did you mean {near!r}? One of {', '.join(AUGMENTATIONS)}")
    entry = AUGMENTATIONS[name]
    required = sum(number.default is None for number in entry.numbers)
    if not required <= len(texts) <= len(entry.numbers):
        raise _error(spec, f"must have the form {_form(name)}")
    values = [number.default for number in entry.numbers]
    for i, text in enumerate(texts):
        values[i] = _value(spec, entry.numbers[i], text)
    options = {"size": size} if entry.sized else {}
    return lambda image, rng: entry.apply(image, rng, *values, **options)


def _value(spec: str, number: Number, text: str) -> float:
    kind = "a whole number" if number.type is int else "a number"
    try:
        value = number.type(text)
    except ValueError:
        raise _error(spec, f"{number.name} is {text!r}, but must be {kind}") from None
    if not number.low <= value <= number.high:
        raise _error(
            spec, f"{number.name} is {text}, but must lie between {number.low} and {number.high}"
        )
    return value


def _form(name: str) -> str:
    numbers = AUGMENTATIONS[name].numbers
    return name + "".join(f":{n.name}" if n.default is None else f"[:{n.name}]" for n in numbers)


def _error(spec: str, message: str) -> ConfigError:
    return ConfigError(f"data.augment entry {spec!r}: {message}")


# ---- what a split does with a picture ----


def train_transform(cfg: Pictures) -> Augmentation:
    """Resizes to `data.image_size`, if that is set and no random_resized_crop does it; augments."""
    steps = parse(cfg.augment, cfg.image_size)
    if not any(spec.startswith("random_resized_crop") for spec in cfg.augment):
        steps.insert(0, lambda image, rng: evaluation_transform(image, cfg.image_size))

    def transform(image: Array, rng: np.random.Generator) -> Array:
        for step in steps:
            image = step(image, rng)
        return image

    return transform


def evaluation_transform(image: Array, size: int | None) -> Array:
    """The picture as it is evaluated: `resize_and_crop`, or untouched where `size` is None."""
    return image if size is None else resize_and_crop(image, size)
