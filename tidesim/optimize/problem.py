"""The solver's problem: costs around a schedule, memory and couplings, and its solutions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solver import (
    Formulation,
    Problem,
    ProblemError,
    Solution,
    SolverError,
    Status,
    Use,
    objective_s,
    solve,
)
from tidesim.closed_form import closed_form_terms
from tidesim.costs import CostTable, Measure, Option, arc_costs
from tidesim.engines import Promotion
from tidesim.errors import CapacityError, SettingError
from tidesim.optimize.job import Search
from tidesim.simulate import Case


def costs_around(
    case: Case,
    options: Sequence[Option],
    search: Search,
    *,
    around: Sequence[tuple[int, ...]] | None,
) -> CostTable:
    """Return the costs of training requests around a schedule's refresh steps."""
    return arc_costs(case, options, around=around, by_request=search.risk > 0)


def problem_of(
    costs: CostTable, case: Case, search: Search, *, memory_bytes: int | None
) -> Problem:
    """Return the problem to solve; its memory is what is left for slots.

    Parameters
    ----------
    costs : CostTable
    case : Case
        The training requests, under the budget that the closed form takes.
    search : Search
    memory_bytes : int or None
        GPU memory, all of it.

    Raises
    ------
    SettingError
        The costs are beyond what the solver counts with.
    """
    others = case.memory.total_bytes - case.memory.slots_bytes
    if memory_bytes is not None:
        others += case.memory.kept_free_bytes(memory_bytes, case.setup.engine.free_percent)
    background = search.promotion is Promotion.BACKGROUND
    closed = search.formulation is Formulation.CLOSED_FORM
    most = search.copies_per_step
    try:
        return Problem(
            steps=costs.steps,
            budgets=np.array([option.budget for option in costs.options]),
            promotions=tuple(option.promotions for option in costs.options),
            arc_cost_s=costs.arc_cost_s,
            never_s=costs.never_s,
            fixed_s=costs.fixed_s,
            expert_bytes=case.spec.expert_bytes,
            memory_bytes=None if memory_bytes is None else memory_bytes - others,
            closed_form=closed_form_terms(case, case.setup.budget) if closed else None,
            requests=_use(costs.requests) if search.risk else None,
            risk=search.risk,
            copies=_use(costs.copies) if most is not None or background else None,
            most_copies=None if most is None else most * costs.reach,
            step_s=_use(costs.step_s) if background else None,
            copy_s=costs.copy_s if background else 0.0,
        )
    except SolverError as error:
        raise SettingError(str(error)) from error


def _use(measure: Measure | None) -> Use | None:
    if measure is None:
        return None
    return Use(arcs=measure.arcs, never=measure.never, fixed=measure.fixed)


def solution_of(problem: Problem, search: Search) -> Solution:
    """Solve.

    Raises
    ------
    SettingError
        An option is out of its range.
    CapacityError
        Nothing fits; names what would.
    """
    try:
        solution = solve(
            problem,
            formulation=search.formulation,
            backend=search.backend,
            time_limit_s=search.time_limit_s,
            gap=search.gap,
        )
    except SolverError as error:
        raise SettingError(str(error)) from error
    if solution.status is Status.INFEASIBLE and search.copies_per_step is not None:
        raise CapacityError(
            f"no schedule keeps to {search.copies_per_step:g} promotions per step and to the memory; "
            "allow more with --copies-per-step or more memory (an engine that refreshes throughout "
            "the first generated block promotes whatever the schedule says)"
        )
    if solution.status is Status.INFEASIBLE:
        raise CapacityError(solution.message)
    return solution


def proved_anew(old: Solution, problem: Problem, new: Solution, *, gap: float) -> Solution | None:
    """Return a schedule with its objective under other costs, and the bound proved for those.

    Parameters
    ----------
    old : Solution
        The schedule.
    problem : Problem
        The other costs.
    new : Solution
        What the solver answered to them.
    gap : float
        At which a schedule counts as proved best.

    Returns
    -------
    Solution or None
        None where the schedule breaks a limit under these costs.
    """
    known = list(zip(problem.budgets.tolist(), problem.promotions or (), strict=True))
    options = [known.index(each) for each in zip(old.budget, old.promotions, strict=True)]
    try:
        value_s = objective_s(problem, options, old.refresh_steps)
    except ProblemError:
        return None
    if _alike(old, new):
        return new
    assert new.bound_s is not None
    bound_s = min(new.bound_s, value_s)
    relative = (value_s - bound_s) / value_s if value_s > 0 else 0.0
    return replace(
        new,
        status=Status.OPTIMAL if relative <= gap else Status.FEASIBLE,
        objective_s=value_s,
        bound_s=bound_s,
        gap=relative,
        budget=old.budget,
        promotions=old.promotions,
        refresh_steps=old.refresh_steps,
        interval=old.interval,
        cost_by_interval_s=(),
        message=_KEPT,
    )


def _alike(old: Solution, new: Solution) -> bool:
    return (old.budget, old.promotions, old.refresh_steps) == (
        new.budget,
        new.promotions,
        new.refresh_steps,
    )


_KEPT = (
    "Costs around this schedule make another one look faster, which was simulated and is hardly "
    "faster or slower; the bound is that of those costs."
)
