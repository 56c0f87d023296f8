"""Where one picture comes from.

    photo          Grace Hopper, 512×600: a photograph that comes with matplotlib
    picture:FILE   any picture that Pillow reads, turned as its EXIF orientation says

Colours are as stored, made RGB; what is transparent is laid over white.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.config import ConfigError, Data, Missing, on_disk
from train.data import sources
from train.data.sources import Kind, bad_source
from zoo.preprocess import Unreadable, decode

PHOTO = Path("sample_data") / "grace_hopper.jpg"
# What the file says of itself: commons.wikimedia.org/wiki/File:Grace_Hopper.jpg.
NAVY, OWN = "public domain: United States Navy", "not stated: the user's own file"


@dataclass(frozen=True)
class Source:
    """One picture, uint8 [h, w, 3]."""

    pixels: np.ndarray
    licence: str


def check_source(cfg: Data) -> None:
    """Raises ConfigError for what is wrong with `data.source`, as far as a look at the disk shows.
    Imports no jax."""
    kind, argument = sources.choose(cfg, SOURCES)
    kind.check(argument, cfg)


def open_source(cfg: Data) -> Source:
    """The picture that `data.source` names. Raises ConfigError where `check_source` does, and for a
    file that is no picture."""
    kind, argument = sources.choose(cfg, SOURCES)
    kind.check(argument, cfg)
    return kind.open(argument, cfg)


def check_photo(_: str, cfg: Data) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise bad_source(cfg, "needs the photograph of matplotlib: pip install matplotlib")


def open_photo(_: str, cfg: Data) -> Source:
    import matplotlib  # a third of a second, so only where it is used

    path = Path(matplotlib.get_data_path()) / PHOTO
    if not path.is_file():
        raise bad_source(
            cfg, f"this matplotlib has no {PHOTO.as_posix()}; give picture:FILE", Missing
        )
    return Source(read(path, cfg), NAVY)


def check_file(name: str, cfg: Data) -> None:
    path = on_disk(name, "data.source")
    if not path.exists():
        raise bad_source(cfg, f"there is no file {path}", Missing)
    if path.is_dir():
        raise bad_source(cfg, f"{path} is a folder; name a picture in it")


def open_file(name: str, cfg: Data) -> Source:
    return Source(read(on_disk(name, "data.source"), cfg), OWN)


def read(path: Path, cfg: Data) -> np.ndarray:
    """uint8 [h, w, 3]. Raises ConfigError, which names the file, for what is no picture."""
    try:
        return decode(path, 3)
    except Unreadable as error:
        raise bad_source(cfg, str(error), ConfigError) from error


SOURCES = {
    "photo": Kind("photo", check_photo, open_photo),
    "picture": Kind("picture:FILE", check_file, open_file),
}
