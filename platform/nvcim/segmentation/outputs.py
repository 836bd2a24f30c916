"""What is written of found objects besides their mask: outlines as GeoJSON, and a table of measurements.

Everything is computed by bands of rows for all objects at once, so that 100,000 objects in an image of
10,000 x 10,000 pixels take seconds and little memory beyond the label map.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import shapely
from numpy.typing import NDArray

from nvcim.segmentation.splitting import Labels, bands
from nvcim.storage import atomic_write_bytes, atomic_write_text

Ring = list[tuple[int, int]]
"""Corners (x, y) of pixels, closed: the last is the first."""


@dataclass(frozen=True)
class Outline:
    """An object's outline along its pixels' sides, so that it fills to exactly the object.

    Attributes:
        label: the object's number in the mask.
        area: pixels.
        polygons: one per part of the object (pixels that touch at corners only are in different parts): the
            outer ring and then its holes. Valid by OGC's simple features: rings touch at points only, holes are
            not nested and inner areas are connected. x is the column and y the row, (0, 0) the image's upper
            left corner.
    """

    label: int
    area: int
    polygons: tuple[tuple[Ring, ...], ...]


def outlines(labels: Labels) -> list[Outline]:
    """Return the outline of every object of a label map int32 [H, W], in the order of labels.

    Outer rings run counter-clockwise in x and y (RFC 7946, section 3.1.6) and holes the other way. Where an
    object touches itself at a corner, a ring stays with its pixel: a part is connected through sides, which
    keeps the inside of its polygon in one piece.
    """
    starts, ends, owners = _sides(labels)
    rings = _rings(starts, ends, owners, labels.shape[1] + 1)
    found: dict[int, list[tuple[float, Ring]]] = {}
    for owner, ring in rings:
        found.setdefault(owner, []).append((_signed_area(ring), ring))
    result = []
    for label in sorted(found):
        parts = found[label]
        outer = [ring for area, ring in parts if area > 0]
        holes = [ring for area, ring in parts if area < 0]
        polygons = [[ring, *holes] for ring in outer] if len(outer) == 1 else _with_holes(outer, holes)
        area = round(sum(area for area, _ in parts))
        result.append(Outline(label, area, tuple(tuple(polygon) for polygon in polygons)))
    return result


def _with_holes(outer: Sequence[Ring], holes: Sequence[Ring]) -> list[list[Ring]]:
    """Every outer ring with its holes: a hole is in the smallest outer ring around it.

    A part may lie in another's hole, so a hole can be in several outer rings; none but its own part's is both
    around it and inside all the others.
    """
    polygons = [[ring] for ring in outer]
    if not holes:
        return polygons
    areas = shapely.polygons([shapely.linearrings(ring) for ring in outer])
    inside, around = shapely.STRtree(areas).query(shapely.points([_inner(h) for h in holes]), "within")
    sizes = shapely.area(areas)
    smallest: dict[int, int] = {}
    for hole, ring in zip(inside.tolist(), around.tolist(), strict=True):
        if hole not in smallest or sizes[ring] < sizes[smallest[hole]]:
            smallest[hole] = ring
    for hole, ring in smallest.items():
        polygons[ring].append(holes[hole])
    return polygons


def _inner(hole: Ring) -> tuple[float, float]:
    """A point of the pixel in a hole that its first side belongs to."""
    (x0, y0), (x1, y1) = hole[0], hole[1]
    # A hole's inner side lies to the left of a clockwise side; half a pixel in from its start.
    dx, dy = int(np.sign(x1 - x0)), int(np.sign(y1 - y0))
    return x0 + dx * 0.5 + dy * 0.25, y0 + dy * 0.5 - dx * 0.25


def geojson(found: list[Outline]) -> str:
    """Return the objects as an RFC 7946 FeatureCollection, in the image's pixels (as QuPath reads it).

    Every feature has its label as `id`, and `id` and `area` (pixels) among its properties.
    """

    def features() -> Iterator[str]:
        for outline in found:
            several = len(outline.polygons) > 1
            coordinates: object = outline.polygons if several else outline.polygons[0]
            feature = {
                "type": "Feature",
                "id": outline.label,
                "geometry": {"type": "MultiPolygon" if several else "Polygon", "coordinates": coordinates},
                "properties": {"objectType": "annotation", "id": outline.label, "area": outline.area},
            }
            yield json.dumps(feature, separators=(",", ":"))

    return '{"type":"FeatureCollection","features":[\n' + ",\n".join(features()) + "\n]}\n"


def write_geojson(labels: Labels, path: Path) -> None:
    """Write the outlines of a label map as GeoJSON; the file appears whole or not at all."""
    atomic_write_text(path, geojson(outlines(labels)))


def _sides(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Sides of pixels between an object and anything else: start and end corner, and the object.

    Corners are numbered row by row, W + 1 to a row. A side runs so that turning from x to y (right, down the
    screen) its object lies ahead: rings come out counter-clockwise in x and y.
    """
    height, width = labels.shape
    row = width + 1
    starts, ends, owners = [], [], []
    for band in bands((height + 1, width)):
        # Above and below every line of corners of the band.
        above = np.zeros((band.stop - band.start, width), dtype=np.int32)
        below = np.zeros_like(above)
        first, last = max(band.start, 1), min(band.stop, height)
        above[first - band.start :] = labels[first - 1 : band.stop - 1]
        below[: last - band.start] = labels[band.start : last]
        y, x = np.nonzero(above != below)
        corner = (y + band.start).astype(np.int64) * row + x
        for owner, start, end in ((below[y, x], corner, corner + 1), (above[y, x], corner + 1, corner)):
            own = owner > 0
            starts.append(start[own])
            ends.append(end[own])
            owners.append(owner[own])
    for band in bands(labels.shape):
        padded = np.pad(labels[band], ((0, 0), (1, 1)))
        left, right = padded[:, :-1], padded[:, 1:]
        y, x = np.nonzero(left != right)
        corner = (y + band.start).astype(np.int64) * row + x
        for owner, start, end in ((left[y, x], corner, corner + row), (right[y, x], corner + row, corner)):
            own = owner > 0
            starts.append(start[own])
            ends.append(end[own])
            owners.append(owner[own])
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(owners)


