"""DAC and ADC: uniform, symmetric about zero, 2**bits - 1 codes; and what real ADCs do wrong.

Ranges belong to one input vector and one tile, never to a batch, so a result does not depend on what it is packed
with. The DAC's full scale is the largest magnitude of the vector, or fixed. The ADC's step is a number of the input
vector (`row`) times one of the column (`col`):

    norm        |x_tile|_2        adc_range * max over the tile's columns of |w|_2 / top. By Cauchy and Schwarz no
                                  output exceeds that at adc_range 1 (read noise aside). The digital side, which
                                  knows the vector it drives, sets the gain.
    full        DAC's full scale  adc_range * max over the tile's columns of sum |w| / top: nothing clips but read noise
    calibrated  DAC's full scale  adc_range * what `Crossbar.calibrate` measured / top

Non-linear cells raise the first two by what they conduct beyond Ohm's law at full scale. Ranges are those of the
cells as written: ageing leaves them as they are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar import streams
from nvcim.crossbar.counter_rng import normals, square_root
from nvcim.crossbar.kernel import kernel_for
from nvcim.crossbar.remapping import Places, adcs_of_outputs
from nvcim.crossbar.settings import ConverterErrors, CrossbarConfig
from nvcim.crossbar.units import own_units, safe

_TINY = torch.finfo(torch.float32).tiny


def top_code(bits: int) -> int:
    """Largest code of a symmetric converter."""
    return int(2 ** (bits - 1)) - 1


class Driven(NamedTuple):
    """Input vectors as the word lines see them.

    x: [..., in_features], multiples of the DAC's step. norms: [..., row tiles], Euclidean. full_scale: [..., 1],
    what the DAC's largest code drives. clipped: inputs beyond a fixed full scale. unit: [..., 1], what all of these are
    in units of; None: 1.
    """

    x: Tensor
    norms: Tensor
    full_scale: Tensor
    clipped: int
    unit: Tensor | None = None

    def whole(self) -> "Driven":
        """The same in the units of the inputs; norms may be beyond float32."""
        if self.unit is None:
            return self
        return Driven(self.x * self.unit, self.norms * self.unit, self.full_scale * self.unit, self.clipped)


def drive(x: Tensor, config: CrossbarConfig) -> Driven:
    """Round input vectors [..., in_features], float32, to what a DAC can drive; extreme ones in a unit of their own."""
    driven = _drive(x, config, None)
    unit = own_units_of(driven, config)
    return driven if unit is None else _drive(x / unit, config, unit)


def own_units_of(driven: Driven, config: CrossbarConfig) -> Tensor | None:
    """Units that driven vectors need for their squares, [..., 1]; None if they need none."""
    if config.dac_full_scale is None:
        return own_units(driven.full_scale)
    if config.dac_bits is not None:  # then what is driven is zero or not far below the full scale
        return None if safe(config.dac_full_scale) else own_units(driven.full_scale)
    return own_units(driven.x.abs().amax(dim=-1, keepdim=True))


def _drive(x: Tensor, config: CrossbarConfig, unit: Tensor | None) -> Driven:
    """`drive` of vectors in units of `unit` [..., 1]; None: 1."""
    top = 0 if config.dac_bits is None else top_code(config.dac_bits)
    x, fixed = x.contiguous(), config.dac_full_scale is not None
    full_scale = torch.full_like(x[..., :1], config.dac_full_scale or 0.0)
    full_scale = full_scale if unit is None else full_scale / unit
    library = kernel_for(x)
    if library is None:
        full_scale = full_scale if fixed else x.abs().amax(dim=-1, keepdim=True)
        return _plain_drive(x, config.rows, top, full_scale, fixed)._replace(unit=unit)
    tiles = -(-x.shape[-1] // config.rows)
    driven, squares = torch.empty_like(x) if top or fixed else x, x.new_empty(*x.shape[:-1], tiles)
    clipped = library.nvcim_drive(
        x.data_ptr(), full_scale.numel(), x.shape[-1], config.rows, float(top), fixed, full_scale.data_ptr(),
        driven.data_ptr(), squares.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return Driven(driven, square_root(squares), full_scale, clipped, unit)


def _plain_drive(x: Tensor, rows: int, top: int, full_scale: Tensor, fixed: bool) -> Driven:
    clipped = int((x.abs() > full_scale).sum()) if fixed else 0
    if top:
        step = (full_scale / top).clamp(min=_TINY)
        codes = (x / step).round()
        x = (codes.clamp(-top, top) if fixed else codes) * step
    elif fixed:
        x = x.clamp(-full_scale, full_scale)
    return Driven(x, tile_norms(x, rows), full_scale, clipped)


def tile_norms(x: Tensor, rows: int) -> Tensor:
    """Euclidean norms of each row tile's inputs: [..., in] -> [..., row tiles]."""
    squares = [part.square().sum(dim=-1) for part in torch.split(x, rows, dim=-1)]
    return square_root(torch.stack(squares, dim=-1))


