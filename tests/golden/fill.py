"""Weights and inputs from names alone: both sides of a parity test draw them, none is stored.

Every array comes from `numpy.random.default_rng(crc32(name))`, in float32. The distributions are
chosen to show faults: no bias is 0, no scale is 1, no running variance is 1.
"""

import math
import re
import zlib
from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], np.ndarray]


def fill(name: str, shape: Shape) -> np.ndarray:
    """The tensor that a file calls `name`: float32 (a batch counter is int64) of this shape.

    The first row of `KINDS` that matches the whole name decides; else a vector or a number is a
    scale, N(1, 0.1), and anything else a kernel [out, in, …], N(0, 1 / √fan-in) with the fan-in
    taken over all axes but the first (but the last in Flax's layout). N(mean, standard deviation)
    throughout.
    """
    default = scale if len(shape) < 2 else kernel
    draw = next((draw for pattern, draw in KINDS if re.fullmatch(pattern, name)), default)
    return np.asarray(draw(_generator(name), shape))


def image(case: str, shape: Shape) -> np.ndarray:
    """The input of a case: float32, standard normal."""
    return _normal(_generator("input" + case), shape)


def mask(case: str, shape: Shape) -> np.ndarray:
    """Which patches of a case are hidden: bool, about four in ten."""
    return _generator("mask" + case).random(shape) < 0.4


def labels(case: str, shape: int | Shape, classes: int) -> np.ndarray:
    """The labels of a case: int64 of this shape in [0, classes)."""
    return _generator("labels" + case).integers(classes, size=shape)


def tokens(case: str, shape: Shape, low: int, high: int) -> np.ndarray:
    """The text of a case: int32 in [low, high)."""
    return _generator("tokens" + case).integers(low, high, size=shape, dtype=np.int32)


def kernel(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return _normal(rng, shape) / np.sqrt(np.float32(math.prod(shape[1:])))


def linen_kernel(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return _normal(rng, shape) / np.sqrt(np.float32(math.prod(shape[:-1])))


def positive_kernel(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Of the weights of LPIPS none is below 0."""
    return np.abs(kernel(rng, shape))


def scale(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return 1 + small(rng, shape)


def small(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return np.float32(0.1) * _normal(rng, shape)


def variance(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """U(0.5, 1.5)."""
    return np.float32(0.5) + rng.random(shape, dtype=np.float32)


def embedding(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return _normal(rng, shape)


def zero(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return np.zeros(shape, np.int64)


# Of torch names, of Caffe2's in ONNX graphs (*_0) and of Flax's, with slashes.
KINDS: tuple[tuple[str, Draw], ...] = (
    (r".*num_batches_tracked", zero),
    (r".*(running_var|_riv_0)", variance),
    (r".*(running_mean|_rm_0)", small),
    (r".*(bias|_b_0)", small),
    (r"lin\d\.model\.1\.weight", positive_kernel),
    (r".*patch_embedding\.weight", kernel),
    (r".*(embeddings?|embed_tokens|wte|wpe)\.weight", embedding),
    (r"(.*[./])?((cls|mask|reg|register|dist|distillation)_tokens?|cls)", embedding),
    (r"(.*\.)?(class|positional)_embedding", embedding),
    (r"(.*[./])?pos(ition)?_embed(ding)?s?", embedding),
    (r".*/embedding", embedding),
    (r".*/kernel", linen_kernel),
    (r"batch_stats/.*/var", variance),
    (r"batch_stats/.*/mean", small),
)


def _normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
