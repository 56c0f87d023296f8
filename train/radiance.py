"""What a radiance field learns from, and how good its views are: what task `NeRF` computes.

n rays of a batch · v views of a split, h × w pixels each · c channels, 3 or 4 with alpha.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from skimage.metrics import structural_similarity

from train import parallel, pictures
from train.data.views import Dataset
from train.metrics import psnr
from train.state import Batch, Evaluate, State, Task
from train.step import Loss, Update
from zoo.nerf import occupancy, proposal, samplers, sampling, volume
from zoo.nerf.cameras import Camera, Rays, moved, rays, select
from zoo.nerf.occupancy import Grid
from zoo.nerf.samplers import Asked
from zoo.nerf.scene import Hierarchical, Occupancy, Proposals, Sampler, Scene, Space
from zoo.nerf.view import backdrop

DELTA = 0.1  # of the Huber loss: where it turns from squared to absolute
ERRORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "huber": lambda x, y: optax.losses.huber_loss(x, y, delta=DELTA).mean(axis=-1) / DELTA,
    "squared": lambda x, y: ((x - y) ** 2).mean(axis=-1),
}
GRID = 2**31 - 1  # no step: what the grid's randomness is folded from
CAMERAS, BACKGROUND = "cameras", "background"  # parameters besides the model's
MOVES = ("turn", "shift")
SEEN = 0.5  # the opacity from which a pixel has a depth
Ask = Callable[[Any], Asked]  # of the variables


class Seen(NamedTuple):
    """What n rays of a batch are, on the device."""

    rays: Rays
    colour: jax.Array  # [n, 3], over the background
    background: jax.Array  # [n, 3]


def seen(
    data: Dataset,
    batch: Batch,
    kind: str,
    key: jax.Array | None = None,
    learned: Mapping[str, Any] = MappingProxyType({}),
) -> Seen:
    """kind: a key of `volume.BACKGROUNDS`, behind what is transparent; "random" takes a key.
    learned: parameters, those of `besides` among them."""
    view, pixels = data.pixels(batch["ray"])
    camera = select(Camera(*map(jnp.asarray, data.scene.cameras)), view)
    if CAMERAS in learned:
        camera = moved(camera, *(learned[CAMERAS][part][view] for part in MOVES))
    colour = batch["colour"].astype(jnp.float32) / 255
    n, channels = colour.shape
    background = volume.draw_background(kind, n, key=key, logits=learned.get(BACKGROUND))
    found = volume.over(colour, background) if channels == 4 else colour
    return Seen(rays(camera, pixels), found, background)


# ---- what is learnt besides the field ----


def besides(task: Any, data: Dataset) -> dict[str, Any]:
    """The parameters besides the model's, as they begin: how far each camera is from where it was
    said to be, in units of `task.refine`, so that one learning rate serves all; and the logits of
    the colour behind all. task: a `train.tasks.nerf.NeRF`."""
    still = np.zeros((len(data.scene.names), 3), np.float32)
    found: dict[str, Any] = {CAMERAS: {part: still for part in MOVES}} if task.refine else {}
    return found | ({BACKGROUND: np.zeros(3, np.float32)} if task.background == "learned" else {})


def in_units(task: Any, params: Any) -> Any:
    """The parameters with `CAMERAS` in radians and world units."""
    if CAMERAS not in params:
        return params
    return {**params, CAMERAS: jax.tree.map(lambda x: task.refine * x, params[CAMERAS])}


def exported(task: Any, scene: Scene, variables: Any) -> tuple[Any, Scene]:
    """Of a run's variables, NumPy: the model's, and the scene with what was learnt of it."""
    params = dict(in_units(task, variables["params"]))
    if moves := params.pop(CAMERAS, None):
        cameras = moved(Camera(*map(jnp.asarray, scene.cameras)), *(moves[p] for p in MOVES))
        scene = replace(scene, cameras=jax.tree.map(np.asarray, cameras))
    if (logits := params.pop(BACKGROUND, None)) is not None:
        red, green, blue = volume.draw_background("learned", 1, logits=logits)[0].tolist()
        scene = replace(scene, space=replace(scene.space, background=(red, green, blue)))
    return {**variables, "params": params}, scene


# ---- learning ----


class Learned(NamedTuple):
    """What a batch says: the error of each ray [n]; whether it counts, [n]; what is added to the
    mean of those; metrics."""

    error: jax.Array
    counts: jax.Array
    more: jax.Array
    metrics: dict[str, jax.Array]


def from_occupied(
    cfg: Any, asked: Asked, space: Space, seen: Seen, key: jax.Array, batch: Batch
) -> Learned:
    """`cfg.room` samples, of as many rays as they are enough for: the more, the emptier the scene
    is known to be. The other rays do not count."""
    march, thin = jax.random.split(key)
    samples = samplers.marched(space, seen.rays, batch["grid"], march)
    room, longest = cfg.room // cfg.groups, samples.t.shape[1]

    def learn(rays: Rays, samples: Any, background: jax.Array) -> Any:
        asked_for = max(cfg.prune, 1) * room
        packed, whole = volume.pack(volume.thin(samples, asked_for, thin), asked_for)
        if cfg.prune:
            packed, fits = volume.prune(asked.density, rays, packed, room, longest=longest)
            whole &= fits
        rendered = volume.render_packed(asked.field, rays, packed, background, longest=longest)
        used = whole.at[packed.ray].get(mode="fill", fill_value=False)
        return rendered.colour, whole, used

    rows = (seen.rays, samples, seen.background)
    if cfg.groups == 1:
        colour, whole, used = learn(*rows)
    else:
        colour, whole, used = together(jax.vmap(learn)(*apart(rows, cfg.groups)))
    error = ERRORS[cfg.loss](colour, seen.colour)
    metrics = {
        "psnr": psnr_of(colour, seen.colour, whole),
        "rays": whole.astype(jnp.float32).mean(),
        "samples": used.sum() / jnp.maximum(whole.sum(), 1),
    }
    return Learned(error, whole, jnp.zeros(()), metrics)


def apart(rows: Any, groups: int) -> Any:
    """[n, …] → [groups, n / groups, …]: with a group to a device, none needs another's rays."""
    return jax.tree.map(lambda x: rearrange(x, "(g n) ... -> g n ...", g=groups), rows)


