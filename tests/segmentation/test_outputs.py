import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.geometry
from scipy import ndimage
from skimage.measure import regionprops_table

from nvcim.segmentation.outputs import geojson, measure_objects, outlines, write_geojson, write_objects


def blobs(seed: int, size: tuple[int, int] = (60, 75), share: float = 0.55) -> np.ndarray:
    """Objects of all shapes, holes, and touching ones with different labels."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(size), 1.2)
    labels, _ = ndimage.label(noise > np.quantile(noise, 1 - share))
    labels[:, 40:] += (labels[:, 40:] > 0) * (labels.max() + 1)  # cut all that cross column 40
    numbers = np.unique(labels)
    return np.searchsorted(numbers, labels).astype(np.int32)


def filled(polygons: list, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels whose centre is in a polygon by the even-odd rule, ring by ring."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        for ring in polygon:
            for (ax, ay), (bx, by) in itertools.pairwise(ring):
                if ax == bx:
                    inside ^= (min(ay, by) < y) & (y < max(ay, by)) & (ax < x)
    return inside


@pytest.mark.parametrize("seed", range(6))
def test_outlines_fill_to_exactly_their_objects(seed: int) -> None:
    labels = blobs(seed)
    document = json.loads(geojson(outlines(labels)))
    assert document["type"] == "FeatureCollection"
    assert [f["id"] for f in document["features"]] == list(range(1, labels.max() + 1))
    for feature in document["features"]:
        coordinates = feature["geometry"]["coordinates"]
        polygons = coordinates if feature["geometry"]["type"] == "MultiPolygon" else [coordinates]
        expected = labels == feature["id"]
        assert np.array_equal(filled(polygons, labels.shape), expected)
        assert feature["properties"] == {
            "objectType": "annotation",
            "id": feature["id"],
            "area": expected.sum(),
        }


def signed(ring: list) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2


@pytest.mark.parametrize("seed", range(6))
def test_rings_are_closed_turn_the_right_way_and_touch_themselves_nowhere(seed: int) -> None:
    for outline in outlines(blobs(seed)):
        for polygon in outline.polygons:
            for index, ring in enumerate(polygon):
                assert len(ring) >= 5
                assert ring[0] == ring[-1]
                assert len(set(ring)) == len(ring) - 1
                assert (signed(ring) > 0) == (index == 0)


def test_a_pixel_is_its_four_corners_and_straight_sides_have_no_points_between() -> None:
    labels = np.zeros((4, 6), dtype=np.int32)
    labels[1, 2], labels[2:4, 3:6] = 2, 1
    one, two = outlines(labels)
    assert (one.label, one.area, len(one.polygons)) == (1, 6, 1)
    assert sorted(one.polygons[0][0][:-1]) == [(3, 2), (3, 4), (6, 2), (6, 4)]
    assert sorted(two.polygons[0][0][:-1]) == [(2, 1), (2, 2), (3, 1), (3, 2)]


def test_a_ring_with_another_object_inside_has_a_hole() -> None:
    labels = np.zeros((7, 7), dtype=np.int32)
    labels[1:6, 1:6] = 1
    labels[2:5, 2:5] = 0
    labels[3, 3] = 2
    ring = outlines(labels)[0]
    assert [abs(signed(r)) for r in ring.polygons[0]] == [25, 9]


def test_no_object_is_an_empty_collection(tmp_path: Path) -> None:
    empty = np.zeros((5, 6), dtype=np.int32)
    write_geojson(empty, tmp_path / "x.geojson")
    assert json.loads((tmp_path / "x.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert measure_objects(empty, empty.astype(np.uint8)).num_rows == 0


@pytest.mark.parametrize("seed", range(3))
def test_measurements_are_those_of_regionprops(seed: int) -> None:
    labels = blobs(seed, (700, 90))  # more rows than a band
    certainty = np.random.default_rng(seed).integers(0, 256, labels.shape).astype(np.uint8)
    wanted = ("label", "area", "centroid", "bbox", "perimeter", "equivalent_diameter_area", "mean_intensity")
    expected = regionprops_table(labels, certainty, properties=wanted)
    names = {
        "label": "label",
        "area": "area",
        "centroid_y": "centroid-0",
        "centroid_x": "centroid-1",
        "top": "bbox-0",
        "left": "bbox-1",
        "bottom": "bbox-2",
        "right": "bbox-3",
        "perimeter": "perimeter",
        "equivalent_diameter": "equivalent_diameter_area",
    }
    found = measure_objects(labels, certainty)
    for ours, theirs in names.items():
        assert np.allclose(found[ours].to_numpy(), expected[theirs], atol=1e-9), ours
    assert np.allclose(found["mean_probability"].to_numpy(), expected["mean_intensity"] / 255)


def test_the_table_is_written_with_its_header(tmp_path: Path) -> None:
    labels = np.zeros((5, 6), dtype=np.int32)
    labels[1:3, 2:5] = 1
    write_objects(labels, np.full((5, 6), 255, dtype=np.uint8), tmp_path / "x.csv")
    (row,) = csv.DictReader((tmp_path / "x.csv").read_text().splitlines())
    assert (row["label"], row["area"], row["centroid_x"], row["mean_probability"]) == ("1", "6", "3", "1")


# Masks by other hands, whose objects touch themselves at corners in every way; judged by shapely.


def box_union(labels: np.ndarray, label: int) -> shapely.Geometry:
    """The object as the union of its pixels' squares."""
    y, x = np.nonzero(labels == label)
    return shapely.union_all(shapely.box(x, y, x + 1, y + 1))


