"""Policies that weigh the CPU against a copy: whom they copy, on cases checked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from builders import FakeLatency, case_of, check_run, small_spec, steps_trace
from test_policies import setup_of, view_of

from tidesim.engines import TIDE_REFERENCE, TIDESIM, Promotion
from tidesim.errors import SettingError
from tidesim.latency import Contention
from tidesim.placement import KEEP, replay
from tidesim.policies import make_policy
from tidesim.policies.costs import ExpertCosts, Finish
from tidesim.trace.passes import Window
from tidesim.trace.windows import windowed

NAMES = ("hybrimoe", "dali", "q-split")


class PerToken(FakeLatency):
    """A call costs its start once and then by token: GPU 1 + 1/10, CPU 2 + 1; a copy takes 4."""

    def gpu_experts_s(self, tokens_per_expert):
        return bool(np.any(tokens_per_expert)) * (1.0 + 0.1 * float(np.sum(tokens_per_expert)))

    def cpu_experts_s(self, tokens_per_expert):
        return bool(np.any(tokens_per_expert)) * (2.0 + float(np.sum(tokens_per_expert)))

    def gpu_expert_s(self, tokens):
        return (1.0 + 0.1 * tokens) * (tokens > 0)

    def cpu_expert_s(self, tokens):
        return (2.0 + tokens) * (tokens > 0)


def policy_of(name, *, experts=6, budget=2, expert_copy=4.0, **changes):
    latency = PerToken(expert_copy=expert_copy)
    return make_policy(name, setup=setup_of(experts, budget=budget, latency=latency, **changes))


def test_costs_of_one_more_expert_leave_out_the_start_of_the_call_that_runs_anyway():
    costs = ExpertCosts("test", setup_of(latency=PerToken(expert_copy=4.0)))
    looped = ExpertCosts("test", setup_of(latency=PerToken(), engine=TIDE_REFERENCE))

    assert (costs.copy_s, looped.copy_s) == (4.0, 24.0)
    assert (costs.cpu_added_s(3, True), costs.cpu_added_s(3, False)) == (5.0, 3.0)
    assert costs.gpu_added_s(5, True) == pytest.approx(1.5)
    assert costs.gpu_added_s(5, False) == pytest.approx(0.5)
    assert (looped.cpu_added_s(3, True), looped.cpu_added_s(3, False)) == (5.0, 5.0)
    assert looped.cpu_s(np.array([3, 0, 1])) == 8.0
    assert looped.gpu_s(np.array([5, 0])) == pytest.approx(1.5)


def test_a_copied_expert_runs_after_its_copy_and_after_what_the_gpu_has():
    finish = Finish(costs=ExpertCosts("test", setup_of(latency=PerToken(expert_copy=4.0))), gpu_s=6)

    assert finish.if_copied(10) == 7.0
    finish.copy(10)
    assert (finish.gpu_s, finish.link_s) == (7.0, 4.0)
    assert finish.if_copied(10) == 9.0
    finish.compute_on_cpu(3)
    assert (finish.cpu_s, finish.if_on_cpu(3)) == (5.0, 8.0)


def test_hybrimoe_copies_the_busiest_and_computes_the_lightest_until_the_pointers_meet():
    """GPU against CPU: 6 or 3, 1 token to the CPU; 6 or 5, 2 tokens; 6 or 9, copy; 8.4 or 9, copy."""
    policy = policy_of("hybrimoe")

    decision = policy.decide(view_of([0, 0, 10, 4, 2, 1], [0, 1]))

    assert (decision.promote, decision.evict) == ((2, 3), (0, 1))


def test_hybrimoe_counts_what_the_gpu_computes_anyway():
    """A hit with 40 tokens ends at 5, one more of 10 at 6; so the CPU takes 4 tokens, also at 6."""
    policy = policy_of("hybrimoe", budget=3, expert_copy=0.1)

    decision = policy.decide(view_of([40, 0, 0, 10, 4, 0], [0, 1, 2], budget=3))

    assert (decision.promote, decision.evict) == ((3,), (1,))


def test_hybrimoe_evicts_the_lowest_average_of_the_residents_without_tokens():
    policy = policy_of("hybrimoe", budget=3)

    policy.decide(view_of([4, 8, 4, 0, 0, 0], [0, 1, 2], budget=3))
    policy.decide(view_of([0, 1, 1, 0, 0, 0], [0, 1, 2], budget=3))
    last = policy.decide(view_of([0, 0, 1, 0, 90, 0], [0, 1, 2], budget=3))

    assert (last.promote, last.evict) == ((4,), (0,))  # 0.06 against 0.19; expert 2 is in use


def test_dali_gives_each_miss_to_the_side_that_would_be_done_earlier():
    """Busiest first: 10 copied (6 < 12); then 4 (8.4 > 6), 2 (8.2 > 8), 1 (8.1 < 9) by turns."""
    policy = policy_of("dali")

    assert policy.decide(view_of([0, 0, 10, 4, 2, 1], [0, 1])).promote == (2, 5)


def test_dali_evicts_the_fewest_tokens_of_the_last_four_passes():
    policy = policy_of("dali")

    for counts in ([9, 1, 0, 0, 0, 0], *[[1, 2, 0, 0, 0, 0]] * 3):
        assert policy.decide(view_of(counts, [0, 1])) == KEEP
    early = policy.decide(view_of([0, 0, 90, 0, 0, 0], [0, 1]))

    assert early.evict == (0,)  # the 9 tokens are five passes old: 3 against 6


@pytest.mark.parametrize("name", NAMES)
def test_no_copy_where_the_cpu_is_as_fast(name):
    policy = policy_of(name, expert_copy=99.0)

    assert policy.decide(view_of([0, 0, 3, 2, 1, 1], [0, 1])) == KEEP


@pytest.mark.parametrize("name", NAMES)
def test_residents_in_use_never_leave(name):
    policy = policy_of(name, expert_copy=0.1)

    decision = policy.decide(view_of([1, 0, 50, 50, 50, 50], [0, 1]))
    full = policy.decide(view_of([1, 1, 50, 50, 50, 50], [0, 1]))

    assert (len(decision.promote), decision.evict) == (1, (1,))
    assert full == KEEP


@pytest.mark.parametrize(("copy_s", "fetched"), [(2.5, 2), (7.5, 1), (0.5, 3), (22.5, 0)])
def test_q_split_fetches_the_share_that_link_and_cpu_finish_together(copy_s, fetched):
    """Four misses take the CPU 10 s, and copies 4 × 2.5 s: half of them; a half goes to the CPU."""
    policy = policy_of("q-split", budget=4, expert_copy=copy_s)

    decision = policy.decide(view_of([0, 0, 2, 2, 2, 2], [], budget=4))

    assert decision.promote == tuple(range(2, 2 + fetched))


def test_q_split_weighs_rates_as_they_are_while_both_work():
    slow_link = Contention(cpu_factor=1.0, h2d_factor=1 / 3, d2h_factor=1.0)
    latency = PerToken(expert_copy=2.5, contention=slow_link)
    policy = make_policy("q-split", setup=setup_of(6, latency=latency))

    assert policy.decide(view_of([0, 0, 2, 2, 2, 2], [])).promote == (2,)


def test_q_split_fetches_the_most_recently_active_and_evicts_the_least():
    policy = policy_of("q-split", expert_copy=5.0)

    policy.decide(view_of([1, 1, 0, 1, 0, 0], [0, 1]))
    policy.decide(view_of([0, 1, 0, 0, 0, 0], [0, 1]))
    decision = policy.decide(view_of([0, 0, 5, 4, 0, 0], [0, 1]))

    assert (decision.promote, decision.evict) == ((3,), (0,))


@pytest.mark.parametrize("name", NAMES)
def test_what_weighs_costs_needs_costs_and_blocks(name):
    setup = setup_of()

    with pytest.raises(SettingError, match=f"policy {name} weighs costs; give a hardware profile"):
        make_policy(name, setup=replace(setup, latency=None))
    with pytest.raises(SettingError, match="no background promotion"):
        make_policy(name, setup=replace(setup, promotion=Promotion.BACKGROUND))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", [TIDESIM, TIDE_REFERENCE])
def test_what_weighs_costs_is_timed_and_uses_both_sides(name, engine):
    counts = [[[1, 0, 9, 4, 2]], [[0, 1, 4, 9, 2]], [[5, 0, 5, 1, 9]]]
    trace = steps_trace(small_spec(num_experts=5), counts)
    latency = PerToken(expert_copy=2.0 / engine.copies_per_expert)
    case = case_of(trace, policy=name, budget=2, engine=engine, latency=latency)

    check_run(case)

    passes = windowed(trace, Window.BLOCK)
    placed = list(replay(passes, case.policy(case.setup), case.setup))
    assert any(one.decisions[0].promote for one in placed)
    assert any(one.cpu_tokens.any() for one in placed)
