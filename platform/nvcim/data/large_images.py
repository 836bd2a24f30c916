"""Images read by rows, so that one of 10,000 x 10,000 pixels is never in memory as a whole.

Small images and formats that cannot be read in parts go through `ArrayImage`; TIFF files through `TiffImage`.
"""

import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from nvcim.data.images import read_image
from nvcim.errors import DataError

_LEAST_DEVIATION = 1e-3 * 255  # of a channel; an image of one colour has none of its own


class ImageRows(ABC):
    """An RGB image that gives its rows; `height` and `width` in pixels, at least 1."""

    height: int
    width: int

    @abstractmethod
    def rows(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Return rows top..bottom-1, uint8 [bottom - top, width, 3]."""

    def bands(self, height: int = 512) -> list[tuple[int, int]]:
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


# TIFF ---------------------------------------------------------------------------------------------------------

_IN_PARTS = 4096 * 4096  # pixels; smaller images are read whole
_KEPT_BYTES = 512 * 2**20  # decoded strips or tiles kept for the next rows
_GREY, _INVERTED, _RGB, _PALETTE, _YCBCR = 1, 0, 2, 3, 6  # TIFF 6.0, tag PhotometricInterpretation


def open_image(path: Path) -> ImageRows:
    """Open an image file to be read by rows: large TIFF files in parts, everything else whole.

    Raises:
        DataError: as `read_image` and `TiffImage`.
    """
    if path.suffix.lower() in (".tif", ".tiff") and tiff_pixels(path) > _IN_PARTS:
        return TiffImage(path)
    return ArrayImage(read_image(path))


def tiff_pixels(path: Path) -> int:
    """Height times width of a TIFF's first page by its header, 0 where there is none to be read."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return int(page.imagelength * page.imagewidth)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return 0


class TiffImage(ImageRows):
    """The first page of a TIFF or BigTIFF file, tiled or in strips, in any compression imagecodecs knows.

    Grey, RGB and palette images of 1 to 16 bits, interleaved or in planes; transparency is dropped. More than
    8 bits are scaled by the image's own largest value, as `decode_image` does.

    Raises:
        DataError: unreadable, damaged, a stack of several pages, or another kind of colours or numbers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        try:
            # Held open for the image's life; the file is closed with it.
            self._file = tifffile.TiffFile(path)
            self._page = page = self._file.pages.first
            stacked = self._stacked()
        except Exception as error:  # tifffile raises whatever a damaged header leads it to
            raise DataError(f"{path}: cannot be read as a TIFF ({error})") from error
        weakref.finalize(self, self._file.close)
        self.height, self.width = int(page.imagelength), int(page.imagewidth)
        if 0 in (self.height, self.width):
            raise DataError(f"{path}: an image of no pixels")
        if stacked:
            raise DataError(
                f"{path}: a stack of {stacked} pages; save the one to be used as a file of its own"
            )
        if page.photometric not in (_GREY, _INVERTED, _RGB, _PALETTE, _YCBCR):
            raise DataError(
                f"{path}: colours are {tifffile.PHOTOMETRIC(page.photometric).name}; grey, RGB and palette can be read"
            )
        if page.dtype is None or page.dtype.kind not in "buif" or page.imagedepth != 1:
            raise DataError(f"{path}: pixels of type {page.dtype}, depth {page.imagedepth} cannot be read")
        if int(page.tags.valueof("Orientation", 1)) != 1:
            raise DataError(f"{path}: stored turned or mirrored (Orientation); save it upright")

    def _stacked(self) -> int:
        """How many pages of one image the file holds, 0 for a single one (a pyramid counts as one)."""
        levels = self._file.series[0].levels
        count = len(levels[0].pages)
        return count if count > 1 else 0

    def rows(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """As `ImageRows.rows`.

        Raises:
            DataError: a damaged strip or tile, or values that are negative or no numbers.
        """
        samples = self._samples(top, bottom)
        photometric = self._page.photometric
        if photometric == _PALETTE:
            colours = np.asarray(self._page.colormap)  # [3, colours], 16 bits
            return np.asarray((colours >> 8).astype(np.uint8).T[samples[..., 0]])
        if samples.dtype == bool:
            samples = samples.astype(np.uint8) * np.uint8(255)
        elif samples.dtype != np.uint8:
            samples = np.round(samples * (255.0 / self._largest)).astype(np.uint8)
        if photometric == _INVERTED:
            samples = 255 - samples
        if samples.shape[2] < 3:
            return np.repeat(samples[..., :1], 3, axis=2)
        return np.ascontiguousarray(samples[..., :3])

    @cached_property
    def _largest(self) -> float:
        """The largest value of any channel (transparency left out), at least 1."""
        largest = 1.0
        for top, bottom in self.bands():
            samples = self._samples(top, bottom)
            samples = samples[..., : 3 if samples.shape[2] >= 3 else 1]
            if not np.isfinite(samples).all() or samples.min() < 0:
                raise DataError(f"{self._path}: pixel values must be finite and not negative")
            largest = max(largest, float(samples.max()))
        return largest

    def _samples(self, top: int, bottom: int) -> NDArray[Any]:
        """Rows as they are stored, [rows, W, samples]."""
        page = self._page
        planes = page.planarconfig == 2 and page.samplesperpixel > 1
        if page.is_memmappable:
            return self._mapped(top, bottom, planes)
        out = np.zeros((bottom - top, self.width, page.samplesperpixel), dtype=page.dtype)
        high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, self.width)
        high = min(high, self.height)
        down, across = -(-self.height // high), -(-self.width // wide)
        for plane in range(page.samplesperpixel if planes else 1):
            for row in range(top // high, -(-bottom // high)):
                for column in range(across):
                    part = self._part((plane * down + row) * across + column)
                    if part is None:  # a sparse file leaves out parts that are zero
                        continue
                    first, left = row * high, column * wide
                    start, stop = max(top, first), min(bottom, first + len(part))
                    width = min(part.shape[1], self.width - left)
                    target = out[start - top : stop - top, left : left + width]
                    source = part[start - first : stop - first, :width]
                    if planes:
                        target[..., plane] = source[..., 0]
                    else:
                        target[...] = source
        return out

    def _mapped(self, top: int, bottom: int, planes: bool) -> NDArray[Any]:
        """Rows of an uncompressed file in one piece; mapped anew each time, so that pages go with the rows."""
        page = self._page
        count = page.samplesperpixel
        shape = (count, self.height, self.width) if planes else (self.height, self.width, count)
        assert page.dtype is not None, "checked when opened"
        stored = page.dtype.newbyteorder(self._file.byteorder)
        try:
            mapped = np.memmap(self._path, stored, mode="r", offset=page.dataoffsets[0], shape=shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path}: shorter than its header says ({error})") from error
        found = mapped[:, top:bottom].transpose(1, 2, 0) if planes else mapped[top:bottom]
        return found.astype(page.dtype)

    def _part(self, index: int) -> NDArray[Any] | None:
        """A decoded strip or tile [h, w, samples], None for one that is not stored."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        page = self._page
        try:
            size = page.databytecounts[index]
            if size == 0:
                return None
            with self._file.filehandle.lock:
                self._file.filehandle.seek(page.dataoffsets[index])
                data = self._file.filehandle.read(size)
            if len(data) != size:
                raise ValueError(f"{len(data)} of {size} bytes")
            decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        except Exception as error:  # every codec has errors of its own
            kind = "tile" if page.is_tiled else "strip"
            raise DataError(f"{self._path}: {kind} {index} cannot be decoded ({error})") from error
        if decoded is None:
            return None
        part = np.asarray(decoded[0])
        self._kept[index] = part
        while sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return part
