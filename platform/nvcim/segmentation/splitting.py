"""From class probabilities to instances: pixels are decided one by one, then objects are told apart.

The first step needs a pixel's own probabilities only, so a large image is decided band by band and kept as one
byte a pixel. The second labels the whole map at once and works through it by bands wherever it needs more
memory than labels take, so that the objects are those of the whole image, wherever bands lie.
"""

from collections.abc import Iterator
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from nvcim.config import Settings
from nvcim.errors import ConfigError

Split = Literal["contour", "distance", "none"]
Labels = NDArray[np.int32]
_T = TypeVar("_T", bound=np.generic)

BACKGROUND, EDGE, CORE, SEED = 0, 1, 2, 3
"""What a pixel is decided to be; EDGE is inside an object, but the contour that holds it apart from others."""

_BAND = 512  # rows worked through at a time
_WIDEST = 2048  # pixels; a wider region is no crowd of cells, and is not split by distance
_LEAST_NECK = 1.0  # pixels; finer steps of the distance come from the grid
_CELL = 1024  # pixels; regions that start in one cell of this size are split together


class SplittingSettings(Settings):
    """How objects are told apart, with areas and lengths in pixels at the scale the network sees."""

    threshold: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="least probability of object and contour together"
    )
    certainty: float = Field(
        default=0.5, ge=0.0, lt=1.0, description="an object's surest pixel is at least this sure of being one"
    )
    smallest_object: int | None = Field(default=None, ge=1, description="pixels; None: as trained")
    split: Split | None = Field(
        default=None,
        description="touching objects are split by the contour class or by distance from the background; "
        "None: contour where the network has that class, else distance",
    )
    neck: float = Field(
        default=0.85,
        gt=0.0,
        lt=1.0,
        description="distance only: objects part where they are narrower than this share of the smaller's width",
    )


def split_for(settings: SplittingSettings, classes: int) -> Split:
    """Return how a network of that many classes is split.

    Raises:
        ConfigError: by contour, where the network does not predict it.
    """
    if settings.split == "contour" and classes < 3:
        raise ConfigError(
            "split 'contour' needs a network of 3 classes, this one has 2; use 'distance' or 'none'"
        )
    return settings.split or ("contour" if classes == 3 else "distance")


def decide(probabilities: Tensor, settings: SplittingSettings) -> NDArray[np.uint8]:
    """Decide every pixel of class probabilities [2 or 3, h, w]: BACKGROUND, EDGE, CORE or SEED, uint8 [h, w].

    A SEED is a core pixel whose certainty alone makes its object count.

    Raises:
        ConfigError: as `split_for`.
    """
    split = split_for(settings, len(probabilities))
    background, interior = probabilities[0], probabilities[1]
    foreground = background < 1 - settings.threshold
    core, sure = foreground, 1 - background
    if split == "contour":
        core, sure = foreground & (interior >= probabilities[2]), interior
    decided = foreground.byte() + core.byte() + (core & (sure >= settings.certainty)).byte()
    return np.asarray(decided.numpy(), dtype=np.uint8)


def split_instances(
    probabilities: Tensor, settings: SplittingSettings, smallest: float, growth: float
) -> Labels:
    """Turn class probabilities [2 or 3, H, W] into instances int32 [H, W], labelled 1..n.

    Raises:
        ConfigError: as `split_for`.
    """
    split = split_for(settings, len(probabilities))
    return label_objects(decide(probabilities, settings), split, smallest, growth, settings.neck)


def label_objects(
    decided: NDArray[np.uint8], split: Split, smallest: float, growth: float, neck: float = 0.85
) -> Labels:
    """Tell objects apart in what `decide` returned, [H, W]; labels 1..n in the order of their first core pixel.

    By contour, connected cores become one object each and grow by up to `growth` pixels into their edge; by
    distance, regions are split by a watershed on the distance from the background. Objects without a SEED
    or, holes and all, below `smallest` pixels are dropped; holes that border on one object only are closed.
    """
    if split == "distance":
        labels, count = _split_by_distance(decided > BACKGROUND, neck)
    else:
        labels = np.zeros(decided.shape, dtype=np.int32)
        count = int(ndimage.label(decided >= CORE, output=labels))
    if count == 0:
        return labels
    certain = np.zeros(count + 1, dtype=bool)
    for band in bands(decided.shape):
        certain[labels[band][decided[band] == SEED]] = True
    _relabel(labels, certain)
    _grow(labels, decided, growth)
    _close_holes(labels)  # before areas count, so that a ring is as large as what it becomes
    large = object_areas(labels) >= smallest
    if not large[1:].all():
        _relabel(labels, large)
        _close_holes(labels)  # a dropped speck may have kept a hole open
    return labels