def _rings(
    starts: NDArray[np.int64], ends: NDArray[np.int64], owners: NDArray[np.int32], row: int
) -> list[tuple[int, Ring]]:
    """Link sides to closed rings of corners where they turn, with the object of each."""
    if len(starts) == 0:
        return []
    order = np.lexsort((starts, owners))
    starts, ends, owners = starts[order], ends[order], owners[order]
    key = owners.astype(np.int64) * (int(starts.max()) + 1)
    here, there = key + starts, key + ends
    following = np.searchsorted(here, there)
    step = ends - starts
    # Two sides of one object leave a corner where it touches itself: take the one of the same pixel, which is
    # the turn (dx, dy) -> (-dy, dx).
    twice = np.flatnonzero(
        (following + 1 < len(here)) & (here[np.minimum(following + 1, len(here) - 1)] == there)
    )
    turn = {1: row, row: -1, -1: -row, -row: 1}
    wanted = np.array([turn[int(s)] for s in step[twice]], dtype=np.int64)
    following[twice] += step[following[twice]] != wanted
    corner = step[following] != step  # a ring turns at this side's end
    successor, turns, ends_at = following.tolist(), corner.tolist(), ends.tolist()
    seen = bytearray(len(successor))
    found = []
    for first in range(len(successor)):
        if seen[first]:
            continue
        ring: Ring = []
        side = first
        while not seen[side]:
            seen[side] = 1
            if turns[side]:
                y, x = divmod(ends_at[side], row)
                ring.append((x, y))
            side = successor[side]
        found += [(int(owners[first]), simple) for simple in _simple(ring)]
    return found


def _simple(corners: Ring) -> list[Ring]:
    """Close a ring; one that comes to a corner again is cut there into rings that do not."""
    if len(set(corners)) == len(corners):
        return [[*corners, corners[0]]]
    found: list[Ring] = []
    path: Ring = []
    places: dict[tuple[int, int], int] = {}
    for corner in corners:
        if corner in places:
            loop = path[places[corner] :]
            found.append([*loop, corner])
            for left in loop:
                del places[left]
            del path[len(path) - len(loop) :]
        places[corner] = len(path)
        path.append(corner)
    found.append([*path, path[0]])
    return found


