"""Score a folder of masks against another, and the table of scores as a file."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from nvcim.data.images import find_masks, pair_names, read_instances
from nvcim.errors import DataError
from nvcim.segmentation.mask_scores import MaskSetScores, score_masks
from nvcim.storage import atomic_write_bytes

TABLE_SUFFIXES = (".csv", ".parquet")


def score_folders(segmented: Path, truth: Path) -> MaskSetScores:
    """Score a folder of predicted masks against one of true masks by every metric, paired by name.

    Either folder may be a labelled image set or hold mask files alone; overlays are left out.

    Raises:
        DataError: a mask without its partner, sizes that differ (both files are named), or unreadable files.
    """
    predicted, true = find_masks(segmented), find_masks(truth)
    names = pair_names(segmented, predicted, true, ("its predicted mask", "its true mask"))
    return score_masks((_read_both(predicted[name], true[name]) for name in names), names)


def _read_both(segmented: Path, truth: Path) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    a, b = read_instances(segmented), read_instances(truth)
    if a.shape != b.shape:
        sizes = f"{a.shape[1]}x{a.shape[0]} against {b.shape[1]}x{b.shape[0]} pixels"
        raise DataError(f"{segmented} and {truth}: masks differ in size, {sizes}")
    return a, b


def check_table_path(path: Path) -> None:
    """Refuse a table's path before any work is done for it.

    Raises:
        DataError: a suffix other than .csv and .parquet, or a folder's path.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{path}: a table of scores is written as {' or '.join(TABLE_SUFFIXES)}")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file")


def write_scores(scores: MaskSetScores, path: Path) -> None:
    """Write one row per image, one pooled and one of means, as CSV or Parquet by the path's suffix.

    The file appears whole or not at all.

    Raises:
        DataError: as `check_table_path`.
    """
    check_table_path(path)
    table, buffer = pa.Table.from_pylist(scores.rows()), io.BytesIO()
    if path.suffix.lower() == ".csv":
        pa.csv.write_csv(table, buffer)
    else:
        pa.parquet.write_table(table, buffer)
    atomic_write_bytes(path, buffer.getvalue())
