"""A mesh as posed pictures: what `mesh:FILE` draws, in NeRF-synthetic's form.

    file → triangles in a ball about the origin, z up
    ray → first triangle → colour, light → colour, alpha, distance

trimesh reads the file and Embree finds the triangles; both come with the extra `mesh`. Colours are
those of the vertices, of the faces or of a texture, as they are stored, with neither gamma nor
transparency. One light from far away and an even one make them bright or dark, on the side that is
seen, without shadows or highlights: a point looks the same from everywhere.

f triangles · n rays. Vectors of rays are [3, n], as in `train.data.raytrace`.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.config import ConfigError, Data, Missing, on_disk
from train.data import raytrace
from train.data.raytrace import SUN, Array, Recipe, World
from train.data.sources import bad_source

FORMAT = 1  # of what the code below draws: part of the key
BALL = 1.3  # radius of the ball around a mesh; the cameras, 4.03 away, see one of 1.36
HEMISPHERE = (0.0, np.pi / 2)  # where they are, as NeRF-synthetic has them
AMBIENT, DIRECT = 0.4, 0.6  # light from everywhere, from the sun

Z_UP = np.eye(3)
Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # to z up: (x, y, z) → (x, -z, y)
UPRIGHT = {  # kinds of files, and what turns them; y is up in glTF, and by habit in .obj
    ".ply": Z_UP,
    ".stl": Z_UP,
    ".off": Z_UP,
    ".obj": Y_UP,
    ".glb": Y_UP,
    ".gltf": Y_UP,
}


class Part(NamedTuple):
    """Triangles that are painted in one way.

    triangles  float64 [f, 3, 3]: three corners each
    carried    float64 [f, 3, c], by corner: a colour in [0, 1], or with a texture a place (u, v)
    texture    uint8 [h, w, 3], or None
    """

    triangles: Array
    carried: Array
    texture: Array | None = None


def check(path: str, cfg: Data) -> None:
    """Raises ConfigError for a file that is not there or of no kind that is read, and where a
    library is missing."""
    file = on_disk(path, "data.source")
    if file.suffix.lower() not in UPRIGHT:
        raise bad_source(cfg, f"{file.name} is none of {', '.join(UPRIGHT)}")
    if not file.is_file():
        raise bad_source(cfg, f"there is no file {file}", Missing)
    if not all(map(importlib.util.find_spec, ("trimesh", "embreex"))):
        raise bad_source(
            cfg,
            "needs trimesh and embreex: pip install 'flax-zoo[mesh]'; embreex has no wheels for "
            "Linux on ARM",
        )


def prepare(path: str, root: Path, recipe: Recipe) -> Path:
    """The folder below `root` with the pictures of a mesh, drawn where they are not there.

    Raises ConfigError for a file without triangles, and where a folder cannot be written.
    """
    parts = read(on_disk(path, "data.source"))
    key = {"format": [FORMAT, raytrace.FORMAT], "mesh": digest(parts), **asdict(recipe)}
    return raytrace.keep(
        root, key, lambda folder: raytrace.write(folder, recipe, world(parts), HEMISPHERE)
    )


# ---- files ----


def read(path: Path) -> list[Part]:
    """The parts of a mesh, in the ball. Raises ConfigError, which names the file, where there are
    no triangles."""
    import trimesh  # half a second, so only where it is used

    try:
        found = trimesh.load_scene(path, process=False).dump()
        parts = [part_of(mesh) for mesh in found if len(getattr(mesh, "faces", ()))]
    except Exception as error:  # trimesh raises nearly anything on broken files
        reason = str(error) or type(error).__name__
        raise ConfigError(f"data.source: {path} cannot be read: {reason}") from error
    if not parts:
        raise ConfigError(
            f"data.source: {path} has no faces, so there is nothing to see: points alone are no "
            "mesh"
        )
    return in_ball(parts, UPRIGHT[path.suffix.lower()], path)


def part_of(mesh: Any) -> Part:
    """One of trimesh's meshes. Without any colour it is grey."""
    faces, visual = np.asarray(mesh.faces), mesh.visual
    triangles = np.asarray(mesh.vertices, np.float64)[faces]
    if visual.kind == "texture":
        image = texture_of(visual.material)
        if image is not None and visual.uv is not None:
            return Part(triangles, np.asarray(visual.uv, np.float64)[faces], image)
        colours = np.broadcast_to(visual.material.main_color, (*faces.shape, 4))
    elif visual.kind == "face":
        colours = np.repeat(visual.face_colors[:, None], 3, axis=1)
    else:
        colours = visual.vertex_colors[faces]
    return Part(triangles, colours[..., :3] / 255)


def texture_of(material: Any) -> Array | None:
    """uint8 [h, w, 3] of a material of .obj or of glTF."""
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    return None if image is None else np.asarray(image.convert("RGB"))


