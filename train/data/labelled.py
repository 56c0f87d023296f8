"""Texts with labels: where they come from, and their rows of tokens. Needs no jax.

    jsonl:GLOB             JSON objects, one a line, .jsonl or .jsonl.gz
    tfds:NAME[:VERSION]    a TFDS data set, prepared beforehand

Of JSON files, those with a split in their names (train; validation, val, valid or dev; test) are
that split, and others are train: "reviews-dev.jsonl", "test/0.jsonl". What is then missing is cut
from train, as for pictures. All of it is tokenized once and held in memory.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.config import ConfigError, LabelledText
from train.data import corpora, sources
from train.data.sources import STORED_AS, Example, Kind, Split, bad_source
from train.data.tokens import ends
from zoo.text import Tokenizer

Row = dict[str, np.ndarray]

NO_LABEL = -1  # of tokens that do not begin a word


@dataclass(frozen=True)
class Texts:
    """Three splits, "train", "validation" and "test", and the names of the classes in order.

    An example is {"text": str, "label": class}; with `tagging` both are lists, of words and of
    classes. Classes are whole numbers from 0.
    """

    name: str
    licence: str
    splits: Mapping[str, Split]
    labels: tuple[str, ...]


def check_labelled(cfg: LabelledText) -> None:
    """Raises ConfigError for what is wrong with `data.source`, as far as a look at the disk shows.

    Imports neither jax nor, unless it fails, tensorflow_datasets.
    """
    kind, argument = sources.choose(cfg, LABELLED)
    kind.check(argument, cfg)


def read_labelled(cfg: LabelledText) -> Texts:
    """All that `data.source` has, its labels numbered.

    The classes are those that TFDS states, or else the values in the source's own train split,
    sorted. Raises ConfigError where `check_labelled` does, for what is no text or no label, and for
    a label of another split that train does not have.
    """
    kind, argument = sources.choose(cfg, LABELLED)
    kind.check(argument, cfg)
    name, licence, stored, stated = kind.open(argument, cfg)
    if not stored:
        raise bad_source(cfg, "has no example")
    sources.check_train(stored, stored, cfg)
    classes = stated or _classes(stored["train"], cfg)
    if not classes:
        raise bad_label(cfg, "train has no label at all, only empty lists")
    numbers = {value: number for number, value in enumerate(classes)}
    numbered = {
        split: [{**e, "label": _number(e["label"], numbers, split, cfg)} for e in examples]
        for split, examples in stored.items()
    }
    return Texts(name, licence, sources.hold_out(numbered, cfg), tuple(map(str, classes)))


# ---- labels ----


def _classes(examples: Split, cfg: LabelledText) -> list[Any]:
    found = {value for example in examples for value in _values(example["label"])}
    if len({type(value) for value in found}) > 1:
        raise bad_label(cfg, "some labels of train are texts, others whole numbers: use one kind")
    return sorted(found)


def _values(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _number(label: Any, numbers: Mapping[Any, int], split: str, cfg: LabelledText) -> Any:
    unknown = [value for value in _values(label) if value not in numbers]
    if unknown:
        known = ", ".join(map(repr, numbers))
        raise bad_label(cfg, f"{split} has {unknown[0]!r}, but train has only {known:.200}")
    found = [numbers[value] for value in _values(label)]
    return found if isinstance(label, list) else found[0]


def _example(text: Any, label: Any, where: str, cfg: LabelledText) -> Example:
    """Raises ConfigError unless it is a text and a label, or with `tagging` as many of both."""
    if not cfg.tagging:
        return {"text": corpora.as_text(text, where), "label": _label(label, where, cfg)}
    if not (isinstance(text, list) and isinstance(label, list) and len(text) == len(label)):
        raise ConfigError(
            f"data.tagging: {where} needs a list {cfg.field!r} of words and a list "
            f"{cfg.label_field!r} of as many labels"
        )
    words = [corpora.as_text(word, where) for word in text]
    return {"text": words, "label": [_label(value, where, cfg) for value in label]}


def _label(value: Any, where: str, cfg: LabelledText) -> Any:
    value = corpora.as_text(value, where) if isinstance(value, bytes) else value
    if isinstance(value, str | int) and not isinstance(value, bool):
        return value
    raise bad_label(cfg, f"{where} holds {value!r:.80}: neither a text nor a whole number")


def bad_label(cfg: LabelledText, message: str) -> ConfigError:
    return ConfigError(f"data.label_field = {cfg.label_field!r}: {message}")


# ---- sources ----

Stored = dict[str, list[Example]]


def open_jsonl(pattern: str, cfg: LabelledText) -> tuple[str, str, Stored, None]:
    stored: Stored = {}
    for name, path in corpora.found_files(pattern, cfg).items():
        examples = stored.setdefault(_split_of(name), [])
        for number, record in corpora.records(path):
            where = f"{path}, line {number}"
            text, label = (_field(record, key, where) for key in (cfg.field, cfg.label_field))
            examples.append(_example(text, label, where, cfg))
    return pattern, "not stated: the user's own files", _as_ours(stored), None


def _field(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise ConfigError(f"data.source: {where} has no {key!r}, only {', '.join(record)}")
    return record[key]


def _split_of(name: str) -> str:
    """The split that a word of a file's name says."""
    words = set(re.split("[^a-z]+", name.lower()))
    return next((ours for ours, names in STORED_AS.items() if words & {*names}), "train")


def _as_ours(stored: Stored) -> Stored:
    return {split: examples for split, examples in stored.items() if examples}


