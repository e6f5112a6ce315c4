"""Variables and constraint families of the integer models, one function each.

Names and letters are those of FORMULATION.md. A *row* is a set of layers that share one schedule:
``uniform`` has one row of all layers. Arc variables are keyed (row, option, i, j).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import pulp

from solver.intervals import Arc
from solver.problem import FloatArray

ArcKey = tuple[int, int, int, int]
ArcVariables = dict[ArcKey, pulp.LpVariable]
IntervalKey = tuple[int, int, int]  # row, interval, option
Chosen = Sequence[Sequence[pulp.LpAffineExpression | pulp.LpVariable]]  # y[row][option]

Key = TypeVar("Key", bound=tuple[int, ...])


def arc_variables(
    model: pulp.LpProblem, arcs: Iterable[Arc], *, rows: int, options: int
) -> ArcVariables:
    """Create z[r,k,i,j] in [0, 1]: row r at option k refreshes at step i and next at j."""
    return {
        (row, option, start, end): model.add_variable(f"z_{row}_{option}_{start}_{end}", 0, 1)
        for start, end in arcs
        for row in range(rows)
        for option in range(options)
    }


def option_variables(
    model: pulp.LpProblem, *, rows: int, options: int
) -> list[list[pulp.LpVariable]]:
    """Create y[r][k] in {0, 1}: row r has option k."""
    return [
        [model.add_variable(f"y_{row}_{option}", cat=pulp.LpBinary) for option in range(options)]
        for row in range(rows)
    ]


def objective(
    model: pulp.LpProblem,
    taken: Mapping[Key, pulp.LpVariable],
    *,
    cost_s: FloatArray,
    unit_s: float,
) -> None:
    """Minimise the time of what is taken, counted in ``unit_s`` to suit solver tolerances.

    ``taken`` is keyed by the indices of ``cost_s``: arcs [R, K, T, T + 1] or options [R, K].
    """
    costs = cost_s / unit_s
    model.setObjective(pulp.LpAffineExpression([(taken[key], float(costs[key])) for key in taken]))


def choose_one(model: pulp.LpProblem, choices: Iterable[pulp.LpVariable], *, row: int) -> None:
    """Take exactly one of the ``choices`` of a row."""
    model.addConstraint(pulp.lpSum(choices) == 1, f"choose_one_{row}")


def budget(model: pulp.LpProblem, z: ArcVariables, *, chosen: Chosen) -> None:
    """Send one unit of flow out of step 0, at the option its row has chosen."""
    leaving: dict[tuple[int, int], list[pulp.LpVariable]] = {}
    for (row, option, start, _), variable in z.items():
        if start == 0:
            leaving.setdefault((row, option), []).append(variable)
    for (row, option), variables in leaving.items():
        share = chosen[row][option]
        model.addConstraint(pulp.lpSum(variables) == share, f"budget_{row}_{option}")


def flow(model: pulp.LpProblem, z: ArcVariables) -> None:
    """Conserve flow at every inner step of every row and option: what arrives, leaves."""
    inner = {start for _, _, start, _ in z} & {end for _, _, _, end in z}
    balance: dict[tuple[int, int, int], list[tuple[pulp.LpVariable, int]]] = {}
    for (row, option, start, end), variable in z.items():
        if start in inner:
            balance.setdefault((row, option, start), []).append((variable, -1))
        if end in inner:
            balance.setdefault((row, option, end), []).append((variable, 1))
    for (row, option, step), terms in balance.items():
        model.addConstraint(pulp.LpAffineExpression(terms) == 0, f"flow_{row}_{option}_{step}")


def link(
    model: pulp.LpProblem,
    z: ArcVariables,
    *,
    choices: Mapping[IntervalKey, pulp.LpVariable],
    users: Mapping[Arc, Sequence[int]],
) -> None:
    """Open an arc only where the interval and option chosen for its row walk it."""
    for (row, option, start, end), variable in z.items():
        walkers = pulp.lpSum(choices[row, interval, option] for interval in users[start, end])
        model.addConstraint(variable <= walkers, f"link_{row}_{option}_{start}_{end}")


def memory(
    model: pulp.LpProblem,
    chosen: Chosen,
    *,
    budgets: Sequence[int],
    layers: Sequence[int],
    slots: int,
) -> None:
    """Keep the slots of all layers within those that fit the GPU.

    Counted in slots, not bytes, so every coefficient is a small exact integer. ``layers`` is the
    number of layers in each row.
    """
    enough = sum(layers) * max(budgets)
    used = [
        count * size * share
        for count, shares in zip(layers, chosen, strict=True)
        for size, share in zip(budgets, shares, strict=True)
    ]
    model.addConstraint(pulp.lpSum(used) <= min(slots, enough), "memory")
