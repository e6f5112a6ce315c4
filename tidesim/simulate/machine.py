"""The machine of a run: lanes and their clock, and what a pass asks of them."""

from collections.abc import Generator, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import simpy

from tidesim.placement import PassPlacement
from tidesim.records import Counter, Resource
from tidesim.simulate.lanes import Job, Lane, SharedLane
from tidesim.simulate.operations import Operation, Place
from tidesim.simulate.prices import PassPrices

Steps = Generator[simpy.Event, Any, None]


_RUNNING = attrgetter("running")


# An operation and the resource it needs.
Step = tuple[Resource, Operation]


class LayerWork(NamedTuple):
    """One row of `work.Work`, with the number of the mixture layer."""

    number: int
    shared: float
    gpu: float
    write_backs: float
    copies: float
    hidden: float
    cpu: float
    result: float
    background: float


class PassWork(NamedTuple):
    """A placed pass, its prices and what its layers do."""

    placement: PassPlacement
    prices: PassPrices
    layers: Sequence[LayerWork]
    place: Place


class Machine:
    """Lanes and their clock.

    Parameters
    ----------
    env : simpy.Environment
    lanes : dict of Lane by Resource
    counters : list of Counter or None
        Where to add the bytes queued for the link, as they change.

    Attributes
    ----------
    ahead_s : float
        Seconds that are booked beyond the clock: while nobody can slow an operation its end is
        known at once, so that one event does for all until somebody can.
    """

    def __init__(
        self,
        env: simpy.Environment,
        lanes: dict[Resource, Lane],
        *,
        counters: list[Counter] | None = None,
    ) -> None:
        self.env = env
        self._lanes = lanes
        self._shared = [lane for lane in lanes.values() if isinstance(lane, SharedLane)]
        self._counters = counters
        self._queued_bytes = 0
        self.ahead_s = 0.0

    @property
    def quiet(self) -> bool:
        """Whether nothing runs that another operation could slow."""
        return not any(map(_RUNNING, self._shared))

    def idle(self, resource: Resource) -> bool:
        """Whether a lane has nothing to do."""
        return self._lanes[resource].idle

    def start(self, steps: Iterable[Step], place: Place, *, background: bool = False) -> Job | None:
        """Start operations that follow one another; None where they take no time."""
        lanes = self._lanes
        stages = [(lanes[resource], each) for resource, each in steps]
        if not any(each.seconds for _, each in stages):
            return None
        job = Job(stages, place, self.env, background=background)
        stages[0][0].enter(job)
        return job

    def alone(self, steps: Iterable[Step], place: Place) -> simpy.Event:
        """Run operations that follow one another on idle lanes where nobody can slow them."""
        self.ahead_s = self.serve(steps, place)[-1]
        return self.catch_up()

    def serve(self, steps: Iterable[Step], place: Place) -> list[float]:
        """Book operations one after another from `ahead_s` on; return their ends on its scale."""
        lanes, recorded = self._lanes, self._counters is not None
        start_s, seconds = self.env.now, self.ahead_s
        end_s, ends_s = start_s + seconds, []
        for resource, each in steps:
            lane = lanes[resource]
            lane.busy_s += each.seconds
            seconds += each.seconds
            ends_s.append(seconds)
            if recorded:
                before_s, end_s = end_s, start_s + seconds
                lane.record(each, place, start_s=before_s, end_s=end_s)
                if resource is Resource.H2D:
                    self._count_alone(each, before_s, end_s)
        return ends_s

    def add_busy(self, resource: Resource, seconds: float) -> None:
        """Count what a lane has worked, without a record."""
        self._lanes[resource].busy_s += seconds

    def catch_up(self) -> simpy.Event:
        """Let the clock go on to the end of what is booked."""
        seconds, self.ahead_s = self.ahead_s, 0.0
        return self.env.timeout(seconds)

    def queue_bytes(self, num_bytes: int, job: Job | None) -> None:
        """Count bytes as queued for the link until a job has copied them."""
        if self._counters is not None and job is not None and num_bytes:
            self._count(num_bytes)
            assert job.done.callbacks is not None
            job.done.callbacks.append(lambda _: self._count(-num_bytes))

    def _count(self, num_bytes: int) -> None:
        self._queued_bytes += num_bytes
        self._note(self.env.now, self._queued_bytes)

    def _count_alone(self, operation: Operation, start_s: float, end_s: float) -> None:
        """Count the bytes of experts that are copied while everything else waits."""
        num_bytes = sum(part.num_bytes for part in operation.parts if part.experts)
        if num_bytes:
            self._note(start_s, num_bytes)
            self._note(end_s, 0)

    def _note(self, time_s: float, num_bytes: int) -> None:
        assert self._counters is not None
        self._counters.append(Counter("link backlog (bytes)", time_s, num_bytes))
