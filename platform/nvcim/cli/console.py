"""What every verb prints with, and the options that several verbs share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # its room loads plotly, which most commands do without
    from nvcim.report.crossbar_tables import TextTable

# Names of files, devices and users are shown as they are, never read as rich's markup ([red], :dog:). Files and pipes
# have no width of their own.
out = Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)

Config = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings; without it the defaults.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that run folders are made in.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed that everything random derives from.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Causal LM: a path or hub name, instead of the settings' own.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


def print_table(part: "TextTable") -> None:
    """A report's table with its notes below."""
    table = Table(title=part.title)
    for column in part.columns:
        table.add_column(column, overflow="fold")
    for row in part.rows:
        table.add_row(*row)
    out.print(table)
    for note in part.notes:
        out.print(note, style="dim", highlight=False)
