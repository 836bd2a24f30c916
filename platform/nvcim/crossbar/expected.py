"""Closed forms of a crossbar's errors, to hold simulated ones against.

Each function gives what a cause adds, in expectation over chips and reads, to the squared error of a product, summed
over vectors and outputs: x are the input vectors, q the rounded weights, g the nominal conductances of the planes (a
plane per side and slice), f what a plane's full conductance is worth as a weight.

    quantization  |x|^2 step_w^2 / 12                 rounding errors spread evenly over a step
    variation     x^2 sum f^2 sd(g)^2                 sd of each cell's level; verified cells: truncated
    stuck cells   x^2 sum f^2 var(e) + (x sum f E e)^2    e: 1 - g stuck on, -g stuck off
    array spread  sigma^2 sum over arrays (x f g)^2   one factor for all cells of an array
    DAC           |q|^2 step_x^2 / 12
    read noise    x^2 sum f^2 var(read of g)
    ADC           step_y^2 / 12, summed over the conversions of an output; no clipping

x^2 of bit-serial inputs is the sum over bits of (bit worth)^2.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from nvcim.crossbar.calibration import calibrated_ranges
from nvcim.crossbar.collapse import background, noise_variance
from nvcim.crossbar.converters import bit_planes, drive, full_scales, top_code
from nvcim.crossbar.mapping import Mapping
from nvcim.crossbar.programming import level_tables
from nvcim.crossbar.reading import ReadPlan
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.crossbar.units import own_units

_TINY = torch.finfo(torch.float32).tiny


class _Cycle(NamedTuple):
    """One drive of the word lines: inputs [vectors, in], and the worth [vectors, 1] of a unit of them."""

    inputs: Tensor
    worth: Tensor


@dataclass(frozen=True)
class Nominal:
    """A matrix on cells that sit exactly on their levels.

    integers: [in, out]. scale: [1, out]. x: [vectors, in], float32. verified: [in, out] bool, which weights are read
    back while they are written; None for none.
    """

    config: CrossbarConfig
    integers: Tensor
    scale: Tensor
    x: Tensor
    verified: Tensor | None

    @cached_property
    def mapping(self) -> Mapping:
        """The cells of a weight."""
        return self.config.mapping()

    @cached_property
    def levels(self) -> Tensor:
        """[planes, in, out], int."""
        mapping, integers = self.mapping, self.integers.int()
        planes = [
            mapping.levels(integers, side, index)
            for side in range(len(mapping.signs))
            for index in range(len(mapping.slices))
        ]
        return torch.stack(planes)

    @cached_property
    def conductance(self) -> Tensor:
        """[planes, in, out], normalised, float64."""
        return level_tables(self.config.cell(), self.config)[0].double()[self.levels]

    @cached_property
    def worth(self) -> Tensor:
        """What full conductance of each plane is worth: [planes, 1, out], signed, float64."""
        signed = [sign * piece.factor for sign in self.mapping.signs for piece in self.mapping.slices]
        return torch.tensor(signed, dtype=torch.float64)[:, None, None] * self.scale.double()

    @property
    def raised(self) -> Tensor:
        """Conductances with g_min, in units of the range: [planes, in, out]."""
        return self.conductance + background(self.config.cell())

    def cycles(self) -> Iterator[_Cycle]:
        """The inputs as they are driven: at once, or bit by bit."""
        driven = drive(self.x[None], self.config).whole()
        if self.config.input_coding == "analog" or self.config.dac_bits is None:
            yield _Cycle(driven.x[0], torch.ones_like(driven.full_scale[0]))
            return
        planes, step = bit_planes(driven, self.config.dac_bits)
        for bit, plane in enumerate(planes):
            yield _Cycle(plane[0], step[0] * 2.0**bit)

    @property
    def squared_inputs(self) -> Tensor:
        """Squares of what each word line is driven with, in units of the inputs: [in], summed over vectors."""
        parts = [(one.inputs * one.worth).double().square().sum(dim=0) for one in self.cycles()]
        return torch.stack(parts).sum(dim=0)


def quantization(nominal: Nominal) -> float:
    """Of rounding the weights."""
    return float(nominal.x.double().square().sum() * nominal.scale.double().square().sum() / 12)


def variation(nominal: Nominal) -> float:
    """Of writing the cells; verified ones as the pulses leave them."""
    config = nominal.config
    width = level_tables(config.cell(), config)[1].double()[nominal.levels]
    variance = width.square()
    if nominal.verified is not None:
        tolerance = config.programming.tolerance / (config.cell().levels - 1)
        kept = _verified_variance(width, tolerance, config.programming.max_pulses)
        variance = torch.where(nominal.verified, kept, variance)
    return _summed(nominal, variance)


def _verified_variance(width: Tensor, tolerance: float, pulses: int) -> Tensor:
    """Variance of Gaussian pulses, repeated until one lies within the tolerance; if none does, the nearest stays.

    A Gaussian truncated at +-a sd has the variance sd^2 (1 - 2 a phi(a) / (2 Phi(a) - 1)) (Johnson, Kotz and
    Balakrishnan, Continuous Univariate Distributions 1, 1994, section 10.1). The nearest of n pulses is beyond x >= a
    with probability S(x)^n, S(x) = erfc(x / sqrt 2), so its square adds a^2 S(a)^n + integral from a of 2 x S(x)^n.
    """
    widths, places = torch.unique(width, return_inverse=True)
    reach = tolerance / widths.clamp(min=_TINY)
    hit = torch.erf(reach / math.sqrt(2))
    density = torch.exp(-reach.square() / 2) / math.sqrt(2 * math.pi)
    inside = (1 - 2 * reach * density / hit).clamp(min=0)
    missed = (1 - hit) ** pulses
    beyond = torch.linspace(0, 8, 2001, dtype=widths.dtype)[:, None] + reach
    tail = torch.trapezoid(2 * beyond * torch.erfc(beyond / math.sqrt(2)) ** pulses, beyond, dim=0)
    kept: Tensor = widths.square() * ((1 - missed) * inside + missed * reach.square().nan_to_num() + tail)
    return kept[places]


def stuck_cells(nominal: Nominal) -> float:
    """Of cells that hold their highest or lowest conductance whatever is written."""
    on, off = nominal.config.stuck_rates()
    high, low = 1 - nominal.conductance, -nominal.conductance
    mean = on * high + off * low
    spread = on * high.square() + off * low.square() - mean.square()
    drift = nominal.x.double() @ (mean * nominal.worth).sum(dim=0)
    return _summed(nominal, spread) + float(drift.square().sum())


def array_spread(nominal: Nominal) -> float:
    """Of the factor that each array has on all its conductances."""
    config = nominal.config
    weights = nominal.raised * nominal.worth
    parts = zip(
        torch.split(nominal.x.double(), config.rows, dim=1),
        torch.split(weights, config.rows, dim=1),
        strict=True,
    )
    return config.array_spread() ** 2 * sum(float((x @ w).square().sum()) for x, w in parts)


def dac(nominal: Nominal) -> float:
    """Of rounding the inputs; zeros are driven exactly."""
    assert nominal.config.dac_bits is not None
    full_scale = drive(nominal.x[None], nominal.config).whole().full_scale[0]
    step = full_scale.double() / top_code(nominal.config.dac_bits)
    rounded = ((nominal.x != 0) * step.square()).sum(dim=0)
    weights = nominal.integers.double() * nominal.scale.double()
    return float(rounded @ weights.square().sum(dim=1) / 12)


def read_noise(nominal: Nominal) -> float:
    """Of one read, right after the write."""
    conductance = nominal.conductance.float()
    return _summed(nominal, noise_variance(conductance, conductance, nominal.config).double())


def adc(nominal: Nominal, calibration: Tensor) -> float:
    """Of rounding what the bit lines carry.

    Args:
        nominal: the arrays; their settings have ADCs.
        calibration: [vectors, in], from which calibrated ranges are taken.
    """
    config = nominal.config
    assert config.adc_bits is not None
    weights, alphas = _groups(nominal)
    unit = own_units(weights.abs().amax().reshape(1))
    weights = weights if unit is None else weights / unit
    if config.adc_scaling == "calibrated":
        plan = ReadPlan(weights, None, None, None, alphas, None)
        reach = calibrated_ranges(calibration[None], plan, config)
    else:
        reach = full_scales(weights, config)
    cols = (reach[0] * (config.adc_range / top_code(config.adc_bits))).double()  # [groups, row tiles, out]
    cols = cols if unit is None else cols * unit
    worth = cols.new_tensor(alphas).square()[:, None, None]
    per_tile = (cols.square() * worth).sum(dim=(0, 2))
    return sum(float((rows.double().square() @ per_tile).sum()) for rows in _adc_rows(nominal)) / 12


def _adc_rows(nominal: Nominal) -> Iterator[Tensor]:
    """What each cycle's vectors scale the ADCs' steps by, in units of the output: [vectors, row tiles]."""
    config, x = nominal.config, nominal.x
    whole = drive(x[None], config).whole().full_scale[0]
    for one in nominal.cycles():
        tiles = torch.split(one.inputs, config.rows, dim=1)
        if config.adc_scaling == "norm":
            rows = torch.stack([tile.norm(dim=1) for tile in tiles], dim=1)
        else:
            unit = torch.ones_like(whole) if config.input_coding == "bit_serial" else whole
            rows = unit.expand(-1, len(tiles))
        yield rows * one.worth


def _groups(nominal: Nominal) -> tuple[Tensor, tuple[float, ...]]:
    """What each group of slices with ADCs of its own holds, [1, groups, in, out] float32, and what it counts."""
    weights = torch.unflatten(nominal.raised * nominal.worth, 0, (len(nominal.mapping.signs), -1)).sum(dim=0)
    if nominal.config.accumulate == "analog":
        return weights.sum(dim=0)[None, None].float(), (1.0,)
    factors = tuple(piece.factor for piece in nominal.mapping.slices)
    return (weights / weights.new_tensor(factors)[:, None, None])[None].float(), factors


def _summed(nominal: Nominal, variance: Tensor) -> float:
    """x^2 times what independent cells of this variance [planes, in, out] add to each weight, over all outputs."""
    weights = (variance * nominal.worth.square()).sum(dim=(0, 2))
    return float(nominal.squared_inputs @ weights)
