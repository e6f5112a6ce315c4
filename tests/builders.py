"""Small models, traces and machines for tests of the simulator, and the checks every run passes."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, fields

import numpy as np
import pytest

from tidesim.critical_path import critical_path, path_seconds, resolution_s
from tidesim.engines import TIDESIM, Promotion
from tidesim.latency import Contention, Direction, Duplex
from tidesim.memory import MemoryPlan
from tidesim.model_spec import ModelSpec
from tidesim.placement import Setup
from tidesim.policies import POLICIES, get_policy
from tidesim.records import Resource, busy_s, check, operation_of
from tidesim.simulate import Case, run
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta
from tidesim.trace.windows import windowed

NO_MEMORY = MemoryPlan(
    non_expert_bytes=0, slots_bytes=0, scratch_bytes=0, kv_bytes=0, workspace_bytes=0
)


def small_spec(**sizes):
    """Return a model of one mixture layer of three experts, unless told otherwise."""
    usual = {
        "name": "small",
        "num_hidden_layers": 1,
        "first_k_dense_replace": 0,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 32,
        "moe_intermediate_size": 8,
        "num_experts": 3,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_shared_experts": 1,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-6,
        "routed_scaling_factor": 1.0,
        "mask_token_id": 63,
        "eos_token_id": 62,
        "block_length": 3,
    }
    return ModelSpec(**(usual | sizes))


def steps_trace(spec, counts, *, steps_per_block=None, generated=0, commits=False):
    """Return a trace of one request whose denoise passes have the given counts, [steps, L, E]."""
    per_block = steps_per_block or len(counts)
    passes = []
    for number, histogram in enumerate(np.array(counts, dtype=np.uint32)):
        block, step = divmod(number, per_block)
        common = {"request": 0, "block": block, "tokens": spec.block_length}
        common |= {"context": block * spec.block_length, "histogram": histogram}
        passes.append(Pass(kind=Kind.DENOISE, step=step, **common))
        if commits and step + 1 == per_block:
            passes.append(Pass(kind=Kind.COMMIT, step=step + 1, **common))
    info = RequestInfo(request=0, prompt_tokens=0, generated_tokens=generated)
    return Trace(TraceMeta(model=spec, provenance="synthetic", requests=(info,)), passes)


@dataclass(kw_only=True)
class FakeLatency:
    """Latency whose every piece takes a constant time, whatever its size."""

    attention: float = 4.0
    dense_mlp: float = 3.0
    router: float = 1.0
    shared: float = 2.0
    combine: float = 1.0
    head: float = 2.0
    gpu_experts: float = 3.0
    cpu_experts: float = 16.0
    gpu_expert: float = 2.0
    cpu_expert: float = 8.0
    copy: float = 1.0
    expert_copy: float = 8.0
    sync_s: float = 1.0
    decide_s: float = 1.0
    contention: Contention = field(
        default_factory=lambda: Contention(cpu_factor=1.0, h2d_factor=1.0, d2h_factor=1.0)
    )
    duplex: Duplex = field(default_factory=lambda: Duplex(h2d_factor=1.0, d2h_factor=1.0))

    spec: ModelSpec = field(default_factory=small_spec)
    cpu_workers: int = 1
    cpu_call_s: float = 0.0

    def attention_s(self, tokens, context, *, requests=1):
        return self.attention

    def dense_mlp_s(self, tokens):
        return self.dense_mlp

    def router_s(self, tokens):
        return self.router

    def shared_s(self, tokens):
        return self.shared

    def combine_s(self, tokens):
        return self.combine

    def head_s(self, tokens):
        return self.head

    def gpu_experts_s(self, tokens_per_expert):
        return self.gpu_experts if np.any(tokens_per_expert) else 0.0

    def gpu_call_s(self, experts, pairs):
        return self.gpu_experts * (experts > 0)

    def cpu_experts_s(self, tokens_per_expert):
        return self.cpu_experts if np.any(tokens_per_expert) else 0.0

    def cpu_alike_s(self, experts, tokens):
        return self.cpu_experts * (tokens > 0)

    def gpu_expert_s(self, tokens):
        return self.gpu_expert * (tokens > 0)

    def cpu_expert_s(self, tokens):
        return self.cpu_expert * (tokens > 0)

    def copy_s(self, num_bytes, direction, *, pinned):
        assert direction in Direction
        return np.full(np.shape(num_bytes), self.copy)

    def expert_copy_s(self, copies, direction, *, pinned):
        return copies * self.expert_copy


def case_of(
    trace,
    *,
    policy="tide",
    budget=1,
    interval=1,
    engine=TIDESIM,
    latency=None,
    popularity=None,
    promotion=None,
    batch=1,
    spec=None,
):
    """Return a case whose memory nobody checks."""
    model = trace.meta.model
    shape = (model.moe_layers, model.num_experts)
    latency = latency or FakeLatency()
    setup = Setup(
        num_experts=model.num_experts,
        layers=model.moe_layers,
        budget=budget,
        popularity=np.zeros(shape) if popularity is None else np.array(popularity, dtype=float),
        engine=engine,
        latency=latency,
        interval=interval,
        promotion=promotion,
        future=lambda: windowed(trace, engine.window),
    )
    return Case(
        trace=trace,
        spec=spec or model,
        latency=latency,
        setup=setup,
        policy=get_policy(policy) if isinstance(policy, str) else policy,
        memory=NO_MEMORY,
        hardware="fake",
        hardware_kinds={},
        batch=batch,
    )


def abilities(engine):
    """Return the pairs of policy and promotion that an engine runs."""
    ready = not engine.overlap or (engine.pinned and not engine.write_back)
    return [
        (name, promotion)
        for name, make in POLICIES.items()
        for promotion in make.promotions
        if ready or promotion is Promotion.BLOCKING
    ]


def same(a, b):
    """Say whether numbers are the same to rounding."""
    return a == pytest.approx(b, rel=1e-9, abs=1e-12)


def assert_same_run(a, b):
    """Assert that two runs took and moved the same."""
    assert np.allclose(a.pass_s, b.pass_s, rtol=1e-9, atol=1e-13 * b.seconds)
    assert a.seconds == pytest.approx(b.seconds, rel=1e-9)
    for name in ("busy", "waited"):
        assert same(getattr(a, name), getattr(b, name))
    for resource, shares in b.critical.items():
        ours = a.critical[resource]
        assert ours.keys() == shares.keys()
        assert same(ours, shares)
    timed = {"seconds", "pass_s", "is_step", "busy", "waited", "critical", "records", "counters"}
    for item in fields(a):
        assert item.name in timed or getattr(a, item.name) == getattr(b, item.name)


def timeline(result):
    """Return what happened when: resource, start, end and label of every operation."""
    return [(row.resource, row.start_s, row.end_s, row.label) for row in result.records]


def check_run(case):
    """Simulate a case and assert what must hold for every run; return the result."""
    result = run(case, keep_records=True)
    placements = list(case.placed())
    _check_counts(result, placements, case)
    _check_residency(result, placements, case)
    _check_clock(result, placements)
    _check_critical_path(result)
    _check_causality(result, placements, case)
    if result.promotion == "background":
        _check_publication(result, placements, case)
    return result


def _check_counts(result, placements, case):
    """Every active expert is served once, residents fit, bytes follow from what moved."""
    for placement in placements:
        counts = placement.pass_.counts
        assert np.array_equal(placement.hits + placement.misses, counts)
        assert np.array_equal(placement.gpu_tokens + placement.cpu_tokens, counts)
        assert not np.any((placement.gpu_tokens > 0) & (placement.cpu_tokens > 0))
        assert np.all(placement.resident.sum(axis=1) <= result.budgets)
        assert not np.any(placement.hits[~placement.resident])
    total = sum(int(placement.pass_.counts.sum()) for placement in placements)
    assert result.hits + result.misses == total
    expert_bytes = case.spec.expert_bytes
    assert result.h2d_bytes_by_purpose["promotions"] == result.promotions * expert_bytes
    assert result.h2d_bytes_by_purpose["streams"] == result.streams * expert_bytes
    written = result.evictions * expert_bytes if case.setup.engine.write_back else 0
    assert result.d2h_bytes_by_purpose["write_backs"] == written
    rows = sum(sum(placement.cpu_load.pairs) for placement in placements)
    row_bytes = case.spec.hidden_size * case.spec.dtype_bytes
    assert result.h2d_bytes_by_purpose["results"] == rows * row_bytes
    if case.setup.engine.overlap or not case.setup.engine.looped:
        missing = [np.count_nonzero(one.cpu_load.pairs) * one.pass_.tokens for one in placements]
        rows = sum(missing)
    assert result.d2h_bytes_by_purpose["hidden"] == rows * row_bytes
    ids = sum(one.pass_.tokens for one in placements) * case.spec.num_experts_per_tok * 2
    ids *= case.spec.moe_layers * case.setup.engine.overlap
    assert result.d2h_bytes_by_purpose["ids"] == ids


def _check_residency(result, placements, case):
    """What a pass promotes and evicts holds in it, or from the next on if in the background."""
    resident = case.policy(case.known).initial(case.known)
    for placement in placements:
        before, resident = resident, resident.copy()
        for row, decision in zip(resident, placement.decisions, strict=True):
            row[list(decision.evict)] = False
            row[list(decision.promote)] = True
        serving = before if result.promotion == "background" else resident
        assert np.array_equal(placement.resident, serving)


def _check_clock(result, placements):
    """Nothing overlaps on a resource; time adds up; nobody works longer than the run takes."""
    check(result.records)
    assert len(result.pass_s) == result.passes == len(placements)
    assert sum(result.pass_s) == pytest.approx(result.seconds, rel=1e-9)
    assert sum(result.waited.values()) == pytest.approx(1.0, rel=1e-9)
    critical = [share for shares in result.critical.values() for share in shares.values()]
    assert sum(critical) == pytest.approx(1.0, rel=1e-9)
    assert max(row.end_s for row in result.records) <= result.seconds * (1 + 1e-12)
    for resource, busy in busy_s(result.records).items():
        least = 1e-12 * result.seconds  # a record's length loses digits late in a run
        assert busy == pytest.approx(result.busy[resource] * result.seconds, rel=1e-9, abs=least)
        assert busy <= result.seconds * (1 + 1e-12)


def _check_critical_path(result):
    """The path takes the makespan, and where it is the only one the accounts tell the same."""
    path = critical_path(result.records)
    assert sum(path_seconds(path).values()) == pytest.approx(result.seconds, rel=1e-9)
    only = only_path(result.records)
    if only is None:
        return
    assert path_seconds(only) == same_seconds(path_seconds(path), result)
    if result.promotion == "blocking":
        assert _accounted(only) == same_seconds(
            {
                (resource, name): share * result.seconds
                for resource, shares in result.critical.items()
                for name, share in shares.items()
            },
            result,
        )


def same_seconds(seconds, result):
    """Return what compares equal to seconds that are the same to rounding."""
    return pytest.approx(seconds, rel=1e-9, abs=1e-9 * result.seconds)


def only_path(records):
    """Return the critical path followed back from the end, None where it is not the only one."""
    near = 4 * resolution_s(records)
    rows = sorted(records, key=lambda row: row.end_s)
    ends_s = [row.end_s for row in rows]
    path, start_s = [], ends_s[-1]
    while start_s > near:
        together = rows[bisect_left(ends_s, start_s - near) : bisect_right(ends_s, start_s + near)]
        if len(together) != 1 or together[0].end_s - together[0].start_s <= 2 * near:
            return None
        path.append(together[0])
        start_s = together[0].start_s
    return tuple(reversed(path))


def _accounted(path):
    """Return the seconds of a path by resource and operation, as a run's accounts name them."""
    seconds = {}
    for (resource, name), value in path_seconds(path).items():
        key = (resource, _ACCOUNTS.get(name, name))
        seconds[key] = seconds.get(key, 0.0) + value
    return seconds


