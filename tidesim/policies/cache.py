"""What cache policies share: who is missed, who gets a slot, who leaves."""

from abc import ABC, abstractmethod

import numpy as np

from tidesim.placement import KEEP, Decision, FloatArray, IntArray, LayerView, Setup
from tidesim.policies.base import PolicyBase

Scores = IntArray | FloatArray


class Cache(PolicyBase, ABC):
    """Base of caches: each layer inserts what it misses in place of the lowest `keep_score`.

    Experts with most tokens get a slot first, ties go to the lower id. A resident with tokens in
    this very pass never leaves; a miss that finds no slot runs on the CPU. Passes of every kind
    are uses and insert. Under background promotion the same moves hold from the next pass on.
    """

    @abstractmethod
    def note(self, view: LayerView) -> None:
        """Remember the uses of a pass; called once per layer and pass, before `keep_score`."""

    @abstractmethod
    def keep_score(self, view: LayerView) -> Scores:
        """Return how much each expert is worth keeping, [E]; the lowest leaves first."""

    def decide(self, view: LayerView) -> Decision:
        """Return the insertions of this layer's misses."""
        self.note(view)
        return exchange(view, missed_by_tokens(view), self.keep_score(view))


def missed_by_tokens(view: LayerView) -> IntArray:
    """Return the missed experts, most tokens first; ties go to the lower id."""
    missed = np.flatnonzero((view.counts > 0) & ~view.resident)
    return missed[np.argsort(-view.counts[missed], kind="stable")]


def room(view: LayerView) -> int:
    """Return the slots of a layer that are free or hold a resident without tokens."""
    return view.budget - int(np.count_nonzero(view.resident & (view.counts > 0)))


def exchange(view: LayerView, wanted: IntArray, keep: Scores) -> Decision:
    """Promote experts while there is room; free slots fill first, then residents leave.

    Parameters
    ----------
    view : LayerView
    wanted : [n] int64
        Missed experts, the first to be served first.
    keep : [E] int64 or float64
        Of the residents without tokens the lowest leaves first; ties go to the lower id.
    """
    promote = wanted[: room(view)]
    if not promote.size:
        return KEEP
    free = view.budget - int(np.count_nonzero(view.resident))
    idle = np.flatnonzero(view.resident & (view.counts == 0))
    leaving = idle[np.argsort(keep[idle], kind="stable")][: max(0, promote.size - free)]
    return Decision(promote=tuple(promote.tolist()), evict=tuple(leaving.tolist()))


def blend(average: FloatArray, counts: IntArray, weight: float) -> None:
    """Move an exponential average of token shares towards those of a pass, in place.

    Shares, not tokens: a long prefill weighs as much as one step.

    Parameters
    ----------
    average : [E] float64
    counts : [E] int64
    weight : float
        Of the new shares, 0 to 1.
    """
    average += weight * (counts / max(1, int(counts.sum())) - average)


def table(setup: Setup) -> IntArray:
    """Return a zero for every layer and expert, [L, E]."""
    return np.zeros((setup.layers, setup.num_experts), dtype=np.int64)
