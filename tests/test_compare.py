"""Compare: one table with every policy, fixed intervals, the solved schedule and the bounds."""

import json
from dataclasses import replace

import pytest
from test_optimize import FAST_LINK, MINI, fixed_trace

from tidesim import compare as compared
from tidesim.compare import compare
from tidesim.errors import CapacityError, SettingError
from tidesim.policies import POLICIES
from tidesim.simulate import simulate
from tidesim.trace.passes import Trace


def test_every_policy_and_interval_has_a_row_and_the_schedule_is_marked_once():
    comparison = compare(fixed_trace(), FAST_LINK, budget=4, sizes=MINI, intervals=(1, 4))

    rows = comparison.rows
    expected = {("tide", 1), ("tide", 4), ("tide", comparison.solved.solution.interval)}
    every_step = {"mixtral-offload", "previous-step"}
    expected |= {(name, None) for name in set(POLICIES) - every_step - {"tide"}}
    expected |= {(name, 1) for name in every_step}
    assert {(row.policy, row.interval) for row in rows} == expected
    assert len(rows) == len(expected)
    assert [row.is_chosen for row in rows].count(True) == 1
    assert {row.policy for row in rows if row.is_bound} == {
        "belady",
        "full-knowledge",
        "all-gpu",
        "all-cpu",
    }
    assert comparison.requests == "heldout"
    tide = [row.interval for row in rows if row.policy == "tide"]
    assert tide == sorted(tide)


def test_a_row_is_what_simulate_says_of_the_held_out_requests():
    trace = fixed_trace()

    comparison = compare(trace, FAST_LINK, budget=4, sizes=MINI, intervals=(1,))

    for row in comparison.rows:
        result = simulate(
            trace.split("heldout"),
            FAST_LINK,
            policy=row.policy,
            interval=row.interval,
            budget=4,
            sizes=MINI,
            popularity_from=trace.split("train"),
        )
        assert row.seconds_per_block == pytest.approx(result.seconds_per_block, rel=1e-9)
        assert row.exposed_cpu_s == pytest.approx(result.exposed_cpu_s, rel=1e-6, abs=1e-12)
        assert row.exposed_copy_s == pytest.approx(result.exposed_copy_s, rel=1e-6, abs=1e-12)
        assert (row.promotions, row.hit_rate) == (result.promotions, result.hit_rate)
        assert (row.slots, row.bottleneck) == (sum(result.budgets), result.bottleneck)


def test_all_intervals_show_the_solvers_choice_to_be_the_fastest_on_training_requests():
    """At the smallest budget costs are exact; without held-out requests both see the same ones."""
    comparison = compare(
        fixed_trace(heldout=False), FAST_LINK, budget=2, sizes=MINI, intervals=None
    )

    tide = [row for row in comparison.rows if row.policy == "tide"]
    assert [row.interval for row in tide] == [1, 2, 3, 4]
    fastest_s = min(row.seconds_per_block for row in tide)
    assert comparison.chosen.seconds_per_block == pytest.approx(fastest_s, rel=1e-9)
    assert comparison.requests == "train"


def test_a_schedule_that_limits_promotions_stands_beside_tide_of_its_interval(monkeypatch):
    optimize = compared.optimize

    def limited(*arguments, **more):
        solved = optimize(*arguments, **more)
        layers = [
            layer.model_copy(update={"most_promotions": 1}) for layer in solved.schedule.layers
        ]
        return replace(solved, schedule=solved.schedule.model_copy(update={"layers": layers}))

    def rows_of_the_interval():
        comparison = compare(fixed_trace(), FAST_LINK, budget=4, sizes=MINI, intervals=(1, 2, 3, 4))
        interval = comparison.chosen.interval
        return [
            row.is_chosen
            for row in comparison.rows
            if (row.policy, row.interval) == ("tide", interval)
        ]

    assert rows_of_the_interval() == [True]
    monkeypatch.setattr(compared, "optimize", limited)
    assert rows_of_the_interval() == [False, True]


