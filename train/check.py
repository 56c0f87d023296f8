"""What makes an experiment one that can run: each number by itself, and all of them together.

Needs neither jax nor a device.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from train.config import ConfigError, Experiment, Model, Optim, Pairs, short_context
from train.serialise import flatten, from_dict, to_dict
from zoo import registry

POSITIVE = (
    "steps",
    "evaluate_every",
    "log_every",
    "data.batch_size",
    "data.prefetch",
    "data.image_size",
    "data.length",
    "optim.lr",
    "optim.cycle",
    "optim.eps",
    "optim.clip",
    "step.accumulate",
    "checkpoint.every",
    "checkpoint.keep",
)
NOT_NEGATIVE = (
    "data.threads",
    "data.overlap",
    "optim.warmup",
    "optim.weight_decay",
    "seed",
    "data.seed",
)
SHARES = (  # in [0, 1]
    "data.holdout",
    "data.mask",
    "optim.final",
    "optim.cooldown",
    "optim.rise",
    "optim.momentum",
    "optim.b1",
    "optim.b2",
    "optim.layer_decay",
    "step.ema",
)
SIZES = ("parallel.data", "parallel.fsdp", "parallel.tensor")
RANGES = (
    (POSITIVE, "positive", lambda x: x > 0),
    (NOT_NEGATIVE, "0 or more", lambda x: x >= 0),
    (SHARES, "between 0 and 1", lambda x: 0 <= x <= 1),
    (SIZES, "positive, or -1 for the devices that are left", lambda x: x > 0 or x == -1),
    (("seed", "data.seed"), "less than 2**63", lambda x: x < 2**63),
    (("data.channels",), "1 or 3", lambda x: x in (1, 3)),
)


def check(experiment: Experiment) -> Experiment:
    """The experiment itself; raises ConfigError naming the key."""
    experiment = from_dict(to_dict(experiment))  # checks every type, however it was built
    flat = flatten(to_dict(experiment))
    for keys, wanted, holds in RANGES:
        for key in keys:
            value = flat.get(key)
            if value is not None and not holds(value):
                raise ConfigError(f"{key} is {value}, but must be {wanted}")
    check_sizes(flat)
    check_patterns(experiment.optim)
    check_model(experiment.model)
    if experiment.init.revision is not None and experiment.init.source is None:
        raise ConfigError("init.revision is given, but not --init.from, what it is a revision of")
    experiment.task.check()
    check_together(experiment)
    experiment.data.check()
    return experiment


def check_sizes(flat: Mapping[str, Any]) -> None:
    """Raises ConfigError for sizes that do not fit together."""
    batch, accumulate = flat["data.batch_size"], flat["step.accumulate"]
    if batch % accumulate:
        raise ConfigError(
            f"data.batch_size is {batch}: not a multiple of step.accumulate {accumulate}"
        )
    warmup, steps = flat["optim.warmup"], flat["steps"]
    if warmup >= steps:
        raise ConfigError(
            f"optim.warmup is {warmup} steps of a run of {steps}: shorten it or raise `steps`"
        )
    inferred = [key for key in SIZES if flat[key] == -1]
    if len(inferred) > 1:
        raise ConfigError(f"{' and '.join(inferred)} are -1, but only one size can be inferred")
    for key in SIZES[1:]:
        if flat["parallel.compiler"] == "pmap" and flat[key] > 1:
            raise ConfigError(
                f"{key} is {flat[key]}, but pmap takes data-only meshes: set it to 1, or "
                "parallel.compiler to jit"
            )


def check_patterns(optim: Optim) -> None:
    """Raises ConfigError for a regex over parameter paths that does not compile."""
    scaled = tuple(pattern for pattern, _ in optim.lr_scale)
    tables = {"decay": optim.decay, "freeze": optim.freeze, "lr_scale": scaled}
    for key, patterns in tables.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"optim.{key}: regex {pattern!r}: {error}") from error


def check_model(model: Model) -> None:
    """Raises ConfigError for a name or an option that the zoo does not have, and for sizes of text
    that are none: the page itself, which knows all sizes, needs jax."""
    try:
        registry.check_options(model.name, model.options)
    except registry.UnknownModel as error:
        raise ConfigError(f"model.name: {error}") from error
    except TypeError as error:
        raise ConfigError(f"model.options: {error}") from error
    for key in ("vocab", "context"):
        value = model.options.get(key, 1)
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"model.options: {key} is {value!r}, but must be a positive whole number"
            )


class Kind(NamedTuple):
    """A kind of model: one of them, and how it is known by the fields of its Config."""

    example: str
    holds: Callable[[Collection[str]], bool]


MODELS = {
    "decoder of text": Kind(
        "gpt2", lambda fields: "vocab" in fields and not {"head", "embed"} & {*fields}
    ),
    "encoder of text": Kind("bert_base", lambda fields: {"vocab", "head"} <= {*fields}),
    "pair of towers": Kind("clip_b32", lambda fields: {"vocab", "embed"} <= {*fields}),
    "radiance field": Kind(
        "ngp", lambda fields: bool({"geometry", "position_octaves"} & {*fields})
    ),
}


def check_together(experiment: Experiment) -> None:
    """Raises ConfigError where task, data and model are not made for each other."""
    task, data, model = experiment.task, experiment.data, experiment.model
    name = type(task).__name__
    if not isinstance(data, task.takes):
        raise ConfigError(
            f"task {name} learns from {task.takes.__name__}, but data is {type(data).__name__}: "
            "choose another task or other data in the config"
        )
    if task.tagging is not None and getattr(data, "tagging", False) != task.tagging:
        raise ConfigError(
            f"data.tagging is {not task.tagging}, but task {name} needs a label for each "
            f"{'word' if task.tagging else 'text'}: set it to {task.tagging}"
        )
    if task.model and not MODELS[task.model].holds(registry.entry(model.name).fields):
        such = MODELS[task.model].example
        raise ConfigError(f"model.name: {model.name} is no {task.model}; take one, such as {such}")
    chunk = getattr(task, "chunk", 0) if issubclass(task.takes, Pairs) else 0  # of a batch
    if chunk and data.batch_size % chunk:
        raise ConfigError(
            f"data.batch_size is {data.batch_size}: not a multiple of task.chunk {chunk}"
        )
    task.check_with(experiment)
    length, context = getattr(data, "length", None), model.options.get("context")
    if length and type(context) is int and length > context:
        raise short_context(model, length, context)
