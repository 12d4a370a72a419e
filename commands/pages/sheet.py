"""Galleries as one picture: a row for each sample, and one legend beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from commands.pages.page import Gallery, LegendEntry

_MARGIN, _GAP = 20, 14  # pixels
_SMALL, _LARGE = 300, 560  # width of a picture where many stand below each other, and where one sample fills the sheet
_MOST_ACROSS = 2  # pictures of a sample that fills the sheet
_TITLE, _TEXT, _CAPTION = 20, 15, 14  # sizes of letters, pixels
_SWATCH = 15
_LEGEND_WIDTH = 190
_INK, _QUIET = (29, 32, 36), (92, 99, 108)


def draw_sheet(galleries: Sequence[Gallery], legend: Sequence[LegendEntry]) -> bytes:
    """A PNG of all galleries, one below the other. Text that does not fit is cut; nothing in it is read as markup."""
    drawn = [_draw_gallery(gallery) for gallery in galleries]
    legend_size = (_LEGEND_WIDTH + _GAP, len(legend) * (_SWATCH + 7)) if legend else (0, 0)
    width = max(image.width for image in drawn) + legend_size[0] + 2 * _MARGIN
    height = max(sum(image.height + _GAP for image in drawn) - _GAP, legend_size[1]) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    top = _MARGIN
    for image in drawn:
        sheet.paste(image, (_MARGIN, top))
        top += image.height + _GAP
    _draw_legend(ImageDraw.Draw(sheet), legend, (width - _MARGIN - _LEGEND_WIDTH, _MARGIN + _TITLE + _TEXT + 16))
    out = io.BytesIO()
    sheet.save(out, format="png")
    return out.getvalue()


def _draw_gallery(gallery: Gallery) -> Image.Image:
    wide = _SMALL if gallery.small else _LARGE
    across = len(gallery.pictures) if gallery.small else min(len(gallery.pictures), _MOST_ACROSS)
    images = [_scaled(picture.png, wide) for picture in gallery.pictures]
    rows = [range(start, min(start + across, len(images))) for start in range(0, len(images), across)]
    tallest = [max(images[index].height for index in row) for row in rows]
    head = _TITLE + _TEXT + 14
    below = _CAPTION + 10
    sheet = Image.new("RGB", (across * (wide + _GAP) - _GAP, head + sum(tallest) + len(rows) * (below + 6)), "white")
    drawing = ImageDraw.Draw(sheet)
    _write(drawing, (0, 0), gallery.heading, _TITLE, _INK, sheet.width)
    _write(drawing, (0, _TITLE + 5), gallery.text, _TEXT, _QUIET, sheet.width)
    top = head
    for row, height in zip(rows, tallest, strict=True):
        for place, index in enumerate(row):
            left = place * (wide + _GAP)
            sheet.paste(images[index], (left, top))
            _write(drawing, (left, top + height + 4), gallery.pictures[index].caption, _CAPTION, _INK, wide)
        top += height + below + 6
    return sheet


def _scaled(png: bytes, width: int) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB").resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def _draw_legend(drawing: ImageDraw.ImageDraw, legend: Sequence[LegendEntry], at: tuple[int, int]) -> None:
    left, top = at
    for entry in legend:
        drawing.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=entry.color, outline=(128, 128, 128))
        _write(drawing, (left + _SWATCH + 8, top), entry.name, _CAPTION, _INK, _LEGEND_WIDTH - _SWATCH - 8)
        top += _SWATCH + 7


def _write(
    drawing: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int
) -> None:
    """One line, cut where it would be wider."""
    font = ImageFont.load_default(size)
    line = "".join(letter if letter.isprintable() else "?" for letter in text[:300])
    if drawing.textlength(line, font) > width:
        while line and drawing.textlength(f"{line}...", font) > width:
            line = line[:-1]
        line += "..."
    drawing.text(at, line, fill=color, font=font)
