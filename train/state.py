"""The state of a training run as one tree, and the contract that every task fulfils."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class State(struct.PyTreeNode):
    """All that a checkpoint holds of a run besides the position in the data.

    step    int32 scalar: updates done
    rng     typed key, constant: an update draws from `fold_in(rng, step)`
    params  trainable parameters
    opt     optimizer state (one, or a dict of them)
    vars    every other collection of the model: batch statistics, spectral vectors, codebooks
    ema     {} or the moving average of the whole variables, {"params": …, **vars}
    extra   what a task adds; `skipped` counts the updates that were not finite
    """

    step: jax.Array
    rng: jax.Array
    params: Any
    opt: Any
    vars: Any
    ema: Any
    extra: Any

    @classmethod
    def create(cls, rng: jax.Array, params: Any, opt: Any, *, vars: Any = None, ema: Any = None):
        zero = jnp.zeros((), jnp.int32)
        return cls(
            step=zero,
            rng=rng,
            params=params,
            opt=opt,
            vars=vars or {},
            ema=ema or {},
            extra={"skipped": zero},
        )

    def variables(self) -> dict[str, Any]:
        """What the model is evaluated with: the moving average where one is kept."""
        return self.ema or {"params": self.params, **self.vars}


Evaluate = Callable[[State, Iterable[Batch]], tuple[dict[str, float], dict[str, Any]]]


class Task(NamedTuple):
    """Two pure functions and an evaluator: all that loop, compiler and checkpoint know.

    init      (rng, batch) -> State; only the shapes of the batch matter
    update    (state, batch) -> (State, metrics), pure; metrics are scalars, `loss` and `skipped`
              (see `train.step.guarded`) among them
    evaluate  (state, batches) -> (metrics, artifacts): floats, and RGB uint8 pictures or texts,
              by name; each device batch has a float `mask` [b] that is 0 on padding
    best      the metric that chooses the checkpoint, "-name" where less is better
    rules     how parameters are sharded (`zoo.sharding`), where the defaults do not do
    model     what is exported with the best weights and `card`; None where there is no single one
    tokenizer what turns text into the model's ids, saved beside them; None where there is no text
    companion what else is saved beside them, by its `save(directory)`; None: nothing
    exported  variables -> (those of the model alone, the companion as they have made it), where the
              task trains more than the model
    beside    split -> known numbers that are reported with its metrics, such as what others reach
    evaluators  split -> its own `evaluate`, where splits are not judged alike
    resident  arrays (NumPy) that are on every device all the time, whole: every update finds them
              in its batch. Not for pmap
    """

    init: Callable[[jax.Array, Batch], State]
    update: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Evaluate
    best: str
    rules: Any = ()
    model: Any = None
    card: Any = None
    tokenizer: Any = None
    companion: Any = None
    exported: Callable[[Any], tuple[Any, Any]] | None = None
    beside: Callable[[str], Mapping[str, float]] = lambda split: {}
    evaluators: Mapping[str, Evaluate] = MappingProxyType({})
    resident: Mapping[str, Any] = MappingProxyType({})

    def saved(self, variables: Any) -> tuple[Any, Any]:
        """What is saved of a run: the model's variables, and what stands beside them."""
        return self.exported(variables) if self.exported else (variables, self.companion)

    def evaluator(self, split: str) -> Evaluate:
        return self.evaluators.get(split, self.evaluate)
