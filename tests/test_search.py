"""Searching a folder: the order against a loop over pictures, what is kept between two searches and
what is not believed, and how the command answers; contact sheets."""

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from tests.checkpoints import random_variables
from tests.golden.photograph import photograph
from train.data import sources
from zoo import gallery, search, zeroshot
from zoo.__main__ import main
from zoo.card import Preprocess
from zoo.models import resnet, siglip
from zoo.preprocess import Unreadable, decode, prepare
from zoo.search import Reader, identity, pictures, rank, refresh
from zoo.text import train_bpe

SIZE = 32
COLOURS = {  # name → what is drawn
    "red.png": (200, 10, 10),
    "green.jpg": (10, 180, 30),
    "more/blue.PNG": (5, 5, 220),
    "more/grey.bmp": (90, 90, 90),
    "more/deep/yellow.webp": (210, 200, 20),
}
SQUARE = Preprocess(4, 1.0, mean=(0.0,), std=(1.0,), mode="squash")


def paint(folder: Path, **changes) -> Path:
    """A folder of pictures of one colour each."""
    for name, colour in {**COLOURS, **changes}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), colour).save(path)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return paint(tmp_path / "pictures")


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "kept" / "index.npz"


class Colours:
    """A model that sees the mean colour, and remembers how many pictures it was shown."""

    def __init__(self, preprocess: Preprocess = SQUARE, fails_at: int | None = None):
        self.shown, self.fails_at = 0, fails_at
        self.reader = Reader(self.embed, preprocess, channels=3, batch=2)

    def embed(self, images):
        self.shown += len(images)
        if self.fails_at is not None and self.shown >= self.fails_at:
            raise KeyboardInterrupt
        mean = images.mean(axis=(1, 2))
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def refreshed(place, folder, model="m", colours=None, **options):
    """(index, how many pictures were embedded, notes)"""
    colours, notes = colours or Colours(), []
    index = refresh(place, folder, model, colours.reader, note=notes.append, **options)
    return index, colours.shown, notes


# ---- the order ----


def test_pictures_are_ranked_as_a_loop_over_them_ranks_them(folder, place):
    index, _, notes = refreshed(place, folder)
    query = np.array([0.9, 0.8, 0.1], np.float32) / np.linalg.norm([0.9, 0.8, 0.1])
    cosines = {}
    for name in COLOURS:
        mean = prepare(folder / name, SQUARE)[0].mean(axis=(0, 1))
        cosines[name] = float(mean @ query / np.linalg.norm(mean))
    total = sum(np.exp(5 * cosine) for cosine in cosines.values())
    hits = rank(index, query, scale=5.0)
    assert [hit.name for hit in hits] == sorted(cosines, key=lambda name: -cosines[name])
    assert hits[0].name == "more/deep/yellow.webp" and notes == []
    for hit in hits:
        np.testing.assert_allclose(hit.cosine, cosines[hit.name], atol=1e-6)
        np.testing.assert_allclose(hit.share, np.exp(5 * hit.cosine) / total, atol=1e-6)


def test_the_pictures_are_those_that_the_trainer_knows():
    assert search.EXTENSIONS == sources.EXTENSIONS


