"""Letters as pictures: the DejaVu fonts that come with matplotlib, drawn by Pillow.

Twelve faces: sans, mono and serif, each regular, bold, slanted and both. Everything here is a pure
function of its arguments; hinting and anti-aliasing are FreeType's and may differ by a grey level
between its versions.

    LETTERS     some letters, all faces and sizes: pictures with a class
    concepts    every character that has a Unicode name: pictures with a caption
"""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.data.corpora import unit_hash

LICENCE = "Bitstream Vera; DejaVu's changes are in the public domain"
SIDE = 32  # pixels of a picture
FACES = tuple(
    f"DejaVu{face}"
    for face in (
        *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
        *("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique"),
        *("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic"),
    )
)
# Latin, Greek, Cyrillic, Armenian, Georgian, without accents; of those that look alike in any face,
# such as A, Α and А, the first.
LETTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzÆÐØÞßæðøþ"
    "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθικλμνξπρςστυφχψω"
    "ЂЄЉЊЋЏБДЖЗИЛУФЦЧШЪЫЬЭЮЯбвгджзлмнфцчшщъыьэюяђєљњћџ"
    "ԱԲԳԴԵԶԷԸԹԺԻԼԽԾԿՀՁՂՃՄՅՆՇՈՉՊՋՌՎՏՐՑՒՓՔՖաբգդեէըթժիլխծկձղճմյնշչպջռվտրւփքֆ"
    "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ"
)
SIZES = (16, 20, 24, 28)  # of the font: pixels per em


class Glyph(NamedTuple):
    """What a picture shows."""

    character: str
    face: str
    size: int  # pixels per em


def render(glyph: Glyph) -> np.ndarray:
    """uint8 [SIDE, SIDE, 1], white on black.

    The middle of the advance and of the line (from ascender to descender) lies in the centre, so
    that a comma stays below and an apostrophe above. What sticks out is cut off; a character that
    the face has not is drawn as the face's own sign for that.
    """
    picture = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(picture)
    middle = (SIDE / 2, SIDE / 2)
    draw.text(middle, glyph.character, 255, font(glyph.face, glyph.size), anchor="mm")
    return np.asarray(picture)[..., None]


@cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at that many pixels per em."""
    # The other layout engine depends on libraries that not every machine has.
    return ImageFont.truetype(str(file(face)), size, layout_engine=ImageFont.Layout.BASIC)


def file(face: str) -> Path:
    """Of a face, in matplotlib's `fonts/ttf`."""
    import matplotlib  # 0.1 s, and only where glyphs are drawn

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


def letters(faces: Iterable[str]) -> list[Glyph]:
    """Every letter in these faces and all sizes, letter by letter."""
    return [Glyph(*found) for found in itertools.product(LETTERS, faces, SIZES)]


# ---- with captions ----

EM = 24  # pixels: the size at which nearly every character fits into a picture


class Concept(NamedTuple):
    """A character, what it is called, and how each face that has it draws it, in FACES' order."""

    caption: str
    pictures: Mapping[str, np.ndarray]


