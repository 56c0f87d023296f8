"""The engine that reads a family's table, both ways.

A table is a list of `Row(foreign, ours, op)`: names of foreign tensors, paths in our variables
(`params/stem/conv/kernel`), and how one becomes the other. Either side may be one name or several:
a fused `qkv` is three of ours, a tied head two of theirs. Loading is strict: every foreign tensor
matches one row or is listed as ignored, every path is filled, every shape agrees, or all
differences are reported at once and nothing is loaded.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


class WeightsError(ValueError):
    """A checkpoint that cannot be loaded as asked; the message lists every difference."""


class Op(NamedTuple):
    """A change of layout and its exact inverse: `load(*foreign)` gives ours, `save(*ours)` theirs,
    an array where that side of the row is one name and a tuple where it is several.

    some: of several foreign names those that the file has are enough, and load gets these; what
    save gives for all but the first is not written.
    """

    load: Callable[..., Any]
    save: Callable[..., Any]
    some: bool = False


@cache
def layout(foreign: str, ours: str, **sizes: int) -> Op:
    """The op that permutes, splits and merges axes as an einops pattern says:
    `layout("o i h w", "h w i o")`, `layout("d h c", "d (h c)", h=12)`."""
    return Op(
        lambda x: rearrange(x, f"{foreign} -> {ours}", **sizes),
        lambda x: rearrange(x, f"{ours} -> {foreign}", **sizes),
    )


SAME = Op(lambda x: x, lambda x: x)
CONV = layout("o i h w", "h w i o")  # torch → lax
DENSE = layout("o i", "i o")


@cache
def split(op: Op, count: int, axis: int = 0) -> Op:
    """One foreign tensor holds `count` of ours, equal in shape, one after the other along `axis`:
    a fused qkv."""
    return Op(
        lambda x: tuple(map(op.load, np.split(x, count, axis))),
        lambda *parts: np.concatenate([op.save(part) for part in parts], axis),
    )


@cache
def stacked(op: Op = SAME) -> Op:
    """One foreign tensor [count, …] holds one of ours after the other: layers that were scanned."""
    return Op(
        lambda x: tuple(map(op.load, x)),
        lambda *parts: np.stack([op.save(part) for part in parts]),
    )


@cache
def tie(op: Op = SAME, count: int = 2) -> Op:
    """`count` foreign names for one of ours: an embedding that is the head as well. A file may lack
    all but one of them, those that it has must be equal; an export writes the first alone."""

    def load(*copies: np.ndarray) -> np.ndarray:
        first, *others = copies
        if not all(np.array_equal(first, other) for other in others):
            raise WeightsError("should be one tensor, but differ")
        return op.load(first)

    return Op(load, lambda x: (op.save(x),) * count, some=True)


TIE = tie()
Names = str | tuple[str, ...]


class Row(NamedTuple):
    foreign: Names
    ours: Names
    op: Op = SAME


class Format(NamedTuple):
    """One naming of one family.

    rows(config) lists the table of a model of that size. `marker` is a name, or several of which
    one is enough, that only this format has, and `absent` names that it has not. `ignored` are
    regexes of foreign names that hold nothing we keep. `config(specs, facts)` gives our Config from
    the shapes of the tensors and the parsed `config.json` ({} where there is none);
    `facts(config, card)` is its inverse, None where the format has no `config.json`.
    `constants(rows)` are tensors that only the foreign side has and that an export writes. `lost`
    names the fields of Config that the format does not hold and a model computes the same without.
    `prefix` stands in front of a base model's names unless it was saved alone, and is put there
    where it is missing; of several the first. `file` is what an export is called; the facts stand
    in `facts_file`, and `texts(config, card)` are further JSON files of an export, by name: None
    for one that it has in other cases.
    """

    rows: Callable[[Any], list[Row]]
    marker: Names
    ignored: tuple[str, ...]
    config: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    facts: Callable[[Any, Any], dict[str, Any]] | None = None
    constants: Callable[[Sequence[Row]], dict[str, np.ndarray]] = lambda rows: {}
    lost: tuple[str, ...] = ("image_size", "zero_init", "layers", "remat")
    prefix: Names = ()
    absent: tuple[str, ...] = ()
    file: str = "model.safetensors"
    facts_file: str = "config.json"
    texts: Callable[[Any, Any], dict[str, Any]] = lambda config, card: {}


def conv(foreign: str, ours: str) -> Row:
    """torch's Conv2d without bias."""
    return Row(f"{foreign}.weight", f"params/{ours}/kernel", CONV)


