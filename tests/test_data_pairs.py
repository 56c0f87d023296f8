"""Pictures with captions: what is held back, what comes together, and what becomes of bad ones."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from train import config
from train.check import check
from train.config import ConfigError, Pairs
from train.data import captions, glyphs, pairs, pipeline, shards
from train.data.glyphs import EM, FACES, SEEN, TEST, VALIDATION, Glyph, render
from zoo import text

GLYPHS = Pairs(source="glyphs", length=20, threads=0, batch_size=64, distinct=True)
HELD = ("validation", "test")


def take(stream, n):
    return list(itertools.islice(stream, n))


def same(batches, others):
    both = list(zip(batches, others, strict=True))
    return all(np.array_equal(a[k], b[k]) for a, b in both for k in a.keys() | b.keys())


def split_captions(data, split):
    """The captions of each example, each once."""
    examples = data.source.splits[split]
    return [{c for view in e["views"] for c in view.captions} for e in examples]


def words_of(data, row):
    """What a row of tokens says."""
    return data.tokenizer.decode(row, skip_special=True).rstrip("\0")  # with which bytes are padded


# ---- glyphs: what is held back ----


@pytest.fixture(scope="module")
def data():
    return GLYPHS.open()


@pytest.fixture(scope="module")
def drawings():
    """Every picture of a caption, in all faces that have it as their own tables say."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    known = {}
    for face in FACES:
        with TTFont(folder / f"{face}.ttf", lazy=True) as font:
            known[face] = {chr(code) for code in font.getBestCmap()}

    def draw(caption):
        character = unicodedata.lookup(caption.upper())
        faces = [face for face in FACES if character in known[face]]
        pictures = {render(Glyph(character, face, EM)).tobytes() for face in faces}
        return {picture for picture in pictures if any(picture)}

    return draw


def held_back(data):
    """The captions of both held-back splits and of the pairs."""
    rest = {view.captions[0] for pair in data.source.beside["test"].order for view in pair}
    splits = {split: set().union(*split_captions(data, split)) for split in HELD}
    return {**splits, "order": rest}


@pytest.mark.quick  # other versions of Python know other names
def test_what_is_held_back_is_never_seen_and_apart(data):
    seen = set().union(*split_captions(data, "train"))
    parts = [*held_back(data).values(), seen]
    assert [len(part) for part in parts[:2]] == [VALIDATION, TEST] and len(seen) > 3500
    assert sum(map(len, parts)) == len(set().union(*parts)), "a caption is in two"


def test_no_picture_that_is_held_back_is_trained_on_in_any_face(data, drawings):
    """So that all twins are on one side, as their pixels say."""
    train = data.source.splits["train"]
    seen = {view.image.tobytes() for example in train for view in example["views"]}
    assert len(seen) > 20_000
    for split, some in held_back(data).items():
        for caption in some:
            assert not drawings(caption) & seen, f"{split}: {caption}"


def test_no_two_that_are_held_back_look_alike(data, drawings):
    held = held_back(data)
    counts = Counter(
        picture for split in HELD for caption in held[split] for picture in drawings(caption)
    )
    assert set(counts.values()) == {1}


def test_every_word_that_is_held_back_is_seen_in_four_captions(data):
    seen = set().union(*split_captions(data, "train"))
    counts = Counter(word for caption in seen for word in set(caption.split()))
    held = held_back(data)
    assert min(counts[word] for split in HELD for c in held[split] for word in c.split()) >= SEEN


def test_a_character_is_trained_on_in_all_its_faces(data, drawings):
    examples = data.source.splits["train"]
    found = {}
    for i in range(0, len(examples), 40):
        for view in examples[i]["views"]:
            found.setdefault(view.captions[0], set()).add(view.image.tobytes())
    assert len(found) > 80
    assert all(drawings(caption) == pictures for caption, pictures in found.items())
    assert all(p.any() for c in glyphs.concepts().values() for p in c.pictures.values())


def test_the_pairs_are_of_the_same_words_in_another_order(data):
    seen = set().union(*split_captions(data, "train"))
    counts = Counter(word for caption in seen for word in set(caption.split()))
    order = data.source.beside["test"].order
    assert len(order) > 40
    for one, other in order:
        a, b = one.captions[0].split(), other.captions[0].split()
        assert sorted(a) == sorted(b) and a != b
        assert not np.array_equal(one.image, other.image)
        assert min(counts[word] for word in a) >= 1


def test_half_of_the_groups_of_turned_captions_are_held_back(data):
    everything = [c for some in (*held_back(data).values(),) for c in some]
    everything += set().union(*split_captions(data, "train"))
    groups = {}
    for character in glyphs.concepts().values():
        key = tuple(sorted(character.caption.split()))
        groups.setdefault(key, set()).add(character.caption)
    turned = [group for group in groups.values() if len(group) > 1]
    held = held_back(data)["order"]
    away = [group for group in turned if group <= held]
    assert 0.4 * len(turned) <= len(away) <= 0.6 * len(turned)
    assert all(group <= held or not group & held for group in turned)


