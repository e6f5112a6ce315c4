"""How engines execute one pass: which operations go to which lane, and what waits for what."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import simpy

from tidesim.engines import Promotion
from tidesim.latency import Direction
from tidesim.placement import PassPlacement
from tidesim.records import Counter, Resource
from tidesim.simulate.lanes import Job, Lane, SharedLane
from tidesim.simulate.operations import Operation, Part, Place, operation, single, unnamed
from tidesim.simulate.prices import PassPrices, Prices

Steps = Generator[simpy.Event, Any, None]


class Step(NamedTuple):
    """An operation and the resource it needs."""

    resource: Resource
    operation: Operation


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

    @property
    def place(self) -> Place:
        """The pass an operation of it belongs to."""
        pass_ = self.placement.pass_
        return Place(pass_.request, pass_.block, pass_.step)


class Machine:
    """Lanes and their clock.

    Parameters
    ----------
    env : simpy.Environment
    lanes : dict of Lane by Resource
    counters : list of Counter or None
        Where to add the bytes queued for the link, as they change.
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

    @property
    def quiet(self) -> bool:
        """Whether nothing runs that another operation could slow."""
        return not any(lane.running for lane in self._shared)

    def idle(self, resource: Resource) -> bool:
        """Whether a lane has nothing to do."""
        return self._lanes[resource].idle

    def start(self, steps: Iterable[Step], place: Place, *, background: bool = False) -> Job | None:
        """Start operations that follow one another; None where they take no time."""
        lanes = self._lanes
        stages = [(lanes[step.resource], step.operation) for step in steps if step[1].seconds]
        if not stages:
            return None
        job = Job(stages, place, self.env, background=background)
        stages[0][0].enter(job)
        return job

    def start_alone(self, steps: Iterable[Step], place: Place) -> Job | None:
        """Do as `start` where nothing runs or will run beside it: one event does for all."""
        lanes = self._lanes
        stages = [(lanes[step.resource], step.operation) for step in steps if step[1].seconds]
        if not stages:
            return None
        job = Job(stages, place, self.env)
        done = self.env.timeout(self._book(stages, place, job.ends_s))
        done.callbacks.append(lambda _: _succeed(job))
        return job

    def follow(self, steps: Iterable[Step], place: Place) -> Steps:
        """Start operations that follow one another and wait for the last."""
        lanes = self._lanes
        stages = [(lanes[step.resource], step.operation) for step in steps if step[1].seconds]
        if not stages:
            return
        if all(lane.idle for lane, _ in stages) and (
            self.quiet or not any(isinstance(lane, SharedLane) for lane, _ in stages)
        ):
            yield self.env.timeout(self._book(stages, place, []))
            return
        job = Job(stages, place, self.env)
        stages[0][0].enter(job)
        yield job.done

    def queue_bytes(self, num_bytes: int, job: Job | None) -> None:
        """Count bytes as queued for the link until a job has copied them."""
        if self._counters is not None and job is not None and num_bytes:
            self._count(num_bytes)
            assert job.done.callbacks is not None
            job.done.callbacks.append(lambda _: self._count(-num_bytes))

    def _count(self, num_bytes: int) -> None:
        assert self._counters is not None
        self._queued_bytes += num_bytes
        self._counters.append(Counter("link backlog", self.env.now, self._queued_bytes))

    def _book(
        self, stages: list[tuple[Lane, Operation]], place: Place, ends_s: list[float]
    ) -> float:
        """Serve operations at times that are known; return their seconds."""
        start_s = end_s = self.env.now
        seconds = 0.0
        for lane, each in stages:
            before_s, seconds = end_s, seconds + each.seconds
            end_s = start_s + seconds
            lane.book(each, place, start_s=before_s, end_s=end_s)
            ends_s.append(end_s)
        return seconds


def _succeed(job: Job) -> None:
    job.done.succeed()


