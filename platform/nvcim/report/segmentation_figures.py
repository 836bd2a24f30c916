"""Figures of a segmentation comparison: quantizers, annotation budget, memory against score, crossbars, overlays."""

from collections.abc import Mapping, Sequence
from typing import Literal

import plotly.graph_objects as go

from nvcim.report.comparison_figures import faint
from nvcim.report.figures import Figure
from nvcim.report.groups import Row, basis_of, distinct, mean, spread, values, where
from nvcim.report.segmentation_tables import STRATEGY_ORDER, capital, in_quantizer_order
from nvcim.report.style import WIDE, colours, markers, styled
from nvcim.segmentation.crossbar_study import Curve, curves
from nvcim.sweeps.segmentation_overlays import figure_name, panel_weights
from nvcim.sweeps.segmentation_settings import BUDGET, EVERYTHING, FLOAT, FULL, GRID
from nvcim.sweeps.segmentation_statistics import MEASURES, extremes, strategy_of

_WHOLE = "whole pool"
Axis = Literal["sigma", "weight_bits"]
_AXES: dict[Axis, str] = {
    "sigma": "global programming variation sigma, relative",
    "weight_bits": "bits of a weight on the crossbars",
}
_STEPS = {"largest": "by the largest weight", "by_error": "by the error"}


def score_figures(rows: Sequence[Row]) -> list[Figure]:
    """Bars by quantizer, budget curves, memory against score; rows of `segmentation_scores`."""
    made = []
    grid, curve = where(rows, part=GRID), where(rows, part=BUDGET)
    if grid:
        made += [_quantizer_bars(grid, column, measure) for column, measure in MEASURES.items()]
    if len({row["annotated"] for row in curve}) > 1:
        made += [_budget_curve(curve, column, measure) for column, measure in MEASURES.items()]
    for part, title in ((FULL, "trained on the whole pool"), (GRID, "trained on QSA's images")):
        own = [row for row in where(rows, part=part) if part == FULL or strategy_of(row) == "QSA"]
        if own:
            made.append(_memory_scatter(own, title))
    return made


def crossbar_figures(rows: Sequence[Row]) -> list[Figure]:
    """Score against variation and against bits; rows of `segmentation_crossbars`."""
    figures = []
    for axis in _AXES:
        # A repetition has networks of its own, so a curve of each; what is drawn is their mean.
        repeats = [
            curves(where(rows, repeat=repeat), axis, "object_dice") for repeat in distinct(rows, "repeat")
        ]
        groups: dict[tuple[str, str, tuple[str, float]], dict[str, list[Curve]]] = {}
        for curve in (curve for found in repeats for curve in found):
            place = (curve.device, curve.step, curve.fixed)
            groups.setdefault(place, {}).setdefault(curve.model, []).append(curve)
        for place, by_model in sorted(groups.items()):
            figures.append(_crossbar_lines(by_model, axis, place, basis_of(rows)))
    return figures


def overlay_captions(image_rows: Sequence[Row], count: int) -> dict[str, str]:
    """A caption for each overlay by its figure's name; rows of `segmentation_images`."""
    captions = {}
    for extreme in extremes(image_rows, count):
        weights = panel_weights(extreme)
        dice = ", ".join(f"{name} (object Dice {extreme.dice[name]:.3f})" for name in weights)
        who = _WHOLE if extreme.strategy == EVERYTHING else extreme.strategy
        networks = "1 network" if extreme.networks == 1 else f"{extreme.networks} networks"
        captions[figure_name(extreme)] = (
            f"{extreme.kind} {extreme.place + 1}: {extreme.image[:16]}, {who}, {networks}, seed {extreme.repeat}. "
            f"Left to right: truth, {dice}. Blue: truth's outlines; red: found."
        )
    return captions


