"""How engines execute one pass: which operations go to which lane, and what waits for what."""

from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import simpy

from tidesim.latency import Direction
from tidesim.placement import KEEP, PassPlacement
from tidesim.records import Resource
from tidesim.simulate.lanes import Job, Lane
from tidesim.simulate.operations import Operation, Place, Wait, operation, single
from tidesim.simulate.prices import Prices

Steps = Generator[simpy.Event, Any, None]


class Step(NamedTuple):
    """An operation, the resource it needs and what waiting for it counts as."""

    resource: Resource
    operation: Operation
    purpose: Wait


class Machine:
    """Lanes, their clock, and what the run has waited for.

    Parameters
    ----------
    env : simpy.Environment
    lanes : dict of Lane by Resource
    """

    def __init__(self, env: simpy.Environment, lanes: dict[Resource, Lane]) -> None:
        self.env = env
        self.waited_s = dict.fromkeys(Wait, 0.0)
        self._lanes = lanes

    def start(self, steps: Iterable[Step], place: Place) -> simpy.Event | None:
        """Start operations that follow one another; None where they take no time."""
        job = self._send([step for step in steps if step.operation.seconds], place)
        return job.done if job else None

    def follow(self, steps: Iterable[Step], place: Place) -> Steps:
        """Start operations that follow one another and wait for each."""
        lasting = [step for step in steps if step.operation.seconds]
        start_s, job = self.env.now, self._send(lasting, place)
        if job:
            yield job.done
            for step, end_s in zip(lasting, job.ends_s, strict=True):
                self.waited_s[step.purpose] += end_s - start_s
                start_s = end_s

    def wait(self, event: simpy.Event | None, purpose: Wait) -> Steps:
        """Wait for what was started, if anything was."""
        if event is not None:
            start_s = self.env.now
            yield event
            self.waited_s[purpose] += self.env.now - start_s

    def _send(self, steps: list[Step], place: Place) -> Job | None:
        if not steps:
            return None
        lanes = self._lanes
        stages = [(lanes[step.resource], step.operation) for step in steps]
        job = Job(stages, place, self.env)
        stages[0][0].enter(job)
        return job


class Overlapped:
    """Run CPU, GPU and link at the same time.

    While the CPU computes a layer's misses and the link copies its promotions, the GPU runs the
    shared experts and then, once every copy has landed, this layer's experts.
    """

    def __init__(self, machine: Machine, prices: Prices) -> None:
        self._machine, self._prices = machine, prices

    def run(self, placement: PassPlacement) -> Steps:
        """Run one pass."""
        machine, prices = self._machine, self._prices.of_pass(placement.pass_)
        place = _place(placement)
        for index in range(len(self._prices.layers)):
            yield from machine.follow(
                (
                    Step(Resource.GPU, prices.fronts[index], Wait.GPU),
                    Step(Resource.D2H, prices.ids[index], Wait.HOST),
                    Step(Resource.HOST, self._prices.host[index], Wait.HOST),
                ),
                place,
            )
            landed = machine.start(self._copies(placement, index), place)
            missed = machine.start(_cpu_share(placement, index, self._prices), place)
            shared = Step(Resource.GPU, prices.shared[index], Wait.GPU)
            experts = Step(Resource.GPU, _gpu_share(placement, index, self._prices), Wait.GPU)
            if landed is None:
                yield from machine.follow((shared, experts), place)
            else:
                yield from machine.follow((shared,), place)
                yield from machine.wait(landed, Wait.LINK)
                yield from machine.follow((experts,), place)
            yield from machine.wait(missed, Wait.CPU)
        tail = Step(Resource.GPU, prices.tail, Wait.GPU)
        sync = Step(Resource.HOST, self._prices.sync, Wait.HOST)
        yield from machine.follow((tail, sync), place)

    def _copies(self, placement: PassPlacement, index: int) -> Iterator[Step]:
        """Yield write-backs, then the copies that want their slots."""
        decision, layer = placement.decisions[index], self._prices.layers[index]
        if decision is not KEEP:
            written = self._prices.write_backs(decision, layer)
            promotions = self._prices.promotions(decision, layer)
            streams = self._prices.streams(decision, layer)
            copies = operation(promotions.parts + streams.parts)
            yield Step(Resource.D2H, written, Wait.LINK)
            yield Step(Resource.H2D, copies, Wait.LINK)