def together(rows: Any) -> Any:
    return jax.tree.map(lambda x: rearrange(x, "g n ... -> (g n) ..."), rows)


def from_both(
    cfg: Any, asked: Asked, space: Space, seen: Seen, key: jax.Array, batch: Batch
) -> Learned:
    """NeRF, equation 6: the coarse picture and the fine one."""
    coarse, fine = samplers.twice(asked, space, seen.rays, seen.background, key)
    error = ERRORS[cfg.loss]
    both = error(coarse.colour, seen.colour) + error(fine.colour, seen.colour)
    every = jnp.ones(len(seen.colour), bool)
    metrics = {"psnr": psnr_of(fine.colour, seen.colour, every)}
    return Learned(both, every, jnp.zeros(()), metrics)


def from_proposed(
    cfg: Any, asked: Asked, space: Space, seen: Seen, key: jax.Array, batch: Batch
) -> Learned:
    """Mip-NeRF 360, section 3 and 4: with the proposals' loss (equation 13) and that of distortion
    (equation 15)."""
    anneal = proposal.annealed(jnp.minimum(batch["step"] / cfg.anneal, 1))
    rendered, samples = samplers.proposed(asked, space, seen.rays, seen.background, key, anneal)
    assert samples.unit is not None
    spans = sampling.middles(samples.unit)
    bent = volume.distortion(spans.t, spans.delta, rendered.weights).mean()
    behind = proposal.interlevel(samples, rendered.weights).mean()
    every = jnp.ones(len(seen.colour), bool)
    metrics = {
        "psnr": psnr_of(rendered.colour, seen.colour, every),
        "distortion": bent,
        "interlevel": behind,
    }
    error = ERRORS[cfg.loss](rendered.colour, seen.colour)
    return Learned(error, every, cfg.distortion * bent + behind, metrics)


LEARN: dict[type[Sampler], Callable[..., Learned]] = {
    Occupancy: from_occupied,
    Hierarchical: from_both,
    Proposals: from_proposed,
}


def objective(task: Any, data: Dataset, ask: Ask, space: Space) -> Loss:
    """The loss of a batch, as `train.step.supervised` takes it; task: a `train.tasks.nerf.NeRF`."""
    kind = data.scene.background if task.background == "scene" else task.background

    def loss(params: Any, vars: Any, batch: Batch, rng: jax.Array) -> Any:
        draw, behind, along = jax.random.split(rng, 3)
        batch = data.drawn(batch, draw)
        rows = seen(data, batch, kind, behind, in_units(task, params))
        asked = ask({"params": params, **vars})
        found = LEARN[type(space.sampler)](task, asked, space, rows, along, batch)
        total = (found.error * found.counts).sum() / found.counts.sum().clip(1)
        return total + found.more, (vars, found.metrics)

    return loss


