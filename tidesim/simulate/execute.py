"""How engines execute one pass: which operations go to which lane, and what waits for what."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from tidesim.engines import Promotion
from tidesim.latency import Direction
from tidesim.placement import PassPlacement
from tidesim.records import Resource
from tidesim.simulate.lanes import Job
from tidesim.simulate.machine import LayerWork, Machine, PassWork, Step, Steps
from tidesim.simulate.names import Names
from tidesim.simulate.operations import Operation, Place, operation, single, unnamed
from tidesim.simulate.prices import SIZES, PassPrices, Prices

_NO_MISSES = (0.0, 0.0, 0.0)


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
        self._fixed = lru_cache(maxsize=SIZES)(self._fixed_steps)

    def run(self, work: PassWork) -> Steps:
        """Run one pass."""
        machine, prices, place = self._machine, work.prices, work.place
        for layer, (steps, shared) in zip(work.layers, self._fixed(prices), strict=True):
            if machine.quiet:
                machine.ahead_s = machine.serve(steps, place)[-1]
            else:
                yield from self._beside_promotions(steps, place)
            yield from self._layer(layer, work, shared)
        tail, sync = (Resource.GPU, prices.tail), (Resource.HOST, self._prices.sync)
        yield machine.alone((tail, sync), place)

    def _fixed_steps(self, prices: PassPrices) -> list[tuple[tuple[Step, ...], Step]]:
        """Return what leads to every layer's experts, and its shared experts."""
        operations = zip(prices.fronts, prices.ids, self._prices.host, prices.shared, strict=True)
        resources = (Resource.GPU, Resource.D2H, Resource.HOST)
        return [
            (tuple(zip(resources, lead, strict=True)), (Resource.GPU, shared))
            for *lead, shared in operations
        ]

    def _beside_promotions(self, steps: tuple[Step, ...], place: Place) -> Steps:
        """Run what leads to a layer's experts while earlier promotions use the link."""
        began_s = self._machine.env.now
        job = self._machine.start(steps, place)
        if job is not None:
            yield job.done
            own_s = sum(each.seconds for _, each in steps)
            self.delay_s += self._machine.env.now - began_s - own_s

    def finish(self) -> Steps:
        """Wait for promotions that are still under way."""
        for jobs in self._under_way.values():
            for job in jobs.values():
                if not job.done.triggered:
                    yield job.done

    def _layer(self, layer: LayerWork, work: PassWork, shared: Step) -> Steps:
        machine = self._machine
        if machine.quiet and not (layer.copies or layer.background or layer.write_backs):
            self._undisturbed(layer, work, shared)
        else:
            if machine.ahead_s:
                yield machine.catch_up()
            yield from self._beside_copies(layer, work, shared)

    def _undisturbed(self, layer: LayerWork, work: PassWork, shared: Step) -> None:
        """Book a layer's experts where nothing else runs: both sides end when their sums say."""
        machine, names = self._machine, self._names
        sent_s = layer.hidden
        served_s = sent_s + layer.cpu
        gpu_end_s, returned_s = layer.shared + layer.gpu, served_s + layer.result
        if names.recorded:
            experts = (Resource.GPU, names.gpu_experts(layer, work.placement))
            misses = names.misses(layer, work.placement)
            ends_s = machine.serve((shared, experts), work.place)
            ends_s += machine.serve(misses, work.place)
            machine.ahead_s = max(ends_s)  # rounded as the records are, that none overlaps
        else:
            machine.ahead_s += max(gpu_end_s, returned_s)
            machine.add_busy(Resource.GPU, gpu_end_s)
            machine.add_busy(Resource.D2H, layer.hidden)
            machine.add_busy(Resource.CPU, layer.cpu)
            machine.add_busy(Resource.H2D, layer.result)
        self._note(layer, gpu_end_s, (sent_s, served_s, returned_s))

    def _beside_copies(self, layer: LayerWork, work: PassWork, shared: Step) -> Steps:
        """Run a layer's experts while the link copies."""
        machine, placed_s = self._machine, self._machine.env.now
        copied = self._copy(layer, work)
        missed = machine.start(self._names.misses(layer, work.placement), work.place)
        experts = (Resource.GPU, self._names.gpu_experts(layer, work.placement))
        yield machine.alone((shared,), work.place)
        shared_s = machine.env.now
        for job in self._awaited(copied, layer, work.placement):
            yield job.done
        landed_s = machine.env.now - placed_s if machine.env.now > shared_s else 0.0
        yield machine.alone((experts,), work.place)
        gpu_end_s = machine.env.now - placed_s
        freed_s = gpu_end_s if machine.idle(Resource.H2D) else 0.0
        if layer.background:
            self._promote(layer, work)
        written_s = copied.ends_s[0] - placed_s if copied and layer.write_backs else 0.0
        if missed is None:
            self._note(layer, gpu_end_s, _NO_MISSES, written_s=written_s, landed_s=landed_s)
            return
        if not missed.done.processed:
            yield missed.done
        self._note(
            layer,
            gpu_end_s,
            [end_s - placed_s for end_s in missed.ends_s],
            written_s=written_s,
            landed_s=landed_s,
            began_s=missed.marks[0][0] - placed_s,
            freed_s=freed_s,
        )

    def _note(
        self,
        layer: LayerWork,
        gpu_end_s: float,
        ends_s: Sequence[float],
        *,
        written_s: float = 0.0,
        landed_s: float = 0.0,
        began_s: float | None = None,
        freed_s: float = 0.0,
    ) -> None:
        """Keep the layer's moments; its result began as soon as it could, or at `began_s`."""
        sent_s, served_s, returned_s = ends_s
        returning_s = served_s if began_s is None else began_s
        moments = (layer.shared, layer.gpu, gpu_end_s, 0.0, written_s, landed_s)
        self.moments.append((*moments, sent_s, served_s, returning_s, returned_s, freed_s))

    def _copy(self, layer: LayerWork, work: PassWork) -> Job | None:
        """Start write-backs, then the copies that want their slots."""
        names, placement = self._names, work.placement
        copies = names.copies(layer, placement, promotion=self._promotion)
        steps = [(Resource.H2D, copies)]
        if layer.write_backs:
            steps.insert(0, (Resource.D2H, names.write_backs(layer, placement)))
        job = self._machine.start(steps, work.place)
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
            step = (Resource.H2D, Operation((part,), part.seconds))
            job = self._machine.start((step,), work.place, background=True)
            if job is not None:
                under_way[expert] = job
                self._machine.queue_bytes(part.num_bytes, job)


