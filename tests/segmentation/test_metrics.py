"""The metrics against cases worked by hand and against a slow reference written from the definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from nvcim.errors import DataError
from nvcim.segmentation import object_dice, object_f1, object_hausdorff, score_pair, score_set


def boxes(shape: tuple[int, int], *spans: tuple[int, int, int, int]) -> np.ndarray:
    """Labels 1.. as rectangles (top, bottom, left, right)."""
    mask = np.zeros(shape, dtype=np.int32)
    for label, (top, bottom, left, right) in enumerate(spans, start=1):
        mask[top:bottom, left:right] = label
    return mask


def random_map(random: np.random.Generator, size: int = 14, objects: int = 5) -> np.ndarray:
    mask = np.zeros((size, size + 3), dtype=np.int32)
    for label in random.permutation(40)[: random.integers(0, objects + 1)] + 1:
        top, left = random.integers(0, size), random.integers(0, size)
        height, width = random.integers(1, 8, 2)
        mask[top : top + height, left : left + width] = label
    return mask


# --- the slow reference: sets of pixels, all pairs, no distance transform ---


def objects_of(mask: np.ndarray) -> list[np.ndarray]:
    return [mask == label for label in np.unique(mask) if label != 0]


def slow_hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    distances = cdist(np.argwhere(a), np.argwhere(b))
    return float(max(distances.min(axis=1).max(), distances.min(axis=0).max()))


def slow_dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def best_partners(a: np.ndarray, others: list[np.ndarray]) -> list[np.ndarray]:
    overlaps = [int((a & b).sum()) for b in others]
    return [b for b, o in zip(others, overlaps, strict=True) if o == max(overlaps) and o > 0]


def slow_side(
    side: list[np.ndarray], others: list[np.ndarray], diagonal: float
) -> tuple[float, float, float]:
    area = float(sum(a.sum() for a in side))
    dice = hausdorff = 0.0
    for a in side:
        partners = best_partners(a, others)
        dice += a.sum() * max((slow_dice(a, b) for b in partners), default=0.0)
        distances = [slow_hausdorff(a, b) for b in (partners or others)]
        hausdorff += a.sum() * min(distances, default=diagonal)
    return area, dice, hausdorff


def slow_found(segmented: list[np.ndarray], truth: list[np.ndarray]) -> int:
    """Most segmented objects that can each claim a ground-truth object of their own (tries all ways)."""

    def claims(index: int, free: frozenset[int]) -> int:
        if index == len(segmented):
            return 0
        best = claims(index + 1, free)
        partners = best_partners(segmented[index], truth)
        for j in free:
            covers = 2 * (segmented[index] & truth[j]).sum() >= truth[j].sum()
            if covers and any(truth[j] is partner for partner in partners):
                best = max(best, 1 + claims(index + 1, free - {j}))
        return best

    return claims(0, frozenset(range(len(truth))))


def slow_scores(segmented: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    s, g = objects_of(segmented), objects_of(truth)
    if not s and not g:
        return 1.0, 1.0, 0.0
    found = slow_found(s, g)
    diagonal = math.hypot(*segmented.shape)
    sides = [x for x in (slow_side(s, g, diagonal), slow_side(g, s, diagonal)) if x[0] > 0]
    dice = sum(d / area for area, d, _ in sides) / len(sides)
    hausdorff = sum(h / area for area, _, h in sides) / len(sides)
    return 2 * found / (len(s) + len(g)), dice, hausdorff


def test_two_hundred_random_maps_agree_with_the_reference() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        segmented, truth = random_map(random), random_map(random)
        scores = score_pair(segmented, truth)
        expected = slow_scores(segmented, truth)
        assert (scores.f1, scores.dice, scores.hausdorff) == pytest.approx(expected, abs=1e-9)


# --- worked by hand ---


def test_shifted_square_by_hand() -> None:
    truth = boxes((20, 20), (2, 12, 2, 12))
    segmented = boxes((20, 20), (2, 12, 5, 15))  # shifted by 3: overlap 7 of 10 columns
    assert object_f1(segmented, truth) == 1.0
    assert object_dice(segmented, truth) == pytest.approx(0.7)
    assert object_hausdorff(segmented, truth) == 3.0


def test_minority_overlap_keeps_its_object_as_partner() -> None:
    # A 60x40 prediction over a 40x40 object, overlap 20x40: most of the prediction lies on background,
    # which circulating code takes for the partner (Dice 0.06, Hausdorff 143); by definition 0.4 and 40.
    truth = boxes((120, 120), (40, 80, 20, 60))
    segmented = boxes((120, 120), (40, 80, 40, 100))
    assert object_dice(segmented, truth) == pytest.approx(0.4)
    assert object_hausdorff(segmented, truth) == pytest.approx(40.0)
    assert object_f1(segmented, truth) == 1.0  # exactly half of the object is covered


def test_two_halves_find_an_object_once() -> None:
    truth = boxes((10, 12), (2, 8, 2, 10))
    halves = boxes((10, 12), (2, 8, 2, 6), (2, 8, 6, 10))
    scores = score_pair(halves, truth)
    assert (scores.true_positives, scores.false_positives, scores.false_negatives) == (1, 1, 0)
    assert scores.f1 == pytest.approx(2 / 3)
    # Both halves: 2*24/(24+48) = 2/3; the object's best partner likewise.
    assert scores.dice == pytest.approx(2 / 3)


def test_half_is_measured_on_the_true_object_not_on_the_union() -> None:
    truth = boxes((30, 30), (0, 10, 0, 10))
    segmented = boxes((30, 30), (0, 30, 0, 30))  # intersection over union is 1/9
    assert object_f1(segmented, truth) == 1.0
    barely_not = boxes((30, 30), (0, 10, 0, 4))
    assert object_f1(barely_not, truth) == 0.0


def test_weights_are_areas() -> None:
    truth = boxes((20, 20), (0, 10, 0, 10), (15, 17, 15, 17))
    segmented = boxes((20, 20), (0, 10, 0, 10))
    # Segmented side: 1. Truth side: (100 * 1 + 4 * 0) / 104. The missed one's nearest object is the square.
    assert object_dice(segmented, truth) == pytest.approx((1 + 100 / 104) / 2)
    # Farthest apart: the square's pixel (0, 0) and its nearest of the missed object, (15, 15).
    assert object_hausdorff(segmented, truth) == pytest.approx(4 / 104 * math.hypot(15, 15) / 2)


def test_unmatched_objects_are_measured_to_the_nearest_of_their_image() -> None:
    truth = boxes((10, 60), (0, 2, 0, 2), (0, 2, 50, 52))
    segmented = boxes((10, 60), (0, 2, 10, 12))
    # Segmented: nearest is 10 away. Truth: 10 and 40 away, equal areas.
    assert object_hausdorff(segmented, truth) == pytest.approx((10 + 25) / 2)
    assert object_dice(segmented, truth) == 0.0


def test_empty_sides_follow_the_stated_policy() -> None:
    nothing, something = boxes((30, 40)), boxes((30, 40), (3, 9, 3, 9))
    both = score_pair(nothing, nothing)
    assert (both.f1, both.dice, both.hausdorff, both.one_side_empty) == (1.0, 1.0, 0.0, False)
    for pair in ((nothing, something), (something, nothing)):
        scores = score_pair(*pair)
        assert (scores.f1, scores.dice, scores.hausdorff) == (0.0, 0.0, 50.0)  # the diagonal of 30x40
        assert scores.one_side_empty


def test_pooling_adds_up_objects_and_differs_from_the_mean() -> None:
    shape = (40, 40)
    perfect = boxes(shape, (0, 30, 0, 30))
    tiny_truth, tiny_wrong = boxes(shape, (0, 3, 0, 3)), boxes(shape, (0, 3, 20, 23), (0, 3, 30, 33))
    scores = score_set([(perfect, perfect), (tiny_wrong, tiny_truth)], ["good", "bad"])
    assert scores.mean_f1 == 0.5
    assert scores.pooled.f1 == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))
    assert scores.mean_dice == 0.5
    assert scores.pooled.dice == pytest.approx((900 / 918 + 900 / 909) / 2)
    assert [row["image"] for row in scores.rows()] == ["good", "bad"]
    assert scores.one_side_empty == 0


def test_more_than_255_objects_do_not_wrap() -> None:
    grid = np.zeros((80, 80), dtype=np.int32)
    grid[::4, ::4] = np.arange(1, 401).reshape(20, 20)
    assert score_pair(grid, grid).true_positives == 400


def test_touching_objects_stay_apart() -> None:
    truth = boxes((10, 10), (0, 10, 0, 5), (0, 10, 5, 10))
    assert score_pair(truth, truth).true_positives == 2


def test_masks_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(DataError, match="one size"):
        score_pair(boxes((3, 3)), boxes((3, 4)))
    with pytest.raises(DataError, match="integers"):
        score_pair(np.zeros((3, 3)), boxes((3, 3)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="integers"):
        score_pair(boxes((3, 3)) - 1, boxes((3, 3)))
    with pytest.raises(DataError, match="at least one"):
        score_set([])


# --- properties ---

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_identity_is_perfect(seed: int) -> None:
    mask = random_map(np.random.default_rng(seed))
    scores = score_pair(mask, mask)
    assert (scores.f1, scores.dice, scores.hausdorff) == (1.0, pytest.approx(1.0), 0.0)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_dice_and_hausdorff_are_symmetric(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random_map(random), random_map(random)
    assert object_dice(a, b) == pytest.approx(object_dice(b, a))
    assert object_hausdorff(a, b) == pytest.approx(object_hausdorff(b, a))


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_label_order_does_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random_map(random), random_map(random)
    renamed = np.concatenate([[0], random.permutation(1000)[:40] + 1]).astype(np.int32)
    before, after = score_pair(a, b), score_pair(renamed[a], renamed[b])
    assert (after.f1, after.dice, after.hausdorff) == pytest.approx(
        (before.f1, before.dice, before.hausdorff)
    )
    assert (after.true_positives, after.false_positives) == (before.true_positives, before.false_positives)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_flipping_both_masks_changes_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random_map(random), random_map(random)
    before, after = score_pair(a, b), score_pair(a[::-1].T, b[::-1].T)
    assert (after.f1, after.dice, after.hausdorff) == pytest.approx(
        (before.f1, before.dice, before.hausdorff)
    )
