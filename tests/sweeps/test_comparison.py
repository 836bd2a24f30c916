"""The comparison plans every point once, survives failing ones, and resumes from its ledger."""

import functools
from pathlib import Path
from typing import Any

import pytest

from nvcim.config import parse_settings
from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, DataError, DeviceError, RunError
from nvcim.fleet.ray_session import RaySession
from nvcim.prompts.baselines.registry import BASELINES
from nvcim.prompts.comparison import ComparisonPoint
from nvcim.prompts.methods import METHODS as ON_CROSSBARS
from nvcim.prompts.personaliser import PromptSettings
from nvcim.storage import RunFolder
from nvcim.sweeps.comparison import ComparisonSettings, run_comparison
from nvcim.sweeps.comparison_methods import DIGITAL, METHODS, VARIANTS
from nvcim.sweeps.comparison_work import metric_rows, work_off
from tests.sweeps.comparison_rows import QUERIES, plausible


def settings(**given: Any) -> ComparisonSettings:
    small = {
        "tasks": ["LaMP_2", "LaMP_5"],
        "devices": ["RRAM1", "FeFET3"],
        "methods": ["nvcim-pt", "no-mitigation", "one-for-all", "zero-shot"],
        "seeds": 2,
        "users": 2,
        "sigma_sweep": None,
        "buffer_sweep": None,
        "retrieval": None,
    }
    return parse_settings({**small, **given}, ComparisonSettings, "test")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "nvcim-pt", {}, seed=3)


def marking(
    point: ComparisonPoint, crossbar: CrossbarConfig, prompts: PromptSettings, seed: int, calls: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Marks each call in a file, and fails at LaMP_5's seed 1 as long as the file `fail` exists."""
    with (calls / f"{point.task}-{point.repeat}").open("a") as stream:
        stream.write("x")
    if (point.task, point.repeat) == ("LaMP_5", 1) and (calls / "fail").exists():
        raise ConfigError("this point\ncannot run")
    return plausible(point, crossbar, prompts, seed)


def test_the_grid_has_a_point_per_model_task_and_seed_with_all_devices_and_methods() -> None:
    planned = settings(models=["a", "b"], crossbar={"sigma": 0.07}, prompts={"buffer": 9}).planned()
    assert [(p.point.model, p.point.task, p.point.repeat) for p in planned] == [
        (model, task, repeat) for model in "ab" for task in ("LaMP_2", "LaMP_5") for repeat in (0, 1)
    ]
    assert {p.part for p in planned} == {"grid"}
    first = planned[0].point
    assert (first.sigma, first.buffer, first.users) == (0.07, 9, 2)
    assert first.devices == ("RRAM1", "FeFET3")
    assert len({p.point.point_id for p in planned}) == len(planned)


def test_a_sweep_adds_only_what_the_grid_lacks() -> None:
    planned = settings(
        sigma_sweep={
            "device": "FeFET3",
            "sigmas": [0.05, 0.1],
            "methods": ["nvcim-pt"],
            "tasks": ["LaMP_5"],
        },
        buffer_sweep={"device": "FeFET3", "buffers": [5, 25], "methods": ["nvcim-pt", "zero-shot"]},
    ).planned()
    sigma = [p.point for p in planned if p.part == "sigma sweep"]
    assert [(p.sigma, p.buffer, p.task, p.repeat) for p in sigma] == [
        (0.05, 25, "LaMP_5", 0),
        (0.05, 25, "LaMP_5", 1),
    ]
    assert {(p.devices, p.methods) for p in sigma} == {(("FeFET3",), ("nvcim-pt",))}
    buffer = [p.point for p in planned if p.part == "buffer sweep"]
    assert [(p.sigma, p.buffer, p.task, p.repeat) for p in buffer] == [
        (0.1, 5, task, repeat) for task in ("LaMP_2", "LaMP_5") for repeat in (0, 1)
    ]


def test_without_tasks_those_of_the_data_are_compared(tmp_path: Path) -> None:
    assert settings(tasks=None).compared_tasks() == ("LaMP_2", "LaMP_3", "LaMP_5", "LaMP_7")
    folder = tmp_path / "LaMP_5"
    folder.mkdir()
    question = '[{"id": "1", "input": "Generate a title: x", "profile": [{"id": "2", "title": "t", "abstract": "a"}]}]'
    (folder / "dev_questions.json").write_text(question)
    (folder / "dev_outputs.json").write_text('{"task": "LaMP_5", "golds": [{"id": "1", "output": "t"}]}')
    assert settings(tasks=None, data=tmp_path).compared_tasks() == ("LaMP_5",)
    with pytest.raises(ConfigError, match=r"no data of task 'LaMP_2'; allowed: LaMP_5"):
        settings(data=tmp_path).check()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"methods": ["swv", "magic"]}, ConfigError, "methods: 'magic' is not one of nvcim-pt, no-mit"),
        ({"devices": ["RRAM9"]}, DeviceError, "device 'RRAM9' is not in the catalogue; allowed: RRAM1"),
        ({"tasks": ["LaMP_6"]}, ConfigError, "no data of task 'LaMP_6'; allowed: LaMP_1"),
        ({"data": "/nowhere/at/all"}, DataError, "/nowhere/at/all: no such folder"),
        (
            {"sigma_sweep": {"device": "RRAM4"}},
            ConfigError,
            "sigma_sweep.device: 'RRAM4' is not one of RRAM1",
        ),
        ({"sigma_sweep": {"sigmas": [-0.1]}}, ConfigError, "a programming variation is 0 or more"),
        ({"sigma_sweep": {"methods": ["zero-shot"]}}, ConfigError, "'zero-shot' has no crossbar"),
        ({"buffer_sweep": {"methods": ["swv"]}}, ConfigError, "buffer_sweep.methods: 'swv' is not one of"),
        ({"buffer_sweep": {"buffers": [0]}}, ConfigError, "a buffer holds 1 sample or more"),
        ({"sigma_sweep": {"tasks": ["LaMP_7"]}}, ConfigError, "field 'sigma_sweep.tasks': no data of task"),
        ({"seed": -1}, ConfigError, "field 'seed'"),
    ],
)
def test_settings_that_cannot_run_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        settings(**given).check()


