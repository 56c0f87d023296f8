"""Posed pictures: every format tells the same cube, and the embedded scene is what it claims."""

import io
import itertools
import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from train.config import ConfigError, Missing
from train.data import colmap, posed, posed_views, raytrace
from zoo.nerf import cameras

# ---- a capture: eight corners of a cube, seen by eighteen cameras, written in every format ----

WIDTH, HEIGHT = 40, 30
MIDDLE = np.array([3.0, -2.0, 1.0])  # of the cube, in the source's world
CORNERS = MIDDLE + np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
FOCAL, CENTRE = (35.0, 36.0), (19.0, 15.5)
DISTORTION = (0.05, -0.02, 0.01, 0.003, -0.002)  # k1, k2, k3, p1, p2
COUNT = 18


def rotations():
    """(world to camera [3, 3], place [3]) of cameras around the cube, OpenCV's axes."""
    for i in range(COUNT):
        a, b = 2 * math.pi * i / COUNT, 0.3 + 0.04 * i
        place = MIDDLE + 4 * np.array(
            [math.cos(a) * math.cos(b), math.sin(a) * math.cos(b), math.sin(b)]
        )
        forward = (MIDDLE - place) / np.linalg.norm(MIDDLE - place)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        yield np.stack([right, np.cross(forward, right), forward]), place


POSES = list(rotations())


def pixels(rotation, place, points, focal=FOCAL, centre=CENTRE, distortion=DISTORTION):
    """[n, 2] by OpenCV's formula, one point at a time."""
    k1, k2, k3, p1, p2 = distortion
    found = []
    for point in points:
        x, y, z = rotation @ (point - place)
        x, y = x / z, y / z
        r = x * x + y * y
        bent = 1 + k1 * r + k2 * r**2 + k3 * r**3
        u = x * bent + 2 * p1 * x * y + p2 * (r + 2 * x * x)
        v = y * bent + p1 * (r + 2 * y * y) + 2 * p2 * x * y
        found.append((focal[0] * u + centre[0], focal[1] * v + centre[1]))
    return np.array(found)


def picture(i, width=WIDTH, height=HEIGHT):
    """A picture whose red tells its number."""
    image = np.full((height, width, 3), 100, np.uint8)
    image[..., 0] = 10 * i
    return image


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def save_pictures(root, names, **size):
    for i, name in enumerate(names):
        save(root / name, picture(i, **size))


def matrix(rotation, place):
    """4 × 4, camera to world, OpenGL's axes, as lists."""
    right, down, forward = rotation
    top = np.column_stack([right, -down, -forward, place])
    return [*top.tolist(), [0, 0, 0, 1]]


def write_transforms(root, **said):
    """instant-ngp's form: what a frame says goes before what the file says of all."""
    names = [f"images/{i:02}.png" for i in range(COUNT)]
    save_pictures(root, names)
    frames = [
        {
            "file_path": name,
            "transform_matrix": matrix(*pose),
            "fl_x": FOCAL[0] + i,
            "cx": CENTRE[0],
        }
        for i, (name, pose) in enumerate(zip(names, POSES, strict=True))
    ]
    keys = ("k1", "k2", "k3", "p1", "p2")
    lens = {"fl_y": FOCAL[1], "cx": 1.0, "cy": CENTRE[1], "w": WIDTH, "h": HEIGHT}
    said = {**lens, **dict(zip(keys, DISTORTION, strict=True)), **said, "frames": frames}
    (root / "transforms.json").write_text(json.dumps(said))
    return {"focal": lambda i: (FOCAL[0] + i, FOCAL[1])}


def write_synthetic(root):
    """NeRF-synthetic's form: an angle, endings left out, three files."""
    angle = 2 * math.atan(WIDTH / 2 / FOCAL[0])
    parts = {"train": range(12), "val": range(12, 14), "test": range(14, COUNT)}
    for name, part in parts.items():
        save_pictures(root, [])
        frames = []
        for k, i in enumerate(part):
            save(root / name / f"r_{k}.png", picture(i))
            frames.append({"file_path": f"./{name}/r_{k}", "transform_matrix": matrix(*POSES[i])})
        said = {"camera_angle_x": angle, "frames": frames}
        (root / f"transforms_{name}.json").write_text(json.dumps(said))
    middle = (WIDTH / 2, HEIGHT / 2)
    return {"focal": lambda i: (FOCAL[0],) * 2, "centre": middle, "distortion": (0,) * 5}


LENSES = {  # camera model → number, parameters, what they mean
    "SIMPLE_PINHOLE": (0, (35, 19, 15.5), {"focal": lambda i: (35, 35), "distortion": (0,) * 5}),
    "PINHOLE": (1, (*FOCAL, *CENTRE), {"distortion": (0,) * 5}),
    "SIMPLE_RADIAL": (
        *(2, (35, 19, 15.5, 0.05)),
        {"focal": lambda i: (35, 35), "distortion": (0.05, 0, 0, 0, 0)},
    ),
    "RADIAL": (
        *(3, (35, 19, 15.5, 0.05, -0.02)),
        {"focal": lambda i: (35, 35), "distortion": (0.05, -0.02, 0, 0, 0)},
    ),
    "OPENCV": (
        *(4, (*FOCAL, *CENTRE, 0.05, -0.02, 0.003, -0.002)),
        {"distortion": (0.05, -0.02, 0, 0.003, -0.002)},
    ),
}


