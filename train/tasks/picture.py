"""One picture as a field: its colours by their place."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from train.config import ConfigError, Experiment, Picture, Setup, Task, check_float32
from zoo import registry

SIDE = 1024  # pixels of a drawing: of larger pictures rows and columns are left out


@dataclass(frozen=True)
class FitPicture(Task):
    """The squared error of the colours of pixels, as Müller et al. (2022, arXiv:2201.05989) have it
    for pictures (sections 4 and 5.1).

    Batches are {"pixel" int32 [b], "colour" uint8 [b, 3]}. Reports `loss`; evaluations `loss` and
    `psnr` over the pixels of the split, none of which is trained on, `psnr_all` over the whole
    picture, and beside them `psnr_neighbours`: what guessing a pixel of the split as the mean of
    its neighbours reaches. They draw the truth, on the left, and the fit. The best checkpoint is
    that of the highest validation `psnr`.
    """

    takes = Picture

    def check_with(self, experiment: Experiment) -> None:
        if "dimensions" not in registry.entry(experiment.model.name).fields:
            raise ConfigError(
                f"model.name: {experiment.model.name} is no field that takes points of the plane; "
                "take one, such as ngp_picture"
            )
        check_float32(experiment)

    def build(self, setup: Setup) -> Any:
        # Imported here, because options are listed and checked without jax.
        import jax
        import jax.numpy as jnp
        import numpy as np

        from train import metrics, parallel, pictures, supervised

        cfg, data = setup.experiment, setup.data
        model = supervised.create(cfg.model, {"dimensions": 2})
        truth = data.colours / np.float32(255)

        def inputs(batch: Any) -> tuple[jax.Array]:
            return (data.points(batch["pixel"]),)

        def loss(params: Any, vars: Any, batch: Any, rng: jax.Array) -> Any:
            found = model.apply({"params": params, **vars}, *inputs(batch))
            error = found - batch["colour"].astype(jnp.float32) / 255
            return jnp.square(error).mean(), (vars, {})

        @jax.jit
        def ask(variables: Any, batch: Any) -> Any:
            return model.apply(variables, *inputs(batch)), batch["mask"]

        def evaluate(state: Any, batches: Any) -> Any:
            rows = [parallel.whole(ask(state.variables(), batch)) for batch in batches]
            fit, mask = (np.concatenate(x)[: len(truth)] for x in zip(*rows, strict=True))
            cut, chosen = np.clip(fit, 0, 1), mask > 0
            found = {
                "loss": metrics.mean_square(fit[chosen] - truth[chosen]),
                "psnr": metrics.psnr(cut[chosen], truth[chosen]),
                "psnr_all": metrics.psnr(cut, truth),
            }
            step = -(-max(data.sides) // SIDE)
            drawn = [x.reshape(*data.sides, 3)[::step, ::step] for x in (truth, cut)]
            return found, {"picture": pictures.tiles([drawn])}

        @cache
        def beside(split: str) -> dict[str, float]:
            chosen = data.splits[split]
            return {
                "psnr_neighbours": metrics.psnr(data.between_neighbours()[chosen], truth[chosen])
            }

        task = supervised.trained(
            setup,
            model,
            inputs=inputs,
            loss=loss,
            evaluate=evaluate,
            best="psnr",
            card=supervised.card(setup, model),
        )
        return task._replace(beside=beside)
