"""Harness: which configurations run, how repeats are taken, and what is compared with what."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from measuring import measured_like, recounted
from test_optimize import A100, MINI, fixed_trace

from tidesim.configurations import (
    Configuration,
    budget_of,
    calibration_configurations,
    default_configurations,
)
from tidesim.errors import SettingError
from tidesim.harness import (
    _is_new,
    name_of,
    replaying,
    run_validation,
    some_requests,
    spread,
    stacked,
    timed_by,
)
from tidesim.model_spec import load_model_spec
from tidesim.policies.scheduled import Scheduled
from tidesim.schedule import LayerSchedule
from tidesim.simulate import prepare, run
from tidesim.trace.io import load_trace

TRACE = fixed_trace()
SYNC = "engine.tidesim.sync_s"
TWO = (
    Configuration(policy="tide", budget=2, interval=1),
    Configuration(policy="static-frequency", budget=4),
)
OTHER = (
    Configuration(policy="lru", budget=3),
    Configuration(policy="previous-step", budget=2),
)


class FakeMachine:
    """A machine that runs as another profile says, a little longer in every round."""

    def __init__(self, profile, *, drift=0.0):
        self.profile, self.drift, self.calls = profile, drift, []

    def __call__(self, case, *, keep_records):
        result = run(timed_by(case, self.profile), keep_records=keep_records)
        factor = 1 + self.drift * len(self.calls)
        self.calls.append((name_of(case), keep_records))
        return measured_like(result, tuple(case.passes()), factor=factor)


def validated(machine, configurations=TWO, **settings):
    return run_validation(
        TRACE.split("heldout"),
        A100,
        replay=machine,
        configurations=configurations,
        popularity_from=TRACE.split("train"),
        **settings,
    )


def test_a_machine_as_the_profile_says_has_no_error():
    report = validated(FakeMachine(A100), repeats=2).report

    assert [trial.name for trial in report.trials] == [
        "tide τ=1 B=2 blocking", "static-frequency B=4 by layer blocking",
    ]  # fmt: skip
    assert report.run_error == report.pass_mape == report.repeat_spread == 0
    assert report.counters_match
    assert report.worst_passes[0].causes


def test_repeats_are_interleaved_and_only_the_last_keeps_records():
    machine, stages = FakeMachine(A100, drift=0.1), []

    report = validated(machine, repeats=3, stage=stages.append).report

    names = ["tide τ=1 B=2 blocking", "static-frequency B=4 by layer blocking"]
    rounds = [(name, number == 2) for number in range(3) for name in names]
    assert machine.calls == [(names[0], False), *rounds]
    assert stages[:4] == [
        "warm up", f"run 1 of 3: {names[0]}", f"run 1 of 3: {names[1]}", f"run 2 of 3: {names[0]}",
    ]  # fmt: skip
    first = report.trials[0]  # measured at 1.1, 1.3 and 1.5 times its time, after warming up
    assert first.measured.pass_s.shape == (3, first.predicted.passes)
    assert first.measured_s == pytest.approx(1.3 * first.predicted_s)
    assert first.repeat_spread == pytest.approx(0.4 / 1.3)


def test_repeats_that_moved_other_things_are_refused_by_name():
    case = prepare(TRACE, A100, policy="lru", budget=2)
    one = measured_like(run(case), tuple(case.passes()))

    with pytest.raises(AssertionError, match=r"lru: counters of repeat 1 .* of repeat 3"):
        stacked("lru", [one, one, recounted(one, hits=0)])
    with pytest.raises(AssertionError, match="lru: keys of repeat 1"):
        stacked("lru", [one, replace(one, keys=one.keys[::-1])])


def test_calibration_makes_held_out_predictions_right_and_is_named():
    slow = A100.with_overrides({SYNC: 2e-4})

    before = validated(FakeMachine(slow), repeats=1)
    after = validated(FakeMachine(slow), repeats=1, calibration=OTHER)

    assert before.report.run_error > 0.3
    assert before.report.calibrated == {}
    assert before.profile is A100
    assert after.report.run_error < 0.02
    assert [trial.name for trial in after.report.scored] == [t.name for t in before.report.trials]
    assert {trial.name for trial in after.report.trials if trial.calibration} == {
        "lru B=3 blocking",
        "previous-step B=2 background",
    }
    assert after.report.calibrated.keys() >= {SYNC}
    assert after.profile.value(SYNC) == after.report.calibrated[SYNC][1]
    assert "lru B=3 blocking" in after.profile.quantity(SYNC).source


def test_policies_that_weigh_costs_place_alike_before_and_after_calibration():
    """q-split decides by the profile given, so that what was run is what is predicted."""
    slow = A100.with_overrides({"engine.tidesim.copy_call_s": 5e-3})
    one = (Configuration(policy="q-split", budget=2),)

    report = validated(FakeMachine(slow), one, repeats=1, calibration=OTHER).report

    assert report.counters_match
    assert report.calibrated["engine.tidesim.copy_call_s"][1] > 1e-3
    case, other = (prepare(TRACE, profile, policy="q-split", budget=2) for profile in (A100, slow))
    assert run(case).promotions != run(other).promotions


def test_configurations_that_come_to_the_same_run_are_run_once():
    twice = (*TWO, replace(TWO[0], label="again"), *TWO)

    report = validated(FakeMachine(A100), twice, repeats=1, calibration=(TWO[0], *OTHER)).report

    assert [trial.name for trial in report.scored] == [
        "tide τ=1 B=2 blocking", "static-frequency B=4 by layer blocking",
    ]  # fmt: skip
    assert len(report.trials) == 4


def test_a_label_stands_for_the_policys_name():
    labelled = (replace(TWO[0], label="schedule"),)

    report = validated(FakeMachine(A100), labelled, repeats=1).report

    assert [trial.name for trial in report.trials] == ["schedule τ=1 B=2 blocking"]


def test_what_does_not_fit_is_named_and_left_out():
    least = prepare(TRACE, A100, policy="lru", budget=2, sizes=MINI).memory.total_bytes
    tight = A100.with_overrides({"gpu.memory_bytes": least})
    sizes = {"sizes": MINI, "popularity_from": TRACE.split("train")}

    outcome = run_validation(
        TRACE, tight, replay=FakeMachine(A100), configurations=TWO, repeats=1, **sizes
    )

    assert [trial.name for trial in outcome.report.trials] == ["tide τ=1 B=2 blocking"]
    assert "budget 4" in outcome.skipped["static-frequency B=4"]
    with pytest.raises(SettingError, match="no configuration to score fits"):
        run_validation(TRACE, tight, replay=FakeMachine(A100), configurations=TWO[1:], **sizes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"repeats": 0}, "repeats is 0 but must be at least 1"),
        ({"calibration": TWO}, "no configuration is left to calibrate with"),
    ],
)
def test_absurd_settings_are_refused(settings, said):
    with pytest.raises(SettingError, match=said):
        validated(FakeMachine(A100), **settings)


# ── the usual set ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tide-tiny", "llada2.0-mini"])
def test_the_usual_set_has_enough_to_score_apart_from_what_it_calibrates_with(name):
    model = load_model_spec(name)
    scored, other = default_configurations(model), calibration_configurations(model)

    assert len(set(scored)) == len(scored) >= 13  # one may be the schedule itself
    assert 3 <= len(other) <= 5
    assert not set(scored) & set(other)
    assert len({one.budget for one in scored}) >= 6
    promotions = {one.promotion for one in scored}
    assert "background" in promotions


def test_budgets_hold_one_tokens_experts_at_least():
    tiny = load_model_spec("tide-tiny")

    assert [budget_of(tiny, part) for part in (2, 3, 16)] == [8, 12, 64]
    assert budget_of(tiny.model_copy(update={"num_experts": 8}), 2) == 4


def test_a_schedule_of_one_interval_is_that_policy_and_another_is_not():
    """What is calibrated with is never scored under another name, nor hidden by one."""
    trace = load_trace("tide-tiny-mixed").split("heldout").only([3])
    layers = [
        LayerSchedule(budget=budget, refresh_steps=steps)
        for budget, steps in ((8, (0, 2)), (24, (0, 2)), (16, (0, 2)), (16, (0, 2)))
    ]
    usual = {"budget": 16, "interval": 2, "sizes": MINI}
    cases = {
        "uniform": prepare(trace, A100, policy="tide", **usual),
        "layered": prepare(trace, A100, policy=partial(Scheduled, layers=layers), **usual),
    }

    assert name_of(cases["uniform"]) == "tide τ=2 B=16 blocking"
    assert name_of(cases["layered"]) == "tide τ=2 B=16 by layer blocking"
    assert _is_new(cases["layered"], {"uniform": cases["uniform"]})
    assert not _is_new(cases["uniform"], {"again": prepare(trace, A100, policy="tide", **usual)})


@pytest.mark.parametrize("change", [{"most_promotions": 1}, {"initial": (0, 1)}])
def test_a_schedule_of_one_interval_with_a_limit_or_residents_of_its_own_is_not_that_policy(change):
    trace = load_trace("tide-tiny-mixed").split("heldout").only([3])
    usual = {"budget": 16, "interval": 2, "sizes": MINI}
    plain = [LayerSchedule(budget=16, refresh_steps=(0, 2))] * 4
    own = [layer.model_copy(update=change) for layer in plain]
    cases = {"tide": prepare(trace, A100, policy="tide", **usual)}

    same, other = (
        prepare(trace, A100, policy=partial(Scheduled, layers=layers), **usual)
        for layers in (plain, own)
    )

    assert not _is_new(same, cases)
    assert _is_new(other, cases)


def test_of_many_those_are_scored_that_are_predicted_furthest_apart():
    trace = load_trace("tide-tiny-mixed")
    few, train = trace.split("heldout").only([3]), trace.split("train")  # the shortest
    cases = {}
    for one in default_configurations(trace.meta.model):
        case = prepare(
            few, A100, policy=one.policy, budget=one.budget, interval=one.interval,
            promotion=one.promotion, popularity_from=train, sizes=MINI,
        )  # fmt: skip
        cases[name_of(case)] = case

    chosen = spread(cases, 13)

    assert list(chosen) == [name for name in cases if name in chosen]
    assert len(chosen) == 13
    assert next(iter(chosen)) == next(iter(cases))
    seconds = sorted(run(case).seconds for case in chosen.values())
    assert seconds[-1] > 2 * seconds[0]
    gaps = np.diff(np.log(seconds))
    assert np.sort(gaps)[1:].min() > 0.02  # but for the first, which is not chosen
    assert spread(cases, None) == spread(cases, 1000) == cases


def test_requests_are_taken_until_there_are_passes_enough():
    trace = load_trace("tide-tiny-mixed").split("heldout")
    passes = {number: sum(p.request == number for p in trace) for number in (0, 1, 2)}

    def chosen(number):
        return [info.request for info in some_requests(trace, passes=number).meta.requests]

    assert chosen(1) == [0]
    assert chosen(passes[0]) == [0]
    assert chosen(passes[0] + 1) == [0, 1]
    assert len(chosen(10**9)) == len(trace.meta.requests)


# ── a real run ───────────────────────────────────────────────────────────────────────────────────


def test_the_cpu_backend_moves_exactly_what_is_predicted():
    """Times of two cores that others use, too, are not asserted; counters are."""
    trace = TRACE.split("heldout")
    configurations = (
        *TWO,
        Configuration(policy="lru", budget=3),
        Configuration(policy="tide", budget=3, interval=2, promotion="background"),
        Configuration(policy="mixtral-offload-lru", budget=2),
    )

    with replaying(TRACE.meta.model, "cpu") as replay:
        report = validated(replay, configurations, repeats=2).report

    assert [trial.mismatches for trial in report.trials] == [()] * 5
    assert report.repeat_spread > 0
    assert all(trial.busy["gpu"][1] > 0 for trial in report.trials)
    assert all(one.causes for one in report.worst_passes)
    assert len(report.trials[0].measured.keys) == sum(1 for _ in trace)


def test_an_unknown_backend_is_refused():
    with pytest.raises(SettingError, match="backend 'tpu' is not known"), replaying(MINI, "tpu"):
        pass
