"""Where pictures with captions come from: random-access splits, opened by name. Needs no jax.

    glyphs                 characters of matplotlib's DejaVu faces with their Unicode names, 32×32
    glyphs_dev             its training side, divided again alike: settings are chosen by its test
    pairs:FILE             a table (.csv, .tsv) or JSON objects, one a line (.jsonl, .jsonl.gz), of
                           paths below the file's folder and captions
    wds:GLOB               tar shards with KEY.jpg and KEY.txt (or KEY.json): "wds:~/laion/*.tar"
    tfds:NAME[:VERSION]    a TFDS data set with a picture and a caption, prepared beforehand

Fields are named by `data.image_field` and `data.caption_field`. A picture may have several
captions: a list of them, or several rows of a table. Every source has a train, a validation and a
test split: what is stored as such (a `split` in a table, TFDS's own) stays, and what is missing is
cut from train, a share of `data.holdout` each. Tables and shards are cut by a hash of the picture's
name, so that a pair stays where it is when others come; TFDS's records as for pictures with a
class; and glyphs by a rule of their own, `train.data.glyphs.divide`.
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from train.config import ConfigError, Missing, Pairs, on_disk
from train.data import corpora, shards, sources
from train.data.corpora import SPLITS, unit_hash
from train.data.sources import STORED_AS, Example, Kind, Split, Subset, bad_source
from zoo.preprocess import Picture, Unreadable, decode

UNSTATED = "not stated: the user's own files"
# The kinds of examples that cannot be used, beside pictures that are broken.
NO_CAPTION, NO_PICTURE = "without caption", "without picture"
NO_TEXT, NO_JSON = "with no text in UTF-8", "with damaged JSON"
SAME_KEY = "with a key that came before"


class Flawed(Unreadable):
    """An example that cannot be used for another reason than its picture: the `kind` says which."""

    def __init__(self, where: object, kind: str):
        super().__init__(str(where), kind)
        self.kind = kind


class View(NamedTuple):
    """A picture, or a function that reads it, and its captions, one at least."""

    image: Picture | Callable[[], Picture]
    captions: tuple[str, ...]

    def picture(self) -> Picture:
        """Raises Unreadable where it cannot be read."""
        return self.image() if callable(self.image) else self.image


class Beside(NamedTuple):
    """What else a split is tested with.

    distractors  pictures that are not in the split
    order        pairs whose captions are of the same words in another order
    """

    distractors: Sequence[Picture]
    order: Sequence[tuple[View, View]] = ()


@dataclass(frozen=True)
class Captioned:
    """Three splits, "train", "validation" and "test", read at random.

    An example is {"views": sequence of `View`}: what is the same thing to look at, of which one is
    trained on at a time; the first is evaluated. `split[i]` raises Unreadable for what cannot be
    used. beside: by split.
    """

    name: str
    licence: str
    splits: Mapping[str, Split]
    beside: Mapping[str, Beside] = field(default_factory=dict)


def check_source(cfg: Pairs) -> None:
    """Raises ConfigError for what is wrong with `data.source`, as far as a look at the disk shows.

    Imports neither jax nor, unless it fails, tensorflow_datasets.
    """
    kind, argument = sources.choose(cfg, SOURCES)
    kind.check(argument, cfg)
    if cfg.distinct and argument:
        raise ConfigError(
            f"data.distinct: {cfg.source!r} does not say which captions mean the same; glyphs "
            "does. Set it to False"
        )


def open_source(cfg: Pairs) -> Captioned:
    """The source that `data.source` names. Raises ConfigError where `check_source` does, and for
    data that is there but cannot be used."""
    check_source(cfg)
    kind, argument = sources.choose(cfg, SOURCES)
    return kind.open(argument, cfg)


# ---- captions ----


def as_captions(value: Any, where: object) -> tuple[str, ...]:
    """Of a text or a list of texts, as str or UTF-8, each once. Raises Flawed for what is none, and
    where none says anything."""
    several = value if isinstance(value, list | tuple | np.ndarray) else [value]
    found = [_as_text(each, where) for each in several if each is not None]
    if not any(text.strip() for text in found):
        raise Flawed(where, NO_CAPTION)
    return each_once(text for text in found if text.strip())


def each_once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _as_text(value: Any, where: object) -> str:
    try:
        return corpora.as_text(value, "")
    except ConfigError as error:
        raise Flawed(where, NO_TEXT) from error


# ---- splits ----


class Examples(Sequence[Example]):
    """Views in memory, by example."""

    def __init__(self, views: Sequence[Sequence[View]]):
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i: Any) -> Any:
        return {"views": self.views[i]}


def cut(places: np.ndarray, stored: np.ndarray, cfg: Pairs) -> dict[str, np.ndarray]:
    """The numbers of the examples in each split.

    places: [n] in [0, 1), by a hash. stored: int8 [n], numbers of SPLITS, which are kept as for
    pictures with a class; what is missing takes a share of `data.holdout` of train. Raises
    ConfigError where one is left empty.
    """
    train, validation, test = range(len(SPLITS))
    if train not in stored:
        raise ConfigError(
            f"data.source: of the {len(stored)} pictures of {cfg.source!r} none is to train on: "
            "its column `split` says train nowhere; write it there, or leave the column out"
        )
    stored = stored.copy()
    if test not in stored:
        stored[stored == validation] = test
    missing = [split for split in (test, validation) if split not in stored]
    for k, split in enumerate(missing):
        among = (places >= k * cfg.holdout) & (places < (k + 1) * cfg.holdout)
        stored[among & (stored == train)] = split
    found = {name: np.flatnonzero(stored == number) for number, name in enumerate(SPLITS)}
    empty = [name for name, numbers in found.items() if not len(numbers)]
    if empty:
        raise ConfigError(
            f"data.holdout = {cfg.holdout}: {cfg.source!r} has {len(places)} pictures, of which "
            f"{' and '.join(empty)} would get none; choose a share between 0 and 0.5, or add some"
        )
    return found


# ---- glyphs ----


def open_glyphs(_: str, cfg: Pairs) -> Captioned:
    """One picture for each face that has a character, 32×32×1, with its name.

    `train.data.glyphs.division` says what is held back: captions never seen, made of words that
    are; `rehearsal` says it for "glyphs_dev". To train on, an example is a character in all its
    faces, or with `data.distinct` a family of twins. Evaluation has one picture of each, in the
    first face that has it.
    """
    from train.data import glyphs  # it draws for seconds, so only where it is used

    found, division = glyphs.concepts(), glyphs.division()
    if cfg.source == "glyphs_dev":  # what `glyphs` tests stays unseen, also as a distractor
        known = {*division.validation, *(c for family in division.train for c in family)}
        found = {character: found[character] for character in found if character in known}
        division = glyphs.rehearsal()
    seen = division.train if cfg.distinct else [(c,) for family in division.train for c in family]

    def views(characters: Iterable[str]) -> list[View]:
        concepts = [found[character] for character in characters]
        return [View(p, (c.caption,)) for c in concepts for p in c.pictures.values()]

    shown = {character: views([character])[0] for character in found}
    held = {"validation": division.validation, "test": division.test}

    def others(split: Collection[str]) -> list[Picture]:
        inside = set(split)
        return [view.picture() for c, view in shown.items() if c not in inside]

    order = [(shown[a], shown[b]) for a, b in division.order]
    return Captioned(
        cfg.source,
        glyphs.LICENCE,
        {
            "train": Examples([views(characters) for characters in seen]),
            **{name: Examples([[shown[c]] for c in split]) for name, split in held.items()},
        },
        {
            "validation": Beside(others(division.validation)),
            "test": Beside(others(division.test), order),
        },
    )


# ---- pairs ----


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = "".join(corpora.read_text(path)).removeprefix("\ufeff")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            if None in record or None in record.values():
                raise ConfigError(
                    f"data.source: {path}, line {reader.line_num} has another number of fields "
                    f"than the {len(reader.fieldnames or ())} of its first line; put quotes "
                    "around what holds a delimiter"
                )
            yield reader.line_num, record
    except csv.Error as error:
        raise ConfigError(f"data.source: {path}, line {reader.line_num}: {error}") from error


TABLES: Mapping[str, Callable[[Path], Iterator[tuple[int, Mapping[str, Any]]]]] = {
    ".csv": partial(_table, delimiter=","),
    ".tsv": partial(_table, delimiter="\t"),
    ".jsonl": corpora.records,
    ".jsonl.gz": corpora.records,
}


class Row(NamedTuple):
    image: str
    captions: tuple[str, ...]
    split: str


def check_pairs(name: str, cfg: Pairs) -> None:
    """Looks at the first row."""
    path = on_disk(name, "data.source")
    if not path.is_file():
        raise bad_source(cfg, f"there is no file {path}", Missing)
    if not path.name.endswith((*TABLES,)):
        raise bad_source(cfg, f"the name must end in one of {', '.join(TABLES)}")
    if next(_rows(path, cfg), None) is None:
        raise bad_source(cfg, f"{path} has no row")


def open_pairs(name: str, cfg: Pairs) -> Captioned:
    """Raises ConfigError, naming the line, for a row without path or caption, a path that leads out
    of the file's folder, and a picture that is in two splits."""
    path = on_disk(name, "data.source")
    found: dict[str, Row] = {}
    for where, row in _rows(path, cfg):
        before = found.get(row.image, row._replace(captions=()))
        if row.split != before.split:
            raise ConfigError(
                f"data.source: {where} puts {row.image} in {row.split}, but an earlier line in "
                f"{before.split}"
            )
        found[row.image] = row._replace(captions=each_once(before.captions + row.captions))
    views = [[View(path.parent / image, row.captions)] for image, row in found.items()]
    places = np.array([unit_hash(image) for image in found])
    stored = np.array([SPLITS.index(row.split) for row in found.values()], np.int8)
    everything = Examples(views)
    splits = {name: Subset(everything, part) for name, part in cut(places, stored, cfg).items()}
    return Captioned(path.name, UNSTATED, splits)


