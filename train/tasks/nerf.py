"""A scene from posed pictures: a field of density and colour that renders like them."""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from train.config import ConfigError, Experiment, Setup, Task, Views, check_float32
from zoo import registry
from zoo.nerf.scene import (
    SAMPLERS,
    Corner,
    Hierarchical,
    Occupancy,
    Proposals,
    Sampler,
    Scene,
    Space,
)


@dataclass(frozen=True)
class NeRF(Task):
    """The colours of rays through random pixels of all training views (Mildenhall et al., 2020,
    arXiv:2003.08934), with one of three ways to choose samples, `task.sampler`.

    Batches are those of `train.data.views`. Reports `loss` and `psnr`; with an
    occupancy grid also the share of the batch's `rays` that had room and their mean number of
    `samples`; with proposals their loss, `interlevel`, and `distortion`; in evaluations what
    `train.novelviews` finds of whole views, and draws some. The best checkpoint is that of the
    highest validation `psnr`. A config chooses the sampler; the command line changes its numbers,
    `--task.sampler.slots 64`.
    """

    takes = Views
    model = "radiance field"

    sampler: Sampler = field(default_factory=Occupancy)
    loss: Literal["huber", "squared"] = "huber"
    # Behind what is transparent, in training; "learned": one colour behind all, of opaque pictures.
    background: Literal["random", "scene", "learned"] = "random"
    sparsity: float = 0.0  # weight of the opacity of random places: empties what no view shows
    refine: float = 0.0  # how fast cameras move, times optim.lr; 0: they are where they are said
    near: float = 0.05  # world units: nothing is nearer to a camera
    drawn: int = 4  # views of the sheet of an evaluation
    lpips: str | None = None  # a file with weights of LPIPS: evaluations report it, too
    # With an occupancy grid:
    room: int = 2**18  # samples of a step
    every: int = 16  # steps between updates of the grid
    whole: int = 256  # steps in which an update asks about all cells
    decay: float = 0.95  # of a cell's density from update to update
    thin: bool = True  # what would fill the room twice and more is sampled in coarser steps
    prune: int = 0  # k: of k · room samples the hidden ones are left out first; 0: they stay
    groups: int = 1  # of rays that share the room; one for each device spares them each other's
    # With proposals:
    distortion: float = 0.01  # weight of the loss that draws samples together
    anneal: int = 1000  # steps until the proposals are believed

    def check(self) -> None:
        for key in ("room", "every", "groups", "anneal"):
            if getattr(self, key) < 1:
                raise ConfigError(f"task.{key} is {getattr(self, key)}, but must be positive")
        for key in ("near", "whole", "prune", "distortion", "drawn", "refine", "sparsity"):
            if getattr(self, key) < 0:
                raise ConfigError(f"task.{key} is {getattr(self, key)}, but must be 0 or more")
        if not 0 < self.decay < 1:
            raise ConfigError(f"task.decay is {self.decay}, but must be between 0 and 1")
        if self.room % self.groups:
            raise ConfigError(
                f"task.room is {self.room}: not a multiple of task.groups {self.groups}"
            )
        check_sampler(self.sampler)
        most, room = getattr(self.sampler, "steps", 0), self.room // self.groups
        if most > room:
            raise ConfigError(
                f"task.sampler.steps is {most}, but a group of rays has room for {room} samples: "
                "not one ray might fit in; raise task.room"
            )

    def check_with(self, experiment: Experiment) -> None:
        cfg, two = experiment, isinstance(self.sampler, Hierarchical)
        if two != (registry.entry(cfg.model.name).page == "nerf"):
            raise ConfigError(
                f"task.sampler is {type(self.sampler).__name__}, but the model is "
                f"{cfg.model.name}: the coarse and fine networks of nerf, and these alone, take "
                "Hierarchical"
            )
        check_float32(cfg)
        if self.sparsity and isinstance(self.sampler, Proposals):
            raise ConfigError(
                "task.sparsity asks places of the scene's box, but Proposals know no box: set it "
                "to 0; task.distortion draws samples together there"
            )
        if cfg.step.accumulate != 1:
            raise ConfigError(
                "step.accumulate: rays are not accumulated; lower data.batch_size and task.room, "
                "which does the same"
            )
        if cfg.data.batch_size % self.groups:
            raise ConfigError(
                f"data.batch_size is {cfg.data.batch_size}: not a multiple of task.groups "
                f"{self.groups}"
            )
        pmap = cfg.parallel.compiler == "pmap"
        if pmap and isinstance(cfg.data, Views) and cfg.data.draw == "device":
            raise ConfigError(
                "parallel.compiler: pmap takes the rays that a host draws: --data.draw host, or jit"
            )
        if pmap and isinstance(self.sampler, Occupancy):
            raise ConfigError(
                "parallel.compiler: the rays of all devices share task.room, which pmap cannot "
                "see; use jit, with a group for each device (task.groups)"
            )

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax.numpy as jnp

        from train import novelviews, radiance, supervised
        from zoo.nerf import samplers

        cfg, data = setup.experiment, setup.data
        if self.background == "learned" and data.scene.images.shape[-1] == 4:
            raise ConfigError(
                f"task.background is learned, but the pictures of {cfg.data.source} are "
                "transparent where nothing is: take random or scene"
            )
        model = supervised.create(cfg.model, facts(self.sampler, cfg.model.name))
        space = space_of(self, data.scene)
        ask = partial(samplers.ask, model.apply, space=space)
        evaluators = novelviews.evaluators(self, data, ask, space)

        def inputs(batch: Any) -> Any:
            places = jnp.full((len(next(iter(batch.values()))), 3), 0.5)
            return places, places / jnp.linalg.norm(places, axis=1, keepdims=True)

        task = supervised.trained(
            setup,
            model,
            inputs=inputs,
            loss=radiance.objective(self, data, ask, space),
            evaluate=evaluators["validation"],
            best="psnr",
            card=supervised.card(setup, model),
            more=radiance.besides(self, data),
        )
        height, width = data.sides
        companion = Scene(
            space=space,
            height=height,
            width=width,
            cameras=data.scene.cameras,
            names=data.scene.names,
            splits=data.scene.splits,
            licence=data.scene.licence,
        )
        known = novelviews.known(data)
        exported = partial(radiance.exported, self, companion)
        task = task._replace(
            evaluators=evaluators,
            beside=known,
            companion=companion,
            exported=exported,
            resident=data.resident(),
        )
        return radiance.stepping(task, self, ask, space)


