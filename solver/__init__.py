"""Refresh schedules proved best: arrays in, solution out.

A leaf package: NumPy and PuLP only. FORMULATION.md states the models in mathematical notation.

>>> import numpy as np
>>> from solver import Formulation, Problem, solve
>>> costs = np.ones((1, 1, 1, 4, 5))  # every arc takes a second, so fewest refreshes win
>>> problem = Problem(steps=4, budgets=np.array([8]), arc_cost_s=costs)
>>> solve(problem, formulation=Formulation.UNIFORM).interval
4

=======================  ==========================================================
``Backend``              program that solves the integer model
``BackendError``         a backend could not run, or contradicted the problem
``ClosedFormTerms``      the paper's terms, fitted from a trace
``Formulation``          which schedules are searched
``Problem``              choices and their costs
``ProblemError``         a problem or an option is out of its range
``Solution``             a schedule and the proof that comes with it
``SolverError``          base of every error raised on purpose
``Status``               what was proved
``Use``                  what a coupling limits or counts, of every schedule
``closed_form_costs_s``  the paper's latency of every interval
``objective_s``          seconds per block of a whole placement, exactly
``refresh_steps``        refresh steps of an interval
``solve``                find the best schedule
=======================  ==========================================================
"""

from solver.closed_form import closed_form_costs_s
from solver.columns import objective_s
from solver.errors import BackendError, ProblemError, SolverError
from solver.formulations import solve
from solver.intervals import refresh_steps
from solver.problem import ClosedFormTerms, Problem, Use
from solver.solution import Backend, Formulation, Solution, Status

__all__ = [
    "Backend",
    "BackendError",
    "ClosedFormTerms",
    "Formulation",
    "Problem",
    "ProblemError",
    "Solution",
    "SolverError",
    "Status",
    "Use",
    "closed_form_costs_s",
    "objective_s",
    "refresh_steps",
    "solve",
]
