"""Letters as pictures: which there are, where they lie, and what is held out."""

import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from train.config import ConfigError, Images
from train.data import sources
from train.data.glyphs import FACES, LETTERS, SIDE, SIZES, Glyph, letters, render

pytestmark = pytest.mark.quick

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
GLYPHS = Images(source="glyphs")


def ink(picture):
    """(share of white, row and column of its middle)."""
    weights = picture[..., 0].astype(float)
    rows, columns = np.indices(weights.shape)
    total = weights.sum()
    return total / 255 / SIDE**2, (weights * rows).sum() / total, (weights * columns).sum() / total


def test_every_face_draws_every_letter_and_no_two_letters_alike():
    assert len(set(LETTERS)) == len(LETTERS) == 245
    for face in FACES:
        known = FT2Font(str(FONTS / f"{face}.ttf")).get_charmap()
        assert {ord(letter) for letter in LETTERS} <= known.keys(), face
        drawn = {render(Glyph(letter, face, max(SIZES))).tobytes() for letter in LETTERS}
        assert len(drawn) == len(LETTERS), face


def test_no_letter_is_a_digit_or_carries_an_accent():
    for letter in LETTERS:
        assert unicodedata.category(letter) in ("Lu", "Ll", "Lo"), letter
        assert unicodedata.numeric(letter, None) is None, letter
        assert not unicodedata.decomposition(letter), letter


def test_a_picture_is_white_on_black_in_the_middle_and_grows_with_its_size():
    for face in FACES:
        pictures = [render(Glyph("H", face, size)) for size in SIZES]
        shares, rows, columns = zip(*map(ink, pictures), strict=True)
        assert all(p.shape == (SIDE, SIDE, 1) and p.dtype == np.uint8 for p in pictures)
        assert list(shares) == sorted(shares) and 0.02 < shares[0] and shares[-1] < 0.4
        assert all(abs(place - (SIDE - 1) / 2) < 3 for place in (*rows, *columns))


def test_signs_keep_their_height_on_the_line():
    """A comma centred by itself would be an apostrophe: later captions tell them apart."""
    rows = [ink(render(Glyph(sign, "DejaVuSans", 24)))[1] for sign in "'-,_"]
    assert rows == sorted(rows) and rows[0] < SIDE / 2 - 4 and rows[2] > SIDE / 2 + 4


def test_the_splits_are_whole_faces_each_picture_once():
    source = sources.open_source(GLYPHS)
    assert source.shape == (SIDE, SIDE, 1) and source.labels == tuple(LETTERS)
    held = {"validation": sources.GLYPHS_VALIDATION, "test": sources.GLYPHS_TEST}
    seen = set(FACES) - {face for faces in held.values() for face in faces}
    assert len(seen) == 10
    for name, faces in {"train": seen, **held}.items():
        split = source.splits[name]
        count = len(faces) * len(SIZES)
        assert Counter(example["label"] for example in split) == dict.fromkeys(range(245), count)
        drawn = Counter(
            (render(glyph).tobytes(), LETTERS.index(glyph.character)) for glyph in letters(faces)
        )
        assert Counter((e["image"].tobytes(), e["label"]) for e in split) == drawn


def test_the_pictures_follow_no_seed():
    a, b = (sources.open_source(Images(source="glyphs", seed=s)).splits["train"] for s in (0, 1))
    assert len(a) == len(b)
    assert all(np.array_equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))


def test_the_source_is_checked_without_drawing_anything():
    program = (
        "import sys, train.data.sources as s\n"
        "from train.config import Images\n"
        "s.check_source(Images(source='glyphs'))\n"
        "assert not {'jax', 'matplotlib', 'PIL'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("function", [sources.check_source, sources.open_source])
def test_without_the_fonts_the_way_to_them_is_told(function, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="data.source.*pip install matplotlib"):
        function(GLYPHS)
    with pytest.raises(ConfigError, match="must have the form glyphs"):
        function(Images(source="glyphs:latin"))
