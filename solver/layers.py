"""An option, and an interval or any refresh steps, for each layer, where only memory couples them.

Each layer and option then needs but its best schedule; what is left is one option per layer, a
multiple-choice knapsack. Everything else is `coupled`.
"""

from collections.abc import Sequence

from solver.backends import Ending, Limits, confirm, describe, run
from solver.best import INTERVALS, PATHS, Best, Search
from solver.checks import FloatArray
from solver.columns import Column, column
from solver.coupled import solve_coupled
from solver.master import Master, build
from solver.pareto import best_options
from solver.problem import Problem
from solver.solution import (
    Backend,
    Formulation,
    Solution,
    Status,
    does_not_fit,
    found,
    infeasible,
)


def solve_layered(problem: Problem, limits: Limits, *, backend: Backend) -> Solution:
    """Choose an interval τ, or never refreshing, and an option for each layer.

    Of equally good schedules of a layer at an option the one of fewest refreshes wins; of equally
    good options those of fewest refreshes, then fewest slots, then the first in the last layers.
    Where more than memory couples the layers, ties are not broken.

    Raises
    ------
    BackendError
        If the backend cannot run, or its answer contradicts the problem.
    """
    return _solve(problem, INTERVALS, limits, backend, Formulation.LAYERED)


def solve_free(problem: Problem, limits: Limits, *, backend: Backend) -> Solution:
    """Choose any refresh steps, or none, and an option for each layer.

    Of equally good schedules of a layer at an option the one of fewest refreshes wins, then the
    smallest first step, then the one whose last refreshes come earliest; options as in
    `solve_layered`.

    Raises
    ------
    BackendError
        If the backend cannot run, or its answer contradicts the problem.
    """
    return _solve(problem, PATHS, limits, backend, Formulation.FREE)


def build_options(problem: Problem, best: Best, *, unit_s: float = 1.0) -> Master:
    """Build the integer model over the best schedule of each layer and option, in that order."""
    columns = [
        column(problem, layer, option, steps)
        for layer, row in enumerate(best.steps)
        for option, steps in enumerate(row)
    ]
    return build(problem, columns, unit_s=unit_s)


def _solve(
    problem: Problem, search: Search, limits: Limits, backend: Backend, formulation: Formulation
) -> Solution:
    if problem.coupled:
        return solve_coupled(problem, search, limits, backend=backend, formulation=formulation)
    best = search.best((problem.arc_cost_s, problem.never_s))
    options = best_options(best, problem.budgets.tolist(), slots=problem.slots)
    best_s = None if options is None else _sum_s(best, options)
    unit_s = _unit_s(best.cost_s, best_s)
    master = build_options(problem, best, unit_s=unit_s)
    ending = run(master.model, limits, backend=backend)
    found_s = _claimed_s(problem, best, master.chosen) if ending is Ending.PROVED else None
    confirm(ending, found_s, best_s=best_s, gap=limits.gap, unit_s=unit_s)
    if options is None or best_s is None:
        message = does_not_fit(problem)
        return infeasible(formulation, backend, message=message, size=master.size)
    return found(
        problem,
        formulation,
        backend,
        options=options,
        refreshes=[best.steps[layer][option] for layer, option in enumerate(options)],
        objective_s=problem.fixed_s + best_s,
        bound_s=problem.fixed_s + best_s,
        status=Status.OPTIMAL if ending is Ending.PROVED else Status.FEASIBLE,
        size=master.size,
        message=describe(ending, limits, backend, listed="every choice of options worth keeping"),
    )


def _sum_s(best: Best, options: Sequence[int]) -> float:
    return sum(float(best.cost_s[layer, option]) for layer, option in enumerate(options))


def _unit_s(cost_s: FloatArray, best_s: float | None) -> float:
    """Count the objective so that the best choice is about 1 and no entry above 1e6."""
    return max(best_s or 0.0, float(cost_s.max()) * 1e-6) or 1.0


def _claimed_s(problem: Problem, best: Best, chosen: Sequence[Column]) -> float | None:
    """Return the time of the backend's answer; None where that is no answer."""
    if [c.row for c in chosen] != list(range(problem.layers)):
        return None
    fits = problem.slots is None or sum(c.slots for c in chosen) <= problem.slots
    return _sum_s(best, [c.option for c in chosen]) if fits else None
