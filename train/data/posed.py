"""Posed pictures: what was seen, and from where.

    scene          the embedded scene of `train.data.raytrace`, drawn once and kept
    mesh:FILE      a mesh with colours or textures, drawn once and kept, by `train.data.posed_mesh`
    blender:DIR    transforms_{train,val,test}.json as NeRF-synthetic has them, or one
                   transforms.json as instant-ngp and nerfstudio write it
    colmap:DIR     a sparse model in DIR/sparse/0, pictures in DIR/images
    llff:DIR       DIR/poses_bounds.npy, pictures in DIR/images

Each source has its own axes, unit and origin. A `Scene` has ours: cameras look along their -z with
y up, and what they are about lies around the origin, in [-1, 1]³ or in the unit ball; z is up, as
far as a source tells. `Scene.frame` leads back.

Test views are held out as the papers do it: those that are stored as such, else every eighth by
name, beginning with the first. A validation split that is not stored is cut from the training
views, so that nothing is chosen by test views.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.config import ConfigError, Data, Missing, on_disk
from train.data import colmap, posed_blender, posed_llff, posed_mesh, raytrace, sources
from train.data.posed_views import Array, Box, Frame, Lens, View, read_array

SPLITS = ("train", "validation", "test")
EVERY = 8  # of LLFF and Mip-NeRF 360: one view of so many is a test view
BACKGROUNDS = ("white", "black", "random", "learned")
OWN, DRAWN = "not stated: the user's own folder", "Apache-2.0: drawn by flax-zoo"


@dataclass(frozen=True)
class Scene:
    """n views of one thing.

    images      uint8 [n, h, w, c]; c is 4 where pictures are transparent somewhere, with colours
                that are not multiplied by alpha; else 3
    cameras     zoo.nerf.cameras.Camera of NumPy arrays [n, …], float32
    names       of the pictures' files, below the folder
    splits      "train", "validation", "test": the numbers of their views, ascending; no two share
                a view
    box         (low, high), float32 [3] each: beyond it is background
    frame       from the source's world to this one
    background  what is behind transparent pixels: one of BACKGROUNDS
    depth       float32 [n, h, w] where it is known: distance along the unit ray to what the centre
                of a pixel shows, in this world's unit; infinite for nothing. Where pictures were
                made smaller, that of the large pixel nearest to the centre
    """

    images: Array
    cameras: Any
    names: tuple[str, ...]
    splits: Mapping[str, Array]
    box: Box
    frame: Frame
    background: str
    licence: str
    depth: Array | None = None


def check_scene(source: str) -> None:
    """Raises ConfigError for a source that cannot be, as far as a look at the disk shows.

    Imports no jax and draws nothing.
    """
    cfg = Data(source=source)
    kind, argument = sources.choose(cfg, SCENES)
    if argument:
        kind.check(argument, cfg)


def open_scene(
    source: str,
    *,
    factor: int = 1,
    background: str | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    recipe: raytrace.Recipe | None = None,
    cache: str | None = None,
) -> Scene:
    """The scene that `source` names, all of it in memory.

    factor      pictures become that many times smaller: those of DIR/images_{factor} are taken
                where they are there (colmap, llff), else means over factor × factor pixels
    background  one of BACKGROUNDS; None: white behind transparent pictures, else black
    holdout     share of the training views that validates, where none is stored; `seed` chooses
    recipe      how `scene` and `mesh:` are drawn; None: as `Recipe` has it
    cache       where these are kept; None: ~/.cache/flax-zoo/scene

    Raises ConfigError, which names file and frame, for what cannot be used.
    """
    check_scene(source)
    if factor < 1:
        raise ConfigError(f"data.factor is {factor}, but pictures become 1, 2, … times smaller")
    if background not in (None, *BACKGROUNDS):
        raise ConfigError(f"data.background = {background!r}: one of {', '.join(BACKGROUNDS)}")
    if not 0 < holdout < 1:
        raise ConfigError(f"data.holdout = {holdout}: a share between 0 and 1")
    kind, argument = sources.choose(Data(source=source), SCENES)
    draw, path = DRAWN_BY.get(source.partition(":")[0]), argument
    if draw:
        path = str(draw(argument, cache_root(cache), recipe or raytrace.Recipe()))
    views, frame, box, shrink = kind.open(path, factor)
    size, mode = look(views, shrink)
    images = read_pictures(views, size, mode, shrink)
    return Scene(
        images=images,
        cameras=cameras(views, frame, size, shrink),
        names=names(views, on_disk(path, "data.source")),
        splits=divide(views, holdout, seed),
        box=box,
        frame=frame,
        background=background or ("white" if images.shape[-1] == 4 else "black"),
        licence=OWN if argument else DRAWN,
        depth=read_distances(views, frame, size, shrink),
    )


def cache_root(cache: str | None) -> Path:
    """Where what was drawn is kept: `cache`, else the user's own."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flax-zoo" / "scene"
    return on_disk(str(cache or home), "data.cache")


