"""Plan: machines assessed, each with its best schedule; what goes wrong beside others."""

import os
from dataclasses import replace

import numpy as np
import pytest
from planning import A100, KEYS, METHOD, MINI, RTX4090, THOR, TIGHT, made, requests

from tidesim.errors import RunError, SettingError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.plan import (
    Site,
    assess,
    plan,
)
from tidesim.plan.assess import block_seconds
from tidesim.plan.words import answers, scope
from tidesim.policies.scheduled import follow
from tidesim.simulate import prepare, run


@pytest.fixture(scope="module")
def trace():
    return requests()


@pytest.fixture(scope="module")
def found():
    return made()


@pytest.fixture(scope="module")
def tight(found):
    """The A100 with little memory."""
    return next(row for row in found.rows if (row.hardware, row.memory_gb) == (A100, 3.45)).found


# ── rows ───────────────────────────────────────────────────────────────────────────────────────────


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


# ── other engines and formulations ─────────────────────────────────────────────────────────────────


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
