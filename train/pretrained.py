"""Fine-tuning: a run that begins with weights that exist.

`--init.from` names whatever `zoo.load` reads. Its arrays become the parameters and the other
collections (batch statistics) of the first state, in float32 and in that state's shards; positions
are resized to the run's pictures by `zoo.load`. The head is kept where it is of the run's kind and
has as many classes as the data, and otherwise stays the run's own, drawn from its seed: a masked
language model can begin a classifier. The moving average begins as a copy, the optimizer from
nothing. A run that goes on from its checkpoint reads none of it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import zoo
from train import log
from train.config import ConfigError, Init
from train.state import State, Task
from zoo import registry, tree
from zoo import text as zoo_text
from zoo.card import Card, Preprocess

# Fields of a page's Config that change how a model is trained or fed, but not what its weights are.
FREE = ("layers", "remat", "dropout", "drop_path", "patch_dropout", "zero_init", "positions")
FREE += ("image_size", "in_channels", "num_classes", "head", "pooler", "end", "eos")
HEAD = re.compile(r"params/head\w*(/.*)?")
# What may be the run's own.
NEW = re.compile(HEAD.pattern + r"|params/(transform\w*|pooler|cameras)/.*|params/background")


def start(init: Init, fresh: State, task: Task) -> State:
    """`fresh` with the weights of `init.source`, or itself where there is none.

    Raises ConfigError where they cannot be read, are those of another architecture than
    `task.model`, or where the task has no single model.
    """
    if init.source is None:
        return fresh
    if task.model is None:
        raise ConfigError("--init.from: this task has no single model that could take the weights")
    model, loaded, card = load(init.source, init.revision, task.model.config)
    check_tokenizer(init, task.tokenizer)
    check_architecture(init, model, task.model)
    compare_preprocess(init, card.preprocess, task.card and task.card.preprocess)
    wanted = {"params": fresh.params, **fresh.vars}
    configs = [vars(m.config) for m in (model, task.model)]
    stored = as_stored_in(wanted, loaded)
    if configs[0].get("head") != configs[1].get("head"):
        stored = {path: leaf for path, leaf in stored.items() if not HEAD.fullmatch(path)}
    held = fitting(init, stored, tree.flatten(wanted))
    tell(init, held, tree.flatten(wanted), *(c.get("num_classes") for c in configs))

    def initialised() -> dict[str, Any]:
        return tree.map_named(lambda path, leaf: place(held.get(path), leaf), wanted)

    variables = initialised()
    ema = initialised() if fresh.ema else {}  # arrays of its own: the update donates both
    return fresh.replace(params=variables.pop("params"), vars=variables, ema=ema)


def load(source: str, revision: str | None, wanted: Any) -> tuple[Any, dict[str, Any], Card]:
    """Model, variables and card at the image size of `wanted`, with the classes that are stored."""
    size = vars(wanted).get("image_size")
    try:
        card = zoo.card(source, revision=revision)
        return *zoo.load(source, image_size=size, revision=revision), card
    except (ValueError, OSError) as error:
        raise ConfigError(f"--init.from {source}: {error}") from error


def check_tokenizer(init: Init, ours: Any) -> None:
    """Raises ConfigError where a tokenizer lies beside the weights whose ids stand for other texts:
    the embeddings would be those of other tokens. Files of another form may say the same."""
    if ours is None:
        return
    try:
        theirs = zoo.tokenizer(str(init.source), revision=init.revision)
    except zoo_text.TokenizerError:  # weights alone
        return
    if theirs.spelling.pieces != ours.spelling.pieces:
        raise ConfigError(
            f"--init.from {init.source} has another tokenizer than the data; give its folder as "
            f"--data.tokenizer {init.source}"
        )


def check_architecture(init: Init, held: Any, wanted: Any) -> None:
    """Raises ConfigError that lists every field in which two models differ but those of FREE, with
    the options that make the model that is held."""
    pages = [registry.page_of(model).__name__.rpartition(".")[2] for model in (held, wanted)]
    if pages[0] != pages[1]:
        differ = f"it is a {pages[0]}, but the run's model is a {pages[1]}"
    elif found := differences(held.config, wanted.config):
        differ = ", ".join(
            f"{key} {value!r}, not {getattr(wanted.config, key)!r}" for key, value in found.items()
        )
    else:
        return check_channels(init, *(vars(m.config).get("in_channels") for m in (held, wanted)))
    raise ConfigError(
        f"--init.from {init.source} holds another model: {differ}; "
        f"take {options(pages[0], held.config)}"
    )


def check_channels(init: Init, held: int | None, wanted: int | None) -> None:
    if held != wanted:
        raise ConfigError(
            f"--init.from {init.source} takes pictures of {held} channels, but the data have "
            f"{wanted}; set --data.channels {held}"
        )


def differences(config: Any, other: Any) -> dict[str, Any]:
    """The fields of `config` that differ in `other`, without those of FREE."""
    values, others = vars(config), vars(other)
    return {k: v for k, v in values.items() if k not in FREE and v != others[k]}


def options(page: str, config: Any) -> str:
    """The command line that makes a model of that page and Config, from its nearest variant."""
    names = [name for name, entry in registry.entries().items() if entry.page == page]
    changes = {name: differences(config, zoo.create(name).config) for name in names}
    name = min(names, key=lambda name: len(changes[name]))
    changed = f" --model.options '{json.dumps(changes[name])}'" if changes[name] else ""
    return f"--model.name {name}{changed}"


def compare_preprocess(init: Init, theirs: Preprocess | None, ours: Preprocess | None) -> None:
    """Says so where pictures are normalised otherwise than those that the weights have seen."""
    if theirs is None or ours is None or normalisation(theirs) == normalisation(ours):
        return
    log.say(
        f"warning: the weights from {init.source} were trained with data.mean {theirs.mean} and "
        f"data.std {theirs.std}, this run has {ours.mean} and {ours.std}"
    )


def normalisation(preprocess: Preprocess) -> list[tuple[float, ...]]:
    """Mean and std for three channels, one value standing for all."""
    return [x * 3 if len(x) == 1 else tuple(x) for x in (preprocess.mean, preprocess.std)]


def as_stored_in(wanted: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: array}` of `variables`, their blocks in a loop or a scan, as `wanted` has its own."""
    flat, others = tree.flatten(variables), tree.flatten(wanted)
    if scan_start(others) is None and (start := scan_start(flat)) is not None:
        return tree.flatten({k: tree.unstacked(v, start) for k, v in variables.items()})
    if scan_start(flat) is None and (start := scan_start(others)) is not None:
        return tree.flatten({k: tree.stacked(v, start) for k, v in variables.items()})
    return flat