def test_hidden_files_other_files_and_the_sheet_itself_are_passed_over(folder):
    for name in (".hidden.png", ".thumbnails/a.png", "sheet.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "folder.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    assert list(pictures(folder, folder / "more" / ".." / "sheet.png")) == sorted(COLOURS)


# ---- what is kept ----


def test_only_new_and_changed_pictures_are_embedded_again(folder, place):
    first, shown, _ = refreshed(place, folder)
    assert shown == 5 and list(first.files) == sorted(COLOURS)
    written = place.stat()
    same, shown, _ = refreshed(place, folder)
    assert shown == 0 and place.stat().st_mtime_ns == written.st_mtime_ns
    np.testing.assert_array_equal(same.embeddings, first.embeddings, strict=True)

    paint(folder, **{"red.png": (0, 0, 9), "more/new.png": (1, 2, 3)})
    for name in COLOURS:  # written anew, but as they were
        if name != "red.png":
            stamp = first.files[name]
            os.utime(folder / name, ns=(stamp.modified, stamp.modified))
    changed, shown, _ = refreshed(place, folder)
    assert shown == 2
    afresh, _, _ = refreshed(place.with_name("afresh.npz"), folder)
    assert changed.files == afresh.files
    np.testing.assert_array_equal(changed.embeddings, afresh.embeddings, strict=True)


def test_removed_pictures_drop_out(folder, place):
    before, _, _ = refreshed(place, folder)
    (folder / "green.jpg").unlink()
    after, shown, _ = refreshed(place, folder)
    assert shown == 0 and list(after.files) == sorted(COLOURS.keys() - {"green.jpg"})
    np.testing.assert_array_equal(after.embeddings, np.delete(before.embeddings, 0, axis=0))
    assert list(search.read(place, search._key("m", Colours().reader, folder)).files) == list(
        after.files
    )


def test_pictures_that_cannot_be_read_are_named_and_skipped_each_time(folder, place):
    (folder / "torn.png").write_bytes((folder / "red.png").read_bytes()[:40])
    (folder / "text.jpg").write_text("no picture")
    Image.new("1", (16_000, 1)).save(folder / "line.png")  # to be enlarged beyond all bounds
    long = Colours(Preprocess(80, 1.0, mean=(0.0,), std=(1.0,)))
    index, shown, notes = refreshed(place, folder, colours=long)
    assert shown == 5 and list(index.files) == sorted(COLOURS)
    assert sorted(note.split(": ")[0] for note in notes) == [
        f"skipped {folder / name}" for name in ("line.png", "text.jpg", "torn.png")
    ]
    again = Colours(long.reader.preprocess)
    assert refreshed(place, folder, colours=again)[1:] == (0, notes)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / "text.jpg")
    assert refreshed(place, folder, colours=again)[1] == 1


def test_what_was_embedded_before_an_interruption_is_kept(folder, place):
    with pytest.raises(KeyboardInterrupt):
        refreshed(place, folder, colours=Colours(fails_at=4))
    index, shown, _ = refreshed(place, folder)
    assert shown == 3 and list(index.files) == sorted(COLOURS)


def test_progress_counts_what_is_new(folder, place):
    told = []
    refreshed(place, folder, progress=lambda *counts: told.append(counts))
    refreshed(place, folder, progress=lambda *counts: told.append(counts))
    assert told == [(2, 5), (4, 5), (5, 5)]


