"""Clocks: operations that start or end at events of a device, turned into records afterwards."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from tidesim.records import Records, Resource
from tidesim.runtime.backends.base import Recorder
from tidesim.trace.passes import PassKey


class Event(Protocol):
    """A point in the work of a device, as `torch.cuda.Event` is one."""

    def query(self) -> Any:
        """Whether it has happened."""

    def synchronize(self) -> Any:
        """Wait until it has happened."""

    def elapsed_time(self, end_event: Any, /) -> Any:
        """Return the milliseconds from this event to another; both have happened."""


Moment = float | Event  # seconds of the host's clock, or when a device comes to an event


class Clock(NamedTuple):
    """An event, and the host's time when it happened."""

    base: Event
    base_s: float

    def seconds(self, moment: Moment) -> float:
        """Return a moment on the host's clock; an event must have happened."""
        if isinstance(moment, float):
            return moment
        return self.base_s + float(self.base.elapsed_time(moment)) / 1e3


class _Operation(NamedTuple):
    clock: Clock
    resource: Resource
    starts: tuple[Moment, ...]
    end: Moment
    label: str
    layer: int
    experts: int
    num_bytes: int
    key: PassKey

    def moments(self) -> list[Event]:
        """Return the events it depends on."""
        return [each for each in (*self.starts, self.end) if not isinstance(each, float)]


class EventRecorder(Recorder):
    """Keeps operations until their events have happened; nothing waits for one meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._clock: Clock | None = None
        self._waiting: list[_Operation] = []
        self._free_s: dict[Resource, float] = {}

    def set_clock(self, clock: Clock) -> None:
        """Say what events are measured from, from now on."""
        self._clock = clock

    def defer(
        self,
        resource: Resource,
        starts: Sequence[Moment],
        end: Moment,
        label: str,
        layer: int,
        *,
        experts: int = 0,
        num_bytes: int = 0,
        key: PassKey | None = None,
    ) -> None:
        """Keep an operation that starts at the last of some moments."""
        if self.enabled and self._clock is not None:
            at = key or self.key
            about = (label, layer, experts, num_bytes, at)
            self._waiting.append(_Operation(self._clock, resource, tuple(starts), end, *about))

    def resolve(self, *, wait: bool = False) -> None:
        """Record the operations that have ended; those under way stay, or are waited for.

        A resource does one operation at a time. Where two streams of a GPU share one, as copies to
        it do, an operation starts when the one that ended before it has ended.
        """
        waiting, self._waiting = self._waiting, []
        ended = []
        for operation in waiting:
            for event in operation.moments() if wait else ():
                event.synchronize()
            if all(event.query() for event in operation.moments()):
                clock = operation.clock
                start_s = max(clock.seconds(each) for each in operation.starts)
                ended.append((clock.seconds(operation.end), start_s, operation))
            else:
                self._waiting.append(operation)
        for end_s, start_s, operation in sorted(ended, key=lambda each: each[0]):
            self._add(operation, start_s, end_s)

    def _add(self, operation: _Operation, start_s: float, end_s: float) -> None:
        resource, about = operation.resource, (operation.label, operation.layer)
        end_s = max(end_s, self._free_s.get(resource, end_s))
        start_s = min(max(start_s, self._free_s.get(resource, start_s)), end_s)
        self._free_s[resource] = end_s
        self.add(
            resource,
            (start_s, end_s),
            *about,
            experts=operation.experts,
            num_bytes=operation.num_bytes,
            key=operation.key,
        )

    def take(self) -> Records:
        """Wait for what is under way; return the operations so far and forget them."""
        self.resolve(wait=True)
        return super().take()
