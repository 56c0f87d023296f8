"""Whole checkpoints: which family and format a path holds, and how one is read and written."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo import registry, tree
from zoo.card import Card, stated
from zoo.spec import sides
from zoo.weights import convert, formats, hub
from zoo.weights.convert import Format, Row, WeightsError

logger = logging.getLogger("zoo")
# What the wrong kind of value in a file may raise in the functions that read sizes from it.
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def families() -> list[str]:
    """The pages of the zoo, each of which has a table of the same name beside this file."""
    return sorted({entry.page for entry in registry.entries().values()})


def table(page: str) -> ModuleType:
    return import_module(f"zoo.weights.{page}")


class Held(NamedTuple):
    """What a path holds, before any tensor is read."""

    tensors: Mapping[str, Any]
    page: str
    format: Format
    config: Any
    card: Card


def inspect(path: Path) -> Held:
    """Raises WeightsError for what is unknown."""
    tensors: Mapping[str, Any] = formats.read(path)
    page, format = _recognise(tensors, _json(path, "config.json"), path)
    tensors, facts = _prefixed(tensors, format), _json(path, format.facts_file)
    config = _config(page, format, tensors, facts, path)
    return Held(tensors, page, format, config, _card(path, page, config, facts))


def load(path: Path, *, dtype: Any = None, **sizes: Any) -> tuple[Any, dict[str, Any], Card]:
    """`(model, variables, card)`. Raises WeightsError for what is unknown or differs.

    dtype: of the floating parameters; statistics are float32 then. None: both as in the file.
    sizes: fields of the Config that shall differ from the file, None for those that shall not.
    Leaves that depend on `image_size` or `context` are resized by the page, those of another
    context with a warning; others are new, and logged.
    """
    dtype, held = _floating(dtype), inspect(path)
    page = held.page
    model = _model(page, _resized(page, held.config, sizes, path))
    shapes, found = _shapes(page, model.config), _shapes(page, held.config)
    changed = [p for p in shapes if p not in found or found[p].shape != shapes[p].shape]

    def put(path: str, array: np.ndarray) -> Any:
        return array if path in changed else jax.device_put(_cast(page, path, array, dtype))

    rows = held.format.rows(held.config)
    loaded = convert.load(held.tensors, rows, found, held.format.ignored, put)
    for leaf in changed:
        loaded[leaf] = _resize(page, leaf, loaded.get(leaf), held.config, model.config)
    fresh = [leaf for leaf in changed if loaded[leaf] is None]
    _check_context(page, held.config, model.config, fresh, path)
    loaded |= _fresh(model, fresh)
    loaded |= {leaf: _cast(page, leaf, loaded[leaf], dtype) for leaf in changed}
    if any(x.dtype == np.float64 for x in convert.specs(held.tensors).values()):
        logger.warning("%s: float64, loaded as %s", path, jax.dtypes.canonicalize_dtype(float))
    told = fresh if _context(held.config) == _context(model.config) else changed
    for leaf in told:
        old = f"instead of {found[leaf].shape}" if leaf in found else "not in the file"
        kind = "new" if leaf in fresh else "resized"
        logger.warning("%s: %s, %s %s", leaf, kind, shapes[leaf].shape, old)
    card = replace(held.card, config=asdict(model.config))
    if sizes.get("num_classes") not in (None, getattr(held.config, "num_classes", None)):
        card = replace(card, labels=())
    return model, tree.unflatten({path: loaded[path] for path in shapes}), card


def _resized(page: str, held: Any, sizes: Mapping[str, Any], path: Path) -> Any:
    """The Config of the file with what was asked for."""
    asked = {key: value for key, value in sizes.items() if value is not None}
    known = {field.name for field in fields(held)}
    for key in asked:
        if key not in known:
            raise WeightsError(f"{path}: {page} has no {key} that could be changed on loading")
    asked = {key: tuple(v) if isinstance(v, list) else v for key, v in asked.items()}
    wanted = replace(held, **asked)
    try:
        registry.check_config(page, wanted)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    return wanted


def _resize(page: str, path: str, leaf: Any, held: Any, wanted: Any) -> Any:
    """A leaf of the file for another `image_size` or `context`; None where that is not why it
    differs."""
    resize: Callable[..., Any] | None = getattr(_page(page), "resize", None)
    if leaf is None or resize is None:
        return None
    if held.image_size == wanted.image_size and _context(held) == _context(wanted):
        return None
    found = resize(path.partition("/")[2], leaf, held, wanted)
    shape = _shapes(page, wanted)[path].shape
    return found if found.shape == shape else None


def _context(config: Any) -> int | None:
    return getattr(config, "context", None)


def _check_context(page: str, held: Any, wanted: Any, fresh: list[str], path: Path) -> None:
    """Raises WeightsError where another context leaves parameters without what the file has."""
    if _context(held) == _context(wanted):
        return
    found, needed = (_shapes(page, x) for x in (held, replace(held, context=wanted.context)))
    lost = [leaf for leaf in fresh if leaf in found and found[leaf].shape != needed[leaf].shape]
    if lost:
        raise WeightsError(
            f"{path}: context {wanted.context} instead of {held.context}: "
            f"{page} cannot resize {', '.join(lost)}"
        )


def _fresh(model: Any, paths: list[str]) -> dict[str, Any]:
    """Those leaves of a fresh initialisation, always the same; XLA leaves out the others."""
    if not paths:
        return {}

    def init(rng: jax.Array, inputs: Any) -> dict[str, Any]:
        leaves = tree.flatten(model.init(rng, **inputs))
        return {path: leaves[path] for path in paths}

    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zoo.example(model))
    return jax.jit(init)(jax.random.key(0), inputs)


def _cast(page: str, path: str, leaf: Any, dtype: Any) -> Any:
    """Parameters as `dtype`, but those that the page keeps, and all else that floats as float32."""
    if dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    scope, _, name = path.partition("/")
    keep = getattr(_page(page), "KEEP_FLOAT32", ())
    kept = scope != "params" or any(re.fullmatch(pattern, name) for pattern in keep)
    return leaf.astype(jnp.float32 if kept else dtype)


def _floating(dtype: Any) -> Any:
    """Raises WeightsError for what is not the dtype of floating numbers, or None."""
    try:
        if dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
                raise WeightsError(f"dtype is {dtype!r}, but JAX has it only with jax_enable_x64")
            return dtype
    except TypeError:
        pass
    raise WeightsError(f"dtype is {dtype!r}: give a floating one, such as float32 or bfloat16")


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
    shapes = _shapes(page, model.config)
    tensors = convert.save(tree.flatten(variables), rows, shapes) | form.constants(rows)
    facts = form.facts(model.config, card) if form.facts is not None else None
    _check_held(form, format, model.config, tensors, facts)
    texts = {"card.json": card.to_json(), "config.json": None, form.facts_file: facts}
    texts = _others(page, model.config, card) | texts | form.texts(model.config, card)
    formats.write(directory, tensors, texts, form.file)


def _others(page: str, config: Any, card: Card) -> dict[str, None]:
    """The files of all formats of a page, none of which may stay from an earlier export: they speak
    of other weights, or name another file of weights to read."""
    forms = table(page).FORMATS.values()
    files = (name for x in forms for name in (x.file, x.facts_file, *x.texts(config, card)))
    return dict.fromkeys(files)


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
    found = _fields(form.config(convert.specs(tensors), facts or {}))
    lost = form.lost if name != "flax" else ()
    differ = [
        f"{key} {value!r}, but would load as {found[key]!r}"
        for key, value in _fields(config).items()
        if key not in lost and found[key] != value
    ]
    if differ:
        raise WeightsError(
            f'format {name!r} cannot hold this model: {"; ".join(differ)}; save it with "flax"'
        )


def _fields(config: Any) -> dict[str, Any]:
    """Those of a Config, its image_size as (height, width): 224 and (224, 224) are one."""
    found = asdict(config)
    if "image_size" in found:
        found["image_size"] = sides(found["image_size"])
    return found


def read_card(path: Path) -> Card:
    """The card beside weights; where there is none, what the repository's own files say."""
    if written := _json(path, "card.json"):
        return _from_json(written, path)
    return inspect(path).card


