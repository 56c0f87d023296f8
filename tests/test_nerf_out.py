"""What comes out of a scene: paths, videos, depths, meshes and clouds, of a ball that is known."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

import zoo
from zoo.__main__ import main
from zoo.nerf import out, paths, surface, view
from zoo.nerf.cameras import Camera, check_pose, select
from zoo.nerf.scene import Hierarchical, Scene, Space
from zoo.nerf.view import View

CENTRE, RADIUS = np.array([0.1, -0.2, 0.05]), 0.6
TARGET = np.array([0.3, 0.1, -0.2])  # what the scene's cameras look at
SIZE = (24, 36)
DENSITY = 20.0  # of the ball's surface


class Ball:
    """A renderer of a ball, by its formula. Its colours are where its normals point; a point inside
    or outside has the colour of the side from which it is seen."""

    def __init__(self, centre=CENTRE, radius=RADIUS, **space):
        self.centre, self.radius, self.space = np.asarray(centre), radius, Space(**space)

    def density(self, points):
        away = np.linalg.norm(points - self.centre, axis=1)
        return np.clip(DENSITY + 1000 * (self.radius - away), 0, 500).astype(np.float32)

    def colour(self, points, directions):
        assert np.abs(np.linalg.norm(directions, axis=1) - 1).max() < 1e-5
        return (1 - directions) / 2

    def normals(self, points):
        away = points - self.centre
        return away / np.linalg.norm(away, axis=1, keepdims=True)

    def view(self, camera, height, width):
        origins, directions = rays(camera, height, width)
        middle = ((self.centre - origins) * directions).sum(-1)
        gap = self.radius**2 - ((self.centre - origins) ** 2).sum(-1) + middle**2
        hit = gap > 0
        depth = np.where(hit, middle - np.sqrt(np.where(hit, gap, 0)), 0)
        normals = (origins + depth[..., None] * directions - self.centre) / self.radius
        colour = np.where(hit[..., None], (1 + normals) / 2, 1)
        return View(*(x.astype(np.float32) for x in (colour, depth, hit)))


def rays(camera, height, width):
    """Origins and directions [height, width, 3] of a pinhole, without a library."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    plane = (np.stack([x, y], axis=-1) - camera.centre) / camera.focal
    through = np.stack([plane[..., 0], -plane[..., 1], -np.ones((height, width))], axis=-1)
    directions = through @ camera.pose[:, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(camera.pose[:, 3], directions.shape), directions


def project(camera, points):
    """Pixels [n, 2] of points [n, 3], and how far these are in front, of a pinhole."""
    x, y, z = ((points - camera.pose[:, 3]) @ camera.pose[:, :3]).T
    return camera.focal * np.stack([x, -y], axis=1) / -z[:, None] + camera.centre, -z


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Twelve cameras around the ball, none like another; every third is held out."""
    rng = np.random.default_rng(0)
    angle = np.arange(12) * 0.5 + rng.uniform(-0.1, 0.1, 12)
    places = np.stack([3 * np.cos(angle), 3 * np.sin(angle), rng.uniform(0.5, 1.5, 12)], axis=1)
    tilt = rng.uniform(-0.3, 0.3, 12)
    turn = np.array(
        [[np.cos(tilt), -np.sin(tilt), 0 * tilt], [np.sin(tilt), np.cos(tilt), 0 * tilt]]
    )
    turn = np.concatenate([turn, np.stack([0 * tilt, 0 * tilt, 1 + 0 * tilt])[None]])
    poses = paths.look_at(places, TARGET)
    poses[:, :, :3] = poses[:, :, :3] @ np.moveaxis(turn, -1, 0)  # rolled about the optical axis
    cameras = Camera(
        pose=poses.astype(np.float32),
        focal=rng.uniform(30, 40, (12, 2)).astype(np.float32),
        centre=(np.array(SIZE[::-1]) / 2 + rng.uniform(-1, 1, (12, 2))).astype(np.float32),
        distortion=np.zeros((12, 5), np.float32),
    )
    test = [1, 4, 7, 10]
    splits = {"train": [i for i in range(12) if i not in test], "validation": [], "test": test}
    return Scene(Space(), *SIZE, cameras, tuple(f"r_{i}.png" for i in range(12)), splits)


# ---- paths ----


def test_an_orbit_is_a_closed_circle_that_looks_where_the_cameras_look(scene):
    orbit = paths.orbit(scene, 30)
    places, views = orbit.pose[:, :, 3], scene.cameras.pose[:, :, 3]
    np.testing.assert_allclose(
        np.linalg.norm(places, axis=1), np.linalg.norm(views, axis=1).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(places[:, 2], views[:, 2].mean(), rtol=1e-6)
    steps = np.linalg.norm(np.roll(places, -1, axis=0) - places, axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)  # that from the last to the first, too
    assert np.arctan2(*places[0, 1::-1]) == pytest.approx(np.arctan2(*views[0, 1::-1]), abs=1e-6)
    for i, pose in enumerate(orbit.pose):
        [pixel], [ahead] = project(select(orbit, i), TARGET[None])
        np.testing.assert_allclose(pixel, np.array(SIZE[::-1]) / 2, atol=1e-3)
        assert ahead > 0
        check_pose(pose)
        assert abs(pose[2, 0]) < 1e-6 and pose[2, 1] > 0  # the horizon is level, and up is up
    np.testing.assert_allclose(orbit.focal, np.tile(scene.cameras.focal.mean(0), (30, 1)))


def test_an_orbit_of_cameras_that_meet_nowhere_looks_at_the_origin(scene):
    parallel = np.array(scene.cameras.pose)
    parallel[:, :, :3] = parallel[0, :, :3]
    away = paths.look_at(np.array(scene.cameras.pose[:, :, 3], np.float64), TARGET)
    away[:, :, [0, 2]] *= -1
    for pose in (parallel, away):
        np.testing.assert_array_equal(paths.looked_at(pose), 0)
    np.testing.assert_allclose(paths.looked_at(scene.cameras.pose), TARGET, atol=1e-5)


def test_what_looks_straight_down_is_a_pose_and_what_it_looks_at_has_none():
    check_pose(paths.look_at(np.array([[0.0, 0.0, 2.0]]), np.zeros(3))[0])
    with pytest.raises(ValueError, match="interpolate"):
        paths.look_at(np.zeros((1, 3)), np.zeros(3))


def test_interpolation_passes_through_the_views_in_the_order_of_their_names(scene):
    path = paths.interpolate(scene, 4 * 11 + 1, range(11, -1, -1))
    for got, views in zip(path[:3], scene.cameras[:3], strict=True):
        np.testing.assert_allclose(got[::4], views, atol=1e-5)
    held_out = paths.interpolate(scene, 4)
    np.testing.assert_allclose(held_out.pose, scene.cameras.pose[[1, 4, 7, 10]], atol=1e-5)


def test_between_views_rotations_are_rigid_and_take_the_short_way_evenly(scene):
    path, views = paths.interpolate(scene, 8 * 11 + 1, range(12)), scene.cameras.pose
    for i, pose in enumerate(path.pose):
        check_pose(pose)
        view, part = divmod(i, 8)
        if part:
            whole = turned(views[view], views[view + 1])
            assert turned(views[view], pose) == pytest.approx(whole * part / 8, abs=1e-3)
            assert turned(pose, views[view + 1]) == pytest.approx(whole * (1 - part / 8), abs=1e-3)


def turned(one, other) -> float:
    """The angle between two poses."""
    cosine = (np.trace(one[:, :3].astype(np.float64).T @ other[:, :3]) - 1) / 2
    return math.acos(min(1, max(-1, cosine)))


def test_a_quaternion_is_found_of_every_rotation_also_of_half_turns():
    rng = np.random.default_rng(1)
    axes = rng.normal(size=(40, 3))
    axes[:3] = np.eye(3)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.concatenate([np.full(20, np.pi), [0], rng.uniform(-7, 7, 19)])
    rotations = np.stack([rodrigues(*pair) for pair in zip(axes, angles, strict=True)])
    np.testing.assert_allclose(paths.matrices(paths.quaternions(rotations)), rotations, atol=1e-9)


def rodrigues(axis, angle):
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def test_the_spline_is_hermite_with_the_mean_of_the_steps_as_slopes():
    points = np.random.default_rng(2).normal(size=(5, 3))
    padded = np.array([2 * points[0] - points[1], *points, 2 * points[-1] - points[-2]])
    for t in np.linspace(0, 4, 33):
        i = min(int(t), 3)
        s = t - i
        a, b, c, d = padded[i : i + 4]
        expected = (2 * s**3 - 3 * s**2 + 1) * b + (3 * s**2 - 2 * s**3) * c
        expected += (s**3 - 2 * s**2 + s) * (c - a) / 2 + (s**3 - s**2) * (d - b) / 2
        np.testing.assert_allclose(
            paths.catmull_rom(points, np.array([t]))[0], expected, atol=1e-12
        )


def test_another_size_shows_as_much_from_top_to_bottom(scene):
    camera = select(scene.cameras, 3)
    points = CENTRE + np.random.default_rng(3).uniform(-0.5, 0.5, (20, 3))
    before, _ = project(camera, points)
    after, _ = project(paths.resized(camera, SIZE, (48, 100)), points)
    np.testing.assert_allclose(after, 2 * (before - [18, 12]) + [50, 24], atol=1e-3)


# ---- paths from files ----


def test_nerfstudios_camera_path_is_read(scene, tmp_path):
    frames = [
        {"camera_to_world": np.vstack([pose, [0, 0, 0, 1]]).ravel().tolist(), "fov": 60.0}
        for pose in scene.cameras.pose
    ]
    said = {"camera_path": frames, "render_height": 1080, "render_width": 1920, "fps": 24}
    cameras = paths.from_file(write(tmp_path / "path.json", said), scene)
    np.testing.assert_allclose(cameras.pose, scene.cameras.pose, atol=1e-6)
    # The top of the picture is half of 60° above its middle.
    np.testing.assert_allclose(cameras.focal * math.tan(math.pi / 6), SIZE[0] / 2, rtol=1e-5)
    np.testing.assert_array_equal(cameras.centre, np.tile([18, 12], (12, 1)))


def test_a_transforms_file_gives_its_cameras_whatever_size_it_names(scene, tmp_path):
    frames = [
        {"transform_matrix": [*map(list, pose.astype(float)), [0, 0, 0, 1]]}
        | dict(
            zip(("fl_x", "fl_y", "cx", "cy"), (2.0 * np.r_[focal, centre]).tolist(), strict=True)
        )
        for pose, focal, centre, _ in zip(*scene.cameras, strict=True)
    ]
    said = {"frames": frames, "w": 2 * SIZE[1], "h": 2 * SIZE[0]}
    cameras = paths.from_file(write(tmp_path / "transforms.json", said), scene)
    for got, expected in zip(cameras, scene.cameras, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    bare = {"frames": [{"transform_matrix": frames[0]["transform_matrix"]}], "camera_angle_x": 0.9}
    [focal] = paths.from_file(write(tmp_path / "bare.json", bare), scene).focal
    np.testing.assert_allclose(focal * math.tan(0.45), SIZE[1] / 2, rtol=1e-5)


def write(path: Path, said) -> Path:
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return path


UPRIGHT = np.eye(4).tolist()
NO_PATHS = {
    "{": "cannot be read as JSON",
    "[1]": "has no frames",
    '{"frames": []}': "has no frames",
    json.dumps({"camera_path": [{"fov": 50}]}): r"camera_path\[0\] has no camera_to_world",
    json.dumps({"camera_path": [{"camera_to_world": UPRIGHT, "fov": 180}]}): "fov is 180.* below",
    json.dumps({"camera_path": [{"camera_to_world": UPRIGHT}]}): "fov is None",
    json.dumps({"camera_path": [{"camera_to_world": [1, 2, 3], "fov": 9}]}): "has no camera_to",
    json.dumps({"frames": [{"transform_matrix": UPRIGHT}]}): r"frames\[0\]: camera_angle_x is None",
    json.dumps({"frames": [5]}): r"frames\[0\] has no transform_matrix",
    json.dumps({"frames": [{"transform_matrix": (2 * np.eye(4)).tolist()}]}): "is not rigid",
    json.dumps({"frames": [{"transform_matrix": UPRIGHT}], "fl_x": "5"}): "fl_x is '5'",
}


@pytest.mark.parametrize("text", NO_PATHS)
def test_a_file_that_is_no_path_is_refused_by_file_and_frame(text, scene, tmp_path):
    file = write(tmp_path / "path.json", text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}.*{NO_PATHS[text]}"):
        paths.from_file(file, scene)


# ---- depths in colours ----


def test_shades_grow_brighter_as_their_share_does():
    share = np.linspace(0, 1, 501)
    shades = out.shade(share).astype(int)
    brightness = shades @ [0.30, 0.59, 0.11] / 255
    inside = ((shades > 0) & (shades < 255)).all(axis=1)
    assert inside.sum() > 300
    np.testing.assert_allclose(brightness[inside], share[inside], atol=0.5 / 255)
    assert (np.diff(brightness) > -1 / 255).all()
    assert shades[0].tolist() == [0, 0, 0] and shades[-1].tolist() == [255, 255, 255]
    assert len(np.unique(shades, axis=0)) > 250  # more than a grey scale has


@pytest.mark.parametrize("unbounded", [False, True])
def test_depths_are_brighter_where_they_are_nearer(scene, unbounded):
    ball = Ball(unbounded=unbounded)
    orbit = paths.orbit(scene, 3)
    for i, frame in enumerate(out.depths(ball, orbit, *SIZE)):
        seen = ball.view(select(orbit, i), *SIZE)
        brightness = frame.astype(int) @ [0.30, 0.59, 0.11]
        hit = seen.opacity > 0
        assert frame.shape == (*SIZE, 3) and frame.dtype == np.uint8
        assert (brightness[~hit] == 0).all() and (brightness[hit] > 30).all()
        nearest = np.argsort(seen.depth[hit])
        assert (np.diff(brightness[hit][nearest]) < 1.5).all()  # but for rounding
        assert brightness[hit].max() - brightness[hit].min() > 60


def test_where_nothing_is_seen_depths_are_black(scene):
    [frame] = out.depths(Ball(radius=1e-4), paths.orbit(scene, 1), *SIZE)
    assert (frame == 0).all()


def test_depths_that_are_all_the_same_have_one_colour(scene):
    wall = Ball()
    wall.view = lambda camera, h, w: View(np.ones((h, w, 3)), np.full((h, w), 2.0), np.ones((h, w)))
    [frame] = out.depths(wall, paths.orbit(scene, 1), *SIZE)
    assert (frame == frame[0, 0]).all() and frame.max() > 30


# ---- a mesh ----


@pytest.fixture(scope="module")
def mesh() -> surface.Mesh:
    return surface.mesh(Ball(), resolution=40, threshold=DENSITY)


def test_the_mesh_of_a_ball_is_that_ball(mesh):
    points, normals, colours = mesh.corners
    away = points - CENTRE
    radius = np.linalg.norm(away, axis=1)
    cell = 2 / 40
    assert len(points) > 1000 and np.abs(radius - RADIUS).max() < cell / 2
    assert closed(mesh.faces)
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.05)  # outward: positive
    outward = away / radius[:, None]
    assert (normals * outward).sum(1).min() > 0.9
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    # Seen against the normals: the colour of the side that looks outward.
    np.testing.assert_allclose(colours, 255 * (1 + normals) / 2, atol=0.51)


def closed(faces) -> bool:
    """Whether each edge belongs to two triangles, which run through it in opposite directions."""
    edges = [tuple(face[[i, (i + 1) % 3]]) for face in faces for i in range(3)]
    return len({*edges}) == len(edges) and {*edges} == {(b, a) for a, b in edges}


def volume(mesh) -> float:
    a, b, c = (mesh.corners.points[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def test_a_mesh_is_closed_where_the_box_cuts_it_and_stays_inside():
    low, high = (0.1, -0.9, -1.0), (0.9, 0.9, 1.0)  # through the ball's centre; no cube
    told = []
    half = surface.mesh(
        Ball(low=low, high=high),
        resolution=30,
        threshold=DENSITY,
        progress=lambda done, total: told.append((done, total)),
    )
    points = half.corners.points
    assert closed(half.faces) and points[:, 0].min() == np.float32(0.1)
    assert volume(half) == pytest.approx(2 / 3 * math.pi * RADIUS**3, rel=0.05)
    on_the_cut = points[:, 0] == points[:, 0].min()
    radius = np.linalg.norm(points - CENTRE, axis=1)
    assert np.abs(radius[~on_the_cut] - RADIUS).max() < 1 / 30
    assert (half.corners.normals[on_the_cut & (radius < 0.5), 0] < -0.99).all()
    assert told[-1][0] == told[-1][1]


def test_a_mesh_is_the_same_whatever_parts_the_field_is_asked_in(monkeypatch):
    whole = surface.mesh(Ball(), resolution=12, threshold=DENSITY)
    monkeypatch.setattr(surface, "AT_ONCE", 100)
    parts = surface.mesh(Ball(), resolution=12, threshold=DENSITY)
    np.testing.assert_array_equal(whole.corners.points, parts.corners.points)
    np.testing.assert_array_equal(whole.faces, parts.faces)


def test_the_usual_threshold_ends_half_of_the_light_in_a_64th_of_the_box():
    space = Space(low=(0, 0, 0), high=(1, 3, 2))
    assert math.exp(-surface.usual_threshold(space) * 3 / 64) == pytest.approx(0.5)
    assert surface.usual_threshold(Space(unbounded=True)) == surface.usual_threshold(Space())


def test_no_mesh_is_made_of_a_threshold_that_nothing_passes_nor_of_no_numbers():
    with pytest.raises(ValueError, match="below 0.*the most is 49"):
        surface.mesh(Ball(), resolution=8, threshold=501)
    with pytest.raises(ValueError, match="threshold is -1, but must be"):
        surface.mesh(Ball(), resolution=8, threshold=-1)
    with pytest.raises(ValueError, match="no numbers: the training diverged"):
        surface.mesh(Ball(radius=math.nan), resolution=8)


# ---- a cloud ----


def test_a_cloud_is_what_the_training_views_see_of_the_ball(scene):
    points, normals, colours = surface.cloud(Ball(), scene)
    outward = (points - CENTRE) / RADIUS
    np.testing.assert_allclose(np.linalg.norm(outward, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(normals, outward, atol=1e-5)
    np.testing.assert_allclose(colours, 255 * (1 + outward) / 2, atol=0.51)
    views = [Ball().view(select(scene.cameras, i), *SIZE) for i in scene.splits["train"]]
    assert len(points) == sum((view.opacity > 0.5).sum() for view in views)


def test_a_cloud_has_about_so_many_points_and_normals_that_face_the_cameras(scene):
    ball = Ball()
    ball.normals = lambda points: -Ball.normals(ball, points) * (points[:, :1] > 0)
    points, normals, _ = surface.cloud(ball, scene, count=8 * 24 * 36 // 4, views=range(8))
    whole, _, _ = surface.cloud(Ball(), scene, views=range(8))
    assert len(whole) / 5 < len(points) < len(whole) / 3
    outward = (points - CENTRE) / RADIUS
    np.testing.assert_allclose(np.linalg.norm(outward, axis=1), 1, atol=1e-5)
    assert ((normals * outward).sum(1) > 0).all()
    turned_to = points[:, 0] > 0
    np.testing.assert_allclose(normals[turned_to], outward[turned_to], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)


def test_no_cloud_is_made_where_no_view_shows_anything(scene):
    with pytest.raises(ValueError, match="none of 8 views shows anything"):
        surface.cloud(Ball(radius=1e-4), scene)


# ---- a real renderer ----


def test_a_renderer_of_a_field_gives_the_mesh_and_the_cloud_of_its_formula(scene, monkeypatch):
    monkeypatch.setattr(view, "AT_ONCE", SIZE[0] * SIZE[1])
    monkeypatch.setattr(view, "POINTS", 2**12)

    def apply(variables, points, *directions, method=None):  # of points in the unit cube
        away = jnp.linalg.norm(2 * points - 1 - variables["centre"][None], axis=1)
        sigma = jnp.maximum(DENSITY + 200 * (RADIUS - away), 0)
        return sigma if method == "density" else (sigma, (1 - directions[0]) / 2)

    space = Space(sampler=Hierarchical(32, 32))
    found = view.Renderer(apply, {"centre": CENTRE.astype(np.float32)}, space)
    soft = Ball()
    soft.density = lambda points: np.maximum(
        DENSITY + 200 * (RADIUS - np.linalg.norm(points - CENTRE, axis=1)), 0
    )
    made, expected = (surface.mesh(x, resolution=12, threshold=DENSITY) for x in (found, soft))
    np.testing.assert_array_equal(made.faces, expected.faces)
    np.testing.assert_allclose(made.corners.points, expected.corners.points, atol=1e-4)
    np.testing.assert_allclose(made.corners.colours, expected.corners.colours, atol=1)
    points, normals, _ = surface.cloud(found, scene, views=[0])
    away = points - CENTRE
    radius = np.linalg.norm(away, axis=1)
    assert len(points) > 50 and np.abs(radius - RADIUS).mean() < 0.05
    assert (normals * away).sum(1).min() > 0


# ---- the command line ----


@pytest.fixture
def place(scene, tmp_path, monkeypatch) -> Path:
    """A folder with a workdir, whose model is a ball."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    scene.save(tmp_path / "run" / "model")
    monkeypatch.setattr(zoo, "load", lambda path: (path, "variables"))
    monkeypatch.setattr("zoo.nerf.view.renderer", lambda model, variables, space: Ball())
    monkeypatch.chdir(tmp_path)
    return tmp_path


VIDEOS = {
    "--out a.mp4 --size 32x48 --fps 10": "a.mp4",
    "--out a.gif --size 32x48": "a.gif",
    "--out a --size 32x48": "a/*.png",
    "--out a_%03d.png --size 32x48 --path interpolate": "a_*.png",
    "--out a.gif --size 32x48 --depth": "a.gif",
}


@pytest.mark.parametrize("arguments", VIDEOS)
def test_a_video_has_the_frames_that_were_asked_for(arguments, scene, place, capsys):
    assert main(["render", "run", "--frames", "5", *arguments.split()]) == 0
    assert "5 frames of 32×48" in capsys.readouterr().out
    files = sorted(place.glob(VIDEOS[arguments]))
    frames = [frame for file in files for frame in read_frames(file)]
    name = "interpolate" if "interpolate" in arguments else "orbit"
    cameras = paths.resized(paths.PATHS[name](scene, 5), SIZE, (32, 48))
    draw = out.depths if "--depth" in arguments else out.pictures
    for got, expected in zip(frames, draw(Ball(), cameras, 32, 48), strict=True):
        assert got.shape == (32, 48, 3)
        assert np.abs(got.astype(int) - expected).mean() < (0.1 if "png" in files[0].name else 6)
    if "fps" in arguments:
        assert " 10 fps" in asked(files[0])
    assert not [*place.glob(".*")]


def read_frames(path: Path) -> np.ndarray:
    """uint8 [n, h, w, 3] of a video, a GIF or a picture."""
    if path.suffix != ".mp4":
        with Image.open(path) as file:
            return np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(file)])
    [(width, height)] = re.findall(r" (\d+)x(\d+)[ ,]", asked(path))
    raw = ffmpeg(path, *"-loglevel error -f rawvideo -pix_fmt rgb24 -".split()).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, int(height), int(width), 3)


