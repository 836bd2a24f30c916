"""Brightness of images with more than 8 bits: what becomes 0 and 255, by percentiles of the image itself.

Such files seldom use their range, and one hot pixel or piece of dust says nothing about it: a thousandth of the
pixels at either end is left out of what is measured. The values stay real numbers, so no grey level is lost.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nvcim.errors import DataError

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""An image [H, W, 3]: uint8 0..255, or float32 on the same scale, which deep images exceed at both ends."""

# A thousandth at either end, at least one pixel of 100 or more: nuclei cover more, hot pixels less.
_LEFT_OUT, _LEAST = 1000, 100
# Values are kept this many ranges beyond the percentiles. Small bright objects in a large dark field lie there;
# a thousandth of outliers at 4 ranges adds 0.016 of the range's square to the variance, objects add 0.1 or so.
_KEPT_BEYOND = 3.0


@dataclass(frozen=True)
class Stretch:
    """What of an image's values becomes brightness.

    Attributes:
        low: becomes 0.
        high: becomes 255; not above `low` in an image of one value.
        limits: float32 [2, channels], values of each channel are cut there.
    """

    low: float
    high: float
    limits: NDArray[np.float32]


def measure_stretch(bands: Callable[[], Iterable[NDArray[Any]]], name: str) -> Stretch:
    """Return the stretch of an image given by bands [rows, W, channels]; which bands changes nothing.

    All channels share one scale, so colours stay what they are, and each has limits of its own. Black stays
    black in colours; one channel alone starts from its lower percentile, since cameras add an offset. Where
    the percentiles coincide (nearly all pixels have one value), the extremes take their place.

    Raises:
        DataError: values that are no real numbers, negative or not finite in float32, or no pixel.
    """
    ends = _order_statistics(lambda: (_checked(band, name) for band in bands()), name)
    least, low, high, most = ends
    same = high <= low
    low, high = np.where(same, least, low), np.where(same, most, high)
    beyond = _KEPT_BEYOND * (high - low)
    return Stretch(
        low=0.0 if len(low) > 1 else float(low[0]),
        high=float(high.max()),
        limits=np.stack([low - beyond, high + beyond]).astype(np.float32),
    )


def stretched(values: NDArray[Any], stretch: Stretch) -> NDArray[np.float32]:
    """Return the brightness of values [rows, W, channels], float32 of the same shape, 0..255 and beyond."""
    reach = stretch.high - stretch.low
    result = np.empty(values.shape, dtype=np.float32)
    np.clip(values, stretch.limits[0], stretch.limits[1], out=result, casting="unsafe")
    result -= np.float32(stretch.low)
    result *= np.float32(255.0 / reach if reach > 0 else 0.0)
    return result


def stretched_whole(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return the brightness of an image in memory, [H, W, channels].

    Raises:
        DataError: as `measure_stretch`.
    """
    return stretched(values, measure_stretch(lambda: _bands(values), name))


def displayed(pixels: Pixels) -> NDArray[np.uint8]:
    """Return an image as 8 bits to be looked at or written; what lies beyond 0..255 is cut."""
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, dtype=np.uint8)
    return np.asarray(np.clip(np.round(pixels), 0, 255), dtype=np.uint8)


def _bands(values: NDArray[Any], rows: int = 512) -> Iterator[NDArray[Any]]:
    for top in range(0, len(values), rows):
        yield values[top : top + rows]


def _checked(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Values as float32, none below 0."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"{name}: pixel values must be real numbers, found {values.dtype}")
    with np.errstate(over="ignore"):
        real = values.astype(np.float32)
    if real.size and not (real.min() >= 0 and math.isfinite(real.max())):
        raise DataError(f"{name}: pixel values must be finite and not negative")
    return np.abs(real)  # no -0.0, whose bits are those of a large number


def _order_statistics(bands: Callable[[], Iterable[NDArray[np.float32]]], name: str) -> NDArray[np.float64]:
    """Least, lower percentile, upper percentile and largest of every channel, [4, channels].

    Exact, in two passes and little memory: bits of floats that are not negative sort as the floats do, so
    the upper 16 bits are counted first, and then the lower 16 of what shares its upper ones with a result.
    """
    counts = np.zeros((0, 0), dtype=np.int64)
    for band in bands():
        bits = band.view(np.uint32)
        if not counts.size:
            counts = np.zeros((band.shape[2], 2**15), dtype=np.int64)
        for channel, row in enumerate(counts):
            row += np.bincount((bits[..., channel] >> 16).ravel(), minlength=2**15)
    pixels = int(counts[0].sum()) if counts.size else 0
    if not pixels:
        raise DataError(f"{name}: an image of no pixels")
    left_out = (pixels + _LEFT_OUT - _LEAST) // _LEFT_OUT
    ranks = np.array([0, left_out, pixels - 1 - left_out, pixels - 1])
    before = np.cumsum(counts, axis=1)
    upper = np.stack([np.searchsorted(row, ranks, side="right") for row in before])  # [channels, 4]
    within = {(channel, key) for channel, row in enumerate(upper.tolist()) for key in row}
    lower = {place: np.zeros(2**16, dtype=np.int64) for place in within}
    for band in bands():
        bits = band.view(np.uint32)
        for (channel, key), row in lower.items():
            own = bits[..., channel]
            row += np.bincount((own[(own >> 16) == key] & 0xFFFF).ravel(), minlength=2**16)
    found = np.zeros((4, len(upper)), dtype=np.uint32)
    for channel, keys in enumerate(upper.tolist()):
        for place, key in enumerate(keys):
            rank = ranks[place] - (before[channel, key] - counts[channel, key])
            rest = int(np.searchsorted(np.cumsum(lower[channel, key]), rank, side="right"))
            found[place, channel] = (key << 16) | rest
    return found.view(np.float32).astype(np.float64)
