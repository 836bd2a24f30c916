"""`nvcim segment score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nvcim.cli.console import out

if TYPE_CHECKING:
    from nvcim.segmentation import MaskSetScores

HEADINGS = {
    "object_f1": "object F1",
    "object_dice": "object Dice",
    "object_hausdorff": "object Hausdorff, px",
    "pixel_dice": "pixel Dice",
    "pixel_iou": "pixel IoU",
    "aji": "AJI",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
}


def score(
    segmented: Annotated[Path, typer.Argument(help="Folder of predicted masks.")],
    truth: Annotated[Path, typer.Argument(help="Folder of true masks, paired by name.")],
    table: Annotated[
        Path | None, typer.Option("--out", help="Write the rows to this .csv or .parquet file.")
    ] = None,
) -> None:
    """Score predicted masks: the GlaS contest's object metrics, pixel Dice and IoU, AJI and PQ."""
    from nvcim.segmentation import score_folders, write_scores
    from nvcim.segmentation.scoring_files import check_table_path

    if table is not None:
        check_table_path(table)
    scores = score_folders(segmented, truth)
    out.print(_objects_table(scores))
    out.print(_summary(scores))
    out.print(
        f"Images with objects on one side only: {scores.one_side_empty} (scored 0, Hausdorff the image's diagonal); "
        f"without objects on both: {scores.both_sides_empty} (scored 1 in the mean, nothing to the pooled)."
    )
    if table is not None:
        write_scores(scores, table)
        out.print(f"Rows in {table}")


def _objects_table(scores: MaskSetScores) -> Table:
    """The contest's metrics, a row per image."""
    shown = Table(title=f"Object scores of {len(scores.images)} images (measured)")
    for column in ("image", *list(HEADINGS.values())[:3]):
        shown.add_column(column, overflow="fold")
    for row in scores.rows():
        shown.add_row(str(row["image"]), *(_figure(name, row[name]) for name in list(HEADINGS)[:3]))
    return shown


def _summary(scores: MaskSetScores) -> Table:
    """All metrics of the set, a row per metric, pooled and as a mean."""
    from nvcim.segmentation.mask_scores import MEAN, POOLED

    shown = Table(title="All metrics of the set (measured)")
    for column in ("metric", POOLED, MEAN):
        shown.add_column(column)
    pooled, means = scores.pooled.values(), scores.means()
    for name, heading in HEADINGS.items():
        shown.add_row(heading, _figure(name, pooled[name]), _figure(name, means[name]))
    return shown


def _figure(name: str, value: str | int | float) -> str:
    return f"{value:.1f}" if name == "object_hausdorff" else f"{value:.3f}"
