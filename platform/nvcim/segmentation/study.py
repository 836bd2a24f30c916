"""The segmentation study: float and quantized weights, each on ideal arithmetic and on crossbars."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from nvcim.analog import analogize
from nvcim.config import Settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.images import LabelledImage, read_image_set, write_image
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.errors import DataError
from nvcim.quantization import quantizer_named
from nvcim.quantization.base import weighted_layers
from nvcim.randomness import named_generator, named_seed
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.instances import predict
from nvcim.segmentation.metrics import SetScores, score_set
from nvcim.segmentation.model_files import save_fcn
from nvcim.segmentation.network import SegmentationNetwork
from nvcim.segmentation.overlays import overlay
from nvcim.segmentation.training import TrainingSettings, train
from nvcim.storage import RunFolder

Row = dict[str, Any]
OnStep = Callable[[str, int, int, float], None]
"""Called with (weights in training, steps done, steps in all, loss)."""


class StudySettings(Settings):
    """What is trained, and which arithmetic it is scored on."""

    weights: tuple[str, ...] = Field(
        default=("float", "inq-5", "uniform-4"), min_length=1, description="float, or <quantizer>-<bits>"
    )
    training_images: int = Field(default=16, ge=1)
    test_images: int = Field(default=6, ge=1)
    chips: int = Field(default=2, ge=0, description="independently programmed chips; 0 skips crossbars")
    overlays: int = Field(default=2, ge=0, description="test images drawn for the report")
    fcn: FCNSettings = FCNSettings()
    training: TrainingSettings = TrainingSettings()
    tissue: TissueSettings = TissueSettings()
    crossbar: CrossbarConfig = CrossbarConfig()


@dataclass(frozen=True)
class SplitImages:
    """Images to train on and others to score on."""

    training: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]


def split_images(folder: Path | None, settings: StudySettings, seed: int) -> SplitImages:
    """Draw training and test images from a labelled set, or generate tissue where `folder` is None.

    Raises:
        DataError: the folder holds no labelled set or too few images, or one that cannot be read.
    """
    wanted = settings.training_images + settings.test_images
    if folder is None:
        images = generate_tissue(wanted, settings.tissue, named_seed(seed, "segmentation", "tissue"))
    else:
        images = read_image_set(folder, wanted, seed)
        order = np.random.default_rng(named_seed(seed, "segmentation", "split")).permutation(len(images))
        images = [images[index] for index in order]
    if len(images) <= settings.test_images:
        needed = settings.test_images + 1
        raise DataError(
            f"{folder}: holds {len(images)} labelled images; {needed} are needed to train and test"
        )
    return SplitImages(tuple(images[settings.test_images :]), tuple(images[: settings.test_images]))


def run_study(
    settings: StudySettings,
    images: SplitImages,
    run: RunFolder,
    on_step: OnStep | None = None,
) -> list[Row]:
    """Train every kind of weights, save it to `fcn/<name>`, score it, and write `segmentation.parquet`.

    All weights, float ones too, start from one trained float model and get half as many steps again on the
    same crops. Overlays of the first test images go to the run's figures.

    Returns:
        The rows of the table: one per weights on ideal arithmetic, and one per weights and chip.

    Raises:
        ConfigError, DeviceError, DataError, ModelError: settings or images that cannot be used.
    """
    for name in settings.weights:
        quantizer_named(name)
    seed = run.record.seed
    base = ResidualFCN(settings.fcn, named_seed(seed, "segmentation", "weights"))
    _train(base, "float", settings.training, images, named_seed(seed, "segmentation", "float"), on_step)
    rows: list[Row] = []
    for name in settings.weights:
        model = copy.deepcopy(base)
        again = named_seed(seed, "segmentation", "continued")
        _train(model, name, settings.training.continued(), images, again, on_step)
        model.to("cpu")
        save_fcn(model, run.path / "fcn" / name)
        rows.append(_ideal_row(model, name, settings, images.test, run))
        rows += [_chip_row(model, name, settings, images.test, run, chip) for chip in range(settings.chips)]
    run.write_table("segmentation", rows)
    return rows


def _train(
    model: SegmentationNetwork,
    name: str,
    settings: TrainingSettings,
    images: SplitImages,
    seed: int,
    on_step: OnStep | None,
) -> None:
    """Train `model` in place under the quantizer that `name` says."""

    def step(done: int, total: int, loss: float) -> None:
        if on_step is not None:
            on_step(name, done, total, loss)

    train(model, images.training, settings, seed, quantizer_named(name), step)


def _ideal_row(
    model: SegmentationNetwork,
    name: str,
    settings: StudySettings,
    test: Sequence[LabelledImage],
    run: RunFolder,
) -> Row:
    """Score on digital float32; the weights' memory is counted as packed."""
    scores = _scores(model, test, settings.overlays, run, f"{name}_ideal")
    return {**_score_columns(name, "ideal", scores), "weight_bytes": round(_weight_bytes(model, name))}


def _chip_row(
    model: SegmentationNetwork,
    name: str,
    settings: StudySettings,
    test: Sequence[LabelledImage],
    run: RunFolder,
    chip: int,
) -> Row:
    """Score on one chip whose crossbars are programmed with the model's weights."""
    config = settings.crossbar
    generator = named_generator(run.record.seed, "segmentation", "chip", name, chip)
    analog = analogize(model, config, generator)
    assert isinstance(analog, SegmentationNetwork)
    drawn = settings.overlays if chip == 0 else 0
    scores = _scores(analog, test, drawn, run, f"{name}_crossbar")
    where = {"device": config.device, "sigma": config.sigma, "chip": chip}
    return {**_score_columns(name, "crossbar", scores), **where}


def _scores(
    model: SegmentationNetwork, test: Sequence[LabelledImage], overlays: int, run: RunFolder, label: str
) -> SetScores:
    """Score the test images, drawing the first of them."""
    found = [predict(model, image.pixels) for image in test]
    for index, (image, instances) in enumerate(zip(test[:overlays], found, strict=False)):
        write_image(overlay(image.pixels, instances), run.figure_path(f"segmentation-{index}_{label}"))
    return score_set(zip(found, [image.instances for image in test], strict=True), [i.name for i in test])


def _score_columns(name: str, arithmetic: str, scores: SetScores) -> Row:
    return {
        "model": name,
        "arithmetic": arithmetic,
        "images": len(scores.images),
        "object_f1": scores.pooled.f1,
        "object_dice": scores.pooled.dice,
        "object_hausdorff": scores.pooled.hausdorff,
        "basis": "measured",
    }


def _weight_bytes(model: SegmentationNetwork, name: str) -> float:
    """Bytes of the weights: as packed, scales and exponents included; float ones at four bytes each."""
    quantizer = quantizer_named(name)
    if quantizer is not None:
        return quantizer.memory(model).quantized_bytes
    layers = (layer for _, layer in weighted_layers(model))
    return 4.0 * sum(layer.weight.numel() for layer in layers if isinstance(layer.weight, Tensor))
