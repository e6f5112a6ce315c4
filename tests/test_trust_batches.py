"""Batches: requests in step serve every token once, and cost what their sums say."""

from collections import Counter
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import model_specs, small_model, traces

from tidesim.engines import TIDESIM
from tidesim.errors import SettingError
from tidesim.gpu_work import attention_work
from tidesim.hardware import load_profile
from tidesim.latency import Latency
from tidesim.memory import extent
from tidesim.trace.batches import batched
from tidesim.trace.passes import Kind, Window, WindowedPass
from tidesim.trace.windows import windowed

sizes = st.integers(1, 4)


def single_pass(request, block, step, *, kind=Kind.DENOISE, tokens=4, context=0, counts=(1, 0)):
    """Return a pass of one layer and two experts; the expert says whose token it is."""
    generated = -1 if kind is Kind.PREFILL else block - 1
    place = {"request": request, "block": block, "generated_block": generated, "step": step}
    held = np.array([counts], dtype=np.int64)
    return WindowedPass(**place, kind=kind, tokens=tokens, context=context, counts=held)


def places(passes):
    return [(one.request, one.block, one.step, one.kind.value, one.requests) for one in passes]


def alone(trace, window=Window.BLOCK):
    return list(windowed(trace, window))


@given(traces(), sizes)
def test_every_token_is_served_once(trace, size):
    """Tokens, context and counts of every expert add up to those of the requests alone."""
    before = alone(trace)

    together = list(batched(before, size))

    for name in ("tokens", "context", "requests"):
        assert sum(getattr(one, name) for one in together) == sum(
            getattr(one, name) for one in before
        )
    assert np.array_equal(sum(one.counts for one in together), sum(one.counts for one in before))