OTHERS = {  # of which an index must not be used
    "model": lambda folder: ("other", Colours().reader, folder),
    "size": lambda folder: ("m", Colours(replace(SQUARE, size=5)).reader, folder),
    "mean": lambda folder: ("m", Colours(replace(SQUARE, mean=(0.5,))).reader, folder),
    "channels": lambda folder: ("m", Colours().reader._replace(channels=1), folder),
    "folder": lambda folder: ("m", Colours().reader, paint(folder.with_name("others"))),
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_index_of_something_else_is_not_used(other, folder, place):
    refreshed(place, folder)
    model, reader, elsewhere = OTHERS[other](folder)
    notes = []
    index = refresh(place, elsewhere, model, reader, note=notes.append)
    expected = refresh(place.with_name("new.npz"), elsewhere, model, reader)
    np.testing.assert_array_equal(index.embeddings, expected.embeddings)
    assert notes == [f"the index {place} is of another model or folder and made anew"]
    assert search.place_of(model, reader, elsewhere) != search.place_of(
        "m", Colours().reader, folder
    )


def test_an_index_is_kept_in_the_users_cache(folder, monkeypatch):
    reader = Colours().reader
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert search.place_of("m", reader, folder).parent == Path("/somewhere/flax-zoo/search")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert search.place_of("m", reader, folder).parent == Path("/home/me/.cache/flax-zoo/search")


def test_no_flipped_bit_of_an_index_is_believed(folder, place):
    whole, _, _ = refreshed(place, folder)
    key, content = search._key("m", Colours().reader, folder), place.read_bytes()
    damaged = 0
    for at in range(0, len(content), 3):
        place.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        notes = []
        index = search.read(place, key, notes.append)
        damaged += bool(notes)
        if not notes:  # what is not read, such as the time at which the archive was made
            assert index.files == whole.files
            np.testing.assert_array_equal(index.embeddings, whole.embeddings, strict=True)
        else:
            assert not index.files and len(notes) == 1
    assert damaged > len(content) / 6


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"no index",
    "cut": lambda content: content[: len(content) // 2],
    "a lone array": lambda content: content[content.index(b"\x93NUMPY") :],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_anew_and_said_to_be(damage, folder, place):
    whole, _, _ = refreshed(place, folder)
    place.write_bytes(DAMAGES[damage](place.read_bytes()))
    index, shown, notes = refreshed(place, folder)
    assert shown == 5 and len(notes) == 1
    assert notes[0].startswith(f"the index {place} is damaged and made anew: ")
    np.testing.assert_array_equal(index.embeddings, whole.embeddings)
    assert refreshed(place, folder)[1:] == (0, [])


def test_an_index_with_other_rows_than_files_is_damaged(folder, place):
    index, _, _ = refreshed(place, folder)
    key = search._key("m", Colours().reader, folder)
    search.write(place, key, index._replace(embeddings=index.embeddings[:-1]))
    _, shown, notes = refreshed(place, folder)
    assert shown == 5 and "float32 (4, 3) for 5 pictures" in notes[0]


def test_a_disk_that_is_full_costs_the_index_and_not_the_answer(folder, place, monkeypatch):
    old, _, _ = refreshed(place, folder)
    content = place.read_bytes()
    paint(folder, **{"new.png": (1, 2, 3)})

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(search.np, "savez", full)
    index, _, notes = refreshed(place, folder)
    assert "new.png" in index.files
    assert notes == [f"the index cannot be kept at {place}: No space left on device"]
    assert place.read_bytes() == content and list(place.parent.iterdir()) == [place]


def test_a_name_that_is_no_text_comes_back(folder, place):
    name = os.fsdecode(b"\xff.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / name)
    assert name in refreshed(place, folder)[0].files
    assert refreshed(place, folder)[1] == 0


def test_weights_are_known_by_their_content_and_those_of_the_hub_by_their_commit(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "README.md").write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert identity(a) == identity(b)
    lone = identity(a / "model.safetensors")
    assert lone == identity(b / "model.safetensors")
    (b / "config.json").write_text('{"hidden_act": "gelu"}')
    assert identity(a) != identity(b) and lone != identity(b / "model.safetensors")
    commit = "0123456789" * 4
    hub = tmp_path / "models--openai--clip" / "snapshots" / commit
    assert identity(hub) == f"openai/clip@{commit}/"
    hub.mkdir(parents=True)
    (hub / "b.npz").write_bytes(b"")
    assert identity(hub / "b.npz") == f"openai/clip@{commit}/b.npz"


def foreign(place: Path) -> None:
    np.savez(place, weights=np.arange(3))


STRANGE = {  # what an index must not be written over
    "other arrays": foreign,
    "text": lambda place: place.write_text("no index"),
    "no key": lambda place: np.savez(
        place,
        facts=np.frombuffer(b'{"files": {}}', np.uint8),
        embeddings=np.zeros((0, 3), np.float32),
    ),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_file_that_is_no_index_is_told_from_one(strange, folder, tmp_path):
    place = tmp_path / "mine.npz"
    search.check_place(place)
    refreshed(place, folder)
    search.check_place(place)
    STRANGE[strange](place)
    with pytest.raises(ValueError, match="mine.npz is there already and is no index of pictures"):
        search.check_place(place)


def test_an_index_without_a_key_is_damaged(folder, place):
    place.parent.mkdir()
    STRANGE["no key"](place)
    _, shown, notes = refreshed(place, folder)
    assert shown == 5 and notes == [f"the index {place} is damaged and made anew: 'key'"]


def closed(monkeypatch, *names: str) -> None:
    """Folders of these names cannot be listed, also by who may do all."""
    scan = os.scandir

    def scandir(path):
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_folders_that_cannot_be_read_are_named_and_linked_ones_passed_over(
    folder, place, monkeypatch
):
    (folder / "linked").symlink_to(paint(folder.with_name("others")))
    closed(monkeypatch, "more")
    index, _, notes = refreshed(place, folder)
    assert list(index.files) == ["green.jpg", "red.png"]
    assert notes == [f"skipped {folder / 'more'}: Permission denied"]
    closed(monkeypatch, "more", folder.name)
    with pytest.raises(ValueError, match=f"no picture .* in {folder}; {folder}: Permission denied"):
        pictures(folder)


def test_without_a_home_a_place_for_the_index_is_asked_for(folder, monkeypatch):
    def nobody(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(ValueError, match="XDG_CACHE_HOME, or name one by --index"):
        search.place_of("m", Colours().reader, folder)


def test_a_folder_in_which_nothing_can_be_read_is_refused(tmp_path, place):
    (tmp_path / "torn.png").write_text("no picture")
    with pytest.raises(ValueError, match="none of the 1 pictures"):
        refreshed(place, tmp_path)


# ---- the commands ----

SCALE = 4.5
LINES = ["a red car", "the old cat sat on the mat", "two dogs", "a photo of a blue sky"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A pair of towers with random weights and its tokenizer; the same without a tokenizer, with
    one of more ids, and without preprocessing; and a classifier."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = train_bpe(LINES * 4, 280, specials=("<|endoftext|>",))
    small = {"depth": 1, "text_depth": 1, "vocab": tokenizer.vocab_size}
    model = siglip.SigLIP(replace(siglip.TINY, **small))
    variables = random_variables(model)
    variables["params"] |= {"log_scale": np.float32(np.log(SCALE)), "bias": np.float32(-2.0)}
    card = zoo.Card("siglip", {}, preprocess=Preprocess(SIZE, 1.0, mean=(0.5,), std=(0.5,)))
    wide, raw = (
        train_bpe(LINES * 4, 290, specials=("<|endoftext|>",)),
        replace(card, preprocess=None),
    )
    kinds = {"pair": (card, tokenizer), "bare": (card, None), "wide": (card, wide)}
    for name, (its, own) in {**kinds, "raw": (raw, tokenizer)}.items():
        zoo.save(model, variables, place / name, card=its)
        if own is not None:
            own.save(place / name)
    classifier = zoo.module_class(resnet)(resnet.TINY)
    zoo.save(classifier, random_variables(classifier), place / "classifier", card=card)
    return place


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Pictures of SIZE × SIZE, which are taken as they are."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "below").mkdir()
    for name in ("a.png", "b.png", "below/c.png", "d.png"):
        Image.fromarray(photograph(name, SIZE, SIZE)).save(folder / name)
    (folder / "torn.jpg").write_text("no picture")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "cache" / "flax-zoo" / "search"


def judged(models, photographs, texts) -> tuple[list[str], np.ndarray]:
    """Names of the pictures, and cosines [pictures, texts]."""
    model, variables = zoo.load(models / "pair")
    tokens = zeroshot.tokenise(zoo.tokenizer(models / "pair"), texts, model.config.context)
    names = ["a.png", "b.png", "below/c.png", "d.png"]
    pixels = np.stack([decode(photographs / name) for name in names]) / 255
    image, text = (partial(tower, variables) for tower in zeroshot.towers(model))
    seen = image(((pixels - 0.5) / 0.5).astype(np.float32))
    return names, np.asarray(seen) @ zeroshot.in_batches(text, tokens).T


def test_search_prints_the_best_pictures_with_cosine_share_and_bar(
    models, photographs, cache, capsys
):
    call = ["search", str(models / "pair"), str(photographs), "a red car", "--top", "3"]
    assert main(call) == 0
    shown = capsys.readouterr()
    names, cosines = judged(models, photographs, ["a red car"])
    shares = np.exp(SCALE * cosines[:, 0]) / np.exp(SCALE * cosines[:, 0]).sum()
    order = np.argsort(-shares)[:3]
    lines = shown.out.splitlines()
    assert [line.split()[-1] for line in lines] == [str(photographs / names[i]) for i in order]
    for line, i in zip(lines, order, strict=True):
        cosine, share = line.split()[:2]
        np.testing.assert_allclose(float(cosine), cosines[i, 0], atol=6e-4)
        np.testing.assert_allclose(float(share[:-1]) / 100, shares[i], atol=6e-4)
        assert line.count("█") == round(160 * shares[i]) // 8
    assert shown.err == f"note: skipped {photographs}/torn.jpg: {reason(photographs)}\n"
    [kept] = cache.iterdir()
    written = kept.stat().st_mtime_ns
    assert main(call) == 0 and capsys.readouterr().out == shown.out
    assert kept.stat().st_mtime_ns == written


def reason(photographs: Path) -> str:
    with pytest.raises(Unreadable) as error:
        decode(photographs / "torn.jpg")
    return error.value.reason


def test_search_draws_what_it_found_and_keeps_its_index_where_it_is_told(
    models, photographs, cache, tmp_path, capsys
):
    out, index = tmp_path / "found.png", tmp_path / "known.npz"
    places = ["--out", str(out), "--index", str(index)]
    assert main(["search", str(models / "pair"), str(photographs), "two dogs", *places]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [Path(line[-1]) for line in lines]
    names = [str(path.relative_to(photographs)) for path in found]
    captions = [f"{line[1]}  {name}" for line, name in zip(lines, names, strict=True)]
    expected = gallery.sheet([gallery.Row("two dogs", list(map(decode, found)), captions)])
    np.testing.assert_array_equal(decode(out), expected, strict=True)
    assert len(found) == 4 and index.is_file() and not cache.exists()


def test_pictures_are_drawn_as_if_they_were_whole_but_not_held_so(
    models, cache, tmp_path, monkeypatch
):
    large = tmp_path / "large"
    large.mkdir()
    for name, size in {"wide.png": (300, 190), "tall.png": (67, 401), "tiny.png": (9, 5)}.items():
        Image.fromarray(photograph(name, *size)).save(large / name)
    held, sheet = [], gallery.sheet

    def watched(rows):
        held.extend(picture.shape for row in rows for picture in row.pictures)
        return sheet(rows)

    monkeypatch.setattr(gallery, "sheet", watched)
    out = tmp_path / "found.png"
    assert main(["search", str(models / "pair"), str(large), "two dogs", "--out", str(out)]) == 0
    assert sorted(max(shape) for shape in held) == [9, gallery.SIDE, gallery.SIDE]
    for path in large.iterdir():
        whole = decode(path)
        np.testing.assert_array_equal(
            sheet([gallery.Row("", [gallery.shrunk(whole)])]),
            sheet([gallery.Row("", [whole])]),
            strict=True,
        )


def test_search_leaves_other_files_and_writes_over_other_indices(
    models, photographs, folder, cache, tmp_path, capsys
):
    index = tmp_path / "mine.npz"
    foreign(index)
    content = index.read_bytes()
    nowhere = [str(models / "none"), str(photographs), "cat", "--index", str(index)]
    assert main(["search", *nowhere]) == 2, "before the model is looked for"
    assert f"{index} is there already" in capsys.readouterr().err
    assert index.read_bytes() == content
    index.unlink()
    for pictures_of in (photographs, folder):
        call = ["search", str(models / "pair"), str(pictures_of), "cat", "--index", str(index)]
        assert main(call) == 0
    assert "is of another model or folder and made anew" in capsys.readouterr().err


def test_predict_names_what_a_picture_shows_in_the_words_given(models, photographs, capsys):
    call = ["predict", str(models / "pair"), str(photographs / "a.png"), str(photographs / "d.png")]
    assert main([*call, "--classes", "cat, red car ,two dogs", "--template", "a {}"]) == 0
    texts = ["a cat", "a red car", "a two dogs"]
    names, cosines = judged(models, photographs, texts)
    blocks = capsys.readouterr().out.rstrip("\n").split("\n\n")
    for block, i in zip(blocks, (0, 3), strict=True):
        head, *lines = block.splitlines()
        assert head == str(photographs / names[i])
        shares = np.exp(SCALE * cosines[i]) / np.exp(SCALE * cosines[i]).sum()
        expected = [(texts[c][2:], f"{shares[c]:.1%}") for c in np.argsort(-shares)]
        assert [tuple(line[2:].rsplit("%")[0].rsplit(None, 1)) for line in lines] == [
            (name, share[:-1]) for name, share in expected
        ]


FAILED = {  # arguments → parts of the one message
    "predict MODELS/pair PHOTOS/a.png": ("MODELS/pair has no classes of its own", "--classes"),
    "predict MODELS/pair PHOTOS/a.png --classes cat": ("two or more",),
    "predict MODELS/pair PHOTOS/a.png --classes cat,dog,cat": ("named twice", "cat"),
    "predict MODELS/pair PHOTOS/a.png --classes a,b --template photo": ("must hold {} once",),
    "predict MODELS/none PHOTOS/a.png --classes cat": ("two or more",),
    "predict MODELS/none PHOTOS/a.png --classes a,b --template x": ("must hold {} once",),
    "predict MODELS/none PHOTOS/a.png --template a_{}": ("--template", "--classes"),
    "predict MODELS/bare PHOTOS/a.png --classes a,b": ("MODELS/bare has no file of a tokenizer",),
    "predict MODELS/raw PHOTOS/a.png --classes a,b": ("MODELS/raw: no preprocessing",),
    "predict MODELS/classifier PHOTOS/a.png --classes a,b": (
        "MODELS/classifier is no pair of a picture and a text tower",
        "siglip_b16",
    ),
    "search MODELS/pair PHOTOS/none cat": ("there is no folder PHOTOS/none",),
    "search MODELS/pair MODELS/pair cat": ("there is no picture (.jpg", "in MODELS/pair"),
    "search MODELS/pair PHOTOS ": ("the query is empty",),
    "search MODELS/none PHOTOS cat": ("MODELS/none is neither a path",),
    "search MODELS/classifier PHOTOS cat": ("MODELS/classifier is no pair", "siglip_b16"),
    "search MODELS/bare PHOTOS cat": ("MODELS/bare has no file of a tokenizer",),
    "search MODELS/wide PHOTOS cat": ("ids go up to",),
    "search MODELS/raw PHOTOS cat": ("MODELS/raw: no preprocessing",),
    "search MODELS/pair PHOTOS cat --out x.jpg": ("--out x.jpg", "ends in .png"),
    "search MODELS/pair PHOTOS cat --out nowhere/x.png": ("there is no folder nowhere",),
    "search MODELS/pair PHOTOS cat --index PHOTOS/a.png": ("--index PHOTOS/a.png", ".npz"),
}


@pytest.mark.parametrize("call", FAILED)
def test_what_cannot_be_answered_is_one_message_and_exit_code_2(
    call, models, photographs, cache, capsys
):
    def placed(text: str) -> str:
        return text.replace("MODELS", str(models)).replace("PHOTOS", str(photographs))

    assert main(placed(call).split(" ")) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    for part in FAILED[call]:
        assert placed(part) in shown.err
    assert not cache.exists()


# ---- contact sheets ----


def squares(*colours) -> list[np.ndarray]:
    return [np.full((4, 4, 3), colour, np.uint8) for colour in colours]


def test_pictures_lie_in_lines_under_their_titles_and_frames_around_the_right_ones():
    step = 40 + 2 * gallery.BORDER + gallery.GAP
    rows = [
        gallery.Row("one", squares((255, 0, 0), (0, 255, 0), (0, 0, 255)), framed={1}),
        gallery.Row("two", squares((9, 9, 9)), captions=["a caption"]),
    ]
    drawn = gallery.sheet(rows, side=40, columns=2)
    line = gallery.TITLE + gallery.GAP
    captioned = step + gallery.CAPTION + gallery.GAP
    assert drawn.dtype == np.uint8
    assert drawn.shape == (gallery.GAP + 2 * line + 2 * step + captioned, gallery.GAP + 2 * step, 3)

    def cell(top: int, column: int) -> np.ndarray:
        left, side = gallery.GAP + column * step, 40 + 2 * gallery.BORDER
        return drawn[top : top + side, left : left + side]

    top = gallery.GAP + line
    for y, column, colour in ((top, 0, "red"), (top, 1, "lime"), (top + step, 0, "blue")):
        found = cell(y, column)
        inner = found[gallery.BORDER : -gallery.BORDER, gallery.BORDER : -gallery.BORDER]
        assert (inner == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all()
        framed = Image.new("RGB", (1, 1), gallery.FRAME).getpixel((0, 0))
        assert (found[0] == (framed if column else 255)).all()
    grey = cell(top + 2 * step + line, 0)
    assert (grey[20, 20] == 9).all()
    below = drawn[-gallery.CAPTION - gallery.GAP :]
    assert below.min() < 200, "the caption"


def test_pictures_of_any_shape_keep_it_and_grey_ones_are_shown():
    tall = np.zeros((80, 20, 1), np.uint8)
    drawn = gallery.sheet([gallery.Row("", [tall])], side=40)
    dark = np.argwhere(drawn[..., 0] == 0)
    assert (np.ptp(dark, axis=0) + 1).tolist() == [40, 10]


def test_small_pictures_are_enlarged_without_blur():
    board = np.array([[0, 255], [255, 0]], np.uint8)[..., None]
    drawn = gallery.sheet([gallery.Row("", [board])], side=40)
    assert set(np.unique(drawn)) == {0, 255}
    assert (drawn[..., 0] == 0).sum() == 40 * 40 / 2


@pytest.mark.parametrize("text", ["a caption that is far too long for it", "short", "", "é" * 99])
def test_a_text_is_cut_to_its_width(text):
    found = gallery.cut(text, 11, 100)
    assert gallery.font(11).getlength(found) <= 100
    assert found == text or (found.endswith("...") and text.startswith(found[:-3]))
    if found != text:
        longer = text[: len(found) - 2] + "..."
        assert gallery.font(11).getlength(longer) > 100


def test_a_sheet_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    drawn = gallery.sheet([gallery.Row("one", squares((1, 2, 3)))])
    gallery.save(tmp_path / "sheet.png", drawn)
    np.testing.assert_array_equal(decode(tmp_path / "sheet.png"), drawn, strict=True)

    def full(self, path, **options):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        gallery.save(tmp_path / "sheet.png", drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    np.testing.assert_array_equal(decode(tmp_path / "sheet.png"), drawn, strict=True)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no picture to show"),
        ([gallery.Row("none", [])], "no picture to show"),
        ([gallery.Row("one", squares(1, 2), ["a"])], "'one' has 1 captions for 2 pictures"),
        ([gallery.Row("one", squares(1), framed={1})], "'one' frames {1}, but has 1 pictures"),
    ],
)
def test_a_sheet_of_nothing_is_refused(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gallery.sheet(rows)