def names(views: Sequence[View], root: Path) -> tuple[str, ...]:
    """Of the pictures' files, below a folder."""
    return tuple(Path(os.path.relpath(view.path, root)).as_posix() for view in views)


# ---- splits ----


def divide(views: Sequence[View], holdout: float, seed: int) -> dict[str, Array]:
    """The numbers of the views that train, validate and test.

    Raises ConfigError where no view is left to train on.
    """
    splits = {name: [i for i, view in enumerate(views) if view.split == name] for name in SPLITS}
    if len(splits["train"]) in (0, len(views)):  # nothing is held out yet
        by_name = np.argsort([view.path.as_posix() for view in views], kind="stable")
        tested = np.arange(len(views)) % EVERY == 0
        splits = {"train": by_name[~tested], "validation": [], "test": by_name[tested]}
    if not len(splits["test"]):
        splits |= {"test": splits["validation"], "validation": []}
    if not len(splits["validation"]):
        order = np.random.default_rng(seed).permutation(splits["train"])
        count = max(1, round(holdout * len(order)))
        splits |= {"train": order[count:], "validation": order[:count]}
    if not len(splits["train"]):
        raise ConfigError(
            f"of {len(views)} views none is left to train on, with data.holdout = {holdout}: lower "
            "it, or add views"
        )
    return {name: np.sort(np.asarray(found)) for name, found in splits.items()}


# ---- pictures ----


def look(views: Sequence[View], shrink: int) -> tuple[tuple[int, int], str]:
    """((width, height) of all pictures, RGBA or RGB), from the heads of their files.

    Raises ConfigError for pictures that are missing, cannot be read, or differ in size.
    """
    missing = [view for view in views if not view.path.is_file()]
    if missing:
        more = f", nor those of {len(missing) - 1} others" if missing[1:] else ""
        raise Missing(f"{missing[0].where}: there is no picture {missing[0].path}{more}")
    heads = [opened(view, head) for view in views]
    size = heads[0][0]
    for view, (other, _) in zip(views, heads, strict=True):
        if other != size:
            raise ConfigError(
                f"pictures must have one size, but {views[0].path} has {size[0]}×{size[1]} pixels "
                f"and {view.path} {other[0]}×{other[1]} ({view.where}): resize or leave it out"
            )
    if shrink > min(size):
        raise ConfigError(f"data.factor is {shrink}, but pictures have {size[0]}×{size[1]} pixels")
    return size, "RGBA" if any(transparent for _, transparent in heads) else "RGB"


def head(file: Image.Image) -> tuple[tuple[int, int], bool]:
    """((width, height), whether pixels can be transparent)."""
    if file.mode in ("I", "F") or file.mode.startswith("I;"):
        raise ValueError(f"its pixels are of Pillow's mode {file.mode}; convert it to 8 bits")
    return file.size, file.has_transparency_data


def opened(view: View, read: Callable[[Image.Image], Any]) -> Any:
    """`read(file)` of a picture as it is stored: poses know nothing of an EXIF orientation.

    Raises ConfigError for what is no whole picture.
    """
    try:
        with Image.open(view.path) as file:
            return read(file)
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{view.where}: {view.path} cannot be read: {reason}") from error


