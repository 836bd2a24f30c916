"""A comparison as tables of text, for the terminal and for the page: what it found, the grid, verdicts, costs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from nvcim.report.crossbar_tables import TextTable
from nvcim.report.groups import Row, distinct, mean, spread, values
from nvcim.storage import RunFolder
from nvcim.sweeps.comparison_methods import (
    GRID,
    MITIGATIONS,
    NO_DEVICE,
    OURS,
    in_table_order,
)
from nvcim.sweeps.comparison_statistics import (
    ALL_TASKS,
    FEWEST_SEEDS,
    LEVEL,
    Against,
    Place,
    Score,
    best,
    grid_rows,
    largest_gain,
    losses,
    over_tasks,
    scores,
    verdicts,
)

NO_REPRODUCTION = (
    "The paper states gains of up to 36.7 % with its own models, data and circuit settings, which are not known in "
    "full. This figure is from a simulation with the settings of this run: it is the analogue of the paper's, not a "
    "reproduction of it."
)
TEST = (
    f"Told apart: two-sided paired t-test over seeds (all methods share a seed's users), p < {LEVEL:g}, not corrected "
    f"for the number of comparisons; with fewer than {FEWEST_SEEDS} seeds nothing is."
)
ONE_FOR_ALL_NOTE = "One-for-all is compared over users with more than one known domain alone."
SCORES = "LaMP-1, 2, 2N and 3: accuracy; LaMP-4, 5 and 7: ROUGE-1 (F). An answer that is no label is wrong."
BEST = "*"


def comparison_tables(run: RunFolder) -> list[TextTable]:
    """The tables about scores: findings, a grid per model, verdicts, where NVCiM-PT loses, domains, sweeps.

    Raises:
        RunError: the run lacks the table `comparison`, or one is broken.
    """
    rows = run.read_table("comparison").to_pylist()
    grid = grid_rows(rows)
    against = verdicts(grid)
    made = [finding_table(grid, against, _failed(run))]
    made += [grid_table(grid, model) for model in distinct(grid, "model")]
    made += [verdict_table(against, model) for model in distinct(grid, "model")]
    made += [loss_table(against, grid), hit_table(grid)]
    made += [sweep_table(rows, part, column) for part, column in sweeps_of(rows)]
    return [table for table in made if table.rows]


def finding_table(grid: Sequence[Row], against: Sequence[Against], failed: int = 0) -> TextTable:
    """What the comparison says in a few lines; `failed` points are missing in it."""
    rows = []
    for model in distinct(grid, "model"):
        own = [one for one in against if one.place.model == model]
        wide = _widest(own)
        mitigations = [one for one in wide if one.place.method in MITIGATIONS]
        if mitigations:
            rows.append((model, "against every mitigation baseline at once", _against_all(mitigations)))
        methods = in_table_order({one.place.method for one in wide})
        rows += [(model, f"against {method}", _on_devices(wide, method)) for method in methods]
        gain = largest_gain(own)
        if gain is not None:
            rows.append((model, "largest relative gain over a mitigation baseline", _gain(gain)))
        lost = losses(own)
        sure = sum(one.difference.verdict == "below" for one in lost)
        rows.append(
            (
                model,
                "where NVCiM-PT loses",
                f"{len(lost)} of {len(own)} differences, {sure} of them told apart",
            )
        )
    seeds, users = len(distinct(grid, "repeat")), len(_users(grid))
    notes = [
        f"Seeds: {seeds}. Answers in the grid: {len(grid)}, of {users} users (counted per task and seed).",
        SCORES,
        TEST,
        ONE_FOR_ALL_NOTE,
        NO_REPRODUCTION,
    ]
    if failed:
        notes.insert(0, f"{failed} points failed and are missing here; the table of points says why.")
    if not any(row["domains"] > 1 for row in grid):
        notes.append(
            "No user of this run has more than one known domain, so there is no verdict on one-for-all."
        )
    return TextTable("What the comparison says (measured)", ("model", "question", "answer"), rows, notes)


def grid_table(grid: Sequence[Row], model: str) -> TextTable:
    """The paper's Table I for one model: rows are devices and methods, columns tasks, cells mean ± spread."""
    own = [row for row in grid if row["model"] == model]
    found = scores(own)
    tasks = sorted(distinct(own, "task"))
    if len(tasks) > 1:
        found |= over_tasks(found)
        tasks.append(ALL_TASKS)
    rows = []
    for device in _devices(own):
        here = {place: score for place, score in found.items() if place.device == device}
        marked = {task: best([s for p, s in here.items() if p.task == task]) for task in tasks}
        for method in in_table_order({place.method for place in here}):
            cells = (here.get(Place(model, task, device, method)) for task in tasks)
            rows.append(
                (
                    "no crossbar" if device == NO_DEVICE else device,
                    method,
                    *(_cell(cell, marked[task]) for task, cell in zip(tasks, cells, strict=True)),
                )
            )
    return TextTable(
        f"Scores with {model} at {_setting(own)}: mean ± standard deviation over seeds (measured)",
        ("device", "method", *tasks),
        rows,
        (
            SCORES,
            f"{BEST} best of the methods on its device, and told apart from the runner-up. {TEST}",
            f"'{ALL_TASKS}' is the mean over tasks, seed by seed.",
        ),
    )


