"""Dice and intersection over union of pixels, objects forgotten: the agreement of two foregrounds.

Reported beside the object metrics because much of the literature states them; the two are not comparable.
"""

from dataclasses import dataclass

from nvcim.segmentation.label_pairs import LabelPair, Labels, label_pair


@dataclass(frozen=True)
class PixelScores:
    """Counts of pixels; pooling over a set is adding them up."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where both foregrounds are empty."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else 1.0

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), also Jaccard's index; 1 where both foregrounds are empty."""
        total = self.true_positives + self.false_positives + self.false_negatives
        return self.true_positives / total if total else 1.0


def score_pixels(segmented: Labels, truth: Labels) -> PixelScores:
    """Score one image; both masks are integers [H, W], whatever is not 0 is foreground.

    Raises:
        DataError: as `label_pairs.label_pair`.
    """
    return pixel_scores(label_pair(segmented, truth))


def pixel_scores(pair: LabelPair) -> PixelScores:
    """Score one image whose objects and overlaps are known."""
    both = int(pair.overlaps.sum())
    segmented, truth = int(pair.segmented.areas.sum()), int(pair.truth.areas.sum())
    return PixelScores(both, segmented - both, truth - both)
