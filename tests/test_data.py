"""The data pipeline: which pictures come, when, and unchanged by threads, processes and stops."""

import gc
import gzip
import io
import itertools
import json
import struct
import subprocess
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.config import ConfigError, Images
from train.data import augment, pipeline, prepare, sources
from zoo import preprocess

SIZE = 6  # pixels of the pictures made here


def pictures(n, channels=1):
    """A split of `n` distinct pictures."""
    values = np.random.default_rng(0).integers(256, size=(n, SIZE, SIZE, channels), dtype=np.uint8)
    return [{"image": image, "label": i % 10} for i, image in enumerate(values)]


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else preprocess.to_picture(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def indices(batches):
    return [int(i) for batch in batches for i in batch["index"]]


def take(stream, n):
    return list(itertools.islice(stream, n))


def same(batches, others):
    pairs = list(zip(batches, others, strict=True))
    return all(np.array_equal(a[k], b[k]) for a, b in pairs for k in a.keys() | b.keys())


# ---- sources ----


def test_digits_have_a_fixed_stratified_split():
    source = sources.open_source(Images())
    sizes = {name: len(split) for name, split in source.splits.items()}
    assert sizes == {"train": 1257, "validation": 180, "test": 360}
    other = sources.open_source(Images(seed=1))
    total = Counter(e["label"] for split in source.splits.values() for e in split)
    for name, split in source.splits.items():
        for label, count in Counter(example["label"] for example in split).items():
            assert abs(count - total[label] * len(split) / 1797) <= 1
        assert all(
            np.array_equal(a["image"], b["image"])
            for a, b in zip(split, other.splits[name], strict=True)
        )


def test_digits_are_all_there_once():
    from sklearn.datasets import load_digits

    stored = load_digits()
    expected = Counter(
        (bytes(np.round(x * 255 / 16).astype(np.uint8)), int(y))
        for x, y in zip(stored.images, stored.target, strict=True)
    )
    splits = sources.open_source(Images()).splits.values()
    assert Counter((bytes(e["image"]), e["label"]) for s in splits for e in s) == expected
    assert max(e["image"].max() for s in splits for e in s) == 255


def test_the_stratified_order_is_a_permutation_with_even_stretches():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    order = sources.stratified_order(labels)
    assert sorted(order) == list(range(100))
    assert np.bincount(labels[order[:10]]).tolist() == [5, 3, 2]


@pytest.mark.parametrize(
    ("stored", "sizes"),
    [
        ("train test", {"train": 90, "validation": 10, "test": 100}),
        ("train validation", {"train": 90, "validation": 10, "test": 100}),
        ("train validation test", {"train": 100, "validation": 100, "test": 100}),
        ("train", {"train": 80, "validation": 10, "test": 10}),
    ],
)
def test_missing_splits_are_cut_from_train_alone(stored, sizes):
    splits = {name: [f"{name} {i}" for i in range(100)] for name in stored.split()}
    held = sources.hold_out(splits, Images())
    assert {name: len(split) for name, split in held.items()} == sizes
    everything = Counter(example for split in held.values() for example in split)
    assert everything == Counter(example for split in splits.values() for example in split)
    if "test" in splits:
        assert held["test"] is splits["test"]


def test_the_cut_follows_the_seed():
    cuts = [{*sources.hold_out({"train": range(100)}, Images(seed=s))["test"]} for s in (0, 0, 1)]
    assert cuts[0] == cuts[1] != cuts[2]


@pytest.mark.parametrize("holdout", [0.0, 0.004, 0.5])
def test_a_cut_that_leaves_a_split_empty_is_refused(holdout):
    with pytest.raises(ConfigError, match="data.holdout"):
        sources.hold_out({"train": range(100)}, Images(holdout=holdout))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean digits"),
        ("fodler:x", "did you mean folder:PATH"),
        ("digits:8", "must have the form digits"),
        ("folder", "must have the form folder:PATH"),
        ("folder:/nowhere", "no folder /nowhere"),
        ("tfds:../x", "must have the form tfds:NAME"),
    ],
)
@pytest.mark.parametrize("function", [sources.check_source, sources.open_source])
def test_a_bad_source_is_named_with_the_way_out(source, message, function):
    with pytest.raises(ConfigError, match="data.source") as caught:
        function(Images(source=source))
    assert message in str(caught.value)


