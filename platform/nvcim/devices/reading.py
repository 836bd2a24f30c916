"""Noise of one read of a cell: thermal, shot and 1/f noise, and flat terms for what is known only as a percentage.

Noise currents of a conductance G read at a voltage V in a bandwidth df (Nyquist 1928; Schottky 1918) are divided by
V to give the variance of the conductance that the read sees:

    thermal  4 k T G df / V^2        shot  2 q I df / V^2 = 2 q G df / V
"""

import math

from pydantic import Field, model_validator
from torch import Tensor

from nvcim.config import Settings
from nvcim.devices.cell import CellDevice
from nvcim.devices.conductance import by_level, conductance_range, relative_to_max, to_siemens
from nvcim.devices.effects import NonNegative, Positive, ReadNoise
from nvcim.errors import ConfigError

BOLTZMANN = 1.380649e-23
"""Joules per kelvin, exact in the SI of 2019."""

ELEMENTARY_CHARGE = 1.602176634e-19
"""Coulombs, exact in the SI of 2019."""


class ReadCondition(Settings):
    """How cells are read. Without voltage and bandwidth there is no thermal and no shot noise.

    `elapsed_s` is the age of the 1/f noise, counted from its `t0_s` after the write; the cell does not age by it.
    """

    voltage_v: Positive | None = Field(default=None, description="read voltage across a cell")
    bandwidth_hz: Positive | None = Field(default=None, description="noise bandwidth of the sensing circuit")
    temperature_k: Positive = 300.0
    relative: NonNegative = Field(default=0.0, description="sigma of a read, relative to the conductance")
    full_range: NonNegative = Field(default=0.0, description="sigma of a read, as a fraction of the range")
    elapsed_s: NonNegative = 0.0

    @model_validator(mode="after")
    def _check_pair(self) -> "ReadCondition":
        if (self.voltage_v is None) != (self.bandwidth_hz is None):
            raise ValueError(
                "thermal and shot noise need both voltage_v and bandwidth_hz; give both or neither"
            )
        return self


def read_variance(
    conductance: Tensor, cell: CellDevice, condition: ReadCondition, written: Tensor | None = None
) -> Tensor:
    """Variance of one read of each cell, in units of the squared conductance range.

    The terms are independent and add up: thermal and shot noise if the condition has a voltage, 1/f noise if
    the cell has `read_noise`, the flat terms as given. `relative` is of the absolute conductance; where g_min
    and g_max are unknown, of the normalised one, as if the cell turned off fully at 0.

    Args:
        conductance: normalised, as it stands when it is read; any shape.
        cell: the device.
        condition: how it is read.
        written: what was written, at which the 1/f coefficient is taken; left out, `conductance`.

    Returns:
        Like `conductance`, never negative.

    Raises:
        ConfigError: thermal and shot noise of a cell whose g_min or g_max is unknown.
    """
    squared = _above_zero(conductance, cell).square()
    variance = squared * condition.relative**2 + condition.full_range**2
    if cell.read_noise is not None:
        start = conductance if written is None else written
        variance = variance + squared * flicker_share(start, cell, cell.read_noise, condition.elapsed_s)
    if condition.voltage_v is not None and condition.bandwidth_hz is not None:
        g_min, g_max = conductance_range(cell)
        siemens = to_siemens(conductance, cell).clamp(min=0)
        thermal = 4 * BOLTZMANN * condition.temperature_k / condition.voltage_v**2
        shot = 2 * ELEMENTARY_CHARGE / condition.voltage_v
        # Scaled before the product: float32 ends near 1e-38, and the variance in siemens^2 lies close to it.
        variance = variance + siemens * ((thermal + shot) * condition.bandwidth_hz / (g_max - g_min) ** 2)
    return variance


def flicker_share(written: Tensor, cell: CellDevice, noise: ReadNoise, elapsed_s: float) -> Tensor:
    """Variance of the 1/f noise of one read, relative to the squared conductance (see `ReadNoise`).

    This is the noise integrated since the write. Its slow part persists from one read to the next, so a fresh
    draw for every read has the right spread over cells and too little correlation in time.

    Args:
        written: normalised conductance that was written; any shape.
        cell: gives levels and range.
        noise: the coefficient Q.
        elapsed_s: time since `noise.t0_s` after the write.

    Returns:
        Like `written`.

    Raises:
        ConfigError: the cell's g_min or g_max is unknown, or `elapsed_s` is negative.
    """
    if not elapsed_s >= 0:
        raise ConfigError(f"elapsed_s must not be negative (given: {elapsed_s})")
    if noise.coefficient is not None:
        coefficient = by_level(written, cell, noise.coefficient)
    else:
        assert noise.law is not None  # ReadNoise holds one of the two
        power = relative_to_max(written, cell).pow(-noise.law.exponent)
        coefficient = (power * noise.law.scale).clamp(max=noise.law.cap)
    time = noise.t0_s + elapsed_s
    return coefficient.square() * math.log((time + noise.t_read_s) / (2 * noise.t_read_s))


def _above_zero(conductance: Tensor, cell: CellDevice) -> Tensor:
    """Distance from zero siemens in units of the range; normalised zero stands for it where the range is unknown."""
    if cell.g_min is None or cell.g_max is None:
        return conductance
    return conductance + cell.g_min / (cell.g_max - cell.g_min)
