"""The paper's closed form, kept as baseline: arithmetic, no integer model."""

import numpy as np

from solver.checks import FloatArray
from solver.errors import ProblemError
from solver.intervals import preferred, refresh_steps
from solver.problem import ClosedFormTerms, Problem
from solver.solution import NO_MODEL, Backend, Formulation, Solution, Status, infeasible


def closed_form_costs_s(terms: ClosedFormTerms) -> FloatArray:
    """Evaluate the paper's latency of every interval.

    Eq. 5 ``C_IO · (B·T/τ) · [1 − (1−d)^τ]`` plus Eq. 6 ``C_CPU · T · B · f(τ)``.

    Returns
    -------
    FloatArray
        Seconds per block and layer that offloading adds, shape [T], entry τ - 1 for interval τ.

    Notes
    -----
    Source: TIDE, arXiv 2605.20179, equations 5 to 7.

    Examples
    --------
    >>> import numpy as np
    >>> terms = {"promotion_s": 1.0, "miss_s": 0.5, "budget": 8, "drift": 0.1}
    >>> terms["miss_share"] = np.array([0.1, 0.2, 0.3, 0.4])
    >>> closed_form_costs_s(ClosedFormTerms(**terms)).round(2).tolist()
    [4.8, 6.24, 7.69, 9.15]
    """
    steps = terms.miss_share.size
    interval = np.arange(1, steps + 1)
    changed = -np.expm1(interval * np.log1p(-terms.drift))  # 1 − (1−d)^τ, exact for small d
    io_s = terms.promotion_s * terms.budget * steps / interval * changed
    cpu_s = terms.miss_s * steps * terms.budget * terms.miss_share
    costs: FloatArray = io_s + cpu_s
    return costs


def solve_closed_form(problem: Problem, *, backend: Backend) -> Solution:
    """Minimise the paper's Eq. 7 over τ in 1..T-1 by trying all; T = 1 gives 1.

    ``objective_s``, ``bound_s`` and ``cost_by_interval_s`` are the closed form's own numbers:
    seconds per block *and layer* that promotions and misses add, without attention or the
    experts that hit, and without ``fixed_s``. They compare intervals, not formulations; the
    search stops at T-1 as the paper's does, ``cost_by_interval_s`` also shows T.

    Raises
    ------
    ProblemError
        If the problem carries no closed-form terms.
    """
    terms = problem.closed_form
    if terms is None:
        raise ProblemError(
            "closed_form is None, must hold the paper's terms for the closed-form formulation: "
            "fit them from a trace."
        )
    if problem.memory_bytes is not None and problem.memory_of(terms.budget) > problem.memory_bytes:
        return infeasible(Formulation.CLOSED_FORM, backend, message=_does_not_fit(problem, terms))
    return _answer(problem, terms, backend)


def _answer(problem: Problem, terms: ClosedFormTerms, backend: Backend) -> Solution:
    costs_s = closed_form_costs_s(terms)
    row, _ = preferred(costs_s[: max(1, problem.steps - 1), None])
    interval, objective_s = row + 1, float(costs_s[row])
    return Solution(
        formulation=Formulation.CLOSED_FORM,
        backend=backend,
        status=Status.OPTIMAL,
        objective_s=objective_s,
        bound_s=objective_s,
        gap=0.0,
        seconds=0.0,
        budget=(terms.budget,) * problem.layers,
        promotions=(None,) * problem.layers,
        refresh_steps=(refresh_steps(problem.steps, interval),) * problem.layers,
        interval=interval,
        **NO_MODEL,
        cost_by_interval_s=tuple(costs_s.tolist()),
        message=f"Interval {interval} has the smallest closed-form time of all intervals below "
        f"{max(2, problem.steps)}.",
    )


def _does_not_fit(problem: Problem, terms: ClosedFormTerms) -> str:
    return (
        f"A budget of {terms.budget} slots in each of {problem.layers} layers needs "
        f"{problem.memory_of(terms.budget)} bytes of GPU memory, {problem.memory_bytes} are left."
    )
