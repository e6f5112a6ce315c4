"""Backend cuda: what needs no GPU with stand-ins for torch.cuda, and all of it on one.

The stand-in does copies as late as it may: when somebody waits for their event. What does not wait
reads NaN.
"""

import threading
import time
from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from test_lossless import (
    GOLDEN,
    decoded,
    fill_with_nan,
    offloaded,
    resident,
    setup_for,
)

from tidesim.engines import ENGINES, Promotion
from tidesim.errors import CapacityError, RunError, SettingError
from tidesim.policies import make_policy
from tidesim.records import Resource, check
from tidesim.runtime.backends import cuda as cuda_module
from tidesim.runtime.backends import make_backend
from tidesim.runtime.backends.base import Misses
from tidesim.runtime.backends.clocks import Clock, EventRecorder
from tidesim.runtime.backends.cuda import CudaBackend, driver_version
from tidesim.runtime.backends.misses import shares
from tidesim.runtime.backends.pinning import PAGE, PinnedBanks
from tidesim.runtime.checkpoint import load_model
from tidesim.runtime.model import block_causal_mask
from tidesim.runtime.offloading import make_offload
from tidesim.runtime.products import groupable
from tidesim.trace.passes import Kind, PassKey

KEY = PassKey(0, 1, 1, 2, Kind.DENOISE)
LOCK = threading.RLock()


class Late:
    """A stream that does its copies when somebody waits for an event behind them."""

    def __init__(self, _device=None, *, eager=False):
        self.eager, self.todo, self.waits = eager, deque(), 0
        self.last_event = self.last_wait = None

    def give(self, task):
        with LOCK:
            self.todo.append(task)
            if self.eager:
                self.run_until(lambda: not self.todo)

    def run_until(self, done):
        with LOCK:
            while not done():
                self.todo.popleft()()

    def wait_event(self, event):
        self.last_wait = event
        self.give(event.synchronize)

    def synchronize(self):
        self.run_until(lambda: not self.todo)

    def query(self):
        return not self.todo


class LateEvent:
    def __init__(self, *, enable_timing):
        self.timed, self.at_s, self.stream = enable_timing, None, None

    def record(self, stream):
        self.stream = stream
        stream.last_event = self
        stream.give(self._happen)

    def _happen(self):
        self.at_s = time.perf_counter()

    def query(self):
        return self.at_s is not None

    def synchronize(self):
        self.stream.run_until(self.query)

    def elapsed_time(self, end_event):
        assert self.timed
        assert end_event.timed
        return (end_event.at_s - self.at_s) * 1e3


class FakeGpu:
    """What the backend uses of torch.cuda; `log` holds (stream, what it waited for) of copies."""

    def __init__(self, monkeypatch):
        self.compute, self.streams, self.log = Late(eager=True), [], []
        self.here = threading.local()
        self.cudart = FakeCudart()
        patches = {
            "Stream": self._stream,
            "Event": LateEvent,
            "stream": self._using,
            "current_stream": lambda _device: self._current(),
            "current_device": lambda: 0,
            "cudart": lambda: self.cudart,
            "synchronize": lambda _device=None: [s.synchronize() for s in self.streams],
            "get_device_name": lambda _device: "stand-in",
        }
        for name, patch in patches.items():
            monkeypatch.setattr(torch.cuda, name, patch)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _self, _stream: None)
        monkeypatch.setattr(cuda_module, "pinned", self._pinned)
        monkeypatch.setattr(cuda_module, "copy_async", self._copy)

    def backend(self, workers=2):
        backend = CudaBackend(cpu_workers=workers)
        backend.device = torch.device("cpu")
        return backend

    def _stream(self, device):
        self.streams.append(Late(device))
        return self.streams[-1]

    def _current(self):
        return getattr(self.here, "stream", self.compute)

    @contextmanager
    def _using(self, stream):
        self.here.stream = stream
        try:
            yield
        finally:
            del self.here.stream

    @staticmethod
    def _pinned(*shape, dtype):
        return torch.full(shape, torch.nan if dtype.is_floating_point else -1, dtype=dtype)

    def _copy(self, target, source):
        assert target.is_contiguous()
        assert source.is_contiguous()
        assert target.dtype == source.dtype
        stream = self._current()
        current = stream.last_wait is self.compute.last_event
        self.log.append((self.streams.index(stream), current))
        stream.give(lambda: target.copy_(source))


