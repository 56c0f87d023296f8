"""Contact sheets: rows of pictures under a title, drawn by Pillow alone.

    rows → cells of `side` pixels, each picture as large as fits, its caption below → RGB [H, W, 3]

What a search has found is looked at this way: a row for each query, right answers in a frame.
"""

import math
import os
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from zoo.preprocess import to_picture

Array = np.ndarray
INK, QUIET, FRAME, PAPER = "#222222", "#777777", "#228833", "#ffffff"
TITLE, CAPTION = 14, 11  # pixels per em
SIDE = 112  # pixels of a cell
GAP, BORDER = 8, 3  # pixels between cells, and of a frame around one


class Row(NamedTuple):
    """pictures: uint8 [h, w, 1 or 3] of any size. captions: one each, or none. framed: the places
    of those in a frame."""

    title: str
    pictures: Sequence[Array]
    captions: Sequence[str] = ()
    framed: Collection[int] = ()


def sheet(rows: Sequence[Row], *, side: int = SIDE, columns: int = 5) -> Array:
    """uint8 [H, W, 3]: the rows under each other, with `columns` pictures a line.

    Small pictures are enlarged without blur. Titles and captions are cut where they are longer than
    the sheet or the cell. Raises ValueError for no picture at all, and for captions or frames that
    do not belong to pictures.
    """
    _check(rows)
    columns = min(columns, max(len(row.pictures) for row in rows))
    heights = [_height(row, side, columns) for row in rows]
    width = GAP + columns * (side + 2 * BORDER + GAP)
    canvas = Image.new("RGB", (width, GAP + sum(heights)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        _draw(canvas, row, top, side, columns)
        top += height
    return np.asarray(canvas)


def shrunk(picture: Array, side: int = SIDE) -> Array:
    """What a sheet of such cells shows of uint8 [h, w, 1 or 3], so that it need not be kept whole;
    a small picture stays as it is."""
    return picture if max(picture.shape[:2]) <= side else np.asarray(_fit(picture, side))


def save(path: str | Path, picture: Array) -> None:
    """Writes uint8 [H, W, 3] as a PNG, whole or not at all. Raises OSError where it cannot be."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        to_picture(picture).save(part, format="PNG", optimize=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check(rows: Sequence[Row]) -> None:
    if not any(len(row.pictures) for row in rows):
        raise ValueError("there is no picture to show: give a row with one at least")
    for row in rows:
        count = len(row.pictures)
        if len(row.captions) not in (0, count):
            raise ValueError(
                f"{row.title!r} has {len(row.captions)} captions for {count} pictures: give one "
                "for each, or none"
            )
        if any(not 0 <= place < count for place in row.framed):
            raise ValueError(f"{row.title!r} frames {row.framed}, but has {count} pictures")


def _height(row: Row, side: int, columns: int) -> int:
    return TITLE + GAP + math.ceil(len(row.pictures) / columns) * _line(row, side)


def _line(row: Row, side: int) -> int:
    """The height of a line of cells, captions and the gap below included."""
    return side + 2 * BORDER + GAP + (CAPTION + GAP if row.captions else 0)


def _draw(canvas: Image.Image, row: Row, top: int, side: int, columns: int) -> None:
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, top), cut(row.title, TITLE, canvas.width - 2 * GAP), INK, font(TITLE))
    cell = side + 2 * BORDER
    for place, picture in enumerate(row.pictures):
        line, column = divmod(place, columns)
        x, y = GAP + column * (cell + GAP), top + TITLE + GAP + line * _line(row, side)
        if place in row.framed:
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=FRAME, width=BORDER)
        shown = _fit(picture, side)
        canvas.paste(shown, (x + (cell - shown.width) // 2, y + (cell - shown.height) // 2))
        if row.captions:
            caption = cut(row.captions[place], CAPTION, cell)
            draw.text((x, y + cell + 2), caption, QUIET, font(CAPTION))


def _fit(picture: Array, side: int) -> Image.Image:
    """As large as fits into a square."""
    small = max(picture.shape[:2]) <= side
    resampling = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return ImageOps.contain(to_picture(picture).convert("RGB"), (side, side), resampling)


def cut(text: str, size: int, width: int) -> str:
    """The text, or its beginning with three dots, as it is no wider than so many pixels."""
    text = " ".join(text.split())  # a title is one line
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own; characters that it lacks are drawn as boxes."""
    return ImageFont.load_default(size)
