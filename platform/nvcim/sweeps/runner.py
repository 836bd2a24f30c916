"""Runs a sweep on Ray Tune and keeps a ledger: one Parquet file per finished trial.

The ledger is what a resumed sweep trusts: it runs the points that have no file yet. Tune's own restore
unpickles its state and cannot continue after some failures, so nothing is read back from it.
"""

import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvcim.errors import RunError
from nvcim.fleet.cluster_resources import check_request
from nvcim.fleet.ray_session import ray_session
from nvcim.storage import RunFolder, table_schema
from nvcim.storage.files import atomic_write_table, read_parquet
from nvcim.storage.names import file_name
from nvcim.storage.schemas import TRACE
from nvcim.sweeps.space import SweepSettings, TrialPoint

Evaluate = Callable[[TrialPoint], Mapping[str, float]]
Row = dict[str, Any]

_LEDGER = "sweep_ledger"
# Metrics of which less is better; of all others more is.
LESS_IS_BETTER = frozenset({"matmul_error", "object_hausdorff"})


def run_sweep(
    settings: SweepSettings,
    evaluate: Evaluate,
    run: RunFolder,
    on_trial: Callable[[int, int, str], None] | None = None,
) -> list[Row]:
    """Score every point of the grid that the run's ledger lacks, then write `sweep.parquet`.

    Args:
        settings: The grid.
        evaluate: Takes a point and returns its scores by metric; it travels to Ray workers, so it must be a
            module-level function or a `functools.partial` of one. A trial whose evaluation raises is recorded
            as failed, and the sweep goes on.
        run: Its ledger is `sweep_ledger/<trial id, encoded>.parquet`. Call again with the same folder to resume.
        on_trial: Called with (trials done, trials in all, trial id) as trials end.

    Returns:
        The rows of `sweep.parquet`, in the grid's order: one per trial and metric.

    Raises:
        ConfigError, DeviceError: the grid holds a point that cannot run.
        RunError: no trial succeeded (the first reason is given), or Ray cannot be used, or cannot grant
            `cpus_per_trial` at all.
    """
    settings.check()
    points = settings.points()
    ledger = run.path / _LEDGER
    missing = missing_points(settings, run)
    if missing:
        done = len(points) - len(missing)

        def record(rows: list[Row]) -> None:
            nonlocal done
            table = run.traced(rows, table_schema("sweep"))
            atomic_write_table(_ledger_file(ledger, rows[0]["trial_id"]), table)
            done += 1
            if on_trial is not None:
                on_trial(done, len(points), rows[0]["trial_id"])

        _tune(missing, evaluate, settings.cpus_per_trial, run.path / "tune", record)
    rows = [row for point in points for row in _ledger_rows(ledger, point)]
    run.write_table("sweep", rows)
    failures = [row["error"] for row in rows if row["status"] == "failed"]
    if len(failures) == len(rows):
        raise RunError(f"no trial of the sweep succeeded; the first failed with: {failures[0]}")
    return rows


def missing_points(settings: SweepSettings, run: RunFolder) -> list[TrialPoint]:
    """Points of the grid without scores in the run's ledger; those that failed are tried again."""
    return [point for point in settings.points() if not _succeeded(run.path / _LEDGER, point)]


def _tune(
    points: list[TrialPoint],
    evaluate: Evaluate,
    cpus_per_trial: int,
    storage: Path,
    record: Callable[[list[Row]], None],
) -> None:
    """Run the points through Tune, as many at once as the cluster's CPUs allow."""
    # Tune's CSV, JSON and TensorBoard files would repeat what the ledger holds.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with it `verbose=0` is silent; we print progress
    with ray_session() as session:
        check_request(session, "a trial (cpus_per_trial)", cpus_per_trial)
        from ray import tune

        class Ledger(tune.Callback):
            """Writes a trial to the ledger the moment its result is known."""

            def on_trial_result(
                self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
            ) -> None:
                record(result["rows"])

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                lines = str(trial.get_error() or "").strip().splitlines() or ["the trial's worker died"]
                record([_failed_row(points[trial.config["index"]], lines[-1], 0.0)])

            def __reduce__(self) -> tuple[Any, ...]:
                # Tune pickles its callbacks for a restore that we do not use; `record` may hold a terminal.
                return (tune.Callback, ())

        trainable = tune.with_parameters(_trial, evaluate=evaluate, points=points)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cpus_per_trial}),
            param_space={"index": tune.grid_search(list(range(len(points))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=max(1, session.cpus // cpus_per_trial),
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: file_name(points[trial.config["index"]].trial_id),
            ),
            run_config=tune.RunConfig(
                name=f"{time.time_ns()}",
                storage_path=str(storage.resolve()),
                callbacks=[Ledger()],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
        tuner.fit()


def _trial(config: dict[str, Any], evaluate: Evaluate, points: list[TrialPoint]) -> None:
    """What a Tune worker runs: score one point and report its rows once."""
    from ray import tune

    point = points[config["index"]]
    started = time.perf_counter()
    try:
        scores = dict(evaluate(point))
        rows = [_row(point, name, score, time.perf_counter() - started) for name, score in scores.items()]
        if not rows:
            raise ValueError("the evaluation returned no score")
    except Exception as error:  # one trial's failure must not end the sweep; its reason goes to the table
        reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        rows = [_failed_row(point, reason, time.perf_counter() - started)]
    tune.report({"rows": rows})


def _row(point: TrialPoint, metric: str, score: float, seconds: float) -> Row:
    """One row of the sweep's table."""
    return {
        "trial_id": point.trial_id,
        "device": point.device,
        "weight_bits": point.weight_bits,
        "sigma": point.sigma,
        "repeat": point.repeat,
        "metric": metric,
        "better": "min" if metric in LESS_IS_BETTER else "max",
        "score": float(score),
        "status": "done",
        "error": None,
        "seconds": seconds,
        "basis": "measured",
    }


def _failed_row(point: TrialPoint, reason: str, seconds: float) -> Row:
    """The row of a trial that has no score."""
    return {**_row(point, "none", 0.0, seconds), "score": None, "status": "failed", "error": reason}


def _ledger_file(ledger: Path, trial_id: str) -> Path:
    return ledger / f"{file_name(trial_id)}.parquet"


def _ledger_rows(ledger: Path, point: TrialPoint) -> list[Row]:
    """Rows that the ledger holds of a point, without the columns of the trace."""
    path = _ledger_file(ledger, point.trial_id)
    if not path.is_file():
        return []
    trace = {column.name for column in TRACE}
    rows: list[Row] = read_parquet(path).to_pylist()
    return [{name: value for name, value in row.items() if name not in trace} for row in rows]


def _succeeded(ledger: Path, point: TrialPoint) -> bool:
    """Whether the ledger holds scores of a point (a failed trial is tried again)."""
    rows = _ledger_rows(ledger, point)
    return bool(rows) and all(row["status"] == "done" for row in rows)
