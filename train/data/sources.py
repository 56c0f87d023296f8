"""Where pictures come from: random-access splits, opened by name.

    digits                 scikit-learn's 1,797 handwritten digits, 8×8, nothing to fetch
    glyphs                 245 letters in the twelve DejaVu faces of matplotlib, 32×32
    tfds:NAME[:VERSION]    a TFDS data set with `image` and `label`, prepared beforehand
    folder:PATH            PATH/CLASS/… or PATH/{train,val,test}/CLASS/…, one class per sub-folder

Every source has a train, a validation and a test split. What is stored as test stays the test; a
validation split is used as stored beside a test split, and as the test split where there is no
labelled test (ImageNet). What is then missing is cut from train by a permutation seeded with
`data.seed`, a share of `data.holdout` each.
"""

import difflib
import importlib.util
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.config import ConfigError, Data, Missing

Example = Mapping[str, Any]  # {"image": uint8 [h, w, c] | encoded bytes | Path, "label": int}
Split = Sequence[Example]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")
IDX_NAMES = ("fashion_mnist", "kmnist", "mnist")  # what train.data.prepare can write
STORED_AS = {  # our split → the names it goes by in folders and TFDS
    "train": ("train",),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Source:
    """Three splits, read at random, and what is known about them.

    splits   "train", "validation", "test": `len(split)` and `split[i]`, an `Example`
    labels   names of the classes, in the order of the integer labels
    licence  of the data, as far as its source states one
    shape    (height, width, channels) of a picture; None where pictures differ or it is not known
    """

    name: str
    splits: Mapping[str, Split]
    labels: tuple[str, ...]
    licence: str
    shape: tuple[int | None, int | None, int | None] = (None, None, None)


def check_source(cfg: Data) -> None:
    """Raises ConfigError for what is wrong with `data.source`, as far as a look at the disk shows.

    Imports neither jax nor, unless it fails, tensorflow_datasets.
    """
    kind, argument = choose(cfg, SOURCES)
    kind.check(argument, cfg)


def open_source(cfg: Data) -> Source:
    """The source that `data.source` names. Raises ConfigError where `check_source` does, and for
    data that is there but cannot be used."""
    kind, argument = choose(cfg, SOURCES)
    kind.check(argument, cfg)
    return kind.open(argument, cfg)


def choose(cfg: Data, kinds: Mapping[str, "Kind"]) -> tuple["Kind", str]:
    """The kind of source that `data.source` names, and what stands after its colon."""
    prefix, _, argument = cfg.source.partition(":")
    forms = ", ".join(kind.form for kind in kinds.values())
    if prefix not in kinds:
        [near] = difflib.get_close_matches(prefix, kinds, n=1, cutoff=0.0)
        raise bad_source(cfg, f"unknown source; did you mean {kinds[near].form}? One of {forms}")
    kind = kinds[prefix]
    if bool(argument) != (":" in kind.form):
        raise bad_source(cfg, f"must have the form {kind.form}")
    return kind, argument


def bad_source(cfg: Data, message: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
    """The error for what is wrong with `data.source`."""
    return kind(f"data.source = {cfg.source!r}: {message}")


# ---- splits ----


class Subset(Sequence[Example]):
    """The examples of `split` at `indices`."""

    def __init__(self, split: Split, indices: np.ndarray):
        self.split, self.indices = split, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: Any) -> Any:
        return self.split[int(self.indices[i])]


def hold_out(stored: Mapping[str, Split], cfg: Data) -> dict[str, Split]:
    """Train, validation and test from the labelled splits that are stored, at least "train".

    Raises ConfigError if `data.holdout` leaves a split without examples.
    """
    splits = dict(stored)
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    missing = [name for name in ("test", "validation") if name not in splits]
    if not missing:
        return splits
    train = splits["train"]
    share = round(cfg.holdout * len(train))
    if share < 1 or share * len(missing) >= len(train):
        raise ConfigError(
            f"data.holdout = {cfg.holdout}: {' and '.join(missing)} must be cut from the "
            f"{len(train)} training examples of {cfg.source!r}, which leaves a split empty; "
            "choose a share between 0 and 0.5, or add examples"
        )
    order = np.random.default_rng(cfg.seed).permutation(len(train))
    for k, name in enumerate(missing):
        splits[name] = Subset(train, np.sort(order[k * share : (k + 1) * share]))
    splits["train"] = Subset(train, np.sort(order[len(missing) * share :]))
    return splits


# ---- digits ----

DIGITS_TEST, DIGITS_VALIDATION = 360, 180  # of 1,797; 1,257 are left to train on


class Arrays(Sequence[Example]):
    """Pictures [n, h, w, c] uint8 and labels [n] in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: Any) -> Any:
        return {"image": self.images[i], "label": int(self.labels[i])}


def check_digits(_: str, cfg: Data) -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise bad_source(cfg, "needs scikit-learn: pip install scikit-learn")


def open_digits(_: str, cfg: Data) -> Source:
    """8×8×1 pictures; stored values 0…16 are multiplied by 255/16 and rounded to uint8.

    The split is fixed, whatever `data.seed` is: 1,257 train, 180 validation, 360 test, with every
    class in its share of each, give or take one example.
    """
    from sklearn.datasets import load_digits  # a second to import, so only where it is used

    data: Any = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    order = stratified_order(data.target)
    ends = [DIGITS_TEST, DIGITS_TEST + DIGITS_VALIDATION]
    parts = zip(("test", "validation", "train"), np.split(order, ends), strict=True)
    splits = {name: Arrays(images[part], data.target[part]) for name, part in parts}
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", splits, names, "BSD-3-Clause (scikit-learn)", (8, 8, 1))


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """A fixed permutation of `range(n)` in which every stretch has each class in its share.

    Each class is shuffled by itself and spread evenly over [0, 1]; sorting by place interleaves.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks = np.random.default_rng(int(label)).permutation(len(members))
        place[members] = (ranks + 0.5) / len(members)
    return np.argsort(place, kind="stable")


# ---- glyphs ----

GLYPHS_VALIDATION, GLYPHS_TEST = ("DejaVuSansMono-BoldOblique",), ("DejaVuSerif-BoldItalic",)


def check_glyphs(_: str, cfg: Data) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise bad_source(cfg, "needs the fonts of matplotlib: pip install matplotlib")


def open_glyphs(_: str, cfg: Data) -> Source:
    """32×32×1 pictures of `train.data.glyphs.LETTERS`: ten faces to train on (9,800 pictures), one
    each to validate and to test (980).

    What is held out are whole faces, bold and slanted, of which the bold and the slanted one are
    trained on. No digit is among the letters, so that what is learned here and shown on digits has
    been carried over.
    """
    from train.data import glyphs  # 0.2 s, so only where it is used

    held = {"validation": GLYPHS_VALIDATION, "test": GLYPHS_TEST}
    seen = tuple(face for face in glyphs.FACES if (face,) not in held.values())
    splits = {name: drawn(glyphs.letters(faces)) for name, faces in {"train": seen, **held}.items()}
    shape = (glyphs.SIDE, glyphs.SIDE, 1)
    return Source("glyphs", splits, tuple(glyphs.LETTERS), glyphs.LICENCE, shape)


def drawn(found: Sequence[Any]) -> Arrays:
    """Glyphs as pictures with the number of their letter."""
    from train.data import glyphs

    labels = np.array([glyphs.LETTERS.index(glyph.character) for glyph in found])
    return Arrays(np.stack([glyphs.render(glyph) for glyph in found]), labels)


# ---- tfds ----


IN_MEMORY = 2**28  # bytes: smaller splits are read at once and kept


class Encoded(Sequence[Example]):
    """A split of `tfds.data_source` whose pictures are left encoded, so that our threads decode.

    Reading one record costs about 0.1 ms however small it is, reading them all at once a fraction
    of that: a split of up to IN_MEMORY bytes is held in memory.
    """

    def __init__(self, split: Any, size: int):
        self.split = split
        if size <= IN_MEMORY:
            self.split = split.__getitems__(range(len(split)))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: Any) -> Any:
        example = self.split[i]
        return {"image": example["image"], "label": int(example["label"])}


