"""Figures of a run, one function per table. Each takes the table's rows and returns the section's figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from nvcim.report.groups import Row, basis_of, distinct, mean, spread, values, where
from nvcim.report.style import SEQUENTIAL, colours, markers, styled
from nvcim.storage.names import exact


@dataclass(frozen=True)
class Figure:
    """A figure with what a reader must know of it: where its numbers come from, and what its marks mean."""

    plot: go.Figure
    basis: str
    note: str


def stage_figures(rows: Sequence[Row]) -> list[Figure]:
    """Wall-clock time of each stage."""
    total = sum(row["seconds"] for row in rows)
    slowest = max(rows, key=lambda row: row["seconds"])
    bars = go.Bar(
        x=[row["seconds"] for row in rows],
        y=[row["stage"] for row in rows],
        orientation="h",
        marker_color=colours(["stage"])["stage"],
        text=[f"{row['seconds']:.1f} s" for row in rows],
    )
    title = f"The run took {total:.0f} s, most of it in '{slowest['stage']}' ({slowest['seconds']:.0f} s)"
    plot = styled(go.Figure(bars), title, "wall-clock time, s", "stage", height=120 + 34 * len(rows))
    plot.update_yaxes(autorange="reversed")
    return [Figure(plot, basis_of(rows), "Wall-clock time of each stage on the machine that ran it.")]


def fleet_figures(rows: Sequence[Row]) -> list[Figure]:
    """Scores by method, one figure per task and metric; then how often the search finds the right domain."""
    figures = [
        _method_scores(where(rows, task=task, metric=metric), task, metric)
        for task in distinct(rows, "task")
        for metric in distinct(where(rows, task=task), "metric")
    ]
    searched = [row for row in rows if row["hit_rate"] is not None]
    return [*figures, _hit_rates(searched)] if searched else figures


def _method_scores(rows: Sequence[Row], task: str, metric: str) -> Figure:
    """A point per node, coloured by device, and a bar at each method's mean."""
    methods = distinct(rows, "method")
    means = {method: mean(values(where(rows, method=method), "score")) or 0.0 for method in methods}
    ordered = sorted(methods, key=lambda method: means[method])
    plot = go.Figure(
        go.Bar(
            x=ordered,
            y=[means[method] for method in ordered],
            error_y={
                "type": "data",
                "array": [spread(values(where(rows, method=m), "score")) for m in ordered],
            },
            marker={"color": "#d9d9d9", "line": {"color": "#777", "width": 1}},
            name="mean, standard deviation over nodes",
        )
    )
    _add_points_by_device(plot, rows, "method", "score")
    best, worst = ordered[-1], ordered[0]
    title = f"{task}: {best} scores {means[best]:.2f}"
    if best != worst:
        title += f", {worst} {means[worst]:.2f}"
    styled(plot, title, "how the prompt is chosen", f"{metric} over a node's queries")
    plot.update_yaxes(rangemode="tozero")
    return Figure(plot, basis_of(rows), "Each point is a node; its colour and shape tell its memory device.")


def _hit_rates(rows: Sequence[Row]) -> Figure:
    """How often the search on crossbars returns a prompt of the query's domain, by method and device."""
    plot = go.Figure()
    colour = colours(distinct(rows, "method"))
    devices = sorted(distinct(rows, "device"))
    for method in distinct(rows, "method"):
        groups = [values(where(rows, method=method, device=device), "hit_rate") for device in devices]
        plot.add_bar(
            x=devices,
            y=[mean(group) for group in groups],
            error_y={"type": "data", "array": [spread(group) for group in groups]},
            marker_color=colour[method],
            name=method,
        )
    overall = mean(values(rows, "hit_rate")) or 0.0
    title = (
        f"The search on crossbars finds a prompt of the query's own domain in {overall:.0%} of the queries"
    )
    styled(plot, title, "memory device", "share of queries, 0..1")
    plot.update_yaxes(range=[0, 1.05])
    return Figure(plot, basis_of(rows), "Bars are means over nodes, whiskers their standard deviation.")


