"""A contact sheet of suggested images: each with its rank, its name and, where known, its uncertainty."""

import textwrap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nvcim.data.images import Pixels, displayed
from nvcim.segmentation.suggestion_files import FolderSuggestions

_MARGIN = 24
_BOX = (400, 300)  # a picture is fitted into this many pixels, wide and high
_GAP = 8
_CAPTION, _SMALL, _TITLE = 20, 16, 28  # font sizes, pixels
_INK, _GREY, _PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)
# Anchors of matplotlib's inferno (van der Walt and Smith, 2015; CC0), which runs evenly from dark to light.
_INFERNO = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class _Layout:
    """Cards in columns; sizes in pixels."""

    columns: int
    card: tuple[int, int]
    head: int
    width: int
    height: int


def contact_sheet(found: FolderSuggestions, columns: int | None = None) -> NDArray[np.uint8]:
    """Draw the suggested images in order of rank, uint8 [H, W, 3].

    Beside each image lies its uncertainty (standard deviation over the networks), all on the one scale shown
    in the head; a sheet without uncertainty shows the images alone, in four columns instead of two.
    """
    columns = columns or (2 if found.heat else 4)
    columns = min(columns, len(found.suggestions))
    lines = textwrap.wrap(found.how, width=max(columns * _card_width(found) // 9, 30))
    layout = _lay_out(found, columns, len(lines))
    sheet = Image.new("RGB", (layout.width, layout.height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"{len(found.suggestions)} of {found.rest} images to annotate next"
    draw.text(
        (_MARGIN, _MARGIN),
        _fitted(draw, title, _font(_TITLE), layout.width - 2 * _MARGIN),
        _INK,
        _font(_TITLE),
    )
    for index, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + 44 + 22 * index), line, _GREY, _font(_SMALL))
    top = max((float(heat.max()) for heat in found.heat.values()), default=0.0) or 1.0
    if found.heat:
        _draw_scale(sheet, draw, top, _MARGIN + 44 + 22 * len(lines) + 8)
    for index in range(len(found.suggestions)):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (layout.card[0] + _MARGIN)
        _draw_card(sheet, draw, found, index, (left, layout.head + row * layout.card[1]), layout.card[0], top)
    return np.asarray(sheet, dtype=np.uint8)


def _card_width(found: FolderSuggestions) -> int:
    return 2 * _BOX[0] + _GAP if found.heat else _BOX[0]


def _lay_out(found: FolderSuggestions, columns: int, lines: int) -> _Layout:
    rows = -(-len(found.suggestions) // columns)
    card = (_card_width(found), 58 + _BOX[1] + _MARGIN)
    head = _MARGIN + 44 + 22 * lines + (44 if found.heat else 12) + 8
    width = _MARGIN + columns * (card[0] + _MARGIN)
    return _Layout(columns, card, head, width, head + rows * card[1])


def _draw_card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    found: FolderSuggestions,
    index: int,
    place: tuple[int, int],
    width: int,
    top: float,
) -> None:
    """One image: a line with rank and name, a line with its values, the pictures."""
    suggestion, nearest = found.suggestions[index], found.nearest[index]
    left, upper = place
    name = _fitted(draw, f"{index + 1}. {suggestion.name}", _font(_CAPTION), width)
    draw.text((left, upper), name, _INK, _font(_CAPTION))
    facts = []
    if suggestion.uncertainty is not None:
        facts.append(f"uncertainty {suggestion.uncertainty:.4f}")
    if suggestion.represents is not None:
        facts.append(f"stands for {suggestion.represents} of {found.rest}")
    line = ", ".join(facts)
    if nearest is not None:
        line += f", nearest annotated ({nearest[1]:.3f}): "
        line += _fitted(draw, nearest[0], _font(_SMALL), width - draw.textlength(line, _font(_SMALL)))
    draw.text((left, upper + 28), line, _GREY, _font(_SMALL))
    picture = _fit(found.images[suggestion.name])
    sheet.paste(picture, (left, upper + 54))
    heat = found.heat.get(suggestion.name)
    if heat is not None:
        sheet.paste(_fit(heat_colours(heat, top)), (left + picture.width + _GAP, upper + 54))


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: float, upper: int) -> None:
    """The colour scale of the uncertainty maps, with its ends and unit."""
    ramp = np.repeat(np.linspace(0.0, top, 240, dtype=np.float32)[None], 16, axis=0)
    lowest = "uncertainty (standard deviation of the object probability): 0"
    draw.text((_MARGIN, upper), lowest, _INK, _font(_SMALL))
    left = _MARGIN + int(draw.textlength(lowest, _font(_SMALL))) + 10
    sheet.paste(Image.fromarray(heat_colours(ramp, top)), (left, upper + 2))
    draw.text((left + 250, upper), f"{top:.2f}", _INK, _font(_SMALL))


def heat_colours(heat: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """Colour a map [H, W] from 0 (dark) to `top` (light) as matplotlib's inferno, uint8 [H, W, 3]."""
    share = np.clip(heat / top, 0.0, 1.0)
    anchors = np.linspace(0.0, 1.0, len(_INFERNO))
    channels = [np.interp(share, anchors, _INFERNO[:, channel]) for channel in range(3)]
    return np.asarray(np.round(np.stack(channels, axis=-1)), dtype=np.uint8)


def _fit(pixels: Pixels) -> Image.Image:
    """The picture as large as its box allows; small ones are enlarged by whole pixels' worth, smoothly."""
    image = Image.fromarray(displayed(pixels))
    scale = min(_BOX[0] / image.width, _BOX[1] / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: _Font, width: float) -> str:
    """The text, with its middle left out where it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
        if draw.textlength(shorter, font) <= width:
            return shorter
    return "..."
