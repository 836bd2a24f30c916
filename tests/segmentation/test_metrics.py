"""The metrics against cases worked by hand and against a slow reference written from the definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim.errors import DataError
from nvcim.segmentation import object_dice, object_f1, object_hausdorff, score_pair, score_set


def boxes(shape: tuple[int, int], *spans: tuple[int, int, int, int]) -> np.ndarray:
    """Labels 1.. as rectangles (top, bottom, left, right)."""
    mask = np.zeros(shape, dtype=np.int32)
    for label, (top, bottom, left, right) in enumerate(spans, start=1):
        mask[top:bottom, left:right] = label
    return mask


def random_map(random: np.random.Generator, size: int = 11, objects: int = 4) -> np.ndarray:
    mask = np.zeros((size, size + 3), dtype=np.int32)
    for label in random.permutation(40)[: random.integers(0, objects + 1)] + 1:
        top, left = random.integers(0, size), random.integers(0, size)
        height, width = random.integers(1, 8, 2)
        mask[top : top + height, left : left + width] = label
    return mask


# --- the slow reference: Python sets of pixels, all pairs, the page's formulae, no distance transform ---

Pixels = set[tuple[int, int]]


def objects_of(mask: np.ndarray) -> list[Pixels]:
    found: dict[int, Pixels] = {}
    for (row, column), label in np.ndenumerate(mask):
        if label:
            found.setdefault(int(label), set()).add((row, column))
    return list(found.values())


def slow_hausdorff(a: Pixels, b: Pixels) -> float:
    def directed(some: Pixels, others: Pixels) -> int:
        return max(min((y - v) ** 2 + (x - u) ** 2 for v, u in others) for y, x in some)

    return math.sqrt(max(directed(a, b), directed(b, a)))


def slow_dice(a: Pixels, b: Pixels) -> float:
    return 2 * len(a & b) / (len(a) + len(b))


def best_partners(a: Pixels, others: list[Pixels]) -> list[Pixels]:
    overlaps = [len(a & b) for b in others]
    return [b for b, o in zip(others, overlaps, strict=True) if o == max(overlaps) and o > 0]


def slow_side(side: list[Pixels], others: list[Pixels], diagonal: float) -> tuple[float, float, float]:
    area = float(sum(len(a) for a in side))
    dice = hausdorff = 0.0
    for a in side:
        partners = best_partners(a, others)
        dice += len(a) * max((slow_dice(a, b) for b in partners), default=0.0)
        distances = [slow_hausdorff(a, b) for b in (partners or others)]
        hausdorff += len(a) * min(distances, default=diagonal)
    return area, dice, hausdorff


def slow_found(segmented: list[Pixels], truth: list[Pixels]) -> int:
    """Most segmented objects that can each claim a ground-truth object of their own (tries all ways)."""

    def claims(index: int, free: frozenset[int]) -> int:
        if index == len(segmented):
            return 0
        best = claims(index + 1, free)
        partners = best_partners(segmented[index], truth)
        for j in free:
            covers = 2 * len(segmented[index] & truth[j]) >= len(truth[j])
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


def kinds_in(segmented: np.ndarray, truth: np.ndarray) -> set[str]:
    """Which of the cases that matter a pair of maps holds."""
    s, g = objects_of(segmented), objects_of(truth)
    kinds = {"both empty"} if not s and not g else {"one empty"} if not s or not g else set()
    for a in s:
        overlaps = [len(a & b) for b in g]
        if overlaps and not any(overlaps):
            kinds.add("no overlap")
        if overlaps and 0 < 2 * max(overlaps) < len(a):
            kinds.add("minority overlap")
        if len(overlaps) > 1 and overlaps.count(max(overlaps)) > 1 and max(overlaps) > 0:
            kinds.add("tied partners")
        if any(2 * o == len(b) for o, b in zip(overlaps, g, strict=True)):
            kinds.add("exact half")
        if any(a < b or b < a for b in g):
            kinds.add("nested")
    return kinds


@pytest.mark.parametrize("start", range(0, 1000, 250))
def test_a_thousand_random_maps_agree_with_the_reference(start: int) -> None:
    seen: set[str] = set()
    for seed in range(start, start + 250):
        random = np.random.default_rng(seed)
        segmented, truth = random_map(random), random_map(random)
        scores = score_pair(segmented, truth)
        expected = slow_scores(segmented, truth)
        assert (scores.f1, scores.dice, scores.hausdorff) == pytest.approx(expected, abs=1e-12), seed
        seen |= kinds_in(segmented, truth)
    every = {
        "both empty",
        "one empty",
        "no overlap",
        "minority overlap",
        "tied partners",
        "exact half",
        "nested",
    }
    assert seen == every


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


# Each line: segmented and true rectangles (top, bottom, left, right) in a 20 x 30 image, then F1, Dice, Hausdorff.
BY_HAND = {
    # The same square: everything is perfect.
    "identical": ([(2, 6, 2, 6)], [(2, 6, 2, 6)], 1.0, 1.0, 0.0),
    # 16 of 36 pixels: less than half is covered. Dice 2 * 16 / (16 + 36). The corner is 2 and 2 away.
    "inside": ([(4, 8, 4, 8)], [(2, 8, 2, 8)], 0.0, 32 / 52, math.sqrt(8)),
    # The other way round the true object is covered whole.
    "around": ([(2, 8, 2, 8)], [(4, 8, 4, 8)], 1.0, 32 / 52, math.sqrt(8)),
    # 4 x 2 of 4 x 4 shared: exactly half counts. Dice 2 * 8 / 32. The far column is 2 away.
    "exactly half": ([(0, 4, 2, 6)], [(0, 4, 0, 4)], 1.0, 0.5, 2.0),
    # One column of four short of half: 1 of 4 columns. Dice 8 / 32; 3 away.
    "less than half": ([(0, 4, 3, 7)], [(0, 4, 0, 4)], 0.0, 0.25, 3.0),
    # They share an edge, no pixel: no partner, nearest object of the image, 4 away.
    "touching": ([(0, 4, 4, 8)], [(0, 4, 0, 4)], 0.0, 0.0, 4.0),
    # Two squares seen as one 4 x 8: it overlaps both alike, covers both, may claim one. TP 1, FP 0, FN 1: F1 2/3.
    # Dice: 2 * 16 / (32 + 16) = 2/3 for all three objects. Hausdorff: the far end of the bar is 4 from either.
    "merged": ([(0, 4, 0, 8)], [(0, 4, 0, 4), (0, 4, 4, 8)], 2 / 3, 2 / 3, 4.0),
    # A single pixel beside a perfect 4 x 4: TP 1, FP 1. Dice (16/17 + 1) / 2. The pixel (0, 10) is nearest to the
    # square of rows 0..3 and columns 0..3; its corner (3, 0) is farthest: sqrt(9 + 100); weight 1/17, halved.
    "speck": ([(0, 4, 0, 4), (0, 1, 10, 11)], [(0, 4, 0, 4)], 2 / 3, (16 / 17 + 1) / 2, math.sqrt(109) / 34),
    # Nearest goes by Hausdorff, not by the gap: the bar of 10 begins 1 away and ends 10 away, the other pixel is 9.
    # Segmented: 9. Truth: each has one choice, the bar 10 (weight 10/11), the pixel 9 (1/11).
    "nearest by the farthest pixel": (
        [(0, 1, 10, 11)],
        [(0, 1, 11, 21), (0, 1, 1, 2)],
        0.0,
        0.0,
        (9 + (10 * 10 + 9) / 11) / 2,
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_small_cases_worked_by_hand(case: str) -> None:
    segmented, truth, f1, dice, hausdorff = BY_HAND[case]
    scores = score_pair(boxes((20, 30), *segmented), boxes((20, 30), *truth))
    assert (scores.f1, scores.dice, scores.hausdorff) == pytest.approx((f1, dice, hausdorff), abs=1e-12)


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


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 9), st.integers(0, 9))
def test_translation_within_a_larger_image_changes_nothing(seed: int, down: int, right: int) -> None:
    random = np.random.default_rng(seed)
    pair = random_map(random), random_map(random)
    if not pair[0].any() or not pair[1].any():
        return  # the diagonal of the image counts here, and it grows
    placed = [np.pad(mask, ((down, 12 - down), (right, 12 - right))) for mask in pair]
    assert score_pair(*placed) == score_pair(*pair)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.data())
def test_one_pixel_removed_costs_what_it_is_by_hand(height: int, width: int, data: st.DataObject) -> None:
    truth = boxes((12, 12), (1, 1 + height, 1, 1 + width))
    row, column = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    segmented = truth.copy()
    segmented[row, column] = 0
    area = height * width
    scores = score_pair(segmented, truth)
    assert scores.f1 == 1.0  # at least half is left
    assert scores.dice == pytest.approx(2 * (area - 1) / (2 * area - 1), abs=1e-12)
    # The removed pixel has a neighbour in the object: one away.
    assert scores.hausdorff == 1.0


def test_labels_with_gaps_and_of_any_integer_type() -> None:
    segmented, truth = boxes((9, 9), (0, 4, 0, 4), (5, 9, 5, 9)), boxes((9, 9), (0, 4, 1, 5), (5, 9, 5, 8))
    expected = score_pair(segmented, truth)
    names = np.array([0, 2_000_000_000, 7])
    assert score_pair(names.astype(np.int32)[segmented], truth) == expected
    assert score_pair(segmented.astype(np.uint8), truth.astype(np.uint16)) == expected


def test_five_thousand_objects_without_partner_do_not_explode() -> None:
    # Single pixels two apart, the other side shifted by one: the nearest is one away for every one of them.
    segmented = np.zeros((142, 141), dtype=np.int32)
    segmented[:-1:2, ::2] = np.arange(1, 71 * 71 + 1).reshape(71, 71)
    truth = np.roll(segmented, 1, axis=0)
    scores = score_pair(segmented, truth)
    assert scores.objects_segmented == 71 * 71
    assert (scores.f1, scores.dice, scores.hausdorff) == (0.0, 0.0, 1.0)
