"""From an image to instances, for images in memory and for those that are read by rows."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nvcim.data.large_images import ArrayImage, ImageRows
from nvcim.segmentation.inference import Models, PredictionSettings, bands_of, ensemble
from nvcim.segmentation.splitting import decide, label_objects, split_for
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


def predict(
    models: Models, pixels: NDArray[np.uint8], settings: PredictionSettings | None = None
) -> NDArray[np.int32]:
    """Return the instances of an image: uint8 [H, W, 3] -> int32 [H, W], 0 background, objects 1..n.

    Works on any size from 1x1; several networks are an ensemble, whose mean decides.

    Raises:
        DataError, ModelError: as `predict_probabilities`.
        ConfigError: split by contour, where the networks do not predict it.
    """
    return find_objects(models, ArrayImage(pixels), settings).instances


def find_objects(
    models: Models, image: ImageRows, settings: PredictionSettings | None = None
) -> FoundObjects:
    """Find the objects of an image that is read by rows; memory is about 12 bytes a pixel beyond one band.

    An object is one object however many tiles it lies in.

    Raises:
        DataError, ModelError, ConfigError: as `predict`, or the image cannot be read.
    """
    settings = settings or PredictionSettings()
    networks = ensemble(models)
    first = networks[0]
    split = split_for(settings, first.settings.classes)
    decided = np.zeros((image.height, image.width), dtype=np.uint8)
    certainty = np.zeros((image.height, image.width), dtype=np.uint8)
    for top, band in bands_of(Seen(networks, settings.flips), image, settings):
        rows = slice(top, top + band.shape[1])
        decided[rows] = decide(band, settings)
        certainty[rows] = torch.round((1 - band[0]) * 255).to(torch.uint8).numpy()
    smallest = (settings.smallest_object or first.smallest_object) / settings.scale**2
    growth = (first.settings.contour_width + 1.5) / settings.scale
    return FoundObjects(label_objects(decided, split, smallest, growth, settings.neck), certainty)
