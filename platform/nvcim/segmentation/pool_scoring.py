"""What an ensemble says of images without labels: uncertainty, descriptor and, where asked, the heat map."""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from nvcim.config import Settings
from nvcim.data.images import LabelledImage, PlainImage
from nvcim.errors import DataError
from nvcim.segmentation.network import SegmentationNetwork, normalise_colours
from nvcim.segmentation.suggestive import (
    UncertaintyOf,
    class_probability,
    image_uncertainty,
    mean_descriptor,
    pixel_uncertainty,
)

PoolImage = PlainImage | LabelledImage


class ScoringSettings(Settings):
    """How images of a pool are looked at."""

    uncertainty_of: UncertaintyOf = Field(
        default="object", description="class whose probability the networks may disagree on"
    )
    batch: int = Field(default=8, ge=1, description="images of one size that are looked at together")


@dataclass(frozen=True)
class PoolScores:
    """Scores of the images `names`: uncertainty float32 [images], descriptors float32 [images, D]."""

    names: tuple[str, ...]
    uncertainty: Tensor
    descriptors: Tensor


def score_pool(
    models: Sequence[SegmentationNetwork],
    images: Sequence[PoolImage],
    settings: ScoringSettings | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> PoolScores:
    """Let every network look at every image; images of the same size go through it together.

    Image uncertainty is the mean over pixels of the standard deviation over networks; the descriptor is the
    mean over networks. An image's scores do not depend on the other images beyond float32 rounding.
    `on_image(done, total)` is called as images are done.

    Raises:
        DataError: no image, or fewer than two networks.
    """
    settings = settings or ScoringSettings()
    if not images:
        raise DataError("there is no image to score; every image is annotated already")
    models = [baked(model) for model in models]
    uncertainty: list[Tensor | None] = [None] * len(images)
    descriptors: list[Tensor | None] = [None] * len(images)
    done = 0
    for places in _same_size(images, settings.batch):
        outputs, described = _outputs(models, [images[place].pixels for place in places], settings)
        values, mean = image_uncertainty(outputs), mean_descriptor(described)
        for row, place in enumerate(places):
            uncertainty[place], descriptors[place] = values[row], mean[row]
        done += len(places)
        if on_image is not None:
            on_image(done, len(images))
    return PoolScores(
        tuple(image.name for image in images),
        torch.stack([value for value in uncertainty if value is not None]).cpu(),
        torch.stack([value for value in descriptors if value is not None]).cpu(),
    )


def uncertainty_map(
    models: Sequence[SegmentationNetwork], pixels: NDArray[np.uint8], settings: ScoringSettings | None = None
) -> NDArray[np.float32]:
    """Return the standard deviation over networks at every pixel, [H, W] in 0..0.5, for uint8 [H, W, 3].

    Raises:
        DataError: fewer than two networks.
    """
    outputs, _ = _outputs([baked(model) for model in models], [pixels], settings or ScoringSettings())
    return np.asarray(pixel_uncertainty(outputs)[0].cpu().numpy(), dtype=np.float32)


def baked(model: SegmentationNetwork) -> SegmentationNetwork:
    """The model in evaluation mode with its weights as they are used."""
    model = copy.deepcopy(model)
    return model.eval()


def _same_size(images: Sequence[PoolImage], batch: int) -> list[list[int]]:
    """Places of the images in batches of one size."""
    by_size = sorted(range(len(images)), key=lambda place: (images[place].pixels.shape, place))
    batches: list[list[int]] = []
    for _, group in itertools.groupby(by_size, key=lambda place: images[place].pixels.shape):
        places = list(group)
        batches += [places[start : start + batch] for start in range(0, len(places), batch)]
    return batches


def _outputs(
    models: Sequence[nn.Module], pixels: Sequence[NDArray[np.uint8]], settings: ScoringSettings
) -> tuple[Tensor, Tensor]:
    """Probabilities [networks, B, H, W] and descriptors [networks, B, D] of images of one size."""
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    outputs, descriptors = [], []
    with torch.inference_mode():
        colours = normalise_colours(stacked)
        for model in models:
            logits, descriptor = model(colours.to(next(model.parameters()).device))
            outputs.append(class_probability(logits.softmax(dim=1), settings.uncertainty_of).cpu())
            descriptors.append(descriptor.cpu())
    return torch.stack(outputs), torch.stack(descriptors)
