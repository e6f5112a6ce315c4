"""Lanes: first-come-first-served servers on a SimPy clock, some slowed by shared host memory."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol, cast

import simpy

from tidesim.latency import Contention, Duplex
from tidesim.records import Record, Resource
from tidesim.simulate.operations import Operation, Place


class Lane(Protocol):
    """Server of one resource.

    Attributes
    ----------
    busy_s : float
        Seconds of the operations served.
    """

    busy_s: float

    def submit(self, operation: Operation, place: Place) -> simpy.Event:
        """Queue an operation; the event returned fires when it has ended."""
        ...


class SteadyLane:
    """Lane that serves one operation at a time, always at full rate.

    An operation's end is known when it is queued, so one event serves it.

    Parameters
    ----------
    env : simpy.Environment
    resource : Resource
    records : list of Record or None
        Where to add a record per part.
    """

    def __init__(
        self, env: simpy.Environment, resource: Resource, *, records: list[Record] | None = None
    ) -> None:
        self.busy_s = 0.0
        self._env = env
        self._resource = resource
        self._records = records
        self._free_s = 0.0

    def submit(self, operation: Operation, place: Place) -> simpy.Event:
        """Queue an operation; the event returned fires when it has ended."""
        now = self._env.now
        start_s = max(now, self._free_s)
        self._free_s = start_s + operation.seconds
        self.busy_s += operation.seconds
        if self._records is not None:
            marks = [(start_s, 0.0), (self._free_s, operation.seconds)]
            self._records.extend(_describe(self._resource, operation, place, marks))
        return self._env.timeout(operation.seconds if start_s == now else self._free_s - now)


class _Job:
    """An operation on its way through a shared lane."""

    __slots__ = ("done", "left_s", "marks", "operation", "place", "since_s", "timer")

    def __init__(self, operation: Operation, place: Place, done: simpy.Event) -> None:
        self.operation = operation
        self.place = place
        self.done = done
        self.left_s = operation.seconds
        self.since_s = 0.0
        self.marks: list[tuple[float, float]] = []  # (clock, work done) where the rate changed
        self.timer: simpy.Event | None = None


class SharedLane:
    """Lane whose rate changes while operations run.

    Parameters
    ----------
    env : simpy.Environment
    resource : Resource
    slots : int
        Operations served at the same time.
    records : list of Record or None
        Where to add a record per part.

    Attributes
    ----------
    busy_s : float
        Seconds of finished operations.
    factor : float
        Share of the full rate at which operations proceed now.
    running : list
        Operations being served.
    on_change : callable or None
        Called when operations have started or ended.
    """

    def __init__(
        self,
        env: simpy.Environment,
        resource: Resource,
        *,
        slots: int = 1,
        records: list[Record] | None = None,
    ) -> None:
        self.busy_s = 0.0
        self.factor = 1.0
        self.running: list[_Job] = []
        self.on_change: Callable[[], None] | None = None
        self._env = env
        self._resource = resource
        self._slots = slots
        self._records = records
        self._waiting: deque[_Job] = deque()

    def submit(self, operation: Operation, place: Place) -> simpy.Event:
        """Queue an operation; the event returned fires when it has ended."""
        job = _Job(operation, place, simpy.Event(self._env))
        if len(self.running) < self._slots:
            self._start(job)
            self._changed()
        else:
            self._waiting.append(job)
        return job.done

    def set_factor(self, factor: float) -> None:
        """Let running and later operations proceed at a share of their full rate."""
        now = self._env.now
        for job in self.running:
            job.left_s = max(0.0, job.left_s - (now - job.since_s) * self.factor)
            job.since_s = now
            job.marks.append((now, job.operation.seconds - job.left_s))
        self.factor = factor
        for job in self.running:
            self._set_timer(job)

    def _start(self, job: _Job) -> None:
        job.since_s = self._env.now
        job.marks.append((job.since_s, 0.0))
        self.running.append(job)
        self._set_timer(job)

    def _set_timer(self, job: _Job) -> None:
        """Aim at the end of a job; a timer set before is left to fire unheard."""
        job.timer = self._env.timeout(job.left_s / self.factor, value=job)
        job.timer.callbacks.append(self._finish)

    def _finish(self, timer: simpy.Event) -> None:
        job = cast("_Job", timer.value)
        if timer is not job.timer:
            return
        self.running.remove(job)
        now = self._env.now
        self.busy_s += now - job.marks[0][0]
        if self._records is not None:
            marks = [*job.marks, (now, job.operation.seconds)]
            self._records.extend(_describe(self._resource, job.operation, job.place, marks))
        if self._waiting:
            self._start(self._waiting.popleft())
        self._changed()
        job.done.succeed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


class HostMemory:
    """Host-memory bandwidth, shared by CPU experts and the copies of both directions.

    While CPU experts and a copy run together each keeps its contended share of its rate, and so do
    copies of opposite directions. Where both hold for a copy, the tighter one sets its rate.

    Parameters
    ----------
    cpu, h2d, d2h : SharedLane
    contention : Contention
        Shares of rate while CPU experts and copies run together.
    duplex : Duplex
        Shares of rate while both directions copy.
    """

    def __init__(
        self,
        cpu: SharedLane,
        h2d: SharedLane,
        d2h: SharedLane,
        *,
        contention: Contention,
        duplex: Duplex,
    ) -> None:
        self._cpu, self._h2d, self._d2h = cpu, h2d, d2h
        self._contention, self._duplex = contention, duplex
        for lane in (cpu, h2d, d2h):
            lane.on_change = self._share

    def _share(self) -> None:
        cpu, up, down = bool(self._cpu.running), bool(self._h2d.running), bool(self._d2h.running)
        beside_cpu, both_ways = self._contention, self._duplex
        _set(self._cpu, beside_cpu.cpu_factor if up or down else 1.0)
        _set(
            self._h2d,
            min(beside_cpu.h2d_factor if cpu else 1.0, both_ways.h2d_factor if down else 1.0),
        )
        _set(
            self._d2h,
            min(beside_cpu.d2h_factor if cpu else 1.0, both_ways.d2h_factor if up else 1.0),
        )


def _set(lane: SharedLane, factor: float) -> None:
    if factor != lane.factor:
        lane.set_factor(factor)


def _describe(
    resource: Resource, operation: Operation, place: Place, marks: list[tuple[float, float]]
) -> Iterator[Record]:
    start_s, work_s = marks[0][0], 0.0
    for part in operation.parts:
        work_s += part.seconds
        end_s = _clock_at(work_s, marks)
        yield Record(resource, start_s, end_s, part.label, *place, part.layer)
        start_s = end_s


def _clock_at(work_s: float, marks: list[tuple[float, float]]) -> float:
    """Return when some work was done, between marks of (clock, work done) at constant rates."""
    for (clock, done), (next_clock, next_done) in pairwise(marks):
        if work_s < next_done:
            return clock + (next_clock - clock) * (work_s - done) / (next_done - done)
    return marks[-1][0]
