"""The comparison's job: from a YAML file to tables, a report and a printed grid; resumed; refused in one line."""

from pathlib import Path

import pytest

import jobs.nvcim_pt as job
from nvcim.config import load_settings
from nvcim.data.lamp import write_lamp
from nvcim.data.users import UserSettings, generate_users
from nvcim.fleet.ray_session import RaySession
from nvcim.report import write_report
from nvcim.storage import RunFolder
from nvcim.sweeps.comparison import ComparisonSettings
from nvcim.sweeps.comparison_methods import METHODS, VARIANTS
from tests.sweeps.comparison_rows import plausible

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jobs" / "nvcim_pt.yaml"


def test_the_shipped_config_compares_every_method_on_the_papers_devices() -> None:
    settings = load_settings(CONFIG, ComparisonSettings)
    settings.check()
    # The file spells the defaults out, but sweeps one task alone.
    assert {sweep.tasks for sweep in (settings.sigma_sweep, settings.buffer_sweep) if sweep} == {("LaMP_7",)}
    everywhere = {"tasks": None}
    defaults = ComparisonSettings()
    assert defaults == settings.model_copy(
        update={
            "sigma_sweep": settings.sigma_sweep and settings.sigma_sweep.model_copy(update=everywhere),
            "buffer_sweep": settings.buffer_sweep and settings.buffer_sweep.model_copy(update=everywhere),
        }
    )
    assert set(METHODS) - set(settings.methods) == set(VARIANTS)
    assert len(settings.devices) == 5
    assert settings.seeds == 5
    # 4 tasks x 5 seeds, each a point for all devices and one for the ablations' device; on one task
    # x 5 seeds 4 more sigmas and 3 more buffers
    assert len(settings.planned()) == 20 * 2 + 5 * (4 + 3)


def test_a_smoke_run_is_the_smallest_with_every_method() -> None:
    settings = ComparisonSettings()
    small = job.smoke(settings)
    assert len(small.planned()) == 2 * 2
    assert {method for item in small.planned() for method in item.point.methods} == {*settings.methods}
    assert {item.point.devices for item in small.planned()} == {("RRAM1", "FeFET2"), ("RRAM1",)}
    assert (small.seeds, small.users, small.prompts.tuning.steps) == (1, 2, 3)


def test_a_run_is_reported_printed_resumed_and_rendered_again(
    ray_local: RaySession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(job, "compare", plausible)
    config = tmp_path / "small.yaml"
    config.write_text(
        "{tasks: [LaMP_2], devices: [RRAM1, FeFET3], users: 2, buffer_sweep: null,"
        " sigma_sweep: {sigmas: [0.05], methods: [nvcim-pt]}, retrieval: {ovts: [10], repeats: 1}}"
    )
    runs = tmp_path / "runs"
    assert job.main(["--config", str(config), "--seeds", "3", "--runs", str(runs)]) == 0
    (folder,) = runs.iterdir()
    made = RunFolder.open(folder)
    assert set(made.tables()) == {
        "comparison",
        "comparison_sets",
        "comparison_metrics",
        "comparison_points",
        "retrieval_cost",
    }
    assert set(made.read_table("comparison")["repeat"].to_pylist()) == {0, 1, 2}
    out = " ".join(capsys.readouterr().out.split())  # titles wrap
    for shown in ("Scores with embedded at sigma 0.1", "nvcim-pt", "lora", "where NVCiM-PT loses", "report:"):
        assert shown in out
    # The standing against the mitigation baselines ends the print, as it is what the comparison is for.
    assert "NVCiM-PT less each mitigation baseline" in out[out.index("What a user costs") :]

    before = made.read_table("comparison")
    made.table_path("comparison").unlink()
    sorted((folder / "comparison_ledger").glob("*.comparison_points.parquet"))[0].unlink()
    assert job.main(["--resume", str(folder)]) == 0
    assert made.read_table("comparison").equals(before)
    (folder / "report.html").unlink()
    assert '<section id="comparison">' in write_report(folder).read_text(encoding="utf-8")


def test_a_run_on_a_relative_folder_of_data_goes_on_from_any_working_folder(
    ray_local: RaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "compare", plausible)
    (tmp_path / "here" / "deep").mkdir(parents=True)
    users = generate_users(2, UserSettings(tasks=("LaMP_2",)), seed=0)
    write_lamp(users, tmp_path / "here" / "users" / "LaMP_2")
    monkeypatch.chdir(tmp_path / "here")
    config = tmp_path / "small.yaml"
    config.write_text(
        "{tasks: [LaMP_2], devices: [RRAM1], methods: [nvcim-pt], ablation_device: null, users: 1, seeds: 1,"
        " sigma_sweep: null, buffer_sweep: null, retrieval: null}"
    )
    assert job.main(["--config", str(config), "--data", "users", "--runs", str(tmp_path / "runs")]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert Path(str(RunFolder.open(folder).record.settings["data"])).is_absolute()
    (folder / "comparison.parquet").unlink()
    monkeypatch.chdir(tmp_path / "here" / "deep")
    assert job.main(["--resume", str(folder)]) == 0
    assert RunFolder.open(folder).read_table("comparison").num_rows > 0


@pytest.mark.slow
def test_a_smoke_run_works_every_method_off_for_real(
    ray_local: RaySession, tiny_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--config",
        str(CONFIG),
        "--smoke",
        "--model",
        str(tiny_lm),
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert job.main(arguments) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    made = RunFolder.open(folder)
    settings = ComparisonSettings.model_validate(made.record.settings)
    points = made.read_table("comparison_points").to_pylist()
    assert [(row["status"], row["error"]) for row in points] == [("done", None)] * 2
    answers = made.read_table("comparison").to_pylist()
    assert {row["method"] for row in answers} == set(settings.methods)
    assert {row["device"] for row in answers} == {*settings.devices, "none"}
    assert all(0 <= row["score"] <= 1 for row in answers)
    assert "Scores with" in capsys.readouterr().out
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere/at/all"], "/nowhere/at/all: no such folder"),
        (["--seeds", "0"], "the command line: field 'seeds'"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["--resume", "/nowhere"], "/nowhere: not a run folder"),
        (["--resume", "/nowhere", "--smoke"], "leave the other options out"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main([*arguments, "--runs", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "runs").exists()
