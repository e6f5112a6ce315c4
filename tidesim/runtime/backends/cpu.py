"""Backend ``cpu``: a two-processor stand-in that any machine can run.

The "GPU" is the thread that runs the model, with slots of its own; the "CPU" is one worker thread
or more; the "link" is another that copies bytes, at full speed or paced to a stated rate. Each
stays on a core of its own where there are enough.
"""

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tidesim.errors import RunError, SettingError
from tidesim.records import Resource
from tidesim.runtime.backends.base import Backend, Ids, Misses
from tidesim.runtime.backends.misses import MissRun
from tidesim.runtime.workers import Latch, Worker, available_cores, stay_on
from tidesim.trace.passes import PassKey

_THREADS = 1  # inside an operator, on every worker: a product's bits depend on it


class CpuBackend(Backend):
    """Threads of one CPU as GPU, CPU and link.

    Parameters
    ----------
    cpu_workers : int
        Threads that share the missed experts of a layer.
    link_bytes_per_s : float or None
        Rate the link is paced to; None copies as fast as memory does.

    Raises
    ------
    SettingError
        A rate that is not above 0.
    """

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self, *, cpu_workers: int = 1, link_bytes_per_s: float | None = None) -> None:
        super().__init__()
        if link_bytes_per_s is not None and not 0 < link_bytes_per_s < float("inf"):
            raise SettingError(
                f"the link's rate is {link_bytes_per_s} bytes/s but must be above 0; "
                "leave it out for full speed"
            )
        self._count, self._rate = cpu_workers, link_bytes_per_s
        self._since_s = self._began_s = self._landed_s = self._link_free_s = 0.0
        self._threads = torch.get_num_threads()
        self._cores = available_cores()
        self.workers: list[Worker] = []
        self._all: list[Worker] = []

    def __enter__(self) -> Self:
        """Start the workers and keep every thread on its core."""
        self._threads = torch.get_num_threads()
        torch.set_num_threads(_THREADS)
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _start(self) -> None:
        self.workers, self._all = [], []
        cores, apart = self._cores, len(self._cores) > self._count
        alone = len(cores) >= 2 + self._count
        self.link = self._worker("link", cores[-1] if alone else None)
        for number in range(self._count):
            self.workers.append(self._worker(f"cpu {number}", cores[1 + number] if apart else None))
        if apart:  # last, because a thread starts on the cores of the one that makes it
            stay_on(cores[0])

    def _worker(self, name: str, core: int | None) -> Worker:
        try:
            worker = Worker(name, core=core)
        except RuntimeError as error:
            raise RunError(
                f"the {name} thread cannot be started ({error}); use fewer CPU workers"
            ) from None
        self._all.append(worker)
        return worker

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers; give the calling thread its cores and threads back."""
        torch.set_num_threads(self._threads)
        if self._cores:
            os.sched_setaffinity(0, set(self._cores))
        for worker in self._all:
            worker.stop()

    @property
    def machine(self) -> str:
        """Processor, cores, versions, threads, and the rate of a link that is slowed down."""
        slowed = "" if self._rate is None else f"link slowed to {self._rate / 1e9:g} GB/s, "
        return (
            f"{processor()}, {len(self._cores) or os.cpu_count()} cores, "
            f"{self._count} CPU worker(s), 1 thread per operator, {slowed}"
            f"torch {torch.__version__}, Python {platform.python_version()}"
        )

    def host_bank(self, bank: Tensor, *, pinned: bool = True) -> Tensor:
        """Return the bank as it is: all memory is the host's."""
        return bank

    def begin(self, key: PassKey) -> None:
        """Begin a pass."""
        self.recorder.begin(key)
        self._since_s = self._began_s = time.perf_counter()

    def end(self) -> float:
        """Return the seconds of the pass: this thread has done all of it."""
        return time.perf_counter() - self._began_s

    def mark(
        self,
        label: str,
        layer: int,
        *,
        resource: Resource = Resource.GPU,
        experts: int = 0,
        num_bytes: int = 0,
    ) -> None:
        """Record what this thread did since the last mark."""
        now = time.perf_counter()
        span = (self._since_s, now)
        self.recorder.add(resource, span, label, layer, experts=experts, num_bytes=num_bytes)
        self._since_s = now

    def ids(self, experts: Tensor, layer: int) -> Ids:
        """Copy expert ids to the host and wait for them."""
        self.mark("router", layer)
        sent = experts.to(torch.uint16)
        received = torch.empty_like(sent)
        latch = self._copy(received, sent, Resource.D2H, "ids", layer)
        latch.wait()
        self._since_s = self._landed_s
        self.mark("sync", layer, resource=Resource.HOST)
        return received.numpy().reshape(-1).astype(np.int64)

    def read(self, experts: Tensor) -> Ids:
        """Return expert ids; nothing is copied."""
        return experts.numpy()

    def to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """Return the array as a tensor; nothing is copied."""
        return torch.from_numpy(array)

    def copy_expert(
        self, source: Tensor, slot: Tensor, label: str, layer: int, *, background: bool = False
    ) -> Latch:
        """Let the link copy one expert into a slot."""
        return self._copy(
            slot, source, Resource.H2D, label, layer, experts=1, background=background
        )

    def await_copies(self, copies: Iterable[Latch]) -> None:
        """Wait for copies."""
        for copy in copies:
            copy.wait()
        self._since_s = time.perf_counter()

    def landed(self, copy: Latch) -> bool:
        """Whether a copy has ended."""
        return copy.is_open()

    def start_misses(self, misses: Misses, layer: int) -> "_MissRun":
        """Send the hidden states over the link, then to the CPU workers, and the result back."""
        return _MissRun(self, misses, layer)

    def result(self, handle: "_MissRun") -> Tensor:
        """Wait for the products of misses."""
        handle.latch.wait()
        self._since_s = time.perf_counter()
        return handle.returned

    def _copy(
        self,
        target: Tensor,
        source: Tensor,
        resource: Resource,
        label: str,
        layer: int,
        *,
        experts: int = 0,
        background: bool = False,
    ) -> Latch:
        latch, key = Latch(self._all), self.recorder.key

        def task() -> None:
            self.link_copy(target, source, resource, label, layer, experts=experts, key=key)
            latch.open()

        self.link.submit(task, latch, background=background)
        return latch

    def link_copy(
        self,
        target: Tensor,
        source: Tensor,
        resource: Resource,
        label: str,
        layer: int,
        *,
        experts: int = 0,
        key: PassKey,
    ) -> None:
        """Copy on the link's thread, no faster than its rate."""
        start_s = time.perf_counter()
        target.copy_(source)
        if self._rate is not None:
            self._link_free_s = max(self._link_free_s, start_s) + source.nbytes / self._rate
            time.sleep(max(0.0, self._link_free_s - time.perf_counter()))
        self._landed_s = end_s = time.perf_counter()
        span, size = (start_s, end_s), source.nbytes
        self.recorder.add(resource, span, label, layer, experts=experts, num_bytes=size, key=key)