def test_a_comparison_writes_every_answer_once_and_official_metrics(
    run: RunFolder, ray_local: RaySession
) -> None:
    chosen = settings(
        sigma_sweep={"device": "FeFET3", "sigmas": [0.05], "methods": ["nvcim-pt"], "tasks": ["LaMP_2"]}
    )
    seen: list[tuple[int, int, str]] = []
    points = run_comparison(chosen, run, plausible, lambda *told: seen.append(told))
    assert [row["status"] for row in points] == ["done"] * 6
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]

    answers = run.read_table("comparison").to_pylist()
    # The grid: 2 tasks x 2 seeds x 2 users, three methods on two devices and one without; then the sweep's 2 points.
    assert len(answers) == 2 * 2 * 2 * QUERIES * (3 * 2 + 1) + 2 * 2 * QUERIES
    columns = ("part", "model", "task", "method", "device", "sigma", "buffer", "repeat", "user_id", "query")
    assert len({tuple(row[column] for column in columns) for row in answers}) == len(answers)
    assert {row["part"] for row in answers} == {"grid", "sigma sweep"}
    assert {row["run_id"] for row in answers} == {run.record.run_id}
    assert run.read_table("comparison_sets").num_rows == len(answers) // QUERIES

    metrics = run.read_table("comparison_metrics").to_pylist()
    chosen_rows = {"task": "LaMP_2", "method": "nvcim-pt", "device": "RRAM1", "repeat": 1}
    (accuracy,) = [
        row["value"]
        for row in metrics
        if row["metric"] == "accuracy" and all(row[key] == value for key, value in chosen_rows.items())
    ]
    own = [row["score"] for row in answers if all(row[key] == value for key, value in chosen_rows.items())]
    assert accuracy == pytest.approx(sum(own) / len(own))


