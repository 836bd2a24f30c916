"""The wires' effective matrix, its fast approximation and the iterative solver against independent references."""

import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.nonlinear import SinhCell, rows_on, solve_currents
from nvcim.crossbar.wires import Wires
from tests.crossbar.nodal import nodal_effective
from tests.crossbar.test_wires_ngspice import LINEAR, netlist, ngspice
from tests.fidelity.tables import decade, percent, table

NGSPICE = shutil.which("ngspice") is not None
SINH_V = 0.08


def cells(size: int, kind: str = "uniform", seed: int = 21) -> Tensor:
    """Conductances [size, size], float64: 1 to 100 microsiemens, or nine in ten of them at 1."""
    draw = torch.rand(2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    shares = draw[0] if kind == "uniform" else torch.where(draw[1] < 0.1, draw[0], 0.0)
    return (1 + 99 * shares) * 1e-6


def volts(*shape: int) -> Tensor:
    """Input voltages of both signs, float64."""
    return 0.5 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(22)) - 0.1


@dataclass(frozen=True)
class Exactness:
    """Largest error of the currents or of the matrix, relative to the largest value, in both precisions."""

    reference: str
    case: str
    double: float
    single: float


def _worst(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).abs().max() / reference.abs().max())


ENDS = {
    "one end": Wires(r_word_ohm=1, r_bit_ohm=1),
    "one end, 5 ohm": Wires(r_word_ohm=5, r_bit_ohm=5),
    "both ends, drivers": Wires(
        r_word_ohm=5, r_bit_ohm=3, r_driver_ohm=200, r_sense_ohm=50, drive="both", sense="both"
    ),
}


def against_nodal(size: int, ends: str) -> Exactness:
    """The effective matrix against a sparse solve of Kirchhoff's equations, node by node."""
    conductance, wires = cells(size), ENDS[ends]
    reference = nodal_effective(conductance, wires)
    found = [_worst(effective_conductance(g, wires), reference) for g in (conductance, conductance.float())]
    return Exactness("sparse nodal solve", f"{size} x {size}, {ends}", *found)


def against_ngspice(size: int, ends: str) -> Exactness:
    """Currents of linear cells against ngspice."""
    conductance, x, wires = cells(size), volts(size), ENDS[ends]
    reference = _simulated(netlist(conductance, x, wires, LINEAR))
    pairs = ((x, conductance), (x.float(), conductance.float()))
    found = [_worst(vector @ effective_conductance(g, wires), reference) for vector, g in pairs]
    return Exactness("ngspice", f"{size} x {size}, {ends}", *found)


def nonlinear_against_ngspice(size: int) -> Exactness:
    """Currents of sinh cells against ngspice's own expression for the same curve."""
    conductance, x, wires = cells(size), volts(size), ENDS["both ends, drivers"]
    cell = f"Bc{{name}} {{a}} {{b}} I={{g}}*{SINH_V}*sinh((V({{a}})-V({{b}}))/{SINH_V})"
    reference = _simulated(netlist(conductance, x, wires, cell))
    iv = SinhCell(v0=SINH_V)
    found = [
        _worst(solve_currents(g, v[None], wires, iv=iv).currents[0], reference)
        for v, g in ((x, conductance), (x.float(), conductance.float()))
    ]
    return Exactness("ngspice", f"{size} x {size}, cells I = G v0 sinh(V / v0)", *found)


def gated_against_ngspice(size: int) -> Exactness:
    """Currents of an array whose cells are disconnected in rows without input."""
    conductance, x, wires = cells(size), volts(size), ENDS["one end, 5 ohm"]
    x[::3] = 0
    gated = torch.where(x[:, None] != 0, conductance, 0.0)  # the deck leaves such cells out
    reference = _simulated(netlist(gated, x, wires, LINEAR))
    found = [
        _worst(solve_currents(g, v[None], wires, gated=rows_on(v[None])).currents[0], reference)
        for v, g in ((x, conductance), (x.float(), conductance.float()))
    ]
    return Exactness("ngspice", f"{size} x {size}, rows gated by their input", *found)


def _simulated(deck: str) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        return ngspice(Path(folder), deck)


@cache
def exactness() -> tuple[Exactness, ...]:
    """Every comparison that this machine can make; ngspice is left out where it is not installed."""
    found = [against_nodal(16, ends) for ends in ENDS] + [against_nodal(48, ends) for ends in ENDS]
    found.append(against_nodal(128, "one end"))
    if NGSPICE:
        found += [against_ngspice(size, ends) for size in (8, 16, 32) for ends in ENDS]
        found += [nonlinear_against_ngspice(16), gated_against_ngspice(16)]
    return tuple(found)


@dataclass(frozen=True)
class Approximation:
    """Relative rms error of the fast method, and of leaving the wires out, over the matrix and over outputs."""

    size: int
    kind: str
    ohm: float
    matrix: float
    outputs: float
    ignored: float


