"""The ledger: no golden file is left out, and what is above its bound is told."""

import re
from pathlib import Path

import numpy as np

from tests.golden import ledger, replay
from zoo.__main__ import main
from zoo.weights import store

ROOT = Path(__file__).parent.parent


def test_every_golden_file_of_a_model_is_in_the_ledger():
    recorded = set()
    for path in (ROOT / "tests" / "golden").glob("*.npz"):
        with np.load(path) as file:
            if replay.OUTPUTS & set(file.files):
                recorded.add(path.stem)
    assert {case.name for case in ledger.cases()} == recorded
    assert len(recorded) > 30


WITHOUT = {  # formats that need no golden file of their own
    ("resnet", "timm"): "torchvision's rows, with timm's config.json beside them (test_live)",
}


def test_every_format_has_a_case_or_a_reason():
    formats = {(page, name) for page in store.families() for name in store.table(page).FORMATS}
    recorded = {(ledger.family_of(case), case.format) for case in ledger.cases()}
    assert formats - recorded == WITHOUT.keys()


def test_the_command_prints_every_layer_beside_its_bound(capsys):
    assert main(["parity", "resnetv2"]) == 0
    lines, said = capsys.readouterr()
    layers = re.findall(r"^    hidden states +(\S+) +(\S+)  bound 1e-05$", lines, re.M)
    names = [name for name, _ in layers]
    assert names[0] == "hidden/stem" and names[-1] == "hidden/norm" and len(names) == 7
    assert all(0 < float(error) < 1e-5 for _, error in layers)
    assert "resnetv2, timm: resnetv2_timm, by timm 1.0.31" in lines
    assert re.search(r"values of 2 cases, 0 above their bound .*precision highest", said)


def test_what_is_above_its_bound_is_marked_and_fails(capsys, monkeypatch):
    monkeypatch.setitem(replay.BOUNDS, "output", 1e-12)
    assert main(["parity", "resnetv2"]) == 1
    lines, said = capsys.readouterr()
    assert len(re.findall("^    output .* ABOVE$", lines, re.M)) == 3
    assert "3 above their bound" in said


def test_a_family_without_golden_files_is_answered_with_those_that_have(capsys):
    assert main(["parity", "alexnet"]) == 2
    assert "'alexnet'" in capsys.readouterr().err


def test_the_readme_has_a_row_for_every_case():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [case.name for case in ledger.cases() if f"`{case.name}`" not in readme]
    assert not missing, "replace the table by what `python -m zoo parity --markdown` prints"
