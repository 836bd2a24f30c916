"""`nvcim segment score`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nvcim.cli.console import out


def score(
    segmented: Annotated[Path, typer.Argument(help="Folder of predicted masks.")],
    truth: Annotated[Path, typer.Argument(help="Folder of true masks, paired by name.")],
) -> None:
    """Score predicted masks by the GlaS contest's object F1, Dice and Hausdorff distance."""
    from nvcim.segmentation import score_folders

    scores = score_folders(segmented, truth)
    table = Table(title=f"Object scores of {len(scores.images)} images (measured)")
    for column in ("image", "object F1", "object Dice", "object Hausdorff, px"):
        table.add_column(column, overflow="fold")
    named = [*zip(scores.names, scores.images, strict=True), ("all objects, pooled", scores.pooled)]
    for name, image in named:
        table.add_row(name, f"{image.f1:.3f}", f"{image.dice:.3f}", f"{image.hausdorff:.1f}")
    out.print(table)
