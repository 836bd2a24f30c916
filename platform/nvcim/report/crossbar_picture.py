"""The picture of what a matrix becomes on crossbars: arrays to scale, error by cause, cost by component."""

import math
import statistics
from collections.abc import Iterator, Sequence

from nvcim.crossbar.cost_table import Figure
from nvcim.crossbar.explain import CauseError, Explanation, spread
from nvcim.report.drawing import FAINT, INK, Drawn, Line, Picture, Rect, Shape, Text, circle, diamond, square
from nvcim.report.style import PALETTE
from nvcim.report.units import engineering, percent

_WIDTH, _MARGIN = 1000, 40
_BLUE, _ORANGE, _GREEN = PALETTE[0], PALETTE[1], PALETTE[2]
_EMPTY, _GRID = "#ececec", "#e0e0e0"
_LAYOUT_HEIGHT = 230
_ROW = 24


def crossbar_picture(explanation: Explanation) -> Picture:
    """Draw an explanation: its arrays, its errors, its costs, one below the other."""
    shapes: list[Drawn] = []
    below = 0.0
    for panel in (_layout, _errors, _costs):
        drawn, below = panel(explanation, below)
        shapes += drawn
    inputs, outputs = explanation.shape
    about = f"What a matrix of {inputs} inputs and {outputs} outputs becomes on crossbars"
    return Picture(_WIDTH, math.ceil(below + 16), about, shapes)


def _heading(y: float, title: str, note: str) -> list[Drawn]:
    return [Text(_MARGIN, y + 34, title, 17), Text(_MARGIN, y + 53, note, 12, fill=FAINT)]


def _layout(explanation: Explanation, top: float) -> tuple[list[Drawn], float]:
    """All arrays to one scale; a block of tiles per side and slice."""
    plan, geometry = explanation.plan, explanation.geometry
    inputs, outputs = explanation.shape
    cell = explanation.job.crossbar.cell()
    title = (
        f"{inputs} x {outputs} weights take {plan.arrays} arrays of {geometry.rows} x {geometry.cols} "
        f"{cell.name} cells and use {plan.utilisation:.0%} of them"
    )
    note = "Drawn to scale: coloured cells hold weights, grey ones idle. Rows are inputs; slice 1 has the lowest bits."
    shapes = _heading(top, title, note)
    across = min(len(explanation.planes), 8)
    down = math.ceil(len(explanation.planes) / across)
    wide, tall = plan.col_tiles * geometry.cols, plan.row_tiles * geometry.rows
    room = (_WIDTH - 2 * _MARGIN) / across
    scale = min((room - 26) / wide, max(_LAYOUT_HEIGHT / down, 40) / tall)
    start, pitch = top + 88, tall * scale + 30
    for number, plane in enumerate(explanation.planes):
        x = _MARGIN + number % across * room
        y = start + number // across * pitch
        sign = "+" if plane.sign > 0 else "-"
        label = f"side {sign}, slice {plane.index + 1}: {plane.bits} b"
        shapes.append(Text(x, y - 6, label, 12))
        shapes += _block(explanation, x, y, scale, _BLUE if plane.sign > 0 else _ORANGE)
    return shapes, start + down * pitch


def _block(explanation: Explanation, x: float, y: float, scale: float, colour: str) -> list[Drawn]:
    """The arrays of one side and slice."""
    plan, geometry = explanation.plan, explanation.geometry
    inputs, outputs = explanation.shape
    wide, tall = plan.col_tiles * geometry.cols * scale, plan.row_tiles * geometry.rows * scale
    used = f"{inputs} x {outputs} cells in use, in {plan.row_tiles} x {plan.col_tiles} arrays"
    shapes: list[Drawn] = [
        Rect(x, y, wide, tall, _EMPTY, title="idle cells"),
        Rect(x, y, outputs * scale, inputs * scale, colour, title=used),
    ]
    right, down = geometry.cols * scale, geometry.rows * scale
    if right >= 3:  # else the lines between arrays would hide them
        thin = min(1.5, 0.08 * right)
        shapes += [
            Line(x + n * right, y, x + n * right, y + tall, "#ffffff", thin) for n in range(1, plan.col_tiles)
        ]
    if down >= 3:
        thin = min(1.5, 0.08 * down)
        shapes += [
            Line(x, y + n * down, x + wide, y + n * down, "#ffffff", thin) for n in range(1, plan.row_tiles)
        ]
    shapes.append(Rect(x, y, wide, tall, None, "#888888"))
    return shapes


def _errors(explanation: Explanation, top: float) -> tuple[list[Drawn], float]:
    """A row per cause on a logarithmic axis: alone, expected, and with all causes before it."""
    causes = explanation.causes
    largest = max(causes, key=lambda one: statistics.fmean(one.alone))
    title = (
        f"The product is off by {percent(statistics.fmean(causes[-1].cumulative))} in all, "
        f"most of it by {largest.cause} ({percent(statistics.fmean(largest.alone))} alone)"
    )
    chips = explanation.job.devices
    many = f"mean over {chips} simulated chips, whiskers: standard deviation."
    note = "Root mean square error relative to the exact product's; " + (
        many if chips > 1 else "one simulated chip."
    )
    shapes = _heading(top, title, note)
    left, right, start = _MARGIN + 130, _WIDTH - _MARGIN - 70, top + 104
    axis = _Axis(left, right, [value for one in causes for value in _values(one)])
    bottom = start + len(causes) * _ROW
    shapes += _legend(left, start - 27)
    for at in axis.ticks():
        shapes.append(Line(axis.x(at), start - 8, axis.x(at), bottom, _GRID))
        shapes.append(Text(axis.x(at), bottom + 16, f"{100 * at:g} %", 11, "middle", FAINT))
    shapes.append(Text((left + right) / 2, bottom + 34, "relative error, logarithmic", 12, "middle", FAINT))
    for row, one in enumerate(causes):
        shapes += _error_row(one, start + row * _ROW + 8, axis, left)
    return shapes, bottom + 42