class FakeCudart:
    def __init__(self, room=10**15):
        self.room, self.locked = room, {}

    def cudaHostRegister(self, start, size, flags):  # noqa: N802
        assert start % PAGE == size % PAGE == flags == 0
        for low, length in self.locked.items():
            assert start + size <= low or low + length <= start, "locked twice"
        if sum(self.locked.values()) + size > self.room:
            return 2
        self.locked[start] = size
        return 0

    def cudaHostUnregister(self, start):  # noqa: N802
        del self.locked[start]
        return 0

    def cudaGetErrorString(self, code):  # noqa: N802
        return {2: "out of memory"}[code]


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch)


@pytest.mark.parametrize("promotion", list(Promotion))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_late_copies_reads_nothing_before_it_is_there(gpu, promotion, dtype):
    run = resident(GOLDEN, dtype, ENGINES["tidesim"].window)
    setup = setup_for(run, ENGINES["tidesim"], budget=12, interval=2, promotion=promotion)

    tokens, logits, counters, records = offloaded(run, GOLDEN, "tide", setup, backend=gpu.backend())

    assert counters.promotions > 20
    assert counters.misses > 0
    assert tokens == run.tokens
    assert all(torch.equal(*pair) for pair in zip(logits, run.logits, strict=True))
    check(records, tolerance_s=1e-9)
    assert {row.resource for row in records} == set(Resource)
    promoted = [row for row in records if row.label.startswith("promote")]
    assert len(promoted) == counters.promotions
    assert sum(row.num_bytes for row in promoted) == counters.h2d_bytes_by_purpose["promotions"]


def test_every_copy_waits_for_all_that_was_issued_before_but_results(gpu):
    run = resident(GOLDEN, "float32", ENGINES["tidesim"].window)
    setup = setup_for(
        run, ENGINES["tidesim"], budget=12, interval=2, promotion=Promotion.BACKGROUND
    )

    offloaded(run, GOLDEN, "tide", setup, backend=gpu.backend())

    down, urgent, background, results = range(4)
    used = {stream for stream, _ in gpu.log}
    assert used == {down, urgent, background, results}
    assert all(waited for stream, waited in gpu.log if stream != results)
    assert not gpu.cudart.locked


def test_streamed_experts_come_on_the_urgent_stream(gpu):
    run = resident(GOLDEN, "float32", ENGINES["tidesim"].window)
    setup = setup_for(run, ENGINES["tidesim"], budget=8)

    tokens, _, counters, _ = offloaded(
        run, GOLDEN, "mixtral-offload-lru", setup, backend=gpu.backend()
    )

    assert tokens == run.tokens
    assert counters.streams > 0
    copied = counters.streams + counters.promotions + 8 * setup.layers
    assert sum(stream == 1 for stream, _ in gpu.log) == copied


def test_the_serial_engine_runs_unpinned_and_alike(gpu):
    engine = ENGINES["tide-reference"]
    run = resident(GOLDEN, "float32", engine.window)
    setup = setup_for(run, engine, budget=12, interval=2)

    tokens, _, counters, records = offloaded(run, GOLDEN, "tide", setup, backend=gpu.backend())

    assert tokens == run.tokens
    assert counters.d2h_bytes_by_purpose["write_backs"] > 0
    assert {stream for stream, _ in gpu.log} == {1}  # the first residents
    assert len(gpu.log) == 12 * setup.layers
    assert counters.promotions > 0
    check(records, tolerance_s=1e-9)


