"""Instance masks: reading them from whatever files people keep them in, and writing them.

A mask holds 0 for background and one integer per object; a folder of masks with one object each is one, too.
"""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nvcim.data.images.decoding import decode_deep_png, encode_png, open_whole, read_bytes
from nvcim.data.images.layouts import mask_files
from nvcim.data.images.tiff import TIFF_STARTS, decode_tiff
from nvcim.errors import DataError
from nvcim.storage import atomic_write_bytes

_log = logging.getLogger(__name__)

_LARGEST_LABEL = np.iinfo(np.int32).max


def read_instances(path: Path) -> NDArray[np.int32]:
    """Read an instance mask, int32 [H, W]; palette images give their indices, as GlaS's BMP files need.

    TIFF files give their values as stored, of any type and compression; real numbers count where they are
    whole. Transparency is dropped. A binary mask (see `_is_binary`) in several pieces gives an object per
    piece, and the log says so. A folder of masks gives an object per file.

    Raises:
        DataError: unreadable, lossy (JPEG), several different channels, or values that are no labels; in a
            folder, no mask, masks of different size, or two that overlap.
    """
    if path.is_dir():
        return _read_parts(path)
    labels, stored = _read_labels(path)
    if not _is_binary(labels, stored):
        return labels
    pieces = np.zeros(labels.shape, dtype=np.int32)
    count = int(ndimage.label(labels, structure=np.ones((3, 3)), output=pieces))
    if count < 2:
        return labels
    _tell_of_binary_masks(path, count)
    return pieces


def _read_labels(path: Path) -> tuple[NDArray[np.int32], np.dtype[Any]]:
    """Labels of a mask file as they are, int32 [H, W], and the type they are stored in."""
    data = read_bytes(path)
    values = decode_tiff(data, str(path), as_stored=True) if data[:4] in TIFF_STARTS else None
    if values is None:
        values = decode_deep_png(data, str(path))
    if values is None:
        image = open_whole(data, str(path))
        if image.format in ("JPEG", "MPO"):
            raise DataError(f"{path}: JPEG is lossy and cannot hold instance labels; use PNG, BMP or TIFF")
        values = np.asarray(image)
        if image.mode in ("LA", "PA", "RGBA"):
            values = values[..., :-1]
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: instance labels are integers, found {values.dtype}")
    if values.dtype.kind == "f":
        parts = values[~(np.isfinite(values) & (values == np.round(values)))]
        if parts.size:
            raise DataError(f"{path}: instance labels are integers, found {values.dtype} with {parts[0]:g}")
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(
                f"{path}: a mask has one channel of integer labels, found {values.shape[2]} that differ (colours)"
            )
        values = values[..., 0]
    if values.size and not (values.min() >= 0 and values.max() <= _LARGEST_LABEL):
        raise DataError(f"{path}: instance labels must lie in 0..{_LARGEST_LABEL}")
    return values.astype(np.int32), values.dtype


def _is_binary(labels: NDArray[np.int32], stored: np.dtype[Any]) -> bool:
    """Whether labels [H, W] only tell foreground from background, rather than being one object's own.

    They do with one value alone that is white (255, 65535), or 1 in a type that is seldom used for many
    objects: bits, bytes, signed integers, reals. A 1 in unsigned 16 or 32 bits is an object, as written here.
    """
    top = int(labels.max(initial=0))
    if top not in (1, 255, 65535) or (top == 1 and stored.kind == "u" and stored.itemsize > 1):
        return False
    return int(np.count_nonzero(labels)) == int(np.count_nonzero(labels == top))


_told: set[Path] = set()  # folders; one line for each, not one for each of thousands of masks


def _tell_of_binary_masks(path: Path, pieces: int) -> None:
    if path.parent in _told:
        return
    _told.add(path.parent)
    _log.warning(
        "%s: a binary mask; its %d pieces are read as one object each, as in all such masks of this folder. "
        "Touching objects stay one: write one integer per object to tell them apart",
        path,
        pieces,
    )


def _read_parts(folder: Path) -> NDArray[np.int32]:
    """Read a folder of masks of one object each, numbered 1..n in the order of their names."""
    labels: NDArray[np.int32] | None = None
    files = mask_files(folder)
    if not files:
        raise DataError(f"{folder}: no masks found in this folder of one mask per object")
    for number, path in enumerate(files, start=1):
        inside = _read_labels(path)[0] > 0
        if labels is None:
            labels = np.zeros(inside.shape, dtype=np.int32)
        if inside.shape != labels.shape:
            raise DataError(f"{path}: mask of another size than {files[0].name} beside it")
        if labels[inside].any():
            other = files[int(labels[inside].max()) - 1]
            raise DataError(f"{path}: overlaps the object of {other.name}; a pixel belongs to one object")
        labels[inside] = number
    assert labels is not None
    return labels


def encode_instances(instances: NDArray[np.int32], name: str) -> bytes:
    """Return the uint16 PNG file of an instance mask [H, W].

    Raises:
        DataError: a label beyond 65535, which uint16 cannot hold.
    """
    if instances.size and not 0 <= int(instances.min()) <= int(instances.max()) <= 65535:
        raise DataError(f"{name}: labels must lie in 0..65535 to be written as a uint16 PNG; .tif holds more")
    return encode_png(instances.astype(np.uint16))


def encode_instances_tiff(instances: NDArray[np.int32], name: str) -> bytes:
    """Return the tiled, compressed TIFF of an instance mask [H, W]: uint16, or uint32 with a label beyond 65535.

    A BigTIFF where 4 GiB might not do.

    Raises:
        DataError: a negative label.
    """
    import tifffile

    if instances.min(initial=0) < 0:
        raise DataError(f"{name}: instance labels must lie in 0..2147483647")
    kind = np.uint32 if instances.max(initial=0) > 65535 else np.uint16
    side = 256

    def tiles() -> Iterator[NDArray[Any]]:
        for top in range(0, instances.shape[0], side):
            for left in range(0, instances.shape[1], side):
                tile = np.zeros((side, side), dtype=kind)
                part = instances[top : top + side, left : left + side]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        tiles(),
        shape=instances.shape,
        dtype=kind,
        tile=(side, side),
        compression="zlib",
        predictor=True,
        photometric="minisblack",
        bigtiff=instances.size * kind().itemsize > 2**32 - 2**25,
        metadata=None,
    )
    return buffer.getvalue()


def write_instances(instances: NDArray[np.int32], path: Path) -> None:
    """Write an instance mask [H, W] as TIFF where the path ends so, else as a uint16 PNG.

    Raises:
        DataError: as `encode_instances` and `encode_instances_tiff`.
    """
    encode = encode_instances_tiff if path.suffix.lower() in (".tif", ".tiff") else encode_instances
    atomic_write_bytes(path, encode(instances, str(path)))