def _add_points_by_device(plot: go.Figure, rows: Sequence[Row], x: str, y: str) -> None:
    """Add one point per row, coloured and shaped by device."""
    devices = distinct(rows, "device")
    colour, marker = colours(devices), markers(devices)
    for device in sorted(devices):
        own = where(rows, device=device)
        plot.add_scatter(
            x=[row[x] for row in own],
            y=[row[y] for row in own],
            mode="markers",
            marker={"color": colour[device], "symbol": marker[device], "size": 9, "opacity": 0.85},
            name=device,
        )


_OBJECT_SCORES = (
    ("object_f1", "object F1, 0..1 (higher is better)"),
    ("object_dice", "object Dice, 0..1 (higher is better)"),
    ("object_hausdorff", "object Hausdorff, pixels (lower is better)"),
)


def segmentation_figures(rows: Sequence[Row]) -> list[Figure]:
    """Scores of float and quantized weights, ideal and on crossbars; then the weights' memory."""
    figures = [_object_scores(rows, column, label) for column, label in _OBJECT_SCORES]
    sized = [row for row in rows if row["weight_bytes"] is not None]
    return [*figures, _weight_memory(sized)] if sized else figures


def _object_scores(rows: Sequence[Row], column: str, label: str) -> Figure:
    """One score: a bar per arithmetic, grouped by weights, with the spread over chips."""
    plot = go.Figure()
    models = distinct(rows, "model")
    arithmetics = list(dict.fromkeys(_arithmetic(row) for row in rows))
    colour = colours(arithmetics)
    for arithmetic in arithmetics:
        own = [row for row in rows if _arithmetic(row) == arithmetic]
        groups = [values(where(own, model=model), column) for model in models]
        plot.add_bar(
            x=models,
            y=[mean(group) for group in groups],
            error_y={"type": "data", "array": [spread(group) for group in groups]},
            marker_color=colour[arithmetic],
            name=arithmetic,
        )
    averages = {a: mean(values([r for r in rows if _arithmetic(r) == a], column)) or 0.0 for a in arithmetics}
    title = label.split(",")[0] + ": " + ", ".join(f"{a} {v:.3g}" for a, v in averages.items())
    styled(plot, title, "weights", label)
    return Figure(plot, basis_of(rows), "Whiskers: standard deviation over independently programmed chips.")


def _arithmetic(row: Row) -> str:
    """What computed the layers, with the device where it was a crossbar."""
    if row["device"] is None:
        return str(row["arithmetic"])
    return f"{row['arithmetic']}, {row['device']}, sigma {exact(row['sigma'])}"


def _weight_memory(rows: Sequence[Row]) -> Figure:
    """Memory of the weights of each model."""
    first = {row["model"]: row["weight_bytes"] for row in rows}
    largest, smallest = max(first.values()), min(first.values())
    bars = go.Bar(
        x=list(first), y=[size / 1024 for size in first.values()], marker_color=colours(["memory"])["memory"]
    )
    title = f"The smallest weights take {smallest / 1024:.0f} KiB, {largest / smallest:.1f} times less"
    plot = styled(go.Figure(bars), title, "weights", "memory of the weights, KiB")
    return Figure(plot, "measured", "Weights as packed, with scales and exponents; without a file's header.")


def sweep_figures(rows: Sequence[Row]) -> list[Figure]:
    """For each metric: the score against sigma, a line per number of bits, and a heat map per device."""
    done = [row for row in rows if row["status"] == "done" and row["score"] is not None]
    figures = []
    for metric in distinct(done, "metric"):
        of_metric = where(done, metric=metric)
        for device in sorted(distinct(of_metric, "device")):
            own = where(of_metric, device=device)
            figures += [_score_lines(own, metric, device), _score_map(own, metric, device)]
    return figures


