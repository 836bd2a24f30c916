"""Writing cells: every write lands beside its level, by a Gaussian whose width depends on the level.

    g = level_conductance[l] + u * level_sigma[l] / 0.01 * sigma * eps,   eps ~ N(0, 1)

with u = 1 (sigma in units of the full range) or one level step. The draw is not clipped: 0 is the cell's
g_min, not zero siemens, and the published level tables are plain Gaussians.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from nvcim.crossbar.mapping import quantize_symmetric, slice_count, slice_levels, slice_weight
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.devices import CellDevice


class Programmed(NamedTuple):
    """What the cells of an array amount to at its outputs, per device: both [devices, in, out].

    `weight` is the signed sum over a pair's slices; `read_variance` is what one read of an input of 1 adds as
    variance, None without read noise.
    """

    weight: Tensor
    read_variance: Tensor | None


def standard_normals(streams: Sequence[Generator], *shape: int) -> Tensor:
    """Draw N(0, 1): [len(streams), *shape], row i from stream i alone."""
    draws = torch.empty(len(streams), *shape)
    for row, stream in zip(draws, streams, strict=True):
        row.normal_(generator=stream)
    return draws


def program_cells(
    levels: Tensor, cell: CellDevice, config: CrossbarConfig, streams: Sequence[Generator]
) -> Tensor:
    """Write `levels` into cells.

    Args:
        levels: [devices, ...], integers in 0..cell.levels-1.
        cell: what is written.
        config: gives sigma and its unit.
        streams: one random stream per device.

    Returns:
        The conductances that were reached, normalised: float32, like `levels`.
    """
    conductance = torch.tensor(cell.level_conductance)[levels]
    if config.sigma == 0:
        return conductance
    unit = 1.0 if config.sigma_unit == "full_range" else 1.0 / (cell.levels - 1)
    width = torch.tensor(cell.sigma_at(config.sigma * unit))
    return conductance.addcmul_(width[levels], standard_normals(streams, *levels.shape[1:]))


def program_weights(weight: Tensor, config: CrossbarConfig, streams: Sequence[Generator]) -> Programmed:
    """Quantise, slice and write weights [devices, in, out] (finite float32) as differential pairs.

    Slices and pairs collapse into one signed weight exactly, because the periphery adds them before the ADC.
    """
    cell = config.cell()
    dims = (1, 2) if config.scale_per == "device" else (1,)
    integers, scale = quantize_symmetric(weight, config.weight_bits, dims)
    total = torch.zeros_like(weight)
    squares = torch.zeros_like(weight) if config.read_noise > 0 else None
    for sign in (1, -1):
        magnitude = (integers * sign).clamp_(min=0)
        for index in range(slice_count(config.weight_bits, cell.bits)):
            levels = slice_levels(magnitude, config.weight_bits, cell.bits, index)
            conductance = program_cells(levels, cell, config, streams)
            factor = slice_weight(config.weight_bits, cell.bits, index)
            total.add_(conductance, alpha=sign * factor)
            if squares is not None:
                squares.add_(conductance.square_(), alpha=factor**2)
    if squares is not None:
        squares.mul_((scale * config.read_noise).square_())
    return Programmed(total.mul_(scale), squares)
