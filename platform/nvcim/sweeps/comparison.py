"""The comparison of NVCiM-PT with its baselines: devices x models x tasks x methods, several seeds, on Ray tasks.

A point is one model, task and repetition with all its devices and methods, which share users and what is tuned for
them. The ledger holds the tables of every finished point; a resumed run works off the points that it lacks.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from nvcim.config import LocalPath, Settings, parse_settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import TASKS, read_lamp_folders
from nvcim.data.users import GENERATED_TASKS
from nvcim.devices import get_device, load_catalogue
from nvcim.errors import ConfigError, DataError, RunError
from nvcim.fleet.cluster_resources import check_request
from nvcim.fleet.fleet import PAPER_DEVICES
from nvcim.fleet.ray_session import ray_session
from nvcim.prompts.comparison import ComparisonPoint
from nvcim.prompts.language_model import EMBEDDED
from nvcim.prompts.personaliser import PromptSettings
from nvcim.prompts.personaliser_files import ModelName
from nvcim.prompts.retrieval_cost import (
    SearchHardware,
    devices_told_apart,
    retrieval_cost_rows,
    time_search,
)
from nvcim.storage import RunFolder, table_schema
from nvcim.storage.files import atomic_write_table, read_parquet
from nvcim.sweeps.comparison_methods import (
    ABLATIONS,
    BUFFER_SWEEP,
    DIGITAL,
    GRID,
    METHODS,
    SIGMA_SWEEP,
    VARIANTS,
)
from nvcim.sweeps.comparison_work import PointTables, failed_point, work_off

Row = dict[str, Any]
OnPoint = Callable[[int, int, str], None]
"""Called with (points done, points in all, a note) as points end."""

TABLES = ("comparison", "comparison_sets", "comparison_metrics")
"""Tables that a finished point has; `comparison_points` has a row for every point that ran."""
_LAST = "comparison_points"  # written last: a point is finished when the ledger holds its row
_COST = "retrieval_cost"


class Compare(Protocol):
    """What works a point off; `nvcim.prompts.comparison.compare` is the real one.

    It travels to Ray workers, so it is a module-level function. It returns the rows of `comparison` and of
    `comparison_sets`, both without the column `part`.
    """

    def __call__(
        self, point: ComparisonPoint, crossbar: CrossbarConfig, prompts: PromptSettings, seed: int, /
    ) -> tuple[list[Row], list[Row]]:
        """Answer the point's queries by all of its methods on all of its devices."""
        ...