class Names:
    """Operations of placed experts, named part by part where records are kept.

    Parameters
    ----------
    prices : Prices
    recorded : bool
        Whether anybody reads the names.
    """

    def __init__(self, prices: Prices, *, recorded: bool) -> None:
        self._prices, self._recorded = prices, recorded

    def write_backs(self, work: LayerWork, placement: PassPlacement) -> Operation:
        """Return the copies of evicted experts to the host."""
        if not (self._recorded and work.write_backs):
            return unnamed(work.write_backs)
        return self._copies(
            "write back", placement.decisions[work.number].evict, work, to_host=True
        )

    def promotions(self, work: LayerWork, placement: PassPlacement) -> Operation:
        """Return the copies of promoted experts to the GPU."""
        return self._copies("promote", placement.decisions[work.number].promote, work)

    def copies(
        self, work: LayerWork, placement: PassPlacement, *, promotion: Promotion
    ) -> Operation:
        """Return the copies that the pass waits for."""
        if not (self._recorded and work.copies):
            return unnamed(work.copies)
        streams = self._copies("stream", placement.decisions[work.number].stream, work)
        if promotion is Promotion.BACKGROUND:
            return streams
        return operation(self.promotions(work, placement).parts + streams.parts)

    def gpu_experts(self, work: LayerWork, placement: PassPlacement) -> Operation:
        """Return the GPU's experts of a layer."""
        if not self._recorded:
            return unnamed(work.gpu)
        experts = placement.gpu_load.experts[work.number]
        layer = self._prices.layers[work.number]
        return single(f"experts gpu ({experts})", work.gpu, layer, experts=experts)

    def misses(self, work: LayerWork, placement: PassPlacement) -> tuple[Step, ...]:
        """Return the CPU's experts of a layer with their transfers: nothing without misses."""
        if not work.result:
            return ()
        if not self._recorded:
            hidden, cpu, result = unnamed(work.hidden), unnamed(work.cpu), unnamed(work.result)
        else:
            experts = placement.cpu_load.experts[work.number]
            rows, layer = placement.cpu_load.pairs[work.number], self._prices.layers[work.number]
            down = self._prices.transfer("hidden", placement.pass_.tokens, Direction.D2H, layer)
            hidden = down._replace(seconds=work.hidden)
            cpu = single(f"experts cpu ({experts})", work.cpu, layer, experts=experts)
            result = self._prices.transfer("result", rows, Direction.H2D, layer)
        return (
            Step(Resource.D2H, hidden),
            Step(Resource.CPU, cpu),
            Step(Resource.H2D, result),
        )

    def _copies(
        self, verb: str, experts: tuple[int, ...], work: LayerWork, *, to_host: bool = False
    ) -> Operation:
        layer = self._prices.layers[work.number]
        return operation(self.copy(verb, expert, layer, to_host=to_host) for expert in experts)

    def copy(self, verb: str, expert: int, layer: int, *, to_host: bool = False) -> Part:
        """Return the copy of one expert."""
        return self._prices.copy(verb, expert, layer, to_host=to_host)