def approximation(size: int, kind: str, ohm: float) -> Approximation:
    """One array, both wires alike, sensed and driven at one end; 64 input vectors uniform in 0 to 1."""
    conductance = extreme(size) if kind.startswith(EXTREME) else cells(size, kind)
    end = 1000.0 if kind.endswith(BEHIND) else 0.0
    wires = Wires(r_word_ohm=ohm, r_bit_ohm=ohm, r_driver_ohm=end, r_sense_ohm=end)
    x = torch.rand(64, size, dtype=torch.float64, generator=torch.Generator().manual_seed(23))
    exact = effective_conductance(conductance, wires)
    fast = effective_conductance(conductance, wires.model_copy(update={"method": "fast"}))

    def error(found: Tensor, reference: Tensor) -> float:
        return float((found - reference).norm() / reference.norm())

    return Approximation(
        size, kind, ohm, error(fast, exact), error(x @ fast, x @ exact), error(x @ conductance, x @ exact)
    )


EXTREME, BEHIND = "nine in ten at 1 nS, the others at 1 mS", ", ends of 1 kilohm"


def extreme(size: int) -> Tensor:
    """Cells [size, size], siemens, that are as unlike as cells can be."""
    chance = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(24))
    return torch.where(chance < 0.1, 1e-3, 1e-9).double()


@cache
def approximations() -> tuple[Approximation, ...]:
    """Sizes and resistances, two kinds of arrays."""
    cases = [(size, "uniform", ohm) for size in (32, 64, 128, 256) for ohm in (0.1, 1.0, 5.0)]
    cases += [(128, "mostly off", ohm) for ohm in (0.1, 1.0, 5.0)]
    cases += [
        (size, EXTREME + ends, ohm) for size in (32, 128) for ends in ("", BEHIND) for ohm in (0.1, 1.0, 5.0)
    ]
    return tuple(approximation(*case) for case in cases)


@dataclass(frozen=True)
class Linearised:
    """Relative rms error of the currents if sinh cells are taken as linear, by the ratio of voltage to v0."""

    ratio: float
    error: float


@cache
def linearised() -> tuple[Linearised, ...]:
    """A 32 x 32 array of 5 ohm segments; the largest input is `ratio` times v0."""
    conductance, x, wires = cells(32), volts(8, 32), ENDS["one end, 5 ohm"]
    found = []
    for ratio in (0.1, 0.25, 0.5, 1.0, 2.0):
        iv = SinhCell(v0=float(x.abs().max()) / ratio)
        reference = solve_currents(conductance, x, wires, iv=iv).currents
        linear = x @ effective_conductance(conductance, wires)
        found.append(Linearised(ratio, float((linear - reference).norm() / reference.norm())))
    return tuple(found)


def section() -> str:
    """The page's part."""
    first = table(
        ["case", "reference", "float64", "float32"],
        [[e.case, e.reference, decade(e.double), decade(e.single)] for e in exactness()],
    )
    second = table(
        ["array", "ohm per segment", "fast: matrix", "fast: outputs", "wires left out: outputs"],
        [
            [f"{a.size} x {a.size}, {a.kind}", f"{a.ohm:g}", percent(a.matrix), percent(a.outputs), percent(a.ignored)]
            for a in approximations()
        ],
    )  # fmt: skip
    third = table(
        ["largest input / v0", "error of the linear array"],
        [[f"{row.ratio:g}", percent(row.error)] for row in linearised()],
    )
    note = "" if NGSPICE else "\nngspice was not installed where this page was made: its rows are missing.\n"
    return _TEXT.format(first=first, second=second, third=third, note=note)


_TEXT = """\
## 2. Wires

Errors relative to the largest value, rounded up to a power of ten; cells of 1 to 100 uS, seeds 21 and 22. The
references share no formula with the code under test: a sparse LU of Kirchhoff's equations stamped resistor by
resistor, and ngspice (`reltol=1e-9 gmin=1e-18 numdgt=14`) on decks that the tests write. Limits: 1e-9 in float64
(non-linear cells 1e-6), 1e-5 in float32.

{first}
{note}
`method: fast` keeps the direct paths; what wanders between lines it takes from lines of one node each, corrected along
them by a coarse array of 8 lines to a lump. Relative rms error against the exact method, both wires alike, one end
driven and one sensed; *mostly off*: nine cells in ten at 1 uS; seeds 21, 23, 24. Cells of 1 to 100 uS are within 0.6 %.
Where cells are much more unlike and conduct far more than their wires (the last lines), the matrix is off by up to 9 %
and outputs by up to 2 %: `method: exact` is for those.

{second}

Non-linear cells, I = G v0 sinh(V / v0), make every input vector a network of its own (`nonlinear.solve_currents`). A
`Crossbar` takes its cells as linear; what that costs in relative rms of the currents, 32 x 32 cells, 5 ohm segments:

{third}
"""
