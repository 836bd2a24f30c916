"""How every figure looks: dark on light, and colours that a colour-blind reader can tell apart."""

import textwrap
from collections.abc import Iterable

import plotly.graph_objects as go

# Okabe and Ito, "Color Universal Design", 2008; yellow is left out, it is too faint on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
WIDE = "wide"
"""As a figure's `layout.meta`: it needs the whole width of the page."""
SEQUENTIAL = "Cividis"  # even in brightness for all kinds of colour vision (Nunez et al., 2018)


def colours(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, the same for the same set of names."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(sorted(set(names)))}


def markers(names: Iterable[str]) -> dict[str, str]:
    """One marker shape per name, so that colour is never the only difference."""
    return {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(sorted(set(names)))}


def styled(figure: go.Figure, title: str, x: str, y: str, height: int = 420) -> go.Figure:
    """Give `figure` its title, its axis labels (with units) and the common look, and return it."""
    figure.update_layout(
        template="plotly_white",
        title={
            "text": "<br>".join(textwrap.wrap(title, 66)),
            "x": 0.0,
            "xanchor": "left",
            "font": {"size": 15},
        },
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1b1b1b"},
        height=height,
        margin={"l": 70, "r": 20, "t": 60, "b": 60},
        legend={"orientation": "h", "y": -0.22, "x": 0},
    )
    axis = {"showline": True, "linecolor": "#555", "ticks": "outside", "gridcolor": "#e4e4e4"}
    figure.update_xaxes(title_text=x, **axis)
    figure.update_yaxes(title_text=y, **axis)
    return figure
