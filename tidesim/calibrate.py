"""Calibrate: fit the few per-call costs of a profile to measured runs.

Least squares on the relative errors of passes, each run with the same weight, by damped Gauss-Newton
steps within bounds (Levenberg 1944, Marquardt 1963). The model is the simulator's `fast` method.
Placement is computed once: a policy that weighs costs goes on deciding by the profile it was given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.latency import Latency
from tidesim.measured import MeasuredRun
from tidesim.placement import FloatArray
from tidesim.simulate import Case, fast
from tidesim.simulate.chunks import Chunk, chunked
from tidesim.simulate.prices import Prices

ITERATIONS = 20
_CALLS = ("cpu_expert_call_s", "gpu_expert_call_s", "copy_call_s", "sync_s", "decide_s")
_LEAST_FACTOR = 0.05
_WIDTHS = (0.01, 0.3, 0.03, 0.001)  # of differences: a wide one steps over kinks
_NOTHING = 1e-9  # of error that is rounding
_LEAST_DAMPING = 1e-9  # costs that always come together leave the squares singular
_NO_EFFECT = 1e-12  # of the largest squared slope: what is below is rounding
_UNIT_S = 1e-6  # of costs that start at or near 0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a fit changed.

    Attributes
    ----------
    profile : HardwareProfile
        The fitted one; its numbers say which runs they come from.
    values : dict of str to (float, float)
        Every number that changed, before and after.
    rms_error : (float, float)
        Root mean square of the relative errors of passes, before and after.
    """

    profile: HardwareProfile
    values: dict[str, tuple[float, float]]
    rms_error: tuple[float, float]


def usual_keys(profile: HardwareProfile, engines: Sequence[str]) -> tuple[str, ...]:
    """List the per-call costs that a profile holds for some engines, and its kernel launch."""
    costs = (f"engine.{engine}.{call}" for engine in dict.fromkeys(engines) for call in _CALLS)
    keys = (*costs, "gpu.launch_s")
    absent = profile.missing(keys)
    return tuple(key for key in keys if key not in absent)


def calibrate(
    profile: HardwareProfile,
    runs: Mapping[str, tuple[Case, MeasuredRun]],
    *,
    keys: Sequence[str] | None = None,
) -> Calibration:
    """Fit numbers of a profile so that measured runs come out as they were measured.

    Parameters
    ----------
    profile : HardwareProfile
        Where the fit starts; on the given runs the fitted one is never worse.
    runs : mapping of str to (Case, MeasuredRun)
        Named runs, with the case each was run from.
    keys : sequence of str, optional
        Seconds, at least 0, or factors, up to 1; by default `usual_keys`.

    Raises
    ------
    SettingError
        No run, a key that is neither seconds nor a factor, or one that the profile does not hold.
    """
    if not runs:
        raise SettingError("no runs to calibrate with; name at least one")
    engines = [case.setup.engine.name for case, _ in runs.values()]
    keys = usual_keys(profile, engines) if keys is None else tuple(keys)
    low, high, units = np.array([_range(profile, key) for key in keys]).T
    source = f"calibrated on {', '.join(runs)}"
    model = _Model(list(runs.values()))

    start = np.array([profile.value(key) for key in keys]) / units

    def at(scaled: FloatArray) -> HardwareProfile:
        moved = np.flatnonzero(scaled != start).tolist()
        values = {keys[number]: float(scaled[number] * units[number]) for number in moved}
        return profile.calibrated(values, source=source) if moved else profile

    end = fit(lambda scaled: model.errors(at(scaled)), start, low / units, high / units)
    fitted = at(end)
    return Calibration(
        profile=fitted,
        values={
            key: (profile.value(key), fitted.value(key))
            for key, moved in zip(keys, end != start, strict=True)
            if moved
        },
        rms_error=(model.rms(profile), model.rms(fitted)),
    )


def fit(
    errors: Callable[[FloatArray], FloatArray], start: FloatArray, low: FloatArray, high: FloatArray
) -> FloatArray:
    """Return numbers within bounds whose errors have no larger sum of squares than the start's."""
    x = start
    for width in _WIDTHS:
        x = _descend(errors, x, low, high, width)
    return x