def verdict_table(against: Sequence[Against], model: str) -> TextTable:
    """NVCiM-PT less every other method, on each device, over all tasks."""
    rows = [
        (
            one.place.device,
            one.place.method,
            f"{one.difference.ours:.3f}",
            f"{one.difference.other:.3f}",
            _signed(one.difference.mean),
            "" if one.difference.spread is None else f"{one.difference.spread:.3f}",
            _p(one.difference.p),
            one.difference.verdict,
        )
        for one in _sorted(_widest([one for one in against if one.place.model == model]))
    ]
    return TextTable(
        f"NVCiM-PT against every other method with {model}, over all tasks (measured)",
        ("device", "against", OURS, "the other", "difference", "its spread", "p", "NVCiM-PT is"),
        rows,
        (TEST, ONE_FOR_ALL_NOTE, "A method without a crossbar is the same on every device."),
    )


def loss_table(against: Sequence[Against], grid: Sequence[Row]) -> TextTable:
    """Every place where NVCiM-PT's mean is below another method's, with how often either found the right domain."""
    hits = _hit_shares(grid)
    rows = []
    for one in losses(against):
        place, found = one.place, one.difference
        shares = (hits.get(place._replace(method=method)) for method in (OURS, place.method))
        rows.append(
            (
                place.model,
                _task(place.task),
                place.device,
                place.method,
                _signed(found.mean),
                "" if found.spread is None else f"{found.spread:.3f}",
                _p(found.p),
                "yes" if found.verdict == "below" else "no",
                *("" if share is None else f"{share:.0%}" for share in shares),
            )
        )
    return TextTable(
        "Where NVCiM-PT loses: every place with a lower mean, those told apart first (measured)",
        (
            "model",
            "task",
            "device",
            "against",
            "difference",
            "its spread",
            "p",
            "told apart",
            f"right domain, {OURS}",
            "right domain, the other",
        ),
        rows,
        (TEST, "Right domain: share of all queries; empty where a method does not search."),
    )


def hit_table(grid: Sequence[Row]) -> TextTable:
    """Share of retrievals that hit the query's own domain, by method and device."""
    known = [row for row in grid if row["hit"] is not None]
    devices = _devices(known)
    rows = []
    for model in distinct(known, "model"):
        own = [row for row in known if row["model"] == model]
        for method in in_table_order({row["method"] for row in own}):
            cells = [
                _plus_minus(
                    _by_seed([r for r in own if (r["method"], r["device"]) == (method, device)], "hit")
                )
                for device in devices
            ]
            rows.append((model, method, *cells))
    notes = (
        "Mean ± standard deviation over seeds, over queries whose domain is known. Chance depends on the sets.",
    )
    return TextTable(
        "Share of retrievals that hit the right domain (measured)", ("model", "method", *devices), rows, notes
    )


