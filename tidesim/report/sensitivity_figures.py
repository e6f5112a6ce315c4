"""A tornado chart and page: which inputs move the answer, and which turn it round."""

from pathlib import Path

import plotly.graph_objects as go

from tidesim.report.html import Section, Table, write_report
from tidesim.report.style import RESOURCES, new_figure
from tidesim.sensitivity import Sensitivity, Swing

SHOWN = 20  # bars; the table has all


def tornado_figure(found: Sensitivity) -> go.Figure:
    """Draw how far each input moves the tokens per second of the best candidate, widest on top."""
    figure = new_figure(
        f"Tokens per second of {found.base.best.name}, each input "
        f"{100 * found.by:.0f} % lower and higher",
        x="change of tokens/s (%)",
        y="input",
    )
    swings = found.swings[:SHOWN][::-1]
    for side, name, color in ((0, "lower", RESOURCES["cpu"]), (1, "higher", RESOURCES["gpu"])):
        figure.add_bar(
            y=[_name(swing) for swing in swings],
            x=[100 * swing.changes[side] for swing in swings],
            name=f"value {name}",
            orientation="h",
            marker={"color": color},
        )
    figure.update_layout(
        barmode="overlay", hovermode="closest", height=160 + 26 * len(swings), margin={"l": 270}
    )
    return figure


def write_sensitivity_page(path: Path, found: Sensitivity, *, trace: str) -> None:
    """Write the chart, and a table of every input, as one HTML file.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    run, best = found.run, found.base.best.name
    turned = [swing for swing in found.swings if swing.flips]
    flips = "; ".join(f"{swing.name} ({', '.join(swing.flips)})" for swing in turned)
    table = Table(
        columns=["input", "known", "value", "lower, %", "higher, %", "then fastest"],
        rows=[
            [
                swing.name,
                swing.kind,
                swing.value,
                100 * swing.changes[0],
                100 * swing.changes[1],
                ", ".join(swing.flips) or best,
            ]
            for swing in found.swings
        ],
    )
    write_report(
        path,
        title="Which inputs move the answer",
        lead=f"{best} is the fastest with {found.base.tokens_per_s[best]:.1f} tokens/s. "
        + (
            f"Another is clearly faster where these change: {flips}."
            if flips
            else "No change turns that round by more than 1 %."
        ),
        sections=[
            Section(
                "Tornado", tornado_figure(found), "* marks inputs that make another clearly faster."
            ),
            Section("Every input", table=table),
        ],
        footer=[
            ("times", "simulated"),
            ("routing", f"{run.sizes}, {run.provenance}, {trace}, {found.requests} requests"),
            ("machine", run.hardware),
            ("engine", run.engine),
            ("trace sha256", run.trace_sha256),
            ("profile sha256", run.profile_sha256),
        ],
    )


def _name(swing: Swing) -> str:
    return f"{swing.name}{' *' * bool(swing.flips)}"
