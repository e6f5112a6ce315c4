"""The schedules of one layer at one option: the best, or all within a limit.

Two searches share one face: uniform intervals, by listing, and any refresh steps, by shortest
paths. Both take costs that are not negative, of a problem or weighed by prices (`prices`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from solver.checks import FloatArray, IntArray
from solver.intervals import TIE_RELATIVE, Steps, listed_steps, listed_sums, preferred


@dataclass(frozen=True, kw_only=True, eq=False)
class Best:
    """The schedule each layer would follow at each option.

    Parameters
    ----------
    cost_s
        Seconds per block, shape [L, K].
    steps
        Refresh steps, ascending, none where the layer never refreshes, indexed [layer][option].
    """

    cost_s: FloatArray
    steps: tuple[tuple[Steps, ...], ...]


Costs = tuple[FloatArray, FloatArray | None]  # arcs [L, K, F, T, T + 1], never [L, K]
Found = tuple[int, int, Steps]  # layer, option, refresh steps


@dataclass(frozen=True, kw_only=True)
class Search:
    """Which schedules a formulation searches.

    Parameters
    ----------
    best
        Finds the best schedule of every layer and option.
    within
        Yields every schedule that costs no more than a limit [L, K].
    """

    best: Callable[[Costs], Best]
    within: Callable[[Costs, FloatArray], Iterator[Found]]


def best_intervals(costs: Costs) -> Best:
    """Keep each layer's and option's cheapest interval, or never; of equals fewest refreshes."""
    arcs, never = costs
    layers, options, _, steps, _ = arcs.shape
    costs_s = listed_sums(arcs, never)  # [T or T + 1, L, K]
    listed = listed_steps(steps, never=never is not None)
    rows = np.array(
        [[preferred(costs_s[:, x, k, None])[0] for k in range(options)] for x in range(layers)]
    )  # [L, K]
    return Best(
        cost_s=np.take_along_axis(costs_s, rows[None], axis=0)[0],
        steps=tuple(tuple(listed[row] for row in layer) for layer in rows.tolist()),
    )


def intervals_within(costs: Costs, limit_s: FloatArray) -> Iterator[Found]:
    """Yield every interval, and never, that costs no more than its layer's and option's limit."""
    arcs, never = costs
    listed = listed_steps(arcs.shape[-2], never=never is not None)
    for row, layer, option in np.argwhere(listed_sums(arcs, never) <= limit_s).tolist():
        yield layer, option, listed[row]


def best_paths(costs: Costs) -> Best:
    """Keep each layer's and option's shortest path from a first step to T, or never.

    Of equals the path of fewest refreshes, then the smallest first step, then the one whose last
    refreshes come earliest.
    """
    arcs, never = costs
    layers, options, firsts, steps, _ = arcs.shape
    cost_s = np.full((layers, options, firsts, steps + 1), np.inf)  # of the best path to each step
    cost_s[..., range(firsts), range(firsts)] = 0.0
    taken = np.zeros(cost_s.shape, dtype=np.int64)  # arcs of that path
    before = np.zeros(cost_s.shape, dtype=np.int64)  # where its last arc starts
    for end in range(1, steps + 1):
        some = np.s_[:, :, : min(firsts, end)]  # the first steps before it
        through_s = cost_s[some][..., :end] + arcs[some][..., :end, end]  # [L, K, first, start]
        tied = through_s <= through_s.min(axis=-1, keepdims=True) * (1 + TIE_RELATIVE)
        start = np.where(tied, taken[some][..., :end], steps).argmin(axis=-1, keepdims=True)
        cost_s[some][..., end] = np.take_along_axis(through_s, start, axis=-1)[..., 0]
        taken[some][..., end] = np.take_along_axis(taken[some], start, axis=-1)[..., 0] + 1
        before[some][..., end] = start[..., 0]
    return _best_first(cost_s[..., steps], taken[..., steps], before=before, never=never)


def _best_first(
    cost_s: FloatArray, taken: IntArray, *, before: IntArray, never: FloatArray | None
) -> Best:
    """Choose among first steps, and never; arrays are [L, K, F], ``before`` [L, K, F, T + 1]."""
    if never is not None:
        cost_s = np.concatenate([cost_s, never[..., None]], axis=-1)
        taken = np.concatenate([taken, np.zeros((*never.shape, 1), dtype=np.int64)], axis=-1)
    tied = cost_s <= cost_s.min(axis=-1, keepdims=True) * (1 + TIE_RELATIVE)
    first = np.where(tied, taken, before.shape[-1]).argmin(axis=-1)  # [L, K]
    return Best(
        cost_s=np.take_along_axis(cost_s, first[..., None], axis=-1)[..., 0],
        steps=tuple(
            tuple(_walk_back(before[x, k], f) for k, f in enumerate(row))
            for x, row in enumerate(first.tolist())
        ),
    )


def _walk_back(before: IntArray, first: int) -> Steps:
    """Return the path to the last step, given where arcs start [F, T + 1]; first F is never."""
    if first == len(before):
        return ()
    step = before.shape[-1] - 1
    path = []
    while step > first:
        step = int(before[first, step])
        path.append(step)
    return tuple(reversed(path))


def paths_within(costs: Costs, limit_s: FloatArray) -> Iterator[Found]:
    """Yield every path, and never, that costs no more than its layer's and option's limit."""
    arcs, never = costs
    steps = arcs.shape[-2]
    ahead_s = np.zeros((*arcs.shape[:3], steps + 1))  # of the shortest path from each step to T
    for start in reversed(range(steps)):
        later_s = arcs[..., start, start + 1 :] + ahead_s[..., start + 1 :]
        ahead_s[..., start] = later_s.min(axis=-1)
    for layer, option in np.ndindex(*limit_s.shape):
        limit = float(limit_s[layer, option])
        if never is not None and never[layer, option] <= limit:
            yield layer, option, ()
        for first in range(arcs.shape[2]):
            of_first = arcs[layer, option, first], ahead_s[layer, option, first]
            yield from (
                (layer, option, path) for path in _paths(*of_first, first=first, limit_s=limit)
            )


def _paths(arcs: FloatArray, ahead_s: FloatArray, *, first: int, limit_s: float) -> Iterator[Steps]:
    """Yield the paths from ``first`` to T within a limit, depth first; arcs [T, T + 1]."""
    open_paths: list[tuple[Steps, float]] = [((first,), 0.0)] if ahead_s[first] <= limit_s else []
    while open_paths:
        path, walked_s = open_paths.pop()
        start = path[-1]
        through_s = walked_s + arcs[start]
        within = through_s + ahead_s <= limit_s
        for end in np.flatnonzero(within[start + 1 :]) + start + 1:
            if end == len(arcs):
                yield path
            else:
                open_paths.append(((*path, int(end)), float(through_s[end])))


INTERVALS = Search(best=best_intervals, within=intervals_within)
PATHS = Search(best=best_paths, within=paths_within)