def test_the_table_is_json_with_stable_keys():
    answer = compare(fixed_trace(), FAST_LINK, budget=4, intervals=(1, 2)).to_json()

    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    needed = {"policy", "tokens_per_s", "hit_rate", "promotions"}
    needed |= {"exposed_copy_s", "exposed_cpu_s", "interval", "bottleneck", "is_bound"}
    assert needed <= set(answer["rows"][0])
    assert set(answer["bounds"]) == {"belady", "full-knowledge", "all-gpu", "all-cpu"}
    assert answer["gap"].keys() >= {"tokens_per_s", "best_other", "closed"}
    assert answer["chosen"]["policy"] == "tide"
    assert answer["best"]["tokens_per_s"] == max(
        row["tokens_per_s"] for row in answer["rows"] if not row["is_bound"]
    )


def test_the_gap_is_between_the_best_of_three_and_full_knowledge():
    comparison = compare(fixed_trace(), FAST_LINK, budget=2, sizes=MINI, intervals=(1, 2))

    gap, rows = comparison.gap, {row.name: row.tokens_per_s for row in comparison.rows}
    others = [name for name in rows if name.split()[0] in {"tide", "static-frequency"}]
    others.append("previous-step")
    best = max(rows[name] for name in others)
    assert (gap.tokens_per_s, gap.best_other_tokens_per_s) == (rows["pay"], best)
    assert gap.full_knowledge_tokens_per_s == rows["full-knowledge"]
    expected = (rows["pay"] - best) / (rows["full-knowledge"] - best)
    assert gap.closed == pytest.approx(expected)


def test_a_policy_that_does_not_fit_is_named_and_left_out():
    """Policies that stream need scratch slots besides their residents; tide does not."""
    trace = fixed_trace()
    small = compare(trace, FAST_LINK, budget=2, sizes=MINI).solved.schedule.memory_bytes
    tight = FAST_LINK.with_overrides({"gpu.memory_bytes": small})

    comparison = compare(trace, tight, budget=2, sizes=MINI)

    assert set(comparison.skipped) == {"fiddler", "mixtral-offload-lru"}
    assert "fiddler" not in {row.policy for row in comparison.rows}
    assert "at most" in comparison.skipped["fiddler"] or "would do" in comparison.skipped["fiddler"]


def test_memory_instead_of_a_budget_gives_each_policy_what_fits():
    comparison = compare(fixed_trace(), FAST_LINK, memory_bytes=5 * 10**9, sizes=MINI)

    slots = {row.policy: row.slots for row in comparison.rows}
    assert slots["static-frequency"] == slots["mixtral-offload"] == 16


def test_memory_limits_what_full_knowledge_may_hold_too():
    """The gap that is closed is one between policies of as many slots."""
    trace = fixed_trace()
    memory = compare(trace, FAST_LINK, budget=2, sizes=MINI).solved.schedule.memory_bytes

    by_memory, by_budget = (
        {row.policy: row.hit_rate for row in compare(trace, FAST_LINK, sizes=MINI, **room).rows}
        for room in ({"memory_bytes": memory}, {"budget": 2})
    )

    assert by_memory["full-knowledge"] == by_budget["full-knowledge"] < 1
    assert by_memory["all-gpu"] == 1


@pytest.mark.parametrize("intervals", [(0,), (2, 2)])
def test_wrong_intervals_are_refused(intervals):
    with pytest.raises(SettingError, match="interval"):
        compare(fixed_trace(), FAST_LINK, budget=2, intervals=intervals)


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(CapacityError, match="would do"):
        compare(fixed_trace(), FAST_LINK, memory_bytes=10**9, sizes=MINI)


def test_requests_that_are_all_held_out_are_not_called_training_ones():
    trace = fixed_trace(heldout=False)
    marked = tuple(i.model_copy(update={"split": "heldout"}) for i in trace.meta.requests)
    only = Trace(trace.meta.model_copy(update={"requests": marked}), trace)

    assert compare(only, FAST_LINK, budget=2, sizes=MINI, intervals=(1,)).requests == "all"


def test_closed_form_alone_in_the_background_is_refused():
    with pytest.raises(SettingError, match="blocking promotion only"):
        compare(
            fixed_trace(), FAST_LINK, budget=2, formulations=("closed-form",),
            promotions=("background",),
        )  # fmt: skip
