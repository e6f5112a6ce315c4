"""Whole timelines, worked out by hand: background promotion, pageable copies, batches.

`FakeLatency` takes attention 4, router 1, every small copy 1, sync 1, decide 1, shared 2, experts 3
on the GPU and 16 on the CPU, an expert's copy 8, combine 1, head 2 seconds. So a pass places the
experts of its first layer 8 seconds after it begins, and ends 4 seconds after they are done.
"""

from dataclasses import replace

import numpy as np
import pytest
from builders import (
    FakeLatency,
    assert_same_run,
    case_of,
    check_run,
    small_spec,
    steps_trace,
    timeline,
)

from tidesim.engines import TIDE_REFERENCE, TIDESIM, Promotion
from tidesim.latency import Contention, Duplex
from tidesim.placement import Decision
from tidesim.policies.base import PolicyBase
from tidesim.simulate.fast import run_fast
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta

HALVES = Contention(cpu_factor=0.5, h2d_factor=0.5, d2h_factor=0.5)
HALF_DUPLEX = Duplex(h2d_factor=0.5, d2h_factor=0.5)
PAGEABLE = replace(TIDESIM, pinned=False)


def checked(case):
    """Return a run that keeps every invariant and that the closed method agrees with."""
    result = check_run(case)
    assert_same_run(run_fast(case), result)
    return result


def background(counts, *, budget=1, experts=3, layers=1, **machine):
    """Run passes whose busiest experts are copied in the background for the next pass."""
    spec = small_spec(num_experts=experts, num_hidden_layers=layers)
    trace = steps_trace(spec, counts)
    latency = FakeLatency(**machine)
    return checked(case_of(trace, policy="previous-step", budget=budget, latency=latency))


def test_a_background_promotion_follows_the_layers_experts_and_serves_the_next_pass():
    """Expert 1 runs on the CPU while resident 0 serves; its copy is in when the next pass asks."""
    result = background([[[1, 2, 0]], [[0, 3, 0]]])

    assert timeline(result) == [
        ("gpu", 0, 4, "attention"),
        ("gpu", 4, 5, "router"),
        ("d2h", 5, 6, "ids"),
        ("host", 6, 7, "sync"),
        ("host", 7, 8, "decide"),
        ("gpu", 8, 10, "shared"),
        ("d2h", 8, 9, "hidden"),
        ("cpu", 9, 25, "experts cpu (1)"),
        ("gpu", 10, 13, "experts gpu (1)"),
        ("h2d", 13, 21, "promote 1"),
        ("h2d", 25, 26, "result"),
        ("gpu", 26, 27, "combine"),
        ("gpu", 27, 29, "head"),
        ("host", 29, 30, "sync"),
        ("gpu", 30, 34, "attention"),
        ("gpu", 34, 35, "router"),
        ("d2h", 35, 36, "ids"),
        ("host", 36, 37, "sync"),
        ("host", 37, 38, "decide"),
        ("gpu", 38, 40, "shared"),
        ("gpu", 40, 43, "experts gpu (1)"),
        ("gpu", 43, 44, "combine"),
        ("gpu", 44, 46, "head"),
        ("host", 46, 47, "sync"),
    ]
    assert (result.hits, result.misses, result.promotions) == (1 + 3, 2, 1)
    assert result.exposed_copy_s == 0


def test_a_result_waits_for_the_copy_on_the_link_passes_the_queue_and_a_late_copy_is_awaited():
    """Copies of 20 s: the CPU is done at 25, copy 2 at 33, then the result, then copy 3 at 54."""
    result = background([[[1, 0, 3, 2]], [[0, 0, 3, 3]]], budget=2, experts=4, expert_copy=20.0)

    assert timeline(result)[5:] == [
        ("gpu", 8, 10, "shared"),
        ("d2h", 8, 9, "hidden"),
        ("cpu", 9, 25, "experts cpu (2)"),
        ("gpu", 10, 13, "experts gpu (1)"),
        ("h2d", 13, 33, "promote 2"),
        ("h2d", 33, 34, "result"),
        ("gpu", 34, 35, "combine"),
        ("h2d", 34, 54, "promote 3"),
        ("gpu", 35, 37, "head"),
        ("host", 37, 38, "sync"),
        ("gpu", 38, 42, "attention"),
        ("gpu", 42, 43, "router"),
        ("d2h", 43, 44, "ids"),
        ("host", 44, 45, "sync"),
        ("host", 45, 46, "decide"),
        ("gpu", 46, 48, "shared"),
        ("gpu", 54, 57, "experts gpu (2)"),
        ("gpu", 57, 58, "combine"),
        ("gpu", 58, 60, "head"),
        ("host", 60, 61, "sync"),
    ]
    assert result.exposed_copy_s == pytest.approx(54 - 48)
    queued = [each for each in result.counters if each.name == "link backlog (bytes)"]
    assert [(counter.time_s, counter.value) for counter in queued] == [
        (13, 768),  # an expert of 3 x 16 x 8 weights has 768 bytes
        (13, 2 * 768),
        (33, 768),
        (54, 0),
    ]


