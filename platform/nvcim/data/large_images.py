"""Images read by rows, so that one of 10,000 x 10,000 pixels is never in memory as a whole.

Small images and formats that cannot be read in parts go through `ArrayImage`; TIFF files through `TiffImage`.
"""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nvcim.errors import DataError

_LEAST_DEVIATION = 1e-3 * 255  # of a channel; an image of one colour has none of its own


class ImageRows(ABC):
    """An RGB image that gives its rows; `height` and `width` in pixels, at least 1."""

    height: int
    width: int

    @abstractmethod
    def rows(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Return rows top..bottom-1, uint8 [bottom - top, width, 3]."""

    def bands(self, height: int = 512) -> "list[tuple[int, int]]":
        """(top, bottom) of consecutive bands that cover the image."""
        return [(top, min(top + height, self.height)) for top in range(0, self.height, height)]

    def colour_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and deviation of every channel over the whole image, float32 [3] each.

        Both come from a histogram, so they are exact and the same however the image is read. The deviation is
        at least a thousandth of the range.
        """
        counts = self._histogram.astype(np.float64)
        values = np.arange(256.0)
        mean = counts @ values / counts.sum(axis=1)
        variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
        deviation = np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
        return mean.astype(np.float32), deviation.astype(np.float32)

    @cached_property
    def _histogram(self) -> NDArray[np.int64]:
        """Pixels of every value in every channel, [3, 256]."""
        counts = np.zeros((3, 256), dtype=np.int64)
        for top, bottom in self.bands():
            rows = self.rows(top, bottom)
            for channel in range(3):
                counts[channel] += np.bincount(rows[..., channel].ravel(), minlength=256)
        return counts


class ArrayImage(ImageRows):
    """An image in memory, uint8 [H, W, 3].

    Raises:
        DataError: another shape or type, or no pixel.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != np.uint8:
            raise DataError(
                f"expected an RGB image uint8 [H, W, 3] of at least one pixel, found {pixels.dtype} "
                f"{list(pixels.shape)}"
            )
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def rows(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """As `ImageRows.rows`; a copy, so that callers may write to it."""
        return self._pixels[top:bottom].copy()