def test_banks_are_pinned_once_and_unpinned_for_an_engine_that_does_not_pin(gpu):
    bank = torch.ones(4, 5000)
    with gpu.backend() as backend:
        for _ in range(2):
            assert backend.host_bank(bank) is bank
        assert len(gpu.cudart.locked) == 1
        backend.host_bank(bank, pinned=False)
        assert not gpu.cudart.locked
        backend.host_bank(bank)
    assert not gpu.cudart.locked


def test_banks_on_the_device_are_refused(gpu):
    with gpu.backend() as backend, pytest.raises(SettingError, match="experts_on='cpu'"):
        backend.host_bank(torch.empty(1, device="meta"))


def test_a_model_that_cannot_be_pinned_is_refused_before_it_runs(gpu):
    run = resident(GOLDEN, "float32", ENGINES["tidesim"].window)
    setup = setup_for(run, ENGINES["tidesim"], budget=8, interval=2)
    gpu.cudart.room = int(2.5 * run.model.mixtures()[0].experts.bank.nbytes)

    with pytest.raises(CapacityError, match="cannot be pinned"):
        offloaded(run, GOLDEN, "tide", setup, backend=gpu.backend())
    assert not gpu.cudart.locked


def test_a_failed_run_unpins_and_stops_its_workers(gpu):
    with pytest.raises(KeyError), gpu.backend() as backend:
        backend.host_bank(torch.ones(4, 5000))
        raise KeyError
    assert not gpu.cudart.locked
    assert not any(worker.is_alive() for worker in backend.workers)


def test_an_error_in_a_worker_ends_the_wait(gpu):
    misses = Misses(
        x=torch.ones(2, 8),
        rows=np.array([0, 1]),
        ends=np.array([1, 2], dtype=np.int32),
        gate_up=torch.ones(2, 8, 8),
        down=torch.ones(2, 5, 4),  # of another width than x
    )
    with pytest.raises(RunError, match="nothing of it is kept"), gpu.backend() as backend:
        backend.begin(KEY)
        backend.result(backend.start_misses(misses, 0))


def test_nothing_is_timed_while_no_records_are_kept(gpu):
    with gpu.backend() as backend:
        backend.recorder.enabled = False
        backend.begin(KEY)
        backend.ids(torch.tensor([[1, 2]]), 0)
        assert backend.end() > 0
        assert len(backend.recorder.take()) == 0


def test_ids_of_any_number_of_experts_survive_their_way(gpu):
    with gpu.backend() as backend:
        backend.begin(KEY)
        ids = torch.tensor([[0, 65535], [32768, 7]])
        assert backend.ids(ids, 0).tolist() == [0, 65535, 32768, 7]


def test_pinning_locks_whole_pages_once_where_banks_share_them():
    memory = torch.zeros(8 * PAGE, dtype=torch.uint8)
    offset = -memory.data_ptr() % PAGE + 100
    cut = offset + 2 * PAGE
    first, second, inside = memory[offset:cut], memory[cut : cut + PAGE], memory[cut : cut + 9]
    cudart = FakeCudart()
    banks = PinnedBanks(cudart)

    banks.pin(first)
    banks.pin(second)
    assert banks.pinned_bytes == sum(cudart.locked.values()) == 4 * PAGE
    banks.release()
    banks.pin(first)
    banks.pin(inside)  # all of its memory is locked already
    assert len(banks) == 2
    banks.release()
    assert not cudart.locked


def test_pinning_too_much_says_so_and_leaves_nothing_locked():
    cudart = FakeCudart(room=30 * PAGE)
    banks = PinnedBanks(cudart)
    banks.pin(torch.zeros(20 * PAGE, dtype=torch.uint8))

    with pytest.raises(CapacityError, match=r"0\.0\d GB of experts .*out of memory.*ulimit -l"):
        banks.pin(torch.zeros(20 * PAGE, dtype=torch.uint8))
    assert not cudart.locked
    assert len(banks) == 0