class _MissRun(MissRun):
    """Misses whose hidden states and products travel over the link's thread."""

    def __init__(self, backend: CpuBackend, misses: Misses, layer: int) -> None:
        latch = Latch(backend._all)
        super().__init__(misses, layer, backend.recorder, backend.workers, latch)
        self._backend = backend
        backend.link.submit(self._send, latch)

    def _send(self) -> None:
        x = self._misses.x
        hidden = torch.empty_like(x)
        self._link(hidden, x, Resource.D2H, "hidden")
        self._share(hidden, x.new_empty(len(self._misses.rows), x.shape[1]))

    def _arrive(self) -> None:
        """Go on: the link's thread has copied the hidden states before."""

    def _return(self) -> None:
        self._backend.link.submit(self._send_back, self.latch)

    def _send_back(self) -> None:
        self.returned = torch.empty_like(self._products)
        self._link(self.returned, self._products, Resource.H2D, "result")
        self.latch.open()

    def _link(self, target: Tensor, source: Tensor, resource: Resource, label: str) -> None:
        self._backend.link_copy(target, source, resource, label, self._layer, key=self._key)


def processor() -> str:
    """Return the processor's name and clock where the system tells them."""
    name, clock = _cpuinfo("model name"), _cpuinfo("cpu MHz")
    name = name or platform.processor() or platform.machine()
    return f"{name} at {float(clock):.0f} MHz" if clock else name


def _cpuinfo(key: str) -> str:
    """Return the first value of a key, "" where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")
