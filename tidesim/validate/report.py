"""Report: whether prediction and measurement agree over all configurations, within tolerances."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from tidesim.errors import SettingError
from tidesim.placement import FloatArray
from tidesim.validate.explain import WorstPass, worst_passes
from tidesim.validate.trial import Trial

if TYPE_CHECKING:
    import pandas as pd

WORST = 8  # passes that a report explains


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What a validation must keep to pass.

    Attributes
    ----------
    run_error : float
        Largest absolute relative error of a run's seconds.
    pass_mape : float
        Mean absolute relative error of passes, over all scored configurations together.
    kendall_tau : float
        Least rank agreement of predicted and measured run seconds.
    least_configurations : int
        Configurations that must be scored.
    """

    run_error: float = 0.10
    pass_mape: float = 0.15
    kendall_tau: float = 0.8
    least_configurations: int = 12

    def __post_init__(self) -> None:
        for name in ("run_error", "pass_mape"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(
                    f"tolerance {name} is {getattr(self, name)} but must be at least 0 and finite; "
                    "0.1 allows 10 %"
                )
        if not -1 <= self.kendall_tau <= 1:
            raise SettingError(
                f"tolerance kendall_tau is {self.kendall_tau} but must be -1 to 1; 0.8 lets one pair "
                "in ten be ranked the other way"
            )


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Kendall's tau-b of two rankings of the same things.

    1 where both order every pair alike, -1 where they order all contrarily (Kendall 1945,
    "The treatment of ties in ranking problems").

    Returns
    -------
    float or None
        None where one of them has no two different values.

    Examples
    --------
    >>> kendall_tau([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]), kendall_tau([1.0, 2.0], [5.0, 4.0])
    (1.0, -1.0)
    """
    pairs = list(combinations(zip(a, b, strict=True), 2))
    signs = [(np.sign(x[0] - y[0]), np.sign(x[1] - y[1])) for x, y in pairs]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    if not all(untied):
        return None
    agreement = sum(first * second for first, second in signs)
    return float(agreement / np.sqrt(float(untied[0]) * untied[1]))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Predicted against measured over configurations.

    Attributes
    ----------
    trials : tuple of Trial
        Scored ones and those used for calibration.
    tolerances : Tolerances
    calibrated : mapping of str to (float, float)
        Fitted keys of the profile, before and after; empty without calibration.
    """

    trials: tuple[Trial, ...]
    tolerances: Tolerances = Tolerances()
    calibrated: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def scored(self) -> tuple[Trial, ...]:
        """The trials that no number was fitted to."""
        return tuple(trial for trial in self.trials if not trial.calibration)

    @property
    def counters_match(self) -> bool:
        """Whether every counter of every configuration is the predicted one."""
        return not any(trial.mismatches for trial in self.trials)

    @property
    def worst_run(self) -> Trial:
        """The scored trial whose run is farthest from its prediction."""
        return max(self.scored, key=lambda trial: abs(trial.run_error))

    @property
    def run_error(self) -> float:
        """Largest absolute relative error of a scored run."""
        return abs(self.worst_run.run_error)

    @property
    def mean_run_error(self) -> float:
        """Mean absolute relative error of scored runs."""
        return float(np.mean([abs(trial.run_error) for trial in self.scored]))

    @cached_property
    def pass_errors(self) -> FloatArray:
        """Signed relative errors of all passes of scored configurations."""
        return np.concatenate([trial.pass_errors for trial in self.scored])

    @property
    def pass_mape(self) -> float:
        """Mean absolute relative error of those passes."""
        return float(np.abs(self.pass_errors).mean())

    @property
    def p90_error(self) -> float:
        """90th percentile of their absolute relative errors."""
        return float(np.percentile(np.abs(self.pass_errors), 90))

    @cached_property
    def kendall_tau(self) -> float | None:
        """Rank agreement of scored runs: whether the simulator chooses as the machine does."""
        return kendall_tau(
            [trial.predicted_s for trial in self.scored],
            [trial.measured_s for trial in self.scored],
        )

    @property
    def repeat_spread(self) -> float | None:
        """Largest spread over repeats of a scored run; None where runs were not repeated."""
        spreads = [trial.repeat_spread for trial in self.scored]
        return max((spread for spread in spreads if spread is not None), default=None)

    @property
    def pass_spread(self) -> float | None:
        """Median over scored configurations of a pass's spread over repeats."""
        spreads = [one.pass_spread for one in self.scored if one.pass_spread is not None]
        return float(np.median(spreads)) if spreads else None

    @cached_property
    def worst_passes(self) -> tuple[WorstPass, ...]:
        """The passes farthest from their prediction, each with what differs most."""
        return worst_passes(self.scored, WORST)

    @property
    def machines(self) -> tuple[str, ...]:
        """What the runs were measured on, each once."""
        return tuple(dict.fromkeys(trial.measured.machine for trial in self.trials))

    @cached_property
    def failures(self) -> tuple[str, ...]:
        """Every reason not to pass, one sentence each."""
        return (*self._differences(), *self._breaches())

    @property
    def passed(self) -> bool:
        """Whether counters match and every tolerance holds."""
        return not self.failures

    def _differences(self) -> Iterator[str]:
        for trial in self.trials:
            for one in trial.mismatches:
                yield (
                    f"{trial.name}: {one.counter} is {one.measured:,} but was predicted to be "
                    f"{one.predicted:,}"
                )

    def _breaches(self) -> Iterator[str]:
        most, worst = self.tolerances, self.worst_run
        if len(self.scored) < most.least_configurations:
            yield (
                f"{len(self.scored)} configurations are scored but at least "
                f"{most.least_configurations} are needed"
            )
        if self.run_error > most.run_error:
            yield (
                f"run error is {worst.run_error:+.1%} ({worst.name}) but at most "
                f"{most.run_error:.1%} is allowed"
            )
        if self.pass_mape > most.pass_mape:
            yield f"pass MAPE is {self.pass_mape:.1%} but at most {most.pass_mape:.1%} is allowed"
        if self.kendall_tau is None or self.kendall_tau < most.kendall_tau:
            tau = "not defined" if self.kendall_tau is None else f"{self.kendall_tau:.3f}"
            yield f"Kendall's tau is {tau} but at least {most.kendall_tau} is needed"

    def frame(self) -> "pd.DataFrame":
        """Return a pandas table with a row per configuration: seconds, and shares of them."""
        import pandas as pd  # noqa: PLC0415 (a heavy import, paid only where a table is wanted)

        names = ("name", "calibration", "predicted_s", "measured_s", "run_error", "repeat_spread")
        rows = [
            {name: getattr(trial, name) for name in names}
            | {"counters_match": not trial.mismatches}
            for trial in self.trials
        ]
        return pd.DataFrame(rows).astype({"repeat_spread": float})

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        names = (
            "counters_match", "run_error", "mean_run_error", "pass_mape", "p90_error",
            "kendall_tau", "repeat_spread", "pass_spread", "passed",
        )  # fmt: skip
        first = self.trials[0]
        return {name: getattr(self, name) for name in names} | {
            "failures": list(self.failures),
            "tolerances": asdict(self.tolerances),
            "configurations": [trial.to_json() for trial in self.trials],
            "calibrated": {
                key: {"before": before, "after": after}
                for key, (before, after) in self.calibrated.items()
            },
            "worst_passes": [one.to_json() for one in self.worst_passes],
            "machine": list(self.machines),
            "backend": first.measured.backend,
            "hardware": first.predicted.hardware,
            "sizes": first.predicted.sizes,
            "provenance": first.predicted.provenance,
            "trace_sha256": first.predicted.trace_sha256,
            "profile_sha256": first.predicted.profile_sha256,
        }


def validate(
    trials: Sequence[Trial],
    *,
    tolerances: Tolerances | None = None,
    calibrated: Mapping[str, tuple[float, float]] | None = None,
) -> Report:
    """Compare predictions with measurements.

    Parameters
    ----------
    trials : sequence of Trial
        Those with `calibration` are named and not scored.
    tolerances : Tolerances, optional
    calibrated : mapping of str to (float, float), optional
        Fitted keys of the profile, before and after.

    Raises
    ------
    SettingError
        No trial is left to score, or two bear one name.

    Examples
    --------
    >>> from tidesim.harness import replaying
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.simulate import prepare, run
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> case = prepare(trace, load_profile("a100-40gb-pcie4-xeon48"), policy="lru", budget=16)
    >>> with replaying(case.spec, "cpu") as replay:
    ...     measured = replay(case, keep_records=False)
    >>> trial = Trial(name="lru", predicted=run(case), measured=measured)
    >>> validate([trial]).counters_match
    True
    """
    names = [trial.name for trial in trials]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise SettingError(f"two configurations are called {name!r}; give each its own name")
    if all(trial.calibration for trial in trials):
        raise SettingError(
            f"all {len(trials)} configurations are for calibration; give at least one to score"
        )
    return Report(
        trials=tuple(trials), tolerances=tolerances or Tolerances(), calibrated=calibrated or {}
    )
