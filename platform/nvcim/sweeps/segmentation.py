"""The segmentation comparison: quantizers x suggestive annotation x networks, several seeds, on Ray tasks.

Every training is a Ray task whose network lies in the run's `networks/` once it is complete; rounds of annotation lie
in `rounds/`. The ledger holds the tables of every finished task. A resumed run trains only the networks that it lacks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from nvcim.data.images import LabelledImage
from nvcim.errors import RunError
from nvcim.fleet.cluster_resources import check_request
from nvcim.fleet.ray_session import ray_session
from nvcim.randomness import named_seed
from nvcim.segmentation.annotation_rounds import Round, annotation_sets
from nvcim.segmentation.ensemble import MemberJob
from nvcim.storage import RunFolder, table_schema
from nvcim.storage.files import atomic_write_table, read_parquet
from nvcim.sweeps.segmentation_scoring import ScoringJob, crossbar_work, score_work
from nvcim.sweeps.segmentation_settings import (
    BUDGET,
    CROSSBAR,
    EVERYTHING,
    FLOAT,
    FULL,
    GRID,
    START,
    Point,
    SegmentationSettings,
    Split,
    Strategy,
    planned_points,
    recipe_of,
    scored_images,
    split_names,
)
from nvcim.sweeps.segmentation_work import Outcome, Ref, Row, reason_of, rounds_work, store, train_work

OnTask = Callable[[int, int, str], None]
"""Called with (tasks done, tasks in all, a note) as tasks end; trainings are not counted."""

TABLES = (
    "segmentation_scores",
    "segmentation_images",
    "segmentation_rounds",
    "segmentation_crossbars",
    "segmentation_levels",
)
_LAST = "segmentation_tasks"  # written last: a task is finished when the ledger holds its row
_SPLIT = "segmentation_split"


def run_segmentation(
    settings: SegmentationSettings, run: RunFolder, on_task: OnTask | None = None
) -> list[Row]:
    """Work off every task that the run's ledger lacks, then write the tables.

    Args:
        settings: What is compared.
        run: Its ledger is `segmentation_ledger/<task>.<table>.parquet`. Call again with the same folder to resume;
            tasks that failed are tried again.
        on_task: Told as tasks end.

    Returns:
        The rows of `segmentation_tasks`, one per task, in the planned order.

    Raises:
        ConfigError, DataError: as `SegmentationSettings.check` and for a budget that does not fit the images.
        RunError: no task succeeded (the first reason is given), or Ray cannot be used, or cannot grant what a task
            asks for.
    """
    images, plan = planned(settings, run.record.seed)
    run.write_table(_SPLIT, _split_rows(plan, images))
    ledger = _Ledger(run)
    if any(ledger.status(name) != "done" for name in plan.tasks):
        with ray_session() as session:
            asked = (settings.cpus_per_task, settings.gpus_per_task)
            check_request(session, "a training (cpus_per_task, gpus_per_task)", *asked)
            _Work(plan, run, ledger, images, max(session.cpus // settings.cpus_per_task, 1), on_task).all()
    for name in (*TABLES, _LAST):
        ledger.collect(name, plan.tasks)
    tasks: list[Row] = run.read_table(_LAST).to_pylist()
    if all(row["status"] == "failed" for row in tasks):
        raise RunError(f"no task of the comparison succeeded; the first failed with: {tasks[0]['error']}")
    return tasks


def planned(settings: SegmentationSettings, seed: int) -> tuple[list[LabelledImage], "Plan"]:
    """The images and everything that a run would do with them; for settings that cannot run, the reason why.

    Raises:
        ConfigError, DataError: as `run_segmentation`.
    """
    settings.check()
    images = settings.load_images()
    return images, _plan(settings, images, seed)


@dataclass(frozen=True)
class Plan:
    """Everything that a run does: its splits, its points, and the names of its tasks in order."""

    settings: SegmentationSettings
    seed: int
    splits: tuple[Split, ...]
    points: tuple[Point, ...]
    tasks: tuple[str, ...]

    def strategies(self) -> list[Strategy]:
        """Strategies whose rounds are run."""
        budget = self.settings.budget
        return [budget.strategy(name) for name in dict.fromkeys(budget.strategies)] if budget else []

    def choose_from(self, repeat: int) -> tuple[str, ...]:
        """Images that a repetition's rounds know of."""
        pool = self.splits[repeat].pool
        return self.settings.budget.choose_from(pool) if self.settings.budget else pool

    def pool_of(self, point: Point) -> tuple[str, ...]:
        """Images that a point's training images were chosen from."""
        return self.splits[point.repeat].pool if point.part == FULL else self.choose_from(point.repeat)

    def held_back(self, part: str, repeat: int) -> tuple[str, ...]:
        """Images that a part is scored on."""
        return self.splits[repeat].held_back[: scored_images(part, self.settings)]


