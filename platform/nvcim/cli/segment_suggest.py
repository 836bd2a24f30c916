"""`nvcim segment suggest`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from nvcim.cli.console import Config, Device, Seed, out
from nvcim.config import load_settings, parse_settings

if TYPE_CHECKING:  # its room loads torch, which takes a moment
    from nvcim.segmentation.suggestion_files import FolderSettings, FolderSuggestions


def suggest(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    annotated: Annotated[
        str, typer.Option(help="Folder with the masks of those that are annotated, by name; '' for none yet.")
    ],
    rule: Annotated[
        Literal["suggestive", "uncertainty", "random"] | None,
        typer.Option(help="How images are chosen; suggestive by default."),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Images to suggest; 8 by default.")] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Most uncertain images to choose among; 2 k, at least 16.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of the networks: float, or <quantizer>-<bits>, such as inq-7.")
    ] = None,
    networks: Annotated[int | None, typer.Option(min=2, help="Networks to train; 5 by default.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each network; half as many follow.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder of a trained ensemble to ask, instead of training one.")
    ] = None,
    save_models: Annotated[
        Path | None, typer.Option(help="Folder to keep the trained ensemble in; a killed run goes on there.")
    ] = None,
    table: Annotated[Path, typer.Option("--out", help="Table to write, .csv or .json.")] = Path(
        "suggestions.csv"
    ),
    contact_sheet: Annotated[
        Path | None, typer.Option(help="PNG with the images and where the networks disagree on them.")
    ] = None,
    config: Config = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Tell which images to annotate next: those that networks disagree on and that stand for the others.

    With nothing annotated (--annotated '') and no --models, nothing is trained
    and no uncertainty is known: the images that represent all of them best
    are suggested, by the descriptors of untrained networks.
    """
    from nvcim.data.images import write_image
    from nvcim.errors import ConfigError
    from nvcim.progress import progress
    from nvcim.segmentation.contact_sheet import contact_sheet as draw_sheet
    from nvcim.segmentation.suggestion_files import suggest_in_folder, write_suggestions
    from nvcim.segmentation.suggestion_pool import read_pool

    given = {"k": k, "rule": rule, "candidates": candidates, "weights": weights, "networks": networks}
    settings = _settings(config, given, {"steps": steps, "device": device})
    training = {"--weights": weights, "--steps": steps, "--save-models": save_models}
    asking = {"--models": models, "--networks": networks}
    among = {"--candidates": candidates}
    if settings.rule == "random":
        _refuse({**training, **asking, **among}, "the rule random, which asks no network")
    elif settings.rule == "uncertainty":
        _refuse(among, "the rule uncertainty, which chooses among all images")
    if models is not None:
        _refuse({**training, "--networks": networks}, "--models, whose networks are trained already")
    elif not annotated:
        _refuse({**training, **among}, "--annotated '' without --models: no network is trained")
    _check_target("--out", table, (".csv", ".json"))
    if contact_sheet is not None:
        _check_target("--contact-sheet", contact_sheet, (".png",))
        read = [_within(images, "images")] + ([_within(Path(annotated), "labels")] if annotated else [])
        if contact_sheet.resolve().parent in {place.resolve() for place in read}:
            raise ConfigError(
                f"--contact-sheet {contact_sheet}: lies among the images; choose another folder"
            )
    with progress("suggest") as update:

        def tell(what: str, done: int, total: int) -> None:
            update(done, total, what)

        pool = read_pool(images, Path(annotated) if annotated else None, tell)
        found = suggest_in_folder(pool, settings, seed, models, save_models, tell)
    out.print(suggestion_table(found))
    out.print(found.how, highlight=False)
    write_suggestions(found, table)
    out.print(f"table: {table}", soft_wrap=True, highlight=False)
    if contact_sheet is not None:
        write_image(draw_sheet(found), contact_sheet)
        out.print(f"contact sheet: {contact_sheet}", soft_wrap=True, highlight=False)


def _refuse(options: Mapping[str, Any], beside: str) -> None:
    """Refuse the first of the options that was given.

    Raises:
        ConfigError: names it and what it has no meaning with.
    """
    from nvcim.errors import ConfigError

    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} {value}: has no meaning with {beside}")


def _within(folder: Path, name: str) -> Path:
    """The folder's own folder of that name where there is one, which is read in its place."""
    return folder / name if (folder / name).is_dir() else folder


def _check_target(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """See that a file can be written there, before anything takes time; nothing is made.

    Raises:
        ConfigError: another ending, a folder of that name, or no folder that can be written to.
    """
    from nvcim.errors import ConfigError

    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {path}: must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder")
    there = next(place for place in path.absolute().parents if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{option} {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: the folder {there} cannot be written to")


def suggestion_table(found: "FolderSuggestions") -> Table:
    """The suggested images in order; a column that the rule knows nothing of is left out."""
    from nvcim.segmentation.suggestion_files import suggestion_rows

    rows = suggestion_rows(found)
    titles = {
        "rank": "rank",
        "image": "image",
        "uncertainty": "uncertainty",
        "represents": f"stands for, of {found.rest}",
        "nearest_annotated": "nearest annotated",
        "similarity": "similarity to it",
    }
    shown = [key for key in titles if any(row[key] is not None for row in rows)]
    table = Table(title=f"{len(rows)} of {found.rest} images to annotate next (measured)")
    for key in shown:
        table.add_column(titles[key], overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in shown))
    return table


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _settings(config: Path | None, given: dict[str, Any], training: dict[str, Any]) -> "FolderSettings":
    """The settings of the file with the command line's own on top."""
    from nvcim.segmentation.suggestion_files import FolderSettings

    base = load_settings(config, FolderSettings) if config else FolderSettings()
    content = base.model_dump()
    content.update({key: value for key, value in given.items() if value is not None})
    content["training"].update({key: value for key, value in training.items() if value not in (None, "auto")})
    return parse_settings(content, FolderSettings, "settings")