def asked(path: Path) -> str:
    """What ffmpeg says of a video: its size and frames a second among it."""
    return ffmpeg(path).stderr.decode()


def ffmpeg(path: Path, *options: str) -> subprocess.CompletedProcess:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), *options]
    return subprocess.run(command, capture_output=True, check=bool(options))


def test_a_video_of_views_with_odd_sides_is_a_pixel_less(place, scene):
    odd = Scene(Space(), 25, 37, scene.cameras, scene.names, scene.splits)
    odd.save(place / "run" / "model")
    assert main(["render", "run", "--frames", "2", "--out", "a.mp4"]) == 0
    assert read_frames(place / "a.mp4").shape == (2, 24, 36, 3)
    assert main(["render", "run", "--frames", "1", "--out", "whole"]) == 0
    assert read_frames(place / "whole" / "0000.png").shape == (1, 25, 37, 3)


def test_a_video_that_cannot_be_finished_leaves_nothing(place, monkeypatch, capsys):
    show, shown = Ball.view, []

    def view(self, *asked):
        shown.append(asked)
        if len(shown) % 4 == 0:
            raise ValueError("torn")
        return show(self, *asked)

    monkeypatch.setattr(Ball, "view", view)
    for name in ("a.mp4", "a.gif"):
        assert main(["render", "run", "--out", name]) == 2
    assert "error: torn" in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["run"]


