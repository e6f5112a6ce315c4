"""Pairs: seconds of passes under residents chosen elsewhere, for all options and pairs at once.

Letters: L mixture layers, K options, I sets of residents, P passes, n pairs, E experts, q features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tidesim.costs.features import Features, Summed
from tidesim.costs.ordered import Option, Ordered
from tidesim.engines import Promotion
from tidesim.placement import BoolArray, FloatArray, IntArray
from tidesim.simulate.case import Case
from tidesim.simulate.chunks import Load, Loads
from tidesim.simulate.fast import layer_seconds, overlapped
from tidesim.simulate.prices import Prices
from tidesim.simulate.work import Work, WorkPrices
from tidesim.trace.passes import WindowedPass


class Pairs(NamedTuple):
    """Which residents meet which pass.

    Attributes
    ----------
    residents, passes : [n] int64
    """

    residents: IntArray
    passes: IntArray


class Timed(NamedTuple):
    """What pairs take.

    Attributes
    ----------
    stay_s : [L, K, n] float64
        Seconds of layers of passes that keep the residents.
    refresh_s : [L, K, m] float64
        Seconds of those that exchange them, of other pairs.
    moves : [L, K, m] int64
        Promotions, and as many evictions.
    """

    stay_s: FloatArray
    refresh_s: FloatArray
    moves: IntArray


class Batch:
    """Passes to time together: their tokens in order, and what no placement changes.

    Parameters
    ----------
    passes : sequence of WindowedPass
    budgets : [K] int64
    prices : Prices

    Attributes
    ----------
    ordered : Ordered
    tokens : [P] int64
    shared_s : [L, 1, P] float64
    """

    def __init__(
        self, passes: Sequence[WindowedPass], budgets: IntArray, *, prices: Prices
    ) -> None:
        self.ordered = Ordered(np.stack([pass_.counts for pass_ in passes], axis=1), budgets)
        self.tokens = np.array([pass_.tokens for pass_ in passes])
        shared_s = np.array([prices.of_pass(pass_).shared_s for pass_ in passes])
        self.shared_s = shared_s.T[:, None]


class PairTimer:
    """Times pairs of residents and passes.

    Parameters
    ----------
    case : Case
        Sizes, machine, engine and promotion.
    options : sequence of Option
    tokens : [D] int64
        Token counts above 0 that occur.

    Attributes
    ----------
    prices : Prices
    """

    def __init__(self, case: Case, options: Sequence[Option], *, tokens: IntArray) -> None:
        engine, latency = case.setup.engine, case.latency
        self.prices = Prices(latency, engine, case.spec)
        self._work_prices, self._options = WorkPrices(self.prices), options
        self._background = case.setup.promotion is Promotion.BACKGROUND
        if engine.looped or latency.cpu_workers == 1:
            experts = case.setup.num_experts
            self._loads: _Products | _OneByOne = _Products(
                Features(self._work_prices, tokens, num_experts=experts)
            )
            self._groups = _groups(options, alone=not self._background)
        else:
            self._loads = _OneByOne()
            self._groups = [[number] for number in range(len(options))]

    @property
    def beside_cpu_s(self) -> float:
        """Seconds by which CPU experts that never rest fall behind during one promotion."""
        contention = self.prices.latency.contention
        return self.prices.to_gpu_s / contention.h2d_factor * (1 - contention.cpu_factor)

    def time(self, batch: Batch, residents: BoolArray, *, stays: Pairs, refreshes: Pairs) -> Timed:
        """Time pairs.

        Parameters
        ----------
        batch : Batch
        residents : [L, K, I, E] bool
            They fill all slots.
        stays, refreshes : Pairs
            Passes that keep their residents, and passes that exchange them.
        """
        shape = residents.shape[:2]
        timed = Timed(
            np.empty((*shape, len(stays.passes))),
            np.empty((*shape, len(refreshes.passes))),
            np.empty((*shape, len(refreshes.passes)), dtype=np.int64),
        )
        for group in self._groups:
            before = residents[:, group]
            timed.stay_s[:, group] = self._seconds(self._stay(batch, before, stays))
            moves = _missing(batch.ordered, before, refreshes, group=group)
            refresh = self._in_background if self._background else self._blocking
            seconds, moved = refresh(batch, before, refreshes, group=group, missing=moves)
            timed.refresh_s[:, group], timed.moves[:, group] = seconds, moved
        return timed

    def _seconds(self, work: Work) -> FloatArray:
        return layer_seconds(work, self.prices.latency, self.prices.engine)

    def _stay(self, batch: Batch, residents: BoolArray, pairs: Pairs) -> Work:
        return self._work_prices.work(
            *self._loads.of_residents(batch.ordered, residents, pairs),
            tokens=batch.tokens[pairs.passes],
            shared_s=batch.shared_s[..., pairs.passes],
        )

    def _blocking(
        self,
        batch: Batch,
        residents: BoolArray,
        pairs: Pairs,
        *,
        group: list[int],
        missing: IntArray,
    ) -> tuple[FloatArray, IntArray]:
        """Time passes served by the residents after their refresh."""
        option = self._options[group[0]]
        if option.promotions is None:
            each = self._work_prices.work(
                *self._loads.of_targets(batch.ordered, group),
                tokens=batch.tokens,
                shared_s=batch.shared_s,
            )
            shape = each.gpu.shape
            after = Work(*(np.broadcast_to(part, shape)[..., pairs.passes] for part in each))
        else:
            served, missing = _served(batch.ordered, residents[:, 0], pairs, option=option)
            after = self._work_prices.work(
                *self._loads.of_served(batch.ordered, served, pairs),
                tokens=batch.tokens[pairs.passes],
                shared_s=batch.shared_s[..., pairs.passes],
            )
        moving = self._work_prices.moving(after, copied=missing, written=missing)
        return self._seconds(moving), missing

    def _in_background(
        self,
        batch: Batch,
        residents: BoolArray,
        pairs: Pairs,
        *,
        group: list[int],
        missing: IntArray,
    ) -> tuple[FloatArray, IntArray]:
        """Time passes that still run under the residents before their refresh.

        An engine without overlap copies in the pass itself. Otherwise copies run beside other work,
        and slow the CPU's experts: by as much as if the CPU, over the time of the copies, were busy
        for the same share of it as in this layer. That is an estimate.
        """
        most = [self._options[number].promotions for number in group]
        limits = np.array([np.iinfo(np.int64).max if limit is None else limit for limit in most])
        moves = np.minimum(missing, limits[:, None])
        work = self._stay(batch, residents, pairs)
        engine, latency = self.prices.engine, self.prices.latency
        if not engine.overlap:
            moving = self._work_prices.moving(work, copied=moves, written=moves)
            return self._seconds(moving), moves
        moments, busy = overlapped(work, latency, pinned=engine.pinned)
        share = np.asarray(busy.cpu / np.where(moments.end > 0, moments.end, 1.0))
        return moments.end + moves * self.beside_cpu_s * share, moves


def _groups(options: Sequence[Option], *, alone: bool) -> list[list[int]]:
    """Return the options that are timed together; those with a limit alone if asked for."""
    numbers = range(len(options))
    if not alone:
        return [list(numbers)]
    limited = [number for number in numbers if options[number].promotions is not None]
    others = [number for number in numbers if options[number].promotions is None]
    return [*([others] if others else []), *([number] for number in limited)]


def _missing(ordered: Ordered, residents: BoolArray, pairs: Pairs, *, group: list[int]) -> IntArray:
    """Count experts of the targets that are not resident, [L, K, n]."""
    targets = ordered.targets[:, group].astype(np.float32)
    there = residents.astype(np.float32) @ targets.swapaxes(-1, -2)  # whole numbers, exact
    there = there[:, :, pairs.residents, pairs.passes]
    return np.asarray(ordered.sizes[:, group][..., pairs.passes] - there.astype(np.int64))


def _served(
    ordered: Ordered, residents: BoolArray, pairs: Pairs, *, option: Option
) -> tuple[BoolArray, IntArray]:
    """Return residents after a limited refresh, [L, n, E] in order, and promotions, [L, 1, n]."""
    shape = residents.shape[0], len(pairs.passes)
    served = np.empty((*shape, residents.shape[-1]), dtype=np.bool_)
    moves = np.empty(shape, dtype=np.int64)
    for number in np.unique(pairs.passes).tolist():
        at = np.flatnonzero(pairs.passes == number)
        exchange = ordered.exchange(number, residents[:, pairs.residents[at]], option=option)
        served[:, at], moves[:, at] = exchange.after, exchange.moves
    return served, moves[:, None]


class _Products:
    """What both sides compute, from products of residents and features."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def of_residents(
        self, ordered: Ordered, residents: BoolArray, pairs: Pairs
    ) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in pairs, [L, K, n], of residents [L, K, I, E]."""
        L, K, I, E = residents.shape
        values = self._features.values(ordered.counts.swapaxes(1, 2))  # [L, E, P, q]
        rows = residents.reshape(L, K * I, E).astype(np.float64)
        sums = (rows @ values.reshape(L, E, -1)).reshape(L, K, I, -1, values.shape[-1])
        hit = sums[:, :, pairs.residents, pairs.passes]
        return self._sides(hit, values.sum(axis=1)[:, None, pairs.passes])

    def of_targets(self, ordered: Ordered, group: list[int]) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in passes with targets as residents, [L, K, P]."""
        values = self._features.values(ordered.sorted).cumsum(axis=2)  # [L, P, E, q]
        L, P = values.shape[:2]
        last = ordered.sizes[:, group] - 1
        hit = values[np.arange(L)[:, None, None], np.arange(P), np.maximum(last, 0)]
        return self._sides(hit * (last >= 0)[..., None], values[:, None, :, -1])

    def of_served(self, ordered: Ordered, served: BoolArray, pairs: Pairs) -> tuple[Load, Load]:
        """Return what both compute in pairs, [L, 1, n], served by experts [L, n, E] in order."""
        values = self._features.values(ordered.sorted)  # [L, P, E, q]
        hit = np.empty((*served.shape[:2], values.shape[-1]))
        for number in np.unique(pairs.passes).tolist():
            at = np.flatnonzero(pairs.passes == number)
            hit[:, at] = served[:, at].astype(np.float64) @ values[:, number]
        total = values.sum(axis=2)[:, pairs.passes]
        return self._sides(hit[:, None], total[:, None])

    def _sides(self, hit: FloatArray, total: FloatArray) -> tuple[Load, Load]:
        """Return both sides from sums of features, [..., q], over hits and over all experts."""
        gpu, cpu = (np.ascontiguousarray(np.moveaxis(sums, -1, 0)) for sums in (hit, total - hit))
        return Summed.of(self._features, gpu), Summed.of(self._features, cpu)


class _OneByOne:
    """What both sides compute, expert by expert, for prices that no sums give."""

    def of_residents(
        self, ordered: Ordered, residents: BoolArray, pairs: Pairs
    ) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in pairs, [L, K, n], of residents [L, K, I, E]."""
        return _loads(ordered.counts[:, None, pairs.passes], residents[:, :, pairs.residents])

    def of_targets(self, ordered: Ordered, group: list[int]) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in passes with targets as residents, [L, K, P]."""
        return _loads(ordered.counts[:, None], ordered.targets[:, group])

    def of_served(self, ordered: Ordered, served: BoolArray, pairs: Pairs) -> tuple[Load, Load]:
        """Return what both compute in pairs, [L, 1, n], served by experts [L, n, E] in order."""
        return _loads(ordered.sorted[:, None, pairs.passes], served[:, None])


def _loads(counts: IntArray, served: BoolArray) -> tuple[Loads, Loads]:
    hit = counts * served
    return Loads.of(hit), Loads.of(counts - hit)
