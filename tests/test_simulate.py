"""The simulator: whole timelines of small cases, hand formulas, and checks on every run."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simpy
from builders import (
    FakeLatency,
    abilities,
    assert_same_run,
    case_of,
    check_run,
    small_spec,
    steps_trace,
    timeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from strategies_hardware import profiles

from tidesim.engines import TIDE_REFERENCE, TIDESIM, Promotion
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import load_profile
from tidesim.latency import Contention, Duplex, Latency
from tidesim.model_spec import MODELS
from tidesim.placement import popularity
from tidesim.policies import POLICIES
from tidesim.records import Resource
from tidesim.simulate import prepare, run, simulate, sized_spec
from tidesim.simulate.lanes import HostMemory, Job, SharedLane, SteadyLane
from tidesim.simulate.operations import Place, single
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta, Window

A100 = load_profile("a100-40gb-pcie4-xeon48")
PAGEABLE = replace(TIDESIM, pinned=False)
NO_CONTENTION = Contention(cpu_factor=1.0, h2d_factor=1.0, d2h_factor=1.0)
HALVES = Contention(cpu_factor=0.5, h2d_factor=0.5, d2h_factor=0.5)


def test_timeline_of_a_layer_with_a_hit_a_miss_and_a_promotion():
    """Expert 1 replaces 0 and serves on the GPU after its copy, while the CPU serves expert 2."""
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])

    result = check_run(case_of(trace, latency=FakeLatency()))

    assert timeline(result) == [
        ("gpu", 0, 4, "attention"),
        ("gpu", 4, 5, "router"),
        ("d2h", 5, 6, "ids"),
        ("host", 6, 7, "sync"),
        ("host", 7, 8, "decide"),
        ("gpu", 8, 10, "shared"),
        ("h2d", 8, 16, "promote 1"),
        ("d2h", 8, 9, "hidden"),
        ("cpu", 9, 25, "experts cpu (1)"),
        ("gpu", 16, 19, "experts gpu (1)"),
        ("h2d", 25, 26, "result"),
        ("gpu", 26, 27, "combine"),
        ("gpu", 27, 29, "head"),
        ("host", 29, 30, "sync"),
    ]
    assert (result.hits, result.misses, result.promotions, result.evictions) == (2, 1, 1, 1)
    waited = {name: share * 30 for name, share in result.waited.items()}
    assert waited == pytest.approx({"gpu": 4 + 1 + 2 + 3 + 1 + 2, "link": 6, "cpu": 7, "host": 4})
    assert result.bottleneck == "gpu"


def test_timeline_with_contention_slows_cpu_and_copy_only_while_both_run():
    """The copy does 1 s of work alone, 7 in 14 s beside the CPU; the CPU then has 9 s left."""
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])

    result = check_run(case_of(trace, latency=FakeLatency(contention=HALVES)))

    assert timeline(result)[5:] == [
        ("gpu", 8, 10, "shared"),
        ("h2d", 8, 23, "promote 1"),
        ("d2h", 8, 9, "hidden"),
        ("cpu", 9, 32, "experts cpu (1)"),
        ("gpu", 23, 26, "experts gpu (1)"),
        ("h2d", 32, 33, "result"),
        ("gpu", 33, 34, "combine"),
        ("gpu", 34, 36, "head"),
        ("host", 36, 37, "sync"),
    ]


def test_timeline_of_two_promotions_under_duplex_and_a_result_queued_behind_them():
    """Both directions keep half their rate for 2 s: the first copy ends 1 s late."""
    spec = small_spec(num_experts=4)
    trace = steps_trace(spec, [[[0, 1, 1, 1]]])
    machine = FakeLatency(cpu_experts=2.0, duplex=Duplex(h2d_factor=0.5, d2h_factor=0.5))

    result = check_run(case_of(trace, budget=2, latency=machine))

    assert timeline(result)[5:-3] == [
        ("gpu", 8, 10, "shared"),
        ("h2d", 8, 17, "promote 2"),
        ("d2h", 8, 10, "hidden"),
        ("cpu", 10, 12, "experts cpu (1)"),
        ("gpu", 17, 20, "experts gpu (2)"),
        ("h2d", 17, 18, "result"),
    ]


def test_timeline_of_a_dense_and_two_mixture_layers_without_misses():
    spec = small_spec(num_hidden_layers=3, first_k_dense_replace=1, num_shared_experts=0)
    trace = steps_trace(spec, [[[3, 0, 0], [0, 0, 3]]], commits=True)
    machine = FakeLatency(shared=0.0)

    result = check_run(case_of(trace, policy="all-gpu", latency=machine))

    layer = [("gpu", 4, "attention"), ("gpu", 1, "router"), ("d2h", 1, "ids")]
    layer += [("host", 1, "sync"), ("host", 1, "decide")]
    layer += [("gpu", 3, "experts gpu (1)"), ("gpu", 1, "combine")]
    commit = [("gpu", 4, "attention"), ("gpu", 3, "dense MLP"), *layer, *layer]
    steps = [*commit, ("gpu", 2, "head"), ("host", 1, "sync"), *commit, ("host", 1, "sync")]
    ends = np.cumsum([seconds for _, seconds, _ in steps]).tolist()
    expected = [
        (resource, end - seconds, end, label)
        for (resource, seconds, label), end in zip(steps, ends, strict=True)
    ]
    assert timeline(result) == expected
    assert [row.layer for row in result.records if row.label == "attention"] == [0, 1, 2] * 2
    assert [row.step for row in result.records if row.label == "router"] == [0, 0, 1, 1]
    assert (result.steps, result.passes, result.blocks) == (1, 2, 1)
    assert result.pass_s.tolist() == [34, 32]


def test_timeline_of_the_reference_engine_is_serial_with_every_copy():
    trace = steps_trace(small_spec(), [[[0, 2, 1]]])

    result = check_run(case_of(trace, engine=TIDE_REFERENCE))

    assert timeline(result) == [
        ("gpu", 0, 4, "attention"),
        ("gpu", 4, 5, "router"),
        ("host", 5, 6, "sync"),
        ("host", 6, 7, "decide"),
        ("d2h", 7, 31, "write back 0"),
        ("h2d", 31, 55, "promote 1"),
        ("gpu", 55, 57, "expert 1 gpu"),
        ("d2h", 57, 58, "hidden 2"),
        ("cpu", 58, 66, "expert 2 cpu"),
        ("h2d", 66, 67, "result 2"),
        ("gpu", 67, 69, "shared"),
        ("gpu", 69, 70, "combine"),
        ("gpu", 70, 72, "head"),
        ("host", 72, 73, "sync"),
    ]
    assert result.bottleneck == "link"
    assert (result.exposed_copy_s, result.exposed_cpu_s) == pytest.approx((48, 10))


def test_timeline_of_streamed_experts_ends_before_the_gpu_computes_them():
    trace = steps_trace(small_spec(), [[[1, 1, 1]]])
    machine = FakeLatency(cpu_experts=99.0, cpu_expert=99.0)
    fiddler = {"policy": "fiddler", "popularity": [[9, 0, 0]], "latency": machine}

    ours = check_run(case_of(trace, **fiddler))
    theirs = check_run(case_of(trace, **fiddler, engine=TIDE_REFERENCE))

    assert timeline(ours)[5:9] == [
        ("gpu", 8, 10, "shared"),
        ("h2d", 8, 16, "stream 1"),
        ("h2d", 16, 24, "stream 2"),
        ("gpu", 24, 27, "experts gpu (3)"),
    ]
    assert timeline(theirs)[4:9] == [
        ("gpu", 7, 9, "expert 0 gpu"),
        ("h2d", 9, 33, "stream 1"),
        ("gpu", 33, 35, "expert 1 gpu"),
        ("h2d", 35, 59, "stream 2"),
        ("gpu", 59, 61, "expert 2 gpu"),
    ]
    assert (ours.streams, ours.misses, ours.h2d_bytes_by_purpose["results"]) == (2, 2, 0)


def test_engines_may_give_up_their_costs_one_by_one():
    """Each cost of the reference engine that is removed alone makes this run no slower."""
    trace = steps_trace(small_spec(num_experts=4), [[[0, 2, 1, 1]], [[2, 1, 1, 0]]])
    removed = [
        {},
        {"write_back": False},
        {"copies_per_expert": 1},
        {"looped": False},
        {"overlap": True},
        {"looped": False, "overlap": True},
    ]

    machine = FakeLatency(cpu_experts=8.0, gpu_experts=2.0)

    engines = [replace(TIDE_REFERENCE, **change) for change in removed]
    seconds = [
        check_run(case_of(trace, budget=2, engine=engine, latency=machine)).seconds
        for engine in engines
    ]

    assert all(faster <= seconds[0] for faster in seconds[1:])
    assert seconds[-1] < min(seconds[3:5])


durations = st.floats(1e-6, 1e3)
machines = st.fixed_dictionaries(
    dict.fromkeys(
        (
            *("attention", "router", "shared", "combine", "head", "gpu_experts", "cpu_experts"),
            *("copy", "expert_copy", "sync_s", "decide_s"),
        ),
        durations,
    )
)


@given(machines, st.lists(st.integers(0, 9), min_size=5, max_size=5), st.integers(1, 5))
def test_one_layer_takes_what_a_hand_formula_says(machine, counts, budget):
    """The GPU waits for the promotions, the result for both the CPU and the promotions."""
    trace = steps_trace(small_spec(num_experts=5, block_length=9), [[counts]])

    result = check_run(case_of(trace, budget=budget, latency=FakeLatency(**machine)))

    t = FakeLatency(**machine)
    landed = result.promotions * t.expert_copy
    gpu = max(t.shared, landed) + t.gpu_experts * bool(result.hits)
    cpu = (max(t.copy + t.cpu_experts, landed) + t.copy) * bool(result.misses)
    before = t.attention + t.router + t.copy + t.sync_s + t.decide_s
    after = t.combine + t.head + t.sync_s
    assert result.seconds == pytest.approx(before + max(gpu, cpu) + after, rel=1e-9)


@st.composite
def cases(draw, *, promotions=tuple(Promotion)):
    trace = draw(traces())
    model = trace.meta.model
    engine = draw(st.sampled_from([TIDESIM, TIDE_REFERENCE, PAGEABLE]))
    if draw(st.booleans()):
        engine = replace(engine, **{draw(st.sampled_from(_FLAGS)): True})
    engine = replace(engine, window=Window.BLOCK)  # a drawn trace may lack a commit pass
    able = [(name, own) for name, own in abilities(engine) if own in promotions]
    policy, promotion = draw(st.sampled_from(able))
    return case_of(
        trace,
        policy=policy,
        budget=draw(st.integers(model.num_experts_per_tok, model.num_experts)),
        interval=draw(st.integers(1, 4)),
        engine=engine,
        latency=Latency(draw(profiles()), model, engine=engine.name),
        popularity=popularity(trace) + 1,
        promotion=promotion,
        batch=draw(st.integers(1, 3)),
    )


_FLAGS = ("pinned", "write_back", "looped", "overlap")


@settings(max_examples=100)
@given(cases())
def test_every_run_keeps_the_invariants(case):
    result = check_run(case)

    assert_same_run(run(case), result)


@settings(max_examples=30)
@given(cases(promotions=(Promotion.BLOCKING,)))
def test_contention_never_makes_a_run_faster(case):
    """In the background it may: a copy that ends later lets a result pass the next copy."""
    keys = ("contention.cpu_factor", "contention.h2d_factor", "contention.d2h_factor")
    duplex = ("link.h2d_duplex_factor", "link.d2h_duplex_factor")
    freed = case.latency.profile.with_overrides(dict.fromkeys(keys + duplex, 1.0))
    latency = Latency(freed, case.spec, engine=case.setup.engine.name)

    alone = run(replace(case, latency=latency))

    assert alone.seconds <= run(case).seconds * (1 + 1e-9)


def lanes_of(env, contention=HALVES, duplex=None):
    names = (Resource.CPU, Resource.H2D, Resource.D2H)
    lanes = [SharedLane(env, name) for name in names]
    duplex = duplex or Duplex(h2d_factor=1.0, d2h_factor=1.0)
    HostMemory(*lanes, contention=contention, duplex=duplex)
    return lanes


@pytest.fixture
def env():
    return simpy.Environment(initial_time=0.0)


@pytest.fixture
def log():
    return []


def submit(env, log, lane, name, *, at, seconds):
    """Queue work on a lane at a time; log its name and end."""

    def arrive():
        yield env.timeout(at)
        job = Job([(lane, single(name, seconds, 0))], Place(0, 0, 0), env)
        lane.enter(job)
        yield job.done
        log.append((name, env.now))

    env.process(arrive())


def test_rates_change_while_cpu_and_copies_run(env, log):
    """A long CPU operation runs beside two copies: alone from 2 to 4 and from 10 on."""
    cpu, h2d, _ = lanes_of(env)
    submit(env, log, cpu, "cpu", at=0, seconds=7)
    submit(env, log, h2d, "first", at=0, seconds=1)
    submit(env, log, h2d, "second", at=4, seconds=3)

    env.run()

    assert log == [("first", 2), ("second", 10), ("cpu", 11)]
    assert (cpu.busy_s, h2d.busy_s) == (11, 8)


def test_the_tighter_of_contention_and_duplex_sets_a_copys_rate(env, log):
    cpu, h2d, d2h = lanes_of(env, duplex=Duplex(h2d_factor=0.25, d2h_factor=1.0))
    submit(env, log, cpu, "cpu", at=0, seconds=8)
    submit(env, log, h2d, "up", at=0, seconds=4)
    submit(env, log, d2h, "down", at=0, seconds=2)

    env.run()

    # until 4 all at once: cpu 1/2, up 1/4, down 1/2; then cpu and up at 1/2; up ends at 10
    assert log == [("down", 4), ("up", 10), ("cpu", 13)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9))
def test_lanes_serve_in_order_of_arrival(jobs):
    """Lindley's recursion: a job starts when it has arrived and the job before it has ended."""
    ends, free = [], 0
    for number, (at, seconds) in sorted(enumerate(jobs), key=lambda job: job[1][0]):
        free = max(free, at) + seconds
        ends.append((number, free))

    for kind in (SteadyLane, SharedLane):
        env, log = simpy.Environment(initial_time=0.0), []
        lane = kind(env, Resource.GPU)
        for number, (at, seconds) in enumerate(jobs):
            submit(env, log, lane, number, at=at, seconds=seconds)
        env.run()

        assert sorted(log) == sorted(ends)
        assert lane.busy_s == sum(seconds for _, seconds in jobs)


