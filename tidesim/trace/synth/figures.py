"""The statistics that parameters are fitted to, as one flat table of names and numbers."""

from collections.abc import Iterator
from typing import Any

from tidesim.trace.passes import Trace, Window
from tidesim.trace.stats import trace_stats

LAGS = (0, 1, 2, 3, 5)
FULL_LAGS = (1, 5)
_LATE_SHARE = 8  # a pass is late when at most an eighth of the block is masked: 4 of 32


def figures(trace: Trace) -> dict[str, float]:
    """Return the statistics of a trace under names such as ``late.cosine.1``; memory holds it.

    Names begin with ``block`` (all passes, window block), ``late`` (passes with at most an eighth
    of the block masked, window block) or ``full`` (all passes, window full) and go on as the keys
    of ``tidesim trace stats --json`` do. What a trace has no number for is left out.

    Parameters
    ----------
    trace : Trace

    Raises
    ------
    FormatError, SettingError
        As `trace_stats`.
    """
    trace = Trace(trace.meta, list(trace))  # looked at three times, and drawing it is slow
    late = max(1, trace.meta.model.block_length // _LATE_SHARE)
    views = {
        "block": trace_stats(trace, window=Window.BLOCK, lags=LAGS),
        "late": trace_stats(trace, window=Window.BLOCK, lags=LAGS, masked_at_most=late),
        "full": trace_stats(trace, window=Window.FULL, lags=FULL_LAGS),
    }
    return {
        f"{view}.{name}": value
        for view, stats in views.items()
        for name, value in _numbers(stats.to_json(), "")
    }


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _numbers(item, f"{name}.{number}")
    elif isinstance(value, int | float):
        yield name, float(value)
