"""Instances drawn on their image."""

import numpy as np
from numpy.typing import NDArray

from nvcim.data.images import Pixels, displayed
from nvcim.errors import DataError
from nvcim.segmentation.targets import inner_edge


def overlay(pixels: Pixels, instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Draw instances on an image: a light tint and a strong edge per object, uint8 [H, W, 3].

    Colours come from Okabe and Ito (2008), which colour-blind readers can tell apart.

    Raises:
        DataError: the image and the instances differ in size.
    """
    if pixels.shape != (*instances.shape, 3):
        raise DataError(f"image of shape {pixels.shape} does not fit instances of shape {instances.shape}")
    colours: NDArray[np.uint8] = np.array(
        [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0]],
        dtype=np.uint8,
    )
    colour = colours[(instances - 1) % len(colours)]
    seen = displayed(pixels)
    drawn = seen.copy()
    inside = instances > 0
    drawn[inside] = np.round(0.75 * seen[inside] + 0.25 * colour[inside]).astype(np.uint8)
    edge = inner_edge(instances, max(min(instances.shape) // 250, 1))
    drawn[edge] = colour[edge]
    return drawn
