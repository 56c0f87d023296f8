"""Notebooks: clean as committed, ready for Colab, and run top to bottom at tiny sizes."""

import ast
import base64
import io
import json
import os
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from PIL import Image

import zoo
from tests.checkpoints import random_variables
from zoo import text
from zoo.models import bert, clip, dinov2, gpt, vit

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
TINY = {  # notebook: what replaces the sizes in its cell tagged "parameters"
    "01_first_model": {"STEPS": 4, "EVALUATE_EVERY": 2, "LOG_EVERY": 1, "SHOWN": 3},
    "02_pretrained": {
        "CLASSIFIER": "published/vit",
        "BACKBONE": "published/dinov2",
        "BACKBONE_IS": {
            "name": "dinov2_s14",
            "options": {"patch": 8, "width": 32, "depth": 2, "heads": 2, "hidden": 64},
        },
        "SMALL": (3, 4),
        "LARGE": (6, 8),
        "DIGIT": 2,
        "PROBE": 2,
        "FINE_TUNE": 2,
        "EVALUATE_EVERY": 2,
    },
    "03_language": {
        "MODEL": {"width": 32, "depth": 1, "heads": 2, "mlp": 64, "context": 64},
        "DATA": {"source": "text:texts/*.txt", "tokenizer": "bpe:300", "length": 32},
        "STEPS": 2,
        "EVALUATE_EVERY": 1,
        "WRITER": "published/gpt2",
        "READER": "published/bert",
        "LENGTH": 24,
    },
    "04_clip": {
        "MODEL": {
            **{key: 16 for key in ("embed", "width", "mlp", "text_width", "text_mlp")},
            **{"stages": (), "patch": 16, "depth": 1, "heads": 2, "text_depth": 1, "text_heads": 2},
        },
        "DATA": {"source": "pairs:pairs/names.csv", "distinct": False, "batch_size": 16},
        "STEPS": 2,
        "EVALUATE_EVERY": 2,
        "PROBE": 200,
        "PUBLISHED": "published/clip",
    },
    "05_nerf": {
        "MODEL": {"levels": 2, "rows": 64, "coarsest": 4, "finest": 8, "width": 8},
        "DATA": {
            **{"size": 16, "samples": 1, "views": (4, 2, 2), "cache": "drawn"},
            **{"batch_size": 64, "judged": 256},
        },
        "SAMPLER": {"resolution": 8, "steps": 16, "slots": 8},
        "STEPS": 2,
        "EVALUATE_EVERY": 2,
        "FRAMES": 2,
        "CELLS": 8,
        "THRESHOLD": 0.05,
    },
}
WORDS = 300  # of the tokenizers that are trained below
PUBLISHED = {  # random weights that stand for those on the hub, with their preprocessor_config.json
    "vit": (
        vit.ViT(vit.TINY),
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    ),
    "dinov2": (
        dinov2.DINOv2(dinov2.Config(8, 32, 2, 2, "mlp", 64, image_size=32)),
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 36},
            "crop_size": {"height": 32, "width": 32},
        },
    ),
    "clip": (
        clip.CLIP(replace(clip.TINY, vocab=WORDS)),
        {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32},
    ),
}
SENTENCES = ["She put the book on the table and sat down.", "def area(self, radius): return 3"]
TEXTS = {  # random weights with a tokenizer that was trained on a few words
    "gpt2": (gpt, {"context": 128}),
    "bert": (bert, {"head": "mlm", "num_classes": 0, "context": 128}),
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def executed(path: Path, folder: Path) -> Any:
    """A notebook after a tiny run in an empty folder, with every kind of Python warning shown.

    nbclient raises CellExecutionError for a cell that fails, with the cell and its traceback.
    """
    notebook = read(path)
    shrink(notebook, TINY[path.stem])
    publish(folder / "published")
    draw_pairs(folder / "pairs")
    client = NotebookClient(notebook, resources={"metadata": {"path": str(folder)}})
    # Without folders to search, "python3" is this interpreter, whatever kernels are installed.
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    one = " --xla_force_host_platform_device_count=1"  # a device, as on Colab
    flags = os.environ["XLA_FLAGS"] + one
    return client.execute(env={**os.environ, "PYTHONWARNINGS": "default", "XLA_FLAGS": flags})


def test_there_are_notebooks_and_each_has_tiny_sizes():
    assert sorted(TINY) == [path.stem for path in NOTEBOOKS]


@each_notebook
def test_a_notebook_is_valid_and_names_the_python3_kernel(path: Path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_a_notebook_is_committed_without_outputs(path: Path):
    for cell in code_cells(read(path)):
        assert (cell.outputs, cell.execution_count) == ([], None), cell.source


@each_notebook
def test_a_notebook_begins_with_a_badge_that_opens_this_file_in_colab(path: Path):
    link = f"https://colab.research.google.com/github/flax-zoo/flax-zoo/blob/main/colab/{path.name}"
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert f"(https://colab.research.google.com/assets/colab-badge.svg)]({link})" in first.source


@each_notebook
def test_the_first_code_cell_installs_this_package_where_it_is_missing(path: Path):
    source = code_cells(read(path))[0].source
    guard, install = (line for line in source.splitlines() if "zoo" in line)
    assert guard == 'if importlib.util.find_spec("zoo") is None:'
    command, wanted, _ = install.split('"')
    assert command == "    %pip install -q "
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirement = Requirement(wanted)
    assert requirement.name == project["name"]
    assert requirement.extras <= set(project["optional-dependencies"])
    assert requirement.url == "git+https://github.com/flax-zoo/flax-zoo"


@each_notebook
def test_a_notebook_runs_without_a_warning_and_draws(path: Path, tmp_path: Path):
    """All that is claimed of a run, in one test: however the suite is spread, it runs once."""
    notebook = executed(path, tmp_path)
    [sizes] = [cell for cell in notebook.cells if "shrunk" in tags(cell)]
    assert streams(sizes, "stdout").strip() == sys.executable
    assert code_cells(notebook)[0].outputs == []  # nothing is installed where the package is
    said = {cell.id: streams(cell, "stderr") for cell in code_cells(notebook)}
    assert {name: text for name, text in said.items() if text} == {}
    drawing = [cell for cell in code_cells(notebook) if draws(cell)]
    assert drawing
    for cell in drawing:
        assert shown(cell), f"no picture from:\n{cell.source}"
        for picture in shown(cell):
            assert np.ptp(picture) > 0, f"a blank picture from:\n{cell.source}"


def test_a_changed_size_must_be_named_in_the_cell_of_sizes():
    notebook = read(NOTEBOOKS[0])
    with pytest.raises(KeyError, match="STEP_COUNT"):
        shrink(notebook, {"STEP_COUNT": 1})


# ---- what notebooks load ----


def publish(folder: Path) -> None:
    """Writes `PUBLISHED` and `TEXTS` as the hub holds such models: transformers' files, and no card
    of ours; and texts to train on."""
    for name, (model, processor) in PUBLISHED.items():
        card = zoo.Card(name, asdict(model.config), labels=tuple("ABCDEFGHIJ"))
        zoo.save(model, random_variables(model), folder / name, format="hf", card=card)
        (folder / name / "card.json").unlink()
        processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **processor}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(processor))
    tokenizer = text.train_bpe(SENTENCES * 4, WORDS, specials=("<|endoftext|>", "<mask>"))
    for name, (page, changes) in TEXTS.items():
        model = zoo.module_class(page)(replace(page.TINY, vocab=tokenizer.vocab_size, **changes))
        zoo.save(model, random_variables(model), folder / name, format="hf")
        tokenizer.save(folder / name)
    tokenizer.save(folder / "clip")
    (folder.parent / "texts").mkdir()
    for i in range(40):
        lines = [f"def f{i}_{j}(x):\n    return x + {j}\n" for j in range(20)]
        (folder.parent / "texts" / f"{i}.txt").write_text("".join(lines))


