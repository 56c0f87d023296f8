"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864): positions as rotations of q and k.

The pair (i, i + c/2) of a head's c channels is turned by position · frequency_i, as published Llama
weights have it; the paper's own pairs are neighbours (2i, 2i + 1), a permutation of the channels.

A scaling stretches the frequencies for texts longer than a model was trained on. It is a tuple, its
kind and its numbers, so that a configuration holds it: ("llama3", 8.0, 8192, 1.0, 4.0). Those of
`SCALINGS` are here; LongRoPE is not: it has two sets of frequencies by the length of each text, and
keys that a cache holds would be of the other set as soon as the text passes that length.
"""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(width: int, base: float) -> np.ndarray:
    """base^(−2i / c), i < c/2, radians per position, float32 (section 3.2.2). On the host: a device
    may have a coarser power, and far positions show it."""
    return 1 / np.float32(base) ** (np.arange(0, width, 2, dtype=np.float32) / width)


def scaled(
    width: int, base: float, scaling: tuple[Any, ...], length: int
) -> tuple[np.ndarray, float]:
    """The frequencies [c/2] for texts of up to `length` tokens, and by what to multiply cos and sin
    (YaRN alone has another factor than 1). scaling: a kind of `SCALINGS` and its numbers, or ()."""
    if not scaling:
        return frequencies(width, base), 1.0
    kind, *numbers = scaling
    return SCALINGS[kind](width, base, length, *numbers)


def angles(
    positions: jax.Array, frequencies: Any, factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of positions [b, n] times frequencies [c/2], times factor: float32 [b, n, c/2]."""
    turned = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None]
    return factor * jnp.cos(turned), factor * jnp.sin(turned)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [b, n, h, c] turned by the angles of its token, cos and sin [b or 1, n, c/2]; equation 34,
    computed in float32, in x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


# Scalings: (width, base, length, numbers …) → (frequencies, factor).


def linear(width: int, base: float, length: int, factor: float) -> tuple[np.ndarray, float]:
    """Positions divided by the factor (Chen et al., 2023, arXiv:2306.15595, equation 4)."""
    return frequencies(width, base) / np.float32(factor), 1.0


def dynamic(
    width: int, base: float, length: int, factor: float, original: int
) -> tuple[np.ndarray, float]:
    """The base grows with the length beyond the original one ("Dynamic NTK" in Peng et al., 2023,
    arXiv:2309.00071, section 3.3, in the words of transformers). Here it is the longest text that
    the model takes, not each text's own, so that a cache is of one base."""
    stretch = factor * max(length, original) / original - (factor - 1)
    return frequencies(width, base * stretch ** (width / (width - 2))), 1.0


def yarn(
    width: int,
    base: float,
    length: int,
    factor: float,
    original: int,
    attention: float,
    fast: float,
    slow: float,
) -> tuple[np.ndarray, float]:
    """YaRN (arXiv:2309.00071, section 3.2): pairs that turn more than `fast` times over the
    original length stay, those that turn less than `slow` times are divided by the factor, between
    them goes a ramp over the pairs. attention: a factor of q and of k, so its square of scores."""

    def pair(turns: float) -> float:  # which pair turns so often, a fraction of one too
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), width - 1)
    ramp = (np.arange(width // 2, dtype=np.float32) - first) / max(last - first, 1e-3)
    return _mixed(frequencies(width, base), 1 - np.clip(ramp, 0, 1), factor), attention


def llama3(
    width: int, base: float, length: int, factor: float, original: int, low: float, high: float
) -> tuple[np.ndarray, float]:
    """Llama 3.1: pairs that turn more than `high` times over the original length stay, those that
    turn less than `low` times are divided by the factor, in proportion between them (apply_scaling
    of llama_models/llama3/model.py in github.com/meta-llama/llama-models)."""
    plain = frequencies(width, base)
    turns = original * plain / np.float32(2 * math.pi)
    return _mixed(plain, np.clip((turns - low) / (high - low), 0, 1), factor), 1.0


def _mixed(plain: np.ndarray, kept: np.ndarray, factor: float) -> np.ndarray:
    """The share `kept` of the plain frequencies, the rest of those divided by the factor."""
    return (kept * plain + (1 - kept) * plain / np.float32(factor)).astype(np.float32)


SCALINGS: dict[str, Callable[..., tuple[np.ndarray, float]]] = {
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "llama3": llama3,
}


def check(scaling: tuple[Any, ...], width: int) -> None:
    """Raises ValueError for a scaling that is neither () nor one of `SCALINGS` with its numbers,
    and for one that divides by 0 in heads of `width` channels."""
    if not scaling:
        return
    kind, *numbers = scaling
    if kind not in SCALINGS:
        known = ", ".join(SCALINGS)
        raise ValueError(f"a rotary scaling begins with one of {known}, not with {kind!r}")
    wanted = list(signature(SCALINGS[kind]).parameters)[3:]
    right = [type(x) in (int, float) and x > 0 for x in numbers]
    if len(numbers) != len(wanted) or not all(right):
        raise ValueError(
            f"rotary scaling {kind!r} takes positive numbers, {', '.join(wanted)}; not {numbers}"
        )
    named = dict(zip(wanted, numbers, strict=True))
    if kind == "llama3" and not named["low"] < named["high"]:
        raise ValueError(f"rotary scaling 'llama3' goes from low to high turns; not {numbers}")
    if kind == "dynamic" and width <= 2:
        raise ValueError(f"rotary scaling 'dynamic' needs heads of more than {width} channels")
