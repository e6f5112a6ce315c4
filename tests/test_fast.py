"""The closed method equals the discrete-event method, wherever both can be asked."""

from dataclasses import fields, replace

import numpy as np
import pytest
from builders import FakeLatency, case_of, small_spec, steps_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from strategies_hardware import profiles

from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.errors import SettingError
from tidesim.latency import Contention, Duplex, Latency
from tidesim.placement import popularity, replay
from tidesim.policies import POLICIES
from tidesim.simulate import run
from tidesim.simulate.fast import run_fast, time_passes
from tidesim.simulate.prices import Prices
from tidesim.trace.passes import Trace
from tidesim.trace.windows import windowed

HYBRIDS = (
    replace(TIDESIM, name="tidesim", write_back=True),
    replace(TIDESIM, name="tidesim", looped=True),
    replace(TIDE_REFERENCE, name="tide-reference", looped=False),
)


@st.composite
def cases(draw):
    trace = draw(traces(max_blocks=2, max_requests=2))
    model, engine = trace.meta.model, draw(st.sampled_from((TIDESIM, TIDE_REFERENCE, *HYBRIDS)))
    return case_of(
        trace,
        policy=draw(st.sampled_from(sorted(POLICIES))),
        budget=draw(st.integers(model.num_experts_per_tok, model.num_experts)),
        interval=draw(st.integers(1, 4)),
        engine=engine,
        latency=Latency(draw(profiles()), model, engine=engine.name),
        popularity=popularity(trace, window=engine.window),
    )


def same(a, b):
    return a == pytest.approx(b, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_fast_equals_des_on_any_trace_machine_engine_policy_and_budget(case):
    fast, des = run_fast(case), run(case)

    assert np.allclose(fast.pass_s, des.pass_s, rtol=1e-9, atol=1e-13 * des.seconds)
    assert fast.seconds == pytest.approx(des.seconds, rel=1e-9)
    assert same(fast.busy, des.busy)
    assert same(fast.waited, des.waited)
    timed = {"seconds", "pass_s", "is_step", "busy", "waited", "records"}
    for item in fields(fast):
        assert item.name in timed or getattr(fast, item.name) == getattr(des, item.name)


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


def test_fast_refuses_records_by_name():
    case = case_of(steps_trace(small_spec(), [[[0, 2, 1]]]))
    passes = windowed(case.trace, case.setup.engine.window)
    placements = replay(passes, case.policy(case.setup), case.setup)

    with pytest.raises(SettingError, match="method fast keeps no records"):
        time_passes(
            placements, Prices(case.latency, case.setup.engine, case.spec), keep_records=True
        )


def test_a_trace_without_denoise_passes_is_refused():
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])
    empty = Trace(trace.meta, [])

    with pytest.raises(SettingError, match="no denoise pass"):
        run_fast(case_of(empty))
