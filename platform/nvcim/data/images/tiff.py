"""What TIFF files hold: the one image of a file as numbers, and what of it are colours."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nvcim.errors import DataError

if TYPE_CHECKING:
    import tifffile

# Pillow's own bound; below it, an image in memory takes half a gigabyte at most.
MAX_PIXELS = 178_956_970
ORIENTATION = 0x0112  # EXIF's and TIFF's tag
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_SAMPLES = 8  # a pixel; more are no colours, and would unpack to gigabytes
_SEVERAL = "{name}: holds several images; save the one that is meant as a file of its own (channels as RGB)"


def decode_tiff(data: bytes, name: str, as_stored: bool) -> NDArray[Any] | None:
    """Values of a TIFF's image without its alpha, [H, W, channels].

    `as_stored` gives the numbers of any file, palette indices too; otherwise white is the largest value, three
    channels of a fluorescence stack (axes CYX) are colours, and files whose colours Pillow knows better (palettes,
    CMYK) give None.

    Raises:
        DataError: as `check_pages`, a damaged file, and as labels a lossy one.
    """
    import tifffile

    try:
        with without_log(tifffile.logger()), tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            check_pages(file, page, len(data), name, MAX_PIXELS)
            if holds_channels(file):
                if as_stored:
                    raise DataError(_SEVERAL.format(name=name))
                return np.moveaxis(file.series[0].asarray(), 0, -1)
            if not as_stored and page.photometric not in (0, 1, 2):  # grey of either polarity, RGB
                return None
            if as_stored and page.compression in (6, 7, 34892):
                raise DataError(
                    f"{name}: JPEG is lossy and cannot hold instance labels; use PNG, BMP or TIFF"
                )
            values = page.asarray()
            if page.axes.startswith("S"):  # one plane per channel
                values = np.moveaxis(values, 0, -1)
            values = values.reshape(*values.shape[:2], -1)
            values = without_alpha(values, page) if as_stored else tiff_colours(values, page)
            tag = page.tags.get(ORIENTATION)
            return oriented(values, int(tag.value) if tag is not None else 1)
    except DataError:
        raise
    except Exception as error:  # on damaged files tifffile and its codecs raise nearly anything
        raise DataError(f"{name}: cannot be read as an image ({error})") from error


def tiff_size(data: bytes, name: str) -> tuple[int, int]:
    """Return width and height of a TIFF's first page by its header, nothing decoded.

    Raises:
        DataError: no such header.
    """
    import tifffile

    try:
        with without_log(tifffile.logger()), tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            return int(page.imagewidth), int(page.imagelength)
    except Exception as error:  # on damaged files tifffile raises nearly anything
        raise DataError(f"{name}: cannot be read as an image ({error})") from error


def tiff_colours(values: NDArray[Any], page: tifffile.TiffPage) -> NDArray[Any]:
    """Stored values [H, W, samples] of a grey or RGB page without alpha, white as the largest value.

    Fewer than 8 bits are spread over 0..255.
    """
    values = without_alpha(values, page)
    if page.bitspersample < 8:
        values = np.round(values * (255.0 / (2**page.bitspersample - 1))).astype(np.uint8)
    if page.photometric == 0 and values.dtype.kind == "u":
        values = (2 ** max(page.bitspersample, 8) - 1) - values
    return values


def without_alpha(values: NDArray[Any], page: tifffile.TiffPage) -> NDArray[Any]:
    """Stored values [H, W, samples] without transparency, and of RGB without any other sample too."""
    if page.extrasamples and int(page.extrasamples[0]) in (1, 2):  # alpha
        return values[:, :, : -len(page.extrasamples)]
    return values[:, :, :3] if page.photometric == 2 else values


@contextmanager
def without_log(logger: logging.Logger) -> Iterator[None]:
    """Keep a library from logging every damaged tag; what matters of it comes as one error of ours."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def check_pages(file: tifffile.TiffFile, page: tifffile.TiffPage, size: int, name: str, most: float) -> None:
    """Refuse a TIFF of several images, of more than `most` pixels, or cut before its pixels end.

    Raises:
        DataError: names what is wrong.
    """
    pixels = page.imagewidth * page.imagelength
    if pixels > most:
        raise DataError(f"{name}: {page.imagewidth} x {page.imagelength} pixels; allowed here: {most} in all")
    if page.samplesperpixel > _MOST_SAMPLES:
        raise DataError(
            f"{name}: holds {page.samplesperpixel} channels; allowed: 1 (grey) or 3 (RGB), and alpha"
        )
    series = file.series[0]
    others = [more for more in file.series[1:] if more.size >= page.size]  # smaller: previews
    if others or page.imagedepth > 1 or (series.size > page.size and not holds_channels(file)):
        if not others and series.axes == "CYX":
            raise DataError(
                f"{name}: holds {series.shape[0]} channels (axes CYX); allowed: 1 (grey) or 3 (as RGB); save the "
                "channel that shows the objects as a file of its own"
            )
        raise DataError(_SEVERAL.format(name=name))
    for one in series.pages if holds_channels(file) else [page]:
        _check_parts(one, size, name)


def holds_channels(file: tifffile.TiffFile) -> bool:
    """Whether a file is a stack of three channels, one a page, by its own metadata (ImageJ's, OME's, tifffile's)."""
    series = file.series[0]
    return len(file.series) == 1 and series.axes == "CYX" and series.shape[0] == 3 and len(series.pages) == 3


def _check_parts(page: tifffile.TiffPage | tifffile.TiffFrame | None, size: int, name: str) -> None:
    """Refuse a page whose strips or tiles are missing or lie beyond the file's `size` in bytes."""
    if page is None or math.prod(page.chunked) != len(page.dataoffsets):
        raise DataError(f"{name}: cannot be read as an image (its strips or tiles do not cover it)")
    ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    if max(ends, default=0) > size:
        raise DataError(f"{name}: cannot be read as an image (the file is truncated)")


def oriented(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An array [H, W, ...] turned upright; what the first row and column show is `orientation`, 1..8."""
    if orientation in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
