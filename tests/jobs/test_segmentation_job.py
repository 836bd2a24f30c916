"""The segmentation comparison's job: its shipped config, a smoke run from end to end, resumed, refused in one line."""

from pathlib import Path

import pytest

import jobs.segmentation as job
from nvcim.config import load_settings
from nvcim.data.images import write_image_set
from nvcim.data.tissue import TissueSettings, generate_tissue
from nvcim.fleet.ray_session import RaySession
from nvcim.quantization import quantizer_named
from nvcim.segmentation.crossbar_weights import crossbar_inq
from nvcim.storage import RunFolder
from nvcim.sweeps import segmentation_memory
from nvcim.sweeps.segmentation_settings import QUANTIZERS, STRATEGIES, SegmentationSettings, planned_points

CONFIG = Path(__file__).parents[2] / "jobs" / "segmentation.yaml"


def test_the_shipped_config_compares_what_the_paper_does() -> None:
    settings = load_settings(CONFIG, SegmentationSettings)
    settings.check()
    assert settings.seeds >= 3
    assert settings.grid is not None
    assert settings.grid.quantizers == QUANTIZERS
    assert settings.grid.networks == (1, 5)
    assert settings.full is not None
    assert settings.full.quantizers == ("float", "inq-5", "inq-7", "inq-4", "inq-3-3", "uniform-4")
    assert settings.budget is not None
    assert settings.budget.strategies == STRATEGIES
    assert settings.budget.rounds.networks == 5
    assert settings.held_back == 0.25
    assert settings.crossbar is not None
    # One of them is INQ with the powers that the arrays of the line along sigma hold.
    aware = quantizer_named("inq-3-3")
    assert aware is not None
    assert aware.settings == crossbar_inq(settings.crossbar.study.crossbar)
    assert settings.crossbar.study.crossbar.weight_bits == 4
    assert settings.crossbar.study.sigmas == (0.0, 0.05, 0.1)


def test_a_smoke_run_is_the_smallest_with_everything_in_it() -> None:
    small = job.smoke(load_settings(CONFIG, SegmentationSettings))
    # 12 images in the pool, 3 annotated at the start, 1 a round, 5 in the end: 2 rounds
    points = planned_points(small, 12)
    assert {point.quantizer for point in points} == {*QUANTIZERS, "inq-3-3", "uniform-4"}
    # whole pool 6; start set, 4 strategies x 2 rounds, whole pool; SA, QSA x 8 weights
    assert len(points) == 6 + (1 + 8 + 1) + 16
    assert {point.networks for point in points if point.part == "grid"} == {(1, 2)}


@pytest.mark.slow
def test_a_smoke_run_is_printed_reported_and_resumed(
    ray_local: RaySession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert job.main(["--config", str(CONFIG), "--smoke", "--runs", str(runs)]) == 0
    (folder,) = runs.iterdir()
    made = RunFolder.open(folder)
    tasks = made.read_table("segmentation_tasks").to_pylist()
    assert [(row["task"], row["error"]) for row in tasks if row["status"] != "done"] == []
    # 4 strategies' rounds, 32 points, 1 repetition's crossbars
    assert len(tasks) == 4 + 32 + 1
    printed = " ".join(capsys.readouterr().out.split())
    for shown in (
        "The paper's claims on this data",
        "Memory of one network, whole files",
        "What weights lose on crossbars",
        "on crossbars",
        "report:",
    ):
        assert shown in printed
    assert (folder / "report.html").is_file()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "compared-best-0.png",
        "compared-worst-0.png",
    }
    before = made.read_table("segmentation_scores")
    made.table_path("segmentation_scores").unlink()
    assert job.main(["--resume", str(folder)]) == 0
    assert made.read_table("segmentation_scores").equals(before)


def test_a_run_of_one_part_on_a_folder_of_images(
    ray_local: RaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image_set(generate_tissue(4, TissueSettings(height=32, width=32), 0), tmp_path / "images")
    config = tmp_path / "small.yaml"
    config.write_text(
        "{budget: null, grid: null, overlays: 0, full: {quantizers: [float], recipe: {training: "
        "{steps: 1, batch: 2, crop: 32}}}, network: {width: 4, depth: 1, descriptor_dim: 8, fused_width: 4}, "
        "prediction: {tile: 64, overlap: 16}}"
    )
    monkeypatch.chdir(tmp_path)
    # Memory is measured on the paper-sized network, too: millions of weights to draw and write.
    monkeypatch.setattr(segmentation_memory, "PAPER_FCN", job.SMOKE_NETWORK)
    runs = tmp_path / "runs"
    # One repetition: three Ray tasks in a row, each waiting for a worker on a busy machine.
    arguments = ["--config", str(config), "--data", "images", "--seeds", "1", "--runs", str(runs)]
    assert job.main(arguments) == 0
    (folder,) = runs.iterdir()
    made = RunFolder.open(folder)
    assert Path(str(made.record.settings["data"])).is_absolute()
    rows = made.read_table("segmentation_scores").to_pylist()
    assert [(row["repeat"], row["annotated"], row["images"]) for row in rows] == [(0, 3, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere/at/all"], "/nowhere/at/all: no such folder"),
        (["--seeds", "0"], "the command line: field 'seeds'"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["--config", "budget.yaml"], "field 'budget.rounds': 50 images at the start"),
        (["--config", "choice.yaml"], "field 'budget.rounds.k': 5 images cannot be chosen among 2"),
        (["--config", "none.yaml"], "field 'full.networks.0'"),
        (["--data", "empty"], "empty"),
        (["--resume", "/nowhere"], "/nowhere: not a run folder"),
        (["--resume", "/nowhere", "--smoke"], "leave the other options out"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, content in {
        "budget": "{generated: 8, budget: {rounds: {start: 50, budget: 60}}}",
        "choice": "{generated: 16, budget: {rounds: {k: 5, candidates: 2}}}",
        "none": "{full: {networks: [0]}}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    assert job.main([*arguments, "--runs", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "runs").exists()
