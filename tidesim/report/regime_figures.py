"""The regime map as a figure and a page: where interval refresh pays, where static residents do."""

from html import escape
from math import log2
from pathlib import Path

import plotly.graph_objects as go

from tidesim.contest import STATIC, Standing
from tidesim.regimes import RegimeMap
from tidesim.report.html import Section, Table, write_report
from tidesim.report.style import MARKERS, color_of, new_figure

# Static residents, blocking refresh, refresh in the background.
_FAMILIES = {
    STATIC: "static-frequency",
    "tide": "tide",
    "tide in the background": "previous-step",
}  # name: whose colour
_RAISED = 0.26  # doublings, so that a machine in the middle of a cell does not hide its label


def regime_figure(regimes: RegimeMap) -> go.Figure:
    """Draw the best candidate over link rate and CPU rate, with machines placed on it."""
    rows = regimes.cells
    figure = new_figure(
        "Which experts to keep: the fastest policy",
        x="CPU: experts' weights read, GB/s",
        y="link to the GPU, GB/s",
    )
    link = [_at(row[0].link_bytes_per_s) for row in rows]
    cpu = [_at(cell.cpu_bytes_per_s) for cell in rows[0]]
    families = list(_FAMILIES)
    colors = [color_of(name) for name in _FAMILIES.values()]
    steps = [(n / len(colors), (n + 1) / len(colors)) for n in range(len(colors))]
    figure.add_heatmap(
        x=cpu,
        y=link,
        z=[[families.index(cell.standing.best.family) for cell in row] for row in rows],
        zmin=-0.5,
        zmax=len(families) - 0.5,
        colorscale=[(at, c) for pair, c in zip(steps, colors, strict=True) for at in pair],
        hovertext=[[cell.standing.best.name for cell in row] for row in rows],
        hoverinfo="text",
        showscale=False,
        xgap=2,
        ygap=2,
    )
    for family, color in zip(families, colors, strict=True):
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=family,
            marker={"symbol": "square", "size": 12, "color": color},
        )  # fmt: skip
    figure.add_scatter(
        x=[x for _ in rows for x in cpu],
        y=[y + _RAISED for y in link for _ in cpu],
        text=[_label(cell.standing) for row in rows for cell in row],
        mode="text",
        textfont={"color": "#FFFFFF", "size": 12},
        hoverinfo="skip",
        showlegend=False,
    )
    for number, mark in enumerate(regimes.marks):
        figure.add_scatter(
            x=[_at(mark.cpu_bytes_per_s)],
            y=[_at(mark.link_bytes_per_s)],
            name=escape(mark.hardware),
            mode="markers",
            marker={
                "symbol": MARKERS[number % len(MARKERS)],
                "size": 13,
                "color": "#FFFFFF",
                "line": {"color": "#000000", "width": 2},
            },
        )
    figure.update_xaxes(tickvals=cpu, ticktext=[_rate(c.cpu_bytes_per_s) for c in rows[0]])
    figure.update_yaxes(tickvals=link, ticktext=[_rate(row[0].link_bytes_per_s) for row in rows])
    figure.update_layout(hovermode="closest", height=620)
    return figure


def write_regime_page(path: Path, regimes: RegimeMap, *, trace: str) -> None:
    """Write the map, and a table of every cell, as one HTML file.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    base, cells = regimes.base, [cell for row in regimes.cells for cell in row]
    static = sum(cell.standing.best.family == STATIC for cell in cells)
    slots = sum(base.budgets) // len(base.budgets)
    table = Table(
        columns=["link, GB/s", "CPU, GB/s", "fastest", "tokens/s", "static, tokens/s", "gain, %"],
        rows=[
            [
                cell.link_bytes_per_s / 1e9,
                cell.cpu_bytes_per_s / 1e9,
                cell.standing.best.name,
                cell.standing.tokens_per_s[cell.standing.best.name],
                cell.standing.tokens_per_s[STATIC],
                100 * cell.standing.gain,
            ]
            for cell in cells
        ],
    )
    write_report(
        path,
        title="Where interval refresh pays",
        lead=f"{base.sizes}, {slots} slots per layer: static residents are fastest on {static} of "
        f"{len(cells)} machines, refreshed ones on {len(cells) - static}.",
        sections=[
            Section(
                "Map",
                regime_figure(regimes),
                "Cells name the fastest interval and how much faster than static residents it is. "
                "Machines lie where their two rates are; all else is the base machine's.",
            ),
            Section("Every machine", table=table),
        ],
        footer=[
            ("times", "simulated"),
            ("routing", f"{base.provenance}, {trace}, {regimes.requests} requests"),
            ("base machine", base.hardware),
            ("engine", base.engine),
            ("trace sha256", base.trace_sha256),
            ("profile sha256", base.profile_sha256),
        ],
    )


def _at(bytes_per_s: float) -> float:
    """Return where a rate lies on an axis of doublings."""
    return log2(bytes_per_s)


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.3g}"


def _label(standing: Standing) -> str:
    if standing.best.interval is None:
        return "static"
    return f"τ={standing.best.interval} +{100 * standing.gain:.0f} %"
