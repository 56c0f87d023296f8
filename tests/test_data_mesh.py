"""Meshes as posed pictures: depth, colours and alpha are those of the mesh, drawn once and kept."""

import importlib.util
import itertools
import math
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from train.config import ConfigError, Missing
from train.data import posed, posed_mesh, raytrace

pytestmark = pytest.mark.skipif(
    platform.machine() == "aarch64", reason="embreex has no wheels for Linux on ARM"
)
TINY = raytrace.Recipe(size=24, samples=1, train=6, validation=2, test=2)
VIEWS = 10
SUN = np.array([0.45, -0.3, 0.84]) / math.sqrt(0.45**2 + 0.3**2 + 0.84**2)
RADIUS = 0.66 * 1.3  # of the ball around every mesh, in the scene's world: 1.3 of NeRF-synthetic's


def opened(path, cache, **recipe):
    return posed.open_scene(f"mesh:{path}", recipe=replace(TINY, **recipe), cache=str(cache))


def pixels(scene):
    """(view, row, column, origin [3], direction [3] of length 1) of every pixel's centre."""
    n, height, width, _ = scene.images.shape
    for view, row, column in itertools.product(range(n), range(height), range(width)):
        pose, focal, centre, _ = (value[view].astype(float) for value in scene.cameras)
        x, y = (np.array([column, row]) + 0.5 - centre) / focal
        direction = pose[:, :3] @ [x, -y, -1]
        yield view, row, column, pose[:, 3], direction / np.linalg.norm(direction)


def seen(scene):
    """(view, row, column, point [3]) of every pixel that shows something."""
    for *where, origin, direction in pixels(scene):
        distance = float(scene.depth[tuple(where)])
        if math.isfinite(distance):
            yield *where, origin + distance * direction


# ---- a ball: depth, alpha, cameras ----


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """A file with a ball that is neither at the origin nor of the size that is drawn."""
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=20)
    mesh.apply_translation([5, -3, 100])
    path = tmp_path_factory.mktemp("meshes") / "ball.ply"
    mesh.export(path)
    return path


@pytest.fixture(scope="module")
def scene(ball, cache):
    return opened(ball, cache)


def entered(origin, direction, radius):
    """The distance at which a ray enters a sphere about the origin; infinite where it does not."""
    b, c = origin @ direction, origin @ origin - radius**2
    return -b - math.sqrt(b * b - c) if b * b > c else math.inf


def test_depth_lies_between_the_sphere_around_a_ball_and_the_one_inside(scene, ball):
    """The faces of an icosphere touch a slightly smaller sphere: what is seen lies between."""
    mesh = trimesh.load_mesh(ball)
    middle = np.array([5, -3, 100])
    nearest = np.min(((mesh.triangles[:, 0] - middle) * mesh.face_normals).sum(1)) / 20
    hits = 0
    for *where, origin, direction in pixels(scene):
        outer, inner = (entered(origin, direction, RADIUS * r) for r in (1, nearest))
        found = float(scene.depth[tuple(where)])
        assert outer - 1e-5 <= found, where
        assert found <= inner + 1e-5 or math.isinf(inner), where
        hits += math.isfinite(found)
    assert 0.9 < nearest < 1 and hits > VIEWS * 150


def test_alpha_is_where_something_is(scene):
    alpha = scene.images[..., 3]
    assert np.array_equal(alpha == 255, np.isfinite(scene.depth)) and {*np.unique(alpha)} == {
        0,
        255,
    }
    assert scene.background == "white" and scene.images.dtype == np.uint8


def test_alpha_is_the_share_of_a_pixels_rays_that_meet_something(ball, cache, scene):
    """With 2 × 2 rays a pixel is the mean of four small ones."""
    fine = opened(ball, cache, size=48).images[..., 3]
    wanted = fine.reshape(VIEWS, 24, 2, 24, 2).astype(float).mean((2, 4))
    found = opened(ball, cache, samples=2).images[..., 3]
    assert np.abs(found - wanted).max() <= 0.5 and len(np.unique(found)) == 5


