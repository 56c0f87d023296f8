"""The house: who may import whom, who may print, and what every page of the zoo has beside it."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest

import zoo.__main__
from zoo import registry

ROOT = Path(__file__).parent.parent
PAGES = sorted({entry.page for entry in registry.entries().values()})
NUMERICS = ("jax", "flax", "einops", "numpy")
ANYTHING = ("",)


@dataclass(frozen=True)
class Arrow:
    """Files whose path matches `files` import nothing but the standard library and `only`, of which
    not `never`. The first row that matches a file holds."""

    files: str
    only: tuple[str, ...]
    never: tuple[str, ...] = ()


INSIDE = ("zoo.models", "zoo.layers", "zoo.weights")
ARROWS = (
    Arrow("zoo/models/*", ("zoo.layers", "zoo.spec", *NUMERICS)),
    Arrow("zoo/layers/*", ("zoo.layers", *NUMERICS)),
    Arrow("zoo/weights/*", ("zoo", *NUMERICS, "safetensors", "huggingface_hub"), ("zoo.layers",)),
    Arrow(
        "zoo/*",
        ("zoo", *NUMERICS, "tokenizers", "jinja2", "PIL", "sklearn"),
        ("zoo.models", "zoo.layers"),
    ),
    Arrow("train/*", ANYTHING, (*INSIDE, "configs", "tests")),
    Arrow("configs/*", ("train", "zoo"), INSIDE),
)
# The logger prints, and so does what is run from the command line and has no logger yet.
PRINTERS = {"train/log.py", "train/__main__.py", "train/data/prepare.py"}


def python_files(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for folder in ("zoo", "train", "configs"):
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(module: ast.Module) -> Iterator[str]:
    """Dotted names of what is imported anywhere in a file, also in functions: `zoo.spec.Input`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (f"{start}.{alias.name}" for alias in node.names)


def inside(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") or not prefix for prefix in prefixes)


def wrong_imports(root: Path) -> list[str]:
    """`file: name` for every import that the arrows forbid; relative ones are not read, so all."""
    found = []
    for file, module in python_files(root):
        arrow = next(arrow for arrow in ARROWS if fnmatch(file, arrow.files))
        for name in imports(module):
            standard = name.partition(".")[0] in sys.stdlib_module_names
            allowed = (standard or inside(name, arrow.only)) and not inside(name, arrow.never)
            if name.startswith(".") or not allowed:
                found.append(f"{file}: {name}")
    return found


def printing(root: Path) -> set[str]:
    return {
        file
        for file, module in python_files(root)
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        if isinstance(node.func, ast.Name) and node.func.id == "print"
    }


def test_the_arrows_hold():
    assert wrong_imports(ROOT) == []


@pytest.mark.parametrize(
    "file, source, name",
    [
        ("zoo/models/vit.py", "from zoo.models.resnet import Stem", "zoo.models.resnet.Stem"),
        ("zoo/models/vit.py", "import zoo", "zoo"),
        ("zoo/models/vit.py", "from zoo import weights", "zoo.weights"),
        ("zoo/models/vit.py", "def f():\n    import optax", "optax"),
        ("zoo/models/vit.py", "from .resnet import Stem", ".resnet.Stem"),
        ("zoo/layers/mlp.py", "from zoo.spec import Input", "zoo.spec.Input"),
        ("zoo/generation.py", "from zoo.models import gpt", "zoo.models.gpt"),
        ("zoo/nerf/rays.py", "import train", "train"),
        ("zoo/weights/vit.py", "import torch", "torch"),
        ("train/tasks/lm.py", "from zoo.models.gpt import GPT", "zoo.models.gpt.GPT"),
        ("train/tasks/lm.py", "import zoo.models.gpt as gpt", "zoo.models.gpt"),
        ("train/tasks/lm.py", "from zoo import models", "zoo.models"),
        ("configs/gpt_stdlib.py", "import jax", "jax"),
    ],
)
def test_an_import_against_the_arrows_is_found(file, source, name, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert wrong_imports(tmp_path) == [f"{file}: {name}"]


def test_imports_along_the_arrows_pass(tmp_path):
    source = "import math\nimport jax.numpy as jnp\nfrom zoo.layers.conv import Conv\n"
    (tmp_path / "zoo" / "models").mkdir(parents=True)
    (tmp_path / "zoo" / "models" / "vit.py").write_text(source)
    assert wrong_imports(tmp_path) == []


def test_only_the_logger_and_the_command_line_print():
    assert {file for file in printing(ROOT) if file.startswith("train/")} <= PRINTERS
    assert {file for file in printing(ROOT) if file.startswith("zoo/")} == {"zoo/__main__.py"}


def test_a_print_is_found(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "loop.py").write_text("def f():\n    return [print(x) for x in y]")
    assert printing(tmp_path) == {"train/loop.py"}


UNTRAINED = {  # pages without a config, and why
    "lpips": "a measure to train others by; no source of the trainer holds people's judgements",
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_table_its_parity_test_and_a_config(page):
    assert (ROOT / "zoo" / "weights" / f"{page}.py").is_file()
    assert (ROOT / "tests" / "models" / f"test_{page}.py").is_file()
    configs = list((ROOT / "configs").glob(f"{page}_*.py"))
    assert bool(configs) != (page in UNTRAINED), f"configs/{page}_<data>.py is missing, or a reason"


def test_nothing_lies_beside_the_pages_that_belongs_to_none():
    for folder, pattern in (("zoo/models", "*.py"), ("tests/models", "test_*.py")):
        found = {path.stem.removeprefix("test_") for path in (ROOT / folder).glob(pattern)}
        assert found - {"__init__"} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_written_as_pages_are(page):
    module = import_module(f"zoo.models.{page}")
    assert {"Config", "VARIANTS", "TINY", "example"} <= vars(module).keys()
    assert "arXiv:" in module.__doc__.partition("\n")[0]
    assert "Differs from the paper: " in module.__doc__
    # Figure first: the model stands above the blocks that it is made of.
    classes = [node.name for node in page_tree(page).body if isinstance(node, ast.ClassDef)]
    assert classes[:2] == ["Config", zoo.module_class(module).__name__]


def page_tree(page: str) -> ast.Module:
    return ast.parse((registry.MODELS / f"{page}.py").read_text(encoding="utf-8"))


def test_the_readme_has_the_table_of_models():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    between = readme.partition("<!-- models -->")[2].partition("<!-- /models -->")[0]
    assert between.strip() == zoo.__main__.table(), (
        "replace it by what `python -m zoo table` prints"
    )
