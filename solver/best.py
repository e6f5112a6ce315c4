"""The best schedule of one layer at one budget: by listing intervals, or by shortest paths.

Where nothing but memory couples the layers, all other schedules can be dropped (FORMULATION.md).
"""

from dataclasses import dataclass

import numpy as np

from solver.intervals import TIE_RELATIVE, layer_costs_s, preferred, refresh_steps
from solver.problem import FloatArray, IntArray, Problem

Steps = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Best:
    """The schedule each layer would follow at each budget option.

    Parameters
    ----------
    cost_s
        Seconds per block, shape [L, K].
    steps
        Refresh steps, ascending, 0 first, indexed [layer][option].
    """

    cost_s: FloatArray
    steps: tuple[tuple[Steps, ...], ...]


def best_intervals(problem: Problem) -> Best:
    """Keep each layer's and option's cheapest interval; of equals the longest."""
    costs_s = layer_costs_s(problem.arc_cost_s)  # [T, L, K]
    chosen = np.array(
        [
            [preferred(costs_s[:, layer, option, None])[0] for option in range(costs_s.shape[2])]
            for layer in range(problem.layers)
        ]
    )  # [L, K]
    return Best(
        cost_s=np.take_along_axis(costs_s, chosen[None] - 1, axis=0)[0],
        steps=tuple(
            tuple(refresh_steps(problem.steps, interval) for interval in row)
            for row in chosen.tolist()
        ),
    )


def best_paths(problem: Problem) -> Best:
    """Keep each layer's and option's shortest path from step 0 to T.

    Of equals the path of fewest refreshes, then the one whose last refreshes come earliest.
    """
    layers, options, steps, _ = problem.arc_cost_s.shape
    cost_s = np.zeros((layers, options, steps + 1))  # of the best path to each step
    arcs = np.zeros(cost_s.shape, dtype=np.int64)  # that it takes
    before = np.zeros(cost_s.shape, dtype=np.int64)  # where its last arc starts
    for end in range(1, steps + 1):
        through_s = cost_s[..., :end] + problem.arc_cost_s[..., :end, end]  # [L, K, start]
        tied = through_s <= through_s.min(axis=-1, keepdims=True) * (1 + TIE_RELATIVE)
        start = np.where(tied, arcs[..., :end], steps).argmin(axis=-1, keepdims=True)
        cost_s[..., end] = np.take_along_axis(through_s, start, axis=-1)[..., 0]
        arcs[..., end] = np.take_along_axis(arcs, start, axis=-1)[..., 0] + 1
        before[..., end] = start[..., 0]
    paths = tuple(
        tuple(_walk_back(before[layer, option]) for option in range(options))
        for layer in range(layers)
    )
    return Best(cost_s=cost_s[..., steps], steps=paths)


def _walk_back(before: IntArray) -> Steps:
    """Return the steps of the path to the last step, given where each last arc starts."""
    step = before.size - 1
    path = []
    while step > 0:
        step = int(before[step])
        path.append(step)
    return tuple(reversed(path))
