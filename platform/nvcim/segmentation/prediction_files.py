"""Predict image files into a folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nvcim.compute import resolve_device
from nvcim.data.images import (
    read_image,
    write_image,
    write_instances,
)
from nvcim.errors import DataError
from nvcim.segmentation.instances import PredictionSettings, predict
from nvcim.segmentation.model_files import load_fcn
from nvcim.segmentation.network import SegmentationNetwork
from nvcim.segmentation.overlays import overlay


@dataclass(frozen=True)
class PredictedFile:
    """One predicted image: the files that were written and what was found (areas in pixels)."""

    image: Path
    mask: Path
    overlay: Path
    objects: int
    mean_area: float


def predict_files(
    model_folder: Path,
    images: Iterable[Path],
    out: Path,
    settings: PredictionSettings | None = None,
    device: str = "auto",
) -> list[PredictedFile]:
    """Write `<name>.png` (uint16 instances) and `<name>_overlay.png` to `out` for every image file.

    Raises:
        DataError: an unreadable image, two images of one name, or none at all.
        ModelError, ConfigError: as `load_fcn`.
    """
    paths = list(images)
    if not paths:
        raise DataError("no image given to predict")
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise DataError(f"{path}: would overwrite the result of {seen[path.stem]} (same name)")
        seen[path.stem] = path
    model = load_fcn(model_folder).to(resolve_device(device))
    return [_predict_file(model, path, out, settings) for path in paths]


def _predict_file(
    model: SegmentationNetwork, path: Path, out: Path, settings: PredictionSettings | None
) -> PredictedFile:
    pixels = read_image(path)
    instances = predict(model, pixels, settings)
    mask, drawn = out / f"{path.stem}.png", out / f"{path.stem}_overlay.png"
    write_instances(instances, mask)
    write_image(overlay(pixels, instances), drawn)
    count = int(instances.max())
    area = float((instances > 0).sum()) / count if count else 0.0
    return PredictedFile(path, mask, drawn, count, area)
