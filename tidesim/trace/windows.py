"""What each pass computes in window ``block`` (as stored) or ``full`` (prefix recomputed)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tidesim.errors import FormatError
from tidesim.trace.passes import Counts, Kind, Pass, Trace, Window, WindowedPass


def windowed(trace: Trace, window: Window) -> Iterator[WindowedPass]:
    """Yield the passes as a window computes them.

    Parameters
    ----------
    trace : Trace
    window : Window
        ``BLOCK`` yields every pass as stored. ``FULL`` yields denoise passes only: each also
        computes the prompt and all earlier blocks, whose routing is that of their prefill and
        commit passes because attention is block-causal.

    Raises
    ------
    FormatError
        Window ``FULL`` and a finished block has no commit pass, or the prefix is not all there.
    """
    return (seen for _, seen in windowed_pairs(trace, window))


def windowed_pairs(trace: Trace, window: Window) -> Iterator[tuple[Pass, WindowedPass]]:
    """Yield each stored pass beside what the window computes; see `windowed`."""
    return _block(trace) if window is Window.BLOCK else _full(trace)


def _block(trace: Trace) -> Iterator[tuple[Pass, WindowedPass]]:
    num_experts = trace.meta.model.num_experts
    for pass_, generated in _numbered(trace):
        counts = pass_.counts(num_experts)
        yield pass_, _windowed(pass_, generated, pass_.tokens, pass_.context, counts)


def _full(trace: Trace) -> Iterator[tuple[Pass, WindowedPass]]:
    num_experts = trace.meta.model.num_experts
    prefix = _Prefix(request=-1, counts=_nothing(trace))
    for pass_, generated in _numbered(trace):
        if pass_.request != prefix.request:
            prefix = _Prefix(request=pass_.request, counts=_nothing(trace))
        counts = pass_.counts(num_experts)
        if pass_.kind is not Kind.DENOISE:
            prefix.extend(pass_, counts)
            continue
        prefix.check(pass_)
        tokens = prefix.tokens + pass_.tokens
        yield pass_, _windowed(pass_, generated, tokens, 0, prefix.counts + counts)


def _nothing(trace: Trace) -> Counts:
    model = trace.meta.model
    return np.zeros((model.moe_layers, model.num_experts), dtype=np.int64)


def _windowed(
    pass_: Pass, generated_block: int, tokens: int, context: int, counts: Counts
) -> WindowedPass:
    return WindowedPass(
        request=pass_.request,
        block=pass_.block,
        generated_block=generated_block,
        step=pass_.step,
        kind=pass_.kind,
        tokens=tokens,
        context=context,
        counts=counts,
    )


def _numbered(trace: Trace) -> Iterator[tuple[Pass, int]]:
    """Yield passes with the index of their block among the request's generated blocks."""
    request, block, index = -1, -1, -1
    for pass_ in trace:
        if pass_.request != request:
            request, block, index = pass_.request, -1, -1
        if pass_.block != block:
            block, index = pass_.block, index + 1
        yield pass_, index


@dataclass(slots=True)
class _Prefix:
    """Prompt and finished blocks of one request."""

    request: int
    counts: Counts
    tokens: int = 0
    open_block: int | None = field(default=None)

    def extend(self, pass_: Pass, counts: Counts) -> None:
        self.counts = self.counts + counts
        self.tokens += pass_.tokens
        self.open_block = None

    def check(self, pass_: Pass) -> None:
        """Refuse a denoise pass whose prefix routing was not recorded."""
        place = f"request {self.request}, block {pass_.block}, step {pass_.step}"
        if self.open_block not in {None, pass_.block}:
            raise FormatError(
                f"trace: block {self.open_block} of request {self.request} is followed by block "
                f"{pass_.block} but has no commit pass, so window full is not known; "
                "use window block, or capture the trace with commit passes"
            )
        if pass_.context != self.tokens:
            raise FormatError(
                f"trace: {place} has context {pass_.context}, but the prefill and commit passes "
                f"before it hold {self.tokens} tokens, so window full is not known; "
                "use window block, or capture every pass of the request"
            )
        self.open_block = pass_.block
