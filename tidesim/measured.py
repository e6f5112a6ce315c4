"""MeasuredRun: what a real run of placed experts took and moved, as the runtime's clocks say."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tidesim.placement import FloatArray
from tidesim.records import Records
from tidesim.trace.passes import PassKey

# Why bytes move to the device, and to the host.
H2D_PURPOSES = ("promotions", "streams", "results")
D2H_PURPOSES = ("ids", "hidden", "write_backs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What moved and what was served, counted as the runtime issues it.

    Every copy's own bytes stand in the records.

    Attributes
    ----------
    hits, misses : int
        Token-expert pairs served by residents and by others (on the CPU, or streamed).
    promotions, evictions, streams, refreshes : int
        Summed over layers and passes.
    h2d_bytes_by_purpose, d2h_bytes_by_purpose : mapping of str to int
        Keys as in `SimulationResult`.
    """

    hits: int
    misses: int
    promotions: int
    evictions: int
    streams: int
    refreshes: int
    h2d_bytes_by_purpose: Mapping[str, int]
    d2h_bytes_by_purpose: Mapping[str, int]

    @property
    def hit_rate(self) -> float:
        """Share of token-expert pairs served by residents."""
        return self.hits / max(1, self.hits + self.misses)


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One configuration, run for real several times on the same passes.

    Attributes
    ----------
    policy, engine, promotion : str
    interval : int or None
    budgets : tuple of int
        Slots of every mixture layer.
    backend : str
        ``cpu`` or ``cuda``.
    machine : str
        Processor, versions and threads, for reports.
    sizes, provenance : str
        Whose routing at whose sizes; where the routing comes from.
    keys : tuple of PassKey
        One per pass, in order.
    pass_s : [repeats, passes] float64
        Wall-clock seconds of every pass in every repeat.
    counters : Counters
        Of one repeat; all repeats agree or the run is refused.
    records : Records or None
        Of the last repeat, the clock starting at 0 with its first pass.
    trace_sha256 : str
    """

    policy: str
    engine: str
    promotion: str
    interval: int | None
    budgets: tuple[int, ...]
    backend: str
    machine: str
    sizes: str
    provenance: str
    keys: tuple[PassKey, ...]
    pass_s: FloatArray
    counters: Counters
    records: Records | None
    trace_sha256: str

    @property
    def median_pass_s(self) -> FloatArray:
        """Median over the repeats, [passes]."""
        return np.asarray(np.median(self.pass_s, axis=0))

    @property
    def run_s(self) -> FloatArray:
        """Seconds of every repeat, [repeats]."""
        return np.asarray(self.pass_s.sum(axis=1))

    @property
    def seconds(self) -> float:
        """Seconds of the run: the sum of its passes' medians, so that a stall in one counts for little."""
        return float(self.median_pass_s.sum())
