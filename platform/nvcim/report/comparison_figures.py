"""Figures of a comparison: scores by device, the two sweeps with their spread, domains found, reconstruction."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from nvcim.report.comparison_tables import sets_per_user, sweep_rows, sweeps_of
from nvcim.report.figures import Figure
from nvcim.report.groups import Row, basis_of, distinct, mean, spread, values, where
from nvcim.report.style import WIDE, colours, markers, styled
from nvcim.sweeps.comparison_methods import BUFFER_SWEEP, GRID, MITIGATIONS, NO_DEVICE, OURS, in_table_order
from nvcim.sweeps.comparison_statistics import (
    Place,
    Score,
    Task,
    grid_rows,
    mostly_unanswered,
    over_tasks,
    scores,
    silent_shares,
    standings,
    verdicts,
)

BAND_OPACITY = 0.15
_SWEEP_AXES = {
    "sigma": "global programming variation sigma, relative",
    "buffer": "size of the data buffer, samples",
}


def comparison_figures(rows: Sequence[Row]) -> list[Figure]:
    """For each model: scores over all tasks, each sweep, and the share of right domains; rows of `comparison`.

    Tasks whose questions mostly do not fit the context are left out of means over tasks, as in the tables.
    """
    made = []
    for model in distinct(rows, "model"):
        own = where(rows, model=model)
        grid = grid_rows(own)
        left_out = mostly_unanswered(silent_shares(grid))
        if grid:
            made.append(_scores_by_device(grid, model, left_out))
        for part, column in sweeps_of(own):
            swept, device = sweep_rows(own, part)
            tasks = sorted(distinct(swept, "task"))
            made += [_sweep(where(swept, task=task), column, device, f"{model}, {task}") for task in tasks]
            counted = [task for task in tasks if (model, task) not in left_out]
            if len(tasks) > 1 and counted:
                of_counted = [row for row in swept if row["task"] in counted]
                name = f"{model}, mean over {len(counted)} tasks"
                made.append(_sweep(of_counted, column, device, name))
        searched = [row for row in grid if row["hit"] is not None]
        if searched:
            made.append(_domains_found(searched, model))
    return made


def set_figures(rows: Sequence[Row]) -> list[Figure]:
    """For each model: sets by buffer size, storage by method, reconstruction error; rows of `comparison_sets`."""
    made = []
    for model in distinct(rows, "model"):
        counts = sets_per_user(where(rows, model=model), BUFFER_SWEEP)
        if counts:
            made.append(_sets_by_buffer(counts, where(rows, model=model, part=BUFFER_SWEEP), model))
        own = where(rows, model=model, part=GRID)
        if not own:
            continue
        made.append(_storage(own, model))
        kept = [row for row in own if row["reconstruction_error"] is not None]
        if kept:
            made.append(_reconstruction(kept, model))
    return made


def _scores_by_device(rows: Sequence[Row], model: str, left_out: Sequence[Task]) -> Figure:
    """Mean over tasks of every method, a bar per device, whiskers over seeds."""
    found = over_tasks(scores(rows), left_out)
    plot = _bars_by_device(
        {(place.method, place.device): list(score.by_seed.values()) for place, score in found.items()}
    )
    title = f"{model}: {_against_mitigations(rows, left_out)}"
    _wide(plot, title, "mean score over tasks, 0..1")
    note = (
        "Bars: mean over seeds of the mean over tasks (accuracy, or ROUGE-1 of texts); whiskers: standard deviation "
        "over seeds. A method without a crossbar has one bar."
    )
    seeds = {place.method: len(score.by_seed) for place, score in found.items()}
    fewer = [
        f"{method} {seeds[method]}"
        for method in in_table_order(set(seeds))
        if seeds[method] < max(seeds.values())
    ]
    if fewer:
        note += f" Seeds, where fewer than {max(seeds.values())}: {', '.join(fewer)}."
    if left_out:
        note += (
            f" Without tasks whose questions mostly do not fit: {', '.join(task for _, task in left_out)}."
        )
    return Figure(plot, basis_of(rows), note)


def _against_mitigations(rows: Sequence[Row], left_out: Sequence[Task]) -> str:
    """On how many devices NVCiM-PT's mean is above that of every mitigation baseline, for a title."""
    found = standings(verdicts(rows, left_out))
    if not any(one.differences for one in found):
        return "mean scores by method"
    above = sum(one.above_all for one in found)
    return f"{OURS}'s mean is above all {len(MITIGATIONS)} mitigation baselines on {above} of {len(found)} devices"


