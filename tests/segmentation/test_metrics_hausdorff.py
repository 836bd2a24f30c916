"""Hausdorff distances against scipy's over all pixels, and where shortcuts go wrong."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import directed_hausdorff

from nvcim.segmentation import hausdorff
from nvcim.segmentation.hausdorff import (
    NearestObjects,
    ObjectDistances,
    Shape,
    directed_distance,
    hausdorff_distance,
)
from nvcim.segmentation.label_pairs import LabelSide
from nvcim.segmentation.metrics import score_pair


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
    assert directed_distance(Shape.of(inner), Shape.of(frame)) == 10.0
    assert directed_distance(Shape.of(frame), Shape.of(inner)) == math.sqrt(50)
    assert hausdorff_distance(inner, frame) == 10.0


def slow_directed(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, by scipy over all pixels of two masks."""
    return float(directed_hausdorff(np.argwhere(a), np.argwhere(b))[0])


@pytest.fixture(params=[0.0, 1 / 64, math.inf], ids=["by transform", "either", "by tree"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances within a box by one way, by the other, or as it pays."""
    monkeypatch.setattr(hausdorff, "_ASKED_PER_BOX_PIXEL", request.param)
    monkeypatch.setattr(hausdorff, "_WITHOUT_TREE", 300)  # small enough that trees are built here too


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_distances_agree_with_scipy_on_any_masks(density: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        a, b = random.random((2, *random.integers(1, 17, 2))) < density
        a.flat[random.integers(a.size)] = b.flat[random.integers(b.size)] = True
        assert directed_distance(Shape.of(a), Shape.of(b)) == slow_directed(a, b)


@pytest.mark.usefixtures("way")
def test_distances_agree_with_scipy_on_blobs_with_holes_and_bays_of_any_size() -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        a, b = (
            disc((40, 40), *random.integers(0, 40, 2), random.uniform(0, 25))
            & ~disc((40, 40), *random.integers(0, 40, 2), random.uniform(0, 20))
            for _ in range(2)
        )
        if a.any() and b.any():
            assert directed_distance(Shape.of(a), Shape.of(b)) == slow_directed(a, b)


def specks(shape: tuple[int, int], step: int, seed: int) -> np.ndarray:
    """Discs of 1 to step / 3 pixels' radius on a jittered grid."""
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=np.int32)
    for number, (row, column) in enumerate(np.ndindex(shape[0] // step, shape[1] // step), start=1):
        centre = (np.array([row, column]) + 0.5) * step + random.uniform(-step / 6, step / 6, 2)
        mask[disc(shape, *centre, random.uniform(1, step / 3))] = number
    return mask


def one_blob(kind: str, shape: tuple[int, int]) -> np.ndarray:
    """What a collapsed network may find."""
    blob = np.ones(shape, dtype=bool)
    if kind == "ragged":
        blob = np.random.default_rng(3).random(shape) < 0.7
    elif kind == "frame":
        blob[3:-3, 3:-3] = False
    elif kind == "holed":
        blob[20:60, 30:90] = False
    return blob


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["all", "ragged", "frame", "holed"])
def test_one_blob_over_many_objects_is_measured_exactly(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hausdorff, "_KEPT_OBJECTS", 3)
    blob, many = one_blob(kind, (90, 120)), specks((90, 120), 15, seed=2)
    a, b = LabelSide(blob.astype(np.int32)), LabelSide(many)
    assert b.count == 48
    distances = ObjectDistances(a, b)
    for j in range(b.count):
        other = many == j + 1
        assert distances.between(0, j) == max(slow_directed(blob, other), slow_directed(other, blob))


def test_one_blob_over_many_objects_is_transformed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels: list[int] = []
    transform = hausdorff.ndimage.distance_transform_edt

    def counted(mask: np.ndarray, **options: object) -> object:
        pixels.append(mask.size)
        return transform(mask, **options)

    monkeypatch.setattr(hausdorff.ndimage, "distance_transform_edt", counted)
    shape = (300, 300)
    frame = one_blob("frame", shape).astype(np.int32)
    for blob in (np.ones(shape, dtype=np.int32), frame):
        pixels.clear()
        many = specks(shape, 15, seed=4)
        score_pair(blob, many)
        score_pair(many, blob)
        # The blob at most once a side, besides windows of the objects themselves.
        assert sum(pixels) <= 2 * (blob.size + 2 * many.size)


@pytest.mark.parametrize("windows", [0, 4, math.inf])
def test_all_pairs_of_objects_agree_with_scipy_in_windows_and_without(
    windows: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hausdorff, "_WINDOW_PER_BOX", windows)
    maps = [specks((60, 75), 15, seed) for seed in (5, 6)]
    a, b = (LabelSide(labels) for labels in maps)
    distances = ObjectDistances(a, b)
    for i, j in np.ndindex(a.count, b.count):
        one, other = maps[0] == i + 1, maps[1] == j + 1
        assert distances.between(i, j) == max(slow_directed(one, other), slow_directed(other, one))


def test_far_specks_are_exact() -> None:
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
