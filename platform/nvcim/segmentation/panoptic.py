"""Metrics of nuclei segmentation: the aggregated Jaccard index and panoptic quality.

- AJI (Kumar et al., IEEE TMI 2017, algorithm 1): each true object takes the segmented object with the largest
  intersection over union; intersections and unions of these pairs are summed; a true object that nothing overlaps
  adds its area to the unions, and so does every segmented object that was never taken. One segmented object may be
  taken several times.
- PQ (Kirillov et al., CVPR 2019, equations 1 and 2), one class: objects match if their intersection over union is
  **above** one half, which at most one object can reach. SQ is the mean IoU of the matches, RQ = TP / (TP + FP/2 +
  FN/2), PQ = SQ x RQ.

Where two segmented objects tie for a true one in AJI, the larger overlap is taken, then the object that begins first in
reading order, so that scores do not depend on label order. An image without objects on both sides is perfect alone and
adds nothing to pooled scores; if one side is empty, all are 0.
"""

from dataclasses import dataclass

import numpy as np

from nvcim.segmentation.label_pairs import LabelPair, Labels, label_pair


@dataclass(frozen=True)
class JaccardScores:
    """What the aggregated Jaccard index is made of, in pixels; pooling over a set is adding up."""

    intersection: int
    union: int

    @property
    def aji(self) -> float:
        """Aggregated Jaccard index, 0..1; 1 where there is no object on either side."""
        return self.intersection / self.union if self.union else 1.0


@dataclass(frozen=True)
class PanopticScores:
    """Matches, objects without one, and the matches' summed IoU; pooling over a set is adding up."""

    true_positives: int
    false_positives: int
    false_negatives: int
    iou_sum: float

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matches; 0 without a match, 1 without any object."""
        if self.true_positives:
            return self.iou_sum / self.true_positives
        return 0.0 if self.false_positives or self.false_negatives else 1.0

    @property
    def rq(self) -> float:
        """Recognition quality: F1 of the matches; 1 without any object."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else 1.0

    @property
    def pq(self) -> float:
        """Panoptic quality, SQ x RQ."""
        return self.sq * self.rq


def score_jaccard(segmented: Labels, truth: Labels) -> JaccardScores:
    """Aggregated Jaccard index of one image; masks are integers [H, W], 0 is background.

    Raises:
        DataError: as `label_pairs.label_pair`.
    """
    return jaccard_scores(label_pair(segmented, truth))


def score_panoptic(segmented: Labels, truth: Labels) -> PanopticScores:
    """Panoptic quality of one image; masks are integers [H, W], 0 is background.

    Raises:
        DataError: as `label_pairs.label_pair`.
    """
    return panoptic_scores(label_pair(segmented, truth))


def jaccard_scores(pair: LabelPair) -> JaccardScores:
    """Score one image whose objects and overlaps are known."""
    unions = pair.unions
    # Sorted so that the best candidate of each true object comes last. A ratio of two integers below 2^26 is rounded
    # the same whenever it is the same and differently whenever it is not.
    order = np.lexsort(
        (-pair.segmented.first_pixels[pair.first], pair.overlaps, pair.overlaps / unions, pair.second)
    )
    is_last = np.diff(pair.second[order], append=pair.truth.count) != 0
    chosen = order[is_last]
    taken = np.zeros(pair.segmented.count, dtype=np.bool_)
    taken[pair.first[chosen]] = True
    found = np.zeros(pair.truth.count, dtype=np.bool_)
    found[pair.second[chosen]] = True
    alone = int(pair.segmented.areas[~taken].sum()) + int(pair.truth.areas[~found].sum())
    return JaccardScores(int(pair.overlaps[chosen].sum()), int(unions[chosen].sum()) + alone)


def panoptic_scores(pair: LabelPair) -> PanopticScores:
    """Score one image whose objects and overlaps are known."""
    matched = 2 * pair.overlaps > pair.unions
    count = int(matched.sum())
    return PanopticScores(
        true_positives=count,
        false_positives=pair.segmented.count - count,
        false_negatives=pair.truth.count - count,
        iou_sum=float((pair.overlaps[matched] / pair.unions[matched]).sum()),
    )
