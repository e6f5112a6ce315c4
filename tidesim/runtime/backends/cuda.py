"""Backend ``cuda``: one NVIDIA GPU, the link to it, and threads of the CPU.

The model computes on the current stream. Each kind of copy has a stream of its own, so that none
waits for another's turn in a queue: hidden states and ids come down on one; experts that the pass
waits for, experts promoted in the background and results of misses go up on three. With one
stream, a result would wait for the whole queue of background promotions; with three, for at most
the copies the hardware has begun. (Stream priorities do not order copies.)

What keeps a copy correct:

- It waits for all that the compute stream had been given when it was issued (`fence`): whoever
  reads the slot's old expert, and the fill of a freed slot in tests.
- The compute stream waits for the copy's event before the experts that need it.
- The copies into a layer's slots share one stream: a policy promotes in one mode, and the first
  residents have landed, in the order of the compute stream, before anything else is issued.
- Memory of torch's allocators is told which stream uses it: `record_stream` for the device's, and
  for pinned buffers a ``copy_`` that does not block does so by itself. Both give memory to nobody
  else before the copy has ended, also if a run breaks off, so that no ring of buffers is needed.
"""

import platform
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tidesim.errors import CapacityError, SettingError
from tidesim.records import Resource
from tidesim.runtime.backends.base import Backend, Ids, Misses
from tidesim.runtime.backends.clocks import Clock, EventRecorder, Moment
from tidesim.runtime.backends.cpu import processor
from tidesim.runtime.backends.misses import MissRun
from tidesim.runtime.backends.pinning import PinnedBanks
from tidesim.runtime.workers import Latch, Worker, available_cores
from tidesim.trace.passes import PassKey

SPARE_CORES = 2  # for the driving thread, and for the driver's and everybody else's
DRAIN_S = 5.0  # how long copies of a failed run may still take before their memory is released
DRIVER = Path("/proc/driver/nvidia/version")


