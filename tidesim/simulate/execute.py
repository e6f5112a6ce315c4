"""How engines execute one pass: which operations go to which lane, and what waits for what."""

from collections.abc import Generator, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import simpy

from tidesim.latency import Direction
from tidesim.placement import KEEP, Decision, PassPlacement
from tidesim.records import Resource
from tidesim.simulate.lanes import Lane
from tidesim.simulate.operations import Operation, Part, Place, Wait, operation, single
from tidesim.simulate.prices import Prices

Steps = Generator[simpy.Event, Any, None]


class Machine:
    """Lanes, their clock, and what the run has waited for.

    Parameters
    ----------
    env : simpy.Environment
    lanes : dict of Lane by Resource
    """

    def __init__(self, env: simpy.Environment, lanes: dict[Resource, Lane]) -> None:
        self.env = env
        self.lanes = lanes
        self.waited_s = dict.fromkeys(Wait, 0.0)

    def do(self, resource: Resource, work: Operation, place: Place, purpose: Wait) -> Steps:
        """Queue an operation and wait for its end; skip one that takes no time."""
        if work.seconds:
            yield from self.wait(self.lanes[resource].submit(work, place), purpose)

    def wait(self, event: simpy.Event, purpose: Wait) -> Steps:
        """Wait, and remember what for."""
        start_s = self.env.now
        yield event
        self.waited_s[purpose] += self.env.now - start_s


class Overlapped:
    """Run CPU, GPU and link at the same time.

    While the CPU computes a layer's misses and the link copies its promotions, the GPU runs the
    shared experts and then, once every copy has landed, this layer's experts.
    """

    def __init__(self, machine: Machine, prices: Prices) -> None:
        self._machine, self._prices = machine, prices

    def run(self, placement: PassPlacement) -> Steps:
        """Run one pass."""
        do, wait = self._machine.do, self._machine.wait
        prices, place = self._prices.of_pass(placement.pass_), _place(placement)
        for index in range(len(self._prices.layers)):
            yield from do(Resource.GPU, prices.fronts[index], place, Wait.GPU)
            yield from do(Resource.D2H, prices.ids[index], place, Wait.HOST)
            yield from do(Resource.HOST, self._prices.host[index], place, Wait.HOST)
            landed = self._copy_experts(placement, index)
            missed = self._compute_misses(placement, index)
            yield from do(Resource.GPU, prices.shared[index], place, Wait.GPU)
            if landed is not None:
                yield from wait(landed, Wait.LINK)
            experts = _gpu_share(placement, index, self._prices)
            yield from do(Resource.GPU, experts, place, Wait.GPU)
            if missed is not None:
                yield from wait(missed, Wait.CPU)
        yield from do(Resource.GPU, prices.tail, place, Wait.GPU)
        yield from do(Resource.HOST, self._prices.sync, place, Wait.HOST)

    def _copy_experts(self, placement: PassPlacement, index: int) -> simpy.Event | None:
        """Start a layer's copies of experts; the event fires when the last has landed."""
        decision, layer = placement.decisions[index], self._prices.layers[index]
        if decision is KEEP:
            return None
        promotions = self._prices.promotions(decision, layer)
        streams = self._prices.streams(decision, layer)
        copies = operation(promotions.parts + streams.parts)
        written = self._prices.write_backs(decision, layer)  # before their slots are used again
        branch = ((Resource.D2H, written), (Resource.H2D, copies))
        return self._start(branch, _place(placement))

    def _compute_misses(self, placement: PassPlacement, index: int) -> simpy.Event | None:
        """Start the CPU's share of a layer; the event fires when its result is on the GPU."""
        return self._start(_cpu_share(placement, index, self._prices), _place(placement))

    def _start(
        self, branch: Iterable[tuple[Resource, Operation]], place: Place
    ) -> simpy.Event | None:
        """Start operations that follow one another beside the GPU."""
        lasting = [(resource, work) for resource, work in branch if work.seconds]
        if len(lasting) > 1:
            return self._machine.env.process(self._chain(lasting, place))
        for resource, work in lasting:
            return self._machine.lanes[resource].submit(work, place)
        return None

    def _chain(self, branch: list[tuple[Resource, Operation]], place: Place) -> Steps:
        for resource, work in branch:
            yield self._machine.lanes[resource].submit(work, place)


class _Step(NamedTuple):
    resource: Resource
    purpose: Wait
    part: Part


