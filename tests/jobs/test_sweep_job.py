"""The Ray-job entry points run the same functions as the command line, on the configs that ship with them."""

import re
from pathlib import Path

import pytest

from nvcim.cli import run
from nvcim.config import load_settings
from nvcim.fleet.ray_session import RaySession
from nvcim.storage import RunFolder
from nvcim.sweeps import SweepSettings

ROOT = Path(__file__).parents[2]


def test_the_shipped_sweep_has_a_grid_of_bits_and_noise() -> None:
    settings = load_settings(ROOT / "jobs" / "sweep.yaml", SweepSettings)
    settings.check()
    assert len(settings.points()) >= 12
    assert len(settings.weight_bits) > 1
    assert len(settings.sigma) > 1


@pytest.mark.parametrize("config", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_opens_with_the_command_that_runs_it(config: Path) -> None:
    head = [line for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    commands = re.findall(r"python -m jobs\.(\w+)", "\n".join(head))
    own_command = any(re.search(rf"nvcim [a-z ]+ jobs/{config.name}", line) for line in head)
    assert config.stem in commands or own_command
    assert all((ROOT / "jobs" / f"{name}.py").is_file() for name in commands)


def test_a_sweep_runs_reports_and_resumes(
    ray_local: RaySession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(
        "{weight_bits: [3, 8], sigma: [0.1], images: 1, training_images: 2, training_steps: 2,"
        " subjects: [matmul, segmentation]}"
    )
    assert run(["sweep", "run", "--config", str(config), "--runs", str(tmp_path / "runs")]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    table = RunFolder.open(folder).read_table("sweep")
    assert set(table["metric"].to_pylist()) == {"matmul_error", "object_f1", "object_dice"}
    assert set(table["status"].to_pylist()) == {"done"}
    assert (folder / "report.html").is_file()
    assert f"{folder.name}/report.html" in capsys.readouterr().out

    (folder / "sweep_ledger" / "FeFET2-b8-s0.1-r0.parquet").unlink()
    (folder / "sweep.parquet").unlink()
    assert run(["sweep", "run", "--resume", str(folder)]) == 0
    again = RunFolder.open(folder).read_table("sweep")
    assert again["score"].to_pylist() == pytest.approx(table["score"].to_pylist())