class Overlapped:
    """Run CPU, GPU and link at the same time.

    While the CPU computes a layer's misses and the link copies its promotions, the GPU runs the
    shared experts and then, once every copy it needs has landed, this layer's experts. Promotions
    in the background start after them, one job per expert; a later pass waits for those it uses.

    Parameters
    ----------
    machine : Machine
    prices : Prices
    names : Names
    promotion : Promotion

    Attributes
    ----------
    moments : list of tuple of float
        One row of `accounts.Moments` per layer run.
    delay_s : float
        Seconds that copies of expert ids took beyond their own.
    """

    def __init__(
        self, machine: Machine, prices: Prices, names: Names, *, promotion: Promotion
    ) -> None:
        self.moments: list[tuple[float, ...]] = []
        self.delay_s = 0.0
        self._machine, self._prices, self._names = machine, prices, names
        self._promotion = promotion
        self._under_way: dict[int, dict[int, Job]] = {}  # by layer, by expert

    def run(self, work: PassWork) -> Steps:
        """Run one pass."""
        machine, prices, place = self._machine, work.prices, work.place
        for layer in work.layers:
            index, began_s = layer.number, machine.env.now
            front, ids, host = prices.fronts[index], prices.ids[index], self._prices.host[index]
            quiet = machine.quiet
            yield from machine.follow(
                (Step(Resource.GPU, front), Step(Resource.D2H, ids), Step(Resource.HOST, host)),
                place,
            )
            if not quiet:
                own_s = front.seconds + ids.seconds + host.seconds
                self.delay_s += machine.env.now - began_s - own_s
            yield from self._layer(layer, work)
        tail, sync = Step(Resource.GPU, prices.tail), Step(Resource.HOST, self._prices.sync)
        yield from machine.follow((tail, sync), place)

    def finish(self) -> Steps:
        """Wait for promotions that are still under way."""
        for jobs in self._under_way.values():
            for job in jobs.values():
                if not job.done.triggered:
                    yield job.done

    def _layer(self, layer: LayerWork, work: PassWork) -> Steps:
        machine, names, placement = self._machine, self._names, work.placement
        placed_s = machine.env.now
        misses = names.misses(layer, placement)
        quiet = machine.quiet and not (layer.copies or layer.background or layer.write_backs)
        copied = None if quiet else self._copy(layer, work)
        start = machine.start_alone if quiet else machine.start
        missed = start(misses, work.place)
        shared = Step(Resource.GPU, work.prices.shared[layer.number])
        experts = Step(Resource.GPU, names.gpu_experts(layer, placement))
        landed_s = 0.0
        if quiet:
            yield from machine.follow((shared, experts), work.place)
        else:
            yield from machine.follow((shared,), work.place)
            shared_s = machine.env.now
            for job in self._awaited(copied, layer, placement):
                yield job.done
            landed_s = machine.env.now - placed_s if machine.env.now > shared_s else 0.0
            yield from machine.follow((experts,), work.place)
        gpu_end_s, freed = machine.env.now - placed_s, machine.idle(Resource.H2D)
        if layer.background:
            self._promote(layer, work)
        if missed is not None and not missed.done.processed:
            yield missed.done
        written_s = copied.ends_s[0] - placed_s if copied and layer.write_backs else 0.0
        ends_s = [end - placed_s for end in missed.ends_s] if missed else []
        self._note(layer, written_s, landed_s, gpu_end_s, ends_s, freed_s=gpu_end_s * freed)

    def _copy(self, layer: LayerWork, work: PassWork) -> Job | None:
        """Start write-backs, then the copies that want their slots."""
        names, placement = self._names, work.placement
        copies = names.copies(layer, placement, promotion=self._promotion)
        written = Step(Resource.D2H, names.write_backs(layer, placement))
        job = self._machine.start((written, Step(Resource.H2D, copies)), work.place)
        self._machine.queue_bytes(sum(part.num_bytes for part in copies.parts), job)
        return job

    def _awaited(
        self, copied: Job | None, layer: LayerWork, placement: PassPlacement
    ) -> Iterator[Job]:
        """Yield the copies under way that the GPU's experts need."""
        if copied is not None and not copied.done.processed:
            yield copied
        under_way = self._under_way.get(layer.number)
        if under_way:
            used = placement.gpu_tokens[layer.number]
            for expert, job in list(under_way.items()):
                if job.done.processed:
                    del under_way[expert]
                elif used[expert]:
                    yield job

    def _promote(self, layer: LayerWork, work: PassWork) -> None:
        """Start promotions in the background."""
        under_way = self._under_way.setdefault(layer.number, {})
        experts = work.placement.decisions[layer.number].promote
        for expert in experts:
            part = self._names.copy("promote", expert, self._prices.layers[layer.number])
            step = Step(Resource.H2D, Operation((part,), part.seconds))
            job = self._machine.start((step,), work.place, background=True)
            if job is not None:
                under_way[expert] = job
                self._machine.queue_bytes(part.num_bytes, job)

    def _note(
        self,
        layer: LayerWork,
        written_s: float,
        landed_s: float,
        gpu_end_s: float,
        ends_s: list[float],
        *,
        freed_s: float,
    ) -> None:
        """Keep the layer's moments; the result began when the link let it."""
        sent = served = returning = returned = 0.0
        if ends_s:
            sent, served, returned = ends_s
            returning = max(served, returned - layer.result)
            if returning - served <= 1e-9 * layer.result:
                returning = served
        moments = (layer.shared, layer.gpu, gpu_end_s, 0.0, written_s, landed_s)
        self.moments.append((*moments, sent, served, returning, returned, freed_s))


