"""From an image to instances, for images in memory and for those that are read by rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nvcim.data.images import Pixels
from nvcim.data.large_images import ArrayImage, ImageRows
from nvcim.segmentation.inference import (
    Models,
    PredictionSettings,
    bands_of,
    ensemble,
    predict_probabilities,
)
from nvcim.segmentation.network import SegmentationNetwork
from nvcim.segmentation.splitting import decide, label_objects, split_for, split_instances
from nvcim.segmentation.tiles import Seen


@dataclass(frozen=True)
class FoundObjects:
    """What was found in an image.

    Attributes:
        instances: int32 [H, W], 0 background, objects 1..n.
        certainty: probability of not being background, uint8 [H, W] in steps of 1/255.
    """

    instances: NDArray[np.int32]
    certainty: NDArray[np.uint8]


def predict(models: Models, pixels: Pixels, settings: PredictionSettings | None = None) -> NDArray[np.int32]:
    """Return the instances of an image: pixels [H, W, 3] -> int32 [H, W], 0 background, objects 1..n.

    Works on any size from 1x1; several networks are an ensemble, whose mean decides, with the median of the
    smallest objects they were trained on. Their order changes nothing but float32 rounding of that mean.

    Raises:
        DataError, ModelError: as `predict_probabilities`.
        ConfigError: split by contour, where the networks do not predict it.
    """
    return find_objects(models, ArrayImage(pixels), settings).instances


def find_objects(
    models: Models, image: ImageRows, settings: PredictionSettings | None = None
) -> FoundObjects:
    """Find the objects of an image that is read by rows; memory is some 12 to 18 bytes a pixel beyond one band.

    An object is one object however many tiles it lies in.

    Raises:
        DataError, ModelError, ConfigError: as `predict`, or the image cannot be read.
    """
    settings = settings or PredictionSettings()
    networks = ensemble(models)
    split = split_for(settings, networks[0].settings.classes)
    decided = np.zeros((image.height, image.width), dtype=np.uint8)
    certainty = np.zeros((image.height, image.width), dtype=np.uint8)
    for top, band in bands_of(Seen(networks, settings.flips), image, settings):
        rows = slice(top, top + band.shape[1])
        decided[rows] = decide(band, settings)
        certainty[rows] = torch.round((1 - band[0]) * 255).to(torch.uint8).numpy()
    smallest, growth = _sizes(networks, settings)
    return FoundObjects(label_objects(decided, split, smallest, growth, settings.neck), certainty)


def predict_growing(
    models: Sequence[SegmentationNetwork],
    counts: Collection[int],
    pixels: Pixels,
    settings: PredictionSettings | None = None,
) -> dict[int, NDArray[np.int32]]:
    """Return what the first n networks find in an image for each n of `counts`, every network run once.

    As `predict(models[:n], ...)`, to the rounding of float32 in the mean.

    Raises:
        DataError, ModelError, ConfigError: as `predict`.
    """
    settings = settings or PredictionSettings()
    found: dict[int, NDArray[np.int32]] = {}
    total = torch.zeros(())
    for count, model in enumerate(ensemble(models)[: max(counts)], start=1):
        total = total + predict_probabilities(model, pixels, settings)
        if count in counts:
            found[count] = split_instances(total / count, settings, *_sizes(models[:count], settings))
    return found


def _sizes(networks: Sequence[SegmentationNetwork], settings: PredictionSettings) -> tuple[float, float]:
    """The smallest object in pixels (the networks' median) and how far objects grow, at the image's own scale."""
    learnt = float(np.median([network.smallest_object for network in networks]))
    smallest = (settings.smallest_object or learnt) / settings.scale**2
    return smallest, (networks[0].settings.contour_width + 1.5) / settings.scale
