"""Plan: machines assessed, priced and held against a goal; what the command prints and writes."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidesim.errors import RunError, SettingError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.latency import needed_keys
from tidesim.memory import MemoryPlan
from tidesim.model_spec import load_model_spec
from tidesim.optimize import in_memory
from tidesim.overrides import overridden
from tidesim.plan import (
    RUN_ERROR,
    Assumptions,
    Costs,
    Goal,
    Method,
    Plan,
    Site,
    assess,
    plan,
)
from tidesim.plan.assess import block_seconds, upgraded
from tidesim.plan.band import CALL_SPREAD, RATE_SPREAD, band_of
from tidesim.plan.kept import Kept
from tidesim.plan.prices import HOURS_PER_YEAR, costs_of
from tidesim.plan.rows import row_of
from tidesim.plan.upgrades import PARTS
from tidesim.plan.words import answers, scope
from tidesim.policies.scheduled import follow
from tidesim.report.plan_figures import cost_figure, machines_figure, memory_figure
from tidesim.report.plan_page import write_plan_page
from tidesim.schedule import load_schedule
from tidesim.simulate import prepare, run
from tidesim.trace.io import load_trace, save_trace

A100, RTX4090 = "a100-40gb-pcie4-xeon48", "rtx4090-24gb-pcie4-desktop"
SPARK, THOR = "dgx-spark-128gb-unified", "jetson-agx-thor-128gb-unified"
TIGHT = 3_450_000_000
COMMAND = ("plan", "--model", "llada2.0-mini", "--memory", "3.45", "--workers", 1)
MINI = load_model_spec("llada2.0-mini")
METHOD = Method(sizes=MINI, formulation="uniform")
KEYS = needed_keys("tidesim", pinned=True)


@pytest.fixture(scope="module")
def trace():
    """Two training requests and two held-out ones."""
    whole = load_trace("tide-tiny-mixed")
    numbers = {"train": [], "heldout": []}
    for info in whole.meta.requests:
        numbers[info.split].append(info.request)
    return in_memory(whole.only((*numbers["train"][:2], *numbers["heldout"][:2])))


@pytest.fixture(scope="module")
def found(trace):
    """Three machines with little memory and with all, one of them in want of numbers."""
    machines = [load_profile(name) for name in (A100, RTX4090, THOR)]
    return plan(trace, machines, memory_bytes=(TIGHT, None), method=METHOD, workers=1)


@pytest.fixture(scope="module")
def tight(found):
    """The A100 with little memory."""
    return next(row for row in found.rows if (row.hardware, row.memory_gb) == (A100, 3.45)).found


def with_goal(found, **goal):
    """Return a plan as it had been with another goal."""
    wanted = Goal(**goal)
    rows = tuple(row_of(row.found, wanted, found.assumed) for row in found.rows)
    return replace(found, rows=rows, goal=wanted)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_machine_and_memory_has_a_row_the_fastest_first(found):
    named = {(row.hardware, row.memory_gb) for row in found.rows}

    assert named == {(A100, 3.45), (A100, 40.0), (RTX4090, 3.45), (RTX4090, 24.0)}
    speeds = [row.tokens_per_s for row in found.rows]
    assert speeds == sorted(speeds, reverse=True)
    assert {row.name for row in found.rows} == {
        A100,
        RTX4090,
        f"{A100}, 3.45 GB",
        f"{RTX4090}, 3.45 GB",
    }


def test_a_memory_budget_that_is_the_whole_memory_is_assessed_once(trace):
    whole = int(load_profile(RTX4090).value("gpu.memory_bytes"))

    found = plan(
        trace,
        [load_profile(RTX4090)],
        memory_bytes=(whole, None, whole),
        method=replace(METHOD, upgrades=False),
        workers=1,
    )

    assert [row.name for row in found.rows] == [RTX4090]


def test_a_row_is_what_simulating_its_schedule_on_the_held_out_requests_says(found, trace):
    heldout, training = trace.split("heldout"), trace.split("train")
    for row in found.rows:
        schedule = row.found.schedule
        case = prepare(
            heldout,
            row.found.site.profile,
            policy=follow(schedule),
            budget=max(schedule.budgets),
            interval=schedule.interval,
            sizes=MINI,
            popularity_from=training,
            promotion=schedule.promotion,
        )
        result = run(case)

        assert row.tokens_per_s == pytest.approx(result.tokens_per_s, rel=1e-9)
        assert row.found.result.hits == result.hits
        assert row.found.result.bottleneck == result.bottleneck


def test_of_both_promotions_the_one_that_is_faster_on_training_requests_is_taken(trace):
    site = Site(profile=load_profile(A100), memory_bytes=TIGHT)
    alone = [
        assess(trace, site, replace(METHOD, promotions=(name,), upgrades=False)).schedule
        for name in ("blocking", "background")
    ]

    both = assess(trace, site, replace(METHOD, upgrades=False)).schedule

    speeds = [schedule.predictions.train.tokens_per_s for schedule in alone]
    assert both.predictions.train.tokens_per_s == max(speeds)
    assert speeds[0] != speeds[1]


def test_blocks_and_prefills_add_up_to_the_run(trace):
    case = prepare(trace, load_profile(A100), policy="tide", interval=4, budget=16, sizes=MINI)
    result = run(case)

    blocks = block_seconds(result, case)

    is_prefill = [str(pass_.kind) == "prefill" for pass_ in case.passes()]
    assert sum(is_prefill) > 0
    assert len(blocks) == result.blocks
    assert sum(blocks) + result.pass_s[is_prefill].sum() == pytest.approx(result.seconds)


def test_block_percentiles_are_those_of_the_run(tight, trace):
    """Of an independent simulation of the schedule, on a clock, block by block."""
    schedule = tight.schedule
    case = prepare(
        trace.split("heldout"),
        tight.site.profile,
        policy=follow(schedule),
        budget=max(schedule.budgets),
        interval=schedule.interval,
        sizes=MINI,
        popularity_from=trace.split("train"),
        promotion=schedule.promotion,
    )
    blocks = {}
    for pass_, seconds in zip(case.passes(), run(case).pass_s, strict=True):
        if str(pass_.kind) != "prefill":
            blocks.setdefault((pass_.request, pass_.block), []).append(seconds)

    expected = np.percentile([sum(passes) for passes in blocks.values()], (50, 95))

    assert tight.block_s == pytest.approx(expected.tolist(), rel=1e-9)
    assert tight.block_s[0] < tight.block_s[1]


def test_a_machine_that_lacks_numbers_is_named_with_every_key(found):
    (one,) = found.not_assessable

    assert one.hardware == THOR
    assert set(one.missing) == set(
        load_profile(THOR).missing(("gpu.memory_bytes", "cpu.memory_bytes", *KEYS))
    )
    assert "link.h2d_bytes_per_s" in one.missing


def test_what_does_not_hold_the_model_is_named_with_its_reason(trace):
    sizes = (1_000_000_000, 30_000_000_000)
    found = plan(trace, [load_profile(RTX4090)], memory_bytes=sizes, method=METHOD, workers=1)

    assert found.rows == ()
    assert found.choice is None
    assert [(one.hardware, one.memory_gb) for one in found.left_out] == [
        (RTX4090, 1.0),
        (RTX4090, 30.0),
    ]
    assert "smallest memory that would do" in found.left_out[0].reason
    assert "30.00 GB are more than" in found.left_out[1].reason


def test_processes_give_the_rows_that_one_process_gives(found, trace):
    machines = [load_profile(name) for name in (A100, RTX4090, THOR)]
    seen = []

    beside = plan(
        trace,
        machines,
        memory_bytes=(TIGHT, None),
        method=METHOD,
        workers=2,
        watch=lambda done, total: seen.append((done, total)),
    )

    assert without_wall_time(beside) == without_wall_time(found)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def without_wall_time(plan):
    answer = plan.to_json()
    for row in (*answer["rows"], answer["choice"]):
        del row["solver"]["seconds"]
    return answer


class Deadly(str):
    """A name that ends the process that receives it."""

    __slots__ = ()

    def __reduce__(self):
        return os._exit, (1,)


def test_where_every_process_dies_the_plan_ends_in_a_sentence(trace):
    method = replace(METHOD, trace_name=Deadly())
    machines = [load_profile(A100), load_profile(RTX4090)]

    with pytest.raises(RunError, match=r"process that assessed machines died.*fewer workers"):
        plan(trace, machines, method=method, workers=2)


def test_a_machine_whose_assessment_fails_is_left_out_with_the_reason(trace):
    odd = load_profile(RTX4090).with_overrides({"engine.tidesim.sync_s": 1e250})
    method = replace(METHOD, upgrades=False)

    found = plan(trace, [odd, load_profile(A100)], method=method, workers=1)

    assert [row.hardware for row in found.rows] == [A100]
    ((hardware, memory_gb, reason),) = found.left_out
    assert (hardware, memory_gb) == (RTX4090, 24.0)
    assert reason
    with pytest.raises(SettingError):
        plan(trace, [odd], method=method, workers=1)


def test_a_machine_given_twice_counts_once_and_two_of_one_name_are_refused(trace):
    one = load_profile(RTX4090)
    method = replace(METHOD, upgrades=False)

    assert len(plan(trace, [one, one], method=method, workers=1).rows) == 1
    with pytest.raises(SettingError, match="different machines of one name"):
        plan(trace, [one, one.with_overrides({"gpu.launch_s": 1e-6})], method=method, workers=1)


def test_a_host_that_does_not_say_its_memory_is_not_assessable(trace):
    data = load_profile(A100).model_dump(by_alias=True, exclude_none=True)
    del data["cpu"]["memory_bytes"]

    found = plan(trace, [HardwareProfile.from_dict(data)], method=METHOD, workers=1)

    assert found.not_assessable == ((A100, ("cpu.memory_bytes",)),)
    assert dict(answers(found))["cheapest"] == "none could be assessed"


def test_the_scope_names_model_routing_and_requests(found, trace):
    assert (found.model, found.requests, found.split) == ("llada2.0-mini", 2, "heldout")
    assert "routing of tide-tiny" in scope(found)
    assert "2 held-out requests" in scope(found)
    alone = plan(trace.split("train"), [load_profile(A100)], memory_bytes=(TIGHT,), workers=1,
                 method=replace(METHOD, upgrades=False))  # fmt: skip
    assert (alone.requests, alone.split) == (2, "all")


# ── band ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def kept(trace):
    return Kept.of(
        prepare(trace, load_profile(A100), policy="tide", interval=4, budget=16, sizes=MINI)
    )


def on(kept, profile):
    """Return the same run with another profile as its own."""
    engine = kept.case.setup.engine.name
    latency = type(kept.case.latency)(profile, kept.case.spec, engine=engine)
    return replace(kept, case=replace(kept.case, latency=latency))


def test_a_measured_machine_has_the_simulators_own_error_alone(kept):
    profile = load_profile(A100)
    values = {key: profile.value(key) for key in KEYS}
    measured = on(kept, profile.calibrated(values, source="a test"))

    band = band_of(measured)

    speed = kept.result.tokens_per_s
    assert band.measured == 1
    assert band.low == pytest.approx(speed * (1 - RUN_ERROR))
    assert band.high == pytest.approx(speed * (1 + RUN_ERROR))


def test_the_band_of_published_numbers_is_wider_by_what_moving_them_does(kept):
    profile = load_profile(A100)
    unsure = [key for key in KEYS if profile.kind_of(key) != "measured"]
    slow, fast = {}, {}
    for key in unsure:
        value, by = profile.value(key), CALL_SPREAD if key.startswith("engine.") else RATE_SPREAD
        is_rate = key.endswith(("_per_s", "flops_bf16", "_factor"))
        less, more = value / by, value * by
        slow[key], fast[key] = (less, more) if is_rate else (more, less)
        if key.endswith("_factor"):
            fast[key] = min(1.0, more)
    assert "contention.cpu_factor" in unsure  # which is 1, and no share is more

    band = band_of(kept, run_error=0.0)

    assert band.low == pytest.approx(kept.on(profile.with_overrides(slow)))
    assert band.high == pytest.approx(kept.on(profile.with_overrides(fast)))
    assert band.low < kept.result.tokens_per_s < band.high
    assert band.measured == pytest.approx(1 - len(unsure) / len(KEYS))
    assert 0 < band.measured < 1


def test_what_an_engine_may_have_is_moved_where_it_has_it(trace):
    case = prepare(
        trace, load_profile(A100), policy="tide", interval=4, budget=16, sizes=MINI,
        engine="tide-reference",
    )  # fmt: skip
    reference = Kept.of(case)
    factor = "engine.tide-reference.cpu_rate_factor"
    value = load_profile(A100).value(factor)
    sure = on(reference, load_profile(A100).calibrated({factor: value}, source="a test"))

    assert band_of(reference).low < band_of(sure).low


@pytest.mark.parametrize("section", ["gpu", "cpu", "link", "engine"])
def test_measuring_a_part_makes_the_band_no_wider(kept, section):
    profile = load_profile(A100)
    values = {key: profile.value(key) for key in KEYS if key.startswith(section)}
    wide = band_of(kept)

    narrow = band_of(on(kept, profile.calibrated(values, source="a test")))

    assert wide.low <= narrow.low <= kept.result.tokens_per_s <= narrow.high <= wide.high
    assert narrow.high - narrow.low < wide.high - wide.low
    assert narrow.measured > wide.measured


def test_a_number_that_a_what_if_supposes_is_not_moved(kept):
    supposed = overridden(load_profile(A100), [f"{key}=x1" for key in KEYS])

    band = band_of(on(kept, supposed), run_error=0.0)

    assert band.low == pytest.approx(band.high)


# ── upgrades ─────────────────────────────────────────────────────────────────────────────────────


def test_upgrades_come_with_the_most_helpful_first_and_none_harms(found):
    for row in found.rows:
        gains = [one.gain for one in row.found.upgrades]

        assert gains == sorted(gains, reverse=True)
        assert min(gains) >= -1e-12
        for one in row.found.upgrades:
            assert one.tokens_per_s == pytest.approx(row.tokens_per_s * (1 + one.gain))


def test_memory_is_an_upgrade_where_all_of_it_is_used(found):
    every = {part.name for part in PARTS}
    for row in found.rows:
        whole = row.name == row.hardware

        assert {one.name for one in row.found.upgrades} == every - (
            set() if whole else {"GPU memory"}
        )


def test_where_memory_is_short_an_upgrade_helps_and_where_all_fits_none_does(found):
    by_name = {row.name: row for row in found.rows}

    assert by_name[f"{A100}, 3.45 GB"].best_upgrade.gain > 0.05
    assert by_name[A100].found.result.hit_rate == 1
    assert by_name[A100].best_upgrade is None


def test_one_part_of_an_upgraded_machine_is_twice_as_good(tight):
    profile = tight.site.profile
    by_name = {part.name: upgraded(tight.site, part) for part in PARTS}

    link = by_name["link generation"].profile
    assert link.value("link.h2d_bytes_per_s") == 2 * profile.value("link.h2d_bytes_per_s")
    assert link.value("link.d2h_pageable_bytes_per_s") == 2 * profile.value(
        "link.d2h_pageable_bytes_per_s"
    )
    memory = by_name["GPU memory"]
    assert memory.memory_bytes == 2 * TIGHT
    assert memory.profile.value("gpu.memory_bytes") == 2 * profile.value("gpu.memory_bytes")
    cores = by_name["CPU cores"].profile
    assert cores.value("cpu.flops_bf16") == 2 * profile.value("cpu.flops_bf16")
    channels = by_name["DRAM channels"].profile
    rate = "cpu.expert_bytes_per_s"
    assert channels.value(rate) == 2 * profile.value(rate)
    for name, changed in {"link": link, "cpu": cores}.items():
        others = [key for key in KEYS if not key.startswith(f"{name}.")]
        assert [changed.value(key) for key in others] == [profile.value(key) for key in others]
    assert channels.value("gpu.memory_bytes_per_s") == profile.value("gpu.memory_bytes_per_s")


@pytest.mark.parametrize("name", [A100, RTX4090, SPARK])
def test_more_cores_read_weights_no_faster_than_memory(name):
    profile = load_profile(name)
    (cores,) = (part for part in PARTS if part.name == "CPU cores")

    rate = cores.replaced(profile)["cpu.expert_bytes_per_s"]

    dram, now = profile.value("cpu.memory_bytes_per_s"), profile.value("cpu.expert_bytes_per_s")
    assert rate == min(2 * now, max(dram, now))
    assert rate > now


def test_a_faster_link_is_nothing_to_a_machine_of_one_memory(trace):
    site = Site(profile=load_profile(SPARK), memory_bytes=TIGHT)

    found = assess(trace, site, replace(METHOD, promotions=("blocking",)))

    gains = {one.name: one.gain for one in found.upgrades}
    assert gains["link generation"] == pytest.approx(0, abs=1e-6)


def test_more_channels_of_one_memory_are_the_gpus_too():
    profile = load_profile(SPARK)
    (channels,) = (part for part in PARTS if part.name == "DRAM channels")

    replaced = channels.replaced(profile)

    rate = "gpu.memory_bytes_per_s"
    assert replaced[rate] == 2 * profile.value(rate)


# ── prices ───────────────────────────────────────────────────────────────────────────────────────


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


# ── choice ───────────────────────────────────────────────────────────────────────────────────────


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


# ── other engines and formulations ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "ways"),
    [
        ({}, ("blocking", "background")),
        ({"formulation": "closed-form"}, ("blocking",)),
        ({"engine": "tide-reference"}, ("blocking",)),
        ({"promotions": ("background",)}, ("background",)),
    ],
)
def test_promotions_are_those_that_engine_and_formulation_have(change, ways):
    assert replace(METHOD, **change).ways() == ways


@pytest.mark.parametrize("change", [{"formulation": "closed-form"}, {"engine": "tide-reference"}])
def test_every_engine_and_formulation_makes_a_plan(trace, change):
    found = plan(
        trace,
        [load_profile(A100)],
        memory_bytes=(2 * TIGHT,),
        method=replace(METHOD, upgrades=False, **change),
        workers=1,
    )

    (row,) = found.rows
    assert row.found.band.low < row.tokens_per_s < row.found.band.high
    assert row.found.upgrades == ()
    assert row.best_upgrade is None


# ── frames, figures and the page ─────────────────────────────────────────────────────────────────


def test_the_frame_has_the_rows(found):
    frame = found.frame()

    assert frame.tokens_per_s.tolist() == [row.tokens_per_s for row in found.rows]
    assert {"hardware", "memory_gb", "low", "high", "usd_per_mtoken"} <= set(frame.columns)
    empty = replace(found, rows=())
    assert empty.frame().empty


def test_figures_hold_every_row_with_its_band(found):
    speeds = machines_figure(with_goal(found, tokens_per_s=30.0))
    bars = {
        name: (speed, more, less)
        for bar in speeds.data
        for name, speed, more, less in zip(
            bar.y, bar.x, bar.error_x.array, bar.error_x.arrayminus, strict=True
        )
    }
    for row in found.rows:
        speed, more, less = bars[row.name]
        assert speed == row.tokens_per_s
        assert (speed - less, speed + more) == pytest.approx(
            (row.found.band.low, row.found.band.high)
        )
    assert any(shape.x0 == 30.0 for shape in speeds.layout.shapes)

    held = {}
    for bar in memory_figure(found).data:
        for name, size in zip(bar.y, bar.x, strict=True):
            held[name] = held.get(name, 0) + size
    for row in found.rows:
        memory: MemoryPlan = row.found.result.memory
        assert held[row.name] == pytest.approx(memory.total_bytes / 1e9)

    bought, rented = cost_figure(found).data
    assert sorted(bought.y) == sorted(row.costs.owned_usd_per_mtoken for row in found.rows)
    assert len(rented.y) == len(found.rows)


def test_the_page_says_what_to_get_and_what_could_not_be_told(found, tmp_path):
    page = tmp_path / "plan.html"

    write_plan_page(page, with_goal(found, tokens_per_s=30.0), trace="some <trace>")

    text = page.read_text()
    assert "llada2.0-mini. Asked for: 30 tokens/s. The cheapest machine:" in text
    assert f"{RTX4090}: " in text
    assert THOR in text
    assert "link.h2d_bytes_per_s" in text
    assert "some &lt;trace&gt;" in text
    assert found.rows[0].found.result.trace_sha256 in text
    for row in found.rows:
        assert row.found.result.profile_sha256 in text


@pytest.mark.parametrize("goal", [{"tokens_per_s": 1e6}, {}, {"most_usd": 1.0}])
def test_a_page_without_a_choice_is_a_page(found, tmp_path, goal):
    asked = with_goal(found, **goal)
    for number, one in enumerate((asked, replace(asked, rows=()))):
        assert isinstance(one, Plan)
        page = tmp_path / f"{number}.html"
        write_plan_page(page, one, trace="a trace")
        assert "</html>" in page.read_text()


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.parquet"
    save_trace(trace, path)
    return path


def test_the_command_answers_with_rows_and_a_choice(ok, small, tmp_path):
    page, schedule = tmp_path / "plan.html", tmp_path / "schedule.json"

    answer = ok(
        *COMMAND, "--trace", small, "--hardware", f"{A100},{RTX4090}", "--no-upgrades",
        "--target-tokens-per-s", 20, "--out", page, "--schedule", schedule,
    )  # fmt: skip

    wanted = {"hardware", "memory_gb", "tokens_per_s", "low", "high", "bottleneck"}
    assert wanted | {"usd_per_mtoken"} <= set(answer["rows"][0])
    assert answer["choice"] in answer["rows"]
    assert (answer["report"], answer["schedule"]) == (str(page), str(schedule))
    chosen = load_schedule(schedule)
    assert chosen.profile.name == answer["choice"]["hardware"]
    assert chosen.predictions.heldout.tokens_per_s == pytest.approx(
        answer["choice"]["tokens_per_s"]
    )
    assert chosen.trace.name == str(small)


def test_the_schedule_of_the_choice_simulates_as_planned(ok, small, tmp_path):
    schedule = tmp_path / "schedule.json"
    answer = ok(
        *COMMAND, "--trace", small, "--hardware", A100, "--no-upgrades", "--schedule", schedule
    )

    again = ok(
        "simulate", small, "--hardware", A100, "--schedule", schedule, "--sizes", "llada2.0-mini"
    )

    assert again["tokens_per_s"] == pytest.approx(answer["choice"]["tokens_per_s"], rel=1e-9)


def test_a_model_alone_is_planned_for_with_a_synthetic_trace(ok):
    answer = ok(
        "plan", "--model", "tide-tiny", "--hardware", RTX4090, "--no-upgrades", "--workers", 1,
        "--formulation", "uniform",
    )  # fmt: skip

    assert answer["provenance"] == "synthetic"
    assert answer["sizes"] == "tide-tiny"
    assert len(answer["rows"]) == 1


def test_machines_without_a_number_do_not_keep_an_override_from_the_others(ok, small):
    answer = ok(
        *COMMAND, "--trace", small, "--hardware", f"{A100},{THOR}", "--no-upgrades",
        "--set", "link.h2d_bytes_per_s=x2",
    )  # fmt: skip

    (row,) = answer["rows"]
    assert row["hardware"] == A100
    assert row["what_if"] == f"{A100} with link.h2d_bytes_per_s = 5.026e+10"
    assert [one["hardware"] for one in answer["not_assessable"]] == [THOR]


def test_a_number_that_an_override_gives_is_no_longer_missing(ok, small):
    answer = ok(
        *COMMAND, "--trace", small, "--hardware", f"{A100}, {THOR}", "--no-upgrades",
        "--set", "link.latency_s=1us",
    )  # fmt: skip

    (thor,) = answer["not_assessable"]
    assert "link.latency_s" not in thor["missing"]
    assert "link.h2d_bytes_per_s" in thor["missing"]


def test_the_text_says_what_to_get_and_why_not_others(tidesim, small):
    status, out, err = tidesim(
        *COMMAND, "--trace", small, "--hardware", f"{A100},{THOR}", "--max-price", 20_000
    )

    words = " ".join(out.split())
    assert status == 0
    assert f"cheapest {A100}" in words
    assert "USD to buy" in words
    assert "rented, 0.252 USD an hour" in words
    assert f"not assessable {THOR}" in words
    assert "captured routing" in words
    assert str(small) not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "x"), "--memory x: not gigabytes with commas"),
        (("--memory", "4,-1"), "--memory is -1.0 but must be a positive number"),
        (("--hardware", "no-such"), "no-such"),
        (("--target-tokens-per-s", "0"), "tokens per second asked for is 0.0"),
        (("--max-price", "-5"), "price asked for is -5.0"),
        (("--years", "0"), "years is 0.0"),
        (("--use", "2"), "use is 2.0"),
        (("--run-error", "-1"), "run error is -1.0"),
        (("--workers", "0"), "workers is 0"),
        (("--engine", "fast"), "fast"),
        (("--formulation", "best"), "best"),
        (("--set", "link.no=3"), "link.no"),
        (("--out", "no/such/folder.html"), "folder"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(
    refused, small, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    usual = ("--hardware", A100) if "--hardware" not in arguments else ()

    assert words in refused(*COMMAND, "--trace", small, "--no-upgrades", *usual, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_a_choice_no_schedule_is_written_and_the_rest_is_there(tidesim, small, tmp_path):
    schedule = tmp_path / "s.json"

    status, out, err = tidesim(
        *COMMAND, "--trace", small, "--hardware", A100, "--no-upgrades", "--max-price", 1,
        "--schedule", schedule, "--json",
    )  # fmt: skip

    answer = json.loads(out)
    assert status == 0
    assert f"{schedule} is not written" in err
    assert (answer["choice"], answer["schedule"]) == (None, None)
    assert len(answer["rows"]) == 1
    assert not schedule.exists()


def test_a_model_without_a_known_process_needs_a_trace(refused):
    assert "--trace" in refused("plan", "--model", "llada-moe-7b-a1b", "--hardware", A100)


def test_json_has_no_values_that_json_does_not_know(found):
    json.dumps(found.to_json(), allow_nan=False)
