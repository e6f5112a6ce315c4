"""What if: two runs of the same requests side by side, and every quantity in which they differ."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidesim.errors import SettingError
from tidesim.optimize import in_memory, splits
from tidesim.records import Resource
from tidesim.simulate import Case, SimulationResult, get_method, run
from tidesim.trace.io import load_trace
from tidesim.trace.passes import Trace
from tidesim.variants import Variant

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One quantity of both runs.

    Attributes
    ----------
    name, unit : str
        A share's unit is ``%``.
    base, changed : float
    """

    name: str
    unit: str
    base: float
    changed: float

    @property
    def change(self) -> float | None:
        """Relative change, of shares their difference (0.01 is one point); None from zero."""
        if self.unit == "%":
            return (self.changed - self.base) / 100
        return self.changed / self.base - 1 if self.base else None


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """Two simulated runs of the same requests.

    Attributes
    ----------
    base, changed : SimulationResult
    schedules : tuple of (str or None)
        What to call the schedules that they obey, if any.
    """

    base: SimulationResult
    changed: SimulationResult
    schedules: tuple[str | None, str | None] = (None, None)

    @property
    def names(self) -> tuple[str, str]:
        """What tells the runs apart, in words; only their part where no setting does."""
        base, changed = self._settings()
        apart = [name for name in base if base[name] != changed[name]]
        if not apart:
            return "base", "changed"
        first, second = (", ".join(each[name] for name in apart) for each in (base, changed))
        return first, second

    @property
    def common(self) -> str:
        """What both runs have in common, in words."""
        base, changed = self._settings()
        return ", ".join(text for name, text in base.items() if text == changed[name])

    def _settings(self) -> tuple[dict[str, str], dict[str, str]]:
        base, changed = map(_settings, (self.base, self.changed), self.schedules)
        return base, changed

    @property
    def speedup(self) -> float:
        """Tokens per second of the changed run over those of the base."""
        return self.changed.tokens_per_s / self.base.tokens_per_s

    def differences(self) -> tuple[Difference, ...]:
        """Return every quantity, those that are the same included, in a fixed order."""
        pairs = zip(_quantities(self.base), _quantities(self.changed), strict=True)
        return tuple(
            Difference(name=name, unit=unit, base=base, changed=changed)
            for (name, unit, base), (_, _, changed) in pairs
        )

    def frame(self) -> "pd.DataFrame":
        """Return the differences as a pandas table: quantity, unit, base, changed, change."""
        import pandas as pd  # noqa: PLC0415 (a heavy import, paid only where a table is wanted)

        columns = ["quantity", "unit", "base", "changed", "change"]
        rows = [(d.name, d.unit, d.base, d.changed, d.change) for d in self.differences()]
        return pd.DataFrame(rows, columns=columns).astype({"change": float})

    def pass_frame(self) -> "pd.DataFrame":
        """Return the seconds of every pass as a pandas table, one row per pass.

        Raises
        ------
        SettingError
            The two runs do not have the same passes: their batches differ.
        """
        import pandas as pd  # noqa: PLC0415 (a heavy import, paid only where a table is wanted)

        if len(self.base.pass_s) != len(self.changed.pass_s):
            raise SettingError(
                f"the two runs have {len(self.base.pass_s)} and {len(self.changed.pass_s)} passes, "
                "so none belong together; compare runs of one batch"
            )
        return pd.DataFrame(
            {
                "is_step": self.base.is_step,
                "base_s": self.base.pass_s,
                "changed_s": self.changed.pass_s,
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return both runs and their differences as JSON-ready values, keys stable."""
        return {
            "base": self.base.to_json(),
            "changed": self.changed.to_json(),
            "base_name": self.names[0],
            "changed_name": self.names[1],
            "speedup": self.speedup,
            "differences": [
                {
                    "name": one.name,
                    "unit": one.unit,
                    "base": one.base,
                    "changed": one.changed,
                    "change": one.change,
                }
                for one in self.differences()
            ],
        }


def what_if(
    base: Case, changed: Case, *, method: str = "des", keep_records: bool = False
) -> WhatIf:
    """Simulate two cases of the same requests.

    Parameters
    ----------
    base, changed : Case
        As `prepare` makes them, with whatever differs: machine, policy, budget, engine.
    method : str
        ``des`` or ``fast``, as `simulate`.
    keep_records : bool
        Also keep a record per operation, for timelines.

    Raises
    ------
    SettingError
        The cases do not hold the same requests; or as `run`.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.overrides import overridden
    >>> from tidesim.simulate import prepare
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> machine = load_profile("a100-40gb-pcie4-xeon48")
    >>> machines = (machine, overridden(machine, ["link.h2d_bytes_per_s=x2"]))
    >>> found = what_if(*(prepare(trace, each, policy="lru", budget=16) for each in machines))
    >>> found.speedup > 1, found.base.hits == found.changed.hits
    (True, True)
    """
    requests = [[info.request for info in case.trace.meta.requests] for case in (base, changed)]
    if base.trace.sha256 != changed.trace.sha256 or requests[0] != requests[1]:
        raise SettingError("the two cases simulate different requests; give both the same trace")
    time_passes = get_method(method)
    first, second = (
        run(case, keep_records=keep_records, method=time_passes) for case in (base, changed)
    )
    return WhatIf(base=first, changed=second)


def compare_variants(
    trace: Trace | str | Path,
    base: Variant,
    changed: Variant,
    *,
    requests: Iterable[int] | None = None,
    method: str = "des",
    keep_records: bool = False,
) -> WhatIf:
    """Simulate two variants on the same requests of a trace.

    Parameters
    ----------
    trace : Trace, str or Path
        A trace, a bundled one's name or a file. Policies learn from its training requests.
    base, changed : Variant
    requests : iterable of int or None
        Simulate these; by default the held-out ones, or all if none is marked so.
    method, keep_records
        As `what_if`.

    Raises
    ------
    SettingError
        The trace has none of the requests; or as `Variant.case` and `what_if`.
    TidesimError
        As `load_trace` and `Variant.case`.
    """
    whole = in_memory(trace if isinstance(trace, Trace) else load_trace(trace))
    training, heldout = splits(whole)
    judged = (heldout or training) if requests is None else _only(whole, tuple(requests))
    first, second = (one.case(judged, popularity_from=training) for one in (base, changed))
    found = what_if(first, second, method=method, keep_records=keep_records)
    return replace(found, schedules=(base.schedule_name, changed.schedule_name))


def _only(trace: Trace, requests: tuple[int, ...]) -> Trace:
    if not requests:
        raise SettingError("no request to simulate; name at least one")
    there = [info.request for info in trace.meta.requests]
    for wanted in requests:
        if wanted not in there:
            raise SettingError(
                f"the trace has no request {wanted}; choose among {', '.join(map(str, there))}"
            )
    return trace.only(requests)


def _settings(result: SimulationResult, schedule: str | None) -> dict[str, str]:
    """Write what a run was asked for in words, by what it is about."""
    every = "" if result.interval is None else f" every {_counted(result.interval, 'step')}"
    least, most = min(result.budgets), max(result.budgets)
    slots = f"{least} to {most}" if least < most else f"{most}"
    return {
        "hardware": result.hardware,
        "policy": schedule or f"{result.policy}{every}",
        "slots": f"{slots} slots per layer",
        "engine": f"engine {result.engine}",
        "promotion": f"{result.promotion} promotion",
        "batch": f"{_counted(result.batch, 'request')} at a time",
        "sizes": result.sizes,
    }


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _quantities(result: SimulationResult) -> Iterator[tuple[str, str, float]]:
    """Yield name, unit and value of what two runs are compared by."""
    yield "tokens per second", "1/s", result.tokens_per_s
    yield "block", "ms", 1e3 * result.seconds_per_block
    for name, milliseconds in result.step_ms.items():
        yield f"step, {name.upper()}", "ms", milliseconds
    yield "slots", "", float(sum(result.budgets))
    yield "hit rate", "%", 100 * result.hit_rate
    yield "promotions", "", float(result.promotions)
    yield "refreshes", "", float(result.refreshes)
    yield "copied to the GPU", "GB", result.h2d_bytes / 1e9
    yield "copied to the host", "GB", result.d2h_bytes / 1e9
    for resource in Resource:
        yield f"busy: {resource}", "%", 100 * result.busy.get(str(resource), 0.0)
    for name in ("gpu", "link", "cpu", "host"):
        yield f"waited for: {name}", "%", 100 * result.waited.get(name, 0.0)
    for resource in Resource:
        shares = result.critical.get(str(resource), {}).values()
        yield f"critical path: {resource}", "%", 100 * sum(shares)