def test_cameras_look_at_the_mesh_from_the_whole_upper_hemisphere(scene):
    poses = scene.cameras.pose.astype(float)
    turns, places = poses[:, :, :3], poses[:, :, 3]
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (VIEWS, 1, 1)), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-6)
    far = np.linalg.norm(places, axis=1)
    np.testing.assert_allclose(far, 0.66 * 4.03, atol=1e-6)
    np.testing.assert_allclose(
        turns[:, :, 2], places / far[:, None], atol=1e-6
    )  # they look along -z
    heights = np.sort(places[:, 2] / far)
    assert 0 < heights[0] < 0.1 and 0.9 < heights[-1] < 1 and (turns[:, 2, 1] > 0).all()
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)[~np.eye(VIEWS, dtype=bool)]
    assert apart.min() > 0.02
    assert {name: len(found) for name, found in scene.splits.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }


# ---- colours and light ----

COLOURS = np.array(
    [[250, 40, 30], [40, 250, 60], [30, 60, 250], [250, 250, 40], [240, 50, 240], [60, 240, 240]]
)
AXES = np.concatenate([np.eye(3), -np.eye(3)])  # of a box's six sides


def box(size=(2.0, 2.0, 2.0)):
    """A box whose sides, in the order of AXES, have COLOURS."""
    mesh = trimesh.creation.box(size)
    side = (mesh.face_normals @ AXES.T).argmax(1)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, face_colors=COLOURS[side], process=False)


def lit(colour, normal):
    """The formula: 0.4 from everywhere, 0.6 from the sun."""
    return np.asarray(colour) * (0.4 + 0.6 * max(float(normal @ SUN), 0))


def by_faces(folder):
    box().export(folder / "box.ply")
    return folder / "box.ply"


def by_vertices(folder):
    """Each side has corners of its own."""
    mesh = box()
    corners = mesh.vertices[mesh.faces].reshape(-1, 3)
    colours = np.repeat(mesh.visual.face_colors, 3, axis=0)
    faces = np.arange(len(corners)).reshape(-1, 3)
    mesh = trimesh.Trimesh(corners, faces, vertex_colors=colours, process=False)
    mesh.export(folder / "corners.ply")
    return folder / "corners.ply"


@pytest.mark.parametrize("write", [by_faces, by_vertices])
def test_each_side_of_a_box_has_its_colour_in_its_light(tmp_path, cache, write):
    scene = opened(write(tmp_path), cache)
    half, sides = RADIUS / math.sqrt(3), set()
    for view, row, column, point in seen(scene):
        side = int((AXES @ point).argmax())
        assert AXES[side] @ point == pytest.approx(half, abs=1e-5)
        wanted = lit(COLOURS[side], AXES[side])
        assert np.abs(scene.images[view, row, column, :3] - wanted).max() <= 0.51
        sides.add(side)
    assert sides == {0, 1, 2, 3, 4}  # the side below is seen by no camera


def test_colours_of_corners_are_interpolated(tmp_path, cache):
    """Red is x, green is y and blue is z of a ball that is painted by its corners."""
    mesh = trimesh.creation.icosphere(subdivisions=4)
    mesh.visual.vertex_colors = np.round(255 * (mesh.vertices + 1) / 2).astype(np.uint8)
    mesh.export(tmp_path / "painted.ply")
    scene = opened(tmp_path / "painted.ply", cache)
    for view, row, column, point in seen(scene):
        place = point / np.linalg.norm(point)
        wanted = lit(255 * (place + 1) / 2, place)  # a face's own normal is 0.04 away
        assert np.abs(scene.images[view, row, column, :3] - wanted).max() < 9


OBJ = """mtllib sheet.mtl
v -1 -1 0
v 1 -1 0
v 1 1 0
v -1 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl paint
f 1/1 2/2 3/3
f 1/1 3/3 4/4
"""
QUARTERS = np.array([[[250, 40, 30], [40, 250, 60]], [[30, 60, 250], [240, 240, 40]]], np.uint8)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """An upright square of .obj, its picture in four quarters; y is up."""
    folder = tmp_path_factory.mktemp("sheet")
    (folder / "sheet.obj").write_text(OBJ)
    (folder / "sheet.mtl").write_text("newmtl paint\nKd 1 1 1\nmap_Kd sheet.png\n")
    Image.fromarray(QUARTERS.repeat(8, 0).repeat(8, 1)).save(folder / "sheet.png")
    return folder / "sheet.obj"