def assert_outlines_are_the_objects(labels: np.ndarray) -> None:
    features = json.loads(geojson(outlines(labels)))["features"]
    assert [f["id"] for f in features] == [n for n in np.unique(labels).tolist() if n]
    for feature in features:
        found = shapely.geometry.shape(feature["geometry"])
        assert found.is_valid, shapely.is_valid_reason(found)
        assert found.symmetric_difference(box_union(labels, feature["id"])).area == 0.0


FOREIGN = {
    "two diagonal gaps": ["111", "101", "110"],
    "a pixel held by its corners": ["11111", "11011", "10101", "11011", "11111"],
    "chess board": ["10101", "01010", "10101", "01010"],
    "an island of the object in its own hole": [
        "1111111", "1000001", "1011101", "1010101", "1011101", "1000001", "1111111",
    ],
    "the same with the hole open at a corner": [
        "0111111", "1000001", "1011101", "1010101", "1011101", "1000001", "1111111",
    ],
    "islands in holes thrice": [
        "11111111111", "10000000001", "10111111101", "10100000101", "10101110101", "10101010101",
        "10101110101", "10100000101", "10111111101", "10000000001", "11111111111",
    ],
    "diagonal line": ["1000", "0100", "0010", "0001"],
    "holes that touch at a corner": ["1111", "1011", "1101", "1111"],
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_outlines_of_foreign_masks_are_valid_polygons_of_exactly_the_object(name: str) -> None:
    assert_outlines_are_the_objects(np.array([[int(c) for c in row] for row in FOREIGN[name]], np.int32))


def test_outlines_of_random_masks_are_valid_polygons_of_exactly_the_object() -> None:
    random = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.6, 0.8) * 15:
        size = random.integers(2, 14, 2)
        labels = (random.random(size) < share) * random.integers(1, 4, size)
        assert_outlines_are_the_objects(labels.astype(np.int32))
        assert_outlines_are_the_objects((labels > 0).astype(np.int32))


def test_parts_that_touch_at_a_corner_are_polygons_of_their_own() -> None:
    (outline,) = outlines(np.array([[1, 0], [0, 1]], dtype=np.int32))
    assert [sorted(ring[:-1]) for (ring,) in outline.polygons] == [
        [(0, 0), (0, 1), (1, 0), (1, 1)],
        [(1, 1), (1, 2), (2, 1), (2, 2)],
    ]