def test_a_failed_point_is_recorded_and_only_it_runs_again(
    run: RunFolder, ray_local: RaySession, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    (calls / "fail").touch()
    compare = functools.partial(marking, calls=calls)
    points = run_comparison(settings(), run, compare)
    failed = [row for row in points if row["status"] == "failed"]
    assert [(row["task"], row["repeat"], row["answers"]) for row in failed] == [("LaMP_5", 1, 0)]
    assert failed[0]["error"].endswith("ConfigError: this point")
    answered = {(row["task"], row["repeat"]) for row in run.read_table("comparison").to_pylist()}
    assert answered == {("LaMP_2", 0), ("LaMP_2", 1), ("LaMP_5", 0)}

    (calls / "fail").unlink()
    again = run_comparison(settings(), RunFolder.open(run.path), compare)
    assert [row["status"] for row in again] == ["done"] * 4
    marks = {path.name: len(path.read_text()) for path in calls.iterdir()}
    assert marks == {"LaMP_2-0": 1, "LaMP_2-1": 1, "LaMP_5-0": 1, "LaMP_5-1": 2}


def test_an_interrupted_comparison_goes_on_to_the_same_tables(
    run: RunFolder, ray_local: RaySession, tmp_path: Path
) -> None:
    def stop(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(settings(), run, plausible, stop)
    assert not run.table_path("comparison").exists()
    assert len(list((run.path / "comparison_ledger").glob("*.comparison_points.parquet"))) == 1
    run_comparison(settings(), run, plausible)
    whole = RunFolder.create(tmp_path / "other", "nvcim-pt", {}, seed=3)
    run_comparison(settings(), whole, plausible)
    for table in ("comparison", "comparison_sets", "comparison_metrics"):
        rows, expected = (r.read_table(table).drop_columns(["run_id"]) for r in (run, whole))
        assert rows.equals(expected)


def test_a_finished_comparison_needs_no_ray_to_be_opened_again(
    run: RunFolder, ray_local: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tasks=["LaMP_2"], seeds=1)
    first = run_comparison(chosen, run, plausible)
    monkeypatch.setattr("nvcim.sweeps.comparison.ray_session", lambda: pytest.fail("Ray was asked for"))
    assert run_comparison(chosen, run, plausible) == first


def test_a_comparison_where_nothing_succeeds_says_why(
    run: RunFolder, ray_local: RaySession, tmp_path: Path
) -> None:
    (tmp_path / "fail").touch()
    chosen = settings(tasks=["LaMP_5"], seeds=2)
    only_failing = functools.partial(marking, calls=tmp_path)
    points = run_comparison(chosen, run, only_failing)
    assert [row["status"] for row in points] == ["done", "failed"]
    with pytest.raises(RunError, match=r"no point of the comparison succeeded.*no query"):
        run_comparison(chosen, RunFolder.create(tmp_path, "nvcim-pt", {}, seed=4), functools.partial(no_rows))


def no_rows(
    point: ComparisonPoint, crossbar: CrossbarConfig, prompts: PromptSettings, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [], []


def test_a_point_never_raises() -> None:
    point = settings(seeds=1).planned()[0].point
    tables = work_off("grid", point, CrossbarConfig(), PromptSettings(), 0, no_rows, 1)
    assert list(tables) == ["comparison_points"]
    (row,) = tables["comparison_points"]
    assert row["status"] == "failed"
    assert row["error"] == "ValueError: the point has no query that could be answered"


def test_official_metrics_are_of_each_method_on_each_device() -> None:
    point = settings(seeds=1).planned()[0].point
    answers, _ = plausible(point, CrossbarConfig(), PromptSettings(), 0)
    rows = metric_rows(answers)
    places = {(row["method"], row["device"]) for row in rows}
    crossbar_methods = ("nvcim-pt", "no-mitigation", "one-for-all")
    assert places == {(method, device) for method in crossbar_methods for device in ("RRAM1", "FeFET3")} | {
        ("zero-shot", "none")
    }
    assert {row["queries"] for row in rows} == {2 * QUERIES}


def test_every_method_that_exists_can_be_compared() -> None:
    assert set(METHODS) == {*ON_CROSSBARS, *BASELINES}
    assert set(DIGITAL) == set(BASELINES)
    assert set(ComparisonSettings().methods) == set(METHODS) - set(VARIANTS)


@pytest.mark.parametrize("asked", [{"cpus_per_task": 64}, {"gpus_per_task": 99}])
def test_a_point_that_no_machine_can_run_is_refused_and_not_waited_for(
    run: RunFolder, ray_local: RaySession, asked: dict[str, int]
) -> None:
    with pytest.raises(RunError, match=r"cpus_per_task, gpus_per_task\) needs .* at most 2 CPUs"):
        run_comparison(settings(tasks=["LaMP_2"], seeds=1, **asked), run, plausible)
