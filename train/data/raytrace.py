"""The embedded scene: a small ray tracer, and posed views of things on a checkerboard.

    ray → nearest solid → pattern, light, shadow, highlight → colour, alpha, distance

Ten solids in a box of ±1.5 units, z up, under one sun; nine are matte and one is glossy. A solid is
an ellipsoid, a box or a cylinder: the unit sphere, cube or cylinder in its own axes, where t along
a ray is the same. What is written has NeRF-synthetic's form (Mildenhall et al., 2020,
arXiv:2003.08934): pictures with alpha 0 where nothing is, cameras as Blender has them; and the true
distance beside each picture. All is closed-form float64 of NumPy, the same bits on one platform.

n rays · s side of a picture · k samples along the side of a pixel. Vectors are [3, n], so that each
coordinate is contiguous.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from train.config import ConfigError
from train.data import tokens

FORMAT = 1  # of the files, and of what the code below draws: part of the key
AT_ONCE = 2**14  # rays: their arrays fit into a core's cache

Array = np.ndarray
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """What is drawn: how many views, of size × size pixels with samples × samples rays each."""

    size: int = 200
    samples: int = 4
    train: int = 60
    validation: int = 10
    test: int = 20


# ---- the scene ----


class Solid(NamedTuple):
    """One thing.

    shape   of SHAPES
    centre  in the world
    size    half of its extent along its own axes: radii of an ellipsoid, half edges of a box
    colour  in [0, 1]
    second  the other colour of its pattern
    cells   cells of the pattern in half of its extent, by axis; not whole, so that no border lies
            on a face
    turn    radians about z
    gloss   brightness of the sun's reflection
    """

    shape: str
    centre: Vector
    size: Vector
    colour: Vector
    second: Vector = (0, 0, 0)
    cells: Vector = (0, 0, 0)
    turn: float = 0.0
    gloss: float = 0.0


SOLIDS = (
    Solid(  # the floor, a fine checkerboard: a cell is 0.104 units, 6 of 200 pixels
        *("box", (0, 0, -0.65), (1.3, 1.3, 0.05), (0.92, 0.9, 0.86), (0.25, 0.27, 0.3)),
        cells=(12.5, 12.5, 0),
    ),
    Solid("sphere", (0.35, -0.4, -0.16), (0.44, 0.44, 0.44), (0.75, 0.12, 0.1), gloss=0.8),
    Solid("box", (-0.5, 0.35, -0.2), (0.35, 0.25, 0.4), (0.16, 0.32, 0.72), turn=0.5),
    Solid("sphere", (-0.5, 0.35, 0.42), (0.22, 0.22, 0.22), (0.2, 0.62, 0.25)),
    Solid("cylinder", (0.5, 0.6, -0.12), (0.16, 0.16, 0.48), (0.85, 0.68, 0.2)),
    Solid("cylinder", (0.5, 0.6, 0.4), (0.48, 0.48, 0.04), (0.1, 0.58, 0.6)),
    Solid("sphere", (0.42, 0.55, 0.56), (0.2, 0.2, 0.12), (0.85, 0.45, 0.6)),
    Solid(
        *("cylinder", (-0.3, -0.7, 0.0), (0.09, 0.09, 0.6), (0.93, 0.5, 0.12), (0.96, 0.93, 0.88)),
        cells=(0, 0, 4.5),
    ),
    Solid(
        *("box", (-0.9, -0.35, -0.38), (0.22, 0.22, 0.22), (0.6, 0.45, 0.3), (0.95, 0.85, 0.6)),
        cells=(2.5, 2.5, 2.5),
        turn=0.3,
    ),
    Solid(
        *("sphere", (0.98, 0.05, -0.36), (0.24, 0.24, 0.24), (0.45, 0.25, 0.6), (0.9, 0.88, 0.95)),
        cells=(0, 0, 3.5),
    ),
)
SUN = np.array([[0.45], [-0.3], [0.84]]) / math.sqrt(0.45**2 + 0.3**2 + 0.84**2)  # [3, 1], to it
AMBIENT, SKY, DIRECT = 0.28, 0.12, 0.6  # light from everywhere, from above, from the sun
SHARPNESS = 40.0  # exponent of the sun's reflection
SKIN = 1e-6  # units from a surface at which the ray to the sun begins


# ---- rays and solids ----


def to_local(solid: Solid, vectors: Array) -> Array:
    """[3, n] along the axes of a solid, in halves of its extent."""
    cosine, sine = math.cos(solid.turn), math.sin(solid.turn)
    (x, y, z), (a, b, c) = vectors, solid.size
    return np.stack([(cosine * x + sine * y) / a, (cosine * y - sine * x) / b, z / c])


def place(solid: Solid, points: Array) -> Array:
    """Points [3, n] of the world, seen from a solid."""
    return to_local(solid, points - np.array(solid.centre)[:, None])


def meet_sphere(o: Array, d: Array) -> Array:
    """t [n] at which lines o + t d enter the unit sphere; infinite for those that do not."""
    near, far = _roots((d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1)
    return np.where(near < far, near, np.inf)


def meet_cube(o: Array, d: Array) -> Array:
    """The same for [-1, 1]³."""
    near, far = _slab(o, d)
    near, far = near.max(0), far.min(0)
    return np.where(near < far, near, np.inf)


def meet_cylinder(o: Array, d: Array) -> Array:
    """The same for x² + y² ≤ 1, |z| ≤ 1."""
    across = (d[:2] * d[:2]).sum(0)
    across = np.maximum(across, 1e-30)  # upright lines are inside always, or never
    near, far = _roots(across, (o[:2] * d[:2]).sum(0), (o[:2] * o[:2]).sum(0) - 1)
    bottom, top = _slab(o[2], d[2])
    near, far = np.maximum(near, bottom), np.minimum(far, top)
    return np.where(near < far, near, np.inf)


def _roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Of a t² + 2 b t + c, the smaller first; (inf, -inf) where there are not two."""
    root = b * b - a * c
    width, two = np.sqrt(np.maximum(root, 0)), root > 0
    return np.where(two, (-b - width) / a, np.inf), np.where(two, (-b + width) / a, -np.inf)


