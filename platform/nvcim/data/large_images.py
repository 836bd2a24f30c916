"""Images read by rows, so that one of 10,000 x 10,000 pixels is never in memory as a whole.

Small images and formats that cannot be read in parts go through `ArrayImage`; TIFF files through `TiffImage`.
"""

import math
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from nvcim.data.images import Pixels, read_image
from nvcim.data.images.decoding import three_channels
from nvcim.data.images.intensities import Stretch, measure_stretch, stretched
from nvcim.data.images.tiff import check_pages, holds_channels, tiff_colours, without_alpha, without_log
from nvcim.errors import DataError

_LEAST_DEVIATION = 1e-3 * 255  # of a channel; an image of one colour has none of its own


class ImageRows(ABC):
    """An RGB image that gives its rows; `height` and `width` in pixels, at least 1."""

    height: int
    width: int

    @abstractmethod
    def rows(self, top: int, bottom: int) -> Pixels:
        """Return rows top..bottom-1, [bottom - top, width, 3]; of one type throughout an image."""

    def bands(self, height: int = 512) -> list[tuple[int, int]]:
        """(top, bottom) of consecutive bands that cover the image."""
        return [(top, min(top + height, self.height)) for top in range(0, self.height, height)]

    def colour_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and deviation of every channel over the whole image, float32 [3] each.

        They are the same however the image is read. The deviation is at least a thousandth of the range.
        """
        counts, total, squares = np.zeros((3, 256)), np.zeros(3), np.zeros(3)
        for top, bottom in self.bands():
            rows = self.rows(top, bottom)
            if rows.dtype == np.uint8:  # a histogram is exact, and faster than squares
                counts += [np.bincount(rows[..., channel].ravel(), minlength=256) for channel in range(3)]
            else:
                total += rows.sum(axis=(0, 1), dtype=np.float64)
                squares += np.einsum("ijc,ijc->c", rows, rows, dtype=np.float64)
        pixels = self.height * self.width
        if counts.any():
            values = np.arange(256.0)
            mean = counts @ values / pixels
            variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / pixels
        else:
            mean = total / pixels
            variance = np.maximum(squares / pixels - mean**2, 0)
        deviation = np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
        return mean.astype(np.float32), deviation.astype(np.float32)


class ArrayImage(ImageRows):
    """An image in memory, uint8 or float32 [H, W, 3] as `read_image` gives it.

    Raises:
        DataError: another shape or type, no pixel, or real numbers that are not on the scale of 0..255.
    """

    def __init__(self, pixels: Pixels) -> None:
        known = pixels.dtype in (np.uint8, np.float32)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or not known:
            raise DataError(
                f"expected an RGB image uint8 or float32 [H, W, 3] of at least one pixel, found {pixels.dtype} "
                f"{list(pixels.shape)}"
            )
        if pixels.dtype == np.float32:
            largest = float(pixels.max())
            if not np.isfinite(pixels).all() or 0 < largest <= 1:
                raise DataError(
                    f"a float32 image holds finite values on the scale of 0..255, found up to {largest:g}"
                )
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def rows(self, top: int, bottom: int) -> Pixels:
        """As `ImageRows.rows`; a copy, so that callers may write to it."""
        return self._pixels[top:bottom].copy()


# TIFF ---------------------------------------------------------------------------------------------------------

_IN_PARTS = 4096 * 4096  # pixels; smaller images are read whole
_KEPT_BYTES = 512 * 2**20  # decoded strips or tiles kept for the next rows
_INVERTED, _GREY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # TIFF 6.0, tag PhotometricInterpretation


def open_image(path: Path) -> ImageRows:
    """Open an image file to be read by rows: large TIFF files in parts, everything else whole.

    A TIFF that cannot be read in parts (turned, CMYK) is read whole, so that size decides nothing up to
    `images.MAX_PIXELS`.

    Raises:
        DataError: as `read_image` and `TiffImage`.
    """
    if path.suffix.lower() in (".tif", ".tiff") and tiff_pixels(path) > _IN_PARTS:
        try:
            return TiffImage(path)
        except WholeOnly:
            return ArrayImage(read_image(path))
    return ArrayImage(read_image(path))


def tiff_pixels(path: Path) -> int:
    """Height times width of a TIFF's first page by its header, 0 where there is none to be read."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return int(page.imagelength * page.imagewidth)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return 0


