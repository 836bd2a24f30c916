"""Writes `report.html` of a run: every figure, overlay and table in one file that needs no network."""

import base64
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from nvcim.errors import RunError
from nvcim.report.figures import (
    Figure,
    fleet_figures,
    segmentation_figures,
    serving_figures,
    stage_figures,
    sweep_figures,
)
from nvcim.report.groups import Row, distinct, mean, spread, values
from nvcim.storage import RunFolder, atomic_write_text


@dataclass(frozen=True)
class _Section:
    """A part of the page: the table it shows, its heading, its figures, and the columns of its summary."""

    table: str
    heading: str
    about: str
    figures: Callable[[Sequence[Row]], list[Figure]]
    by: tuple[str, ...]
    numbers: tuple[str, ...]


_SECTIONS = (
    _Section(
        "fleet_scores",
        "Fleet: what prompts are worth on each device",
        "Every node holds one user and a prompt memory on a simulated crossbar. Methods differ in the prompt "
        "that is put before a query; the language model is the same and frozen.",
        fleet_figures,
        ("task", "method", "device", "metric"),
        ("score", "hit_rate"),
    ),
    _Section(
        "segmentation",
        "Segmentation: float and quantized weights, ideal arithmetic and crossbars",
        "The same trained network, its weights as float or quantized, computed digitally or on simulated "
        "crossbars. Overlays: the outline of each found object on its image.",
        segmentation_figures,
        ("model", "arithmetic", "device", "sigma"),
        ("object_f1", "object_dice", "object_hausdorff"),
    ),
    _Section(
        "sweep",
        "Sweep: bits of a weight against programming variation",
        "Each trial programs the trained model anew at its bits and sigma and scores it.",
        sweep_figures,
        ("metric", "device", "weight_bits", "sigma", "status"),
        ("score", "seconds"),
    ),
    _Section(
        "serving",
        "Serving: what clients waited for",
        "Requests over HTTP to the served run.",
        serving_figures,
        ("endpoint", "case", "status"),
        ("latency_ms", "completion_tokens"),
    ),
    _Section(
        "stages", "Time", "Wall-clock time of the run's stages.", stage_figures, ("stage",), ("seconds",)
    ),
)


def write_report(run: RunFolder | Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Only tables that the run holds get a section; overlays are the PNG files `figures/segmentation*.png`.

    Raises:
        RunError: not a run folder, a table is broken, or the run holds no table to show.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    sections = [_rendered(section, folder) for section in _SECTIONS if section.table in folder.tables()]
    sections = [section for section in sections if section]
    if not sections:
        raise RunError(f"{folder.path}: no results to report; expected one of {_known_tables()}")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nvcim.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("page.html.j2").render(
        record=folder.record,
        plotly=get_plotlyjs(),
        sections=sections,
        overlays=_overlays(folder),
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    path = folder.path / "report.html"
    atomic_write_text(path, html)
    return path


def _rendered(section: _Section, folder: RunFolder) -> dict[str, Any] | None:
    """What the template needs of a section, or None for a table without rows."""
    rows = folder.read_table(section.table).to_pylist()
    if not rows:
        return None
    figures = [
        {
            "html": figure.plot.to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=f"{section.table}-{index}",
                config={"displayModeBar": False, "responsive": True},
            ),
            "basis": figure.basis,
            "note": figure.note,
        }
        for index, figure in enumerate(section.figures(rows))
    ]
    return {
        "table": section.table,
        "heading": section.heading,
        "about": section.about,
        "figures": figures,
        "columns": [*section.by, "rows", *section.numbers],
        "summary": _summary(rows, section),
    }


def _summary(rows: Sequence[Row], section: _Section) -> list[list[str]]:
    """One line per combination of the `by` columns: count, then mean (and spread) of the numbers."""
    keyed = [{**row, "_key": tuple(row[column] for column in section.by)} for row in rows]
    lines = []
    for key in distinct(keyed, "_key"):
        own = [row for row in keyed if row["_key"] == key]
        cells = ["" if part is None else str(part) for part in key]
        lines.append([*cells, str(len(own)), *(_cell(values(own, column)) for column in section.numbers)])
    return lines


def _cell(numbers: Sequence[float]) -> str:
    """`mean` or `mean ± standard deviation`, in three digits."""
    middle = mean(numbers)
    if middle is None:
        return ""
    return f"{middle:.3g} ± {spread(numbers):.2g}" if len(numbers) > 1 else f"{middle:.3g}"


def _overlays(folder: RunFolder) -> list[dict[str, str]]:
    """The run's segmentation overlays as data URLs with their captions."""
    return [
        {
            "caption": file.stem.removeprefix("segmentation").strip("-_").replace("_", " ") or file.stem,
            "source": "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii"),
        }
        for file in sorted((folder.path / "figures").glob("segmentation*.png"))
    ]


def _known_tables() -> str:
    return ", ".join(f"{section.table}.parquet" for section in _SECTIONS)
