"""poses_bounds.npy of LLFF (Mildenhall et al., 2019, arXiv:1905.00889), float [n, 17].

A row is [3, 5] and two depths, as the documentation of LLFF's code has them: the axes of the camera
(down, right, back), its place, and (height, width, focal length) of its picture in pixels; then the
nearest and the farthest depth that it sees. Rows are in the order of the pictures' names.
"""

from functools import partial
from pathlib import Path

import numpy as np

from train.config import ConfigError, Data, on_disk
from train.data.colmap import same
from train.data.posed_views import (
    LARGEST,
    Array,
    Found,
    Lens,
    View,
    around,
    check_folder,
    pictures_folder,
    read_array,
    rigid,
)
from train.data.sources import EXTENSIONS

NAME = "poses_bounds.npy"


def check(path: str, cfg: Data) -> None:
    """Raises ConfigError unless poses and pictures are there."""
    check_folder(path, cfg, NAME)
    check_folder(path, cfg, "images/")


def read(path: str, factor: int) -> Found:
    """The views of a capture; what they see between their depths says where the scene lies."""
    root = on_disk(path, "data.source")
    file, (folder, shrink) = root / NAME, pictures_folder(root, factor)
    rows = read_rows(file)
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    if len(rows) != len(pictures):
        raise ConfigError(f"{file} has {len(rows)} poses, but {folder} {len(pictures)} pictures")
    views, points = [], []
    for i, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        where = f"{file}, row {i} ({picture.name})"
        down, right, back, place, (height, width, focal) = row[:15].reshape(3, 5).T
        pose = rigid(np.column_stack([right, -down, back, place]), where)
        near, far = row[15:]
        usable = 0 < min(height, width, focal) and max(height, width, focal) < LARGEST
        if not (usable and 0 < near < far < LARGEST):
            raise ConfigError(
                f"{where}: a picture of {width}×{height} pixels, focal length {focal} and depths "
                f"from {near} to {far} cannot be"
            )
        lens = Lens(width, height, (focal, focal), (width / 2, height / 2))
        views.append(View(where, picture, pose, partial(same, lens)))
        points.append(seen(pose, lens, row[15:]))
    poses = np.stack([view.pose for view in views])
    return Found(views, *around(poses, np.concatenate(points)), shrink)


def read_rows(path: Path) -> Array:
    """float64 [n, 17], n > 0. Raises ConfigError for any other file."""
    rows = read_array(path, str(path))
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows) or rows.dtype.kind not in "fiu":
        raise ConfigError(f"{path} is {rows.dtype} {rows.shape}, but must have 17 numbers a view")
    return rows.astype(np.float64)


def seen(pose: Array, lens: Lens, depths: Array) -> Array:
    """[8, 3]: the corners of what a picture shows between two depths."""
    rays = np.array([(x, y, -1) for x in (-1, 1) for y in (-1, 1)], np.float64)
    rays[:, :2] *= np.array([lens.width, lens.height]) / 2 / np.array(lens.focal)
    return np.concatenate([depth * rays for depth in depths]) @ pose[:, :3].T + pose[:, 3]
