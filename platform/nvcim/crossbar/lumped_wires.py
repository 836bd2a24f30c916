"""A fast approximation of the effective conductance of arrays with wires, for sweeps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nvcim.crossbar.dissection import exact_effective
from nvcim.crossbar.wires import Wires

LUMP_LINES = 8  # lines per side that the approximation lumps into one


def fast_effective(tiles: Tensor, wires: Wires) -> Tensor:
    """Effective conductance of oriented tiles [tiles, rows, cols], approximately: direct paths and the rest.

    Seen as paths from driver i to amplifier j, the current that passes from word to bit lines only once is exact
    and cheap: each word line alone with its bit lines grounded, times each bit line alone with its word lines
    grounded. What wanders over several cells is taken from arrays whose lines are one node each, behind the mean
    resistance of their cells; that tells lines apart, not places along them. How wandering depends on the place is
    smooth, so it is corrected by the ratio of two coarse arrays, of lumps of `LUMP_LINES` lines: with the wires as
    they are, and with one node a line. Without resistance between cells the method is exact.

    Error against the exact method, 128 x 128, both wires alike, sensed at one end, as rms over the matrix (in brackets,
    of the outputs of uniform inputs): conductances uniform in 1..100 uS 0.12 % (0.07 %) at 1 ohm and 0.6 % (0.4 %) at
    5 ohm, where ignoring the wires is 55 % and 242 % off. It grows with what a line conducts and with how unlike its
    cells are. With a tenth of them at 1 mS and the others at 1 nS: 0.9 % (0.5 %) at 1 ohm, 3.5 % (1.8 %) at 5 ohm, and
    behind drivers and amplifiers of 1 kilohm 2.4 % (0.4 %) and 9 % (1.6 %); docs/fidelity.md has the table.
    """
    rows, cols = tiles.shape[-2:]
    word = _line(wires.r_driver_ohm, wires.r_word_ohm, wires.drive == "both")
    bit = _line(wires.r_sense_ohm, wires.r_bit_ohm, wires.sense == "both")
    gather_rows, spread_rows = _lumps(rows, tiles)
    gather_cols, spread_cols = _lumps(cols, tiles)
    per_row, per_col = rows / gather_rows.shape[0], cols / gather_cols.shape[0]

    direct = _attenuation(tiles, word) * tiles * _attenuation(tiles.mT, bit).mT
    coarse = gather_rows @ tiles @ gather_cols.mT
    coarse_word, coarse_bit = word.lumped(per_col, per_row), bit.lumped(per_row, per_col)
    once = _attenuation(coarse, coarse_word) * coarse * _attenuation(coarse.mT, coarse_bit).mT
    wandering = exact_effective(coarse, _coarse_wires(wires, coarse_word, coarse_bit)) - once
    to_word, to_bit = word.mean(cols), bit.mean(rows)
    ratio = wandering / _one_node_a_line(coarse, to_word / per_row, to_bit / per_col).clamp_min(1e-30)
    return direct + (spread_rows @ ratio @ spread_cols.mT) * _one_node_a_line(tiles, to_word, to_bit)


def _one_node_a_line(tiles: Tensor, r_word: float, r_bit: float) -> Tensor:
    """What wanders in arrays [tiles, rows, cols] whose lines have all their resistance, ohm, at their end.

    With a = 1 / (1 + r_word * a row's sum) and b = 1 / (1 + r_bit * a column's sum) the currents y for volts v are
    y = b G' (a v + r_word r_bit a G y): all of it solved, less what the first term gives alone.
    """
    cells = tiles.double()  # of lines that conduct much behind much resistance the system is nearly singular
    a = 1 / (1 + r_word * cells.sum(-1, keepdim=True))
    b = 1 / (1 + r_bit * cells.sum(-2, keepdim=True))
    again = (cells * b).mT @ (cells * a) * (r_word * r_bit)
    once = a * cells * b
    identity = torch.eye(tiles.shape[-1], dtype=cells.dtype, device=cells.device)
    wandering: Tensor = torch.linalg.solve(identity - again, again @ once.mT)
    return wandering.mT.to(tiles.dtype)


@dataclass(frozen=True)
class _Line:
    """Resistances of one kind of line in ohm: source to first cell, cell to cell, and whether both ends are fed."""

    end: float
    segment: float
    both: bool

    def lumped(self, along: float, across: float) -> "_Line":
        """The line of a coarse array whose lumps hold `along` cells of each of `across` parallel lines."""
        end = self.end + self.segment * (along - 1) / 2  # to a lump's middle
        return _Line(end / across, self.segment * along / across, self.both)

    def mean(self, cells: int) -> float:
        """Resistance from the source to a typical one of `cells` cells, ohm."""
        whole = self.segment * (cells - 1)
        if not self.both:
            return self.end + whole / 3
        places = [self.segment * place for place in range(cells)]
        ways = sum((self.end + place) * (self.end + whole - place) for place in places)
        return ways / cells / (2 * self.end + whole)


def _line(r_end: float, r_segment: float, both: bool) -> _Line:
    """A line as `Wires` describes it; one without resistance between its cells sees its two ends in parallel."""
    if both and not r_segment:
        return _Line(r_end / 2, 0.0, False)
    return _Line(r_end + r_segment, r_segment, both)


def _coarse_wires(wires: Wires, word: _Line, bit: _Line) -> Wires:
    """Lines as `Wires`. Unchecked: from a lump's middle to its end is less than a segment, so the driver's or
    amplifier's resistance, what is beyond one segment, comes out negative.
    """
    return wires.model_copy(
        update={
            "r_word_ohm": word.segment,
            "r_bit_ohm": bit.segment,
            "r_driver_ohm": word.end - word.segment,
            "r_sense_ohm": bit.end - bit.segment,
            "drive": "both" if word.both else "left",
            "sense": "both" if bit.both else "bottom",
        }
    )


def _lumps(lines: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices that sum lines into lumps, [lumps, lines], and interpolate from lumps to lines, [lines, lumps].

    Lumps are equally wide; a line on the border of two is shared out.
    """
    count = max(min(lines, LUMP_LINES), math.ceil(lines / LUMP_LINES))
    width = lines / count
    edges = torch.arange(lines + 1).to(like) / width
    lump = torch.arange(count).to(like)[:, None]
    gather = ((edges[1:] - lump).clamp(0, 1) - (edges[:-1] - lump).clamp(0, 1)) * width
    middle = ((edges[1:] + edges[:-1]) / 2 - 0.5).clamp(0, count - 1)[:, None]
    spread = (1 - (middle - lump.mT).abs()).clamp_min(0)
    return gather, spread


def _attenuation(loads: Tensor, line: _Line) -> Tensor:
    """Voltages along lines [..., lines, cells] fed with one volt, each cell's conductance leading to ground."""
    cells = loads.movedim(-1, 0).contiguous()
    if not line.both:
        return _ladder(cells, line, torch.zeros_like(cells[0])).movedim(0, -1)
    grounded = torch.full_like(cells[0], 1 / line.end)
    return (_ladder(cells, line, grounded) + _ladder(cells.flip(0), line, grounded).flip(0)).movedim(0, -1)


def _ladder(cells: Tensor, line: _Line, beyond: Tensor) -> Tensor:
    """Node voltages [cells, ...] of ladders fed with one volt at cell 0; `beyond` loads the last cell, siemens."""
    ratios = []
    load = cells[-1] + beyond
    for here in cells[:-1].flip(0):
        ratios.append(1 / (1 + line.segment * load))
        load = here + load * ratios[-1]
    ratios.append(1 / (1 + line.end * load))
    return torch.stack(ratios[::-1]).cumprod(0)
