"""A sweep scores its grid, survives failing trials, and resumes from its ledger."""

import functools
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, RunError
from nvcim.fleet.ray_session import RaySession
from nvcim.storage import RunFolder
from nvcim.sweeps import SweepSettings, TrialPoint, run_sweep
from nvcim.sweeps.runner import missing_points
from nvcim.sweeps.study import sweep
from nvcim.sweeps.trial import combined, matmul_error

BASE = CrossbarConfig(rows=64, cols=64, adc_bits=None)


def fail_at_sigma(point: TrialPoint, sigma: float, calls: Path) -> dict[str, float]:
    """Marks each evaluation in a file, and fails at one sigma as long as the file `fail` exists."""
    with (calls / point.trial_id).open("a") as stream:
        stream.write("x")
    if point.sigma == sigma and (calls / "fail").exists():
        raise ConfigError("this setting\ncannot run")
    return {"answer": point.sigma * 10, "object_hausdorff": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "sweep", {}, seed=3)


def test_a_sweep_of_crossbars_is_reproducible_and_noise_costs(run: RunFolder, ray_local: RaySession) -> None:
    settings = SweepSettings(weight_bits=(3, 8), sigma=(0.0, 0.2), crossbar=BASE, seed=3)
    seen: list[tuple[int, int, str]] = []
    lock = threading.Lock()  # as a progress bar holds: nothing of the caller's may be pickled

    def on_trial(*progress: Any) -> None:
        with lock:
            seen.append(progress)

    evaluate = functools.partial(matmul_error, base=BASE, seed=3)
    rows = run_sweep(settings, evaluate, run, on_trial=on_trial)
    assert [row["trial_id"] for row in rows] == [point.trial_id for point in settings.points()]
    assert run.read_table("sweep").num_rows == 4
    error = {(row["weight_bits"], row["sigma"]): row["score"] for row in rows}
    assert error == {
        (p.weight_bits, p.sigma): pytest.approx(matmul_error(p, BASE, 3)["matmul_error"], rel=1e-4)
        for p in settings.points()
    }
    assert error[8, 0.0] < error[3, 0.0]
    assert error[8, 0.0] < error[8, 0.2]
    assert {row["better"] for row in rows} == {"min"}
    assert [done for done, _, _ in seen] == [1, 2, 3, 4]
    assert {total for _, total, _ in seen} == {4}


def test_a_failed_trial_is_recorded_and_only_it_runs_again(
    run: RunFolder, ray_local: RaySession, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    (calls / "fail").touch()
    settings = SweepSettings(weight_bits=(4,), sigma=(0.0, 0.1, 0.2))
    evaluate = functools.partial(fail_at_sigma, sigma=0.1, calls=calls)
    rows = run_sweep(settings, evaluate, run)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["sigma"], row["score"]) for row in failed] == [(0.1, None)]
    assert failed[0]["error"].endswith("ConfigError: this setting")
    assert len(rows) == 2 * 2 + 1

    (calls / "fail").unlink()
    again = run_sweep(settings, evaluate, RunFolder.open(run.path))
    assert [row["status"] for row in again] == ["done"] * 6
    marks = {path.name: len(path.read_text()) for path in calls.iterdir()}
    assert marks == {"FeFET2-b4-s0-r0": 1, "FeFET2-b4-s0.1-r0": 2, "FeFET2-b4-s0.2-r0": 1}


def test_a_finished_sweep_needs_no_ray_to_be_opened_again(
    run: RunFolder, ray_local: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SweepSettings(weight_bits=(4,), sigma=(0.0,))
    evaluate = functools.partial(matmul_error, base=BASE, seed=3)
    first = run_sweep(settings, evaluate, run)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert run_sweep(settings, evaluate, run) == first


def test_a_sweep_where_nothing_succeeds_says_why(
    run: RunFolder, ray_local: RaySession, tmp_path: Path
) -> None:
    (tmp_path / "fail").touch()
    settings = SweepSettings(weight_bits=(4,), sigma=(0.1,))
    evaluate = functools.partial(fail_at_sigma, sigma=0.1, calls=tmp_path)
    with pytest.raises(RunError, match=r"no trial of the sweep succeeded.*this setting"):
        run_sweep(settings, evaluate, run)


def test_scores_of_several_subjects_share_a_trial() -> None:
    point = TrialPoint("RRAM1", 4, 0.1, 0)
    parts = [functools.partial(matmul_error, base=BASE, seed=1), lambda p: {"bits": float(p.weight_bits)}]
    scores = combined(point, parts)
    assert set(scores) == {"matmul_error", "bits"}
    assert scores["bits"] == 4


def test_a_trial_of_more_cpus_than_there_are_is_refused_and_not_waited_for(
    run: RunFolder, ray_local: RaySession
) -> None:
    settings = SweepSettings(subjects=("matmul",), weight_bits=(4,), sigma=(0.0,), cpus_per_trial=64)
    with pytest.raises(RunError, match=r"cpus_per_trial.* needs 64 CPUs .* at most 2 CPUs"):
        run_sweep(settings, functools.partial(matmul_error, base=BASE, seed=3), run)
    with pytest.raises(RunError, match=r"cpus_per_trial.* needs 64 CPUs"):  # and before any model is trained
        sweep(settings.model_copy(update={"subjects": ("segmentation",)}), run)
    assert not (run.path / "fcn").exists()


ODD_DEVICES = ("TiN/HfO2/Ti", "../../escape", "a:b", "HfO2 (1T1R)", "x" * 300)


def test_devices_of_any_name_and_sigmas_that_print_alike_have_trials_of_their_own(
    run: RunFolder, ray_local: RaySession, tmp_path: Path
) -> None:
    catalogue, sigmas = tmp_path / "my.yaml", (0.1234561, 0.1234564)
    cells = [{"name": name, "technology": "RRAM", "source": "test"} for name in ODD_DEVICES]
    written = [{**cell, "bits": 1, "level_sigma": [0.01, 0.01]} for cell in cells]
    catalogue.write_text(yaml.safe_dump({"devices": written}), encoding="utf-8")
    base = BASE.model_copy(update={"catalogue": catalogue})
    settings = SweepSettings(devices=ODD_DEVICES, weight_bits=(4,), sigma=sigmas, crossbar=base)
    before = sorted(path.name for path in tmp_path.iterdir())
    rows = run_sweep(settings, ten_sigma, run)
    expected = [(device, sigma, sigma * 10) for device in ODD_DEVICES for sigma in sigmas]
    assert [(row["device"], row["sigma"], row["score"]) for row in rows] == expected
    assert len(list((run.path / "sweep_ledger").glob("*.parquet"))) == len(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing lies outside the run folder"
    assert missing_points(settings, run) == []


def ten_sigma(point: TrialPoint) -> dict[str, float]:
    return {"answer": point.sigma * 10}
