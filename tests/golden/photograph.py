"""A picture from a name alone, which both sides of a comparison draw."""

import zlib

import numpy as np


def photograph(name: str, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: slopes and waves, edges, and noise; no two rows or columns alike,
    so that a shift by a pixel shows."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    y, x = np.mgrid[0:height, 0:width] / 100
    slope = np.stack([40 * x, 35 * y, 20 * (x + y)], -1)
    wave = 40 * np.sin(3 * x + 5 * y**2)[..., None]
    edge = 60.0 * ((x - 2) ** 2 + (y - 1.5) ** 2 < 0.8)[..., None]
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(40 + slope + wave + edge + noise, 0, 255).astype(np.uint8)
