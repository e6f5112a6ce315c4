"""Figures of simulated and measured runs: time by interval, policies compared, timelines."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from tidesim.records import Counter, Record, Resource
from tidesim.report.style import DASHES, MARKERS, SERIES, add_line, color_of, new_figure


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


def speed_figure(title: str, curves: Mapping[str, Mapping[float, float]], *, x: str) -> go.Figure:
    """Draw tokens per second over a number, one curve per name; the values tried are the ticks.

    Parameters
    ----------
    title : str
    curves : mapping of str to (mapping of float to float)
        Tokens per second by the number, which is above 0: its axis is logarithmic.
    x : str
        What the number is, with its unit.
    """
    figure = new_figure(title, x=x, y="tokens per second (simulated)")
    for style, (name, points) in enumerate(curves.items()):
        figure.add_scatter(
            x=list(points),
            y=list(points.values()),
            name=escape(name),
            mode="lines+markers",
            line={"color": color_of(name.split(" ")[0]), "dash": DASHES[style % len(DASHES)]},
            marker={"symbol": MARKERS[style % len(MARKERS)], "size": 8},
        )
    tried = sorted({value for points in curves.values() for value in points})
    figure.update_xaxes(type="log", tickvals=tried, ticktext=[f"{value:g}" for value in tried])
    return figure.update_yaxes(rangemode="tozero")


PATH_ROW = "critical path"
_ROWS = (PATH_ROW, *map(str, Resource))
_ROW_PIXELS, _CHART_PIXELS, _GAP_PIXELS = 44, 70, 34


def timeline_figure(
    records: Sequence[Record],
    *,
    beside: Sequence[Record] = (),
    path: Sequence[Record] = (),
    counters: Sequence[Counter] = (),
    span_s: tuple[float, float] | None = None,
) -> go.Figure:
    """Draw operations as bars, one row per resource; below them counters over the same time.

    Parameters
    ----------
    records : sequence of Record
        A few passes.
    beside : sequence of Record
        Operations of other passes, drawn pale.
    path : sequence of Record
        The critical path: hatched, and in a row of its own.
    counters : sequence of Counter
        One curve per name; a value holds until the next.
    span_s : (float, float), optional
        Seconds from which and to which to draw, the first becoming 0; by default all of `records`.
    """
    start_s, end_s = span_s or (
        min((row.start_s for row in records), default=0.0),
        max((row.end_s for row in records), default=0.0),
    )
    figure = new_figure("Timeline by resource", x="milliseconds", y="")
    on_path, thin_s = set(path), (end_s - start_s) / 300
    for resource in Resource:
        for rows, opacity in ((beside, 0.35), (records, 1.0)):
            own = [row for row in rows if row.resource is resource]
            hatched = [row in on_path for row in own]
            _add_bars(
                figure, own, str(resource), start_s, thin_s=thin_s, hatched=hatched, opacity=opacity
            )
        own = [row for row in path if row.resource is resource]
        _add_bars(figure, own, PATH_ROW, start_s, thin_s=thin_s, hatched=[False] * len(own))
    names = list(dict.fromkeys(counter.name for counter in counters))
    _lay_out(figure, names, span_ms=1e3 * (end_s - start_s), rows=_ROWS if path else _ROWS[1:])
    for number, name in enumerate(names, start=2):
        own_counters = [counter for counter in counters if counter.name == name]
        _add_curve(figure, own_counters, f"y{number}", start_s=start_s, end_s=end_s)
    return figure


def _add_bars(
    figure: go.Figure,
    rows: Sequence[Record],
    name: str,
    start_s: float,
    *,
    thin_s: float,
    hatched: Sequence[bool],
    opacity: float = 1.0,
) -> None:
    """Add operations of one resource as bars of one row."""
    if not rows:
        return
    figure.add_bar(
        y=[name] * len(rows),
        x=[1e3 * (row.end_s - row.start_s) for row in rows],
        base=[1e3 * (row.start_s - start_s) for row in rows],
        orientation="h",
        name=name,
        opacity=opacity,
        marker=_marker(rows, thin_s=thin_s, hatched=hatched),
        customdata=[(escape(row.label), row.resource, *row[4:8]) for row in rows],
        hovertemplate="%{customdata[0]} on %{customdata[1]}<br>request %{customdata[2]}, "
        "block %{customdata[3]}, step %{customdata[4]}, layer %{customdata[5]}<br>"
        "%{base:.4f} ms + %{x:.4f} ms<extra></extra>",
    )


def _marker(rows: Sequence[Record], *, thin_s: float, hatched: Sequence[bool]) -> dict[str, Any]:
    """Return colour, outline and hatching; thin bars would be all outline and have none."""
    color = color_of(str(rows[0].resource))
    outlines = ["#808080" if row.end_s - row.start_s > thin_s else color for row in rows]
    return {
        "color": color,
        "line": {"width": 0.5, "color": outlines},
        "pattern": {
            "shape": ["/" if mark else "" for mark in hatched],
            "fillmode": "overlay",
            "fgcolor": "#FFFFFF",
            "size": 7,
            "solidity": 0.3,
        },
    }


def _add_curve(
    figure: go.Figure, counters: Sequence[Counter], axis: str, *, start_s: float, end_s: float
) -> None:
    """Add a counter as steps; its last value holds to the end."""
    times_s = [*(counter.time_s for counter in counters), end_s]
    values = [counter.value for counter in counters]
    figure.add_scatter(
        x=[1e3 * (time_s - start_s) for time_s in times_s],
        y=[*values, values[-1]],
        yaxis=axis,
        name=escape(counters[0].name),
        mode="lines",
        line={"shape": "hv", "color": SERIES[int(axis[1:]) % len(SERIES)], "width": 1.5},
        hovertemplate="%{y:.6~g} at %{x:.4f} ms<extra>%{fullData.name}</extra>",
    )


def _lay_out(
    figure: go.Figure, counters: Sequence[str], *, span_ms: float, rows: Sequence[str]
) -> None:
    """Put the rows of bars above one narrow chart per counter, over one axis of time."""
    bars = _ROW_PIXELS * len(rows)
    total = bars + len(counters) * (_CHART_PIXELS + _GAP_PIXELS)
    figure.update_layout(
        barmode="overlay", hovermode="closest", height=total + 128, showlegend=False, bargap=0.15,
        margin={"l": 104},
        xaxis={"range": [0, span_ms] if span_ms else None, "anchor": "free", "position": 0},
        yaxis={
            "categoryorder": "array", "categoryarray": list(rows)[::-1],
            "range": [-0.5, len(rows) - 0.5], "domain": [(total - bars) / total, 1],
            "fixedrange": True,
        },
    )  # fmt: skip
    for number, name in enumerate(reversed(counters)):
        bottom = number * (_CHART_PIXELS + _GAP_PIXELS)
        domain = (bottom / total, (bottom + _CHART_PIXELS) / total)
        _add_axis(figure, name, f"yaxis{len(counters) + 1 - number}", domain=domain)


def _add_axis(figure: go.Figure, name: str, axis: str, *, domain: tuple[float, float]) -> None:
    """Add the axis of a counter, in the style of the first, with its name above."""
    first = figure.layout.yaxis.to_plotly_json()
    style = {key: first[key] for key in ("gridcolor", "zerolinecolor", "linecolor", "ticks")}
    own = {"domain": domain, "fixedrange": True, "nticks": 4, "rangemode": "tozero"}
    figure.update_layout({axis: style | own})
    figure.add_annotation(
        text=escape(name), x=0, xref="paper", xanchor="left", showarrow=False,
        y=domain[1], yref="paper", yanchor="bottom",
    )  # fmt: skip