def _slab(o: Array, d: Array) -> tuple[Array, Array]:
    """t at which coordinates come into [-1, 1] and leave it; NaN for those along its border."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (-1 - o) / d, (1 - o) / d
    return np.minimum(first, second), np.maximum(first, second)


def from_sphere(p: Array) -> Array:
    """The outward direction [3, n] at points of the unit sphere, of any length."""
    return p


def from_cube(p: Array) -> Array:
    """The same for [-1, 1]³."""
    size = np.abs(p)
    return np.where(size == size.max(0), np.sign(p), 0)


def from_cylinder(p: Array) -> Array:
    """The same for x² + y² ≤ 1, |z| ≤ 1."""
    x, y, z = p
    cap = np.abs(z) > np.hypot(x, y)
    return np.stack([np.where(cap, 0, x), np.where(cap, 0, y), np.where(cap, np.sign(z), 0)])


class Shape(NamedTuple):
    meet: Callable[[Array, Array], Array]
    outward: Callable[[Array], Array]


SHAPES = {
    "sphere": Shape(meet_sphere, from_sphere),
    "box": Shape(meet_cube, from_cube),
    "cylinder": Shape(meet_cylinder, from_cylinder),
}


def meet(origins: Array, directions: Array) -> Array:
    """t [solids, n] at which lines enter each of SOLIDS, whatever stands before it; else infinite.

    origins, directions [3, n]; one of them may be [3, 1], the same for all.
    """
    found = [
        SHAPES[solid.shape].meet(place(solid, origins), to_local(solid, directions))
        for solid in SOLIDS
    ]
    return np.stack(found)


def nearest(origins: Array, directions: Array) -> tuple[Array, Array]:
    """(t float64 [n], its solid int [n]) of what each ray meets first; (inf, 0) for nothing.

    Rays begin outside of all solids, which have no inside.
    """
    found = meet(origins, directions)
    found[found <= 0] = np.inf
    first = found.argmin(0)
    return np.take_along_axis(found, first[None], 0)[0], first


# ---- light ----


def surface(solid: Solid, points: Array) -> tuple[Array, Array]:
    """(colour in white light [3, n], normal [3, n]) at points on a solid."""
    local = place(solid, points)
    odd = np.floor(local * np.array(solid.cells)[:, None]).sum(0) % 2 == 1
    colour = np.where(odd, np.array(solid.second)[:, None], np.array(solid.colour)[:, None])
    x, y, z = SHAPES[solid.shape].outward(local) / np.array(solid.size)[:, None]
    cosine, sine = math.cos(solid.turn), math.sin(solid.turn)
    return colour, unit(np.stack([cosine * x - sine * y, sine * x + cosine * y, z]))


def colours(points: Array, directions: Array, index: Array) -> Array:
    """[3, n] in [0, 1] of points [3, n] on the solids `index` [n], seen along unit directions.

    Lambert's law for the sun and Blinn's reflection of it, both with a hard shadow.
    """
    base, normal = np.empty_like(points), np.empty_like(points)
    for i in np.unique(index):
        base[:, index == i], normal[:, index == i] = surface(SOLIDS[i], points[:, index == i])
    slope = np.maximum((normal * SUN).sum(0), 0)
    facing = slope > 0
    slope[facing] *= in_the_sun(points[:, facing], normal[:, facing])
    gloss = np.array([solid.gloss for solid in SOLIDS])[index] * (slope > 0)
    halfway = unit(SUN - directions)
    shine = np.maximum((normal * halfway).sum(0), 0) ** SHARPNESS
    return np.clip(base * (AMBIENT + SKY * normal[2] + DIRECT * slope) + gloss * shine, 0, 1)


def in_the_sun(points: Array, normals: Array) -> Array:
    """bool [n]: nothing stands between a point on a solid and the sun."""
    return np.isinf(nearest(points + SKIN * normals, SUN)[0])


def unit(vectors: Array) -> Array:
    return vectors / np.sqrt((vectors * vectors).sum(0))


def trace(origin: Array, directions: Array) -> Array:
    """[4, n]: the colour of what each ray meets and 1, or zeros.

    origin [3, 1], directions [3, n] of length 1.
    """
    t, index = nearest(origin, directions)
    hit = np.isfinite(t)
    found = np.zeros((4, len(t)))
    seen = directions[:, hit]
    found[:3, hit], found[3, hit] = colours(origin + t[hit] * seen, seen, index[hit]), 1
    return found


class World(NamedTuple):
    """What is drawn, as rays find it: origin [3, 1], directions [3, n] of length 1.

    colours    [4, n]: the colour of what each ray meets and 1, or zeros
    distances  [n] to it, infinite for nothing
    """

    colours: Callable[[Array, Array], Array]
    distances: Callable[[Array, Array], Array]


SCENE = World(trace, lambda origin, directions: nearest(origin, directions)[0])


# ---- cameras ----

FIELD = 0.6911112070083618  # radians from left to right: camera_angle_x of NeRF-synthetic
RADIUS = 4.03  # units from the origin, as there
BELT = (math.radians(20), math.radians(70))  # above the floor
GOLDEN = math.pi * (3 - math.sqrt(5))  # the angle that spreads points best as they go round


def views(recipe: Recipe, belt: tuple[float, float] = BELT) -> dict[str, list[Array]]:
    """float64 poses [3, 4] of each split, camera to world.

    Those to train on and to validate with are spread evenly over a belt of the hemisphere, and
    every seventh or so of them validates. Those to test on lie on a spiral of two turns.
    """
    count = recipe.train + recipe.validation
    held = {int((i + 0.5) * count / recipe.validation) for i in range(recipe.validation)}
    spread = [look_from(i * GOLDEN, (i + 0.5) / count, belt) for i in range(count)]
    steps = [(i + 0.5) / recipe.test for i in range(recipe.test)]
    return {
        "train": [pose for i, pose in enumerate(spread) if i not in held],
        "validation": [pose for i, pose in enumerate(spread) if i in held],
        "test": [look_from(4 * math.pi * step, step, belt) for step in steps],
    }


def look_from(azimuth: float, share: float, belt: tuple[float, float] = BELT) -> Array:
    """The pose [3, 4] of a camera that looks at the origin: x right, y up, it looks along -z.

    share: of the area of the belt that is lower, in [0, 1]. belt: radians above the floor.
    """
    lowest, highest = map(math.sin, belt)
    height = lowest + share * (highest - lowest)
    level = math.sqrt(1 - height**2)
    back = np.array([level * math.cos(azimuth), level * math.sin(azimuth), height])
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0])
    return np.column_stack([right, np.cross(back, right), back, RADIUS * back])


def through(pose: Array, size: int, xs: Array, ys: Array) -> Array:
    """Unit directions [3, len(ys) · len(xs)] through places in pixels, row by row."""
    x, y = np.meshgrid((xs - size / 2), (size / 2 - ys))
    focal = size / 2 / math.tan(FIELD / 2)
    right, up, back = pose[:, :3].T[..., None]
    return unit(right * x.ravel() + up * y.ravel() - back * focal)


def render(pose: Array, size: int, samples: int, world: World = SCENE) -> tuple[Array, Array]:
    """(uint8 [s, s, 4], colours not multiplied by alpha; float32 [s, s], distance from the camera
    to what the centre of each pixel shows, infinite for nothing)."""
    fine = (np.arange(size * samples) + 0.5) / samples
    rows = max(1, AT_ONCE // (size * samples**2))  # of pixels that are drawn together
    strips = [
        world.colours(pose[:, 3:], through(pose, size, fine, ys)).reshape(
            4, -1, samples, size, samples
        )
        for ys in np.split(fine, range(rows * samples, len(fine), rows * samples))
    ]
    picture = np.concatenate([strip.mean((2, 4)) for strip in strips], axis=1)
    picture[:3] /= np.maximum(picture[3], 1 / samples**2)
    centres = np.arange(size) + 0.5
    distance = world.distances(pose[:, 3:], through(pose, size, centres, centres))
    image = np.round(picture * 255).astype(np.uint8).transpose(1, 2, 0)
    return image, distance.reshape(size, size).astype(np.float32)


# ---- files ----


def prepare(root: Path, recipe: Recipe) -> Path:
    """The folder below `root` with the scene, which is drawn where it is not there.

    200 × 200 pixels take a minute or less, once. Raises ConfigError where it cannot be written.
    """
    key = {"format": FORMAT, "solids": SOLIDS, **asdict(recipe)}
    return keep(root, key, lambda folder: write(folder, recipe))


def keep(root: Path, key: dict[str, Any], draw: Callable[[Path], None]) -> Path:
    """The folder of this key below `root`, which `draw(folder)` makes where there is none.

    It is there whole or not at all. Raises ConfigError where it cannot be written.
    """
    key = json.loads(json.dumps(key))  # tuples are lists in a header
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    whole = partial(is_whole, root / name, key)
    if whole():
        return root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as scratch:
            made = Path(scratch) / name
            draw(made)
            tokens.write_header(made, key=key, sha256=digest(made))
            tokens.install(made, root / name, whole)
    except OSError as error:
        raise ConfigError(
            f"data.cache: the scene cannot be written below {root}: {error}; make room there, or "
            "set data.cache to a folder that can be written"
        ) from error
    return root / name


def is_whole(folder: Path, key: dict[str, Any]) -> bool:
    """Whether all that was written for this key is there, unchanged."""
    try:
        header = json.loads((folder / tokens.HEADER).read_text(encoding="utf-8"))
        return header == {"key": key, "sha256": digest(folder)}
    except (OSError, ValueError):
        return False


def digest(folder: Path) -> str:
    """The SHA-256 of all files but the header, and of their names."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != tokens.HEADER:
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


