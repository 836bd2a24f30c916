"""From an image file's bytes to RGB, and back to PNG."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from nvcim.data.images.intensities import Pixels, displayed, stretched_whole
from nvcim.data.images.tiff import ORIENTATION, TIFF_STARTS, decode_tiff, oriented
from nvcim.errors import DataError
from nvcim.storage import atomic_write_bytes

# What Pillow raises for files that are truncated, damaged or too large to be meant as an image.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_whole(data: bytes, name: str) -> Image.Image:
    """Decode an image file fully, so that a truncated one is found here, and turn it upright by its EXIF tag."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the bound
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of damaged tags; whether the pixels are whole counts
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.format == "PNG":
                # Decoding alone misses a file cut after its last pixel; verifying walks to the end.
                image.verify()
                image = Image.open(io.BytesIO(data))
            image.load()
            if image.format != "TIFF":  # Pillow turns these by itself
                kept = image.format
                image = ImageOps.exif_transpose(image)
                image.format = kept
    except _BROKEN as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        if not data:
            reason = "the file is empty"
        raise DataError(f"{name}: cannot be read as an image ({reason})") from error
    return image


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str) -> Pixels:
    """Decode PNG, BMP, TIFF or JPEG bytes to RGB [H, W, 3]; `name` names them in errors.

    Grey, palette and CMYK images become RGB, transparency is dropped, EXIF's and TIFF's orientation is followed.
    Images of 8 bits are uint8; deeper ones are float32 on the same scale, stretched by percentiles of the image
    itself (`intensities`). A stack of three channels (axes CYX) is RGB.

    Raises:
        DataError: truncated, damaged, no image, several images in one file, more than `MAX_PIXELS`, negative or
            not finite values, or channels that are neither grey nor RGB.
    """
    is_tiff = data[:4] in TIFF_STARTS
    values = decode_tiff(data, name, as_stored=False) if is_tiff else decode_deep_png(data, name)
    if values is not None:
        return _colours(values, name)
    image = open_whole(data, name)
    if image.mode.startswith("I") or image.mode == "F":
        return _colours(np.asarray(image), name)
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, whose values are inverted; without the mark they are not.
        image = ImageChops.invert(image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _colours(values: NDArray[Any], name: str) -> Pixels:
    """Values [H, W] or [H, W, 1 or 3] as RGB, deep ones stretched."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] not in (1, 3):
        raise DataError(f"{name}: holds {values.shape[2]} channels; allowed: 1 (grey) or 3 (RGB), and alpha")
    return three_channels(values if values.dtype == np.uint8 else stretched_whole(values, name))


def three_channels(values: NDArray[Any]) -> NDArray[Any]:
    """Values [rows, W, 1 or 3] as RGB, [rows, W, 3]."""
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else np.ascontiguousarray(values)


def decode_deep_png(data: bytes, name: str) -> NDArray[Any] | None:
    """Colours of a PNG with 16 bits a channel, of which Pillow would keep the upper 8; None for any other file."""
    # The header chunk has a fixed place: bits at 24, type of colour at 25 (0 is grey, which Pillow keeps whole).
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26 or data[24] != 16 or data[25] == 0:
        return None
    upright = open_whole(data, name)  # finds damage, and checks the size
    import imagecodecs

    try:
        values = np.asarray(imagecodecs.png_decode(data))
        orientation = int(Image.open(io.BytesIO(data)).getexif().get(ORIENTATION, 1))
    except (*_BROKEN, RuntimeError) as error:
        raise DataError(f"{name}: cannot be read as an image ({error})") from error
    values = oriented(values if values.ndim == 3 else values[:, :, None], orientation)
    if values.shape[1::-1] != upright.size:
        raise DataError(f"{name}: cannot be read as an image (its size is not what its header says)")
    return values[:, :, :3] if values.shape[2] >= 3 else values[:, :, :1]


def read_image(path: Path) -> Pixels:
    """Read an image file as RGB [H, W, 3], as `decode_image` does.

    Raises:
        DataError: as `decode_image`, or the file cannot be read.
    """
    return decode_image(read_bytes(path), str(path))


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Return the PNG file of an RGB image (uint8 [H, W, 3]) or a grey one (uint8 or uint16 [H, W])."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_image(pixels: Pixels, path: Path) -> None:
    """Write an RGB image [H, W, 3] as PNG of 8 bits; the file appears whole or not at all."""
    atomic_write_bytes(path, encode_png(displayed(pixels)))
