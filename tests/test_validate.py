"""Validate: counters to the unit, times with their errors, ranks, and why a pass is far off."""

import json
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from builders import FakeLatency, case_of, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from measuring import measured_like, recounted, stretched, trial_like

from tidesim.errors import SettingError
from tidesim.records import Record, Records, Resource
from tidesim.simulate import run
from tidesim.validate import Tolerances, Trial, kendall_tau, operations, validate

COUNTS = [[[0, 2, 1]], [[2, 1, 0]], [[1, 1, 1]], [[0, 0, 3]]]
TRACE = steps_trace(small_spec(), COUNTS, steps_per_block=2, commits=True)
ANY = Tolerances(least_configurations=1, kendall_tau=-1)
COUNTERS = ["hits", "misses", "promotions", "evictions", "streams", "refreshes"]


def simulated(slower=1.0, **settings):
    """Return a run of six passes, two blocks of two steps and a commit; and its passes."""
    case = case_of(TRACE, latency=FakeLatency(cpu_experts=16 * slower), **settings)
    return run(case, keep_records=True), tuple(case.passes())


def trials(*, factors=(1.0,) * 12, **changes):
    """Return one trial per factor, each with a run of its own length."""
    runs = [simulated(slower=number) for number in range(1, len(factors) + 1)]
    return [
        trial_like(*one, name=f"c{number}", factor=factor, **changes)
        for number, (one, factor) in enumerate(zip(runs, factors, strict=True))
    ]


# ── ranks ────────────────────────────────────────────────────────────────────────────────────────


def test_kendalls_tau_counts_pairs_in_like_order_less_those_in_contrary_order():
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx((5 - 1) / 6)
    assert kendall_tau([1, 2, 3], [30, 20, 10]) == -1


def test_ties_count_as_tau_b_has_them():
    # 3 pairs; one is tied in the first, none in the second: (2 - 0) / sqrt(2 * 3)
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)
    assert kendall_tau([1, 1], [1, 2]) is None
    assert kendall_tau([1], [1]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9))
def test_tau_is_symmetric_bounded_and_blind_to_monotone_changes(pairs):
    a, b = [list(side) for side in zip(*pairs, strict=True)]

    tau = kendall_tau(a, b)

    assert tau == kendall_tau(b, a)
    if tau is None:
        assert len(set(a)) == 1 or len(set(b)) == 1
        return
    assert -1 <= tau <= 1 + 1e-12
    assert kendall_tau([x**3 for x in a], b) == tau
    assert kendall_tau([-x for x in a], b) == -tau
    assert kendall_tau(a, a) == pytest.approx(1)


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def test_what_is_measured_as_predicted_passes_without_error():
    report = validate(trials())

    assert report.passed
    assert report.failures == ()
    assert (report.run_error, report.pass_mape, report.p90_error) == (0, 0, 0)
    assert report.mean_run_error == 0
    assert report.kendall_tau == pytest.approx(1)
    assert report.counters_match


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 4.0])
def test_a_run_that_takes_longer_has_exactly_that_signed_error_everywhere(factor):
    (trial,) = trials(factors=(factor,))

    error = 1 / factor - 1
    assert trial.run_error == pytest.approx(error)
    assert trial.pass_errors == pytest.approx(np.full(6, error))
    for errors in (trial.passes, trial.blocks):
        assert errors.signed == pytest.approx(error)
        assert (errors.mape, errors.p50, errors.p99) == pytest.approx((abs(error),) * 3)


def test_errors_of_passes_and_blocks_are_those_of_their_medians():
    result, passes = simulated()
    factor = np.ones((3, 6))
    factor[:, 0] = 1, 2, 4  # median 2: the pass is predicted at half its time
    factor[2, 3] = 9  # once only, so the median does not see it
    trial = trial_like(result, passes, repeats=3, factor=factor)

    assert trial.pass_errors == pytest.approx([-0.5, 0, 0, 0, 0, 0])
    assert trial.passes.mape == pytest.approx(0.5 / 6)
    assert trial.passes.p90 == pytest.approx(np.percentile([0.5, 0, 0, 0, 0, 0], 90))
    first_s = result.pass_s[:3].sum()
    error = first_s / (first_s + result.pass_s[0]) - 1
    assert trial.blocks.mape == pytest.approx(abs(error) / 2)


