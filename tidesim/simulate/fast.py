"""The closed method: the seconds of a pass as a short recurrence on arrays; no clock, no records.

With blocking promotion a layer starts when every lane is idle, so layers add up. Beside the GPU two
chains run: expert copies, and the misses (hidden states down, CPU experts, results up). Each slows
the other while both run, at the rates of `lanes.HostMemory`; two jobs that start together end after
at most two changes of rate, which is arithmetic. With promotion in the background the same holds
for every layer that begins and ends without a copy under way; the others are stepped through
(`backlog`). Equal to `des` to rounding.

Letters: P passes, L mixture layers.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tidesim.engines import Engine, Promotion
from tidesim.errors import SettingError
from tidesim.latency import Latency
from tidesim.placement import FloatArray
from tidesim.records import Resource
from tidesim.simulate.accounts import Accounts, Moments
from tidesim.simulate.backlog import Backlog, Copy, Layer, LayerClock
from tidesim.simulate.case import Case
from tidesim.simulate.chunks import Chunk
from tidesim.simulate.lanes import host_memory_factors
from tidesim.simulate.operations import Timing
from tidesim.simulate.prices import PassPrices, Prices
from tidesim.simulate.result import SimulationResult
from tidesim.simulate.run import run
from tidesim.simulate.work import Work, WorkPrices


class Busy(NamedTuple):
    """Seconds that the lanes of the link and the CPU work in layers."""

    h2d: FloatArray
    d2h: FloatArray
    cpu: FloatArray


def layer_seconds(work: Work, latency: Latency, engine: Engine) -> FloatArray:
    """Return the seconds of layers with blocking promotion, from placement to end."""
    if not engine.overlap:
        return serial_seconds(work)
    return np.asarray(overlapped(work, latency, pinned=engine.pinned)[0].end)


def serial_seconds(work: Work) -> FloatArray:
    """Return the seconds of layers that run one operation after another."""
    link, cpu = work.write_backs + work.copies, work.hidden + work.cpu + work.result
    return np.asarray(work.shared + work.gpu + link + cpu)


def overlapped(work: Work, latency: Latency, *, pinned: bool) -> tuple[Moments, Busy]:
    """Run layers on CPU, GPU and link at the same time, every lane idle when they start."""
    way = _pinned(work, latency) if pinned else _pageable(work, latency)
    returning = np.maximum(way.served, way.landed)
    gpu_end = np.maximum(work.shared, way.landed) + work.gpu
    moments = Moments(
        shared=work.shared,
        gpu=work.gpu,
        gpu_end=gpu_end,
        blocked=way.blocked,
        written=way.written,
        landed=way.landed,
        sent=way.sent,
        served=way.served,
        returning=returning,
        returned=returning + work.result,
        freed=np.zeros(()),
    )
    return moments, Busy(
        h2d=way.copied + work.result,
        d2h=way.sent - way.unsent + way.wrote,
        cpu=way.served - way.sent,
    )


class _Way(NamedTuple):
    """Ends of what runs beside the GPU, and how long hidden states wait, writes and copies take."""

    blocked: FloatArray
    written: FloatArray
    landed: FloatArray
    sent: FloatArray
    served: FloatArray
    unsent: FloatArray
    wrote: FloatArray
    copied: FloatArray


def _pinned(work: Work, latency: Latency) -> _Way:
    """Time copies that the host only starts.

    Write-backs go first and alone. Then copies run beside the hidden states (duplex rates), what is
    left of them beside the CPU experts (contended rates), and results follow the last copy.
    """
    duplex, contended = latency.duplex, latency.contention
    first, hidden, copies = _beside(work.hidden, work.copies, duplex.d2h_factor, duplex.h2d_factor)
    sent = work.write_backs + first + hidden
    second, cpu, copies = _beside(work.cpu, copies, contended.cpu_factor, contended.h2d_factor)
    copied = first + second + copies
    return _Way(
        blocked=np.zeros(()),
        written=work.write_backs,
        landed=work.write_backs + copied,
        sent=sent,
        served=sent + second + cpu,
        unsent=work.write_backs,
        wrote=work.write_backs,
        copied=copied,
    )


def _pageable(work: Work, latency: Latency) -> _Way:
    """Time copies that hold up the host: hidden states, then write-backs, then copies.

    CPU experts start after the hidden states, the GPU's own after the last copy.
    """
    contended = latency.contention
    first, cpu, write_backs = _beside(
        work.cpu, work.write_backs, contended.cpu_factor, contended.d2h_factor
    )
    wrote, early = first + write_backs, first
    second, left, copies = _beside(cpu, work.copies, contended.cpu_factor, contended.h2d_factor)
    copied = second + copies
    written = work.hidden + wrote
    return _Way(
        blocked=work.hidden,
        written=written,
        landed=written + copied,
        sent=work.hidden,
        served=np.where(cpu > 0, written + second + left, work.hidden + early),
        unsent=np.zeros(()),
        wrote=wrote,
        copied=copied,
    )


def _beside(
    a: FloatArray, b: FloatArray, a_rate: float, b_rate: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Run two jobs that start together: seconds until the first ends, and what is left of each."""
    a_s, b_s = a / a_rate, b / b_rate
    both = np.minimum(a_s, b_s)
    a_left = np.where(a_s <= b_s, 0.0, a - both * a_rate)
    return both, a_left, np.where(b_s <= a_s, 0.0, b - both * b_rate)


