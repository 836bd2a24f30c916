"""ADC ranges from data: what the bit lines really carry, per tile or per column.

The full scale of an ADC is in units of the DAC's full scale, so it holds for loud and quiet vectors alike.
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
        [devices, groups, row tiles, out]; 0 for a column that never carries anything.

    Raises:
        ConfigError: no vectors, NaN or infinity, or a percentile outside 0..100.
    """
    if x.shape[1] == 0 or not bool(torch.isfinite(x).all()):
        raise ConfigError("calibration needs at least one input vector, without NaN or infinity")
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