def test_a_lane_with_two_slots_serves_two_at_a_time(env, log):
    lane = SharedLane(env, Resource.CPU, slots=2)
    for name, seconds in (("a", 4), ("b", 1), ("c", 2), ("d", 2)):
        submit(env, log, lane, name, at=0, seconds=seconds)

    env.run()

    assert log == [("b", 1), ("c", 3), ("a", 4), ("d", 5)]


def mini_trace(*, blocks=2, generated=0, flags=False, requests=1):
    """Return requests that route 32 tokens as LLaDA2.0-mini does, nearly the same every step."""
    spec, rng, tokens = MODELS["llada2.0-mini"], np.random.default_rng(3), 32
    shape = (blocks, spec.moe_layers, tokens, spec.num_experts)
    order = np.argsort(rng.random(shape), axis=-1).astype(np.uint16)
    passes = [
        Pass(
            request=request,
            block=block,
            step=step,
            kind=Kind.DENOISE if step < 3 else Kind.COMMIT,
            tokens=tokens,
            context=block * tokens,
            committed=np.arange(tokens) % 4 == step if flags else None,
            experts=order[block, ..., step + request : step + request + 8],
        )
        for request in range(requests)
        for block in range(blocks)
        for step in range(4)
    ]
    infos = tuple(
        RequestInfo(request=request, prompt_tokens=0, generated_tokens=generated)
        for request in range(requests)
    )
    return Trace(TraceMeta(model=spec, provenance="synthetic", requests=infos), passes)


