"""What a backend offers the runtime: device memory, copies, CPU workers, and a clock for each."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tidesim.records import Record, Records, Resource
from tidesim.trace.passes import Kind, PassKey

Ids = npt.NDArray[np.int64]
ID_BYTES = 2  # expert ids travel as uint16
Ends = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Misses:
    """The experts of one layer that the CPU computes.

    Attributes
    ----------
    x : [T, H]
        Hidden states of the pass, on the device.
    rows : [n] int64
        The token of every pair, in order of their experts.
    ends : [E] int32
        Where the pairs of each expert end in `rows`.
    gate_up, down : [E, 2I, H], [E, H, I]
        The host bank.
    """

    x: Tensor
    rows: Ids
    ends: Ends
    gate_up: Tensor
    down: Tensor

    @property
    def experts(self) -> int:
        """Distinct experts."""
        return int(np.count_nonzero(np.diff(self.ends, prepend=0)))


class Recorder:
    """Collects records of the passes; workers add to it from their own threads."""

    def __init__(self) -> None:
        self._rows: list[Record] = []
        self._key = PassKey(-1, -1, -1, 0, Kind.PREFILL)
        self.enabled = True

    def begin(self, key: PassKey) -> None:
        """Say which pass operations belong to from now on."""
        self._key = key

    @property
    def key(self) -> PassKey:
        """The pass in progress."""
        return self._key

    def add(
        self,
        resource: Resource,
        span: tuple[float, float],
        label: str,
        layer: int,
        *,
        experts: int = 0,
        num_bytes: int = 0,
        key: PassKey | None = None,
    ) -> None:
        """Keep one operation; `span` is its start and end in seconds of the backend's clock."""
        if self.enabled:
            at = key or self._key
            place = (at.request, at.block, at.step, layer)
            self._rows.append(Record(resource, *span, label, *place, experts, num_bytes))

    def take(self) -> Records:
        """Return the operations so far, the first starting at 0, and forget them."""
        rows, self._rows = self._rows, []
        zero = min((row.start_s for row in rows), default=0.0)
        return Records(
            row._replace(start_s=row.start_s - zero, end_s=row.end_s - zero) for row in rows
        )


class Backend(ABC):
    """A device with slots, a link that copies, and CPU workers; used as a context manager.

    One thread drives it: the one that runs the model.

    Attributes
    ----------
    name : str
    device : torch.device
    recorder : Recorder
    """

    name: str
    device: torch.device

    def __init__(self) -> None:
        self.recorder = Recorder()

    @abstractmethod
    def __enter__(self) -> Self:
        """Start the workers."""

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers and undo what was set up; a failed run is not waited for."""

    @property
    @abstractmethod
    def machine(self) -> str:
        """What a run's times depend on: processor, versions, threads."""

    @abstractmethod
    def host_bank(self, bank: Tensor, *, pinned: bool = True) -> Tensor:
        """Return a bank of experts in host memory, ready to be copied from.

        Parameters
        ----------
        bank : [E, 3 * I * H]
            In host memory.
        pinned : bool
            Copies do not hold up the host; otherwise the bank stays pageable.

        Raises
        ------
        SettingError
            It is not in host memory.
        CapacityError
            The host cannot pin so much.
        """

    @abstractmethod
    def begin(self, key: PassKey) -> None:
        """Begin a pass."""

    @abstractmethod
    def end(self) -> float:
        """Wait for the pass in progress; return its seconds."""

    @abstractmethod
    def mark(
        self,
        label: str,
        layer: int,
        *,
        resource: Resource = Resource.GPU,
        experts: int = 0,
        num_bytes: int = 0,
    ) -> None:
        """Record what the driving thread issued since the last mark as one operation."""

    @abstractmethod
    def ids(self, experts: Tensor, layer: int) -> Ids:
        """Copy expert ids [T, K] to the host and wait for them; as a flat array, [T * K]."""

    @abstractmethod
    def read(self, experts: Tensor) -> Ids:
        """Return expert ids on the host, [T, K], by a copy that holds up everything."""

    @abstractmethod
    def to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """Copy a small array to the device without waiting for it."""

    @abstractmethod
    def copy_expert(
        self, source: Tensor, slot: Tensor, label: str, layer: int, *, background: bool = False
    ) -> Any:
        """Start the copy of one expert into a slot that nobody uses any more; return a handle."""

    @abstractmethod
    def await_copies(self, copies: Iterable[Any]) -> None:
        """Let what the device does next wait for copies."""

    @abstractmethod
    def landed(self, copy: Any) -> bool:
        """Whether a copy has ended."""

    @abstractmethod
    def start_misses(self, misses: Misses, layer: int) -> Any:
        """Send hidden states to the CPU workers and their result back; return a handle."""

    @abstractmethod
    def result(self, handle: Any) -> Tensor:
        """Return the products of misses on the device, [n, H], in the order of their rows."""
