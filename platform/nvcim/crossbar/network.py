"""Arrays that no matrix describes: non-linear cells, and rows that their own input connects, behind real wires.

Such arrays are solved vector by vector (nonlinear.py), plane by plane. Non-linear cells behind ideal wires need no
solver: their current is the conductance times sinh of the input, so a read is a product once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sinh

import torch
from torch import Tensor

from nvcim.crossbar.collapse import aged, raised_conductance
from nvcim.crossbar.nonlinear import SinhCell, linear_cell, rows_on, solve_currents
from nvcim.crossbar.programming import Writing, write_cells
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.crossbar.wires import Wires
from nvcim.devices.conductance import conductance_range
from nvcim.errors import ConfigError

# Cell voltages solved at once (64 MiB of float32).
_CELLS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Network:
    """The planes of some devices as circuits.

    Attributes:
        siemens: [devices, planes, in, out].
        worth: per group, (plane, what a plane's normalised current counts) of its planes.
        scale: [devices, 1, out], of the weights.
        span: conductance range, siemens.
        wires: of every array; None: ideal.
        v0: of the cells' sinh, volts; None: linear cells.
        gated: whether a row is connected only while its input is not zero.
        volts: what the full scale of the DAC drives.
        rows, cols: of a tile.
    """

    siemens: Tensor
    worth: tuple[tuple[tuple[int, float], ...], ...]
    scale: Tensor
    span: float
    wires: Wires | None
    v0: float | None
    gated: bool
    volts: float
    rows: int
    cols: int

    def to(self, device: torch.device | str) -> "Network":
        """Move the tensors."""
        return replace(self, siemens=self.siemens.to(device), scale=self.scale.to(device))

    @staticmethod
    def stack(members: Sequence["Network"]) -> "Network":
        """Put the devices of several networks, of one span and voltage, one after the other.

        Raises:
            ConfigError: cells of other kinds, or other wires.
        """
        first = members[0]
        if any(
            (one.span, one.v0, one.worth, one.wires) != (first.span, first.v0, first.worth, first.wires)
            for one in members
        ):
            raise ConfigError(
                "crossbars of non-linear or gated cells can be stacked only if their cells are alike"
            )
        siemens, scale = ([getattr(one, name) for one in members] for name in ("siemens", "scale"))
        return replace(first, siemens=torch.cat(siemens), scale=torch.cat(scale))

    def products(self, inputs: Tensor, full_scale: Tensor, devices: slice, group: int) -> Tensor:
        """What the bit lines of a group carry, in the units of `reading.tile_products`.

        Args:
            inputs: [devices or 1, vectors, in].
            full_scale: [devices or 1, vectors, 1], the input that drives `volts`.
            devices: which ones.
            group: which slices.

        Returns:
            [devices, row tiles, vectors, out].
        """
        siemens, unit = (
            self.siemens[devices],
            full_scale.clamp(min=torch.finfo(torch.float32).tiny) / self.volts,
        )
        count, _, size, outputs = siemens.shape
        volts = (inputs / unit).expand(count, -1, -1)
        starts = range(0, size, self.rows)
        part = torch.zeros(count, len(starts), inputs.shape[1], outputs, device=inputs.device)
        for plane, worth in self.worth[group]:
            for tile, start in enumerate(starts):
                rows = slice(start, min(start + self.rows, size))
                for left in range(0, outputs, self.cols):
                    columns = slice(left, min(left + self.cols, outputs))
                    currents = self._currents(siemens[:, plane, rows, columns], volts[..., rows])
                    part[:, tile, :, columns] += currents * worth
        return part * (self.scale[devices, None] * unit[:, None] / self.span)

    def seen(self, inputs: Tensor, full_scale: Tensor) -> Tensor:
        """What a change of conductance is multiplied by, in units of the inputs: them, or the cells' sinh of them.

        Exact behind ideal wires. Arguments as `products`; returns a tensor like `inputs`.
        """
        if self.v0 is None:
            return inputs
        unit = full_scale.clamp(min=torch.finfo(torch.float32).tiny) / self.volts
        return torch.sinh(inputs / unit / self.v0) * (self.v0 * unit)

    def _currents(self, siemens: Tensor, volts: Tensor) -> Tensor:
        """Sensed currents [devices, vectors, cols] of one array per device, [devices, rows, cols], for given volts."""
        curve = linear_cell if self.v0 is None else SinhCell(v0=self.v0)
        if self.wires is None:
            assert self.v0 is not None  # linear cells behind ideal wires are no network
            return torch.sinh(volts / self.v0) * self.v0 @ siemens
        some = max(1, _CELLS_AT_ONCE // siemens.numel())
        solved = []
        for part in torch.split(volts, some, dim=1):
            gated = rows_on(part) if self.gated else None
            solved.append(solve_currents(siemens, part, self.wires, iv=curve, gated=gated).currents)
        return torch.cat(solved, dim=1)


def make_network(writing: Writing, config: CrossbarConfig, elapsed_s: float) -> Network | None:
    """The circuit of written arrays, or None where a matrix describes them.

    Raises:
        ConfigError: `cell_current: device` for a cell without v0, or a cell of unknown conductance.
    """
    cell, mapping = config.cell(), config.mapping()
    if config.cell_current == "device" and cell.v0 is None:
        raise ConfigError(f"cell_current: device needs a cell with v0; {cell.name} has none, allowed: linear")
    if config.cell_current == "linear" and not (config.gated_rows and config.wires):
        return None
    g_min, g_max = conductance_range(cell)
    conductance = aged(write_cells(writing, config), writing, config, elapsed_s)
    raised, _ = raised_conductance(conductance, writing, config)
    slices = len(mapping.slices)
    planes = [
        tuple(
            (side * slices + index, sign * (1.0 if config.accumulate == "digital" else piece.factor))
            for side, sign in enumerate(mapping.signs)
        )
        for index, piece in enumerate(mapping.slices)
    ]
    worth = (
        tuple(planes)
        if config.accumulate == "digital"
        else (tuple(pair for group in planes for pair in group),)
    )
    return Network(
        siemens=(raised * (g_max - g_min)).clamp(min=0),
        worth=worth,
        scale=writing.scale,
        span=g_max - g_min,
        wires=config.wires,
        v0=cell.v0 if config.cell_current == "device" else None,
        gated=config.gated_rows,
        volts=config.read_voltage_v or 1.0,
        rows=config.rows,
        cols=config.cols,
    )


def largest_gain(config: CrossbarConfig) -> float:
    """How much more than Ohm's law a cell conducts at the DAC's full scale: sinh(u) / u with u = V / v0; else 1."""
    v0 = config.cell().v0
    if config.cell_current == "linear" or v0 is None or config.read_voltage_v is None:
        return 1.0
    return sinh(config.read_voltage_v / v0) / (config.read_voltage_v / v0)


def read_method(config: CrossbarConfig) -> str:
    """How reads of such an array are computed, and why: one line."""
    if config.wires is None:
        return "matrix product" if config.cell_current == "linear" else "matrix product of sinh(V / v0)"
    if config.cell_current == "device":
        return "iterative solver, because the cells are not linear"
    if config.gated_rows:
        return "iterative solver, because the inputs connect the rows"
    return f"matrix product, with the wires folded into an effective matrix ({config.wires.method})"
