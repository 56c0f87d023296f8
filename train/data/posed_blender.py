"""Transforms files: NeRF-synthetic's, instant-ngp's and nerfstudio's.

    transforms_{train,val,test}.json    camera_angle_x, and frames that have file_path and
                                        transform_matrix
    transforms.json                     the same, whose frames are in no split, or in those of
                                        {train,val,test}_filenames; fl_x fl_y cx cy w h k1 k2 k3 p1
                                        p2 for all frames or for one; aabb_scale, scale, offset

Matrices lead from the camera, OpenGL's, to the world. Angles are in radians, lenses in pixels.
`distance_file_path` is our own: a .npy file of true distances along the unit ray.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from train.config import ConfigError, Data, on_disk
from train.data.colmap import PARAMETERS
from train.data.posed_views import (
    MIDDLE,
    PER_UNIT,
    Found,
    Lens,
    View,
    around,
    check_folder,
    in_cube,
    number,
    rigid,
)
from train.data.sources import EXTENSIONS

STORED = {
    "train": "transforms_train.json",
    "validation": "transforms_val.json",
    "test": "transforms_test.json",
}
TOGETHER = "transforms.json"
LISTED = {  # nerfstudio's; a picture on two of these lists is in the first of them
    "test": "test_filenames",
    "validation": "val_filenames",
    "train": "train_filenames",
}
CUBE = ("aabb_scale", "scale", "offset")  # instant-ngp's, where the scene lies
AXES = (("fl_x", "camera_angle_x"), ("fl_y", "camera_angle_y"))  # each says one focal length
MODELS = ("OPENCV", *PARAMETERS)  # what camera_model may be: zeros in the distortion say the rest
OTHER_LENSES = ("is_fisheye", "k4", "k5", "k6")  # where they are not 0


def check(path: str, cfg: Data) -> None:
    """Raises ConfigError unless a file is there."""
    check_folder(path, cfg, STORED["train"], TOGETHER)


def read(path: str, factor: int) -> Found:
    """The views of all files. Where one of `CUBE` or `camera_angle_x` is stated, the scene lies in
    instant-ngp's cube, as NeRF-synthetic's do; else where the cameras look."""
    root = on_disk(path, "data.source")
    files = {name: root / file for name, file in STORED.items() if (root / file).is_file()}
    if "train" not in files:
        files = {"": root / TOGETHER}
    said = {name: read_json(path) for name, path in files.items()}
    views = [view for name in files for view in frames(files[name], said[name], name)]
    (where, first), *_ = zip(files.values(), said.values(), strict=True)
    if {*CUBE, "camera_angle_x"} & first.keys():
        lies = in_cube(*cube(first, str(where)))
    else:
        lies = around(np.stack([view.pose for view in views]), np.empty((0, 3)))
    return Found(views, *lies, factor)


def cube(said: Mapping[str, Any], where: str) -> tuple[float, float, list[float]]:
    """aabb_scale, scale and offset of a file. Raises ConfigError for what is none."""
    offset = said.get("offset", [*MIDDLE])
    if not isinstance(offset, list) or len(offset) != 3:
        raise ConfigError(f"{where}: offset is {offset!r}, but must be three numbers")
    axes = {f"offset[{i}]": value for i, value in enumerate(offset)}
    return (
        number(said, "aabb_scale", where, 1.0, above=0),
        number(said, "scale", where, PER_UNIT, above=0),
        [number(axes, key, where) for key in axes],
    )


def read_json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("frames"), list) or not said["frames"]:
        raise ConfigError(f"{path} has no frames: a list with file_path and transform_matrix each")
    return said


def frames(path: Path, said: Mapping[str, Any], split: str) -> list[View]:
    """The views of a file. What a frame says of its lens goes before what the file says, also where
    one states an angle and the other a focal length."""
    views, listed = [], listed_splits(path, said)
    for i, frame in enumerate(said["frames"]):
        where = f"{path}, frames[{i}]"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise ConfigError(f"{where} has no file_path, the name of its picture")
        name, distance = frame["file_path"], frame.get("distance_file_path")
        where, stored = f"{where} ({name})", split or listed.get(PurePosixPath(name), "")
        # NeRF-synthetic leaves the ending out.
        name = name if name.lower().endswith(EXTENSIONS) else f"{name}.png"
        pose = rigid(frame.get("transform_matrix"), where)
        lens = partial(lens_of, {**without_replaced(said, frame), **frame}, where)
        known = path.parent / distance if isinstance(distance, str) else None
        views.append(View(where, path.parent / name, pose, lens, stored, known))
    return views


def listed_splits(path: Path, said: Mapping[str, Any]) -> dict[PurePosixPath, str]:
    """The split of each picture that `LISTED` have. Those on no list are in none, if there are any.

    Raises ConfigError for lists of anything but frames, and for lists without one to train on or
    without one that is held out.
    """
    lists = {split: said[key] for split, key in LISTED.items() if said.get(key)}
    if not lists:
        return {}
    if "train" not in lists or len(lists) == 1:
        raise ConfigError(
            f"{path} has {', '.join(LISTED[split] for split in lists)}, but pictures are listed "
            f"either in {LISTED['train']} and one of the others, or not at all"
        )
    frames = [frame.get("file_path") for frame in said["frames"] if isinstance(frame, dict)]
    known = {PurePosixPath(name) for name in frames if isinstance(name, str)}
    found: dict[PurePosixPath, str] = {}
    for split, names in lists.items():
        for name in names if isinstance(names, list) else [names]:
            if not isinstance(name, str) or PurePosixPath(name) not in known:
                raise ConfigError(f"{path}: {LISTED[split]} has {name!r}, which no frame has")
            found.setdefault(PurePosixPath(name), split)
    return found


def without_replaced(said: Mapping[str, Any], frame: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, less the focal lengths and angles of axes of which the frame says one."""
    replaced = {key for axis in AXES if frame.keys() & {*axis} for key in axis}
    return {key: value for key, value in said.items() if key not in replaced}


