"""Exact Hausdorff distances between objects of two label maps.

H(A, B) is the larger of h(A, B) and h(B, A); h(A, B), the directed distance, is the largest distance that a pixel of
A has to its nearest pixel of B. Two exact ways to h(A, B), the cheaper is taken:

- a distance transform of the window that holds both, read off at the pixels of A outside B;
- a k-d tree. The nearest pixel of B to a pixel outside lies on B's boundary, since from a pixel with four neighbours
  in B one of these is nearer. The farthest pixel of A lies on A's boundary **or within B's bounding box**: outside
  the box, stepping away from it only adds distance, until A ends. Boundaries alone do not do: a disc inside a ring
  is farthest from the ring at its centre.

Squared distances are integers below 2^53, so what is returned is the correctly rounded root of the exact value.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from nvcim.segmentation.label_pairs import Integers, LabelSide

Mask = NDArray[np.bool_]
# A transform visits every pixel of the window, a tree only the objects' own at several times the cost of each.
_WINDOW_PER_OBJECT_PIXEL = 8


def hausdorff_distance(a: Mask, b: Mask) -> float:
    """Hausdorff distance in pixels between two non-empty masks [H, W]."""
    rows, columns = np.nonzero(a | b)
    window = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    return _within_window(a[window], b[window])


def _within_window(a: Mask, b: Mask) -> float:
    if a.size > _WINDOW_PER_OBJECT_PIXEL * (np.count_nonzero(a) + np.count_nonzero(b)):
        return max(directed_by_tree(a, b), directed_by_tree(b, a))
    return max(directed_by_transform(a, b), directed_by_transform(b, a))


def directed_by_transform(a: Mask, b: Mask) -> float:
    """h(A, B) of two masks [H, W], B not empty, by a distance transform."""
    rows, columns = np.nonzero(a & ~b)
    if not rows.size:
        return 0.0
    # The places of the nearest pixels: distances are needed at few of the window's pixels, and so stay integers.
    nearest = ndimage.distance_transform_edt(~b, return_distances=False, return_indices=True)
    down, right = nearest[0, rows, columns] - rows, nearest[1, rows, columns] - columns
    return math.sqrt(int((down * down + right * right).max()))


def directed_by_tree(a: Mask, b: Mask) -> float:
    """h(A, B) of two masks [H, W], B not empty, by a k-d tree of B's boundary."""
    rows, columns = np.flatnonzero(b.any(axis=1)), np.flatnonzero(b.any(axis=0))
    candidates = _boundary(a)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    candidates[box] = a[box]
    candidates &= ~b
    if not candidates.any():
        return 0.0
    distances, _ = KDTree(np.argwhere(_boundary(b))).query(np.argwhere(candidates))
    return float(np.max(distances))


def _boundary(mask: Mask) -> Mask:
    """Pixels of a mask that lack one of four neighbours; beyond the window counts as outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


class ObjectDistances:
    """Hausdorff distances between objects of two sides, each computed once however often it is asked for."""

    def __init__(self, a: LabelSide, b: LabelSide) -> None:
        self._a, self._b = a, b
        self._known: dict[tuple[int, int], float] = {}

    def between(self, i: int, j: int) -> float:
        """Distance from object i of one side to object j of the other, pixels."""
        if (i, j) not in self._known:
            box = _union(self._a.boxes[i], self._b.boxes[j])
            self._known[i, j] = _within_window(self._a.crop(i, box), self._b.crop(j, box))
        return self._known[i, j]


def _union(one: Integers, other: Integers) -> Integers:
    union: Integers = np.where([True, False, True, False], np.minimum(one, other), np.maximum(one, other))
    return union


class NearestObjects:
    """Finds the object of a side that is nearest to another side's, in the Hausdorff distance.

    H(A, B) is at least the largest difference between the sides of the two bounding boxes (the topmost pixel of one is
    at least that far from the topmost row of the other, and so on), which is the Chebyshev distance between the boxes
    as points in four dimensions. Candidates come in that order, and the search ends at the first that cannot win.
    """

    def __init__(self, others: LabelSide) -> None:
        self._others = others
        self._tree = KDTree(others.boxes)

    def distance_from(self, box: Integers, measure: Callable[[int], float]) -> float:
        """Smallest of `measure(j)` over all objects j; `box` is that of the object that is measured from."""
        best, seen, wanted = math.inf, 0, 4
        while seen < self._others.count:
            wanted = min(wanted, self._others.count)
            bounds, nearest = self._tree.query(box, k=range(seen + 1, wanted + 1), p=math.inf)
            for bound, j in zip(np.asarray(bounds).tolist(), np.asarray(nearest).tolist(), strict=True):
                if bound >= best:
                    return best
                best = min(best, measure(j))
            seen, wanted = wanted, 4 * wanted
        return best