def biased_conv(foreign: str, ours: str) -> list[Row]:
    """torch's Conv2d with bias."""
    return [conv(foreign, ours), Row(f"{foreign}.bias", f"params/{ours}/bias")]


def norm(foreign: str, ours: str) -> list[Row]:
    """torch's BatchNorm2d."""
    return [
        *layer_norm(foreign, ours),
        Row(f"{foreign}.running_mean", f"batch_stats/{ours}/mean"),
        Row(f"{foreign}.running_var", f"batch_stats/{ours}/var"),
    ]


def layer_norm(foreign: str, ours: str) -> list[Row]:
    """torch's LayerNorm."""
    return [
        Row(f"{foreign}.weight", f"params/{ours}/scale"),
        Row(f"{foreign}.bias", f"params/{ours}/bias"),
    ]


def dense(foreign: str, ours: str, *, bias: bool = True) -> list[Row]:
    """torch's Linear."""
    kernel = Row(f"{foreign}.weight", f"params/{ours}/kernel", DENSE)
    return [kernel, Row(f"{foreign}.bias", f"params/{ours}/bias")] if bias else [kernel]


def linen(foreign: str, ours: str, *leaves: str) -> list[Row]:
    """A Flax module under another path: `linen("encoder/norm", "norm", "scale", "bias")`."""
    return [Row(f"{foreign}/{leaf}", f"params/{ours}/{leaf}") for leaf in leaves]


