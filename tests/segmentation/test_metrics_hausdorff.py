"""Both exact ways to a Hausdorff distance against each other, against scipy's, and where shortcuts go wrong."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import directed_hausdorff

from nvcim.segmentation.hausdorff import (
    NearestObjects,
    directed_by_transform,
    directed_by_tree,
    hausdorff_distance,
)
from nvcim.segmentation.label_pairs import LabelSide


def disc(shape: tuple[int, int], row: int, column: int, radius: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_a_square_in_a_thin_frame_is_farthest_at_its_centre() -> None:
    frame = np.zeros((21, 21), dtype=bool)
    frame[[0, -1], :] = frame[:, [0, -1]] = True
    inner = np.zeros((21, 21), dtype=bool)
    inner[5:16, 5:16] = True
    # The centre (10, 10) is 10 from the frame, the inner square's own boundary only 5; the frame's corner is 5 and 5
    # from the square's. Boundaries alone would give sqrt(50).
    for directed in (directed_by_transform, directed_by_tree):
        assert directed(inner, frame) == 10.0
        assert directed(frame, inner) == math.sqrt(50)
    assert hausdorff_distance(inner, frame) == 10.0


@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_both_ways_agree_with_scipy_on_any_masks(density: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        a, b = random.random((2, *random.integers(1, 17, 2))) < density
        a.flat[0] = b.flat[-1] = True
        expected = directed_hausdorff(np.argwhere(a), np.argwhere(b))[0]
        assert directed_by_transform(a, b) == expected
        assert directed_by_tree(a, b) == expected


def test_blobs_with_holes_and_bays_agree_both_ways() -> None:
    random = np.random.default_rng(1)
    for _ in range(60):
        a, b = (
            disc((40, 40), *random.integers(5, 35, 2), random.uniform(3, 15))
            & ~disc((40, 40), *random.integers(5, 35, 2), random.uniform(0, 9))
            for _ in range(2)
        )
        if a.any() and b.any():
            assert directed_by_transform(a, b) == directed_by_tree(a, b)


def test_far_specks_take_the_tree_and_are_exact() -> None:
    a, b = np.zeros((3000, 4001), dtype=bool), np.zeros((3000, 4001), dtype=bool)
    a[0, 0] = b[2999, 4000] = True
    assert hausdorff_distance(a, b) == math.hypot(2999, 4000)


def test_the_nearest_object_is_the_same_as_by_trying_all() -> None:
    random = np.random.default_rng(2)
    for _ in range(15):
        maps = np.zeros((2, 40, 40), dtype=np.int32)
        for mask in maps:
            for label in range(1, 15):
                top, left, height, width = random.integers(1, 30, 4)
                mask[top : top + 1 + height // 4, left : left + 1 + width // 4] = label
        a, b = LabelSide(maps[0]), LabelSide(maps[1])
        search = NearestObjects(b)
        for i in range(a.count):
            distances = [hausdorff_distance(a.map == i + 1, b.map == j + 1) for j in range(b.count)]
            asked: list[int] = []

            def measure(j: int, distances: list[float] = distances, asked: list[int] = asked) -> float:
                asked.append(j)
                return distances[j]

            assert search.distance_from(a.boxes[i], measure) == min(distances)
            assert len(asked) == len(set(asked))
