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
    FEWER_SEEDS,
    NO_REPRODUCTION,
    comparison_tables,
    finding_table,
    grid_table,
    hit_table,
    loss_table,
    metric_tables,
    point_tables,
    set_tables,
    standing_table,
    summary_tables,
    sweep_table,
    verdict_table,
    write_noise,
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
NO_SWEEPS: dict[str, Any] = {"sigma_sweep": None, "buffer_sweep": None, "ablation_device": None}


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
        "data": "generated",
        "task": "LaMP_2",
        "method": method,
        "device": "RRAM1",
        "sigma": 0.1,
        "sigma_unit": "level_step",
        "buffer": 25,
        "repeat": repeat,
        "user_id": "u",
        "query": 0,
        "domains": 3,
        "hit": None,
        "output": "x",
        "score": score,
        "basis": "measured",
        **given,
    }


def kept(method: str, error: float | None, **given: Any) -> Row:
    """What a method keeps for one user."""
    return answer(method, 0, 0.0, reconstruction_error=error, unanswered=0, sets=3, **given)


def table(tables: list[TextTable], title: str) -> TextTable:
    (found,) = [one for one in tables if title in one.title]
    return found


def test_the_grid_shows_mean_and_spread_and_marks_the_best_that_is_told_apart() -> None:
    rows = [
        answer(method, repeat, score)
        for method, by_seed in (("nvcim-pt", (0.8, 0.9, 0.7)), ("swv", (0.5, 0.6, 0.4)))
        for repeat, score in enumerate(by_seed)
    ]
    # means 0.8 and 0.5, sd 0.1 each; the difference is 0.3 in every seed, which no test can judge
    assert next(iter(grid_table(rows, "m").rows)) == ("RRAM1", "nvcim-pt", "0.800 ± 0.100")
    rows[-1]["score"], rows[-2]["score"] = 0.5, 0.5
    # swv: 0.5 in every seed; d = 0.3, 0.4, 0.2: t = 0.3 / (0.1 / sqrt 3) = 5.2, p = 0.035
    assert list(grid_table(rows, "m").rows) == [
        ("RRAM1", "nvcim-pt", "0.800 ± 0.100 *"),
        ("RRAM1", "swv", "0.500 ± 0.000"),
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
    found = loss_table(verdicts(rows), rows, [])
    assert [(row[3], row[4], *row[8:11]) for row in found.rows] == [
        ("swv", "-0.600", "no", "50%", "100%"),
        ("one-for-all", "-0.200", "no", "50%", ""),
    ]


def test_a_loss_shows_both_sides_reconstruction_error_and_whether_it_is_told_apart() -> None:
    rows = [
        answer(method, repeat, score + wobble * (method == "lora"), device=device)
        for method, device, score in (
            ("nvcim-pt", "RRAM1", 0.2),
            ("swv", "RRAM1", 0.3),
            ("lora", "none", 0.8),
        )
        for repeat, wobble in enumerate((0.0, 0.1, 0.05))
    ]
    sets = [
        kept("nvcim-pt", 0.4),
        kept("nvcim-pt", 0.6, user_id="v"),
        kept("swv", 0.3),
        kept("lora", None, device="none"),
    ]
    found = loss_table(verdicts(rows), rows, sets)
    # swv leads by 0.1 in every seed; lora by 0.6, 0.7, 0.65, with t = 0.65 / (0.05 / sqrt 3) = 22.5
    assert [(row[3], row[8], *row[11:]) for row in found.rows] == [
        ("lora", "yes", "0.500", ""),
        ("swv", "no", "0.500", "0.300"),
    ]
    assert found.notes[0].startswith(
        "Of 1 losses to methods on a crossbar, NVCiM-PT found the right domain less often than the other in 0 and "
        "has the larger reconstruction error in 1; neither in 0"
    )


def test_without_domains_hits_cannot_be_judged() -> None:
    rows = [
        answer(method, 0, score, task=task, domains=domains, hit=hit)
        for task, domains, hit in (("LaMP_2", 0, None), ("LaMP_5", 3, True))
        for method, score in (("nvcim-pt", 0.2), ("swv", 0.9))
    ]
    found = loss_table(verdicts(rows), rows, [])
    shown = {row[1]: row[9:11] for row in found.rows}
    assert shown["LaMP_2"] == ("unknown", "unknown")
    assert shown["LaMP_5"] == ("100%", "100%")
    assert any("no domains for LaMP_2, so it cannot be judged" in note for note in found.notes)
    told = [row for row in rows if row["task"] == "LaMP_5"]
    assert not any("judged" in note for note in loss_table(verdicts(told), told, []).notes)


def test_cells_of_fewer_seeds_say_how_many() -> None:
    digital = {"device": "none", "sigma": None, "sigma_unit": None}
    rows = [
        *(answer("nvcim-pt", repeat, score) for repeat, score in enumerate((0.8, 0.9, 0.7))),
        *(answer("lora", repeat, score, **digital) for repeat, score in enumerate((0.4, 0.6))),
        answer("vanilla", 0, 0.3, **digital),
    ]
    found = grid_table(rows, "m")
    assert [row[2] for row in found.rows] == ["0.800 ± 0.100", "0.300 (1)", "0.500 ± 0.141 (2)"]
    assert FEWER_SEEDS in found.notes
    even = grid_table([row for row in rows if row["repeat"] < 1], "m")
    assert [row[2] for row in even.rows] == ["0.800", "0.300", "0.400"]
    assert FEWER_SEEDS not in even.notes
    judged = verdict_table(verdicts(rows), "m")
    assert {row[1]: row[6] for row in judged.rows} == {"lora": "2", "vanilla": "1"}
    notes = finding_table(rows, verdicts(rows)).notes
    assert any("fewer than 3: vanilla 1, lora 2;" in note for note in notes)


def test_questions_that_do_not_fit_are_told_and_a_task_of_them_is_not_in_the_mean() -> None:
    rows = [
        answer("nvcim-pt", 0, score, task=task)
        for task, score in (("LaMP_2", 0.6), ("LaMP_4", 0.0), ("LaMP_5", 0.8))
    ]
    shares = {("m", "LaMP_2"): 0.25, ("m", "LaMP_4"): 0.75, ("m", "LaMP_5"): 0.0}
    found = grid_table(rows, "m", shares)
    assert found.columns[2:] == ("LaMP_2", "LaMP_4 (not in the mean)", "LaMP_5", "mean")
    assert list(found.rows) == [("RRAM1", "nvcim-pt", "0.600", "0.000", "0.800", "0.700")]
    assert found.notes[-2:] == (
        "Questions that do not fit the model's context, and score 0 for every method: LaMP_2 25.0%, LaMP_4 75.0%, "
        "LaMP_5 0.0%.",
        "More than 50% of the questions are such in LaMP_4: left out of every mean over tasks.",
    )
    all_fit = grid_table(rows, "m", dict.fromkeys(shares, 0.0))
    assert all_fit.notes[-1] == "Every question fits the model's context."
    assert next(iter(all_fit.rows))[-1] == "0.467"


def test_a_run_whose_task_does_not_fit_is_judged_without_it(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "nvcim-pt", ComparisonSettings(tasks=("LaMP_2", "LaMP_5")), seed=0)
    methods = ("nvcim-pt", "no-mitigation", "swv", "cxdnn", "correctnet")
    planned = ComparisonSettings(
        tasks=("LaMP_2", "LaMP_4", "LaMP_5"), devices=("RRAM1",), methods=methods, seeds=3, **NO_SWEEPS
    ).planned()
    tables: dict[str, list[Row]] = {}
    for item in planned:
        made = work_off(item.part, item.point, CrossbarConfig(), PromptSettings(), 0, plausible, 1)
        for name, rows in made.items():
            tables.setdefault(name, []).extend(rows)
    for row in tables["comparison"]:
        if row["task"] == "LaMP_4":
            row.update(score=0.0, output="")
    for row in tables["comparison_sets"]:
        row["unanswered"] = 4 if row["task"] == "LaMP_4" else 0
    for name, rows in tables.items():
        run.write_table(name, rows)
    made_tables = comparison_tables(run)
    grid = table(made_tables, "Scores with")
    assert grid.columns[3] == "LaMP_4 (not in the mean)"
    ours = next(row for row in grid.rows if row[1] == "nvcim-pt")
    parts = [
        statistics.fmean(
            row["score"]
            for row in tables["comparison"]
            if row["method"] == "nvcim-pt" and row["task"] == task
        )
        for task in ("LaMP_2", "LaMP_5")
    ]
    assert ours[-1].startswith(f"{statistics.fmean(parts):.3f} ±")
    judged = table(made_tables, "against every other method")
    assert {row[2] for row in judged.rows} == {f"{statistics.fmean(parts):.3f}"}
    (bars, *_) = comparison_figures(tables["comparison"])
    shown = dict(zip(bars.plot.data[0].x, bars.plot.data[0].y, strict=True))
    assert shown["nvcim-pt"] == pytest.approx(statistics.fmean(parts))
    assert "mostly do not fit: LaMP_4" in bars.note
    (last,) = summary_tables(run)
    assert last.title.startswith("NVCiM-PT less each mitigation baseline")
    assert last.rows == table(made_tables, "less each mitigation baseline").rows


def test_users_shared_between_seeds_are_said() -> None:
    rows = [
        answer(method, repeat, 0.5 + 0.1 * repeat, data="lamp_like", user_id=user)
        for method in ("nvcim-pt", "swv")
        for repeat, user in enumerate(("u", "v", "u"))
    ]
    said = (
        "1 user (counted per task) of the data answer in more than one seed: seeds are then not independent"
    )
    found = verdicts(rows)
    assert any(note.startswith(said) for note in finding_table(rows, found).notes)
    generated = [{**row, "data": "generated"} for row in rows]
    assert not any("independent" in note for note in finding_table(generated, found).notes)


def standing_rows(by_device: dict[str, dict[str, float]]) -> list[Row]:
    """Three seeds; NVCiM-PT has 0.5 and a little more in each, so that a difference is told apart."""
    return [
        answer(method, repeat, 0.5 - lead + 0.01 * repeat * (method == "nvcim-pt"), device=device)
        for device, leads in by_device.items()
        for method, lead in {"nvcim-pt": 0.0, **leads}.items()
        for repeat in range(3)
    ]


def test_a_standing_is_told_by_device_and_counted() -> None:
    rows = standing_rows(
        {
            "RRAM1": {"no-mitigation": 0.1, "swv": 0.1, "cxdnn": 0.1, "correctnet": 0.2},
            "FeFET2": {"no-mitigation": 0.1, "swv": 0.1, "cxdnn": -0.2, "correctnet": 0.0},
            "RRAM4": {"no-mitigation": 0.1, "swv": 0.1, "correctnet": 0.1},
        }
    )
    found = standing_table(verdicts(rows))
    # 0.01 more on the mean over the seeds 0, 0.01, 0.02; RRAM1's 0.11: t = 0.11 / (0.01 / sqrt 3) = 19
    assert list(found.rows) == [
        ("m", "RRAM1", "+0.110, above", "+0.110, above", "+0.110, above", "+0.210, above", "4 of 4", "none"),
        ("m", "FeFET2", "+0.110, above", "+0.110, above", "-0.190, below", "+0.010", "3 of 4", "cxdnn"),
        ("m", "RRAM4", "+0.110, above", "+0.110, above", "missing", "+0.110, above", "3 of 4", "none"),
    ]
    assert found.notes[0] == (
        "m: NVCiM-PT's mean is above 4 of 4 on 1 of 3 devices, 3 of 4 on 1; significantly below on 1: FeFET2 (cxdnn); "
        "not counted, as a baseline is missing: RRAM4 (no cxdnn)."
    )


def noise_rows(sigmas: tuple[float, ...]) -> list[Row]:
    loud = [answer("no-mitigation", seed, score) for seed, score in enumerate((0.5, 0.6, 0.55))]
    quiet = [
        answer("no-mitigation", seed, score, sigma=sigma, part="sigma sweep")
        for sigma in sigmas
        for seed, score in enumerate((0.7, 0.9, 0.8))
    ]
    return [*loud, *quiet]


def test_what_write_noise_costs_is_told_where_a_sweep_has_less_of_it() -> None:
    # d = -0.2, -0.3, -0.25: t = -0.25 / (0.05 / sqrt 3) = -8.66, p = 0.013
    (said,) = write_noise(noise_rows((0.025, 0.05, 0.125)))
    assert "scores 0.550 at sigma 0.1 and 0.800 at sigma 0.025 (the run has no noise-free side)" in said
    assert said.endswith("-0.250, 3 seeds, p 0.013, below.")
    (free,) = write_noise(noise_rows((0.0,)))
    assert "noise-free" not in free
    assert write_noise(noise_rows((0.125,))) == []
    assert write_noise(noise_rows(())) == []


def test_the_buffer_sweep_tells_how_many_sets_each_size_makes() -> None:
    rows = [
        answer("nvcim-pt", 0, 0.7),
        answer("nvcim-pt", 0, 0.9, buffer=5, part="buffer sweep"),
        answer("no-mitigation", 0, 0.9, buffer=5, part="buffer sweep"),
    ]
    sets = [
        kept("nvcim-pt", 0.1),
        *(
            {**kept("nvcim-pt", 0.1, buffer=5, part="buffer sweep", user_id=user), "sets": count}
            for user, count in (("u", 8), ("v", 11))
        ),
    ]
    found = sweep_table(rows, "buffer sweep", "buffer", sets)
    assert list(found.rows)[-1] == ("m", "token sets per user, nvcim-pt", "9.5", "3")
    plots = [figure.plot for figure in set_figures([{**row, "storage_bytes": 8} for row in sets])]
    (plot,) = [plot for plot in plots if "token sets" in plot.layout.yaxis.title.text]
    assert (list(plot.data[0].x), list(plot.data[0].y)) == ([5, 25], [9.5, 3.0])
    assert "buffer, samples" in plot.layout.xaxis.title.text


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


def test_the_first_finding_is_about_the_mitigation_baselines_and_needs_all_of_them() -> None:
    lead = {"no-mitigation": 0.1, "swv": 0.1, "cxdnn": 0.1}
    rows = standing_rows({"RRAM1": {**lead, "correctnet": 0.1}, "RRAM4": lead})
    first = finding_table(rows, verdicts(rows)).rows[0]
    assert first[2] == (
        "mean is above 4 of 4 on 1 of 2 devices; significantly below on 0; not counted, as a baseline is missing: "
        "RRAM4 (no correctnet)"
    )
    title = comparison_figures(rows)[0].plot.layout.title.text.replace("<br>", " ")
    assert title == "m: nvcim-pt's mean is above all 4 mitigation baselines on 1 of 2 devices"


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
    # scores; each sweep per task and over tasks; domains; sets by buffer, storage, reconstruction; time and energy
    assert len(figures) == 1 + 2 * 3 + 1 + 3 + 2
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