def metric_table(metrics: Sequence[Row]) -> TextTable:
    """The official metrics of one task, by method and device."""
    groups: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in metrics:
        groups[row["model"], row["device"], row["method"]][row["metric"]].append(row["value"])
    names, devices = distinct(metrics, "metric"), _devices(metrics)
    methods = in_table_order({row["method"] for row in metrics})
    rows = [
        (
            model,
            "no crossbar" if device == NO_DEVICE else device,
            method,
            *(_plus_minus(groups[model, device, method][name]) for name in names),
        )
        for model, device, method in sorted(
            groups, key=lambda key: (key[0], devices.index(key[1]), methods.index(key[2]))
        )
    ]
    return TextTable(
        f"{metrics[0]['task']}: official metrics over each seed's answers (measured)",
        ("model", "device", "method", *names),
        rows,
        ("Mean ± standard deviation over seeds. mae, rmse and unparsed: lower is better.",),
    )


def sweep_table(rows: Sequence[Row], part: str, column: str) -> TextTable:
    """Scores over the values of a sweep, over its tasks."""
    own, device = sweep_rows(rows, part)
    found = sorted(distinct(own, column))
    lines = []
    for model in distinct(own, "model"):
        for method in in_table_order({row["method"] for row in own}):
            cells = [
                _mean_over_tasks([r for r in own if r["model"] == model and r[column] == value], method)
                for value in found
            ]
            lines.append((model, method, *(_cell(cell, None) for cell in cells)))
    return TextTable(
        f"The {part} on {device}, mean over {', '.join(sorted(distinct(own, 'task')))} (measured)",
        ("model", "method", *(f"{column} {value:g}" for value in found)),
        lines,
        ("Mean ± standard deviation over seeds.",),
    )


def set_tables(run: RunFolder) -> list[TextTable]:
    """What is kept and trained, and how far tokens come back (raises RunError as `comparison_tables`)."""
    sets = run.read_table("comparison_sets").to_pylist()
    return [table for table in (storage_table(sets), reconstruction_table(sets)) if table.rows]


def metric_tables(run: RunFolder) -> list[TextTable]:
    """The tasks' official metrics (raises RunError as `comparison_tables`)."""
    metrics = [row for row in run.read_table("comparison_metrics").to_pylist() if row["part"] == GRID]
    return [
        metric_table([row for row in metrics if row["task"] == task])
        for task in sorted(distinct(metrics, "task"))
    ]


def point_tables(run: RunFolder) -> list[TextTable]:
    """The failed points, if there are any (raises RunError as `comparison_tables`)."""
    table = failure_table(run.read_table("comparison_points").to_pylist())
    return [table] if table.rows else []


def storage_table(sets: Sequence[Row]) -> TextTable:
    """What each method keeps for a user, and what making it took."""
    own = [row for row in sets if row["part"] == GRID]
    columns = ("sets", "storage_bytes", "trained_parameters", "tuning_steps", "trained_tokens")
    rows = []
    for model in distinct(own, "model"):
        of_model = [row for row in own if row["model"] == model]
        for method in in_table_order({row["method"] for row in of_model}):
            chosen = [row for row in of_model if row["method"] == method]
            means = [mean(values(chosen, column)) or 0.0 for column in columns]
            counts = [
                str(sum(row[column] for row in chosen)) for column in ("truncated", "unanswered", "failed")
            ]
            rows.append((model, method, *(_count(number) for number in means), *counts))
    return TextTable(
        "What a user costs: storage and training (measured)",
        (
            "model",
            "method",
            "sets",
            "storage, B",
            "trained parameters",
            "optimiser steps",
            "tokens trained on",
            "samples cut, all",
            "queries too long, all",
            "jobs stopped, all",
        ),
        rows,
        (
            "Means over users, tasks, seeds and devices. Storage is what is kept per user, without the shared model "
            "and autoencoder. Cut, too long and stopped are counts over all of them: samples are cut to the context, "
            "queries never (too long ones count as wrong), and a job stops where its loss is not finite.",
        ),
    )


