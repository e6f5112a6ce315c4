"""Uniform intervals: their refresh steps, costs, and which of equals to prefer.

Where a layer may never refresh, that counts as one more interval, longer than all others.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from solver.checks import FloatArray

Steps = tuple[int, ...]

#: Costs closer than this, relative, differ by rounding of their sums and count as equal.
TIE_RELATIVE = 1e-12


def refresh_steps(steps: int, interval: int) -> Steps:
    """Return the steps 0, τ, 2τ … below ``steps`` at which residents are chosen anew.

    Examples
    --------
    >>> refresh_steps(10, 4)
    (0, 4, 8)
    """
    return tuple(range(0, steps, interval))


def listed_steps(steps: int, *, never: bool) -> tuple[Steps, ...]:
    """Return the refresh steps of the intervals 1..``steps``, then none where that is a choice."""
    every = tuple(refresh_steps(steps, interval) for interval in range(1, steps + 1))
    return (*every, ()) if never else every


def listed_sums(arcs: FloatArray, never: FloatArray | None) -> FloatArray:
    """Sum the arcs of every schedule of `listed_steps`, each layer and option for itself.

    Parameters
    ----------
    arcs
        Values of arcs, shape [..., F, T, T + 1].
    never
        Values of never refreshing, shape [...]; None where it is no choice.

    Returns
    -------
    FloatArray
        Shape [T, ...] or, with ``never``, [T + 1, ...]: row τ - 1 is interval τ.
    """
    steps = arcs.shape[-2]
    rows = []
    for interval in range(1, steps + 1):
        start, end = zip(*pairwise((*refresh_steps(steps, interval), steps)), strict=True)
        rows.append(arcs[..., 0, start, end].sum(axis=-1))
    return np.stack(rows if never is None else [*rows, never])


def common_interval(steps: int, refreshes: Iterable[Steps]) -> int | None:
    """Return the one interval whose refresh steps all of these are; None if there is none."""
    first, *others = dict.fromkeys(refreshes)
    interval = first[1] if len(first) > 1 else steps
    return interval if not others and first == refresh_steps(steps, interval) else None


def preferred(costs_s: FloatArray) -> tuple[int, int]:
    """Choose the cheapest row and option; of equals the last row, then the first option.

    Parameters
    ----------
    costs_s
        Seconds, shape [rows, K], rows as in `listed_sums`; infinity marks a forbidden choice.

    Returns
    -------
    tuple of int
        Row and option.
    """
    tied = costs_s <= costs_s.min() * (1 + TIE_RELATIVE)
    row = int(np.flatnonzero(tied.any(axis=1))[-1])
    return row, int(np.flatnonzero(tied[row])[0])