def variant_card(name: str) -> Card:
    return Card(name, asdict(zoo.create(name).config), paper=registry.entry(name).paper)


def _recognise(
    tensors: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> tuple[str, Format]:
    """By our own mark, by `model_type`, or by a name that only one format has."""
    if "flax_zoo" in facts:
        mark = facts["flax_zoo"]
        page = mark.get("page") if isinstance(mark, dict) else None
        if page not in families():
            raise WeightsError(f"{path}: written for page {page!r}, which this version has not")
        return page, _own(page)
    kind = facts.get("model_type")
    # A page is often called as its model_type: the tables of the others are not imported then.
    for page in sorted(families(), key=lambda page: page != kind):
        if kind is not None and kind not in getattr(table(page), "MODEL_TYPES", ()):
            continue
        for format in table(page).FORMATS.values():
            if next(_prefixes(tensors, format), None) is not None:
                return page, format
    raise WeightsError(
        f"{path}: neither config.json (model_type {kind!r}) nor the names of "
        f"the tensors belong to a known family: {', '.join(families())}"
    )


def _prefixes(tensors: Mapping[str, Any], format: Format) -> Iterator[str]:
    """What has to stand in front of the file's names to make them the format's: "" if nothing;
    nothing at all for a file of another format."""
    if any(name in tensors for name in format.absent):
        return
    for marker in convert.names(format.marker):
        for prefix in ("", *convert.names(format.prefix)):
            if marker.startswith(prefix) and marker.removeprefix(prefix) in tensors:
                yield prefix


def _prefixed(tensors: Mapping[str, Any], format: Format) -> Mapping[str, Any]:
    prefix = next(_prefixes(tensors, format), "")
    return Renamed(tensors, prefix) if prefix else tensors


class Renamed(Mapping[str, Any]):
    """The tensors of a base model that was saved alone, under the names that they have in a whole
    one."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str):
        self._tensors, self._prefix = tensors, prefix
        self.specs = {prefix + name: spec for name, spec in convert.specs(tensors).items()}

    def __getitem__(self, name: str) -> Any:
        return self._tensors[name.removeprefix(self._prefix)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def _config(
    page: str, format: Format, tensors: Mapping[str, Any], facts: Mapping[str, Any], path: Path
) -> Any:
    try:
        config = format.config(convert.specs(tensors), facts)
        registry.check_config(page, config)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except DAMAGED as error:
        raise WeightsError(
            f"{path}: the sizes of the model cannot be read from it: {type(error).__name__} {error}"
        ) from error
    return config


def _own(page: str) -> Format:
    """Our own format: tensors named by their paths, `config.json` with the page and its Config."""

    def config(tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
        fields = facts["flax_zoo"]["config"]
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return _page(page).Config(**tuples)

    def facts(config: Any, card: Card) -> dict[str, Any]:
        return {"flax_zoo": {"page": page, "config": asdict(config), "version": zoo.__version__}}

    def rows(config: Any) -> list[Row]:
        return [Row(path, path) for path in _shapes(page, config)]

    return Format(rows, marker=(), ignored=(), config=config, facts=facts)


def _page(page: str) -> ModuleType:
    return import_module(f"zoo.models.{page}")


def _model(page: str, config: Any) -> Any:
    return zoo.module_class(_page(page))(config)


@cache
def _shapes(page: str, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Path → shape of every variable, by abstract initialisation. A loop's are found as a scan's,
    which is traced once for all layers."""
    looped = getattr(config, "layers", None) == "loop"
    model = _model(page, replace(config, layers="scan") if looped else config)

    def init(rng: jax.Array, inputs: Any) -> Any:
        variables = model.init(rng, **inputs)
        if not looped:
            return variables
        start = table(page).SCAN_START
        return {name: tree.unstacked(leaves, start) for name, leaves in variables.items()}

    # The shape of a key is enough: a key is computed, by a program that is compiled first.
    key = jax.eval_shape(lambda: jax.random.key(0))
    return tree.flatten(jax.eval_shape(init, key, zoo.example(model)))


def _card(path: Path, page: str, config: Any, facts: Mapping[str, Any]) -> Card:
    if written := _json(path, "card.json"):
        return _from_json(written, path)
    try:
        readme = _beside(path, "README.md")
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        known = stated(facts, _json(path, "preprocessor_config.json"), text)
    except DAMAGED as error:
        raise WeightsError(
            f"{path}: config.json or preprocessor_config.json: {type(error).__name__} {error}"
        ) from error
    return Card(page, asdict(config), paper=registry.paper(page), source=hub.origin(path), **known)


def _from_json(written: Mapping[str, Any], path: Path) -> Card:
    try:
        return Card.from_json(written)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: card.json: {error}; remove it or restore it") from error


def _json(path: Path, name: str) -> dict[str, Any]:
    """`{}` where there is no such file."""
    file = _beside(path, name)
    return formats.read_json(file) if file.is_file() else {}


def _beside(path: Path, name: str) -> Path:
    """A file in the directory, or beside the file that was named."""
    return (path.parent if path.is_file() else path) / name
