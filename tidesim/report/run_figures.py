"""Figures of simulated and measured runs: time by interval, policies compared, timelines."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from tidesim.records import Record, Resource
from tidesim.report.style import add_line, color_of, new_figure


def interval_figure(
    objective_s: Sequence[float], simulated_s: Mapping[int, float], *, chosen: int
) -> go.Figure:
    """Draw seconds per block over the refresh interval.

    Parameters
    ----------
    objective_s : sequence of float
        Seconds per block of interval 1, 2, … as the solver sees them.
    simulated_s : mapping of int to float
        Seconds per block of some intervals, simulated.
    chosen : int
        The solver's interval, marked.
    """
    figure = new_figure(
        "Time by refresh interval", x="interval τ (denoise steps)", y="milliseconds per block"
    )
    objective = {tau: 1e3 * value for tau, value in enumerate(objective_s, start=1)}
    add_line(figure, objective, name="solver's objective (training requests)")
    add_line(
        figure,
        {tau: 1e3 * value for tau, value in simulated_s.items()},
        name="simulated (held-out requests)",
        series=1,
        style=1,
    )
    figure.add_vline(
        x=chosen, line={"color": color_of("schedule"), "dash": "dash"},
        annotation_text=f"solver's choice: {chosen}",
    )  # fmt: skip
    return figure


def policies_figure(
    tokens_per_s: Mapping[str, float], *, bounds: Sequence[str] = (), chosen: str = ""
) -> go.Figure:
    """Draw one bar per policy; bounds are hatched, the chosen schedule has its own colour.

    Parameters
    ----------
    tokens_per_s : mapping of str to float
    bounds : sequence of str
        Names that are limits, not runtimes.
    chosen : str
        The solver's choice.
    """
    figure = new_figure("Throughput by policy", x="tokens per second (simulated)", y="")
    names = list(tokens_per_s)[::-1]
    figure.add_bar(
        y=names,
        x=[tokens_per_s[name] for name in names],
        orientation="h",
        marker={
            "color": [
                color_of("schedule" if name == chosen else name.split(" ")[0]) for name in names
            ],
            "pattern": {"shape": ["/" if name in bounds else "" for name in names]},
        },
        text=[f"{tokens_per_s[name]:.3g}" for name in names],
        textposition="auto",
    )
    figure.update_layout(hovermode="closest", margin={"l": 180}, height=120 + 26 * len(names))
    return figure


def timeline_figure(records: Sequence[Record]) -> go.Figure:
    """Draw operations as bars, one row per resource.

    Parameters
    ----------
    records : sequence of Record
        A few passes; time starts at the first of them.
    """
    start = min((row.start_s for row in records), default=0.0)
    figure = new_figure("Timeline by resource", x="milliseconds", y="")
    for resource in Resource:
        rows = [row for row in records if row.resource is resource]
        if not rows:
            continue
        figure.add_bar(
            y=[str(resource)] * len(rows),
            x=[1e3 * (row.end_s - row.start_s) for row in rows],
            base=[1e3 * (row.start_s - start) for row in rows],
            orientation="h",
            name=str(resource),
            marker={"color": color_of(str(resource)), "line": {"width": 0.5, "color": "#808080"}},
            customdata=[(row.label, row.block, row.step, row.layer) for row in rows],
            hovertemplate="%{customdata[0]}<br>block %{customdata[1]}, step %{customdata[2]}, "
            "layer %{customdata[3]}<br>%{base:.4f} ms + %{x:.4f} ms<extra></extra>",
        )
    figure.update_layout(
        barmode="overlay", hovermode="closest", height=340, showlegend=False,
        yaxis={"categoryorder": "array", "categoryarray": [str(r) for r in reversed(Resource)]},
    )  # fmt: skip
    return figure
