"""ADC ranges from data: what the bit lines really carry, per tile or per column.

The full scale of an ADC is in units of the DAC's full scale, so it holds for loud and quiet vectors alike. What an ADC
is set to is a current, so when other weights are written its range in units of outputs goes with their scale
(`range_after_rewrite`). Where a scale is 0 nothing is carried, and ranges are kept as if it were 1.
"""

from typing import Literal

import torch
from torch import Tensor

from nvcim.crossbar.converters import top_code
from nvcim.crossbar.reading import ReadPlan, tile_currents
from nvcim.crossbar.settings import CrossbarConfig
from nvcim.errors import ConfigError

CalibrationMethod = Literal["percentile", "min_error"]
_CANDIDATES = 64


def calibrated_ranges(
    x: Tensor,
    plan: ReadPlan,
    config: CrossbarConfig,
    method: CalibrationMethod = "percentile",
    percentile: float = 99.9,
) -> Tensor:
    """Full scales of all ADCs for what inputs like these make the bit lines carry.

    Args:
        x: [devices or 1, vectors, in], float32, finite.
        plan: of the array; its ADCs play no part.
        config: its periphery; `adc_range_per` says what shares a range.
        method: `percentile` of the magnitudes, or `min_error`, the full scale with the smallest mean square error of
            rounding and clipping among 64 equally spaced ones up to the largest magnitude.
        percentile: of the first method, 0..100.

    Returns:
        [devices, groups, row tiles, out]; 0 where nothing is ever carried (`range_where_nothing_flowed`).

    Raises:
        ConfigError: no vectors, NaN or infinity, nothing but zeros, or a percentile outside 0..100.
    """
    if x.shape[1] == 0 or not bool(torch.isfinite(x).all()):
        raise ConfigError("calibration needs at least one input vector, without NaN or infinity")
    if not bool(x.any()):
        raise ConfigError(
            "all calibration inputs are zero, and no ADC range can be told from them; give vectors like those to come"
        )
    if not 0 < percentile <= 100:
        raise ConfigError(f"percentile must lie above 0 and at most at 100 (given: {percentile})")
    assert config.adc_bits is not None
    top = top_code(config.adc_bits)
    groups = []
    for currents in tile_currents(x, plan, config):  # [devices, row tiles, vectors, out]
        ranges = []
        for part in torch.split(currents.abs(), config.cols, dim=-1):
            pooled = part if config.adc_range_per == "column" else part.flatten(2)[..., None]
            by_percentile = method == "percentile"
            found = _percentile(pooled, percentile) if by_percentile else _least_error(pooled, top)
            ranges.append(found.expand(*found.shape[:2], part.shape[-1]))
        groups.append(torch.cat(ranges, dim=-1))
    return torch.stack(groups, dim=1)


def range_where_nothing_flowed(reach: Tensor, scale: Tensor, config: CrossbarConfig, inputs: int) -> Tensor:
    """Give ADCs that carried nothing in calibration a range too: later inputs or weights may reach them.

    They get the widest range of their device; where all of it carried nothing, the largest current there can be.

    Args:
        reach: as `calibrated_ranges` gives it, [devices, groups, row tiles, out].
        scale: of the weights, [devices, 1, out].
        config: of the array.
        inputs: word lines of all row tiles.
    """
    unit = _as_if_one(scale)[:, None]
    carried = torch.where(scale[:, None] > 0, reach / unit, 0.0)
    widest = carried.amax(dim=(1, 2, 3), keepdim=True)
    factors = [piece.factor for piece in config.mapping().slices]
    most = min(config.rows, inputs) * (1.0 if config.accumulate == "digital" else sum(factors))
    return torch.where(carried > 0, carried, torch.where(widest > 0, widest, most)) * unit


def range_after_rewrite(reach: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The ranges of ADCs that stay set as they are, when weights of another scale are written.

    Args:
        reach: [devices, groups, row tiles, out].
        before, after: scales, [devices, 1, out].
    """
    return reach * (_as_if_one(after) / _as_if_one(before))[:, None]


def _as_if_one(scale: Tensor) -> Tensor:
    """Scales, 1 in the place of 0."""
    return torch.where(scale > 0, scale, 1.0)


def _percentile(magnitudes: Tensor, percentile: float) -> Tensor:
    """As torch.quantile along dim 2, linear between neighbours, which takes no more than 2**24 values."""
    ordered = magnitudes.sort(dim=2).values
    place = percentile / 100 * (ordered.shape[2] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[2] - 1)
    return torch.lerp(ordered[:, :, below], ordered[:, :, above], place - below)


def _least_error(magnitudes: Tensor, top: int) -> Tensor:
    """Errors are squared in units of the largest magnitude, which a square in float32 might not hold."""
    largest = magnitudes.amax(dim=2)
    shares = magnitudes / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
    best, chosen = torch.full_like(largest, float("inf")), torch.ones_like(largest)
    for candidate in range(1, _CANDIDATES + 1):
        share = candidate / _CANDIDATES
        step = share / top
        error = ((shares / step).round().clamp(max=top) * step - shares).square().mean(dim=2)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, share, chosen)
    return largest * chosen
