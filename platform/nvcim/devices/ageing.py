"""What time does to a written cell: drift, loss of retention, and a random walk away from the target.

Each effect counts `elapsed_s` from its own `t0_s` after the write, the moment at which its source first read the cells:
at 0 nothing has changed yet. `elapsed_s` is a number or a tensor that broadcasts (a clock per device).
"""

import math

import torch
from torch import Tensor

from nvcim.devices.cell import CellDevice
from nvcim.devices.conductance import by_level, conductance_range, relative_to_max, scaled
from nvcim.devices.effects import Drift, LogLaw, Relaxation, SigmaLaw
from nvcim.errors import ConfigError


def drift_exponents(conductance: Tensor, cell: CellDevice, normals: Tensor) -> Tensor:
    """Draw each cell's drift exponent: |mean + sd * normal|, with mean and sd of the level that was written.

    The absolute value keeps the rare negative draw from raising a conductance, as in IBM's aihwkit.

    Args:
        conductance: normalised target of the write; any shape.
        cell: needs `drift`.
        normals: standard normal draws, like `conductance`.

    Returns:
        Exponents >= 0, like `conductance`.

    Raises:
        ConfigError: the cell has no drift.
    """
    drift = _drift_of(cell)
    mean = _exponent(conductance, cell, drift.exponent_mean, drift.mean_law)
    spread = _exponent(conductance, cell, drift.exponent_sd, drift.sd_law)
    return torch.addcmul(mean, spread, normals).abs_()


def drifted(conductance: Tensor, exponents: Tensor, elapsed_s: float | Tensor, cell: CellDevice) -> Tensor:
    """Conductance after drift: G (1 + elapsed / t0)^-exponent, in siemens above zero.

    Args:
        conductance: normalised, as written (read at t0); any shape.
        exponents: from `drift_exponents`, like `conductance`.
        elapsed_s: seconds since t0.
        cell: needs `drift`.

    Returns:
        Normalised conductance like `conductance`; below 0 where a cell drifts below g_min.

    Raises:
        ConfigError: the cell has no drift, or `elapsed_s` is negative.
    """
    growth = torch.log1p(_elapsed(elapsed_s, conductance) / _drift_of(cell).t0_s)
    return scaled(conductance, torch.exp(-exponents * growth), cell)


def retained(conductance: Tensor, elapsed_s: float | Tensor, cell: CellDevice) -> Tensor:
    """Conductance after loss of retention: G max(1 - loss log10(1 + elapsed / t0), 0), the loss of its level.

    Args:
        conductance: normalised, as written; any shape.
        elapsed_s: seconds since the retention's t0.
        cell: needs `retention`.

    Returns:
        Normalised conductance like `conductance`.

    Raises:
        ConfigError: the cell has no retention data, or `elapsed_s` is negative.
    """
    retention = cell.retention
    if retention is None:
        raise ConfigError(f"device {cell.name}: retention is unknown; give its loss_per_decade")
    decades = torch.log1p(_elapsed(elapsed_s, conductance) / retention.t0_s) / math.log(10)
    loss = by_level(conductance, cell, retention.loss_per_decade)
    return scaled(conductance, (1 - loss * decades).clamp(min=0), cell)


def relaxation_spread(written: Tensor, elapsed_s: float | Tensor, cell: CellDevice) -> Tensor:
    """Spread that relaxation has added to the write's own, in normalised conductance.

    At the times of the source it is sqrt(spread(t)^2 - spread(t_0)^2), never less than at an earlier time (fits to
    figures can cross); in between it is linear in ln t, after the last time constant.

    Args:
        written: normalised target of the write; any shape.
        elapsed_s: seconds since the first of `times_s`.
        cell: needs `relaxation`.

    Returns:
        Standard deviation like `written`; it does not depend on the global sigma of writing.

    Raises:
        ConfigError: the cell has no relaxation data, or `elapsed_s` is negative.
    """
    relaxation = _relaxation_of(cell)
    times = relaxation.times_s
    age = torch.log1p(_elapsed(elapsed_s, written) / times[0])
    first = _spread(written, relaxation.spread[0], cell).square()
    spread = before = torch.zeros_like(written)
    for index in range(1, len(times)):
        start, span = math.log(times[index - 1] / times[0]), math.log(times[index] / times[index - 1])
        here = _spread(written, relaxation.spread[index], cell).square()
        after = torch.maximum((here - first).clamp(min=0).sqrt(), before)
        spread = spread + (after - before) * ((age - start) / span).clamp(0, 1)
        before = after
    return spread


def relaxed(
    conductance: Tensor, written: Tensor, normals: Tensor, elapsed_s: float | Tensor, cell: CellDevice
) -> Tensor:
    """Conductance after relaxation: each cell has moved by its own standard normal times `relaxation_spread`.

    The same `normals` at every age let a cell move on along its path.

    Args:
        conductance: normalised, as it stood right after the write; any shape.
        written: normalised target of the write, like `conductance`.
        normals: standard normal draws, like `conductance`, independent of the write's own.
        elapsed_s: seconds since the first of `times_s`.
        cell: needs `relaxation`.

    Returns:
        Normalised conductance like `conductance`; as for a write, not clipped.

    Raises:
        ConfigError: the cell has no relaxation data, or `elapsed_s` is negative.
    """
    return torch.addcmul(conductance, relaxation_spread(written, elapsed_s, cell), normals)


def _spread(written: Tensor, law: SigmaLaw, cell: CellDevice) -> Tensor:
    """The law of a spread at a normalised conductance, as a fraction of the range."""
    g_min, g_max = conductance_range(cell)
    relative = relative_to_max(written, cell)
    total = torch.zeros_like(relative)
    for coefficient in reversed(law.coefficients_us):
        total = total * relative + coefficient
    return total.clamp_(min=0) * (1e-6 / (g_max - g_min))


def _exponent(
    conductance: Tensor, cell: CellDevice, values: tuple[float, ...] | None, law: LogLaw | None
) -> Tensor:
    if values is not None:
        return by_level(conductance, cell, values)
    assert law is not None  # Drift holds one of the two
    return (relative_to_max(conductance, cell).log() * law.slope + law.offset).clamp(law.low, law.high)


def _elapsed(elapsed_s: float | Tensor, like: Tensor) -> Tensor:
    elapsed = torch.as_tensor(elapsed_s, dtype=like.dtype, device=like.device)
    if not bool((elapsed >= 0).all()):
        raise ConfigError("elapsed_s must not be negative")
    return elapsed


def _drift_of(cell: CellDevice) -> Drift:
    if cell.drift is None:
        raise ConfigError(f"device {cell.name}: drift is unknown; give its exponents")
    return cell.drift


def _relaxation_of(cell: CellDevice) -> Relaxation:
    if cell.relaxation is None:
        raise ConfigError(f"device {cell.name}: relaxation is unknown; give times_s and spread")
    return cell.relaxation
