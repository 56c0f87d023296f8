"""A scene in the browser, by viser: it is drawn from where the browser's camera is.

    browsers → Look: camera, canvas, kind → a coarse picture at once → finer ones while it rests

The field may go on learning: whoever serves says what is newest. viser has cameras with OpenCV's
axes and quaternions (w, x, y, z); the scene's z is up.
"""

import itertools
import math
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from zoo.nerf.cameras import Camera, opengl, select
from zoo.nerf.out import ENDS, SEEN, library, shade
from zoo.nerf.paths import looked_at, matrices, quaternions
from zoo.nerf.scene import Scene
from zoo.nerf.view import AT_ONCE, Renderer, View

Array = np.ndarray
HOST, PORT = "127.0.0.1", 8080  # other machines see nothing unless they are meant to
LEAST, MOST = AT_ONCE, 2**20  # pixels of a picture; fewer would take as long
MOMENT = 0.1  # s that the first picture from a new place may take
POLL = 2.0  # s between questions for a newer field
REST = 0.02  # s between looks at the cameras while all is drawn
FARTHEST = 160.0  # world units: viser's depths end at 167
GREY = (80, 80, 80)
COLOURS = {"validation": (40, 110, 220), "test": (230, 120, 20)}  # of cameras; others are grey


class Field(NamedTuple):
    """What is looked at; step: of its training, None where that is over."""

    renderer: Renderer
    step: int | None = None


Newest = Callable[[], Field | None]
Say = Callable[[str], None]


def serve(
    newest: Newest,
    scene: Scene,
    *,
    host: str = HOST,
    port: int = PORT,
    say: Say = lambda line: None,
) -> None:
    """Serves until Ctrl-C. newest: the field to be seen now, None where there is none yet; it is
    asked every `POLL` seconds. say: is told what a terminal should show, line by line.

    Raises ValueError without viser, and where the port cannot be had.
    """
    viser = library("viser", "viewer")
    check_free(host, port)
    server = viser.ViserServer(host=host, port=port, label="flax-zoo", verbose=False)
    try:
        viewer = Viewer(server, scene, newest, say)
        say(f"open http://{host}:{port} in a browser; Ctrl-C ends it")
        while True:
            if not viewer.turn():
                time.sleep(REST)
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.stop()


def check_free(host: str, port: int) -> None:
    """Raises ValueError where nothing can listen there; viser would take another port."""
    with socket.socket() as probe:
        # As servers do: what has just ended leaves the port free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "ports end at 65535"
            raise ValueError(
                f"port {port} of {host} cannot be had: {why}; choose another with --port"
            ) from error


# ---- what is asked for ----


class Look(NamedTuple):
    """What a browser asks to see. wxyz, position: its camera, as viser has it; fov: radians, from
    top to bottom; height, width: of its canvas, pixels; kind: of `PICTURES`; step: of the field."""

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    height: int
    width: int
    kind: str
    step: int | None


class Drawn(NamedTuple):
    """The last picture that a browser was sent; level: the number of its size in `sizes`."""

    look: Look
    level: int


class Job(NamedTuple):
    """A picture that is due. fresh: it is the first one of what is asked for now."""

    fresh: bool
    level: int
    client: int
    look: Look


def camera_of(look: Look, height: int, width: int) -> Camera:
    """The camera of a picture of height × width pixels that fills the canvas, as NumPy arrays. Its
    pixels are square where that has the canvas's shape exactly."""
    w, x, y, z = look.wxyz
    rotation = matrices(np.array([[x, y, z, w]], np.float64))[0]
    pose = opengl(np.column_stack([rotation, np.asarray(look.position, np.float64)]))
    half = math.tan(look.fov / 2)  # of the canvas's height, at distance 1
    focal = [width / (2 * half * look.width / look.height), height / (2 * half)]
    parts = pose, focal, [width / 2, height / 2], np.zeros(5)
    return Camera(*(np.asarray(part, np.float32) for part in parts))


def wxyz_of(poses: Any) -> Array:
    """Quaternions [n, 4], as viser has them, of our poses [n, 3, 4]."""
    q = quaternions(opengl(np.asarray(poses, np.float64))[:, :, :3])
    return np.roll(q, 1, axis=1)


def sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) of a canvas's pictures, from coarse to fine: the sides double up to the
    canvas's own, or to the `MOST` pixels that are drawn. Few, for each is prepared for anew."""
    scale = min(1, math.sqrt(MOST / (height * width)))
    found = [(max(int(height * scale), 1), max(int(width * scale), 1))]
    while math.prod(found[-1]) > LEAST:
        found.append((max(found[-1][0] // 2, 1), max(found[-1][1] // 2, 1)))
    return found[::-1]


def next_level(look: Look, drawn: Drawn | None, speed: float) -> int | None:
    """Of the picture that is due: something new as fine as it can be in a `MOMENT`, at `speed`
    pixels a second; then the next finer one; None when the finest was sent."""
    ladder = sizes(look.height, look.width)
    if drawn is not None and drawn.look == look:
        return drawn.level + 1 if drawn.level + 1 < len(ladder) else None
    affordable = [i for i, size in enumerate(ladder) if math.prod(size) <= speed * MOMENT]
    return max(affordable, default=0)


# ---- pictures ----


def in_bands(
    renderer: Renderer,
    camera: Camera,
    height: int,
    width: int,
    given_up: Callable[[], bool] = lambda: False,
) -> View | None:
    """What `renderer.view` shows, some rows at a time; None once it is given up in between."""
    rows = max(AT_ONCE // width, 1)
    bands = []
    for top in range(0, height, rows):
        if given_up():
            return None
        lower = camera._replace(centre=camera.centre - np.array([0, top], np.float32))
        bands.append(renderer.view(lower, min(rows, height - top), width))
    return View(*(np.concatenate(parts) for parts in zip(*bands, strict=True)))


def colours(view: View, unbounded: bool) -> Array:
    return view.colour


def depths(view: View, unbounded: bool) -> Array:
    """Near is bright, nothing is black; even in 1 / depth where the scene has no bounds."""
    seen = view.opacity > SEEN
    if not seen.any():
        return np.zeros_like(view.colour)
    depth = np.where(seen, view.depth, 1)
    near = 1 / depth if unbounded else -depth
    low, high = np.quantile(near[seen], [ENDS, 1 - ENDS])
    share = np.clip((near - low) / max(high - low, 1e-6), 0, 1)
    return np.where(seen[:, :, None], shade(0.15 + 0.8 * share) / 255, 0)


def opacities(view: View, unbounded: bool) -> Array:
    return np.repeat(view.opacity[:, :, None], 3, axis=2)


PICTURES: Mapping[str, Callable[[View, bool], Array]] = {
    "colour": colours,
    "depth": depths,
    "opacity": opacities,
}


def picture(view: View, kind: str, unbounded: bool) -> Array:
    """uint8 [h, w, 3]."""
    return np.round(255 * np.clip(PICTURES[kind](view, unbounded), 0, 1)).astype(np.uint8)


def along_axis(view: View, camera: Camera) -> Array:
    """Depths [h, w] along the camera's axis, by which viser hides what lies behind; `FARTHEST`
    where nothing is."""
    height, width = view.depth.shape
    x = (np.arange(width) + 0.5 - camera.centre[0]) / camera.focal[0]
    y = (np.arange(height) + 0.5 - camera.centre[1]) / camera.focal[1]
    depth = view.depth / np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2)
    return np.where(view.opacity > SEEN, np.minimum(depth, FARTHEST), FARTHEST)


# ---- a server ----


class Viewer:
    """A scene on a server of viser. Each `turn` draws at most one picture, for one browser."""

    def __init__(self, server: Any, scene: Scene, newest: Newest, say: Say):
        self._server, self._scene, self._newest, self._say = server, scene, newest, say
        self._field: Field | None = None
        self._speed = 0.0  # pixels a second, of the last picture, sending included
        self._asked = -math.inf  # when the newest field was asked for
        self._drawn: dict[int, Drawn] = {}  # by the number of the browser
        self._kind, self._state = controls(server)
        stage(server, scene)

    def turn(self) -> bool:
        """Draws the picture that is the most urgent; False where none is due."""
        self._poll()
        jobs = self._jobs()
        if not jobs:
            return False
        self._draw(jobs[0])
        return True

    def _poll(self) -> None:
        """Takes over what is newest, if it is time to ask."""
        if time.monotonic() < self._asked + POLL:
            return
        field = self._newest()
        first = self._asked == -math.inf
        self._asked = time.monotonic()
        if field != self._field or first:
            self._field = field
            self._state.content = line = state(field)
            self._say(line)

    def _jobs(self) -> list[Job]:
        """All pictures that are due: fresh ones first, then coarse ones."""
        clients = self._server.get_clients()
        self._drawn = {n: drawn for n, drawn in self._drawn.items() if n in clients}
        if self._field is None:
            return []
        jobs = []
        for n, client in clients.items():
            look, drawn = self._look(client), self._drawn.get(n)
            level = next_level(look, drawn, self._speed)
            if level is not None:
                jobs.append(Job(drawn is None or drawn.look != look, level, n, look))
        return sorted(jobs, key=lambda job: (not job.fresh, job.level))

    def _look(self, client: Any) -> Look:
        camera, field = client.camera, self._field
        return Look(
            tuple(map(float, camera.wxyz)),
            tuple(map(float, camera.position)),
            float(camera.fov),
            max(int(camera.image_height), 1),
            max(int(camera.image_width), 1),
            self._kind.value,
            field.step if field else None,
        )

    def _hurried(self) -> bool:
        """Whether somebody waits for a first picture, or will at once."""
        self._poll()
        return any(job.fresh for job in self._jobs())

    def _draw(self, job: Job) -> None:
        """Sends a picture; a finer one is given up where another is more urgent."""
        field, client = self._field, self._server.get_clients().get(job.client)
        if field is None or client is None:
            return
        height, width = sizes(job.look.height, job.look.width)[job.level]
        camera, begun = camera_of(job.look, height, width), time.monotonic()
        urgent = {} if job.fresh else {"given_up": self._hurried}
        view = in_bands(field.renderer, camera, height, width, **urgent)
        if view is None:
            return
        shown = picture(view, job.look.kind, field.renderer.space.unbounded)
        depth = along_axis(view, camera)
        client.scene.set_background_image(shown, "jpeg", jpeg_quality=90, depth=depth)
        self._speed = height * width / max(time.monotonic() - begun, 1e-6)
        self._drawn[job.client] = Drawn(job.look, job.level)


def state(field: Field | None) -> str:
    """What is shown, in words."""
    if field is None:
        return "no checkpoint yet: waiting for the first one"
    return "the trained scene" if field.step is None else f"step {field.step:,}"


def controls(server: Any) -> tuple[Any, Any]:
    """Switches beside the picture: handles of what is chosen of `PICTURES`, and of a line."""
    line = server.gui.add_markdown("")
    kind = server.gui.add_dropdown("show", tuple(PICTURES))
    for name, label in (("/cameras", "cameras"), ("/box", "box")):
        node = server.scene.add_frame(name, show_axes=False)
        switch(server.gui.add_checkbox(label, True), node)
    return kind, line


def switch(box: Any, node: Any) -> None:
    """A box that is ticked shows a node of the scene."""

    @box.on_update
    def _(event: Any) -> None:
        node.visible = box.value


def stage(server: Any, scene: Scene) -> None:
    """The scene's cameras, its box, and where browsers begin: at the first camera."""
    poses = np.asarray(scene.cameras.pose, np.float64)
    places, forward = poses[:, :, 3], -poses[:, :, 2]
    away = np.linalg.norm(places - looked_at(poses), axis=1)
    server.scene.set_up_direction("+z")
    start = server.initial_camera
    start.position = places[0]
    start.look_at = places[0] + max(away[0], 1e-3) * forward[0]
    start.fov = lens(scene, 0)[0]
    wxyz, scale = wxyz_of(poses), 0.05 * max(float(np.median(away)), 1e-3)
    for split, views in scene.splits.items():
        for i in views:
            frustum(
                server, scene, i, f"/cameras/{split}/{i}", COLOURS.get(split, GREY), wxyz[i], scale
            )
    if not scene.space.unbounded:  # else the box says nothing
        edges = box_edges(scene.space.low, scene.space.high)
        server.scene.add_line_segments(
            "/box/edges", edges, GREY, thickness=1.0, thickness_units="screen"
        )


def frustum(
    server: Any,
    scene: Scene,
    i: int,
    name: str,
    colour: tuple[int, int, int],
    wxyz: Array,
    scale: float,
) -> None:
    """View i's camera, in the scene; a click on it looks through it."""
    fov, aspect = lens(scene, i)
    place = np.asarray(scene.cameras.pose[i], np.float64)[:, 3]
    node = server.scene.add_camera_frustum(
        name,
        fov,
        aspect,
        scale=scale,
        thickness=1.0,
        thickness_units="screen",
        color=colour,
        wxyz=wxyz,
        position=place,
    )

    @node.on_click
    def _(event: Any) -> None:
        with event.client.atomic():
            event.client.camera.position = place
            event.client.camera.wxyz = wxyz


def lens(scene: Scene, i: int) -> tuple[float, float]:
    """View i's angle from top to bottom, radians, and how much wider it is, in tangents."""
    focal = np.asarray(select(scene.cameras, i).focal, np.float64)
    width, height = np.array([scene.width, scene.height]) / focal
    return 2 * math.atan(height / 2), float(width / height)


def box_edges(low: Any, high: Any) -> Array:
    """The ends [12, 2, 3], float32, of a box's edges."""
    corners = list(itertools.product(*zip(low, high, strict=True)))
    pairs = [
        (a, b)
        for a, b in itertools.combinations(corners, 2)
        if sum(x != y for x, y in zip(a, b, strict=True)) == 1
    ]
    return np.array(pairs, np.float32)
