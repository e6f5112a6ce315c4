"""Lanes: first-come-first-served servers on a SimPy clock, some slowed by shared host memory."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import cast

import simpy

from tidesim.latency import Contention, Duplex
from tidesim.records import Record, Resource
from tidesim.simulate.operations import Operation, Place

# A background operation that has done no more than this share of its work gives way to another
# that arrives: what happens at one instant may happen in any order.
JUST_STARTED = 1e-9

# Shares of rate of CPU, h2d and d2h, by whether each of them runs.
Factors = dict[tuple[bool, ...], tuple[float, float, float]]


class Job:
    """Operations that follow one another, each on its lane.

    Attributes
    ----------
    stages : sequence of (Lane, Operation)
    place : Place
    done : simpy.Event
        Fires when the last operation has ended.
    operation : Operation
        The one in progress.
    ends_s : list of float
        When each operation ended.
    background : bool
        Waits until no other job wants the lane; never interrupted once it has begun.
    """

    __slots__ = (
        *("background", "done", "ends_s", "left_s", "marks", "operation", "place"),
        *("since_s", "stages", "timer"),
    )

    def __init__(
        self,
        stages: "Sequence[tuple[Lane, Operation]]",
        place: Place,
        env: simpy.Environment,
        *,
        background: bool = False,
    ) -> None:
        self.stages = stages
        self.operation = stages[0][1]
        self.place = place
        self.done = simpy.Event(env)
        self.ends_s: list[float] = []
        self.background = background
        # of the operation in progress: work left, since when, and (clock, work done) at each change
        self.left_s = 0.0
        self.since_s = 0.0
        self.marks: list[tuple[float, float]] = []
        self.timer: simpy.Event | None = None

    def advance(self, now: float) -> None:
        """Go to the lane of the next operation, or be done."""
        self.ends_s.append(now)
        if len(self.ends_s) < len(self.stages):
            lane, self.operation = self.stages[len(self.ends_s)]
            lane.enter(self)
        else:
            self.done.succeed()


class Lane(ABC):
    """First-come-first-served server of one resource.

    Parameters
    ----------
    env : simpy.Environment
    resource : Resource
    records : list of Record or None
        Where to add a record per part.

    Attributes
    ----------
    busy_s : float
        Seconds of the operations served.
    """

    def __init__(
        self, env: simpy.Environment, resource: Resource, *, records: list[Record] | None = None
    ) -> None:
        self.busy_s = 0.0
        self._env = env
        self._resource = resource
        self._records = records

    @abstractmethod
    def enter(self, job: Job) -> None:
        """Queue the next operation of a job; when it has ended the job advances."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""

    def record(self, operation: Operation, place: Place, *, start_s: float, end_s: float) -> None:
        """Keep a record per part of an operation that ran at full rate."""
        self._record(operation, place, [(start_s, 0.0), (end_s, operation.seconds)])

    def _record(self, operation: Operation, place: Place, marks: list[tuple[float, float]]) -> None:
        """Keep a record per part; `marks` are (clock, work done), the rate constant between."""
        if self._records is None or not operation.seconds:
            return
        start_s, work_s = marks[0][0], 0.0
        for label, seconds, layer, experts, num_bytes in operation.parts:
            work_s += seconds
            end_s = _clock_at(work_s, marks)
            row = Record(self._resource, start_s, end_s, label, *place, layer, experts, num_bytes)
            self._records.append(row)
            start_s = end_s


class SteadyLane(Lane):
    """Lane that serves one operation at a time, always at full rate.

    The end of an operation is known as soon as it is queued.
    """

    _free_s = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self._free_s <= self._env.now

    def enter(self, job: Job) -> None:
        """Queue the next operation of a job; when it has ended the job advances."""
        now, seconds = self._env.now, job.operation.seconds
        start_s = max(now, self._free_s)
        self._free_s = start_s + seconds
        self.busy_s += seconds
        self.record(job.operation, job.place, start_s=start_s, end_s=self._free_s)
        timer = self._env.timeout(seconds if start_s == now else self._free_s - now)
        timer.callbacks.append(lambda _: job.advance(self._env.now))


