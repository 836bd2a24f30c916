"""Every metric of a set of masks in one pass: objects, pixels, aggregated Jaccard index, panoptic quality."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nvcim.errors import DataError
from nvcim.segmentation.label_pairs import Labels, label_pair
from nvcim.segmentation.metrics import ObjectScores, SetScores, object_scores, pool
from nvcim.segmentation.panoptic import JaccardScores, PanopticScores, jaccard_scores, panoptic_scores
from nvcim.segmentation.pixel_metrics import PixelScores, pixel_scores

POOLED, MEAN = "all objects, pooled", "mean of images"


@dataclass(frozen=True)
class MaskScores:
    """All scores of one image, or of a set pooled into one."""

    objects: ObjectScores
    pixels: PixelScores
    jaccard: JaccardScores
    panoptic: PanopticScores

    def values(self) -> dict[str, float]:
        """Metrics by name; `object_hausdorff` is in pixels, all others lie in 0..1."""
        return {
            "object_f1": self.objects.f1,
            "object_dice": self.objects.dice,
            "object_hausdorff": self.objects.hausdorff,
            "pixel_dice": self.pixels.dice,
            "pixel_iou": self.pixels.iou,
            "aji": self.jaccard.aji,
            "pq": self.panoptic.pq,
            "sq": self.panoptic.sq,
            "rq": self.panoptic.rq,
        }


@dataclass(frozen=True)
class MaskSetScores:
    """All scores of a set: pooled, which treats all objects alike, and per image."""

    pooled: MaskScores
    names: tuple[str, ...]
    images: tuple[MaskScores, ...]

    @property
    def objects(self) -> SetScores:
        """The contest's object metrics alone."""
        return SetScores(self.pooled.objects, self.names, tuple(image.objects for image in self.images))

    @property
    def one_side_empty(self) -> int:
        """Images where exactly one side holds no object, scored by the policy of `metrics`."""
        return self.objects.one_side_empty

    @property
    def both_sides_empty(self) -> int:
        """Images without an object on either side: perfect alone, nothing to the pooled scores."""
        return sum(
            image.objects.objects_segmented == image.objects.objects_truth == 0 for image in self.images
        )

    def means(self) -> dict[str, float]:
        """Mean of the images' metrics by name, which treats all images alike."""
        values = [image.values() for image in self.images]
        return {name: float(np.mean([value[name] for value in values])) for name in values[0]}

    def rows(self) -> list[dict[str, str | int | float]]:
        """One table row per image, then one pooled and one of means; `basis` is image, pooled or mean."""
        rows = [
            _row(name, "image", scores.objects, scores.values())
            for name, scores in zip(self.names, self.images, strict=True)
        ]
        rows.append(_row(POOLED, "pooled", self.pooled.objects, self.pooled.values()))
        rows.append(_row(MEAN, "mean", self.pooled.objects, self.means()))
        return rows


def _row(
    name: str, basis: str, objects: ObjectScores, values: dict[str, float]
) -> dict[str, str | int | float]:
    counts = {"objects_segmented": objects.objects_segmented, "objects_truth": objects.objects_truth}
    return {"image": name, "basis": basis, **counts, **values}


def score_masks(pairs: Iterable[tuple[Labels, Labels]], names: Sequence[str] | None = None) -> MaskSetScores:
    """Score (segmented, truth) pairs by every metric; images are named 0, 1, ... if not given.

    Masks are integers [H, W], 0 is background, labels need not be consecutive.

    Raises:
        DataError: no pair, sizes differ, not two-dimensional, or values that are no labels.
    """
    images = tuple(_score(segmented, truth) for segmented, truth in pairs)
    if not images:
        raise DataError("scoring needs at least one pair of masks")
    pooled = MaskScores(
        pool([image.objects for image in images]),
        pool([image.pixels for image in images]),
        pool([image.jaccard for image in images]),
        pool([image.panoptic for image in images]),
    )
    chosen = tuple(names) if names is not None else tuple(str(index) for index in range(len(images)))
    return MaskSetScores(pooled, chosen, images)


def _score(segmented: Labels, truth: Labels) -> MaskScores:
    pair = label_pair(segmented, truth)
    return MaskScores(object_scores(pair), pixel_scores(pair), jaccard_scores(pair), panoptic_scores(pair))
