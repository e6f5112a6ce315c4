"""Figures of a validation: predicted against measured, by run, by pass and by operation."""

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from tidesim.report.style import INK, MARKERS, SERIES, color_of, new_figure
from tidesim.validate import Cause, Report, Trial

OPERATIONS = 16  # bars of the operations figure


def runs_figure(report: Report) -> go.Figure:
    """Draw one point per configuration, with the range of its repeats, and the line of equality."""
    figure = new_figure(
        "Predicted against measured",
        x="measured (seconds of a run)",
        y="predicted (seconds of a run)",
    )
    seconds = [value for trial in report.trials for value in (trial.predicted_s, trial.measured_s)]
    ends = [0.95 * min(seconds), 1.05 * max(seconds)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", name="equal", line={"color": INK, "dash": "dash"},
        hoverinfo="skip",
    )  # fmt: skip
    scored = {policy: [one for one in report.scored if one.predicted.policy == policy]
              for policy in dict.fromkeys(one.predicted.policy for one in report.scored)}  # fmt: skip
    for number, (policy, trials) in enumerate(scored.items()):
        _add_points(figure, trials, policy, symbol=MARKERS[number % len(MARKERS)])
    fitted = [trial for trial in report.trials if trial.calibration]
    if fitted:
        _add_points(figure, fitted, "used for calibration", symbol="circle-open")
    figure.update_layout(hovermode="closest", height=520)
    return figure


def _add_points(figure: go.Figure, trials: Sequence[Trial], name: str, *, symbol: str) -> None:
    measured_s = [trial.measured_s for trial in trials]
    figure.add_scatter(
        x=measured_s,
        y=[trial.predicted_s for trial in trials],
        error_x={
            "array": [float(t.measured.run_s.max()) - t.measured_s for t in trials],
            "arrayminus": [t.measured_s - float(t.measured.run_s.min()) for t in trials],
            "color": INK,
            "thickness": 1,
        },
        mode="markers",
        name=escape(name),
        marker={"symbol": symbol, "size": 10, "color": color_of(name)},
        text=[f"{escape(trial.name)}: {trial.run_error:+.1%}" for trial in trials],
        hovertemplate="%{text}<br>measured %{x:.4f} s, predicted %{y:.4f} s<extra></extra>",
    )


def passes_figure(report: Report) -> go.Figure:
    """Draw every pass of one configuration, predicted and measured; a menu chooses which."""
    figure = new_figure("Pass by pass", x="pass (number)", y="time of a pass (ms)")
    for number, trial in enumerate(report.trials):
        _add_passes(figure, trial, visible=number == 0)
    per_trial = len(figure.data) // len(report.trials)
    buttons = [
        {
            "label": escape(trial.name),
            "method": "update",
            "args": [
                {"visible": [shown == number for shown in range(len(report.trials))
                             for _ in range(per_trial)]},
            ],
        }
        for number, trial in enumerate(report.trials)
    ]  # fmt: skip
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(updatemenus=[menu], height=520, margin={"t": 100})
    return figure


def _add_passes(figure: go.Figure, trial: Trial, *, visible: bool) -> None:
    passes_s = trial.measured.pass_s
    numbers = list(range(passes_s.shape[1]))
    around = {"x": numbers, "visible": visible, "hoverinfo": "skip", "mode": "lines"}
    figure.add_scatter(
        y=(1e3 * passes_s.min(axis=0)).tolist(), line={"width": 0}, showlegend=False, **around
    )
    figure.add_scatter(
        y=(1e3 * passes_s.max(axis=0)).tolist(), line={"width": 0}, fill="tonexty",
        fillcolor="rgba(213,102,26,0.25)", name="range of repeats", **around,
    )  # fmt: skip
    places = [f"request {k.request}, block {k.block}, step {k.step}" for k in trial.measured.keys]
    lines = (
        ("measured (median)", trial.measured.median_pass_s, SERIES[1], "solid"),
        ("predicted", trial.predicted.pass_s, SERIES[0], "dash"),
    )
    for name, seconds, color, dash in lines:
        figure.add_scatter(
            x=numbers, y=(1e3 * seconds).tolist(), name=name, mode="lines", visible=visible,
            line={"color": color, "dash": dash, "width": 1.6}, text=places,
            hovertemplate="%{y:.3f} ms, %{text}<extra>%{fullData.name}</extra>",
        )  # fmt: skip


def errors_figure(report: Report) -> go.Figure:
    """Draw how the signed errors of all scored passes are spread."""
    figure = new_figure("Errors of passes", x="predicted / measured - 1 (%)", y="passes (count)")
    figure.add_histogram(
        x=(100 * report.pass_errors).tolist(), nbinsx=60, marker={"color": SERIES[0]}
    )
    figure.add_vline(x=0, line={"color": INK, "dash": "dash"})
    figure.update_layout(hovermode="closest", bargap=0.05)
    return figure


def operations_figure(causes: Sequence[Cause]) -> go.Figure:
    """Draw seconds by operation, predicted beside measured, the largest differences first."""
    figure = new_figure("Seconds by operation", x="time (s)", y="operation")
    shown = list(causes[:OPERATIONS])[::-1]
    names = [escape(f"{cause.resource}: {cause.operation}") for cause in shown]
    for name, number in (("measured", 1), ("predicted", 0)):
        seconds = [getattr(cause, f"{name}_s") for cause in shown]
        figure.add_bar(
            y=names, x=seconds, orientation="h", name=name, marker={"color": SERIES[number]}
        )
    figure.update_layout(
        barmode="group", hovermode="closest", margin={"l": 180}, height=140 + 34 * len(shown),
        legend={"traceorder": "reversed"},
    )  # fmt: skip
    return figure


def spread_in_words(report: Report) -> str:
    """Say how much repeated real runs differ from each other."""
    if report.repeat_spread is None:
        return "Every configuration ran once, so nothing tells how much runs differ by chance."
    spreads = [trial.repeat_spread for trial in report.scored if trial.repeat_spread is not None]
    return (
        f"Repeats of one configuration spread by {np.median(spreads):.1%} "
        f"((slowest - fastest) / median; middle of the configurations, {report.repeat_spread:.1%} "
        "at most); errors below that may be chance."
    )
