"""From an image to instances: class probabilities, split by the contour class, grown back to full size."""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from nvcim.config import Settings
from nvcim.errors import DataError
from nvcim.segmentation.network import SegmentationNetwork, normalise_colours


class PredictionSettings(Settings):
    """How an image is turned into instances.

    `scale` resizes the image before the network sees it, for photographs at another magnification than the
    training images; the instances come back at the image's own size.
    """

    scale: float = Field(default=1.0, gt=0.0, le=8.0)
    smallest_object: int | None = Field(default=None, ge=1, description="pixels at scale; None: as trained")


def predict_probabilities(model: SegmentationNetwork, pixels: NDArray[np.uint8], scale: float = 1.0) -> Tensor:
    """Return class probabilities [3, H, W] (float32, CPU) of an image uint8 [H, W, 3], H and W at least 1.

    The model is put in evaluation mode and used on the device it is on.

    Raises:
        DataError: not an RGB image, or an empty one.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(f"expected an RGB image [H, W, 3] of at least one pixel, found shape {pixels.shape}")
    model.eval()
    device = next(model.parameters()).device
    x = normalise_colours(torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None])
    size = (pixels.shape[0], pixels.shape[1])
    seen = (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))
    with torch.inference_mode():
        if seen != size:
            x = F.interpolate(x, size=seen, mode="bilinear", align_corners=False, antialias=True)
        logits, _ = model(x)
        if seen != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        probabilities: Tensor = logits[0].softmax(dim=0).cpu()
    return probabilities


def split_instances(probabilities: Tensor, smallest: float, growth: float) -> NDArray[np.int32]:
    """Turn class probabilities [3, H, W] into instances int32 [H, W], labelled 1..n.

    Connected regions of the object class become one instance each; those below `smallest` pixels (after
    growing) are dropped, the others grow by up to `growth` pixels into the contour class, and holes close.
    """
    background, interior, contour = probabilities.numpy()
    foreground = interior + contour > background
    cores, count = ndimage.label(foreground & (interior >= contour))
    if count == 0:
        return np.zeros(background.shape, dtype=np.int32)
    distance, (rows, columns) = ndimage.distance_transform_edt(cores == 0, return_indices=True)
    grown = np.where(foreground & (distance <= growth), cores[rows, columns], 0)
    sizes = np.bincount(grown.ravel(), minlength=count + 1)
    instances = np.zeros(background.shape, dtype=np.int32)
    kept = 0
    for label, window in enumerate(ndimage.find_objects(grown), start=1):
        if window is None or sizes[label] < smallest:
            continue
        kept += 1
        # Holes close only where no other object lies in them.
        filled = ndimage.binary_fill_holes(grown[window] == label)
        target = instances[window]
        target[filled & ((grown[window] == label) | (grown[window] == 0)) & (target == 0)] = kept
    return instances


def predict(
    model: SegmentationNetwork, pixels: NDArray[np.uint8], settings: PredictionSettings | None = None
) -> NDArray[np.int32]:
    """Return the instances of an image: uint8 [H, W, 3] -> int32 [H, W], 0 background, objects 1..n.

    Works on any size from 1x1; the image is seen whole, so memory grows with its area.

    Raises:
        DataError: as `predict_probabilities`.
    """
    settings = settings or PredictionSettings()
    probabilities = predict_probabilities(model, pixels, settings.scale)
    smallest = settings.smallest_object or model.smallest_object
    growth = (model.settings.contour_width + 1.5) / settings.scale
    return split_instances(probabilities, smallest / settings.scale**2, growth)