class WholeOnly(DataError):
    """A TIFF that `TiffImage` does not read in parts, though `read_image` may read it whole."""


class TiffImage(ImageRows):
    """The first page of a TIFF or BigTIFF file, tiled or in strips, in any compression imagecodecs knows.

    Grey and RGB of any number of bits, palettes and JPEG's YCbCr, interleaved or in planes; the pixels are those
    of `read_image`, but that JPEG's decoders may round differently.

    Raises:
        DataError: unreadable, damaged or several images; `WholeOnly` for other colours, channels and orientations.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        try:
            # Held open for the image's life; the file is closed with it.
            with without_log(tifffile.logger()):
                self._file = tifffile.TiffFile(path)
                self._page = page = self._file.pages.first
                check_pages(self._file, page, path.stat().st_size, str(path), math.inf)
            self.height, self.width = int(page.imagelength), int(page.imagewidth)
            refused = self._refused()
        except DataError:
            self._file.close()
            raise
        except Exception as error:  # tifffile raises whatever a damaged header leads it to
            raise DataError(f"{path}: cannot be read as a TIFF ({error})") from error
        weakref.finalize(self, self._file.close)
        if 0 in (self.height, self.width):
            raise DataError(f"{path}: an image of no pixels")
        if refused:
            raise WholeOnly(f"{path}: cannot be read in parts ({refused})")

    def _refused(self) -> str:
        """Why the page is not read in parts, empty where it is."""
        page = self._page
        if holds_channels(self._file):
            return "a page per channel"
        if int(page.tags.valueof("Orientation", 1)) != 1:
            return "stored turned or mirrored (Orientation)"
        if page.dtype is None or page.dtype.kind not in "buif" or page.imagedepth != 1:
            return f"pixels of type {page.dtype}, depth {page.imagedepth}"
        if page.photometric in (_INVERTED, _GREY, _RGB):
            channels = without_alpha(np.empty((1, 1, page.samplesperpixel), page.dtype), page).shape[2]
            return "" if channels in (1, 3) else f"{channels} channels"
        if page.photometric == _PALETTE and page.samplesperpixel == 1 and page.bitspersample <= 8:
            return ""
        if page.photometric == _YCBCR and page.samplesperpixel == 3 and page.compression in (6, 7):  # JPEG
            return ""
        return f"colours are {tifffile.PHOTOMETRIC(page.photometric).name}, {page.samplesperpixel} samples"

    def rows(self, top: int, bottom: int) -> Pixels:
        """As `ImageRows.rows`.

        Raises:
            DataError: a damaged strip or tile, or values that are negative or no numbers.
        """
        if self._page.photometric == _PALETTE:
            colours = np.asarray(self._page.colormap)  # [3, colours], 16 bits
            indices = self._samples(top, bottom)[..., 0].astype(np.intp)
            return np.asarray((colours >> 8).astype(np.uint8).T[indices])
        values = self._colours(top, bottom)
        return three_channels(values if values.dtype == np.uint8 else stretched(values, self._stretch))

    @cached_property
    def _stretch(self) -> Stretch:
        """How deep values become brightness, by percentiles of the whole image."""
        return measure_stretch(
            lambda: (self._colours(top, bottom) for top, bottom in self.bands()), str(self._path)
        )

    def _colours(self, top: int, bottom: int) -> NDArray[Any]:
        """Rows without transparency and with white as the largest value, [rows, W, 1 or 3]."""
        return tiff_colours(self._samples(top, bottom), self._page)

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
