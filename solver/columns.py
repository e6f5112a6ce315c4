"""Columns, what they take of what couples the layers, and the exact time of a whole placement.

A column is one schedule of one row at one option. A row is a set of layers that share a schedule:
a layer by itself, or all of them for ``uniform``.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from solver.checks import BoolArray, FloatArray
from solver.errors import ProblemError
from solver.intervals import Steps, listed_steps, listed_sums
from solver.problem import Problem, Use

#: How far a cap may be exceeded, in promotions or relative, the larger: a backend's own tolerance.
CAP_TOLERANCE = 1e-6


class Taken(NamedTuple):
    """What schedules take; a coupling that a problem lacks has a last axis of length 0."""

    cost_s: FloatArray  # [...]
    request_s: FloatArray  # [..., R], without what is fixed
    copies: FloatArray  # [..., T]
    step_s: FloatArray  # [..., T + 1], without what is fixed


class Column(NamedTuple):
    """One schedule of one row at one option."""

    row: int
    option: int
    steps: Steps
    slots: int  # of all layers of the row
    taken: Taken


def column(problem: Problem, layer: int, option: int, steps: Steps) -> Column:
    """Return the column of one layer's schedule."""
    cost_s = _walked(problem.arc_cost_s, problem.never_s, layer, option, steps)
    uses = (
        np.zeros(0) if use is None else _walked(use.arcs, use.never, layer, option, steps)
        for use in _uses(problem)
    )
    return Column(layer, option, steps, int(problem.budgets[option]), Taken(cost_s, *uses))


def _walked(
    arcs: FloatArray, never: FloatArray | None, layer: int, option: int, steps: Steps
) -> FloatArray:
    """Sum the arcs of one layer's schedule, shape [...] of arcs [..., L, K, F, T, T + 1]."""
    if not steps:
        assert never is not None  # callers have checked that it is a choice
        return np.asarray(never[..., layer, option])
    ends = [*steps[1:], arcs.shape[-2]]
    walked: FloatArray = arcs[..., layer, option, steps[0], list(steps), ends].sum(axis=-1)
    return walked


def shared_columns(problem: Problem) -> list[Column]:
    """Return every column of one row of all layers: every interval, and never, at every option."""
    cost_s = listed_sums(
        problem.arc_cost_s.sum(axis=0),
        None if problem.never_s is None else problem.never_s.sum(axis=0),
    )  # [rows, K]
    uses = [
        np.zeros((*cost_s.shape, 0)) if use is None else _shared(use) for use in _uses(problem)
    ]  # [rows, K, Q]
    listed = listed_steps(problem.steps, never=problem.never_s is not None)
    slots = (problem.layers * problem.budgets).tolist()
    return [
        Column(0, k, listed[n], slots[k], Taken(cost_s[n, k], *(use[n, k] for use in uses)))
        for n, k in np.ndindex(*cost_s.shape)
    ]


def _shared(use: Use) -> FloatArray:
    never = None if use.never is None else use.never.sum(axis=1)
    return np.moveaxis(listed_sums(use.arcs.sum(axis=1), never), 1, -1)


def _uses(problem: Problem) -> tuple[Use | None, Use | None, Use | None]:
    """Return what the objective or a limit counts: requests, copies, seconds at steps."""
    copies = problem.copies if problem.step_s is not None or problem.caps.size else None
    return problem.requests if problem.risk > 0 else None, copies, problem.step_s


def stacked(columns: Iterable[Column]) -> Taken:
    """Return what columns take, one after another along a new first axis."""
    return Taken(*(np.stack(parts) for parts in zip(*(c.taken for c in columns), strict=True)))


def summed(columns: Iterable[Column]) -> Taken:
    """Return what columns of different rows take together."""
    return Taken(*(parts.sum(axis=0) for parts in stacked(columns)))


def seconds_of(problem: Problem, taken: Taken) -> FloatArray:
    """Return the objective of whole placements that take ``taken``, caps aside, shape [...]."""
    if problem.step_s is not None:
        return _with_backlog(problem, taken, fixed_s=problem.step_s.fixed)
    total_s = problem.fixed_s + taken.cost_s
    if problem.risk > 0:
        assert problem.requests is not None  # a rule of Problem
        slowest_s = (problem.requests.fixed + taken.request_s).max(axis=-1)
        total_s = total_s + problem.risk * slowest_s
    return total_s


