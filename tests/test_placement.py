"""Placement from routing alone: the published counters, and what holds for every policy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import FakeLatency, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from strategies import traces

from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.placement import Decision, Setup, popularity, replay
from tidesim.policies import POLICIES, make_policy
from tidesim.policies.base import PolicyBase
from tidesim.trace.passes import Kind, Window, WindowedPass
from tidesim.trace.windows import windowed

GOLDEN = Path(__file__).parent / "golden" / "llada2-a" / "golden.safetensors"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def golden_passes(golden):
    blocks, steps = golden["generate.block"].tolist(), golden["generate.step"].tolist()
    for counts, block, step in zip(golden["generate.window_counts"], blocks, steps, strict=True):
        yield WindowedPass(
            request=0,
            block=block,
            generated_block=block - blocks[0],
            step=step,
            kind=Kind.DENOISE,
            tokens=int(counts[0].sum()) // 4,
            context=0,
            counts=counts.astype(np.int64),
        )


@pytest.mark.parametrize(("budget", "interval"), [(8, 1), (8, 4), (12, 7), (16, 2)])
def test_the_reference_engine_places_as_the_published_code(golden, budget, interval):
    setup = Setup(
        num_experts=32,
        layers=3,
        budget=budget,
        popularity=np.zeros((3, 32)),
        engine=TIDE_REFERENCE,
        interval=interval,
    )

    placed = list(replay(golden_passes(golden), make_policy("tide", setup=setup), setup))

    counters = {
        "refresh": [any(layer.refresh for layer in one.layers) for one in placed],
        "promotions": [[len(layer.promoted) for layer in one.layers] for one in placed],
        "demotions": [[len(layer.evicted) for layer in one.layers] for one in placed],
        "gpu_tokens": [[layer.gpu_tokens.sum() for layer in one.layers] for one in placed],
        "cpu_tokens": [[layer.cpu_tokens.sum() for layer in one.layers] for one in placed],
        "resident": [[layer.resident for layer in one.layers] for one in placed],
    }
    for name, counted in counters.items():
        expected = golden[f"offload.budget{budget}.interval{interval}.{name}"]
        assert np.array_equal(counted, expected), name
    for one in placed:  # the companion invariants of a golden file
        assert np.array_equal(one.hits + one.misses, one.pass_.counts)
        assert np.all(one.resident.sum(axis=1) == budget)


@st.composite
def setups(draw, trace):
    """Draw a setup that every policy can be made with, its promotion left to the policy."""
    model = trace.meta.model
    return Setup(
        num_experts=model.num_experts,
        layers=model.moe_layers,
        budget=draw(st.integers(model.num_experts_per_tok, model.num_experts)),
        popularity=popularity(trace) + 1.0,
        engine=draw(st.sampled_from([TIDESIM, TIDE_REFERENCE])),
        latency=FakeLatency(expert_copy=draw(st.sampled_from([1.0, 99.0]))),
        interval=draw(st.integers(1, 4)),
        future=lambda: windowed(trace, Window.BLOCK),
    )


EVERY_POLICY = [(name, each) for name, make in POLICIES.items() for each in make.promotions]


@given(traces(), st.sampled_from(EVERY_POLICY), st.data())
def test_every_policy_keeps_the_rules_of_residency(trace, policy, data):
    name, promotion = policy
    setup = replace(data.draw(setups(trace)), promotion=promotion)
    made = make_policy(name, setup=setup)
    passes = list(windowed(trace, Window.BLOCK))

    placed = list(replay(passes, made, setup))

    assert [one.pass_ for one in placed] == passes
    budgets, before = made.budgets(setup), made.initial(setup)
    for one in placed:
        assert np.array_equal(one.hits + one.misses, one.pass_.counts)
        assert np.array_equal(one.gpu_tokens + one.cpu_tokens, one.pass_.counts)
        assert np.all(one.resident.sum(axis=1) <= budgets)
        after = moved(before, one.decisions)
        assert np.array_equal(one.resident, before if promotion == "background" else after)
        for layer, row in enumerate(one.layers):
            assert not after[layer][list(row.evicted)].any()
            assert after[layer][list(row.promoted)].all()
            assert one.gpu_load.experts[layer] == np.count_nonzero(row.gpu_tokens)
            assert one.cpu_load.pairs[layer] == row.cpu_tokens.sum()
        before = after


def moved(resident, decisions):
    """Return the residents after decisions, [L, E]."""
    after = resident.copy()
    for row, decision in zip(after, decisions, strict=True):
        row[list(decision.evict)] = False
        row[list(decision.promote)] = True
    return after


SPARES_WHAT_IS_IN_USE = (
    "lru",
    "lfu",
    "mixtral-offload-lru",
    "hybrimoe",
    "dali",
    "q-split",
    "belady",
)


@given(traces(), st.sampled_from(SPARES_WHAT_IS_IN_USE), st.data())
def test_caches_never_evict_an_expert_that_the_pass_needs(trace, name, data):
    setup = data.draw(setups(trace))

    for one in replay(windowed(trace, Window.BLOCK), make_policy(name, setup=setup), setup):
        for counts, decision in zip(one.pass_.counts, one.decisions, strict=True):
            assert not counts[list(decision.evict)].any()


class Scripted(PolicyBase):
    """Decides what a test says."""

    name = "scripted"

    def __init__(self, setup, decision):
        super().__init__(setup)
        self.decision = decision

    def decide(self, view):
        return self.decision


@pytest.mark.parametrize(
    ("decision", "rule"),
    [
        (Decision(evict=(2,)), "evicted expert 2 is not resident"),
        (Decision(promote=(0,)), "copied expert 0 is already resident"),
        (Decision(stream=(0,)), "copied expert 0 is already resident"),
        (Decision(promote=(1,)), "2 residents exceed budget 1"),
        (Decision(promote=(1, 1), evict=(0,)), r"named twice in \(1, 1\)"),
        (Decision(promote=(1,), stream=(1,), evict=(0,)), "named twice"),
        (Decision(evict=(0, 0)), "named twice"),
        (Decision(stream=(1,), free=True), "only promotions may be free"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_stopped(decision, rule):
    setup = Setup(num_experts=3, layers=1, budget=1, popularity=np.zeros((1, 3)), engine=TIDESIM)
    trace = steps_trace(small_spec(), [[[1, 1, 1]]])

    with pytest.raises(AssertionError, match=rule):
        list(replay(windowed(trace, Window.BLOCK), Scripted(setup, decision), setup))


def test_streamed_experts_are_misses_that_the_gpu_computes():
    setup = Setup(num_experts=3, layers=1, budget=1, popularity=np.zeros((1, 3)), engine=TIDESIM)
    trace = steps_trace(small_spec(), [[[3, 4, 5]]])
    policy = Scripted(setup, Decision(stream=(2,)))

    (one,) = replay(windowed(trace, Window.BLOCK), policy, setup)

    (row,) = one.layers
    assert row.hits.tolist() == [3, 0, 0]
    assert row.misses.tolist() == [0, 4, 5]
    assert row.gpu_tokens.tolist() == [3, 0, 5]
    assert row.cpu_tokens.tolist() == [0, 4, 0]
    assert row.resident.tolist() == [True, False, False]
    assert row.streamed == (2,)


def test_popularity_is_what_the_window_computes():
    counts = [[[1, 1, 1]], [[3, 0, 0]]]
    trace = steps_trace(small_spec(), counts, steps_per_block=1, commits=True)

    assert popularity(trace).tolist() == [[8, 2, 2]]
    assert popularity(trace, window=Window.FULL).tolist() == [[1 + 1 + 3, 2, 2]]