_ACCOUNTS = {
    "promote": "expert copies",
    "stream": "expert copies",
    "write back": "write backs",
    "experts gpu": "experts",
    "expert gpu": "experts",
    "experts cpu": "experts",
    "expert cpu": "experts",
}


def _check_publication(result, placements, case):
    """An expert promoted in the background is in before the GPU next computes it."""
    landed, starts = {}, {}
    for row in result.records:
        place = (row.request, row.block, row.step, row.layer)
        if operation_of(row.label) == "promote":
            landed[place, int(row.label.split()[1])] = row.end_s
        elif operation_of(row.label) in {"experts gpu", "expert gpu"}:
            starts[place, row.label if row.label.startswith("expert ") else ""] = row.start_s
    arriving = {}
    for placement in placements:
        pass_ = placement.pass_
        for index, decision in enumerate(placement.decisions):
            layer = case.spec.first_k_dense_replace + index
            place = (pass_.request, pass_.block, pass_.step, layer)
            for expert in np.flatnonzero(placement.gpu_tokens[index]).tolist():
                start_s = starts.get((place, ""), starts.get((place, f"expert {expert} gpu")))
                if start_s is not None and (index, expert) in arriving:
                    assert arriving[index, expert] <= start_s * (1 + 1e-12)
            for expert in decision.promote:
                arriving[index, expert] = landed.get((place, expert), 0.0)