def bands(shape: tuple[int, ...], rows: int = _BAND) -> Iterator[slice]:
    """Slices of consecutive rows that cover an image [H, W]."""
    for top in range(0, shape[0], rows):
        yield slice(top, min(top + rows, shape[0]))


def object_areas(labels: Labels) -> NDArray[np.int64]:
    """Pixels of every label, [largest label + 1]; index 0 counts background."""
    counts = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.int64)
    for band in bands(labels.shape):
        counts += np.bincount(labels[band].ravel(), minlength=len(counts))
    return counts


def _relabel(labels: Labels, kept: NDArray[np.bool_]) -> None:
    """Drop the labels that are not kept and number the others 1..n in their order, in place."""
    kept = kept.copy()
    kept[0] = False
    if kept[1:].all():
        return
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    for band in bands(labels.shape):
        labels[band] = numbers[labels[band]]


def _disc(radius: float) -> list[tuple[int, int, int]]:
    """Steps (squared length, down, right) up to `radius` pixels long, shortest first, without (0, 0, 0)."""
    reach = range(-int(radius), int(radius) + 1)
    steps = ((y * y + x * x, y, x) for y in reach for x in reach)
    return sorted(step for step in steps if 0 < step[0] <= radius**2)


def _grow(labels: Labels, decided: NDArray[np.uint8], radius: float) -> None:
    """Give every unlabelled EDGE pixel the label nearest to it within `radius` pixels, in place.

    Of labels at the same distance the upper, then the left one wins, wherever the bands lie.
    """
    reach = int(radius)
    steps = _disc(radius)
    above = np.zeros((reach, labels.shape[1]), dtype=np.int32)  # rows before growth
    for band in bands(labels.shape, max(_BAND, reach)):
        window = np.concatenate([above, labels[band.start : band.stop + reach]])
        missing = reach - (len(window) - reach - (band.stop - band.start))
        window = np.pad(window, ((0, missing), (reach, reach)))
        above = labels[band.stop - reach : band.stop].copy() if reach else above
        wanted = np.flatnonzero((labels[band] == 0) & (decided[band] == EDGE))
        flat, own = window.ravel(), labels[band].reshape(-1)
        for _, down, right in steps:
            if len(wanted) == 0:
                break
            y, x = np.divmod(wanted, labels.shape[1])
            found = flat[(y + reach + down) * window.shape[1] + x + reach + right]
            hit = found > 0
            own[wanted[hit]] = found[hit]
            wanted = wanted[~hit]


def _close_holes(labels: Labels) -> None:
    """Fill what one object encloses alone, in place; what touches the image's border or two objects stays."""
    empty = np.zeros(labels.shape, dtype=np.int32)
    count = int(ndimage.label(labels == 0, output=empty))
    if count == 0:
        return
    least = np.full(count + 1, np.iinfo(np.int32).max, dtype=np.int32)
    most = np.zeros(count + 1, dtype=np.int32)
    for band in bands(labels.shape):
        window = slice(band.start, min(band.stop + 1, labels.shape[0]))
        regions, objects = empty[window], labels[window]
        for here, there in (
            (np.s_[:-1], np.s_[1:]),
            (np.s_[1:], np.s_[:-1]),
            (np.s_[:, :-1], np.s_[:, 1:]),
            (np.s_[:, 1:], np.s_[:, :-1]),
        ):
            touch = (regions[here] > 0) & (objects[there] > 0)
            region, neighbour = regions[here][touch], objects[there][touch]
            np.minimum.at(least, region, neighbour)
            np.maximum.at(most, region, neighbour)
    enclosed = least == most
    for side in (empty[0], empty[-1], empty[:, 0], empty[:, -1]):
        enclosed[side] = False
    if not enclosed.any():
        return
    filling = np.where(enclosed, most, 0).astype(np.int32)
    for band in bands(labels.shape):
        labels[band] += filling[empty[band]]


