"""What a run writes and shows: metrics.jsonl, its clock, plain lines and the progress bar."""

import io
import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import rich
from rich.console import Console

from train import log, workdir
from train.config import Experiment, Images, Text
from train.data.pipeline import Skips
from zoo.preprocess import Unreadable

CFG = Experiment(data=Images(batch_size=64), steps=40, log_every=2, log="plain", tensorboard=False)


class Clock:
    """Stands in for time.perf_counter: it moves only when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log.time, "perf_counter", clock)
    return clock


def metrics(loss: float, skipped: int = 0) -> dict:
    return {"loss": jnp.float32(loss), "skipped": jnp.int32(skipped)}


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / log.METRICS).read_text().splitlines()]


# ---- metrics.jsonl ----


def test_every_row_has_its_step_and_split(tmp_path):
    with log.Logger(tmp_path, CFG, 0) as record:
        assert record.train(1, metrics(3.0)) == {}
        assert record.train(2, metrics(1.0, skipped=1))["loss"] == 2.0
        record.evaluation(2, "validation", {"loss": 0.5, "accuracy": 0.75})
        record.train(3, metrics(1.0, skipped=1))
        record.flush(3)
        assert record.flush(3) == {}  # nothing came since
        record.evaluation(3, "test", {"loss": 0.25})
    found = rows(tmp_path)
    places = [(row["step"], row["split"]) for row in found]
    assert places == [(2, "train"), (2, "validation"), (3, "train"), (3, "test")]
    assert [row["loss"] for row in found] == [2.0, 0.5, 1.0, 0.25]
    assert found[0]["skipped"] == found[2]["skipped"] == 1


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / log.METRICS
    written = [
        {"step": 10, "split": "train", "seconds": 5.0},
        {"step": 10, "split": "validation", "accuracy": 0.5},
        {"step": 20, "split": "train", "seconds": 9.0},
        {"step": 20, "split": "test", "accuracy": 0.5},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in written) + '{"step": 30, "spl')
    assert log.read(path) == written
    assert log.truncate(path, 20) == 9.0
    assert rows(tmp_path) == written[:3]  # the test is read anew at the end
    assert log.truncate(path, 10) == 5.0
    assert rows(tmp_path) == written[:2]
    assert log.truncate(path, 0) == 0.0
    assert rows(tmp_path) == [] and list(tmp_path.iterdir()) == [path]


def test_a_run_without_metrics_starts_at_zero_seconds(tmp_path):
    assert log.truncate(tmp_path / log.METRICS, 20) == 0.0
    assert list(tmp_path.iterdir()) == []


# ---- the clock ----


def test_paused_time_is_in_neither_the_speed_nor_the_seconds(tmp_path, clock):
    with log.Logger(tmp_path, CFG, 0) as record:
        clock.now += 4
        record.train(1, metrics(1.0))
        with record.paused():
            clock.now += 100
        clock.now += 4
        row = record.train(2, metrics(1.0))
        assert row["seconds"] == record.seconds == 8
        assert row["images_per_second"] == 2 * CFG.data.batch_size / 8
        with record.paused():
            clock.now += 1000
        clock.now += 2
        record.train(3, metrics(1.0))
        row = record.flush(3)
        assert row["seconds"] == 10 and row["images_per_second"] == CFG.data.batch_size / 2


def test_text_is_counted_in_tokens(tmp_path, clock):
    cfg = replace(CFG, data=Text(batch_size=3, length=50))
    with log.Logger(tmp_path, cfg, 0) as record:
        clock.now += 5
        record.train(1, metrics(1.0))
        row = record.train(2, metrics(1.0))
    assert row["tokens_per_second"] == 2 * 3 * 50 / 5 and "images_per_second" not in row
    assert log.speed(row) == "60 tokens/s"


def test_the_seconds_go_on_where_a_run_is_resumed(tmp_path, clock):
    with log.Logger(tmp_path, CFG, 0) as record:
        clock.now += 6
        record.train(2, metrics(1.0))
    clock.now += 5000
    with log.Logger(tmp_path, CFG, 2) as record:
        assert record.seconds == 6
        clock.now += 3
        row = record.train(4, metrics(1.0))
        assert row["seconds"] == 9
        assert row["images_per_second"] == CFG.data.batch_size / 3  # one step came


# ---- what is shown ----


def test_plain_lines_show_progress_speed_and_the_time_left(capsys, clock):
    shown = log.Plain(steps=100, start=20)
    clock.now += 30
    shown.train(40, {"loss": 0.12345, "images_per_second": 1234.5})
    shown.line(40, "validation: accuracy 50.00 %")
    shown.line(None, "resuming")
    assert capsys.readouterr().out.splitlines() == [
        "step 40/100: loss 0.1235, 1,234 images/s, 1:30 left",  # 20 steps took 30 s, 60 are left
        "step 40/100: validation: accuracy 50.00 %",
        "resuming",
    ]


def test_the_bar_shows_progress_speed_and_time_and_lines_above_it(monkeypatch):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=110, color_system=None)
    monkeypatch.setattr(rich, "_console", console)
    bar = log.Bar(steps=100, start=20)
    try:
        assert "20/100" in output.getvalue() and "compiling" in output.getvalue()
        bar.train(40, {"loss": 0.12345, "images_per_second": 1234.5})
        bar.line(40, "validation: accuracy [50.00] %")
    finally:
        bar.close()
    last = output.getvalue().rpartition("training")[2]
    assert "40/100" in last and "loss 0.1235 · 1,234 images/s" in last and "ETA" in last
    assert "step 40/100: validation: accuracy [50.00] %" in output.getvalue()


@pytest.mark.parametrize(
    "choice, terminal, expected",
    [
        ("auto", True, log.Bar),
        ("auto", False, log.Plain),
        ("bar", False, log.Bar),
        ("plain", True, log.Plain),
    ],
)
def test_a_terminal_gets_a_bar_and_a_pipe_plain_lines(
    choice, terminal, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(rich, "_console", Console(file=io.StringIO()))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    cfg = Experiment(log=choice, tensorboard=False)
    with log.Logger(tmp_path, cfg, 0) as record:
        assert type(record._show) is expected


def test_unreadable_pictures_are_told_when_they_are_twice_as_many(tmp_path, capsys):
    skips = Skips("train", 1000)
    with log.Logger(tmp_path, CFG, 0) as record:
        record.skips(2, skips)
        assert capsys.readouterr().out == ""
        skips.add(5, Unreadable("cat.png", "image file is truncated"))
        for step in (4, 6):
            record.skips(step, skips)
        assert capsys.readouterr().out.splitlines() == [
            "step 4/40: 1 of 1000 train pictures cannot be read and are left out: "
            "example 5: cat.png: image file is truncated"
        ]
        skips.add(7, Unreadable("dog.png", "no picture format that Pillow knows (0 bytes)"))
        record.skips(8, skips)
        assert "2 of 1000" in capsys.readouterr().out
        for i in (8, 9):
            skips.add(i, Unreadable("dog.png", "image file is truncated"))
            record.skips(i, skips)
    [told] = capsys.readouterr().out.splitlines()
    assert told.startswith("step 9/40: 4 of 1000")


def test_shares_are_shown_in_percent_and_the_rest_as_numbers():
    found = workdir.phrase({"loss": 0.123456, "accuracy": 0.98611, "top5": 1.0})
    assert found == "loss 0.1235, accuracy 98.61 %, top5 100.00 %"


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3661, "1:01:01")]
)
def test_times_are_written_as_on_a_clock(seconds, text):
    assert log.clock(seconds) == text


# ---- TensorBoard and artifacts ----


def test_tensorboard_gets_every_number_and_artifacts_become_files(tmp_path):
    cfg = Experiment(steps=40, log_every=1, log="plain")
    with log.Logger(tmp_path, cfg, 0) as record:
        for step in (1, 2):
            record.train(step, metrics(1.0))
        record.evaluation(2, "validation", {"accuracy": 0.5})
        record.artifacts(
            2, {"validation_per_class": "zero 1.0", "picture": np.zeros((4, 4, 3), np.uint8)}
        )
        record.curves()
    assert (tmp_path / "validation_per_class.txt").read_text() == "zero 1.0\n"
    for name in ("picture.png", "learning_curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert all(tag in events for tag in (b"train/loss", b"validation/accuracy", b"picture"))
