"""The regime map as a figure and a page: where interval refresh pays, where static residents do."""

from collections.abc import Sequence
from html import escape
from math import log2
from pathlib import Path

import plotly.graph_objects as go

from tidesim.contest import STATIC, Standing
from tidesim.regimes import Mark, RegimeMap
from tidesim.report.html import Section, Table, write_report
from tidesim.report.style import INK, color_of, new_figure

_FAMILIES = (STATIC, "tide", "tide in the background")
_RAISED = 0.26  # doublings, so that a machine in the middle of a cell does not hide its label
_NEAR = (0.2, 0.35)  # doublings of CPU and link rate: machines that share a label


def regime_figure(regimes: RegimeMap) -> go.Figure:
    """Draw the best candidate over link rate and CPU rate, with machines placed on it."""
    rows = regimes.cells
    figure = new_figure(
        "Which experts to keep: the fastest policy",
        x="CPU: experts' weights read (GB/s)",
        y="link to the GPU (GB/s)",
    )
    link = [_at(row[0].link_bytes_per_s) for row in rows]
    cpu = [_at(cell.cpu_bytes_per_s) for cell in rows[0]]
    colors = [color_of(name) for name in _FAMILIES]
    steps = [(n / len(colors), (n + 1) / len(colors)) for n in range(len(colors))]
    figure.add_heatmap(
        x=cpu,
        y=link,
        z=[[_FAMILIES.index(cell.standing.best.family) for cell in row] for row in rows],
        zmin=-0.5,
        zmax=len(_FAMILIES) - 0.5,
        colorscale=[(at, c) for pair, c in zip(steps, colors, strict=True) for at in pair],
        hovertext=[[cell.standing.best.name for cell in row] for row in rows],
        hoverinfo="text",
        showscale=False,
        xgap=2,
        ygap=2,
    )
    for family, color in zip(_FAMILIES, colors, strict=True):
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
    _add_marks(figure, regimes.marks)
    figure.update_xaxes(tickvals=cpu, ticktext=[_rate(c.cpu_bytes_per_s) for c in rows[0]])
    figure.update_yaxes(tickvals=link, ticktext=[_rate(row[0].link_bytes_per_s) for row in rows])
    figure.update_layout(hovermode="closest", height=620, minreducedwidth=76 * len(cpu))
    return figure


def _add_marks(figure: go.Figure, marks: Sequence[Mark]) -> None:
    """Place machines by their numbers; those close together share a label."""
    places = [(_at(mark.cpu_bytes_per_s), _at(mark.link_bytes_per_s)) for mark in marks]
    figure.add_scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        hovertext=[escape(mark.hardware) for mark in marks],
        hoverinfo="text",
        mode="markers",
        marker={"size": 6, "color": "#FFFFFF", "line": {"color": "#000000", "width": 1}},
        showlegend=False,
    )
    labels: dict[tuple[float, float], list[str]] = {}
    for number, place in enumerate(places, start=1):
        near = (at for at in labels if all(
            abs(a - b) < most for a, b, most in zip(at, place, _NEAR, strict=True)
        ))  # fmt: skip
        labels.setdefault(next(near, place), []).append(str(number))
    for (x, y), numbers in labels.items():
        figure.add_annotation(
            x=x, y=y, text=" ".join(numbers), showarrow=False, yshift=-9, borderpad=1,
            bgcolor="#FFFFFF", bordercolor=INK, font={"color": "#000000", "size": 12},
        )  # fmt: skip


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
                "Numbers are machines (see below): they lie where their two rates are; all else is the "
                "base machine's.",
            ),
            Section("Machines on the map", table=_machines(regimes.marks)),
            Section("Every cell", table=table),
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


def _machines(marks: Sequence[Mark]) -> Table:
    return Table(
        columns=["machine", "on the map", "link, GB/s", "CPU, GB/s"],
        rows=[
            [mark.hardware, number, mark.link_bytes_per_s / 1e9, mark.cpu_bytes_per_s / 1e9]
            for number, mark in enumerate(marks, start=1)
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
