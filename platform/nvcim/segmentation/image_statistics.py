"""A description of images that needs no network: statistics of colour and texture, relative to their pool."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nvcim.data.images import LabelledImage, PlainImage

_PERCENTILES = (5, 25, 50, 75, 95)
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)  # pixels; texture is what each blur takes away from the one before


def image_statistics(
    images: Sequence[PlainImage | LabelledImage], on_image: Callable[[int, int], None] | None = None
) -> Tensor:
    """Return descriptors [images, 17], each statistic with mean 0 and deviation 1 over the images.

    Mean and deviation of each colour channel, percentiles of the brightness, mean difference between an
    image's strongest and weakest channel, and the logarithmic strength of texture at five scales. A statistic
    that all images share is 0. Cosines of such descriptors compare how two images differ from the average.
    """
    rows = []
    for done, image in enumerate(images, start=1):
        rows.append(_statistics(image.pixels))
        if on_image is not None:
            on_image(done, len(images))
    values = np.array(rows)
    deviation = values.std(axis=0)
    same = deviation < 1e-9
    return torch.from_numpy(
        np.where(same, 0.0, (values - values.mean(axis=0)) / np.where(same, 1, deviation))
    )


def _statistics(pixels: NDArray[np.uint8]) -> list[float]:
    """The statistics of one image, uint8 [H, W, 3], on a scale of 0..1."""
    colours = pixels.astype(np.float32) / 255.0
    brightness = colours.mean(axis=2)
    found = [*colours.mean(axis=(0, 1)), *colours.std(axis=(0, 1)), *np.percentile(brightness, _PERCENTILES)]
    found.append((colours.max(axis=2) - colours.min(axis=2)).mean())
    before = brightness
    for scale in _SCALES:
        after = ndimage.gaussian_filter(brightness, scale)
        found.append(np.log(1e-4 + (before - after).std()))
        before = after
    return [float(value) for value in found]