def _check_causality(result, placements, case):
    """A layer's operations follow one another as its data does."""
    rows = {}
    for row in result.records:
        place = (row.request, row.block, row.step, row.layer)
        rows.setdefault(place, {}).setdefault(operation_of(row.label), []).append(row)
    passes = [placement.pass_ for placement in placements]
    for pass_, placement in zip(passes, placements, strict=True):
        for index, decision in enumerate(placement.decisions):
            layer = case.spec.first_k_dense_replace + index
            here = rows[pass_.request, pass_.block, pass_.step, layer]
            for before, after in _FOLLOWS if result.promotion == "blocking" else _BACKGROUND:
                ends = [row.end_s for row in here.get(before, ())]
                starts = [row.start_s for row in here.get(after, ())]
                assert max(ends, default=0) <= min(starts, default=np.inf) * (1 + 1e-12)
            moved = not decision.free
            assert len(here.get("promote", ())) == moved * len(decision.promote)
            assert len(here.get("stream", ())) == moved * len(decision.stream)
    for row in result.records:
        assert row.resource in Resource


_FOLLOWS = (
    ("attention", "router"),
    ("router", "ids"),
    ("router", "sync"),
    ("ids", "sync"),
    ("sync", "decide"),
    ("sync", "promote"),
    ("decide", "promote"),
    ("decide", "hidden"),
    ("write back", "promote"),
    ("promote", "experts gpu"),
    ("stream", "experts gpu"),
    ("hidden", "experts cpu"),
    ("experts cpu", "result"),
    ("experts gpu", "combine"),
    ("promote", "expert gpu"),
    ("expert gpu", "combine"),
    ("expert cpu", "combine"),
    ("shared", "combine"),
    ("result", "combine"),
)
_BACKGROUND = (
    *(pair for pair in _FOLLOWS if "promote" not in pair),
    ("experts gpu", "promote"),
    ("expert gpu", "promote"),
)
