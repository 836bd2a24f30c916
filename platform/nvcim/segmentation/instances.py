"""From an image to instances: class probabilities, split by the contour class, grown back to full size."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from nvcim.config import Settings
from nvcim.errors import DataError
from nvcim.segmentation.fcn import ResidualFCN, normalise_colours


class PredictionSettings(Settings):
    """How an image is turned into instances.

    `scale` resizes the image before the network sees it, for photographs at another magnification than the
    training images; the instances come back at the image's own size.
    """

    scale: float = Field(default=1.0, gt=0.0, le=8.0)
    smallest_object: int | None = Field(default=None, ge=1, description="pixels at scale; None: as trained")


def predict_probabilities(model: ResidualFCN, pixels: NDArray[np.uint8], scale: float = 1.0) -> Tensor:
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
    model: ResidualFCN, pixels: NDArray[np.uint8], settings: PredictionSettings | None = None
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


def _inner_edge(instances: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Pixels of objects within `width` steps of another label, [H, W]; the image border is no edge."""
    edge = np.zeros(instances.shape, dtype=bool)
    for axis in (0, 1):
        differs = np.diff(instances, axis=axis) != 0
        before, after = [slice(None), slice(None)], [slice(None), slice(None)]
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= differs
        edge[tuple(after)] |= differs
    if width > 1:
        edge = ndimage.binary_dilation(edge & (instances > 0), iterations=width - 1)
    return np.asarray(edge & (instances > 0))


def contour_classes(instances: NDArray[np.int32], width: int) -> NDArray[np.int64]:
    """Return the class of each pixel, int64 [H, W]: 0 background, 1 object, 2 contour.

    The contour is the part of an object within `width` pixels of another object or of background, but never
    deeper than half the object's own depth, so that small objects keep a core. The image border is no
    contour, since the object goes on behind it.
    """
    classes = (instances > 0).astype(np.int64)
    edge = _inner_edge(instances, 1)
    if edge.any():
        depth = ndimage.distance_transform_edt(~edge) + 1.0
        deepest = np.zeros(int(instances.max()) + 1)
        np.maximum.at(deepest, instances, depth)
        classes[(instances > 0) & (depth <= np.minimum(width, deepest[instances] / 2))] = 2
    return classes


def overlay(pixels: NDArray[np.uint8], instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Draw instances on an image: a light tint and a strong edge per object, uint8 [H, W, 3].

    Colours come from Okabe and Ito (2008), which colour-blind readers can tell apart.

    Raises:
        DataError: the image and the instances differ in size.
    """
    if pixels.shape != (*instances.shape, 3):
        raise DataError(f"image of shape {pixels.shape} does not fit instances of shape {instances.shape}")
    colours: NDArray[Any] = np.array(
        [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0]]
    )
    colour = colours[(instances - 1) % len(colours)]
    drawn = pixels.astype(np.float64)
    inside = instances > 0
    drawn[inside] = 0.75 * drawn[inside] + 0.25 * colour[inside]
    edge = _inner_edge(instances, max(min(instances.shape) // 250, 1))
    drawn[edge] = colour[edge]
    return np.asarray(np.round(drawn), dtype=np.uint8)