class At:
    """An event at a time in seconds."""

    def __init__(self, at_s, *, happened=True):
        self.at_s, self.happened = at_s, happened

    def query(self):
        return self.happened

    def synchronize(self):
        self.happened = True

    def elapsed_time(self, end_event):
        return (end_event.at_s - self.at_s) * 1e3


@pytest.fixture
def recorder():
    recorder = EventRecorder()
    recorder.begin(KEY)
    recorder.set_clock(Clock(At(50.0), 1000.0))
    return recorder


def spans(records):
    return [(row.label, round(row.start_s, 6), round(row.end_s, 6)) for row in records]


def test_events_and_host_times_stand_on_one_clock(recorder):
    recorder.defer(Resource.GPU, (At(51.0),), At(52.5), "a", 3, experts=2, num_bytes=7)
    recorder.defer(Resource.HOST, (1002.0, At(52.5)), 1003.0, "b", 3)

    records = recorder.take()

    assert spans(records) == [("a", 0.0, 1.5), ("b", 1.5, 2.0)]
    row = records[0]
    assert (row.request, row.block, row.step, row.layer) == (0, 1, 2, 3)
    assert (row.experts, row.num_bytes) == (2, 7)


def test_copies_of_two_streams_take_turns_on_the_link(recorder):
    recorder.defer(Resource.H2D, (At(51.0),), At(56.0), "slow", 0)
    recorder.defer(Resource.H2D, (At(52.0),), At(54.0), "quick", 0)

    assert spans(recorder.take()) == [("quick", 0.0, 2.0), ("slow", 2.0, 4.0)]


def test_copies_under_way_are_recorded_when_they_have_ended_on_their_pass_clock(recorder):
    late = At(53.0, happened=False)
    recorder.defer(Resource.H2D, (At(52.0),), late, "late", 0)
    recorder.defer(Resource.GPU, (At(51.0),), At(52.0), "now", 0)
    recorder.resolve()
    assert not late.happened
    recorder.begin(KEY._replace(step=9))
    recorder.set_clock(Clock(At(60.0), 1010.5))

    records = recorder.take()

    assert spans(records) == [("now", 0.0, 1.0), ("late", 1.0, 2.0)]
    assert [row.step for row in records] == [2, 2]


def test_clocks_that_disagree_a_little_never_make_operations_overlap(recorder):
    recorder.defer(Resource.HOST, (1001.0,), 1002.0, "a", 0)
    recorder.defer(Resource.HOST, (At(52.1),), 1002.0, "b", 0)

    assert spans(recorder.take()) == [("a", 0.0, 1.0), ("b", 1.0, 1.0)]


@pytest.mark.parametrize(
    ("counts", "workers", "expected"),
    [
        ([2, 0, 1, 0, 3], 2, [(0, 3), (4, 5)]),
        ([2, 0, 1, 0, 3], 9, [(0, 1), (2, 3), (4, 5)]),
        ([0, 0, 4], 1, [(2, 3)]),
    ],
)
def test_workers_share_distinct_experts(counts, workers, expected):
    ends = np.cumsum(counts, dtype=np.int32)
    nothing = torch.empty(0)
    misses = Misses(x=nothing, rows=np.arange(0), ends=ends, gate_up=nothing, down=nothing)

    assert shares(misses, workers) == expected


def test_driver_version(tmp_path):
    path = tmp_path / "version"
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    assert driver_version(path) == "550.54.15"
    path.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n")
    assert driver_version(path) == "580.65.06"
    assert driver_version(tmp_path / "none") == "unknown"


def test_weights_that_are_not_aligned_are_not_grouped():
    assert groupable(torch.empty(2, 8, 4))
    assert not groupable(torch.empty(2, 8, 3))


