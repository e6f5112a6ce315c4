"""Plan: prices, what is chosen among machines, and the words for it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import A100, METHOD, RTX4090, made, requests, with_goal

from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.overrides import overridden
from tidesim.plan import (
    Assumptions,
    Costs,
    Goal,
    plan,
)
from tidesim.plan.prices import HOURS_PER_YEAR, costs_of
from tidesim.plan.words import answers


@pytest.fixture(scope="module")
def trace():
    return requests()


@pytest.fixture(scope="module")
def found():
    return made()


# ── prices ─────────────────────────────────────────────────────────────────────────────────────────


def machine(*texts):
    return overridden(load_profile(A100), texts)


def test_prices_by_hand():
    profile = machine("machine.price_usd=8766", "machine.cloud_usd_per_h=2", "machine.power_w=1kW")

    costs = costs_of(profile, 1000 / 3.6, Assumptions(years=2, use=0.5, usd_per_kwh=0.25))

    # 8766 USD over 2 years of which half: 1 USD an hour, and a quarter for electricity; 1e6 tokens/h
    assert HOURS_PER_YEAR == 8766
    assert costs.owned_usd_per_h == pytest.approx(1.25)
    assert costs.owned_usd_per_mtoken == pytest.approx(1.25)
    assert costs.cloud_usd_per_mtoken == pytest.approx(2.0)
    assert costs.wh_per_mtoken == pytest.approx(1000)
    assert costs.usd_per_h == pytest.approx(1.25)
    assert costs.usd_per_mtoken == pytest.approx(1.25)


@given(
    speed=st.floats(0.1, 1e4),
    years=st.floats(0.5, 10),
    use=st.floats(0.01, 1),
    kwh=st.floats(0, 1),
)
def test_a_million_tokens_cost_the_hours_they_take(speed, years, use, kwh):
    costs = costs_of(machine(), speed, Assumptions(years=years, use=use, usd_per_kwh=kwh))
    hours = 1e6 / speed / 3600

    assert costs.owned_usd_per_mtoken == pytest.approx(costs.owned_usd_per_h * hours)
    assert costs.usd_per_mtoken == pytest.approx(costs.usd_per_h * hours)
    assert costs.usd_per_h == min(costs.owned_usd_per_h, costs.cloud_usd_per_h)
    assert (costs.way == "rented") == (costs.cloud_usd_per_h < costs.owned_usd_per_h)
    full = costs_of(machine(), speed, Assumptions(years=years, use=1, usd_per_kwh=kwh))
    assert costs.owned_usd_per_h >= full.owned_usd_per_h


def test_what_a_profile_does_not_price_is_left_open():
    nothing = load_profile("gh200-96gb-c2c-grace72")

    costs = costs_of(nothing, 10.0, Assumptions())

    assert costs.price_usd is costs.usd_per_h is costs.usd_per_mtoken is costs.way is None
    assert costs.wh_per_mtoken == pytest.approx(nothing.machine.power_w.value * 1e6 / 10 / 3600)


def test_without_its_power_what_owning_a_machine_costs_is_left_open():
    data = load_profile(A100).model_dump(by_alias=True, exclude_none=True)
    del data["machine"]["power_w"]

    costs = costs_of(HardwareProfile.from_dict(data), 10.0, Assumptions())

    assert costs.price_usd is not None
    assert costs.owned_usd_per_h is costs.owned_usd_per_mtoken is costs.wh_per_mtoken is None
    assert costs.way == "rented"


@pytest.mark.parametrize(
    "wrong", [{"years": 0}, {"use": 0}, {"use": 1.1}, {"usd_per_kwh": -1}, {"years": np.nan}]
)
def test_assumptions_out_of_range_are_refused(wrong):
    with pytest.raises(SettingError, match="must be"):
        Assumptions(**wrong)


# ── choice ─────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_goal_the_choice_is_the_cheapest_by_the_token(found):
    priced = [row.costs.usd_per_mtoken for row in found.rows]

    assert found.choice.costs.usd_per_mtoken == min(priced)
    assert found.sure_choice is None
    assert {row.meets for row in found.rows} == {None}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999, 1.0])
def test_the_choice_is_the_cheapest_by_the_hour_that_is_fast_enough(found, share):
    target = share * found.rows[0].tokens_per_s

    asked = with_goal(found, tokens_per_s=target)

    fast = [row for row in asked.rows if row.tokens_per_s >= target]
    assert asked.choice.tokens_per_s >= target
    assert asked.choice.costs.usd_per_h == min(row.costs.usd_per_h for row in fast)
    for row in asked.rows:
        reached = {"surely": row.found.band.low, "probably": row.tokens_per_s}
        reached["perhaps"] = row.found.band.high
        expected = next((word for word, speed in reached.items() if speed >= target), "no")
        assert row.meets == expected
    sure = [row for row in asked.rows if row.found.band.low >= target]
    assert (asked.sure_choice is None) == (not sure)


def test_of_rows_that_cost_the_same_an_hour_the_faster_is_chosen(found):
    asked = with_goal(found, tokens_per_s=1.0)
    same = [row for row in asked.rows if row.hardware == asked.choice.hardware]

    assert len(same) == 2
    assert asked.choice.tokens_per_s == max(row.tokens_per_s for row in same)


def test_nothing_is_chosen_where_nothing_is_fast_or_cheap_enough(found):
    assert with_goal(found, tokens_per_s=1e6).choice is None
    assert with_goal(found, most_usd=1.0).choice is None
    assert with_goal(found, most_usd=2000.0).choice.hardware == RTX4090
    assert [row.affordable for row in with_goal(found, most_usd=1599.0).rows] == [
        row.hardware == RTX4090 for row in found.rows
    ]


def test_the_answer_is_true_where_what_is_fast_enough_has_no_price(found):
    def unpriced(row):
        nothing = Costs(
            price_usd=None, owned_usd_per_h=None, cloud_usd_per_h=None,
            owned_usd_per_mtoken=None, cloud_usd_per_mtoken=None, wh_per_mtoken=None,
        )  # fmt: skip
        return replace(row, costs=nothing)

    asked = with_goal(found, tokens_per_s=found.rows[0].tokens_per_s * 0.999)
    first, *others = asked.rows
    asked = replace(asked, rows=(unpriced(first), *others))

    told = dict(answers(asked))

    assert asked.choice is None
    assert told["cheapest"].startswith(f"none with a known price; without one: {first.name}")
    assert told["cheapest to be sure"].startswith("none with a known price")
    slow = with_goal(found, tokens_per_s=1e6)
    assert dict(answers(slow))["cheapest"].startswith("none is as fast; the fastest is")
    dear = with_goal(found, most_usd=1.0)
    assert dict(answers(dear))["cheapest"].startswith("none at that price")
    assert dict(answers(replace(found, rows=())))["cheapest"] == "none could be assessed"


@pytest.mark.parametrize("wrong", [{"tokens_per_s": 0}, {"most_usd": -1}, {"tokens_per_s": np.inf}])
def test_goals_out_of_range_are_refused(wrong):
    with pytest.raises(SettingError, match="must be above 0"):
        Goal(**wrong)


def test_no_machine_is_refused(trace):
    with pytest.raises(SettingError, match="give at least one"):
        plan(trace, [], method=METHOD)
