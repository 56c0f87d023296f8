"""Directories of tiny models: written, changed and compared."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

import zoo
from zoo import tree
from zoo.weights import convert


@cache
def shapes_of(model: Any) -> Any:
    """Of all variables. Tests write the same tiny models over and over, and a trace takes long."""
    return jax.eval_shape(model.init, jax.random.key(0), **zoo.example(model))


def random_variables(model: Any, seed: int = 0) -> Any:
    """Drawn without compiling anything."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes_of(model))


def saved(page: ModuleType, directory: Path, format: str, **changes: Any) -> tuple[Any, Any]:
    """A page's tiny model with random variables, saved: (model, variables)."""
    model = zoo.module_class(page)(replace(page.TINY, **changes))
    variables = random_variables(model)
    zoo.save(model, variables, directory, format=format)
    return model, variables


def edit_facts(directory: Path, **changes: Any) -> None:
    """Changes keys of a config.json; None takes one out."""
    file = directory / "config.json"
    facts = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: x for key, x in facts.items() if x is not None}))


def edit_tensors(directory: Path, changes: dict[str, Any]) -> None:
    """Puts tensors into a model.safetensors; None takes one out."""
    file = directory / "model.safetensors"
    tensors = load_file(file) | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, file)


def assert_same(ours: Any, theirs: Any) -> None:
    """Bit for bit, in names, order and dtypes too."""
    ours, theirs = tree.flatten(ours), tree.flatten(theirs)
    assert list(ours) == list(theirs)
    for path in ours:
        assert ours[path].dtype == theirs[path].dtype
        assert np.asarray(ours[path]).tobytes() == np.asarray(theirs[path]).tobytes(), path


def file_shapes(page: ModuleType, rows: list[convert.Row], config: Any) -> dict[str, Any]:
    """Name → shape of every tensor that a table writes for a model of this config."""
    shapes = tree.flatten(shapes_of(zoo.module_class(page)(config)))
    return {
        name: shape
        for row in rows
        if set(convert.names(row.ours)) <= set(shapes)
        for name, shape in zip(
            convert.names(row.foreign), convert.foreign_shapes(row, shapes), strict=True
        )
    }
