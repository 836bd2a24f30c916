"""How a weight becomes levels of cells: symmetric integers, a scheme for the sign, bit slices.

A weight is `scale * q` with an integer |q| <= top = 2**(weight_bits-1) - 1. The scheme makes unsigned values:

    differential  two sides, max(q, 0) and max(-q, 0), subtracted in the analog domain
    offset        one side, q + top; the digital side subtracts top * sum(x)
    one_sided     one side, q; weights must not be negative

A value is cut into slices from its most significant bit. Where a cell's bits do not divide it evenly, the spare bits
lie at the bottom of the lowest slice, so that the top cells use their whole range. A slice of fewer bits than its cell
has uses every k-th level, the largest k that fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nvcim.crossbar.kernel import kernel_for
from nvcim.devices import CellDevice
from nvcim.errors import ConfigError

Scheme = Literal["differential", "offset", "one_sided"]


@dataclass(frozen=True)
class Slice:
    """Bits of a value that one cell holds: level = ((value >> shift) & mask) * stride."""

    shift: int
    mask: int
    stride: int
    factor: float
    """What the cell at full conductance adds to the integer, by shift-and-add."""


@dataclass(frozen=True)
class Mapping:
    """The cells of a weight: `signs` has one entry per side, `slices` is ordered from the least significant one."""

    top: int
    spare: int
    offset: int
    signs: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def cells(self) -> int:
        """Cells per weight."""
        return len(self.signs) * len(self.slices)

    def levels(self, integers: Tensor, side: int, index: int) -> Tensor:
        """Levels of slice `index` on a side for int32 weights, shape kept."""
        piece = self.slices[index]
        value = (integers * self.signs[side] + self.offset).clamp_(min=0) << self.spare
        return (value >> piece.shift).bitwise_and_(piece.mask).mul_(piece.stride)


def make_mapping(
    weight_bits: int,
    cell: CellDevice,
    scheme: Scheme = "differential",
    slice_bits: tuple[int, ...] | None = None,
) -> Mapping:
    """Say which bits of a weight lie in which cells.

    Args:
        weight_bits: sign included.
        cell: its levels bound a slice.
        scheme: see the module.
        slice_bits: bits of each slice, most significant first; left out, as many as the cell has.

    Raises:
        ConfigError: slices with more bits than the cell has levels for, or too few bits for the weight.
    """
    bits = weight_bits if scheme == "offset" else weight_bits - 1
    widths = slice_bits or (cell.bits,) * -(-bits // cell.bits)
    if max(widths) > cell.bits:
        raise ConfigError(
            f"slice_bits asks for {max(widths)} bits in one cell; device {cell.name} has {cell.levels} levels, "
            f"at most {cell.bits} bits"
        )
    spare = sum(widths) - bits
    if spare < 0 or spare >= widths[-1]:
        raise ConfigError(
            f"slice_bits {list(widths)} hold {sum(widths)} bits, but {weight_bits}-bit weights in the {scheme} "
            f"scheme have {bits}; allowed: {bits} to {bits + widths[-1] - 1} bits in all"
        )
    slices, shift = [], 0
    for width in reversed(widths):
        stride = (cell.levels - 1) // (2**width - 1)
        factor = (cell.levels - 1) / stride * 2**shift / 2**spare
        slices.append(Slice(shift, 2**width - 1, stride, factor))
        shift += width
    top = 2 ** (weight_bits - 1) - 1
    offset = top if scheme == "offset" else 0
    return Mapping(top, spare, offset, (1, -1) if scheme == "differential" else (1,), tuple(slices))


def quantize_symmetric(weight: Tensor, weight_bits: int, per_column: bool) -> tuple[Tensor, Tensor]:
    """Round weights to symmetric integers; the largest magnitude becomes the largest integer.

    Args:
        weight: [devices, in_features, out_features], finite float32.
        weight_bits: bits of the integers, sign included, at most 16.
        per_column: each column has a scale of its own, instead of each device.

    Returns:
        integers: int16, like `weight`.
        scale: [devices, 1, out_features]; 0 where all weights are 0.
    """
    if len(weight) > 1 and weight.stride(0) == 0:  # one matrix for many devices
        integers, scale = quantize_symmetric(weight[:1], weight_bits, per_column)
        return integers.expand(weight.shape), scale.expand(len(weight), -1, -1)
    top = 2 ** (weight_bits - 1) - 1
    devices, inputs, outputs = weight.shape
    library = kernel_for(weight)
    if library is None:
        largest = weight.abs().amax(dim=1 if per_column else (1, 2), keepdim=True)
        scale = (largest / top).expand(-1, 1, outputs).contiguous()
        ratio = torch.where(scale > 0, weight / scale, 0.0)
        return ratio.round().clamp(-top, top).to(torch.int16), scale
    weight = weight.contiguous()
    integers = torch.empty(weight.shape, dtype=torch.int16)
    scale = torch.empty(devices, 1, outputs, dtype=torch.float32)
    threads = torch.get_num_threads()
    parts = min(threads, inputs)
    largest = torch.empty(devices, parts, outputs, dtype=torch.float32)
    library.nvcim_quantize(
        *(weight.data_ptr(), devices, inputs, outputs, float(top), per_column, parts),
        *(largest.data_ptr(), scale.data_ptr(), integers.data_ptr(), threads),
    )
    return integers, scale


def add_groups(weight: Tensor, alphas: Sequence[float]) -> Tensor:
    """Groups of cells [devices, groups, in, out] times what each counts, added up: float32 [devices, in, out].

    One by one: a matrix product would add up in an order that depends on how many devices there are.
    """
    total = weight[:, 0].float() * alphas[0]
    for group, alpha in enumerate(alphas[1:], start=1):
        total = total + weight[:, group].float() * alpha
    return total
