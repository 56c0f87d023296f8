"""The pure update: loss → gradient → optimizer, with accumulation, mixed precision and the guard.

    update(state, batch) -> (state, metrics)

It knows no mesh. Under jit the batch is global; under pmap `axis` names the mapped axis, over which
gradients and metrics are averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from train.config import Step
from train.optim import ema
from train.state import Batch, Metrics, State
from zoo import tree

# loss(params, vars, batch, rng) -> (scalar, (new vars, metrics))
Loss = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[Any, Metrics]]]
Update = Callable[[State, Batch], tuple[State, Metrics]]
Bounds = Mapping[str, tuple[float, float]]


def supervised(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    cfg: Step,
    *,
    schedule: Callable[[jax.Array], jax.Array],
    frozen: Sequence[str] = (),
    bounds: Bounds = MappingProxyType({}),
    axis: str | None = None,
) -> Update:
    """The update that minimises one loss.

    loss: mean over the batch it is given; float32 scalar. `vars` are the model's other collections.
    frozen: regexes of paths that get no gradient and whose running statistics stay.
    bounds: between which parameters are kept, by regex of paths.
    Metrics are the loss's, with `loss`, `grad_norm` and `lr`.
    """

    def update(state: State, batch: Batch) -> tuple[State, Metrics]:
        rng = step_rng(state, axis)
        grads, vars, metrics = gradients(loss, state, batch, rng, cfg.accumulate, frozen)
        if axis is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = bounded(optax.apply_updates(state.params, updates), bounds, frozen)
        new = state.replace(step=state.step + 1, params=params, opt=opt, vars=vars)
        if cfg.ema is not None:
            average = ema(state.ema, {"params": params, **vars}, cfg.ema, state.step)
            new = new.replace(ema=average)
        applied = state.step - state.extra["skipped"]  # what the optimizer counts
        norm, lr = optax.tree.norm(grads), schedule(applied)
        return new, metrics | {"grad_norm": norm, "lr": lr}

    return guarded(update)


def bounded(params: Any, bounds: Bounds, frozen: Sequence[str] = ()) -> Any:
    """The parameters, clipped to the (low, high) of the first regex that matches; what is frozen
    stays as it is."""
    rows = [*((pattern, None) for pattern in frozen), *bounds.items()]
    limits = tree.match(params, rows, strict=False)
    return jax.tree.map(
        lambda p, limit: p if limit is None else jnp.clip(p, *limit), params, limits
    )


def step_rng(state: State, axis: str | None) -> jax.Array:
    """The key of this update; under pmap each device has its own."""
    rng = jax.random.fold_in(state.rng, state.step)
    return rng if axis is None else jax.random.fold_in(rng, jax.lax.axis_index(axis))


def gradients(
    loss: Loss,
    state: State,
    batch: Batch,
    rng: jax.Array,
    accumulate: int = 1,
    frozen: Sequence[str] = (),
) -> tuple[Any, Any, Metrics]:
    """Mean gradient, new vars and mean metrics over `accumulate` micro-batches, one after another.

    Equal to the large batch where examples are independent and count alike. Where a loss is a mean
    over what rows have different numbers of, such as words, each micro-batch counts the same,
    however many it has; so do the devices of pmap. Batch normalisation is not independent: each
    micro-batch is normalised by its own statistics and moves the running ones once. What is frozen
    keeps its running statistics, but is normalised by the batch's while training, like the rest.
    """
    fixed = tree.mask(state.params, frozen)
    fixed_vars = frozen_vars(state.vars, fixed)

    def objective(params: Any, vars: Any, batch: Batch, rng: jax.Array) -> Any:
        params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, fixed)
        value, (new, metrics) = loss(params, vars, batch, rng)
        new = jax.tree.map(lambda old, new, f: old if f else new, vars, new, fixed_vars)
        return value, (new, metrics | {"loss": value})

    grad = jax.grad(objective, has_aux=True)
    if accumulate == 1:
        grads, (vars, metrics) = grad(state.params, state.vars, batch, rng)
        return grads, vars, metrics

    def add(carry: Any, micro: Any) -> tuple[Any, Metrics]:
        total, vars = carry
        grads, (vars, metrics) = grad(state.params, vars, *micro)
        return (jax.tree.map(jnp.add, total, grads), vars), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    # Every k-th example, not k slices: each device keeps its own examples.
    micro = jax.tree.map(lambda x: rearrange(x, "(b k) ... -> k b ...", k=accumulate), batch)
    keys = jax.random.split(rng, accumulate)
    (total, vars), metrics = jax.lax.scan(add, (zeros, state.vars), (dict(micro), keys))
    grads = jax.tree.map(lambda g: g / accumulate, total)
    return grads, vars, jax.tree.map(lambda m: m.mean(axis=0), metrics)


def guarded(update: Update) -> Update:
    """The update, made to change nothing but `step` and `extra["skipped"]` where a metric or any
    part of the new state is not finite. Whether the run goes on is the loop's choice."""

    def guard(state: State, batch: Batch) -> tuple[State, Metrics]:
        new, metrics = update(state, batch)
        floating = [
            x for x in jax.tree.leaves((new, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        finite = jnp.stack([jnp.isfinite(x).all() for x in floating]).all()
        # Not `where` leaf by leaf: XLA would fuse the whole update into every one, and compile for
        # minutes (12 blocks, 2 CPU cores: 161 s, so 14 s).
        kept = jax.lax.cond(finite, lambda new, _: new, lambda _, old: old, new, state)
        skipped = state.extra["skipped"] + jnp.where(finite, 0, 1)
        extra = {**kept.extra, "skipped": skipped}
        return kept.replace(step=new.step, extra=extra), metrics | {"skipped": skipped}

    return guard


def precise(apply: Callable[..., Any], cfg: Step, keep: Sequence[str] = ()) -> Callable[..., Any]:
    """`apply(variables, *inputs)` computed in `cfg.precision`: parameters (but those that `keep`
    matches) and inputs are cast on the way in, results to float32 on the way out; running
    statistics and other collections stay float32."""
    if cfg.precision == "float32":
        return apply

    def cast(variables: Mapping[str, Any], *inputs: Any, **keywords: Any) -> Any:
        params = tree.cast(variables["params"], cfg.precision, keep)
        inputs, keywords = tree.cast((inputs, keywords), cfg.precision)
        return tree.cast(apply({**variables, "params": params}, *inputs, **keywords), jnp.float32)

    return cast


def frozen_vars(vars: Any, fixed: Any) -> Any:
    """True for the statistics of every module that has a frozen parameter."""
    modules = {path.rpartition("/")[0] for path, frozen in tree.flatten(fixed).items() if frozen}
    return tree.map_named(lambda path, _: path.split("/", 1)[1].rpartition("/")[0] in modules, vars)
