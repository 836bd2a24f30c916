"""What the contest's three object metrics cost on a pair of GlaS size, against the obvious ways to compute them.

    python tests/benchmarks/bench_segmentation.py --cases "metrics*"

The case is always all three metrics from the two label maps. One reference is the definition written down with sets of
pixels; the other is scipy's `directed_hausdorff`, which gives only the distances, of only the pairs needed, and
is handed the objects' pixels ready cut.
"""

import math
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import directed_hausdorff

from nvcim.segmentation.metrics import score_pair
from tests.benchmarks.cases import SMOKE, Case, Run, Setup, compared
from tests.benchmarks.timing import Result, Spread, Timing

Labels = NDArray[np.int32]
Pixels = set[tuple[int, int]]


@dataclass(frozen=True)
class Pair:
    """How large a pair of masks is: pixels, and objects in rows and columns."""

    height: int = 522
    width: int = 775
    rows: int = 6
    columns: int = 10


# The pure Python reference visits all pairs of an object's pixels with its partner's: minutes at full size.
SMALL = Pair(48, 64, 2, 3)


def blobs(pair: Pair, seed: int) -> Labels:
    """Bent ellipses on a jittered grid, [height, width]; two seeds give maps whose objects overlap in part."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices((pair.height, pair.width))
    mask = np.zeros((pair.height, pair.width), dtype=np.int32)
    cell = pair.height / pair.rows, pair.width / pair.columns
    for label in range(pair.rows * pair.columns):
        place = divmod(label, pair.columns)
        y, x = ((p + 0.5) * c + random.normal() * c / 16 for p, c in zip(place, cell, strict=True))
        high, wide = (random.uniform(0.25, 0.45) * c for c in cell)
        angle = np.arctan2(rows - y, columns - x)
        bent = (
            1
            + 0.15 * np.sin(3 * angle + random.uniform(0, 6))
            + 0.1 * np.sin(7 * angle + random.uniform(0, 6))
        )
        inside = ((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 < bent**2
        mask[inside & (mask == 0)] = label + 1
    return mask


@lru_cache(maxsize=4)
def masks(pair: Pair) -> tuple[Labels, Labels]:
    """Segmented and true map."""
    return blobs(pair, 0), blobs(pair, 1)


def size(setup: Setup) -> Pair:
    """GlaS's size with 60 objects a side, or a small one in a smoke run."""
    return SMALL if setup.sizes == SMOKE else Pair()


# The obvious way ---------------------------------------------------------------------------------------------


def objects_of(mask: Labels) -> list[Pixels]:
    """Sets of the objects' pixels."""
    found: dict[int, Pixels] = {}
    for (row, column), label in np.ndenumerate(mask):
        if label:
            found.setdefault(int(label), set()).add((row, column))
    return list(found.values())


def set_hausdorff(a: Pixels, b: Pixels) -> float:
    """Hausdorff distance of two sets; a pixel that both hold is 0 away, which spares most of the work."""

    def directed(some: Pixels, others: Pixels) -> int:
        outside = some - others
        return max((min((y - v) ** 2 + (x - u) ** 2 for v, u in others) for y, x in outside), default=0)

    return math.sqrt(max(directed(a, b), directed(b, a)))


def set_scores(segmented: Labels, truth: Labels) -> tuple[float, float, float]:
    """F1, Dice and Hausdorff by the definitions; without their guard for halves, which these maps do not need."""
    s, g = objects_of(segmented), objects_of(truth)
    found, sides = 0, []
    for side, others in ((s, g), (g, s)):
        area, dice, hausdorff = sum(map(len, side)), 0.0, 0.0
        for one in side:
            partner = max(others, key=lambda other, one=one: len(one & other))  # type: ignore[misc]
            overlap = len(one & partner)
            found += side is s and overlap > 0 and 2 * overlap >= len(partner)
            dice += len(one) * 2 * overlap / (len(one) + len(partner))
            candidates = [partner] if overlap else others
            hausdorff += len(one) * min(set_hausdorff(one, other) for other in candidates)
        sides.append((dice / area, hausdorff / area))
    return 2 * found / (len(s) + len(g)), (sides[0][0] + sides[1][0]) / 2, (sides[0][1] + sides[1][1]) / 2


@lru_cache(maxsize=2)
def set_milliseconds(pair: Pair) -> float:
    """How long the obvious way takes, once: minutes at full size, and the same on any number of threads."""
    start = time.perf_counter()
    set_scores(*masks(pair))
    return (time.perf_counter() - start) * 1e3


def against_sets(case: Case, setup: Setup) -> list[Result]:
    """All three metrics, ours (the median of the repeats) as a share of one run by sets."""
    pair = masks(size(setup))
    score_pair(*pair)
    times = []
    for _ in range(setup.repeats):
        start = time.perf_counter()
        score_pair(*pair)
        times.append((time.perf_counter() - start) * 1e3)
    reference, own = set_milliseconds(size(setup)), Spread.of(times)
    ratio = own.median / reference
    timing = Timing(
        own, Spread.of([reference]), ratio, Spread.of([ms / reference for ms in times]), setup.repeats
    )
    note = "pixel sets: pure Python, pixels that both objects hold are skipped; run once"
    line = Result(
        case.name, case.title, setup.threads, setup.place, ratio, "x pixel sets", 1 / 20, timing, note
    )
    return [line]


# scipy's -----------------------------------------------------------------------------------------------------


def cut_pairs(pair: Pair) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pixels [n, 2] of each object and of the one with its label in the other map, which is its partner here."""
    segmented, truth = masks(pair)
    labels = range(1, pair.rows * pair.columns + 1)
    return [(np.argwhere(segmented == label), np.argwhere(truth == label)) for label in labels]


def against_scipy(setup: Setup) -> tuple[Run, Run]:
    """All three metrics against scipy's distances alone, both directions of each pair once."""
    pair = masks(size(setup))
    cut = cut_pairs(size(setup))

    def distances() -> list[float]:
        return [max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]) for a, b in cut]

    return lambda: score_pair(*pair), distances


def without_partner(setup: Setup) -> tuple[Run, Run]:
    """Maps shifted until nothing overlaps, so that each object is measured to the nearest, against overlapping ones."""
    segmented, truth = masks(size(setup))
    far = np.where(segmented > 0, 0, np.roll(truth, (size(setup).height // size(setup).rows // 2), axis=0))
    return lambda: score_pair(segmented, far), lambda: score_pair(segmented, truth)


def one_blob(setup: Setup) -> tuple[Run, Run]:
    """One segmented object over the whole image, as of a network that failed, against overlapping objects."""
    segmented, truth = masks(size(setup))
    blob = np.ones_like(segmented)
    return lambda: score_pair(blob, truth), lambda: score_pair(segmented, truth)


CASES = (
    Case(
        "metrics_sets",
        "three object metrics, 775 x 522, 60 objects a side",
        against_sets,
        gpu=False,
    ),
    Case(
        "metrics_scipy",
        "the same",
        compared(against_scipy, "x directed_hausdorff", 1.0, "scipy: distances alone, pixels ready cut"),
        gpu=False,
    ),
    Case(
        "metrics_no_overlap",
        "no object overlaps any",
        compared(without_partner, "x overlapping objects", None),
        gpu=False,
    ),
    Case(
        "metrics_one_blob",
        "one object over 60 true ones",
        compared(one_blob, "x overlapping objects", None),
        gpu=False,
    ),
)
