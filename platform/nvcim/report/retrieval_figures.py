"""Figures of what a search costs: time and energy against the number of stored token sets."""

from collections.abc import Sequence

import plotly.graph_objects as go

from nvcim.report.figures import Figure
from nvcim.report.groups import Row, basis_of, distinct
from nvcim.report.retrieval_tables import CROSSBAR, one_per_processor
from nvcim.report.style import colours, markers, styled
from nvcim.report.units import engineering

_NOTE = (
    "Solid lines are measured, dashed ones modelled; what each rests on stands in the tables of this section. "
    "Ratios are this model's own, not a reproduction of the paper's."
)


def retrieval_figures(rows: Sequence[Row]) -> list[Figure]:
    """Latency, then energy of one search; rows of the table `retrieval_cost`."""
    single = one_per_processor(rows)
    made = [_lines(single, "latency_s", "s", "time of one search, s (log)")]
    metered = [row for row in single if row["energy_j"] is not None]
    return [*made, _lines(metered, "energy_j", "J", "energy of one search, J (log)")] if metered else made


def _lines(rows: Sequence[Row], column: str, unit: str, label: str) -> Figure:
    """One line per processor and basis."""
    plot = go.Figure()
    processors = distinct(rows, "processor")
    colour, marker = colours(processors), markers(processors)
    for name in processors:
        for basis in distinct([row for row in rows if row["processor"] == name], "basis"):
            own = [row for row in rows if (row["processor"], row["basis"]) == (name, basis)]
            plot.add_scatter(
                x=[row["ovts"] for row in own],
                y=[row[column] for row in own],
                mode="lines+markers",
                line={"color": colour[name], "dash": "solid" if basis == "measured" else "dash"},
                marker={"symbol": marker[name], "size": 9},
                name=f"{name} ({basis})",
                text=[row["assumption"] for row in own],
            )
    most = max(row["ovts"] for row in rows)
    largest = [row for row in rows if row["ovts"] == most]
    ends = ", ".join(
        f"{'crossbar' if row['what'] == CROSSBAR else row['processor']} {engineering(row[column], unit)}"
        for row in (largest[0], max(largest, key=lambda row: float(row[column])))
    )
    styled(
        plot, f"At {most:,} stored token sets: {ends}", "stored token sets (logarithmic)", label, height=520
    )
    plot.update_xaxes(type="log")
    plot.update_yaxes(type="log")
    plot.update_layout(legend={"y": -0.3})
    return Figure(plot, basis_of(rows), _NOTE)