def tfds_root(data_dir: str | None) -> Path:
    """Where TFDS keeps its data sets: `data_dir`, else $TFDS_DATA_DIR, else its default."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def check_tfds(name: str, cfg: Data) -> None:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise bad_source(
            cfg, "needs tensorflow-datasets: pip install tensorflow-datasets array_record"
        )
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", name):
        raise bad_source(cfg, "must have the form tfds:NAME[:VERSION], such as tfds:mnist:3.0.1")
    if not _is_remote(cfg) and not (tfds_root(cfg.data_dir) / _tfds_name(name)).is_dir():
        raise _not_prepared(name, cfg)


def open_tfds(name: str, cfg: Data) -> Source:
    """Any data set with an `Image` and a `ClassLabel`, read by `tfds.data_source`.

    TensorFlow is not needed and not imported. Raises ConfigError if the data set is not prepared in
    a format with random access, or is not one of labelled pictures with a train split.
    """
    import tensorflow_datasets as tfds  # a second to import, so only where it is used

    builder = tfds_builder(name, cfg)
    image, label = _features(tfds, builder.info.features, cfg)
    read = tfds_splits(builder, name, cfg, decoders={"image": tfds.decode.SkipDecoding()})
    sizes = {name: split.num_bytes for name, split in builder.info.splits.items()}
    splits: dict[str, Split] = {
        ours: Encoded(read[theirs], sizes[theirs])
        for ours, theirs in stored_splits(read)
        if len(read[theirs])
    }
    check_train(splits, read, cfg)
    if "test" in splits and splits["test"][0]["label"] < 0:
        del splits["test"]  # ImageNet's: labels are kept secret and stored as -1
    name, licence = tfds_title(builder)
    return Source(name, hold_out(splits, cfg), tuple(label.names), licence, image.shape)


def tfds_builder(name: str, cfg: Data) -> Any:
    """The builder of a data set that is prepared. Raises ConfigError where it is not."""
    import tensorflow_datasets as tfds

    data_dir = cfg.data_dir if _is_remote(cfg) else str(tfds_root(cfg.data_dir))
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises its own, ValueError and AssertionError
        raise bad_source(cfg, f"TFDS cannot open it: {str(error).splitlines()[0]}") from error
    if not builder.info.splits:
        raise _not_prepared(name, cfg)
    return builder


def tfds_splits(builder: Any, name: str, cfg: Data, **options: Any) -> Any:
    """Its splits by TFDS's names, read at random. Raises ConfigError for files that cannot be."""
    try:
        return builder.as_data_source(**options)
    except NotImplementedError as error:
        format_ = builder.info.file_format
        raise bad_source(
            cfg,
            f"{builder.data_dir} holds {format_ and format_.value} files, which cannot be read at "
            f"random; move that folder away, then {_preparation(name, cfg)}",
        ) from error