def scan_start(paths: Mapping[str, Any]) -> int | None:
    """The number of the first block that is in a scan (`zoo.layers.stack`): how many stand before
    it by their own names. None where no block is."""
    scopes = {path.partition("/blocks/")[0] for path in paths if "/blocks/" in path}
    if not scopes:
        return None
    inside = rf"{re.escape(min(scopes))}/(block_\d+)/.*"
    return len({found[1] for path in paths if (found := re.fullmatch(inside, path))})


def fitting(
    init: Init, held: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What is held, without a head of other shapes, or one that nothing of the run's takes.

    Raises ConfigError, listing them, for other paths that differ: models whose Config agrees have
    none.
    """
    shapes, needed = ({k: v.shape for k, v in leaves.items()} for leaves in (held, wanted))
    differ = [path for path in sorted(shapes | needed) if shapes.get(path) != needed.get(path)]
    wrong = [f"{p}: {shapes.get(p)}, not {needed.get(p)}" for p in differ if not NEW.fullmatch(p)]
    if wrong:
        raise ConfigError("\n  ".join([f"--init.from {init.source} does not fit:", *wrong]))
    return {path: leaf for path, leaf in held.items() if path not in differ}


def place(array: Any, like: jax.Array) -> jax.Array:
    """The array in dtype and shards of `like`; a copy of `like` where there is none."""
    if array is None:
        return like.copy()
    host = np.array(array, like.dtype)  # a copy: a CPU device takes the memory as it is
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: host[index])


def tell(
    init: Init,
    held: Mapping[str, Any],
    wanted: Mapping[str, Any],
    before: int | None,
    classes: int | None,
) -> None:
    kept = wanted.keys() <= held.keys()
    story = "kept" if kept else "new"
    if classes:
        story += f", {classes} classes"
    if classes and not kept:
        story += f" instead of {before}" if before else ", none before"
    log.say(f"init from {init.source}: {tree.count(held):,} parameters; head: {story}")