def test_a_pass_that_does_not_need_a_late_copy_goes_on_and_the_run_ends_with_it():
    """Copies of 24 s: 2 ends at 37, 3 at 62; pass 2 uses 2 alone and is done at 59."""
    result = background([[[1, 0, 3, 2]], [[0, 0, 3, 0]]], budget=2, experts=4, expert_copy=24.0)

    assert timeline(result)[9:12] == [
        ("h2d", 13, 37, "promote 2"),
        ("h2d", 37, 38, "result"),
        ("gpu", 38, 39, "combine"),
    ]
    assert timeline(result)[12] == ("h2d", 38, 62, "promote 3")
    assert timeline(result)[-4:] == [
        ("gpu", 52, 55, "experts gpu (1)"),
        ("gpu", 55, 56, "combine"),
        ("gpu", 56, 58, "head"),
        ("host", 58, 59, "sync"),
    ]
    assert result.pass_s.tolist() == [42, 62 - 42]
    assert result.exposed_copy_s == pytest.approx(62 - 59)


def test_background_copies_share_host_memory_with_ids_hidden_states_and_cpu_experts():
    """Copy of 20 s at half rate beside ids (19-21), hidden states (23-25) and the CPU (25-29).

    It has done 6 s at 19, 7 at 21, 9 at 23, 10 at 25, 12 at 29, and the last 8 at full rate. The
    second layer's result passes the second layer's own promotion, which ends the run.
    """
    result = background(
        [[[1, 2, 0], [1, 2, 0]]],
        layers=2,
        expert_copy=20.0,
        cpu_experts=2.0,
        contention=HALVES,
        duplex=HALF_DUPLEX,
    )

    assert timeline(result)[5:] == [
        ("gpu", 8, 10, "shared"),
        ("d2h", 8, 9, "hidden"),
        ("cpu", 9, 11, "experts cpu (1)"),
        ("gpu", 10, 13, "experts gpu (1)"),
        ("h2d", 11, 12, "result"),
        ("gpu", 13, 14, "combine"),
        ("h2d", 13, 37, "promote 1"),
        ("gpu", 14, 18, "attention"),
        ("gpu", 18, 19, "router"),
        ("d2h", 19, 21, "ids"),
        ("host", 21, 22, "sync"),
        ("host", 22, 23, "decide"),
        ("gpu", 23, 25, "shared"),
        ("d2h", 23, 25, "hidden"),
        ("gpu", 25, 28, "experts gpu (1)"),
        ("cpu", 25, 29, "experts cpu (1)"),
        ("h2d", 37, 38, "result"),
        ("gpu", 38, 39, "combine"),
        ("h2d", 38, 58, "promote 1"),
        ("gpu", 39, 41, "head"),
        ("host", 41, 42, "sync"),
    ]
    assert result.seconds == 58


def test_contention_slows_a_background_copy_and_the_cpu_while_both_run():
    """The CPU does 4 s alone, 8 in the copy's 16 s at half rate, and its last 4 alone."""
    result = background([[[1, 2, 0]]], contention=HALVES)

    assert timeline(result)[6:-3] == [
        ("d2h", 8, 9, "hidden"),
        ("cpu", 9, 33, "experts cpu (1)"),
        ("gpu", 10, 13, "experts gpu (1)"),
        ("h2d", 13, 29, "promote 1"),
        ("h2d", 33, 34, "result"),
    ]


def test_copies_of_pageable_memory_hold_up_the_host_one_after_another():
    """Hidden states, then the promotion, then the GPU's experts; the result when the CPU is done."""
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])

    result = checked(case_of(trace, engine=PAGEABLE))

    assert timeline(result)[5:] == [
        ("gpu", 8, 10, "shared"),
        ("d2h", 8, 9, "hidden"),
        ("h2d", 9, 17, "promote 1"),
        ("cpu", 9, 25, "experts cpu (1)"),
        ("gpu", 17, 20, "experts gpu (1)"),
        ("h2d", 25, 26, "result"),
        ("gpu", 26, 27, "combine"),
        ("gpu", 27, 29, "head"),
        ("host", 29, 30, "sync"),
    ]


def test_pageable_write_backs_come_before_promotions_and_slow_the_cpu_as_they_do():
    """Both copies of 8 s take 16 beside the CPU, which does 16 of its 20 s meanwhile."""
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])
    latency = FakeLatency(contention=HALVES, duplex=HALF_DUPLEX, cpu_experts=20.0)
    engine = replace(PAGEABLE, write_back=True)

    result = checked(case_of(trace, engine=engine, latency=latency))

    assert timeline(result)[5:-3] == [
        ("gpu", 8, 10, "shared"),
        ("d2h", 8, 9, "hidden"),
        ("d2h", 9, 25, "write back 0"),
        ("cpu", 9, 45, "experts cpu (1)"),
        ("h2d", 25, 41, "promote 1"),
        ("gpu", 41, 44, "experts gpu (1)"),
        ("h2d", 45, 46, "result"),
    ]


