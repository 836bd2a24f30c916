"""Arrays whose currents are not linear in the inputs: non-linear cells, and rows gated by their own input.

There no effective matrix exists and every input vector is a network of its own. With cell currents I, the cells'
voltage drops are V = x - I K_word - K_bit I, where K holds the wire resistance that two cells of a line share,
so only the cells are unknown and zero resistance is an ordinary case. Newton's method on that equation takes
each step by conjugate gradients on the symmetric system 1 + sqrt(D) K sqrt(D), D the cells' slopes dI/dV, whose
eigenvalues lie between 1 and a small number for any array that still works.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from nvcim.config import Settings
from nvcim.crossbar.wires import Wires, check_conductance
from nvcim.errors import ConfigError

CellCurve = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # (siemens, volts) -> (amperes, slope in siemens)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}  # some hundred roundings
LINEAR_REDUCTION = 1e-4  # by which a Newton step's linear solve shrinks the residual
LINEAR_ITERATIONS = 2000
CHUNK_CELLS = 1 << 18  # cells times vectors solved at once; a dozen tensors of this size are alive


def linear_cell(conductance: Tensor, volts: Tensor) -> tuple[Tensor, Tensor]:
    """I = G V and its slope; any shapes that broadcast."""
    return conductance * volts, conductance.expand_as(volts)


class SinhCell(Settings):
    """I = G v0 sinh(V / v0): the usual compact form of a filamentary or tunnelling cell; G is the slope at zero."""

    v0: float = Field(gt=0, allow_inf_nan=False, description="volt; the smaller, the less linear")

    def __call__(self, conductance: Tensor, volts: Tensor) -> tuple[Tensor, Tensor]:
        """Current in amperes and slope in siemens."""
        scaled = volts / self.v0
        return conductance * self.v0 * torch.sinh(scaled), conductance * torch.cosh(scaled)


@dataclass(frozen=True)
class Solution:
    """What `solve_currents` found.

    currents: [..., batch, cols], amperes. drops: [..., batch, rows, cols], volts across the cells, which a later
    call takes as `start`. iterations: Newton steps of the slowest vector. residual: the largest violation of
    Kirchhoff's laws, as a fraction of its vector's largest input.
    """

    currents: Tensor
    drops: Tensor
    iterations: int
    residual: float


def rows_on(voltages: Tensor) -> Tensor:
    """The rows whose access transistor its own input opens (1T1R): bool, as `voltages` [..., batch, rows]."""
    return voltages != 0


def solve_currents(
    conductance: Tensor,
    voltages: Tensor,
    wires: Wires,
    *,
    iv: CellCurve = linear_cell,
    gated: Tensor | None = None,
    tolerance: float | None = None,
    max_iterations: int = 60,
    start: Tensor | None = None,
) -> Solution:
    """Solve an array for each input vector on its own. Not differentiable.

    Args:
        conductance: [..., rows, cols], siemens, float32 or float64: the cells' slope at zero volt.
        voltages: [..., batch, rows], volts, same dtype and leading dimensions.
        wires: the resistances; `method` plays no part here.
        iv: a cell's current and slope, given its conductance and voltage; the current must rise with the voltage.
        gated: [..., batch, rows] bool, true where a row's cells are connected (see `rows_on`); None: all are.
        tolerance: residual to reach, relative to a vector's largest input; None: 1e-11 (float64), 1e-5 (float32).
        max_iterations: Newton steps allowed.
        start: cell voltages [..., batch, rows, cols] of an earlier `Solution`; None: the linear solution's.

    Raises:
        ConfigError: impossible conductances, shapes or numbers that do not fit, or no convergence.
    """
    check_conductance(conductance)
    _check(conductance, voltages, gated, start, tolerance, max_iterations)
    goal = TOLERANCE[voltages.dtype] if tolerance is None else tolerance
    *lead, rows, cols = conductance.shape
    batch = voltages.shape[-2]
    tiles, inputs = conductance.detach().reshape(-1, rows, cols), voltages.detach().reshape(-1, rows)
    on = None if gated is None else gated.reshape(-1, rows)
    guess = None if start is None else start.detach().reshape(-1, rows, cols)
    shared = _shared_resistances(rows, cols, wires, tiles)

    currents, drops = inputs.new_empty(len(inputs), cols), inputs.new_empty(len(inputs), rows, cols)
    iterations, residual = 0, 0.0
    tile_of = torch.arange(len(tiles), device=tiles.device).repeat_interleave(batch)
    for part in torch.split(
        torch.arange(len(inputs), device=tiles.device), max(1, CHUNK_CELLS // (rows * cols))
    ):
        cells = tiles[tile_of[part]]
        if on is not None:
            cells = cells * on[part, :, None]
        network = _Network(cells, inputs[part, :, None], *shared)
        begin = network.newton(linear_cell, network.ideal(), 0.01, 1)[0] if guess is None else guess[part]
        drops[part], steps, worst = network.newton(iv, begin, goal, max_iterations)
        if not worst <= goal:
            raise ConfigError(
                f"max_iterations: the array did not converge in {steps} steps, residual {worst:.2g}; "
                f"tolerance is {goal:.2g}"
            )
        currents[part] = iv(cells, drops[part])[0].sum(-2)
        iterations, residual = max(iterations, steps), max(residual, worst)
    return Solution(
        currents.reshape(*lead, batch, cols), drops.reshape(*lead, batch, rows, cols), iterations, residual
    )


def _check(
    conductance: Tensor,
    voltages: Tensor,
    gated: Tensor | None,
    start: Tensor | None,
    tolerance: float | None,
    max_iterations: int,
) -> None:
    """Refuse arguments that do not fit together."""
    *lead, rows, cols = conductance.shape
    if voltages.dim() < 2 or [*voltages.shape[:-2], voltages.shape[-1]] != [*lead, rows]:
        raise ConfigError(f"voltages: expected {[*lead, 'batch', rows]}, found {list(voltages.shape)}")
    if voltages.dtype != conductance.dtype:
        raise ConfigError(
            f"voltages: expected {conductance.dtype}, as the conductances, found {voltages.dtype}"
        )
    if not bool(torch.isfinite(voltages).all()):
        raise ConfigError("voltages: every value must be finite (volt), found NaN or infinity")
    if gated is not None and (gated.dtype != torch.bool or gated.shape != voltages.shape):
        raise ConfigError(
            f"gated: expected bool {list(voltages.shape)}, found {gated.dtype} {list(gated.shape)}"
        )
    if start is not None and (start.dtype != voltages.dtype or start.shape != (*voltages.shape, cols)):
        raise ConfigError(
            f"start: expected {voltages.dtype} {[*voltages.shape, cols]}, found {start.dtype} {list(start.shape)}"
        )
    if tolerance is not None and not (tolerance > 0 and math.isfinite(tolerance)):
        raise ConfigError(f"tolerance: must be a number above 0, found {tolerance}")
    if max_iterations < 1:
        raise ConfigError(f"max_iterations: must be at least 1, found {max_iterations}")


def _shared_resistances(rows: int, cols: int, wires: Wires, like: Tensor) -> tuple[Tensor, Tensor]:
    """Wire resistance in ohm that two cells of a word line [cols, cols] and of a bit line [rows, rows] share."""
    word = _shared(cols, wires.r_driver_ohm + wires.r_word_ohm, wires.r_word_ohm, wires.drive == "both")
    bit = _shared(rows, wires.r_sense_ohm + wires.r_bit_ohm, wires.r_bit_ohm, wires.sense == "both")
    if wires.drive == "right":
        word = word.flip(0, 1)
    if wires.sense == "bottom":
        bit = bit.flip(0, 1)
    return word.to(like), bit.to(like)


def _shared(cells: int, end: float, segment: float, both: bool) -> Tensor:
    """Transfer resistances [cells, cells] of a line: the drop at one cell per ampere that another one draws."""
    here = end + segment * torch.arange(cells, dtype=torch.float64)
    least = torch.minimum(here[:, None], here)
    length = 2 * end + segment * (cells - 1)
    if not both or length == 0:
        return least
    beyond = here.flip(0)  # from a cell to the far end, of which the farther cell has less
    return least * torch.minimum(beyond[:, None], beyond) / length


@dataclass(frozen=True)
class _Network:
    """Arrays solved together: cells [vectors, rows, cols], inputs [vectors, rows, 1], shared wire resistances."""

    cells: Tensor
    inputs: Tensor
    word: Tensor
    bit: Tensor

    def ideal(self) -> Tensor:
        """Cell voltages of ideal wires."""
        return self.inputs.expand_as(self.cells)

    def wire_drop(self, currents: Tensor) -> Tensor:
        """Volts lost on the wires at each cell, for all cells' currents."""
        return currents @ self.word + self.bit @ currents

    def newton(self, iv: CellCurve, drops: Tensor, goal: float, steps: int) -> tuple[Tensor, int, float]:
        """Cell voltages after at most `steps` Newton steps, the steps taken, and the worst relative residual."""
        scale = self.inputs.abs().amax((1, 2), keepdim=True)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        current, slope = iv(self.cells, drops)
        error = self.inputs - drops - self.wire_drop(current)
        worst = error.abs().amax((1, 2), keepdim=True) / scale
        for step in range(steps):
            open_vectors = ~(worst <= goal)
            if not bool(open_vectors.any()):
                return drops, step, float(worst.max())
            move = self._step(slope, error * open_vectors, 0.3 * goal * scale)
            drops, current, slope, error = self._line_search(iv, drops, move, error)
            worst = error.abs().amax((1, 2), keepdim=True) / scale
        return drops, steps, float(worst.max())

    def _line_search(
        self, iv: CellCurve, drops: Tensor, move: Tensor, error: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take the step, halved for each vector until its residual falls; returns voltages, I, dI/dV, residual."""
        length = torch.ones_like(self.inputs[:, :1])
        before = error.norm(dim=(1, 2), keepdim=True)
        for _ in range(30):
            tried = drops + length * move
            current, slope = iv(self.cells, tried)
            left = self.inputs - tried - self.wire_drop(current)
            # A vector that has converged does not move, and must not hold up the others.
            worse = ~(left.norm(dim=(1, 2), keepdim=True) <= before)
            worse &= move.abs().amax((1, 2), keepdim=True) > 0
            if not bool(worse.any()):
                break
            length = torch.where(worse, length / 2, length)
        return tried, current, slope, left

    def _step(self, slope: Tensor, error: Tensor, floor: Tensor) -> Tensor:
        """Newton's step dV of (1 + K D) dV = error, through z of (1 + s K s) z = s error with s = sqrt(D).

        Each vector stops on its own, at `LINEAR_REDUCTION` of its error or at `floor` volts.
        """
        root = slope.sqrt()
        left = root * error
        # |s e| below the largest s times the floor means that no entry of e that matters exceeds the floor.
        square = left.square().sum((1, 2), keepdim=True)
        target = torch.maximum(
            LINEAR_REDUCTION**2 * square, (floor * root.amax((1, 2), keepdim=True)).square() * 0.01
        )
        found, direction = torch.zeros_like(left), left
        for _ in range(LINEAR_ITERATIONS):
            going = square > target
            if not bool(going.any()):
                break
            image = direction + root * self.wire_drop(root * direction)
            along = (direction * image).sum((1, 2), keepdim=True)
            size = torch.where(going, square / along, torch.zeros_like(square))
            found = found + size * direction
            left = left - size * image
            after = torch.where(going, left.square().sum((1, 2), keepdim=True), square)
            direction = left + torch.where(going, after / square, torch.zeros_like(square)) * direction
            square = after
        return error - self.wire_drop(root * found)