def _quantizer_bars(rows: Sequence[Row], column: str, measure: str) -> Figure:
    """A bar per quantizer for each strategy and number of networks, with the spread over seeds."""
    plot = go.Figure()
    quantizers = in_quantizer_order(row["quantizer"] for row in rows)
    groups = sorted(
        {(row["networks"], strategy_of(row)) for row in rows}, key=lambda pair: (pair[0], pair[1])
    )
    names = {pair: f"{pair[1]}, {pair[0]} network{'s' * (pair[0] > 1)}" for pair in groups}
    colour = colours(names.values())
    for networks, strategy in groups:
        own = [row for row in rows if row["networks"] == networks and strategy_of(row) == strategy]
        scores = [values(where(own, quantizer=name), column) for name in quantizers]
        name = names[networks, strategy]
        plot.add_bar(
            x=quantizers,
            y=[mean(found) for found in scores],
            error_y={"type": "data", "array": [spread(found) for found in scores]},
            marker={"color": colour[name], "pattern": {"shape": "/" if strategy == "SA" else ""}},
            name=name,
        )
    means = {name: mean(values(where(rows, quantizer=name), column)) or 0.0 for name in quantizers}
    best = max(means, key=lambda name: means[name])
    title = f"{capital(measure)}: {best} has the highest mean, {means[best]:.3f}"
    if FLOAT in means and best != FLOAT:
        title += f" (float {means[FLOAT]:.3f})"
    styled(plot, title, "weights of the segmentation networks", f"{measure} (high is good)", height=460)
    plot.update_layout(meta=WIDE, bargap=0.2)
    note = "Bars: mean over seeds, pooled over each seed's held-back images; whiskers: standard deviation over seeds."
    return Figure(plot, basis_of(rows), note)