def time_passes(
    chunks: Iterable[Chunk],
    prices: Prices,
    *,
    promotion: Promotion = Promotion.BLOCKING,
    keep_records: bool = False,
) -> Timing:
    """Time placed passes, one after another; the same call as `des.time_passes`.

    Raises
    ------
    SettingError
        Records are asked for: only `des` has a clock to take them from.
    """
    if keep_records:
        raise SettingError("method fast keeps no records of operations; use method des for them")
    run = _Run(prices, promotion)
    for chunk in chunks:
        run.add(chunk)
    return run.finish()


class _Run:
    """Times so far."""

    def __init__(self, prices: Prices, promotion: Promotion) -> None:
        self._prices, self._work_prices, self._promotion = prices, WorkPrices(prices), promotion
        self._accounts = Accounts()
        self._busy_s = dict.fromkeys(Resource, 0.0)
        self._pass_s: list[FloatArray] = [np.zeros(0)]
        self._background = promotion is Promotion.BACKGROUND and prices.engine.overlap
        self._carried: _Carried | None = None

    def add(self, chunk: Chunk) -> None:
        """Time some passes."""
        own = self._prices.of_passes(chunk.placements)
        fixed = np.array([(each.gpu_s, each.ids_s, each.host_s) for each in own])
        work = self._work_prices.of_chunk(chunk, own, promotion=self._promotion)
        self._accounts.add_fixed(own)
        layers_s = (
            self._serial(work)
            if not self._prices.engine.overlap
            else self._beside(chunk, work, own)
        )
        gpu_s, ids_s, host_s = fixed.sum(axis=0).tolist()
        self._busy_s[Resource.GPU] += gpu_s + float((work.shared + work.gpu).sum())
        self._busy_s[Resource.D2H] += ids_s
        self._busy_s[Resource.HOST] += host_s
        self._pass_s.append(fixed.sum(axis=1) + layers_s)

    def finish(self) -> Timing:
        """Wait for copies that are still under way and return the whole."""
        pass_s = np.concatenate(self._pass_s)
        if self._carried is not None:
            backlog = self._carried.backlog
            drained_s = backlog.drain()
            self._accounts.add_drain(drained_s)
            pass_s[-1:] += drained_s
            self._busy_s[Resource.H2D] += backlog.busy_s
        return Timing(
            pass_s=pass_s,
            seconds=float(pass_s.sum()),
            busy_s=self._busy_s,
            waited_s=self._accounts.waited_s,
            critical_s=self._accounts.critical_s,
        )

    def _serial(self, work: Work) -> FloatArray:
        self._accounts.add_serial(work)
        self._add_busy(
            Busy(h2d=work.copies + work.result, d2h=work.write_backs + work.hidden, cpu=work.cpu)
        )
        return np.asarray(serial_seconds(work).sum(axis=1))

    def _beside(self, chunk: Chunk, work: Work, own: list[PassPrices]) -> FloatArray:
        moments, busy = overlapped(work, self._prices.latency, pinned=self._prices.engine.pinned)
        extra = np.zeros(len(own))
        if self._background:
            if self._carried is None:
                self._carried = _Carried(self._prices)
            moments, busy, extra = self._carried.through(chunk, work, own, moments, busy)
            self._accounts.add_delay(float(extra.sum()))
            self._busy_s[Resource.D2H] += float(extra.sum())
        self._accounts.add_layers(moments)
        self._add_busy(busy)
        return np.asarray(moments.end.sum(axis=1) + extra)

    def _add_busy(self, busy: Busy) -> None:
        for resource, seconds in zip((Resource.H2D, Resource.D2H, Resource.CPU), busy, strict=True):
            self._busy_s[resource] += float(seconds.sum())


