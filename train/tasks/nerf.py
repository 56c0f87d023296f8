"""A scene from posed pictures: a field of density and colour that renders like them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from train.config import ConfigError, Setup, Task, Views
from zoo import registry
from zoo.nerf.scene import Hierarchical, Occupancy, Proposals, Sampler, Scene, Space


@dataclass(frozen=True)
class NeRF(Task):
    """The colours of rays through random pixels of all training views (Mildenhall et al., 2020,
    arXiv:2003.08934), with one of three ways to choose samples, `task.sampler`.

    Batches are {"ray" int32 [b], "colour" uint8 [b, c]}. Reports `loss` and `psnr`, with an
    occupancy grid also the share of the batch's `rays` that had room and their mean number of
    `samples`; in evaluations what `train.radiance` finds of whole views, and draws some. The best
    checkpoint is that of the highest validation `psnr`.
    """

    takes = Views
    model = "radiance field"

    sampler: Sampler = field(default_factory=Occupancy)
    loss: Literal["huber", "squared"] = "huber"
    background: Literal["white", "black", "random"] = "random"  # behind what is transparent
    near: float = 0.05  # world units: nothing is nearer to a camera
    drawn: int = 4  # views of the sheet of an evaluation
    # With an occupancy grid:
    room: int = 2**18  # samples of a step
    every: int = 16  # steps between updates of the grid
    whole: int = 256  # steps in which an update asks about all cells
    decay: float = 0.95  # of a cell's density from update to update
    prune: int = 0  # hidden samples take no room; so many times the room is asked first; 0: do
    groups: int = 1  # of rays that share the room; one for each device spares them each other's
    # With proposals:
    distortion: float = 0.01  # weight of the loss that draws samples together
    anneal: int = 1000  # steps until the proposals are believed

    def check(self) -> None:
        for key in ("room", "every", "groups", "anneal"):
            if getattr(self, key) < 1:
                raise ConfigError(f"task.{key} is {getattr(self, key)}, but must be positive")
        for key in ("near", "whole", "prune", "distortion", "drawn"):
            if getattr(self, key) < 0:
                raise ConfigError(f"task.{key} is {getattr(self, key)}, but must be 0 or more")
        if not 0 < self.decay < 1:
            raise ConfigError(f"task.decay is {self.decay}, but must be between 0 and 1")
        if self.room % self.groups:
            raise ConfigError(
                f"task.room is {self.room}: not a multiple of task.groups {self.groups}"
            )

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax

        from train import radiance, supervised
        from zoo.nerf import samplers

        cfg, data = setup.experiment, setup.data
        check_together(self, cfg)
        model = supervised.create(cfg.model, facts(self.sampler, cfg.model.name))
        space = space_of(self, data.scene, unbounded=isinstance(self.sampler, Proposals))
        gridded = isinstance(self.sampler, Occupancy)

        def ask(variables: Any) -> Any:
            return samplers.ask(model.apply, variables, space)

        def loss(params: Any, vars: Any, batch: Any, rng: jax.Array) -> Any:
            keys = jax.random.split(rng)
            rows = radiance.seen(data, batch, self.background, keys[0])
            asked = ask({"params": params, **vars})
            learn = radiance.LEARN[type(self.sampler)]
            found = learn(self, asked, space, rows, keys[1], batch)
            total = (found.error * found.counts).sum() / found.counts.sum().clip(1)
            return total + found.more, (vars, found.metrics)

        def inputs(batch: Any) -> tuple[jax.Array, jax.Array]:
            n = len(batch["ray"])
            return jax.numpy.full((n, 3), 0.5), jax.numpy.eye(3)[jax.numpy.zeros(n, int)]

        evaluators = radiance.evaluators(data, ask, space, self.drawn)
        task = supervised.trained(
            setup,
            model,
            inputs=inputs,
            loss=loss,
            evaluate=evaluators["validation"],
            best="psnr",
            card=supervised.card(setup, model),
        )
        inner, first = task.update, task.init

        def stepped(state: Any, batch: Any) -> Any:
            return inner(state, {**batch, "step": state.step})

        def init(rng: jax.Array, batch: Any) -> Any:
            state = first(rng, batch)
            return state.replace(extra={**state.extra, "grid": samplers.create_grid(space)})

        update = radiance.with_grid(stepped, self, ask, space) if gridded else stepped
        height, width = data.sides
        scene = data.scene
        return task._replace(
            init=init if gridded else first,
            update=update,
            evaluators=evaluators,
            beside=radiance.known(data),
            companion=Scene(
                space, height, width, scene.cameras, scene.names, scene.splits, scene.licence
            ),
        )


def facts(sampler: Sampler, name: str) -> dict[str, Any]:
    """What space and sampler decide of the model of that name."""
    proposals = len(sampler.counts) - 1 if isinstance(sampler, Proposals) else 0
    decided = {"dimensions": 3, "proposals": proposals}
    return {key: decided[key] for key in decided if key in registry.entry(name).fields}


def check_together(task: NeRF, cfg: Any) -> None:
    """Raises ConfigError for what does not go with rays."""
    two = isinstance(task.sampler, Hierarchical)
    if two != (registry.entry(cfg.model.name).page == "nerf"):
        raise ConfigError(
            f"task.sampler is {type(task.sampler).__name__}, but the model is {cfg.model.name}: "
            "the coarse and fine networks of nerf, and these alone, take Hierarchical"
        )
    if cfg.step.precision != "float32":
        raise ConfigError(
            f"step.precision is {cfg.step.precision}, whose positions are 1/256 apart; a radiance "
            "field needs float32"
        )
    if cfg.step.accumulate != 1:
        raise ConfigError(
            "step.accumulate: rays are not accumulated; lower data.batch_size and task.room, which "
            "does the same"
        )
    if cfg.data.batch_size % task.groups:
        raise ConfigError(
            f"data.batch_size is {cfg.data.batch_size}: not a multiple of task.groups {task.groups}"
        )


def space_of(task: NeRF, scene: Any, unbounded: bool) -> Space:
    low, high = (tuple(float(x) for x in corner) for corner in scene.box)
    return Space(low, high, unbounded, task.near, scene.background, task.sampler)  # pyright: ignore
