"""Residents that refreshes choose, replayed along a schedule for many options at once.

Letters: L mixture layers, K options, N steps of a block, E experts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tidesim.costs.ordered import Option, Ordered, first
from tidesim.placement import BoolArray, IntArray, Setup
from tidesim.policies.base import PolicyBase


def initial_residents(setup: Setup, options: Sequence[Option]) -> BoolArray:
    """Return the residents before the first pass, [L, K, E]: the engine's choice."""
    setups = [replace(setup, budget=option.budget) for option in options]
    return np.stack([PolicyBase(each).initial(each) for each in setups], axis=1)


class Replay:
    """Residents of every option while layers refresh at given steps of every block.

    Parameters
    ----------
    options : sequence of Option
    initial : [L, K, E] bool
        Residents before the first pass; they fill all slots.
    due : [T, L] bool
        Steps at which each layer refreshes.

    Attributes
    ----------
    residents : [L, K, E] bool
        Now.
    """

    def __init__(self, options: Sequence[Option], *, initial: BoolArray, due: BoolArray) -> None:
        self.residents, self._due = initial, due
        self._budgets = np.array([option.budget for option in options])
        self._unlimited = np.array([option.promotions is None for option in options])
        self._limited = [
            (number, option)
            for number, option in enumerate(options)
            if option.promotions is not None
        ]

    def block(self, ordered: Ordered, steps: int, *, always: bool) -> BoolArray:
        """Go through the steps of a block.

        Parameters
        ----------
        ordered : Ordered
            The passes of the block come first.
        steps : int
            N.
        always : bool
            Every layer refreshes at every step.

        Returns
        -------
        [L, K, N, E] bool
            Residents that a refresh at each step would choose from those before it.
        """
        chosen = ordered.targets[:, :, :steps].copy()
        for step in range(steps):
            self._choose(ordered, step, chosen[:, :, step])
            refreshes = np.ones_like(self._due[step]) if always else self._due[step]
            if refreshes.any():
                now = chosen[:, :, step]
                self.residents = np.where(refreshes[:, None, None], now, self.residents)
        return chosen

    def _choose(self, ordered: Ordered, step: int, chosen: BoolArray) -> None:
        """Turn targets, [L, K, E], into the residents after a refresh, in place."""
        spare = self._budgets - ordered.sizes[:, :, step]  # [L, K]
        layers, options = np.nonzero((spare > 0) & self._unlimited)
        if len(layers):
            target = chosen[layers, options]
            others = self.residents[layers, options] & ~target
            stay = first(others[:, ::-1], spare[layers, options, None])[:, ::-1]
            chosen[layers, options] = target | stay
        for number, option in self._limited:
            before = self.residents[:, number]
            chosen[:, number] = _some(ordered, step, option, before, chosen[:, number])


def _some(
    ordered: Ordered, step: int, option: Option, before: BoolArray, is_target: BoolArray
) -> BoolArray:
    """Return the residents, [L, E], after a refresh with a limit."""
    exchange = ordered.exchange(step, before[..., None], option=option)
    leaving = ordered.leaving[:, step]
    others = np.take_along_axis(before & ~is_target, leaving, axis=-1)
    after = before.copy()
    _mark(after, leaving, where=first(others, exchange.moves), value=False)
    _mark(after, ordered.order[:, step], where=exchange.promoted[..., 0].T, value=True)
    return after


def _mark(residents: BoolArray, order: IntArray, *, where: BoolArray, value: bool) -> None:
    """Set experts, [L, E], that are marked in some order."""
    layers, places = np.nonzero(where)
    residents[layers, order[layers, places]] = value
