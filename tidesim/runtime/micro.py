"""Micro-benchmarks below the runtime: rates of one processor, copies by size, copies beside others."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from tidesim.records import Records
from tidesim.runtime.backends import Backend, Misses
from tidesim.runtime.bench import Bench, Timing, even_routes
from tidesim.trace.passes import Kind, PassKey

T = TypeVar("T")
GPU_POOL_BYTES = 1 << 30  # what a GPU streams: far more than its caches
POOL_BYTES = 64 << 20  # what streaming and copying cycle through at least
_KEY = PassKey(0, 0, 0, 0, Kind.DENOISE)


def synchronised_s(device: torch.device) -> float:
    """Return the wall clock once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def repeat(
    run: Callable[[], object], device: torch.device, seconds: float, *, times: int = 1
) -> Timing:
    """Time a call for about `seconds`, at least three times after one that does not count.

    Parameters
    ----------
    run : callable
    times : int
        Calls between two looks at the clock.
    """
    run()
    values: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(values) < 3 or (time.perf_counter() < deadline and len(values) < 1000):
        began = synchronised_s(device)
        for _ in range(times):
            run()
        values.append((synchronised_s(device) - began) / times)
    return Timing.of(values)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one processor reaches: FLOP/s of a large product, bytes/s of streaming weights, launch."""

    flops: float
    bytes_per_s: float
    launch: Timing


def rates(device: torch.device, dtype: torch.dtype, seconds: float) -> Rates:
    """Measure a processor with one intra-op thread as it is set."""
    rows, width = (256, 1024) if device.type == "cpu" else (8192, 8192)
    x = torch.randn(rows, width).to(device, dtype)
    w = torch.randn(width, width).to(device, dtype)
    product = repeat(lambda: x @ w.T, device, seconds / 3)
    pool_bytes = POOL_BYTES if device.type == "cpu" else GPU_POOL_BYTES
    big = torch.ones(pool_bytes // dtype.itemsize // width, width, dtype=dtype, device=device)
    streaming = repeat(lambda: x[:1] @ big.T, device, seconds / 3)
    small = torch.zeros(8, device=device)
    launch = repeat(lambda: small.add_(1), device, seconds / 3, times=100)
    return Rates(
        flops=2 * rows * width * width / product.seconds,
        bytes_per_s=big.nbytes / streaming.seconds,
        launch=launch,
    )


class Copies:
    """Copies between a pool in host memory and one on the device, in memory they rarely meet twice.

    Parameters
    ----------
    backend : Backend
        Entered by the caller.
    pool_bytes : int
    """

    def __init__(self, backend: Backend, pool_bytes: int) -> None:
        self.backend, self.device = backend, backend.device
        self.host = backend.host_bank(torch.ones(pool_bytes, dtype=torch.uint8))
        self.pageable = torch.ones(pool_bytes, dtype=torch.uint8)
        self.there = torch.ones(pool_bytes, dtype=torch.uint8, device=self.device)
        self._turn = count()

    def pair(self, size: int, *, up: bool, pinned: bool = True) -> tuple[Tensor, Tensor]:
        """Return source and target of the next copy of `size` bytes."""
        at = next(self._turn) * size % (len(self.host) - size + 1)
        here = (self.host if pinned else self.pageable)[at : at + size]
        there = self.there[at : at + size]
        return (here, there) if up else (there, here)

    def start(self, size: int, *, up: bool, background: bool = False) -> object:
        """Queue one copy on the link."""
        source, target = self.pair(size, up=up)
        return self.backend.copy_expert(source, target, "copy", -1, background=background)

    def by_link(self, size: int, seconds: float, *, up: bool) -> Timing:
        """Time copies on the link, each alone, by its own clock."""
        times = _until(seconds, lambda: self._one(size, up=up))
        return Timing.of([each for took in times for each in took])

    def by_hand(self, size: int, seconds: float, *, up: bool) -> Timing:
        """Time copies of memory that is not pinned, by the thread that asks for them."""

        def run() -> None:
            source, target = self.pair(size, up=up, pinned=False)
            target.copy_(source)

        return repeat(run, self.device, seconds)

    def whole_s(self, size: int, seconds: float, *, ups: Sequence[bool], each: int = 8) -> Timing:
        """Time `each` copies in every direction of `ups`, until all have ended.

        A GPU has a stream for either direction, backend ``cpu`` one link for both.
        """

        def by_link() -> None:
            handles = [self.start(size, up=up) for _ in range(each) for up in ups]
            self.backend.await_copies(handles)

        def by_streams() -> None:
            for up, stream in streams.items():
                with torch.cuda.stream(stream):
                    for _ in range(each):
                        source, target = self.pair(size, up=up)
                        target.copy_(source, non_blocking=True)

        on_gpu = self.device.type == "cuda"
        streams: dict[bool, Any] = {}
        if on_gpu:
            make: Any = torch.cuda.Stream
            streams = {up: make(self.device) for up in ups}

        with_records, self.backend.recorder.enabled = self.backend.recorder.enabled, False
        try:
            return repeat(by_streams if on_gpu else by_link, self.device, seconds)
        finally:
            self.backend.recorder.enabled = with_records

    def _one(self, size: int, *, up: bool) -> list[float]:
        records = framed(self.backend, lambda: self.backend.await_copies([self.start(size, up=up)]))
        return [row.end_s - row.start_s for row in records if row.label == "copy"]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of their rates that CPU experts and copies keep beside each other."""

    cpu: float
    copies: float