def tfds_title(builder: Any) -> tuple[str, str]:
    """(name with version, licence) of a data set."""
    info = builder.info
    return info.full_name, info.redistribution_info.license or f"see {info.homepage}"


def check_train(splits: Collection[str], read: Collection[str], cfg: Data) -> None:
    """Raises ConfigError where there is no train among `splits`, found in TFDS's `read`."""
    if "train" not in splits:
        raise bad_source(cfg, f"has the splits {', '.join(sorted(read))}, but no train split")


def _features(tfds: Any, features: Any, cfg: Data) -> tuple[Any, Any]:
    image: Any = features["image"] if "image" in features else None
    label: Any = features["label"] if "label" in features else None
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise bad_source(
            cfg, f"needs a picture `image` and a class `label`; it has {', '.join(features)}"
        )
    if image.np_dtype not in (np.uint8, np.uint16):
        raise bad_source(
            cfg, f"its pictures are {np.dtype(image.np_dtype)}; uint8 or uint16 is needed"
        )
    return image, label


def stored_splits(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """(our name, the name that it goes by) of the splits among `names`."""
    for ours, stored_as in STORED_AS.items():
        yield from [(ours, name) for name in stored_as if name in names][:1]


def _is_remote(cfg: Data) -> bool:
    return "://" in (cfg.data_dir or "")  # a bucket, where only TFDS itself can look


def _tfds_name(name: str) -> str:
    return re.split("[/:]", name)[0]


def _not_prepared(name: str, cfg: Data) -> ConfigError:
    import tensorflow_datasets as tfds  # only it knows which data sets there are

    known = tfds.list_builders(with_community_datasets=False)
    if _tfds_name(name) in known:
        root = tfds_root(cfg.data_dir)
        return bad_source(cfg, f"is not prepared in {root}; {_preparation(name, cfg)}", Missing)
    near = difflib.get_close_matches(_tfds_name(name), known, n=3, cutoff=0.0)
    return bad_source(cfg, f"TFDS has no data set of this name; near it: {', '.join(near)}")


def _preparation(name: str, cfg: Data) -> str:
    place = f", data_dir={cfg.data_dir!r}" if cfg.data_dir else ""
    command = (
        "prepare it once, which needs TensorFlow (training does not): "
        "pip install tensorflow-cpu tensorflow-datasets && python -c "
        f"\"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"file_format='array_record'{place}).download_and_prepare()\""
    )
    if _tfds_name(name) not in IDX_NAMES:
        return command
    option = f" --data-dir {cfg.data_dir}" if cfg.data_dir else ""
    return (
        f"{command}; or, without TensorFlow, from a folder with the four IDX files: "
        f"python -m train.data.prepare {_tfds_name(name)} FOLDER{option}"
    )