def test_sources_and_augmentations_are_checked_without_heavy_imports():
    program = (
        "import sys, train.data.sources as s, train.data.augment as a\n"
        "from train.config import Images\n"
        "s.check_source(Images()); a.parse(['flip'])\n"
        "heavy = {'jax', 'grain', 'tensorflow_datasets', 'tensorflow', 'sklearn'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


# ---- folders ----


def write_pictures(folder, n):
    folder.mkdir(parents=True)
    for i in range(n):
        (folder / f"{i:03}.png").write_bytes(encode(np.full((SIZE, SIZE, 3), i, np.uint8)))


def test_a_folder_of_classes_is_cut_in_three(tmp_path):
    write_pictures(tmp_path / "dog" / "deeper", 12)
    write_pictures(tmp_path / "cat", 8)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    source = sources.open_source(Images(source=f"folder:{tmp_path}"))
    assert source.labels == ("cat", "dog")
    assert {n: len(s) for n, s in source.splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    examples = [example for split in source.splits.values() for example in split]
    assert len({example["image"] for example in examples}) == 20
    assert all((e["label"] == 0) == ("cat" in e["image"].parts) for e in examples)
    assert preprocess.decode(examples[0]["image"]).shape == (SIZE, SIZE, 3)


def test_stored_splits_of_a_folder_are_kept(tmp_path):
    for split, n in (("train", 10), ("val", 4), ("test", 3)):
        write_pictures(tmp_path / split / "a", n)
        write_pictures(tmp_path / split / "b", n)
    source = sources.open_source(Images(source=f"folder:{tmp_path}"))
    assert {n: len(s) for n, s in source.splits.items()} == {
        "train": 20,
        "validation": 8,
        "test": 6,
    }
    stored_in = {n: {e["image"].parts[-3] for e in s} for n, s in source.splits.items()}
    assert stored_in == {"train": {"train"}, "validation": {"val"}, "test": {"test"}}


def test_a_class_may_be_called_train(tmp_path):
    write_pictures(tmp_path / "train", 10)
    write_pictures(tmp_path / "bus", 10)
    assert sources.open_source(Images(source=f"folder:{tmp_path}")).labels == ("bus", "train")


def test_bad_folders_are_refused(tmp_path):
    cfg = Images(source=f"folder:{tmp_path}")
    with pytest.raises(ConfigError, match="no sub-folders"):
        sources.check_source(cfg)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no picture"):
        sources.check_source(cfg)
    write_pictures(tmp_path / "train" / "a" / "x", 1)
    write_pictures(tmp_path / "test" / "b", 1)
    with pytest.raises(ConfigError, match="differ in classes: a, b"):
        sources.check_source(cfg)


# ---- tfds ----


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_mnist(folder, sizes):
    """Four IDX files of random pictures; returns {split: Counter of (bytes, label)}."""
    rng, contents = np.random.default_rng(0), {}
    for (split, prefix), n in zip(prepare.SPLITS.items(), sizes, strict=True):
        x = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        y = rng.integers(10, size=n, dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", x)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", y)
        contents[split] = Counter((bytes(a), int(b)) for a, b in zip(x, y, strict=True))
    return contents


def contents(*splits):
    return Counter(
        (bytes(preprocess.decode(e["image"])), e["label"]) for split in splits for e in split
    )


def test_idx_files_become_a_tfds_data_set_without_tensorflow(tmp_path):
    written = write_mnist(tmp_path, (50, 20))
    target = prepare.prepare("kmnist", tmp_path, tmp_path / "tfds")
    assert target == tmp_path / "tfds" / "kmnist" / "3.0.1"
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == ["kmnist"]

    cfg = Images(source="tfds:kmnist:3.0.1", data_dir=str(tmp_path / "tfds"))
    source = sources.open_source(cfg)
    assert source.shape == (28, 28, 1) and source.labels[:2] == ("o", "ki")
    splits = source.splits
    assert {n: len(s) for n, s in splits.items()} == {"train": 45, "validation": 5, "test": 20}
    assert contents(splits["test"]) == written["test"]
    assert contents(splits["train"], splits["validation"]) == written["train"]
    [batch] = take(pipeline.train_stream(splits["train"], cfg), 1)
    assert batch["image"].shape == (128, 28, 28, 1)

    assert "tensorflow" not in sys.modules
    with pytest.raises(ConfigError, match="already there"):
        prepare.prepare("kmnist", tmp_path, tmp_path / "tfds")
    with pytest.raises(ConfigError, match="3.0.1"):
        sources.open_source(Images(source="tfds:kmnist:9.9.9", data_dir=cfg.data_dir))


def test_records_read_one_by_one_are_those_read_at_once(tmp_path, monkeypatch):
    write_mnist(tmp_path, (20, 5))
    prepare.prepare("mnist", tmp_path, tmp_path)
    cfg = Images(source="tfds:mnist", data_dir=str(tmp_path))
    at_once = sources.open_source(cfg).splits["train"]
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    one_by_one = sources.open_source(cfg).splits["train"]
    assert [*at_once] == [*one_by_one]


def test_a_test_split_without_labels_is_not_used(tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration

    with skip_registration():

        class TinyPictures(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["a", "b"]),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {
                    "train": self._some(20),
                    "validation": self._some(8),
                    "test": self._some(9, -1),
                }

            def _some(self, n, label=1):
                picture = encode(np.zeros((4, 5, 3), np.uint8))
                return ((i, {"image": picture, "label": label}) for i in range(n))

            _generate_examples = _some

    TinyPictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = sources.open_source(Images(source="tfds:tiny_pictures", data_dir=str(tmp_path)))
    sizes = {name: len(split) for name, split in source.splits.items()}
    assert sizes == {"train": 18, "validation": 2, "test": 8}
    assert source.shape == (None, None, 3) and source.labels == ("a", "b")


def test_a_data_set_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match="download_and_prepare") as caught:
        sources.check_source(Images(source="tfds:cifar10", data_dir=str(tmp_path)))
    assert f"tfds.builder('cifar10', file_format='array_record', data_dir='{tmp_path}')" in str(
        caught.value
    )
    with pytest.raises(ConfigError, match="near it: fashion_mnist"):
        sources.check_source(Images(source="tfds:fashon_mnist", data_dir=str(tmp_path)))


@pytest.mark.parametrize("damage", ["missing", "truncated", "not gzip", "magic", "short", "label"])
def test_bad_idx_files_are_refused_and_nothing_is_written(tmp_path, damage):
    write_mnist(tmp_path, (5, 5))
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    data = images.read_bytes()
    if damage == "missing":
        images.unlink()
    if damage == "truncated":
        images.write_bytes(data[:-100])
    if damage == "not gzip":
        images.write_bytes(b"<html>")
    if damage == "magic":
        images.write_bytes(gzip.compress(b"\x00\x00\x0d" + gzip.decompress(data)[3:]))
    if damage == "short":
        images.write_bytes(gzip.compress(gzip.decompress(data)[:-1]))
    if damage == "label":
        write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(5, 10, np.uint8))
    with pytest.raises(ConfigError, match="t10k-images"):
        prepare.prepare("mnist", tmp_path, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


# ---- decoding ----

GREY = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def test_every_stored_form_decodes_to_the_same_pixels(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(COLOUR))
    for form in (COLOUR, encode(COLOUR), path, encode(COLOUR, "BMP")):
        assert np.array_equal(preprocess.decode(form), COLOUR)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(GREY), GREY[..., None]),
        (Image.fromarray(GREY.astype(np.uint16) * 256 + 77), GREY[..., None]),
        (Image.fromarray(GREY > 17), (GREY > 17)[..., None] * np.uint8(255)),
        (
            Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (SIZE, SIZE), 255)]),
            GREY[..., None],
        ),
        (Image.fromarray(COLOUR).quantize(64), COLOUR),
        (Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)])), COLOUR),
        (Image.fromarray(np.dstack([COLOUR, np.zeros_like(GREY)])), np.full_like(COLOUR, 255)),
    ],
    ids=["grey", "16-bit", "1-bit", "grey-alpha", "palette", "opaque", "transparent"],
)
def test_unusual_pngs_keep_their_pixels(picture, expected):
    assert np.array_equal(preprocess.decode(encode(picture)), expected)


