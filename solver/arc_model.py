"""The integer models over arcs, one row per layer, before anything is reduced.

`layers` reduces them while only memory couples the layers; a coupling per step needs them whole.
"""

from itertools import combinations

import pulp

from solver import families
from solver.intervals import users_of_arcs
from solver.problem import Problem

Choices = list[list[pulp.LpVariable]]


def build_free(problem: Problem, *, unit_s: float = 1.0) -> tuple[pulp.LpProblem, Choices]:
    """Build the arc model of FORMULATION.md, section ``free``.

    Returns
    -------
    tuple
        The model and its binaries y[layer][option].
    """
    layers, options = problem.layers, problem.budgets.size
    model = pulp.LpProblem("free", pulp.LpMinimize)
    chosen = families.option_variables(model, rows=layers, options=options)
    arcs = list(combinations(range(problem.steps + 1), 2))
    z = families.arc_variables(model, arcs, rows=layers, options=options)
    for row, choices in enumerate(chosen):
        families.choose_one(model, choices, row=row)
    _connect(model, problem, z, chosen=chosen, unit_s=unit_s)
    return model, chosen


def build_layered(
    problem: Problem, *, unit_s: float = 1.0
) -> tuple[pulp.LpProblem, dict[families.IntervalKey, pulp.LpVariable]]:
    """Build the arc model of FORMULATION.md, section ``layered``.

    Returns
    -------
    tuple
        The model and its binaries w[layer, τ, option].
    """
    layers, options = problem.layers, problem.budgets.size
    intervals = range(1, problem.steps + 1)
    model = pulp.LpProblem("layered", pulp.LpMinimize)
    choices = {
        (row, t, k): model.add_variable(f"w_{row}_{t}_{k}", cat=pulp.LpBinary)
        for row in range(layers)
        for t in intervals
        for k in range(options)
    }
    chosen = [
        [pulp.lpSum(choices[row, t, k] for t in intervals) for k in range(options)]
        for row in range(layers)
    ]  # y[row][option]
    users = users_of_arcs(problem.steps)
    z = families.arc_variables(model, users, rows=layers, options=options)
    for row in range(layers):
        own = (choices[row, t, k] for t in intervals for k in range(options))
        families.choose_one(model, own, row=row)
    families.link(model, z, choices=choices, users=users)
    _connect(model, problem, z, chosen=chosen, unit_s=unit_s)
    return model, choices


def _connect(
    model: pulp.LpProblem,
    problem: Problem,
    z: families.ArcVariables,
    *,
    chosen: families.Chosen,
    unit_s: float,
) -> None:
    """Add what both models share: objective, budget, flow and memory."""
    families.objective(model, z, cost_s=problem.arc_cost_s, unit_s=unit_s)
    families.budget(model, z, chosen=chosen)
    families.flow(model, z)
    if problem.slots is not None:
        families.memory(
            model,
            chosen,
            budgets=problem.budgets.tolist(),
            layers=[1] * problem.layers,
            slots=problem.slots,
        )