def _signed_area(ring: Ring) -> float:
    """Area by the shoelace formula, positive where x turns to y."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) / 2


# Measurements -------------------------------------------------------------------------------------------------


def measure_objects(labels: Labels, certainty: NDArray[np.uint8]) -> pa.Table:
    """Measure every object of a label map int32 [H, W], by the definitions of skimage's `regionprops`.

    Columns: label; centroid_x, centroid_y, bbox (left, top, right, bottom; right and bottom exclusive) in
    pixels; area in square pixels; perimeter in pixels, 4-connected (Benkrid and Crookes); equivalent_diameter,
    of the circle of the same area; mean_probability of not being background, from `certainty` in 1/255.
    """
    count = int(labels.max(initial=0))
    height, width = labels.shape
    area, sum_x, sum_y, sure, border = (np.zeros(count + 1) for _ in range(5))
    left, top = np.full(count + 1, width), np.full(count + 1, height)
    right, bottom = np.zeros(count + 1, dtype=np.int64), np.zeros(count + 1, dtype=np.int64)
    for band in bands(labels.shape):
        y, x = np.nonzero(labels[band])
        own = labels[band][y, x]
        y = y + band.start
        area += np.bincount(own, minlength=count + 1)
        sum_x += np.bincount(own, x, minlength=count + 1)
        sum_y += np.bincount(own, y, minlength=count + 1)
        sure += np.bincount(own, certainty[band][labels[band] > 0], minlength=count + 1)
        np.minimum.at(left, own, x)
        np.maximum.at(right, own, x + 1)
        np.minimum.at(top, own, y)
        np.maximum.at(bottom, own, y + 1)
        border += _perimeters(labels, band, count)
    kept = np.flatnonzero(area)
    area, n = area[kept], area[kept]
    return pa.table(
        {
            "label": kept,
            "centroid_x": sum_x[kept] / n,
            "centroid_y": sum_y[kept] / n,
            "left": left[kept],
            "top": top[kept],
            "right": right[kept],
            "bottom": bottom[kept],
            "area": area.astype(np.int64),
            "perimeter": border[kept],
            "equivalent_diameter": np.sqrt(4 * area / np.pi),
            "mean_probability": sure[kept] / n / 255,
        }
    )


def write_objects(labels: Labels, certainty: NDArray[np.uint8], path: Path) -> None:
    """Write `measure_objects` as CSV; the file appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(measure_objects(labels, certainty), sink)
    atomic_write_bytes(path, sink.getvalue().to_pybytes())


# Length of the border at a border pixel by its neighbours on the border: 10 for one across a corner, 2 for one
# across a side, 1 for itself. From skimage.measure.perimeter (neighborhood 4), after Benkrid and Crookes (2000).
_LENGTHS = np.zeros(50)
_LENGTHS[[5, 7, 15, 17, 25, 27]] = 1
_LENGTHS[[21, 33]] = np.sqrt(2)
_LENGTHS[[13, 23]] = (1 + np.sqrt(2)) / 2


def _perimeters(labels: Labels, band: slice, count: int) -> NDArray[np.float64]:
    """Perimeter of every label in a band, [count + 1]."""
    top, bottom = max(band.start - 2, 0), min(band.stop + 2, labels.shape[0])
    window = np.pad(labels[top:bottom], 2)
    cut = (slice(1, -1), slice(1, -1))
    inner = window[cut]
    same = inner > 0
    for axis in (0, 1):
        for step in (-1, 1):
            same &= np.roll(window, step, axis)[cut] == inner
    border = np.where(same, 0, inner)  # labels of border pixels; padded by one
    y, x = np.nonzero(border[1:-1, 1:-1])
    rows = y + top
    own = (rows >= band.start) & (rows < band.stop)
    y, x = y[own] + 1, x[own] + 1
    label = border[y, x]
    code = np.ones(len(y), dtype=np.int64)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if down or right:
                code += (border[y + down, x + right] == label) * (10 if down and right else 2)
    return np.bincount(label, _LENGTHS[code], minlength=count + 1).astype(np.float64)
