"""Offloading changes nothing: tokens and logits are those of the run without it, bit by bit.

Every freed slot is filled with NaN, so that a stale one cannot pass for the expert it held.
"""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidesim.engines import ENGINES, Promotion
from tidesim.hardware import load_profile
from tidesim.latency import Latency
from tidesim.placement import Setup, replay
from tidesim.policies import POLICIES, make_policy
from tidesim.policies.scheduled import Scheduled
from tidesim.records import check, operation_of
from tidesim.runtime.backends import make_backend
from tidesim.runtime.capture import to_pass
from tidesim.runtime.checkpoint import load_model
from tidesim.runtime.decode import DecodeSettings, decode
from tidesim.runtime.offloading import make_offload
from tidesim.schedule import LayerSchedule
from tidesim.trace.passes import RequestInfo, Trace, TraceMeta
from tidesim.trace.windows import windowed

GOLDEN = str(Path(__file__).parent / "golden" / "llada2-a")
PROMPTS = {GOLDEN: [7, 21, 3, 90, 45], "tide-tiny": [12, 345, 67, 890] * 9}
SETTINGS = {
    GOLDEN: {"gen_length": 70, "threshold": 0.06, "mask_id": 500, "eos_id": 501},
    "tide-tiny": {"gen_length": 40, "threshold": 0.7, "temperature": 1.0, "seed": 3},
}
PROFILE = "a100-40gb-pcie4-xeon48"
OBEYED = [name for name in POLICIES if name != "full-knowledge"]


@dataclass(frozen=True, eq=False)
class Resident:
    """A run without offloading, on one thread as the backend's workers use."""

    model: torch.nn.Module
    tokens: list[int]
    logits: list[torch.Tensor]
    trace: Trace


@cache
def resident(checkpoint, dtype, window):
    model, events = load_model(checkpoint, dtype=dtype), []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokens, logits = decoded(model, checkpoint, window, observe=events.append)
    finally:
        torch.set_num_threads(before)
    passes = [to_pass(event, model.spec, request=0) for event in events]
    info = RequestInfo(request=0, prompt_tokens=1, generated_tokens=1)
    meta = TraceMeta(model=model.spec, provenance="captured", requests=(info,))
    return Resident(model, tokens, logits, Trace(meta, passes))


def decoded(model, checkpoint, window, **how):
    """Return the tokens, and the logits of every pass that computes some."""
    logits = []
    hook = model.lm_head.register_forward_hook(lambda _m, _x, y: logits.append(y.clone()))
    settings_ = DecodeSettings(window=window, **SETTINGS[checkpoint])
    result = decode(model, PROMPTS[checkpoint], settings_, **how)
    hook.remove()
    return result.tokens, logits


def setup_for(run, engine, **changes):
    spec = run.model.spec
    shape = (spec.moe_layers, spec.num_experts)
    return Setup(
        num_experts=spec.num_experts,
        layers=spec.moe_layers,
        popularity=np.random.default_rng(0).random(shape),
        engine=engine,
        latency=Latency(load_profile(PROFILE), spec, engine=engine.name),
        future=lambda: windowed(run.trace, engine.window),
        **changes,
    )


def offloaded(run, checkpoint, policy, setup, *, backend=None):
    """Decode with offloading; return tokens, logits, the runtime's counters and records."""
    with backend or make_backend("cpu") as there:
        made = make_policy(policy, setup=setup) if isinstance(policy, str) else policy(setup)
        offload = make_offload(run.model, made, setup, there, stale=fill_with_nan)
        offload.attach()
        try:
            tokens, logits = decoded(run.model, checkpoint, setup.engine.window, frame=offload)
            offload.finish()
        finally:
            offload.detach()
        return tokens, logits, offload.tally.counters(), there.recorder.take()


def fill_with_nan(weights):
    weights.fill_(torch.nan)


PURPOSES = {
    "promote": "promotions", "stream": "streams", "result": "results",
    "ids": "ids", "hidden": "hidden", "write back": "write_backs",
}  # fmt: skip


def copied_bytes(records):
    """Add up what the copies themselves say they moved; first residents are not counted."""
    totals = dict.fromkeys(PURPOSES.values(), 0)
    for row in records:
        if purpose := PURPOSES.get(operation_of(row.label)):
            totals[purpose] += row.num_bytes
    return totals


def counted_bytes(counters):
    return {**counters.h2d_bytes_by_purpose, **counters.d2h_bytes_by_purpose}


def promotions_of(policy):
    own = POLICIES[policy].promotions
    return st.sampled_from(own)