@given(traces(), sizes)
def test_every_pass_holds_the_same_step_of_different_requests(trace, size):
    """Step s of a batch's block sums step s of the requests that have one, and of no other."""
    before = [one for one in alone(trace) if one.kind is Kind.DENOISE]
    requests = list(dict.fromkeys(one.request for one in alone(trace)))
    batch_of = {request: place // size for place, request in enumerate(requests)}
    expected = {}
    for one in before:
        key = (batch_of[one.request], _order(before, one), one.step)
        expected[key] = expected.get(key, 0) + one.counts

    together = [one for one in batched(alone(trace), size) if one.kind is Kind.DENOISE]

    assert len(together) == len(expected)
    for one in together:
        key = (batch_of[one.request], _order(before, one), one.step)
        assert np.array_equal(one.counts, expected[key])


def _order(passes, wanted):
    """Return which of its request's decoded blocks a pass belongs to."""
    blocks = dict.fromkeys(one.block for one in passes if one.request == wanted.request)
    return list(blocks).index(wanted.block)


@given(traces(), sizes)
def test_a_block_takes_as_many_steps_as_its_slowest_request(trace, size):
    steps = Counter((one.request, one.block) for one in alone(trace) if one.kind is Kind.DENOISE)
    requests = list(dict.fromkeys(one.request for one in alone(trace)))
    slowest = 0
    for first in range(0, len(requests), size):
        mine = [
            [n for (request, _), n in steps.items() if request == chosen]
            for chosen in requests[first : first + size]
        ]
        for place in range(max(map(len, mine))):
            slowest += max(blocks[place] for blocks in mine if place < len(blocks))

    together = list(batched(alone(trace), size))

    assert sum(one.kind is Kind.DENOISE for one in together) == slowest


@given(traces(), sizes)
def test_prefills_run_alone_and_before_their_batch_decodes(trace, size):
    before = [one for one in alone(trace) if one.kind is Kind.PREFILL]

    together = list(batched(alone(trace), size))

    prefills = [one for one in together if one.kind is Kind.PREFILL]
    assert places(prefills) == places(before)
    assert all(one.requests == 1 for one in prefills)
    for earlier, later in pairwise(together):
        if later.kind is Kind.PREFILL and earlier.kind is not Kind.PREFILL:
            assert later.request > earlier.request  # the next batch begins


@given(traces(), st.sampled_from(Window))
def test_a_batch_of_one_is_the_trace_itself(trace, window):
    trace = trace if window is Window.BLOCK else without_open_blocks(trace)
    before = alone(trace, window)

    together = list(batched(before, 1))

    assert all(a is b for a, b in zip(together, before, strict=True))


@given(traces(max_requests=4), sizes)
def test_batches_keep_the_order_of_requests_and_name_the_first_that_takes_part(trace, size):
    requests = list(dict.fromkeys(one.request for one in alone(trace)))
    batch_of = {request: place // size for place, request in enumerate(requests)}

    together = list(batched(alone(trace), size))

    batches = [batch_of[one.request] for one in together]
    assert batches == sorted(batches)
    assert all(1 <= one.requests <= size for one in together)
    seen = [(one.request, one.block, one.step, one.kind) for one in together]
    assert len(set(seen)) == len(seen)


@given(traces(max_requests=1), st.integers(2, 4))
def test_a_request_without_company_is_decoded_as_ever(trace, size):
    for one, before in zip(batched(alone(trace), size), alone(trace), strict=True):
        for item in fields(one):
            assert np.array_equal(getattr(one, item.name), getattr(before, item.name))


def without_open_blocks(trace):
    """Return a trace whose every request has only blocks with a commit pass."""
    closed = {(one.request, one.block) for one in trace if one.kind is not Kind.DENOISE}
    kept = [one for one in trace if (one.request, one.block) in closed]
    return type(trace)(trace.meta, kept)


def test_blocks_of_unequal_length_in_step_by_hand():
    """Request 0 has a prefill and blocks of 2 steps and 1, request 1 a block of 3, 2 comes later."""
    prefill = single_pass(0, -1, 0, kind=Kind.PREFILL, tokens=9, counts=(9, 0))
    rows = [prefill, *(single_pass(0, 1, step, context=9) for step in (0, 1))]
    rows += [single_pass(0, 1, 2, kind=Kind.COMMIT, context=9), single_pass(0, 2, 0, context=13)]
    rows += [single_pass(1, 1, step, context=1, counts=(0, 1)) for step in (0, 1, 2)]
    rows += [single_pass(1, 1, 3, kind=Kind.COMMIT, context=1, counts=(0, 1))]
    rows += [single_pass(2, 1, 0)]

    together = list(batched(rows, 2))

    assert places(together) == [
        (0, -1, 0, "prefill", 1),
        (0, 1, 0, "denoise", 2),
        (0, 1, 1, "denoise", 2),
        (0, 1, 2, "denoise", 1),  # of request 1 alone, under the name of the first with this block
        (0, 1, 3, "commit", 2),
        (0, 2, 0, "denoise", 1),
        (2, 1, 0, "denoise", 1),
    ]
    assert [one.tokens for one in together] == [9, 8, 8, 4, 8, 4, 4]
    assert [one.context for one in together] == [0, 10, 10, 1, 10, 13, 0]
    assert [one.counts[0].tolist() for one in together][1:5] == [[1, 1], [1, 1], [0, 1], [1, 1]]


def test_a_batch_of_nobody_is_refused():
    with pytest.raises(SettingError, match="batch is 0 but must be at least 1 request"):
        list(batched([], 0))


def test_only_one_batch_is_read_ahead():
    read = []

    def reading():
        for request in range(6):
            read.append(request)
            yield single_pass(request, 1, 0)

    together = batched(reading(), 2)
    next(together)

    assert read == [0, 1, 2]  # 2 shows that request 1 has ended


@given(traces(), sizes)
def test_memory_holds_the_largest_pass_of_a_batch_and_the_longest_prefix_for_each(trace, size):
    block = trace.meta.model.block_length
    longest = max(one.tokens + one.context for one in trace)

    plan = extent(trace, Window.BLOCK, batch=size)
    whole = extent(trace, Window.FULL, batch=size)

    for one in batched(alone(trace), size):
        assert one.tokens <= plan.tokens
        assert one.tokens + one.context <= plan.cached
        assert one.kind is not Kind.DENOISE or one.tokens <= plan.decoded
    assert (plan.decoded, plan.cached) == (size * block, size * max(longest, block))
    assert whole.tokens == whole.decoded == size * max(longest, block)
    if size == 1:
        assert plan == extent(trace, Window.BLOCK)


@given(model_specs(), st.integers(1, 64), st.lists(st.integers(0, 999), min_size=1, max_size=6))
def test_attention_of_a_batch_has_the_flops_of_its_requests(spec, tokens, contexts):
    """Each request attends to its own keys: equal tokens, contexts of any length.

    Bytes differ by the weights, which a batch reads once.
    """
    requests = len(contexts)
    apart = [attention_work(spec, tokens, context) for context in contexts]

    work = attention_work(spec, requests * tokens, sum(contexts), requests=requests)

    assert work.flops == pytest.approx(sum(one.flops for one in apart), rel=1e-12)
    weights = (requests - 1) * spec.attention_params * spec.dtype_bytes
    assert work.num_bytes + weights == sum(one.num_bytes for one in apart)
    assert work.kernels == apart[0].kernels


def test_attention_of_a_batch_takes_less_than_its_requests_apart_and_more_than_one():
    latency = Latency(load_profile("a100-40gb-pcie4-xeon48"), small_model(), engine=TIDESIM.name)

    one, both = latency.attention_s(32, 500), latency.attention_s(64, 1000, requests=2)

    assert one < both < 2 * one
    assert both < latency.attention_s(64, 1000)  # one request's tokens attend to all keys
