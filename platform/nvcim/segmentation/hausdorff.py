"""Exact Hausdorff distances between objects of two label maps.

H(A, B) is the larger of h(A, B) and h(B, A); h(A, B), the directed distance, is the largest distance that a pixel of
A has to its nearest pixel of B. Not every pixel of A needs to be asked:

- Outside B's bounding box, stepping away from the box only adds distance. So only the ends of A's rows and columns
  can be farthest there, and of these only what may beat the others by its distance to the box: B touches all four
  sides of its box, which bounds the distance from above.
- Within the box every pixel of A outside B counts. Boundaries alone do not do: a disc inside a ring is farthest
  from the ring at its centre.

Distances to B come from B's boundary, in a k-d tree where it is long (the nearest pixel of B is on it, since from a
pixel with four neighbours in B one of these is nearer) or, once so many pixels were asked about that it pays, from a
distance transform of B's box. Both are kept with B, so that one blob over hundreds of objects is worked through once.
Two objects of like size and place are compared sooner by transforming the window of both.

Squared distances are integers below 2^53, so what is returned is the correctly rounded root of the exact value.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from nvcim.segmentation.label_pairs import Integers, LabelSide

Mask = NDArray[np.bool_]
# Asking the tree about a pixel takes up to a hundred times what a transform takes for one of the box's.
_ASKED_PER_BOX_PIXEL = 1 / 64
_WINDOW_PER_BOX = 4  # times the smaller box; in a window up to this two objects are alike enough
_WITHOUT_TREE = 20_000  # pairs of pixels; so few are looked at sooner than a tree is built
# What is kept of objects: enough for one blob over many, and for the neighbours of the object at hand.
_KEPT_OBJECTS = 64
_KEPT_BYTES = 2**28


class Shape:
    """One object: its pixels within its bounding box, and what distances to it need, each worked out once."""

    def __init__(self, mask: Mask, top: int = 0, left: int = 0) -> None:
        """Take a mask [h, w] that touches all four sides; its first pixel lies at (top, left) of the image."""
        self.mask = mask
        self.first = np.array([top, left])
        self.last = self.first + mask.shape - 1
        self._asked = 0

    @classmethod
    def of(cls, mask: Mask) -> "Shape":
        """The object of a mask [H, W] with at least one pixel."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return cls(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(rows[0]), int(columns[0]))

    @property
    def kept_bytes(self) -> int:
        """Memory of what is kept that grows with the box."""
        return self.mask.nbytes + (self._squared.nbytes if "_squared" in self.__dict__ else 0)

    @cached_property
    def ends(self) -> Integers:
        """First and last pixel of every row and column that holds any, [n, 2]."""
        found = []
        for axis, mask in ((0, self.mask), (1, self.mask.T)):
            lines = np.flatnonzero(mask.any(axis=1))
            for places in (mask.argmax(axis=1), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)):
                ends = np.stack([lines, places[lines]], axis=1)
                found.append(ends if axis == 0 else ends[:, ::-1])
        every: Integers = np.concatenate(found) + self.first
        return every

    @cached_property
    def _boundary(self) -> Integers:
        """Pixels [n, 2] that lack one of four neighbours."""
        padded = np.pad(self.mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        pixels: Integers = np.argwhere(self.mask & ~inner) + self.first
        return pixels

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self._boundary)

    @cached_property
    def _squared(self) -> Integers:
        """Squared distance of every pixel of the box to the object."""
        # From the places of the nearest pixels, so that squares stay integers.
        places = ndimage.distance_transform_edt(~self.mask, return_distances=False, return_indices=True)
        rows, columns = np.ogrid[: self.mask.shape[0], : self.mask.shape[1]]
        squared: Integers = (places[0] - rows) ** 2 + (places[1] - columns) ** 2
        return squared

    def farthest_outside(self, points: Integers) -> float:
        """Largest distance to the object of points [n, 2] outside its box; 0 without any."""
        above, below = self.first - points, points - self.last
        gap = np.maximum(np.maximum(above, below), 0)
        least = (gap**2).sum(axis=1)
        outside = least > 0
        if not outside.any():
            return 0.0
        # To the farther corner of each side; the object touches every side somewhere.
        near, far = above**2, below**2
        wide = np.maximum(near, far)
        rows = np.minimum(near[:, 0], far[:, 0]) + wide[:, 1]
        columns = np.minimum(near[:, 1], far[:, 1]) + wide[:, 0]
        chosen = outside & (np.minimum(rows, columns) >= least.max())
        return self._farthest_by_boundary(points[chosen])

    def farthest_within(self, points: Integers) -> float:
        """Largest distance to the object of points [n, 2] of its box; 0 without any."""
        if not len(points):
            return 0.0
        self._asked += len(points)
        if "_squared" not in self.__dict__ and self._asked < _ASKED_PER_BOX_PIXEL * self.mask.size:
            return self._farthest_by_boundary(points)
        rows, columns = (points - self.first).T
        return math.sqrt(int(self._squared[rows, columns].max()))

    def _farthest_by_boundary(self, points: Integers) -> float:
        if len(points) * len(self._boundary) <= _WITHOUT_TREE:
            squared = ((points[:, None] - self._boundary) ** 2).sum(axis=2).min(axis=1)
            return math.sqrt(int(squared.max()))
        distances, _ = self._tree.query(points)
        return float(np.max(distances))


