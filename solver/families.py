"""Constraint families of the master model, one function each.

Names and letters are those of FORMULATION.md. Columns stand behind binaries x; every coupling is
written so that its dual value is at least 0 in a minimisation.
"""

from collections.abc import Sequence

import pulp

from solver.checks import FloatArray

Terms = list[tuple[pulp.LpVariable, float]]
Rows = list[pulp.LpConstraint]


def objective(model: pulp.LpProblem, terms: Terms) -> None:
    """Minimise the sum of the terms."""
    model.setObjective(pulp.LpAffineExpression(terms))


def choose_one(model: pulp.LpProblem, x: Sequence[pulp.LpVariable], *, row: int) -> None:
    """Take exactly one of the columns of a row."""
    model.addConstraint(pulp.lpSum(x) == 1, f"choose_one_{row}")


def memory(
    model: pulp.LpProblem, x: Sequence[pulp.LpVariable], *, sizes: Sequence[int], slots: int
) -> Rows:
    """Keep the slots of all layers within those that fit the GPU.

    Counted in slots, not bytes, so every coefficient is a small exact integer.
    """
    return [_at_least(model, "memory", _terms(x, [-size for size in sizes]), -slots)]


def copies(
    model: pulp.LpProblem,
    x: Sequence[pulp.LpVariable],
    *,
    promotions: FloatArray,
    caps: FloatArray,
    excess: Sequence[pulp.LpVariable],
) -> Rows:
    """Keep the promotions of each capped step within its cap, or pay for the excess.

    ``promotions`` are [columns, steps], ``caps`` [steps], both relative to the steps' scales;
    ``excess`` is empty where a cap may not be exceeded.
    """
    rows = []
    for step, cap in enumerate(caps.tolist()):
        terms = _terms(x, (-promotions[:, step]).tolist())
        terms += [(excess[step], 1.0)] if excess else []
        rows.append(_at_least(model, f"copies_{step}", terms, -cap))
    return rows


def worst(
    model: pulp.LpProblem,
    x: Sequence[pulp.LpVariable],
    *,
    slowest: pulp.LpVariable,
    request_s: FloatArray,
    fixed_s: FloatArray,
) -> Rows:
    """Keep the slowest request no faster than any; ``request_s`` is [columns, R]."""
    return [
        _at_least(
            model,
            f"worst_{request}",
            [(slowest, 1.0), *_terms(x, (-request_s[:, request]).tolist())],
            fixed,
        )
        for request, fixed in enumerate(fixed_s.tolist())
    ]


def compute(
    model: pulp.LpProblem,
    x: Sequence[pulp.LpVariable],
    *,
    lasts: Sequence[pulp.LpVariable],
    step_s: FloatArray,
    fixed_s: FloatArray,
) -> Rows:
    """Make each step last as long as its passes; ``step_s`` is [columns, T + 1]."""
    return [
        _at_least(
            model,
            f"compute_{step}",
            [(lasts[step], 1.0), *_terms(x, (-step_s[:, step]).tolist())],
            fixed,
        )
        for step, fixed in enumerate(fixed_s.tolist())
    ]


def link(
    model: pulp.LpProblem,
    x: Sequence[pulp.LpVariable],
    *,
    lasts: Sequence[pulp.LpVariable],
    backlog: Sequence[pulp.LpVariable],
    copies_s: FloatArray,
) -> Rows:
    """Carry the copies a step does not hide into the next, which lasts until they are in.

    ``backlog`` are q_1..q_T, at steps 1..T; ``copies_s`` is [columns, T], seconds on the link.
    Returns the carrying rows of steps 0..T-1.
    """
    rows = []
    for step, carried in enumerate(backlog):
        terms = [(carried, 1.0), (lasts[step], 1.0), *_terms(x, (-copies_s[:, step]).tolist())]
        terms += [(backlog[step - 1], -1.0)] if step else []
        rows.append(_at_least(model, f"carry_{step}", terms, 0.0))
        wait: Terms = [(lasts[step + 1], 1.0), (carried, -1.0)]
        _at_least(model, f"wait_{step + 1}", wait, 0.0)
    return rows


def _terms(x: Sequence[pulp.LpVariable], factors: Sequence[float]) -> Terms:
    return [(variable, factor) for variable, factor in zip(x, factors, strict=True) if factor]


def _at_least(model: pulp.LpProblem, name: str, terms: Terms, least: float) -> pulp.LpConstraint:
    row = pulp.LpAffineExpression(terms) >= least
    model.addConstraint(row, name)
    return row
