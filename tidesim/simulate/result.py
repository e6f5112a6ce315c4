"""SimulationResult: what a simulated run took, moved and was bound by."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tidesim.memory import MemoryPlan
from tidesim.placement import BoolArray, FloatArray
from tidesim.records import Counter, Records

_LARGE = ("pass_s", "is_step", "records", "counters")


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """One simulated run; counts are exact, times are the model's.

    Attributes
    ----------
    policy, engine, hardware : str
        `hardware` names what-if overrides, too.
    hardware_kinds : mapping of str to int
        How many of the machine's numbers are measured, from a datasheet, or estimated.
    sizes : str
        Whose routing at whose sizes was simulated.
    provenance : str
        Where the routing comes from: captured, synthetic or imported.
    interval : int or None
        Steps between refreshes; None where the policy has no such number.
    promotion : str
        ``blocking`` or ``background``.
    batch : int
        Requests decoded in step.
    budgets : tuple of int
        Slots of every mixture layer.
    trained_on : tuple of int
        Requests that the policy knew before the run; none of them should be in the trace.
    is_bound : bool
        The policy is a limit that ignores the GPU's memory.
    knows_future : bool
        The policy is a limit that knows the passes to come.
    memory : MemoryPlan
        Bytes on the GPU by purpose.
    seconds : float
        The makespan of all requests, one after another.
    tokens, blocks, steps, passes : int
        Tokens written, blocks decoded, denoise passes, all passes.
    hits, misses : int
        Token-expert pairs served by residents and by others (on the CPU, or streamed).
    promotions, evictions, streams, refreshes : int
        Summed over layers and passes.
    h2d_bytes_by_purpose, d2h_bytes_by_purpose : dict of int
    busy : dict of float
        Share of the makespan that each resource works.
    waited : dict of float
        Share of the makespan that the run waits for ``gpu``, ``link``, ``cpu`` or ``host``; the
        four add up to 1. ``link`` is exposed copy time, ``cpu`` is exposed CPU time.
    critical : dict of dict of float
        Share of the critical path by resource and operation; they add up to 1.
    pass_s : [passes] float64
        Seconds of every pass.
    is_step : [passes] bool
        Whether a pass is a denoise pass.
    records : Records or None
    counters : tuple of Counter
        Hit rate, residents and bytes queued for the link over time, where records are kept.
    trace_sha256, profile_sha256 : str
    """

    policy: str
    engine: str
    hardware: str
    hardware_kinds: Mapping[str, int]
    sizes: str
    provenance: str
    interval: int | None
    promotion: str
    batch: int
    budgets: tuple[int, ...]
    trained_on: tuple[int, ...]
    is_bound: bool
    knows_future: bool
    memory: MemoryPlan
    seconds: float
    tokens: int
    blocks: int
    steps: int
    passes: int
    hits: int
    misses: int
    promotions: int
    evictions: int
    streams: int
    refreshes: int
    h2d_bytes_by_purpose: dict[str, int]
    d2h_bytes_by_purpose: dict[str, int]
    busy: dict[str, float]
    waited: dict[str, float]
    critical: dict[str, dict[str, float]]
    pass_s: FloatArray
    is_step: BoolArray
    records: Records | None
    counters: tuple[Counter, ...]
    trace_sha256: str
    profile_sha256: str

    @property
    def tokens_per_s(self) -> float:
        """Tokens written per second of the whole run."""
        return self.tokens / self.seconds

    @property
    def seconds_per_block(self) -> float:
        """Seconds per decoded block, prefill and commit passes included."""
        return self.seconds / self.blocks

    @property
    def hit_rate(self) -> float:
        """Share of token-expert pairs served by residents."""
        return self.hits / (self.hits + self.misses)

    @property
    def h2d_bytes(self) -> int:
        """Bytes copied to the GPU."""
        return sum(self.h2d_bytes_by_purpose.values())

    @property
    def d2h_bytes(self) -> int:
        """Bytes copied to the host."""
        return sum(self.d2h_bytes_by_purpose.values())

    @property
    def exposed_copy_s(self) -> float:
        """Seconds spent on promotions, streams and write-backs that nothing hides."""
        return self.waited["link"] * self.seconds

    @property
    def exposed_cpu_s(self) -> float:
        """Seconds spent on missed experts, transfers included, that nothing hides."""
        return self.waited["cpu"] * self.seconds

    @property
    def host_sync_s(self) -> float:
        """Seconds of the critical path in which the host waits for the GPU's answer."""
        return self.critical["host"].get("sync", 0.0) * self.seconds

    @property
    def bottleneck(self) -> str:
        """What the run waits for longest: ``gpu``, ``link``, ``cpu`` or ``host``."""
        return max(self.waited, key=lambda name: self.waited[name])

    @property
    def step_ms(self) -> dict[str, float]:
        """Milliseconds of a denoise pass at the 50th, 90th and 99th percentile."""
        percentiles = np.percentile(self.pass_s[self.is_step], (50, 90, 99)) * 1e3
        return dict(zip(("p50", "p90", "p99"), percentiles.tolist(), strict=True))

    def timeline_metadata(self) -> dict[str, str | float | None]:
        """Return what a timeline of this run says about itself."""
        names = ("policy", "interval", "promotion", "engine", "hardware", "sizes", "provenance")
        return {
            "times": "simulated",
            **{name: getattr(self, name) for name in names},
            "tokens_per_s": self.tokens_per_s,
            "trace_sha256": self.trace_sha256,
            "profile_sha256": self.profile_sha256,
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything but arrays and records as JSON-ready values, keys stable."""
        derived = (
            "tokens_per_s",
            "seconds_per_block",
            "hit_rate",
            "h2d_bytes",
            "d2h_bytes",
            "exposed_copy_s",
            "exposed_cpu_s",
            "host_sync_s",
            "bottleneck",
            "step_ms",
        )
        stored = {item.name: getattr(self, item.name) for item in fields(self)}
        small = {name: value for name, value in stored.items() if name not in _LARGE}
        small |= {"budgets": list(self.budgets), "trained_on": list(self.trained_on)}
        small["memory"] = self.memory.to_json()
        small["hardware_kinds"] = dict(self.hardware_kinds)
        return small | {name: getattr(self, name) for name in derived}
