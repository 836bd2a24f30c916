"""Normalised conductance and siemens, and what changes a conductance at once: temperature, process, voltage.

A normalised conductance c means G = g_min + c (g_max - g_min).
"""

import torch
from torch import Tensor

from nvcim.devices.cell import CellDevice
from nvcim.errors import ConfigError


def conductance_range(cell: CellDevice) -> tuple[float, float]:
    """g_min and g_max of a cell, siemens.

    Raises:
        ConfigError: no source gives them.
    """
    if cell.g_min is None or cell.g_max is None:
        raise ConfigError(
            f"device {cell.name}: g_min and g_max are unknown, and this needs siemens; "
            "give both in a catalogue of your own, or g_min_us and g_max_us in the settings of the crossbar"
        )
    return cell.g_min, cell.g_max


def to_siemens(conductance: Tensor, cell: CellDevice) -> Tensor:
    """Normalised conductance, any shape -> siemens, same shape.

    Raises:
        ConfigError: the cell's g_min or g_max is unknown.
    """
    g_min, g_max = conductance_range(cell)
    return conductance * (g_max - g_min) + g_min


def from_siemens(siemens: Tensor, cell: CellDevice) -> Tensor:
    """Siemens, any shape -> normalised conductance, same shape.

    Raises:
        ConfigError: the cell's g_min or g_max is unknown.
    """
    g_min, g_max = conductance_range(cell)
    return (siemens - g_min) / (g_max - g_min)


def scaled(conductance: Tensor, factor: Tensor | float, cell: CellDevice) -> Tensor:
    """Multiply the absolute conductance: normalised conductance and factor (broadcast) -> normalised conductance.

    Raises:
        ConfigError: the cell's g_min or g_max is unknown.
    """
    g_min, g_max = conductance_range(cell)
    floor = g_min / (g_max - g_min)
    return (conductance + floor) * factor - floor


def relative_to_max(conductance: Tensor, cell: CellDevice) -> Tensor:
    """G / g_max of a normalised conductance, at least 1e-7: the argument of the laws in `effects`.

    The floor keeps a logarithm finite; a write can also land below zero siemens in a Gaussian's tail.

    Raises:
        ConfigError: the cell's g_min or g_max is unknown.
    """
    return (to_siemens(conductance, cell) / conductance_range(cell)[1]).clamp(min=1e-7)


def by_level(conductance: Tensor, cell: CellDevice, values: tuple[float, ...]) -> Tensor:
    """Values given per level (or one for all) at any normalised conductance: linear in between, flat beyond the ends.

    Args:
        conductance: normalised, any shape.
        cell: gives `level_conductance`.
        values: one value, or one per level.

    Returns:
        Like `conductance`.
    """
    if len(values) == 1:
        return torch.full_like(conductance, values[0])
    nodes = conductance.new_tensor(cell.level_conductance)
    table = conductance.new_tensor(values)
    above = torch.searchsorted(nodes, conductance.contiguous()).clamp(1, len(values) - 1)
    share = (conductance - nodes[above - 1]) / (nodes[above] - nodes[above - 1])
    return torch.lerp(table[above - 1], table[above], share.clamp(0, 1))


def at_temperature(conductance: Tensor, kelvin: float, cell: CellDevice) -> Tensor:
    """Conductance at another temperature: G (1 + coefficient (T - reference)), never below zero siemens.

    Args:
        conductance: normalised, at the reference temperature; any shape.
        kelvin: the temperature.
        cell: needs `temperature`.

    Raises:
        ConfigError: the cell has no temperature coefficient, or `kelvin` is not positive.
    """
    if cell.temperature is None:
        raise ConfigError(f"device {cell.name}: temperature is unknown; give its coefficient_per_k")
    if not kelvin > 0:
        raise ConfigError(f"kelvin must be positive (given: {kelvin})")
    coefficient = by_level(conductance, cell, cell.temperature.coefficient_per_k)
    factor = coefficient * (kelvin - cell.temperature.reference_k) + 1
    return scaled(conductance, factor.clamp_(min=0), cell)


def cell_current(voltage: Tensor, siemens: Tensor, cell: CellDevice) -> Tensor:
    """Current through cells, amperes: G V, or G v0 sinh(V / v0) for a cell with `v0`.

    Both agree at small voltages. `voltage` (volts) and `siemens` broadcast; either sign of voltage.
    """
    if cell.v0 is None:
        return voltage * siemens
    return torch.sinh(voltage / cell.v0) * cell.v0 * siemens