# By distance --------------------------------------------------------------------------------------------------


def _split_by_distance(foreground: NDArray[np.bool_], neck: float) -> tuple[Labels, int]:
    """Split regions at their necks: (labels int32 [H, W] in the order of the regions, how many).

    Regions touch nowhere, not even at corners, so each is split by itself: which ones are worked on together
    changes nothing. A region wider than `_WIDEST` stays whole.
    """
    regions = np.zeros(foreground.shape, dtype=np.int32)
    count = int(ndimage.label(foreground, structure=np.ones((3, 3)), output=regions))
    labels = np.zeros(foreground.shape, dtype=np.int32)
    boxes = ndimage.find_objects(regions)
    cells: dict[tuple[int, int], list[int]] = {}
    owners: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]  # the region of every label
    used = 0
    for region, box in enumerate(boxes, start=1):
        if max(side.stop - side.start for side in box) > _WIDEST:
            used += 1
            labels[box][regions[box] == region] = used
            owners.append(np.array([region]))
        else:
            cells.setdefault((box[0].start // _CELL, box[1].start // _CELL), []).append(region)
    for members in cells.values():
        window = tuple(
            slice(
                max(min(boxes[r - 1][axis].start for r in members) - 1, 0),
                max(boxes[r - 1][axis].stop for r in members) + 1,
            )
            for axis in (0, 1)
        )
        chosen = np.zeros(count + 1, dtype=bool)
        chosen[members] = True
        inside = chosen[regions[window]]
        parts, found = _watershed(inside, neck)
        labels[window][inside] = parts[inside] + used
        owner = np.zeros(found + 1, dtype=np.int64)
        owner[parts[inside]] = regions[window][inside]
        owners.append(owner[1:])
        used += found
    # Labels were given cell by cell; the order of the image is that of its regions.
    order = np.argsort(np.concatenate(owners), kind="stable")
    numbers = np.empty(used + 1, dtype=np.int32)
    numbers[order] = np.arange(used + 1)
    for band in bands(labels.shape):
        labels[band] = numbers[labels[band]]
    return labels, used


def _watershed(inside: NDArray[np.bool_], neck: float) -> tuple[Labels, int]:
    """Split the regions of a mask at necks: (labels, how many); every region has one label or more.

    A summit of the distance d counts if its saddle to a higher one lies below `neck` * d and a pixel or more
    below d: h-maxima (Soille, Morphological Image Analysis, 2nd ed., section 6.3.4) with a height that grows
    with the object, so that round cells part and the wavy walls of a large object do not.
    """
    from skimage.morphology import reconstruction
    from skimage.segmentation import watershed

    distance = ndimage.distance_transform_edt(inside)
    height = np.minimum(np.maximum(distance - _LEAST_NECK, 0), neck * distance)
    lowered = reconstruction(height, distance)  # type: ignore[no-untyped-call]
    everywhere = np.ones((3, 3))
    domes, count = ndimage.label(distance > lowered, structure=everywhere)
    drowned = ndimage.maximum(height - lowered, domes, np.arange(count + 1)) if count else np.zeros(1)
    kept = np.asarray(drowned) >= 0  # its summit is as high as reconstruction began
    kept[0] = False
    summits = np.where(kept, np.cumsum(kept), 0)[domes]
    # Flooding goes by height, then by age; summits come first and in order, since skimage gives all the same age.
    levels, first = -distance, summits > 0
    levels[first] = np.arange(np.count_nonzero(first)) - distance.size - distance.max()
    flooded = watershed(levels, summits, mask=inside, connectivity=2)  # type: ignore[no-untyped-call]
    labels = np.asarray(flooded, dtype=np.int32)
    return labels, int(kept.sum())