@pytest.mark.parametrize(
    ("known", "tokens"),
    [({"generated": 50}, 50), ({"flags": True}, 2 * 24), ({}, 2 * 32)],
)
def test_tokens_are_generated_else_committed_else_whole_blocks(known, tokens):
    result = simulate(mini_trace(**known), A100, policy="all-gpu")

    assert (result.tokens, result.blocks, result.steps, result.passes) == (tokens, 2, 6, 8)
    assert result.tokens_per_s == tokens / result.seconds
    assert result.seconds_per_block == result.seconds / 2


def test_a_known_machine_is_simulated_end_to_end():
    """Every policy between the bounds it must lie between; times as the machine's rates say."""
    trace = mini_trace()
    common = {"budget": 64, "interval": 2, "popularity_from": trace}

    found = {name: simulate(trace, A100, policy=name, **common) for name in POLICIES}

    best, worst = found["all-gpu"].seconds, found["all-cpu"].seconds
    assert all(best <= result.seconds for result in found.values())
    assert found["tide"].seconds < worst
    assert found["tide"].promotions < found["mixtral-offload"].promotions
    assert found["tide"].budgets == (64,) * 19
    assert found["tide"].memory.slots_bytes == 19 * 64 * 6_291_456
    assert sum(found["static-frequency"].budgets) == 19 * 64
    assert found["all-cpu"].bottleneck == "cpu"
    assert found["tide"].provenance == "synthetic"
    assert found["tide"].trained_on == (0,)
    assert found["tide"].sizes == "llada2.0-mini"


