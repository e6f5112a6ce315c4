"""Variants: settings by name build the case that `prepare` builds from what the names mean."""

from dataclasses import replace

import pytest
from test_optimize import MINI, fixed_trace

from tidesim.errors import NotFoundError, SettingError
from tidesim.hardware import load_profile
from tidesim.optimize import optimize
from tidesim.overrides import overridden
from tidesim.policies.scheduled import follow
from tidesim.schedule import save_schedule
from tidesim.simulate import prepare, run
from tidesim.variants import DECIDED, Variant
from tidesim.whatif import compare_variants

A100 = "a100-40gb-pcie4-xeon48"
TRACE = fixed_trace()
TRAINING, HELDOUT = TRACE.split("train"), TRACE.split("heldout")
TIDE = Variant(hardware=A100, policy="tide", interval=2, budget=3, sizes=MINI)


@pytest.fixture(scope="module")
def plan():
    return optimize(TRACE, load_profile(A100), budget=3, sizes=MINI).schedule


def answer(variant):
    return run(variant.case(HELDOUT, popularity_from=TRAINING)).to_json()


def prepared(profile, **settings):
    return run(
        prepare(HELDOUT, profile, sizes=MINI, popularity_from=TRAINING, **settings)
    ).to_json()


def test_names_and_what_they_mean_give_the_same_run():
    texts = ["link.h2d_bytes_per_s=x2", "link.latency_s=1us"]
    profile = load_profile(A100)

    by_name = answer(replace(TIDE, overrides=texts, sizes="llada2.0-mini"))
    by_value = answer(replace(TIDE, hardware=overridden(profile, texts)))

    expected = prepared(overridden(profile, texts), policy="tide", interval=2, budget=3)
    assert by_name == by_value == expected


def test_every_setting_reaches_the_run():
    changes = {"policy": "previous-step", "interval": 1, "budget": 4, "promotion": "background"}
    changes |= {"memory_bytes": 4 * 10**9, "engine": "tide-reference", "batch": 2}

    usual = answer(replace(TIDE, engine="tidesim"))

    assert usual == answer(TIDE)
    for name, value in changes.items():
        room = {"budget": None} if name == "memory_bytes" else {}
        trace = TRACE if name == "batch" else HELDOUT
        found = run(replace(TIDE, **room, **{name: value}).case(trace)).to_json()
        settings = {"policy": "tide", "interval": 2, "budget": 3} | room | {name: value}
        expected = prepare(trace, load_profile(A100), sizes=MINI, **settings)
        assert found == run(expected).to_json()


def test_a_schedule_is_obeyed_from_a_file_or_as_it_is(plan, tmp_path):
    save_schedule(plan, tmp_path / "S.json")
    obeying = Variant(hardware=A100, schedule=plan, sizes=MINI)

    found = answer(obeying)

    assert found == answer(replace(obeying, schedule=tmp_path / "S.json"))
    assert found == prepared(
        load_profile(A100), policy=follow(plan), interval=plan.interval, budget=max(plan.budgets)
    )


def test_without_its_schedule_a_run_keeps_what_the_schedule_decided(plan):
    every = {"refresh_steps": tuple(range(0, plan.steps, 2)), "initial": None}
    layers = tuple(layer.model_copy(update=every) for layer in plan.layers)
    regular = plan.model_copy(update={"layers": layers, "interval": 2})
    wider = (layers[0].model_copy(update={"budget": 4}), *layers[1:])
    uneven = regular.model_copy(update={"layers": wider})
    obeying = Variant(hardware=A100, schedule=regular, sizes=MINI, batch=2)

    near = obeying.unscheduled()

    expected = {"policy": "tide", "interval": 2, "budget": 3, "engine": "tidesim"}
    assert near == replace(obeying, schedule=None, promotion="blocking", **expected)
    assert answer(replace(near, batch=1)) == answer(replace(obeying, batch=1))
    assert replace(obeying, schedule=uneven).unscheduled() == replace(near, budget=None)
    assert TIDE.unscheduled() is TIDE


@pytest.mark.parametrize("name", DECIDED)
def test_what_a_schedule_decides_is_refused_beside_it(plan, name):
    value = {"policy": "lru", "engine": "tidesim", "promotion": "blocking"}.get(name, 0)
    both = replace(Variant(hardware=A100, schedule=plan), **{name: value})

    with pytest.raises(SettingError, match="a schedule decides policy, interval"):
        both.case(HELDOUT)


def test_a_variant_with_a_mistake_is_refused_in_one_sentence(plan):
    mistakes = {
        "needs a policy or a schedule": replace(TIDE, policy=None),
        "is no number of a profile": replace(TIDE, overrides=("link.speed=x2",)),
        "not known": replace(TIDE, policy="tides"),
        "made for another profile": Variant(
            hardware="rtx4090-24gb-pcie4-desktop", schedule=plan, sizes=MINI
        ),
        "made for the sizes of": Variant(hardware=A100, schedule=plan),
    }

    for message, variant in mistakes.items():
        with pytest.raises(SettingError, match=message):
            variant.case(HELDOUT)
    with pytest.raises(NotFoundError, match="no such file"):
        replace(TIDE, hardware="none").case(HELDOUT)


def test_variants_are_compared_on_heldout_requests_unless_others_are_named(plan):
    obeying = Variant(hardware=A100, schedule=plan, sizes=MINI)
    (training, *_), heldout = (
        [info.request for info in trace.meta.requests] for trace in (TRAINING, HELDOUT)
    )

    found = compare_variants(TRACE, TIDE, obeying, method="fast")
    named = compare_variants(TRACE, TIDE, obeying, method="fast", requests=heldout)
    other = compare_variants(TRACE, TIDE, obeying, method="fast", requests=[training])

    assert found.base.seconds == pytest.approx(answer(TIDE)["seconds"], rel=1e-9)
    assert found.to_json() == named.to_json() != other.to_json()
    assert found.names == ("tide every 2 steps", "the schedule")
    assert f"{A100}, 3 slots per layer" in found.common
    with pytest.raises(SettingError, match="the trace has no request 77; choose among 0, 1"):
        compare_variants(TRACE, TIDE, obeying, requests=[77])


def test_runs_that_differ_in_nothing_are_named_after_their_part():
    same = compare_variants(TRACE, TIDE, TIDE, method="fast")

    assert same.names == ("base", "changed")
