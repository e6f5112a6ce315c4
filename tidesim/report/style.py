"""Colours and layout shared by every figure."""

from html import escape
from zlib import crc32

import plotly.graph_objects as go

# Every colour has a contrast of at least 3:1 on white and on black, and within resources and within
# policies any two stay apart (CIE76 distance of 16 or more) under simulated colour-blindness
# (Machado et al. 2009, severity 1); tests/test_trace_figures.py computes both.
RESOURCES = {
    "gpu": "#3B7DD8",
    "cpu": "#D5661A",
    "h2d": "#1E9E77",
    "d2h": "#C269B0",
    "host": "#5F6A72",
}
POLICIES = {
    "schedule": "#A7178F",
    "tide": "#592EEF",
    "mixtral-offload": "#D671A8",
    "fiddler": "#7C985D",
    "static-frequency": "#406450",
    "pay": "#B49000",
    "previous-step": "#3078B4",
    "hybrimoe": "#9024C0",
    "q-split": "#CC5478",
    "full-knowledge": "#9060FC",
    "all-gpu": "#B878EF",
    "all-cpu": "#A9380D",
}
PALETTE = RESOURCES | POLICIES
SERIES = tuple(RESOURCES.values())
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x")

INK = "#808080"  # reads on light and dark pages alike
_GRID = "rgba(128,128,128,0.25)"


def color_of(name: str) -> str:
    """Return the colour of a resource or policy; other names get a lasting one from `SERIES`."""
    return PALETTE.get(name) or SERIES[crc32(name.encode()) % len(SERIES)]


def new_figure(title: str, *, x: str, y: str) -> go.Figure:
    """Return an empty figure that reads on light and dark pages.

    Parameters
    ----------
    title : str
    x, y : str
        Axis titles with units.
    """
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": INK, "ticks": "outside"}
    return go.Figure(
        layout={
            "title": {"text": escape(title), "x": 0.02},  # plotly takes some HTML
            "xaxis": axis | {"title": {"text": x}},
            "yaxis": axis | {"title": {"text": y}},
            "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": "#333333", "font": {"color": "#FFFFFF"}},
            "legend": {"orientation": "h", "y": -0.22, "yanchor": "top"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "orientation": "v"},
            "template": "none",
            "margin": {"l": 64, "r": 24, "t": 56, "b": 72},
        }
    )


def add_line(
    figure: go.Figure, points: dict[int, float], *, name: str, series: int = 0, style: int = 0
) -> None:
    """Draw one curve: `series` picks the colour, `style` dash and marker."""
    figure.add_scatter(
        x=list(points),
        y=list(points.values()),
        name=escape(name),
        mode="lines+markers",
        line={"color": SERIES[series % len(SERIES)], "dash": DASHES[style % len(DASHES)]},
        marker={"symbol": MARKERS[style % len(MARKERS)], "size": 8},
    )