def test_a_palette_with_transparency_is_laid_over_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    decoded = preprocess.decode(encode(picture, transparency=b"\x00\xff"))
    assert decoded.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_cmyk_becomes_rgb():
    picture = Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0))
    decoded = preprocess.decode(encode(picture, "JPEG"))
    assert np.abs(decoded.astype(int) - [0, 255, 255]).max() <= 2


def test_the_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270° to show
    decoded = preprocess.decode(encode(COLOUR[:3], exif=exif))
    assert np.array_equal(decoded, np.rot90(COLOUR[:3], 3))


@pytest.mark.parametrize("image", [COLOUR, GREY, encode(COLOUR), encode(GREY)])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_converted_as_asked(image, channels):
    decoded = preprocess.decode(image, channels)
    assert decoded.shape == (SIZE, SIZE, channels) and decoded.dtype == np.uint8
    if channels == 1:
        luma = COLOUR @ [0.299, 0.587, 0.114] if len(np.shape(image)) == 3 else None
        assert luma is None or np.abs(decoded[..., 0] - luma).max() <= 1


BROKEN = {
    "truncated": encode(np.tile(COLOUR, (20, 20, 1)), "JPEG")[:600],
    "empty": b"",
    "text": b"not a picture",
    "cut PNG": encode(np.tile(COLOUR, (20, 20, 1)))[:-200],
    "float": np.zeros((4, 4, 1), np.float32),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_pictures_are_unreadable(kind):
    with pytest.raises(preprocess.Unreadable):
        preprocess.decode(BROKEN[kind])


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_text("text")
    with pytest.raises(preprocess.Unreadable, match=r"bad\.jpg: no picture format .* \(4 bytes\)"):
        preprocess.decode(path)
    with pytest.raises(preprocess.Unreadable, match="gone.jpg"):
        preprocess.decode(tmp_path / "gone.jpg")


def test_a_picture_with_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", SIZE * SIZE - 1)
    with pytest.raises(preprocess.Unreadable, match="pixels"):
        preprocess.decode(encode(COLOUR))


# ---- augmentation ----

SPECS = (
    "crop:2",
    "flip",
    "rotate:30",
    "random_resized_crop",
    "random_resized_crop:0.5",
    "color_jitter:0.4",
    "erase:0.5",
    "autoaugment",
    "randaugment:2:9",
)


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(height, width, channels), dtype=np.uint8)


