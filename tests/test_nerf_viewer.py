"""The viewer without a browser: cameras, sizes and turns, against a server that only notes what it
is told; and checkpoints of a run that is still writing them."""

import json
import math
import socket
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.test_nerf_out import Ball, project, rays
from train import loop, view
from train.checkpoint import Checkpoints
from train.config import ConfigError
from train.state import State
from zoo.__main__ import main
from zoo.nerf import paths, samplers, viewer
from zoo.nerf.cameras import Camera, select
from zoo.nerf.scene import Occupancy, Scene, Space
from zoo.nerf.viewer import Drawn, Field, Look

HEIGHT, WIDTH = 120, 200  # of a canvas
ROOT = math.sqrt(0.5)


def look(**changes) -> Look:
    usual = Look((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -3.0), 0.8, HEIGHT, WIDTH, "colour", None)
    return usual._replace(**changes)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Five cameras around the origin, each with a lens of its own."""
    angle = np.arange(5.0)
    places = np.stack([3 * np.cos(angle), 3 * np.sin(angle), 0.2 * angle], axis=1)
    cameras = Camera(
        paths.look_at(places, np.zeros(3)).astype(np.float32),
        np.stack([200 + 10 * angle, 220 + 10 * angle], axis=1).astype(np.float32),
        np.tile(np.float32([WIDTH / 2, HEIGHT / 2]), (5, 1)),
        np.zeros((5, 5), np.float32),
    )
    splits = {"train": (0, 1, 2), "validation": (), "test": (3, 4)}
    space = Space(low=(-1, -2, -3), high=(1, 2, 3))
    return Scene(space, HEIGHT, WIDTH, cameras, tuple("abcde"), splits)


# ---- cameras ----


def hamilton(p, q):
    (a, u), (b, v) = (p[0], p[1:]), (q[0], q[1:])
    return np.array([a * b - u @ v, *(a * v + b * u + np.cross(u, v))])


def turned(wxyz, axis):
    """q v q*, which is how a quaternion (w, x, y, z) turns a vector."""
    q = np.asarray(wxyz)
    return hamilton(hamilton(q, np.array([0.0, *axis])), q * [1, -1, -1, -1])[1:]


def test_a_camera_of_viser_looks_along_its_z_with_y_down():
    q = np.random.default_rng(0).normal(size=4)
    q /= np.linalg.norm(q)
    pose = viewer.camera_of(look(wxyz=tuple(q), position=(1.0, 2.0, 3.0)), 60, 100).pose
    np.testing.assert_allclose(pose[:, 0], turned(q, [1, 0, 0]), atol=1e-6)  # right
    np.testing.assert_allclose(pose[:, 1], turned(q, [0, -1, 0]), atol=1e-6)  # up
    np.testing.assert_allclose(pose[:, 2], turned(q, [0, 0, -1]), atol=1e-6)  # back
    np.testing.assert_allclose(pose[:, 3], [1, 2, 3])


def test_w_comes_first_and_what_is_right_and_below_is_seen_there():
    points = np.array([[0.0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]])
    pixels, ahead = project(viewer.camera_of(look(), HEIGHT, WIDTH), points)
    np.testing.assert_allclose(ahead, 3)
    (x, y), (right, level), (straight, below) = pixels - [WIDTH / 2, HEIGHT / 2]
    assert abs(x) < 1e-4 and abs(y) < 1e-4 and abs(level) < 1e-4 and abs(straight) < 1e-4
    assert right > 10 and below > 10
    # A quarter turn about x: its y, which is down, is now the world's z; it looks along −y.
    quarter = look(wxyz=(ROOT, ROOT, 0.0, 0.0), position=(0.0, 3.0, 0.0))
    [middle, lower], ahead = project(
        viewer.camera_of(quarter, HEIGHT, WIDTH), np.array([[0.0, 0, 0], [0, 0, 0.5]])
    )
    np.testing.assert_allclose(ahead, 3, atol=1e-5)
    np.testing.assert_allclose(middle, [WIDTH / 2, HEIGHT / 2], atol=1e-3)
    assert lower[1] > HEIGHT / 2 + 10


def test_a_picture_of_any_size_fills_the_canvas_from_edge_to_edge():
    for height, width in [(HEIGHT, WIDTH), (60, 100), (37, 61), (1, 1)]:
        camera = viewer.camera_of(look(), height, width)
        edge = (np.array([width, height]) - camera.centre) / camera.focal
        np.testing.assert_allclose(edge, [math.tan(0.4) * WIDTH / HEIGHT, math.tan(0.4)], rtol=1e-5)
        np.testing.assert_allclose(-camera.centre / camera.focal, -edge, rtol=1e-5)


def test_viser_at_a_view_renders_what_our_camera_there_renders(scene):
    quaternions = viewer.wxyz_of(scene.cameras.pose)
    for i, wxyz in enumerate(quaternions):
        ours = select(scene.cameras, i)
        ours = ours._replace(focal=np.repeat(ours.focal[1:], 2))  # viser's pixels are square
        at = look(wxyz=tuple(wxyz), position=tuple(ours.pose[:, 3]), fov=viewer.lens(scene, i)[0])
        theirs = viewer.camera_of(at, HEIGHT, WIDTH)
        for got, expected in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        shown, expected = (Ball().view(camera, HEIGHT, WIDTH) for camera in (theirs, ours))
        assert (shown.opacity > 0).mean() > 0.05
        np.testing.assert_allclose(shown.colour, expected.colour, atol=1e-2)


def test_a_lens_is_the_angle_of_the_pictures_height_and_their_shape(scene):
    fov, aspect = viewer.lens(scene, 2)
    assert 2 * math.tan(fov / 2) * 240 == pytest.approx(HEIGHT)
    assert aspect == pytest.approx(WIDTH / 220 / (HEIGHT / 240))


# ---- which picture ----


@pytest.mark.parametrize(
    "canvas", [(120, 200), (1080, 1920), (3000, 4000), (64, 64), (65, 64), (1, 1), (1, 9000)]
)
def test_sizes_double_up_to_the_canvas_or_to_the_most_that_is_drawn(canvas):
    ladder = viewer.sizes(*canvas)
    pixels = [math.prod(size) for size in ladder]
    assert pixels[0] <= viewer.LEAST and all(few > viewer.LEAST for few in pixels[1:])
    assert pixels[-1] <= viewer.MOST
    assert ladder[-1] == canvas or pixels[-1] > 0.99 * viewer.MOST
    for (h, w), (taller, wider) in zip(ladder, ladder[1:], strict=False):
        assert (h, w) == (max(taller // 2, 1), max(wider // 2, 1))


def test_pictures_begin_coarse_and_get_finer_until_the_camera_moves():
    canvas = look(height=1000, width=1000)  # 4 levels of 62² … 500², and 1000²
    last = len(viewer.sizes(1000, 1000)) - 1
    levels, drawn = [], None
    while (level := viewer.next_level(canvas, drawn, speed=0)) is not None:
        levels, drawn = [*levels, level], Drawn(canvas, level)
    assert levels == [*range(last + 1)] and last == 4
    for change in ({"position": (0, 0, 1)}, {"kind": "depth"}, {"step": 5}, {"height": 999}):
        assert viewer.next_level(canvas._replace(**change), drawn, speed=0) == 0


def test_the_first_picture_is_as_fine_as_fits_a_moment():
    canvas = look(height=1000, width=1000)
    for level, (height, width) in enumerate(viewer.sizes(1000, 1000)):
        enough = height * width / viewer.MOMENT
        assert viewer.next_level(canvas, None, enough * 1.01) == level
        assert viewer.next_level(canvas, None, enough * 0.99) == max(level - 1, 0)


# ---- pictures ----


def test_bands_are_the_picture_and_stop_when_they_are_given_up(scene):
    camera, tall = select(scene.cameras, 1), 128
    whole = Ball().view(camera, tall, WIDTH)
    banded = viewer.in_bands(Ball(), camera, tall, WIDTH)
    assert banded is not None
    for got, expected in zip(banded, whole, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    asked = iter([False, False, True])
    assert viewer.in_bands(Ball(), camera, tall, WIDTH, lambda: next(asked)) is None
    assert next(asked, "none left") == "none left"


@pytest.mark.parametrize("unbounded", [False, True])
def test_each_kind_of_picture_shows_what_it_is_called(scene, unbounded):
    seen = Ball().view(select(scene.cameras, 0), HEIGHT, WIDTH)
    colour, depth, opacity = (viewer.picture(seen, kind, unbounded) for kind in viewer.PICTURES)
    np.testing.assert_allclose(colour, 255 * seen.colour, atol=0.51)
    np.testing.assert_array_equal(opacity, 255 * np.repeat(seen.opacity[:, :, None], 3, axis=2))
    hit = seen.opacity > 0
    order = np.argsort(seen.depth[hit])
    brightness = (depth.astype(int) @ [0.30, 0.59, 0.11])[hit][order]  # the nearest one first
    assert (depth[~hit] == 0).all() and brightness[0] > brightness[-1] + 60
    assert (brightness - np.minimum.accumulate(brightness)).max() < 1.5  # but for rounding
    empty = seen._replace(opacity=np.zeros_like(seen.opacity))
    assert (viewer.picture(empty, "depth", unbounded) == 0).all()


def test_depths_are_given_along_the_axis_and_far_where_nothing_is(scene):
    camera = select(scene.cameras, 2)
    seen = Ball().view(camera, HEIGHT, WIDTH)
    origins, directions = rays(camera, HEIGHT, WIDTH)
    hit = seen.opacity > 0
    _, ahead = project(camera, (origins + seen.depth[..., None] * directions)[hit])
    depth = viewer.along_axis(seen, camera)
    np.testing.assert_allclose(depth[hit], ahead, rtol=1e-5)
    assert (depth[~hit] == viewer.FARTHEST).all()
    away = seen._replace(depth=seen.depth + 500)
    assert (viewer.along_axis(away, camera) <= viewer.FARTHEST).all()


# ---- a server ----


class Node(SimpleNamespace):
    """What was made, as it was asked for, and who is told when it changes."""

    def on_update(self, told):
        self.told = told

    on_click = on_update


class Server:
    """As much of viser's server as a viewer uses; it keeps what it is given."""

    def __init__(self):
        self.scene, self.gui, self.initial_camera, self.clients = self, self, Node(), {}
        self.nodes, self.controls, self.images = {}, {}, []

    def set_up_direction(self, up):
        self.up = up

    def add_frame(self, name, *, show_axes):
        return self.nodes.setdefault(name, Node(visible=True))

    def add_camera_frustum(self, name, fov, aspect, **how):
        return self.nodes.setdefault(name, Node(fov=fov, aspect=aspect, **how))

    def add_line_segments(self, name, points, colors, *, thickness, thickness_units):
        return self.nodes.setdefault(name, Node(points=points))

    def add_markdown(self, content):
        return self.controls.setdefault("line", Node(content=content))

    def add_dropdown(self, label, options):
        return self.controls.setdefault(label, Node(value=options[0]))

    def add_checkbox(self, label, value):
        return self.controls.setdefault(label, Node(value=value))

    def get_clients(self):
        return dict(self.clients)

    def connect(self, wxyz=(1, 0, 0, 0), position=(0, 0, -3), height=HEIGHT, width=WIDTH):
        """A browser, which keeps its pictures."""
        client = SimpleNamespace(images=[], atomic=nullcontext)
        client.camera = SimpleNamespace(
            wxyz=np.array(wxyz, float),
            position=np.array(position, float),
            fov=0.8,
            image_height=height,
            image_width=width,
        )
        client.scene = SimpleNamespace(
            set_background_image=lambda image, format, *, jpeg_quality, depth: client.images.append(
                (image, depth)
            )
        )
        self.clients[len(self.clients)] = client
        return client