def _sweep(rows: Sequence[Row], column: str, device: str, where_from: str) -> Figure:
    """Score against what is swept: a line per method, a band of one standard deviation over seeds."""
    plot = go.Figure()
    methods = in_table_order({row["method"] for row in rows})
    colour, marker = colours(methods), markers(methods)
    by_value: dict[float, dict[Place, Score]] = {
        value: over_tasks(scores(where(rows, **{column: value}))) for value in sorted(distinct(rows, column))
    }
    ends = []
    for method in methods:
        line = [
            (value, score.mean, score.spread or 0.0)
            for value, found in by_value.items()
            for place, score in found.items()
            if place.method == method
        ]
        if not line:
            continue
        x = [value for value, _, _ in line]
        upper, lower = [m + s for _, m, s in line], [m - s for _, m, s in line]
        plot.add_scatter(
            x=[*x, *reversed(x)],
            y=[*upper, *reversed(lower)],
            mode="lines",
            fill="toself",
            fillcolor=faint(colour[method]),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        plot.add_scatter(
            x=x,
            y=[middle for _, middle, _ in line],
            mode="lines+markers",
            line={"color": colour[method]},
            marker={"symbol": marker[method], "size": 9},
            name=method,
        )
        ends.append(f"{method} {line[0][1]:.3f} to {line[-1][1]:.3f}")
    title = f"{where_from}, {device}, {column} {_range(list(by_value))}: {', '.join(ends[:3])}"
    styled(plot, title, _SWEEP_AXES[column], "score, 0..1 (higher is better)")
    note = "Bands: one standard deviation over seeds to either side of the mean."
    if column == "buffer":
        note += " How many token sets a user has at each size is shown with what the methods keep."
    return Figure(plot, basis_of(rows), note)


def _sets_by_buffer(counts: Mapping[float, float], rows: Sequence[Row], model: str) -> Figure:
    """Token sets per user against the buffer's size, beside the sweep of scores."""
    sizes = sorted(counts)
    points = go.Scatter(
        x=sizes,
        y=[counts[size] for size in sizes],
        mode="lines+markers+text",
        text=[f"{counts[size]:.1f}" for size in sizes],
        textposition="top center",
        marker={"color": colours(["sets"])["sets"], "size": 9},
    )
    title = (
        f"{model}: {counts[sizes[0]]:.1f} token sets per user at a buffer of {sizes[0]:g}, "
        f"{counts[sizes[-1]]:.1f} at {sizes[-1]:g}"
    )
    plot = styled(go.Figure(points), title, _SWEEP_AXES["buffer"], "token sets per user (mean)")
    plot.update_yaxes(rangemode="tozero")
    note = (
        f"Of {OURS} in the buffer sweep. Where a fixed number of sets is made of every full buffer, small buffers make "
        "more sets of a user's history: the sweep of scores then compares numbers of sets as well."
    )
    return Figure(plot, basis_of(rows), note)


def _domains_found(rows: Sequence[Row], model: str) -> Figure:
    """How often a search returns a set of the query's own domain, by method and device."""
    seeds = distinct(rows, "repeat")
    groups: dict[tuple[str, str], list[float]] = {}
    for method in distinct(rows, "method"):
        for device in distinct(rows, "device"):
            shares = (
                mean(values(where(rows, method=method, device=device, repeat=seed), "hit")) for seed in seeds
            )
            groups[method, device] = [share for share in shares if share is not None]
    plot = _bars_by_device({key: found for key, found in groups.items() if found})
    ours = mean(values(where(rows, method=OURS), "hit"))
    title = (
        f"{model}: right domains found"
        if ours is None
        else f"{model}: {OURS} finds the right domain in {ours:.0%}"
    )
    _wide(plot, title, "share of queries, 0..1")
    plot.update_yaxes(range=[0, 1.05])
    return Figure(plot, basis_of(rows), "Bars: mean over seeds; whiskers: standard deviation over seeds.")


def _storage(rows: Sequence[Row], model: str) -> Figure:
    """What each method keeps for one user."""
    methods = in_table_order({row["method"] for row in rows})
    sizes = {method: mean(values(where(rows, method=method), "storage_bytes")) or 0.0 for method in methods}
    kept = {method: size for method, size in sizes.items() if size > 0}
    points = go.Scatter(  # no bars: a logarithmic axis has no zero for them to stand on
        x=list(kept),
        y=[size / 1024 for size in kept.values()],
        mode="markers",
        marker={"color": colours(["storage"])["storage"], "size": 11},
    )
    largest = max(kept, key=lambda method: kept[method], default="nothing")
    title = f"{model}: {largest} keeps the most for a user, {kept.get(largest, 0.0) / 1024:.1f} KiB"
    plot = styled(go.Figure(points), title, "method", "storage, KiB (log)")
    plot.update_yaxes(type="log")
    note = (
        "Mean over users; without the shared model and autoencoder. Methods that keep nothing have no point."
    )
    return Figure(plot, basis_of(rows), note)


def _reconstruction(rows: Sequence[Row], model: str) -> Figure:
    """Error of tokens read back from each device, by method."""
    groups = {
        (method, device): [
            middle
            for seed in distinct(rows, "repeat")
            if (
                middle := mean(
                    values(where(rows, method=method, device=device, repeat=seed), "reconstruction_error")
                )
            )
            is not None
        ]
        for method in distinct(rows, "method")
        for device in distinct(rows, "device")
    }
    plot = _bars_by_device({key: found for key, found in groups.items() if found})
    ours = mean(values(where(rows, method=OURS), "reconstruction_error"))
    title = f"{model}: error of tokens read back" + ("" if ours is None else f", {ours:.3f} for {OURS}")
    _wide(plot, title, "relative RMS error (lower is better)")
    return Figure(plot, basis_of(rows), "Bars: mean over seeds; whiskers: standard deviation over seeds.")


def _bars_by_device(groups: dict[tuple[str, str], list[float]]) -> go.Figure:
    """Bars of (method, device) -> numbers: a cluster per method, a colour and pattern per device."""
    methods = in_table_order({method for method, _ in groups})
    devices = list(dict.fromkeys(device for _, device in groups))
    colour = colours(devices)
    plot = go.Figure()
    for place, device in enumerate(devices):
        here = [method for method in methods if (method, device) in groups]
        plot.add_bar(
            x=here,
            y=[mean(groups[method, device]) for method in here],
            error_y={"type": "data", "array": [spread(groups[method, device]) for method in here]},
            marker={"color": colour[device], "pattern": {"shape": _PATTERNS[place % len(_PATTERNS)]}},
            name="no crossbar" if device == NO_DEVICE else device,
        )
    plot.update_xaxes(categoryorder="array", categoryarray=methods)
    return plot


def _wide(plot: go.Figure, title: str, y: str) -> None:
    """The common look for many bars: the page's whole width, and room for slanted names below."""
    styled(plot, title, "method", y, height=520)
    plot.update_layout(meta=WIDE, margin={"b": 170}, legend={"y": -0.5}, bargap=0.15)
    plot.update_xaxes(tickangle=-25)


_PATTERNS = ("", "/", "\\", "x", "-", "|", ".")


def _range(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"


def faint(colour: str) -> str:
    """A hexadecimal colour as a faint one for plotly."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND_OPACITY})"
