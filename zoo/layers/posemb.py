"""An image as a row of patches, and the learned embeddings of their positions.

A model takes images of another size once its grid of positions is resized. The kernel that does it
belongs to the published model: three are in use, and their results differ by several percent.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

Grid = tuple[int, int]  # rows, columns


def cut(image: jax.Array, patch: int, channels: int) -> jax.Array:
    """[b, H, W, channels] → [b, H/p, W/p, p, p, channels]. Raises what `check_image` raises."""
    check_image(image, patch, channels)
    return rearrange(image, "b (h p) (w q) c -> b h w p q c", p=patch, q=patch)


def check_image(image: jax.Array, patch: int, channels: int) -> None:
    """Raises ValueError for another number of axes or channels, or a side that is no multiple of
    the patch."""
    if image.ndim != 4:
        raise ValueError(f"image has shape {image.shape}, but this model takes [b, H, W, channels]")
    _, height, width, found = image.shape
    if found != channels:
        raise ValueError(
            f"image has {found} channels, but this model takes {channels}: "
            f"convert the image, or create the model with in_channels={found}"
        )
    if height % patch or width % patch:
        below, above = (
            "×".join(str(max(1, (side + add) // patch) * patch) for side in (height, width))
            for add in (0, patch - 1)
        )
        raise ValueError(
            f"image {height}×{width} is not a multiple of patch {patch}; "
            f"resize to {below} or {above}"
        )


def prepend(tokens: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Tokens [d], equal for all examples, in front of x [b, n, d]."""
    shape = (len(x), 1, x.shape[-1])
    return jnp.concatenate([*(jnp.broadcast_to(token, shape) for token in tokens), x], axis=1)


def resize_positions(
    positions: jax.Array, prefix: int, held: Grid, wanted: Grid, kernel: str
) -> jax.Array:
    """[prefix + rows · columns, d] of the held grid → the same of the wanted one. The first
    `prefix` rows are of tokens that have no place in the image, and stay."""
    if held == wanted:
        return positions
    rows, columns = held
    grid = rearrange(positions[prefix:], "(h w) d -> h w d", h=rows, w=columns)
    patches = rearrange(resize_grid(grid, wanted, kernel), "h w d -> (h w) d")
    return jnp.concatenate([positions[:prefix], patches])


def resize_grid(grid: jax.Array, wanted: Grid, kernel: str) -> jax.Array:
    """[h, w, d] → [*wanted, d], computed in float32; kernel: a key of `KERNELS`."""
    rows, columns = (
        jnp.asarray(KERNELS[kernel](held, size), jnp.float32)
        for held, size in zip(grid.shape[:2], wanted, strict=True)
    )
    grid32 = jnp.asarray(grid, jnp.float32)
    resized = jnp.einsum("Hh,Ww,hwd->HWd", rows, columns, grid32, precision="highest")
    return resized.astype(grid.dtype)


def stretch(positions: jax.Array, length: int) -> jax.Array:
    """Positions of a text, [n, d] → [length, d], computed in float32.

    Of fewer the first are kept, so that a text that fits is seen as before. More are interpolated
    linearly, as by torch's `interpolate(mode="linear", align_corners=False)` in open_clip.
    """
    held = len(positions)
    if length <= held:
        return positions[:length]
    points = centres(held, length).clip(0, held - 1)
    weights = (1 - abs(points[:, None] - np.arange(held))).clip(0).astype(np.float32)
    stretched = jnp.dot(weights, positions.astype(jnp.float32), precision="highest")
    return stretched.astype(positions.dtype)


def bicubic(held: int, wanted: int) -> np.ndarray:
    """Weights [wanted, held] of torch's `interpolate(mode="bicubic", align_corners=False)`, which
    Hugging Face uses: four points each, however far apart the wanted ones are; beyond the edge,
    the edge."""
    weights = cubic(centres(held, wanted)[:, None] - np.arange(-2, held + 2), slope=-0.75)
    inside = weights[:, 2:-2]
    inside[:, 0] += weights[:, :2].sum(axis=1)
    inside[:, -1] += weights[:, -2:].sum(axis=1)
    return inside


def antialias(held: int, wanted: int) -> np.ndarray:
    """Weights of the same with `antialias=True`, which timm uses: another slope, a kernel that
    widens with the distance of the wanted points; beyond the edge, nothing."""
    width = max(held / wanted, 1)
    weights = cubic((centres(held, wanted)[:, None] - np.arange(held)) / width, slope=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def linear(held: int, wanted: int) -> np.ndarray:
    """Weights of `scipy.ndimage.zoom(order=1)`, which vit_jax and big_vision use: two points each,
    corners upon corners. Where SciPy's rounding puts the last point outside the grid, as from 24 to
    22, it gives 0 there; ours is the corner."""
    points = np.arange(wanted) * ((held - 1) / max(wanted - 1, 1))
    return np.maximum(0, 1 - abs(points[:, None] - np.arange(held)))


KERNELS: dict[str, Callable[[int, int], np.ndarray]] = {
    "bicubic": bicubic,
    "antialias": antialias,
    "linear": linear,
}


def centres(held: int, wanted: int) -> np.ndarray:
    """Where the wanted points lie among the held, if both are pixels over the same length."""
    return (np.arange(wanted) + 0.5) * (held / wanted) - 0.5


def cubic(t: np.ndarray, slope: float) -> np.ndarray:
    """The cubic convolution kernel (Keys, 1981, DOI 10.1109/TASSP.1981.1163711), `slope` at 1."""
    t = abs(t)
    near = (slope + 2) * t**3 - (slope + 3) * t**2 + 1
    far = slope * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0))