def _score_lines(rows: Sequence[Row], metric: str, device: str) -> Figure:
    """Score against sigma, one line per number of weight bits, spread over repeats."""
    plot = go.Figure()
    bits = sorted(distinct(rows, "weight_bits"))
    sigmas = sorted(distinct(rows, "sigma"))
    names = [f"{b:02d} bits" for b in bits]
    colour, marker = colours(names), markers(names)
    for b, name in zip(bits, names, strict=True):
        groups = {s: values(where(rows, weight_bits=b, sigma=s), "score") for s in sigmas}
        present = [s for s in sigmas if groups[s]]
        plot.add_scatter(
            x=present,
            y=[mean(groups[s]) for s in present],
            error_y={"type": "data", "array": [spread(groups[s]) for s in present]},
            mode="lines+markers",
            line={"color": colour[name]},
            marker={"symbol": marker[name], "size": 9},
            name=f"{b} bits",
        )
    first, last = (mean(values(where(rows, sigma=s), "score")) or 0.0 for s in (sigmas[0], sigmas[-1]))
    title = f"{device}: {metric} goes from {first:.3g} at sigma {sigmas[0]:g} to {last:.3g} at {sigmas[-1]:g}"
    styled(plot, title, "global programming variation sigma, relative", f"{metric} ({_direction(rows)})")
    return Figure(plot, basis_of(rows), "Whiskers: standard deviation over independent programmings.")


def _score_map(rows: Sequence[Row], metric: str, device: str) -> Figure:
    """Score over weight bits and sigma."""
    bits, sigmas = sorted(distinct(rows, "weight_bits")), sorted(distinct(rows, "sigma"))
    table = [[mean(values(where(rows, weight_bits=b, sigma=s), "score")) for s in sigmas] for b in bits]
    heat = go.Heatmap(
        z=table,
        x=[exact(s) for s in sigmas],  # one column a sigma
        y=[str(b) for b in bits],
        text=[["" if value is None else f"{value:.3g}" for value in line] for line in table],
        texttemplate="%{text}",
        colorscale=SEQUENTIAL,
        reversescale=rows[0]["better"] == "min",  # bright is good
        colorbar={"title": metric},
    )
    pick: Callable[..., Row] = max if rows[0]["better"] == "max" else min
    best = pick(rows, key=lambda row: row["score"])
    where_best = f"{best['weight_bits']} bits and sigma {best['sigma']:g}"
    title = f"{device}: the best {metric}, {best['score']:.3g}, is at {where_best}"
    plot = styled(go.Figure(heat), title, "global programming variation sigma, relative", "weight bits")
    plot.update_xaxes(type="category")
    plot.update_yaxes(type="category")
    return Figure(plot, basis_of(rows), "Numbers are means over independent programmings.")


def _direction(rows: Sequence[Row]) -> str:
    return "higher is better" if rows[0]["better"] == "max" else "lower is better"


def serving_figures(rows: Sequence[Row]) -> list[Figure]:
    """Latency of every request, by endpoint."""
    plot = go.Figure()
    endpoints = distinct(rows, "endpoint")
    colour, marker = colours(endpoints), markers(endpoints)
    for endpoint in endpoints:
        own = where(rows, endpoint=endpoint)
        plot.add_box(
            x=[endpoint] * len(own),
            y=[row["latency_ms"] for row in own],
            boxpoints="all",
            jitter=0.4,
            pointpos=0,
            marker={"color": colour[endpoint], "symbol": marker[endpoint], "size": 8},
            text=[f"{row['case']}: {row['status']}" for row in own],
            name=endpoint,
        )
    answered = [row for row in rows if row["status"] < 500]
    slowest = max(rows, key=lambda row: row["latency_ms"])
    title = f"{len(answered)} of {len(rows)} requests answered, the slowest in {slowest['latency_ms']:.0f} ms"
    styled(plot, title, "endpoint", "latency, ms (logarithmic)")
    plot.update_yaxes(type="log")
    return [Figure(plot, basis_of(rows), "Each point is a request, timed by the client on the same machine.")]
