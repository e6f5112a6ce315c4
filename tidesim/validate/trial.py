"""Trial: one configuration, predicted by the simulator and measured on a real machine."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tidesim.errors import SettingError
from tidesim.measured import MeasuredRun
from tidesim.placement import FloatArray
from tidesim.records import Resource, busy_s
from tidesim.simulate.result import SimulationResult

COUNTS = ("hits", "misses", "promotions", "evictions", "streams", "refreshes")
BYTES = ("h2d_bytes_by_purpose", "d2h_bytes_by_purpose")
_SETTINGS = ("policy", "engine", "promotion", "interval", "budgets", "sizes")


class Mismatch(NamedTuple):
    """A counter that was predicted to be another."""

    counter: str
    predicted: int
    measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far predicted times are from measured ones, relative to the measured.

    Attributes
    ----------
    signed : float
        Of their sums; above 0 where the prediction is too slow.
    mape : float
        Mean of the absolute errors.
    p50, p90, p99 : float
        Percentiles of the absolute errors.
    """

    signed: float
    mape: float
    p50: float
    p90: float
    p99: float


def errors(predicted_s: FloatArray, measured_s: FloatArray) -> Errors:
    """Compare times one by one, and their sums.

    Examples
    --------
    >>> import numpy as np
    >>> found = errors(np.array([1.1, 0.9]), np.array([1.0, 1.0]))
    >>> round(found.signed, 3), round(found.mape, 3)
    (0.0, 0.1)
    """
    absolute = np.abs(predicted_s / measured_s - 1)
    p50, p90, p99 = np.percentile(absolute, (50, 90, 99)).tolist()
    signed = float(predicted_s.sum() / measured_s.sum() - 1)
    return Errors(signed=signed, mape=float(absolute.mean()), p50=p50, p90=p90, p99=p99)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration, predicted and measured on the same passes.

    Attributes
    ----------
    name : str
        Of the configuration, such as ``tide τ=4 B=16 blocking``.
    predicted : SimulationResult
    measured : MeasuredRun
    calibration : bool
        The profile was fitted to this run, so its errors say nothing.

    Raises
    ------
    SettingError
        The two are not runs of one configuration on the same passes, or a measured time is not
        above 0.
    """

    name: str
    predicted: SimulationResult
    measured: MeasuredRun
    calibration: bool = False

    def __post_init__(self) -> None:
        for setting in _SETTINGS:
            self._check_same(setting, *(getattr(run, setting) for run in self._runs))
        self._check_same("number of passes", self.predicted.passes, self.measured.pass_s.shape[1])
        if all(run.trace_sha256 for run in self._runs):
            self._check_same("trace", *(run.trace_sha256 for run in self._runs))
        if not np.all(np.isfinite(self.measured.pass_s) & (self.measured.pass_s > 0)):
            raise SettingError(
                f"{self.name}: a measured pass does not take a positive number of seconds; "
                "measure again"
            )

    def _check_same(self, what: str, predicted: object, measured: object) -> None:
        if predicted != measured:
            raise SettingError(
                f"{self.name}: {what} is {predicted!r} in the prediction but {measured!r} in the "
                "measured run; compare two runs of one configuration on the same passes"
            )

    @property
    def _runs(self) -> tuple[SimulationResult, MeasuredRun]:
        return self.predicted, self.measured

    # ── counters ──────────────────────────────────────────────────────────────────────────────────

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """Every counter that differs."""
        return tuple(one for one in self._counters() if one.predicted != one.measured)

    def _counters(self) -> Iterator[Mismatch]:
        predicted, measured = self.predicted, self.measured.counters
        for name in COUNTS:
            yield Mismatch(name, getattr(predicted, name), getattr(measured, name))
        for name in BYTES:
            ours, theirs = getattr(predicted, name), getattr(measured, name)
            for purpose in sorted(ours.keys() | theirs.keys()):
                label = f"{name.removesuffix('_by_purpose')}.{purpose}"
                yield Mismatch(label, ours.get(purpose, 0), theirs.get(purpose, 0))

    # ── times ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def predicted_s(self) -> float:
        """Seconds of the run as simulated."""
        return self.predicted.seconds

    @property
    def measured_s(self) -> float:
        """Seconds of the run: the sum of its passes' medians over the repeats."""
        return self.measured.seconds

    @property
    def run_error(self) -> float:
        """Signed relative error of the run's seconds."""
        return self.predicted_s / self.measured_s - 1

    @cached_property
    def passes(self) -> Errors:
        """Errors of passes; a pass is measured by its median over the repeats."""
        return errors(self.predicted.pass_s, self.measured.median_pass_s)

    @cached_property
    def blocks(self) -> Errors:
        """Errors of blocks, prefills among them, each with all its passes."""
        starts = list(self._block_starts())
        predicted_s = np.add.reduceat(self.predicted.pass_s, starts)
        return errors(predicted_s, np.add.reduceat(self.measured.median_pass_s, starts))

    def _block_starts(self) -> Iterator[int]:
        before = None
        for number, key in enumerate(self.measured.keys):
            if (key.request, key.block) != before:
                before = (key.request, key.block)
                yield number

    @property
    def pass_errors(self) -> FloatArray:
        """Signed relative error of every pass, [passes]."""
        return np.asarray(self.predicted.pass_s / self.measured.median_pass_s - 1)

    @property
    def repeat_spread(self) -> float | None:
        """(slowest - fastest) / median of the run's seconds over repeats; None of one repeat."""
        return None if len(self.measured.pass_s) < 2 else float(_spread(self.measured.run_s))

    @property
    def pass_spread(self) -> float | None:
        """Median over the passes of their spread over repeats; None of one repeat."""
        passes_s = self.measured.pass_s
        return None if len(passes_s) < 2 else float(np.median(_spread(passes_s)))

    @cached_property
    def busy(self) -> dict[str, tuple[float, float | None]]:
        """Seconds each resource works, predicted and in the measured records, None without any."""
        records, shares = self.measured.records, self.predicted.busy
        measured_s = None if records is None else busy_s(records)
        return {
            str(name): (
                shares[name] * self.predicted_s,
                None if measured_s is None else measured_s[name],
            )
            for name in Resource
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        predicted = self.predicted
        return {
            "name": self.name,
            "calibration": self.calibration,
            "policy": predicted.policy,
            "interval": predicted.interval,
            "promotion": predicted.promotion,
            "engine": predicted.engine,
            "budgets": list(predicted.budgets),
            "repeats": len(self.measured.pass_s),
            "passes": predicted.passes,
            "predicted_s": self.predicted_s,
            "measured_s": self.measured_s,
            "run_error": self.run_error,
            "pass_errors": asdict(self.passes),
            "block_errors": asdict(self.blocks),
            "repeat_spread": self.repeat_spread,
            "pass_spread": self.pass_spread,
            "busy_s": {
                name: {"predicted": ours, "measured": theirs}
                for name, (ours, theirs) in self.busy.items()
            },
            "counters_match": not self.mismatches,
            "mismatches": [one._asdict() for one in self.mismatches],
        }


def _spread(repeats_s: FloatArray) -> FloatArray:
    """Return (slowest - fastest) / median over the first axis."""
    return np.asarray(np.ptp(repeats_s, axis=0) / np.median(repeats_s, axis=0))