def test_the_spread_of_repeats_stands_beside_the_error():
    result, passes = simulated()
    trial = trial_like(result, passes, repeats=3, factor=np.array([[1.0], [1.1], [1.4]]))

    assert trial.repeat_spread == pytest.approx(0.4 / 1.1)
    assert trial.pass_spread == pytest.approx(0.4 / 1.1)
    assert trial.run_error == pytest.approx(1 / 1.1 - 1)
    assert validate([trial], tolerances=ANY).repeat_spread == pytest.approx(0.4 / 1.1)


def test_one_repeat_has_no_spread():
    (trial,) = trials(factors=(1.0,))
    report = validate([trial], tolerances=ANY)

    assert trial.repeat_spread is trial.pass_spread is None
    assert report.repeat_spread is report.pass_spread is None


def test_the_report_names_the_largest_run_error_and_pools_passes():
    report = validate(trials(factors=(1.0, 1.25, 0.9)), tolerances=ANY)

    assert report.run_error == pytest.approx(0.2)
    assert report.worst_run.name == "c1"
    assert report.mean_run_error == pytest.approx((0 + 0.2 + 1 / 0.9 - 1) / 3)
    assert report.pass_mape == pytest.approx(report.mean_run_error)
    assert report.p90_error == pytest.approx(0.2)


def test_the_frame_has_a_row_per_configuration_with_the_spread_beside_the_error():
    first, second = trials(factors=(1.0, 1.25))
    second = replace(second, measured=recounted(second.measured, hits=-1), calibration=True)

    frame = validate([first, second], tolerances=ANY).frame().set_index("name")

    assert list(frame.columns) == [
        "calibration", "predicted_s", "measured_s", "run_error", "repeat_spread", "counters_match",
    ]  # fmt: skip
    assert frame["run_error"].tolist() == pytest.approx([0, -0.2])
    assert frame.loc["c1", "measured_s"] == second.measured_s
    assert frame["repeat_spread"].isna().all()
    assert frame["calibration"].tolist() == [False, True]
    assert frame["counters_match"].tolist() == [True, False]


def test_busy_seconds_stand_beside_each_other_where_there_are_records():
    result, passes = simulated()
    slow = stretched(result.records, 2)
    trial = trial_like(result, passes, factor=2.0, records=slow)
    without = trial_like(result, passes, records=None)

    for resource, (predicted, measured) in trial.busy.items():
        assert predicted == pytest.approx(result.busy[resource] * result.seconds)
        assert measured == pytest.approx(2 * predicted)
    assert {measured for _, measured in without.busy.values()} == {None}


# ── counters and tolerances ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", COUNTERS)
def test_one_counter_off_by_one_fails_and_is_named_with_both_values(name):
    first, *others = trials()
    value = getattr(first.measured.counters, name) + 1
    wrong = replace(first, measured=recounted(first.measured, **{name: value}))

    report = validate([wrong, *others])

    assert not report.passed
    assert not report.counters_match
    assert wrong.mismatches == ((name, value - 1, value),)
    assert report.failures == (f"c0: {name} is {value} but was predicted to be {value - 1}",)


def test_bytes_are_compared_by_purpose_and_an_absent_purpose_is_none():
    first = trials(factors=(1.0,))[0]
    moved = dict(first.measured.counters.h2d_bytes_by_purpose) | {"promotions": 1, "other": 7}
    wrong = replace(first, measured=recounted(first.measured, h2d_bytes_by_purpose=moved))

    expected = first.predicted.h2d_bytes_by_purpose["promotions"]
    assert wrong.mismatches == (
        ("h2d_bytes.other", 0, 7),
        ("h2d_bytes.promotions", expected, 1),
    )


def test_a_mismatch_of_a_calibration_run_fails_too():
    scored, other = trials(factors=(1.0, 1.0))
    hits = recounted(other.measured, hits=-1)

    report = validate([scored, replace(other, measured=hits, calibration=True)], tolerances=ANY)

    assert not report.passed