@st.composite
def cases(draw):
    checkpoint = draw(st.sampled_from(list(PROMPTS)))
    engine = ENGINES[draw(st.sampled_from(list(ENGINES)))]
    policy = draw(st.sampled_from(OBEYED))
    run = resident(checkpoint, draw(st.sampled_from(["float32", "bfloat16"])), engine.window)
    least, most = run.model.spec.num_experts_per_tok, run.model.spec.num_experts
    budget = draw(st.integers(least, most))
    setup = setup_for(
        run,
        engine,
        budget=budget,
        interval=draw(st.integers(1, 9)),
        promotion=draw(promotions_of(policy)),
    )
    return run, checkpoint, policy, setup


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_tokens_and_logits_are_those_without_offloading_bit_by_bit(case):
    run, checkpoint, policy, setup = case

    tokens, logits, counters, records = offloaded(run, checkpoint, policy, setup)

    assert tokens == run.tokens
    assert len(logits) == len(run.logits)
    assert all(torch.equal(*pair) for pair in zip(logits, run.logits, strict=True))
    pairs = sum(int(p.counts.sum()) for p in windowed(run.trace, setup.engine.window))
    assert counters.hits + counters.misses == pairs
    check(records, tolerance_s=1e-9)
    assert copied_bytes(records) == counted_bytes(counters)


@st.composite
def scheduled(draw):
    """Draw layers of all kinds: never refreshed or late, limited, with residents of their own."""
    checkpoint = draw(st.sampled_from(list(PROMPTS)))
    engine = ENGINES[draw(st.sampled_from(list(ENGINES)))]
    run = resident(checkpoint, "bfloat16", engine.window)
    spec = run.model.spec
    least, most = spec.num_experts_per_tok, spec.num_experts
    layers = []
    for _ in range(spec.moe_layers):
        budget = draw(st.integers(least, most))
        layers.append(
            LayerSchedule(
                budget=budget,
                refresh_steps=sorted(draw(st.sets(st.integers(0, 6), max_size=4))),
                most_promotions=draw(st.none() | st.integers(1, 4)),
                initial=draw(
                    st.none() | st.sets(st.integers(0, most - 1), max_size=budget).map(sorted)
                ),
            )
        )
    promotion = draw(promotions_of("tide"))
    setup = setup_for(run, engine, budget=most, interval=None, promotion=promotion)
    return run, checkpoint, partial(Scheduled, layers=layers), setup


def placed_counts(run, make, setup):
    """Return what a replay of the placement counts."""
    total = dict.fromkeys(("hits", "misses", "promotions", "evictions", "refreshes"), 0)
    for one in replay(windowed(run.trace, setup.engine.window), make(setup), setup):
        total["hits"] += int(one.hits.sum())
        total["misses"] += int(one.misses.sum())
        for decision in one.decisions:
            total["promotions"] += len(decision.promote)
            total["evictions"] += len(decision.evict)
            total["refreshes"] += decision.refresh
    return total


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(case=scheduled())
def test_schedules_of_every_kind_are_obeyed_to_the_unit_and_change_nothing(case):
    run, checkpoint, make, setup = case

    tokens, logits, counters, records = offloaded(run, checkpoint, make, setup)

    assert tokens == run.tokens
    assert all(torch.equal(*pair) for pair in zip(logits, run.logits, strict=True))
    for name, value in placed_counts(run, make, setup).items():
        assert getattr(counters, name) == value, name
    check(records, tolerance_s=1e-9)
    assert copied_bytes(records) == counted_bytes(counters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("promotion", list(Promotion))
@pytest.mark.parametrize("checkpoint", list(PROMPTS))
def test_tide_promotes_and_stays_lossless_in_both_modes(checkpoint, promotion, dtype):
    engine = ENGINES["tidesim"]
    run = resident(checkpoint, dtype, engine.window)
    setup = setup_for(run, engine, budget=12, interval=2, promotion=promotion)

    tokens, logits, counters, _ = offloaded(run, checkpoint, "tide", setup)

    assert counters.promotions == counters.evictions > 20
    assert counters.hits > counters.misses > 0
    assert tokens == run.tokens
    assert all(torch.equal(*pair) for pair in zip(logits, run.logits, strict=True))


def test_several_cpu_workers_and_a_paced_link_change_no_bit():
    engine = ENGINES["tidesim"]
    run = resident("tide-tiny", "bfloat16", engine.window)
    setup = setup_for(run, engine, budget=8, interval=3)
    backend = make_backend("cpu", cpu_workers=3, link_bytes_per_s=2e9)

    tokens, logits, _, _ = offloaded(run, "tide-tiny", "tide", setup, backend=backend)

    assert tokens == run.tokens
    assert all(torch.equal(*pair) for pair in zip(logits, run.logits, strict=True))


def test_a_stale_slot_would_be_seen():
    """The check has teeth: an expert left in a slot that was filled with NaN spoils the logits."""
    engine = ENGINES["tidesim"]
    run = resident("tide-tiny", "bfloat16", engine.window)
    setup = setup_for(run, engine, budget=32)
    with make_backend("cpu") as backend:
        policy = make_policy("static-frequency", setup=setup)
        offload = make_offload(run.model, policy, setup, backend)
        fill_with_nan(offload._slots[0].weights)
        offload.attach()
        try:
            with pytest.raises(Exception, match="computes NaN"):
                decoded(run.model, "tide-tiny", engine.window, frame=offload)
        finally:
            offload.detach()
