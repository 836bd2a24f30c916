"""Images and instance masks: reading, writing, and the folder layouts that are understood.

Layouts of labelled sets: GlaS's own (`train_1.bmp` beside `train_1_anno.bmp`, grades in `Grade.csv`), and
`images/` + `labels/` with the same stem. An instance mask holds 0 for background and one integer per object.
"""

import csv
import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nvcim.errors import DataError
from nvcim.storage import atomic_write_bytes

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


# What Pillow raises for files that are truncated, damaged or too large to be meant as an image.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def _open(data: bytes, name: str) -> Image.Image:
    """Decode an image file fully, so that a truncated one is found here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.format == "PNG":
                # Decoding alone misses a file cut after its last pixel; verifying walks to the end.
                image.verify()
                image = Image.open(io.BytesIO(data))
            image.load()
    except _BROKEN as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name}: cannot be read as an image ({reason})") from error
    return image


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode PNG, BMP, TIFF or JPEG bytes to RGB, uint8 [H, W, 3]; `name` names them in errors.

    Grey and palette images become RGB, transparency is dropped, 16-bit grey is scaled to 8 bits by its own
    largest value, since such files seldom use the full range.

    Raises:
        DataError: truncated, damaged, or no image.
    """
    image = _open(data, name)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all() or values.min() < 0:
            raise DataError(f"{name}: pixel values must be finite and not negative")
        grey = np.round(values * (255.0 / max(values.max(), 1.0))).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as RGB, uint8 [H, W, 3].

    Raises:
        DataError: as `decode_image`, or the file cannot be read.
    """
    return decode_image(_read_bytes(path), str(path))


def read_instances(path: Path) -> NDArray[np.int32]:
    """Read an instance mask, int32 [H, W]; palette images give their indices, as GlaS's BMP files need.

    Raises:
        DataError: unreadable, lossy (JPEG), several different channels, or values that are no labels.
    """
    image = _open(_read_bytes(path), str(path))
    if image.format == "JPEG":
        raise DataError(f"{path}: JPEG is lossy and cannot hold instance labels; use PNG, BMP or TIFF")
    values = np.asarray(image)
    if values.ndim == 3:
        if (values[..., :1] != values[..., :3]).any():
            raise DataError(f"{path}: a mask has one channel of labels, found colours (mode {image.mode})")
        values = values[..., 0]
    if values.dtype.kind == "f":
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
        raise DataError(f"{name}: labels must lie in 0..65535 to be written as a uint16 PNG")
    return encode_png(instances.astype(np.uint16))


def write_image(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write an RGB image [H, W, 3] as PNG; the file appears whole or not at all."""
    atomic_write_bytes(path, encode_png(pixels))


def write_instances(instances: NDArray[np.int32], path: Path) -> None:
    """Write an instance mask [H, W] as a uint16 PNG.

    Raises:
        DataError: as `encode_instances`.
    """
    atomic_write_bytes(path, encode_instances(instances, str(path)))


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


def find_masks(folder: Path) -> dict[str, Path]:
    """Return mask files by image name: of `labels/`, else the `*_anno` files, else every mask file here.

    Raises:
        DataError: no such folder, or no mask in it.
    """
    if (folder / "labels").is_dir():
        masks = _files(folder / "labels", MASK_SUFFIXES)
    else:
        files = _files(folder, MASK_SUFFIXES)
        annotated = {s.removesuffix("_anno"): p for s, p in files.items() if s.endswith("_anno")}
        masks = annotated or files
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
