"""Whole checkpoints: which family and format a path holds, and how one is read and written."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

import zoo
from zoo import registry, tree
from zoo.card import Card, stated
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
    model = _model(page, _config(page, format, tensors, facts, path))
    shapes = _shapes(model)
    loaded = convert.load(tensors, format.rows(model.config), shapes, format.ignored)
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
    card = card or Card(page, asdict(model.config), paper=registry.paper(page))
    if format != "flax":
        model, variables = _looped(page, model, variables)
    rows = form.rows(model.config)
    tensors = convert.save(tree.flatten(variables), rows, _shapes(model)) | form.constants(rows)
    facts = form.facts(model.config, card) if form.facts is not None else None
    _check_held(form, format, model.config, tensors, facts)
    formats.write(directory, tensors, {"card.json": card.to_json(), "config.json": facts})


def _looped(page: str, model: Any, variables: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The same model and variables with every layer under its own name, as others name them."""
    if getattr(model.config, "layers", "loop") == "loop":
        return model, variables
    start = table(page).SCAN_START
    loop = {name: tree.unstacked(leaves, start) for name, leaves in variables.items()}
    return _model(page, replace(model.config, layers="loop")), loop


def _check_held(
    form: Format, name: str, config: Any, tensors: Mapping[str, Any], facts: Any
) -> None:
    """Raises WeightsError unless what would be written loads as the same model again."""
    found, lost = asdict(form.config(tensors, facts or {})), form.lost if name != "flax" else ()
    differ = [
        f"{key} {value!r}, but would load as {found[key]!r}"
        for key, value in asdict(config).items()
        if key not in lost and found[key] != value
    ]
    if differ:
        raise WeightsError(
            f'format {name!r} cannot hold this model: {"; ".join(differ)}; save it with "flax"'
        )


def read_card(path: Path) -> Card:
    """The card beside weights; where there is none, what the repository's own files say."""
    if written := _json(path, "card.json"):
        return _from_json(written, path)
    return load(path)[2]


def variant_card(name: str) -> Card:
    return Card(name, asdict(zoo.create(name).config), paper=registry.entry(name).paper)


def _recognise(
    tensors: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> tuple[str, Format]:
    """By our own mark, by `model_type`, or by a name that only one format has."""
    if "flax_zoo" in facts:
        page = dict(facts["flax_zoo"] or {}).get("page")
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
    page: str, format: Format, tensors: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> Any:
    try:
        config = format.config(tensors, facts)
        registry.check_config(page, config)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: the sizes of the model cannot be read from it: {type(error).__name__} {error}"
        ) from error
    return config


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


def _card(path: Path, page: str, model: Any, facts: Mapping[str, Any]) -> Card:
    if written := _json(path, "card.json"):
        return _from_json(written, path)
    try:
        known = stated(facts, _json(path, "preprocessor_config.json"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{path}: config.json or preprocessor_config.json: {type(error).__name__} {error}"
        ) from error
    return Card(page, asdict(model.config), paper=registry.paper(page), source=str(path), **known)


def _from_json(written: Mapping[str, Any], path: Path) -> Card:
    try:
        return Card.from_json(written)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: card.json: {error}; remove it or restore it") from error


def _json(path: Path, name: str) -> dict[str, Any]:
    """`{}` where there is no such file in the directory, or beside the file that was named."""
    file = (path.parent if path.is_file() else path) / name
    return formats.read_json(file) if file.is_file() else {}
