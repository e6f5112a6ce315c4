"""Experts of passes by their tokens, and tide's refresh on arrays, for many budgets at once.

The rule is that of `policies.tide`; here it is applied to whole arrays, and a test compares both.
Letters: L mixture layers, K options, P passes, I sets of residents, E experts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tidesim.placement import BoolArray, IntArray
from tidesim.trace.passes import Counts


@dataclass(frozen=True)
class Option:
    """What a layer may choose.

    Attributes
    ----------
    budget : int
        Slots.
    promotions : int or None
        Most promotions of a refresh; None sets no limit.
    """

    budget: int
    promotions: int | None = None


class Exchange(NamedTuple):
    """A limited refresh of residents; experts are in the order of the pass.

    Attributes
    ----------
    after, promoted : [E, L, I] bool
        Of evicted experts with as many tokens any may stand for another.
    moves : [L, I] int64
        Promotions, and as many evictions.
    """

    after: BoolArray
    promoted: BoolArray
    moves: IntArray


class Ordered:
    """Experts of passes in order of their tokens, most first, ties to the lower id.

    Parameters
    ----------
    counts : [L, P, E] int64
    budgets : [K] int64

    Attributes
    ----------
    counts : [L, P, E] int64
    budgets : [K] int64
    sorted : [L, P, E] int64
        Tokens in that order.
    active : [L, P] int64
        Experts with tokens.
    sizes : [L, K, P] int64
        Experts in the target of every budget: as many as it has slots, but only active ones.
    """

    def __init__(self, counts: Counts, budgets: IntArray) -> None:
        self.counts, self.budgets, num_experts = counts, budgets, counts.shape[-1]
        self._rank = counts * num_experts + np.arange(num_experts)[::-1]  # no two alike
        self._ranks = np.sort(self._rank, axis=-1)[..., ::-1]
        self.sorted = self._ranks // num_experts
        self.active = np.count_nonzero(counts, axis=-1)
        self.sizes = np.minimum(self.active[:, None], budgets[:, None])

    @cached_property
    def order(self) -> IntArray:
        """Experts in that order, [L, P, E]."""
        num_experts = self.counts.shape[-1]
        return np.asarray(num_experts - 1 - self._ranks % num_experts)

    @cached_property
    def targets(self) -> BoolArray:
        """Mark the experts of every budget's target, [L, K, P, E]."""
        least = np.moveaxis(self._ranks[..., self.budgets - 1], -1, 1)
        least = np.maximum(least, self.counts.shape[-1])  # the rank of some expert with a token
        marked: BoolArray = self._rank[:, None] >= least[..., None]
        return marked

    @cached_property
    def leaving(self) -> IntArray:
        """Experts in the order in which a limited refresh evicts them, [L, P, E]."""
        num_experts = self.counts.shape[-1]
        return np.argsort(self.counts * num_experts + np.arange(num_experts), axis=-1)

    def exchange(self, number: int, residents: BoolArray, *, option: Option) -> Exchange:
        """Refresh residents with a limit at pass `number`.

        Parameters
        ----------
        residents : [L, E, I] bool
            They fill all slots.
        option : Option
        """
        assert option.promotions is not None
        L, E, I = residents.shape
        rows = np.arange(L) * E + self.order[:, number].T  # [E, L]
        before = residents.reshape(L * E, I).take(rows, axis=0)  # [E, L, I]
        size = np.minimum(self.active[:, number], option.budget)
        is_target = (np.arange(E)[:, None] < size)[..., None]
        missing, others = is_target & ~before, before & ~is_target
        promoted = first(missing, option.promotions, axis=0)
        moves = np.count_nonzero(promoted, axis=0)
        idle_first = others.cumsum(axis=0, dtype=np.int16)
        evicted = others & (idle_first > idle_first[-1] - moves)  # the last of them
        return Exchange((before & ~evicted) | promoted, promoted, moves)


def first(marked: BoolArray, number: IntArray | int, *, axis: int = -1) -> BoolArray:
    """Keep the first so many marks along an axis."""
    kept: BoolArray = marked & (marked.cumsum(axis=axis, dtype=np.int16) <= number)
    return kept