@pytest.fixture
def clock(monkeypatch):
    """Time that only passes where a test says so, and a hundredth of a second with each look."""
    now = SimpleNamespace(seconds=0.0)

    def monotonic():
        now.seconds += 0.01
        return now.seconds

    monkeypatch.setattr(viewer.time, "monotonic", monotonic)
    return now


@pytest.fixture
def made(scene, clock):
    """A viewer of a ball, its server, what it says, and where the newest field is put."""
    server, said, newest = Server(), [], SimpleNamespace(field=Field(Ball(), 100))
    shown = viewer.Viewer(server, scene, lambda: newest.field, said.append)
    return SimpleNamespace(viewer=shown, server=server, said=said, newest=newest)


def turns(made) -> int:
    """Until nothing is due."""
    for count in range(50):
        if not made.viewer.turn():
            return count
    raise AssertionError("there is always a picture due")


def test_a_browser_gets_a_coarse_picture_and_then_its_whole_canvas(made):
    client = made.server.connect(height=240, width=400)
    assert turns(made) == len(client.images) >= 2
    pixels = [image.shape[0] * image.shape[1] for image, _ in client.images]
    assert pixels == sorted({*pixels}) and pixels[0] < 240 * 400 / 3
    image, depth = client.images[-1]
    camera = viewer.camera_of(look(height=240, width=400), 240, 400)
    expected = Ball().view(camera, 240, 400)
    np.testing.assert_allclose(image, 255 * expected.colour, atol=0.51)
    np.testing.assert_allclose(depth, viewer.along_axis(expected, camera), rtol=1e-5)
    assert turns(made) == 0


