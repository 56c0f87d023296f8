"""Experiments as files and JSON, both ways, with every key and type checked."""

import dataclasses
import difflib
import importlib
import json
import math
import runpy
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from train.config import ConfigError, Experiment

# What may differ when a run goes on: none of it changes what is computed.
FREE = ("log", "log_every", "tensorboard", "checkpoint", "parallel", "data.data_dir")
FREE += ("data.threads", "data.prefetch", "data.cache", "step.nonfinite")


def load(source: str) -> Experiment:
    """From a Python file, a `config.json`, a workdir, or the name of a file in `configs/`.

    Raises ConfigError where there is none, naming the nearest, or where the file has a mistake,
    naming its line.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise ConfigError(f"{source} is a folder without config.json: no run began in it")
    path = path if path.is_file() else named(source)
    if path.suffix not in LOADERS:
        raise ConfigError(f"{path} is neither a Python file nor a config.json")
    return LOADERS[path.suffix](path)


def load_json(path: Path) -> Experiment:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_python(path: Path) -> Experiment:
    try:
        function = runpy.run_path(str(path), run_name=path.stem).get("experiment")
        if not callable(function):
            raise ConfigError("there is no function experiment() that returns an Experiment")
        found = function()
    except Exception as error:  # whatever the user's file raises
        reason = str(error) if isinstance(error, ConfigError) else _described(error)
        raise ConfigError(f"{path}{_line(error, path)}: {reason}") from error
    if not isinstance(found, Experiment):
        raise ConfigError(f"{path}: experiment() returned {found!r}, which is no Experiment")
    return found


def _described(error: Exception) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}"


def _line(error: Exception, path: Path) -> str:
    """`, line 7`: the last line of the file that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""


LOADERS: dict[str, Callable[[Path], Experiment]] = {".json": load_json, ".py": load_python}


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name: of the checkout, or inside the wheel."""
    here = Path(__file__).parent
    folder = next(f for f in (here / "configs", here.parent / "configs") if f.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def named(name: str) -> Path:
    known = shipped()
    if name not in known:
        near = difflib.get_close_matches(Path(name).stem, known, n=3, cutoff=0.5) or list(known)
        raise ConfigError(f"no config {name!r}: neither a file nor one of {', '.join(near)}")
    return known[name]


def to_dict(value: Any) -> Any:
    """Plain JSON values. A dataclass that stands for another (`Images` for `Data`) names its class
    under "kind"."""
    if isinstance(value, Mapping):
        return {key: to_dict(inner) for key, inner in value.items()}
    if not dataclasses.is_dataclass(value):
        return list(map(to_dict, value)) if isinstance(value, (tuple, list)) else value
    kind = {"kind": f"{type(value).__module__}:{type(value).__qualname__}"}
    fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return fields | (kind if any(map(dataclasses.is_dataclass, type(value).__mro__[1:])) else {})


def from_dict(values: Mapping[str, Any]) -> Experiment:
    """The inverse of `to_dict`; raises ConfigError for unknown keys and wrong types."""
    return _convert(values, Experiment, "")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim.lr": 1e-3}`, as the command line names them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old → new` for what changes the computation."""
    a, b = flatten(old), flatten(new)
    return [
        f"{key}: {a.get(key)!r} → {b.get(key)!r}"
        for key in sorted(a | b)
        if a.get(key) != b.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]


def _convert(value: Any, hint: Any, key: str) -> Any:
    """The value as the annotation says, or ConfigError that names the key and the annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _convert_dataclass(value, hint, key)
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(value, inner, key)
    if origin is Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), arguments, n=1, cutoff=0.0)
        raise ConfigError(f"{key} is {value!r}; did you mean {near[0]!r}? One of {arguments}")
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            pairs = enumerate(zip(value, inner, strict=True))
            return tuple(_convert(v, h, f"{key}[{i}]") for i, (v, h) in pairs)
    if origin is dict and isinstance(value, Mapping):
        return {name: _plain(inner, f"{key}.{name}") for name, inner in value.items()}
    if hint is float and _is_finite(value):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise ConfigError(f"{key} is {value!r}, but must be {_wanted(hint)}")


def _is_finite(value: Any) -> TypeGuard[float]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _plain(value: Any, key: str) -> Any:
    """What JSON can hold, with tuples for lists."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(inner, f"{key}[{i}]") for i, inner in enumerate(value))
    if value is None or isinstance(value, (bool, str)) or _is_finite(value):
        return value
    raise ConfigError(f"{key} is {value!r}, but must be a number, a string or a list of them")


WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    dict: "an object with keys",
}


def _wanted(hint: Any) -> str:
    """The annotation in words: `a list of strings`."""
    arguments = get_args(hint)
    if get_origin(hint) is not tuple:
        return WANTED.get(get_origin(hint) or hint, str(hint))
    if arguments[-1] is Ellipsis:
        return f"a list, each {_wanted(arguments[0])}"
    return f"a list of {' and '.join(map(_wanted, arguments))}"


def _convert_dataclass(value: Any, hint: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        where = key or "the experiment"
        raise ConfigError(f"{where} is {value!r}, but must hold the keys of {hint.__name__}")
    values = dict(value)
    kind = _kind(values.pop("kind", None), hint, key)
    hints = get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0) or ["kind"]
            raise ConfigError(f"unknown key {prefix}{name}; did you mean {prefix}{near[0]}?")
    return kind(**{k: _convert(v, hints[k], f"{prefix}{k}") for k, v in values.items()})


def _kind(name: Any, base: Any, key: str) -> Any:
    """The dataclass that "module:Class" names, which must be a kind of `base`."""
    if name is None:
        return base
    module, _, qualname = str(name).partition(":")
    try:
        kind = getattr(importlib.import_module(module), qualname)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{key}.kind is {name!r}, which cannot be imported: {error}; "
            f"name a {base.__name__} in a module on the path, as module:Class"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ConfigError(f"{key}.kind is {name!r}, which is no {base.__name__}")
    return kind