def rounds_name(repeat: int, strategy: Strategy) -> str:
    """The ledger's name of a strategy's rounds."""
    return f"rounds-{repeat}-{strategy.label}"


def crossbar_name(repeat: int) -> str:
    """The ledger's name of a repetition's crossbars."""
    return f"{CROSSBAR}-{repeat}"


def _plan(settings: SegmentationSettings, images: Sequence[LabelledImage], seed: int) -> Plan:
    names = [image.name for image in images]
    splits = tuple(split_names(names, settings.held_back, seed, repeat) for repeat in range(settings.seeds))
    points = tuple(planned_points(settings, len(splits[0].pool)))
    bare = Plan(settings, seed, splits, points, ())
    tasks = [
        rounds_name(repeat, strategy) for repeat in range(settings.seeds) for strategy in bare.strategies()
    ]
    tasks += [point.folder for point in points]
    if settings.crossbar is not None:
        tasks += [crossbar_name(repeat) for repeat in range(settings.crossbar.repeats)]
    return Plan(settings, seed, splits, points, tuple(tasks))


def _split_rows(plan: Plan, images: Sequence[LabelledImage]) -> list[Row]:
    by_name = {image.name: image for image in images}
    return [
        {
            "repeat": repeat,
            "image": name,
            "role": role,
            "height": by_name[name].pixels.shape[0],
            "width": by_name[name].pixels.shape[1],
            "objects": len(set(by_name[name].instances.ravel().tolist()) - {0}),
            "basis": "measured",
        }
        for repeat, split in enumerate(plan.splits)
        for role, names in (("pool", split.pool), ("held back", split.held_back))
        for name in sorted(names)
    ]


@dataclass(frozen=True)
class _Ledger:
    """Tables of finished tasks, one file per task and table."""

    run: RunFolder

    def file(self, task: str, table: str) -> Path:
        return self.run.path / "segmentation_ledger" / f"{task}.{table}.parquet"

    def status(self, task: str) -> str | None:
        """`done`, `failed`, or None for a task that has not run to its end."""
        file = self.file(task, _LAST)
        return str(read_parquet(file)["status"][0].as_py()) if file.is_file() else None

    def read(self, task: str, table: str) -> list[Row]:
        rows: list[Row] = read_parquet(self.file(task, table)).to_pylist()
        return rows

    def record(self, task: str, part: str, repeat: int, outcome: Outcome) -> None:
        """Write what a task made; its value is rows by table."""
        for name, rows in (outcome.value or {}).items():
            atomic_write_table(self.file(task, name), self.run.traced(rows, table_schema(name)))
        row = {
            "task": task,
            "part": part,
            "repeat": repeat,
            "status": "failed" if outcome.error else "done",
            "error": outcome.error,
            "seconds": outcome.seconds,
            "basis": "measured",
        }
        atomic_write_table(self.file(task, _LAST), self.run.traced([row], table_schema(_LAST)))

    def collect(self, table: str, tasks: Sequence[str]) -> None:
        """Write one table of all tasks, in their order; failed ones have rows in the table of tasks alone."""
        files = [self.file(task, table) for task in tasks if table == _LAST or self.status(task) == "done"]
        empty = self.run.traced([], table_schema(table))
        whole = pa.concat_tables([empty, *(read_parquet(file) for file in files if file.is_file())])
        atomic_write_table(self.run.table_path(table), whole)


