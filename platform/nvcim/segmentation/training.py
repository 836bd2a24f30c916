"""Training of the FCN in floating point or under a quantizer's schedule, on any labelled image set."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from nvcim.compute import resolve_device
from nvcim.config import Settings
from nvcim.data.images import LabelledImage
from nvcim.errors import DataError, ModelError
from nvcim.quantization import Quantizer
from nvcim.randomness import named_generator
from nvcim.segmentation.network import CLASSES, SegmentationNetwork, normalise_colours
from nvcim.segmentation.targets import contour_classes


class TrainingSettings(Settings):
    """How the FCN is trained; `steps` counts optimiser steps over all stages of a quantizer's schedule."""

    steps: int = Field(default=320, ge=1)
    batch: int = Field(default=8, ge=2, description="crops per step; batch norm needs two")
    crop: int = Field(default=96, ge=16, description="side of the square crops, pixels")
    learning_rate: float = Field(default=8e-3, gt=0.0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    contour_weight: float = Field(default=3.0, gt=0.0, description="loss weight of the contour class")
    zoom: float = Field(default=1.25, ge=1.0, le=4.0, description="crops are resized by 1/zoom..zoom")
    colour_jitter: float = Field(default=0.15, ge=0.0, le=1.0, description="random mixing of colour channels")
    device: str = "auto"


@dataclass(frozen=True)
class TrainingLog:
    """Loss of every step, seconds of training (measured), and the weights' form (float, inq-5, ...)."""

    losses: tuple[float, ...]
    seconds: float
    weights: str


@dataclass(frozen=True)
class _Prepared:
    """An image ready for cropping: pixels [1, 3, H, W] with normalised colours, classes [1, 1, H, W]."""

    pixels: Tensor
    classes: Tensor


def train(
    model: SegmentationNetwork,
    images: Sequence[LabelledImage],
    settings: TrainingSettings | None = None,
    seed: int = 0,
    quantizer: Quantizer | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    *,
    validation: Sequence[LabelledImage] = (),
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Train a model in place; with a quantizer, its weights are exactly on its levels afterwards.

    A float model that was trained before may be handed in with a quantizer, which is INQ's usual start. The
    steps are split evenly over the stages that train; the learning rate starts anew in each.
    `on_step(done, total, loss)` is called after every step. The model ends on `settings.device`.

    Raises:
        DataError: no image, or an image without any labelled object in the whole set.
        ModelError: the model is quantized already, or training diverged.
        ConfigError: an unknown device.
    """
    del validation, checkpoint  # accepted already; they act once early stopping and resuming are in
    settings = settings or TrainingSettings()
    if not images:
        raise DataError("training needs at least one labelled image")
    if model.quantizer is not None:
        raise ModelError(f"the model is quantized already ({model.quantizer.name}); train a float model")
    model.smallest_object = _smallest_object(images)
    model.to(resolve_device(settings.device))
    if quantizer is not None:
        model.quantize(quantizer)
    started = time.perf_counter()
    prepared = [_prepare(image, model.settings.contour_width) for image in images]
    generator = named_generator(seed, "segmentation", "crops")
    losses: list[float] = []
    stages = quantizer.stages if quantizer else ()
    shares = _steps_per_stage(settings.steps, [s.trains for s in stages]) if stages else [settings.steps]
    for index, steps in enumerate(shares):
        if quantizer is not None:
            quantizer.advance(model, stages[index].fraction)
        if steps:
            _train_stage(model, prepared, settings, steps, generator, losses, on_step)
    model.eval()
    return TrainingLog(tuple(losses), time.perf_counter() - started, quantizer.name if quantizer else "float")


def _steps_per_stage(steps: int, trains: Sequence[bool]) -> list[int]:
    """Split steps evenly over the stages that train; the last of them takes the rest."""
    count = sum(trains)
    if count == 0:
        return [0] * len(trains)
    shares = [steps // count if flag else 0 for flag in trains]
    last = max(i for i, flag in enumerate(trains) if flag)
    shares[last] += steps - sum(shares)
    return shares


def _smallest_object(images: Sequence[LabelledImage]) -> int:
    """Half the area that one object in twenty stays below: smaller predictions are taken for specks.

    Raises:
        DataError: no image holds any object.
    """
    areas = np.concatenate([np.unique(i.instances[i.instances > 0], return_counts=True)[1] for i in images])
    if len(areas) == 0:
        raise DataError("no image of the training set holds a labelled object")
    return max(int(np.percentile(areas, 5) / 2), 1)


def _prepare(image: LabelledImage, contour_width: int) -> _Prepared:
    pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)[None]
    classes = torch.from_numpy(contour_classes(image.instances, contour_width))[None, None]
    return _Prepared(normalise_colours(pixels), classes)


def _train_stage(
    model: SegmentationNetwork,
    images: Sequence[_Prepared],
    settings: TrainingSettings,
    steps: int,
    generator: torch.Generator,
    losses: list[float],
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    """Run one stage with AdamW; appends to `losses`."""
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    weight = torch.ones(len(CLASSES), device=device)
    weight[CLASSES.index("contour")] = settings.contour_weight
    model.train()
    for _ in range(steps):
        pixels, classes = _draw_batch(images, settings, generator)
        logits, _ = model(pixels.to(device))
        loss = F.cross_entropy(logits, classes.to(device), weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise ModelError(f"training diverged at step {len(losses)}; lower the learning rate")
        if on_step is not None:
            on_step(len(losses), settings.steps, losses[-1])


def _rate(step: int, steps: int) -> float:
    """A step's learning rate as a share of the peak: linear rise over a tenth of the steps, then a cosine."""
    rise = max(steps // 10, 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _draw_batch(
    images: Sequence[_Prepared], settings: TrainingSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw crops with random place, zoom, flips, turns and colours: [B, 3, C, C] and classes [B, C, C]."""
    chosen = torch.randint(len(images), (settings.batch,), generator=generator)
    crops = [_draw_crop(images[int(index)], settings, generator) for index in chosen]
    return torch.cat([pixels for pixels, _ in crops]), torch.cat([classes for _, classes in crops])


def _draw_crop(
    image: _Prepared, settings: TrainingSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One augmented crop: pixels [1, 3, C, C] and classes [1, C, C]."""
    side = round(settings.crop * _uniform(1 / settings.zoom, settings.zoom, generator))
    pixels, classes = _fit(image.pixels, side), _fit(image.classes.float(), side)
    height, width = pixels.shape[-2:]
    top = int(torch.randint(height - side + 1, (), generator=generator))
    left = int(torch.randint(width - side + 1, (), generator=generator))
    window = (..., slice(top, top + side), slice(left, left + side))
    size = (settings.crop, settings.crop)
    pixels = F.interpolate(pixels[window], size=size, mode="bilinear", align_corners=False)
    classes = F.interpolate(classes[window], size=size, mode="nearest")
    turns = int(torch.randint(4, (), generator=generator))
    pixels, classes = pixels.rot90(turns, (2, 3)), classes.rot90(turns, (2, 3))
    if float(torch.rand((), generator=generator)) < 0.5:
        pixels, classes = pixels.flip(3), classes.flip(3)
    return _jitter_colours(pixels, settings.colour_jitter, generator), classes[:, 0].long()


def _fit(field: Tensor, side: int) -> Tensor:
    """Mirror-free padding of [1, C, H, W] to at least `side` in both directions, by repeating the edge."""
    height, width = field.shape[-2:]
    return F.pad(field, (0, max(side - width, 0), 0, max(side - height, 0)), mode="replicate")


def _jitter_colours(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Mix, stretch and shift normalised colour channels at random, as other stains and lamps would."""
    mixing = torch.eye(3) + strength * torch.randn(3, 3, generator=generator)
    shift = strength * torch.randn(1, 3, 1, 1, generator=generator)
    return torch.einsum("ij,bjhw->bihw", mixing, pixels) + shift
