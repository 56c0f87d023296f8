"""The folder `zoo/models` is the registry: names and counts are read from the pages, not imported.

A page's `VARIANTS` has literal keys and literal `params`, its `Config` annotated fields, and its
docstring begins with the paper, so that listing and checking names need neither jax nor flax.
"""

import ast
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zoo.spec import Count, Size

MODELS = Path(__file__).parent / "models"


class UnknownModel(ValueError):
    """No page lists this variant."""


@dataclass(frozen=True)
class Entry:
    """What is known of a variant without importing its page."""

    name: str
    page: str  # module of zoo.models
    params: int
    paper: str  # first line of the page's docstring
    fields: tuple[str, ...]  # of the page's Config


@cache
def entries() -> Mapping[str, Entry]:
    """Every variant of every page, by name. Raises ValueError if two pages share a name."""
    found: dict[str, Entry] = {}
    for path in sorted(MODELS.glob("*.py")):
        if path.stem == "__init__":
            continue
        for entry in read_page(path):
            if entry.name in found:
                raise ValueError(
                    f"variant {entry.name!r} is listed in zoo/models/{found[entry.name].page}.py "
                    f"and in zoo/models/{path.name}: rename one"
                )
            found[entry.name] = entry
    return found


def read_page(path: Path) -> list[Entry]:
    """The variants of one page, read from its syntax tree."""
    page = ast.parse(path.read_text(encoding="utf-8"))
    paper = (ast.get_docstring(page) or "").partition("\n")[0].rstrip(".")
    fields = tuple(
        field.target.id
        for node in page.body
        if isinstance(node, ast.ClassDef) and node.name == "Config"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
    return [
        Entry(ast.literal_eval(key), path.stem, _params(value, path), paper, fields)
        for node in page.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        if any(isinstance(t, ast.Name) and t.id == "VARIANTS" for t in node.targets)
        for key, value in zip(node.value.keys, node.value.values, strict=True)
        if key is not None
    ]


def _params(call: ast.expr, path: Path) -> int:
    keywords = call.keywords if isinstance(call, ast.Call) else []
    for keyword in keywords:
        if keyword.arg == "params":
            return ast.literal_eval(keyword.value)
    raise ValueError(f"{path.name}: every variant states its published count, params=…")


def entry(name: str) -> Entry:
    """Raises UnknownModel, naming the nearest variants."""
    known = entries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `python -m zoo list`"
        raise UnknownModel(f"no model is named {name!r}; {hint}")
    return known[name]


def paper(page: str) -> str:
    """The first line of a page's docstring."""
    return next(entry.paper for entry in entries().values() if entry.page == page)


def page(name: str) -> ModuleType:
    """The page (module) that lists the variant."""
    return importlib.import_module(f"zoo.models.{entry(name).page}")


def page_of(model: Any) -> ModuleType:
    """The page that defines a model instance's class."""
    return importlib.import_module(type(model).__module__)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises UnknownModel or TypeError for a name or an option that the page does not have."""
    fields = entry(name).fields
    for key in options:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)
            raise TypeError(
                f"{name} has no option {key!r}; did you mean {near[0]!r}? "
                f"Its options: {', '.join(fields)}"
            )


def check_config(name: str, config: Any) -> None:
    """Raises ValueError for a value that its field cannot have: none of a `Literal`'s choices, or a
    size that is no positive whole number."""
    for field, hint in get_type_hints(type(config), include_extras=True).items():
        value, (wanted, holds) = getattr(config, field), _claim(hint)
        if not holds(value):
            raise ValueError(f"{name} has no {field}={value!r}; it {wanted}")
    if hasattr(config, "check"):  # what one page alone can know
        config.check()


def _claim(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    """What a field of this type can be, in words and as a test; anything, for types not listed."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return f"is one of {', '.join(map(repr, choices))}", lambda value: value in choices
    return CLAIMS.get(hint, ("", lambda value: True))


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _not_negative(value: Any) -> bool:
    return type(value) is int and value >= 0


def _all_positive(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_positive, value))


CLAIMS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("takes a positive whole number", _positive),
    Count: ("takes a whole number, 0 or more", _not_negative),
    tuple[int, ...]: ("takes a tuple of positive whole numbers", _all_positive),
    Size: (
        "takes a positive whole number or two, (height, width)",
        lambda value: _positive(value) or (_all_positive(value) and len(value) == 2),
    ),
    bool: ("is True or False", lambda value: type(value) is bool),
    float: ("takes a number", lambda value: type(value) in (int, float)),
}
