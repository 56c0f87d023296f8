"""The engine that reads a family's table, both ways.

A table is a list of `Row(foreign, ours, op)`: names of foreign tensors, paths in our variables
(`params/stem/conv/kernel`), and how one becomes the other. Loading is strict: every foreign tensor
matches one row or is listed as ignored, every path is filled, every shape agrees, or all
differences are reported at once and nothing is loaded.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange


class WeightsError(ValueError):
    """A checkpoint that cannot be loaded as asked; the message lists every difference."""


class Op(NamedTuple):
    """A change of layout of one tensor and its exact inverse."""

    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


def layout(foreign: str, ours: str) -> Op:
    """The op that permutes axes as an einops pattern says: `layout("o i h w", "h w i o")`."""
    return Op(
        lambda x: rearrange(x, f"{foreign} -> {ours}"),
        lambda x: rearrange(x, f"{ours} -> {foreign}"),
    )


SAME = Op(lambda x: x, lambda x: x)
CONV = layout("o i h w", "h w i o")  # torch → lax
DENSE = layout("o i", "i o")


class Row(NamedTuple):
    foreign: str
    ours: str
    op: Op = SAME


class Format(NamedTuple):
    """One naming of one family.

    rows(config) lists the table of a model of that size. `marker` is a name that only this format
    has. `ignored` are regexes of foreign names that hold nothing we keep. `config(tensors, facts)`
    gives our Config from the tensors' shapes and the parsed `config.json` ({} where there is none);
    `facts(config, card)` is its inverse, None where the format has no `config.json`.
    `constants(rows)` are tensors that only the foreign side has and that an export writes. `lost`
    names the fields of Config that the format does not hold and a model computes the same without.
    """

    rows: Callable[[Any], list[Row]]
    marker: str
    ignored: tuple[str, ...]
    config: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    facts: Callable[[Any, Any], dict[str, Any]] | None = None
    constants: Callable[[Sequence[Row]], dict[str, np.ndarray]] = lambda rows: {}
    lost: tuple[str, ...] = ("image_size", "zero_init", "layers", "remat")


def conv(foreign: str, ours: str) -> Row:
    """torch's Conv2d without bias."""
    return Row(f"{foreign}.weight", f"params/{ours}/kernel", CONV)


def norm(foreign: str, ours: str) -> list[Row]:
    """torch's BatchNorm2d."""
    return [
        Row(f"{foreign}.weight", f"params/{ours}/scale"),
        Row(f"{foreign}.bias", f"params/{ours}/bias"),
        Row(f"{foreign}.running_mean", f"batch_stats/{ours}/mean"),
        Row(f"{foreign}.running_var", f"batch_stats/{ours}/var"),
    ]


def dense(foreign: str, ours: str) -> list[Row]:
    """torch's Linear with bias."""
    return [
        Row(f"{foreign}.weight", f"params/{ours}/kernel", DENSE),
        Row(f"{foreign}.bias", f"params/{ours}/bias"),
    ]


def counters(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """torch counts the batches behind its running statistics; nothing is computed from it."""
    suffix = ".running_mean"
    return {
        row.foreign.removesuffix(suffix) + ".num_batches_tracked": np.zeros((), np.int64)
        for row in rows
        if row.foreign.endswith(suffix)
    }


def check_architecture(facts: Mapping[str, Any], known: str) -> None:
    """Raises WeightsError where timm's `config.json` names another architecture than the regex
    `known`: an anti-aliased ResNet has the very tensors of a plain one."""
    found = facts.get("architecture")
    if found is not None and not re.fullmatch(known, found):
        raise WeightsError(f"config.json: architecture is {found!r}, only {known} is supported")


def load(
    tensors: Mapping[str, Any],
    rows: Iterable[Row],
    expected: Mapping[str, Any],
    ignored: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """`{path: array}` for every path of `expected` (arrays or shapes with dtypes).

    tensors: foreign name → array, read only when its row is reached.
    Raises WeightsError listing `+` tensors without a place, `-` paths left unfilled and `~` shapes
    that differ.
    """
    table = {row.foreign: row for row in rows if row.ours in expected}
    differences: list[str] = []
    loaded: dict[str, np.ndarray] = {}
    for name in tensors:
        if name in table:
            row, array = table[name], np.asarray(tensors[name])
            needed = foreign_shape(row, expected[row.ours].shape)
            if array.shape == needed:
                loaded[row.ours] = row.op.load(array)
            else:
                differences.append(f"~ {name}: {array.shape}, but {row.ours} needs {needed}")
        elif not any(re.fullmatch(pattern, name) for pattern in ignored):
            differences.append(f"+ {name}: no place in the model")
    missing = [row for row in table.values() if row.foreign not in tensors]
    differences += [f"- {row.ours}: no tensor {row.foreign}" for row in missing]
    tabled = {row.ours for row in table.values()}
    differences += [f"- {path}: no row in the table" for path in expected if path not in tabled]
    if differences:
        raise WeightsError("\n".join(["the checkpoint and the model differ:", *differences]))
    return loaded


def foreign_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a row's foreign tensor has where ours has `shape`; needs no memory for it."""
    return row.op.save(np.broadcast_to(np.float32(0), shape)).shape


def save(
    leaves: Mapping[str, Any], rows: Iterable[Row], expected: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The foreign tensors of `{path: array}`, contiguous.

    Raises WeightsError listing `+` paths that the model (`expected`: shapes by path) or the table
    has not, `-` paths without an array and `~` shapes that differ.
    """
    table = {row.ours: row for row in rows}
    differences = [f"+ {p}: no place in the model" for p in leaves if p not in expected]
    differences += [f"+ {p}: no row in the table" for p in expected if p not in table]
    differences += [f"- {p}: no array in the variables" for p in expected if p not in leaves]
    differences += [
        f"~ {path}: {np.shape(leaf)}, but the model has {expected[path].shape}"
        for path, leaf in leaves.items()
        if path in expected and np.shape(leaf) != expected[path].shape
    ]
    if differences:
        raise WeightsError("\n".join(["the variables cannot be saved:", *differences]))
    return {
        table[path].foreign: np.ascontiguousarray(table[path].op.save(np.asarray(leaf)))
        for path, leaf in leaves.items()
    }
