"""The report is one file, shows what the tables hold, and says where each number comes from."""

import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvcim.errors import RunError
from nvcim.report import write_report
from nvcim.storage import RunFolder


def fleet_rows() -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {
            "node_id": f"node-{node}",
            "device": ("RRAM1", "FeFET2", "FeFET3")[node % 3],
            "sigma": 0.1,
            "method": method,
            "task": "LaMP_2",
            "metric": "accuracy",
            "queries": 10,
            "score": base + draw.uniform(-0.1, 0.1),
            "hit_rate": draw.uniform(0.6, 1.0) if method in ("nvcim", "mips") else None,
            "basis": "measured",
        }
        for node in range(7)
        for method, base in (("untuned", 0.2), ("one-for-all", 0.4), ("mips", 0.6), ("nvcim", 0.8))
    ]


def segmentation_rows() -> list[dict[str, Any]]:
    common = {"images": 4, "basis": "measured"}
    rows = []
    for model, dice, size in (("float", 0.82, 400_000), ("inq-5", 0.80, 62_500)):
        ideal = {"arithmetic": "ideal", "object_f1": dice, "object_dice": dice, "object_hausdorff": 12.0}
        rows.append({"model": model, "weight_bytes": size, **ideal, **common})
        rows += [
            {
                **common,
                "model": model,
                "arithmetic": "crossbar",
                "device": "FeFET2",
                "sigma": 0.1,
                "chip": chip,
                "object_f1": dice - 0.05 * chip,
                "object_dice": dice - 0.04 * chip,
                "object_hausdorff": 14.0 + chip,
            }
            for chip in range(3)
        ]
    return rows


def sweep_rows() -> list[dict[str, Any]]:
    return [
        {
            "trial_id": f"{bits}-{sigma}-{repeat}",
            "device": "FeFET2",
            "weight_bits": bits,
            "sigma": sigma,
            "repeat": repeat,
            "metric": "object_dice",
            "better": "max",
            "score": 0.8 * (1 - math.exp(-bits / 2)) - sigma + 0.01 * repeat,
            "status": "done",
            "seconds": 1.0,
            "basis": "measured",
        }
        for bits in (3, 4, 8)
        for sigma in (0.0, 0.05, 0.1, 0.2)
        for repeat in range(2)
    ]


def serving_rows() -> list[dict[str, Any]]:
    return [
        {"endpoint": endpoint, "case": case, "status": status, "latency_ms": time, "basis": "measured"}
        for endpoint, case, status, time in (
            ("/v1/completions", "user-1", 200, 120.0),
            ("/v1/completions", "user-2", 200, 90.0),
            ("/v1/segment", "colon", 200, 400.0),
            ("/healthz", "health", 200, 3.0),
        )
    ]


@pytest.fixture
def full_run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "demo", {"note": "<b>& ünïcode"}, seed=11)
    run.write_table("fleet_scores", fleet_rows())
    run.write_table("segmentation", segmentation_rows())
    run.write_table("sweep", sweep_rows())
    run.write_table("serving", serving_rows())
    stages = (("fleet", 60.0), ("segmentation", 40.0), ("sweep", 70.0), ("serving", 20.0))
    run.write_table("stages", [{"stage": s, "seconds": t, "basis": "measured"} for s, t in stages])
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 10:30] = (200, 40, 120)
    Image.fromarray(image).save(run.figure_path("segmentation-1_inq-5"))
    return run


class Tags(HTMLParser):
    """Collects ids, the sources of images, and every address that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]


def parsed(path: Path) -> Tags:
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    return tags


def test_a_report_shows_every_table_and_traces_the_run(full_run: RunFolder) -> None:
    path = write_report(full_run)
    text = path.read_text(encoding="utf-8")
    record = full_run.record
    assert path == full_run.path / "report.html"
    ids = parsed(path).ids
    assert {"fleet_scores", "segmentation", "sweep", "serving", "stages"} <= set(ids)
    for shown in (record.run_id, record.config_hash, record.code_version, "<dd>11</dd>"):
        assert shown in text
    assert "&lt;b&gt;" in text or "\\u003cb\\u003e" in text  # settings are escaped


def test_a_report_needs_no_network_and_holds_plotly_once(full_run: RunFolder) -> None:
    path = write_report(full_run)
    assert all(load.startswith("data:image/png;base64,") for load in parsed(path).loads)
    assert len(parsed(path).loads) == 1
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"\* plotly\.js v", text)) == 1


def test_every_figure_has_a_title_axis_labels_and_its_basis(full_run: RunFolder) -> None:
    from nvcim.report import figures

    tables = {
        "fleet_scores": figures.fleet_figures,
        "segmentation": figures.segmentation_figures,
        "sweep": figures.sweep_figures,
        "serving": figures.serving_figures,
        "stages": figures.stage_figures,
    }
    for name, draw in tables.items():
        for figure in draw(full_run.read_table(name).to_pylist()):
            layout = figure.plot.layout
            assert layout.title.text
            assert layout.xaxis.title.text
            assert layout.yaxis.title.text
            assert figure.basis in ("measured", "modelled")


def test_only_tables_that_exist_get_a_section(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "sweep", {}, seed=1)
    run.write_table("sweep", sweep_rows())
    run.write_table("serving", [])
    ids = parsed(write_report(run.path)).ids
    assert "sweep" in ids
    assert not {"fleet_scores", "serving", "segmentation"} & set(ids)


def test_titles_and_means_come_from_the_rows(full_run: RunFolder) -> None:
    from nvcim.report.figures import fleet_figures, sweep_figures

    rows = fleet_rows()
    expected = sum(r["score"] for r in rows if r["method"] == "nvcim") / 7
    scores = fleet_figures(rows)[0].plot
    assert scores.layout.title.text.replace("<br>", " ").startswith(f"LaMP_2: nvcim scores {expected:.2f}")
    assert scores.data[0].y[-1] == pytest.approx(expected)
    heat = sweep_figures(sweep_rows())[1].plot.data[0]
    assert heat.z[2][0] == pytest.approx(0.8 * (1 - math.exp(-4)) + 0.005)


def test_failed_trials_are_counted_but_not_drawn(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "sweep", {}, seed=1)
    failed = {**sweep_rows()[0], "score": None, "status": "failed", "error": "no memory"}
    run.write_table("sweep", [failed])
    text = write_report(run).read_text(encoding="utf-8")
    assert "<td>failed</td>" in text


def test_a_run_without_results_or_record_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path)
    run = RunFolder.create(tmp_path, "empty", {}, seed=1)
    with pytest.raises(RunError, match="no results to report"):
        write_report(run)