def _with_backlog(problem: Problem, taken: Taken, *, fixed_s: FloatArray) -> FloatArray:
    """Sum the steps, each as long as its passes and the copies carried into it."""
    compute_s = fixed_s + taken.step_s  # [..., T + 1]
    backlog_s = total_s = np.zeros(compute_s.shape[:-1])
    for step in range(problem.steps + 1):
        lasts_s = np.maximum(compute_s[..., step], backlog_s)
        total_s = total_s + lasts_s
        if step < problem.steps:
            issued_s = problem.copy_s * taken.copies[..., step]
            backlog_s = np.maximum(0.0, backlog_s + issued_s - lasts_s)
    return total_s


def exceeded(problem: Problem, taken: Taken, *, tolerance: float = CAP_TOLERANCE) -> BoolArray:
    """Tell at which steps placements exceed `most_copies`, shape [..., T]."""
    if not problem.caps.size:
        return np.zeros((*taken.cost_s.shape, problem.steps), dtype=bool)
    caps = problem.most_copies
    assert caps is not None  # it has capped steps
    over: BoolArray = taken.copies > caps + tolerance * np.maximum(caps, 1.0)
    return over


def objective_s(problem: Problem, options: Sequence[int], refreshes: Sequence[Steps]) -> float:
    """Return the objective of a whole placement, exactly.

    Parameters
    ----------
    problem
        Choices and their costs.
    options
        Index of each layer's option, length L.
    refreshes
        Refresh steps of each layer, ascending, empty where it never refreshes, length L.

    Returns
    -------
    float
        Seconds per block.

    Raises
    ------
    ProblemError
        If the placement is none, or breaks the memory or a cap; says which.

    Examples
    --------
    >>> import numpy as np
    >>> costs = np.ones((1, 1, 1, 4, 5))  # a second from each refresh to the next
    >>> problem = Problem(steps=4, budgets=np.array([8]), arc_cost_s=costs)
    >>> objective_s(problem, [0], [(0, 2)])
    2.0
    """
    if not len(options) == len(refreshes) == problem.layers:
        raise ProblemError(
            f"{len(options)} options and {len(refreshes)} schedules are given, must be one of each "
            f"for {problem.layers} layers: give both for every layer."
        )
    for option, steps in zip(options, refreshes, strict=True):
        _check_layer(problem, option, steps)
    used = sum(int(problem.budgets[option]) for option in options)
    if problem.slots is not None and used > problem.slots:
        raise ProblemError(f"{used} slots do not fit, memory has {problem.slots}: choose fewer.")
    chosen = zip(range(problem.layers), options, refreshes, strict=True)
    taken = summed(column(problem, *layer) for layer in chosen)
    over = np.flatnonzero(exceeded(problem, taken))
    if over.size:
        raise ProblemError(_over_cap(problem, taken, int(over[0])))
    return float(seconds_of(problem, taken))


def _check_layer(problem: Problem, option: int, steps: Steps) -> None:
    firsts = problem.arc_cost_s.shape[2]
    if not 0 <= option < problem.budgets.size:
        raise ProblemError(
            f"option {option} does not exist, must be 0..{problem.budgets.size - 1}: correct it."
        )
    if not steps and problem.never_s is None:
        raise ProblemError("A layer never refreshes, but never_s is None: give it, or a step.")
    rising = all(earlier < later for earlier, later in pairwise((*steps, problem.steps)))
    if steps and not (rising and 0 <= steps[0] < firsts):
        raise ProblemError(
            f"refresh steps {list(steps)} must ascend, below {problem.steps}, the first of them "
            f"below {firsts}: correct them."
        )


def _over_cap(problem: Problem, taken: Taken, step: int) -> str:
    assert problem.most_copies is not None
    return (
        f"Step {step} has {taken.copies[step]:g} promotions, most_copies[{step}] allows "
        f"{problem.most_copies[step]:g}: refresh fewer layers there."
    )
