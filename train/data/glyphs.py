"""Letters as pictures: the DejaVu fonts that come with matplotlib, drawn by Pillow.

Twelve faces: sans, mono and serif, each regular, bold, slanted and both. Everything here is a pure
function of its arguments; hinting and anti-aliasing are FreeType's and may differ by a grey level
between its versions.
"""

import itertools
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
    """A face of matplotlib's `fonts/ttf` at that many pixels per em."""
    import matplotlib  # 0.1 s, and only where glyphs are drawn

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    # The other layout engine depends on libraries that not every machine has.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def letters(faces: Iterable[str]) -> list[Glyph]:
    """Every letter in these faces and all sizes, letter by letter."""
    return [Glyph(*found) for found in itertools.product(LETTERS, faces, SIZES)]
