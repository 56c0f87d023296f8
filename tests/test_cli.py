"""The command line: what it answers, with which exit code, and how little it imports to do so."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train import evaluate, serialise, workdir
from train.__main__ import main

ROOT = Path(__file__).parent.parent
TINY = {"depths": [1, 1], "widths": [8, 16], "stem_width": 8}

# Runs argument lists one after another, and tells what each printed and what is imported by then.
RUNNER = """
import contextlib, importlib, io, json, sys, traceback

module, calls = json.load(sys.stdin)
main, answers = importlib.import_module(module).main, []
for arguments in calls:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException:
            code, _ = "raised", traceback.print_exc()
    heavy = [name for name in ("jax", "flax", "tensorflow") if name in sys.modules]
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    answers.append([code, *texts, heavy])
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Answer:
    code: int | str | None
    out: str
    err: str
    imported: list[str]


def ask(module: str, calls: list[list[str]]) -> list[Answer]:
    """The answers of MODULE.main to several argument lists, in one process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([module, calls]),
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    return [Answer(*answer) for answer in json.loads(done.stdout)]


# ---- what needs no jax ----


def claimed(directory: Path, checkpoint: bool, **data) -> Path:
    """A workdir that an experiment claimed, with or without a checkpoint in it."""
    values = serialise.to_dict(serialise.load("resnet_digits"))
    values["data"] |= data
    (directory / "checkpoints" / ("100" if checkpoint else "")).mkdir(parents=True)
    workdir.write(directory, workdir.CONFIG, values)
    return directory


REFUSED = {  # arguments, PLACE being a folder of the test → parts of the message
    "resnet_digit": ("no config 'resnet_digit'", "resnet_digits"),
    "--workdir PLACE/new resnet_digits": ("CONFIG comes before --workdir",),
    "resnet_digits --optm.lr 3": ("--optm.lr", "--optim.lr"),
    "resnet_digits --optim.learning-rate 3": ("--optim.learning-rate",),
    "resnet_digits --steps ten": ("--steps", "'ten'"),
    "resnet_digits --optim.lr fast": ("--optim.lr", "'fast'"),
    "resnet_digits --optim.name adam": ("--optim.name", "adamw"),
    "resnet_digits --step.precision bf16": ("--step.precision", "bfloat16"),
    "resnet_digits --steps": ("--steps",),
    "resnet_digits --model.options {": ("--model.options",),
    "resnet_digits --model.options 5": ("model.options is 5", "an object with keys"),
    'resnet_digits --model.options {"width":5}': ("model.options", "'widths'"),
    "resnet_digits --steps -5": ("steps is -5", "positive"),
    "resnet_digits --data.batch-size 0": ("data.batch_size is 0", "positive"),
    "resnet_digits --optim.lr nan": ("optim.lr is nan", "finite"),
    "resnet_digits --step.accumulate 3": ("data.batch_size is 64", "step.accumulate 3"),
    "resnet_digits --model.name resnet21": ("model.name", "resnet20"),
    "resnet_digits --data.source mnist": ("data.source", "'mnist'", "One of digits"),
    "resnet_digits --data.source folder:PLACE/none": ("data.source", "there is no folder"),
    "resnet_digits --data.source folder:PLACE/empty": ("data.source", "no sub-folders"),
    "resnet_digits --data.source folder:PLACE/hollow": ("data.source", "no picture", "cats"),
    "resnet_digits --data.augment flop": ("data.augment", "'flip'"),
    "resnet_digits --parallel.compiler pmap --parallel.fsdp 2": ("parallel.fsdp is 2", "pmap"),
    "resnet_digits --workdir PLACE/file": ("--workdir PLACE/file", "File exists"),
    "resnet_digits --workdir PLACE/file/below": ("--workdir PLACE/file/below", "Not a directory"),
    "resnet_digits --workdir PLACE/other": (
        "another experiment",
        "data.batch_size: 32 → 64",
        "--accept-changes",
    ),
    "PLACE/other --data.batch-size 16": ("data.batch_size: 32 → 16", "--accept-changes"),
    "PLACE/other --steps 50 --accept-changes": ("steps is 50", "trained for 100"),
    "PLACE/empty": ("PLACE/empty", "without config.json"),
    "PLACE/torn": ("PLACE/torn/config.json", "not JSON"),
    "resnet_digits --workdir PLACE/torn": ("PLACE/torn/config.json", "not JSON"),
    "PLACE/faulty.py": ("PLACE/faulty.py, line 1", "SyntaxError"),
}
ANSWERED = {  # arguments → parts of the output
    "": ("usage: python -m train CONFIG", "resnet_digits"),
    "--help": ("usage: python -m train CONFIG", "--overfit-one-batch"),
    "resnet_digits --help": ("--optim.lr", "--model.options", "--workdir", "--task.mixup"),
    "resnet_digits --print-config": ('"source": "digits"',),
    "PLACE/other --print-config": ('"batch_size": 32',),
    "resnet_digits --optim.lr 0.5 --data.augment flip crop:1 --print-config": (
        '"lr": 0.5',
        "crop:1",
    ),
    'resnet_digits --model.options {"widths":[8,8,8]} --print-config': ('"widths": [',),
    "resnet_digits --workdir PLACE/done": ("PLACE/done is complete: test", "PLACE/done/model"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folders with everything that can be wrong."""
    place = tmp_path_factory.mktemp("place")
    (place / "hollow" / "cats").mkdir(parents=True)
    for name in ("empty", "torn"):
        (place / name).mkdir()
    (place / "file").write_text("in the way")
    (place / "torn" / "config.json").write_text('{"steps": 3')
    (place / "torn" / "checkpoints" / "100").mkdir(parents=True)
    (place / "faulty.py").write_text("def experiment(:\n")
    claimed(place / "other", checkpoint=True, batch_size=32)
    reached = {"steps": 800, "best_step": 700, "training_seconds": 60.0, "test": {"accuracy": 0.99}}
    workdir.write(claimed(place / "done", checkpoint=True), workdir.RESULT, reached)
    return place


