"""From planes of cells to the linear map that a read sees: ageing, process variation, wires, shift-and-add.

Everything that happens before the ADC is linear, so it is done once, when cells are written or the clock moves on: a
read then costs the same with and without it. Independent Gaussian reads of the cells add up to one Gaussian per output,
with the variance given here; with wires each cell's variance is scaled by the square of what its wires leave of it,
which is approximate (docs/fidelity.md has the error).
"""

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar import streams
from nvcim.crossbar.counter_rng import normals
from nvcim.crossbar.effective import effective_conductance
from nvcim.crossbar.mapping import Mapping
from nvcim.crossbar.programming import Cells, Writing, level_tables
from nvcim.crossbar.remapping import in_array, seen_by_weights
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.devices import CellDevice
from nvcim.devices.ageing import drift_exponents, drifted, relaxed, retained
from nvcim.devices.conductance import at_temperature, conductance_range
from nvcim.devices.faults import array_factor, with_stuck
from nvcim.devices.reading import read_variance


class Effective(NamedTuple):
    """Both [devices, groups, in, out]: a group per slice that has its own ADC, one in all with analog accumulation.

    weight: outputs are inputs @ weight. variance: inputs**2 @ variance is the variance of an output; None without
    read noise that depends on the cell.
    """

    weight: Tensor
    variance: Tensor | None


def background(cell: CellDevice) -> float:
    """g_min in units of the conductance range; 0 where the range is unknown, as if the cell turned off fully."""
    return 0.0 if cell.g_min is None or cell.g_max is None else cell.g_min / (cell.g_max - cell.g_min)


def aged(cells: Cells, writing: Writing, config: CrossbarConfig, elapsed_s: float) -> Tensor:
    """Normalised conductance of cells [devices, planes, in, out] some time after the write, at the set temperature."""
    cell, conductance = config.cell(), cells.conductance
    if elapsed_s > 0:
        nominal = level_tables(cell, config)[0].to(conductance.device)[cells.levels]
        if cell.relaxation is not None:
            moved = _age_draws(writing, conductance.shape, 1)
            conductance = relaxed(conductance, nominal, moved, elapsed_s, cell)
        if cell.retention is not None:
            conductance = retained(conductance, elapsed_s, cell)
        if cell.drift is not None:
            exponents = drift_exponents(nominal, cell, _age_draws(writing, conductance.shape, 0))
            conductance = drifted(conductance, exponents, elapsed_s, cell)
    if config.temperature_k is not None:
        conductance = at_temperature(conductance, config.temperature_k, cell)
    return conductance if cells.stuck is None else with_stuck(conductance, cells.stuck)


def _age_draws(writing: Writing, shape: torch.Size, kind: int) -> Tensor:
    planes = [
        normals(writing.keys, streams.AGE + 2 * plane + kind, writing.writes, shape[2] * shape[3])
        for plane in range(shape[1])
    ]
    return torch.cat(planes, dim=1).reshape(shape)


def cell_variance(
    conductance: Tensor, cells: Cells, config: CrossbarConfig, elapsed_s: float
) -> Tensor | None:
    """Variance of one read of each cell, like `conductance`, in units of the squared range; None without noise."""
    if not config.noisy:
        return None
    nominal = level_tables(config.cell(), config)[0].to(conductance.device)[cells.levels]
    return noise_variance(conductance, nominal, config, elapsed_s)


def noise_variance(
    conductance: Tensor, written: Tensor, config: CrossbarConfig, elapsed_s: float = 0.0
) -> Tensor:
    """Variance of one read of each cell for settings with read noise, in units of the squared range.

    Args:
        conductance: normalised, as it stands; any shape.
        written: like `conductance`: what was to be written.
        config: its noise; `read.elapsed_s` is there at the first read, `elapsed_s` comes on top.
        elapsed_s: seconds that the array has aged.

    Raises:
        ConfigError: as `CrossbarConfig.read_condition`; thermal and shot noise of a cell of unknown conductance.
    """
    condition, cell = config.read_condition(), config.cell()
    assert condition is not None
    if config.read is None:  # then only the settings' own terms are asked for, not the device's 1/f noise
        cell = cell.model_copy(update={"read_noise": None})
    late = condition.model_copy(update={"elapsed_s": condition.elapsed_s + elapsed_s})
    return read_variance(conductance, cell, late, written)


