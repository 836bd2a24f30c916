"""Writes `report.html` of a run: every figure, overlay and table in one file that needs no network."""

import base64
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from nvcim.errors import RunError
from nvcim.report.comparison_figures import comparison_figures, set_figures
from nvcim.report.comparison_tables import comparison_tables, metric_tables, point_tables, set_tables
from nvcim.report.crossbar_tables import TextTable
from nvcim.report.figures import (
    Figure,
    fleet_figures,
    segmentation_figures,
    serving_figures,
    stage_figures,
    sweep_figures,
)
from nvcim.report.groups import Row, mean, spread, values
from nvcim.report.retrieval_figures import retrieval_figures
from nvcim.report.retrieval_tables import retrieval_tables
from nvcim.report.segmentation_figures import crossbar_figures, overlay_captions, score_figures
from nvcim.report.segmentation_tables import (
    crossbar_tables_of,
    level_tables_of,
    memory_table,
    score_tables,
    split_tables,
    task_tables,
    verdict_tables,
)
from nvcim.report.style import WIDE
from nvcim.storage import RunFolder, atomic_write_text


def _none(run: RunFolder) -> list[TextTable]:
    """For sections that have no tables beside their summary."""
    return []


@dataclass(frozen=True)
class _Section:
    """A part of the page: the table it shows, its heading, its figures and tables, the columns of its summary."""

    table: str
    heading: str
    about: str
    figures: Callable[[Sequence[Row]], list[Figure]]
    by: tuple[str, ...]
    numbers: tuple[str, ...]
    tables: Callable[[RunFolder], list[TextTable]] = field(default=_none)


_SECTIONS = (
    _Section(
        "comparison",
        "Comparison: NVCiM-PT, other mitigations, and prompts without a crossbar",
        "All methods of a task and seed have the same users, queries and frozen language model. Those with a crossbar "
        "keep their tokens on simulated memory cells; differences are judged seed by seed.",
        comparison_figures,
        ("part", "model", "task", "method", "device", "sigma", "buffer"),
        ("score", "hit", "parsed"),
        comparison_tables,
    ),
    _Section(
        "comparison_sets",
        "What the methods keep for a user, and what training took",
        "Counted on what was kept and trained in the comparison.",
        set_figures,
        ("model", "task", "method", "device"),
        ("storage_bytes", "trained_parameters", "tuning_steps", "trained_tokens", "reconstruction_error"),
        set_tables,
    ),
    _Section(
        "retrieval_cost",
        "Cost of retrieval: crossbars against processors",
        "One query's search over stored token sets: a vector times a matrix and the place of the largest score. "
        "Crossbars and edge CPUs are modelled, this CPU is measured.",
        retrieval_figures,
        ("what", "processor", "device", "ovts", "basis"),
        ("latency_s", "energy_j", "time_ratio", "energy_ratio"),
        lambda run: retrieval_tables(run.read_table("retrieval_cost").to_pylist()),
    ),
    _Section(
        "comparison_metrics",
        "Official metrics of the tasks",
        "As the benchmark scores them, over all answers of a seed.",
        lambda rows: [],
        ("part", "model", "task", "metric", "method", "device", "sigma", "buffer"),
        ("value", "queries"),
        metric_tables,
    ),
    _Section(
        "comparison_points",
        "Points of the comparison",
        "A point is one model, task, seed and setting with all its devices and methods.",
        lambda rows: [],
        ("part", "model", "task", "status"),
        ("answers", "seconds"),
        point_tables,
    ),
    _Section(
        "segmentation_scores",
        "Segmentation: quantizers, suggestive annotation and ensembles",
        "Networks trained on the whole pool, on what suggestive annotation asked for (SA: by float networks, QSA: "
        "by quantized ones), and on each round's images; scored on held-back images with the GlaS contest's object "
        "metrics.",
        score_figures,
        ("part", "rule", "suggestive", "quantizer", "networks", "round"),
        ("object_f1", "object_dice", "object_hausdorff", "pixel_dice", "aji", "pq", "trained_seconds"),
        lambda run: [*verdict_tables(run), *score_tables(run), *split_tables(run), *task_tables(run)],
    ),
    _Section(
        "segmentation_images",
        "Best and worst images",
        "The held-back images with the highest and the lowest object Dice of the float network, and what quantized "
        "networks found in them.",
        lambda rows: [],
        ("part", "rule", "suggestive", "quantizer", "networks", "round"),
        ("object_f1", "object_dice", "object_hausdorff"),
    ),
    _Section(
        "segmentation_rounds",
        "What was suggested",
        "Images whose labels were asked for, round by round; round 0 is the start set.",
        lambda rows: [],
        ("rule", "suggestive", "round"),
        ("annotated", "uncertainty"),
    ),
    _Section(
        "segmentation_crossbars",
        "Segmentation networks on crossbars",
        "The whole pool's networks, their convolutions written to simulated memory cells.",
        crossbar_figures,
        ("model", "arithmetic", "device", "sigma", "weight_bits", "step"),
        ("object_f1", "object_dice", "object_hausdorff", "weight_error", "zeroed"),
        crossbar_tables_of,
    ),
    _Section(
        "segmentation_levels",
        "Segmentation weights on the cells' levels",
        "What the weights alone lose on each crossbar, worked out without a chip and without an image.",
        lambda rows: [],
        ("model", "device", "sigma", "weight_bits", "step"),
        ("level_error", "spread_error", "expected_error", "zeroed"),
        level_tables_of,
    ),
    _Section(
        "segmentation_memory",
        "Memory of segmentation networks",
        "Whole files of each kind of weights, in the run's own network and in the paper-sized one.",
        lambda rows: [],
        ("network", "model"),
        ("float32_file_bytes", "file_bytes", "ratio", "entropy_ratio"),
        lambda run: [memory_table(run.read_table("segmentation_memory").to_pylist())],
    ),
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
        "reconstruction",
        "Token autoencoder: what storing loses",
        "Token sets from which tuning starts, encoded, rounded, written to each device and read back; errors "
        "are relative to the sets' RMS.",
        lambda rows: [],
        ("device", "sigma", "weight_bits"),
        ("code", "quantised", "written"),
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
        overlays={"segmentation": _overlays(folder), "segmentation_images": _compared(folder)},
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
            "wide": figure.plot.layout.meta == WIDE,
            "note": figure.note,
        }
        for index, figure in enumerate(section.figures(rows))
    ]
    return {
        "table": section.table,
        "heading": section.heading,
        "about": section.about,
        "figures": figures,
        "tables": section.tables(folder),
        "columns": [*section.by, "rows", *section.numbers],
        "summary": _summary(rows, section),
    }


def _summary(rows: Sequence[Row], section: _Section) -> list[list[str]]:
    """One line per combination of the `by` columns: count, then mean (and spread) of the numbers."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in section.by), []).append(row)
    lines = []
    for key, own in groups.items():
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


def _compared(folder: RunFolder) -> list[dict[str, str]]:
    """A comparison's best and worst images as data URLs with their captions."""
    files = {file.stem: file for file in sorted((folder.path / "figures").glob("compared-*.png"))}
    if not files or "segmentation_images" not in folder.tables():
        return []
    best = sum(name.startswith("compared-best") for name in files)
    captions = overlay_captions(folder.read_table("segmentation_images").to_pylist(), best)
    return [
        {
            "caption": caption,
            "source": "data:image/png;base64," + base64.b64encode(files[name].read_bytes()).decode("ascii"),
        }
        for name, caption in captions.items()
        if name in files
    ]


def _known_tables() -> str:
    return ", ".join(f"{section.table}.parquet" for section in _SECTIONS)
