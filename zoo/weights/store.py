"""Whole checkpoints: which family and format a path holds, and how one is read and written."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

import zoo
from zoo import registry, tree
from zoo.card import Card, Preprocess, from_hugging_face
from zoo.weights import convert, formats
from zoo.weights.convert import Format, Row, WeightsError


def families() -> list[str]:
    """The pages of the zoo, each of which has a table of the same name beside this file."""
    return sorted({entry.page for entry in registry.entries().values()})


def table(page: str) -> ModuleType:
    return import_module(f"zoo.weights.{page}")


def load(path: Path) -> tuple[Any, dict[str, Any], Card]:
    """`(model, variables, card)`. Raises WeightsError for what is unknown or differs."""
    tensors = formats.read(path)
    facts = _json(path, "config.json")
    page, format = _recognise(tensors, facts, path)
    config = _config(format, tensors, facts, path)
    model = _model(page, config)
    shapes = _shapes(model)
    loaded = convert.load(tensors, format.rows(config), shapes, format.ignored)
    variables = tree.unflatten({path: jnp.asarray(loaded[path]) for path in shapes})
    return model, variables, _card(path, page, model, facts)


def save(
    model: Any, variables: Mapping[str, Any], directory: Path, format: str, card: Card | None
) -> None:
    page = registry.page_of(model).__name__.rpartition(".")[2]
    known = {**table(page).FORMATS, "flax": _own(page)}
    if format not in known:
        raise WeightsError(f"{page} has no format {format!r}; it has {', '.join(sorted(known))}")
    form = known[format]
    shapes = _shapes(model)
    rows = form.rows(model.config) if format != "flax" else _own_rows(shapes)
    tensors = convert.save(tree.flatten(variables), rows, shapes) | form.constants(rows)
    card = card or Card(page, asdict(model.config), preprocess=_preprocess(model.config))
    texts = {"card.json": card.to_json()}
    if form.facts is not None:
        texts["config.json"] = form.facts(model.config, card)
    formats.write(directory, tensors, texts)


def read_card(path: Path) -> Card:
    """The card beside weights; where there is none, what the repository's own files say."""
    written = _json(path, "card.json")
    return Card.from_json(written) if written else load(path)[2]


def variant_card(name: str) -> Card:
    entry, model = registry.entry(name), zoo.create(name)
    return Card(name, asdict(model.config), paper=entry.paper, preprocess=_preprocess(model.config))


def _recognise(
    tensors: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> tuple[str, Format]:
    """By our own mark, by `model_type`, or by a name that only one format has."""
    if "flax_zoo" in facts:
        page = facts["flax_zoo"]["page"]
        if page not in families():
            raise WeightsError(f"{path}: written for page {page!r}, which this version has not")
        return page, _own(page)
    kind = facts.get("model_type")
    for page in families():
        if kind is not None and kind not in table(page).MODEL_TYPES:
            continue
        for format in table(page).FORMATS.values():
            if format.marker in tensors:
                return page, format
    raise WeightsError(
        f"{path}: neither config.json (model_type {kind!r}) nor the names of "
        f"the tensors belong to a known family: {', '.join(families())}"
    )


def _config(
    format: Format, tensors: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> Any:
    try:
        return format.config(tensors, facts)
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: the sizes of the model cannot be read from it: {type(error).__name__} {error}"
        ) from error


def _own(page: str) -> Format:
    """Our own format: tensors named by their paths, `config.json` with the page and its Config."""

    def config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
        fields = facts["flax_zoo"]["config"]
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return import_module(f"zoo.models.{page}").Config(**tuples)

    def facts(config: Any, card: Card) -> dict[str, Any]:
        return {"flax_zoo": {"page": page, "config": asdict(config), "version": zoo.__version__}}

    def rows(config: Any) -> list[Row]:
        return _own_rows(_shapes(_model(page, config)))

    return Format(rows, marker="", ignored=(), config=config, facts=facts)


def _own_rows(shapes: Mapping[str, Any]) -> list[Row]:
    return [Row(path, path) for path in shapes]


def _model(page: str, config: Any) -> Any:
    return zoo.module_class(import_module(f"zoo.models.{page}"))(config)


def _shapes(model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Path → shape of every variable, by abstract initialisation."""
    return tree.flatten(
        jax.eval_shape(
            lambda rng, inputs: model.init(rng, **inputs), jax.random.key(0), zoo.example(model)
        )
    )


def _preprocess(config: Any) -> Preprocess:
    gray: Any = {"mean": (0.5,), "std": (0.5,)} if getattr(config, "in_channels", 3) == 1 else {}
    return Preprocess(size=getattr(config, "image_size", 224), **gray)


def _card(path: Path, page: str, model: Any, facts: Mapping[str, Any]) -> Card:
    written = _json(path, "card.json")
    if written:
        return Card.from_json(written)
    stated = from_hugging_face(facts, _json(path, "preprocessor_config.json")) if facts else {}
    return Card(page, asdict(model.config), source=str(path), **stated)


def _json(path: Path, name: str) -> dict[str, Any]:
    if path.name == formats.FILE:  # the file itself was named, not its directory
        path = path.parent
    file = path / name
    return formats.read_json(file) if file.is_file() else {}