def in_ball(parts: Sequence[Part], turn: Array, path: Path) -> list[Part]:
    """The same about the origin: the middle of their box, within BALL of all corners."""
    triangles = np.concatenate([part.triangles for part in parts])
    corners = triangles.reshape(-1, 3)
    with np.errstate(all="ignore"):  # what is not finite is told below
        middle = (corners.min(0) + corners.max(0)) / 2
        far = np.linalg.norm(corners - middle, axis=1).max()
        flat = not outward(triangles).any()
    if flat or not far < np.inf:
        raise ConfigError(
            f"data.source: {path} has no triangle with an area, or corners that are not finite: "
            f"the largest distance of one from their middle is {far}"
        )
    place = turn.T * (BALL / far)
    return [part._replace(triangles=(part.triangles - middle) @ place) for part in parts]


def digest(parts: Sequence[Part]) -> str:
    """The SHA-256 of all that is drawn, from whichever files it was read."""
    found = hashlib.sha256()
    for array in (array for part in parts for array in part if array is not None):
        found.update(f"{array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


# ---- rays and triangles ----


class Hits(NamedTuple):
    """What rays meet first. t float32 [n]: the distance, infinite for nothing; face int32 [n]: the
    triangle, -1 for none; weights float32 [n, 3] of its corners."""

    t: Array
    face: Array
    weights: Array


def world(parts: Sequence[Part]) -> World:
    """The parts as rays find them."""
    triangles = np.concatenate([part.triangles for part in parts])
    scene = embree(triangles)
    normals = outward(triangles)

    def colours(origin: Array, directions: Array) -> Array:
        hits = meet(scene, origin, directions)
        hit = hits.face >= 0
        face = hits.face[hit]
        found = np.zeros((4, len(hit)))
        painted = paint(parts, face, hits.weights[hit])
        found[:3, hit] = painted * light(normals[:, face], directions[:, hit])
        found[3] = hit
        return found

    return World(colours, lambda origin, directions: meet(scene, origin, directions).t)


def embree(triangles: Array) -> Any:
    """Embree's scene of triangles [f, 3, 3], ready for several threads."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene(robust=True)  # no ray slips through between two triangles
    TriangleMesh(scene, triangles.astype(np.float32))
    meet(scene, np.zeros((3, 1)), np.ones((3, 1)))  # builds its tree now, once
    return scene


def meet(scene: Any, origin: Array, directions: Array) -> Hits:
    """origin [3, 1], directions [3, n] of length 1."""
    towards = np.ascontiguousarray(directions.T, np.float32)
    start = np.ascontiguousarray(np.broadcast_to(origin.T, towards.shape), np.float32)
    found = scene.run(start, towards, output=True)
    face, u, v = found["primID"], found["u"], found["v"]
    t = np.where(face >= 0, found["tfar"], np.inf)
    return Hits(t, face, np.stack([1 - u - v, u, v], axis=-1))


def outward(triangles: Array) -> Array:
    """Unit normals [3, f] by the right-hand rule; those of triangles without area are zeros."""
    a, b, c = triangles.transpose(1, 0, 2)
    normals = np.cross(b - a, c - a).T
    return normals / np.maximum(np.sqrt((normals * normals).sum(0)), np.finfo(float).tiny)


# ---- colours and light ----


def paint(parts: Sequence[Part], face: Array, weights: Array) -> Array:
    """[3, n] in white light at places of faces [n], numbered through all parts."""
    ends = np.cumsum([len(part.triangles) for part in parts])
    owner = np.searchsorted(ends, face, side="right")
    found = np.empty((3, len(face)))
    for i in np.unique(owner):
        part, own = parts[i], owner == i
        carried = part.carried[face[own] - (ends[i] - len(part.triangles))]
        value = (weights[own, :, None] * carried).sum(1)
        found[:, own] = (value if part.texture is None else look_up(part.texture, value)).T
    return found


def look_up(texture: Array, places: Array) -> Array:
    """[n, 3] in [0, 1] at (u, v) [n, 2] of a texture that repeats: between four texels.

    u leads from left to right, v from below to above, and a texture is 1 wide and high.
    """
    height, width, _ = texture.shape
    x, y = places[:, 0] * width - 0.5, (1 - places[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = (x - left)[:, None], (y - top)[:, None]

    def texel(i: Array, j: Array) -> Array:
        return texture[j % height, i % width] / 255

    above = texel(left, top) * (1 - right) + texel(left + 1, top) * right
    below = texel(left, top + 1) * (1 - right) + texel(left + 1, top + 1) * right
    return above * (1 - down) + below * down


def light(normals: Array, directions: Array) -> Array:
    """[n], in [0, 1]: how bright faces are on the side that is seen along directions [3, n].

    Lambert's law for the sun, of `train.data.raytrace`, and AMBIENT light from everywhere.
    """
    behind = (normals * directions).sum(0) > 0
    facing = (normals * SUN).sum(0) * np.where(behind, -1, 1)
    return AMBIENT + DIRECT * np.maximum(facing, 0)