def reconstruction_table(sets: Sequence[Row]) -> TextTable:
    """How far tokens that are read back from each device are off, by method."""
    own = [row for row in sets if row["part"] == GRID and row["reconstruction_error"] is not None]
    devices = _devices(own)
    rows = []
    for model in distinct(own, "model"):
        for method in in_table_order({row["method"] for row in own if row["model"] == model}):
            chosen = [row for row in own if (row["model"], row["method"]) == (model, method)]
            cells = [
                _plus_minus(_by_seed([r for r in chosen if r["device"] == device], "reconstruction_error"))
                for device in devices
            ]
            rows.append((model, method, *cells))
    return TextTable(
        "Reconstruction error of the tokens on each device (measured)",
        ("model", "method", *devices),
        rows,
        (
            "RMS of the error of tokens read back through code and crossbar, relative to the tokens' own RMS; mean ± "
            "standard deviation over seeds.",
        ),
    )


def failure_table(points: Sequence[Row]) -> TextTable:
    """Points that failed, with their reasons."""
    seeds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in points:
        if row["status"] == "failed":
            seeds[row["part"], row["model"], row["task"], row["error"]].append(str(row["repeat"]))
    rows = [(*key[:3], ", ".join(dict.fromkeys(own)), key[3]) for key, own in seeds.items()]
    failed = sum(len(own) for own in seeds.values())
    return TextTable(
        f"{failed} of {len(points)} points failed; their answers are missing above",
        ("part", "model", "task", "seeds", "reason"),
        rows,
        ("Resuming the run tries them again.",),
    )


def sweeps_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Parts of the run that are sweeps, each with the column that it sweeps."""
    parts = set(distinct(rows, "part"))
    return [(part, column) for part, column in _SWEPT if part in parts]


def sweep_rows(rows: Sequence[Row], part: str) -> tuple[list[Row], str]:
    """Answers of a sweep, the grid's at the same device, methods and tasks among them, and the sweep's device."""
    swept = [row for row in rows if row["part"] == part]
    (device,) = {row["device"] for row in swept} - {NO_DEVICE} or {NO_DEVICE}
    keys = {(row["model"], row["task"], row["method"], row["device"]) for row in swept}
    shared = [
        row for row in grid_rows(rows) if (row["model"], row["task"], row["method"], row["device"]) in keys
    ]
    return [*shared, *swept], device


_SWEPT = (("sigma sweep", "sigma"), ("buffer sweep", "buffer"))


def _mean_over_tasks(rows: Sequence[Row], method: str) -> Score | None:
    """A method's score over the tasks of the rows, or None where it lacks one."""
    found = over_tasks(scores(rows))
    return next((score for place, score in found.items() if place.method == method), None)


def _widest(against: Sequence[Against]) -> list[Against]:
    """The verdicts over all tasks; of the one task where there is only one."""
    over_all = [one for one in against if one.place.task == ALL_TASKS]
    return over_all or list(against)


def _failed(run: RunFolder) -> int:
    """How many points of a run failed."""
    if "comparison_points" not in run.tables():
        return 0
    points: list[Row] = run.read_table("comparison_points").to_pylist()
    return sum(row["status"] == "failed" for row in points)