def _rows(path: Path, cfg: Pairs) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of each, checked."""
    read = next(read for ending, read in TABLES.items() if path.name.endswith(ending))
    for number, record in read(path):
        where = f"{path}, line {number}"
        image, caption = (_field(record, key, cfg, where) for key in ("image", "caption"))
        try:
            captions = as_captions(caption, where)
        except Flawed as error:
            raise ConfigError(f"data.caption_field = {cfg.caption_field!r}: {error}") from error
        yield where, Row(_below(image, where), captions, _split(record, where))


def _field(record: Mapping[str, Any], kind: str, cfg: Pairs, where: str) -> Any:
    name = getattr(cfg, f"{kind}_field")
    if name not in record:
        has = ", ".join(map(repr, record)) or "nothing"
        raise ConfigError(f"data.{kind}_field = {name!r}: {where} has {has} instead")
    return record[name]


def _below(image: Any, where: str) -> str:
    """A path of a picture, written plainly. Raises ConfigError for one that leads elsewhere."""
    if not isinstance(image, str) or not image.strip():
        raise ConfigError(f"data.source: {where} names no picture, but {image!r:.80}")
    path = PurePosixPath(corpora.as_text(image, f"data.source: the path in {where}"))
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"data.source: {where} names {image}, but paths are relative to the file's folder and "
            "stay below it: move the file above the pictures"
        )
    return path.as_posix()


def _split(record: Mapping[str, Any], where: str) -> str:
    stated = record.get("split", "train")
    for ours, names in STORED_AS.items():
        if stated in names:
            return ours
    known = ", ".join(name for names in STORED_AS.values() for name in names)
    raise ConfigError(f"data.source: {where} has the split {stated!r:.80}; use one of {known}")


# ---- tar shards ----


class Member(NamedTuple):
    """An example in a shard, by its entry (`shards.ENTRY`); its name is read when it is needed."""

    path: Path
    entry: Any

    def __str__(self) -> str:
        starts = (int(self.entry["image"]), int(self.entry["caption"]))
        return f"{self.path}: {shards.title(self.path, next(s for s in starts if s >= 0))}"

    def content(self, key: str) -> bytes:
        """Of its "image" or "caption"."""
        return shards.read(self.path, int(self.entry[key]), int(self.entry[f"{key}_size"]))

    def picture(self, channels: int | None) -> np.ndarray:
        """Decoded here, where it is known what to call it."""
        try:
            return decode(self.content("image"), channels)
        except Unreadable as error:
            raise Unreadable(str(self), error.reason) from error

    def captions(self, field: str) -> tuple[str, ...]:
        text = _as_text(self.content("caption"), self)
        if not self.entry["json"]:
            return as_captions(text, self)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Flawed(self, NO_JSON) from error
        return as_captions(record.get(field) if isinstance(record, dict) else None, self)


class Members(Sequence[Example]):
    """Examples in tar shards, read when asked for."""

    def __init__(self, paths: Sequence[Path], entries: np.ndarray, cfg: Pairs):
        self.paths, self.entries, self.cfg = paths, entries, cfg

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: Any) -> Any:
        entry = self.entries[i]
        member = Member(self.paths[int(entry["shard"])], entry)
        flaws = (
            (SAME_KEY, entry["again"]),
            (NO_PICTURE, entry["image"] < 0),
            (NO_CAPTION, entry["caption"] < 0),
        )
        for kind, flawed in flaws:
            if flawed:
                raise Flawed(member, kind)
        captions = member.captions(self.cfg.caption_field)
        return {"views": (View(partial(member.picture, self.cfg.channels), captions),)}


def check_wds(pattern: str, cfg: Pairs) -> None:
    corpora.found_files(pattern, cfg)


def open_wds(pattern: str, cfg: Pairs) -> Captioned:
    """Cut by a hash of shard and key. Raises ConfigError for a shard that is packed or damaged."""
    files = corpora.found_files(pattern, cfg)
    entries = shards.indexed(files)
    if not len(entries):
        raise bad_source(cfg, "no shard has a member such as KEY.jpg or KEY.txt")
    found = cut(entries["place"], np.zeros(len(entries), np.int8), cfg)
    paths = [*files.values()]
    splits = {name: Members(paths, entries[part], cfg) for name, part in found.items()}
    return Captioned(pattern, UNSTATED, splits)


# ---- tfds ----


class Records(sources.Encoded):
    """A split of `tfds.data_source` whose pictures are left encoded."""

    def __init__(self, split: Any, size: int, cfg: Pairs, name: str):
        super().__init__(split, size)
        self.cfg, self.name = cfg, name

    def __getitem__(self, i: Any) -> Any:
        example, where = self.split[i], f"{self.name} record {i}"
        captions = as_captions(_inner(example, self.cfg.caption_field), where)
        return {"views": (View(example[self.cfg.image_field], captions),)}


def _inner(value: Any, path: str) -> Any:
    """What lies below a path such as "captions.text"; of a list, that of each of its items."""
    for key in path.split("."):
        value = value[key] if isinstance(value, Mapping) else [each[key] for each in value]
    return value


def open_tfds(name: str, cfg: Pairs) -> Captioned:
    """Any data set with an `Image` and, in a feature or below one ("captions.text"), a `Text` or a
    `Sequence` of them.

    TensorFlow is not needed and not imported. Raises ConfigError as for pictures with a class.
    """
    import tensorflow_datasets as tfds  # a second to import, so only where it is used

    builder = sources.tfds_builder(name, cfg)
    _check_features(tfds, builder.info.features, cfg)
    decoders = {cfg.image_field: tfds.decode.SkipDecoding()}
    read = sources.tfds_splits(builder, name, cfg, decoders=decoders)
    sizes = {name: split.num_bytes for name, split in builder.info.splits.items()}
    stored: dict[str, Split] = {
        ours: Records(read[theirs], sizes[theirs], cfg, ours)
        for ours, theirs in sources.stored_splits(read)
        if len(read[theirs])
    }
    sources.check_train(stored, read, cfg)
    return Captioned(*sources.tfds_title(builder), sources.hold_out(stored, cfg))


def _check_features(tfds: Any, features: Any, cfg: Pairs) -> None:
    image: Any = features[cfg.image_field] if cfg.image_field in features else None
    if not isinstance(image, tfds.features.Image) or np.dtype(image.np_dtype).kind != "u":
        raise ConfigError(
            f"data.image_field = {cfg.image_field!r} must be a picture of whole numbers; it has "
            f"{', '.join(features)}"
        )
    found: Any = features
    for key in cfg.caption_field.split("."):
        found = (
            found[key] if isinstance(found, tfds.features.FeaturesDict) and key in found else None
        )
        found = getattr(found, "feature", found)  # of a sequence, its items
    if not isinstance(found, tfds.features.Text):
        raise ConfigError(
            f"data.caption_field = {cfg.caption_field!r} must be a text or a sequence of them, "
            f"such as 'captions.text'; it has {', '.join(features)}"
        )


# ---- the table ----


SOURCES = {
    "glyphs": Kind("glyphs", sources.check_glyphs, open_glyphs),
    "glyphs_dev": Kind("glyphs_dev", sources.check_glyphs, open_glyphs),
    "pairs": Kind("pairs:FILE", check_pairs, open_pairs),
    "wds": Kind("wds:GLOB", check_wds, open_wds),
    "tfds": Kind("tfds:NAME[:VERSION]", sources.check_tfds, open_tfds),
}
