"""Images and instance masks: reading, writing, and the folder layouts that are understood.

Layouts of labelled sets: GlaS's own (`train_1.bmp` beside `train_1_anno.bmp`, grades in `Grade.csv`), and
`images/` + `labels/` with the same stem. An instance mask holds 0 for background and one integer per object.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from nvcim.errors import DataError
from nvcim.storage import atomic_write_bytes

if TYPE_CHECKING:
    import tifffile

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
Layout = Literal["glas", "folders"]


@dataclass(frozen=True)
class PlainImage:
    """An image without labels; pixels: uint8 [H, W, 3]."""

    name: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class LabelledImage:
    """An image with its instances; pixels: uint8 [H, W, 3], instances: int32 [H, W], 0 is background."""

    name: str
    pixels: NDArray[np.uint8]
    instances: NDArray[np.int32]
    grade: str | None = None

    def __post_init__(self) -> None:
        if self.pixels.shape != (*self.instances.shape, 3):
            raise DataError(
                f"image '{self.name}': pixels {self.pixels.shape} do not fit instances {self.instances.shape}"
            )


# Pillow's own bound; below it, an image in memory takes half a gigabyte at most.
MAX_PIXELS = 178_956_970

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
_ORIENTATION = 0x0112  # EXIF's and TIFF's tag
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _open(data: bytes, name: str) -> Image.Image:
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode PNG, BMP, TIFF or JPEG bytes to RGB, uint8 [H, W, 3]; `name` names them in errors.

    Grey, palette and CMYK images become RGB, transparency is dropped, EXIF's and TIFF's orientation is followed.
    Values beyond 8 bits are scaled by the image's own largest value (of all colours together), since such files
    seldom use the full range.

    Raises:
        DataError: truncated, damaged, no image, several images in one file, more than `MAX_PIXELS`, negative or
            not finite values, or channels that are neither grey nor RGB.
    """
    is_tiff = data[:4] in _TIFF
    values = _decode_tiff(data, name, as_stored=False) if is_tiff else _decode_deep_png(data, name)
    if values is not None:
        return _eight_bits(values, name)
    image = _open(data, name)
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(np.asarray(image), name)
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, whose values are inverted; without the mark they are not.
        image = ImageChops.invert(image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _eight_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Values [H, W] or [H, W, 1 or 3] as RGB of 8 bits."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] not in (1, 3):
        raise DataError(f"{name}: holds {values.shape[2]} channels; allowed: 1 (grey) or 3 (RGB), and alpha")
    if values.dtype != np.uint8:
        values = to_eight_bits(values, largest_value(values, name))
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else np.ascontiguousarray(values)


def largest_value(values: NDArray[Any], name: str) -> float:
    """Return the largest of values that are to be scaled by it, at least 1.

    Raises:
        DataError: values that are no real numbers, negative or not finite.
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{name}: pixel values must be real numbers, found {values.dtype}")
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not (low >= 0 and math.isfinite(high)):
        raise DataError(f"{name}: pixel values must be finite and not negative")
    return max(high, 1.0)


def to_eight_bits(values: NDArray[Any], largest: float) -> NDArray[np.uint8]:
    """Scale values [H, W, channels] from 0..largest to 0..255."""
    scale = 255.0 / largest
    scaled = np.empty(values.shape, dtype=np.uint8)
    # By rows: floats of all at once take 8 times as much.
    for row, into in zip(values, scaled, strict=True):
        into[:] = np.round(row * scale)
    return scaled


def tiff_colours(values: NDArray[Any], page: tifffile.TiffPage) -> NDArray[Any]:
    """Stored values [H, W, samples] of a grey or RGB page without alpha, white as the largest value.

    Fewer than 8 bits are spread over 0..255.
    """
    values = without_alpha(values, page)
    if page.bitspersample < 8:
        values = to_eight_bits(values, 2**page.bitspersample - 1)
    if page.photometric == 0 and values.dtype.kind == "u":
        values = (2 ** max(page.bitspersample, 8) - 1) - values
    return values


def without_alpha(values: NDArray[Any], page: tifffile.TiffPage) -> NDArray[Any]:
    """Stored values [H, W, samples] without transparency, and of RGB without any other sample too."""
    if page.extrasamples and int(page.extrasamples[0]) in (1, 2):  # alpha
        return values[:, :, : -len(page.extrasamples)]
    return values[:, :, :3] if page.photometric == 2 else values


def _decode_deep_png(data: bytes, name: str) -> NDArray[Any] | None:
    """Colours of a PNG with 16 bits a channel, of which Pillow would keep the upper 8; None for any other file."""
    # The header chunk has a fixed place: bits at 24, type of colour at 25 (0 is grey, which Pillow keeps whole).
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26 or data[24] != 16 or data[25] == 0:
        return None
    upright = _open(data, name)  # finds damage, and checks the size
    import imagecodecs

    try:
        values = np.asarray(imagecodecs.png_decode(data))
        orientation = int(Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, 1))
    except (*_BROKEN, RuntimeError) as error:
        raise DataError(f"{name}: cannot be read as an image ({error})") from error
    values = _oriented(values if values.ndim == 3 else values[:, :, None], orientation)
    if values.shape[1::-1] != upright.size:
        raise DataError(f"{name}: cannot be read as an image (its size is not what its header says)")
    return values[:, :, :3] if values.shape[2] >= 3 else values[:, :, :1]


def _decode_tiff(data: bytes, name: str, as_stored: bool) -> NDArray[Any] | None:
    """Values of a TIFF's image without its alpha, [H, W, channels].

    `as_stored` gives the numbers of any file, palette indices too; otherwise white is the largest value, and files
    whose colours Pillow knows better (palettes, CMYK) give None.
    """
    import tifffile

    try:
        with without_log(tifffile.logger()), tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            check_pages(file, page, len(data), name, MAX_PIXELS)
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
            tag = page.tags.get(_ORIENTATION)
            return _oriented(values, int(tag.value) if tag is not None else 1)
    except DataError:
        raise
    except Exception as error:  # on damaged files tifffile and its codecs raise nearly anything
        raise DataError(f"{name}: cannot be read as an image ({error})") from error


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
    others = [series for series in file.series[1:] if series.size >= page.size]  # smaller: previews
    if others or file.series[0].size > page.size or page.imagedepth > 1:
        raise DataError(f"{name}: holds several images; save the one that is meant as a file of its own")
    if math.prod(page.chunked) != len(page.dataoffsets):
        raise DataError(f"{name}: cannot be read as an image (its strips or tiles do not cover it)")
    ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    if max(ends, default=0) > size:
        raise DataError(f"{name}: cannot be read as an image (the file is truncated)")


def _oriented(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An array [H, W, ...] turned upright; what the first row and column show is `orientation`, 1..8."""
    if orientation in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as RGB, uint8 [H, W, 3].

    Raises:
        DataError: as `decode_image`, or the file cannot be read.
    """
    return decode_image(_read_bytes(path), str(path))


def read_instances(path: Path) -> NDArray[np.int32]:
    """Read an instance mask, int32 [H, W]; palette images give their indices, as GlaS's BMP files need.

    TIFF files give their values as stored, of any integer type and compression. Transparency is dropped.

    Raises:
        DataError: unreadable, lossy (JPEG), several different channels, or values that are no labels.
    """
    data = _read_bytes(path)
    values = _decode_tiff(data, str(path), as_stored=True) if data[:4] in _TIFF else None
    if values is None:
        values = _decode_deep_png(data, str(path))
    if values is None:
        image = _open(data, str(path))
        if image.format in ("JPEG", "MPO"):
            raise DataError(f"{path}: JPEG is lossy and cannot hold instance labels; use PNG, BMP or TIFF")
        values = np.asarray(image)
        if image.mode in ("LA", "PA", "RGBA"):
            values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(
                f"{path}: a mask has one channel of integer labels, found {values.shape[2]} that differ (colours)"
            )
        values = values[..., 0]
    if values.dtype.kind not in "biu":
        raise DataError(f"{path}: instance labels are integers, found {values.dtype}")
    if values.size and (int(values.min()) < 0 or int(values.max()) > np.iinfo(np.int32).max):
        raise DataError(f"{path}: instance labels must lie in 0..2147483647")
    return values.astype(np.int32)


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Return the PNG file of an RGB image (uint8 [H, W, 3]) or a grey one (uint8 or uint16 [H, W])."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


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


def write_image(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write an RGB image [H, W, 3] as PNG; the file appears whole or not at all."""
    atomic_write_bytes(path, encode_png(pixels))


def write_instances(instances: NDArray[np.int32], path: Path) -> None:
    """Write an instance mask [H, W] as TIFF where the path ends so, else as a uint16 PNG.

    Raises:
        DataError: as `encode_instances` and `encode_instances_tiff`.
    """
    encode = encode_instances_tiff if path.suffix.lower() in (".tif", ".tiff") else encode_instances
    atomic_write_bytes(path, encode(instances, str(path)))


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Image files of a folder by stem, in name order.

    Raises:
        DataError: no such folder, or two files with the same stem.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.is_file():
            if path.stem in found:
                raise DataError(f"{path}: same name as {found[path.stem].name}; keep one of them")
            found[path.stem] = path
    return found


def find_masks(folder: Path, images: Iterable[Path] = ()) -> dict[str, Path]:
    """Return mask files by image name: of `labels/`, else the `*_anno` files, else every mask file here.

    Overlays (`*_overlay`) are left out. `images` are files known to be none.

    Raises:
        DataError: no such folder, no mask in it, or one of the images among the masks.
    """
    if (folder / "labels").is_dir():
        masks = _files(folder / "labels", MASK_SUFFIXES)
    else:
        files = _files(folder, MASK_SUFFIXES)
        annotated = {s.removesuffix("_anno"): p for s, p in files.items() if s.endswith("_anno")}
        masks = annotated or files
    masks = {name: path for name, path in masks.items() if not name.endswith("_overlay")}
    known = {path.resolve() for path in images}
    for path in masks.values():
        if path.resolve() in known:
            raise DataError(
                f"{path}: is an image, not a mask; masks lie in labels/, end in _anno or have a folder"
            )
    if not masks:
        raise DataError(f"{folder}: no instance masks found (looked for {', '.join(MASK_SUFFIXES)})")
    return masks


def find_images(folder: Path) -> dict[str, Path]:
    """Return image files by name, of `images/` where there is one, else of the folder; masks are left out.

    Raises:
        DataError: no such folder, or no image in it.
    """
    root = folder / "images" if (folder / "images").is_dir() else folder
    images = {s: p for s, p in _files(root, SUFFIXES).items() if not s.endswith("_anno")}
    if not images:
        raise DataError(f"{root}: no images found (looked for {', '.join(SUFFIXES)})")
    return images


def read_images(folder: Path) -> list[PlainImage]:
    """Read every image of a folder, labels or not, in name order.

    Raises:
        DataError: as `find_images` and `read_image`.
    """
    return [PlainImage(name, read_image(path)) for name, path in find_images(folder).items()]


def pair_names(folder: Path, left: Iterable[str], right: Iterable[str], what: tuple[str, str]) -> list[str]:
    """Return the names that both sides hold, in order; `what` names the sides in the error.

    Raises:
        DataError: a name is on one side only.
    """
    left, right = set(left), set(right)
    for lonely, other in ((left - right, what[1]), (right - left, what[0])):
        if lonely:
            shown = ", ".join(sorted(lonely)[:3]) + (", ..." if len(lonely) > 3 else "")
            raise DataError(f"{folder}: {len(lonely)} file(s) without {other}: {shown}")
    return sorted(left)


def _is_labelled(folder: Path) -> bool:
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return True
    return any(stem.endswith("_anno") for stem in _files(folder, MASK_SUFFIXES))


def read_image_set(folder: Path, limit: int | None = None, seed: int = 0) -> list[LabelledImage]:
    """Read a labelled image set in either layout, in name order; `limit` draws that many images by `seed`.

    Raises:
        DataError: unknown layout, an image or mask without its partner, a mask whose size differs from its
            image's, an unreadable file, or a limit below 1.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not _is_labelled(folder):
        raise DataError(
            f"{folder}: no labelled image set; expected images/ and labels/ with the same names, "
            "or GlaS's name.bmp beside name_anno.bmp"
        )
    images, masks = find_images(folder), find_masks(folder)
    names = pair_names(folder, images, masks, ("its image", "its mask"))
    if limit is not None:
        if limit < 1:
            raise DataError(f"limit must be at least 1, given {limit}")
        chosen = np.random.default_rng(seed).permutation(len(names))[:limit]
        names = [names[index] for index in sorted(chosen)]
    grades = _read_grades(folder / "Grade.csv")
    return [_read_pair(name, images[name], masks[name], grades.get(name)) for name in names]


def _read_pair(name: str, image: Path, mask: Path, grade: str | None) -> LabelledImage:
    pixels, instances = read_image(image), read_instances(mask)
    if pixels.shape[:2] != instances.shape:
        (h, w), (mask_h, mask_w) = pixels.shape[:2], instances.shape
        raise DataError(f"{mask}: mask of {mask_w}x{mask_h} pixels, but its image {image} has {w}x{h}")
    return LabelledImage(name, pixels, instances, grade)


def _read_grades(path: Path) -> dict[str, str]:
    """Grades by image name of GlaS's `Grade.csv` (name, patient, grade, ...); empty where there is none."""
    if not path.is_file():
        return {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows:
        return {}
    header = [cell.strip() for cell in rows[0]]
    if "name" not in header or "grade (GlaS)" not in header:
        raise DataError(f"{path}: expected columns 'name' and 'grade (GlaS)', found {', '.join(header)}")
    name, grade = header.index("name"), header.index("grade (GlaS)")
    return {row[name].strip(): row[grade].strip() for row in rows[1:] if len(row) > max(name, grade)}


def write_image_set(images: Iterable[LabelledImage], folder: Path, layout: Layout = "folders") -> None:
    """Write a labelled set as PNG in GlaS's naming (with `Grade.csv`) or as `images/` + `labels/`.

    Raises:
        DataError: a label beyond 65535.
    """
    images = list(images)
    for image in images:
        if layout == "glas":
            paths = folder / f"{image.name}.png", folder / f"{image.name}_anno.png"
        else:
            paths = folder / "images" / f"{image.name}.png", folder / "labels" / f"{image.name}.png"
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_image(image.pixels, paths[0])
        write_instances(image.instances, paths[1])
    if layout == "glas" and any(image.grade for image in images):
        lines = ["name,patient ID,grade (GlaS)"]
        lines += [f"{image.name},,{image.grade or ''}" for image in images]
        atomic_write_bytes(folder / "Grade.csv", ("\n".join(lines) + "\n").encode())