def quaternion(rotation):
    """(w, x, y, z) of a rotation [3, 3]: the eigenvector of its largest eigenvalue in Bar-Itzhack's
    symmetric matrix."""
    r = rotation
    symmetric = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [0, r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [0, 0, r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [0, 0, 0, r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    found = np.linalg.eigh(symmetric, UPLO="U")[1][:, -1]
    return found if found[0] >= 0 else -found  # the same rotation; which sign comes is the CPU's


def write_colmap(root, model="OPENCV", suffix=".bin", points=CORNERS):
    kind, values, meaning = LENSES[model]
    names = [f"left/{i:02}.png" for i in range(COUNT)]
    save_pictures(root / "images", names)
    images = [
        (100 + i, *quaternion(rotation), *(-rotation @ place), 7, names[i])
        for i, (rotation, place) in enumerate(POSES)
    ][::-1]  # in no order
    folder = root / "sparse" / "0"
    folder.mkdir(parents=True, exist_ok=True)
    write = {".bin": write_binary, ".txt": write_text}[suffix]
    write(folder, (7, kind, model, WIDTH, HEIGHT, values), images, points)
    return meaning


def write_binary(folder, camera, images, points):
    number, kind, _, width, height, values = camera
    head = struct.pack("<Q", 1) + struct.pack("<iiQQ", number, kind, width, height)
    (folder / "cameras.bin").write_bytes(head + struct.pack(f"<{len(values)}d", *values))
    data = struct.pack("<Q", len(images))
    for number, *pose, lens, name in images:
        data += struct.pack("<i7di", number, *pose, lens) + name.encode() + b"\0"
        data += struct.pack("<Q", 2) + struct.pack("<ddq", 1, 2, 3) * 2
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for i, point in enumerate(points):
        data += struct.pack("<Q3d3BdQ", i, *point, 1, 2, 3, 0.5, 1) + struct.pack("<ii", 100, i)
    (folder / "points3D.bin").write_bytes(data)


def write_text(folder, camera, images, points):
    def words(*values):
        return " ".join(str(value) for value in values) + "\n"

    number, _, model, width, height, values = camera
    (folder / "cameras.txt").write_text("# a\n" + words(number, model, width, height, *values))
    rows = [words(*image) + ("" if i % 2 else "1 2 3") + "\n" for i, image in enumerate(images)]
    (folder / "images.txt").write_text("# two lines each\n# and more\n" + "".join(rows))
    rows = [words(i, *point, 1, 2, 3, 0.5, 100, i) for i, point in enumerate(points)]
    (folder / "points3D.txt").write_text("# a\n" + "".join(rows))


def write_llff(root):
    save_pictures(root / "images", [f"{i:02}.JPG" for i in range(COUNT)])
    rows = []
    for rotation, place in POSES:
        right, down, forward = rotation
        axes = np.column_stack([down, right, -forward, place, (HEIGHT, WIDTH, FOCAL[0])])
        rows.append([*axes.ravel(), 3.0, 5.0])
    np.save(root / "poses_bounds.npy", np.array(rows))
    middle = (WIDTH / 2, HEIGHT / 2)
    return {"focal": lambda i: (FOCAL[0],) * 2, "centre": middle, "distortion": (0,) * 5}


FORMATS = {
    "synthetic": ("blender", write_synthetic),
    "instant-ngp": ("blender", lambda root: write_transforms(root, aabb_scale=2)),
    "nerfstudio": ("blender", lambda root: write_transforms(root, camera_model="OPENCV")),
    "llff": ("llff", write_llff),
    **{
        f"colmap {model} {suffix}": (
            "colmap",
            lambda root, model=model, suffix=suffix: write_colmap(root, model, suffix),
        )
        for model, suffix in [*((model, ".bin") for model in LENSES), ("OPENCV", ".txt")]
    },
}


@pytest.fixture(scope="module", params=FORMATS)
def capture(request, tmp_path_factory):
    """(scene, what is known of its lens)."""
    root = tmp_path_factory.mktemp("capture")
    kind, write = FORMATS[request.param]
    known = write(root)
    return posed.open_scene(f"{kind}:{root}"), known


PROJECT = jax.jit(jax.vmap(cameras.project, in_axes=(None, 0)))  # one camera, many points


def test_a_cube_has_the_same_pixels_in_every_format(capture):
    """Axes, lens, frame and the +0.5 of pixel centres: a slip of half a pixel is 250 times this."""
    scene, known = capture
    rest = {"focal": lambda i: FOCAL, **known}
    focal = rest.pop("focal")
    assert len(scene.images) == COUNT and {*scene.images[:, 0, 0, 0] // 10} == {*range(COUNT)}
    for k, image in enumerate(scene.images):
        i = round(int(image[0, 0, 0]) / 10)  # pictures go with their cameras
        camera = cameras.select(scene.cameras, k)
        found, depth = PROJECT(camera, scene.frame.enter(CORNERS).astype(np.float32))
        wanted = pixels(*POSES[i], CORNERS, focal=focal(i), **rest)
        np.testing.assert_allclose(found, wanted, atol=2e-3)
        rotation, place = POSES[i]
        wanted = ((CORNERS - place) @ rotation[2]) * scene.frame.scale
        np.testing.assert_allclose(depth, wanted, rtol=1e-5)


def test_a_scene_lies_around_the_origin_and_leads_back(capture):
    scene, _ = capture
    low, high = scene.box
    assert low.dtype == high.dtype == np.float32 and (low < high).all()
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(scene.frame.leave(scene.frame.enter(points)), points, atol=1e-12)
    np.testing.assert_allclose(scene.frame.rotation @ scene.frame.rotation.T, np.eye(3), atol=1e-12)
    assert all(value.dtype == np.float32 for value in scene.cameras)
    assert scene.background == "black" and scene.depth is None


def test_a_capture_is_centred_where_the_cameras_look_inside_of_the_unit_ball(tmp_path):
    write_colmap(tmp_path)
    scene = posed.open_scene(f"colmap:{tmp_path}")
    np.testing.assert_allclose(scene.frame.origin, MIDDLE, atol=1e-6)
    far = np.linalg.norm(scene.cameras.pose[:, :, 3], axis=1)
    np.testing.assert_allclose(far, 1, atol=1e-6)  # all are equally far from the cube
    up = scene.cameras.pose[:, :, 1].mean(0)
    np.testing.assert_allclose(up / np.linalg.norm(up), [0, 0, 1], atol=1e-6)


def test_points_that_are_farther_than_the_cameras_give_the_scale_and_the_box(tmp_path):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(1001, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    far = np.linspace(8, 12, 1001)[:, None]
    write_colmap(tmp_path, points=MIDDLE + far * directions)
    scene = posed.open_scene(f"colmap:{tmp_path}")
    assert scene.frame.scale == pytest.approx(1 / 10)  # half of the points are nearer than 10
    inside = scene.frame.enter(MIDDLE + far * directions)
    low, high = scene.box
    assert (np.abs([low, high]) > 0.9).all() and (np.abs([low, high]) < 1.2).all()
    assert 0.9 < ((inside >= low) & (inside <= high)).all(1).mean() < 1


def test_cameras_side_by_side_are_centred_on_their_points():
    pose = np.column_stack([np.eye(3), np.zeros(3)])
    poses = np.stack([pose + np.eye(4)[3] * np.array([[x], [0], [0]]) for x in (-1, 0, 1)])
    points = np.array([[0.0, 0, -5], [0, 1, -6], [0, -1, -7]])
    frame, _ = posed_views.around(poses, points)
    np.testing.assert_allclose(frame.origin, [0, 0, -6])
    frame, (low, high) = posed_views.around(poses, np.empty((0, 3)))
    np.testing.assert_allclose(frame.origin, 0, atol=1e-12)
    assert frame.scale == 1 and low.tolist() == [-1] * 3 and high.tolist() == [1] * 3


def test_cameras_that_look_away_from_one_another_are_not_centred_behind_their_backs():
    """Their lines of sight meet at (0, 0, 2); what they see is around (0, 0, -6)."""
    poses = []
    for x in (-1.0, 0.0, 1.0):
        back = np.array([-x, 0, 2]) / math.hypot(x, 2)
        right = np.cross([0, 1, 0], back)
        poses.append(np.column_stack([right, [0, 1, 0], back, [x, 0, 0]]))
    points = np.array([[0.0, 0, -5], [0, 1, -6], [0, -1, -7]])
    frame, _ = posed_views.around(np.stack(poses), points)
    np.testing.assert_allclose(frame.origin, [0, 0, -6])
    frame, _ = posed_views.around(np.stack(poses), np.empty((0, 3)))
    np.testing.assert_allclose(frame.origin, 0, atol=1e-12)
    together = [pose * [[-1, 1, -1, 1]] for pose in poses]  # turned round, they look at it
    frame, _ = posed_views.around(np.stack(together), points)
    np.testing.assert_allclose(frame.origin, [0, 0, 2], atol=1e-9)


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 1, 0), (0.3, -0.5, -0.6), (0, 0, -1)])
def test_up_is_turned_to_z(up):
    rotation = posed_views.upright(np.array(up, float))
    np.testing.assert_allclose(rotation @ up / np.linalg.norm(up), [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) > 0


def test_instant_ngps_cube_is_three_units_wide_and_its_scale_is_that_of_the_box(tmp_path):
    write_transforms(tmp_path, aabb_scale=4)
    scene = posed.open_scene(f"blender:{tmp_path}")
    assert scene.frame.enter(np.array([0.5 / 0.33, 0, 0])).tolist() == pytest.approx([1, 0, 0])
    assert scene.box[0].tolist() == [-4] * 3 and scene.box[1].tolist() == [4] * 3


def test_instant_ngps_scale_and_offset_move_its_cube(tmp_path):
    """scale · p + offset lies in [0, 1]³, which is our [-1, 1]³."""
    write_transforms(tmp_path, scale=0.1, offset=[0.2, 0.7, 0.5])
    scene = posed.open_scene(f"blender:{tmp_path}")
    points = np.array([MIDDLE, [0, 0, 0], [8, -7, 5]])
    wanted = 2 * (0.1 * points + [0.2, 0.7, 0.5]) - 1
    np.testing.assert_allclose(scene.frame.enter(points), wanted, atol=1e-12)
    assert scene.box[0].tolist() == [-1] * 3


def test_a_frame_states_an_axis_of_its_lens_whatever_the_file_says_of_it(tmp_path):
    """A length or an angle; the axis of which it says nothing stays the file's."""
    angle = 2 * math.atan(HEIGHT / 2 / 50)
    write_transforms(tmp_path, fl_x=99.0, camera_angle_y=1.0)
    path = tmp_path / "transforms.json"
    change(path, ("frames", 3, "fl_x"), None)
    change(path, ("frames", 3, "camera_angle_x"), 2 * math.atan(WIDTH / 2 / 60))
    change(path, ("frames", 4, "camera_angle_y"), angle)
    change(path, ("frames", 5, "fl_x"), None)
    focal = posed.open_scene(f"blender:{tmp_path}").cameras.focal
    wanted = [[60, FOCAL[1]], [FOCAL[0] + 4, 50], [99, FOCAL[1]]]
    np.testing.assert_allclose(focal[3:6], wanted, rtol=1e-6)
    change(path, ("fl_x",), None)
    change(path, ("camera_angle_x",), 2 * math.atan(WIDTH / 2 / 80))
    focal = posed.open_scene(f"blender:{tmp_path}").cameras.focal
    np.testing.assert_allclose(focal[5], [80, FOCAL[1]], rtol=1e-6)  # fl_y beside an angle stays
    np.testing.assert_allclose(focal[6], [FOCAL[0] + 6, FOCAL[1]], rtol=1e-6)


# ---- splits ----


def test_every_eighth_view_by_name_tests_and_a_tenth_of_the_others_validates(tmp_path):
    write_colmap(tmp_path)
    scene = posed.open_scene(f"colmap:{tmp_path}", holdout=0.2)
    tested = [scene.names[i] for i in scene.splits["test"]]
    assert sorted(tested) == [f"images/left/{i:02}.png" for i in (0, 8, 16)]
    assert {name: len(found) for name, found in scene.splits.items()} == {
        "train": 12,
        "validation": 3,
        "test": 3,
    }
    together = np.concatenate([*scene.splits.values()])
    assert sorted(together) == [*range(COUNT)]
    other = posed.open_scene(f"colmap:{tmp_path}", holdout=0.2, seed=1)
    assert other.splits["test"].tolist() == scene.splits["test"].tolist()
    assert other.splits["validation"].tolist() != scene.splits["validation"].tolist()


def test_stored_splits_stay(tmp_path):
    write_synthetic(tmp_path)
    scene = posed.open_scene(f"blender:{tmp_path}")
    for name, stem in {"train": "train", "validation": "val", "test": "test"}.items():
        assert {scene.names[i].split("/")[0] for i in scene.splits[name]} == {stem}
    (tmp_path / "transforms_test.json").unlink()
    scene = posed.open_scene(f"blender:{tmp_path}")
    assert {scene.names[i].split("/")[0] for i in scene.splits["test"]} == {"val"}
    assert {scene.names[i].split("/")[0] for i in scene.splits["validation"]} == {"train"}
    (tmp_path / "transforms_val.json").unlink()
    scene = posed.open_scene(f"blender:{tmp_path}")
    assert {name: len(found) for name, found in scene.splits.items()} == {
        "train": 9,
        "validation": 1,
        "test": 2,
    }


def test_listed_splits_stay_and_what_is_on_no_list_is_in_none(tmp_path):
    names = [f"./images/{i:02}.png" for i in range(COUNT)]
    lists = {"train": names[:12], "val": names[11:14], "test": names[13:17]}
    write_transforms(tmp_path, **{f"{key}_filenames": found for key, found in lists.items()})
    scene = posed.open_scene(f"blender:{tmp_path}")
    assert {name: found.tolist() for name, found in scene.splits.items()} == {
        "train": [*range(11)],
        "validation": [11, 12],
        "test": [*range(13, 17)],
    }
    path = tmp_path / "transforms.json"
    change(path, ("val_filenames",), None)
    scene = posed.open_scene(f"blender:{tmp_path}")
    assert scene.splits["test"].tolist() == [*range(13, 17)]
    together = np.concatenate([scene.splits["train"], scene.splits["validation"]])
    assert sorted(together) == [*range(12)] and len(scene.splits["validation"]) == 1
    change(path, ("test_filenames",), ["images/gone.png"])
    with pytest.raises(ConfigError, match="test_filenames has 'images/gone.png', which no frame"):
        posed.open_scene(f"blender:{tmp_path}")
    change(path, ("test_filenames",), None)
    with pytest.raises(ConfigError, match="has train_filenames, but .* one of the others"):
        posed.open_scene(f"blender:{tmp_path}")


# ---- sizes ----


def test_smaller_pictures_are_means_and_their_lenses_shrink_with_them(tmp_path):
    write_transforms(tmp_path)
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    save(tmp_path / "images" / "03.png", image)
    scene = posed.open_scene(f"blender:{tmp_path}")
    third = posed.open_scene(f"blender:{tmp_path}", factor=4)
    i = scene.names.index("images/03.png")
    wanted = [
        [image[y : y + 4, x : x + 4].mean((0, 1)) for x in range(0, 40, 4)] for y in range(0, 28, 4)
    ]
    np.testing.assert_allclose(third.images[i], wanted, atol=0.501)
    np.testing.assert_allclose(third.cameras.focal * 4, scene.cameras.focal)
    np.testing.assert_allclose(third.cameras.centre * 4, scene.cameras.centre)


def test_transparent_pixels_lend_no_colour_to_a_mean():
    image = np.zeros((2, 4, 4), np.uint8)
    image[0, 0] = (200, 100, 50, 255)
    image[1, 1] = (100, 0, 50, 85)
    image[0, 1] = (7, 7, 7, 0)
    assert posed.smaller(image, 2).tolist() == [[[175, 75, 50, 85], [0, 0, 0, 0]]]


@pytest.mark.parametrize("kind, write", [("llff", write_llff), ("colmap", write_colmap)])
def test_a_folder_of_smaller_pictures_is_taken_where_it_is_there(tmp_path, kind, write):
    write(tmp_path)
    whole = posed.open_scene(f"{kind}:{tmp_path}")
    for path in sorted((tmp_path / "images").rglob("*.*")):
        small = tmp_path / "images_2" / path.relative_to(tmp_path / "images").with_suffix(".bmp")
        save(small, np.full((HEIGHT // 2, WIDTH // 2, 3), 77, np.uint8))
        small.with_suffix(".aae").write_text("what a camera keeps beside it")
    scene = posed.open_scene(f"{kind}:{tmp_path}", factor=2)
    assert scene.images.shape == (COUNT, HEIGHT // 2, WIDTH // 2, 3) and (scene.images == 77).all()
    np.testing.assert_allclose(scene.cameras.focal * 2, whole.cameras.focal, rtol=1e-6)


def test_alpha_is_kept_where_something_is_transparent_and_left_out_where_nothing_is(tmp_path):
    write_transforms(tmp_path)
    for alpha, channels, background in ((254, 4, "white"), (255, 3, "black")):
        image = np.dstack([picture(3), np.full((HEIGHT, WIDTH), alpha, np.uint8)])
        save(tmp_path / "images" / "03.png", image)
        scene = posed.open_scene(f"blender:{tmp_path}")
        assert scene.images.shape[-1] == channels and scene.background == background
        np.testing.assert_array_equal(scene.images[3], image[..., :channels])


# ---- errors ----


def change(path, keys, value):
    """Sets a value in a JSON file; None removes it."""
    said = json.loads(path.read_text())
    inner = said
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(said))


STRETCHED = (np.diag([2, 2, 2, 1]) @ np.eye(4)).tolist()
MIRRORED = np.diag([1.0, 1, -1, 1]).tolist()
NAN = [[math.nan] * 4] * 3
TRANSFORM = "transform_matrix"


@pytest.mark.parametrize(
    "keys, value, match",
    [
        (("frames", 3, "file_path"), "images/gone.png", r"frames\[3\].*no picture .*gone.png"),
        (("frames", 3, "file_path"), None, r"frames\[3\].*file_path"),
        (("frames", 3, TRANSFORM), None, r"frames\[3\] \(images/03.png\): the pose"),
        (("frames", 3, TRANSFORM), STRETCHED, r"frames\[3\].*not rigid"),
        (("frames", 3, TRANSFORM), MIRRORED, r"frames\[3\].*reflection"),
        (("frames", 3, TRANSFORM), NAN, r"frames\[3\].*not finite"),
        (("frames", 3, TRANSFORM), [[1e300] * 4] * 3, r"frames\[3\].*not finite"),
        (("frames", 3, TRANSFORM), [[1, 2], [3]], r"frames\[3\].*the pose"),
        (("frames", 3, TRANSFORM), np.eye(4)[[0, 1, 3, 2]].tolist(), r"frames\[3\].*last row"),
        (("frames", 3, "fl_x"), None, r"frames\[3\].*neither camera_angle_x nor fl_x"),
        (("frames", 3, "fl_x"), "wide", r"frames\[3\].*fl_x is 'wide'"),
        (("frames", 3, "fl_x"), -1, r"frames\[3\].*fl_x is -1"),
        (("k1",), math.nan, r"frames\[0\].*k1 is nan"),
        (("cy",), 10**400, r"frames\[0\].*cy is 1000"),
        (("k4",), 0.1, r"frames\[0\].*k4"),
        (("camera_model",), "OPENCV_FISHEYE", r"frames\[0\].*OPENCV_FISHEYE"),
        (("aabb_scale",), 0, "transforms.json: aabb_scale is 0"),
        (("scale",), 0, "transforms.json: scale is 0"),
        (("offset",), 0.5, "transforms.json: offset is 0.5, but must be three numbers"),
        (("offset",), [0, 0, "far"], r"transforms.json: offset\[2\] is 'far'"),
        (("h",), 20, r"frames\[0\].*40×20 pixels.*40×30"),
        (("frames",), [], "transforms.json has no frames"),
    ],
)
def test_what_is_wrong_with_a_frame_is_told_by_file_and_frame(tmp_path, keys, value, match):
    write_transforms(tmp_path)
    change(tmp_path / "transforms.json", keys, value)
    with pytest.raises(ConfigError, match=match) as raised:
        posed.open_scene(f"blender:{tmp_path}")
    assert str(tmp_path / "transforms.json") in str(raised.value)


def test_a_pose_may_be_as_far_from_rigid_as_rounding_makes_it(tmp_path):
    write_transforms(tmp_path)
    rounded = np.round(matrix(*POSES[3]), 4).tolist()
    change(tmp_path / "transforms.json", ("frames", 3, TRANSFORM), rounded)
    posed.open_scene(f"blender:{tmp_path}")


def test_pictures_of_two_sizes_are_both_named(tmp_path):
    write_transforms(tmp_path)
    save(tmp_path / "images" / "05.png", picture(5, width=20))
    with pytest.raises(ConfigError, match=r"00.png has 40×30.*05.png 20×30.*frames\[5\]"):
        posed.open_scene(f"blender:{tmp_path}")


def no_picture(path):
    path.write_text("a picture")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def sixteen_bits(path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(path)


@pytest.mark.parametrize("damage", [no_picture, cut_short, sixteen_bits, Path.unlink])
def test_pictures_that_cannot_be_read_are_named(tmp_path, damage):
    write_transforms(tmp_path)
    damage(tmp_path / "images" / "05.png")
    with pytest.raises(ConfigError, match=r"frames\[5\].*images/05.png"):
        posed.open_scene(f"blender:{tmp_path}")


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_a_model_without_points_is_told(tmp_path, suffix):
    write_colmap(tmp_path, suffix=suffix, points=[])
    with pytest.raises(ConfigError, match=f"points3D{suffix} has no points"):
        posed.open_scene(f"colmap:{tmp_path}")
    (tmp_path / "sparse" / "0" / f"points3D{suffix}").unlink()
    with pytest.raises(Missing, match=f"no .*points3D{suffix}"):
        posed.open_scene(f"colmap:{tmp_path}")


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_binary_model_cut_anywhere_is_refused_by_name(tmp_path, name):
    write_colmap(tmp_path)
    folder = tmp_path / "sparse" / "0"
    path = folder / f"{name}.bin"
    data = path.read_bytes()
    for length in [*range(0, len(data), 1 + len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ConfigError, match=f"{name}.bin is cut short"):
            colmap.read_model(folder)
    path.write_bytes(data + b"\0")
    with pytest.raises(ConfigError, match=f"{name}.bin is damaged"):
        colmap.read_model(folder)


@pytest.mark.parametrize(
    "name, old, new, match",
    [
        ("cameras", "7 OPENCV", "7 FULL_OPENCV", "camera 7 has the camera model FULL_OPENCV"),
        ("cameras", "7 OPENCV 40", "7 OPENCV -40", "camera 7 is a OPENCV for -40×30"),
        ("cameras", " 35.0", " nan", "camera 7 is a OPENCV.*nan"),
        ("cameras", " 35.0", " 0", "camera 7 has the focal length 0"),
        ("cameras", "7 OPENCV", "8 OPENCV", r"image 117 .*camera 7 is not among \[8\]"),
        ("cameras", "40", "wide", "cameras.txt, line 2"),
        ("images", "117 ", "117 9", r"image 117 \(left/17.png\).*length 9"),
        ("images", " 7 left/05.png", "", "images.txt, line 27"),
        ("points3D", " 1 2 3 0.5 100 4", "", "points3D.txt, line 6"),
        ("points3D", "\n4 3.5", "\n4 nan", "row 5 is the point"),
        ("points3D", "\n4 3.5", "\n4 1e300", "row 5 is the point"),
    ],
)
def test_what_is_wrong_with_a_text_model_is_told(tmp_path, name, old, new, match):
    write_colmap(tmp_path, suffix=".txt")
    path = tmp_path / "sparse" / "0" / f"{name}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=match):
        posed.open_scene(f"colmap:{tmp_path}")


def test_a_text_model_without_its_empty_lines_is_refused(tmp_path):
    """Every second picture would be taken for the points of the one before."""
    write_colmap(tmp_path, suffix=".txt")
    path = tmp_path / "sparse" / "0" / "images.txt"
    rows = path.read_text().split("\n")
    for left in ([row for row in rows if len(row) > 5], [row for row in rows if row]):
        path.write_text("\n".join(left))
        with pytest.raises(ConfigError, match="images.txt, line .* is no list of points"):
            posed.open_scene(f"colmap:{tmp_path}")


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_a_model_that_the_disk_does_not_give_is_named(tmp_path, suffix, monkeypatch):
    def fail(path):
        raise PermissionError(f"not yours: {path.name}")

    write_colmap(tmp_path, suffix=suffix)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(ConfigError, match=f"cameras{suffix} cannot be read: not yours"):
            colmap.read_model(tmp_path / "sparse" / "0")


@pytest.mark.parametrize("kind", [5, 17, -1])
def test_camera_models_that_are_not_read_are_named(tmp_path, kind):
    write_colmap(tmp_path)
    path = tmp_path / "sparse" / "0" / "cameras.bin"
    data = bytearray(path.read_bytes())
    data[12:16] = struct.pack("<i", kind)
    path.write_bytes(data)
    name = "OPENCV_FISHEYE" if kind == 5 else f"number {kind}"
    with pytest.raises(ConfigError, match=f"cameras.bin: camera 7 has the camera model {name}"):
        posed.open_scene(f"colmap:{tmp_path}")


@pytest.mark.parametrize(
    "row, column, value, match",
    [
        (3, 0, math.nan, r"row 3 \(03.JPG\): the pose is not finite"),
        (3, 0, 5.0, r"row 3 \(03.JPG\): the pose is not rigid"),
        (3, 14, -1.0, r"row 3 \(03.JPG\).*focal length -1"),
        (3, 4, math.inf, r"row 3 \(03.JPG\).*inf pixels"),
        (3, 16, 2.0, r"row 3 \(03.JPG\).*from 3.0 to 2.0"),
    ],
)
def test_what_is_wrong_with_poses_bounds_is_told(tmp_path, row, column, value, match):
    write_llff(tmp_path)
    path = tmp_path / "poses_bounds.npy"
    rows = np.load(path)
    rows[row, column] = value
    np.save(path, rows)
    with pytest.raises(ConfigError, match=match):
        posed.open_scene(f"llff:{tmp_path}")


def test_poses_bounds_must_fit_its_pictures(tmp_path):
    write_llff(tmp_path)
    path = tmp_path / "poses_bounds.npy"
    rows = np.load(path)
    for wrong, match in ((rows[:5], "5 poses, but .* 18 pictures"), (rows[:, :15], "17 numbers")):
        np.save(path, wrong)
        with pytest.raises(ConfigError, match=match):
            posed.open_scene(f"llff:{tmp_path}")
    whole = path.read_bytes()
    for damage in (b"\x93NUMPY", b"", whole[:-8], archive(rows), b"PK\x03\x04 no archive"):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match="poses_bounds.npy cannot be read"):
            posed.open_scene(f"llff:{tmp_path}")


def archive(*arrays):
    """The bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


def test_pictures_that_are_no_folder_are_told(tmp_path):
    for kind, write in (("llff", write_llff), ("colmap", write_colmap)):
        write(tmp_path / kind)
        shutil.rmtree(tmp_path / kind / "images")
        (tmp_path / kind / "images").write_text("a file")
        with pytest.raises(Missing, match="there is no images/"):
            posed.open_scene(f"{kind}:{tmp_path / kind}")


@pytest.mark.parametrize(
    "source, match",
    [
        ("blendr:x", "did you mean blender:DIR"),
        ("blender", "must have the form blender:DIR"),
        ("scene:x", "must have the form scene"),
        ("blender:{root}/gone", "no folder .*gone"),
        ("blender:{root}", "no transforms_train.json and no transforms.json"),
        ("colmap:{root}", "no images"),
        ("llff:{root}", "no poses_bounds.npy"),
    ],
)
def test_a_source_that_is_not_there_is_told_before_it_is_opened(tmp_path, source, match):
    with pytest.raises(ConfigError, match=match):
        posed.check_scene(source.format(root=tmp_path))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"factor": 0}, "data.factor is 0"),
        ({"factor": 31}, "data.factor is 31, but pictures have 40×30"),
        ({"background": "green"}, "data.background = 'green'"),
        *(({"holdout": x}, f"data.holdout = {x}") for x in (1.0, 0.0, -0.1, math.nan)),
    ],
)
def test_options_that_cannot_work_are_told(tmp_path, options, match):
    write_transforms(tmp_path)
    with pytest.raises(ConfigError, match=match):
        posed.open_scene(f"blender:{tmp_path}", **options)


def test_a_source_is_checked_without_jax(tmp_path):
    write_colmap(tmp_path)
    program = (
        "import sys, train.data.posed as p\n"
        f"p.check_scene('colmap:{tmp_path}')\n"
        "p.check_scene('scene')\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


# ---- the embedded scene ----

TINY = raytrace.Recipe(size=32, samples=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def scene(cache):
    return posed.open_scene("scene", recipe=TINY, cache=str(cache))


def inside(solid, points):
    """Whether points [n, 3] lie in a solid, by what the solid is."""
    x, y, z = (points - solid.centre).T
    c, s = math.cos(solid.turn), math.sin(solid.turn)
    x, y = c * x + s * y, c * y - s * x
    a, b, h = solid.size
    if solid.shape == "sphere":
        return (x / a) ** 2 + (y / b) ** 2 + (z / h) ** 2 < 1
    if solid.shape == "box":
        return (abs(x) < a) & (abs(y) < b) & (abs(z) < h)
    return ((x / a) ** 2 + (y / b) ** 2 < 1) & (abs(z) < h)


def walk(origin, direction):
    """The distance to the first solid: by small steps along the ray, then by halving one."""
    steps = np.arange(1.0, 6.0, 1e-3)
    points = origin + steps[:, None] * direction
    hits = np.any([inside(solid, points) for solid in raytrace.SOLIDS], axis=0)
    if not hits.any():
        return math.inf
    high = steps[hits.argmax()]
    low = high - 1e-3
    for _ in range(30):
        half = (low + high) / 2
        point = (origin + half * direction)[None]
        found = any(inside(solid, point)[0] for solid in raytrace.SOLIDS)
        low, high = (low, half) if found else (half, high)
    return high


def test_the_depth_of_a_pixel_is_where_a_walk_along_its_ray_meets_something(scene):
    """From the cameras as they are read, through the centre of a pixel at +0.5."""
    rng = np.random.default_rng(0)
    scale, hits = scene.frame.scale, 0
    for _ in range(60):
        view, row, column = (int(rng.integers(n)) for n in scene.depth.shape)
        pose, focal, centre, _ = (value[view].astype(float) for value in scene.cameras)
        x, y = (np.array([column, row]) + 0.5 - centre) / focal
        direction = pose[:, :3] @ [x, -y, -1] / math.sqrt(x * x + y * y + 1)
        wanted = walk(scene.frame.leave(pose[:, 3]), direction)
        found = float(scene.depth[view, row, column]) / scale
        assert found == pytest.approx(wanted, abs=1e-3)
        alpha = scene.images[view, row, column, 3]
        assert alpha == (0 if math.isinf(wanted) else 255)  # one sample: the centre
        hits += math.isfinite(wanted)
    assert 24 < hits < 60


def test_the_scene_has_its_views_and_something_in_each(scene):
    sizes = {name: len(found) for name, found in scene.splits.items()}
    assert sizes == {"train": 60, "validation": 10, "test": 20}
    assert scene.images.shape == (90, 32, 32, 4) and scene.background == "white"
    assert sorted(np.concatenate([*scene.splits.values()])) == [*range(90)]
    places = scene.cameras.pose[:, :, 3]
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)[~np.eye(90, dtype=bool)]
    assert apart.min() > 0.02  # no view is there twice
    foreground = (scene.images[..., 3] > 127).mean((1, 2))
    assert foreground.min() >= 0.4, foreground


def test_the_solids_lie_in_the_box_and_hide_one_another(scene):
    for solid in raytrace.SOLIDS:
        level = math.hypot(*solid.size[:2]) if solid.turn else max(solid.size[:2])
        reach = np.array([level, level, solid.size[2]])
        assert (scene.frame.enter(np.abs(solid.centre) + reach) <= scene.box[1]).all()
    hidden = set()
    for pose in raytrace.views(raytrace.Recipe())["test"]:
        places = np.arange(64) + 0.5
        found = raytrace.meet(pose[:, 3:], raytrace.through(pose, 64, places, places))
        first = found.argmin(0)
        for i, t in enumerate(found):
            behind = np.isfinite(t) & (first != i)
            hidden |= {(int(front), i) for front in np.unique(first[behind])}
    fronts = {front for front, _ in hidden}
    behind = {solid for _, solid in hidden if solid != 0}
    assert len(fronts - {0}) >= 6 and len(behind) >= 6, hidden


def seen_from(points, index, azimuth):
    """Colours [3, n] of points [3, n] on solid `index`, from a camera of the belt."""
    place = raytrace.look_from(azimuth, 0.3)[:, 3:]
    directions = raytrace.unit(points - place)
    return raytrace.colours(points, directions, np.full(points.shape[1], index))


def test_one_solid_is_glossy_and_the_others_look_the_same_from_everywhere():
    top = np.array([[0.0], [0.0], [1.0]])
    for i, solid in enumerate(raytrace.SOLIDS[1:], 1):
        normal = raytrace.SUN if solid.shape == "sphere" else top
        point = np.array(solid.centre)[:, None] + normal * np.array(solid.size)[:, None]
        found = [seen_from(point, i, azimuth) for azimuth in np.linspace(0, 6, 13)]
        spread = np.ptp(found, axis=0).max()
        assert (spread > 0.2) if solid.gloss else (spread == 0), (i, spread)
    assert sum(solid.gloss > 0 for solid in raytrace.SOLIDS) == 1


def test_the_floor_is_a_fine_checkerboard_under_hard_shadows():
    """Along lines over the floor: two colours in the sun, two in the shade, none between."""
    x = np.linspace(-1.29, 1.29, 2000)
    changes, levels, shares = [], set(), []
    for y in np.linspace(-1.2, 1.2, 9):
        points = np.stack([x, np.full_like(x, y), np.full_like(x, -0.6)])
        found = np.round(seen_from(points, 0, 1.0), 6)
        lit = raytrace.in_the_sun(points, np.array([[0.0], [0.0], [1.0]]))
        levels |= {
            (*map(float, colour), bool(sun)) for colour, sun in zip(found.T, lit, strict=True)
        }
        base, _ = raytrace.surface(raytrace.SOLIDS[0], points)
        changes.append(int((np.diff(base[0]) != 0).sum()))
        shares.append(lit.mean())

    assert min(changes) >= 20 and len(levels) == 4 and 0.5 < np.mean(shares) < 0.9
    bright, dark = (max(sum(c[:3]) for c in levels if c[3] is sun) for sun in (True, False))
    assert dark < 0.6 * bright


def test_sixteen_samples_are_the_mean_of_the_sixteen_small_pixels():
    pose = raytrace.look_from(0.7, 0.4)
    fine, _ = raytrace.render(pose, 64, 1)
    found, _ = raytrace.render(pose, 16, 4)
    wanted = posed.smaller(fine, 4)
    seen = wanted[..., 3] > 0
    assert np.abs(found[seen].astype(int) - wanted[seen]).max() <= 1
    assert (found[..., 3] == wanted[..., 3]).all() and len(np.unique(found[..., 3])) > 4


def test_the_scene_is_drawn_once_and_the_same_to_the_bit(scene, cache, monkeypatch):
    pose = raytrace.look_from(0.7, 0.4)
    assert all(
        np.array_equal(*pair)
        for pair in zip(raytrace.render(pose, 16, 2), raytrace.render(pose, 16, 2), strict=True)
    )
    folder = raytrace.prepare(cache, TINY)
    drawn = raytrace.digest(folder)
    with monkeypatch.context() as patch:
        patch.setattr(raytrace, "write", None)
        assert raytrace.prepare(cache, TINY) == folder
    (folder / "train" / "r_7.png").write_bytes(b"damaged")
    again = posed.open_scene("scene", recipe=TINY, cache=str(cache))
    assert raytrace.digest(folder) == drawn and np.array_equal(again.images, scene.images)
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data.cache.*cannot be written"):
        posed.open_scene("scene", recipe=TINY, cache=str(tmp_path / "file"))


def test_smaller_depth_is_that_of_a_pixel_at_the_centre(scene, cache):
    """A mean over an edge would be a distance at which nothing is."""
    for factor in (2, 3):
        less = posed.open_scene("scene", recipe=TINY, cache=str(cache), factor=factor)
        side, first = 32 // factor, factor // 2
        places = slice(first, first + factor * side, factor)
        assert less.images.shape == (90, side, side, 4)
        np.testing.assert_array_equal(less.depth, scene.depth[:, places, places])
        assert np.isinf(less.depth).any() and np.isfinite(less.depth).any()


def test_distances_that_cannot_be_read_are_told_by_file_and_frame(cache, tmp_path):
    folder = shutil.copytree(raytrace.prepare(cache, TINY), tmp_path / "scene")
    path = folder / "test" / "r_3.npy"
    frame = r"transforms_test.json, frames\[3\].*"
    np.save(path, np.zeros((4, 4), np.float32))
    with pytest.raises(ConfigError, match=frame + r"r_3.npy is float32 \(4, 4\)"):
        posed.open_scene(f"blender:{folder}")
    for damage in (archive(np.zeros((32, 32))), b"PK\x03\x04 no archive", b""):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match=frame + "r_3.npy cannot be read"):
            posed.open_scene(f"blender:{folder}")
    path.unlink()
    with pytest.raises(ConfigError, match=frame + "r_3.npy cannot be read"):
        posed.open_scene(f"blender:{folder}")
