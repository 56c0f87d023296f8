"""What a radiance field learns from, and how good its views are: what task `NeRF` computes.

n rays of a batch · v views of a split, h × w pixels each · c channels, 3 or 4 with alpha.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from train.data.views import Dataset
from train.state import Batch, State, Task
from train.step import Loss, Update
from zoo.nerf import occupancy, proposal, samplers, sampling, volume
from zoo.nerf.cameras import Camera, Rays, moved, rays, select
from zoo.nerf.occupancy import Grid
from zoo.nerf.samplers import Asked
from zoo.nerf.scene import Hierarchical, Occupancy, Proposals, Sampler, Scene, Space

DELTA = 0.1  # of the Huber loss: where it turns from squared to absolute
ERRORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "huber": lambda x, y: optax.losses.huber_loss(x, y, delta=DELTA).mean(axis=-1) / DELTA,
    "squared": lambda x, y: ((x - y) ** 2).mean(axis=-1),
}
ANYWHERE = 512  # places that a batch asks for `task.sparsity`
GRID = 2**31 - 1  # no step: what the grid's randomness is folded from
CAMERAS, BACKGROUND = "cameras", "background"  # parameters besides the model's
MOVES = ("turn", "shift")
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
        taken = volume.thin(samples, asked_for, thin) if cfg.thin else samples
        packed, whole = volume.pack(taken, asked_for)
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
        draw, behind, along, anywhere = jax.random.split(rng, 4)
        batch = data.drawn(batch, draw)
        rows = seen(data, batch, kind, behind, in_units(task, params))
        asked = ask({"params": params, **vars})
        found = LEARN[type(space.sampler)](task, asked, space, rows, along, batch)
        total = (found.error * found.counts).sum() / found.counts.sum().clip(1) + found.more
        if task.sparsity:
            total += task.sparsity * opacity_anywhere(asked, space, anywhere)
        return total, (vars, found.metrics)

    return loss


def opacity_anywhere(asked: Asked, space: Space, key: jax.Array) -> jax.Array:
    """Mean of 1 − exp(−λ σ) over places drawn from the box, the sparsity prior of PlenOctrees
    (arXiv:2103.14024), λ being a hundredth of its diagonal. What no view shows has no other say."""
    low, high = samplers.corners(space)
    length = float(np.linalg.norm(high - low)) / 100
    inside = jax.random.uniform(key, (ANYWHERE, 3))
    places = jnp.asarray(low)[None] + inside * jnp.asarray(high - low)[None]
    return -jnp.expm1(-length * asked.density(places)).mean()


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
