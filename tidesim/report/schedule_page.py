"""The page of a schedule: which layer refreshes when, its slots, and what to expect."""

from pathlib import Path

import plotly.graph_objects as go

from tidesim.report.html import Section, Table, write_report
from tidesim.report.schedule_words import (
    first_residents,
    first_step_of,
    first_steps,
    limit_of,
    limits,
    residents_of,
)
from tidesim.report.style import color_of, new_figure
from tidesim.schedule import LayerSchedule, Schedule

_LAYER_PIXELS, _FRAME_PIXELS = 18, 190
_SHARE = 0.74  # of the width, for the steps; the rest shows the slots
_KINDS = {
    "no refresh": "rgba(128,128,128,0.16)",
    "never refreshes": color_of("host"),
    "refresh": color_of("schedule"),
    "refresh, promotions limited": color_of("cpu"),
}


def write_schedule_page(path: Path, schedule: Schedule, *, source: str, sha256: str) -> None:
    """Write a self-contained page of a schedule.

    Parameters
    ----------
    path : Path
    schedule : Schedule
    source, sha256 : str
        The schedule file and its digest.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_report(
        path,
        title="tidesim: a refresh schedule",
        lead=_lead(schedule),
        sections=[
            Section("Steps and slots", schedule_figure(schedule), _explanation(schedule)),
            Section("Prediction", text="What a simulation gave.", table=_predictions(schedule)),
            Section("Mixture layers", table=_layers(schedule)),
        ],
        footer=[
            ("schedule", f"{source}, sha256 {sha256}"),
            ("model, sizes", f"{schedule.model.name}, {schedule.sizes.name}"),
            *(
                (what, f"{origin.name or '–'} ({origin.provenance}), sha256 {origin.sha256 or '–'}")
                for what, origin in (("trace", schedule.trace), ("profile", schedule.profile))
            ),
            ("solver", f"{schedule.solver.formulation}, {schedule.solver.backend}"),
        ],
    )


def schedule_figure(schedule: Schedule) -> go.Figure:
    """Draw layers over denoise steps, refreshes marked, and every layer's slots beside them.

    Parameters
    ----------
    schedule : Schedule
    """
    figure = new_figure("Refreshes by layer and step", x="denoise step of a block", y="layer")
    kinds = [_kinds(layer, schedule.steps) for layer in schedule.layers]
    for kind, color in _KINDS.items():
        z = [[1 if one == kind else None for one in row] for row in kinds]
        if any(one for row in z for one in row):
            _add_cells(figure, z, kind=kind, color=color)
    figure.add_bar(
        x=schedule.budgets,
        y=list(range(len(kinds))),
        orientation="h",
        xaxis="x2",
        name="slots",
        marker={"color": color_of("gpu")},
        text=[word if word.startswith("≤") else "" for word in map(limit_of, schedule.layers)],
        textposition="inside",
        insidetextfont={"color": "#FFFFFF"},
        customdata=[
            [limit_of(layer), residents_of(layer, schedule.engine)] for layer in schedule.layers
        ],
        hovertemplate="layer %{y}: %{x} slots<br>a refresh promotes: %{customdata[0]}"
        "<br>first residents: %{customdata[1]}<extra></extra>",
    )
    axis = figure.layout.xaxis.to_plotly_json()
    figure.update_layout(
        xaxis={"domain": [0, _SHARE], "showgrid": False, "range": [-0.5, schedule.steps - 0.5]},
        xaxis2=axis
        | {"domain": [_SHARE + 0.03, 1], "anchor": "y", "nticks": 4, "title": {"text": "slots"}},
        yaxis={"range": [len(kinds) - 0.5, -0.5], "showgrid": False, "zeroline": False},
        height=_FRAME_PIXELS + _LAYER_PIXELS * len(kinds),
        hovermode="closest",
        bargap=0.25,
    )
    return figure


def _add_cells(figure: go.Figure, z: list[list[int | None]], *, kind: str, color: str) -> None:
    figure.add_heatmap(
        z=z,
        colorscale=[[0, color], [1, color]],
        showscale=False,
        name=kind,
        showlegend=True,
        hoverongaps=False,
        xgap=2,
        ygap=2,
        hovertemplate=f"layer %{{y}}, step %{{x}}: {kind}<extra></extra>",
    )


def _kinds(layer: LayerSchedule, steps: int) -> list[str]:
    """Name what happens in a layer at every step."""
    if not layer.refresh_steps:
        return ["never refreshes"] * steps
    limited = layer.most_promotions is not None
    refresh = "refresh, promotions limited" if limited else "refresh"
    return [refresh if step in layer.refresh_steps else "no refresh" for step in range(steps)]


def _lead(schedule: Schedule) -> str:
    train, heldout = schedule.predictions.train, schedule.predictions.heldout
    speed = f"{train.tokens_per_s:.4g} tokens/s on the requests it was made from"
    if heldout:
        speed += f" and {heldout.tokens_per_s:.4g} on held-out ones"
    return (
        f"{schedule.policy} on engine {schedule.engine} with {schedule.promotion} promotion, "
        f"{sum(schedule.budgets):,} slots and {schedule.memory_bytes / 1e9:.4g} GB of GPU memory; "
        f"simulated: {speed}. Solver: {schedule.solver.status}, gap {schedule.solver.gap:.2%}."
    )


def _explanation(schedule: Schedule) -> str:
    interval = f"Every {schedule.interval} steps. " if schedule.interval else ""
    return (
        f"{interval}First refresh of a block at step: {first_steps(schedule)}. Missing experts that "
        f"a refresh promotes, on the bars where limited: {limits(schedule)}. First residents: {first_residents(schedule)}."
    )


def _predictions(schedule: Schedule) -> Table:
    both = {"training": schedule.predictions.train, "held-out": schedule.predictions.heldout}
    return Table(
        columns=[
            "requests", "number", "tokens/s", "ms per block", "step P50, ms", "step P90, ms",
            "step P99, ms", "bound by",
        ],
        rows=[
            [
                name,
                one.requests,
                one.tokens_per_s,
                1e3 * one.seconds_per_block,
                one.step_ms.p50,
                one.step_ms.p90,
                one.step_ms.p99,
                one.bottleneck,
            ]
            for name, one in both.items()
            if one is not None
        ],
    )  # fmt: skip


def _layers(schedule: Schedule) -> Table:
    return Table(
        columns=["layer", "slots", "refreshes", "first step", "steps", "promotes", "residents"],
        rows=[
            [
                str(number),
                layer.budget,
                len(layer.refresh_steps),
                first_step_of(layer),
                " ".join(map(str, layer.refresh_steps)) or "–",
                limit_of(layer),
                residents_of(layer, schedule.engine),
            ]
            for number, layer in enumerate(schedule.layers)
        ],
    )