def _descend(
    errors: Callable[[FloatArray], FloatArray],
    x: FloatArray,
    low: FloatArray,
    high: FloatArray,
    width: float,
) -> FloatArray:
    """Step down, with derivatives over one width, until that gains nothing."""
    error, damping = errors(x), 1e-3
    for _ in range(ITERATIONS):
        if np.max(np.abs(error)) < _NOTHING:
            break
        before, slopes = error @ error, _slopes(errors, x, error, high, width)
        while damping < 1e6:
            tried = np.clip(x + _step(slopes, error, low - x, high - x, damping), low, high)
            tried_error = errors(tried)
            if tried_error @ tried_error < before:
                x, error, damping = tried, tried_error, max(damping / 10, _LEAST_DAMPING)
                break
            damping *= 10
        if error @ error > (1 - 1e-6) * before:
            break
    return x


def _slopes(
    errors: Callable[[FloatArray], FloatArray],
    x: FloatArray,
    error: FloatArray,
    high: FloatArray,
    width: float,
) -> FloatArray:
    """Return derivatives of the errors by each number, [errors, numbers], by differences."""
    columns = []
    for number in range(len(x)):
        moved, by = x.copy(), width * max(x[number], 1.0)
        moved[number] += by if x[number] + by <= high[number] else -by
        columns.append((errors(moved) - error) / (moved[number] - x[number]))
    return np.stack(columns, axis=1)


def _step(
    slopes: FloatArray, error: FloatArray, low: FloatArray, high: FloatArray, damping: float
) -> FloatArray:
    """Minimise the damped squares of ``error + slopes @ step``; what leaves its bounds stays there."""
    squares, pull = slopes.T @ slopes, slopes.T @ error
    squares = squares + np.diag(damping * np.diag(squares))
    effects = np.diag(squares)
    step, free = np.zeros(len(low)), effects > _NO_EFFECT * effects.max(initial=0)
    while free.any():
        rest = pull[free] + squares[free][:, ~free] @ step[~free]
        step[free] = -np.linalg.solve(squares[np.ix_(free, free)], rest)
        outside = free & ((step < low) | (step > high))
        step = np.clip(step, low, high)
        if not outside.any():
            break
        free &= ~outside
    return step


def _range(profile: HardwareProfile, key: str) -> tuple[float, float, float]:
    """Return least and greatest value of a key, and the unit in which it is fitted."""
    value = profile.value(key)
    if key.endswith("_factor"):
        return min(_LEAST_FACTOR, value), 1.0, 1.0
    if key.endswith("_s") and not key.endswith("_per_s"):
        return 0.0, np.inf, max(value, _UNIT_S)
    raise SettingError(f"{key} is neither seconds nor a factor; calibrate numbers that are")


class _Model:
    """Simulated seconds of placed runs against the measured ones, for any profile."""

    def __init__(self, runs: Sequence[tuple[Case, MeasuredRun]]) -> None:
        self._runs: list[tuple[Case, list[Chunk], FloatArray]] = [
            (case, list(chunked(case.placed())), run.median_pass_s) for case, run in runs
        ]

    def errors(self, profile: HardwareProfile) -> FloatArray:
        """Return the relative errors of all passes, so weighted that each run counts the same."""
        return np.concatenate([self._errors(profile, *run) for run in self._runs])

    def rms(self, profile: HardwareProfile) -> float:
        """Return the root of the mean over runs of their passes' mean squared relative error."""
        return float(np.linalg.norm(self.errors(profile)) / np.sqrt(len(self._runs)))

    @staticmethod
    def _errors(
        profile: HardwareProfile, case: Case, chunks: list[Chunk], measured_s: FloatArray
    ) -> FloatArray:
        engine = case.setup.engine
        prices = Prices(Latency(profile, case.spec, engine=engine.name), engine, case.spec)
        promotion = case.policy(case.known).promotion
        timing = fast.time_passes(chunks, prices, promotion=promotion, keep_records=False)
        errors = timing.pass_s / measured_s - 1
        return np.asarray(errors / np.sqrt(len(errors)))