@pytest.fixture(scope="module")
def answers(place) -> dict[str, Answer]:
    """Every call of both tables, all in one process: what an earlier one imports would show."""
    calls = [*ANSWERED, *REFUSED]
    split = [call.replace("PLACE", str(place)).split() for call in calls]
    return dict(zip(calls, ask("train.__main__", split), strict=True))


@pytest.mark.parametrize("call", REFUSED)
def test_a_wrong_command_gets_one_message_and_exit_code_2(call, answers, place):
    answer = answers[call]
    assert answer.code == 2, answer
    assert answer.out == "" and "Traceback" not in answer.err
    for part in REFUSED[call]:
        assert part.replace("PLACE", str(place)) in answer.err
    assert answer.err.count("error: ") + answer.err.count("─╮") == 1, "one message"


@pytest.mark.parametrize("call", ANSWERED)
def test_what_trains_nothing_is_answered_with_exit_code_0(call, answers, place):
    answer = answers[call]
    assert answer.code == 0 and answer.err == "", answer
    assert all(part.replace("PLACE", str(place)) in answer.out for part in ANSWERED[call])


def test_what_needs_no_device_is_answered_before_jax_is_imported(answers):
    assert {call: answer.imported for call, answer in answers.items() if answer.imported} == {}


def test_the_printed_config_is_the_experiment(answers, tmp_path):
    (tmp_path / "config.json").write_text(answers["resnet_digits --print-config"].out)
    assert serialise.load(str(tmp_path)) == serialise.load("resnet_digits")


def test_a_refused_command_leaves_no_trace(answers, place):
    assert not (place / "new").exists()
    values = json.loads((place / "other" / "config.json").read_text())
    assert values["data"]["batch_size"] == 32
    assert sorted(p.name for p in (place / "other").iterdir()) == ["checkpoints", "config.json"]


def test_an_unknown_data_set_of_tfds_is_answered_with_the_nearest():
    (answer,) = ask("train.__main__", [["resnet_digits", "--data.source", "tfds:fashon_mnist"]])
    assert answer.code == 2 and "Traceback" not in answer.err
    assert "data.source = 'tfds:fashon_mnist'" in answer.err and "fashion_mnist" in answer.err
    assert not {"jax", "flax", "tensorflow"} & set(answer.imported)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_workdir_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["resnet_digits", "--workdir", str(tmp_path)]) == 2
    assert "cannot be written: Permission denied" in capsys.readouterr().err


def test_settings_may_change_until_there_is_a_checkpoint(tmp_path):
    cfg = serialise.load("resnet_digits")
    directory = claimed(tmp_path, checkpoint=False, batch_size=32)
    workdir.claim(directory, cfg)
    assert serialise.load(str(directory)) == cfg


def test_accepted_changes_are_noted_and_make_a_complete_run_incomplete(tmp_path):
    cfg = serialise.load("resnet_digits")
    directory = claimed(tmp_path, checkpoint=True, batch_size=32)
    workdir.write(directory, workdir.RESULT, {"steps": 800})
    workdir.claim(directory, cfg, accept_changes=True)
    assert serialise.load(str(directory)) == cfg
    assert workdir.result(directory) is None
    workdir.write(directory, workdir.RESULT, {"steps": 800})
    workdir.claim(directory, cfg, accept_changes=True)  # nothing changed
    assert workdir.result(directory) == {"steps": 800}


# ---- the zoo's commands, the scripts ----


