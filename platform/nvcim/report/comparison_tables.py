"""A comparison as tables of text, for the terminal and for the page: what it found, the grid, verdicts, costs."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from nvcim.report.crossbar_tables import TextTable
from nvcim.report.groups import Row, distinct, mean, spread, values
from nvcim.storage import RunFolder
from nvcim.sweeps.comparison_methods import (
    BUFFER_SWEEP,
    GRID,
    MITIGATIONS,
    NO_DEVICE,
    OURS,
    SIGMA_SWEEP,
    in_table_order,
)
from nvcim.sweeps.comparison_statistics import (
    ALL_TASKS,
    FEWEST_SEEDS,
    LEVEL,
    MOST_UNANSWERED,
    Against,
    Difference,
    Place,
    Score,
    Standing,
    Task,
    best,
    difference,
    grid_rows,
    largest_gain,
    losses,
    mostly_unanswered,
    over_tasks,
    scores,
    shared_users,
    standings,
    unanswered_shares,
    verdicts,
    widest,
)

NO_REPRODUCTION = (
    "The paper states gains of up to 36.7 % with its own models, data and circuit settings, which are not known in "
    "full. This figure is from a simulation with the settings of this run: it is the analogue of the paper's, not a "
    "reproduction of it."
)
TEST = (
    f"Told apart: two-sided paired t-test over seeds (all methods share a seed's users), p < {LEVEL:g}, not corrected "
    f"for the number of comparisons; with fewer than {FEWEST_SEEDS} seeds nothing is. A difference that is the same in "
    "every seed, but not zero, has no spread to measure it by: it has no p and is not told apart."
)
FEWER_SEEDS = "A number in brackets: seeds behind the cell, where they are fewer than elsewhere in the table."
ONE_FOR_ALL_NOTE = "One-for-all is compared over users with more than one known domain alone."
SCORES = "LaMP-1, 2, 2N and 3: accuracy; LaMP-4, 5 and 7: ROUGE-1 (F). An answer that is no label is wrong."
BEST = "*"
NO_MITIGATION = "no-mitigation"
UNJUDGED = "unknown"
"""Whether the right domain was found, where the data tell no domains."""


def comparison_tables(run: RunFolder) -> list[TextTable]:
    """The tables about scores: findings, a grid per model, verdicts, where NVCiM-PT loses, domains, sweeps.

    Raises:
        RunError: the run lacks the table `comparison` or `comparison_sets`, or one is broken.
    """
    rows = run.read_table("comparison").to_pylist()
    sets = run.read_table("comparison_sets").to_pylist()
    grid, grid_sets = grid_rows(rows), grid_rows(sets)
    shares = unanswered_shares(grid, grid_sets)
    left_out = mostly_unanswered(shares)
    against = verdicts(grid, left_out)
    shared = shared_users(grid)
    made = [finding_table(grid, against, _failed(run), write_noise(rows)), standing_table(against, shared)]
    made += [grid_table(grid, model, shares) for model in distinct(grid, "model")]
    made += [verdict_table(against, model, shared) for model in distinct(grid, "model")]
    made += [loss_table(against, grid, grid_sets, left_out), hit_table(grid)]
    made += [sweep_table(rows, part, column, sets, left_out) for part, column in sweeps_of(rows)]
    return [table for table in made if table.rows]


def summary_tables(run: RunFolder) -> list[TextTable]:
    """NVCiM-PT against the mitigation baselines, to end a print with (raises RunError as `comparison_tables`)."""
    grid = grid_rows(run.read_table("comparison").to_pylist())
    sets = grid_rows(run.read_table("comparison_sets").to_pylist())
    against = verdicts(grid, mostly_unanswered(unanswered_shares(grid, sets)))
    table = standing_table(against, shared_users(grid))
    return [table] if table.rows else []


def finding_table(
    grid: Sequence[Row], against: Sequence[Against], failed: int = 0, noise: Sequence[str] = ()
) -> TextTable:
    """What the comparison says in a few lines; `failed` points are missing in it, `noise` is what noise costs."""
    rows = []
    for model in distinct(grid, "model"):
        own = [one for one in against if one.place.model == model]
        wide = widest(own)
        if any(one.place.method in MITIGATIONS for one in wide):
            rows.append((model, "against the mitigation baselines", standing_sentence(standings(wide))))
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
        *_fewer_seeds(grid),
        *_shared_note(shared_users(grid)),
        *noise,
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


def standing_table(against: Sequence[Against], shared: int = 0) -> TextTable:
    """On each device, NVCiM-PT's mean less that of each mitigation baseline; `shared` users are in several seeds."""
    found = standings(against)
    rows = [
        (
            one.model,
            one.device,
            *(_lead(one.differences.get(method)) for method in MITIGATIONS),
            f"{one.above} of {len(MITIGATIONS)}",
            ", ".join(one.below) or "none",
        )
        for one in found
    ]
    counts = [
        f"{model}: NVCiM-PT's {standing_sentence([one for one in found if one.model == model])}."
        for model in dict.fromkeys(one.model for one in found)
    ]
    return TextTable(
        "NVCiM-PT less each mitigation baseline, over all tasks (measured)",
        ("model", "device", *MITIGATIONS, "mean above", "significantly below"),
        rows if any(one.differences for one in found) else [],
        (*counts, f"'above' or 'below' beside a difference: told apart. {TEST}", *_shared_note(shared)),
    )