class CudaBackend(Backend):
    """An NVIDIA GPU and the CPU beside it.

    Parameters
    ----------
    cpu_workers : int or None
        Threads that share the missed experts of a layer; all cores but two by default.
    """

    name = "cuda"
    recorder: EventRecorder

    def __init__(self, *, cpu_workers: int | None = None) -> None:
        super().__init__()
        self.recorder = EventRecorder()
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._cores = available_cores()
        self._count = cpu_workers or max(1, len(self._cores) - SPARE_CORES)
        self._threads = torch.get_num_threads()
        self._banks = PinnedBanks(torch.cuda.cudart())  # type: ignore[no-untyped-call]
        self._since_s = self._began_s = 0.0
        self._computed: torch.cuda.Event | None = None

    def __enter__(self) -> Self:
        """Make the streams and start the workers."""
        self.down, self._urgent, self._background, self.results = (
            torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            for _ in range(4)
        )
        self._ids = pinned(0, dtype=torch.int16)
        self._threads = torch.get_num_threads()
        alone = len(self._cores) > self._count
        self.workers = [
            Worker(f"cpu {number}", core=self._cores[-1 - number] if alone else None)
            for number in range(self._count)
        ]
        self._start_clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers and give the banks their pageable memory back."""
        for worker in self.workers:
            worker.stop()
        torch.set_num_threads(self._threads)
        try:
            self._settle(failed=kind is not None)
        finally:
            self._banks.release()

    def _settle(self, *, failed: bool) -> None:
        """Wait for copies under way; a failed run is given a while, and its errors have been told."""
        if not failed:
            torch.cuda.synchronize(self.device)
            return
        until = time.perf_counter() + DRAIN_S
        streams = (self.down, self._urgent, self._background, self.results)
        with suppress(RuntimeError):
            while not all(s.query() for s in streams) and time.perf_counter() < until:
                time.sleep(1e-3)

    @property
    def machine(self) -> str:
        """GPU, processor, versions and threads."""
        return (
            f"{torch.cuda.get_device_name(self.device)}, driver {driver_version()}, "
            f"CUDA {torch.version.cuda}, {processor()}, {len(self._cores)} cores, "
            f"{self._count} CPU worker(s), 1 thread per operator, torch {torch.__version__}, "
            f"Python {platform.python_version()}"
        )

    def host_bank(self, bank: Tensor, *, pinned: bool = True) -> Tensor:
        """Pin a bank where it lies, or make sure that none is pinned."""
        if bank.device.type != "cpu":
            raise SettingError(
                f"the experts are on {bank.device} but offloading keeps them in host memory; load "
                "the model with experts_on='cpu'"
            )
        torch.cuda.synchronize(self.device)  # nothing may be copied from what is unlocked
        if not pinned:
            self._banks.release()
            return bank
        try:
            self._banks.pin(bank)
        except CapacityError:
            with suppress(RuntimeError):  # CUDA would tell the next kernel of it: let it be this
                torch.zeros(1, device=self.device).add_(1)
            raise
        return bank

    def begin(self, key: PassKey) -> None:
        """Begin a pass."""
        self.recorder.begin(key)
        self._start_clock()

    def _start_clock(self) -> None:
        """Let the host's clock and the GPU's agree on now; the GPU has ended all it was given."""
        before_s = time.perf_counter()
        base = self._event(self._compute, timed=True)
        base.synchronize()
        self._since_s = self._began_s = time.perf_counter()
        self.recorder.set_clock(Clock(base, (before_s + self._began_s) / 2))
        self._gate, self._computed = base, None

    def end(self) -> float:
        """Wait for the pass in progress; return its seconds."""
        self._compute.synchronize()
        seconds = time.perf_counter() - self._began_s
        self.recorder.resolve()
        return seconds

    def mark(
        self,
        label: str,
        layer: int,
        *,
        resource: Resource = Resource.GPU,
        experts: int = 0,
        num_bytes: int = 0,
    ) -> None:
        """Record an operation.

        One of the GPU lasts from the last fence to an event recorded now; any other is this
        thread's, which waits for the GPU where it copies synchronously.
        """
        if resource is Resource.GPU:
            self._mark_gpu(label, layer, experts)
            return
        now = time.perf_counter()
        starts: list[Moment] = [self._since_s]
        if self._computed is not None:
            starts.append(self._computed)
        self.recorder.defer(
            resource, starts, now, label, layer, experts=experts, num_bytes=num_bytes
        )
        self._since_s = now
        self.fence()

    def _mark_gpu(self, label: str, layer: int, experts: int) -> None:
        start, end = self._gate, self.fence()
        self.recorder.defer(Resource.GPU, (start,), end, label, layer, experts=experts)
        self._since_s, self._computed = time.perf_counter(), end

    def ids(self, experts: Tensor, layer: int) -> Ids:
        """Copy expert ids to the host and wait for them."""
        self.mark("router", layer)
        sent = experts.to(torch.int16).reshape(-1)  # the bits of uint16, which kernels know less
        if len(self._ids) < len(sent):
            self._ids = pinned(2 * len(sent), dtype=torch.int16)
        received = self._ids[: len(sent)]
        landed = self.copy(self.down, received, sent, Resource.D2H, "ids", layer, self.fence())
        landed.synchronize()
        now = time.perf_counter()
        self.recorder.defer(Resource.HOST, (landed,), now, "sync", layer)
        self._since_s = now
        return received.numpy().view(np.uint16).astype(np.int64)

    def read(self, experts: Tensor) -> Ids:
        """Return expert ids by a synchronous copy."""
        return experts.cpu().numpy()

    def to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """Copy an array by way of pinned memory."""
        held = torch.from_numpy(array)
        sent = pinned(*held.shape, dtype=held.dtype).copy_(held)
        return sent.to(self.device, non_blocking=True)

    def copy_expert(
        self, source: Tensor, slot: Tensor, label: str, layer: int, *, background: bool = False
    ) -> torch.cuda.Event:
        """Start the copy of one expert; its event is the handle."""
        stream = self._background if background else self._urgent
        after = self.fence()
        return self.copy(stream, slot, source, Resource.H2D, label, layer, after, experts=1)

    def await_copies(self, copies: Iterable[torch.cuda.Event]) -> None:
        """Let the compute stream wait for copies."""
        awaited = list(copies)
        for copy in awaited:
            self._compute.wait_event(copy)
        if awaited:
            self.fence()

    def landed(self, copy: torch.cuda.Event) -> bool:
        """Whether a copy has ended."""
        return bool(copy.query())  # type: ignore[no-untyped-call]

    def start_misses(self, misses: Misses, layer: int) -> "_MissRun":
        """Send the hidden states to the CPU workers, and the result back."""
        return _MissRun(self, misses, layer)

    def result(self, handle: "_MissRun") -> Tensor:
        """Wait until the result is on its way; the compute stream waits until it has arrived."""
        handle.latch.wait()
        self._since_s = time.perf_counter()
        self._compute.wait_event(handle.arrived)
        handle.returned.record_stream(self._compute)
        self.fence()
        return handle.returned

    @property
    def _compute(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def fence(self) -> torch.cuda.Event:
        """Record where the compute stream is: what it is given next starts there at the earliest."""
        self._gate = self._event(self._compute)
        return self._gate

    def _event(self, stream: torch.cuda.Stream, *, timed: bool = False) -> torch.cuda.Event:
        timed = timed or self.recorder.enabled
        event = torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def copy(
        self,
        stream: torch.cuda.Stream,
        target: Tensor,
        source: Tensor,
        resource: Resource,
        label: str,
        layer: int,
        after: torch.cuda.Event | None,
        *,
        experts: int = 0,
        key: PassKey | None = None,
    ) -> torch.cuda.Event:
        """Copy on a stream of its own once an event has happened; return the event of its end."""
        with torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            start = self._event(stream)
            copy_async(target, source)
            end = self._event(stream)
        (target if target.is_cuda else source).record_stream(stream)
        size = source.nbytes
        self.recorder.defer(
            resource, (start,), end, label, layer, experts=experts, num_bytes=size, key=key
        )
        return end


class _MissRun(MissRun):
    """Misses that leave the GPU on the stream for copies down, and return on that for results.

    The driving thread only starts the copy down; the first worker does the rest. Workers wait for
    the copy itself, spinning: it is short.

    Attributes
    ----------
    returned : [n, H]
        On the GPU, in the memory pool of the stream for results; complete at event `arrived`.
    """

    def __init__(self, backend: CudaBackend, misses: Misses, layer: int) -> None:
        super().__init__(misses, layer, backend.recorder, backend.workers, Latch(backend.workers))
        self._backend = backend
        x = misses.x.contiguous()
        self._hidden = pinned(*x.shape, dtype=x.dtype)
        self._landed = backend.copy(
            backend.down, self._hidden, x, Resource.D2H, "hidden", layer, backend.fence()
        )
        backend.workers[0].submit(self._send, self.latch)

    def _send(self) -> None:
        pairs, width = len(self._misses.rows), self._hidden.shape[1]
        self._share(self._hidden, pinned(pairs, width, dtype=self._hidden.dtype))

    def _arrive(self) -> None:
        self._landed.synchronize()

    def _return(self) -> None:
        backend = self._backend
        with torch.cuda.stream(backend.results):
            self.returned = torch.empty_like(self._products, device=backend.device)
        self.arrived = backend.copy(
            backend.results,
            self.returned,
            self._products,
            Resource.H2D,
            "result",
            self._layer,
            None,
            key=self._key,
        )
        self.latch.open()


def pinned(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return a pinned buffer of torch's: never given away while a copy from or to it goes on."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def copy_async(target: Tensor, source: Tensor) -> None:
    """Copy on the current stream; one operation, as both are contiguous and of one dtype."""
    target.copy_(source, non_blocking=True)


def driver_version(path: Path = DRIVER) -> str:
    """Return the version of NVIDIA's driver where the system tells it."""
    try:
        found = re.search(r"\d+[.][\d.]+", path.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[0] if found else "unknown"
