"""The one entry: pick a formulation, solve, time it."""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from time import perf_counter
from typing import TypeVar

from solver.backends import Limits
from solver.closed_form import solve_closed_form
from solver.errors import ProblemError
from solver.layers import solve_free, solve_layered
from solver.problem import Problem
from solver.solution import Backend, Formulation, Solution
from solver.uniform import solve_uniform

Option = TypeVar("Option", bound=StrEnum)

_SOLVERS: dict[Formulation, Callable[[Problem, Limits, Backend], Solution]] = {
    Formulation.CLOSED_FORM: lambda problem, _, backend: solve_closed_form(
        problem, backend=backend
    ),
    Formulation.UNIFORM: lambda problem, limits, backend: solve_uniform(
        problem, limits, backend=backend
    ),
    Formulation.LAYERED: lambda problem, limits, backend: solve_layered(
        problem, limits, backend=backend
    ),
    Formulation.FREE: lambda problem, limits, backend: solve_free(problem, limits, backend=backend),
}


def solve(
    problem: Problem,
    *,
    formulation: Formulation,
    backend: Backend = Backend.CBC,
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
) -> Solution:
    """Find the schedule with the smallest expected time per block.

    Parameters
    ----------
    problem
        Choices and their costs.
    formulation
        Which schedules are searched.
    backend
        Program that solves the integer model, single-threaded, so that equal inputs give equal
        answers. ``closed-form`` is arithmetic and ignores it.
    time_limit_s
        Wall seconds the backend may take, above 0; building the model, and listing choices to
        check it by, come on top. Where more than memory couples layers that differ, wall seconds
        of the whole search, but for what is under way when they end.
    gap
        Relative gap at which the search may stop, in [0, 1).

    Returns
    -------
    Solution
        The schedule, what was proved about it, and the seconds it took.

    Raises
    ------
    ProblemError
        If an option is out of its range, or the problem lacks what the formulation needs.
    BackendError
        If the backend cannot run, or contradicts the problem.

    Examples
    --------
    >>> import numpy as np
    >>> costs = np.ones((1, 1, 1, 4, 5))  # a second from each refresh to the next
    >>> problem = Problem(steps=4, budgets=np.array([8]), arc_cost_s=costs)
    >>> found = solve(problem, formulation=Formulation.FREE)
    >>> str(found.status), found.refresh_steps, found.objective_s
    ('optimal', ((0,),), 1.0)
    """
    start = perf_counter()
    limits = Limits(time_limit_s=time_limit_s, gap=gap)
    search = _SOLVERS[_one_of(Formulation, formulation)]
    solution = search(problem, limits, _one_of(Backend, backend))
    return replace(solution, seconds=perf_counter() - start)


def _one_of(kind: type[Option], value: str) -> Option:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise ProblemError(
            f"{kind.__name__.lower()} is {value!r}, must be one of: {known}."
        ) from None
