"""`nvcim segment predict`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nvcim.cli.console import Device, out
from nvcim.config import parse_settings


def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for masks and overlays.")],
    scale: Annotated[float, typer.Option(help="Resize by this factor first (another magnification).")] = 1.0,
    device: Device = "auto",
) -> None:
    """Write an instance mask (uint16 PNG) and an overlay for every image."""
    from nvcim.data.images import find_images
    from nvcim.segmentation import PredictionSettings, predict_files

    settings = parse_settings({"scale": scale}, PredictionSettings, "--scale")
    files = [file for path in images for file in (find_images(path).values() if path.is_dir() else [path])]
    table = Table(title="Objects found (measured)")
    for column in ("image", "objects", "mean area, px", "mask"):
        table.add_column(column, overflow="fold")
    for found in predict_files(model, files, folder, settings, device):
        table.add_row(found.image.name, str(found.objects), f"{found.mean_area:.0f}", str(found.mask))
    out.print(table)