@dataclass
class _Work:
    """The driver's side: hands tasks to Ray and records what they bring back."""

    plan: Plan
    run: RunFolder
    ledger: _Ledger
    images: Sequence[LabelledImage]
    lanes: int
    """Rounds of how many strategies run at once: each waits for its networks, which need the same CPUs."""
    on_task: OnTask | None
    stored: dict[str, Ref] = field(default_factory=dict)
    trained: dict[str, Ref] = field(default_factory=dict)
    annotated: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    """Names annotated at the start and after each round, by the rounds' name in the ledger."""
    waiting: dict[Ref, Callable[[Outcome], None]] = field(default_factory=dict)
    chains: list[tuple[int, Strategy]] = field(default_factory=list)
    remotes: dict[str, Any] = field(default_factory=dict)
    done: int = 0

    def all(self) -> None:
        """Work everything off; what is not finished when this is left is cancelled."""
        import ray  # late: a session sets the environment that Ray reads when it is imported

        self.stored = store(self.images)
        self.done = sum(self.ledger.status(task) == "done" for task in self.plan.tasks)
        try:
            self._start()
            while self.waiting:
                (ended,), _ = ray.wait(list(self.waiting), num_returns=1)
                then = self.waiting.pop(ended)
                try:
                    outcome = ray.get(ended)
                except Exception as error:  # the worker died, or its result did not travel
                    outcome = Outcome(None, reason_of(error), 0.0)
                then(outcome)
        finally:
            for unfinished in self.waiting:
                ray.cancel(unfinished, force=True)

    def _start(self) -> None:
        # The whole pool's networks need no rounds: with them the cluster is busy from the start.
        for point in self.plan.points:
            if point.strategies[0].rule == EVERYTHING:
                self._score(point, self.plan.pool_of(point))
        for repeat in range(self.plan.settings.crossbar.repeats if self.plan.settings.crossbar else 0):
            self._crossbar(repeat)
        self.chains = [
            (repeat, strategy)
            for repeat in range(self.plan.settings.seeds)
            for strategy in self.plan.strategies()
        ]
        for _ in range(self.lanes):
            self._next_rounds()

    def _next_rounds(self) -> None:
        """Start the next strategy's rounds; those that the ledger holds already go straight on to their points."""
        while self.chains:
            repeat, strategy = self.chains.pop(0)
            name = rounds_name(repeat, strategy)
            if self.ledger.status(name) == "done":
                self._rounds_known(repeat, strategy, self.ledger.read(name, "segmentation_rounds"))
                continue
            budget = self.plan.settings.budget
            assert budget is not None
            names = self.plan.choose_from(repeat)
            reference = self._task(rounds_work).remote(
                {image: self.stored[image] for image in names},
                budget.settings_of(strategy),
                self.run.path / "rounds" / name,
                named_seed(self.plan.seed, "segmentation comparison", "rounds", repeat),
                self.plan.settings.cpus_per_task,
                self.plan.settings.gpus_per_task,
            )
            self.waiting[reference] = partial(self._rounds_ended, repeat, strategy)
            return

    def _rounds_ended(self, repeat: int, strategy: Strategy, outcome: Outcome) -> None:
        name = rounds_name(repeat, strategy)
        if outcome.error is None:
            rows = _round_rows(repeat, strategy, outcome.value)
            self._record(name, BUDGET, repeat, Outcome({"segmentation_rounds": rows}, None, outcome.seconds))
            self._rounds_known(repeat, strategy, rows)
        else:
            self._record(name, BUDGET, repeat, outcome)
            for point in self._points_of(repeat, strategy):
                reason = f"the rounds of {strategy.label} failed: {outcome.error}"
                self._record(point.folder, point.part, repeat, Outcome(None, reason, 0.0))
        self._next_rounds()

    def _rounds_known(self, repeat: int, strategy: Strategy, rows: Sequence[Row]) -> None:
        """Train and score what was waiting for a strategy's rounds."""
        for point in self._points_of(repeat, strategy):
            self._score(point, [row["image"] for row in rows if row["round"] <= (point.round or 0)])

    def _points_of(self, repeat: int, strategy: Strategy) -> list[Point]:
        """Points that wait for a strategy's rounds; the start set's is left to the first strategy."""
        return [
            point for point in self.plan.points if point.repeat == repeat and point.strategies[0] == strategy
        ]

    def _score(self, point: Point, names: Sequence[str]) -> None:
        """Train a point's networks on images of these names and score them, unless the ledger has the scores."""
        if self.ledger.status(point.folder) == "done":
            return
        trained = self._train(point, names)
        pool = self.plan.pool_of(point)
        job = ScoringJob(
            point,
            len(set(names)),
            len(set(names)) / len(pool),
            self._folders(point),
            self.plan.settings.prediction,
        )
        held_back = [self.stored[name] for name in self.plan.held_back(point.part, point.repeat)]
        reference = self._task(score_work).remote(job, held_back, self.plan.settings.cpus_per_task, *trained)
        self.waiting[reference] = lambda outcome: self._record(
            point.folder, point.part, point.repeat, outcome
        )

    def _train(self, point: Point, names: Sequence[str]) -> list[Ref]:
        """Start a point's trainings and those they go on from; references to their outcomes, the latter first."""
        recipe, settings, start = recipe_of(point, self.plan.settings), self.plan.settings, point.start()
        begun = self._train(start, names) if start else []
        refs = [self.stored[name] for name in sorted(set(names))]
        made = list(begun)
        for member, folder in enumerate(self._folders(point)):
            if str(folder) not in self.trained:
                job = MemberJob(
                    network=settings.network,
                    training=recipe.continued() if start else recipe.training,
                    out=folder,
                    seed=named_seed(
                        self.plan.seed, "segmentation comparison", point.part, point.repeat, member
                    ),
                    quantizer=FLOAT if point.quantizer == START else point.quantizer,
                    bootstrap=point.part == GRID and settings.grid is not None and settings.grid.bootstrap,
                    start=self._folders(start)[member] if start else None,
                )
                before = (begun[member],) if start else ()
                task = self._task(train_work, gpus=settings.gpus_per_task)
                self.trained[str(folder)] = task.remote(job, refs, settings.cpus_per_task, *before)
            made.append(self.trained[str(folder)])
        return made

    def _folders(self, point: Point) -> list[Path]:
        root = self.run.path / "networks" / point.folder
        return [root / str(member) for member in range(max(point.networks))]

    def _crossbar(self, repeat: int) -> None:
        """Put the whole pool's networks of a repetition on crossbars, once they are trained."""
        name, settings = crossbar_name(repeat), self.plan.settings.crossbar
        if settings is None or self.ledger.status(name) == "done":
            return
        own = [point for point in self.plan.points if point.part == FULL and point.repeat == repeat]
        trained = [ref for point in own for ref in self._train(point, self.plan.pool_of(point))]
        reference = self._task(crossbar_work).remote(
            {point.quantizer: self._folders(point)[0] for point in own},
            [self.stored[image] for image in self.plan.held_back(CROSSBAR, repeat)],
            settings,
            self.plan.settings.prediction,
            repeat,
            named_seed(self.plan.seed, "segmentation comparison", CROSSBAR, repeat),
            self.plan.settings.cpus_per_task,
            *trained,
        )
        self.waiting[reference] = lambda outcome: self._record(name, CROSSBAR, repeat, outcome)

    def _task(self, work: Callable[..., Outcome], gpus: float = 0.0) -> Any:
        """A function as Ray's own kind; one per function, since each is sent to the workers anew."""
        import ray

        cpus = self.plan.settings.cpus_per_task
        if work.__name__ not in self.remotes:
            remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(work)
            self.remotes[work.__name__] = remote
        return self.remotes[work.__name__]

    def _record(self, name: str, part: str, repeat: int, outcome: Outcome) -> None:
        self.ledger.record(name, part, repeat, outcome)
        self.done += 1
        if self.on_task is not None:
            note = f"{name}: failed, {outcome.error}" if outcome.error else name
            self.on_task(self.done, len(self.plan.tasks), note)


def _round_rows(repeat: int, strategy: Strategy, rounds: Sequence[Round]) -> list[Row]:
    """What was revealed in each round, the start set as round 0."""
    sets = annotation_sets(rounds)
    common = {"repeat": repeat, "rule": strategy.rule, "suggestive": strategy.suggestive, "basis": "measured"}
    rows: list[Row] = [
        {**common, "round": 0, "image": name, "place": place, "uncertainty": None, "annotated": len(sets[0])}
        for place, name in enumerate(sets[0])
    ]
    rows += [
        {
            **common,
            "round": entry.number + 1,
            "image": suggestion.name,
            "place": place,
            "uncertainty": suggestion.uncertainty,
            "annotated": len(entry.annotated_after),
        }
        for entry in rounds
        for place, suggestion in enumerate(entry.suggested)
    ]
    return rows


__all__ = ["TABLES", "OnTask", "Plan", "crossbar_name", "rounds_name", "run_segmentation"]
