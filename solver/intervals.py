"""Uniform intervals: their refresh steps, arcs, costs, and which of equals to prefer."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from solver.problem import FloatArray

Arc = tuple[int, int]

#: Costs closer than this, relative, differ by rounding of their sums and count as equal.
TIE_RELATIVE = 1e-12


def refresh_steps(steps: int, interval: int) -> tuple[int, ...]:
    """Return the steps 0, τ, 2τ … below ``steps`` at which residents are chosen anew."""
    return tuple(range(0, steps, interval))


def arcs_of(steps: int, interval: int) -> tuple[Arc, ...]:
    """Return the arcs (i, j) an interval walks from step 0 to the next block, ``steps``."""
    return tuple(pairwise((*refresh_steps(steps, interval), steps)))


def users_of_arcs(steps: int) -> dict[Arc, tuple[int, ...]]:
    """Map every arc that some interval walks to the intervals 1..``steps`` that walk it."""
    users: dict[Arc, tuple[int, ...]] = {}
    for interval in range(1, steps + 1):
        for arc in arcs_of(steps, interval):
            users[arc] = (*users.get(arc, ()), interval)
    return users


def interval_costs_s(arc_cost_s: FloatArray) -> FloatArray:
    """Sum the arcs of every interval, all layers together.

    Parameters
    ----------
    arc_cost_s
        Seconds per block, shape [L, K, T, T + 1].

    Returns
    -------
    FloatArray
        Seconds per block, shape [T, K]: row τ - 1 is interval τ, summed over layers.
    """
    return layer_costs_s(arc_cost_s.sum(axis=0, keepdims=True))[:, 0]


def layer_costs_s(arc_cost_s: FloatArray) -> FloatArray:
    """Sum the arcs of every interval, each layer for itself.

    Parameters
    ----------
    arc_cost_s
        Seconds per block, shape [L, K, T, T + 1].

    Returns
    -------
    FloatArray
        Seconds per block, shape [T, L, K]: row τ - 1 is interval τ.
    """
    steps = arc_cost_s.shape[2]
    rows = []
    for interval in range(1, steps + 1):
        start, end = zip(*arcs_of(steps, interval), strict=True)
        rows.append(arc_cost_s[:, :, start, end].sum(axis=2))
    return np.stack(rows)


def common_interval(steps: int, refreshes: Iterable[tuple[int, ...]]) -> int | None:
    """Return the one interval whose refresh steps all of these are; None if there is none."""
    first, *others = dict.fromkeys(refreshes)
    interval = first[1] if len(first) > 1 else steps
    return interval if not others and first == refresh_steps(steps, interval) else None


def preferred(costs_s: FloatArray) -> tuple[int, int]:
    """Choose the cheapest (interval, option); of equals the longest interval, then first option.

    Parameters
    ----------
    costs_s
        Seconds, shape [T, K], row τ - 1 for interval τ; infinity marks a forbidden choice.

    Returns
    -------
    tuple of int
        Interval τ, 1..T, and option index.
    """
    tied = costs_s <= costs_s.min() * (1 + TIE_RELATIVE)
    row = int(np.flatnonzero(tied.any(axis=1))[-1])
    return row + 1, int(np.flatnonzero(tied[row])[0])
