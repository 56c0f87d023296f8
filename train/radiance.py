"""What a radiance field learns from, and how good its views are: what task `NeRF` computes.

n rays of a batch · v views of a split, h × w pixels each · c channels, 3 or 4 with alpha.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
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
from train.state import Batch, Evaluate, State
from train.step import Update
from zoo.nerf import occupancy, proposal, samplers, volume
from zoo.nerf.cameras import Camera, Rays, rays, select
from zoo.nerf.occupancy import Grid
from zoo.nerf.samplers import Asked
from zoo.nerf.scene import Hierarchical, Occupancy, Proposals, Sampler, Space
from zoo.nerf.view import backdrop

DELTA = 0.1  # of the Huber loss: where it turns from squared to absolute
ERRORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "huber": lambda x, y: optax.losses.huber_loss(x, y, delta=DELTA).mean(axis=-1) / DELTA,
    "squared": lambda x, y: ((x - y) ** 2).mean(axis=-1),
}
SEEN = 0.5  # the opacity from which a pixel has a depth
Ask = Callable[[Any], Asked]  # of the variables


class Seen(NamedTuple):
    """What n rays of a batch are, on the device."""

    rays: Rays
    colour: jax.Array  # [n, 3], over the background
    background: jax.Array  # [n, 3]


def seen(data: Dataset, batch: Batch, kind: str, key: jax.Array | None = None) -> Seen:
    """kind: a key of `volume.BACKGROUNDS`, behind what is transparent; "random" takes a key."""
    view, pixels = data.pixels(batch["ray"])
    cameras = Camera(*map(jnp.asarray, data.scene.cameras))
    colour = batch["colour"].astype(jnp.float32) / 255
    n, channels = colour.shape
    background = volume.draw_background(kind, n, key=key)
    found = volume.over(colour, background) if channels == 4 else colour
    return Seen(rays(select(cameras, view), pixels), found, background)


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
    """`cfg.room` samples of the rays that they are enough for, which are the more the emptier the
    scene is known to be; what is behind them counts in a later batch."""
    samples = samplers.marched(space, seen.rays, batch["grid"], key)

    def pack(rays: Rays, samples: Any, background: jax.Array) -> Any:
        room = cfg.room // cfg.groups
        if cfg.prune:
            samples = volume.prune(asked.density, rays, samples, room=cfg.prune * room)
        return volume.render_packed(asked.field, rays, samples, background, room)

    rows = (seen.rays, samples, seen.background)
    if cfg.groups == 1:
        rendered, whole = pack(*rows)
    else:
        rendered, whole = together(jax.vmap(pack)(*apart(rows, cfg.groups)))
    used = jnp.where(whole, (samples.delta > 0).sum(axis=1), 0).sum()
    error = ERRORS[cfg.loss](rendered.colour, seen.colour)
    metrics = {
        "psnr": psnr_of(rendered.colour, seen.colour, whole),
        "rays": whole.astype(jnp.float32).mean(),
        "samples": used / jnp.maximum(whole.sum(), 1),
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
    found = samplers.twice(asked, space, seen.rays, seen.background, key)
    error = sum(ERRORS[cfg.loss](rendered.colour, seen.colour) for rendered in found)
    every = jnp.ones(len(seen.colour), bool)
    return Learned(
        error, every, jnp.zeros(()), {"psnr": psnr_of(found[1].colour, seen.colour, every)}
    )


def from_proposed(
    cfg: Any, asked: Asked, space: Space, seen: Seen, key: jax.Array, batch: Batch
) -> Learned:
    """Mip-NeRF 360, equation 14 with the proposals' loss of equation 13."""
    anneal = proposal.annealed(jnp.minimum(batch["step"] / cfg.anneal, 1))
    rendered, samples = samplers.proposed(asked, space, seen.rays, seen.background, key, anneal)
    assert samples.unit is not None
    unit = samplers.sampling.middles(samples.unit)
    bent = volume.distortion(unit.t, unit.delta, rendered.weights).mean()
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


def psnr_of(found: jax.Array, truth: jax.Array, counts: jax.Array) -> jax.Array:
    """dB, over the rays that count."""
    squares = jnp.where(counts, ((found - truth) ** 2).mean(axis=-1), 0)
    mean = squares.sum() / jnp.maximum(counts.sum(), 1)
    return -10 * jnp.log10(jnp.maximum(mean, 1e-12))