def counters(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """torch counts the batches behind its running statistics; nothing is computed from it."""
    suffix = ".running_mean"
    return {
        name.removesuffix(suffix) + ".num_batches_tracked": np.zeros((), np.int64)
        for row in rows
        for name in names(row.foreign)
        if name.endswith(suffix)
    }


def check_architecture(facts: Mapping[str, Any], known: str) -> None:
    """Raises WeightsError where timm's `config.json` names another architecture than the regex
    `known`: an anti-aliased ResNet has the very tensors of a plain one."""
    found = facts.get("architecture")
    if found is not None and not re.fullmatch(known, found):
        raise WeightsError(f"config.json: architecture is {found!r}, only {known} is supported")


def names(side: Names) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def specs(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name → shape and dtype, without reading a tensor where the mapping knows them."""
    known = getattr(tensors, "specs", None)
    if known is not None:
        return known
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}


def load(
    tensors: Mapping[str, Any],
    rows: Iterable[Row],
    expected: Mapping[str, Any],
    ignored: Sequence[str] = (),
    put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
) -> dict[str, Any]:
    """`{path: put(path, array)}` for every path of `expected` (arrays or shapes with dtypes).

    tensors: foreign name → array, read one row at a time once all is known to fit.
    Raises WeightsError listing `+` tensors without a place, `-` paths left unfilled and `~` shapes
    that differ.
    """
    found = specs(tensors)
    rows = [row for row in rows if all(path in expected for path in names(row.ours))]
    _check(found, rows, expected, ignored)
    loaded: dict[str, Any] = {}
    for row in rows:
        present = [name for name in names(row.foreign) if name in found]
        try:
            result = row.op.load(*(np.asarray(tensors[name]) for name in present))
        except WeightsError as error:
            raise WeightsError(f"{', '.join(present)} {error}") from error
        for path, array in zip(names(row.ours), _several(result, row.ours), strict=True):
            loaded[path] = put(path, array)
    return loaded


def _check(
    found: Mapping[str, Any],
    rows: Sequence[Row],
    expected: Mapping[str, Any],
    ignored: Sequence[str],
) -> None:
    """Raises WeightsError with all differences, those of the file's tensors first."""
    tabled = {path for row in rows for path in names(row.ours)}
    unlisted = [path for path in expected if path not in tabled]
    places: dict[str, tuple[Row, tuple[int, ...]]] = {}
    missing: list[str] = []
    for row in rows:
        theirs, ours = names(row.foreign), ", ".join(names(row.ours))
        shapes = foreign_shapes(row, expected)
        places |= {name: (row, shape) for name, shape in zip(theirs, shapes, strict=True)}
        absent = [name for name in theirs if name not in found]
        if absent and (not row.op.some or len(absent) == len(theirs)):
            missing += [f"- {ours}: no tensor {name}" for name in absent]
    differences: list[str] = []
    for name, spec in found.items():
        if name in places:
            row, needed = places[name]
            ours, kind = ", ".join(names(row.ours)), expected[names(row.ours)[0]].dtype
            if spec.shape != needed:
                differences.append(f"~ {name}: {spec.shape}, but {ours} needs {needed}")
            elif jnp.issubdtype(kind, jnp.floating) and not jnp.issubdtype(
                spec.dtype, jnp.floating
            ):
                differences.append(f"~ {name}: {spec.dtype}, but {ours} needs floating numbers")
        elif not any(re.fullmatch(pattern, name) for pattern in ignored):
            differences.append(f"+ {name}: no place in the model")
    differences += [*missing, *(f"- {path}: no row in the table" for path in unlisted)]
    if differences:
        raise WeightsError(listed("the checkpoint and the model differ:", differences))


def listed(title: str, lines: Sequence[str], limit: int = 500) -> str:
    """A line each; of a file that has nothing in common with a large model, the first `limit`."""
    more = [f"… and {len(lines) - limit:,} more"] if len(lines) > limit else []
    return "\n".join([title, *lines[:limit], *more])


def foreign_shapes(row: Row, expected: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The shapes that a row's foreign tensors have where ours are as expected; costs little."""
    zeros = (np.broadcast_to(np.int8(0), expected[path].shape) for path in names(row.ours))
    return [x.shape for x in _several(row.op.save(*zeros), row.foreign)]


def _several(value: Any, side: Names) -> tuple[Any, ...]:
    """What an op gave, as a tuple; an op gives an array where the side is one name."""
    return (value,) if isinstance(side, str) else tuple(value)


def save(
    leaves: Mapping[str, Any], rows: Iterable[Row], expected: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The foreign tensors of `{path: array}`, contiguous.

    Raises WeightsError listing `+` paths that the model (`expected`: shapes by path) or the table
    has not, `-` paths without an array and `~` shapes that differ.
    """
    rows = [row for row in rows if all(path in expected for path in names(row.ours))]
    tabled = {path for row in rows for path in names(row.ours)}
    differences = [f"+ {p}: no place in the model" for p in leaves if p not in expected]
    differences += [f"+ {p}: no row in the table" for p in expected if p not in tabled]
    differences += [f"- {p}: no array in the variables" for p in expected if p not in leaves]
    differences += [
        f"~ {path}: {np.shape(leaf)}, but the model has {expected[path].shape}"
        for path, leaf in leaves.items()
        if path in expected and np.shape(leaf) != expected[path].shape
    ]
    if differences:
        raise WeightsError(listed("the variables cannot be saved:", differences))
    saved: dict[str, np.ndarray] = {}
    for row in rows:
        result = row.op.save(*(np.asarray(leaves[path]) for path in names(row.ours)))
        foreign = dict(zip(names(row.foreign), _several(result, row.foreign), strict=True))
        for name in list(foreign)[: 1 if row.op.some else None]:
            saved[name] = np.asarray(foreign[name], order="C")
    return saved