def test_calibration_runs_are_named_and_not_scored():
    *scored, wrong = trials(factors=(*(1.0,) * 12, 3.0))

    report = validate([*scored, replace(wrong, calibration=True)])

    assert report.passed
    assert report.run_error == 0
    assert len(report.pass_errors) == 12 * 6
    flags = {row["name"]: row["calibration"] for row in report.to_json()["configurations"]}
    assert [name for name, flag in flags.items() if flag] == ["c12"]


@pytest.mark.parametrize(
    ("factors", "tolerances", "said"),
    [
        ((1.0,) * 2, {"least_configurations": 3}, "2 configurations are scored but at least 3"),
        ((1.0, 1.25), {"run_error": 0.19}, "run error is -20.0% (c1) but at most 19.0%"),
        ((1.25, 1.25), {"pass_mape": 0.19, "run_error": 1}, "pass MAPE is 20.0% but at most 19.0%"),
        ((4.0, 1.0), {"run_error": 9, "pass_mape": 9, "kendall_tau": 0}, "Kendall's tau is -1.000"),
        ((1.0,), {"kendall_tau": -1}, "Kendall's tau is not defined"),
    ],
)
def test_each_tolerance_alone_can_fail_a_report(factors, tolerances, said):
    usual = {"least_configurations": 1}
    report = validate(trials(factors=factors), tolerances=Tolerances(**(usual | tolerances)))

    assert not report.passed
    (failure,) = report.failures
    assert said in failure


def test_errors_at_their_tolerance_pass():
    report = validate(
        trials(factors=(1.25, 1.25)),
        tolerances=Tolerances(run_error=0.2 + 1e-9, pass_mape=0.2 + 1e-9, least_configurations=2),
    )

    assert report.passed


@pytest.mark.parametrize(
    "wrong", [{"run_error": -0.1}, {"pass_mape": nan}, {"kendall_tau": 1.5}, {"kendall_tau": nan}]
)
def test_absurd_tolerances_are_refused(wrong):
    with pytest.raises(SettingError, match="tolerance"):
        Tolerances(**wrong)


# ── what cannot be compared ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        {"policy": "lru"},
        {"engine": "tide-reference"},
        {"promotion": "background"},
        {"interval": 7},
        {"budgets": (2,)},
        {"sizes": "others"},
        {"pass_s": np.ones((1, 5))},
    ],
)
def test_runs_of_different_configurations_are_not_compared(change):
    result, passes = simulated()

    with pytest.raises(SettingError, match=r"one: .* compare two runs of one configuration"):
        trial_like(result, passes, **change)


def test_runs_of_different_traces_are_not_compared():
    result, passes = simulated()
    result = replace(result, trace_sha256="a" * 64)

    with pytest.raises(SettingError, match="one: trace is"):
        trial_like(result, passes, trace_sha256="b" * 64)
    assert trial_like(result, passes, trace_sha256="").run_error == 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, nan, inf])
def test_a_measured_pass_takes_a_positive_time(seconds):
    result, passes = simulated()

    with pytest.raises(SettingError, match="positive number of seconds"):
        trial_like(result, passes, pass_s=np.full((1, 6), seconds))


def test_nothing_to_score_and_names_that_stand_twice_are_refused():
    one, other = trials(factors=(1.0, 1.0))

    with pytest.raises(SettingError, match="all 1 configurations are for calibration"):
        validate([replace(one, calibration=True)])
    with pytest.raises(SettingError, match="two configurations are called 'c0'"):
        validate([one, replace(other, name="c0")])


# ── worst passes explained ───────────────────────────────────────────────────────────────────────


def slow_cpu(result, *, request, block, step, by_s):
    """Return records and pass times of a run whose CPU experts of one pass take longer."""
    place, rows = (request, block, step), []
    late = 0.0
    for row in result.records:
        grown = by_s if row.resource is Resource.CPU and row[4:7] == place else 0.0
        rows.append(row._replace(start_s=row.start_s + late, end_s=row.end_s + late + grown))
        late += grown
    return Records(rows)