def test_what_is_held_back_follows_no_seed_and_hardly_what_else_there_is():
    """Another version of Unicode or of the fonts has other characters."""
    found = glyphs.concepts()
    names = {c: concept.caption for c, concept in found.items()}
    kin = glyphs.twins({c: concept.pictures.values() for c, concept in found.items()})
    whole = glyphs.divide(names, kin, TEST, VALIDATION)
    assert whole == glyphs.division()
    sizes = Counter(kin.values())
    alone = [c for c in names if sizes[kin[c]] == 1]
    gone = set(alone[::100])
    fewer = glyphs.divide(
        {c: n for c, n in names.items() if c not in gone},
        {c: k for c, k in kin.items() if c not in gone},
        TEST,
        VALIDATION,
    )
    assert len(set(whole.test) & set(fewer.test)) > 0.95 * TEST
    other = replace(GLYPHS, seed=5).open()
    assert split_captions(other, "test") == [{names[c]} for c in whole.test]


def test_twins_share_a_picture_or_have_one_between_them():
    a, b, c, d, e = (np.full((2, 2, 1), i, np.uint8) for i in range(5))
    found = glyphs.twins({"p": [a, b], "q": [c], "r": [d, c], "s": [b, d], "t": [e]})
    assert found == {"p": "p", "q": "p", "r": "p", "s": "p", "t": "t"}


def test_a_small_division_holds_back_what_its_rule_allows():
    """Each word of what is held back is in SEEN captions that are not; twins go with it."""
    names = {chr(i): f"{a} {b}" for i, (a, b) in enumerate(itertools.product("abcdef", "uvwxyz"))}
    kin = {c: c for c in names} | {chr(1): chr(0), chr(8): chr(7)}
    found = glyphs.divide(names, kin, 5, 4)
    assert (len(found.test), len(found.validation), found.order) == (5, 4, ())
    seen = {c for family in found.train for c in family}
    held = {*found.test, *found.validation}
    families = {kin[c] for c in held}
    assert len(families) == 9 and seen == {c for c in names if kin[c] not in families}
    counts = Counter(word for c in seen for word in names[c].split())
    assert min(counts[word] for c in held for word in names[c].split()) >= SEEN
    rare = {**names, "!": "one of a kind"}
    many = glyphs.divide(rare, {**kin, "!": "!"}, 40, 0)
    assert 6 < len(many.test) <= 12 and "!" not in many.test


def test_settings_are_chosen_by_what_the_test_never_shows(data):
    """glyphs_dev has a test as large and as hard, all of it from what glyphs trains on."""
    dev = replace(GLYPHS, source="glyphs_dev").open()
    seen, known = (set().union(*split_captions(x, "train")) for x in (dev, data))
    held = held_back(dev)
    assert len(split_captions(dev, "test")) == TEST and len(held["order"]) > 20
    assert seen | held["test"] | held["order"] <= known
    assert not seen & (held["test"] | held["order"] | held["validation"])
    assert held["validation"] == held_back(data)["validation"]
    counts = Counter(word for caption in seen for word in set(caption.split()))
    assert min(counts[word] for caption in held["test"] for word in caption.split()) >= SEEN
    hidden = {e["views"][0].image.tobytes() for e in data.source.splits["test"]}
    hidden |= {v.image.tobytes() for pair in data.source.beside["test"].order for v in pair}
    for split in HELD:
        beside = dev.source.beside[split]
        shown = [*(e["views"][0].image for e in dev.source.splits[split]), *beside.distractors]
        shown += [view.image for pair in beside.order for view in pair]
        assert not hidden & {image.tobytes() for image in shown}


# ---- glyphs: batches ----


