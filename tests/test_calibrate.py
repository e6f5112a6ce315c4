"""Calibrate: per-call costs found again from runs that were timed with others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import measured_like
from test_optimize import A100, fixed_trace

from tidesim.calibrate import calibrate, fit, usual_keys
from tidesim.errors import SettingError
from tidesim.latency import Latency
from tidesim.simulate import prepare, run

ENGINE = "engine.tidesim"
KEYS = (f"{ENGINE}.cpu_expert_call_s", f"{ENGINE}.copy_call_s", f"{ENGINE}.sync_s")
TRACE = fixed_trace()
SETTINGS = {
    "static": {"policy": "static-frequency", "budget": 2},
    "every step": {"policy": "tide", "budget": 3, "interval": 1},
    "background": {"policy": "previous-step", "budget": 2},
}
HELD_OUT = {"policy": "tide", "budget": 2, "interval": 2}


def case_on(profile, settings):
    return prepare(TRACE, profile, popularity_from=TRACE.split("train"), **settings)


def measured_on(machine, case, *, noise=0.0):
    """Return the run of a case as another machine takes it, a little noisy."""
    latency = Latency(machine, case.spec, engine=case.setup.engine.name)
    result = run(replace(case, latency=latency))
    rng = np.random.default_rng(0)
    factor = np.exp(noise * rng.standard_normal((3, result.passes)))
    return measured_like(result, tuple(case.passes()), factor=factor, repeats=3)


def runs_on(machine, *, start=A100, noise=0.0):
    cases = {name: case_on(start, chosen) for name, chosen in SETTINGS.items()}
    return {name: (case, measured_on(machine, case, noise=noise)) for name, case in cases.items()}


@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.floats(0.0, 2e-4)] * 3))
def test_the_costs_that_runs_were_timed_with_are_found(costs):
    true = dict(zip(KEYS, costs, strict=True))

    found = calibrate(A100, runs_on(A100.with_overrides(true)), keys=KEYS)

    fitted = {key: found.profile.value(key) for key in KEYS}
    assert fitted == pytest.approx(true, rel=1e-3, abs=1e-9)
    assert found.rms_error[1] < 1e-4


def test_the_usual_keys_predict_a_configuration_that_was_not_fitted():
    true = A100.with_overrides(
        {f"{ENGINE}.cpu_expert_call_s": 9e-5, f"{ENGINE}.sync_s": 6e-5, "gpu.launch_s": 2e-6}
    )
    case = case_on(A100, HELD_OUT)
    measured_s = measured_on(true, case).seconds

    found = calibrate(A100, runs_on(true))

    before_s = run(case).seconds
    after_s = run(case_on(found.profile, HELD_OUT)).seconds
    assert abs(before_s / measured_s - 1) > 0.1
    assert after_s == pytest.approx(measured_s, rel=0.005)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_calibration_is_never_worse_on_its_runs_and_the_same_each_time(noise):
    runs = runs_on(A100.with_overrides({KEYS[0]: 9e-5}), noise=noise)

    one, other = calibrate(A100, runs), calibrate(A100, runs)

    assert one.rms_error[1] < one.rms_error[0]
    assert one.values == other.values
    assert one.profile.sha256 == other.profile.sha256


def test_a_machine_that_is_as_the_profile_says_is_left_as_it_is():
    found = calibrate(A100, runs_on(A100))

    assert found.values == {}
    assert found.profile is A100
    assert found.rms_error == pytest.approx((0, 0), abs=1e-12)


def test_a_cost_that_no_run_depends_on_is_left_alone():
    """Engine tidesim computes the GPU's experts in one call, so the cost of single ones is unseen."""
    found = calibrate(A100, runs_on(A100.with_overrides({KEYS[0]: 9e-5})))

    assert KEYS[0] in found.values
    assert f"{ENGINE}.gpu_expert_call_s" not in found.values


def test_a_factor_is_fitted_within_its_range():
    true = A100.with_overrides({f"{ENGINE}.cpu_rate_factor": 0.25, f"{ENGINE}.sync_s": 0})
    start = A100.with_overrides({f"{ENGINE}.cpu_rate_factor": 1.0})
    keys = (f"{ENGINE}.cpu_rate_factor", f"{ENGINE}.sync_s")

    found = calibrate(start, runs_on(true, start=start), keys=keys)

    assert {key: found.profile.value(key) for key in keys} == pytest.approx(
        {keys[0]: 0.25, keys[1]: 0}, rel=1e-3, abs=1e-9
    )


def test_fitted_numbers_say_which_runs_they_come_from():
    found = calibrate(A100, runs_on(A100.with_overrides({KEYS[0]: 9e-5})), keys=KEYS[:1])

    number = found.profile.quantity(KEYS[0])
    assert number.source == "calibrated on static, every step, background"
    assert number.kind == "measured"
    before, after = found.values[KEYS[0]]
    assert (before, after) == (A100.value(KEYS[0]), number.value)
    assert found.profile.quantity(KEYS[1]) == A100.quantity(KEYS[1])
    assert found.profile.baseline is found.profile


@pytest.mark.parametrize("key", ["link.h2d_bytes_per_s", "gpu.flops_bf16"])
def test_rates_are_not_calibrated(key):
    with pytest.raises(SettingError, match=f"{key} is neither seconds nor a factor"):
        calibrate(A100, runs_on(A100), keys=(key,))


def test_calibration_needs_runs():
    with pytest.raises(SettingError, match="no runs to calibrate with"):
        calibrate(A100, {})


def test_only_keys_that_the_profile_holds_are_usual():
    assert f"{ENGINE}.sync_s" in usual_keys(A100, ["tidesim"])
    assert usual_keys(A100, ["absent"]) == ("gpu.launch_s",)


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=2),
    st.integers(0, 2**32 - 1),
)
def test_a_linear_fit_is_the_bounded_least_squares(start, seed):
    """No feasible point near the answer does better."""
    rng = np.random.default_rng(seed)
    slopes, offset = rng.standard_normal((6, 2)), 3 * rng.standard_normal(6)
    low, high = np.array([-5.0, -1.0]), np.array([5.0, 1.0])
    begin = np.clip(start, low, high)

    def errors(x):
        return slopes @ x + offset

    end = fit(errors, begin, low, high)

    assert np.all((low <= end) & (end <= high))
    assert np.sum(errors(end) ** 2) <= np.sum(errors(begin) ** 2)
    for direction in rng.standard_normal((20, 2)):
        near = np.clip(end + 1e-3 * direction, low, high)
        # The fit stops where a step gains less than a millionth.
        assert np.sum(errors(end) ** 2) <= np.sum(errors(near) ** 2) * (1 + 1e-6) + 1e-7