def bit_planes(driven: Driven, bits: int) -> tuple[Tensor, Tensor]:
    """Cut driven inputs into the bits of their two's complement codes.

    Returns:
        planes: [bits, ..., in_features] of 0 and 1, least significant first; the last one counts negative.
        step: [..., 1], the input that a code of 1 stands for.
    """
    step = (driven.full_scale / top_code(bits)).clamp(min=_TINY)
    codes = (driven.x / step).round()
    whole = codes.nan_to_num().to(torch.int32)
    planes = torch.stack([(whole >> bit).bitwise_and(1) for bit in range(bits)])
    return planes.to(torch.float32).where(codes == codes, codes), step  # NaN has no bits and stays NaN


class Adc(NamedTuple):
    """The ADCs of an array, all [devices, groups, row tiles, out].

    col: step for an input whose `row` is 1. gain: codes per output at `row` 1. shift: codes that an offset adds,
    or None. thresholds: [devices, groups, row tiles, out, 2 * top] where one code passes to the next, in codes, or
    None for ideal widths.
    """

    col: Tensor
    gain: Tensor
    shift: Tensor | None
    thresholds: Tensor | None

    def to(self, device: torch.device | str) -> "Adc":
        """Move all tensors."""
        return self._replace(**{k: v.to(device) for k, v in self._asdict().items() if v is not None})

    @staticmethod
    def stack(adcs: Sequence["Adc"]) -> "Adc":
        """Put the devices of several arrays one after the other."""
        names = adcs[0]._fields
        fields: dict[str, Any] = {name: joined([getattr(adc, name) for adc in adcs]) for name in names}
        return Adc(**fields)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Devices of several tensors one after the other; None where there are none."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def make_adc(full_scale: Tensor, config: CrossbarConfig, keys: Tensor, places: Places | None = None) -> Adc:
    """The ADCs for full scales [devices, groups, row tiles, out], with the errors of these chips.

    Full scales are settings, which go with the output; errors stay with the bit line that `places` gives it.
    """
    assert config.adc_bits is not None
    top = top_code(config.adc_bits)
    col = (full_scale * (config.adc_range / top)).contiguous()
    gain = 1 / col.clamp(min=_TINY)
    errors = config.adc_errors
    if errors is None:
        return Adc(col, gain, None, None)
    start, shape = torch.zeros_like(keys), col.shape
    count = col[0].numel()
    relative = normals(keys, streams.ADC_GAIN, start, count).reshape(shape) * errors.gain
    shift = normals(keys, streams.ADC_OFFSET, start, count).reshape(shape) * errors.offset_lsb
    thresholds = _thresholds(shape, errors, keys, top)
    if places is not None:
        relative, shift = adcs_of_outputs(relative, places), adcs_of_outputs(shift, places)
        thresholds = None if thresholds is None else adcs_of_outputs(thresholds, places)
    return Adc(col, gain * (1 + relative), shift, thresholds)


def _thresholds(shape: torch.Size, errors: ConverterErrors, keys: Tensor, top: int) -> Tensor | None:
    """Where codes change: -top + 1/2 ... top - 1/2 plus the integral non-linearity, in rising order."""
    if errors.dnl_lsb == 0:
        return None
    ideal = torch.arange(-top, top, device=keys.device) + 0.5
    count = shape[1:].numel() * (2 * top - 1)
    widths = normals(keys, streams.ADC_WIDTHS, torch.zeros_like(keys), count).reshape(*shape, 2 * top - 1)
    walk = torch.nn.functional.pad((widths * errors.dnl_lsb).cumsum(dim=-1), (1, 0))
    line = walk[..., -1:] * torch.linspace(0, 1, 2 * top, device=keys.device)
    return (ideal + walk - line).sort(dim=-1).values


def full_scales(weight: Tensor, config: CrossbarConfig) -> Tensor:
    """Full scale of every ADC for an input whose `row` is 1, before `adc_range`.

    Args:
        weight: [devices, groups, in, out], as programmed.
        config: `adc_scaling` is norm or full.

    Returns:
        [devices, groups, row tiles, out].
    """
    squared = config.adc_scaling == "norm"
    sums = _column_sums(weight, config.rows, squared)
    reach = square_root(sums) if squared else sums
    return reach if config.adc_range_per == "column" else widest(reach, config.cols)


def _column_sums(weight: Tensor, rows: int, squared: bool) -> Tensor:
    """Squares or magnitudes of each tile's columns, summed: [devices, groups, in, out] -> [..., row tiles, out]."""
    library = kernel_for(weight)
    if library is None:
        parts = torch.split(weight, rows, dim=-2)
        return torch.stack([(part.square() if squared else part.abs()).sum(dim=-2) for part in parts], dim=-2)
    devices, groups, inputs, outputs = weight.shape
    weight = weight.contiguous()
    sums = torch.empty(devices, groups, -(-inputs // rows), outputs, dtype=torch.float32)
    library.nvcim_column_sums(
        weight.data_ptr(),
        devices * groups,
        inputs,
        outputs,
        rows,
        squared,
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return sums


def widest(reach: Tensor, cols: int) -> Tensor:
    """Give all outputs of a tile the largest value among them: [..., out] -> the same shape."""
    parts = [part.amax(dim=-1, keepdim=True).expand_as(part) for part in torch.split(reach, cols, dim=-1)]
    return torch.cat(parts, dim=-1)