class Serial:
    """Run one operation at a time: no lane ever works beside another."""

    def __init__(self, machine: Machine, prices: Prices) -> None:
        self._machine, self._prices = machine, prices

    def run(self, placement: PassPlacement) -> Steps:
        """Run one pass."""
        yield from self._machine.follow(self._steps(placement), _place(placement))

    def _steps(self, placement: PassPlacement) -> Iterator[Step]:
        prices = self._prices.of_pass(placement.pass_)
        experts = self._one_by_one if self._prices.engine.looped else self._together
        for index in range(len(self._prices.layers)):
            yield Step(Resource.GPU, prices.fronts[index], Wait.GPU)
            yield Step(Resource.HOST, self._prices.host[index], Wait.HOST)
            yield from self._moves(placement, index)
            yield from experts(placement, index)
            yield Step(Resource.GPU, prices.shared[index], Wait.GPU)
        yield Step(Resource.GPU, prices.tail, Wait.GPU)
        yield Step(Resource.HOST, self._prices.sync, Wait.HOST)

    def _moves(self, placement: PassPlacement, index: int) -> Iterator[Step]:
        """Yield write-backs, then promotions."""
        decision, layer = placement.decisions[index], self._prices.layers[index]
        if decision is not KEEP:
            yield Step(Resource.D2H, self._prices.write_backs(decision, layer), Wait.LINK)
            yield Step(Resource.H2D, self._prices.promotions(decision, layer), Wait.LINK)

    def _together(self, placement: PassPlacement, index: int) -> Iterator[Step]:
        """Yield one call for the GPU's experts and one for the CPU's."""
        streams = self._prices.streams(placement.decisions[index], self._prices.layers[index])
        yield Step(Resource.H2D, streams, Wait.LINK)
        yield Step(Resource.GPU, _gpu_share(placement, index, self._prices), Wait.GPU)
        yield from _cpu_share(placement, index, self._prices)

    def _one_by_one(self, placement: PassPlacement, index: int) -> Iterator[Step]:
        """Yield the experts that have tokens in id order, each copy where it is needed."""
        prices, layer = self._prices, self._prices.layers[index]
        streamed = placement.decisions[index].stream
        on_gpu, on_cpu = placement.gpu_tokens[index].tolist(), placement.cpu_tokens[index].tolist()
        for expert, (gpu, cpu) in enumerate(zip(on_gpu, on_cpu, strict=True)):
            if expert in streamed:
                yield Step(Resource.H2D, prices.stream(expert, layer), Wait.LINK)
            if gpu:
                one = single(f"expert {expert} gpu", prices.gpu_expert_s(gpu), layer)
                yield Step(Resource.GPU, one, Wait.GPU)
            if cpu:
                down, up = prices.hidden_s(cpu, Direction.D2H), prices.hidden_s(cpu, Direction.H2D)
                one = single(f"expert {expert} cpu", prices.cpu_expert_s(cpu), layer)
                yield Step(Resource.D2H, single(f"hidden {expert}", down, layer), Wait.CPU)
                yield Step(Resource.CPU, one, Wait.CPU)
                yield Step(Resource.H2D, single(f"result {expert}", up, layer), Wait.CPU)


def _place(placement: PassPlacement) -> Place:
    pass_ = placement.pass_
    return Place(pass_.request, pass_.block, pass_.step)


def _gpu_share(placement: PassPlacement, index: int, prices: Prices) -> Operation:
    """Return the GPU's experts of a layer, in one operation."""
    label = f"experts gpu ({placement.gpu_load.experts[index]})"
    return single(label, prices.gpu_experts_s(placement, index), prices.layers[index])


def _cpu_share(placement: PassPlacement, index: int, prices: Prices) -> Iterator[Step]:
    """Yield the CPU's experts of a layer with their transfers: nothing without misses."""
    rows, layer = placement.cpu_load.pairs[index], prices.layers[index]
    if rows:
        label = f"experts cpu ({placement.cpu_load.experts[index]})"
        hidden_s = prices.hidden_s(placement.pass_.tokens, Direction.D2H)
        seconds = prices.cpu_experts_s(placement, index)
        result_s = prices.hidden_s(rows, Direction.H2D)
        yield Step(Resource.D2H, single("hidden", hidden_s, layer), Wait.CPU)
        yield Step(Resource.CPU, single(label, seconds, layer), Wait.CPU)
        yield Step(Resource.H2D, single("result", result_s, layer), Wait.CPU)