def test_every_augmentation_is_tried_here():
    assert {spec.split(":")[0] for spec in SPECS} == augment.AUGMENTATIONS.keys()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_keep_the_form_follow_the_generator_and_do_something(spec, channels):
    [apply] = augment.parse([spec])
    image = noise(12, 10, channels)
    before = image.copy()
    results = [apply(image, np.random.default_rng(seed)) for seed in range(20)]
    again = [apply(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
    assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True))
    assert any(not np.array_equal(r, image) for r in results)
    assert np.array_equal(image, before), "the stored picture was written to"


def test_crop_matches_a_loop_over_pixels():
    image = noise(5, 4)
    for seed in range(20):
        top, left = np.random.default_rng(seed).integers(5, size=2)
        expected = np.zeros_like(image)
        for y, x in np.ndindex(5, 4):
            row, column = y + top - 2, x + left - 2
            if 0 <= row < 5 and 0 <= column < 4:
                expected[y, x] = image[row, column]
        assert np.array_equal(augment.crop(image, np.random.default_rng(seed), 2), expected)


def test_flip_mirrors_every_other_time():
    image, rng = noise(5, 4), np.random.default_rng(0)
    mirrored = np.stack([[row[3 - x] for x in range(4)] for row in image])
    results = [augment.flip(image, rng) for _ in range(400)]
    flipped = sum(np.array_equal(r, mirrored) for r in results)
    assert 160 < flipped < 240
    assert flipped + sum(np.array_equal(r, image) for r in results) == 400