@pytest.mark.parametrize("what", ["move", "zoom", "kind", "canvas"])
def test_a_change_is_drawn_anew_for_those_who_see_it(what, made):
    one, other = made.server.connect(), made.server.connect()
    turns(made)
    before = len(one.images), len(other.images)
    if what == "move":
        one.camera.position = np.array([0.5, 0, -3])
    elif what == "zoom":
        one.camera.fov = 0.5
    elif what == "canvas":
        one.camera.image_width = 220
    else:
        made.server.controls["show"].value = "opacity"
    assert turns(made) > 0 and len(one.images) > before[0]
    assert (len(other.images) > before[1]) == (what == "kind")
    assert not np.array_equal(one.images[-1][0], one.images[before[0] - 1][0])


def test_a_fine_picture_is_given_up_when_the_camera_moves(made):
    client = made.server.connect(height=240, width=400)
    made.viewer.turn()
    coarse, ball = client.images[0][0].shape, made.newest.field.renderer

    def moving(camera, height, width):
        client.camera.position = client.camera.position + 0.1
        return Ball.view(ball, camera, height, width)

    ball.view = moving
    made.viewer._speed = 0.0
    made.viewer.turn()  # the fine one
    assert len(client.images) == 1
    del ball.view
    made.viewer.turn()
    assert len(client.images) == 2 and client.images[1][0].shape == coarse


