"""Metrics against plain loops, over any split of the data; and the pictures made of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from train import metrics, pictures

CLASSES, BATCH = 7, 8
METRIC = metrics.collection(
    {
        "loss": metrics.mean("loss"),
        "accuracy": metrics.topk(1),
        "top3": metrics.topk(3),
        "confusion": metrics.confusion(CLASSES),
    }
)
UPDATE = jax.jit(METRIC.update)


def examples(n, seed):
    rng = np.random.default_rng(seed)
    return {
        "loss": rng.exponential(size=n).astype(np.float32),
        "logits": rng.normal(size=(n, CLASSES)).astype(np.float32),
        "labels": rng.integers(CLASSES, size=n).astype(np.int32),
    }


def batches(data):
    """Batches of one size, the last one padded with NaN and masked."""
    n = len(data["labels"])
    for start in range(0, n, BATCH):
        rows = min(BATCH, n - start)
        batch = {"mask": (np.arange(BATCH) < rows).astype(np.float32)}
        for key, x in data.items():
            filler = np.nan if x.dtype == np.float32 else 0
            batch[key] = np.full((BATCH, *x.shape[1:]), filler, x.dtype)
            batch[key][:rows] = x[start : start + rows]
        yield batch


def total_of(data):
    total = METRIC.init()
    for batch in batches(data):
        total = UPDATE(total, **batch)
    return total


def loop(data):
    counts, top3 = np.zeros((CLASSES, CLASSES), int), 0
    for logits, label in zip(data["logits"], data["labels"], strict=True):
        order = sorted(range(CLASSES), key=lambda c: -logits[c])
        counts[label, order[0]] += 1
        top3 += label in order[:3]
    n = len(data["labels"])
    loss = sum(map(float, data["loss"])) / n
    return {"loss": loss, "accuracy": np.trace(counts) / n, "top3": top3 / n, "confusion": counts}


def assert_equal(a, b):
    assert np.array_equal(a["confusion"], b["confusion"])
    for key in ("loss", "accuracy", "top3"):
        assert isinstance(a[key], float)
        assert math.isclose(a[key], b[key], rel_tol=1e-6), key


@pytest.mark.parametrize("n", [1, 8, 29])
def test_metrics_equal_a_loop_over_examples_whatever_the_last_batch(n):
    data = examples(n, seed=n)
    assert_equal(METRIC.compute(total_of(data)), loop(data))


@pytest.mark.parametrize("seed", range(6))
def test_merged_parts_equal_the_whole_for_any_split(seed):
    data = examples(41, seed)
    rng = np.random.default_rng(seed)
    order, cuts = rng.permutation(41), np.sort(rng.integers(42, size=3))  # a part may be empty
    total = METRIC.init()
    for part in np.split(order, cuts):
        total = METRIC.merge(total, total_of({key: x[part] for key, x in data.items()}))
    assert_equal(METRIC.compute(total), loop(data))


def test_without_a_mask_every_example_counts():
    data = examples(BATCH, 3)
    assert_equal(
        METRIC.compute(METRIC.update(METRIC.init(), **jax.tree.map(jnp.array, data))), loop(data)
    )


def test_a_fractional_mask_weighs_a_mean():
    mean = metrics.mean("loss")
    total = mean.update(mean.init(), loss=jnp.array([1.0, 5.0]), mask=jnp.array([1.0, 0.25]))
    assert mean.compute(total) == (1 + 0.25 * 5) / 1.25


def test_of_nothing_a_mean_is_nan_and_a_matrix_zero():
    result = METRIC.compute(METRIC.init())
    assert math.isnan(result["loss"]) and math.isnan(result["accuracy"])
    assert result["confusion"].dtype == np.int32 and not result["confusion"].any()


def test_equal_logits_are_a_guess_and_not_a_hit():
    top1 = metrics.topk(1)
    labels = jnp.arange(CLASSES)
    total = top1.update(top1.init(), logits=jnp.zeros((CLASSES, CLASSES)), labels=labels)
    assert math.isclose(top1.compute(total), 1 / CLASSES, rel_tol=1e-6)


def test_top5_of_two_classes_is_always_right():
    top5 = metrics.topk(5)
    total = top5.update(top5.init(), logits=jnp.array([[0.0, 1.0]]), labels=jnp.array([0]))
    assert top5.compute(total) == 1


COUNTS = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])


def test_the_table_per_class_matches_counts_by_hand():
    cat, dog, emu = metrics.per_class(COUNTS, ["cat", "dog", "emu"])
    assert cat == ("cat", 8 / 9, 8 / 10, 16 / 19, 10)
    assert dog == ("dog", 3 / 5, 3 / 4, 6 / 9, 4)
    assert np.isnan([emu.precision, emu.recall, emu.f1]).all() and emu.support == 0


def test_a_class_that_is_never_found_has_zero_and_not_nan():
    row = metrics.per_class(np.array([[0, 5], [0, 5]]), ["a", "b"])[0]
    assert math.isnan(row.precision) and (row.recall, row.f1) == (0, 0)


def test_the_table_is_aligned_plain_text():
    text = metrics.format_per_class(metrics.per_class(COUNTS, ["cat", "dog", "emu"]))
    assert text.splitlines() == [
        "class          precision  recall      f1  support",
        "cat               0.8889  0.8000  0.8421       10",
        "dog               0.6000  0.7500  0.6667        4",
        "emu                    –       –       –        0",
        "macro average     0.7444  0.7750  0.7544       14",
    ]


def test_labels_that_do_not_fit_the_counts_are_refused():
    with pytest.raises(ValueError):
        metrics.per_class(COUNTS, ["cat", "dog"])
    with pytest.raises(ValueError, match=r"counts \(3, 3\) for 2 labels"):
        pictures.confusion_matrix(COUNTS, ["cat", "dog"])


def is_picture(array):
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


@pytest.mark.parametrize("classes", [1, 10, 100])
def test_a_confusion_matrix_is_dark_where_the_counts_are(classes):
    right = pictures.confusion_matrix(100 * np.eye(classes, dtype=int), ["x"] * classes)
    assert is_picture(right)
    wrong = pictures.confusion_matrix(np.zeros((classes, classes), int), ["x"] * classes)
    navy = np.array([8, 48, 107])  # the end of the colour map
    dark = [
        (np.abs(p[:, : p.shape[1] * 3 // 4] - navy).sum(axis=2) < 9).sum() for p in (right, wrong)
    ]
    assert dark[0] > 1000 and dark[1] == 0


def test_a_row_of_the_picture_is_a_true_class():
    picture = pictures.confusion_matrix(np.array([[0, 9], [0, 9]]), ["a", "b"])  # all taken for b
    navy = np.abs(picture.astype(int) - [8, 48, 107]).sum(axis=2) < 9
    rows, columns = np.nonzero(navy[:, : picture.shape[1] * 3 // 4])
    assert np.ptp(rows) > 1.8 * np.ptp(columns)  # two cells, one above the other


def test_a_label_may_hold_any_text():
    labels = [r"$\frac$", "お", "a very long name of a class"]
    assert is_picture(pictures.confusion_matrix(COUNTS, labels))


ROWS = [
    {"step": 10, "split": "train", "loss": 2.0, "lr": 0.0, "images_per_second": 9.0},
    {"step": 20, "split": "train", "loss": math.nan, "lr": 0.1},
    {"step": 30, "split": "train", "loss": 0.01, "accuracy": None},
    {"step": 20, "split": "validation", "loss": 1.0, "accuracy": 0.5},
]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS])
def test_learning_curves_draw_what_the_rows_hold(rows):
    assert is_picture(pictures.learning_curves(rows))


def test_a_number_that_is_not_finite_is_left_out_of_its_curve():
    without = [{k: v for k, v in row.items() if v == v} for row in ROWS]
    assert np.array_equal(pictures.learning_curves(ROWS), pictures.learning_curves(without))


def test_each_number_of_a_row_moves_its_curve():
    whole = pictures.learning_curves(ROWS)
    for key, value in (("loss", 0.5), ("accuracy", 0.9)):
        changed = pictures.learning_curves([*ROWS[:3], {**ROWS[3], key: value}])
        assert changed.shape != whole.shape or not np.array_equal(changed, whole)


@pytest.mark.parametrize("beside", ["zlib", "xz", "xz_seen"])
def test_what_compressors_reach_is_a_line_beside_the_curve(beside):
    rows = [{"step": 20, "split": "validation", "bits_per_byte": 2.0}]
    drawn = pictures.learning_curves(rows)
    lined = pictures.learning_curves([{**rows[0], f"{beside}_bits_per_byte": 1.5}])
    assert not np.array_equal(drawn, lined)


def test_a_saved_picture_reads_back_and_leaves_no_temporary_file(tmp_path):
    picture = np.random.default_rng(0).integers(256, size=(5, 4, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    pictures.save_png(path, picture)
    pictures.save_png(path, picture)  # over the old one
    assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_picture_is_refused_and_not_written(tmp_path):
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"a PNG takes uint8 \[H, W, 3\]"):
            pictures.save_png(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())