class _Carried:
    """Steps through the layers that meet a backlog, and leaves the others as they are."""

    def __init__(self, prices: Prices) -> None:
        latency = prices.latency
        factors = host_memory_factors(latency.contention, latency.duplex)
        self.backlog = Backlog(prices.to_gpu_s, factors)
        self._prices = prices

    def through(
        self, chunk: Chunk, work: Work, own: list[PassPrices], moments: Moments, busy: Busy
    ) -> tuple[Moments, Busy, FloatArray]:
        """Return moments and busy seconds of [P, L] layers, and [P] how much longer ids took."""
        shape = work.gpu.shape
        at = Moments(*(np.broadcast_to(each, shape).copy() for each in moments))
        worked = Busy(*(np.broadcast_to(each, shape).copy() for each in busy))
        extra = np.zeros(shape[0])
        begins = (chunk.promoted.sum(axis=1) > 0).tolist()
        for number, prices in enumerate(own):
            if self.backlog.queue or begins[number]:
                extra[number] = self._pass(chunk, work, prices, number, at, worked)
        return at, worked, extra

    def _pass(
        self, chunk: Chunk, work: Work, own: PassPrices, number: int, at: Moments, busy: Busy
    ) -> float:
        extra, host, backlog = 0.0, self._prices.host, self.backlog
        for index, front in enumerate(own.fronts):
            if backlog.queue:
                backlog.work(front.seconds)
                extra += backlog.beside_ids(own.ids[index].seconds) - own.ids[index].seconds
                backlog.work(host[index].seconds)
            if backlog.queue or chunk.promoted[number, index]:
                self._layer(chunk, work, (number, index), at, busy)
        backlog.work(own.tail.seconds + self._prices.sync.seconds)
        return extra

    def _layer(
        self, chunk: Chunk, work: Work, where: tuple[int, int], at: Moments, busy: Busy
    ) -> None:
        number, index = where
        used = chunk.placements[number].gpu_tokens[index]
        decision = chunk.placements[number].decisions[index]
        promoted = () if decision.free else decision.promote
        due = (copy for copy in self.backlog.queue if copy.layer == index and used[copy.expert])
        layer = Layer(
            shared=float(work.shared[where]),
            gpu=float(work.gpu[where]),
            copies=float(work.copies[where]),
            hidden=float(work.hidden[where]),
            cpu=float(work.cpu[where]),
            result=float(work.result[where]),
            needed=frozenset(due),
            promoted=tuple(Copy(index, expert) for expert in promoted),
        )
        clock = LayerClock(layer, self.backlog)
        clock.run()
        for name in ("landed", "gpu_end", "sent", "served", "returning", "returned", "freed"):
            getattr(at, name)[where] = getattr(clock, name)
        busy.h2d[where] = clock.busy_h2d_s
        busy.d2h[where], busy.cpu[where] = clock.busy_d2h_s, clock.busy_cpu_s


def run_fast(case: Case) -> SimulationResult:
    """Simulate a case as `run.run` does, by this method.

    Raises
    ------
    SettingError
        The trace holds no denoise pass.
    """
    return run(case, method=time_passes)