def test_first_pictures_are_drawn_even_while_the_camera_moves(made):
    client = made.server.connect()
    for i in range(5):
        client.camera.position = np.array([0, 0, -3 - 0.1 * i])
        assert made.viewer.turn() and len(client.images) == i + 1


def test_a_newer_checkpoint_is_picked_up_and_shown_to_all(made, clock):
    clients = [made.server.connect(), made.server.connect()]
    turns(made)
    before = [len(client.images) for client in clients]
    made.newest.field = Field(Ball(radius=0.3), 2500)
    assert turns(made) == 0  # not asked for yet
    clock.seconds += viewer.POLL
    assert turns(made) > 0 and made.said == ["step 100", "step 2,500"]
    assert made.server.controls["line"].content == "step 2,500"
    expected = Ball(radius=0.3).view(viewer.camera_of(look(), HEIGHT, WIDTH), HEIGHT, WIDTH)
    for client, count in zip(clients, before, strict=True):
        assert len(client.images) > count
        np.testing.assert_allclose(client.images[-1][0], 255 * expected.colour, atol=0.51)


def test_a_run_without_a_checkpoint_is_waited_for(made, clock):
    made.newest.field = None
    client = made.server.connect()
    assert turns(made) == 0 and not client.images
    clock.seconds += viewer.POLL
    assert turns(made) == 0
    [line] = made.said  # once
    assert "no checkpoint yet" in line and made.server.controls["line"].content == line
    made.newest.field = Field(Ball(), 7)
    clock.seconds += viewer.POLL
    assert turns(made) > 0 and made.said[1] == "step 7"


def test_a_browser_that_left_is_forgotten(made):
    made.server.connect()
    turns(made)
    made.server.clients.clear()
    assert turns(made) == 0
    made.server.connect()  # a new one under its number
    assert turns(made) > 0


def test_the_stage_has_the_cameras_the_box_and_a_start_at_the_first_view(made, scene):
    server = made.server
    frusta = {name: node for name, node in server.nodes.items() if name.startswith("/cameras/")}
    assert [*frusta] == [
        *(f"/cameras/train/{i}" for i in range(3)),
        *(f"/cameras/test/{i}" for i in (3, 4)),
    ]
    for i, node in enumerate(frusta.values()):
        pose = scene.cameras.pose[i]
        np.testing.assert_allclose(node.position, pose[:, 3])
        np.testing.assert_allclose(turned(node.wxyz, [0, 0, 1]), -pose[:, 2], atol=1e-5)
        np.testing.assert_allclose(turned(node.wxyz, [0, 1, 0]), -pose[:, 1], atol=1e-5)
        assert (node.fov, node.aspect) == viewer.lens(scene, i)
    assert frusta["/cameras/train/0"].color != frusta["/cameras/test/3"].color
    start = server.initial_camera
    np.testing.assert_allclose(start.position, scene.cameras.pose[0, :, 3])
    np.testing.assert_allclose(start.look_at, 0, atol=1e-5)
    assert start.fov == viewer.lens(scene, 0)[0] and server.up == "+z"