def _values(one: CauseError) -> Iterator[float]:
    mean, sd = statistics.fmean(one.alone), spread(one.alone) or 0.0
    yield from (value for value in (mean - sd, mean + sd, mean, one.expected) if value is not None)
    yield from one.cumulative


def _error_row(one: CauseError, y: float, axis: "_Axis", left: float) -> list[Drawn]:
    mean, sd = statistics.fmean(one.alone), spread(one.alone) or 0.0
    together = statistics.fmean(one.cumulative)
    shapes: list[Drawn] = [Text(left - 12, y + 4, one.cause, 13, "end")]
    shapes.append(Shape(square(axis.x(together), y, 4.5), "#ffffff", FAINT))
    shapes.append(Line(axis.x(mean - sd), y, axis.x(mean + sd), y, _BLUE, 2))
    shapes.append(Shape(circle(axis.x(mean), y, 5), _BLUE))
    if one.expected is not None:
        shapes.append(Shape(diamond(axis.x(one.expected), y, 7.5), None, _ORANGE))
    shapes.append(Text(_WIDTH - _MARGIN, y + 4, percent(mean), 12, "end", _BLUE))
    return shapes


def _legend(x: float, y: float) -> list[Drawn]:
    return [
        Shape(circle(x + 5, y - 4, 5), _BLUE),
        Text(x + 16, y, "this cause alone, simulated", 12),
        Shape(diamond(x + 202, y - 4, 7.5), None, _ORANGE),
        Text(x + 216, y, "this cause alone, closed form", 12),
        Shape(square(x + 417, y - 4, 4.5), "#ffffff", FAINT),
        Text(x + 428, y, "with all causes above it, simulated", 12),
    ]


class _Axis:
    """A logarithmic axis between two x, over the positive ones of some values; others lie at its left end."""

    def __init__(self, left: float, right: float, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 1e-9] or [1e-3]
        self.left, self.right = left, right
        self.low = math.log10(min(positive)) - 0.1
        self.high = max(math.log10(max(positive)) + 0.1, self.low + 1)

    def x(self, value: float) -> float:
        share = (math.log10(max(value, 10**self.low)) - self.low) / (self.high - self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[float]:
        steps = (1, 2, 5) if self.high - self.low < 4 else (1,)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        return [at for at in ticks if self.low <= math.log10(at) <= self.high]


def _costs(explanation: Explanation, top: float) -> tuple[list[Drawn], float]:
    """Three columns of bars: energy, latency and area of each component."""
    table, total = explanation.product, explanation.product.total()
    energy, latency = _amount(total.energy, "J"), _amount(total.latency, "s")
    title = f"One product: energy {energy}, latency {latency}; area {_amount(total.area, 'mm2')}"
    node = f"{explanation.constants.node_nm:g} nm"
    note = f"Modelled at {node} from published constants, not measured; without leakage and control."
    shapes = _heading(top, title, note)
    start, left = top + 102, _MARGIN + 130
    column = (_WIDTH - _MARGIN - left) / 3
    columns = (
        ("energy", "J", [row.energy for row in table], _BLUE),
        ("latency", "s", [row.latency for row in table], _ORANGE),
        ("area", "mm2", [row.area for row in table], _GREEN),
    )
    shapes += [
        Text(left - 12, start + row * _ROW + 12, one.component, 13, "end") for row, one in enumerate(table)
    ]
    for number, (name, unit, figures, colour) in enumerate(columns):
        x = left + number * column
        shapes.append(Text(x, start - 12, name, 13))
        shapes += _bars(figures, unit, x, start, column - 90, colour)
    below = start + len(table.rows) * _ROW
    for line, reason in enumerate(sorted(total.missing())):
        shapes.append(Text(_MARGIN, below + 22 + 17 * line, f"unknown: {reason}", 12, fill=FAINT))
    return shapes, below + 17 * len(total.missing())


def _bars(
    figures: Sequence[Figure], unit: str, x: float, y: float, room: float, colour: str
) -> Iterator[Drawn]:
    largest = max((figure.value or 0.0 for figure in figures), default=0.0) or 1.0
    for row, figure in enumerate(figures):
        top, length = y + row * _ROW, room * (figure.value or 0.0) / largest
        if figure.value:
            yield Rect(x, top, max(length, 1.0), _ROW - 7, colour, title=_amount(figure, unit))
        fill = INK if figure.value else FAINT
        yield Text(x + length + 6, top + 13, _amount(figure, unit), 12, fill=fill)
    yield Line(x, y - 4, x, y + len(figures) * _ROW - 3, FAINT)


def _amount(figure: Figure, unit: str) -> str:
    if figure.value is None:
        return "unknown"
    return f"{figure.value:.3g} {unit}" if unit == "mm2" else engineering(figure.value, unit)