def _budget_curve(rows: Sequence[Row], column: str, measure: str) -> Figure:
    """Score against annotated images: a line per strategy, a band of one standard deviation over seeds."""
    plot = go.Figure()
    present = [
        name for name in STRATEGY_ORDER if name != EVERYTHING and name in {strategy_of(row) for row in rows}
    ]
    colour, marker = colours(STRATEGY_ORDER), markers(STRATEGY_ORDER)
    ends = []
    for strategy in present:
        own = [row for row in rows if strategy_of(row) == strategy]
        x = sorted({row["annotated"] for row in own})
        groups = [values(where(own, annotated=count), column) for count in x]
        middle = [mean(found) or 0.0 for found in groups]
        upper = [m + spread(found) for m, found in zip(middle, groups, strict=True)]
        lower = [m - spread(found) for m, found in zip(middle, groups, strict=True)]
        plot.add_scatter(
            x=[*x, *reversed(x)],
            y=[*upper, *reversed(lower)],
            mode="lines",
            fill="toself",
            fillcolor=faint(colour[strategy]),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        plot.add_scatter(
            x=x,
            y=middle,
            mode="lines+markers",
            line={"color": colour[strategy]},
            marker={"symbol": marker[strategy], "size": 9},
            name=strategy,
        )
        ends.append(f"{strategy} {middle[-1]:.3f}")
    whole = values([row for row in rows if strategy_of(row) == EVERYTHING], column)
    if whole:
        level = mean(whole) or 0.0
        plot.add_hline(y=level, line={"color": "#555", "dash": "dash"})
        plot.add_scatter(
            x=[None], y=[None], mode="lines", line={"color": "#555", "dash": "dash"}, name=_WHOLE
        )
        ends.append(f"{_WHOLE} {level:.3f}")
    title = f"{capital(measure)} at the final budget: {', '.join(ends)}"
    styled(plot, title, "annotated images", f"{measure} (high is good)")
    note = (
        "One float network trained on each round's images. Bands: one standard deviation over seeds to either side of "
        "the mean; all strategies share a seed's start set."
    )
    return Figure(plot, basis_of(rows), note)


def _memory_scatter(rows: Sequence[Row], about: str) -> Figure:
    """Object Dice against the weights' bytes on disk, a mark per quantizer and number of networks."""
    plot = go.Figure()
    quantizers = in_quantizer_order(row["quantizer"] for row in rows)
    counts = sorted(distinct(rows, "networks"))
    names = {count: "1 network" if count == 1 else f"{count} networks" for count in counts}
    colour, marker = colours(names.values()), markers(names.values())
    for count in counts:
        groups = [where(rows, quantizer=name, networks=count) for name in quantizers]
        plot.add_scatter(
            x=[(mean(values(group, "weight_bytes")) or 0.0) / 1024 for group in groups],
            y=[mean(values(group, "object_dice")) for group in groups],
            error_y={"type": "data", "array": [spread(values(group, "object_dice")) for group in groups]},
            mode="markers+text",
            text=quantizers,
            # Neighbours in bytes are neighbours in order: one name above, the next below.
            textposition=["top right" if place % 2 else "bottom right" for place in range(len(quantizers))],
            marker={"color": colour[names[count]], "symbol": marker[names[count]], "size": 11},
            name=names[count],
        )
    sizes = {
        name: mean(values(where(rows, quantizer=name, networks=counts[0]), "weight_bytes")) or 0.0
        for name in quantizers
    }
    small = min(sizes, key=lambda name: sizes[name])
    title = f"Networks {about}: {small} is smallest, {sizes[small] / 1024:.0f} KiB a network"
    if FLOAT in sizes and small != FLOAT:
        title += f", {sizes[FLOAT] / sizes[small]:.1f} times less than float"
    styled(plot, title, "weights on disk, KiB (logarithmic)", "object Dice (high is good)")
    plot.update_xaxes(type="log")
    plot.update_layout(meta=WIDE)
    note = "Bytes are read off the files, of all networks that are averaged. Whiskers: standard deviation over seeds."
    return Figure(plot, basis_of(rows), note)


def _crossbar_lines(
    by_model: Mapping[str, Sequence[Curve]],
    axis: Axis,
    place: tuple[str, str, tuple[str, float]],
    basis: str,
) -> Figure:
    """Object Dice along one axis of the crossbars, a line per weights: the mean of its repetitions' curves."""
    device, step, (other, value) = place
    plot = go.Figure()
    models = in_quantizer_order(by_model)
    colour, marker = colours(models), markers(models)
    lasts: dict[str, float] = {}
    for model in models:
        own = by_model[model]
        x = sorted({at for curve in own for at in curve.axis})
        points = [
            [(curve.mean[i], curve.low[i], curve.high[i]) for curve in own for i in [curve.axis.index(at)]]
            for at in x
            if all(at in curve.axis for curve in own)
        ]
        middle = [sum(point[0] for point in found) / len(found) for found in points]
        plot.add_scatter(
            x=x,
            y=middle,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [max(p[2] for p in found) - m for found, m in zip(points, middle, strict=True)],
                "arrayminus": [m - min(p[1] for p in found) for found, m in zip(points, middle, strict=True)],
            },
            mode="lines+markers",
            line={"color": colour[model]},
            marker={"symbol": marker[model], "size": 9},
            name=f"{model} (ideal {sum(curve.ideal for curve in own) / len(own):.3f})",
        )
        lasts[model] = middle[-1] if axis == "sigma" else middle[0]
    best = max(lasts, key=lambda model: lasts[model])
    where_from = f"{device}, {value:g} bits" if other == "weight_bits" else f"{device}, sigma {value:g}"
    hardest = "the largest sigma" if axis == "sigma" else "the fewest bits"
    title = f"{where_from}, step {_STEPS[step]}: {best} is best at {hardest}, object Dice {lasts[best]:.3f}"
    styled(plot, title, _AXES[axis], "object Dice (high is good)", height=460)
    note = (
        "Lines: mean over seeds of the mean over chips; whiskers: lowest and highest chip. In brackets: the same "
        "networks on digital arithmetic."
    )
    return Figure(plot, basis, note)