def test_a_box_has_twelve_edges_along_its_axes():
    low, high = np.array([-1, -2, -3]), np.array([1, 2, 3])
    edges = viewer.box_edges(low, high)
    lengths = np.abs(edges[:, 1] - edges[:, 0])
    assert edges.shape == (12, 2, 3) and (np.abs(edges) == high).all()
    assert len({tuple(edge.ravel()) for edge in edges}) == 12
    assert sorted(lengths.sum(1)) == [2] * 4 + [4] * 4 + [6] * 4
    assert ((lengths > 0).sum(1) == 1).all()


def test_a_scene_without_bounds_has_no_box(scene, clock):
    space = Space(unbounded=True)
    unbounded = Scene(space, HEIGHT, WIDTH, scene.cameras, scene.names, scene.splits)
    server = Server()
    viewer.Viewer(server, unbounded, lambda: None, lambda line: None)
    assert "/box/edges" not in server.nodes


def test_boxes_that_are_ticked_show_and_a_click_looks_through_a_camera(made, scene):
    cameras, box = made.server.nodes["/cameras"], made.server.controls["cameras"]
    box.value = False
    box.told(None)
    assert cameras.visible is False and made.server.nodes["/box"].visible is True
    client = made.server.connect()
    made.server.nodes["/cameras/test/4"].told(SimpleNamespace(client=client))
    at = look(wxyz=tuple(client.camera.wxyz), position=tuple(client.camera.position))
    pose = viewer.camera_of(at, HEIGHT, WIDTH).pose
    np.testing.assert_allclose(pose, scene.cameras.pose[4], atol=1e-5)


# ---- a run that goes on ----

GRIDDED = Space(sampler=Occupancy(resolution=4, steps=8, slots=4))


def fog(variables, points, *directions, method=None):
    """A field that is the same everywhere."""
    sigma = jnp.full(len(points), variables["params"]["sigma"])
    return sigma if method == "density" else (sigma, jnp.full((len(points), 3), 0.25))


def written(step: int, sigma: float) -> State:
    params = {"sigma": jnp.float32(sigma)}
    first = State.create(jax.random.key(0), params, {"none": jnp.zeros(1)})
    grid = samplers.create_grid(GRIDDED)
    return first.replace(step=jnp.int32(step), extra={**first.extra, "grid": grid})


@pytest.fixture
def run(tmp_path, scene):
    """(a run of fog, its reader, its writer)."""
    of = Scene(GRIDDED, HEIGHT, WIDTH, scene.cameras, scene.names, scene.splits)
    task = SimpleNamespace(
        companion=of, model=SimpleNamespace(apply=fog), saved=lambda variables: (variables, of)
    )
    abstract = jax.eval_shape(lambda: written(0, 0))
    said = []
    reader = Checkpoints(tmp_path / "checkpoints", warn=said.append, writable=False)
    with Checkpoints(tmp_path / "checkpoints", keep=1, warn=said.append) as writer:
        yield SimpleNamespace(task=task, abstract=abstract), reader, writer


def thickness(field: Field) -> float:
    """σ times the length of the fog that the middle of a picture looks through."""
    [[opacity]] = field.renderer.view(viewer.camera_of(look(), 1, 1), 1, 1).opacity
    return -math.log(1 - opacity)


def save(writer: Checkpoints, step: int, sigma: float) -> None:
    writer.save(step, written(step, sigma))
    writer.wait()


def test_the_newest_checkpoint_is_loaded_once_it_is_there_and_compiled_once(run):
    facts, reader, writer = run
    newest = view.Newest(facts, reader)
    assert newest() is None
    save(writer, 3, 0.2)
    first = newest()
    assert first.step == 3 and newest() is first  # nothing is read again
    thin = thickness(first)
    assert 0.1 < thin < 0.4  # of 2 world units
    save(writer, 5, 0.8)
    second = newest()
    assert second.step == 5 and second != first
    assert thickness(second) == pytest.approx(4 * thin, rel=1e-4)
    assert second.renderer._shown._cache_size() == 1


