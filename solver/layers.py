"""A budget, and an interval or any refresh steps, for each layer.

Only memory couples the layers, so each layer and option needs but its best schedule; what is left
is one option per layer, a multiple-choice knapsack. The full model over arcs is `arc_model`.
"""

from collections.abc import Sequence

import pulp

from solver import families
from solver.backends import Ending, Limits, describe, run
from solver.best import Best, best_intervals, best_paths
from solver.intervals import common_interval
from solver.pareto import best_options
from solver.problem import BackendError, FloatArray, Problem
from solver.solution import Backend, Formulation, Solution, Status, infeasible, relative_gap
from solver.uniform import BACKEND_ACCURACY, does_not_fit

Choices = list[list[pulp.LpVariable]]


def solve_layered(problem: Problem, limits: Limits, *, backend: Backend) -> Solution:
    """Choose an interval τ and a budget for each layer.

    Of equally good schedules of a layer at a budget the longest interval wins; of equally good
    budgets those of fewest refreshes, then fewest slots, then smaller budgets in the last layers.

    Raises
    ------
    BackendError
        If the backend cannot run, or its answer contradicts the listed choices.
    """
    return _solve(problem, best_intervals(problem), limits, backend, Formulation.LAYERED)


def solve_free(problem: Problem, limits: Limits, *, backend: Backend) -> Solution:
    """Choose any refresh steps and a budget for each layer.

    Of equally good schedules of a layer at a budget the one of fewest refreshes wins, then the
    one whose last refreshes come earliest; budgets as in `solve_layered`.

    Raises
    ------
    BackendError
        If the backend cannot run, or its answer contradicts the listed choices.
    """
    return _solve(problem, best_paths(problem), limits, backend, Formulation.FREE)


def build_options(
    problem: Problem, cost_s: FloatArray, *, unit_s: float = 1.0
) -> tuple[pulp.LpProblem, Choices]:
    """Build the reduced integer model of FORMULATION.md, section ``layered`` and ``free``.

    Parameters
    ----------
    problem
        Gives budgets and memory.
    cost_s
        Seconds per block of each layer's best schedule at each option, shape [L, K].
    unit_s
        Seconds the objective is counted in.

    Returns
    -------
    tuple
        The model and its binaries y[layer][option].
    """
    layers, options = cost_s.shape
    model = pulp.LpProblem("layers", pulp.LpMinimize)
    chosen = families.option_variables(model, rows=layers, options=options)
    taken = {(r, k): y for r, row in enumerate(chosen) for k, y in enumerate(row)}
    families.objective(model, taken, cost_s=cost_s, unit_s=unit_s)
    for row, choices in enumerate(chosen):
        families.choose_one(model, choices, row=row)
    if problem.slots is not None:
        families.memory(
            model,
            chosen,
            budgets=problem.budgets.tolist(),
            layers=[1] * layers,
            slots=problem.slots,
        )
    return model, chosen


def _solve(
    problem: Problem, best: Best, limits: Limits, backend: Backend, formulation: Formulation
) -> Solution:
    options = best_options(best, problem.budgets.tolist(), slots=problem.slots)
    best_s = None if options is None else _sum_s(best, options)
    unit_s = _unit_s(best.cost_s, best_s)
    model, choices = build_options(problem, best.cost_s, unit_s=unit_s)
    ending = run(model, limits, backend=backend)
    found_s = _found_s(problem, best, choices) if ending is Ending.PROVED else None
    _check(ending, found_s, best_s=best_s, gap=limits.gap, unit_s=unit_s)
    size = {"variables": model.numVariables(), "constraints": model.numConstraints()}
    if options is None or best_s is None:
        return infeasible(formulation, backend, message=does_not_fit(problem), **size)
    objective_s = problem.fixed_s + best_s
    refreshes = tuple(best.steps[layer][option] for layer, option in enumerate(options))
    return Solution(
        formulation=formulation,
        backend=backend,
        status=Status.OPTIMAL if ending is Ending.PROVED else Status.FEASIBLE,
        objective_s=objective_s,
        bound_s=objective_s,
        gap=relative_gap(objective_s, objective_s),
        seconds=0.0,
        budget=tuple(int(problem.budgets[option]) for option in options),
        refresh_steps=refreshes,
        interval=common_interval(problem.steps, refreshes),
        **size,
        cost_by_interval_s=(),
        message=describe(ending, limits, backend, listed="every choice of budgets worth keeping"),
    )


def _sum_s(best: Best, options: Sequence[int]) -> float:
    return sum(float(best.cost_s[layer, option]) for layer, option in enumerate(options))


def _unit_s(cost_s: FloatArray, best_s: float | None) -> float:
    """Count the objective so that the best choice is about 1 and no entry above 1e6."""
    return max(best_s or 0.0, float(cost_s.max()) * 1e-6) or 1.0


def _found_s(problem: Problem, best: Best, choices: Choices) -> float | None:
    """Return the time of the backend's answer; None where that is no answer."""
    taken = [[k for k, y in enumerate(row) if y.value() > 0.5] for row in choices]
    if any(len(row) != 1 for row in taken):
        return None
    options = [row[0] for row in taken]
    used = sum(int(problem.budgets[option]) for option in options)
    fits = problem.slots is None or used <= problem.slots
    return _sum_s(best, options) if fits else None


def _check(
    ending: Ending, found_s: float | None, *, best_s: float | None, gap: float, unit_s: float
) -> None:
    """Compare what the backend claims with the best of the listed choices."""
    if ending is Ending.INFEASIBLE and best_s is not None:
        raise BackendError(
            f"The backend found no answer, but a listed choice takes {best_s:g} s: report this."
        )
    if ending is not Ending.PROVED:
        return
    if found_s is None or best_s is None:
        raise BackendError("The backend proved an answer that breaks a constraint: report this.")
    if found_s > best_s / (1 - gap) + BACKEND_ACCURACY * unit_s:
        raise BackendError(
            f"The backend proved {found_s:g} s, but a listed choice takes {best_s:g} s: report this."
        )