class SigmaSweep(Settings):
    """Programming variation, on one of the grid's devices (the paper's Table IV: 0.025 to 0.125 on its third)."""

    device: str = "FeFET3"
    sigmas: tuple[float, ...] = Field((0.025, 0.05, 0.075, 0.1, 0.125), min_length=1)
    methods: tuple[str, ...] = Field(("nvcim-pt", "no-mitigation"), min_length=1)
    tasks: tuple[str, ...] | None = Field(None, min_length=1, description="of the grid's; null: all of them")

    @field_validator("sigmas")
    @classmethod
    def _no_negative(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= sigma < float("inf") for sigma in sigmas):
            raise ValueError("a programming variation is 0 or more")
        return sigmas

    @field_validator("methods")
    @classmethod
    def _on_crossbars(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        digital = [method for method in methods if method in DIGITAL]
        if digital:
            raise ValueError(f"'{digital[0]}' has no crossbar, so sigma does not touch it")
        return methods


class BufferSweep(Settings):
    """Size of the data buffer, on one of the grid's devices."""

    device: str = "FeFET3"
    buffers: tuple[int, ...] = Field((5, 10, 25, 50), min_length=1)
    methods: tuple[str, ...] = Field(("nvcim-pt", "no-mitigation"), min_length=1)
    tasks: tuple[str, ...] | None = Field(None, min_length=1, description="of the grid's; null: all of them")

    @field_validator("buffers")
    @classmethod
    def _not_empty(cls, buffers: tuple[int, ...]) -> tuple[int, ...]:
        if min(buffers) < 1:
            raise ValueError("a buffer holds 1 sample or more")
        return buffers


class RetrievalSettings(Settings):
    """Over how many token sets the cost of a search is told."""

    ovts: tuple[int, ...] = Field((10, 100, 1_000, 10_000, 100_000, 1_000_000), min_length=1)
    repeats: int = Field(5, ge=1, description="timings on this CPU, of which the median counts")
    hardware: SearchHardware = Field(
        SearchHardware(), description="what the cost model is told of the search"
    )

    @field_validator("ovts")
    @classmethod
    def _something_to_search(cls, ovts: tuple[int, ...]) -> tuple[int, ...]:
        if min(ovts) < 1:
            raise ValueError("a search goes through 1 token set or more")
        return tuple(sorted(set(ovts)))


class ComparisonSettings(Settings):
    """What is compared with what, and on what."""

    models: tuple[ModelName, ...] = Field(
        (EMBEDDED,), min_length=1, description="'embedded', paths or hub names"
    )
    data: LocalPath | None = Field(None, description="folder of LaMP folders; without it users are generated")
    tasks: tuple[str, ...] | None = Field(None, min_length=1, description="null: all that the data have")
    devices: tuple[str, ...] = Field(PAPER_DEVICES, min_length=1)
    methods: tuple[str, ...] = Field(tuple(name for name in METHODS if name not in VARIANTS), min_length=1)
    ablation_device: str | None = Field(
        "FeFET3",
        description="the one device that methods with a part taken out or exchanged run on; null: all of them",
    )
    digital_seeds: int | None = Field(
        3, ge=1, description="seeds in which methods without a crossbar run, the first ones; null: all"
    )
    seeds: int = Field(
        5, ge=1, le=1000, description="repetitions, each with users, tuning and chips of its own"
    )
    users: int = Field(3, ge=1, description="users per task and seed")
    crossbar: CrossbarConfig = Field(
        CrossbarConfig(sigma_unit="full_range"),
        description="each of `devices` takes its device's place; the harsher of sigma's two units, since with the "
        "other there is next to nothing to mitigate at the paper's sigma",
    )
    prompts: PromptSettings = PromptSettings()
    sigma_sweep: SigmaSweep | None = SigmaSweep()
    buffer_sweep: BufferSweep | None = BufferSweep()
    retrieval: RetrievalSettings | None = RetrievalSettings()
    cpus_per_task: int = Field(1, ge=1)
    gpus_per_task: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _names_are_known(self) -> "ComparisonSettings":
        sweeps = {"sigma_sweep": self.sigma_sweep, "buffer_sweep": self.buffer_sweep}
        _only("methods", self.methods, METHODS)
        if self.ablation_device is not None and {*ABLATIONS, *VARIANTS} & {*self.methods}:
            _only("ablation_device", (self.ablation_device,), self.devices)
        for name, sweep in sweeps.items():
            if sweep is not None:
                _only(f"{name}.methods", sweep.methods, self.methods)
                _only(f"{name}.device", (sweep.device,), self.devices)
        return self

    def check(self) -> None:
        """Refuse settings with a point that cannot run, before any starts.

        Raises:
            DeviceError: a device that the catalogue does not hold.
            DataError: data that cannot be read.
            ConfigError: a task that the data do not have, or a variation that no crossbar can have.
        """
        catalogue = load_catalogue(self.crossbar.catalogue)
        for device in self.devices:
            get_device(device, catalogue)
        for item in self.planned():
            changed = {"sigma": item.point.sigma}
            parse_settings({**self.crossbar.model_dump(), **changed}, CrossbarConfig, "the comparison")

    def compared_tasks(self) -> tuple[str, ...]:
        """The tasks of the grid (errors as `check`)."""
        if self.data is None:
            present, chosen = tuple(TASKS), self.tasks or GENERATED_TASKS
        else:
            if not self.data.is_dir():
                raise DataError(f"{self.data}: no such folder of LaMP folders")
            present = tuple(sorted({stream.task for stream in read_lamp_folders(self.data)}))
            chosen = self.tasks or present
        _known("tasks", chosen, present)
        return tuple(dict.fromkeys(chosen))

    def planned(self) -> list["Planned"]:
        """Every point in a fixed order: the grid, then the sweeps' points that the grid lacks (errors as `check`)."""
        tasks = self.compared_tasks()
        whole = [
            self._point(model, task, repeat)
            for model in dict.fromkeys(self.models)
            for task in tasks
            for repeat in range(self.seeds)
        ]
        made = [Planned(GRID, part) for point in whole for part in self._parts(point)]
        for part, sweep, field, values in (
            (SIGMA_SWEEP, self.sigma_sweep, "sigma", self.sigma_sweep and self.sigma_sweep.sigmas),
            (BUFFER_SWEEP, self.buffer_sweep, "buffer", self.buffer_sweep and self.buffer_sweep.buffers),
        ):
            if sweep is None or values is None:
                continue
            _known(f"{part.replace(' ', '_')}.tasks", sweep.tasks or (), tasks)
            made += [
                Planned(
                    part,
                    point.model_copy(
                        update={field: value, "devices": (sweep.device,), "methods": sweep.methods}
                    ),
                )
                for value in dict.fromkeys(values)
                for point in whole
                if point.task in (sweep.tasks or tasks) and value != getattr(point, field)
            ]
        return made

    def _parts(self, point: ComparisonPoint) -> list[ComparisonPoint]:
        """A point of the grid as it is run: without digital methods in later seeds, ablations on one device apart."""
        methods = point.methods
        if self.digital_seeds is not None and point.repeat >= self.digital_seeds:
            methods = tuple(method for method in methods if method not in DIGITAL)
        apart = tuple(method for method in methods if method in (*ABLATIONS, *VARIANTS))
        if self.ablation_device is None or not apart:
            return [point.model_copy(update={"methods": methods})] if methods else []
        whole = tuple(method for method in methods if method not in apart)
        parts = [{"methods": whole}, {"methods": apart, "devices": (self.ablation_device,)}]
        return [point.model_copy(update=part) for part in parts if part["methods"]]

    def _point(self, model: str, task: str, repeat: int) -> ComparisonPoint:
        return ComparisonPoint(
            model=model,
            data=self.data,
            task=task,
            repeat=repeat,
            users=self.users,
            sigma=self.crossbar.sigma,
            buffer=self.prompts.buffer,
            devices=tuple(dict.fromkeys(self.devices)),
            methods=tuple(dict.fromkeys(self.methods)),
        )


@dataclass(frozen=True)
class Planned:
    """A point and the part of the comparison that it belongs to."""

    part: str
    point: ComparisonPoint


def run_comparison(
    settings: ComparisonSettings, run: RunFolder, compare: Compare, on_point: OnPoint | None = None
) -> list[Row]:
    """Work off every point that the run's ledger lacks, then write the tables.

    Args:
        settings: What is compared.
        run: Its ledger is `comparison_ledger/<point id>.<table>.parquet`. Call again with the same folder to resume;
            points that failed are tried again.
        compare: Works one point off. A point where it raises is recorded as failed, and the rest goes on.
        on_point: Told as points end.

    Returns:
        The rows of `comparison_points`, one per point, in the order of `settings.planned()`.

    Raises:
        ConfigError, DeviceError, DataError: as `ComparisonSettings.check`.
        RunError: no point succeeded (the first reason is given), or Ray cannot be used, or cannot grant what a point
            asks for.
    """
    settings.check()
    planned = settings.planned()
    ledger = run.path / "comparison_ledger"
    missing = [item for item in planned if _status(ledger, item.point) != "done"]
    if missing:
        done = len(planned) - len(missing)

        def record(item: Planned, tables: PointTables) -> None:
            nonlocal done
            for name in (*(table for table in TABLES if table in tables), _LAST):
                rows = run.traced(tables[name], table_schema(name))
                atomic_write_table(_ledger_file(ledger, item.point, name), rows)
            done += 1
            if on_point is not None:
                (point_row,) = tables[_LAST]
                on_point(done, len(planned), _note(point_row))

        _on_ray(missing, settings, compare, run.record.seed, record)
    for name in (*TABLES, _LAST):
        atomic_write_table(run.table_path(name), _collected(ledger, planned, name, run))
    points: list[Row] = read_parquet(run.table_path(_LAST)).to_pylist()
    if all(row["status"] == "failed" for row in points):
        raise RunError(f"no point of the comparison succeeded; the first failed with: {points[0]['error']}")
    return points


def write_retrieval_cost(settings: ComparisonSettings, run: RunFolder) -> list[Row]:
    """Write what a search costs on the devices' crossbars and on processors, unless the run holds it already.

    This CPU is timed once, in this process; devices that the cost model cannot tell apart share their rows.

    Returns:
        The rows of `retrieval_cost`; none where the settings ask for none.

    Raises:
        ConfigError, DeviceError: as `nvcim.prompts.retrieval_cost`.
    """
    wanted = settings.retrieval
    if wanted is None:
        return []
    if not run.table_path(_COST).is_file():
        shape = (settings.prompts.tuning.tokens, settings.prompts.autoencoder.code)
        times = time_search(shape[0] * shape[1], wanted.ovts, wanted.repeats)
        rows = []
        for group in devices_told_apart(settings.crossbar, settings.devices, wanted.hardware):
            config = settings.crossbar.model_copy(update={"device": group[0]})
            costs = retrieval_cost_rows(config, *shape, wanted.ovts, wanted.repeats, wanted.hardware, times)
            rows += [{**row, "device": ", ".join(group)} for row in costs]
        run.write_table(_COST, rows)
    made: list[Row] = run.read_table(_COST).to_pylist()
    return made


def _on_ray(
    missing: list[Planned],
    settings: ComparisonSettings,
    compare: Compare,
    seed: int,
    record: Callable[[Planned, PointTables], None],
) -> None:
    """One Ray task per point; what is not finished when this is left is cancelled."""
    with ray_session() as session:
        check_request(
            session, "a point (cpus_per_task, gpus_per_task)", settings.cpus_per_task, settings.gpus_per_task
        )
        import ray  # late: a session sets the environment that Ray reads when it is imported

        task: Any = ray.remote(
            num_cpus=settings.cpus_per_task, num_gpus=settings.gpus_per_task, max_retries=1
        )(work_off)
        waiting = {
            task.remote(
                item.part,
                item.point,
                settings.crossbar,
                settings.prompts,
                seed,
                compare,
                settings.cpus_per_task,
            ): item
            for item in missing
        }
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                item = waiting.pop(ended)
                try:
                    tables = ray.get(ended)
                except (
                    Exception
                ) as error:  # the worker died, or its result did not travel: one point's failure
                    reason = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
                    tables = {_LAST: [failed_point(item.part, item.point, reason, 0.0)]}
                record(item, tables)
        finally:
            for unfinished in waiting:
                ray.cancel(unfinished, force=True)


def _collected(ledger: Path, planned: list[Planned], name: str, run: RunFolder) -> pa.Table:
    """One table of all points that the ledger holds, in the planned order."""
    empty = run.traced([], table_schema(name))
    files = [
        _ledger_file(ledger, item.point, name)
        for item in planned
        if name == _LAST or _status(ledger, item.point) == "done"
    ]
    return pa.concat_tables([empty, *(read_parquet(file) for file in files if file.is_file())])


def _status(ledger: Path, point: ComparisonPoint) -> str | None:
    """`done`, `failed`, or None for a point that has not run to its end."""
    file = _ledger_file(ledger, point, _LAST)
    return str(read_parquet(file)["status"][0].as_py()) if file.is_file() else None


def _ledger_file(ledger: Path, point: ComparisonPoint, table: str) -> Path:
    return ledger / f"{point.point_id}.{table}.parquet"


def _note(row: Row) -> str:
    """A point's end in a few words."""
    what = f"{row['part']}, {row['task']}, seed {row['repeat']}"
    return f"{what}: failed, {row['error']}" if row["status"] == "failed" else what


def _only(field: str, given: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    """Raise pydantic's kind of error for the first name that is not allowed."""
    for name in given:
        if name not in allowed:
            raise ValueError(f"{field}: '{name}' is not one of {', '.join(allowed)}")


def _known(field: str, given: tuple[str, ...], present: tuple[str, ...]) -> None:
    """Refuse a task that there is no data of."""
    for name in given:
        if name not in present:
            raise ConfigError(f"field '{field}': no data of task '{name}'; allowed: {', '.join(present)}")
