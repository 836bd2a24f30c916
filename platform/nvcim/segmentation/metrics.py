"""Object F1, object Dice and object Hausdorff of the GlaS contest (Sirinukunwattana et al., 2017).

Definitions are those of the contest's evaluation page, not of the code that circulates: a partner is always
an object (never the background), the 50 % rule divides by the area of the ground-truth object, and one
ground-truth object is found at most once.

- F1: segmented S is a true positive if it covers at least half of its partner, the ground-truth object that
  it overlaps most. False positives are the other segmented objects, false negatives the ground-truth objects
  not found; counts add up over a set, F1 = 2 TP / (2 TP + FP + FN).
- Dice: half of sum_i w_i D(S_i, partner) plus half of sum_j w_j D(G_j, partner), w = area / sum of areas on
  that side; an object that overlaps nothing has Dice 0.
- Hausdorff: the same sums with the Hausdorff distance in pixels; an object that overlaps nothing is measured
  to the object of the same image that is nearest in that distance.

A tie between partners goes to the one with the better value, so scores do not depend on label order.
Empty sides: an image without any object on both sides counts as perfect alone and adds nothing to pooled
scores. If one side is empty, each object on the other side has Dice 0 and the image's diagonal as Hausdorff
distance; such images are counted in `one_side_empty`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from nvcim.errors import DataError

Mask = NDArray[np.bool_]
_Window = tuple[slice, slice]


@dataclass(frozen=True)
class ObjectScores:
    """Scores of one image, kept as sums so that pooling over a set is adding them up.

    `area_*` are object areas in pixels; `dice_*` and `hausdorff_*` are sums of area x value over the objects
    of that side.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    area_segmented: float
    area_truth: float
    dice_segmented: float
    dice_truth: float
    hausdorff_segmented: float
    hausdorff_truth: float

    @property
    def f1(self) -> float:
        """Object F1; 1 where there is no object on either side."""
        wrong = self.false_positives + self.false_negatives
        total = 2 * self.true_positives + wrong
        return 2 * self.true_positives / total if total else 1.0

    @property
    def dice(self) -> float:
        """Object Dice; 1 where there is no object on either side."""
        return self._both_sides(self.dice_segmented, self.dice_truth, if_empty=1.0)

    @property
    def hausdorff(self) -> float:
        """Object Hausdorff distance in pixels; 0 where there is no object on either side."""
        return self._both_sides(self.hausdorff_segmented, self.hausdorff_truth, if_empty=0.0)

    @property
    def objects_segmented(self) -> int:
        """How many objects were segmented."""
        return self.true_positives + self.false_positives

    @property
    def objects_truth(self) -> int:
        """How many objects the ground truth holds."""
        return self.true_positives + self.false_negatives

    @property
    def one_side_empty(self) -> bool:
        """Whether exactly one side holds no object."""
        return (self.area_segmented == 0) != (self.area_truth == 0)

    def _both_sides(self, segmented: float, truth: float, if_empty: float) -> float:
        """Mean over the sides that hold objects; a side without any has no weights to average with."""
        sides = [
            total / area
            for total, area in ((segmented, self.area_segmented), (truth, self.area_truth))
            if area > 0
        ]
        return sum(sides) / len(sides) if sides else if_empty


@dataclass(frozen=True)
class SetScores:
    """Scores of a set: `pooled` treats all objects of the set alike, the means treat all images alike.

    The contest's tables are pooled; per-image means of the same masks can be more than ten points lower.
    """

    pooled: ObjectScores
    names: tuple[str, ...]
    images: tuple[ObjectScores, ...]

    @property
    def mean_f1(self) -> float:
        """Mean of the images' object F1."""
        return float(np.mean([image.f1 for image in self.images]))

    @property
    def mean_dice(self) -> float:
        """Mean of the images' object Dice."""
        return float(np.mean([image.dice for image in self.images]))

    @property
    def mean_hausdorff(self) -> float:
        """Mean of the images' object Hausdorff distance, pixels."""
        return float(np.mean([image.hausdorff for image in self.images]))

    @property
    def one_side_empty(self) -> int:
        """Images where exactly one side holds no object, scored by the policy in the module's text."""
        return sum(image.one_side_empty for image in self.images)

    def rows(self) -> list[dict[str, str | int | float]]:
        """One table row per image: name, object counts, F1, Dice, Hausdorff (pixels)."""
        return [
            {
                "image": name,
                "objects_segmented": scores.objects_segmented,
                "objects_truth": scores.objects_truth,
                "object_f1": scores.f1,
                "object_dice": scores.dice,
                "object_hausdorff": scores.hausdorff,
            }
            for name, scores in zip(self.names, self.images, strict=True)
        ]


def hausdorff_distance(a: Mask, b: Mask) -> float:
    """Exact Hausdorff distance in pixels between two non-empty masks [H, W], by two distance transforms."""
    window = _union_window(_window_of(a), _window_of(b))
    a, b = a[window], b[window]
    to_b, to_a = ndimage.distance_transform_edt(~b), ndimage.distance_transform_edt(~a)
    return float(max(to_b[a].max(), to_a[b].max()))


def _window_of(mask: Mask) -> _Window:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _union_window(a: _Window, b: _Window) -> _Window:
    rows = slice(min(a[0].start, b[0].start), max(a[0].stop, b[0].stop))
    return rows, slice(min(a[1].start, b[1].start), max(a[1].stop, b[1].stop))


def _least_distance(a: _Window, b: _Window) -> int:
    """A bound that no Hausdorff distance between masks with these bounding boxes can fall below."""
    differences: list[int] = [
        abs(a[0].start - b[0].start),
        abs(a[0].stop - b[0].stop),
        abs(a[1].start - b[1].start),
        abs(a[1].stop - b[1].stop),
    ]
    return max(differences)