class SharedLane(Lane):
    """Lane whose rate changes while operations run.

    Parameters
    ----------
    env, resource, records
        As for `Lane`.
    slots : int
        Operations served at the same time.

    Attributes
    ----------
    factor : float
        Share of the full rate at which operations proceed now.
    running : list of Job
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
        super().__init__(env, resource, records=records)
        self.factor = 1.0
        self.running: list[Job] = []
        self.on_change: Callable[[], None] | None = None
        self._slots = slots
        self._waiting: deque[Job] = deque()
        self._background: deque[Job] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running

    def enter(self, job: Job) -> None:
        """Queue the next operation of a job; when it has ended the job advances."""
        if len(self.running) == self._slots and not job.background:
            self._make_way()
        if len(self.running) < self._slots:
            self._start(job)
            self._changed()
            self._aim(job)
        else:
            (self._background if job.background else self._waiting).append(job)

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

    def _make_way(self) -> None:
        """Put a background job that has only just started back in front of its queue."""
        job = self.running[-1]
        started_s = job.operation.seconds * (1 - JUST_STARTED)
        done_s = (self._env.now - job.since_s) * self.factor
        if job.background and job.left_s - done_s >= started_s:
            job.timer = None
            self.running.remove(job)
            self._background.appendleft(job)

    def _start(self, job: Job) -> None:
        now = self._env.now
        job.since_s, job.left_s, job.marks = now, job.operation.seconds, [(now, 0.0)]
        job.timer = None
        self.running.append(job)

    def _aim(self, job: Job) -> None:
        """Set the timer of a job that has started, unless a change of rate has done so."""
        if job.timer is None:
            self._set_timer(job)

    def _set_timer(self, job: Job) -> None:
        """Aim at the end of a job; a timer set before is left to fire unheard."""
        job.timer = self._env.timeout(job.left_s / self.factor, value=job)
        job.timer.callbacks.append(self._finish)

    def _finish(self, timer: simpy.Event) -> None:
        job = cast("Job", timer.value)
        if timer is not job.timer:
            return
        self.running.remove(job)
        now = self._env.now
        self.busy_s += now - job.marks[0][0]
        self._record(job.operation, job.place, [*job.marks, (now, job.operation.seconds)])
        following = None
        if queue := self._waiting or self._background:
            following = queue.popleft()
            self._start(following)
        job.advance(now)  # before rates change: it may begin on another lane in this instant
        self._changed()
        if following is not None:
            self._aim(following)

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
        self._factors = host_memory_factors(contention, duplex)
        self._now = (1.0, 1.0, 1.0)
        for lane in (cpu, h2d, d2h):
            lane.on_change = self._share

    def _share(self) -> None:
        cpu, h2d, d2h = self._cpu, self._h2d, self._d2h
        factors = self._factors[bool(cpu.running), bool(h2d.running), bool(d2h.running)]
        if factors != self._now:
            self._now = factors
            for lane, factor in zip((cpu, h2d, d2h), factors, strict=True):
                if factor != lane.factor:
                    lane.set_factor(factor)


def host_memory_factors(contention: Contention, duplex: Duplex) -> Factors:
    """Return the shares of rate that CPU, h2d and d2h keep, by which of the three run."""
    return {
        running: _factors(*running, contention=contention, duplex=duplex)
        for running in product((False, True), repeat=3)
    }


def _factors(
    cpu: bool, up: bool, down: bool, *, contention: Contention, duplex: Duplex
) -> tuple[float, float, float]:
    """Return the shares of rate of CPU, h2d and d2h while those marked run; 1 for the idle."""
    beside_cpu = (contention.h2d_factor, contention.d2h_factor) if cpu else (1.0, 1.0)
    both_ways = (duplex.h2d_factor, duplex.d2h_factor) if up and down else (1.0, 1.0)
    return (
        contention.cpu_factor if cpu and (up or down) else 1.0,
        min(beside_cpu[0], both_ways[0]) if up else 1.0,
        min(beside_cpu[1], both_ways[1]) if down else 1.0,
    )


def _clock_at(work_s: float, marks: list[tuple[float, float]]) -> float:
    """Return when some work was done, between marks of (clock, work done) at constant rates."""
    for (clock, done), (next_clock, next_done) in pairwise(marks):
        if work_s < next_done:
            return clock + (next_clock - clock) * (work_s - done) / (next_done - done)
    return marks[-1][0]
