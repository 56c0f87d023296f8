"""Pictures as models take them: read with their orientation, resized, cut, normalised.

    path, PIL image or uint8 array → decode [h, w, c] → fit [H, W, c] → (x / 255 - mean) / std

h, w: of the picture; H, W: `Preprocess.size`; c: channels, 1 or 3. Pillow resizes, on 8 bits, as in
the pipelines that published weights were trained and tested with; `tests/golden/preprocess.npz`
holds what those make of the same pictures.
"""

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from zoo.card import Preprocess
from zoo.spec import sides

Array = np.ndarray
Picture = str | Path | bytes | Image.Image | Array
MAX_PIXELS = 89_478_485  # Pillow's own limit, a quarter of a GiB at 3 bytes a pixel


def prepare(
    pictures: Picture | Iterable[Picture], preprocess: Preprocess, *, channels: int = 3
) -> Array:
    """float32 [b, H, W, channels] of paths, encoded bytes, PIL images or uint8 arrays.

    channels: 1 (luma) or 3, as the model's `in_channels`. Raises Unreadable for what is no picture,
    and ValueError for a mean or std of another length.
    """
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, not {channels}: pass arrays to the model")
    for key in ("mean", "std"):
        if len(getattr(preprocess, key)) not in (1, channels):
            raise ValueError(
                f"preprocess.{key} has {len(getattr(preprocess, key))} values for {channels} "
                "channels: one or one per channel"
            )
    mean, std = (np.array(x, np.float32) for x in (preprocess.mean, preprocess.std))
    pixels = [fit(decode(picture, channels), preprocess) for picture in _several(pictures)]
    if not pixels:
        return np.zeros((0, *sides(preprocess.size), channels), np.float32)
    return (np.stack(pixels).astype(np.float32) / 255 - mean) / std


def _several(pictures: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """Also of one alone; an array [b, h, w, c] is several."""
    if isinstance(pictures, np.ndarray):
        return pictures if pictures.ndim == 4 else [pictures]
    return [pictures] if isinstance(pictures, str | Path | bytes | Image.Image) else pictures


# Size.


class Arithmetic(NamedTuple):
    """How lengths that are no whole pixels become whole."""

    enlarged: Callable[[float], int]  # size / crop
    along: Callable[[int, int, int], int]  # a side, where another of `found` becomes `wanted`
    corner: Callable[[float], int]  # of the cut


# Each in the order of its library's operations: where a tie falls depends on it.


def nearest(side: int, found: int, wanted: int) -> int:
    return round(side * (wanted / found))


def floored(side: int, found: int, wanted: int) -> int:
    return int(wanted * side / found)


def uneven(side: int, found: int, wanted: int) -> int:
    """Where `size` is no square, in all conventions: timm's ResizeKeepRatio."""
    return round(side / (found / wanted))


CONVENTIONS = {
    "zoo": Arithmetic(round, nearest, math.floor),
    "transformers": Arithmetic(int, floored, math.floor),
    "timm": Arithmetic(int, floored, round),
}


def fit(image: Array, preprocess: Preprocess) -> Array:
    """uint8 [h, w, c] resized and cut to uint8 [H, W, c], as `Preprocess` says.

    Raises ValueError for a picture so long that it would have MAX_PIXELS once it is resized.
    """
    wanted, found = sides(preprocess.size), image.shape[:2]
    if preprocess.convention == "zoo" and found == wanted:
        return image
    height, width = resized(found, preprocess)
    if height * width > MAX_PIXELS:
        raise ValueError(f"a picture of {found} pixels would become {(height, width)}: cut it")
    resampling = Image.Resampling[preprocess.interpolation.upper()]
    image = from_picture(to_picture(image).resize((width, height), resampling))
    corner = CONVENTIONS[preprocess.convention].corner
    top, left = corner((height - wanted[0]) / 2), corner((width - wanted[1]) / 2)
    return image[top : top + wanted[0], left : left + wanted[1]]


def resized(found: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """(height, width) that a picture of `found` has before the cut."""
    arithmetic = CONVENTIONS[preprocess.convention]
    height, width = (arithmetic.enlarged(x / preprocess.crop) for x in sides(preprocess.size))
    if preprocess.mode == "squash":
        return height, width
    # The side that needs the larger enlargement is met exactly, and the other covers its own.
    along = arithmetic.along if height == width else uneven
    if found[0] * width <= found[1] * height:
        return height, along(found[1], found[0], height)
    return along(found[0], found[1], width), width


# Decoding.


class Unreadable(ValueError):
    """A picture that cannot be decoded: `where` it is and the `reason`."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def decode(picture: Picture, channels: int | None = None) -> Array:
    """uint8 [h, w, c] of a path, encoded bytes, a PIL image or a uint8 array [h, w] or [h, w, c],
    turned as its EXIF orientation says.

    `channels` is 1 (luma, ITU-R 601) or 3; None keeps grey pictures grey and makes all others RGB.
    Transparent pixels are laid over white; 16-bit grey keeps its upper byte.
    Raises Unreadable for whatever is no whole picture, or has more than MAX_PIXELS.
    """
    where = str(picture) if isinstance(picture, str | Path) else type(picture).__name__
    if isinstance(picture, np.ndarray):
        return _from_array(picture, channels, where)
    try:
        opened = _opened(picture)
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise Unreadable(where, _reason(picture, error)) from error
    return _to_array(opened, channels, where)


def _opened(picture: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture)
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width}×{file.height} is more than {MAX_PIXELS} pixels")
        file.load()
        ImageOps.exif_transpose(file, in_place=True)
        return file


def _reason(picture: Any, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        size = len(picture) if isinstance(picture, bytes) else Path(picture).stat().st_size
        return f"no picture format that Pillow knows ({size} bytes)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _from_array(image: Array, channels: int | None, where: str) -> Array:
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise Unreadable(where, f"{image.dtype} {image.shape} is not uint8 [h, w, 1 or 3]")
    if channels in (None, image.shape[-1]):
        return image
    return _to_array(to_picture(image), channels, where)


GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and all that begin with I;16


def _to_array(picture: Image.Image, channels: int | None, where: str) -> Array:
    deep = picture.mode == "I" or picture.mode.startswith("I;16")
    grey = deep or picture.mode in GREY_MODES
    if picture.mode == "F":
        raise Unreadable(where, "floating-point pixels have no fixed range; convert it to 8 bits")
    if deep:
        picture = _upper_byte(picture, where)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    target = "L" if (channels or (1 if grey else 3)) == 1 else "RGB"
    return from_picture(picture if picture.mode == target else picture.convert(target))


def _upper_byte(picture: Image.Image, where: str) -> Image.Image:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable(where, "32-bit pixels beyond 65535; convert it to 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def to_picture(image: Array) -> Image.Image:
    """Pillow's view of uint8 [h, w, 1] (mode L) or [h, w, 3] (mode RGB)."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_picture(picture: Image.Image) -> Array:
    """uint8 [h, w, 1] or [h, w, 3] of a picture in mode L or RGB."""
    image = np.asarray(picture)
    return image[..., None] if image.ndim == 2 else image
