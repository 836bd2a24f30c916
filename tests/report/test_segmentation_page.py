"""The segmentation comparison's page: what its tables say, its figures, and the overlays with their captions."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from nvcim.data.images import write_image
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.report import write_report
from nvcim.report.segmentation_figures import crossbar_figures, overlay_captions, score_figures
from nvcim.report.segmentation_tables import printed_tables
from nvcim.storage import RunFolder
from nvcim.sweeps.segmentation_overlays import FOUND, TRUTH, outlined, side_by_side
from tests.sweeps.segmentation_rows import (
    crossbar_rows,
    image_rows,
    round_rows,
    score_row,
    split_rows,
    task_rows,
    whole_run,
)


def scattered(
    part: str, strategy: str, quantizer: str, networks: int, round_number: int | None, seed: int
) -> float:
    draw = random.Random(f"{part} {strategy} {quantizer} {networks} {round_number} {seed}")
    return 0.75 + 0.02 * (round_number or 0) + draw.gauss(0, 0.01)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path, "segmentation", {"overlays": 1}, 0)
    rows = whole_run(scattered)
    folder.write_table("segmentation_scores", rows)
    folder.write_table("segmentation_images", image_rows(rows))
    folder.write_table("segmentation_rounds", round_rows(3))
    folder.write_table("segmentation_split", split_rows(3))
    folder.write_table("segmentation_tasks", task_rows())
    folder.write_table("segmentation_crossbars", crossbar_rows())
    return folder


def test_the_verdicts_end_the_print_and_every_table_has_rows(run: RunFolder) -> None:
    tables = printed_tables(run)
    assert tables[-1].title == "The paper's claims on this data (measured)"
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert all(table.rows for table in tables)
    grid = next(table for table in tables if "what SA and QSA had annotated" in table.title)
    assert len(grid.rows) == 2 * 8 * 2
    assert grid.rows[0][:3] == ("QSA", "float", "1")


def test_a_cell_is_the_mean_and_the_deviation_over_seeds(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "segmentation", {}, 0)
    scores = (0.70, 0.72, 0.76)
    folder.write_table(
        "segmentation_scores",
        [score_row("full", "all", "float", 1, None, seed, dice) for seed, dice in enumerate(scores)],
    )
    for name, rows in (("split", split_rows()), ("tasks", task_rows())):
        folder.write_table(f"segmentation_{name}", rows)
    full = next(table for table in printed_tables(folder) if "whole pool" in table.title)
    # mean 0.72667; squares 0.000711 + 0.000044 + 0.001111 over 2: deviation 0.0306. Hausdorff is 30 (1 - Dice) here.
    assert full.rows[0][:6] == ("whole pool", "float", "1", "0.627 ± 0.031", "0.727 ± 0.031", "8.2 ± 0.9")


def test_few_seeds_are_said_to_tell_little(run: RunFolder) -> None:
    notes = " ".join(printed_tables(run)[-1].notes)
    assert "over 3 seeds" in notes
    assert "cannot go below p = 0.25" in notes  # 2 / 2^3


def test_figures_are_bars_curves_memory_and_crossbars(run: RunFolder) -> None:
    figures = score_figures(run.read_table("segmentation_scores").to_pylist())
    assert len(figures) == 2 + 2 + 2
    curve = figures[2].plot
    lines = [trace.name for trace in curve.data if trace.mode == "lines+markers"]
    assert lines == ["QSA", "SA", "uncertainty", "random"]
    assert all(list(trace.x) == [4, 12, 20] for trace in curve.data if trace.mode == "lines+markers")
    memory = figures[-1].plot
    assert {text for trace in memory.data for text in trace.text} >= {"float", "inq-5", "dorefa-1"}
    # two ways to choose the step, each along sigma and along the bits
    on_crossbars = crossbar_figures(crossbar_rows())
    assert len(on_crossbars) == 4
    assert [list(figure.plot.data[0].x) for figure in on_crossbars[1:3]] == [[0.0, 0.05, 0.1], [4, 5, 6, 8]]


def test_points_that_the_step_by_error_shares_with_the_other_are_drawn_in_both() -> None:
    rows = [
        row
        for row in crossbar_rows()
        if not (row.get("step") == "by_error" and row["sigma"] == 0.05 and row["weight_bits"] == 8)
    ]
    figures = [figure for figure in crossbar_figures(rows) if "by the error" in figure.plot.layout.title.text]
    assert list(figures[0].plot.data[0].x) == [0.0, 0.05, 0.1]
    # float at 8 bits, sigma 0.05: 0.8 - 0.05 - 0.1 / 8, and 0.01 more on the second of two chips
    assert figures[0].plot.data[0].y[1] == pytest.approx(0.7425)
    assert figures[0].plot.data[0].error_y.array[1] == pytest.approx(0.005)


def test_memory_and_levels_have_tables(run: RunFolder) -> None:
    common = {"network": "paper-sized", "model": "inq-5", "weights": 1000, "basis": "measured"}
    sizes = {"float32_file_bytes": 4096, "file_bytes": 640, "ratio": 6.4, "entropy_ratio": None}
    run.write_table("segmentation_memory", [{**common, **sizes}])
    place = {"repeat": 0, "model": "inq-5", "device": "FeFET2", "sigma": 0.1, "weight_bits": 4}
    errors = {"level_error": 0.25, "spread_error": 0.1, "expected_error": 0.27, "zeroed": 0.5}
    rows = [{**place, **errors, "step": step, "basis": "modelled"} for step in ("largest", "power_of_two")]
    run.write_table("segmentation_levels", rows)
    tables = {table.title: table for table in printed_tables(run)}
    (line,) = tables["Memory of one network, whole files (measured)"].rows
    assert line == ("paper-sized", "inq-5", "1,000", "4.0", "0.6", "6.40", "")
    (line,) = tables["What weights lose on crossbars (modelled: closed forms, no chip and no image)"].rows
    assert line == ("inq-5", "FeFET2", "0.1", "4", *("0.250", "0.270", "0.500") * 2)
    claims = {row[0]: row for row in tables["The paper's claims on this data (measured)"].rows}
    assert claims["inq-5 takes 6.4 times less memory"][2] == "holds"
    page = write_report(run).read_text(encoding="utf-8")
    assert '<section id="segmentation_memory">' in page
    assert '<section id="segmentation_levels">' in page


def test_crossbars_on_ideal_arithmetic_alone_have_no_figure() -> None:
    assert crossbar_figures([row for row in crossbar_rows() if row["arithmetic"] == "ideal"]) == []


def test_the_page_has_each_section_and_a_caption_for_each_overlay(run: RunFolder) -> None:
    (image,) = generate_tissue(1, TissueSettings(height=40, width=48), 0)
    for kind in ("best", "worst"):
        write_image(image.pixels, run.figure_path(f"compared-{kind}-0"))
    page = write_report(run).read_text(encoding="utf-8")
    for name in ("scores", "images", "rounds", "crossbars"):
        assert f'<section id="segmentation_{name}">' in page
    assert page.count('<img src="data:image/png;base64,') == 2
    captions = re.findall(r"(best|worst) 1: (image-\d)", page)
    assert set(captions) == {("best", "image-0"), ("worst", "image-5")}


def test_a_caption_tells_the_scores_behind_its_panels() -> None:
    rows = image_rows([score_row("full", "all", q, 1, None, 0, 0.8) for q in ("inq-5", "float")], images=2)
    caption = overlay_captions(rows, 1)["compared-worst-0"]
    assert "worst 1: image-1, whole pool, 1 network, seed 0" in caption
    assert "truth, float (object Dice 0.780), inq-5 (object Dice 0.780)" in caption


def test_outlines_are_drawn_over_the_image_and_found_ones_over_the_truths() -> None:
    pixels = np.full((400, 320, 3), 200, dtype=np.uint8)
    truth, found = np.zeros((400, 320), dtype=np.int32), np.zeros((400, 320), dtype=np.int32)
    truth[100:200, 100:200] = 1
    found[150:250, 100:200] = 1
    drawn = outlined(pixels, truth, found)
    assert tuple(drawn[100, 150]) == TRUTH
    assert tuple(drawn[150, 150]) == FOUND
    assert tuple(drawn[170, 100]) == FOUND  # both have an edge here
    assert tuple(drawn[120, 150]) == (200, 200, 200)
    assert (pixels == 200).all()


def test_small_images_are_enlarged_and_panels_stand_side_by_side() -> None:
    small = outlined(np.zeros((40, 50, 3), dtype=np.uint8), np.zeros((40, 50), dtype=np.int32), None)
    assert small.shape == (320, 400, 3)
    row = side_by_side([small, small + 7])
    assert row.shape == (320, 400 + 8 + 400, 3)
    assert (row[:, 400:408] == 255).all()
    assert (row[:, 408:] == 7).all()