def psnr_of(found: jax.Array, truth: jax.Array, counts: jax.Array) -> jax.Array:
    """dB, over the rays that count."""
    squares = jnp.where(counts, ((found - truth) ** 2).mean(axis=-1), 0)
    mean = squares.sum() / jnp.maximum(counts.sum(), 1)
    return -10 * jnp.log10(jnp.maximum(mean, 1e-12))


def renewing_grid(update: Update, cfg: Any, ask: Ask, space: Space) -> Update:
    """The update with the occupancy grid of `state.extra`, which it renews every `cfg.every` steps
    before the batch, from all cells in the first `cfg.whole` steps (Instant-NGP, appendix E.2)."""

    def renewed(state: State, every: bool) -> Grid:
        # One key for all devices, which must have one grid, and none that a batch draws from.
        key = jax.random.fold_in(jax.random.fold_in(state.rng, GRID), state.step)
        density = ask({"params": state.params, **state.vars}).density
        how = {"threshold": samplers.threshold(space), "every": every, "decay": cfg.decay}
        return occupancy.update(state.extra["grid"], density, key, **how)

    ways = (
        lambda state: state.extra["grid"],
        lambda state: renewed(state, True),
        lambda state: renewed(state, False),
    )

    def step(state: State, batch: Batch) -> tuple[State, Any]:
        due = state.step % cfg.every == 0
        grid = jax.lax.switch(jnp.where(due, 1 + (state.step >= cfg.whole), 0), ways, state)
        state = state.replace(extra={**state.extra, "grid": grid})
        return update(state, {**batch, "grid": grid})

    return step


def stepping(task: Task, cfg: Any, ask: Ask, space: Space) -> Task:
    """The task whose batches know the step, and, with an occupancy grid, whose state has it."""

    def update(state: State, batch: Batch) -> tuple[State, Any]:
        return task.update(state, {**batch, "step": state.step})

    def init(rng: jax.Array, batch: Batch) -> State:
        state = task.init(rng, batch)
        return state.replace(extra={**state.extra, "grid": samplers.create_grid(space)})

    if not isinstance(space.sampler, Occupancy):
        return task._replace(update=update)
    return task._replace(init=init, update=renewing_grid(update, cfg, ask, space))


# ---- judging ----


class Shown(NamedTuple):
    """One view, NumPy: colour and truth [h, w, 3], depth and opacity [h, w]; solid [h, w]: where
    something is; distance [h, w]: its true depth, or None."""

    colour: np.ndarray
    truth: np.ndarray
    depth: np.ndarray
    opacity: np.ndarray
    solid: np.ndarray
    distance: np.ndarray | None


class Judged(NamedTuple):
    """psnr, ssim: of a view. squares: of the errors of its `solid` pixels, [3 · solid]; off: how
    far depths are from the truth, [pixels where both see something]."""

    psnr: float
    ssim: float
    squares: np.ndarray
    off: np.ndarray


def evaluators(task: Any, data: Dataset, ask: Ask, space: Space) -> dict[str, Evaluate]:
    """split → its `evaluate`. task: a `train.tasks.nerf.NeRF`; `task.drawn` views make a sheet.

    Finds `psnr`, the mean over views, `psnr_min`, the lowest of a view, `psnr_foreground`, over the
    pixels that show something, `ssim` (Wang et al., 2004, with their Gaussian window), and, where
    the truth is known, `depth_error`: the mean distance to it where both see something, world
    units; where nothing is seen yet, of all that is to be seen.
    """

    kind = "learned" if task.background == "learned" else data.scene.background

    @jax.jit
    def shown(variables: Any, grid: Grid | None, batch: Batch) -> Any:
        rows = seen(data, batch, kind, learned=in_units(task, variables["params"]))
        found = samplers.shown(ask(variables), space, rows.rays, grid, rows.background)
        return jnp.clip(found.colour, 0, 1), rows.colour, found.depth, found.opacity

    def evaluate(split: str, state: State, batches: Iterable[Batch]) -> Any:
        look = partial(shown, state.variables(), state.extra.get("grid"))
        views = data.scene.splits[split]
        chosen = set(
            np.linspace(0, len(views) - 1, min(task.drawn, len(views))).astype(int).tolist()
        )
        found, rows = [], []
        whole = (parallel.whole((*look(batch), batch["mask"])) for batch in batches)
        for i, view in enumerate(by_view(data, views, whole)):
            found.append(judged(view))
            if i in chosen:
                rows.append(row_of(view))
        return summary(found), {"views": pictures.tiles(rows)} if rows else {}

    return {split: partial(evaluate, split) for split in ("validation", "test")}


