"""The demo runs every stage in one run folder, and what it prints and leaves is what ran."""

from pathlib import Path

import pytest

from nvcim.cli import run
from nvcim.config import load_settings
from nvcim.fleet.ray_session import RaySession
from nvcim.storage import RunFolder

ROOT = Path(__file__).parents[2]

SMALL = """
seed: 3
fleet:
  {nodes: 3, hosts: 2, compute: cpu, users: {domains: 2, period: 4, queries_per_domain: 1},
   prompts: {buffer: 4, selection: {k: 2}, layer: 1, max_new_tokens: 4, tuning: {steps: 2}}}
segmentation:
  {weights: [float, inq-5], training_images: 2, test_images: 1, chips: 1, overlays: 1,
   training: {steps: 4, crop: 64, batch: 2, device: cpu}}
sweep:
  {subjects: [matmul, segmentation, prompts], users: 2, weight_bits: [3, 8], sigma: [0.1]}
"""


def test_the_shipped_demo_is_as_large_as_promised() -> None:
    from jobs.demo import CONFIG, DemoSettings

    settings = load_settings(CONFIG, DemoSettings)
    assert settings.fleet.nodes == 12
    assert settings.fleet.hosts == 2
    assert len(settings.fleet.devices) == 5
    assert len(settings.sweep.points()) >= 12
    assert "float" in settings.segmentation.weights
    assert len(settings.segmentation.weights) > 1


def test_every_stage_runs_and_is_reported(
    ray_local: RaySession, tiny_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text(SMALL)
    assert (
        run(["demo", "--config", str(config), "--model", str(tiny_lm), "--runs", str(tmp_path / "runs")]) == 0
    )
    (folder,) = (tmp_path / "runs").iterdir()
    made = RunFolder.open(folder)
    fleet = {"fleet_answers", "fleet_scores", "reconstruction", "token_sets"}
    assert set(made.tables()) == fleet | {"segmentation", "serving", "stages", "sweep"}

    out = capsys.readouterr().out
    stages = made.read_table("stages").to_pylist()
    assert [row["stage"] for row in stages] == ["fleet", "segmentation", "sweep", "serving"]
    assert out.rstrip().endswith("report.html")

    served = {row["case"]: row["status"] for row in made.read_table("serving").to_pylist()}
    assert served.pop("unknown user") == 404
    assert served.pop("truncated photograph") == 400
    assert len(served) == 7  # health, models, three users, two images
    assert set(served.values()) == {200}

    trials = made.read_table("sweep").to_pylist()
    assert {row["status"] for row in trials} == {"done"}
    metrics = {"matmul_error", "object_f1", "object_dice", "prompt_score", "hit_rate"}
    assert {row["metric"] for row in trials} == metrics
    page = (folder / "report.html").read_text(encoding="utf-8")
    for section in ("fleet_scores", "segmentation", "sweep", "serving", "stages"):
        assert f'<section id="{section}">' in page


def test_a_data_folder_without_its_parts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lamp_like").mkdir()
    assert run(["demo", "--data", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 2
    assert "dsb2018/ is missing" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
