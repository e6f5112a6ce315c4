"""Collecting: every block timed for all choices at once, and the sums over blocks.

Letters: L mixture layers, K options, N steps of a block, E experts, F first steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from tidesim.costs.blocks import Block, Onward
from tidesim.costs.loads import Pairs
from tidesim.costs.measures import Sums
from tidesim.costs.pairs import Batch, PairTimer, Timed
from tidesim.costs.residents import Replay
from tidesim.placement import BoolArray, IntArray
from tidesim.trace.passes import WindowedPass


@dataclass(frozen=True, kw_only=True, eq=False)
class Account:
    """Where to add up what.

    Attributes
    ----------
    sums : Sums
    bucket : callable
        Gives the bucket of a pass.
    promotions : bool
        Promotions are added up; seconds otherwise.
    """

    sums: Sums
    bucket: Callable[[WindowedPass], int]
    promotions: bool = False


class Collector:
    """Adds blocks up.

    Parameters
    ----------
    timer : PairTimer
    budgets : [K] int64
    around, never : Replay
        The schedule that tells the residents before each refresh, and one that never refreshes.
    accounts : sequence of Account

    Attributes
    ----------
    unfilled : [K] int64
        Refreshes that leave slots free, of all possible, over layers.
    refreshes : int
    """

    def __init__(
        self,
        timer: PairTimer,
        budgets: IntArray,
        *,
        around: Replay,
        never: Replay,
        accounts: Sequence[Account],
    ) -> None:
        self._timer, self._budgets, self._accounts = timer, budgets, accounts
        self._around, self._never = around, never
        self.unfilled = np.zeros(len(budgets), dtype=np.int64)
        self.refreshes = 0

    def add(self, block: Block, onward: Sequence[Onward]) -> None:
        """Add one block, and the passes after it that its residents may serve."""
        passes = [*block.steps, *(each.pass_ for each in onward)]
        if not passes:
            return
        batch = Batch(passes, self._budgets, prices=self._timer.prices)
        active = batch.ordered.active[:, : len(block.steps)]
        self.unfilled += (active[..., None] < self._budgets).sum(axis=(0, 1))
        self.refreshes += active.size
        plan = _Plan(passes, onward, start=len(block.steps))
        if block.refreshes_always or not block.steps:
            residents = self._alike(plan, block, batch)
        else:
            residents = self._arcs(plan, block, batch)
        timed = self._timer.time(
            batch, np.concatenate(residents, axis=2), stays=plan.stays(), refreshes=plan.refreshes()
        )
        for account in self._accounts:
            plan.charge(timed, account)

    def _arcs(self, plan: "_Plan", block: Block, batch: Batch) -> list[BoolArray]:
        """Plan a block that schedules may refresh; return the residents that its pairs number."""
        N = len(block.steps)
        chosen = self._around.block(batch.ordered, N, always=False)
        early, late = np.triu_indices(N, 1)
        plan.stay(early, late, put=partial(Sums.add_stay, at=(early, late)))
        plan.refresh(early, late, put=partial(Sums.add_refresh, at=(early, late)))
        plan.onward(np.arange(N), put=partial(Sums.add_onward, block_steps=N))
        for number in range(N + len(block.after)):
            plan.stay(N, number, put=Sums.add_never)
        return [chosen, self._never.residents[:, :, None]]

    def _alike(self, plan: "_Plan", block: Block, batch: Batch) -> list[BoolArray]:
        """Plan what all schedules do: refresh at every step, or wait for the first block.

        The refresh of the first step, if any, is planned with the block before.
        """
        N, ordered = len(block.steps), batch.ordered
        residents = [
            self._around.residents[:, :, None],
            self._around.block(ordered, N, always=True),
        ]
        for step in range(1, N):
            plan.refresh(step, step, put=Sums.add_always)
        plan.onward(N, put=Sums.add_always)
        residents += [self._never.residents[:, :, None], self._never.block(ordered, N, always=True)]
        for step in range(N):
            plan.refresh(N + 1 + step, step, put=Sums.add_never)
        for number in range(N, N + len(block.after)):
            plan.stay(2 * N + 1, number, put=Sums.add_never)
        return residents


_Put = Callable[..., None]  # sums, bucket, values [L, K, n]; see `Sums`


class _Charge(NamedTuple):
    """Where values of some pairs belong."""

    refreshes: bool
    at: slice
    pass_: WindowedPass
    put: _Put


class _Plan:
    """Pairs to time, and where their values belong."""

    def __init__(
        self, passes: Sequence[WindowedPass], onward: Sequence[Onward], *, start: int
    ) -> None:
        self._passes, self._onward, self._start = passes, onward, start
        self._pairs: tuple[list[Pairs], list[Pairs]] = ([], [])
        self._charges: list[_Charge] = []

    def stay(self, residents: IntArray | int, number: IntArray | int, *, put: _Put) -> None:
        """Time passes that keep their residents."""
        self._add(False, residents, number, put)

    def refresh(self, residents: IntArray | int, number: IntArray | int, *, put: _Put) -> None:
        """Time passes that exchange them."""
        self._add(True, residents, number, put)

    def onward(self, residents: IntArray | int, *, put: _Put) -> None:
        """Time the passes after the block, by first step."""
        for number, each in enumerate(self._onward, start=self._start):
            if each.stays.any():
                self.stay(residents, number, put=partial(put, first=each.stays))
            if each.refreshes.any():
                self.refresh(residents, number, put=partial(put, first=each.refreshes))

    def _add(
        self, refreshes: bool, residents: IntArray | int, number: IntArray | int, put: _Put
    ) -> None:
        pairs = Pairs(*np.broadcast_arrays(np.atleast_1d(residents), number))
        mine = self._pairs[refreshes]
        start = sum(len(before.passes) for before in mine)
        mine.append(pairs)
        at = slice(start, start + len(pairs.passes))
        pass_ = self._passes[pairs.passes[0]] if len(pairs.passes) else self._passes[0]
        self._charges.append(_Charge(refreshes, at, pass_, put))

    def stays(self) -> Pairs:
        """Return the pairs of all passes that keep their residents."""
        return _joined(self._pairs[False])

    def refreshes(self) -> Pairs:
        """Return those of all passes that exchange them."""
        return _joined(self._pairs[True])

    def charge(self, timed: Timed, account: Account) -> None:
        """Add what the pairs took up where it belongs."""
        moved = timed.moves if account.promotions else timed.refresh_s
        for refreshes, at, pass_, put in self._charges:
            if refreshes or not account.promotions:
                values = moved if refreshes else timed.stay_s
                put(account.sums, account.bucket(pass_), values[..., at])


def _joined(pairs: list[Pairs]) -> Pairs:
    none = np.zeros(0, dtype=np.int64)
    return Pairs(
        np.concatenate([none, *(each.residents for each in pairs)]),
        np.concatenate([none, *(each.passes for each in pairs)]),
    )
