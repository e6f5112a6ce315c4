"""Figures of a plan: how fast each machine is and how sure that is, what it costs, what it holds."""

from collections.abc import Sequence

import plotly.graph_objects as go

from tidesim.plan import Plan, Row
from tidesim.report.style import INK, color_of, new_figure

_TICKS = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
_ROW_PIXELS, _FRAME_PIXELS = 30, 190
# What a run waits for, in the colour of the resource; the link's are its copies to the GPU.
_BOUNDS = {"gpu": "gpu", "cpu": "cpu", "link": "h2d", "host": "host"}
_PURPOSES = {
    "other weights": ("non_expert_bytes", "host"),
    "expert slots": ("slots_bytes", "gpu"),
    "slots for streamed experts": ("scratch_bytes", "cpu"),
    "keys and values": ("kv_bytes", "h2d"),
    "workspace and reserve": ("workspace_bytes", "d2h"),
}


def machines_figure(found: Plan) -> go.Figure:
    """Draw tokens per second of every machine with its band, coloured by what bounds it.

    Parameters
    ----------
    found : Plan
    """
    figure = new_figure("Tokens per second, one request at a time", x="tokens/s", y="")
    for bound, resource in _BOUNDS.items():
        rows = [row for row in found.rows if row.found.result.bottleneck == bound]
        if rows:
            figure.add_bar(
                x=[row.tokens_per_s for row in rows],
                y=[row.name for row in rows],
                error_x={
                    "array": [row.found.band.high - row.tokens_per_s for row in rows],
                    "arrayminus": [row.tokens_per_s - row.found.band.low for row in rows],
                    "color": INK,
                },
                orientation="h",
                name=f"waits longest for: {bound}",
                marker={"color": color_of(resource)},
                hovertemplate="%{y}: %{x:.4g} tokens/s<extra></extra>",
            )
    if found.goal.tokens_per_s is not None:
        figure.add_vline(
            x=found.goal.tokens_per_s,
            line={"dash": "dash", "color": INK},
            annotation_text=f"asked for: {found.goal.tokens_per_s:g}",
            annotation_position="top",
        )
    return _by_machine(figure, found.rows)


def cost_figure(found: Plan) -> go.Figure:
    """Draw dollars per million tokens over tokens per second, bought and rented.

    Parameters
    ----------
    found : Plan
    """
    figure = new_figure("Price of a million tokens", x="tokens/s", y="USD per million tokens")
    ways = (
        ("bought", "owned_usd_per_mtoken", "gpu", "circle"),
        ("rented", "cloud_usd_per_mtoken", "cpu", "diamond"),
    )
    for name, key, resource, symbol in ways:
        rows = [row for row in found.rows if getattr(row.costs, key) is not None]
        figure.add_scatter(
            x=[row.tokens_per_s for row in rows],
            y=[getattr(row.costs, key) for row in rows],
            text=[row.name for row in rows],
            mode="markers",
            name=name,
            marker={"color": color_of(resource), "symbol": symbol, "size": 11},
            hovertemplate="%{text}<br>%{x:.4g} tokens/s, %{y:.3g} USD per million<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(type="log", tickvals=_TICKS)
    figure.update_yaxes(type="log", tickvals=_TICKS)
    return figure.update_layout(hovermode="closest", height=460)


def memory_figure(found: Plan) -> go.Figure:
    """Draw what every machine's GPU holds, by purpose.

    Parameters
    ----------
    found : Plan
    """
    figure = new_figure("GPU memory by purpose", x="GB (1e9 bytes)", y="")
    for name, (key, resource) in _PURPOSES.items():
        sizes = [getattr(row.found.result.memory, key) / 1e9 for row in found.rows]
        if any(sizes):
            figure.add_bar(
                x=sizes,
                y=[row.name for row in found.rows],
                orientation="h",
                name=name,
                marker={"color": color_of(resource)},
                hovertemplate="%{y}: %{x:.3g} GB<extra>%{fullData.name}</extra>",
            )
    return _by_machine(figure, found.rows).update_layout(barmode="stack")


def _by_machine(figure: go.Figure, rows: Sequence[Row]) -> go.Figure:
    """Give every machine a line, in order from the top."""
    names = [row.name for row in rows]
    plot = _ROW_PIXELS * max(1, len(names))
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], automargin=True)
    return figure.update_layout(
        hovermode="closest",
        height=_FRAME_PIXELS + plot,
        bargap=0.3,
        legend={"y": -60 / plot, "traceorder": "normal"},
    )
