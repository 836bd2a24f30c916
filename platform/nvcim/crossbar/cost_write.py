"""What writing a matrix into its cells costs, and keeping it there by writing it again every so often.

Arrays are written at once; within an array one word line after the other, the cells of a word line together.
Everything is modelled.
"""

from dataclasses import dataclass

from pydantic import Field, NonNegativeFloat, PositiveFloat

from nvcim.config import Settings
from nvcim.crossbar.cost import Geometry, conversion_energy, layout, read_energy, stage_times
from nvcim.crossbar.cost_constants import CostConstants
from nvcim.crossbar.cost_table import NOTHING, CostRow, CostTable, Figure
from nvcim.errors import ConfigError


class CellWrite(Settings):
    """What writing one cell takes; None where no source gives it.

    `energy` is of a whole write, `pulse_time` of one of its pulses; `pulses` is their mean number (1 for an
    open-loop write, more for write-verify), `endurance` the writes that a cell survives.
    """

    energy: NonNegativeFloat | None = Field(description="joules of one write", allow_inf_nan=False)
    pulse_time: NonNegativeFloat | None = Field(description="seconds of one pulse", allow_inf_nan=False)
    pulses: PositiveFloat | None = Field(allow_inf_nan=False)
    endurance: PositiveFloat | None = Field(default=None, allow_inf_nan=False)


def write_cost(
    geometry: Geometry,
    constants: CostConstants,
    write: CellWrite,
    *,
    verify_reads: float = 0.0,
    mean_conductance: float | None = None,
    mean_square_voltage: float | None = None,
) -> CostTable:
    """Energy and latency of writing the whole matrix once.

    Args:
        geometry: the matrix on its arrays.
        constants: what reads and conversions cost.
        write: what one cell's write takes.
        verify_reads: mean number of reads per cell that check it, each with one ADC conversion; 0 for an
            open-loop write.
        mean_conductance: siemens, of the cells that a check reads.
        mean_square_voltage: volts squared, of a check's read pulse.

    Returns:
        Rows `write` and, with checks, `verify array` and `verify adc`. Area of write drivers is unknown;
        that of the rest is in the table of a product.

    Raises:
        ConfigError: a weight that does not fit an array, or a negative number of checks.
    """
    if not verify_reads >= 0:
        raise ConfigError(f"verify_reads is {verify_reads}; allowed: 0 or more")
    plan = layout(geometry)
    lines = min(geometry.rows, geometry.in_features)
    energy = _known(write.energy, "write energy: the device's is not published")
    pulse_time = _known(write.pulse_time, "pulse_time: the device's is not published")
    pulses = _known(write.pulses, "pulses: how many a write of the device takes is not published")
    rows = [
        CostRow(
            "write",
            energy * plan.used_cells,
            pulse_time * pulses * lines,
            Figure.unknown("area of write drivers and level shifters: no source at hand"),
            plan.used_cells,
            note="word lines in turn, the cells of one together, all arrays at once",
        )
    ]
    if verify_reads:
        checks = verify_reads * plan.used_cells
        cells = read_energy(1, constants, mean_conductance, mean_square_voltage)
        # A check digitises single cells, so all bit lines of an ADC come in turn, whatever is added later.
        every = geometry.model_copy(update={"accumulate": "digital"})
        read, convert, _ = stage_times(every, layout(every), constants)
        in_array = "counted with the product"
        rows += [
            CostRow(
                "verify array",
                cells * checks,
                read * (verify_reads * lines),
                NOTHING,
                round(checks),
                note=in_array,
            ),
            CostRow(
                "verify adc",
                conversion_energy(geometry, constants) * checks,
                convert * (verify_reads * lines),
                NOTHING,
                round(checks),
                note=in_array,
            ),
        ]
    return CostTable(tuple(rows))


@dataclass(frozen=True)
class Refresh:
    """A matrix that is written again every `period` seconds: power (W), busy part of the time, lifetime (s).

    `lifetime` is when cells have had as many writes as they survive.
    """

    period: float
    power: Figure
    busy: Figure
    lifetime: Figure


def refresh_cost(table: CostTable, write: CellWrite, period: float) -> Refresh:
    """Cost of repeating a write (`write_cost`'s table) every `period` seconds.

    Raises:
        ConfigError: a period that is not positive, or shorter than the write itself.
    """
    if not period > 0:
        raise ConfigError(f"refresh period is {period} s; allowed: more than 0")
    once = table.total()
    if once.latency.value is not None and once.latency.value > period:
        raise ConfigError(f"refresh period is {period} s, but a write takes {once.latency.value:.3g} s")
    endurance = _known(write.endurance, "endurance: the device's is not published")
    every = Figure(1.0 / period)
    return Refresh(period, once.energy * every, once.latency * every, endurance * period)


def _known(value: float | None, reason: str) -> Figure:
    return Figure.unknown(reason) if value is None else Figure(value)