def test_the_zoo_lists_without_jax_and_answers_an_unknown_model_with_code_2():
    calls = [["list"], ["list", "resnet5*"], ["list", "zzz*"], ["--help"], ["describe", "resnet21"]]
    every, some, none, usage, unknown = ask("zoo.__main__", calls)
    assert [a.code for a in (every, some, none, usage, unknown)] == [0, 0, 2, 0, 2]
    assert "resnet20" in every.out and "25,557,032" in some.out and "resnet20" not in some.out
    assert "zzz*" in none.err and "resnet20" in unknown.err and "describe" in usage.out
    assert not any("Traceback" in a.err for a in (none, unknown))
    assert usage.imported == []  # nor did the calls before it


def test_the_zoo_describes_a_model(capsys):
    from zoo.__main__ import main as zoo_main

    assert zoo_main(["describe", "resnet20"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("269,722 parameters", "widths = (16, 32, 64)", "head"))


def test_the_declared_scripts_are_functions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    scripts = project["scripts"]
    assert scripts.keys() == {"flax-zoo", "flax-zoo-train"}
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_evaluate_answers_without_jax_until_there_is_something_to_evaluate(place, tmp_path):
    claimed(tmp_path / "new", checkpoint=False)
    calls = [["--help"], [str(place / "none")], [str(place / "empty")], [str(tmp_path / "new")]]
    usage, none, empty, new = ask("train.evaluate", [*calls, ["--step", "x", "."]])[:4]
    assert usage.code == 0 and "--split" in usage.out
    assert [a.code for a in (none, empty, new)] == [2, 2, 2]
    assert "config.json" in none.err and "config.json" in empty.err and "no checkpoint" in new.err
    assert all(a.err.startswith("error: ") and a.imported == [] for a in (none, empty, new))


# ---- what needs devices, but no compilation ----

UNFIT = {  # on eight devices
    "--data.batch-size 12": ("data.batch_size is 12", "8 devices"),
    "--data.batch-size 24 --step.accumulate 2": ("data.batch_size is 24", "step.accumulate 2"),
    "--parallel.data 3": ("parallel: data", "8 devices"),
    "--parallel.data 3 --parallel.fsdp -1": ("parallel: data", "8 devices"),
    "--parallel.data 8 --parallel.tensor 2": ("parallel: data", "8 devices"),
    "--data.mean 0.1 0.2 0.3 --data.std 1": ("data.mean has 3 values", "1 channels"),
}


@pytest.mark.parametrize("options", UNFIT)
def test_what_does_not_fit_the_devices_is_refused_by_key_before_tracing(
    options, tmp_path, capsys, monkeypatch
):
    from train import parallel

    def traced(*_):
        raise AssertionError("the model is traced")

    monkeypatch.setattr(parallel, "initialise", traced)
    assert main(["resnet_digits", "--workdir", str(tmp_path), *options.split()]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in UNFIT[options]), message
    # The corrected command is not held up by the wrong one.
    workdir.claim(tmp_path, serialise.load("resnet_digits"))


# ---- runs ----


def arguments(directory: Path, *more: str) -> list[str]:
    """Two tiny steps."""
    model = ["--model.options", json.dumps(TINY), "--log", "plain", "--no-tensorboard"]
    rest = ["--steps", "2", "--evaluate-every", "1", "--log-every", "1", *more]
    return ["resnet_digits", "--workdir", str(directory), *model, *rest]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    assert main(arguments(directory)) == 0
    return directory


def test_a_complete_run_is_not_trained_again(trained, capsys, monkeypatch):
    from train import loop

    monkeypatch.setattr(loop, "fit", lambda *_: pytest.fail("trained again"))
    assert main(arguments(trained)) == 0
    assert f"{trained} is complete: test loss" in capsys.readouterr().out
    assert main([str(trained)]) == 0


def test_evaluating_again_gives_the_result_to_the_last_digit_and_writes_nothing(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    result = workdir.result(trained)
    assert result is not None
    found = evaluate.evaluate(trained)
    assert (found.step, found.metrics) == (result["best_step"], result["test"])
    assert evaluate.evaluate(trained, "validation").metrics == result["validation"]
    assert evaluate.main([str(trained), "--step", "1"]) == 0
    shown = capsys.readouterr().out
    assert "step 1, test: loss" in shown and "accuracy" in shown
    assert all(f"\n{digit}" in shown for digit in range(10)), "the table of classes"
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_evaluating_a_step_without_checkpoint_is_refused(trained, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(trained), "--step", "7"])
    assert "error: no checkpoint of step 7" in capsys.readouterr().err


def test_a_changed_batch_size_is_refused_on_resume_unless_accepted(trained, capsys):
    changes = ("--data.batch-size", "32", "--steps", "3")
    assert main(arguments(trained, *changes)) == 2
    message = capsys.readouterr().err
    assert "data.batch_size: 64 → 32" in message and "steps: 2 → 3" in message
    assert main(arguments(trained, *changes, "--accept-changes")) == 0
    shown = capsys.readouterr().out
    assert "resuming from step 2 of 3" in shown and "done: test" in shown
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3]
    assert [row["step"] for row in rows if row["split"] == "test"] == [3]