def collapse(
    conductance: Tensor, variance: Tensor | None, writing: Writing, config: CrossbarConfig, mapping: Mapping
) -> Effective:
    """Add up the planes of an array.

    Args:
        conductance: [devices, planes, in, out], normalised.
        variance: like `conductance`: of one read of each cell; None without read noise.
        writing: gives scales and keys.
        config, mapping: of the array.

    Raises:
        ConfigError: wires on cells whose conductance range is unknown.
    """
    cell = config.cell()
    raised, factor = raised_conductance(conductance, writing, config)
    if variance is not None and factor is not None:
        variance = variance * factor.square()
    if config.wires is not None:
        places = writing.places
        placed = raised if places is None else in_array(raised, places, config)
        seen = _through_wires(placed, config, cell)
        seen = seen if places is None else seen_by_weights(seen, places, config)
        if variance is not None:
            variance = variance * (seen / raised.clamp(min=1e-6)).clamp(0, 1).square()
        raised = seen
    weight, squares = [], []
    for index, piece in enumerate(mapping.slices):
        share = 1.0 if config.accumulate == "digital" else piece.factor
        planes = [side * len(mapping.slices) + index for side in range(len(mapping.signs))]
        signed = [raised[:, p] * (sign * share) for p, sign in zip(planes, mapping.signs, strict=True)]
        weight.append(torch.stack(signed).sum(dim=0))
        if variance is not None:
            squares.append(variance[:, planes].sum(dim=1) * share**2)
    scale = writing.scale[:, None]
    both = _grouped(weight, config) * scale, _grouped(squares, config) * scale.square() if squares else None
    return Effective(*both)


def raised_conductance(
    conductance: Tensor, writing: Writing, config: CrossbarConfig
) -> tuple[Tensor, Tensor | None]:
    """Conductance above zero siemens, in units of the range, each array with its own process variation.

    Returns:
        Like `conductance` [devices, planes, in, out], and the factor that each cell's array has; None if all are alike.
    """
    raised = conductance + background(config.cell())
    sigma = config.array_spread()
    if not sigma:
        return raised, None
    factor = _array_factors(writing.keys, raised.shape, config, sigma)
    return raised * factor, factor


def _grouped(slices: list[Tensor], config: CrossbarConfig) -> Tensor:
    stacked = torch.stack(slices, dim=1)
    return stacked if config.accumulate == "digital" else stacked.sum(dim=1, keepdim=True)


def _array_factors(keys: Tensor, shape: torch.Size, config: CrossbarConfig, sigma: float) -> Tensor:
    """A factor per array, spread over its cells: [devices, planes, in, out]."""
    devices, planes, inputs, outputs = shape
    tall, wide = ceil(inputs / config.rows), ceil(outputs / config.cols)
    drawn = normals(keys, streams.ARRAY, torch.zeros_like(keys), planes * tall * wide)
    factor = array_factor(drawn.reshape(devices, planes, tall, wide), sigma)
    rows = factor.repeat_interleave(config.rows, dim=2)[:, :, :inputs]
    return rows.repeat_interleave(config.cols, dim=3)[..., :outputs]


def _through_wires(raised: Tensor, config: CrossbarConfig, cell: CellDevice) -> Tensor:
    """What the wires leave of every cell, all arrays of one shape at a time."""
    assert config.wires is not None
    g_min, g_max = conductance_range(cell)
    span = g_max - g_min
    seen = torch.empty_like(raised)
    for rows in _bands(raised.shape[2], config.rows):
        for columns in _bands(raised.shape[3], config.cols):
            block = raised[:, :, rows, columns]
            height, width = min(config.rows, block.shape[2]), min(config.cols, block.shape[3])
            tiles = block.unfold(2, height, height).unfold(3, width, width)
            # A Gaussian write can land below zero siemens, where no resistor lies: such a cell is open.
            solved = effective_conductance((tiles * span).clamp(min=0), config.wires) / span
            seen[:, :, rows, columns] = solved.transpose(3, 4).reshape(block.shape)
    return seen


def _bands(size: int, tile: int) -> list[slice]:
    """The whole tiles, and what is left."""
    whole = size // tile * tile
    return [band for band in (slice(0, whole), slice(whole, size)) if band.stop > band.start]