def beside(bench: Bench, copies: Copies, seconds: float, *, up: bool) -> Shares:
    """Run the misses of a layer and copies of experts alone, then together."""
    size = bench.spec.expert_bytes
    layers = count()

    def misses() -> object:
        return bench.backend.start_misses(_misses(bench, next(layers)), -1)

    def finish(handle: object) -> None:
        bench.backend.result(handle)

    alone = _until(seconds / 3, lambda: _of(bench.backend, lambda: finish(misses())))
    cpu_s = Timing.of([took for took, _ in alone]).seconds
    copy_s = copies.by_link(size, seconds / 3, up=up).seconds
    number = min(256, int(cpu_s / copy_s) + 2)

    def together() -> None:
        handle = misses()
        handles = [copies.start(size, up=up, background=True) for _ in range(number)]
        finish(handle)
        bench.backend.await_copies(handles)

    both = _until(seconds / 3, lambda: _of(bench.backend, together))
    slowed_s = Timing.of([took for took, _ in both]).seconds
    met = [each for _, took in both for each in took]
    slow_copy_s = Timing.of(met).seconds if met else copy_s
    return Shares(cpu=min(1.0, cpu_s / slowed_s), copies=min(1.0, copy_s / slow_copy_s))


def _of(backend: Backend, run: Callable[[], object]) -> tuple[float, list[float]]:
    """Return what the CPU took, and every copy that ran while it did."""
    records = framed(backend, run)
    cpu = next(row for row in records if row.label.startswith("experts cpu"))
    met = [
        row.end_s - row.start_s
        for row in records
        if row.label == "copy" and row.start_s >= cpu.start_s and row.end_s <= cpu.end_s
    ]
    return cpu.end_s - cpu.start_s, met


def _misses(bench: Bench, turn: int) -> Misses:
    """Return two tokens for each of half of a layer's experts."""
    spec, mixtures = bench.spec, bench.model.mixtures()
    experts = mixtures[turn % len(mixtures)].experts
    ids = range(0, spec.num_experts, 2)
    routes = even_routes(ids, 2, top_k=spec.num_experts_per_tok, filler=0)
    flat = routes.reshape(-1)
    counts = torch.bincount(flat, minlength=spec.num_experts)
    gate_up, down = experts.views(experts.bank)
    return Misses(
        x=bench.hidden[0, : len(routes)],
        rows=(flat.argsort(stable=True) // routes.shape[1]).numpy(),
        ends=counts.cumsum(0).to(torch.int32).numpy(),
        gate_up=gate_up,
        down=down,
    )


def framed(backend: Backend, run: Callable[[], object]) -> Records:
    """Run something as one pass and return its records."""
    backend.recorder.take()
    backend.begin(_KEY)
    run()
    backend.end()
    return backend.recorder.take()


def _until(seconds: float, run: Callable[[], T]) -> list[T]:
    """Call for about `seconds`, at least three times after one that does not count."""
    run()
    deadline = time.perf_counter() + seconds
    results: list[T] = []
    while len(results) < 3 or (time.perf_counter() < deadline and len(results) < 1000):
        results.append(run())
    return results