def test_a_result_is_json_with_stable_keys():
    result = simulate(mini_trace(blocks=1), A100, policy="tide", budget=64, interval=1)

    content = json.loads(json.dumps(result.to_json(), allow_nan=False))

    assert content["step_ms"].keys() == {"p50", "p90", "p99"}
    assert content["busy"].keys() == {"gpu", "h2d", "d2h", "cpu", "host"}
    needed = "tokens_per_s seconds steps hit_rate promotions h2d_bytes d2h_bytes busy bottleneck"
    assert set(needed.split()) <= content.keys()
    assert content["memory"]["total_bytes"] == result.memory.total_bytes


def test_one_models_routing_drives_anothers_sizes():
    spec = small_spec(num_hidden_layers=4, first_k_dense_replace=2, num_experts=12, n_group=4)
    trace = steps_trace(spec.model_copy(update={"topk_group": 4}), np.ones((2, 2, 12)))

    result = simulate(
        trace, A100, policy="tide", budget=3, interval=1, sizes=MODELS["llada2.0-flash"]
    )

    assert result.sizes == (
        "routing of small (2 mixture layers, 12 experts, top-1) at the sizes of llada2.0-flash"
    )
    assert result.h2d_bytes_by_purpose["promotions"] == result.promotions * 25_165_824
    driven = sized_spec(trace.meta.model, MODELS["llada2.0-flash"])
    assert (driven.num_hidden_layers, driven.moe_layers, driven.block_length) == (3, 2, 3)
    assert (driven.num_experts, driven.num_experts_per_tok, driven.hidden_size) == (12, 1, 4096)
    assert sized_spec(spec, None) is spec


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"policy": "tides", "budget": 64}, "policy 'tides' is not known"),
        ({"engine": "fast", "budget": 64}, "engine 'fast' is not known"),
        ({}, "give a budget or a memory size"),
        ({"budget": 64, "memory_bytes": 10**10}, "give one of them"),
        ({"budget": 7}, "budget is 7 but must be 8"),
        ({"budget": 257}, r"must be 8 \(one token's experts\) to 256"),
        ({"budget": 64, "interval": 0}, "interval is 0 but must be at least 1"),
        ({"budget": 64, "interval": None}, "give an interval"),
        ({"budget": 64, "policy": "fiddler"}, "give training requests"),
    ],
)
def test_settings_out_of_range_are_refused(options, sentence):
    with pytest.raises(SettingError, match=sentence):
        simulate(mini_trace(blocks=1), A100, **({"policy": "tide", "interval": 1} | options))