class Pageable(Overlapped):
    """Run as `Overlapped`, but every copy of pageable memory holds up the host.

    The host copies hidden states first, so that the CPU can begin, then write-backs and promotions,
    and starts the GPU's experts after the last of them.
    """

    def _layer(self, layer: LayerWork, work: PassWork, shared: Step) -> Steps:
        machine, names, placement = self._machine, self._names, work.placement
        if machine.ahead_s:
            yield machine.catch_up()
        placed_s = machine.env.now
        misses = names.misses(layer, placement)
        beside = machine.start((shared,), work.place)
        yield from self._hold_up(misses[:1], work.place)
        sent_s = machine.env.now - placed_s
        missed = machine.start(misses[1:2], work.place)
        copied = self._copy(layer, work)
        if copied is not None:
            yield copied.done
        landed_s = machine.env.now - placed_s
        experts = (Resource.GPU, names.gpu_experts(layer, placement))
        computed = machine.start((experts,), work.place) or beside
        if missed is not None and not missed.done.processed:
            yield missed.done
        returning_s = machine.env.now - placed_s
        yield from self._hold_up(misses[2:], work.place)
        returned_s = machine.env.now - placed_s
        if computed is not None and not computed.done.processed:
            yield computed.done
        gpu_end_s = max(landed_s, computed.ends_s[0] - placed_s if computed else 0.0)
        written_s = copied.ends_s[0] - placed_s if copied and layer.write_backs else sent_s
        served_s = missed.ends_s[0] - placed_s if missed else sent_s
        moments = (layer.shared, layer.gpu, gpu_end_s, sent_s, written_s, landed_s)
        self.moments.append((*moments, sent_s, served_s, returning_s, returned_s, 0.0))

    def _hold_up(self, steps: tuple[Step, ...], place: Place) -> Steps:
        """Wait for what the host copies itself."""
        job = self._machine.start(steps, place)
        if job is not None:
            yield job.done


