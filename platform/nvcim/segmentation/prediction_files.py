"""Predict image files into a folder: masks, overlays, outlines and measurements."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nvcim.compute import resolve_device
from nvcim.data.images import displayed, encode_instances, encode_instances_tiff, image_name, write_image
from nvcim.data.large_images import ImageRows, open_image
from nvcim.errors import DataError, ModelError
from nvcim.segmentation.inference import PredictionSettings
from nvcim.segmentation.instances import FoundObjects, find_objects
from nvcim.segmentation.model_files import load_fcn
from nvcim.segmentation.network import baked
from nvcim.segmentation.outputs import write_geojson, write_objects
from nvcim.segmentation.overlays import overlay
from nvcim.storage import atomic_write_bytes

Extra = Literal["geojson", "objects", "tiff"]
"""What is written beside mask and overlay: outlines, a CSV of measurements; or the mask as TIFF, not PNG."""

OVERLAY_SIDE = 4096
"""Pixels; the overlay of a larger image shows every second, third, ... pixel."""


@dataclass(frozen=True)
class PredictedFile:
    """One predicted image: the files that were written and what was found (areas in pixels)."""

    image: Path
    mask: Path
    overlay: Path
    objects: int
    mean_area: float
    geojson: Path | None = None
    table: Path | None = None


def predict_files(
    models: Path | Sequence[Path],
    images: Iterable[Path],
    out: Path,
    settings: PredictionSettings | None = None,
    device: str = "auto",
    extras: Iterable[Extra] = (),
    on_file: Callable[[PredictedFile], None] | None = None,
) -> list[PredictedFile]:
    """Write `<name>.png` (uint16 instances) and `<name>_overlay.png` to `out` for every image file.

    <name> is the file's as `image_name` gives it.

    `models` are folders of models; a folder that holds `member-*` folders stands for them, and several models
    decide by their mean. Masks with more than 65,535 objects become `<name>.tif` (uint32), as do all with the
    extra "tiff" (uint16 where that holds them). `on_file` is called as soon as an image's files are written.

    Raises:
        DataError: an unreadable image, no image at all, or a file to be written that is one of the images or
            the result of another; nothing is written then.
        ModelError, ConfigError: as `load_fcn`, networks with different classes, or a split they cannot do.
    """
    paths = list(images)
    if not paths:
        raise DataError("no image given to predict")
    wanted = frozenset(extras)
    _refuse_overwriting(paths, out, wanted)
    folders = [models] if isinstance(models, Path) else list(models)
    where = resolve_device(device)
    networks = [baked(load_fcn(member)).to(where) for folder in folders for member in member_folders(folder)]
    results = []
    for path in paths:
        image = open_image(path)
        found = find_objects(networks, image, settings)
        results.append(_write(path, image, found, out, wanted))
        if on_file is not None:
            on_file(results[-1])
    return results


def _refuse_overwriting(paths: Sequence[Path], out: Path, extras: frozenset[Extra]) -> None:
    """Refuse images whose results would overwrite an image or another's result, before any is written.

    Raises:
        DataError: names both files.
    """
    given = {path.resolve(): path for path in paths}
    owners: dict[Path, Path] = {}
    for path in paths:
        # A mask becomes a TIFF by itself where a PNG cannot hold its labels.
        endings = ([] if "tiff" in extras else [".png"]) + [".tif", "_overlay.png"]
        endings += [".geojson"] if "geojson" in extras else []
        endings += ["_objects.csv"] if "objects" in extras else []
        for ending in endings:
            written = (out / f"{image_name(path)}{ending}").resolve()
            if written in given:
                raise DataError(
                    f"{path}: its result would overwrite the image {given[written]}; choose another folder for results"
                )
            if owners.setdefault(written, path) is not path:
                raise DataError(f"{path}: would overwrite the result of {owners[written]} ({written.name})")


def member_folders(folder: Path) -> list[Path]:
    """Return the `member-*` folders of an ensemble in order of their numbers, or the folder itself.

    Raises:
        ModelError: no such folder, a model of its own beside members, or members without a number of their own.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder of a model")
    members: dict[int, Path] = {}
    for path in sorted(path for path in folder.glob("member-*") if path.is_dir()):
        number = path.name.removeprefix("member-")
        if not (number.isascii() and number.isdecimal()):
            raise ModelError(f"{path}: a member of an ensemble is called member-<number>")
        if other := members.get(int(number)):
            raise ModelError(f"{path}: has the same number as {other}")
        members[int(number)] = path
    if members and (folder / "fcn.json").exists():
        raise ModelError(
            f"{folder}: holds a model of its own beside {members[min(members)].name}; "
            "move one of them to another folder"
        )
    return [members[number] for number in sorted(members)] or [folder]


def _write(
    path: Path, image: ImageRows, found: FoundObjects, out: Path, extras: frozenset[Extra]
) -> PredictedFile:
    instances = found.instances
    count = int(instances.max(initial=0))
    mask = out / f"{image_name(path)}.png"
    if "tiff" in extras or count > 65535:
        mask = mask.with_suffix(".tif")
        atomic_write_bytes(mask, encode_instances_tiff(instances, str(mask)))
    else:
        atomic_write_bytes(mask, encode_instances(instances, str(mask)))
    drawn = out / f"{image_name(path)}_overlay.png"
    write_image(_overlay(image, instances), drawn)
    outlines, table = out / f"{image_name(path)}.geojson", out / f"{image_name(path)}_objects.csv"
    if "geojson" in extras:
        write_geojson(instances, outlines)
    if "objects" in extras:
        write_objects(instances, found.certainty, table)
    area = float(np.count_nonzero(instances)) / count if count else 0.0
    return PredictedFile(
        path,
        mask,
        drawn,
        count,
        area,
        outlines if "geojson" in extras else None,
        table if "objects" in extras else None,
    )


def _overlay(image: ImageRows, instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The objects drawn on the image, at most `OVERLAY_SIDE` pixels wide and high."""
    step = -(-max(instances.shape) // OVERLAY_SIDE)
    if step == 1:
        return overlay(image.rows(0, image.height), instances)
    # Bands start at multiples of the step, so that every step-th row is one of the image's.
    rows = [displayed(image.rows(top, bottom)[::step, ::step]) for top, bottom in image.bands(512 * step)]
    return overlay(np.concatenate(rows), instances[::step, ::step])