def test_a_texture_stands_upright_and_both_sides_are_lit(sheet, cache):
    """.obj has y up and looks along -z, which become z and y: the square's front is towards -y."""
    scene = opened(sheet, cache, size=32)
    half, fronts, quarters = RADIUS / math.sqrt(2), [], set()
    for view, row, column, point in seen(scene):
        assert point[1] == pytest.approx(0, abs=1e-5)
        u, v = (point[[0, 2]] / half + 1) / 2
        if np.abs(np.array([[u], [v]]) - [0, 0.5, 1]).min() < 1 / 16:  # between two quarters
            continue
        front = scene.cameras.pose[view, 1, 3] < 0
        normal = np.array([0, -1.0 if front else 1.0, 0])
        wanted = lit(QUARTERS[int(v < 0.5), int(u > 0.5)], normal)
        assert np.abs(scene.images[view, row, column, :3] - wanted).max() <= 0.51
        fronts.append(front)
        quarters.add((u > 0.5, v > 0.5, front))
    assert len(quarters) == 8 and 100 < sum(fronts) < len(fronts) - 100


def test_a_texture_is_the_same_in_glb(sheet, cache, tmp_path):
    trimesh.load_scene(sheet).export(tmp_path / "sheet.glb")
    np.testing.assert_array_equal(
        opened(tmp_path / "sheet.glb", cache).images, opened(sheet, cache).images
    )


def test_a_texture_is_looked_up_between_texels_and_repeats():
    texture = np.array([[[0] * 3, [100] * 3], [[200] * 3, [40] * 3]], np.uint8)
    places = {  # (u, v) → the mean of what is around
        (0.25, 0.75): 0,
        (0.75, 0.75): 100,
        (0.25, 0.25): 200,
        (0.75, 0.25): 40,
        (0.5, 0.75): 50,
        (0.25, 0.5): 100,
        (0.5, 0.5): 85,
        (0.375, 0.75): 25,
        (0.0, 0.75): 50,  # across the left edge
        (3.75, -1.25): 100,
    }
    found = posed_mesh.look_up(texture, np.array([*places]))
    np.testing.assert_allclose(255 * found[:, 0], [*places.values()], atol=1e-9)


def test_parts_keep_their_places_and_colours(tmp_path, cache):
    """A red and a blue box of glTF, the second moved by its node; y is up."""
    parts = trimesh.Scene()
    for name, colour, x in (("a", [250, 0, 0], -2.0), ("b", [0, 0, 250], 2.0)):
        part = trimesh.creation.box((1, 1, 1))
        part.visual = trimesh.visual.TextureVisuals(
            material=trimesh.visual.material.PBRMaterial(baseColorFactor=[*colour, 255])
        )
        move = trimesh.transformations.translation_matrix([x, 0, 0])
        parts.add_geometry(part, node_name=name, geom_name=name, transform=move)
    parts.export(tmp_path / "two.glb")
    scene = opened(tmp_path / "two.glb", cache)
    colours = []
    for view, row, column, point in seen(scene):
        red, _, blue, _ = scene.images[view, row, column].astype(int)
        assert (red > 0 and blue == 0) if point[0] < 0 else (blue > 0 and red == 0)
        colours.append(red > 0)
    assert 0.2 < np.mean(colours) < 0.8


@pytest.mark.parametrize("name, y_up", [("a.ply", False), ("a.obj", True), ("a.glb", True)])
def test_up_is_as_the_kind_of_file_has_it(tmp_path, name, y_up):
    """(x, y, z) is at (x, -z, y), except in .ply: turned, not mirrored, and not distorted."""
    corners = np.array([[0.0, 0, 0], [3, 1, 0], [0, 2, 0.5], [1, 0, 5]])
    trimesh.Trimesh(corners, [[0, 1, 2], [0, 1, 3]], process=False).export(tmp_path / name)
    [part] = posed_mesh.read(tmp_path / name)
    x, y, z = (corners - [1.5, 1, 2.5]).T
    wanted = np.stack([x, -z, y] if y_up else [x, y, z], axis=1)
    wanted *= 1.3 / np.linalg.norm(wanted, axis=1).max()
    np.testing.assert_allclose(part.triangles, wanted[[[0, 1, 2], [0, 1, 3]]], atol=1e-6)