# ---- pictures that cannot be read ----


def folder(root: Path, pictures: int, broken: int) -> Path:
    """Two classes of 8×8 pictures, dark and light; the last `broken` of each are text."""
    rng = np.random.default_rng(0)
    for shade, name in ((10, "dark"), (150, "light")):
        (root / name).mkdir(parents=True)
        for i in range(pictures // 2):
            pixels = rng.integers(shade, shade + 90, (8, 8), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03}.png")
        for i in range(pictures // 2 - broken, pictures // 2):
            (root / name / f"{i:03}.png").write_text("no picture")
    return root


def test_a_folder_with_too_many_unreadable_pictures_fails_with_one_message(tmp_path, capsys):
    source = f"folder:{folder(tmp_path / 'data', pictures=100, broken=4)}"
    assert main(arguments(tmp_path / "run", "--data.source", source)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data.source: ") and error.count("error: ") == 1
    assert "cannot be read, more than 1%" in error and ".png" in error
    assert "Traceback" not in error


def test_a_few_unreadable_pictures_are_left_out_and_told(tmp_path, capsys):
    source = f"folder:{folder(tmp_path / 'data', pictures=600, broken=1)}"
    more = ("--data.source", source, "--steps", "8", "--evaluate-every", "8")
    assert main(arguments(tmp_path / "run", *more)) == 0
    shown = capsys.readouterr().out
    assert (
        "train pictures cannot be read and are left out" in shown
        and ".png: no picture format" in shown
    )


# ---- generation ----


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    """A tiny GPT of bytes, saved, whose texts may end at 33 too."""
    from tests.checkpoints import saved
    from zoo.models import gpt
    from zoo.text import ByteTokenizer

    place = tmp_path_factory.mktemp("writer")
    saved(gpt, place, "flax", vocab=257, context=32, depth=1)
    ByteTokenizer().save(place)
    (place / "generation_config.json").write_text('{"eos_token_id": [256, 33]}')
    return place


def asked(writer: Path, monkeypatch, *arguments: str, piped: str = "") -> dict:
    """What the command asks of zoo.generate."""
    import io

    import zoo
    from zoo.__main__ import main as zoo_main
    from zoo.generation import Completion

    calls = []

    def generate(model, variables, prompts, **options):
        calls.append({"prompts": prompts, **options})
        return [Completion((), "", (), "stop")]

    monkeypatch.setattr(zoo, "generate", generate)
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert zoo_main(["generate", str(writer), *arguments]) == 0
    return calls[0]


def test_generate_writes_as_it_streams_what_the_function_returns(writer, capsys):
    import zoo
    from zoo import text
    from zoo.__main__ import main as zoo_main

    assert zoo_main(["generate", str(writer), "def ", "--temperature", "0.9", "--seed", "3"]) == 0
    model, variables = zoo.load(writer)
    tokenizer = text.load(writer)
    options = {"temperature": 0.9, "seed": 3, "stop": [33]}
    [found] = zoo.generate(model, variables, "def ", tokenizer=tokenizer, **options)
    assert capsys.readouterr().out == found.text + "\n" and found.text


def test_generate_stops_at_all_ids_of_a_generation_config(writer, monkeypatch):
    assert asked(writer, monkeypatch, "a", "--stop", "b")["stop"] == ["b", 256, 33]


def test_generate_takes_the_length_penalty_of_its_beams(writer, monkeypatch):
    options = asked(writer, monkeypatch, "a", "--beams", "3", "--length-penalty", "-0.5")
    assert (options["beams"], options["length_penalty"]) == (3, -0.5)


@pytest.mark.parametrize("piped, prompt", [("a\n", "a"), ("a\n\n", "a\n"), ("a", "a")])
def test_a_piped_prompt_is_without_the_end_of_its_last_line(piped, prompt, writer, monkeypatch):
    assert asked(writer, monkeypatch, "-", piped=piped)["prompts"] == [prompt]


def test_an_empty_prompt_begins_with_what_the_tokenizer_begins_with(writer, monkeypatch):
    from zoo.text import ByteTokenizer

    assert asked(writer, monkeypatch, "")["prompts"] == [[256]]
    # As Llama's, which begins every text with <s>.
    monkeypatch.setattr(ByteTokenizer, "_encode", lambda self, texts, *_: [[1] for _ in texts])
    assert asked(writer, monkeypatch, "")["prompts"] == [""]