def test_experts_load_apart_from_the_rest():
    model = load_model(GOLDEN, device="meta", experts_on="cpu")

    assert model.lm_head.weight.is_meta
    assert all(mixture.experts.bank.device.type == "cpu" for mixture in model.mixtures())


# On a GPU.

BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}


@contextmanager
def attached(model, policy, setup):
    with make_backend("cuda") as backend:
        offload = make_offload(
            model, make_policy(policy, setup=setup), setup, backend, stale=fill_with_nan
        )
        offload.attach()
        try:
            yield offload, backend
            offload.finish()
        finally:
            offload.detach()


@pytest.mark.cuda
@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("dtype", list(BOUNDS))
@torch.inference_mode()
def test_a_gpu_routes_alike_and_computes_within_bounds(engine, dtype):
    """One pass over one context, with promotions between: teacher-forced, so nothing adds up."""
    run = resident(GOLDEN, dtype, ENGINES[engine].window)
    setup = setup_for(run, ENGINES[engine], budget=12, interval=1)
    whole = load_model(GOLDEN, dtype=dtype, device="cuda")
    apart = load_model(GOLDEN, dtype=dtype, device="cuda", experts_on="cpu")
    seen = {}
    for name, model in (("whole", whole), ("apart", apart)):
        model.norm.register_forward_hook(lambda _m, _x, y, name=name: seen.update({name: y}))
    with attached(apart, "tide", setup) as (offload, backend):
        for step in range(6):
            ids = torch.randint(500, (96,), generator=torch.Generator().manual_seed(step)).cuda()
            mask = block_causal_mask(len(ids), 32, ids.device)
            logits, routes = whole(ids, mask=mask)
            if dtype == "bfloat16":  # a near-tie of the router may flip: compute the same experts
                offload.routes = list(routes)
            offload.begin(PassKey(0, 0, 0, step, Kind.DENOISE))
            near, own = apart(ids, mask=mask)
            offload.end()
            alike = float((routes == own).float().mean())
            assert alike == 1 if dtype == "float32" else alike > 0.95
            error = (seen["apart"] - seen["whole"]).float().norm() / seen["whole"].float().norm()
            assert error < BOUNDS[dtype]
            same_or_near_tie(logits, near)
    assert offload.tally.promotions > 0
    check(backend.recorder.take(), tolerance_s=1e-4)


def same_or_near_tie(logits, near):
    """Every token is the same, or its two best logits are no further apart than the bound."""
    best = logits.topk(2, dim=-1).values
    differs = logits.argmax(-1) != near.argmax(-1)
    gaps = best[differs, 0] - best[differs, 1]
    bound = BOUNDS["bfloat16"] * logits.abs().max()
    assert bool((gaps <= bound).all()), f"no near-ties: {gaps.tolist()}"


@pytest.mark.cuda
@pytest.mark.parametrize("promotion", list(Promotion))
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_a_gpu_decodes_with_promotions_and_never_reads_a_stale_slot(promotion, dtype):
    engine = ENGINES["tidesim"]
    run = resident(GOLDEN, dtype, engine.window)
    setup = setup_for(run, engine, budget=12, interval=2, promotion=promotion)
    model = load_model(GOLDEN, dtype=dtype, device="cuda", experts_on="cpu")

    with attached(model, "tide", setup) as (offload, _):
        _, logits = decoded(model, GOLDEN, engine.window, frame=offload)
        banks = [mixture.experts.bank for mixture in model.mixtures()]
        torch.cuda.synchronize()
        for slots, bank in zip(offload._slots, banks, strict=True):
            for expert in np.flatnonzero(slots.slot_of >= 0).tolist():
                held = slots.weights[slots.slot_of[expert]].cpu()
                assert torch.equal(held, bank[expert])

    assert not any(bool(each.isnan().any()) for each in logits)
    assert offload.tally.promotions > 20
