"""Cameras against pixels worked out by hand, and lenses against OpenCV's formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from zoo.nerf import cameras
from zoo.nerf.cameras import Camera, Rays
from zoo.nerf.sampling import intersect_box

pytestmark = pytest.mark.quick

PINHOLE = np.zeros(5, np.float32)
rays = jax.jit(cameras.rays)
project = jax.jit(cameras.project)

# Two cameras, 5 away from the middle of a cube with the corners (±1, ±1, ±1), that look at it: one
# from +z with y up, one from +x with z up (and y to the right). By hand, in three conventions.
BLENDER = {
    "from z": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5]],
    "from x": [[0, 0, 1, 5], [1, 0, 0, 0], [0, 1, 0, 0]],
}
OPENCV = {
    "from z": [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 5]],
    "from x": [[0, 0, -1, 5], [1, 0, 0, 0], [0, -1, 0, 0]],
}
COLMAP = {  # world to camera: half a turn about x; a third of a turn about (1, 1, −1)
    "from z": ([0, 1, 0, 0], [0, 0, 5]),
    "from x": ([0.5, 0.5, 0.5, -0.5], [0, 0, 5]),
}
POSES = {
    "blender": lambda view: np.array(BLENDER[view], np.float32),
    "opencv": lambda view: cameras.opengl(np.array(OPENCV[view], np.float32)),
    "colmap": lambda view: cameras.from_colmap(*COLMAP[view]).astype(np.float32),
}
EACH = pytest.mark.parametrize("source", POSES)
VIEW = pytest.mark.parametrize("view", BLENDER)

# With focal (100, 120) and centre (100, 75): the near face is at depth 4, so 100 / 4 = 25 to the
# side and 120 / 4 = 30 up or down; the far one at depth 6: 16 2/3 and 20.
CORNERS = [  # (right, up, towards the camera) → pixel, depth
    ((1, 1, 1), (125, 45), 4),
    ((1, -1, 1), (125, 105), 4),
    ((-1, 1, 1), (75, 45), 4),
    ((-1, -1, 1), (75, 105), 4),
    ((1, 1, -1), (116 + 2 / 3, 55), 6),
    ((1, -1, -1), (116 + 2 / 3, 95), 6),
    ((-1, 1, -1), (83 + 1 / 3, 55), 6),
    ((-1, -1, -1), (83 + 1 / 3, 95), 6),
]
IN_WORLD = {  # which of (right, up, towards) is x, y, z
    "from z": lambda right, up, towards: (right, up, towards),
    "from x": lambda right, up, towards: (towards, right, up),
}

QUARTER = (0, 0, -1), (1, 1, 1)


def camera(pose, distortion=PINHOLE):
    return Camera(pose, np.float32([100, 120]), np.float32([100, 75]), np.float32(distortion))


@EACH
@VIEW
def test_the_corners_of_a_cube_lie_on_known_pixels(source, view):
    corners, pixels, depths = zip(*CORNERS, strict=True)
    points = np.float32([IN_WORLD[view](*corner) for corner in corners])
    found, depth = project(camera(POSES[source](view)), points)
    np.testing.assert_allclose(found, pixels, atol=1e-4)
    np.testing.assert_allclose(depth, depths, atol=1e-5)


@EACH
@VIEW
def test_a_quarter_of_the_cube_covers_known_pixels(source, view):
    """The upper right one, whose near face is from (100, 45) to (125, 75); moved by a quarter of a
    pixel, it covers the centres 100.5 … 124.5 and 45.5 … 74.5. Rays through pixels' corners would
    cover others."""
    moved = camera(POSES[source](view))._replace(centre=np.float32([100.25, 75.25]))
    found = rays(moved, cameras.pixel_centres(150, 200))
    near, far = intersect_box(*found, *np.float32([IN_WORLD[view](*x) for x in QUARTER]))
    expected = np.zeros((150, 200), bool)
    expected[45:75, 100:125] = True
    np.testing.assert_array_equal(far > near, expected)


def test_the_first_pixel_is_centred_at_one_half():
    assert cameras.pixel_centres(2, 3).tolist() == [
        [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5]],
        [[0.5, 1.5], [1.5, 1.5], [2.5, 1.5]],
    ]


@VIEW
def test_conventions_of_one_camera_give_the_same_rays(view):
    lens = [-0.3, 0.1, 0.02, 1e-3, -2e-3]
    pixels = cameras.pixel_centres(150, 200)  # as elsewhere: nothing is compiled again
    first, *others = (rays(camera(make(view), lens), pixels) for make in POSES.values())
    for other in others:
        np.testing.assert_allclose(other.origins, first.origins, atol=1e-6)
        np.testing.assert_allclose(other.directions, first.directions, atol=1e-6)


def test_the_opencv_convention_is_its_own_inverse_and_leaves_numpy_alone():
    pose = np.random.default_rng(0).normal(size=(2, 3, 4))
    there = cameras.opengl(pose)
    assert isinstance(there, np.ndarray) and there.dtype == np.float64
    np.testing.assert_array_equal(cameras.opengl(there), pose)
    np.testing.assert_allclose(jax.jit(cameras.opengl)(pose), there, rtol=1e-6)


def test_directions_have_length_one():
    lens = [-0.3, 0.1, 0.02, 1e-3, -2e-3]
    found = rays(camera(POSES["blender"]("from x"), lens), cameras.pixel_centres(150, 200))
    assert found.origins.shape == found.directions.shape == (150, 200, 3)
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=-1), 1, atol=3e-7)


def test_a_batch_of_cameras_takes_one_pixel_each():
    views = [camera(POSES["blender"](view)) for view in BLENDER]
    both = jax.tree.map(lambda *x: np.stack(x), *views)
    pixels = np.float32([[10, 20], [130, 40]])
    found = rays(both, pixels)
    for i, view in enumerate(views):
        alone = rays(view, pixels[i])
        np.testing.assert_allclose(found.directions[i], alone.directions, atol=1e-7)
        np.testing.assert_array_equal(found.origins[i], alone.origins)
        np.testing.assert_array_equal(cameras.select(both, i).pose, view.pose)
    assert cameras.select(both, np.array([1, 0, 1])).distortion.shape == (3, 5)


# Published calibrations: (width, height), focal, centre, k1, k2, k3, p1, p2.
LENSES = {
    "EuRoC MAV, cam0": (
        (752, 480),
        (458.654, 457.296),
        (367.215, 248.375),
        (-0.28340811, 0.07395907, 0, 0.00019359, 1.76187114e-05),
    ),
    "TUM RGB-D, freiburg1": (
        (640, 480),
        (517.3, 516.5),
        (318.6, 255.3),
        (0.2624, -0.9531, 1.1633, -0.0054, 0.0026),
    ),
    "barrel and decentred": (
        (640, 480),
        (500, 500),
        (320, 240),
        (-0.35, 0.15, -0.03, 2e-3, -2e-3),
    ),
}


def distorted_by_opencv(x, y, lens):
    """The formula of OpenCV's documentation, float64."""
    k1, k2, k3, p1, p2 = lens
    r = np.sqrt(x**2 + y**2)
    radial = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6
    return (
        x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
        y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
    )


