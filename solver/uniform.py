"""One interval and one option for all layers, as an integer model.

The answer space is small enough to list, which gives what the integer model cannot: a tie rule
that is exact, the curve over intervals, and a check of the backend.
"""

from collections.abc import Sequence

import numpy as np

from solver.backends import Ending, Limits, confirm, describe, run
from solver.checks import FloatArray
from solver.columns import Column, exceeded, seconds_of, shared_columns, stacked
from solver.intervals import preferred
from solver.master import build
from solver.problem import Problem
from solver.solution import (
    Backend,
    Formulation,
    Solution,
    Status,
    breaks_cap,
    does_not_fit,
    found,
    infeasible,
)


def solve_uniform(problem: Problem, limits: Limits, *, backend: Backend) -> Solution:
    """Choose one interval τ, or never refreshing, and one option for all layers.

    Of equally good choices never refreshing wins, then the longest interval (fewest refreshes),
    then the first option (smallest budget, then fewest promotions). The bound is the smallest of
    the listed choices that fit the memory and the caps.

    Raises
    ------
    BackendError
        If the backend cannot run, or its answer contradicts the listed choices.
    """
    columns = shared_columns(problem)
    costs_s = _listed_s(problem, columns)  # [rows, K]
    fitting_s = _fitting_s(problem, costs_s)
    best_s = float(fitting_s.min())
    if best_s == np.inf and problem.caps.size:  # CBC crashes where only parts of columns would do
        return infeasible(Formulation.UNIFORM, backend, message=_nothing(problem, columns))
    unit_s = _unit_s(columns)
    master = build(problem, columns, unit_s=unit_s)
    ending = run(master.model, limits, backend=backend)
    listed_best_s = best_s if best_s < np.inf else None
    found_s = _claimed_s(problem, master.chosen) if ending is Ending.PROVED else None
    confirm(ending, found_s, best_s=listed_best_s, gap=limits.gap, unit_s=unit_s)
    if best_s == np.inf:
        message = does_not_fit(problem)
        return infeasible(Formulation.UNIFORM, backend, message=message, size=master.size)
    row, option = preferred(fitting_s)
    chosen = columns[row * problem.budgets.size + option]
    return found(
        problem,
        Formulation.UNIFORM,
        backend,
        options=(option,) * problem.layers,
        refreshes=(chosen.steps,) * problem.layers,
        objective_s=float(costs_s[row, option]),
        bound_s=best_s,
        status=Status.OPTIMAL if ending is Ending.PROVED else Status.FEASIBLE,
        size=master.size,
        message=describe(ending, limits, backend, listed="every interval and option"),
        cost_by_interval_s=tuple(costs_s[: problem.steps, option].tolist()),
    )


def best_shared(problem: Problem) -> Column | None:
    """Return the best choice for all layers together; None if none fits."""
    columns = shared_columns(problem)
    fitting_s = _fitting_s(problem, _listed_s(problem, columns))
    row, option = preferred(fitting_s)
    best = columns[row * problem.budgets.size + option]
    return best if fitting_s[row, option] < np.inf else None


def _listed_s(problem: Problem, columns: Sequence[Column]) -> FloatArray:
    """Return the objective of every choice, infinity where it exceeds a cap, shape [rows, K]."""
    taken = stacked(columns)
    allowed = ~exceeded(problem, taken).any(axis=-1)
    seconds = np.where(allowed, seconds_of(problem, taken), np.inf)
    return seconds.reshape(-1, problem.budgets.size)


def _fitting_s(problem: Problem, costs_s: FloatArray) -> FloatArray:
    """Return the costs with infinity where the budget does not fit the memory."""
    if problem.slots is None:
        return costs_s
    fits = problem.layers * problem.budgets <= problem.slots
    return np.where(fits, costs_s, np.inf)


def _unit_s(columns: Sequence[Column]) -> float:
    """Count the objective so that the cheapest choice is about 1 and none above 1e6."""
    costs_s = [float(column.taken.cost_s) for column in columns]
    return max(min(costs_s), max(costs_s) * 1e-6) or 1.0


def _claimed_s(problem: Problem, chosen: Sequence[Column]) -> float | None:
    """Return the objective of the backend's answer; None where that is no answer."""
    if len(chosen) != 1:
        return None
    fits = problem.slots is None or chosen[0].slots <= problem.slots
    allowed = fits and not exceeded(problem, chosen[0].taken).any()
    return float(seconds_of(problem, chosen[0].taken)) if allowed else None


def _nothing(problem: Problem, columns: Sequence[Column]) -> str:
    """Say what no choice keeps: the memory, or a cap."""
    fitting = [c for c in columns if problem.slots is None or c.slots <= problem.slots]
    if not fitting:
        return does_not_fit(problem)
    least = min(fitting, key=lambda c: int(exceeded(problem, c.taken).sum()))
    return breaks_cap(problem, int(np.flatnonzero(exceeded(problem, least.taken))[0]))
