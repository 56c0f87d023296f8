"""How good rendered views are that nothing was trained with: what task `NeRF` reports.

v views of a split, h × w pixels each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from skimage.metrics import structural_similarity

import zoo
from train import parallel, pictures
from train.config import ConfigError
from train.data.views import Dataset
from train.metrics import psnr
from train.radiance import Ask, in_units, seen
from train.state import Batch, Evaluate, State
from zoo import registry
from zoo.nerf import samplers
from zoo.nerf.occupancy import Grid
from zoo.nerf.scene import Space
from zoo.nerf.view import backdrop

SEEN = 0.5  # the opacity from which a pixel has a depth


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
    far depths are from the truth, [pixels where both see something]; lpips: where it is asked."""

    psnr: float
    ssim: float
    squares: np.ndarray
    off: np.ndarray
    lpips: float | None = None


Distance = Callable[[np.ndarray, np.ndarray], float]  # of two pictures [h, w, 3]


def perceptual(source: str, sides: tuple[int, int]) -> Distance:
    """LPIPS with the weights that `zoo.load` finds there, for pictures of those sides. Raises
    ConfigError where it finds none, or those of another model."""
    try:
        model, variables = zoo.load(source)
    except (ValueError, OSError) as error:
        raise ConfigError(f"task.lpips = {source!r}: {error}") from error
    page: Any = registry.page_of(model)
    if (name := page.__name__.rpartition(".")[2]) != "lpips":
        raise ConfigError(f"task.lpips = {source!r} holds a {name}, not weights of LPIPS")
    least = page.NETS[model.config.net].least
    if min(sides) < least:
        raise ConfigError(
            f"task.lpips: pictures of {sides[0]}×{sides[1]} are too small for its "
            f"{model.config.net}, which needs {least}×{least}"
        )
    apply = jax.jit(model.apply)
    return lambda truth, found: float(apply(variables, truth[None], found[None])[0])


def evaluators(task: Any, data: Dataset, ask: Ask, space: Space) -> dict[str, Evaluate]:
    """split → its `evaluate`. task: a `train.tasks.nerf.NeRF`; `task.drawn` views make a sheet.

    Finds `psnr`, the mean over views, `psnr_min`, the lowest of a view, `psnr_foreground`, over the
    pixels that show something, `ssim` (Wang et al., 2004, with their Gaussian window), `lpips`
    where `task.lpips` has its weights, and, where the truth is known, `depth_error`: the mean
    distance to it where both see something, world units; where nothing is seen yet, of all that is
    to be seen.
    """

    kind = "learned" if task.background == "learned" else data.scene.background
    distance = perceptual(task.lpips, data.sides) if task.lpips else None

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
            found.append(judged(view, distance))
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


def judged(view: Shown, distance: Distance | None = None) -> Judged:
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
    apart = distance(view.truth, view.colour) if distance else None
    return Judged(psnr(view.colour, view.truth), float(alike), squares, off, apart)


def summary(views: Sequence[Judged]) -> dict[str, float]:
    squares, off = (np.concatenate(x) for x in ([v.squares for v in views], [v.off for v in views]))
    metrics = {
        "psnr": float(np.mean([view.psnr for view in views])),
        "psnr_min": float(np.min([view.psnr for view in views])),
        "ssim": float(np.mean([view.ssim for view in views])),
    }
    if apart := [view.lpips for view in views if view.lpips is not None]:
        metrics["lpips"] = float(np.mean(apart))
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