def test_a_pageable_result_waits_for_the_promotion_though_the_cpu_is_done_before():
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])

    result = checked(case_of(trace, engine=PAGEABLE, latency=FakeLatency(cpu_experts=2.0)))

    assert timeline(result)[5:-3] == [
        ("gpu", 8, 10, "shared"),
        ("d2h", 8, 9, "hidden"),
        ("h2d", 9, 17, "promote 1"),
        ("cpu", 9, 11, "experts cpu (1)"),
        ("gpu", 17, 20, "experts gpu (1)"),
        ("h2d", 17, 18, "result"),
    ]


def two_requests():
    """Return a trace of request 0 with steps [3, 0, 0] and [0, 3, 0], and 1 with step [0, 2, 1]."""
    spec, rows = small_spec(), []
    for request, steps in ((0, [[3, 0, 0], [0, 3, 0]]), (1, [[0, 2, 1]])):
        for step, counts in enumerate(steps):
            rows.append(
                Pass(
                    request=request,
                    block=0,
                    step=step,
                    kind=Kind.DENOISE,
                    tokens=3,
                    context=0,
                    histogram=np.array([counts], dtype=np.uint32),
                )
            )
    infos = tuple(
        RequestInfo(request=request, prompt_tokens=0, generated_tokens=0) for request in (0, 1)
    )
    return Trace(TraceMeta(model=spec, provenance="synthetic", requests=infos), rows)


def test_two_requests_in_step_share_a_pass_and_the_longer_goes_on_alone():
    """Together [3, 2, 1]: 0 stays, two miss. Then request 0 alone needs 1, which replaces 0."""
    result = checked(case_of(two_requests(), batch=2))

    assert timeline(result) == [
        ("gpu", 0, 4, "attention"),
        ("gpu", 4, 5, "router"),
        ("d2h", 5, 6, "ids"),
        ("host", 6, 7, "sync"),
        ("host", 7, 8, "decide"),
        ("gpu", 8, 10, "shared"),
        ("d2h", 8, 9, "hidden"),
        ("cpu", 9, 25, "experts cpu (2)"),
        ("gpu", 10, 13, "experts gpu (1)"),
        ("h2d", 25, 26, "result"),
        ("gpu", 26, 27, "combine"),
        ("gpu", 27, 29, "head"),
        ("host", 29, 30, "sync"),
        ("gpu", 30, 34, "attention"),
        ("gpu", 34, 35, "router"),
        ("d2h", 35, 36, "ids"),
        ("host", 36, 37, "sync"),
        ("host", 37, 38, "decide"),
        ("gpu", 38, 40, "shared"),
        ("h2d", 38, 46, "promote 1"),
        ("gpu", 46, 49, "experts gpu (1)"),
        ("gpu", 49, 50, "combine"),
        ("gpu", 50, 52, "head"),
        ("host", 52, 53, "sync"),
    ]
    assert (result.hits, result.misses, result.promotions) == (3 + 3, 3, 1)
    assert (result.passes, result.steps, result.blocks, result.tokens) == (2, 2, 2, 6)
    moved = [row.num_bytes for row in result.records if row.label in {"ids", "hidden", "result"}]
    assert moved == [6 * 2, 6 * 16 * 2, 3 * 16 * 2, 3 * 2]  # both requests' tokens, then one's


def test_the_same_two_requests_one_after_another_take_a_pass_each():
    result = checked(case_of(two_requests(), batch=1))

    assert (result.passes, result.steps, result.blocks, result.tokens) == (3, 3, 2, 6)
    assert [row.request for row in result.records if row.label == "head"] == [0, 0, 1]
    assert result.pass_s.tolist() == [17, 23, 30]


def test_the_serial_engine_counts_the_bytes_of_the_copy_it_waits_for():
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])

    result = check_run(case_of(trace, engine=TIDE_REFERENCE))

    (promoted,) = [row for row in result.records if row.label == "promote 1"]
    queued = [each for each in result.counters if each.name == "link backlog (bytes)"]
    assert [(each.time_s, each.value) for each in queued] == [
        (promoted.start_s, 768),
        (promoted.end_s, 0),
    ]


def test_a_serial_engine_that_calls_experts_together_streams_before_and_promotes_after():
    """In the background: expert 1 is streamed for this pass, expert 2 promoted for the next."""

    class Both(PolicyBase):
        name = "both"

        def decide(self, view):
            return Decision(stream=(1,), promote=(2,), evict=(0,))

    trace = steps_trace(small_spec(), [[[1, 1, 1]]])
    engine = replace(TIDE_REFERENCE, looped=False, write_back=False, copies_per_expert=1)
    case = case_of(trace, policy=Both, engine=engine, promotion=Promotion.BACKGROUND)

    result = check_run(case)

    assert [row[3] for row in timeline(result)][4:] == [
        "stream 1",
        "experts gpu (2)",
        "hidden",
        "experts cpu (1)",
        "result",
        "promote 2",
        "shared",
        "combine",
        "head",
        "sync",
    ]
    assert_same_run(run_fast(case), result)