def by_view(data: Dataset, views: np.ndarray, rows: Iterable[Any]) -> Iterator[Shown]:
    """Whole views out of batches of rays; no more of them than needed are kept."""
    (h, w), scene = data.sides, data.scene
    left: list[np.ndarray] = []
    numbers = iter(views)
    for *found, mask in rows:
        found = [x[mask > 0] for x in found]
        left = [np.concatenate(pair) for pair in zip(left, found, strict=True)] if left else found
        while left and len(left[0]) >= h * w:
            own = [x[: h * w].reshape(h, w, *x.shape[1:]) for x in left]
            left, view = [x[h * w :] for x in left], next(numbers)
            distance = None if scene.depth is None else scene.depth[view]
            colour, truth, depth, opacity = own
            solid = solid_of(scene.images[view], distance)
            yield Shown(colour, truth, depth, opacity, solid, distance)


def solid_of(image: np.ndarray, distance: np.ndarray | None) -> np.ndarray:
    """Where a picture [h, w, c] shows something, bool [h, w], as far as that is known."""
    if image.shape[-1] == 4:
        return image[..., 3] > 0
    return np.ones(image.shape[:2], bool) if distance is None else np.isfinite(distance)


def judged(view: Shown) -> Judged:
    alike: Any = structural_similarity(
        view.truth,
        view.colour,
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    squares = ((view.colour - view.truth)[view.solid].astype(np.float64) ** 2).reshape(-1)
    off = np.zeros(0)
    if view.distance is not None:
        there = np.isfinite(view.distance)
        both = there & (view.opacity > SEEN)
        both = both if both.any() else there
        off = np.abs(view.depth[both].astype(np.float64) - view.distance[both])
    return Judged(psnr(view.colour, view.truth), float(alike), squares, off)


def summary(views: Sequence[Judged]) -> dict[str, float]:
    squares, off = (np.concatenate(x) for x in ([v.squares for v in views], [v.off for v in views]))
    metrics = {
        "psnr": float(np.mean([view.psnr for view in views])),
        "psnr_min": float(np.min([view.psnr for view in views])),
        "ssim": float(np.mean([view.ssim for view in views])),
    }
    if len(squares):
        metrics["psnr_foreground"] = psnr(np.sqrt(squares), np.zeros(()))
    return metrics | ({"depth_error": float(off.mean())} if len(off) else {})


def row_of(view: Shown) -> list[np.ndarray]:
    """Truth, what is rendered, its error four times as bright, and its depth."""
    error = np.clip(4 * np.abs(view.colour - view.truth), 0, 1)
    return [view.truth, view.colour, error, pictures.depth(view.depth, view.opacity > SEEN)]


def known(data: Dataset) -> Callable[[str], Mapping[str, float]]:
    """split → what a picture of the background alone reaches, and the nearest training view."""

    @cache
    def of(split: str) -> Mapping[str, float]:
        views, cameras = data.scene.splits[split], data.scene.cameras
        background = np.asarray(backdrop(data.scene.background))
        places = cameras.pose[:, :, 3]
        training = data.scene.splits["train"]
        blank, nearest = [], []
        for view in views:
            truth = composed(data.scene.images[view], background)
            away = np.linalg.norm(places[training] - places[view], axis=1)
            other = composed(data.scene.images[training[np.argmin(away)]], background)
            blank.append(psnr(np.broadcast_to(background, truth.shape), truth))
            nearest.append(psnr(other, truth))
        return {"psnr_blank": float(np.mean(blank)), "psnr_nearest": float(np.mean(nearest))}

    return of


def composed(image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """uint8 [h, w, c] over a background [3]: float32 [h, w, 3]."""
    colour = image.astype(np.float32) / 255
    alpha = colour[..., 3:] if image.shape[-1] == 4 else np.float32(1)
    return alpha * colour[..., :3] + (1 - alpha) * background
