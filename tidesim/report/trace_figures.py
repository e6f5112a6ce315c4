"""Figures of routing statistics; each function returns a Figure and writes nothing."""

import plotly.graph_objects as go

from tidesim.errors import SettingError
from tidesim.report.style import SERIES, add_line, new_figure
from tidesim.trace.passes import Window
from tidesim.trace.stats import Curve, TraceStats


def stability_figure(stats_block: TraceStats, stats_full: TraceStats | None = None) -> go.Figure:
    """Draw cosine and Jaccard similarity by lag, for one window or both.

    Parameters
    ----------
    stats_block : TraceStats
        Statistics of window ``block``.
    stats_full : TraceStats, optional
        Statistics of window ``full`` of the same trace.

    Raises
    ------
    SettingError
        The windows are not those, or the two are not of one trace.
    """
    _check_windows(stats_block, stats_full)
    figure = new_figure(
        _title("Routing similarity between denoising steps", stats_block),
        x="lag (denoising steps)",
        y="similarity (0 to 1)",
    )
    for style, stats in enumerate((stats_block, stats_full)):
        if stats is None:
            continue
        window = f"window {stats.window}"
        add_line(
            figure, _known(stats.cosine), name=f"cosine of counts, {window}", series=0, style=style
        )
        add_line(
            figure,
            _known(stats.jaccard),
            name=f"Jaccard of active experts, {window}",
            series=1,
            style=style,
        )
    overlap = _known(stats_block.token_overlap)
    if overlap:
        add_line(figure, overlap, name="top-k a token keeps, block positions", series=2, style=2)
    return figure.update_yaxes(range=[0, 1.03])


def distinct_by_layer_figure(stats: TraceStats) -> go.Figure:
    """Draw the mean number of active experts of every layer, with one standard deviation."""
    figure = new_figure(
        _title("Active experts by layer", stats, windowed=True),
        x="mixture layer (index)",
        y=f"distinct experts per step (of {stats.num_experts})",
    )
    layers = [layer for layer in stats.by_layer if layer.distinct_experts.mean is not None]
    figure.add_bar(
        x=[layer.layer for layer in layers],
        y=[layer.distinct_experts.mean for layer in layers],
        error_y={"array": [layer.distinct_experts.std for layer in layers], "thickness": 1},
        name="mean ± standard deviation over steps",
        marker={"color": SERIES[0]},
    )
    figure.update_xaxes(dtick=max(1, len(layers) // 10))
    return figure.update_yaxes(rangemode="tozero")


def hit_ratio_figure(stats: TraceStats) -> go.Figure:
    """Draw the share of hits by budget, one curve by the age of the choice of residents."""
    figure = new_figure(
        _title("Hits when residents were chosen some steps ago", stats, windowed=True),
        x="budget (resident experts per layer)",
        y="hit ratio (share of token-expert pairs)",
    )
    lags = next(iter(stats.hit_ratio.values()))
    for number, lag in enumerate(lags):
        curve = {budget: by_lag[lag] for budget, by_lag in sorted(stats.hit_ratio.items())}
        name = f"{lag} step{'' if lag == 1 else 's'} ago" if lag else "this step"
        add_line(figure, _known(curve), name=name, series=number, style=number)
    return figure.update_yaxes(range=[0, 1.03])


def popularity_figure(stats: TraceStats) -> go.Figure:
    """Draw the share of all hits of the k most used experts, beside equal use of all experts."""
    figure = new_figure(
        _title("Popularity of experts", stats, windowed=True),
        x="k most used experts of a layer (count)",
        y="share of token-expert pairs (0 to 1)",
    )
    shares = _known(stats.popularity)
    add_line(figure, shares, name="this trace", series=0)
    equal = {k: k / stats.num_experts for k in shares}
    add_line(figure, equal, name="equal use of all experts", series=4, style=2)
    figure.update_xaxes(type="log", tickvals=list(shares), ticktext=[str(k) for k in shares])
    return figure.update_yaxes(range=[0, 1.03])


def _title(what: str, stats: TraceStats, *, windowed: bool = False) -> str:
    window = f", window {stats.window}" if windowed else ""
    late = "" if stats.masked_at_most is None else f", at most {stats.masked_at_most} masked"
    return f"{what} — {stats.model} ({stats.provenance}{window}{late})"


def _known(curve: Curve) -> dict[int, float]:
    return {key: value for key, value in sorted(curve.items()) if value is not None}


def _check_windows(stats_block: TraceStats, stats_full: TraceStats | None) -> None:
    if stats_block.window is not Window.BLOCK:
        raise SettingError(
            f"the first statistics are of window {stats_block.window}, not block; "
            "compute them with window block"
        )
    if stats_full is None:
        return
    if stats_full.window is not Window.FULL:
        raise SettingError(
            f"the second statistics are of window {stats_full.window}, not full; "
            "compute them with window full"
        )
    if (stats_full.model, stats_full.passes) != (stats_block.model, stats_block.passes):
        raise SettingError(
            f"the statistics are of {stats_block.passes} passes of {stats_block.model} and "
            f"{stats_full.passes} passes of {stats_full.model}; compute both from one trace"
        )
