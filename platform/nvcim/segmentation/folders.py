"""What the command line does with folders: train on one, predict files, score one against another."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvcim.compute import resolve_device
from nvcim.data.images import (
    find_masks,
    pair_names,
    read_image,
    read_image_set,
    read_instances,
    write_image,
    write_instances,
)
from nvcim.errors import DataError
from nvcim.quantization import Quantizer
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN, load_fcn, save_fcn
from nvcim.segmentation.instances import PredictionSettings, overlay, predict
from nvcim.segmentation.metrics import SetScores, score_set
from nvcim.segmentation.training import TrainingLog, TrainingSettings, train


@dataclass(frozen=True)
class PredictedFile:
    """One predicted image: the files that were written and what was found (areas in pixels)."""

    image: Path
    mask: Path
    overlay: Path
    objects: int
    mean_area: float


def train_on_folder(
    folder: Path,
    out: Path,
    fcn: FCNSettings | None = None,
    settings: TrainingSettings | None = None,
    quantizer: Quantizer | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> tuple[ResidualFCN, TrainingLog]:
    """Train on a labelled image set and save the model to `out`; `limit` takes that many images by seed.

    With a quantizer, a float model is trained first and quantized from there with half as many steps again.

    Raises:
        DataError, ModelError, ConfigError: as `read_image_set` and `train`.
    """
    settings = settings or TrainingSettings()
    images = read_image_set(folder, limit, seed)
    model = ResidualFCN(fcn, seed)
    log = train(model, images, settings, seed, on_step=on_step)
    if quantizer is not None:
        again = settings.model_copy(update={"steps": max(settings.steps // 2, 1)})
        second = train(model, images, again, seed + 1, quantizer, on_step)
        log = TrainingLog(log.losses + second.losses, log.seconds + second.seconds, second.weights)
    save_fcn(model, out)
    return model, log


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
    model: ResidualFCN, path: Path, out: Path, settings: PredictionSettings | None
) -> PredictedFile:
    pixels = read_image(path)
    instances = predict(model, pixels, settings)
    mask, drawn = out / f"{path.stem}.png", out / f"{path.stem}_overlay.png"
    write_instances(instances, mask)
    write_image(overlay(pixels, instances), drawn)
    count = int(instances.max())
    area = float((instances > 0).sum()) / count if count else 0.0
    return PredictedFile(path, mask, drawn, count, area)


def score_folders(segmented: Path, truth: Path) -> SetScores:
    """Score a folder of predicted masks against one of true masks, paired by name.

    Either folder may be a labelled image set or hold mask files alone; overlays are left out.

    Raises:
        DataError: a mask without its partner, sizes that differ (both files are named), or unreadable files.
    """
    predicted = {n: p for n, p in find_masks(segmented).items() if not n.endswith("_overlay")}
    true = find_masks(truth)
    names = pair_names(segmented, predicted, true, ("its predicted mask", "its true mask"))
    return score_set((_read_both(predicted[name], true[name]) for name in names), names)


def _read_both(segmented: Path, truth: Path) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    a, b = read_instances(segmented), read_instances(truth)
    if a.shape != b.shape:
        sizes = f"{a.shape[1]}x{a.shape[0]} against {b.shape[1]}x{b.shape[0]} pixels"
        raise DataError(f"{segmented} and {truth}: masks differ in size, {sizes}")
    return a, b