# ---- the cache ----


def test_a_mesh_is_drawn_once_and_the_same_to_the_bit(ball, tmp_path, cache, monkeypatch):
    first, second = (posed_mesh.prepare(str(ball), root, TINY) for root in (cache, tmp_path))
    assert first.name == second.name and raytrace.digest(first) == raytrace.digest(second)
    with monkeypatch.context() as patch:
        patch.setattr(posed_mesh.raytrace, "write", None)
        assert posed_mesh.prepare(str(ball), cache, TINY) == first
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_another_mesh_or_recipe_is_drawn_into_another_folder(sheet, tmp_path, cache):
    """Also where only the texture has changed, which is a file of its own."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in sheet.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    few = replace(TINY, size=4, train=1, validation=1, test=1)

    def drawn(recipe=few):
        return posed_mesh.prepare(str(folder / "sheet.obj"), cache, recipe)

    first = drawn()
    assert first == posed_mesh.prepare(str(sheet), cache, few)
    assert drawn(replace(few, samples=2)) != first
    Image.fromarray(QUARTERS[::-1].repeat(8, 0).repeat(8, 1)).save(folder / "sheet.png")
    painted = drawn()
    (folder / "sheet.obj").write_text(OBJ.replace("v 1 1 0", "v 1 1 1"))
    assert len({first, painted, drawn()}) == 3


# ---- errors ----


def empty(folder):
    (folder / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")


def damaged(folder):
    (folder / "a.glb").write_bytes(b"glTF" + bytes(40))


def in_one_point(folder):
    (folder / "a.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")


def in_one_line(folder):
    (folder / "a.obj").write_text("v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n")


def not_finite(folder, y="nan"):
    (folder / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 {y} 0\nf 1 2 3\n")


def too_far(folder):
    not_finite(folder, "1e200")


@pytest.mark.parametrize(
    "write, name, match",
    [
        (empty, "a.obj", "a.obj has no faces"),
        (damaged, "a.glb", "a.glb cannot be read"),
        (in_one_point, "a.obj", "a.obj has no triangle with an area"),
        (in_one_line, "a.obj", "a.obj has no triangle with an area"),
        (not_finite, "a.obj", "a.obj has no triangle with an area, or corners that are not finite"),
        (too_far, "a.obj", "a.obj has no triangle with an area, or corners that are not finite"),
        (lambda folder: None, "a.ply", "there is no file .*a.ply"),
        (lambda folder: (folder / "a.ply").mkdir(), "a.ply", "there is no file .*a.ply"),
        (lambda folder: None, "a.blend", "a.blend is none of .ply, .stl"),
    ],
)
def test_what_is_no_mesh_is_told(tmp_path, write, name, match):
    write(tmp_path)
    with pytest.raises(ConfigError, match=f"data.source.*{match}"):
        opened(tmp_path / name, tmp_path / "cache")


def test_a_missing_file_may_be_elsewhere_and_a_missing_name_is_told():
    with pytest.raises(Missing):
        posed.check_scene("mesh:gone.ply")
    with pytest.raises(ConfigError, match="must have the form mesh:FILE"):
        posed.check_scene("mesh")


@pytest.mark.parametrize("gone", ["trimesh", "embreex"])
def test_a_missing_library_is_told_with_the_way_out(ball, monkeypatch, gone):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == gone else find(name)
    )
    with pytest.raises(ConfigError, match=r"pip install 'flax-zoo\[mesh\]'"):
        posed.check_scene(f"mesh:{Path(ball)}")


def test_a_cache_that_cannot_be_written_is_told(ball, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data.cache.*cannot be written"):
        opened(ball, tmp_path / "file")