def standing_sentence(found: Sequence[Standing]) -> str:
    """On how many devices NVCiM-PT's mean is above how many of the mitigation baselines, and below which for sure.

    A device that lacks a baseline is named and not counted as one where all are beaten.
    """
    every = len(MITIGATIONS)
    whole = [one for one in found if not one.missing]
    counts = Counter(one.above for one in whole)
    fewer = (
        f", {above} of {every} on {counts[above]}" for above in range(every - 1, -1, -1) if counts[above]
    )
    said = f"mean is above {every} of {every} on {counts[every]} of {len(found)} devices{''.join(fewer)}"
    below = [f"{one.device} ({', '.join(one.below)})" for one in found if one.below]
    said += f"; significantly below on {len(below)}" + (f": {', '.join(below)}" if below else "")
    missing = [f"{one.device} (no {', '.join(one.missing)})" for one in found if one.missing]
    return said + (f"; not counted, as a baseline is missing: {', '.join(missing)}" if missing else "")


def write_noise(rows: Sequence[Row]) -> list[str]:
    """What write noise costs where nothing is done about it: the sigma sweep's least noise against the grid's.

    A sentence per model; none where the run has no such sweep, since other parts of a run have no noise-free side.
    """
    if SIGMA_SWEEP not in distinct(rows, "part"):
        return []
    own, device = sweep_rows(rows, SIGMA_SWEEP)
    own = [row for row in own if row["method"] == NO_MITIGATION]
    noisy = {row["sigma"] for row in own if row["part"] == GRID}
    said = []
    for model in distinct(own, "model"):
        least = min(row["sigma"] for row in own if row["model"] == model)
        if not noisy or least >= max(noisy):
            continue
        quiet, loud = (
            _mean_over_tasks(
                [row for row in own if row["model"] == model and row["sigma"] == value], NO_MITIGATION
            )
            for value in (least, max(noisy))
        )
        found = difference(loud, quiet) if loud is not None and quiet is not None else None
        if found is not None:
            limit = "" if least == 0 else " (the run has no noise-free side)"
            said.append(
                f"What write noise costs: {NO_MITIGATION} with {model} on {device}, "
                f"{', '.join(sorted(distinct(own, 'task')))}, scores {found.ours:.3f} at sigma {max(noisy):g} and "
                f"{found.other:.3f} at sigma {least:g}{limit}: {_signed(found.mean)}, {found.seeds} seeds, "
                f"p {_p(found.p) or 'not computed'}, {found.verdict}."
            )
    return said


def grid_table(grid: Sequence[Row], model: str, shares: Mapping[Task, float] | None = None) -> TextTable:
    """The paper's Table I for one model: rows are devices and methods, columns tasks, cells mean ± spread.

    Args:
        shares: of each task's questions that did not fit the context (`unanswered_shares`); None: unknown, so
            nothing is said of them.
    """
    own = [row for row in grid if row["model"] == model]
    found = scores(own)
    tasks = sorted(distinct(own, "task"))
    left_out = [task for task in mostly_unanswered(shares or {}) if task[0] == model]
    columns = [f"{task} (not in the mean)" if (model, task) in left_out else task for task in tasks]
    if len(tasks) > 1:
        found |= over_tasks(found, left_out)
        tasks.append(ALL_TASKS)
        columns.append(ALL_TASKS)
    most = _most_seeds(found.values())
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
                    *(_cell(cell, marked[task], most) for task, cell in zip(tasks, cells, strict=True)),
                )
            )
    return TextTable(
        f"Scores with {model} at {_setting(own)}: mean ± standard deviation over seeds (measured)",
        ("device", "method", *columns),
        rows,
        (
            SCORES,
            f"{BEST} best of the methods on its device, and told apart above each of them. {TEST}",
            f"'{ALL_TASKS}' is the mean over tasks, seed by seed.",
            *([FEWER_SEEDS] if _fewer_seeds(own) else []),
            *(_unanswered_notes(model, shares, left_out) if shares is not None else []),
        ),
    )


