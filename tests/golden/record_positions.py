"""Record how torch and SciPy resize grids, for tests/test_layers.py to replay.

    pip install torch==2.13.0 scipy==1.17.1
    python tests/golden/record_positions.py [FOLDER]     # writes positions.npz, here by default

The file holds, for every kernel of `zoo.layers.posemb` and every row of `SIZES`, the array
`KERNEL/ROWSxCOLUMNS`, float32 [rows, columns, 2]: `fill.image` of that name without the kernel,
resized in float64. `versions` is JSON.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from fill import image

SIZES = (  # held, wanted: up, down, up and down, one axis alone, from one point, to one point
    ((4, 4), (7, 7)),
    ((7, 7), (4, 4)),
    ((5, 3), (8, 2)),
    ((6, 6), (6, 9)),
    ((1, 1), (3, 2)),
    ((3, 4), (1, 1)),
    ((14, 14), (24, 24)),
    ((24, 24), (14, 15)),
)


def by_torch(grid: np.ndarray, wanted: tuple[int, int], *, antialias: bool) -> np.ndarray:
    import torch

    resized = torch.nn.functional.interpolate(
        torch.from_numpy(grid).movedim(-1, 0)[None],
        size=wanted,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    return resized[0].movedim(0, -1).numpy()


def by_scipy(grid: np.ndarray, wanted: tuple[int, int]) -> np.ndarray:
    import scipy.ndimage

    factors = (wanted[0] / grid.shape[0], wanted[1] / grid.shape[1], 1)
    return scipy.ndimage.zoom(grid, factors, order=1)


KERNELS = {
    "bicubic": lambda grid, wanted: by_torch(grid, wanted, antialias=False),
    "antialias": lambda grid, wanted: by_torch(grid, wanted, antialias=True),
    "linear": by_scipy,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    arrays = {}
    for held, wanted in SIZES:
        name = f"{wanted[0]}x{wanted[1]}"
        grid = image(name, (*held, 2)).astype(np.float64)
        for kernel, resize in KERNELS.items():
            arrays[f"{kernel}/{name}"] = resize(grid, wanted).astype(np.float32)
    versions = {library: version(library) for library in ("torch", "scipy", "numpy")}
    np.savez_compressed(folder / "positions.npz", versions=json.dumps(versions), **arrays)


if __name__ == "__main__":
    main()
