"""Score a folder of masks against another."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvcim.data.images import (
    find_masks,
    pair_names,
    read_instances,
)
from nvcim.errors import DataError
from nvcim.segmentation.metrics import SetScores, score_set


def score_folders(segmented: Path, truth: Path) -> SetScores:
    """Score a folder of predicted masks against one of true masks, paired by name.

    Either folder may be a labelled image set or hold mask files alone; overlays are left out.

    Raises:
        DataError: a mask without its partner, sizes that differ (both files are named), or unreadable files.
    """
    predicted = {n: p for n, p in find_masks(segmented).items() if not n.endswith("_overlay")}
    true = find_masks(truth)
    names = pair_names(segmented, predicted, true, ("its predicted mask", "its true mask"))
    return score_set((_read_both(predicted[name], true[name]) for name in names), names)


def _read_both(segmented: Path, truth: Path) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    a, b = read_instances(segmented), read_instances(truth)
    if a.shape != b.shape:
        sizes = f"{a.shape[1]}x{a.shape[0]} against {b.shape[1]}x{b.shape[0]} pixels"
        raise DataError(f"{segmented} and {truth}: masks differ in size, {sizes}")
    return a, b
