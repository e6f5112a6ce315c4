"""Explain: which operations make a pass take longer, or less long, than predicted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from tidesim.records import Record, Records, operation_of
from tidesim.trace.passes import PassKey
from tidesim.validate.trial import Trial

IDLE = ("all", "idle")  # seconds of a pass in which no resource has a record
CAUSES = 3

Operation = tuple[str, str]  # resource and what it did
_operation_of = cache(operation_of)


class Cause(NamedTuple):
    """Seconds of one kind of operation, predicted and measured."""

    resource: str
    operation: str
    predicted_s: float
    measured_s: float

    @property
    def difference_s(self) -> float:
        """Predicted minus measured."""
        return self.predicted_s - self.measured_s


@dataclass(frozen=True, kw_only=True)
class WorstPass:
    """A pass far from its prediction, and the operations that differ most.

    Attributes
    ----------
    configuration : str
    key : PassKey
    predicted_s, measured_s : float
        Measured is the median over repeats.
    causes : tuple of Cause
        Largest difference first; those of the measured run are of its last repeat. Empty where a
        run has no records.
    """

    configuration: str
    key: PassKey
    predicted_s: float
    measured_s: float
    causes: tuple[Cause, ...]

    @property
    def error(self) -> float:
        """Signed relative error."""
        return self.predicted_s / self.measured_s - 1

    @property
    def place(self) -> str:
        """Which pass, in words."""
        key = self.key
        return f"request {key.request}, block {key.block}, step {key.step} ({key.kind})"

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        return {
            "configuration": self.configuration,
            "request": self.key.request,
            "block": self.key.block,
            "step": self.key.step,
            "kind": str(self.key.kind),
            "predicted_s": self.predicted_s,
            "measured_s": self.measured_s,
            "error": self.error,
            "causes": [cause._asdict() for cause in self.causes],
        }


def worst_passes(trials: Sequence[Trial], count: int) -> tuple[WorstPass, ...]:
    """Return the passes with the largest absolute relative errors, over all trials."""
    found = [
        (abs(float(error)), trial, number)
        for trial in trials
        for number, error in enumerate(trial.pass_errors)
    ]
    found.sort(key=lambda item: -item[0])
    return tuple(_explained(trial, number) for _, trial, number in found[:count])


def operations(trials: Iterable[Trial]) -> tuple[Cause, ...]:
    """Return the seconds of every kind of operation over whole runs that have records.

    Time in which nothing works counts as `IDLE`. Largest difference first.

    Examples
    --------
    >>> from tidesim.harness import replaying
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.simulate import prepare, run
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> case = prepare(trace, load_profile("a100-40gb-pcie4-xeon48"), policy="lru", budget=16)
    >>> with replaying(case.spec, "cpu") as replay:
    ...     measured = replay(case, keep_records=True)
    >>> predicted = run(case, keep_records=True)
    >>> found = operations([Trial(name="lru", predicted=predicted, measured=measured)])
    >>> sorted({cause.resource for cause in found})
    ['all', 'cpu', 'd2h', 'gpu', 'h2d', 'host']
    """
    totals: list[dict[Operation, float]] = [{}, {}]
    for trial in trials:
        ours, theirs = trial.predicted.records, trial.measured.records
        if ours is None or theirs is None:
            continue
        last_s = float(trial.measured.run_s[-1])
        for total, rows, length_s in zip(
            totals, (ours, theirs), (trial.predicted_s, last_s), strict=True
        ):
            for operation, seconds in _seconds(rows, length_s).items():
                total[operation] = total.get(operation, 0.0) + seconds
    return _causes(*totals)


def _explained(trial: Trial, number: int) -> WorstPass:
    key, measured = trial.measured.keys[number], trial.measured
    predicted_s = float(trial.predicted.pass_s[number])
    causes: tuple[Cause, ...] = ()
    if trial.predicted.records is not None and measured.records is not None:
        last_s = float(measured.pass_s[-1, number])
        causes = _causes(
            _seconds(_of_pass(trial.predicted.records, key), predicted_s),
            _seconds(_of_pass(measured.records, key), last_s),
        )[:CAUSES]
    return WorstPass(
        configuration=trial.name,
        key=key,
        predicted_s=predicted_s,
        measured_s=float(measured.median_pass_s[number]),
        causes=causes,
    )


def _of_pass(records: Records, key: PassKey) -> list[Record]:
    """Return what was done for a pass; block and step of a request name one pass."""
    place = (key.request, key.block, key.step)
    return [row for row in records if (row.request, row.block, row.step) == place]


def _seconds(rows: Iterable[Record], length_s: float) -> dict[Operation, float]:
    """Sum seconds by operation; what `length_s` has beyond the time that anything works is idle."""
    total: dict[Operation, float] = {}
    covered_s = until_s = 0.0
    for row in rows:  # in order of start
        operation = (str(row.resource), _operation_of(row.label))
        total[operation] = total.get(operation, 0.0) + row.end_s - row.start_s
        covered_s += max(row.end_s - max(row.start_s, until_s), 0.0)
        until_s = max(until_s, row.end_s)
    return total | {IDLE: max(length_s - covered_s, 0.0)}


def _causes(
    predicted: Mapping[Operation, float], measured: Mapping[Operation, float]
) -> tuple[Cause, ...]:
    names = sorted(predicted.keys() | measured.keys())
    causes = [Cause(*name, predicted.get(name, 0.0), measured.get(name, 0.0)) for name in names]
    return tuple(sorted(causes, key=lambda cause: -abs(cause.difference_s)))
