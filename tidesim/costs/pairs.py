"""Pairs: seconds of passes under residents chosen elsewhere, for all options and pairs at once.

Letters: L mixture layers, K options, I sets of residents, P passes, n pairs, E experts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tidesim.costs.features import Features
from tidesim.costs.loads import Exchanged, OneByOne, Pairs, Products, at_pairs, product
from tidesim.costs.ordered import Option, Ordered
from tidesim.engines import Promotion
from tidesim.placement import BoolArray, FloatArray, IntArray
from tidesim.simulate.case import Case
from tidesim.simulate.fast import layer_seconds, overlapped
from tidesim.simulate.prices import Prices
from tidesim.simulate.work import Work, WorkPrices
from tidesim.trace.passes import WindowedPass


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
            self._loads: Products | OneByOne = Products(
                Features(self._work_prices, tokens, num_experts=experts)
            )
            self._groups = _groups(options, alone=not self._background)
        else:
            self._loads = OneByOne()
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
            parts = (np.broadcast_to(part, shape).take(pairs.passes, axis=-1) for part in each)
            after = Work(*parts)
        else:
            exchanged = _exchanged(batch.ordered, residents[:, 0], pairs, option=option)
            for _, at, exchange in exchanged:
                missing[:, 0, at] = exchange.moves
            after = self._work_prices.work(
                *self._loads.of_exchanged(batch.ordered, exchanged, pairs),
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
    there = product(residents.astype(np.float32), targets.swapaxes(-1, -2))  # exact
    wanted = ordered.sizes[:, group].take(pairs.passes, axis=-1)
    return np.asarray(wanted - at_pairs(there, pairs).astype(np.int64))


def _exchanged(
    ordered: Ordered, residents: BoolArray, pairs: Pairs, *, option: Option
) -> list[Exchanged]:
    """Refresh residents, [L, I, E], with a limit, pass by pass."""
    by_expert = np.ascontiguousarray(residents.swapaxes(1, 2))
    passes = []
    for number in np.unique(pairs.passes).tolist():
        at = np.flatnonzero(pairs.passes == number)
        mine = by_expert.take(pairs.residents[at], axis=-1)
        passes.append((number, at, ordered.exchange(number, mine, option=option)))
    return passes
