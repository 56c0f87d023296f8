"""What is written of a scene: videos, series of pictures, depth in colours, PLY files.

    renderer, cameras → pictures or depths → uint8 [h, w, 3] one after another → write(path, …)

A file is written beside its place and moved there when it is whole.
"""

import importlib
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from zoo import gallery
from zoo.nerf.cameras import Camera, select
from zoo.nerf.paths import resized
from zoo.nerf.view import Renderer, View
from zoo.preprocess import to_picture

Array = np.ndarray
Frames = Iterable[Array]

ENCODER = "-c:v libx264 -crf 18 -pix_fmt yuv420p"  # nearly as it was; players know no 4:4:4
QUICKEST = 20  # ms of a GIF's frame; what is shorter, browsers slow down to 100
SEEN = 0.5  # the opacity from which there is something, and its depth is shown
LOOKS, SMALLER = 5, 4  # frames that tell the range of depths, and how many times smaller they are
ENDS = 0.02  # share of depths at either end that are not told apart


def library(name: str, extra: str = "nerf") -> Any:
    """The module of an extra. Raises ValueError, which says how to get it, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needed = name.partition(".")[0]
        raise ValueError(f"this needs {needed}: pip install 'flax-zoo[{extra}]'") from error


# ---- frames ----


def pictures(renderer: Renderer, cameras: Camera, height: int, width: int) -> Iterator[Array]:
    """uint8 [height, width, 3] of each of the cameras [n, …]."""
    for view in views(renderer, cameras, height, width):
        yield np.round(255 * np.clip(view.colour, 0, 1)).astype(np.uint8)


def depths(renderer: Renderer, cameras: Camera, height: int, width: int) -> Iterator[Array]:
    """uint8 [height, width, 3] of each of the cameras [n, …]: bright is near, dark is far, black
    is nothing. One range for all frames; even in 1 / depth where the scene has no bounds."""
    even = (lambda depth: 1 / depth) if renderer.space.unbounded else np.negative
    far, near = ends(renderer, cameras, height, width, even)
    for view in views(renderer, cameras, height, width):
        seen = view.opacity > SEEN
        share = (even(np.where(seen, view.depth, 1)) - far) / (near - far)
        colours = shade(0.15 + 0.8 * np.clip(share, 0, 1))
        yield np.where(seen[:, :, None], colours, 0).astype(np.uint8)


def ends(
    renderer: Renderer, cameras: Camera, height: int, width: int, even: Callable[[Array], Array]
) -> tuple[float, float]:
    """The least and the largest of `even(depth)`, but for `ENDS` of them, by a few small views."""
    small = max(height // SMALLER, 1), max(width // SMALLER, 1)
    chosen = np.unique(np.linspace(0, len(cameras.pose) - 1, LOOKS).astype(int))
    cameras = resized(select(cameras, chosen), (height, width), small)
    found = [even(view.depth[view.opacity > SEEN]) for view in views(renderer, cameras, *small)]
    together = np.concatenate(found)
    if not together.size:
        return 0.0, 1.0
    low, high = np.quantile(together, [ENDS, 1 - ENDS])
    return float(low), float(max(high, low + 1e-6))


def views(renderer: Renderer, cameras: Camera, height: int, width: int) -> Iterator[View]:
    for i in range(len(cameras.pose)):
        yield renderer.view(select(cameras, i), height, width)


def shade(share: Array) -> Array:
    """uint8 [..., 3] of shares [...] in [0, 1]: from black to white through changing hues, with a
    brightness that only grows: cubehelix (Green, 2011, arXiv:1108.5083), whose default this is."""
    angle = 2 * np.pi * (0.5 / 3 + 1 - 1.5 * share)
    amplitude = share * (1 - share) / 2
    cosine, sine = (amplitude * wave(angle) for wave in (np.cos, np.sin))
    red = share - 0.14861 * cosine + 1.78277 * sine
    green = share - 0.29227 * cosine - 0.90649 * sine
    blue = share + 1.97294 * cosine
    return np.round(255 * np.clip(np.stack([red, green, blue], axis=-1), 0, 1)).astype(np.uint8)


# ---- videos and series of pictures ----


def writer(path: Path) -> Callable[[Path, Frames, int], None]:
    """What writes frames, so many a second, to such a path. Raises ValueError where nothing can,
    or where it needs what is not installed."""
    kind = "" if path.is_dir() else path.suffix
    if kind not in WRITERS:
        endings = ", ".join(filter(None, WRITERS))
        raise ValueError(f"{path}: give a file that ends in {endings}, or a folder for pictures")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if kind == ".png" and not re.fullmatch(r"[^%]*%0?\d*d[^%]*", path.name):
        raise ValueError(f"{path}: say where the number goes, as in {path.stem}_%04d.png")
    if kind == ".mp4":
        ffmpeg()
    return WRITERS[kind]


def fitting(path: Path, size: tuple[int, int], given: bool) -> tuple[int, int]:
    """(height, width) of what is written there: that size, of a video at most a pixel less, for its
    sides are even. Raises ValueError where another one was `given`."""
    height, width = size
    if path.suffix != ".mp4" or not (height % 2 or width % 2):
        return size
    even = height - height % 2, width - width % 2
    if given:
        raise ValueError(
            f"{path}: the sides of a video are even, and {height}×{width} are not: take "
            f"{even[0]}×{even[1]}"
        )
    return even


def video(path: Path, frames: Frames, fps: int) -> None:
    """H.264 in an MP4 file, which every player shows; the sides of frames are even."""
    frames = iter(frames)
    first = next(frames)
    height, width, _ = first.shape
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i -"
    begin = [ffmpeg(), "-y", "-loglevel", "error"]
    with whole(path) as part, tempfile.TemporaryFile() as said:
        command = [*begin, *raw.split(), *ENCODER.split(), str(part)]
        encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said)
        assert encoder.stdin is not None
        with suppress(BrokenPipeError), encoder:  # where it ends early it says why
            for frame in itertools.chain([first], frames):
                encoder.stdin.write(frame.tobytes())
        if encoder.returncode:
            said.seek(0)
            reason = said.read().decode(errors="replace").strip()
            raise OSError(f"{path} cannot be written by ffmpeg: {reason}")


def ffmpeg() -> str:
    """The program. Raises ValueError, which says how to get it, where it is missing."""
    try:
        return library("imageio_ffmpeg").get_ffmpeg_exe()
    except RuntimeError as error:  # no wheel for this machine has one
        raise ValueError(f"videos need ffmpeg, install it: {error}") from error


def animation(path: Path, frames: Frames, fps: int) -> None:
    """A GIF that goes on for ever. Its clock has hundredths of a second."""
    images = map(to_picture, frames)
    first = next(images)
    duration = max(QUICKEST, round(1000 / fps))
    with whole(path) as part:
        first.save(part, save_all=True, append_images=images, duration=duration, loop=0)


def series(path: Path, frames: Frames, fps: int) -> None:
    """PNG files, numbered from 0."""
    for i, frame in enumerate(frames):
        gallery.save(path.with_name(path.name % i), frame)


def folder(path: Path, frames: Frames, fps: int) -> None:
    """PNG files 0000.png, 0001.png, … in a folder, which is made."""
    path.mkdir(exist_ok=True)
    series(path / "%04d.png", frames, fps)


WRITERS: dict[str, Callable[[Path, Frames, int], None]] = {
    ".mp4": video,
    ".gif": animation,
    ".png": series,
    "": folder,
}


# ---- PLY ----


def write_ply(path: Path, points: Mapping[str, Array], faces: Array | None = None) -> None:
    """A binary PLY file, little endian.

    points: by name in the order that they are written in, float32 or uint8, [n] each. faces: int32
    [f, 3], numbers of the corners of triangles.
    """
    kinds = {np.dtype(np.float32): "float", np.dtype(np.uint8): "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points['x'])}"]
    lines += [f"property {kinds[values.dtype]} {name}" for name, values in points.items()]
    row = np.dtype([(name, values.dtype.newbyteorder("<")) for name, values in points.items()])
    table = np.empty(len(points["x"]), row)
    for name, values in points.items():
        table[name] = values
    parts = [table.tobytes()]
    if faces is not None:
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        corners = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
        corners["count"], corners["corners"] = 3, faces
        parts.append(corners.tobytes())
    header = "\n".join([*lines, "end_header", ""]).encode("ascii")
    with whole(path) as part:
        part.write_bytes(b"".join([header, *parts]))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path`, with its ending, which is moved there unless something is raised."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