def open_tfds(name: str, cfg: LabelledText) -> tuple[str, str, Stored, tuple[str, ...] | None]:
    """Any data set with these two features. A test split whose labels are kept secret (−1) is not
    used."""
    builder = sources.tfds_builder(name, cfg)
    features = builder.info.features
    for key in (cfg.field, cfg.label_field):
        if key not in features:
            raise bad_source(cfg, f"has no {key!r}, only {', '.join(features)}")
    label = features[cfg.label_field]
    names = getattr(getattr(label, "feature", label), "names", None)
    read, stored = sources.tfds_splits(builder, name, cfg), {}
    for ours, theirs in sources.stored_splits(read):
        values = [
            (_plain(e[cfg.field]), _plain(e[cfg.label_field]))
            for e in corpora.tfds_records(read[theirs])
        ]
        if names and values and -1 in _values(values[0][1]):
            continue
        stored[ours] = [
            _example(text, _named(label, names, where, cfg), where, cfg)
            for number, (text, label) in enumerate(values)
            for where in [f"{ours} record {number}"]
        ]
    title, licence = sources.tfds_title(builder)
    return title, licence, _as_ours(stored), names and tuple(names)


def _plain(value: Any) -> Any:
    """What numpy holds, as Python has it; texts are still bytes."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _named(label: Any, names: Sequence[str] | None, where: str, cfg: LabelledText) -> Any:
    if names is None:
        return label
    unknown = [i for i in _values(label) if not 0 <= i < len(names)]
    if unknown:
        raise bad_label(cfg, f"{where} holds {unknown[0]}, which is none of {len(names)} classes")
    return [names[i] for i in label] if isinstance(label, list) else names[label]


LABELLED = {
    "jsonl": Kind("jsonl:GLOB", corpora.check_files, open_jsonl),
    "tfds": Kind("tfds:NAME[:VERSION]", sources.check_tfds, open_tfds),
}


# ---- rows ----


@dataclass(frozen=True)
class LabelledRows:
    """The examples of a split as tokens: `rows[i]` without the batch axis.

    tokens: int32 [examples, n]. lengths: int32 [examples], one at least. labels: int32 [examples],
    or with `tagging` [examples, n], −1 where no word begins.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Row:
        key = "labels" if self.labels.ndim == 2 else "label"
        row = {"tokens": self.tokens[i], "lengths": self.lengths[i], key: self.labels[i]}
        return {**row, "index": np.asarray(i, np.int64)}

    def blank(self) -> Row:
        """A row that stands for none, its index −1."""
        return {**self[0], "index": np.asarray(-1, np.int64)}


def rows(examples: Split, tokenizer: Tokenizer, cfg: LabelledText) -> LabelledRows:
    """Tokenizes a split; texts that are longer than `data.length` are cut before the token that
    closes them. All begin with a special token, as documents do (`tokens.ends`)."""
    encode = _tagged if cfg.tagging else _whole
    ids, labels = encode([examples[i] for i in range(len(examples))], tokenizer, cfg.length)
    pad = tokenizer.specials.pad
    fill = (tokenizer.specials.eos or 0) if pad is None else pad
    tokens, mask = tokenizer.pad(ids, cfg.length, truncate=True, pad=fill)
    # A text without tokens is one of padding: attention to nothing at all is not defined.
    return LabelledRows(tokens, np.maximum(mask.sum(1, dtype=np.int32), 1), labels)


def _whole(
    examples: Split, tokenizer: Tokenizer, length: int
) -> tuple[list[list[int]], np.ndarray]:
    texts, labels = [e["text"] for e in examples], [e["label"] for e in examples]
    ids = tokenizer.encode_batch(texts, parse_special=False)
    before, _ = around(tokenizer)
    if not tokenizer.encode(""):  # it puts nothing there itself
        ids = [[*before, *own] for own in ids]
    return ids, np.array(labels, np.int32)


def _tagged(
    examples: Split, tokenizer: Tokenizer, length: int
) -> tuple[list[list[int]], np.ndarray]:
    """Each word's label stands at its first token; a word without tokens has none.

    Words are tokenized by themselves. All but the first of a text follow a space, unless the
    tokenizer writes one before every text (`leading_space`): to byte-level ones a word has other
    tokens after a space, to WordPiece that is all the same.
    """
    space = "" if tokenizer.spelling.leading_space else " "
    before, after = around(tokenizer)
    flat = [f"{space if n else ''}{word}" for e in examples for n, word in enumerate(e["text"])]
    words = iter(tokenizer.encode_batch(flat, add_special=False, parse_special=False))
    found, labels = [], np.full((len(examples), length), NO_LABEL, np.int32)
    for row, example in enumerate(examples):
        ids, last = [*before], length - len(after)
        for label in example["label"]:
            word = next(words)
            if word and len(ids) < last:
                labels[row, len(ids)] = label
            ids += word
        found.append([*ids[:last], *after])
    return found, labels


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text: those that a tokenizer puts there, [CLS] and
    [SEP], or else the one that begins a document."""
    ids, first = tokenizer.encode(""), (tokenizer.specials.bos, tokenizer.specials.cls)
    if not ids:
        return [ends(tokenizer)[0]], []
    count = next((n for n, i in enumerate(ids) if i not in first), len(ids))
    return ids[:count], ids[count:]


def texts(examples: Split) -> Iterator[str]:
    """The texts of a split, words joined by spaces."""
    for i in range(len(examples)):
        text = examples[i]["text"]
        yield text if isinstance(text, str) else " ".join(text)
