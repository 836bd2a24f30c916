"""Images in and masks out of a request: `nvcim.data.images` behind the limits of a server."""

import io
import logging
from collections.abc import AsyncGenerator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from nvcim.data.images import Pixels, decode_image, encode_instances
from nvcim.data.images.tiff import TIFF_STARTS, tiff_size
from nvcim.errors import DataError
from serving.backends import Refusal, RequestError
from serving.schemas import Instance

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 4 * 10**6  # the FCN sees an image whole: this takes a core about a minute and 1.2 GB

logger = logging.getLogger(__name__)


async def file_of_form(content: bytes, headers: Headers) -> bytes:
    """Return the one file of a multipart form, as browsers and `curl -F` send it.

    Raises:
        RequestError: 400 for a damaged form, other fields, or another number of files than one.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield content
        yield b""

    try:
        form = await MultiPartParser(headers, stream()).parse()
    except (MultiPartException, FormParserError) as error:
        raise _bad_image(f"the multipart form cannot be read: {error}") from error
    try:
        for name, value in form.multi_items():
            if isinstance(value, str):
                message = f"form field '{name}' is no file; settings go into the query, as in ?model=..."
                raise RequestError(Refusal(400, message, param=name))
        files = [value for value in form.values() if not isinstance(value, str)]
        if len(files) != 1:
            raise _bad_image(f"the form holds {len(files)} files; send one image")
        return await files[0].read()
    finally:
        await form.close()


def read_upload(content: bytes, scale: float = 1.0) -> Pixels:
    """Return an uploaded image as RGB [height, width, 3], at its own size, as the same file on disk is read.

    Raises:
        RequestError: 400 for an empty, truncated or foreign file, 413 for one with too many pixels, as sent
            or as resized by `scale` for the model.
    """
    if not content:
        raise _bad_image("the body is empty; send the bytes of an image")
    try:
        # The size stands in the header: a small file that would unpack to gigabytes is refused unread.
        width, height = _size(content)
        if width * height * max(1.0, scale**2) > MAX_PIXELS:
            at_scale = f" at scale {scale:g}" if scale > 1 else ""
            message = f"the image has {width} x {height} pixels{at_scale}; allowed: {MAX_PIXELS} in all"
            raise RequestError(Refusal(413, message, code="image_too_large"))
        return decode_image(content, "body")
    except RequestError:
        raise
    except DataError as error:
        raise _bad_image(str(error)) from error
    except Image.DecompressionBombError as error:
        message = f"the image has too many pixels; allowed: {MAX_PIXELS} in all"
        raise RequestError(Refusal(413, message, code="image_too_large")) from error
    except (
        Exception
    ) as error:  # Pillow raises nearly anything on broken headers; all of it is the file's fault
        logger.info("refused an upload of %d bytes: %r", len(content), error)
        raise _bad_image(f"not a readable image; allowed: {', '.join(FORMATS)}") from error


def _size(content: bytes) -> tuple[int, int]:
    """Width and height by an image's header. Pillow does not know every TIFF that is read here."""
    if content[:4] in TIFF_STARTS:
        return tiff_size(content, "body")
    with Image.open(io.BytesIO(content), formats=FORMATS) as header:
        return header.size


def encode_mask(mask: NDArray[np.int32]) -> bytes:
    """Return an instance map [height, width] as a 16-bit grey PNG.

    Raises:
        RequestError: 422 for more objects than 16 bits can tell apart.
    """
    try:
        return encode_instances(mask, "mask")
    except DataError as error:
        message = "more objects than a 16-bit mask can hold; send a part of the image"
        raise RequestError(Refusal(422, message, code="too_many_objects")) from error


def list_instances(mask: NDArray[np.int32]) -> list[Instance]:
    """Return area and bounding box of every object in an instance map [height, width], by label."""
    areas = np.bincount(mask.ravel())
    rows, columns = np.nonzero(mask)
    labels = mask[rows, columns]
    boxes = np.full((areas.size, 4), max(mask.shape), dtype=np.int64)
    boxes[:, 2:] = 0
    np.minimum.at(boxes, (labels, 0), columns)
    np.minimum.at(boxes, (labels, 1), rows)
    np.maximum.at(boxes, (labels, 2), columns + 1)
    np.maximum.at(boxes, (labels, 3), rows + 1)
    return [
        Instance(label=label, area_px=int(areas[label]), box_px=tuple(boxes[label].tolist()))
        for label in map(int, np.flatnonzero(areas))
        if label > 0
    ]


def _bad_image(message: str) -> RequestError:
    """Return a 400 that says what is wrong with the file."""
    return RequestError(Refusal(400, message, code="invalid_image"))