def test_training_requests_must_be_of_the_same_model():
    other = steps_trace(small_spec(), [[[1, 1, 1]]])
    with pytest.raises(SettingError, match="training requests of the same model"):
        prepare(mini_trace(blocks=1), A100, policy="fiddler", budget=64, popularity_from=other)


def test_a_trace_without_steps_or_layers_is_refused():
    empty = Trace(mini_trace().meta, [])
    with pytest.raises(SettingError, match="no denoise pass"):
        simulate(empty, A100, policy="all-cpu")
    dense = small_spec(first_k_dense_replace=1)
    with pytest.raises(SettingError, match="no mixture layers"):
        sized_spec(dense, None)


def test_times_too_long_to_add_up_are_refused():
    slow = A100.with_overrides({"gpu.launch_s": 1e308})

    with pytest.raises(SettingError, match="too long to add up; look for absurd rates"):
        simulate(mini_trace(blocks=1), slow, policy="all-gpu")


def test_the_reference_engine_keeps_a_tenth_of_the_memory_free():
    trace, memory_bytes = mini_trace(blocks=1), 3 * 10**10
    ours, theirs = (
        prepare(trace, A100, policy="tide", interval=1, memory_bytes=memory_bytes, engine=engine)
        for engine in ("tidesim", "tide-reference")
    )

    kept = (memory_bytes - theirs.memory.non_expert_bytes) / 10
    used = theirs.memory.total_bytes - theirs.memory.workspace_bytes
    assert used + kept <= memory_bytes < used + kept + 19 * 6_291_456
    assert theirs.setup.budget < ours.setup.budget