def test_random_resized_crops_have_the_stated_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array([augment._random_box(500, 500, 0.08, rng) for _ in range(3000)])
    left, top, w, h = boxes.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + w <= 500).all() and (top + h <= 500).all()
    area, log_ratio = w * h / 500**2, np.log(w / h)
    assert area.min() > 0.079 and area.max() <= 1
    assert np.abs(log_ratio).max() < np.log(4 / 3) + 0.02
    # Uniform, and the ratio's logarithm symmetric, wherever no try was rejected.
    small = area < 0.7
    assert abs(area[small].mean() - 0.39) < 0.01
    assert abs(log_ratio[small].mean()) < 0.02
    assert abs(log_ratio[small].std() - np.log(4 / 3) / np.sqrt(3)) < 0.01


def test_a_random_resized_crop_falls_back_to_the_centre():
    left, top, w, h = augment._random_box(10, 1000, 1.0, np.random.default_rng(0))
    assert (left, top, w, h) == (493, 0, 13, 10)


def test_a_random_resized_crop_has_the_size_of_the_config():
    [apply] = augment.parse(["random_resized_crop"], size=7)
    assert apply(noise(20, 30), np.random.default_rng(0)).shape == (7, 7, 3)


def test_erasing_replaces_a_rectangle_of_the_stated_size():
    image, rng = np.zeros((100, 100, 1), np.uint8), np.random.default_rng(0)
    shares = []
    for _ in range(200):
        rows, columns = np.nonzero(augment.erase(image, rng, 0.5)[..., 0])
        shares.append(np.ptp(rows) * np.ptp(columns) / 100**2 if len(rows) else 0)
    erased = [share for share in shares if share]
    assert 75 < len(erased) < 125
    assert 0.015 < min(erased) < 0.05 and 0.35 < max(erased) <= 0.41


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_grow_from_the_identity(name):
    picture = preprocess.to_picture(noise(16, 16) // 2 + 30)
    operate = augment.OPERATIONS[name]
    strength_free = name in ("auto_contrast", "equalize", "invert")
    unchanged = np.array_equal(operate(picture, 0.0), picture)
    assert unchanged != strength_free
    changed = [not np.array_equal(operate(picture, s), picture) for s in (-1.0, 1.0)]
    assert changed == [name != "identity"] * 2


def test_autoaugment_has_the_25_policies_of_the_paper():
    assert len(augment.AUTOAUGMENT) == 25
    used = {name for policy in augment.AUTOAUGMENT for name, _, _ in policy}
    assert used <= augment.OPERATIONS.keys() and len(augment.RANDAUGMENT) == 14


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("flop", "did you mean 'flip'"),
        ("random_resize_crop", "did you mean 'random_resized_crop'"),
        ("crop", "must have the form crop:PAD"),
        ("flip:2", "must have the form flip"),
        ("random_resized_crop:1:2", r"random_resized_crop\[:MIN_AREA\]"),
        ("crop:2.5", "whole number"),
        ("crop:0", "between 1 and 1024"),
        ("erase:nan", "between 0 and 1"),
        ("randaugment:2:11", "M is 11"),
    ],
)
def test_a_bad_augmentation_is_named_with_the_way_out(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        augment.parse(["flip", spec])
    assert "data.augment" in str(caught.value) and repr(spec) in str(caught.value)


def test_evaluation_takes_the_centre_and_leaves_the_right_size_alone():
    image = noise(256, 300)
    centre = image[16:240, 38:262]  # 224 of 256: nothing is resampled
    assert np.array_equal(augment.evaluation_transform(image, 224), centre)
    assert augment.evaluation_transform(image, None) is image
    exact = noise(8, 8)
    assert augment.evaluation_transform(exact, 8) is exact
    assert augment.evaluation_transform(noise(50, 20, 1), 16).shape == (16, 16, 1)


# ---- the training stream ----


def test_every_epoch_holds_every_example_once():
    n = 50
    batches = take(pipeline.train_stream(pictures(n), Images(batch_size=8)), 25)
    order = indices(batches)
    epochs = [order[k * n : (k + 1) * n] for k in range(4)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_hold_the_pictures_of_their_indices():
    split = pictures(20)
    for batch in take(pipeline.train_stream(split, Images(batch_size=8)), 5):
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        assert batch["index"].dtype == np.int64
        for image, label, i in zip(batch["image"], batch["label"], batch["index"], strict=True):
            assert np.array_equal(image, split[i]["image"]) and label == split[i]["label"]


def test_seeds_give_unrelated_orders():
    streams = [pipeline.train_stream(pictures(40), Images(batch_size=40, seed=s)) for s in (0, 1)]
    epochs = [[tuple(indices([b])) for b in take(stream, 5)] for stream in streams]
    assert not set(epochs[0]) & set(epochs[1])


AUGMENTED = Images(batch_size=8, augment=("crop:2", "flip", "randaugment:1:5"))


def with_broken(n):
    """`n` pictures of which two cannot be read."""
    split = pictures(n)
    split[3]["image"], split[n - 5]["image"] = BROKEN["empty"], BROKEN["truncated"]
    return split


@pytest.mark.parametrize("split", [pictures(30), with_broken(210)], ids=["whole", "with broken"])
def test_a_restored_stream_continues_as_if_never_stopped(split):
    total = len(split) // 8 + 2  # past the end of an epoch
    straight = pipeline.train_stream(split, AUGMENTED)
    states, batches = [], []
    for _ in range(total + 2):
        states.append(json.loads(json.dumps(straight.state())))
        batches.append(next(straight))
    resumed = pipeline.train_stream(split, AUGMENTED)
    for t in reversed(range(total)):
        resumed.restore(states[t])
        assert same(take(resumed, 2), batches[t : t + 2]), f"after batch {t}"


def test_a_state_of_other_data_is_refused():
    state = pipeline.train_stream(pictures(30), Images()).state()
    with pytest.raises(ConfigError, match="31 examples, but had 30"):
        pipeline.train_stream(pictures(31), Images()).restore(state)


def test_threads_change_nothing():
    runs = []
    for threads in (0, 1, 4):
        cfg = Images(batch_size=8, augment=AUGMENTED.augment, threads=threads)
        runs.append(take(pipeline.train_stream(with_broken(210), cfg), 30))
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


def together(streams, n):
    """The first `n` global batches, interleaved from those of several processes."""
    for parts in itertools.islice(zip(*streams, strict=True), n):
        rows = {k: np.stack([part[k] for part in parts], axis=1) for k in parts[0]}
        yield {k: v.reshape(-1, *v.shape[2:]) for k, v in rows.items()}


def test_processes_share_the_same_global_batches():
    def run(count):
        streams = [
            pipeline.train_stream(pictures(30), AUGMENTED, process_index=i, process_count=count)
            for i in range(count)
        ]
        return list(together(streams, 6))

    assert same(run(1), run(2)) and same(run(1), run(4))


def test_a_state_resumes_with_another_number_of_processes():
    one = pipeline.train_stream(pictures(30), AUGMENTED)
    take(one, 5)
    two = [
        pipeline.train_stream(pictures(30), AUGMENTED, process_index=i, process_count=2)
        for i in range(2)
    ]
    for stream in two:
        stream.restore(one.state())
    assert two[0].state() == two[1].state() == one.state()
    assert same(together([one], 3), together(two, 3))


def test_processes_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match="data.batch_size = 8 is not a multiple of 3"):
        pipeline.train_stream(pictures(30), AUGMENTED, process_count=3)


def test_pictures_that_differ_name_the_key():
    small = {"image": noise(4, 4, 1), "label": 0}
    with pytest.raises(ConfigError, match="data.image_size: example 10 is 4×4×1, but the first is"):
        take(pipeline.train_stream([*pictures(10), small], Images(batch_size=4)), 4)
    coloured = {"image": noise(SIZE, SIZE, 3), "label": 0}
    with pytest.raises(ConfigError, match="data.channels"):
        take(pipeline.train_stream([*pictures(10), coloured], Images(batch_size=4)), 4)
    both = [*pictures(10), small, coloured]
    cfg = Images(batch_size=12, image_size=8, channels=3)
    [batch] = take(pipeline.train_stream(both, cfg), 1)
    assert batch["image"].shape == (12, 8, 8, 3)


# ---- unreadable pictures ----


def test_a_few_unreadable_pictures_are_skipped_and_counted_once():
    split = with_broken(210)
    stream = pipeline.train_stream(split, Images(batch_size=16))
    seen = indices(take(stream, 26 * 3))  # 1,248 = six epochs of 208
    assert sorted(seen) == sorted([*range(3), *range(4, 205), *range(206, 210)] * 6)
    assert stream.skips.count == 2
    assert [note.split(":")[0] for note in sorted(stream.skips.first)] == [
        "example 205",
        "example 3",
    ]


def test_more_than_one_percent_unreadable_ends_the_run(tmp_path):
    split = pictures(250)
    for i in (5, 50, 150):
        path = tmp_path / f"{i}.jpg"
        path.write_text("no picture")
        split[i] = {"image": path, "label": 0}
    with pytest.raises(pipeline.UnreadableData) as caught:
        take(pipeline.train_stream(split, Images(batch_size=10)), 26)
    message = str(caught.value)
    assert "3 of 250 train pictures" in message and "more than 1%" in message
    assert all(f"{i}.jpg: no picture format" in message for i in (5, 50, 150))
    take(pipeline.train_stream([*split, *pictures(50)], Images(batch_size=10)), 31)  # just 1 %


@pytest.mark.parametrize("process", [0, 1])
def test_each_process_counts_among_what_it_has_read_itself(process):
    """1.5 % of a split, which is less than 1 % of it for one of two processes."""
    broken, count = {"image": b"no picture", "label": 0}, 4000
    split = [broken if i % 67 == 1 else example for i, example in enumerate(pictures(count))]
    cfg, part = Images(batch_size=100, threads=0), {"process_index": process, "process_count": 2}
    assert sum(example is broken for example in split) == 60
    with pytest.raises(
        pipeline.UnreadableData, match=r"of 4000 train .* of the \d+ that were read"
    ):
        take(pipeline.train_stream(split, cfg, **part), count // 100)
    skips = pipeline.Skips("validation", count)
    with pytest.raises(pipeline.UnreadableData, match="of 4000 validation"):
        take(pipeline.eval_batches(split, cfg, skips=skips, **part), count // 100)
    assert skips.count == 21, "of the 2000 that are its own"


def test_the_share_is_of_different_examples_and_of_enough_of_them():
    skips = pipeline.Skips("train", 10_000, floor=100)
    for _ in range(2):
        for i in range(250):
            skips.see(i)
    assert skips.read == 250
    for i in (7, 3, 7):
        skips.add(i, preprocess.Unreadable("x.jpg", "broken"))
    with pytest.raises(pipeline.UnreadableData, match="3 of 10000 .*1% of the 250 that were read"):
        skips.add(8, preprocess.Unreadable("y.jpg", "broken"))
    few = pipeline.Skips("train", 10_000, floor=100)
    few.see(0)
    few.add(0, preprocess.Unreadable("x.jpg", "broken"))


def test_an_unreadable_picture_is_not_kept():
    """Nor the error, whose frames hold it."""

    class Picture(Exception):
        pass

    skips, held = pipeline.Skips("train", 10_000), []
    for i in range(5):
        error = preprocess.Unreadable(f"{i}.jpg", "broken")
        error.__cause__ = Picture()
        held.append(weakref.ref(error.__cause__))
        skips.add(i, error)
    del error
    gc.collect()
    assert [each() for each in held] == [None] * 5
    assert skips.kinds == {"broken": 5} and skips.count == 5
    assert [note.split(":")[0] for note in skips.first] == [f"example {i}" for i in range(3)]


def test_a_split_without_a_readable_picture_ends_the_run():
    with pytest.raises(pipeline.UnreadableData):
        pipeline.picture_shape([{"image": b"", "label": 0}] * 3, Images())
    with pytest.raises(ConfigError, match="empty"):
        pipeline.picture_shape([], Images())


# ---- evaluation ----


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_sees_every_readable_example_once(count):
    split, cfg = with_broken(210), Images(batch_size=16)
    runs = [
        list(pipeline.eval_batches(split, cfg, process_index=i, process_count=count))
        for i in range(count)
    ]
    assert [len(run) for run in runs] == [14] * count  # 13 full ones and one of 2
    batches = [batch for run in runs for batch in run]
    assert {batch["image"].shape for batch in batches} == {(16 // count, SIZE, SIZE, 1)}
    assert {batch["mask"].dtype for batch in batches} == {np.dtype(np.float32)}
    rows = [(int(i), m) for b in batches for i, m in zip(b["index"], b["mask"], strict=True)]
    assert sorted(i for i, m in rows if m == 1) == [*range(3), *range(4, 205), *range(206, 210)]
    assert sorted(i for i, m in rows if m == 0) == [-1] * 14 + [3, 205]


def test_evaluation_keeps_the_order_and_augments_nothing():
    split = pictures(20)
    batches = list(pipeline.eval_batches(split, AUGMENTED))
    assert indices(batches) == [*range(20), -1, -1, -1, -1]
    images = np.concatenate([batch["image"] for batch in batches])
    assert np.array_equal(images[:20], np.stack([example["image"] for example in split]))


# ---- prefetch ----


def test_prefetch_pairs_each_batch_with_the_state_after_it():
    straight = take(pipeline.train_stream(pictures(30), AUGMENTED), 12)
    ahead = pipeline.prefetch(pipeline.train_stream(pictures(30), AUGMENTED), dict, depth=3)
    for t, (batch, state) in enumerate(itertools.islice(ahead, 10)):
        resumed = pipeline.train_stream(pictures(30), AUGMENTED)
        resumed.restore(state)
        assert same([batch, *take(resumed, 1)], straight[t : t + 2])
    ahead.close()


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_the_thread_stays_the_stated_number_ahead():
    made, filled = [], threading.Event()

    def items():
        for i in itertools.count():
            made.append(i)
            if i == 3:  # the one in hand and three ahead
                filled.set()
            yield i

    ahead = pipeline.background(items(), depth=3)
    assert next(ahead) == 0
    assert filled.wait(10), "the thread does not work ahead"
    assert not threading.Event().wait(0.05) and made == [0, 1, 2, 3]
    ahead.close()


def test_closing_ends_a_thread_that_is_blocked_on_a_full_queue():
    ahead = pipeline.background(itertools.count(), depth=1)
    next(ahead)
    assert background_threads()
    ahead.close()
    assert not background_threads()


def test_an_error_in_the_thread_is_raised_in_its_turn():
    def put(batch):
        if not count.acquire(blocking=False):
            raise RuntimeError("no memory on the device")
        return batch

    count = threading.Semaphore(2)
    ahead = pipeline.prefetch(pipeline.train_stream(pictures(30), Images(batch_size=8)), put, 2)
    next(ahead), next(ahead)
    with pytest.raises(RuntimeError, match="no memory"):
        next(ahead)
    assert not background_threads()


def test_a_finite_iterator_ends():
    assert list(pipeline.background(range(5), depth=2)) == [0, 1, 2, 3, 4]
    assert not background_threads()
