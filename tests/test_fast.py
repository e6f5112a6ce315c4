"""The closed method equals the discrete-event method, wherever both can be asked."""

from dataclasses import replace

import pytest
from builders import FakeLatency, assert_same_run, case_of, same, small_spec, steps_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from strategies_hardware import profiles

from tidesim.engines import TIDE_REFERENCE, TIDESIM, Promotion
from tidesim.errors import SettingError
from tidesim.latency import Contention, Duplex, Latency
from tidesim.placement import popularity
from tidesim.policies import POLICIES
from tidesim.policies.base import PolicyBase
from tidesim.policies.tide import busiest, refresh_to
from tidesim.simulate import run
from tidesim.simulate.chunks import chunked
from tidesim.simulate.fast import run_fast, time_passes
from tidesim.simulate.prices import Prices
from tidesim.trace.passes import Trace

HYBRIDS = (
    replace(TIDESIM, name="tidesim", write_back=True),
    replace(TIDESIM, name="tidesim", looped=True),
    replace(TIDE_REFERENCE, name="tide-reference", looped=False),
    replace(TIDESIM, name="tidesim", pinned=False),
    replace(TIDESIM, name="tidesim", pinned=False, write_back=True, looped=True),
)


@st.composite
def cases(draw):
    trace = draw(traces(max_blocks=2, max_requests=3))
    model, engine = trace.meta.model, draw(st.sampled_from((TIDESIM, TIDE_REFERENCE, *HYBRIDS)))
    promotions = tuple(Promotion)
    if engine.overlap and (engine.write_back or not engine.pinned):
        promotions = (Promotion.BLOCKING,)
    popular = popularity(trace, window=engine.window)
    budget = draw(st.integers(model.num_experts_per_tok, model.num_experts))
    case = case_of(
        trace,
        budget=budget,
        interval=draw(st.integers(1, 4)),
        engine=engine,
        latency=Latency(draw(profiles()), model, engine=engine.name),
        popularity=popular,
        batch=draw(st.integers(1, 3)),
    )
    able = [
        (name, promotion)
        for name, make in POLICIES.items()
        for promotion in make.promotions
        if promotion in promotions
    ]
    name, promotion = draw(st.sampled_from(able))
    setup = replace(case.setup, promotion=promotion)
    return replace(case, policy=POLICIES[name], setup=setup)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_fast_equals_des_on_any_trace_machine_engine_policy_and_budget(case):
    assert_same_run(run_fast(case), run(case))


@pytest.mark.parametrize("copies_s", [0.0, 1.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("cpu_s", [0.0, 2.0, 16.0])
@pytest.mark.parametrize("engine", [TIDESIM, *HYBRIDS[:2]])
def test_fast_equals_des_whichever_of_copies_and_misses_ends_first(copies_s, cpu_s, engine):
    """Rates change twice at most; every order of the ends is met by some of these cases."""
    latency = FakeLatency(
        expert_copy=copies_s,
        cpu_experts=cpu_s,
        cpu_expert=cpu_s,
        copy=5.0,
        contention=Contention(cpu_factor=0.5, h2d_factor=0.4, d2h_factor=0.3),
        duplex=Duplex(h2d_factor=0.7, d2h_factor=0.6),
    )
    counts = [[[0, 2, 1]], [[1, 1, 1]], [[3, 0, 0]], [[0, 0, 3]]]
    case = case_of(steps_trace(small_spec(), counts), latency=latency, engine=engine)

    fast, des = run_fast(case), run(case)

    assert same(fast.pass_s.tolist(), des.pass_s.tolist())
    assert same(fast.waited, des.waited)
    assert same(fast.busy, des.busy)


@pytest.mark.parametrize("promotion", list(Promotion))
def test_transfers_that_take_no_time_leave_the_cpu_its_own(promotion):
    """Three steps with misses; the CPU's 16 s end each layer, 8 s after it began."""
    counts = [[[1, 1, 1]], [[1, 1, 1]], [[1, 1, 1]]]
    latency = FakeLatency(copy=0.0, expert_copy=2.0)
    case = case_of(steps_trace(small_spec(), counts), latency=latency, promotion=promotion)

    fast, des = run_fast(case), run(case)

    assert same(fast.pass_s.tolist(), des.pass_s.tolist())
    assert all(each >= 4 + 1 + 2 + 16 + 4 for each in des.pass_s)


def test_fast_refuses_records_by_name():
    case = case_of(steps_trace(small_spec(), [[[0, 2, 1]]]))
    prices = Prices(case.latency, case.setup.engine, case.spec)

    with pytest.raises(SettingError, match="method fast keeps no records"):
        time_passes(chunked(case.placed()), prices, keep_records=True)


def test_a_trace_without_denoise_passes_is_refused():
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])
    empty = Trace(trace.meta, [])

    with pytest.raises(SettingError, match="no denoise pass"):
        run_fast(case_of(empty))


class HalfFree(PolicyBase):
    """Promote every miss in the background, in the second layer for free."""

    name = "half-free"
    promotions = (Promotion.BACKGROUND,)

    def decide(self, view):
        decision = refresh_to(busiest(view.counts, view.budget), view)
        return replace(decision, free=view.layer == 1)


def test_copies_that_cost_nothing_use_no_link_beside_those_that_do():
    """Two promotions of the first layer are under way while the second decides for free."""
    spec = small_spec(num_hidden_layers=2, num_experts=4)
    counts = [[[0, 0, 2, 1]] * 2, [[2, 1, 0, 0]] * 2, [[0, 0, 1, 2]] * 2, [[1, 2, 0, 0]] * 2]
    latency = FakeLatency(expert_copy=100.0)
    case = case_of(steps_trace(spec, counts), policy=HalfFree, budget=2, latency=latency)

    fast, des = run_fast(case), run(case)

    assert_same_run(fast, des)
    assert fast.promotions == 8