def lens_of(said: Mapping[str, Any], where: str, size: tuple[int, int]) -> Lens:
    """The lens of a frame whose picture has `size` (width, height) pixels."""
    others = [key for key in OTHER_LENSES if said.get(key)]
    if others or said.get("camera_model", "OPENCV") not in MODELS:
        raise ConfigError(
            f"{where} has {others[0] if others else said['camera_model']}, but only the camera "
            f"models {', '.join(MODELS)} are read, with k1, k2, k3, p1, p2: undistort the pictures"
        )
    width = number(said, "w", where, size[0], above=0)
    height = number(said, "h", where, size[1], above=0)
    centre = (number(said, "cx", where, width / 2), number(said, "cy", where, height / 2))
    distortion = tuple(number(said, key, where, 0.0) for key in ("k1", "k2", "k3", "p1", "p2"))
    return Lens(width, height, focal_lengths(said, where, width, height), centre, distortion)


def focal_lengths(
    said: Mapping[str, Any], where: str, width: float, height: float
) -> tuple[float, float]:
    """In pixels, along x and y: fl_x and fl_y, else from the angles of view. Pixels are square
    where nothing is stated of y."""
    x, y = (
        focal_length(said, where, *keys, side)
        for keys, side in zip(AXES, (width, height), strict=True)
    )
    if x is None:
        raise ConfigError(
            f"{where}: neither camera_angle_x nor fl_x is stated, for it or for all: add the "
            "angle of view in radians, or the focal length in pixels"
        )
    return x, x if y is None else y


def focal_length(
    said: Mapping[str, Any], where: str, length: str, angle: str, side: float
) -> float | None:
    """In pixels, of a picture with so many along that side; None where neither key is stated."""
    if length in said:
        return number(said, length, where, above=0)
    if angle not in said:
        return None
    return side / 2 / math.tan(number(said, angle, where, above=0, below=math.pi) / 2)
