"""The discrete-event method: every pass runs on SimPy lanes, as its engine executes it."""

from collections.abc import Iterable, Iterator

import numpy as np
import simpy

from tidesim.engines import Promotion
from tidesim.placement import PassPlacement
from tidesim.records import Counter, Record, Records, Resource
from tidesim.simulate.accounts import Accounts, Moments
from tidesim.simulate.chunks import Chunk
from tidesim.simulate.execute import Overlapped, Pageable, Serial
from tidesim.simulate.lanes import HostMemory, Lane, SharedLane, SteadyLane
from tidesim.simulate.machine import LayerWork, Machine, PassWork, Steps
from tidesim.simulate.names import Names
from tidesim.simulate.operations import Place, Timing
from tidesim.simulate.prices import PassPrices, Prices
from tidesim.simulate.work import Work, WorkPrices


def time_passes(
    chunks: Iterable[Chunk],
    prices: Prices,
    *,
    promotion: Promotion = Promotion.BLOCKING,
    keep_records: bool = False,
) -> Timing:
    """Run placed passes one after another and say how long everything took.

    Parameters
    ----------
    chunks : iterable of Chunk
        Consumed as simulated time goes on.
    prices : Prices
    promotion : Promotion
    keep_records : bool
        Also return a record per operation, and over time each pass's hit rate and residents, and
        the bytes of experts queued for the link.
    """
    env = simpy.Environment(initial_time=0.0)
    records: list[Record] | None = [] if keep_records else None
    counters: list[Counter] | None = [] if keep_records else None
    lanes = _overlapping(env, prices, records) if prices.engine.overlap else _steady(env, records)
    machine = Machine(env, lanes, counters=counters)
    names = Names(prices, recorded=keep_records)
    run = _Run(machine, prices, names, promotion=promotion, counters=counters)
    env.run(until=env.process(run.steps(chunks)))
    return Timing(
        pass_s=np.array(run.pass_s, dtype=np.float64),
        seconds=float(env.now),
        busy_s={resource: lane.busy_s for resource, lane in lanes.items()},
        waited_s=run.accounts.waited_s,
        critical_s=run.accounts.critical_s,
        records=None if records is None else Records(records),
        counters=tuple(sorted(counters or (), key=lambda each: each.time_s)),
    )


def _steady(env: simpy.Environment, records: list[Record] | None) -> dict[Resource, Lane]:
    return {resource: SteadyLane(env, resource, records=records) for resource in Resource}


def _overlapping(
    env: simpy.Environment, prices: Prices, records: list[Record] | None
) -> dict[Resource, Lane]:
    """Return lanes of which CPU experts and copies slow one another down."""
    cpu, h2d, d2h = (
        SharedLane(env, resource, records=records)
        for resource in (Resource.CPU, Resource.H2D, Resource.D2H)
    )
    HostMemory(cpu, h2d, d2h, contention=prices.latency.contention, duplex=prices.latency.duplex)
    return _steady(env, records) | {Resource.CPU: cpu, Resource.H2D: h2d, Resource.D2H: d2h}


class _Run:
    """Runs passes on a machine; seconds of every pass, and what they were spent on."""

    def __init__(
        self,
        machine: Machine,
        prices: Prices,
        names: Names,
        *,
        promotion: Promotion,
        counters: list[Counter] | None,
    ) -> None:
        self.pass_s: list[float] = []
        self.accounts = Accounts()
        self._machine, self._prices, self._names = machine, prices, names
        self._work_prices = WorkPrices(prices)
        self._promotion = promotion
        self._counters = counters

    def steps(self, chunks: Iterable[Chunk]) -> Steps:
        """Run the passes of every chunk."""
        engine = self._prices.engine
        return self._overlapped(chunks) if engine.overlap else self._serial(chunks)

    def _overlapped(self, chunks: Iterable[Chunk]) -> Steps:
        kind = Overlapped if self._prices.engine.pinned else Pageable
        execute = kind(self._machine, self._prices, self._names, promotion=self._promotion)
        for chunk in chunks:
            for work in self._priced(chunk)[1]:
                yield from self._timed(work, execute.run(work))
            self.accounts.add_layers(Moments(*np.array(execute.moments).T))
            execute.moments.clear()
        self.accounts.add_delay(execute.delay_s)
        ended_s = self._machine.env.now
        yield from execute.finish()
        drained_s = self._machine.env.now - ended_s
        self.accounts.add_drain(drained_s)
        if self.pass_s:
            self.pass_s[-1] += drained_s

    def _serial(self, chunks: Iterable[Chunk]) -> Steps:
        execute = Serial(self._machine, self._prices, self._names, promotion=self._promotion)
        for chunk in chunks:
            work, passes = self._priced(chunk)
            for each in passes:
                yield from self._timed(each, execute.run(each))
            self.accounts.add_serial(work)

    def _timed(self, work: PassWork, steps: Steps) -> Steps:
        start_s = self._machine.env.now
        if self._counters is not None:
            self._counters.extend(_pass_counters(work.placement, start_s))
        yield from steps
        self.pass_s.append(self._machine.env.now - start_s)

    def _priced(self, chunk: Chunk) -> tuple[Work, Iterator[PassWork]]:
        """Return what the layers of some passes do, as arrays and pass by pass."""
        own = self._prices.of_passes(chunk.placements)
        self.accounts.add_fixed(own)
        work = self._work_prices.of_chunk(chunk, own, promotion=self._promotion)
        columns = [each.tolist() for each in np.broadcast_arrays(*work)]  # [8][P][L]
        rows = zip(chunk.placements, own, *columns, strict=True)
        return work, (_pass_work(*row) for row in rows)


def _pass_counters(placement: PassPlacement, start_s: float) -> tuple[Counter, ...]:
    hits, pairs = int(placement.hits.sum()), int(placement.pass_.counts.sum())
    return (
        Counter("hit rate", start_s, hits / pairs if pairs else 0.0),
        Counter("residents", start_s, int(placement.resident.sum())),
    )


def _pass_work(placement: PassPlacement, prices: PassPrices, *seconds: list[float]) -> PassWork:
    layers = [LayerWork(number, *row) for number, row in enumerate(zip(*seconds, strict=True))]
    pass_ = placement.pass_
    return PassWork(placement, prices, layers, Place(pass_.request, pass_.block, pass_.step))