class Serial:
    """Run one operation at a time: no lane ever works beside another."""

    def __init__(
        self, machine: Machine, prices: Prices, names: Names, *, promotion: Promotion
    ) -> None:
        self._machine, self._prices, self._names = machine, prices, names
        self._late = promotion is Promotion.BACKGROUND

    def run(self, work: PassWork) -> Steps:
        """Run one pass; its experts are told apart only where records are kept."""
        yield self._machine.alone(self._steps(work), work.place)

    def _steps(self, work: PassWork) -> Iterator[Step]:
        prices, looped = work.prices, self._names.recorded and self._prices.engine.looped
        for layer in work.layers:
            experts = self._one_by_one(layer, work) if looped else self._together(layer, work)
            yield (Resource.GPU, prices.fronts[layer.number])
            yield (Resource.HOST, self._prices.host[layer.number])
            if not self._late:
                yield from self._moves(layer, work)
            yield from experts
            if self._late:
                yield from self._moves(layer, work)
            yield (Resource.GPU, prices.shared[layer.number])
        yield (Resource.GPU, prices.tail)
        yield (Resource.HOST, self._prices.sync)

    def _moves(self, layer: LayerWork, work: PassWork) -> Iterator[Step]:
        """Yield write-backs, then promotions; with nobody to tell them apart all copies as one."""
        names, placement = self._names, work.placement
        yield (Resource.D2H, names.write_backs(layer, placement))
        told = names.recorded and layer.copies
        promoted = names.promotions(layer, placement) if told else unnamed(layer.copies)
        yield (Resource.H2D, promoted)

    def _together(self, layer: LayerWork, work: PassWork) -> Iterator[Step]:
        """Yield one call for the GPU's experts, after what it streams, and one for the CPU's."""
        names, placement = self._names, work.placement
        if names.recorded:
            yield (Resource.H2D, names.copies(layer, placement, promotion=Promotion.BACKGROUND))
        yield (Resource.GPU, names.gpu_experts(layer, placement))
        yield from names.misses(layer, placement)

    def _one_by_one(self, layer: LayerWork, work: PassWork) -> Iterator[Step]:
        """Yield the experts that have tokens in id order, each copy where it is needed."""
        prices, placement = self._prices, work.placement
        index, number = layer.number, prices.layers[layer.number]
        streamed = placement.decisions[index].stream
        on_gpu, on_cpu = placement.gpu_tokens[index].tolist(), placement.cpu_tokens[index].tolist()
        for expert, (gpu, cpu) in enumerate(zip(on_gpu, on_cpu, strict=True)):
            if expert in streamed:
                yield (Resource.H2D, operation([prices.copy("stream", expert, number)]))
            if gpu:
                seconds = float(prices.latency.gpu_expert_s(gpu))
                one = single(f"expert {expert} gpu", seconds, number, experts=1)
                yield (Resource.GPU, one)
            if cpu:
                seconds = float(prices.latency.cpu_expert_s(cpu))
                one = single(f"expert {expert} cpu", seconds, number, experts=1)
                down, up = Direction.D2H, Direction.H2D
                yield (Resource.D2H, prices.transfer(f"hidden {expert}", cpu, down, number))
                yield (Resource.CPU, one)
                yield (Resource.H2D, prices.transfer(f"result {expert}", cpu, up, number))
