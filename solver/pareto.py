"""One budget option for every layer within the slots, by listing what is worth keeping.

Layer after layer, a partial choice is kept only if no other takes as few slots and is as good.
"""

from collections.abc import Sequence
from typing import NamedTuple, Optional

from solver.best import Best
from solver.intervals import TIE_RELATIVE


class Partial(NamedTuple):
    """A budget option for each of the first layers."""

    slots: int
    cost_s: float
    refreshes: int
    option: int  # of the last of them
    before: Optional["Partial"]  # the choice for the others


def best_options(
    best: Best, budgets: Sequence[int], *, slots: int | None
) -> tuple[int, ...] | None:
    """Choose the option of every layer that makes the smallest sum within the slots.

    Of sums equal to within rounding the one of fewest refreshes, then of fewest slots, then of
    the smaller budgets in the last layers.

    Parameters
    ----------
    best
        Cost and refreshes of every layer and option.
    budgets
        Slots of each option, ascending; of equal ones the first wins ties.
    slots
        Slots of all layers together; None means no limit.

    Returns
    -------
    tuple of int or None
        Option indices, length L; None where not even the smallest budgets fit.
    """
    layers = len(best.steps)
    kept: list[Partial] = [Partial(0, 0.0, 0, 0, None)]
    for layer in range(layers):
        left = (layers - 1 - layer) * budgets[0]  # at least, for the layers to come
        limit = layers * budgets[-1] if slots is None else slots - left
        kept = _undominated(_extended(kept, best, layer, budgets=budgets, limit=limit))
        if slots is None:
            kept = kept[-1:]  # nothing couples the layers: the best of the first stays the best
    return _options(kept[-1]) if kept else None


def _extended(
    kept: list[Partial], best: Best, layer: int, *, budgets: Sequence[int], limit: int
) -> list[Partial]:
    """Add every option of a layer to every partial choice, where it fits."""
    costs_s = best.cost_s[layer].tolist()
    refreshes = [len(steps) for steps in best.steps[layer]]
    return [
        Partial(p.slots + size, p.cost_s + costs_s[k], p.refreshes + refreshes[k], k, p)
        for k, size in enumerate(budgets)
        for p in kept
        if p.slots + size <= limit
    ]


def _undominated(choices: list[Partial]) -> list[Partial]:
    """Keep, in order of slots, each choice that is better than all that take no more slots."""
    kept: list[Partial] = []
    for choice in sorted(choices, key=lambda choice: choice.slots):
        if kept and not _is_better(choice, kept[-1]):
            continue
        if kept and kept[-1].slots == choice.slots:
            kept.pop()
        kept.append(choice)
    return kept


def _is_better(new: Partial, old: Partial) -> bool:
    """Compare costs, then refreshes where the costs differ by rounding only."""
    if new.cost_s * (1 + TIE_RELATIVE) < old.cost_s:
        return True
    tied = new.cost_s <= old.cost_s * (1 + TIE_RELATIVE)
    return tied and new.refreshes < old.refreshes


def _options(last: Partial) -> tuple[int, ...]:
    options = []
    while last.before is not None:
        options.append(last.option)
        last = last.before
    return tuple(reversed(options))