def verdict_table(against: Sequence[Against], model: str, shared: int = 0) -> TextTable:
    """NVCiM-PT less every other method, on each device, over all tasks; `shared` users are in several seeds."""
    rows = [
        (
            one.place.device,
            one.place.method,
            f"{one.difference.ours:.3f}",
            f"{one.difference.other:.3f}",
            _signed(one.difference.mean),
            "" if one.difference.spread is None else f"{one.difference.spread:.3f}",
            str(one.difference.seeds),
            _p(one.difference.p),
            one.difference.verdict,
        )
        for one in _sorted(widest([one for one in against if one.place.model == model]))
    ]
    return TextTable(
        f"NVCiM-PT against every other method with {model}, over all tasks (measured)",
        ("device", "against", OURS, "the other", "difference", "its spread", "seeds", "p", "NVCiM-PT is"),
        rows,
        (
            TEST,
            "Both scores are over the seeds that both methods have.",
            ONE_FOR_ALL_NOTE,
            "A method without a crossbar is the same on every device.",
            *_shared_note(shared),
        ),
    )


def loss_table(
    against: Sequence[Against], grid: Sequence[Row], sets: Sequence[Row], left_out: Collection[Task] = ()
) -> TextTable:
    """Every place where NVCiM-PT's mean is below another method's, and what may be why, of both sides.

    That is how often either found the right domain, and how far its tokens are off when they are read back. Those
    over all tasks are without `left_out`.
    """
    hits = _means_by_place(grid, "hit", left_out)
    errors = _means_by_place(sets, "reconstruction_error", left_out)
    with_domains = {(row["model"], row["task"]) for row in grid if row["domains"] > 0}
    lost = losses(against)
    rows = []
    for one in lost:
        place, found = one.place, one.difference
        sides = [place._replace(method=method) for method in (OURS, place.method)]
        judged = place.task == ALL_TASKS or (place.model, place.task) in with_domains
        shares = (f"{hits[side]:.0%}" if side in hits else "" for side in sides)
        rows.append(
            (
                place.model,
                _task(place.task),
                place.device,
                place.method,
                _signed(found.mean),
                "" if found.spread is None else f"{found.spread:.3f}",
                str(found.seeds),
                _p(found.p),
                "yes" if found.verdict == "below" else "no",
                *(shares if judged else (UNJUDGED, UNJUDGED)),
                *(f"{errors[side]:.3f}" if side in errors else "" for side in sides),
            )
        )
    unknown = sorted({row["task"] for row in grid if (row["model"], row["task"]) not in with_domains})
    return TextTable(
        "Where NVCiM-PT loses and why: every place with a lower mean, those told apart first (measured)",
        (
            "model",
            "task",
            "device",
            "against",
            "difference",
            "its spread",
            "seeds",
            "p",
            "told apart",
            f"right domain, {OURS}",
            "right domain, the other",
            f"reconstruction error, {OURS}",
            "reconstruction error, the other",
        ),
        rows,
        (
            *_reasons(lost, hits, errors),
            TEST,
            "Right domain: share of all queries; empty where a method does not search. Reconstruction error: relative "
            "RMS of tokens read back, mean over users; empty where nothing is read back.",
            *(
                [
                    f"{UNJUDGED}: the data tell no domains for {', '.join(unknown)}, so it cannot be judged whether "
                    "the right one was found."
                ]
                if unknown
                else []
            ),
        ),
    )


