"""Experiments round-trip through JSON, and about 400 wrong ones are refused by key, without jax."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from train import check as rules
from train import serialise
from train.__main__ import main
from train.check import check
from train.config import (
    ConfigError,
    Experiment,
    Images,
    LabelledText,
    Model,
    Optim,
    Pairs,
    Parallel,
    Picture,
    Step,
    Text,
    Views,
)
from train.tasks.classify import Classify
from train.tasks.lm import LM
from train.tasks.mlm import MLM
from train.tasks.seqcls import SequenceClassification
from train.tasks.tagging import Tagging

pytestmark = pytest.mark.quick

BASE = Experiment(task=Classify())
TEXT = Experiment(model=Model("gpt2"), data=Text(), task=LM())


def schema(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every field by its dotted key, with its annotation."""
    hints, found = get_type_hints(type(value)), {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        nested = dataclasses.is_dataclass(inner)
        key = prefix + field.name
        found |= schema(inner, f"{key}.") if nested else {key: hints[field.name]}
    return found


SCHEMA = schema(BASE)
OF_TEXT = {key: hint for key, hint in schema(TEXT).items() if key not in SCHEMA}
KEYS = SCHEMA | OF_TEXT


def changed(**changes: Any) -> dict[str, Any]:
    """BASE (or TEXT, where it has a key that BASE has not) as JSON values, with some of them
    replaced: `changed(**{"optim.lr": 3})`."""
    base = TEXT if changes.keys() & OF_TEXT.keys() else BASE
    values = copy.deepcopy(serialise.to_dict(base))
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = value
    return values


def attempt(values: Any) -> str:
    """The message of the ConfigError that the values raise; empty if they are good."""
    try:
        check(serialise.from_dict(values))
    except ConfigError as error:
        return str(error)
    return ""


# ---- wrong values of every field, from its annotation ----

WRONG = {
    bool: (1, "yes", None),
    int: ("3", 1.5, True, [1], {}),
    float: ("x", True, float("nan"), float("inf"), [0.1]),
    str: (5, ["a"], None),
    dict: (5, [1], "text", {"a": {"b": 1}}),
}


def wrong(hint: Any) -> tuple[Any, ...]:
    """Values that an annotation does not admit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return tuple(value for value in wrong(arguments[0]) if value is not None)
    if origin is Literal:
        return (5, None, [arguments[0]], f"{arguments[0]}x")
    if origin is tuple:
        return (5, "text", None, [wrong(arguments[0])[0]])
    return WRONG[origin or hint]


def test_the_annotations_in_use_all_have_wrong_values():
    assert all(wrong(hint) for hint in KEYS.values())


def typed() -> list[tuple[dict[str, Any], str]]:
    """(JSON values, what the message must contain): a wrong type for every key."""
    return [(changed(**{key: bad}), key) for key, hint in KEYS.items() for bad in wrong(hint)]


def misspelt() -> list[tuple[dict[str, Any], str]]:
    """An unknown key beside every key that there is: the message names both."""
    return [(changed(**{f"{key}s": 1}), f"{key}s; did you mean {key}?") for key in SCHEMA]


def out_of_range() -> list[tuple[dict[str, Any], str]]:
    below, shares = (rules.POSITIVE, (0, -3)), (rules.SHARES, (-0.1, 1.1))
    table = (below, shares, (rules.NOT_NEGATIVE, (-1,)), (rules.SIZES, (0, -2)))
    return [
        (changed(**{key: type_of(key)(bad)}), f"{key} is {type_of(key)(bad)}, but must be")
        for keys, bads in table
        for key in keys
        for bad in bads
    ]


def type_of(key: str) -> Any:
    hint = KEYS[key]
    return get_args(hint)[0] if get_args(hint) else hint


OTHERS = [  # changes → what the message must contain, all of it
    ({"data.batch_size": 10, "step.accumulate": 4}, ("data.batch_size is 10", "accumulate 4")),
    ({"optim.warmup": 1000}, ("optim.warmup is 1000", "run of 1000")),
    ({"optim.decay": ["("]}, ("optim.decay", "'('")),
    ({"optim.freeze": ["[a"]}, ("optim.freeze", "'[a'")),
    ({"optim.lr_scale": [["*", 2.0]]}, ("optim.lr_scale", "'*'")),
    ({"optim.lr_scale": [["a"]]}, ("optim.lr_scale[0]", "a string and a finite number")),
    ({"optim.name": "adam"}, ("optim.name", "'adamw'")),
    ({"optim.schedule": "onecycle"}, ("optim.schedule", "'one_cycle'")),
    ({"step.precision": "bf16"}, ("step.precision", "'bfloat16'")),
    ({"parallel.data": -1, "parallel.fsdp": -1}, ("parallel.data and parallel.fsdp",)),
    ({"parallel.compiler": "pmap", "parallel.fsdp": 2}, ("parallel.fsdp is 2", "pmap")),
    ({"parallel.compiler": "pmap", "parallel.tensor": 4}, ("parallel.tensor is 4", "pmap")),
    ({"model.name": "resnet21"}, ("model.name", "resnet20")),
    ({"model.name": "zzz"}, ("model.name", "zoo list")),
    ({"model.options": {"zero_int": True}}, ("model.options", "'zero_init'")),
    ({"model.options": {"widths": {"a": 1}}}, ("model.options.widths",)),
    ({"data.source": "digit"}, ("data.source", "'digit'", "did you mean digits")),
    ({"data.source": "digits:3"}, ("data.source", "form digits")),
    ({"data.source": "folder"}, ("data.source", "folder:PATH")),
    ({"data.source": "folder:/no/such/folder"}, ("data.source", "/no/such/folder")),
    ({"data.source": "tfds:"}, ("data.source", "tfds:NAME")),
    ({"data.source": "tfds:a b"}, ("data.source", "tfds:NAME")),
    ({"seed": 2**63}, ("seed is", "less than 2**63")),
    ({"data.seed": 2**63}, ("data.seed is", "less than 2**63")),
    ({"data.channels": 2}, ("data.channels is 2", "1 or 3")),
    ({"data.mean": []}, ("data.mean",)),
    ({"data.mean": [0.5, 0.5]}, ("data.mean",)),
    ({"data.mean": [0.5] * 3, "data.channels": 1}, ("data.mean",)),
    ({"data.std": [0.0]}, ("data.std",)),
    ({"data.std": [0.5, -0.5, 0.5]}, ("data.std",)),
    ({"data.augment": ["flop"]}, ("data.augment", "flop", "'flip'")),
    ({"data.augment": ["crop"]}, ("data.augment", "crop:PAD")),
    ({"data.augment": ["crop:-1"]}, ("data.augment", "PAD")),
    ({"data.augment": ["crop:x"]}, ("data.augment", "a whole number")),
    ({"data.augment": ["randaugment:2"]}, ("data.augment", "randaugment:N:M")),
    ({"task.label_smoothing": 1.0}, ("task.label_smoothing",)),
    ({"task.mixup": -0.5}, ("task.mixup",)),
    ({"task.cutmix": -0.5}, ("task.cutmix",)),
    ({"task.kind": "os:getcwd"}, ("task.kind", "no Task")),
    ({"task.kind": "train.config:Optim"}, ("task.kind", "no Task")),
    ({"task.kind": "train.config:Images"}, ("task.kind", "no Task")),
    ({"data.kind": "train.config:Task"}, ("data.kind", "no Data")),
    ({"task.kind": "train.tasks.clasify:Classify"}, ("task.kind", "cannot be imported")),
    ({"task.kind": "train.tasks.classify:Clasify"}, ("task.kind", "cannot be imported")),
    ({"task.kind": ".x:Y"}, ("task.kind", "cannot be imported")),
    ({"task.kind": ":Y"}, ("task.kind", "cannot be imported")),
    ({"task.kind": 5}, ("task.kind", "cannot be imported")),
    ({"task": {"kind": "train.config:Task", "x": 1}}, ("task.x",)),
    ({"task": 5}, ("task is 5", "Task")),
    ({"optim": None}, ("optim is None", "Optim")),
    ({"optim": [1]}, ("optim is [1]", "Optim")),
]


def others() -> list[tuple[dict[str, Any], str]]:
    return [(changed(**changes), part) for changes, parts in OTHERS for part in parts]


def failures() -> list[str]:
    """The wrong experiments that are accepted, or refused with another message."""
    cases = typed() + misspelt() + out_of_range() + others()
    assert len(cases) > 300
    messages = [(part, attempt(values)) for values, part in cases]
    return [f"{part!r} is not in {message!r}" for part, message in messages if part not in message]


def test_every_wrong_experiment_is_refused_by_key_before_jax_is_imported():
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_config\n"
        "found = test_config.failures()\n"
        "heavy = [name for name in ('jax', 'flax', 'tensorflow_datasets') if name in sys.modules]\n"
        "print(json.dumps([found, heavy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, imported = json.loads(done.stdout)
    assert found == []
    assert imported == []


TOGETHER = [
    (LM(), Images(), "gpt2", "task LM learns from Text, but data is Images"),
    (LM(), LabelledText(), "gpt2", "task LM learns from Text, but data is LabelledText"),
    (MLM(), Images(), "bert_base", "task MLM learns from Text"),
    (SequenceClassification(), Text(), "bert_base", "learns from LabelledText, but data is Text"),
    (Classify(), Text(), "resnet20", "task Classify learns from Images"),
    (SequenceClassification(), LabelledText(tagging=True), "bert_base", "data.tagging is True"),
    (Tagging(), LabelledText(), "bert_base", "data.tagging is False, .* each word: set it to True"),
    (LM(), Text(), "bert_base", "model.name: bert_base is no decoder of text"),
    (LM(), Text(), "resnet20", "resnet20 is no decoder of text"),
    (MLM(), Text(), "gpt2", "gpt2 is no encoder of text; take one, such as bert_base"),
]


@pytest.mark.parametrize("task, data, model, message", TOGETHER)
def test_task_data_and_model_are_made_for_each_other(task, data, model, message):
    with pytest.raises(ConfigError, match=message):
        check(Experiment(task=task, data=data, model=Model(model)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vocab": "abc"}, "vocab is 'abc', but must be a positive whole number"),
        ({"vocab": True}, "vocab is True"),
        ({"context": 0}, "context is 0"),
        ({"context": 255}, "data.length is 256 tokens, but the context of gpt2 is 255"),
    ],
)
def test_sizes_of_text_are_checked_before_it_is_read(options, message):
    with pytest.raises(ConfigError, match=message):
        check(Experiment(task=LM(), data=Text(), model=Model("gpt2", options)))


@pytest.mark.parametrize("name", ["gpt_text", "gpt2_124m", "resnet_imagenet"])
def test_a_config_is_printed_where_its_data_are_not(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [] if "gpt" in name else ["--data.data-dir", str(tmp_path)]
    assert main([name, "--print-config", *arguments]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["model"]["name"] == serialise.load(name).model.name
    assert shown.err.startswith("warning: data.")
    assert main([name, *arguments]) == 2 and "error: data." in capsys.readouterr().err
    assert main([name, "--print-config", "--optim.lr", "-1", *arguments]) == 2


@pytest.mark.parametrize("values", ([1], None, "text", 5))
def test_what_is_no_object_is_no_experiment(values):
    with pytest.raises(ConfigError, match="the experiment is .* the keys of Experiment"):
        serialise.from_dict(values)


def test_a_good_experiment_is_accepted():
    assert attempt(changed()) == ""
    assert attempt(changed(**{"parallel.compiler": "pmap", "optim.lr": 1})) == ""


# ---- round trips ----

OTHER_VALUES = {
    bool: lambda value: not value,
    int: lambda value: (value or 0) + 3,
    float: lambda value: (value or 0) / 2 + 0.125,
    str: lambda value: f"{value}x",
    dict: lambda value: {"widths": (8, 16), "zero_init": False},
}


def another(hint: Any, value: Any) -> Any:
    """A value of the annotation that is not `value`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return another(arguments[0], value)
    if origin is Literal:
        return next(choice for choice in arguments if choice != value)
    if origin is tuple:
        once = arguments[:1] if arguments[-1] is Ellipsis else arguments
        return (
            (*value, *(another(a, None) for a in once))
            if value is not None
            else tuple(another(a, None) for a in once)
        )
    return OTHER_VALUES[origin or hint](value)


def every_field_changed(value: Any) -> Any:
    hints = get_type_hints(type(value))
    fields = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        nested = dataclasses.is_dataclass(old)
        fields[field.name] = every_field_changed(old) if nested else another(hints[field.name], old)
    return dataclasses.replace(value, **fields)


def through_json(experiment: Experiment) -> Experiment:
    return serialise.from_dict(json.loads(json.dumps(serialise.to_dict(experiment))))


def test_an_experiment_with_every_field_changed_survives_json():
    new = every_field_changed(BASE)
    old, flat = (serialise.flatten(serialise.to_dict(e)) for e in (BASE, new))
    same = {key for key in old if old[key] == flat[key]}
    assert same == {"data.kind", "task.kind"}
    assert through_json(new) == new


@pytest.mark.parametrize("name", serialise.shipped())
def test_every_shipped_config_is_good_and_survives_json(name):
    experiment = serialise.load(name)
    assert through_json(experiment) == experiment
    # The data set itself need not be here.
    embedded = {
        Images: {"source": "digits"},
        Text: {"source": "stdlib", "tokenizer": "bpe:300"},
        Pairs: {"source": "glyphs", "tokenizer": "words"},
        Picture: {"source": "photo"},
        Views: {"source": "scene"},
    }
    data = dataclasses.replace(experiment.data, **embedded[type(experiment.data)])
    here = dataclasses.replace(experiment, data=data)
    assert check(here) == here


def test_lists_and_whole_numbers_become_tuples_and_floats():
    loose: Any = Experiment(
        model=Model("resnet20", {"widths": [8, 8, 8]}),
        optim=Optim(lr=1, decay=[".*kernel"]),
        task=Classify(),
    )
    strict = check(loose)
    assert strict.optim.decay == (".*kernel",) and isinstance(strict.optim.lr, float)
    assert strict.model.options == {"widths": (8, 8, 8)}


# ---- files ----


def refused(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        serialise.load(str(path))
    return str(caught.value)


GOOD = "from train.config import Experiment, Optim\n\n\ndef experiment():\n"
FILES = {  # contents → (line, what the message must contain)
    "experiment(:\n": (1, "SyntaxError"),
    "import no_such_module\n": (1, "no_such_module"),
    "x = 1\n": (None, "there is no function experiment()"),
    "experiment = 5\n": (None, "there is no function experiment()"),
    f"{GOOD}    return 5\n": (None, "experiment() returned 5"),
    f"{GOOD}    return {{}}['lr']\n": (5, "KeyError: 'lr'"),
    f"{GOOD}    return Experiment(\n        optim=Optim(learning=3),\n    )\n": (6, "learning"),
    "def experiment(size):\n    return size\n": (None, "missing 1 required positional argument"),
}


@pytest.mark.parametrize("contents", FILES)
def test_a_mistake_in_a_config_file_is_told_by_file_and_line(contents, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(contents)
    line, part = FILES[contents]
    message = refused(path)
    assert part in message
    assert f"{path}, line {line}: " in message if line else str(path) in message


def test_a_config_file_is_read_anew_every_time_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "mine.py"
    for steps in (111, 222):
        path.write_text(f"{GOOD}    return Experiment(steps={steps})\n")
        assert serialise.load(str(path)).steps == steps
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("contents", (b'{"steps": 3', b"", b"\xff\xfe", b"experiment()"))
def test_a_config_json_that_is_cut_off_is_named(contents, tmp_path):
    (tmp_path / "config.json").write_bytes(contents)
    assert f"{tmp_path / 'config.json'} is not JSON" in refused(tmp_path)


def test_a_wrong_key_in_config_json_is_told_with_its_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(**{"optim.lrr": 3})))
    assert refused(path) == f"{path}: unknown key optim.lrr; did you mean optim.lr?"


def test_a_config_that_does_not_exist_is_answered_with_the_nearest(tmp_path):
    assert "resnet_digits" in refused("resnet_digit")
    assert "resnet_digits" in refused("configs/resnet_digts.py")
    assert "without config.json" in refused(tmp_path)
    other = tmp_path / "config.yaml"
    other.write_text("steps: 3\n")
    assert "neither a Python file nor a config.json" in refused(other)


# ---- what may change when a run goes on ----


def test_only_what_changes_no_result_may_change_when_a_run_goes_on():
    old, new = serialise.to_dict(BASE), serialise.to_dict(every_field_changed(BASE))
    told = {line.partition(":")[0] for line in serialise.differences(old, new)}
    free = {key for key in SCHEMA if any(f"{key}.".startswith(f"{f}.") for f in serialise.FREE)}
    options = {"model.options.widths", "model.options.zero_init"}
    assert told == set(SCHEMA) - free - {"model.options"} | options
    assert {"log", "parallel.data", "checkpoint.every", "data.threads"} <= free
    assert not {"data.batch_size", "seed", "step.accumulate", "steps"} & free


def test_a_difference_shows_the_key_and_both_values():
    old = serialise.to_dict(BASE)
    new = serialise.to_dict(dataclasses.replace(BASE, step=Step(accumulate=4)))
    assert serialise.differences(old, new) == ["step.accumulate: 1 → 4"]
    parallel = serialise.to_dict(dataclasses.replace(BASE, parallel=Parallel(compiler="pmap")))
    assert serialise.differences(old, parallel) == []


def test_an_experiment_does_not_differ_from_its_own_config_json():
    values = serialise.to_dict(dataclasses.replace(BASE, model=Model("resnet20", {"widths": (8,)})))
    assert serialise.differences(json.loads(json.dumps(values)), values) == []