@pytest.fixture(scope="module")
def lenses():
    """All of them at once: cameras [3, 1, 1], pixels [3, 480, 752, 2], where they lie in the plane,
    where they lie undistorted, and their rays. What is behind the edge of a narrower picture is to
    be left out."""
    intrinsics = list(zip(*LENSES.values(), strict=True))[1:]
    focal, centre, lens = (np.float32(x)[:, None, None] for x in intrinsics)
    poses = np.broadcast_to(POSES["blender"]("from z"), (3, 1, 1, 3, 4))
    views = Camera(poses, focal, centre, lens)
    pixels = np.broadcast_to(cameras.pixel_centres(480, 752), (3, 480, 752, 2))
    plane = (pixels - centre) / focal
    straight = np.asarray(jax.jit(cameras.undistort)(plane, lens))
    return views, pixels, plane, straight, Rays(*map(np.asarray, rays(views, pixels)))


EACH_LENS = pytest.mark.parametrize("index, name", list(enumerate(LENSES)))


@EACH_LENS
def test_pixels_come_back_through_opencvs_formula_to_1e_4(index, name, lenses):
    """Over the whole picture: what undoes the lens is float32, what does it again is not."""
    (width, height), focal, centre, lens = LENSES[name]
    pixels, plane, straight = (x[index, :height, :width] for x in lenses[1:4])
    x, y = np.moveaxis(np.float64(straight), -1, 0)
    bent = distorted_by_opencv(x, y, np.float64(np.float32(lens)))
    back = np.stack(bent, axis=-1) * np.float32(focal) + np.float32(centre)
    assert np.abs(back - pixels).max() <= 1e-4
    assert np.abs((straight - plane) * focal).max() > 5  # else there would be nothing to undo


@EACH_LENS
def test_rays_go_back_to_their_pixels_through_opencvs_formula(index, name, lenses):
    """A direction's own rounding, 6e-8 of its length, is some 3e-5 pixels more."""
    (width, height), focal, centre, lens = LENSES[name]
    _, pixels, *_, found = lenses
    x, y, z = np.moveaxis(np.float64(found.directions[index, :height, :width]), -1, 0)
    bent = distorted_by_opencv(x / -z, -y / -z, np.float64(np.float32(lens)))
    back = np.stack(bent, axis=-1) * np.float32(focal) + np.float32(centre)
    assert np.abs(back - pixels[index, :height, :width]).max() <= 2e-4


def test_points_come_back_to_the_pixels_of_their_rays(lenses):
    views, pixels, *_, found = lenses
    some = np.s_[:, 4:480:40, 4:640:40]
    back, depth = project(views, (found.origins + 3 * found.directions)[some])
    assert np.abs(back - pixels[some]).max() <= 1e-3  # a world of rounding lies between
    np.testing.assert_allclose(depth, -3 * found.directions[some][..., 2], rtol=1e-5)


