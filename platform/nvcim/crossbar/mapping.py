"""How a weight becomes levels of cells: symmetric integers, differential pairs, bit slices.

A weight is `scale * q` with an integer |q| <= 2**(weight_bits-1) - 1. The pair's positive cells hold the
magnitude of a positive q and the negative ones that of a negative q; the other side stays at level 0. The
magnitude is cut into slices of `cell_bits`, aligned to its most significant bit: where the bits do not divide
evenly, the spare bits lie at the bottom of the lowest slice, so that the top cells use their whole range.
"""

import torch
from torch import Tensor


def quantize_symmetric(weight: Tensor, weight_bits: int, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Round weights to symmetric integers; the largest magnitude over `dims` becomes the largest integer.

    Args:
        weight: [..., in_features, out_features], finite.
        weight_bits: bits of the integers, sign included.
        dims: dimensions that share a scale.

    Returns:
        integers: int32, like `weight`.
        scale: like `weight` with `dims` reduced to 1; 0 where all weights are 0.
    """
    top = 2 ** (weight_bits - 1) - 1
    scale = weight.abs().amax(dim=dims, keepdim=True) / top
    integers = torch.where(scale > 0, weight / scale, 0.0).round().clamp(-top, top)
    return integers.to(torch.int32), scale


def slice_count(weight_bits: int, cell_bits: int) -> int:
    """Cells per side of a pair: ceil((weight_bits - 1) / cell_bits)."""
    return -(-(weight_bits - 1) // cell_bits)


def slice_levels(magnitude: Tensor, weight_bits: int, cell_bits: int, index: int) -> Tensor:
    """Levels that slice `index` (0 is the least significant) holds for integer magnitudes, shape kept."""
    aligned = magnitude << _spare_bits(weight_bits, cell_bits)
    return (aligned >> (index * cell_bits)).bitwise_and(2**cell_bits - 1)


def slice_weight(weight_bits: int, cell_bits: int, index: int) -> float:
    """What a cell of slice `index` at full conductance adds to the integer, by analog shift-and-add."""
    top_level = 2**cell_bits - 1
    return float(top_level * 2 ** (index * cell_bits)) / float(2 ** _spare_bits(weight_bits, cell_bits))


def _spare_bits(weight_bits: int, cell_bits: int) -> int:
    return slice_count(weight_bits, cell_bits) * cell_bits - (weight_bits - 1)
