"""Pixel Dice and IoU, AJI and PQ against cases worked by hand and slow references written from the papers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim.errors import DataError
from nvcim.segmentation import score_jaccard, score_masks, score_panoptic, score_pixels
from nvcim.segmentation.mask_scores import MEAN, POOLED

Pixels = set[tuple[int, int]]


def boxes(*spans: tuple[int, int, int, int]) -> np.ndarray:
    """Labels 1.. as rectangles (top, bottom, left, right) in 12 x 12 pixels."""
    mask = np.zeros((12, 12), dtype=np.int32)
    for label, (top, bottom, left, right) in enumerate(spans, start=1):
        mask[top:bottom, left:right] = label
    return mask


def random_map(random: np.random.Generator) -> np.ndarray:
    spans = random.integers(0, 12, (random.integers(0, 6), 2))
    sizes = random.integers(1, 8, (len(spans), 2))
    return boxes(*((r, r + h, c, c + w) for (r, c), (h, w) in zip(spans, sizes, strict=True)))


def objects_of(mask: np.ndarray) -> list[Pixels]:
    return [set(map(tuple, np.argwhere(mask == label).tolist())) for label in np.unique(mask) if label]


def iou(a: Pixels, b: Pixels) -> float:
    return len(a & b) / len(a | b)


def slow_aji(segmented: np.ndarray, truth: np.ndarray) -> float:
    """Kumar's algorithm 1; of equal IoU the larger overlap, then the first in reading order."""
    s, g = objects_of(segmented), objects_of(truth)
    intersection, union, used = 0, 0, set()
    for one in g:
        ranked = sorted(range(len(s)), key=lambda k: (-iou(s[k], one), -len(s[k] & one), min(s[k])))
        if ranked and s[ranked[0]] & one:
            intersection += len(s[ranked[0]] & one)
            union += len(s[ranked[0]] | one)
            used.add(ranked[0])
        else:
            union += len(one)
    union += sum(len(s[k]) for k in range(len(s)) if k not in used)
    return intersection / union if union else 1.0


def slow_pq(segmented: np.ndarray, truth: np.ndarray) -> float:
    """Kirillov's equation 1."""
    s, g = objects_of(segmented), objects_of(truth)
    matched = [iou(a, b) for a in s for b in g if iou(a, b) > 0.5]
    misses = len(s) + len(g) - 2 * len(matched)
    return sum(matched) / (len(matched) + misses / 2) if s or g else 1.0