def draw_pairs(folder: Path) -> None:
    """Pictures with names of three scripts, and the table of them."""
    folder.mkdir()
    rows = ["image,caption"]
    for i in range(90):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{('latin', 'greek', 'cyrillic')[i % 3]} letter number {i}")
    (folder / "names.csv").write_text("\n".join(rows))


# ---- reading notebooks ----


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def shrink(notebook: Any, sizes: dict[str, Any]) -> None:
    """Adds a cell after the one tagged "parameters" that sets sizes anew, and names its Python.

    Raises KeyError for a size that the tagged cell does not set.
    """
    [place] = [i for i, cell in enumerate(notebook.cells) if "parameters" in tags(cell)]
    assigned = {
        target.id
        for node in ast.parse(notebook.cells[place].source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if unknown := sorted(set(sizes) - assigned):
        raise KeyError(f"sizes {unknown} are not among {sorted(assigned)}")
    lines = [f"{name} = {value!r}" for name, value in sizes.items()]
    source = "\n".join([*lines, "import sys", "print(sys.executable)"])
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["shrunk"]})
    notebook.cells.insert(place + 1, cell)


def streams(cell: Any, name: str) -> str:
    """What a cell has written to "stdout" or "stderr"."""
    outputs = [output for output in cell.outputs if output.output_type == "stream"]
    return "".join(output.text for output in outputs if output.name == name)


def draws(cell: Any) -> bool:
    return any(sign in cell.source for sign in ("plt.", "Image(", "gallery.sheet("))


def shown(cell: Any) -> list[np.ndarray]:
    """The pictures that a cell displays, [h, w, channels]."""
    encoded = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in encoded]
