"""A comparison's tables and figures say what its rows say, and the page holds all of them."""

import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nvcim.crossbar import CrossbarConfig
from nvcim.prompts.personaliser import PromptSettings
from nvcim.prompts.retrieval_cost import NOT_A_REPRODUCTION
from nvcim.report import write_report
from nvcim.report.comparison_figures import comparison_figures, set_figures
from nvcim.report.comparison_tables import (
    NO_REPRODUCTION,
    comparison_tables,
    finding_table,
    grid_table,
    hit_table,
    loss_table,
    metric_tables,
    point_tables,
    set_tables,
    sweep_table,
)
from nvcim.report.crossbar_tables import TextTable
from nvcim.report.figures import Figure
from nvcim.report.retrieval_figures import retrieval_figures
from nvcim.report.retrieval_tables import retrieval_tables, times
from nvcim.storage import RunFolder
from nvcim.sweeps.comparison import ComparisonSettings
from nvcim.sweeps.comparison_statistics import verdicts
from nvcim.sweeps.comparison_work import work_off
from tests.sweeps.comparison_rows import plausible

Row = dict[str, Any]
METHODS = ("nvcim-pt", "no-mitigation", "one-for-all", "zero-shot")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Every table of a comparison, worked off in this process: 2 tasks, 3 seeds, 2 devices, both sweeps, a failure."""
    sweep = {"device": "FeFET3", "methods": ("nvcim-pt", "no-mitigation")}
    settings = ComparisonSettings.model_validate(
        {
            "tasks": ("LaMP_2", "LaMP_5"),
            "devices": ("RRAM1", "FeFET3"),
            "methods": METHODS,
            "seeds": 3,
            "users": 3,
            "sigma_sweep": {**sweep, "sigmas": (0.05, 0.1)},
            "buffer_sweep": {**sweep, "buffers": (5, 25)},
        }
    )
    folder = RunFolder.create(tmp_path_factory.mktemp("runs"), "nvcim-pt", settings, seed=0)
    tables: dict[str, list[Row]] = {}
    planned = settings.planned()
    for item in planned:
        fails = no_memory if item is planned[-1] else plausible
        made = work_off(item.part, item.point, CrossbarConfig(), PromptSettings(), 0, fails, 1)
        for name, rows in made.items():
            tables.setdefault(name, []).extend(rows)
    for name, rows in tables.items():
        folder.write_table(name, rows)
    folder.write_table("retrieval_cost", cost_rows())
    return folder


def no_memory(*_: Any) -> tuple[list[Row], list[Row]]:
    raise MemoryError("<no> memory")


def cost_rows() -> list[Row]:
    rows = []
    for device in ("RRAM1", "FeFET2, FeFET3"):
        for ovts in (10, 1000):
            crossbar = {"latency_s": 1e-8, "energy_j": 2e-9, "time_ratio": None, "energy_ratio": None}
            cpu = {"latency_s": 4e-7, "energy_j": None, "time_ratio": 40.0, "energy_ratio": None}
            edge = {"latency_s": 8e-8, "energy_j": 5e-8, "time_ratio": 8.0, "energy_ratio": 25.0}
            shared = {"ovts": ovts, "device": device, "arrays": None, "rounds": None}
            basis = "measured" if ovts == 10 else "modelled"
            rows += [
                {
                    **shared,
                    **crossbar,
                    "what": "crossbar",
                    "processor": "x",
                    "basis": "modelled",
                    "assumption": "a",
                },
                {**shared, **cpu, "what": "this CPU", "processor": "epyc", "basis": basis, "assumption": "b"},
                {
                    **shared,
                    **edge,
                    "what": "edge CPU",
                    "processor": "a72",
                    "basis": "modelled",
                    "assumption": "c",
                },
            ]
    return rows


def answer(method: str, repeat: int, score: float, **given: Any) -> Row:
    return {
        "part": "grid",
        "model": "m",
        "task": "LaMP_2",
        "method": method,
        "device": "RRAM1",
        "sigma": 0.1,
        "sigma_unit": "level_step",
        "buffer": 25,
        "repeat": repeat,
        "user_id": "u",
        "domains": 3,
        "hit": None,
        "score": score,
        "basis": "measured",
        **given,
    }


def table(tables: list[TextTable], title: str) -> TextTable:
    (found,) = [one for one in tables if title in one.title]
    return found


def test_the_grid_shows_mean_and_spread_and_marks_the_best_that_is_told_apart() -> None:
    rows = [
        answer(method, repeat, score)
        for method, by_seed in (("nvcim-pt", (0.8, 0.9, 0.7)), ("swv", (0.5, 0.6, 0.4)))
        for repeat, score in enumerate(by_seed)
    ]
    # means 0.8 and 0.5, sd 0.1 each; the difference is 0.3 in every seed
    assert list(grid_table(rows, "m").rows) == [
        ("RRAM1", "nvcim-pt", "0.800 ± 0.100 *"),
        ("RRAM1", "swv", "0.500 ± 0.100"),
    ]
    two_seeds = [row for row in rows if row["repeat"] < 2]
    assert not any("*" in cell for line in grid_table(two_seeds, "m").rows for cell in line)
    assert "sigma 0.1 (level_step), buffer 25" in grid_table(rows, "m").title


def test_a_grid_over_tasks_has_their_mean_and_what_has_no_crossbar_comes_last() -> None:
    shared = {"device": "none", "sigma": None, "sigma_unit": None}
    rows = [
        answer("zero-shot", 0, 0.2, **shared),
        answer("zero-shot", 0, 0.4, **shared, task="LaMP_5"),
        answer("nvcim-pt", 0, 0.6),
        answer("nvcim-pt", 0, 0.8, task="LaMP_5"),
    ]
    found = grid_table(rows, "m")
    assert found.columns == ("device", "method", "LaMP_2", "LaMP_5", "mean")
    assert list(found.rows) == [
        ("RRAM1", "nvcim-pt", "0.600", "0.800", "0.700"),
        ("no crossbar", "zero-shot", "0.200", "0.400", "0.300"),
    ]


def test_right_domains_are_counted_over_seeds() -> None:
    rows = [
        answer("nvcim-pt", 0, 1.0, hit=True),
        answer("nvcim-pt", 0, 1.0, hit=False),
        answer("nvcim-pt", 1, 1.0, hit=True),
        answer("one-for-all", 1, 1.0),
    ]
    # seeds 0.5 and 1: mean 0.75, sd 0.3536
    assert list(hit_table(rows).rows) == [("m", "nvcim-pt", "0.750 ± 0.354")]


def test_a_loss_says_whether_the_right_domain_was_found() -> None:
    rows = [
        answer(method, 0, score, hit=hit)
        for method, score, hit in (
            ("nvcim-pt", 0.2, True),
            ("nvcim-pt", 0.4, False),
            ("swv", 0.9, True),
            ("cxdnn", 0.1, True),
            ("one-for-all", 0.5, None),
        )
    ]
    found = loss_table(verdicts(rows), rows)
    assert [(row[3], row[4], *row[7:]) for row in found.rows] == [
        ("swv", "-0.600", "no", "50%", "100%"),
        ("one-for-all", "-0.200", "no", "50%", ""),
    ]


def test_a_sweep_takes_the_grids_answers_at_its_own_device() -> None:
    rows = [
        answer("nvcim-pt", 0, 0.7),
        answer("nvcim-pt", 0, 0.1, device="RRAM4"),
        answer("swv", 0, 0.2),
        answer("nvcim-pt", 0, 0.9, sigma=0.05, part="sigma sweep"),
    ]
    found = sweep_table(rows, "sigma sweep", "sigma")
    assert "on RRAM1" in found.title
    assert found.columns == ("model", "method", "sigma 0.05", "sigma 0.1")
    assert list(found.rows) == [("m", "nvcim-pt", "0.900", "0.700")]


def test_every_question_has_its_table(run: RunFolder) -> None:
    made = comparison_tables(run)
    findings = table(made, "What the comparison says")
    assert NO_REPRODUCTION in findings.notes
    assert any(cells[1] == "against one-for-all" for cells in findings.rows)
    assert any("largest relative gain over a mitigation baseline" in cells for cells in findings.rows)
    judged = table(made, "against every other method")
    assert len(judged.rows) == 2 * (len(METHODS) - 1)
    assert {row[-1] for row in judged.rows} <= {"above", "below", "not told apart"}
    for part in ("sigma sweep", "buffer sweep", "right domain"):
        assert table(made, part).rows
    everything = [*made, *metric_tables(run), *set_tables(run), *point_tables(run)]
    assert all(len(row) == len(one.columns) for one in everything for row in one.rows)


def test_what_failed_is_said_where_it_is_missing(run: RunFolder) -> None:
    notes = comparison_tables(run)[0].notes
    assert notes[0] == "1 points failed and are missing here; the table of points says why."
    (failures,) = point_tables(run)
    assert list(failures.rows) == [("buffer sweep", "embedded", "LaMP_5", "2", "MemoryError: <no> memory")]


def test_the_first_finding_is_about_all_mitigation_baselines_at_once() -> None:
    # On RRAM1 above both; on RRAM4 above one and, in every seed, 0.1 below the other.
    rows = [
        answer(method, repeat, score, device=device)
        for device, by_method in (
            ("RRAM1", {"nvcim-pt": 0.8, "swv": 0.5, "cxdnn": 0.6}),
            ("RRAM4", {"nvcim-pt": 0.7, "swv": 0.5, "cxdnn": 0.8}),
        )
        for method, score in by_method.items()
        for repeat in range(3)
    ]
    first = finding_table(rows, verdicts(rows)).rows[0]
    assert first[2] == "mean above all of them on 1 of 2 devices; told apart below one of them on RRAM4"


def test_official_metrics_are_means_over_seeds(run: RunFolder) -> None:
    labels, texts = metric_tables(run)
    assert labels.columns == ("model", "device", "method", "accuracy", "macro_f1", "unparsed")
    assert texts.columns == ("model", "device", "method", "rouge1", "rougeL", "unparsed")
    values = [
        row["value"]
        for row in run.read_table("comparison_metrics").to_pylist()
        if (row["part"], row["task"], row["device"], row["method"], row["metric"])
        == ("grid", "LaMP_5", "FeFET3", "nvcim-pt", "rougeL")
    ]
    (line,) = [row for row in texts.rows if row[1:3] == ("FeFET3", "nvcim-pt")]
    assert line[4] == f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def test_storage_is_per_user(run: RunFolder) -> None:
    storage = table(set_tables(run), "storage and training")
    by_method = {row[1]: row for row in storage.rows}
    assert by_method["zero-shot"][3:5] == ("32,768", "0")
    assert by_method["nvcim-pt"][2:4] == ("3", "1,536")


def test_retrieval_columns_say_what_is_measured_and_what_modelled() -> None:
    made = retrieval_tables(cost_rows())
    time = made[0]
    assert time.columns == (
        "stored sets",
        "crossbar of RRAM1 (modelled)",
        "crossbar of FeFET2, FeFET3 (modelled)",
        "epyc (measured and modelled)",
        "a72 (modelled)",
    )
    assert list(time.rows) == [
        ("10", "10 ns", "10 ns", "400 ns measured", "80 ns"),
        ("1,000", "10 ns", "10 ns", "400 ns modelled", "80 ns"),
    ]
    ratios = table(made, "over those of crossbars of RRAM1")
    columns = (
        "stored sets",
        "time: epyc (measured and modelled)",
        "time: a72 (modelled)",
        "energy: a72 (modelled)",
    )
    assert ratios.columns == columns
    assert list(ratios.rows) == [
        ("10", "40x measured", "8x", "25x"),
        ("1,000", "40x modelled", "8x", "25x"),
    ]
    assert f"{NOT_A_REPRODUCTION}." in ratios.notes
    assumptions = made[-1]
    assert ("epyc", "measured", "10", "b") in list(assumptions.rows)
    assert ("epyc", "modelled", "1,000", "b") in list(assumptions.rows)


def test_a_ratio_has_three_digits_and_no_exponent() -> None:
    assert [times(x) for x in (0.7939, 7.0, 48.06, 182_345.6)] == ["0.794x", "7x", "48.1x", "182,000x"]


def all_figures(run: RunFolder) -> list[Figure]:
    rows = {name: run.read_table(name).to_pylist() for name in run.tables()}
    return [
        *comparison_figures(rows["comparison"]),
        *set_figures(rows["comparison_sets"]),
        *retrieval_figures(rows["retrieval_cost"]),
    ]


def test_every_figure_has_data_a_title_axis_labels_and_its_basis(run: RunFolder) -> None:
    figures = all_figures(run)
    # scores; each sweep per task and over tasks; domains; storage; reconstruction; time and energy
    assert len(figures) == 1 + 2 * 3 + 1 + 2 + 2
    for figure in figures:
        layout = figure.plot.layout
        assert layout.title.text
        assert layout.xaxis.title.text
        assert layout.yaxis.title.text
        assert figure.basis in ("measured", "modelled", "measured and modelled")
        assert all(len(trace.x) and len(trace.x) == len(trace.y) for trace in figure.plot.data)


def test_a_sweeps_band_is_the_mean_and_one_standard_deviation() -> None:
    rows = [
        answer("nvcim-pt", repeat, score, sigma=sigma, part=part)
        for sigma, part, by_seed in ((0.1, "grid", (0.5, 0.7)), (0.05, "sigma sweep", (0.8, 0.8)))
        for repeat, score in enumerate(by_seed)
    ]
    plot = next(f.plot for f in comparison_figures(rows) if "sigma" in f.plot.layout.xaxis.title.text)
    band, line = plot.data
    sd = 0.02**0.5
    assert list(line.x) == [0.05, 0.1]
    assert list(line.y) == pytest.approx([0.8, 0.6])
    assert list(band.x) == [0.05, 0.1, 0.1, 0.05]
    assert list(band.y) == pytest.approx([0.8, 0.6 + sd, 0.6 - sd, 0.8])


class Cells(HTMLParser):
    """Collects the ids of sections, headings of tables, and what is in bold."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.best = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if tag == "section" else []
        self.best += found.get("class") == "best"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_holds_every_table_and_the_failed_point(run: RunFolder) -> None:
    page = write_report(Path(run.path)).read_text(encoding="utf-8")
    cells = Cells()
    cells.feed(page)
    assert cells.ids == [
        "comparison",
        "comparison_sets",
        "retrieval_cost",
        "comparison_metrics",
        "comparison_points",
    ]
    shown = set(cells.text)
    titles = [
        one.title for one in [*comparison_tables(run), *set_tables(run), *retrieval_tables(cost_rows())]
    ]
    assert [title for title in titles if title not in shown] == []
    assert "MemoryError: <no> memory" in shown
    assert "1 of 18 points failed; their answers are missing above" in shown