def test_random_maps_agree_with_the_slow_references() -> None:
    for seed in range(400):
        random = np.random.default_rng(seed)
        segmented, truth = random_map(random), random_map(random)
        assert score_jaccard(segmented, truth).aji == pytest.approx(slow_aji(segmented, truth), abs=1e-12)
        assert score_panoptic(segmented, truth).pq == pytest.approx(slow_pq(segmented, truth), abs=1e-12)
        a, b = segmented > 0, truth > 0
        pixels = score_pixels(segmented, truth)
        assert pixels.iou == ((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
        assert pixels.dice == (2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1.0)


def test_pixels_by_hand() -> None:
    # 4 x 4 against 4 x 4 shifted by one column: 12 shared, 4 on either side.
    scores = score_pixels(boxes((0, 4, 1, 5)), boxes((0, 4, 0, 2), (0, 4, 2, 4)))
    assert (scores.true_positives, scores.false_positives, scores.false_negatives) == (12, 4, 4)
    assert (scores.dice, scores.iou) == (24 / 32, 12 / 20)


def test_aji_by_hand() -> None:
    # True: A 4 x 4, B 2 x 2. Segmented: S over A shifted by one column, and T where nothing is, 3 pixels.
    truth = boxes((0, 4, 0, 4), (8, 10, 8, 10))
    segmented = boxes((0, 4, 1, 5), (6, 7, 0, 3))
    # A with S: 12 of 20. B alone: 4. T alone: 3.
    assert score_jaccard(segmented, truth).aji == 12 / (20 + 4 + 3)


def test_one_segmented_object_may_serve_two_true_ones_in_aji() -> None:
    # A 4 x 8 bar over two 4 x 4 squares: both take it, 16 of 32 each.
    assert score_jaccard(boxes((0, 4, 0, 8)), boxes((0, 4, 0, 4), (0, 4, 4, 8))).aji == 32 / 64


def test_aji_takes_the_best_ratio_not_the_largest_overlap() -> None:
    # True 1 x 4. S covers 3 of it and 9 others (3 of 13), T the fourth alone (1 of 4, better).
    segmented = np.zeros((12, 12), dtype=np.int32)
    segmented[0, :3] = segmented[1:4, :3] = 1
    segmented[0, 3] = 2
    assert score_jaccard(segmented, boxes((0, 1, 0, 4))).aji == 1 / (4 + 12)


def test_panoptic_quality_by_hand() -> None:
    # A: 12 of 20 = 0.6, a match. B: exactly half (8 of 16), none. So TP 1, FP 1, FN 1.
    segmented, truth = boxes((0, 4, 1, 5), (6, 10, 6, 8)), boxes((0, 4, 0, 4), (6, 10, 6, 10))
    scores = score_panoptic(segmented, truth)
    assert (scores.true_positives, scores.false_positives, scores.false_negatives) == (1, 1, 1)
    assert (scores.sq, scores.rq, scores.pq) == (0.6, 0.5, 0.3)


def test_empty_sides() -> None:
    nothing, something = boxes(), boxes((0, 4, 0, 4))
    both = score_masks([(nothing, nothing)])
    assert set(both.pooled.values().values()) == {0.0, 1.0}
    assert {name for name, value in both.pooled.values().items() if value == 0} == {"object_hausdorff"}
    for pair in ((nothing, something), (something, nothing)):
        values = score_masks([pair]).pooled.values()
        assert values.pop("object_hausdorff") == pytest.approx(12 * 2**0.5)
        assert set(values.values()) == {0.0}


def test_pooled_and_mean_are_named_and_differ_as_by_hand() -> None:
    perfect, missed = boxes((0, 4, 0, 4)), boxes((0, 2, 0, 2))
    scores = score_masks([(perfect, perfect), (boxes(), missed), (boxes(), boxes())], ["a", "b", "c"])
    rows = {str(row["image"]): row for row in scores.rows()}
    assert list(rows) == ["a", "b", "c", POOLED, MEAN]
    assert [row["basis"] for row in rows.values()] == ["image"] * 3 + ["pooled", "mean"]
    for name, pooled in {"pixel_dice": 32 / 36, "pixel_iou": 16 / 20, "aji": 16 / 20, "pq": 1 / 1.5}.items():
        assert rows[POOLED][name] == pytest.approx(pooled)
        assert rows[MEAN][name] == pytest.approx(2 / 3)  # 1, 0, and 1 for the image without objects
    assert (scores.one_side_empty, scores.both_sides_empty) == (1, 1)
    assert scores.objects.mean_f1 == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="at least one"):
        score_masks([])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_label_order_and_gaps_do_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random_map(random), random_map(random)
    names = np.concatenate([[0], random.permutation(10_000)[:6] + 1]).astype(np.int32)
    assert score_jaccard(names[a], names[b]) == score_jaccard(a, b)
    before, after = score_panoptic(a, b), score_panoptic(names[a], names[b])
    assert (after.pq, after.true_positives) == (pytest.approx(before.pq), before.true_positives)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pixels_and_panoptic_quality_are_symmetric_and_perfect_on_themselves(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random_map(random), random_map(random)
    assert score_panoptic(a, b).pq == pytest.approx(score_panoptic(b, a).pq)
    assert score_pixels(a, b).iou == score_pixels(b, a).iou
    assert (score_panoptic(a, a).pq, score_jaccard(a, a).aji, score_pixels(a, a).dice) == (1.0, 1.0, 1.0)