class Serial:
    """Run one operation at a time: no lane ever works beside another."""

    def __init__(self, machine: Machine, prices: Prices) -> None:
        self._machine, self._prices = machine, prices

    def run(self, placement: PassPlacement) -> Steps:
        """Run one pass."""
        place = _place(placement)
        for (resource, purpose), steps in groupby(self._steps(placement), key=_lane_and_purpose):
            together = operation(step.part for step in steps)
            yield from self._machine.do(resource, together, place, purpose)

    def _steps(self, placement: PassPlacement) -> Iterator[_Step]:
        prices = self._prices.of_pass(placement.pass_)
        for index in range(len(self._prices.layers)):
            yield from _steps_of(prices.fronts[index], Resource.GPU, Wait.GPU)
            yield from _steps_of(self._prices.host[index], Resource.HOST, Wait.HOST)
            yield from self._moves(placement, index)
            looped = self._prices.engine.looped
            yield from (self._one_by_one if looped else self._together)(placement, index)
            yield from _steps_of(prices.shared[index], Resource.GPU, Wait.GPU)
        yield from _steps_of(prices.tail, Resource.GPU, Wait.GPU)
        yield from _steps_of(self._prices.sync, Resource.HOST, Wait.HOST)

    def _moves(self, placement: PassPlacement, index: int) -> Iterator[_Step]:
        """Yield write-backs, then promotions."""
        decision, layer = placement.decisions[index], self._prices.layers[index]
        if decision is not KEEP:
            written = self._prices.write_backs(decision, layer)
            yield from _steps_of(written, Resource.D2H, Wait.LINK)
            promotions = self._prices.promotions(decision, layer)
            yield from _steps_of(promotions, Resource.H2D, Wait.LINK)

    def _together(self, placement: PassPlacement, index: int) -> Iterator[_Step]:
        """Yield one call for the GPU's experts and one for the CPU's."""
        streams = self._prices.streams(placement.decisions[index], self._prices.layers[index])
        yield from _steps_of(streams, Resource.H2D, Wait.LINK)
        yield from _steps_of(_gpu_share(placement, index, self._prices), Resource.GPU, Wait.GPU)
        for resource, work in _cpu_share(placement, index, self._prices):
            yield from _steps_of(work, resource, Wait.CPU)

    def _one_by_one(self, placement: PassPlacement, index: int) -> Iterator[_Step]:
        """Yield the experts that have tokens in id order, each copy where it is needed."""
        prices, layer = self._prices, self._prices.layers[index]
        streamed = placement.decisions[index].stream
        on_gpu, on_cpu = placement.gpu_tokens[index].tolist(), placement.cpu_tokens[index].tolist()
        for expert, (gpu, cpu) in enumerate(zip(on_gpu, on_cpu, strict=True)):
            if expert in streamed:
                copy = Decision(stream=(expert,))
                yield from _steps_of(prices.streams(copy, layer), Resource.H2D, Wait.LINK)
            if gpu:
                part = Part(f"expert {expert} gpu", prices.gpu_expert_s(gpu), layer)
                yield _Step(Resource.GPU, Wait.GPU, part)
            if cpu:
                down, up = (prices.hidden_s(cpu, direction) for direction in _DOWN_AND_UP)
                part = Part(f"expert {expert} cpu", prices.cpu_expert_s(cpu), layer)
                yield _Step(Resource.D2H, Wait.CPU, Part(f"hidden {expert}", down, layer))
                yield _Step(Resource.CPU, Wait.CPU, part)
                yield _Step(Resource.H2D, Wait.CPU, Part(f"result {expert}", up, layer))


_DOWN_AND_UP = (Direction.D2H, Direction.H2D)


def _place(placement: PassPlacement) -> Place:
    pass_ = placement.pass_
    return Place(pass_.request, pass_.block, pass_.step)


def _steps_of(work: Operation, resource: Resource, purpose: Wait) -> Iterator[_Step]:
    return (_Step(resource, purpose, part) for part in work.parts)


def _lane_and_purpose(step: _Step) -> tuple[Resource, Wait]:
    return step.resource, step.purpose


def _gpu_share(placement: PassPlacement, index: int, prices: Prices) -> Operation:
    """Return the GPU's experts of a layer, in one operation."""
    label = f"experts gpu ({placement.gpu_load.experts[index]})"
    return single(label, prices.gpu_experts_s(placement, index), prices.layers[index])


def _cpu_share(
    placement: PassPlacement, index: int, prices: Prices
) -> Iterator[tuple[Resource, Operation]]:
    """Yield the CPU's experts of a layer with their transfers: nothing without misses."""
    rows, layer = placement.cpu_load.pairs[index], prices.layers[index]
    if rows:
        label = f"experts cpu ({placement.cpu_load.experts[index]})"
        hidden_s = prices.hidden_s(placement.pass_.tokens, Direction.D2H)
        seconds = prices.cpu_experts_s(placement, index)
        result_s = prices.hidden_s(rows, Direction.H2D)
        yield Resource.D2H, single("hidden", hidden_s, layer)
        yield Resource.CPU, single(label, seconds, layer)
        yield Resource.H2D, single("result", result_s, layer)