def test_a_checkpoint_that_goes_while_it_is_read_changes_nothing(run, tmp_path):
    facts, reader, writer = run
    newest = view.Newest(facts, reader)
    save(writer, 3, 0.2)
    first = newest()
    save(writer, 5, 2.0)
    (tmp_path / "checkpoints" / "5" / "manifest.json").unlink()
    assert newest() is first and newest() is first
    save(writer, 8, 1.0)
    assert newest().step == 8


def test_a_run_whose_only_checkpoint_is_damaged_is_refused(run, tmp_path):
    facts, reader, writer = run
    save(writer, 3, 0.2)
    (tmp_path / "checkpoints" / "3" / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        view.Newest(facts, reader)()


# ---- the command line ----


@pytest.fixture
def place(scene, tmp_path, monkeypatch):
    """A folder with a trained scene, run; one that trains, begun; and a server that is no viser."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    scene.save(tmp_path / "run" / "model")
    monkeypatch.setattr(zoo, "load", lambda path: (path, "variables"))
    monkeypatch.setattr("zoo.nerf.view.renderer", lambda model, variables, space: Ball())
    monkeypatch.chdir(tmp_path)
    server = Server()
    server.client = server.connect()

    def start(host, port, label, verbose):
        server.at = host, port
        return server

    def asleep(seconds):
        raise KeyboardInterrupt  # as soon as nothing is left to be drawn

    server.stop = lambda: setattr(server, "stopped", True)
    monkeypatch.setitem(sys.modules, "viser", SimpleNamespace(ViserServer=start))
    monkeypatch.setattr(viewer.time, "sleep", asleep)
    return server


@pytest.fixture
def port():
    """One that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_view_serves_a_trained_scene_until_it_is_interrupted(place, port, capsys):
    assert main(["view", "run", "--port", str(port)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"open http://127.0.0.1:{port} ")
    assert place.at == ("127.0.0.1", port) and place.stopped
    assert place.client.images[-1][0].shape == (HEIGHT, WIDTH, 3)


def test_a_port_that_is_taken_is_named(place, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["view", "run", "--port", port]) == 2
    said = capsys.readouterr().err
    assert f"port {port}" in said and "--port" in said and not hasattr(place, "at")
    assert main(["view", "run", "--port", "70000"]) == 2
    assert "65535" in capsys.readouterr().err


def test_what_cannot_be_viewed_is_refused_in_a_line(place, port, capsys):
    for folder, part in {"none": "scene.json", "begun": "train.view"}.items():
        assert main(["view", folder, "--port", str(port)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and part in said


def test_without_viser_it_says_how_to_get_it(place, port, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "viser", None)  # as if it were not installed
    assert main(["view", "run", "--port", str(port)]) == 2
    assert "pip install 'flax-zoo[viewer]'" in capsys.readouterr().err


def watched(capsys, *arguments: str) -> str:
    """What `python -m train.view` refuses."""
    with pytest.raises(SystemExit) as ended:
        view.main([*arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_only_runs_of_scenes_are_watched(place, port, tmp_path, monkeypatch, capsys):
    assert "begun has no config.json" in watched(capsys, "begun")
    values = view.serialise.to_dict(view.serialise.load("resnet_digits"))
    (tmp_path / "begun" / "config.json").write_text(json.dumps(values))
    task = SimpleNamespace(companion=None)
    monkeypatch.setattr(loop, "prepare", lambda cfg: SimpleNamespace(task=task))
    assert "which has no scene" in watched(capsys, "begun", "--port", str(port))


def test_a_run_is_served_from_its_checkpoints(place, port, run, tmp_path, monkeypatch, capsys):
    facts, reader, writer = run
    save(writer, 3, 5.0)
    values = view.serialise.to_dict(view.serialise.load("ngp_scene"))
    (tmp_path / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(loop, "prepare", lambda cfg: facts)
    monkeypatch.setattr(loop, "checkpoints", lambda run, directory, writable: reader)
    monkeypatch.setattr("zoo.nerf.view.Renderer", lambda *facts: Ball())
    assert view.main([str(tmp_path), "--port", str(port)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("open http") and said[1] == "step 3" and place.stopped
    assert place.client.images[-1][0].shape == (HEIGHT, WIDTH, 3)