# ---- folder ----


class Files(Sequence[Example]):
    """Picture files and their labels; an example's image is its path."""

    def __init__(self, paths: list[str], labels: np.ndarray):
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: Any) -> Any:
        return {"image": Path(self.paths[i]), "label": int(self.labels[i])}


def check_folder(path: str, cfg: Data) -> None:
    splits = _folders(Path(path).expanduser(), cfg)
    classes = {name: _classes(folder, cfg) for name, folder in splits.items()}
    for name, names in classes.items():
        if names != classes["train"]:
            odd = sorted(set(names) ^ set(classes["train"]))
            raise bad_source(
                cfg, f"{splits['train']} and {splits[name]} differ in classes: {', '.join(odd)}"
            )


def open_folder(path: str, cfg: Data) -> Source:
    """Pictures sorted by class and file name; sub-folders of a class belong to it."""
    folders = _folders(Path(path).expanduser(), cfg)
    classes = _classes(folders["train"], cfg)
    stored = {name: _files(folder, classes) for name, folder in folders.items()}
    licence = "not stated: the user's own folder"
    return Source(Path(path).name, hold_out(stored, cfg), tuple(classes), licence)


def _folders(root: Path, cfg: Data) -> dict[str, Path]:
    if not root.is_dir():
        raise bad_source(cfg, f"there is no folder {root}", Missing)
    # A folder called train that holds pictures and no folders is a class: trains.
    if not _subfolders(root / "train"):
        return {"train": root}
    return {ours: root / name for ours, name in stored_splits(_subfolders(root))}


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _classes(folder: Path, cfg: Data) -> list[str]:
    classes = _subfolders(folder)
    if not classes:
        raise bad_source(
            cfg, f"{folder} has no sub-folders; put each class's pictures into its own"
        )
    empty = [name for name in classes if next(_pictures(folder / name), None) is None]
    if empty:
        raise bad_source(
            cfg,
            f"no picture ({' '.join(EXTENSIONS)}) in {folder}/{{{','.join(empty)}}}; "
            "add pictures or remove the folders",
        )
    return classes


def _files(folder: Path, classes: Sequence[str]) -> Files:
    found = [sorted(_pictures(folder / name)) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in found])
    return Files([path for paths in found for path in paths], labels)


def _pictures(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield os.path.join(parent, name)


# ---- the table ----


class Kind(NamedTuple):
    """How a source is written, checked without jax, and opened."""

    form: str
    check: Callable[[str, Any], None]
    open: Callable[[str, Any], Any]


SOURCES = {
    "digits": Kind("digits", check_digits, open_digits),
    "glyphs": Kind("glyphs", check_glyphs, open_glyphs),
    "tfds": Kind("tfds:NAME[:VERSION]", check_tfds, open_tfds),
    "folder": Kind("folder:PATH", check_folder, open_folder),
}
