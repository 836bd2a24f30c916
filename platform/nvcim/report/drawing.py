"""Pictures of rectangles, lines, marks and text, written as SVG and as PNG from one description.

Neither needs a browser or a network. Text keeps to the characters of Pillow's own font (ASCII, with the plus-minus
and degree signs), so that both look the same.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

INK, FAINT = "#1b1b1b", "#666666"


@dataclass(frozen=True)
class Rect:
    """A rectangle; x and y are its left top corner. `title` is what a pointer that rests on it shows (SVG only)."""

    x: float
    y: float
    width: float
    height: float
    fill: str | None
    stroke: str | None = None
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    stroke: str
    width: float = 1.0


@dataclass(frozen=True)
class Shape:
    """A closed polygon; a hollow one has no fill."""

    points: tuple[tuple[float, float], ...]
    fill: str | None
    stroke: str | None = None


@dataclass(frozen=True)
class Text:
    """A line of text; y is its baseline."""

    x: float
    y: float
    text: str
    size: float = 13.0
    anchor: Literal["start", "middle", "end"] = "start"
    fill: str = INK


Drawn = Rect | Line | Shape | Text


@dataclass(frozen=True)
class Picture:
    """What is drawn on a white ground, in this order. `about` tells it to those who cannot see it."""

    width: int
    height: int
    about: str
    shapes: Sequence[Drawn]


def circle(x: float, y: float, radius: float) -> tuple[tuple[float, float], ...]:
    """Corners of a polygon that looks like a circle: an octagon with each side halved outwards."""
    near, far = 0.3827 * radius, 0.9239 * radius
    half = 0.7071 * radius
    quarter = [(radius, 0.0), (far, near), (half, half), (near, far)]
    corners = [*quarter, *((-b, a) for a, b in quarter)]
    return tuple((x + a, y + b) for a, b in [*corners, *((-a, -b) for a, b in corners)])


def diamond(x: float, y: float, radius: float) -> tuple[tuple[float, float], ...]:
    """Corners of a square on its tip."""
    return ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))


def square(x: float, y: float, radius: float) -> tuple[tuple[float, float], ...]:
    """Corners of a square."""
    return (
        (x - radius, y - radius),
        (x + radius, y - radius),
        (x + radius, y + radius),
        (x - radius, y + radius),
    )


def to_svg(picture: Picture) -> str:
    """The picture as an SVG element, for a file or inside a page."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width} {picture.height}" '
        f'width="{picture.width}" height="{picture.height}" role="img" '
        'font-family="Aileron, Helvetica, Arial, sans-serif">',
        f"<title>{escape(picture.about)}</title>",
        f'<rect width="{picture.width}" height="{picture.height}" fill="#ffffff"/>',
        *(_svg(shape) for shape in picture.shapes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _svg(shape: Drawn) -> str:
    if isinstance(shape, Line):
        return (
            f'<line x1="{shape.x1:.2f}" y1="{shape.y1:.2f}" x2="{shape.x2:.2f}" y2="{shape.y2:.2f}" '
            f'stroke="{shape.stroke}" stroke-width="{shape.width:g}"/>'
        )
    if isinstance(shape, Text):
        return (
            f'<text x="{shape.x:.2f}" y="{shape.y:.2f}" font-size="{shape.size:g}" '
            f'text-anchor="{shape.anchor}" fill="{shape.fill}">{escape(shape.text)}</text>'
        )
    paint = f'fill="{shape.fill or "none"}"' + (f' stroke="{shape.stroke}"' if shape.stroke else "")
    if isinstance(shape, Shape):
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in shape.points)
        return f'<polygon points="{points}" {paint}/>'
    place = f'x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.width:.2f}" height="{shape.height:.2f}"'
    if not shape.title:
        return f"<rect {place} {paint}/>"
    return f"<rect {place} {paint}><title>{escape(shape.title)}</title></rect>"


def to_png(picture: Picture, scale: int = 2) -> bytes:
    """The picture as a PNG file, `scale` pixels per unit."""
    fine = 2 * scale  # drawn twice as large and shrunk: smooth edges
    image = Image.new("RGB", (picture.width * fine, picture.height * fine), "#ffffff")
    draw = ImageDraw.Draw(image)
    for shape in picture.shapes:
        _paint(draw, shape, fine)
    image = image.resize((picture.width * scale, picture.height * scale), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _paint(draw: ImageDraw.ImageDraw, shape: Drawn, scale: int) -> None:
    if isinstance(shape, Line):
        ends = [(shape.x1 * scale, shape.y1 * scale), (shape.x2 * scale, shape.y2 * scale)]
        draw.line(ends, fill=shape.stroke, width=max(1, round(shape.width * scale)))
    elif isinstance(shape, Text):
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        font = ImageFont.load_default(shape.size * scale)
        draw.text((shape.x * scale, shape.y * scale), shape.text, fill=shape.fill, font=font, anchor=anchor)
    elif isinstance(shape, Shape):
        points = [(x * scale, y * scale) for x, y in shape.points]
        draw.polygon(points, fill=shape.fill)
        if shape.stroke:
            draw.line([*points, points[0], points[1]], fill=shape.stroke, width=scale, joint="curve")
    elif shape.width > 0 and shape.height > 0:
        corner = (shape.x + shape.width, shape.y + shape.height)
        box = [(shape.x * scale, shape.y * scale), (corner[0] * scale, corner[1] * scale)]
        draw.rectangle(box, fill=shape.fill, outline=shape.stroke, width=scale if shape.stroke else 0)