def directed_distance(a: Shape, b: Shape) -> float:
    """h(A, B) in pixels: how far the farthest pixel of A is from B."""
    farthest = b.farthest_outside(a.ends)
    if farthest >= math.hypot(*(b.last - b.first)):  # no pixel of the box is farther from B
        return farthest
    first, last = np.maximum(a.first, b.first), np.minimum(a.last, b.last)
    if (first > last).any():
        return farthest
    inside, outside = (
        shape.mask[
            tuple(slice(*ends) for ends in zip(first - shape.first, last - shape.first + 1, strict=True))
        ]
        for shape in (a, b)
    )
    return max(farthest, b.farthest_within(np.argwhere(inside & ~outside) + first))


def hausdorff_distance(a: Mask, b: Mask) -> float:
    """Hausdorff distance in pixels between two non-empty masks [H, W]."""
    one, other = Shape.of(a), Shape.of(b)
    return max(directed_distance(one, other), directed_distance(other, one))


class ObjectDistances:
    """Hausdorff distances between objects of two sides, each computed once however often it is asked for."""

    def __init__(self, a: LabelSide, b: LabelSide) -> None:
        self._a, self._b = _Shapes(a), _Shapes(b)
        self._known: dict[tuple[int, int], float] = {}

    def between(self, i: int, j: int) -> float:
        """Distance from object i of one side to object j of the other, pixels."""
        if (i, j) not in self._known:
            self._known[i, j] = self._measured(i, j)
        return self._known[i, j]

    def _measured(self, i: int, j: int) -> float:
        one, other = self._a.side.boxes[i], self._b.side.boxes[j]
        window = _union(one, other)
        if _size(window) <= _WINDOW_PER_BOX * min(_size(one), _size(other)):
            a, b = self._a.side.crop(i, window), self._b.side.crop(j, window)
            return max(_within_window(a, b), _within_window(b, a))
        return max(
            directed_distance(self._a[i], self._b[j]),
            directed_distance(self._b[j], self._a[i]),
        )


def _union(one: Integers, other: Integers) -> Integers:
    union: Integers = np.where([True, False, True, False], np.minimum(one, other), np.maximum(one, other))
    return union


def _size(box: Integers) -> int:
    top, bottom, left, right = box.tolist()
    return int((bottom - top) * (right - left))


def _within_window(a: Mask, b: Mask) -> float:
    """h(A, B) of two masks [H, W], B not empty, by a transform of all."""
    rows, columns = np.nonzero(a & ~b)
    if not rows.size:
        return 0.0
    nearest = ndimage.distance_transform_edt(~b, return_distances=False, return_indices=True)
    down, right = nearest[0, rows, columns] - rows, nearest[1, rows, columns] - columns
    return math.sqrt(int((down * down + right * right).max()))


class _Shapes:
    """Objects of a side by number; those asked for last are kept."""

    def __init__(self, side: LabelSide) -> None:
        self.side = side
        self._kept: OrderedDict[int, Shape] = OrderedDict()

    def __getitem__(self, index: int) -> Shape:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        top, _, left, _ = (box := self.side.boxes[index]).tolist()
        self._kept[index] = Shape(self.side.crop(index, box), top, left)
        while len(self._kept) > _KEPT_OBJECTS or (self._bytes() > _KEPT_BYTES and len(self._kept) > 1):
            self._kept.popitem(last=False)
        return self._kept[index]

    def _bytes(self) -> int:
        return sum(shape.kept_bytes for shape in self._kept.values())


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