def test_the_worst_pass_names_the_operation_that_differs_most():
    result, passes = simulated()
    number = next(n for n, p in enumerate(passes) if (p.block, p.step) == (1, 0))
    pass_s = result.pass_s.copy()[None]
    pass_s[0, number] += 40
    records = slow_cpu(result, request=0, block=1, step=0, by_s=40)

    report = validate([trial_like(result, passes, pass_s=pass_s, records=records)], tolerances=ANY)

    worst = report.worst_passes[0]
    assert worst.place == "request 0, block 1, step 0 (denoise)"
    cause = worst.causes[0]
    assert (cause.resource, cause.operation) == ("cpu", "experts cpu")
    assert cause.difference_s == pytest.approx(-40)
    assert worst.error == pytest.approx(result.pass_s[number] / (result.pass_s[number] + 40) - 1)
    assert [abs(one.error) for one in report.worst_passes[1:]] == pytest.approx([0.0] * 5)


def test_time_that_no_record_covers_is_idle():
    result, passes = simulated()
    pass_s = result.pass_s.copy()[None]
    pass_s[0, 2] += 5

    trial = trial_like(result, passes, pass_s=pass_s)

    cause = validate([trial], tolerances=ANY).worst_passes[0].causes[0]
    assert (cause.resource, cause.operation) == ("all", "idle")
    assert cause.difference_s == pytest.approx(-5)
    assert operations([trial])[0] == cause


def test_without_records_nothing_is_explained():
    result, passes = simulated()
    trial = trial_like(result, passes, records=None)

    assert validate([trial], tolerances=ANY).worst_passes[0].causes == ()
    assert operations([trial]) == ()


def test_operations_sum_over_runs():
    result, passes = simulated()
    twice = trial_like(result, passes, factor=2.0, records=stretched(result.records, 2))

    causes = operations([twice, twice])

    assert sum(c.predicted_s for c in causes if c.resource == "cpu") == pytest.approx(
        2 * result.busy["cpu"] * result.seconds
    )
    assert all(c.measured_s == pytest.approx(2 * c.predicted_s) for c in causes)


def test_request_block_and_step_name_one_pass():
    _, passes = simulated()

    assert len({(p.request, p.block, p.step) for p in passes}) == len(passes) == 6


def test_idle_time_counts_overlapping_records_once():
    result, passes = simulated()
    rows = Records(
        Record(resource, 0, 2, "work", 0, 0, 0, 0) for resource in (Resource.GPU, Resource.CPU)
    )
    trial = trial_like(result, passes, records=rows)

    idle = next(one for one in operations([trial]) if one.operation == "idle")

    assert idle.measured_s == pytest.approx(result.seconds - 2)
    assert idle.predicted_s == pytest.approx(0, abs=1e-9)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_report_is_json_with_stable_keys():
    report = validate(trials(repeats=2), calibrated={"engine.tidesim.sync_s": (1e-6, 2e-6)})

    answer = report.to_json()

    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer.keys() >= {
        "counters_match", "run_error", "mean_run_error", "pass_mape", "p90_error", "kendall_tau",
        "configurations", "repeat_spread", "passed", "failures", "tolerances", "calibrated",
        "machine", "worst_passes",
    }  # fmt: skip
    assert answer["calibrated"] == {"engine.tidesim.sync_s": {"before": 1e-6, "after": 2e-6}}
    row = answer["configurations"][0]
    assert row.keys() >= {
        "name", "calibration", "budgets", "predicted_s", "measured_s", "run_error", "pass_errors",
        "block_errors", "repeat_spread", "busy_s", "mismatches",
    }  # fmt: skip
    assert row["pass_errors"].keys() == {"signed", "mape", "p50", "p90", "p99"}


def test_a_measured_run_has_the_trials_seconds():
    result, passes = simulated()
    measured = measured_like(result, passes, repeats=3, factor=np.array([[1.0], [2.0], [9.0]]))

    trial = Trial(name="one", predicted=result, measured=measured)

    assert trial.measured_s == pytest.approx(2 * result.seconds)