def test_no_family_comes_twice_in_a_batch_also_where_epochs_meet(data):
    count = len(data.source.splits["train"])
    assert count % GLYPHS.batch_size, "else epochs meet between batches anyway"
    batches = take(data.train(), 2 * count // GLYPHS.batch_size + 2)
    for batch in batches:
        assert len(set(batch["index"])) == GLYPHS.batch_size
        assert len({image.tobytes() for image in batch["image"]}) == GLYPHS.batch_size
    visits = Counter(int(i) for batch in batches for i in batch["index"])
    # What one epoch leaves out, less than a batch, comes in the next: all but a few by chance.
    assert len(visits) >= count - 5 and max(visits.values()) <= 3


def test_captions_of_the_same_words_are_neighbours_in_the_tour(data):
    train = data.source.splits["train"]
    tour = pairs.tour(train)
    texts = [train[int(i)]["views"][0].captions[0] for i in tour]
    bags = [" ".join(sorted(text.split())) for text in texts]
    assert sorted(tour) == list(range(len(tour)))
    assert len(list(itertools.groupby(bags))) == len(set(bags)) < len(bags)
    counts = Counter(word for text in texts for word in set(text.split()))
    rarest = [min((counts[word], word) for word in text.split()) for text in texts]
    assert rarest == sorted(rarest)


@pytest.mark.parametrize("distinct", [True, False])
def test_like_captions_come_together_in_other_company_each_epoch(distinct):
    data = replace(GLYPHS, alike=4, distinct=distinct).open()
    tour = pairs.tour(data.source.splits["train"])
    places = np.argsort(tour)
    stream, each = data.train(), len(tour) // 64  # whole batches of an epoch
    seen, company = [], []
    for batch in take(stream, 2 * each):
        place = places[batch["index"]].reshape(-1, 4)
        assert ((np.diff(place) - 1) % len(tour) == 0).all()
        assert len(set(batch["index"])) == 64 or not distinct
        seen += batch["index"].tolist()
        company += [tuple(run) for run in place.tolist()]
    first, second = company[: 16 * each], company[16 * each :]
    assert not set(first) & set(second)
    assert max(Counter(seen[: 64 * each]).values()) == 1
    assert len(set(seen)) >= len(tour) - 4
    gaps = np.diff([run[0] for run in first])
    assert (gaps == 4).mean() < 0.01, "the runs are shuffled"


def test_like_captions_go_on_where_a_stream_stood_and_are_shared_by_processes():
    data = replace(GLYPHS, alike=4).open()
    stream, other = data.train(), data.train()
    take(stream, 75)  # into the second epoch
    other.restore(stream.state())
    wanted = take(stream, 2)
    assert same(wanted, take(other, 2))
    tour = pairs.tour(data.source.splits["train"])
    how = {"read": data.read, "distinct": True, "tour": tour, "together": 4, "process_count": 2}
    shares = [
        pipeline.train_stream(data.source.splits["train"], data.cfg, process_index=i, **how)
        for i in range(2)
    ]
    found = np.stack([next(share)["index"] for share in shares], axis=1).reshape(-1)
    np.testing.assert_array_equal(found, next(data.train())["index"])


def test_words_are_left_out_by_their_share_in_order_and_never_all():
    words = "a b c d e f g h i j".split()
    rng = np.random.default_rng(0)
    found = [pairs.without_some(" ".join(words), 0.3, rng).split() for _ in range(2000)]
    assert all(row == sorted(set(row)) and row for row in found)
    counts = Counter(word for row in found for word in row)
    assert all(abs(counts[word] / 2000 - 0.7) < 0.05 for word in words)
    alone = [pairs.without_some("x y", 0.99, rng) for _ in range(100)]
    assert {*alone} >= {"x", "y"} and "" not in alone


def test_words_are_left_out_in_training_alone():
    plain, data = GLYPHS.open(), replace(GLYPHS, forget=0.5).open()
    words = [(next(d.train())["tokens"] > 0).sum(axis=1) for d in (plain, data)]
    assert words[1].mean() < 0.8 * words[0].mean()
    ours, theirs = (next(iter(d.evaluate("validation")[0]))["tokens"] for d in (plain, data))
    np.testing.assert_array_equal(ours, theirs)


def test_fewer_examples_than_are_to_come_together_are_refused(data):
    few = captions.Examples(data.source.splits["train"].views[:3])
    how = {"read": data.read, "tour": np.arange(3), "together": 4}
    with pytest.raises(ConfigError, match="4 examples are to come together, but train has 3"):
        pipeline.train_stream(few, GLYPHS, **how)


def test_a_batch_too_large_for_distinct_captions_is_refused(data):
    few = data.source.splits["train"].views[:10]
    with pytest.raises(ConfigError, match="batch_size is 64, but train has 10 examples"):
        pipeline.train_stream(captions.Examples(few), GLYPHS, read=data.read, distinct=True)


def test_without_distinct_every_character_is_an_example(data):
    whole = replace(GLYPHS, distinct=False).open()
    found = [*map(len, split_captions(whole, "train"))]
    assert set(found) == {1} and len(found) == sum(map(len, split_captions(data, "train")))


def test_a_row_says_what_its_picture_shows(data, drawings):
    faces = set()
    for batch in take(data.train(), 2):
        assert (batch["image"].dtype, batch["tokens"].dtype) == (np.uint8, np.int32)
        assert batch["image"].shape == (64, 32, 32, 1) and batch["tokens"].shape == (64, 20)
        for image, row in zip(batch["image"], batch["tokens"], strict=True):
            assert image.tobytes() in drawings(words_of(data, row))
            faces.add(row.tobytes())
    assert {k: (v.shape, v.dtype) for k, v in data.spec().items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items() if k != "index"
    }


def test_evaluation_has_each_character_once_in_its_first_face(data, drawings):
    batches, skips = data.evaluate("test")
    rows = [
        (image, words_of(data, row[0]))
        for batch in batches
        for image, row, mask in zip(batch["image"], batch["tokens"], batch["mask"], strict=True)
        if mask
    ]
    assert skips.count == 0 and len(rows) == TEST
    assert [{caption} for _, caption in rows] == split_captions(data, "test")
    for image, caption in rows[::20]:
        character = unicodedata.lookup(caption.upper())
        assert np.array_equal(image, [*glyphs.concepts()[character].pictures.values()][0])


def test_distractors_are_the_pictures_of_all_other_characters(data):
    """Twins of those in the split among them."""
    first = [next(iter(c.pictures.values())).tobytes() for c in glyphs.concepts().values()]
    for split in HELD:
        extra = data.extra(split)
        inside = [e["views"][0].image.tobytes() for e in data.source.splits[split]]
        others = [image.tobytes() for image in extra.distractors]
        assert Counter(inside) + Counter(others) == Counter(first)
    assert extra.order_images.shape == (len(extra.order_tokens), 2, 32, 32, 1)
    assert data.extra("validation").order_tokens.shape == (0, 2, 20)
    assert data.extra("train") is None


def test_a_bag_of_words_cannot_tell_the_pairs_apart(data):
    plain = data.extra("test").order_tokens
    assert not np.any(np.all(plain[:, 0] == plain[:, 1], axis=1))
    bag = replace(GLYPHS, bag=True).open()
    sorted_ = bag.extra("test").order_tokens
    assert np.array_equal(sorted_[:, 0], sorted_[:, 1])
    row = next(bag.train())["tokens"][0]
    assert words_of(bag, row).split() == sorted(words_of(bag, row).split())


AUGMENTED = replace(GLYPHS, augment=("crop:2",), templates=("{}", "the sign {}"))


@pytest.fixture(scope="module")
def augmented():
    return AUGMENTED.open()


def test_a_restored_stream_continues_as_if_never_stopped(augmented):
    total = len(augmented.source.splits["train"]) // 64 + 3
    straight = augmented.train()
    states, batches = [], []
    for _ in range(total + 2):
        states.append(json.loads(json.dumps(straight.state())))
        batches.append(next(straight))
    for threads in (0, 2):
        resumed = replace(augmented, cfg=replace(AUGMENTED, threads=threads)).train()
        for t in (total - 1, total // 2, 0):  # the first past the end of an epoch
            resumed.restore(states[t])
            assert same(take(resumed, 2), batches[t : t + 2]), f"after batch {t}"
        resumed.close()


def test_processes_share_the_same_global_batches(augmented):
    def run(count):
        streams = [
            pipeline.train_stream(
                augmented.source.splits["train"],
                AUGMENTED,
                read=augmented.read,
                distinct=True,
                process_index=i,
                process_count=count,
            )
            for i in range(count)
        ]
        for parts in itertools.islice(zip(*streams, strict=True), 4):
            rows = {k: np.stack([part[k] for part in parts], axis=1) for k in parts[0]}
            yield {k: v.reshape(-1, *v.shape[2:]) for k, v in rows.items()}

    assert same(run(1), run(2))


def test_a_state_of_other_captions_is_refused(augmented, data):
    with pytest.raises(ConfigError, match="but other ones"):
        data.train().restore(augmented.train().state())


def test_templates_are_drawn_and_the_first_evaluates(augmented):
    texts = [words_of(augmented, row) for b in take(augmented.train(), 3) for row in b["tokens"]]
    share = np.mean([each.startswith("the sign ") for each in texts])
    assert 0.3 < share < 0.7
    batch = next(augmented.evaluate("test")[0])
    assert not any(words_of(augmented, row[0]).startswith("the sign") for row in batch["tokens"])


# ---- tables ----

SIZE = 6


def picture(i):
    """A picture that says which it is: its grey level."""
    return np.full((SIZE, SIZE, 3), i % 256, np.uint8)


def encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(folder, rows, ending="csv", count=None):
    """The pictures 0 to `count` and a table of `rows`, dicts."""
    for i in range(len(rows) if count is None else count):
        (folder / f"{i}.png").write_bytes(encode(picture(i)))
    path = folder / f"table.{ending}"
    if ending == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Pairs(
        source=f"pairs:{path}", length=8, batch_size=4, threads=0, channels=1, tokenizer="words"
    )


def simple(n, **more):
    return [{"image": f"{i}.png", "caption": f"number n{i}", **more} for i in range(n)]


def test_a_table_is_cut_by_a_hash_of_paths(tmp_path):
    cfg = write_table(tmp_path, simple(40))
    found = {
        s: {c for some in split_captions(cfg.open(), s) for c in some} for s in ("train", *HELD)
    }
    place = {}
    for i in range(40):
        digest = hashlib.sha256(f"{i}.png".encode()).digest()
        place[f"number n{i}"] = int.from_bytes(digest[:8], "big") / 2**64
    assert found["test"] == {c for c, p in place.items() if p < 0.1}
    assert found["validation"] == {c for c, p in place.items() if 0.1 <= p < 0.2}
    assert set().union(*found.values()) == set(place)


@pytest.mark.parametrize("stored", [("train", "val", "test"), ("train", "dev"), ("train", "test")])
def test_stored_splits_of_a_table_are_kept(stored, tmp_path):
    rows = simple(40)
    for i, row in enumerate(rows):
        row["split"] = stored[0] if i < 30 else stored[1 + i % (len(stored) - 1)]
    data = write_table(tmp_path, rows, "jsonl").open()
    sizes = {split: len(found) for split, found in data.source.splits.items()}
    assert sum(sizes.values()) == 40
    assert (sizes["test"] == 10) == (len(stored) == 2) and (sizes["train"] == 30) == (
        len(stored) == 3
    )


def test_each_caption_of_a_picture_is_drawn_and_all_are_judged(tmp_path):
    """Whether they are rows of a table, or a list."""
    rows = [
        {"image": f"{i}.png", "caption": f"n{i} {word}"}
        for i in range(40)
        for word in ("red", "green", "blue")[: 1 + i % 3]
    ]
    cfg = write_table(tmp_path, rows, count=40)
    lists = [
        {"image": f"{i}.png", "caption": [r["caption"] for r in some]}
        for i, some in ((i, [r for r in rows if r["image"] == f"{i}.png"]) for i in range(40))
    ]
    for found in (cfg, write_table(tmp_path, lists, "jsonl")):
        data = replace(found, tokenizer="bytes", length=16).open()
        drawn = set()
        for batch in take(data.train(), 60):
            for image, row in zip(batch["image"], batch["tokens"], strict=True):
                drawn.add(words_of(data, row))
                assert words_of(data, row).split()[0] == f"n{image[0, 0, 0]}"
        assert drawn == set().union(*split_captions(data, "train"))
        for split in HELD:
            batches = [*data.evaluate(split)[0]]
            told = {
                int(image[0, 0, 0]): [words_of(data, row) for row in some[:n]]
                for b in batches
                for image, some, n, mask in zip(
                    b["image"], b["tokens"], b["captions"], b["mask"], strict=True
                )
                if mask
            }
            assert {frozenset(some) for some in told.values()} == {
                frozenset(some) for some in split_captions(data, split)
            }
            for i, some in told.items():
                assert [each.split()[1:] for each in some] == [
                    [word] for word in ("red", "green", "blue")[: 1 + i % 3]
                ]
                assert batches[0]["tokens"].shape[1] == max(map(len, told.values()))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_caption_that_is_given_twice_counts_once(ending, tmp_path):
    """Whether its picture has two rows, or one with a list."""
    rows = simple(40)
    if ending == "jsonl":
        rows = [{**row, "caption": [row["caption"], row["caption"]]} for row in rows]
    data = write_table(tmp_path, [*rows, *rows], ending, count=40).open()
    for split in HELD:
        examples = data.source.splits[split]
        assert all(len(example["views"][0].captions) == 1 for example in examples)
        batches = [*data.evaluate(split)[0]]
        assert sum(int(b["captions"].sum()) for b in batches) == len(examples)
        assert {b["tokens"].shape[1] for b in batches} == {1}


def test_evaluation_is_the_same_for_two_processes(tmp_path):
    data = write_table(tmp_path, simple(60)).open()
    split = data.source.splits["test"]
    read = data.evaluate("test")[0]
    whole = [int(i) for batch in read for i in batch["index"]]
    halves = [
        [
            int(i)
            for batch in pipeline.eval_batches(
                split, data.cfg, read=data.read, process_index=k, process_count=2
            )
            for i in batch["index"]
        ]
        for k in range(2)
    ]
    assert sorted([*halves[0], *halves[1]]) == sorted(whole)
    assert [i for i in whole if i >= 0] == [*range(len(split))]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            simple(2),
            {"image_field": "path"},
            "data.image_field = 'path': .* has 'image', 'caption'",
        ),
        (simple(2), {"caption_field": "text"}, "data.caption_field = 'text': .*line . has"),
        ([{"image": "0.png", "caption": " "}], {}, "data.caption_field = 'caption': .*without"),
        ([{"image": "", "caption": "a"}], {}, "names no picture"),
        ([{"image": "../0.png", "caption": "a"}], {}, "names ../0.png, but paths are relative"),
        ([{"image": "/0.png", "caption": "a"}], {}, "names /0.png, but paths are relative"),
        (simple(1, split="dev-test"), {}, "has the split 'dev-test'; use one of train"),
        (simple(9), {"holdout": 0.0}, "data.holdout = 0.0: .* would get none"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_bad_table_is_named_with_its_line(rows, changes, message, ending, tmp_path):
    cfg = replace(write_table(tmp_path, rows, ending), **changes)
    with pytest.raises(ConfigError, match=message):
        captions.open_source(cfg)


def test_more_of_what_is_wrong_with_a_table(tmp_path):
    cfg = write_table(tmp_path, [*simple(30), {"image": "0.png", "caption": ""}])
    with pytest.raises(ConfigError, match=r"table\.csv, line 32: without caption"):
        cfg.open()
    path = tmp_path / "table.csv"
    for content, message in (
        (b"image,caption\n0.png,a,b\n", "line 2 has another number of fields than the 2"),
        (b"image,caption\n0.png\n", "line 2 has another number of fields"),
        (b"image,caption\n", "has no row"),
        (b"image,caption\n0.png,caf\xe9\n", "not UTF-8: byte 0xe9 at offset 23"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            captions.check_source(cfg)
    both = [*simple(20, split="train"), {"image": "3.png", "caption": "x", "split": "test"}]
    with pytest.raises(ConfigError, match="puts 3.png in test, but an earlier line in train"):
        write_table(tmp_path, both).open()
    half = [*simple(20), {"image": "\ud83d.png", "caption": "a"}]
    with pytest.raises(ConfigError, match="line 21 holds what is no Unicode text"):
        write_table(tmp_path, half, "jsonl", count=20).open()
    for stored in ("validation", "test"):
        with pytest.raises(ConfigError, match="of the 20 pictures .* none is to train on"):
            write_table(tmp_path, simple(20, split=stored)).open()
    mixed = [{"image": "0.png", "caption": ["a", 5]}]
    with pytest.raises(ConfigError, match="line 1: with no text in UTF-8"):
        write_table(tmp_path, mixed, "jsonl").open()


def test_a_table_of_a_spreadsheet_is_read(tmp_path):
    """With a byte order mark, and quotes around a caption of two lines."""
    write_table(tmp_path, simple(30))
    rows = [f'{i}.png;"a, b\r\nn{i}"\r\n' for i in range(30)]
    path = tmp_path / "table.tsv"
    content = "".join(["image;caption\r\n", *rows]).replace(";", "\t")
    path.write_text("\ufeff" + content, encoding="utf-8", newline="")
    data = Pairs(source=f"pairs:{path}", length=8, batch_size=4, threads=0).open()
    found = set().union(*split_captions(data, "train"))
    assert len(found) > 20 and all(each.startswith("a, b\r\nn") for each in found)


def test_pictures_that_are_missing_are_counted(tmp_path):
    cfg = write_table(tmp_path, simple(300))
    data = cfg.open()
    views = [e["views"][0] for e in data.source.splits["train"]]
    for view in views[:2]:
        view.image.unlink()
    stream = data.train()
    take(stream, len(views) // 4 + 1)
    assert stream.skips.summary == f"2 of {len(views)} train pictures cannot be read"
    for view in views[2:6]:
        view.image.unlink()
    with pytest.raises(pipeline.UnreadableData, match="train pictures cannot be read"):
        take(stream, len(views) // 4 + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "pairs:/nowhere/table.csv"}, "there is no file /nowhere/table.csv"),
        ({"source": f"pairs:{__file__}"}, "must end in one of .csv, .tsv, .jsonl, .jsonl.gz"),
        ({"source": "wds:/nowhere/*.tar"}, "no file is found by /nowhere"),
        ({"source": f"wds:{Path(__file__).parent}"}, r"a folder is written .*tests/\*\*/\*.tar"),
        ({"source": "wsd:x.tar"}, "did you mean wds:GLOB"),
        ({"source": "tfds:../x"}, "must have the form tfds:NAME"),
        ({"source": "digits"}, "unknown source"),
        ({"source": "glyphs:latin"}, "must have the form glyphs"),
        ({"source": f"wds:{__file__}", "distinct": True}, "data.distinct: .* Set it to False"),
        ({"tokenizer": "word"}, "is neither words nor bytes nor bpe:SIZE"),
        ({"tokenizer": "bpe:x"}, "must have the form bpe:SIZE"),
        ({"templates": ("a photo",)}, "must hold {} once"),
        ({"templates": ()}, "data.templates is empty"),
        ({"length": 0}, "data.length is 0"),
        ({"alike": 0}, "data.alike is 0, but must divide data.batch_size, 128"),
        ({"alike": 3}, "data.alike is 3, but must divide data.batch_size, 128"),
        ({"forget": 1.0}, "data.forget is 1.0, but must be in"),
        ({"mean": (0.1, 0.2)}, "data.mean is"),
        ({"augment": ("flop",)}, "did you mean 'flip'"),
    ],
)
def test_a_bad_option_is_named_with_the_way_out(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(config.Experiment(data=Pairs(**changes), task=config.Task()))


def test_pairs_are_checked_without_heavy_imports(tmp_path):
    cfg = write_table(tmp_path, simple(2))
    program = (
        "import sys; from train.config import Pairs\n"
        "for source in ('glyphs', 'glyphs_dev', sys.argv[1], 'wds:' + sys.argv[2]):\n"
        "    Pairs(source=source).check()\n"
        "heavy = {'jax', 'grain', 'tensorflow_datasets', 'tensorflow', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    command = [sys.executable, "-c", program, cfg.source, __file__]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


# ---- tar shards ----


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_shard(path, members, **options):
    """A tar of (name, content)."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(n, prefix="", first=0):
    """The members of `n` good examples, which show numbers from `first` on."""
    return [
        member
        for i in range(n)
        for member in (
            (f"{prefix}{i:03}.png", encode(picture(first + i))),
            (f"{prefix}{i:03}.txt", f"number n{first + i}".encode()),
        )
    ]


def wds(path, **changes):
    options = {"length": 8, "batch_size": 4, "threads": 0, "channels": 1, **changes}
    return Pairs(source=f"wds:{path}", **options)


def everything(data):
    """{split: {caption: grey level}} of what can be used."""
    found = {}
    for split in ("train", *HELD):
        examples = data.source.splits[split]
        views = [examples[i]["views"][0] for i in range(len(examples))]
        found[split] = {view.captions[0]: int(view.picture()[0, 0, 0]) for view in views}
    return found


def test_shards_are_read_where_they_lie_and_cut_by_a_hash(tmp_path):
    for k in range(2):
        write_shard(tmp_path / f"{k}.tar", shard(40, f"deep/x{k}-", first=100 * k))
    data = wds(tmp_path / "*.tar").open()
    found = everything(data)
    assert len(set().union(*found.values())) == 80
    assert all(caption == f"number n{i}" for some in found.values() for caption, i in some.items())
    keys = [(k, i) for k in range(2) for i in range(40)]
    place = {
        key: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        for key in keys
        for name in [f"{key[0]}.tar:deep/x{key[0]}-{key[1]:03}"]
    }
    sizes = {split: len(some) for split, some in data.source.splits.items()}
    assert sizes["test"] == sum(p < 0.1 for p in place.values())
    assert sizes["validation"] == sum(0.1 <= p < 0.2 for p in place.values())
    assert sum(sizes.values()) == 80
    batch = next(data.train())
    for image, row in zip(batch["image"], batch["tokens"], strict=True):
        assert words_of(data, row) == f"number n{image[0, 0, 0]}"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read(format, tmp_path):
    members = shard(30, "é" + "x" * 150 + "/")
    write_shard(tmp_path / "a.tar", members, format=format)
    found = everything(wds(tmp_path / "a.tar").open())
    assert sum(map(len, found.values())) == 30
    assert all(caption == f"number n{i}" for some in found.values() for caption, i in some.items())


def test_captions_may_be_in_json(tmp_path):
    members = []
    for i in range(30):
        record = {"text": [f"number n{i}", f"also n{i}"], "width": 6}
        members += [
            (f"{i}.json", json.dumps(record).encode()),
            (f"{i}.png", encode(picture(i))),
            (f"{i}.cls", b"3"),
        ]
    data = wds(write_shard(tmp_path / "a.tar", members), caption_field="text").open()
    found = [c for split in ("train", *HELD) for c in split_captions(data, split)]
    assert sorted(map(sorted, found)) == sorted([f"also n{i}", f"number n{i}"] for i in range(30))


FLAWS = {  # what is added to a shard, and how it is counted
    "broken": [("bad.png", b"no picture"), ("bad.txt", b"a")],
    captions.NO_CAPTION: [("bad.png", encode(picture(1)))],
    "without caption, but spaces": [("bad.png", encode(picture(1))), ("bad.txt", b" \n")],
    captions.NO_PICTURE: [("bad.txt", b"a")],
    captions.NO_TEXT: [("bad.png", encode(picture(1))), ("bad.txt", b"caf\xe9")],
    captions.NO_JSON: [
        ("bad.png", encode(picture(1))),
        ("bad.json", b'{"caption": '),
    ],
    captions.SAME_KEY: [
        ("bad.png", encode(picture(1))),
        ("bad.txt", b"a"),
        ("bad.txt", b"b"),
        ("bad.png", encode(picture(2))),
    ],
}


def only_train(source):
    """All of the source's examples as one split."""
    entries = np.concatenate([split.entries for split in source.splits.values()])
    some = source.splits["train"]
    return captions.Members(some.paths, entries, some.cfg)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_bad_example_of_a_shard_is_left_out_and_counted_by_kind(flaw, tmp_path):
    kind, count = flaw.partition(", but")[0], 120
    path = write_shard(tmp_path / "a.tar", [*shard(count), *FLAWS[flaw]])
    data = wds(path).open()
    split = only_train(data.source)
    total = len(split)
    assert total == count + 1 + (flaw == captions.SAME_KEY)
    stream = pipeline.train_stream(split, data.cfg, read=data.read)
    batches = take(stream, 2 * total // 4)
    assert stream.skips.kinds == {kind: 1}
    assert [words_of(data, row) for b in batches for row in b["tokens"]].count("b") == 0
    [told] = stream.skips.first
    assert str(path) in told and "bad." in told
    skips = pipeline.Skips("validation", total)
    masks = [b["mask"] for b in pipeline.eval_batches(split, data.cfg, read=data.read, skips=skips)]
    assert np.concatenate(masks).sum() == total - 1 and skips.kinds == {kind: 1}


def test_kinds_are_told_together_and_more_than_one_percent_ends_the_run(tmp_path):
    flaws = [
        (name.replace("bad", f"bad{k}"), content)
        for k, members in enumerate(FLAWS.values())
        for name, content in members
    ]
    members = [*shard(250), *shard(250, "a"), *shard(250, "b")]
    data = wds(write_shard(tmp_path / "a.tar", [*members, *flaws])).open()
    split = only_train(data.source)
    stream = pipeline.train_stream(split, data.cfg, read=data.read)
    take(stream, len(split) // 4 + 1)
    assert stream.skips.summary == (
        "7 of 758 train examples cannot be used (1 broken, 1 with a key that came before, "
        "1 with damaged JSON, 1 with no text in UTF-8, 2 without caption, 1 without picture)"
    )
    few = wds(write_shard(tmp_path / "b.tar", [*shard(98), *flaws[:3]])).open()
    with pytest.raises(
        pipeline.UnreadableData, match="2 of 100 .* more than 1% of the .*: example .*bad0"
    ):
        take(pipeline.train_stream(only_train(few.source), few.cfg, read=few.read), 50)


@pytest.mark.quick  # what tarfile makes of it depends on the version of Python
def test_a_shard_that_is_cut_short_names_itself_and_the_byte(tmp_path):
    whole = write_shard(tmp_path / "whole.tar", shard(30)).read_bytes()
    path = tmp_path / "cut.tar"
    with tarfile.open(tmp_path / "whole.tar") as archive:
        last = archive.getmembers()[-1]
    ends = {
        "content": last.offset_data + 3,
        "padding": last.offset_data + 400,
        "header": last.offset + 100,
        "between": last.offset,
        "end": last.offset_data + 512,
        "all": 0,
    }
    for end in ends.values():
        path.write_bytes(whole[:end])
        with pytest.raises(ConfigError, match=f"cut.tar is cut short: it ends at byte {end};"):
            wds(path).open()
    path.write_bytes(whole[: last.offset] + b"x" * 512 + whole[last.offset + 512 :])
    with pytest.raises(ConfigError, match=f"cut.tar is damaged at byte {last.offset}"):
        wds(path).open()
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(ConfigError, match="cut.tar is no tar file .*gunzip"):
        wds(path).open()
    path.write_bytes(whole)
    assert wds(path).open()


def test_a_shard_is_read_through_once_until_it_changes(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "a.tar", shard(30))
    first = shards.indexed({"a": path})

    def fail(*_):
        raise AssertionError("it is read again")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "index", fail)
        assert np.array_equal(shards.indexed({"a": path}), first)
    [kept] = shards.cache_root().iterdir()
    kept.write_bytes(b"damaged")
    assert np.array_equal(shards.indexed({"a": path}), first)
    write_shard(path, shard(31))
    assert len(shards.indexed({"a": path})) == 31


def test_what_could_not_be_kept_leaves_nothing_behind(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "a.tar", shard(30))

    def full(file, _):
        Path(file).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full)
    assert len(shards.indexed({"a": path})) == 30
    assert [*shards.cache_root().iterdir()] == []


# ---- tfds ----


def test_a_tfds_data_set_with_captions_keeps_its_splits(tmp_path):
    """As coco_captions has them: several below a feature."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration

    def some(start, n):
        for i in range(start, start + n):
            both = [{"text": f"number n{i}", "id": 1}, {"text": f"also n{i}", "id": 2}]
            yield i, {"photo": io.BytesIO(encode(picture(i))), "captions": both, "title": f"n{i}"}

    with skip_registration():

        class TinyPairs(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                text_ = {"text": tfds.features.Text(), "id": np.int64}
                features = {
                    "photo": tfds.features.Image(shape=(None, None, 3)),
                    "captions": tfds.features.Sequence(text_),
                    "title": tfds.features.Text(),
                }
                found = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=found)

            def _split_generators(self, dl_manager):
                return {"train": some(0, 30), "val": some(30, 6)}

            def _generate_examples(self):
                raise NotImplementedError  # TFDS wants one; the splits above are made

    TinyPairs(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    cfg = Pairs(
        source="tfds:tiny_pairs",
        data_dir=str(tmp_path),
        image_field="photo",
        caption_field="captions.text",
        tokenizer="bytes",
        length=16,
        batch_size=4,
        threads=0,
        channels=1,
    )
    cfg.check()
    data = cfg.open()
    assert {s: len(found) for s, found in data.source.splits.items()} == {
        "train": 27,
        "validation": 3,
        "test": 6,
    }
    batch = next(data.evaluate("test")[0])
    for image, rows in zip(batch["image"], batch["tokens"], strict=True):
        n = image[0, 0, 0]
        assert [words_of(data, row) for row in rows] == [f"number n{n}", f"also n{n}"]
        assert 30 <= n < 36
    title = replace(cfg, caption_field="title").open()
    assert len(split_captions(title, "train")) == 27
    for changes in (
        {"image_field": "title"},
        {"caption_field": "captions"},
        {"caption_field": "x.y"},
    ):
        with pytest.raises(ConfigError, match=f"data.{[*changes][0]} = .*; it has .*title"):
            replace(cfg, **changes).open()


# ---- tokenizers ----


@pytest.mark.parametrize("name", ["words", "bytes", "bpe:262"])
def test_every_row_ends_with_the_largest_id_also_one_that_is_cut(name, tmp_path):
    rows = simple(40)
    rows[7]["caption"] = "number " * 12
    cfg = replace(write_table(tmp_path, rows), tokenizer=name, length=6)
    data = cfg.open()
    eos = data.vocab_size - 1
    assert data.tokenizer.specials.eos == eos and data.tokenizer.specials.pad != eos
    found = data.rows([row["caption"] for row in rows])
    assert np.all((found == eos).sum(1) == 1)
    for row in found:
        after = row[np.argmax(row) + 1 :]
        assert np.all(after == (data.tokenizer.specials.pad or 0))
    data.tokenizer.save(tmp_path / "saved")
    again = replace(cfg, tokenizer=str(tmp_path / "saved")).open()
    assert np.array_equal(again.rows([row["caption"] for row in rows]), found)


def test_words_are_lower_case_and_unknown_ones_are_one_token(tmp_path):
    tokenizer = text.train_words(["A cat's left-eyed dog, a DOG.", "one more dog"])
    known = ["dog", "a", "cat's", "left-eyed", "one", "more", ",", "."]
    assert {tokenizer.token(i) for i in range(tokenizer.vocab_size)} == {
        "[PAD]",
        "[UNK]",
        "<|endoftext|>",
        *known,
    }
    ids = tokenizer.encode("a Dog bites, more")
    assert [tokenizer.token(i) for i in ids] == [
        "a",
        "dog",
        "[UNK]",
        ",",
        "more",
        "<|endoftext|>",
    ]
    assert tokenizer.encode("dog") == [2, tokenizer.vocab_size - 1], "the most frequent is first"
    tokenizer.save(tmp_path)
    assert text.load(tmp_path).encode("a Dog bites, more") == ids


def test_words_of_held_back_captions_and_of_templates(tmp_path):
    """Only what is trained on has ids of its own."""
    cfg = replace(write_table(tmp_path, simple(40)), templates=("{}", "a photo of {}"))
    data = cfg.open()
    unknown = data.tokenizer.specials.unk
    for split, expected in (("train", False), ("validation", True), ("test", True)):
        for found in split_captions(data, split):
            assert (unknown in data.tokenizer.encode(*found)) == expected
    assert unknown not in data.tokenizer.encode("a photo of")


def test_a_tokenizer_that_ends_no_text_is_refused(tmp_path):
    text.train_bpe(["number " * 20], 260).save(tmp_path / "bpe")
    cfg = replace(write_table(tmp_path, simple(40)), tokenizer=str(tmp_path / "bpe"))
    with pytest.raises(ConfigError, match="puts no token after a text"):
        pairs.open_pairs(cfg)