class Pageable(Overlapped):
    """Run as `Overlapped`, but every copy of pageable memory holds up the host.

    The host copies hidden states first, so that the CPU can begin, then write-backs and promotions,
    and starts the GPU's experts after the last of them.
    """

    def _layer(self, layer: LayerWork, work: PassWork) -> Steps:
        machine, names, placement = self._machine, self._names, work.placement
        placed_s = machine.env.now
        misses = names.misses(layer, placement)
        shared = machine.start((Step(Resource.GPU, work.prices.shared[layer.number]),), work.place)
        yield from machine.follow(misses[:1], work.place)
        sent_s = machine.env.now - placed_s
        missed = machine.start(misses[1:2], work.place)
        copied = self._copy(layer, work)
        if copied is not None:
            yield copied.done
        landed_s = machine.env.now - placed_s
        experts = Step(Resource.GPU, names.gpu_experts(layer, placement))
        computed = machine.start((experts,), work.place) or shared
        if missed is not None and not missed.done.processed:
            yield missed.done
        yield from machine.follow(misses[2:], work.place)
        returned_s = machine.env.now - placed_s
        if computed is not None and not computed.done.processed:
            yield computed.done
        gpu_end_s = max(landed_s, computed.ends_s[0] - placed_s if computed else 0.0)
        written_s = copied.ends_s[0] - placed_s if copied and layer.write_backs else sent_s
        self._note_blocked(
            layer, missed, placed_s, (sent_s, written_s, landed_s, returned_s), gpu_end_s
        )

    def _note_blocked(
        self,
        layer: LayerWork,
        missed: Job | None,
        placed_s: float,
        ends_s: tuple[float, float, float, float],
        gpu_end_s: float,
    ) -> None:
        sent, written, landed, returned = ends_s
        served = missed.ends_s[0] - placed_s if missed else sent
        returning = max(served, landed)
        row = (layer.shared, layer.gpu, gpu_end_s, sent, written, landed, sent, served, returning)
        self.moments.append((*row, returned if layer.result else returning, 0.0))


class Serial:
    """Run one operation at a time: no lane ever works beside another."""

    def __init__(
        self, machine: Machine, prices: Prices, names: Names, *, promotion: Promotion
    ) -> None:
        self._machine, self._prices, self._names = machine, prices, names
        self._late = promotion is Promotion.BACKGROUND

    def run(self, work: PassWork, *, recorded: bool) -> Steps:
        """Run one pass; its experts are told apart only where records are kept."""
        yield from self._machine.follow(self._steps(work, recorded=recorded), work.place)

    def _steps(self, work: PassWork, *, recorded: bool) -> Iterator[Step]:
        prices, looped = work.prices, recorded and self._prices.engine.looped
        for layer in work.layers:
            experts = self._one_by_one(layer, work) if looped else self._together(layer, work)
            yield Step(Resource.GPU, prices.fronts[layer.number])
            yield Step(Resource.HOST, self._prices.host[layer.number])
            if not self._late:
                yield from self._moves(layer, work, looped=looped)
            yield from experts
            if self._late:
                yield from self._moves(layer, work, looped=looped)
            yield Step(Resource.GPU, prices.shared[layer.number])
        yield Step(Resource.GPU, prices.tail)
        yield Step(Resource.HOST, self._prices.sync)

    def _moves(self, layer: LayerWork, work: PassWork, *, looped: bool) -> Iterator[Step]:
        """Yield write-backs, then promotions, and streamed experts unless they come one by one."""
        names, placement = self._names, work.placement
        yield Step(Resource.D2H, names.write_backs(layer, placement))
        if looped:
            promoted = names.promotions(layer, placement) if layer.copies else unnamed(0.0)
        else:
            promoted = names.copies(layer, placement, promotion=Promotion.BLOCKING)
        yield Step(Resource.H2D, promoted)

    def _together(self, layer: LayerWork, work: PassWork) -> Iterator[Step]:
        """Yield one call for the GPU's experts and one for the CPU's."""
        yield Step(Resource.GPU, self._names.gpu_experts(layer, work.placement))
        yield from self._names.misses(layer, work.placement)

    def _one_by_one(self, layer: LayerWork, work: PassWork) -> Iterator[Step]:
        """Yield the experts that have tokens in id order, each copy where it is needed."""
        prices, placement = self._prices, work.placement
        index, number = layer.number, prices.layers[layer.number]
        streamed = placement.decisions[index].stream
        on_gpu, on_cpu = placement.gpu_tokens[index].tolist(), placement.cpu_tokens[index].tolist()
        for expert, (gpu, cpu) in enumerate(zip(on_gpu, on_cpu, strict=True)):
            if expert in streamed:
                yield Step(Resource.H2D, operation([prices.copy("stream", expert, number)]))
            if gpu:
                seconds = prices.gpu_expert_s(gpu)
                one = single(f"expert {expert} gpu", seconds, number, experts=1)
                yield Step(Resource.GPU, one)
            if cpu:
                seconds = prices.cpu_expert_s(cpu)
                one = single(f"expert {expert} cpu", seconds, number, experts=1)
                down, up = Direction.D2H, Direction.H2D
                yield Step(Resource.D2H, prices.transfer(f"hidden {expert}", cpu, down, number))
                yield Step(Resource.CPU, one)
                yield Step(Resource.H2D, prices.transfer(f"result {expert}", cpu, up, number))
