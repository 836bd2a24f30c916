"""What the network learns of a mask: the class of every pixel."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def numbered_anew(instances: NDArray[np.int32]) -> NDArray[np.int32]:
    """Labels 1, 2, ... in the order of the old ones, [H, W]; 0 stays 0.

    What is made per label then takes memory by the objects that there are, not by the largest label.
    """
    labels, places = np.unique(instances, return_inverse=True)
    first = 0 if labels[0] == 0 else 1
    return np.asarray(places.reshape(instances.shape) + first, dtype=np.int32)


def inner_edge(instances: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
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
    edge = inner_edge(instances, 1)
    if edge.any():
        depth = ndimage.distance_transform_edt(~edge) + 1.0
        labels = numbered_anew(instances)
        deepest = np.zeros(int(labels.max()) + 1)
        np.maximum.at(deepest, labels, depth)
        classes[(labels > 0) & (depth <= np.minimum(width, deepest[labels] / 2))] = 2
    return classes


def pixel_classes(instances: NDArray[np.int32], classes: int, contour_width: int) -> NDArray[np.int64]:
    """Return the class of each pixel that a network of 2 or 3 classes learns, int64 [H, W].

    With three, as `contour_classes`. With two there is no contour to hold touching objects apart, so pixels
    of an object beside another object are background: a line two pixels wide between the two.
    """
    if classes == 3:
        return contour_classes(instances, contour_width)
    return ((instances > 0) & ~_touching(instances)).astype(np.int64)


def _touching(instances: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels of an object with a direct neighbour of another object, [H, W]."""
    touching = np.zeros(instances.shape, dtype=bool)
    for axis in (0, 1):
        before, after = [slice(None), slice(None)], [slice(None), slice(None)]
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        one, other = instances[tuple(before)], instances[tuple(after)]
        meets = (one != other) & (one > 0) & (other > 0)
        touching[tuple(before)] |= meets
        touching[tuple(after)] |= meets
    return touching