def hit_table(grid: Sequence[Row]) -> TextTable:
    """Share of retrievals that hit the query's own domain, by method and device."""
    known = [row for row in grid if row["hit"] is not None]
    devices = _devices(known)
    most = len(distinct(known, "repeat"))
    rows = []
    for model in distinct(known, "model"):
        own = [row for row in known if row["model"] == model]
        for method in in_table_order({row["method"] for row in own}):
            cells = [
                _plus_minus(
                    _by_seed([r for r in own if (r["method"], r["device"]) == (method, device)], "hit"), most
                )
                for device in devices
            ]
            rows.append((model, method, *cells))
    notes = (
        "Mean ± standard deviation over seeds, over queries whose domain is known. Chance depends on the sets.",
        *([FEWER_SEEDS] if _has_count(rows) else []),
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
    most = max(len(own) for by_metric in groups.values() for own in by_metric.values())
    rows = [
        (
            model,
            "no crossbar" if device == NO_DEVICE else device,
            method,
            *(_plus_minus(groups[model, device, method][name], most) for name in names),
        )
        for model, device, method in sorted(
            groups, key=lambda key: (key[0], devices.index(key[1]), methods.index(key[2]))
        )
    ]
    return TextTable(
        f"{metrics[0]['task']}: official metrics over each seed's answers (measured)",
        ("model", "device", "method", *names),
        rows,
        (
            "Mean ± standard deviation over seeds. mae, rmse and unparsed: lower is better.",
            *([FEWER_SEEDS] if _has_count(rows) else []),
        ),
    )


def sweep_table(
    rows: Sequence[Row], part: str, column: str, sets: Sequence[Row] = (), left_out: Collection[Task] = ()
) -> TextTable:
    """Scores over the values of a sweep, over its tasks (without `left_out`, unless it has no others).

    With rows of `comparison_sets`, the sweep of the buffer has a line of the token sets that each size makes.
    """
    own, device = sweep_rows(rows, part)
    own = [row for row in own if (row["model"], row["task"]) not in left_out] or own
    found = sorted(distinct(own, column))
    by_value = {
        (model, method, value): _mean_over_tasks(
            [row for row in own if row["model"] == model and row[column] == value], method
        )
        for model in distinct(own, "model")
        for method in in_table_order({row["method"] for row in own})
        for value in found
    }
    most = _most_seeds(score for score in by_value.values() if score is not None)
    lines = []
    for model in distinct(own, "model"):
        for method in in_table_order({row["method"] for row in own}):
            cells = (_cell(by_value[model, method, value], None, most) for value in found)
            lines.append((model, method, *cells))
        counts = sets_per_user([row for row in sets if row["model"] == model], part)
        if part == BUFFER_SWEEP and counts:
            lines.append(
                (
                    model,
                    f"token sets per user, {OURS}",
                    *(_count(counts[n]) if n in counts else "" for n in found),
                )
            )
    return TextTable(
        f"The {part} on {device}, mean over {', '.join(sorted(distinct(own, 'task')))} (measured)",
        ("model", "method", *(f"{column} {value:g}" for value in found)),
        lines,
        ("Mean ± standard deviation over seeds.", *([FEWER_SEEDS] if _has_count(lines) else [])),
    )


def sets_per_user(sets: Sequence[Row], part: str) -> dict[float, float]:
    """Mean token sets that NVCiM-PT keeps for a user at each buffer size of a sweep; rows of `comparison_sets`."""
    if part not in distinct(sets, "part"):
        return {}
    own, _ = sweep_rows(sets, part)
    ours = [row for row in own if row["method"] == OURS]
    return {
        size: mean([float(row["sets"]) for row in ours if row["buffer"] == size]) or 0.0
        for size in sorted(distinct(ours, "buffer"))
    }


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
    most = len(distinct(own, "repeat"))
    rows = []
    for model in distinct(own, "model"):
        for method in in_table_order({row["method"] for row in own if row["model"] == model}):
            chosen = [row for row in own if (row["model"], row["method"]) == (model, method)]
            cells = [
                _plus_minus(
                    _by_seed([r for r in chosen if r["device"] == device], "reconstruction_error"), most
                )
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


_SWEPT = ((SIGMA_SWEEP, "sigma"), (BUFFER_SWEEP, "buffer"))


def _mean_over_tasks(rows: Sequence[Row], method: str) -> Score | None:
    """A method's score over the tasks of the rows, or None where it lacks one."""
    found = over_tasks(scores(rows))
    return next((score for place, score in found.items() if place.method == method), None)


def _failed(run: RunFolder) -> int:
    """How many points of a run failed."""
    if "comparison_points" not in run.tables():
        return 0
    points: list[Row] = run.read_table("comparison_points").to_pylist()
    return sum(row["status"] == "failed" for row in points)


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


def _means_by_place(rows: Sequence[Row], column: str, left_out: Collection[Task]) -> dict[Place, float]:
    """Mean of a column at each place, by task and over all tasks but those `left_out`; a row counts once."""
    found: dict[Place, list[float]] = defaultdict(list)
    for row in rows:
        if row[column] is None:
            continue
        place = Place(row["model"], row["task"], row["device"], row["method"])
        found[place].append(float(row[column]))
        if (place.model, place.task) not in left_out:
            found[place._replace(task=ALL_TASKS)].append(float(row[column]))
    return {place: sum(own) / len(own) for place, own in found.items()}


def _reasons(
    lost: Sequence[Against], hits: Mapping[Place, float], errors: Mapping[Place, float]
) -> list[str]:
    """Of how many losses the share of right domains or the reconstruction error may be the reason."""
    crossbars = [
        (one.place._replace(method=OURS), one.place)
        for one in lost
        if one.place in errors and one.place._replace(method=OURS) in errors
    ]
    if not crossbars:
        return []
    fewer = {other for own, other in crossbars if own in hits and other in hits and hits[own] < hits[other]}
    worse = {other for own, other in crossbars if errors[own] > errors[other]}
    neither = len(crossbars) - len(fewer | worse)
    return [
        f"Of {len(crossbars)} losses to methods on a crossbar, NVCiM-PT found the right domain less often than the "
        f"other in {len(fewer)} and has the larger reconstruction error in {len(worse)}; neither in {neither}, where "
        "what is left is tuning and chance."
    ]


def _most_seeds(found: Iterable[Score]) -> int:
    """The most seeds that any of the scores has."""
    return max((len(score.by_seed) for score in found), default=0)


def _fewer_seeds(grid: Sequence[Row]) -> list[str]:
    """A note of the methods that ran in fewer seeds than others."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for row in grid:
        seeds[row["method"]].add(row["repeat"])
    most = max(map(len, seeds.values()), default=0)
    fewer = {method: len(seeds[method]) for method in in_table_order(set(seeds)) if len(seeds[method]) < most}
    if not fewer:
        return []
    listed = ", ".join(f"{method} {count}" for method, count in fewer.items())
    return [f"Seeds, where fewer than {most}: {listed}; compared over the seeds that both methods have."]


def _shared_note(users: int) -> list[str]:
    """That seeds share users, if they do."""
    if not users:
        return []
    return [
        f"{users} user{'s' if users > 1 else ''} (counted per task) of the data answer in more than one seed: seeds "
        "are then not independent of each other, and p is smaller than it should be."
    ]


def _unanswered_notes(model: str, shares: Mapping[Task, float], left_out: Sequence[Task]) -> list[str]:
    """How many questions had no answer, and which tasks the mean is without."""
    own = {task: share for (name, task), share in sorted(shares.items()) if name == model}
    if not any(own.values()):
        return ["Every question fits the model's context."]
    listed = ", ".join(f"{task} {share:.1%}" for task, share in own.items())
    said = [f"Questions that do not fit the model's context, and score 0 for every method: {listed}."]
    if left_out:
        names = ", ".join(task for _, task in left_out)
        said.append(
            f"More than {MOST_UNANSWERED:.0%} of the questions are such in {names}: left out of every mean over tasks."
        )
    return said


def _lead(found: Difference | None) -> str:
    """A difference, and whether it is told apart."""
    if found is None:
        return "missing"
    return _signed(found.mean) + ("" if found.verdict == "not told apart" else f", {found.verdict}")


def _by_seed(rows: Sequence[Row], column: str) -> list[float]:
    """A column's mean in each seed."""
    groups: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row[column] is not None:
            groups[row["repeat"]].append(float(row[column]))
    return [sum(own) / len(own) for _, own in sorted(groups.items())]


def _plus_minus(numbers: Sequence[float], most: int) -> str:
    """Mean and spread of a number per seed; with how many there are, where that is fewer than `most`."""
    middle = mean(numbers)
    if middle is None:
        return ""
    count = f" ({len(numbers)})" if len(numbers) < most else ""
    return (f"{middle:.3f} ± {spread(numbers):.3f}" if len(numbers) > 1 else f"{middle:.3f}") + count


def _has_count(rows: Iterable[Sequence[str]]) -> bool:
    """Whether a cell of numbers says how many seeds it has."""
    return any("±" in cell and cell.endswith(")") for row in rows for cell in row)


def _cell(score: Score | None, marked: Place | None, most: int) -> str:
    if score is None:
        return ""
    mark = f" {BEST}" if score.place == marked else ""
    return _plus_minus(list(score.by_seed.values()), most) + mark


def _count(number: float) -> str:
    """A mean of counts: `2.5`, `32,768`."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def _signed(number: float) -> str:
    return f"{number:+.3f}"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