def test_distortion_matches_opencvs_formula_and_goes_back():
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (3, 100, 2)).astype(np.float32)
    lens = np.float32([lens for *_, lens in LENSES.values()])[:, None]
    expected = [
        distorted_by_opencv(*np.float64(x.T), k[0]) for x, k in zip(points, lens, strict=True)
    ]
    ours = jax.jit(cameras.distort)(points, lens)
    np.testing.assert_allclose(ours, np.moveaxis(expected, 1, -1), atol=2e-7)
    np.testing.assert_allclose(jax.jit(cameras.undistort)(ours, lens), points, atol=1e-6)


def test_the_derivative_of_a_ray_is_that_of_the_implicit_function():
    lens = np.float32([-0.35, 0.15, -0.03, 2e-3, -2e-3])
    point = np.float32([0.3, -0.5])
    ours = jax.jit(jax.jacrev(cameras.undistort, argnums=(0, 1)))(point, lens)
    x = np.float64(jax.jit(cameras.undistort)(point, lens))

    def slope(f, at):
        step = 1e-6 * np.eye(len(at))
        return np.stack([(f(at + s) - f(at - s)) / 2e-6 for s in step], axis=1)

    by_point = slope(lambda x: np.array(distorted_by_opencv(*x, np.float64(lens))), x)
    by_lens = slope(lambda k: np.array(distorted_by_opencv(*x, k)), np.float64(lens))
    np.testing.assert_allclose(ours[0], np.linalg.inv(by_point), atol=1e-5)
    np.testing.assert_allclose(ours[1], -np.linalg.solve(by_point, by_lens), atol=1e-5)


@pytest.mark.parametrize("length", [0.0, 1e-5, 2e-3, 0.08, 0.3, 3.0])
def test_a_camera_is_turned_about_itself_as_scipy_turns_it(length):
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(5, 3))
    turn *= length / np.linalg.norm(turn, axis=1, keepdims=True)
    shift, places = rng.normal(size=(2, 5, 3))
    axes = Rotation.random(5, random_state=1)
    pose = np.concatenate([axes.as_matrix(), places[..., None]], axis=2)
    one = np.ones((5, 2), np.float32)
    still = Camera(*(jnp.float32(x) for x in (pose, one, one, np.zeros((5, 5)))))
    found = cameras.moved(still, *(jnp.float32(x) for x in (turn, shift)))
    wanted = (axes * Rotation.from_rotvec(turn)).as_matrix()
    np.testing.assert_allclose(found.pose[..., :3], wanted, atol=1e-6)
    np.testing.assert_allclose(found.pose[..., 3], places + shift, atol=1e-6)
    slope = jax.jacrev(lambda turn: cameras.moved(still, turn, jnp.zeros((5, 3))).pose)
    h = np.float32(1e-2) * np.eye(15, dtype=np.float32).reshape(15, 5, 3)
    for i in range(15):
        ends = [
            (axes * Rotation.from_rotvec(turn + sign * np.float64(h[i]))).as_matrix()
            for sign in (1, -1)
        ]
        ours = np.tensordot(slope(jnp.float32(turn))[..., :3, :, :], h[i], axes=2)
        np.testing.assert_allclose(ours, (ends[0] - ends[1]) / 2, atol=1e-5)


def test_extreme_rays_and_points_stay_finite():
    folded = [-0.5, 0, 0, 0.01, 0.01]  # beyond r = 0.8 there is no such pixel
    pixels = np.float32([[100, 75], [1e4, 1e4], [-1e8, 75], [100, 1e8]])
    grad = jax.jit(jax.grad(lambda *given: cameras.rays(*given).directions.sum()))
    for lens in (PINHOLE, folded):
        view = camera(POSES["blender"]("from x"), lens)
        assert all(np.isfinite(x).all() for x in (*rays(view, pixels), *grad(view, pixels)))
    points = np.float32([[0, 0, 0], [5, 0, 0], [6, 1, 1], [5, 3, 0], [1e8, 1e8, 1e8], [-1e8, 1, 1]])
    pixels, depth = project(view, points)
    assert np.isfinite(depth).all() and not np.isnan(pixels).any()
    assert np.isinf(pixels).all(axis=1).tolist() == [False, True, True, True, True, False]

    def total(points):
        pixels, depth = cameras.project(view, points)
        return jnp.where(jnp.isinf(pixels), 0, pixels).sum() + depth.sum()

    assert np.isfinite(jax.jit(jax.grad(total))(points)).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda pose: pose * np.nan, "frame 7 of a.json is not finite"),
        (lambda pose: 2 * pose, "frame 7 of a.json is not rigid: .* off orthonormal by 3"),
        (lambda pose: pose * [1, 1, -1, 1], "frame 7 of a.json is a reflection"),
        (lambda pose: pose[:, :3], r"frame 7 of a.json has shape \(3, 3\)"),
    ],
)
def test_a_pose_that_is_none_is_refused_by_name(change, message):
    pose = np.array(BLENDER["from x"], np.float64)
    cameras.check_pose(pose)
    cameras.check_pose(pose + 1e-4)
    with pytest.raises(ValueError, match=message):
        cameras.check_pose(change(pose), "frame 7 of a.json")
