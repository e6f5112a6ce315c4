"""Cost tables: hand arithmetic on a tiny case, and equality with the simulator on drawn ones."""

from dataclasses import replace

import numpy as np
import pytest
from builders import FakeLatency, case_of, small_spec, steps_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from strategies_hardware import profiles

from solver import interval_costs_s
from tidesim.closed_form import closed_form_terms
from tidesim.costs import LayerTimer, arc_costs
from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.errors import FormatError, SettingError
from tidesim.latency import Latency
from tidesim.placement import popularity
from tidesim.policies.tide import busiest
from tidesim.simulate.fast import run_fast
from tidesim.trace.passes import Kind, Trace

TWO_EXPERTS = [[[3, 0]], [[0, 3]], [[1, 2]]]  # three steps of one layer


def two_experts(**settings):
    return case_of(steps_trace(small_spec(num_experts=2), TWO_EXPERTS), **settings)


def test_costs_of_two_experts_and_three_steps_are_those_worked_out_by_hand():
    """FakeLatency, budget 1, expert 0 resident at first.

    Hits alone take max(shared 2, no copy) + experts 3 = 5; a miss takes hidden 1 + CPU 16 +
    result 1 = 18 and hides hits and copies; hits after a promotion take copy 8 + experts 3 = 11.
    A pass has 12 s besides: attention 4, router 1, ids 1, sync 1, decide 1, combine 1, head 2,
    sync 1. Step 0 finds its expert resident: 5 s on every arc from 0.
    """
    table = arc_costs(two_experts(), [1])

    assert table.fixed_s == pytest.approx(3 * 12)
    assert table.arc_cost_s[0, 0].tolist() == [
        [0, 5 + 11, 5 + 18 + 18, 5 + 18 + 18],
        [0, 0, 18, 18],
        [0, 0, 0, 0],
    ]
    assert (table.steps, table.blocks, table.unfilled.tolist()) == (3, 1, [0.0])


def test_a_block_that_ends_early_pays_its_commit_and_the_next_block_on_the_arc_then_active():
    """Blocks of two steps and of one; the commit pass and the way over are in every arc from 0."""
    counts = [[[3, 0]], [[0, 3]], [[3, 0]]]
    spec = small_spec(num_experts=2)
    passes = list(steps_trace(spec, counts, steps_per_block=2, commits=True))
    trace = steps_trace(spec, counts, steps_per_block=2, commits=True)
    assert [pass_.kind for pass_ in passes] == [*[Kind.DENOISE] * 2, Kind.COMMIT, Kind.DENOISE]

    table = arc_costs(case_of(trace), [1])

    # Entry 5. Refresh at step 1: 11, commit of its counts hits: 5, next block promotes: 11.
    # No refresh: step 1 and commit miss, 18 each, next block finds its expert: 5.
    refreshed = table.arc_cost_s[0, 0, 0, 1] + table.arc_cost_s[0, 0, 1, 2]
    assert 2 * refreshed == pytest.approx(5 + 11 + 5 + 11)
    assert 2 * table.arc_cost_s[0, 0, 0, 2] == pytest.approx(5 + 18 + 18 + 5)
    assert table.reach.tolist() == [1.0, 0.5]


@st.composite
def drawn(draw, *, full):
    """Draw a case whose refreshes never leave a slot free: one token's experts, or all of them."""
    trace = draw(traces(max_blocks=3, max_requests=2))
    model, engine = trace.meta.model, draw(st.sampled_from((TIDESIM, TIDE_REFERENCE)))
    budget = model.num_experts if full else model.num_experts_per_tok
    return case_of(
        trace,
        budget=budget,
        engine=engine,
        latency=Latency(draw(profiles()), model, engine=engine.name),
        popularity=popularity(trace, window=engine.window),
    )


@settings(max_examples=40, deadline=None)
@given(st.booleans().flatmap(lambda full: drawn(full=full)))
def test_costs_of_every_interval_add_up_to_its_simulated_seconds(case):
    table = arc_costs(case, [case.setup.budget])
    costs_s = table.fixed_s + interval_costs_s(table.arc_cost_s)[:, 0]

    for interval, cost_s in enumerate(costs_s.tolist(), start=1):
        result = run_fast(replace(case, setup=replace(case.setup, interval=interval)))
        assert cost_s == pytest.approx(result.seconds_per_block, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(drawn(full=False), st.data())
def test_costs_of_several_budgets_are_those_of_each_alone_and_nothing_is_negative(case, data):
    model = case.trace.meta.model
    options = st.integers(model.num_experts_per_tok, model.num_experts)
    budgets = sorted(data.draw(st.sets(options, min_size=1, max_size=3)))

    together = arc_costs(case, budgets)

    for option, budget in enumerate(budgets):
        alone = arc_costs(case, [budget])
        assert np.array_equal(together.arc_cost_s[:, option], alone.arc_cost_s[:, 0])
    assert np.all(together.arc_cost_s >= 0)
    assert np.all(np.diff(together.unfilled) >= 0)
    assert np.all(np.diff(together.reach) <= 0)
    assert together.reach[0] == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.data())
def test_residents_are_tides_target_and_initial_residents_in_the_slots_it_leaves(budget, data):
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12)))
    case = case_of(steps_trace(small_spec(num_experts=12), [[counts]]), budget=budget)
    timer = LayerTimer(case, budget)

    resident = timer.residents(counts[None])[0]

    target = busiest(counts, budget)
    assert np.array_equal(resident & (counts > 0), target)
    assert resident.sum() == budget
    assert not np.any(resident & ~target & ~timer.initial[0])


def test_slots_left_free_are_reported():
    assert arc_costs(two_experts(), [1, 2]).unfilled.tolist() == [0.0, 2 / 3]


def test_a_block_without_one_of_its_steps_is_refused():
    trace = steps_trace(small_spec(num_experts=2), TWO_EXPERTS)
    gap = Trace(trace.meta, [pass_ for pass_ in trace if pass_.step != 1])

    with pytest.raises(FormatError, match="has step 2 where step 1 should be"):
        arc_costs(case_of(gap), [1])


def test_a_trace_without_denoise_passes_is_refused():
    trace = steps_trace(small_spec(num_experts=2), TWO_EXPERTS)

    with pytest.raises(SettingError, match="nothing to schedule"):
        arc_costs(case_of(Trace(trace.meta, [])), [1])


def test_terms_of_the_papers_closed_form_are_those_worked_out_by_hand():
    """Budget 1: of two changes of step one changes the busiest expert; 9 pairs in all.

    Misses: 1 of 9 at τ = 1 (step 2's other expert); steps 1 and 2 miss 3 + 1 at τ = 2 and 3 + 2 at
    τ = 3. A layer with misses has 1 + 16 + 1 s on the CPU, so 18 × (1, 2, 2) / 3 s per step.
    """
    terms = closed_form_terms(two_experts(latency=FakeLatency()), 1)

    share, cpu_s = np.array([1, 4, 5]) / 9, np.array([6.0, 12.0, 12.0])
    assert terms.drift == pytest.approx(0.5)
    assert terms.miss_share.tolist() == pytest.approx(share.tolist())
    assert terms.promotion_s == 8
    assert terms.miss_s == pytest.approx(share @ cpu_s / (share @ share))


def test_routing_that_never_changes_has_no_drift_and_one_miss_share():
    trace = steps_trace(small_spec(num_experts=2), [[[2, 1]]] * 4)

    terms = closed_form_terms(case_of(trace), 1)

    assert terms.drift == 0
    assert terms.miss_share.tolist() == [1 / 3] * 4