def test_what_ffmpeg_says_of_a_video_that_it_cannot_write_is_passed_on(place, monkeypatch, capsys):
    monkeypatch.setattr(out, "ENCODER", "-c:v unheard_of")
    assert main(["render", "run", "--frames", "9", "--size", "100x100", "--out", "a.mp4"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a.mp4 cannot be written by ffmpeg") and "unheard_of" in said
    assert [path.name for path in place.iterdir()] == ["run"]


def test_without_ffmpeg_itself_it_says_so(place, monkeypatch, capsys):
    def none():
        raise RuntimeError("none is on the path")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    assert main(["render", "run", "--out", "a.mp4"]) == 2
    assert capsys.readouterr().err == "error: videos need ffmpeg, install it: none is on the path\n"


def test_a_mesh_is_read_back_as_it_was_made(place, capsys):
    arguments = ["--resolution", "16", "--threshold", str(DENSITY)]
    assert main(["mesh", "run/model", "--out", "ball.ply", *arguments]) == 0
    made = surface.mesh(Ball(), resolution=16, threshold=DENSITY)
    said = capsys.readouterr().out
    assert f"{len(made.faces):,} triangles, {len(made.corners.points):,} corners" in said
    columns, faces = read_ply(place / "ball.ply")
    expected = np.concatenate(made.corners, axis=1).T
    assert [*columns] == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    np.testing.assert_array_equal([*columns.values()], expected)
    np.testing.assert_array_equal(faces, made.faces)


def test_a_cloud_is_read_back_as_it_was_made(scene, place, capsys):
    assert main(["points", "run", "--out", "ball.ply"]) == 0
    made = surface.cloud(Ball(), scene)
    assert f"{len(made.points):,} points" in capsys.readouterr().out
    columns, faces = read_ply(place / "ball.ply")
    np.testing.assert_array_equal([*columns.values()], np.concatenate(made, axis=1).T)
    assert faces is None


def read_ply(path: Path):
    """(columns by name, faces [f, 3] or None) of a PLY file, by its own header."""
    kinds = {"float": "<f4", "uchar": "u1", "int": "<i4"}
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = [line.split() for line in header.decode("ascii").splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    counts = {line[1]: int(line[2]) for line in lines if line[0] == "element"}
    row = [(line[2], kinds[line[1]]) for line in lines if line[0] == "property" and len(line) == 3]
    table = np.frombuffer(body, np.dtype(row), counts["vertex"])
    rest, faces = body[table.nbytes :], None
    if "face" in counts:
        assert ["property", "list", "uchar", "int", "vertex_indices"] in lines
        corners = np.frombuffer(rest, [("n", "u1"), ("corners", "<i4", 3)], counts["face"])
        assert (corners["n"] == 3).all()
        rest, faces = rest[corners.nbytes :], corners["corners"]
    assert not rest
    return {name: table[name] for name, _ in row}, faces


REFUSED = {  # arguments → parts of the message
    "render none --out a.mp4": ("none/scene.json",),
    "render run --out a.avi": ("a.avi", ".mp4, .gif, .png", "folder"),
    "render run --out none/a.mp4": ("there is no folder none",),
    "render run --out a.png": ("a.png", "a_%04d.png"),
    "render run --out a.mp4 --path spin": ("orbit, interpolate", "JSON", "'spin'"),
    "render run --out a.mp4 --path path.json --frames 3": ("frames of its own",),
    "render run --out a.mp4 --path path.json": ("path.json has no frames",),
    "render run --out a.mp4 --size 25x36": ("25×36", "24×36"),
    "mesh run --out a.obj": ("a.obj", ".ply"),
    "mesh run --out none/a.ply": ("there is no folder none",),
    "mesh none --out a.ply": ("none/scene.json",),
    "mesh run --out a.ply --resolution 8 --threshold 1e4": ("1e+04", "below 0", "most is 49"),
    "points run --out a.xyz": ("a.xyz", ".ply"),
    "points none --out a.ply": ("none/scene.json",),
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_is_refused_in_a_line(arguments, place, capsys):
    write(place / "path.json", {"frames": []})
    before = {*place.iterdir()}
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert all(part in said for part in REFUSED[arguments]), said
    assert {*place.iterdir()} == before


@pytest.mark.parametrize("arguments", ["--size 10", "--size 0x8", "--frames 0"])
def test_sizes_and_numbers_are_checked_by_the_parser(arguments, place, capsys):
    with pytest.raises(SystemExit):
        main(["render", "run", "--out", "a.mp4", *arguments.split()])
    assert "argument --" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module, command",
    [("imageio_ffmpeg", "render run --out a.mp4"), ("skimage", "mesh run --out a.ply")],
)
def test_without_a_library_it_says_how_to_get_it(module, command, place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.setattr(zoo, "load", None)  # nothing is loaded before
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert module in said and "pip install 'flax-zoo[nerf]'" in said and said.count("\n") == 1
