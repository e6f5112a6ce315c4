"""The critical path: by hand on small runs, and its law on every simulated one."""

import math
from itertools import pairwise

import numpy as np
import pytest
from builders import FakeLatency, case_of, small_spec, steps_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from strategies_hardware import profiles

from tidesim.critical_path import critical_path, path_seconds, resolution_s
from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.latency import Latency
from tidesim.placement import popularity
from tidesim.policies import POLICIES
from tidesim.records import Record, Records, Resource, makespan_s
from tidesim.simulate import run


def row(resource, start_s, end_s, label="work"):
    return Record(resource, start_s, end_s, label, request=0, block=1, step=2, layer=3)


def test_the_path_of_a_layer_with_a_hit_a_miss_and_a_promotion():
    """The miss takes longer than the promotion: its way to the CPU and back is the path."""
    case = case_of(steps_trace(small_spec(), [[[0, 2, 1]]]), latency=FakeLatency())

    path = critical_path(run(case, keep_records=True).records)

    assert [(one.resource, one.start_s, one.label) for one in path] == [
        ("gpu", 0, "attention"),
        ("gpu", 4, "router"),
        ("d2h", 5, "ids"),
        ("host", 6, "sync"),
        ("host", 7, "decide"),
        ("d2h", 8, "hidden"),
        ("cpu", 9, "experts cpu (1)"),
        ("h2d", 25, "result"),
        ("gpu", 26, "combine"),
        ("gpu", 27, "head"),
        ("host", 29, "sync"),
    ]
    assert path_seconds(path) == {
        (Resource.CPU, "experts cpu"): 16,
        (Resource.GPU, "attention"): 4,
        (Resource.HOST, "sync"): 2,
        (Resource.GPU, "head"): 2,
        (Resource.GPU, "router"): 1,
        (Resource.D2H, "ids"): 1,
        (Resource.HOST, "decide"): 1,
        (Resource.D2H, "hidden"): 1,
        (Resource.H2D, "result"): 1,
        (Resource.GPU, "combine"): 1,
    }
    assert next(iter(path_seconds(path))) == (Resource.CPU, "experts cpu")


def test_with_a_fast_cpu_the_path_leads_over_the_promotion():
    latency = FakeLatency(cpu_experts=2.0)
    case = case_of(steps_trace(small_spec(), [[[0, 2, 1]]]), latency=latency)

    path = critical_path(run(case, keep_records=True).records)

    assert [one.label for one in path][5:8] == ["promote 1", "experts gpu (1)", "combine"]


def test_of_operations_that_end_together_the_path_follows_the_longer_chain():
    """Both b and c end when d starts, but nothing ended when c began: a, b, d has no gap."""
    a, b = row(Resource.GPU, 0, 2, "a"), row(Resource.H2D, 2, 5, "b")
    c, d = row(Resource.CPU, 1, 5, "c"), row(Resource.GPU, 5, 6, "d")

    assert critical_path(Records([a, b, c, d])) == (a, b, d)


def test_after_an_idle_gap_the_path_goes_on_with_what_ended_last():
    a, b = row(Resource.GPU, 0, 3, "a"), row(Resource.CPU, 0, 4, "b")
    c, d = row(Resource.GPU, 5, 6, "c"), row(Resource.H2D, 0, 6.5, "d")
    e = row(Resource.HOST, 6.01, 7, "e")

    assert critical_path(Records([a, b, c, d, e])) == (b, c, e)
    assert critical_path(Records([a, b, c, d, e]), tolerance_s=0.1) == (b, c, e)


def test_the_path_ends_with_the_run_though_another_chain_worked_longer():
    busy, late = row(Resource.GPU, 0, 10, "busy"), row(Resource.CPU, 5, 11, "late")

    assert critical_path(Records([busy, late])) == (late,)


def test_measured_times_are_one_moment_within_the_tolerance():
    a, b = row(Resource.GPU, 0, 2.001, "a"), row(Resource.GPU, 2.0, 5, "b")
    early = row(Resource.CPU, 0, 1.5, "early")

    assert critical_path(Records([a, early, b]), tolerance_s=0.01) == (a, b)
    assert critical_path(Records([a, early, b])) == (early, b)


def test_no_operations_have_no_path_and_one_is_its_own():
    assert critical_path(Records([])) == ()
    assert critical_path(Records([row(Resource.GPU, 0, 1)])) == (row(Resource.GPU, 0, 1),)
    assert path_seconds(()) == {}


def test_operations_without_length_make_no_circle():
    rows = [row(resource, 1, 1, str(resource)) for resource in Resource]
    rows += [row(Resource.GPU, 0, 1, "first"), row(Resource.GPU, 1, 3, "last")]

    path = critical_path(Records(rows))

    assert (path[0].label, path[-1].label) == ("first", "last")
    assert sum(path_seconds(path).values()) == 3


@st.composite
def cases(draw):
    trace = draw(traces(max_blocks=2, max_requests=2))
    model, engine = trace.meta.model, draw(st.sampled_from((TIDESIM, TIDE_REFERENCE)))
    return case_of(
        trace,
        policy=draw(st.sampled_from(sorted(POLICIES))),
        budget=draw(st.integers(model.num_experts_per_tok, model.num_experts)),
        interval=draw(st.integers(1, 4)),
        engine=engine,
        latency=Latency(draw(profiles()), model, engine=engine.name),
        popularity=popularity(trace, window=engine.window),
    )


def spans(records, start_s, end_s):
    """Assert that the critical path covers a span of time without a gap."""
    path, tolerance_s = critical_path(records), resolution_s(records)
    assert path[0].start_s == pytest.approx(start_s, abs=tolerance_s)
    assert path[-1].end_s == pytest.approx(end_s, abs=tolerance_s)
    for before, after in pairwise(path):
        assert abs(after.start_s - before.end_s) <= tolerance_s
    assert math.fsum(path_seconds(path).values()) == pytest.approx(end_s - start_s, rel=1e-9)


@settings(max_examples=60)
@given(cases())
def test_the_path_of_a_run_has_no_gap_and_adds_up_to_the_makespan(case):
    result = run(case, keep_records=True)

    spans(result.records, 0.0, makespan_s(result.records))
    assert makespan_s(result.records) == pytest.approx(result.seconds, rel=1e-12)


@settings(max_examples=30)
@given(cases(), st.data())
def test_the_path_of_one_pass_adds_up_to_its_seconds(case, data):
    result = run(case, keep_records=True)
    ends_s = np.cumsum(result.pass_s)
    passes = list(dict.fromkeys((r.request, r.block, r.step) for r in result.records))
    number = data.draw(st.integers(0, len(passes) - 1))
    own = Records(r for r in result.records if (r.request, r.block, r.step) == passes[number])

    spans(own, own[0].start_s, makespan_s(own))
    assert own[0].start_s == pytest.approx(ends_s[number] - result.pass_s[number], rel=1e-9)
    assert makespan_s(own) == pytest.approx(ends_s[number], rel=1e-9)


def test_a_long_run_takes_time_in_proportion():
    """A hundred thousand operations: a search over all pairs would never end."""
    rows = [
        row(resource, step, step + 1)
        for step in range(50_000)
        for resource in (Resource.GPU, Resource.CPU)
    ]

    assert len(critical_path(Records(rows))) == 50_000