@cache
def concepts() -> Mapping[str, Concept]:
    """By character, in the order of code points. The caption is the Unicode name in lower case.

    Left out: what no face draws, such as spaces, and what has no name.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for face in FACES:
        for character in characters(face):
            picture = render(Glyph(character, face, EM))
            if picture.any():
                found.setdefault(character, {})[face] = picture
    return {c: Concept(unicodedata.name(c).lower(), found[c]) for c in sorted(found)}


def characters(face: str) -> Iterator[str]:
    """Those with a name that the face really has."""
    from matplotlib.ft2font import FT2Font

    codes = FT2Font(str(file(face))).get_charmap()
    return (chr(code) for code in sorted(codes) if unicodedata.name(chr(code), ""))


def twins(pictures: Mapping[str, Iterable[np.ndarray]]) -> dict[str, str]:
    """For each character the first of its twins: of those that look alike to the pixel in any of
    their pictures (Α, A, А), and the twins of these."""
    parent = {character: character for character in pictures}

    def first(character: str) -> str:
        while parent[character] != character:
            character = parent[character]
        return character

    seen: dict[bytes, str] = {}
    for character, drawn in pictures.items():
        for picture in drawn:
            alike = seen.setdefault(picture.tobytes(), character)
            one, other = sorted((first(character), first(alike)))
            parent[other] = one
    return {character: first(character) for character in pictures}


# ---- what is held back ----

TEST, VALIDATION = 500, 300  # captions
SEEN = 4  # training captions, at least, that have each word of a caption that is held back


class Division(NamedTuple):
    """Characters by what they are for; of one family of twins all are on one side.

    train       the families that are trained on
    validation  and
    test        never seen: one of a family; its twins are for nothing
    order       test as well: pairs whose captions are of the same words in another order
    """

    train: tuple[tuple[str, ...], ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    order: tuple[tuple[str, str], ...]


@cache
def division() -> Division:
    """Of all concepts. It follows from their names and pictures, and from no seed.

    Of DejaVu 2.35's 6,668 characters, 5,464 families, 4,981 in 4,577 families are trained on; there
    are 77 groups of captions with the same words, and 39 of them, 61 pairs, are held back.
    """
    found = concepts()
    captions = {character: concept.caption for character, concept in found.items()}
    pictures = {character: concept.pictures.values() for character, concept in found.items()}
    return divide(captions, twins(pictures), TEST, VALIDATION)


@cache
def rehearsal() -> Division:
    """The training side of `division`, divided once more by the same rule, so that settings can be
    chosen by what is as hard as the test: 500 captions, and every third group that is left, since
    order is learned from those that stay. Its validation is that of `division`; what that tests is
    not in it."""
    found, whole = concepts(), division()
    families = {family[0]: family for family in whole.train}
    kin = {character: first for first, family in families.items() for character in family}
    captions = {character: found[character].caption for character in kin}
    return divide(captions, kin, TEST, 0, every=3)._replace(validation=whole.validation)


def divide(
    captions: Mapping[str, str],
    kin: Mapping[str, str],
    test: int,
    validation: int,
    every: int = 2,
) -> Division:
    """captions: by character. kin: for each character the first of its family. test, validation:
    how many captions to hold back; there may be fewer. every: of the groups of captions that are of
    the same words, each so-manyth is held back.

    They are taken in the order of a hash of the caption, each as long as its own words and those of
    all others that are held back stay in SEEN captions of the training side.
    """
    families: dict[str, list[str]] = {}
    for character, first in kin.items():
        families.setdefault(first, []).append(character)
    turned = held_groups(captions, every)
    gone = {kin[character] for group in turned for character in group}
    counts = Counter(w for c in captions if kin[c] not in gone for w in words(captions[c]))
    needed: set[str] = set()
    chosen: list[str] = []
    for character in sorted(captions, key=lambda c: unit_hash(captions[c])):
        family, own = kin[character], words(captions[character])
        lost = Counter(w for c in families[family] for w in words(captions[c]))
        known = all(counts[w] - lost[w] >= SEEN for w in lost if w in needed or w in own)
        if known and family not in gone and len(chosen) < test + validation:
            chosen.append(character)
            gone.add(family)
            counts -= lost
            needed |= own
    pairs = (pair for group in turned for pair in itertools.combinations(group, 2))
    return Division(
        train=tuple(tuple(family) for first, family in families.items() if first not in gone),
        validation=tuple(chosen[test:]),
        test=tuple(chosen[:test]),
        # Of twins no picture tells which is which.
        order=tuple((a, b) for a, b in pairs if kin[a] != kin[b]),
    )


def held_groups(captions: Mapping[str, str], every: int) -> list[list[str]]:
    """Every so-manyth group of characters whose captions are of the same words in another order."""
    groups: dict[str, list[str]] = {}
    for character, caption in captions.items():
        groups.setdefault(" ".join(sorted(caption.split())), []).append(character)
    several = [key for key in sorted(groups, key=unit_hash) if len(groups[key]) > 1]
    return [groups[key] for key in several[::every]]


def words(caption: str) -> set[str]:
    return set(caption.split())
