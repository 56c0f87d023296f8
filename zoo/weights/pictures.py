"""How pictures are prepared, in the words of transformers and of open_clip."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from zoo.card import RESAMPLING, Preprocess
from zoo.spec import sides

logger = logging.getLogger("zoo")


def processor(
    kind: str, sizes: Callable[[Preprocess], Mapping[str, Any] | None], config: Any, card: Any
) -> dict[str, Any]:
    """`preprocessor_config.json` of an image processor of transformers, None where the card does
    not know how pictures are prepared or the class has no words for it.

    kind: how the name of the class begins. sizes: what such a file says of the resizing and the
    cut, None where it cannot.
    """
    known: Preprocess | None = card.preprocess
    stated = sizes(known) if known else None
    if known is None or stated is None:
        return {"preprocessor_config.json": None}
    channels = config.in_channels
    written = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        **stated,
        "resample": RESAMPLING.index(known.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": each(known.mean, channels),
        "image_std": each(known.std, channels),
    }
    return {"preprocessor_config.json": written}


FILTERS = ("bicubic", "bilinear")  # that open_clip resizes by (transform.py, image_transform)


def open_clip_pictures(config: Any, card: Any) -> dict[str, Any]:
    """`preprocess_cfg` of `open_clip_config.json`, {} where the card does not know how pictures are
    prepared: open_clip takes OpenAI's way then.

    open_clip resizes to the size of the model and cuts nothing off but what a square lacks. What
    the card says beyond that is left out, with a warning.
    """
    known: Preprocess | None = card.preprocess
    if known is None:
        return {}
    lost = {
        "size": sides(known.size) != sides(config.image_size),
        "crop": known.crop != 1,
        "interpolation": known.interpolation not in FILTERS,
    }
    if left_out := [f"{key} {getattr(known, key)!r}" for key, is_lost in lost.items() if is_lost]:
        logger.warning(
            "open_clip_config.json has no words for %s of the card's preprocess: open_clip will "
            "prepare pictures without",
            ", ".join(left_out),
        )
    return {
        "mean": each(known.mean, config.in_channels),
        "std": each(known.std, config.in_channels),
        **({} if lost["interpolation"] else {"interpolation": known.interpolation}),
        "resize_mode": {"crop": "shortest", "squash": "squash"}[known.mode],
    }


def each(values: tuple[float, ...], channels: int) -> list[float]:
    """One value of each channel."""
    return (list(values) * channels)[:channels]