class _Side:
    """The objects of one label map: labels 0..n-1 after compaction, areas, bounding boxes."""

    def __init__(self, instances: NDArray[np.int32]) -> None:
        values, compact = np.unique(np.concatenate([[0], instances.ravel()]), return_inverse=True)
        self.count = len(values) - 1
        self.map = compact[1:].reshape(instances.shape)  # 0 is background, object i is i + 1
        self.areas = np.bincount(self.map.ravel(), minlength=self.count + 1)[1:].astype(np.float64)
        self.windows: list[_Window] = [
            (window[0], window[1]) for window in ndimage.find_objects(self.map, max_label=self.count)
        ]


def _overlaps(a: _Side, b: _Side) -> NDArray[np.float64]:
    """Overlap areas of all pairs, [objects of a, objects of b]."""
    joint = a.map.ravel() * (b.count + 1) + b.map.ravel()
    table = np.bincount(joint, minlength=(a.count + 1) * (b.count + 1))
    return table.reshape(a.count + 1, b.count + 1)[1:, 1:].astype(np.float64)


def _pair_distance(a: _Side, i: int, b: _Side, j: int) -> float:
    window = _union_window(a.windows[i], b.windows[j])
    return hausdorff_distance(a.map[window] == i + 1, b.map[window] == j + 1)


def _nearest_distance(a: _Side, i: int, b: _Side, candidates: Iterable[int]) -> float:
    """Smallest Hausdorff distance from object i of a to the candidates of b; bounds spare most transforms."""
    bounds = sorted((_least_distance(a.windows[i], b.windows[j]), j) for j in candidates)
    best = math.inf
    for bound, j in bounds:
        if bound >= best:
            break
        best = min(best, _pair_distance(a, i, b, j))
    return best


def _side_sums(a: _Side, b: _Side, overlap: NDArray[np.float64], diagonal: float) -> tuple[float, float]:
    """Sums of area x Dice and of area x Hausdorff over the objects of a, partners taken from b."""
    if b.count == 0:
        return 0.0, float(a.areas.sum()) * diagonal
    dice_sum, hausdorff_sum = 0.0, 0.0
    for i in range(a.count):
        largest = overlap[i].max()
        partners = np.flatnonzero(overlap[i] == largest) if largest > 0 else np.arange(b.count)
        dice = float((2 * overlap[i, partners] / (a.areas[i] + b.areas[partners])).max())
        dice_sum += a.areas[i] * dice
        hausdorff_sum += a.areas[i] * _nearest_distance(a, i, b, (int(j) for j in partners))
    return float(dice_sum), float(hausdorff_sum)


def _true_positives(segmented: _Side, truth: _Side, overlap: NDArray[np.float64]) -> int:
    """Segmented objects that cover half of their partner, each ground-truth object counted once."""
    if segmented.count == 0 or truth.count == 0:
        return 0
    is_partner = (overlap == overlap.max(axis=1, keepdims=True)) & (overlap > 0)
    found = is_partner & (2 * overlap >= truth.areas[None, :])
    matching = maximum_bipartite_matching(sparse.csr_matrix(found), perm_type="column")
    return int((matching >= 0).sum())


def _check(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> None:
    if segmented.shape != truth.shape or segmented.ndim != 2:
        raise DataError(f"masks must be 2-D and of one size, found {segmented.shape} and {truth.shape}")
    for name, instances in (("segmented", segmented), ("truth", truth)):
        if instances.dtype.kind not in "iu" or (instances.size and instances.min() < 0):
            raise DataError(f"{name} mask must hold integers from 0, found {instances.dtype}")


def score_pair(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> ObjectScores:
    """Score one image; both masks are integers [H, W], 0 is background, labels need not be consecutive.

    Raises:
        DataError: sizes differ, not two-dimensional, or values that are no labels.
    """
    _check(segmented, truth)
    s, g = _Side(segmented), _Side(truth)
    overlap = _overlaps(s, g)
    diagonal = math.hypot(*segmented.shape)
    found = _true_positives(s, g, overlap)
    dice_s, hausdorff_s = _side_sums(s, g, overlap, diagonal)
    dice_g, hausdorff_g = _side_sums(g, s, overlap.T, diagonal)
    return ObjectScores(
        true_positives=found,
        false_positives=s.count - found,
        false_negatives=g.count - found,
        area_segmented=float(s.areas.sum()),
        area_truth=float(g.areas.sum()),
        dice_segmented=dice_s,
        dice_truth=dice_g,
        hausdorff_segmented=hausdorff_s,
        hausdorff_truth=hausdorff_g,
    )


def score_set(
    pairs: Iterable[tuple[NDArray[np.int32], NDArray[np.int32]]], names: Sequence[str] | None = None
) -> SetScores:
    """Score (segmented, truth) pairs, pooled and per image; images are named 0, 1, ... if not given.

    Raises:
        DataError: no pair, or as `score_pair`.
    """
    images = tuple(score_pair(segmented, truth) for segmented, truth in pairs)
    if not images:
        raise DataError("scoring needs at least one pair of masks")
    fields = ObjectScores.__dataclass_fields__
    pooled = ObjectScores(**{field: sum(getattr(image, field) for image in images) for field in fields})
    chosen = tuple(names) if names is not None else tuple(str(index) for index in range(len(images)))
    return SetScores(pooled, chosen, images)


def object_f1(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """Object F1 of one image, 0..1; masks as `score_pair`."""
    return score_pair(segmented, truth).f1


def object_dice(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """Object Dice of one image, 0..1; masks as `score_pair`."""
    return score_pair(segmented, truth).dice


def object_hausdorff(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """Object Hausdorff distance of one image, pixels; masks as `score_pair`."""
    return score_pair(segmented, truth).hausdorff
