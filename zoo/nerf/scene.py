"""What a trained field is of: where it lies, how it is looked at, and the cameras that saw it.

Written as `scene.json` beside the weights, so that pictures can be drawn without the data.
"""

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

FILE = "scene.json"
Corner = tuple[float, float, float]


@dataclass(frozen=True)
class Sampler:
    """How the samples of a ray are chosen."""


@dataclass(frozen=True)
class Occupancy(Sampler):
    """Samples in cells that are not empty (Instant-NGP, arXiv:2201.05989, appendix E)."""

    resolution: int = 128  # cells along a side of each cascade
    cascades: int = 1  # boxes, each twice as wide as the one before, the last one the scene's
    steps: int = 1024  # of a ray along the diagonal of the first box: as many are looked up at most
    slots: int = 128  # samples of a ray at most in what is shown; training has room for its own


@dataclass(frozen=True)
class Hierarchical(Sampler):
    """Even samples, then more where the first found something (NeRF, arXiv:2003.08934, 5.2)."""

    coarse: int = 64
    fine: int = 128


@dataclass(frozen=True)
class Proposals(Sampler):
    """Samples where small networks expect something (Mip-NeRF 360, arXiv:2111.12077, section 3)."""

    counts: tuple[int, ...] = (256, 96, 48)  # intervals of each network, and of the field


SAMPLERS = {kind.__name__.lower(): kind for kind in (Occupancy, Hierarchical, Proposals)}


@dataclass(frozen=True)
class Space:
    """low, high: corners of the box that holds the scene, or of the first of its cascades, world
    units. unbounded: what lies beyond the unit ball is contracted instead (Mip-NeRF 360, eq. 10),
    and the box says nothing. near: nothing is nearer to a camera. background: "white",
    "black" or a colour in [0, 1], behind what is seen."""

    low: Corner = (-1.0, -1.0, -1.0)
    high: Corner = (1.0, 1.0, 1.0)
    unbounded: bool = False
    near: float = 0.05
    background: str | Corner = "white"
    sampler: Sampler = field(default_factory=Occupancy)


@dataclass(frozen=True)
class Scene:
    """cameras: zoo.nerf.cameras.Camera of NumPy arrays [n, …], of pictures of height × width
    pixels; names [n]; splits: the numbers of the views by split."""

    space: Space
    height: int
    width: int
    cameras: Any
    names: tuple[str, ...]
    splits: Mapping[str, Sequence[int]]
    licence: str = ""

    def save(self, directory: Path) -> None:
        """Writes `scene.json` into a folder that exists."""
        space = asdict(self.space) | {"sampler": said(self.space.sampler)}
        cameras = {key: np.asarray(x).tolist() for key, x in self.cameras._asdict().items()}
        splits = {key: [int(i) for i in views] for key, views in self.splits.items()}
        facts = {f.name: getattr(self, f.name) for f in fields(self)}
        facts |= {"space": space, "cameras": cameras, "names": [*self.names], "splits": splits}
        (directory / FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def said(sampler: Sampler) -> dict[str, Any]:
    return {"kind": type(sampler).__name__.lower(), **asdict(sampler)}


def load(directory: Path) -> Scene:
    """The scene that `Scene.save` wrote. Raises ValueError, which names the file, for any other."""
    path = Path(directory) / FILE
    if not path.is_file():
        raise ValueError(
            f"there is no {path}: a scene is what `python -m train ngp_scene` leaves in "
            "WORKDIR/model"
        )
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is no scene: {type(error).__name__}: {error}") from error


def read(facts: Mapping[str, Any]) -> Scene:
    from zoo.nerf.cameras import Camera  # jax, which the classes above do without

    space = {key: of_json(value) for key, value in facts["space"].items() if key != "sampler"}
    sampler = {key: of_json(value) for key, value in facts["space"]["sampler"].items()}
    kind = SAMPLERS[sampler.pop("kind")]
    cameras = {key: np.asarray(x, np.float32) for key, x in facts["cameras"].items()}
    if (n := len(facts["names"])) != len(cameras["pose"]):
        raise ValueError(f"{n} names of {len(cameras['pose'])} cameras")
    return Scene(
        space=Space(**space, sampler=kind(**sampler)),
        height=int(facts["height"]),
        width=int(facts["width"]),
        cameras=Camera(**cameras),
        names=tuple(facts["names"]),
        splits=types.MappingProxyType({key: tuple(x) for key, x in facts["splits"].items()}),
        licence=facts["licence"],
    )


def of_json(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
