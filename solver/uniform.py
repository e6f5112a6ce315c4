"""One interval and one budget for all layers, as an integer model.

All layers walk the same arcs, so they form one row whose arc costs are the layers' sum. The
answer space is small enough to list, which gives what the integer model cannot: a tie rule that
is exact, the curve over intervals, and a check of the backend.
"""

import numpy as np
import pulp

from solver import families
from solver.backends import Ending, Limits, describe, run
from solver.intervals import interval_costs_s, preferred, refresh_steps, users_of_arcs
from solver.problem import BackendError, FloatArray, Problem
from solver.solution import Backend, Formulation, Solution, Status, infeasible, relative_gap

#: Accuracy expected of a backend, relative to the unit its objective is counted in.
BACKEND_ACCURACY = 1e-5

Choices = dict[families.IntervalKey, pulp.LpVariable]


def solve_uniform(problem: Problem, limits: Limits, *, backend: Backend) -> Solution:
    """Choose one interval τ and one budget for all layers.

    Of equally good choices the longest interval wins (fewest refreshes), then the smallest budget.
    The bound is the smallest of the listed choices that fit the memory.

    Raises
    ------
    BackendError
        If the backend cannot run, or its answer contradicts the listed choices.
    """
    costs_s = interval_costs_s(problem.arc_cost_s)  # [T, K]
    fitting_s, unit_s = _fitting_s(problem, costs_s), _unit_s(costs_s)
    model, choices = build_uniform(problem, unit_s=unit_s)
    ending = run(model, limits, backend=backend)
    _check(ending, choices, fitting_s=fitting_s, gap=limits.gap, unit_s=unit_s)
    size = {"variables": model.numVariables(), "constraints": model.numConstraints()}
    if not np.isfinite(fitting_s).any():
        return infeasible(Formulation.UNIFORM, backend, message=does_not_fit(problem), **size)
    interval, option = preferred(fitting_s)
    objective_s = problem.fixed_s + float(costs_s[interval - 1, option])
    bound_s = problem.fixed_s + float(fitting_s.min())
    return Solution(
        formulation=Formulation.UNIFORM,
        backend=backend,
        status=Status.OPTIMAL if ending is Ending.PROVED else Status.FEASIBLE,
        objective_s=objective_s,
        bound_s=bound_s,
        gap=relative_gap(objective_s, bound_s),
        seconds=0.0,
        budget=(int(problem.budgets[option]),) * problem.layers,
        refresh_steps=(refresh_steps(problem.steps, interval),) * problem.layers,
        interval=interval,
        **size,
        cost_by_interval_s=tuple((problem.fixed_s + costs_s[:, option]).tolist()),
        message=describe(ending, limits, backend, listed="every interval and budget"),
    )


def build_uniform(problem: Problem, *, unit_s: float = 1.0) -> tuple[pulp.LpProblem, Choices]:
    """Build the integer model of FORMULATION.md, section ``uniform``.

    Returns
    -------
    tuple
        The model and its binaries w[τ, k], keyed (row 0, interval, option).
    """
    steps, options = problem.steps, problem.budgets.size
    model = pulp.LpProblem("uniform", pulp.LpMinimize)
    choices = {
        (0, interval, option): model.add_variable(f"w_{interval}_{option}", cat=pulp.LpBinary)
        for interval in range(1, steps + 1)
        for option in range(options)
    }
    chosen = [
        [pulp.lpSum(choices[0, t, k] for t in range(1, steps + 1)) for k in range(options)]
    ]  # y[row][option], one row
    users = users_of_arcs(steps)
    z = families.arc_variables(model, users, rows=1, options=options)
    row_cost_s = problem.arc_cost_s.sum(axis=0, keepdims=True)
    families.objective(model, z, cost_s=row_cost_s, unit_s=unit_s)
    families.choose_one(model, choices.values(), row=0)
    families.budget(model, z, chosen=chosen)
    families.flow(model, z)
    families.link(model, z, choices=choices, users=users)
    if problem.slots is not None:
        families.memory(
            model,
            chosen,
            budgets=problem.budgets.tolist(),
            layers=[problem.layers],
            slots=problem.slots,
        )
    return model, choices


def _fitting_s(problem: Problem, costs_s: FloatArray) -> FloatArray:
    """Return the costs with infinity where the budget does not fit the memory."""
    if problem.slots is None:
        return costs_s
    fits = problem.layers * problem.budgets <= problem.slots
    return np.where(fits, costs_s, np.inf)


def _unit_s(costs_s: FloatArray) -> float:
    """Count the objective so that the best choice is about 1 and the worst at most 1e6."""
    return max(float(costs_s.min()), float(costs_s.max()) * 1e-6) or 1.0


def _check(
    ending: Ending, choices: Choices, *, fitting_s: FloatArray, gap: float, unit_s: float
) -> None:
    """Compare what the backend claims with the listed choices."""
    best_s = float(fitting_s.min())
    if ending is Ending.INFEASIBLE and best_s < np.inf:
        raise BackendError(
            f"The backend found no answer, but a listed choice takes {best_s:g} s: report this."
        )
    if ending is not Ending.PROVED:
        return
    taken = [key for key, chosen in choices.items() if chosen.value() > 0.5]
    found_s = max((float(fitting_s[t - 1, k]) for _, t, k in taken), default=np.inf)
    if found_s == np.inf or found_s > best_s / (1 - gap) + BACKEND_ACCURACY * unit_s:
        raise BackendError(
            f"The backend proved {found_s:g} s, but a listed choice takes {best_s:g} s: report this."
        )


def does_not_fit(problem: Problem) -> str:
    """Say what memory the smallest budgets need."""
    smallest = int(problem.budgets[0])
    return (
        f"The smallest budget, {smallest} slots in each of {problem.layers} layers, needs "
        f"{problem.memory_of(smallest)} bytes of GPU memory, {problem.memory_bytes} are left."
    )
