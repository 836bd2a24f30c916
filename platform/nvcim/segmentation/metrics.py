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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from nvcim.errors import DataError
from nvcim.segmentation.hausdorff import NearestObjects, ObjectDistances
from nvcim.segmentation.label_pairs import LabelPair, label_pair

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Sums = TypeVar("Sums", bound="DataclassInstance")


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


def _partners(pair: LabelPair) -> NDArray[np.bool_]:
    """Which overlapping pairs join a segmented object to its partner; several where the largest overlap is tied."""
    largest = np.zeros(pair.segmented.count, dtype=np.int64)
    np.maximum.at(largest, pair.first, pair.overlaps)
    partners: NDArray[np.bool_] = pair.overlaps == largest[pair.first]
    return partners


def _dice_sum(pair: LabelPair) -> float:
    """Sum of area x Dice over the segmented objects."""
    chosen = _partners(pair)
    first, second = pair.first[chosen], pair.second[chosen]
    areas = pair.segmented.areas
    dice = 2 * pair.overlaps[chosen] / (areas[first] + pair.truth.areas[second])
    best = np.zeros(pair.segmented.count)
    np.maximum.at(best, first, dice)
    return float((areas * best).sum())


def _hausdorff_sum(pair: LabelPair, distance: Callable[[int, int], float]) -> float:
    """Sum of area x Hausdorff distance over the segmented objects; `distance` is that from i to true object j."""
    a, b = pair.segmented, pair.truth
    if b.count == 0:
        return float(a.areas.sum()) * math.hypot(*pair.shape)
    nearest = np.full(a.count, math.inf)
    chosen = _partners(pair)
    same = (pair.overlaps == a.areas[pair.first]) & (pair.overlaps == b.areas[pair.second])
    nearest[pair.first[same]] = 0.0
    for i, j in zip(pair.first[chosen & ~same].tolist(), pair.second[chosen & ~same].tolist(), strict=True):
        nearest[i] = min(nearest[i], distance(i, j))
    lonely = np.flatnonzero(np.isinf(nearest))
    if lonely.size:
        search = NearestObjects(b)
        for i in lonely.tolist():
            nearest[i] = search.distance_from(a.boxes[i], partial(distance, i))
    return float((a.areas * nearest).sum())


def _true_positives(pair: LabelPair) -> int:
    """Segmented objects that cover half of their partner, each ground-truth object counted once."""
    found = _partners(pair) & (2 * pair.overlaps >= pair.truth.areas[pair.second])
    if not found.any():
        return 0
    edges = (np.ones(int(found.sum()), dtype=np.int8), (pair.first[found], pair.second[found]))
    graph = sparse.csr_matrix(edges, shape=(pair.segmented.count, pair.truth.count))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def score_pair(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> ObjectScores:
    """Score one image; both masks are integers [H, W], 0 is background, labels need not be consecutive.

    Raises:
        DataError: sizes differ, not two-dimensional, or values that are no labels.
    """
    return object_scores(label_pair(segmented, truth))


def object_scores(pair: LabelPair) -> ObjectScores:
    """Score one image whose objects and overlaps are known."""
    segmented, truth, swapped = pair.segmented, pair.truth, pair.swapped()
    found = _true_positives(pair)
    distances = ObjectDistances(segmented, truth)
    return ObjectScores(
        true_positives=found,
        false_positives=segmented.count - found,
        false_negatives=truth.count - found,
        area_segmented=float(segmented.areas.sum()),
        area_truth=float(truth.areas.sum()),
        dice_segmented=_dice_sum(pair),
        dice_truth=_dice_sum(swapped),
        hausdorff_segmented=_hausdorff_sum(pair, distances.between),
        hausdorff_truth=_hausdorff_sum(swapped, lambda j, i: distances.between(i, j)),
    )


def pool(scores: Sequence[Sums]) -> Sums:
    """Add up scores that are kept as sums, field by field."""
    names = [field.name for field in fields(scores[0])]
    return replace(scores[0], **{name: sum(getattr(score, name) for score in scores) for name in names})


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
    chosen = tuple(names) if names is not None else tuple(str(index) for index in range(len(images)))
    return SetScores(pool(images), chosen, images)


def object_f1(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """Object F1 of one image, 0..1; masks as `score_pair`."""
    return score_pair(segmented, truth).f1


def object_dice(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """Object Dice of one image, 0..1; masks as `score_pair`."""
    return score_pair(segmented, truth).dice


def object_hausdorff(segmented: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """Object Hausdorff distance of one image, pixels; masks as `score_pair`."""
    return score_pair(segmented, truth).hausdorff
