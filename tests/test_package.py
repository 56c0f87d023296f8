"""What is shipped: the wheel alone trains, pins name no addresses, style and types hold."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import zoo
from train.__main__ import main

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The unpacked wheel, built as an installer builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (file,) = folder.glob("flax_zoo-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_both_packages_and_the_configs(wheel):
    assert {path.name for path in wheel.iterdir() if path.is_dir()} == {
        "zoo",
        "train",
        f"flax_zoo-{PROJECT['version']}.dist-info",
    }
    shipped = {path.name for path in (wheel / "train" / "configs").glob("*.py")}
    assert shipped == {path.name for path in (ROOT / "configs").glob("*.py")}


def test_the_wheel_alone_trains_a_config_by_name(wheel, tmp_path):
    """Away from the checkout: a config by name is that of the wheel."""
    short = ["--steps", "2", "--evaluate-every", "2", "--no-tensorboard", "--log", "plain"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "train", "resnet_digits", *short],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "done: test loss" in done.stdout
    assert (tmp_path / "runs" / "resnet_digits" / "model" / "model.safetensors").is_file()


def test_without_the_trainers_packages_it_says_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)  # as if it were not installed
    assert main(["resnet_digits"]) == 2
    assert "pip install 'flax-zoo[train]'" in capsys.readouterr().err


def test_pins_name_no_addresses_and_cover_what_is_required():
    pins = (ROOT / "constraints.txt").read_text()
    assert "://" not in pins
    pinned = {re.split(r"[=\[ ;]", line)[0].lower() for line in pins.splitlines()}
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *extras["train"], *extras["test"]]:
        name = re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")
        assert name in pinned | {"flax-zoo"}, f"{name} is not pinned in constraints.txt"


def test_versions_agree():
    assert PROJECT["version"] == zoo.__version__
    assert f"version: {zoo.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_begins_with_two_commands_of_one_line():
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    commands = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert "-m train resnet_digits" in commands[0] and "-m pytest" in commands[1]
    assert all(command.startswith("python3 -m venv") for command in commands[:2])


@pytest.mark.parametrize(
    "tool",
    [["ruff", "format", "--check"], ["ruff", "check"], ["pyright", "--pythonpath", sys.executable]],
    ids=lambda tool: " ".join(tool[:2]),
)
def test_style_and_types_hold(tool):
    done = subprocess.run(
        [sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