STORED_AS = {"train": "train", "validation": "val", "test": "test"}  # NeRF-synthetic's names


def write(
    folder: Path, recipe: Recipe, world: World = SCENE, belt: tuple[float, float] = BELT
) -> None:
    """Draws all views: transforms_{train,val,test}.json, and for each view a picture
    {train,val,test}/r_0.png and its distances, float32 [s, s], in r_0.npy."""
    for split, poses in views(recipe, belt).items():
        stem = STORED_AS[split]
        (folder / stem).mkdir(parents=True)
        with ThreadPoolExecutor() as pool:
            drawn = pool.map(lambda pose: render(pose, recipe.size, recipe.samples, world), poses)
            frames = [
                write_view(folder, f"{stem}/r_{i}", pose, *view)
                for i, (pose, view) in enumerate(zip(poses, drawn, strict=True))
            ]
        said = json.dumps({"camera_angle_x": FIELD, "frames": frames}, indent=2) + "\n"
        (folder / f"transforms_{stem}.json").write_text(said, encoding="utf-8")


def write_view(folder: Path, name: str, pose: Array, image: Array, distance: Array) -> Any:
    """Writes a picture and its distances; returns its frame for transforms.json."""
    Image.fromarray(image).save(folder / f"{name}.png")
    np.save(folder / f"{name}.npy", distance)
    return {
        "file_path": f"./{name}",
        "distance_file_path": f"./{name}.npy",
        "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]],
    }