def read_pictures(views: Sequence[View], size: tuple[int, int], mode: str, shrink: int) -> Array:
    """uint8 [n, h, w, c] of all pictures; alpha is left out where it is 255 everywhere."""
    width, height = (side // shrink for side in size)
    images = np.empty((len(views), height, width, len(mode)), np.uint8)

    def read(view: View) -> Array:
        return smaller(opened(view, lambda file: np.asarray(file.convert(mode))), shrink)

    with ThreadPoolExecutor() as pool:
        for i, image in enumerate(pool.map(read, views)):
            images[i] = image
    opaque = mode == "RGBA" and images[..., 3].min() == 255
    return images[..., :3].copy() if opaque else images


def smaller(image: Array, shrink: int) -> Array:
    """uint8 [h, w, c] → [h // shrink, w // shrink, c]: the mean of each square of pixels.

    Colours count by their alpha. What is left on the right and below is cut off.
    """
    if shrink == 1:
        return image
    squares = in_squares(image, shrink).astype(np.float32)
    if image.shape[-1] == 3:
        return np.round(squares.mean(2)).astype(np.uint8)
    alpha = squares[..., 3:]
    colour = (squares[..., :3] * alpha).sum(2) / np.maximum(alpha.sum(2), 1)
    return np.round(np.concatenate([colour, alpha.mean(2)], axis=-1)).astype(np.uint8)


def in_squares(values: Array, side: int) -> Array:
    """[h, w, …] → [h // side, w // side, side · side, …]."""
    (height, width), rest = (n // side for n in values.shape[:2]), values.shape[2:]
    cut = values[: height * side, : width * side].reshape(height, side, width, side, *rest)
    return cut.swapaxes(1, 2).reshape(height, width, side * side, *rest)


def read_distances(
    views: Sequence[View], frame: Frame, size: tuple[int, int], shrink: int
) -> Array | None:
    """float32 [n, h, w] in our unit; None unless every view has its distances.

    Of a square of pixels that which is nearest to its centre, or one of the four that are: a mean
    over an edge would be a distance at which nothing is.
    """
    paths = [(view.distance, view.where) for view in views if view.distance]
    if len(paths) < len(views):
        return None
    central = shrink // 2 * (shrink + 1)
    found = [in_squares(read_distance(*path, size), shrink)[:, :, central] for path in paths]
    return (np.stack(found) * frame.scale).astype(np.float32)


def read_distance(path: Path, where: str, size: tuple[int, int]) -> Array:
    """float64 [h, w] of a view's file. Raises ConfigError, which names both, for any other."""
    distance = read_array(path, f"{where}: {path}")
    if distance.shape != size[::-1] or distance.dtype.kind != "f":
        raise ConfigError(
            f"{where}: {path} is {distance.dtype} {distance.shape}, but its picture has "
            f"{size[0]}×{size[1]} pixels, each of which needs a distance"
        )
    return distance.astype(np.float64)


# ---- cameras ----


def cameras(views: Sequence[View], frame: Frame, size: tuple[int, int], shrink: int) -> Any:
    """zoo.nerf.cameras.Camera of float32 arrays, in our world."""
    from zoo.nerf.cameras import Camera  # jax, which a look at the disk does without

    poses = np.stack([view.pose for view in views])
    pose = np.dstack([frame.rotation @ poses[:, :, :3], frame.enter(poses[:, :, 3])])
    lenses = [fitted(view.lens(size), size, view.where) for view in views]
    focal = np.array([lens.focal for lens in lenses]) / shrink
    centre = np.array([lens.centre for lens in lenses]) / shrink
    distortion = np.array([lens.distortion for lens in lenses])
    return Camera(*(value.astype(np.float32) for value in (pose, focal, centre, distortion)))


def fitted(lens: Lens, size: tuple[int, int], where: str) -> Lens:
    """The lens for the same picture in (width, height) pixels.

    Raises ConfigError where it cannot be the same: its sides have another ratio.
    """
    across, down = size[0] / lens.width, size[1] / lens.height
    if abs(lens.height * across - size[1]) > 1 and abs(lens.width * down - size[0]) > 1:
        raise ConfigError(
            f"{where}: the lens is for pictures of {lens.width:g}×{lens.height:g} pixels, but the "
            f"file has {size[0]}×{size[1]}: it has been cut or turned"
        )
    focal = (lens.focal[0] * across, lens.focal[1] * down)
    centre = (lens.centre[0] * across, lens.centre[1] * down)
    return Lens(*size, focal, centre, lens.distortion)


SCENES = {
    "scene": sources.Kind("scene", posed_blender.check, posed_blender.read),
    "mesh": sources.Kind("mesh:FILE", posed_mesh.check, posed_blender.read),
    "blender": sources.Kind("blender:DIR", posed_blender.check, posed_blender.read),
    "colmap": sources.Kind("colmap:DIR", colmap.check, colmap.read),
    "llff": sources.Kind("llff:DIR", posed_llff.check, posed_llff.read),
}
DRAWN_BY: dict[str, Callable[[str, Path, raytrace.Recipe], Path]] = {  # into a folder, first
    "scene": lambda _, root, recipe: raytrace.prepare(root, recipe),
    "mesh": posed_mesh.prepare,
}
