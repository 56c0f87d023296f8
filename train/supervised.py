"""A task with one model, one loss and one optimizer, from the functions that make it special."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import zoo
from train import evaluation, optim, step
from train.config import ConfigError, Model, Setup
from train.metrics import Metric
from train.schedules import schedule
from train.state import Batch, Evaluate, Metrics, State, Task
from zoo import Card, registry, sharding

Forward = Callable[..., Any]  # the model on its inputs


def create(cfg: Model, facts: Mapping[str, Any]) -> Any:
    """The model of an experiment, with the options that its data decide.

    Raises ConfigError for an option that contradicts the data, or that the model cannot have.
    """
    for key, value in facts.items():
        if cfg.options.get(key, value) != value:
            raise ConfigError(
                f"model.options: {key} is {cfg.options[key]!r}, but the data have {value}"
            )
    try:
        return zoo.create(cfg.name, **cfg.options | dict(facts))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.options: {error}") from error


def card(setup: Setup, model: Any, labels: Sequence[str] = ()) -> Card:
    """What travels with the weights."""
    cfg, data = setup.experiment, setup.data
    return Card(
        model=cfg.model.name,
        config=asdict(model.config),
        paper=registry.entry(cfg.model.name).paper,
        preprocess=getattr(data, "preprocess", None),
        labels=tuple(labels),
        licence=data.source.licence,
        source=f"trained with flax-zoo {zoo.__version__} on {cfg.data.source}",
    )


def over(model: nn.Module, axis: str | None) -> nn.Module:
    """The model with the statistics of batches taken over that mapped axis; as it is where it has
    none."""
    return model.clone(axis=axis) if hasattr(model, "axis") else model


def build(
    setup: Setup,
    model: nn.Module,
    *,
    inputs: Callable[[Batch], tuple[jax.Array, ...]],
    objective: Callable[[Forward, Batch, jax.Array], tuple[jax.Array, Metrics]],
    quantities: Callable[[Forward, Batch], dict[str, jax.Array]],
    metric: Metric,
    best: str,
    draw: evaluation.Draw,
    card: Card,
) -> Task:
    """inputs(batch): the model's arguments, for its initialisation.
    objective(forward, batch, rng) -> (mean loss, metrics), the model in training mode.
    quantities(forward, batch): what the metric takes, the model in evaluation mode.
    forward(*inputs, **keywords): the model, or with `method` one of its methods, which is told of
    training only by the keyword `train`.
    """
    apply = applied(setup, model)

    def loss(params: Any, vars: Mapping[str, Any], batch: Batch, rng: jax.Array) -> Any:
        drop, rng = jax.random.split(rng)
        moved = dict(vars)

        def forward(*arguments: jax.Array, **keywords: Any) -> Any:
            variables, rngs = {"params": params, **moved}, {"dropout": drop}
            keywords = keywords if "method" in keywords else {"train": True, **keywords}
            found, new = apply(variables, *arguments, mutable=list(vars), rngs=rngs, **keywords)
            moved.update(new)
            return found

        value, shown = objective(forward, batch, rng)
        return value, (moved, shown)

    def judged(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        return quantities(partial(apply, variables), batch)

    evaluate = evaluation.evaluator(judged, metric, draw)
    return trained(setup, model, inputs=inputs, loss=loss, evaluate=evaluate, best=best, card=card)


def applied(setup: Setup, model: nn.Module) -> Forward:
    """`model.apply` in the experiment's precision."""
    keep = getattr(registry.page_of(model), "KEEP_FLOAT32", ())
    return step.precise(model.apply, setup.experiment.step, keep)


def trained(
    setup: Setup,
    model: nn.Module,
    *,
    inputs: Callable[[Batch], tuple[jax.Array, ...]],
    loss: step.Loss,
    evaluate: Evaluate,
    best: str,
    card: Card,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Task:
    """The task of one pure loss of the parameters, under the bounds of the model's page (CLAMP).

    more: parameters besides the model's, by names that it has none of, as they begin (NumPy)."""
    cfg = setup.experiment

    def fresh(rng: jax.Array, batch: Batch) -> dict[str, Any]:
        variables = model.init(rng, *(x[:1] for x in inputs(batch)))
        return {
            **variables,
            "params": {**variables["params"], **jax.tree.map(jnp.asarray, dict(more))},
        }

    shapes = jax.eval_shape(fresh, jax.random.key(0), setup.data.spec())
    optimizer = optim.optimizer(cfg.optim, shapes["params"], cfg.steps)

    def init(rng: jax.Array, batch: Batch) -> State:
        first, rng = jax.random.split(rng)
        variables = fresh(first, batch)
        params = variables.pop("params")
        ema = {} if cfg.step.ema is None else {"params": params, **variables}
        return State.create(rng, params, optimizer.init(params), vars=variables, ema=ema)

    update = step.supervised(
        loss,
        optimizer,
        cfg.step,
        schedule=schedule(cfg.optim, cfg.steps),
        frozen=cfg.optim.freeze,
        bounds=getattr(registry.page_of(model), "CLAMP", {}),
        axis=setup.axis,
    )
    return Task(
        init=init,
        update=update,
        evaluate=evaluate,
        best=best,
        rules=sharding.rules(model),
        model=over(model, None),
        card=card,
    )