def facts(sampler: Sampler, name: str) -> dict[str, Any]:
    """What space and sampler decide of the model of that name."""
    proposals = len(sampler.counts) - 1 if isinstance(sampler, Proposals) else 0
    decided = {"dimensions": 3, "proposals": proposals}
    return {key: decided[key] for key in decided if key in registry.entry(name).fields}


LEAST = {"coarse": 3}  # its first and last interval are not drawn from


def check_sampler(sampler: Sampler) -> None:
    """Raises ConfigError for numbers that give no samples."""
    if type(sampler) not in SAMPLERS.values():
        kinds = ", ".join(kind.__name__ for kind in SAMPLERS.values())
        raise ConfigError(f"task.sampler is a {type(sampler).__name__}; choose one of {kinds}")
    for key, value in asdict(sampler).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if min(numbers, default=0) < LEAST.get(key, 1):
            raise ConfigError(
                f"task.sampler.{key} is {value}, but must be {LEAST.get(key, 1)} or more"
            )


def space_of(task: NeRF, scene: Any) -> Space:
    """The scene's box is the last of the cascades."""
    low, high = (np.asarray(corner, np.float64) for corner in scene.box)
    half = (high - low) / 2 / 2 ** (getattr(task.sampler, "cascades", 1) - 1)
    middle = (low + high) / 2
    return Space(
        low=corner(middle - half),
        high=corner(middle + half),
        unbounded=isinstance(task.sampler, Proposals),
        near=task.near,
        background=scene.background,
        sampler=task.sampler,
    )


def corner(place: np.ndarray) -> Corner:
    x, y, z = place.tolist()
    return x, y, z
