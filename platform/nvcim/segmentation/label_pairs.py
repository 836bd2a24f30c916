"""Two label maps of one image side by side: their objects, and which overlap by how many pixels.

Every mask metric starts from here. Overlaps are kept as a list of the pairs that touch, so that maps with tens of
thousands of objects fit in memory.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nvcim.errors import DataError

Labels = NDArray[np.int32]
Integers = NDArray[np.int64]
# Tables up to this many entries are counted directly; beyond, labels are sorted.
_TABLE = 2**22


class LabelSide:
    """The objects of one label map, numbered 0..count-1 in the order of their labels.

    Attributes:
        count: how many objects.
        map: [H, W], 0 for background, object i as i + 1.
        areas: [count], pixels.
        boxes: [count, 4], top, bottom, left, right of each object; bottom and right are exclusive.
    """

    def __init__(self, instances: Labels) -> None:
        """Number the objects of a label map [H, W] of integers from 0; labels may have gaps."""
        self.map = _numbered(instances)
        counts = np.bincount(self.map.ravel(), minlength=1)
        self.count = len(counts) - 1
        self.areas: Integers = counts[1:].astype(np.int64)
        windows = ndimage.find_objects(self.map, max_label=self.count)
        self.boxes = np.array(
            [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in windows],
            dtype=np.int64,
        ).reshape(-1, 4)

    @cached_property
    def first_pixels(self) -> Integers:
        """Where each object begins in reading order, [count]: a name for it that its label does not change."""
        flat = self.map.ravel()
        places = np.flatnonzero(flat)[::-1]
        first = np.zeros(self.count + 1, dtype=np.int64)
        first[flat[places]] = places  # written backwards, the first place is what stays
        return first[1:]

    def crop(self, index: int, box: Integers) -> NDArray[np.bool_]:
        """Pixels of one object within a box (top, bottom, left, right)."""
        top, bottom, left, right = box.tolist()
        found: NDArray[np.bool_] = self.map[top:bottom, left:right] == index + 1
        return found


def _numbered(instances: Labels) -> Labels:
    """Labels replaced by 1..n in their order, 0 staying 0."""
    largest = int(instances.max(initial=0))
    if largest > _TABLE:
        _, numbers = np.unique(np.append(instances.ravel(), 0), return_inverse=True)
        return numbers[:-1].reshape(instances.shape).astype(np.int32)
    present = np.zeros(largest + 1, dtype=np.bool_)
    present[instances.ravel()] = True
    present[0] = False
    return np.where(present, np.cumsum(present), 0).astype(np.int32)[instances]


@dataclass(frozen=True)
class LabelPair:
    """A segmented map and a true one, with every pair of objects that share a pixel.

    Attributes:
        segmented, truth: the two sides.
        first, second: [pairs], object of `segmented` and object of `truth`.
        overlaps: [pairs], pixels that they share, at least 1.
    """

    segmented: LabelSide
    truth: LabelSide
    first: Integers
    second: Integers
    overlaps: Integers

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.segmented.map.shape
        return height, width

    @property
    def unions(self) -> Integers:
        """Pixels that a pair covers together, [pairs]."""
        return self.segmented.areas[self.first] + self.truth.areas[self.second] - self.overlaps

    def swapped(self) -> "LabelPair":
        """The same with the sides' places exchanged."""
        return LabelPair(self.truth, self.segmented, self.second, self.first, self.overlaps)


def label_pair(segmented: Labels, truth: Labels) -> LabelPair:
    """Set two masks beside each other; both are integers [H, W], 0 is background, labels need not be consecutive.

    Raises:
        DataError: sizes differ, not two-dimensional, or values that are no labels.
    """
    if segmented.shape != truth.shape or segmented.ndim != 2:
        raise DataError(f"masks must be 2-D and of one size, found {segmented.shape} and {truth.shape}")
    for name, instances in (("segmented", segmented), ("truth", truth)):
        if instances.dtype.kind not in "iu" or (instances.size and instances.min() < 0):
            raise DataError(f"{name} mask must hold integers from 0, found {instances.dtype}")
    s, g = LabelSide(segmented), LabelSide(truth)
    both = np.flatnonzero((s.map > 0) & (g.map > 0))
    joint = (s.map.ravel()[both].astype(np.int64) - 1) * g.count + (g.map.ravel()[both] - 1)
    if s.count * g.count <= _TABLE:
        table = np.bincount(joint, minlength=1)
        pairs = np.flatnonzero(table)
        overlaps = table[pairs]
    else:
        pairs, overlaps = np.unique(joint, return_counts=True)
    first, second = np.divmod(pairs, max(g.count, 1))
    return LabelPair(s, g, first.astype(np.int64), second.astype(np.int64), overlaps.astype(np.int64))