def _against_all(against: Sequence[Against]) -> str:
    """On how many devices NVCiM-PT's mean is above all of the others, and where it is told apart below one."""
    by_device: dict[str, list[Against]] = defaultdict(list)
    for one in against:
        by_device[one.place.device].append(one)
    above = sum(all(one.difference.mean > 0 for one in own) for own in by_device.values())
    below = [device for device, own in by_device.items() if any(o.difference.verdict == "below" for o in own)]
    return (
        f"mean above all of them on {above} of {len(by_device)} devices; "
        f"told apart below one of them on {', '.join(below) or 'none'}"
    )


def _on_devices(against: Sequence[Against], method: str) -> str:
    """On how many devices NVCiM-PT's mean is higher, and on how many that is told apart."""
    own = [one.difference for one in against if one.place.method == method]
    higher = sum(one.mean > 0 for one in own)
    sure, below = (sum(one.verdict == verdict for one in own) for verdict in ("above", "below"))
    return (
        f"higher mean on {higher} of {len(own)} devices; told apart: above on {sure}, below on {below}; "
        f"mean difference {_signed(sum(one.mean for one in own) / len(own))}"
    )


def _gain(one: Against) -> str:
    found = one.difference
    return (
        f"{one.gain:.1%} over {one.place.method} on {one.place.device}, {_task(one.place.task)} "
        f"({found.ours:.3f} against {found.other:.3f}, {found.seeds} seeds, p {_p(found.p) or 'not computed'}: "
        f"{found.verdict})"
    )


def _task(task: str) -> str:
    return "mean over tasks" if task == ALL_TASKS else task


def _sorted(against: Sequence[Against]) -> list[Against]:
    """By device in order of appearance, then in the order of tables."""
    devices = list(dict.fromkeys(one.place.device for one in against))
    order = in_table_order({one.place.method for one in against})
    return sorted(against, key=lambda one: (devices.index(one.place.device), order.index(one.place.method)))


def _devices(rows: Sequence[Row]) -> list[str]:
    """Devices in order of appearance; what has no crossbar comes last."""
    found = distinct(rows, "device")
    return [name for name in found if name != NO_DEVICE] + [name for name in found if name == NO_DEVICE]


def _setting(rows: Sequence[Row]) -> str:
    """Sigma and buffer of the grid, in words."""
    on_crossbar = [row for row in rows if row["sigma"] is not None]
    sigma = f"sigma {on_crossbar[0]['sigma']:g} ({on_crossbar[0]['sigma_unit']}), " if on_crossbar else ""
    return f"{sigma}buffer {rows[0]['buffer']}"


def _users(rows: Sequence[Row]) -> set[tuple[Any, ...]]:
    return {(row["model"], row["task"], row["repeat"], row["user_id"]) for row in rows}


def _hit_shares(grid: Sequence[Row]) -> dict[Place, float]:
    """Share of queries whose set was tuned for their domain, by task and over all tasks."""
    hits: dict[Place, list[float]] = defaultdict(list)
    for row in grid:
        if row["hit"] is not None:
            place = Place(row["model"], row["task"], row["device"], row["method"])
            for found in (place, place._replace(task=ALL_TASKS)):
                hits[found].append(float(row["hit"]))
    return {place: sum(own) / len(own) for place, own in hits.items()}


def _by_seed(rows: Sequence[Row], column: str) -> list[float]:
    """A column's mean in each seed."""
    groups: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row[column] is not None:
            groups[row["repeat"]].append(float(row[column]))
    return [sum(own) / len(own) for _, own in sorted(groups.items())]


def _plus_minus(numbers: Sequence[float]) -> str:
    middle = mean(numbers)
    if middle is None:
        return ""
    return f"{middle:.3f} ± {spread(numbers):.3f}" if len(numbers) > 1 else f"{middle:.3f}"


def _cell(score: Score | None, marked: Place | None) -> str:
    if score is None:
        return ""
    mark = f" {BEST}" if score.place == marked else ""
    return _plus_minus(list(score.by_seed.values())) + mark


def _count(number: float) -> str:
    """A mean of counts: `2.5`, `32,768`."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def _signed(number: float) -> str:
    return f"{number:+.3f}"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