def test_memory_decides_the_budget_and_refuses_too_much():
    trace, common = mini_trace(blocks=1), {"policy": "tide", "interval": 1}
    rooms = {
        memory: prepare(trace, A100, **common, memory_bytes=memory) for memory in (10**10, 20**8)
    }
    for memory, case in rooms.items():
        assert case.memory.total_bytes <= memory < case.memory.total_bytes + 19 * 6_291_456
    with pytest.raises(
        CapacityError, match=r"3\.00 GB do not hold llada2.0-mini .* would do is 4\."
    ):
        prepare(trace, A100, **common, memory_bytes=3 * 10**9)
    with pytest.raises(CapacityError, match=r"0\.00 GB do not hold"):
        prepare(trace, A100, **common, memory_bytes=0)
    with pytest.raises(CapacityError, match=r"99\.00 GB are more than the"):
        prepare(trace, A100, **common, memory_bytes=99 * 10**9)


def test_a_budget_too_large_names_the_largest_that_fits():
    trace, common = mini_trace(blocks=1), {"policy": "tide", "interval": 1}
    small = A100.with_overrides({"gpu.memory_bytes": 16e9})
    fits = prepare(trace, small, **common, memory_bytes=16 * 10**9)

    with pytest.raises(CapacityError, match=f"of at most {fits.setup.budget}, or a machine"):
        prepare(trace, small, **common, budget=256)
    streams = prepare(
        trace, small, policy="fiddler", memory_bytes=16 * 10**9, popularity_from=trace
    )
    assert streams.setup.budget < fits.setup.budget
    assert streams.memory.scratch_bytes == (256 - streams.setup.budget) * 6_291_456
    assert prepare(trace, small, policy="all-gpu").memory.total_bytes > 16e9
    poor = A100.with_overrides({"cpu.memory_bytes": 16e9})
    with pytest.raises(CapacityError, match="of host memory"):
        prepare(trace, poor, **common, budget=64)


SCRIPT = """
import hashlib, json
from test_simulate import A100, TIDESIM, abilities, mini_trace, simulate
for policy, promotion in abilities(TIDESIM):
    for batch in (1, 2):
        trace = mini_trace(blocks=1, requests=batch)
        common = dict(budget=64, interval=2, popularity_from=trace, keep_records=True)
        result = simulate(trace, A100, policy=policy, promotion=promotion, batch=batch, **common)
        rows = [result.to_json(), list(result.records), result.counters, result.pass_s.tolist()]
        print(policy, promotion, batch, hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def test_two_processes_give_the_same_bytes():
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]

    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 2 * len(abilities(TIDESIM)) > 2 * len(POLICIES)


def test_a_batch_of_more_requests_than_there_are_is_refused():
    trace, common = mini_trace(blocks=1, requests=2), {"policy": "all-gpu"}

    assert prepare(trace, A100, **common, batch=2).batch == 2
    with pytest.raises(SettingError, match="batch is 3 but only 2 of the trace's requests"):
        prepare(trace, A100, **common, batch=3)