def with_grid(update: Update, cfg: Any, ask: Ask, space: Space) -> Update:
    """The update with the occupancy grid of `state.extra`, which it renews every `cfg.every` steps
    before the batch, from all cells in the first `cfg.whole` steps (Instant-NGP, appendix E.2)."""

    def renewed(state: State, every: bool) -> Grid:
        # One key for all devices: they must have one grid.
        key = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), 1)
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


# ---- judging ----


class Shown(NamedTuple):
    """Views of a split, NumPy: colour and truth [v, h, w, 3], depth and opacity [v, h, w]; solid
    [v, h, w]: where something is; distance [v, h, w]: its true depth, or None."""

    colour: np.ndarray
    truth: np.ndarray
    depth: np.ndarray
    opacity: np.ndarray
    solid: np.ndarray
    distance: np.ndarray | None


def evaluators(data: Dataset, ask: Ask, space: Space, drawn: int) -> dict[str, Evaluate]:
    """split → its `evaluate`. drawn: views of a sheet.

    Finds `psnr`, the mean over views, `psnr_min`, the lowest of a view, `psnr_foreground`, over the
    pixels that show something, `ssim` (Wang et al., 2004, with their Gaussian window), and, where
    the truth is known, `depth_error`: the mean distance to it where both see something, world
    units.
    """

    @jax.jit
    def shown(variables: Any, grid: Grid | None, batch: Batch) -> Any:
        rows = seen(data, batch, evident(space.background))
        found = samplers.shown(ask(variables), space, rows.rays, grid, rows.background)
        return jnp.clip(found.colour, 0, 1), rows.colour, found.depth, found.opacity

    def evaluate(split: str, state: State, batches: Iterable[Batch]) -> Any:
        variables, grid = state.variables(), state.extra.get("grid")
        rows = []
        for batch in batches:
            found = parallel.whole((shown(variables, grid, batch), batch["mask"]))
            rows.append([x[found[1] > 0] for x in found[0]])
        views = collected(data, split, [np.concatenate(x) for x in zip(*rows, strict=True)])
        return judged(views), {"views": sheet(views, drawn)}

    def of(split: str) -> Evaluate:
        return lambda state, batches: evaluate(split, state, batches)

    return {split: of(split) for split in ("validation", "test")}


def evident(background: str) -> str:
    """That which transparent pixels are judged over."""
    return background if background in ("white", "black") else "white"


def collected(data: Dataset, split: str, rows: list[np.ndarray]) -> Shown:
    chosen, (h, w) = data.scene.splits[split], data.sides
    colour, truth, depth, opacity = (x.reshape(len(chosen), h, w, *x.shape[1:]) for x in rows)
    images, distance = data.scene.images[chosen], data.scene.depth
    if distance is not None:
        distance = distance[chosen]
    if images.shape[-1] == 4:
        solid = images[..., 3] > 0
    else:
        solid = np.ones(images.shape[:3], bool) if distance is None else np.isfinite(distance)
    return Shown(colour, truth, depth, opacity, solid, distance)


def judged(views: Shown) -> dict[str, float]:
    each = [psnr(*pair) for pair in zip(views.colour, views.truth, strict=True)]
    alike = [
        structural_similarity(
            *pair,
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for pair in zip(views.truth, views.colour, strict=True)
    ]
    metrics = {
        "psnr": float(np.mean(each)),
        "psnr_min": float(np.min(each)),
        "psnr_foreground": psnr(views.colour[views.solid], views.truth[views.solid]),
        "ssim": float(np.mean(alike)),
    }
    if views.distance is not None:
        both = np.isfinite(views.distance) & (views.opacity > SEEN)
        off = np.abs(views.depth[both] - views.distance[both])
        metrics["depth_error"] = float(off.mean()) if both.any() else math.inf
    return metrics


def sheet(views: Shown, count: int) -> np.ndarray:
    """Truth, what is rendered, its error and its depth, of views from all over the split."""
    chosen = np.linspace(0, len(views.colour) - 1, min(count, len(views.colour))).astype(int)
    rows = [
        [
            views.truth[i],
            views.colour[i],
            np.clip(4 * np.abs(views.colour[i] - views.truth[i]), 0, 1),
            pictures.depth(views.depth[i], views.opacity[i] > SEEN),
        ]
        for i in chosen
    ]
    return pictures.tiles(rows)


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
