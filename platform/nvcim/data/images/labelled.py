"""Images with their instances, one by one and as sets in folders."""

import csv
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nvcim.data.images.decoding import read_image, write_image
from nvcim.data.images.instances import read_instances, write_instances
from nvcim.data.images.intensities import Pixels
from nvcim.data.images.layouts import LAYOUTS, find_images, find_masks, is_labelled, pair_names
from nvcim.errors import DataError
from nvcim.storage import atomic_write_bytes

Layout = Literal["glas", "folders"]
"""How a set is written; more are read, see `layouts`."""


@dataclass(frozen=True)
class PlainImage:
    """An image without labels; pixels: uint8 or float32 [H, W, 3], see `Pixels`."""

    name: str
    pixels: Pixels


@dataclass(frozen=True)
class LabelledImage:
    """An image with its instances; pixels [H, W, 3] as `Pixels`, instances: int32 [H, W], 0 is background."""

    name: str
    pixels: Pixels
    instances: NDArray[np.int32]
    grade: str | None = None

    def __post_init__(self) -> None:
        if self.pixels.shape != (*self.instances.shape, 3):
            raise DataError(
                f"image '{self.name}': pixels {self.pixels.shape} do not fit instances {self.instances.shape}"
            )


def read_images(folder: Path) -> list[PlainImage]:
    """Read every image of a folder, labels or not, in name order.

    Raises:
        DataError: as `find_images` and `read_image`.
    """
    return [PlainImage(name, read_image(path)) for name, path in find_images(folder).items()]


def read_image_set(folder: Path, limit: int | None = None, seed: int = 0) -> list[LabelledImage]:
    """Read a labelled image set in any layout, in name order; `limit` draws that many images by `seed`.

    Raises:
        DataError: unknown layout, an image or mask without its partner, a mask whose size differs from its
            image's, an unreadable file, or a limit below 1.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not is_labelled(folder):
        raise DataError(f"{folder}: no labelled image set; expected {LAYOUTS}")
    images, masks = find_images(folder), find_masks(folder)
    names = pair_names(folder, images, masks, ("its image", "its mask"))
    if limit is not None:
        if limit < 1:
            raise DataError(f"limit must be at least 1, given {limit}")
        chosen = np.random.default_rng(seed).permutation(len(names))[:limit]
        names = [names[index] for index in sorted(chosen)]
    grades = _read_grades(folder / "Grade.csv")
    return [
        label_image(name, read_image(images[name]), images[name], masks[name], grades.get(name))
        for name in names
    ]


def label_image(
    name: str, pixels: Pixels, image: Path, mask: Path, grade: str | None = None
) -> LabelledImage:
    """Read the mask of an image that is read already.

    Raises:
        DataError: as `read_instances`, or a mask of another size; both files are named.
    """
    instances = read_instances(mask)
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
    return {
        unicodedata.normalize("NFC", row[name].strip()): row[grade].strip()
        for row in rows[1:]
        if len(row) > max(name, grade)
    }


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
