"""`nvcim segment predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from nvcim.cli.console import Config, Device, out
from nvcim.config import load_settings, parse_settings


def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL... IMAGES...",
            help="Folders of trained models (several, or one of member-* folders, are an ensemble), then image "
            "files or folders of them.",
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for masks and overlays.")],
    config: Config = None,
    scale: Annotated[
        float | None, typer.Option(help="Resize by this factor first (another magnification).")
    ] = None,
    geojson: Annotated[bool, typer.Option("--geojson", help="Also outlines, <name>.geojson.")] = False,
    objects: Annotated[
        bool, typer.Option("--objects", help="Also measurements, <name>_objects.csv.")
    ] = False,
    tiff: Annotated[bool, typer.Option("--tiff", help="Masks as TIFF instead of PNG.")] = False,
    tile: Annotated[int | None, typer.Option(help="Largest side seen at once, pixels.")] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Pixels that neighbouring tiles share (64, or a quarter of a smaller tile)."),
    ] = None,
    flips: Annotated[int | None, typer.Option(help="Views averaged: 1, 2, 4 or 8.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least probability of a pixel of an object.")
    ] = None,
    certainty: Annotated[
        float | None, typer.Option(help="Least probability that an object's surest pixel needs.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="How touching objects are told apart: contour, distance or none.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Write an instance mask (uint16 PNG) and an overlay for every image, of any size.

    --config takes the prediction settings; options given beside it win.
    """
    from nvcim.data.images import find_images
    from nvcim.segmentation import PredictionSettings, predict_files
    from nvcim.segmentation.prediction_files import Extra

    options: dict[str, Any] = {
        "scale": scale,
        "tile": tile,
        "overlap": overlap,
        "flips": flips,
        "threshold": threshold,
        "certainty": certainty,
        "split": split,
    }
    settings = load_settings(config, PredictionSettings) if config else PredictionSettings()
    given = settings.model_dump(exclude_unset=True)
    given |= {name: value for name, value in options.items() if value is not None}
    settings = parse_settings(given, PredictionSettings, "the command line")
    models, images = _models_and_images(paths)
    files = [file for path in images for file in (find_images(path).values() if path.is_dir() else [path])]
    wanted: list[Extra] = []
    wanted += ["geojson"] if geojson else []
    wanted += ["objects"] if objects else []
    wanted += ["tiff"] if tiff else []
    table = Table(title="Objects found (measured)")
    for column in ("image", "objects", "mean area, px", "mask"):
        table.add_column(column, overflow="fold")
    for found in predict_files(models, files, folder, settings, device, wanted):
        table.add_row(found.image.name, str(found.objects), f"{found.mean_area:.0f}", str(found.mask))
    out.print(table)


def _models_and_images(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Tell models (the first path, and what follows and is one) from images.

    Raises:
        DataError: no image.
    """
    from nvcim.errors import DataError

    count = 1
    while count < len(paths) and _holds_model(paths[count]):
        count += 1
    if count == len(paths):
        raise DataError("expected a model folder, then image files or folders of them; no images were given")
    return paths[:count], paths[count:]


def _holds_model(path: Path) -> bool:
    return (path / "fcn.json").is_file() or any(path.glob("member-*/fcn.json"))
