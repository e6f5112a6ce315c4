"""The integer model over columns, and its relaxation, whose dual values are prices."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pulp

from solver import families
from solver.checks import FloatArray
from solver.columns import Column, Taken, stacked
from solver.prices import Prices, no_prices
from solver.problem import Problem
from solver.solution import Size


@dataclass(kw_only=True)
class Master:
    """A model over columns and the rows whose dual values are prices.

    Parameters
    ----------
    model, columns
        The PuLP model, and the columns behind its first variables.
    x
        Whether each column is taken.
    unit_s
        Seconds the objective is counted in, because a solver's tolerances are absolute and seconds
        per block may be microseconds.
    fixed_s
        Seconds that the model leaves out.
    rows
        Constraints of each family that has prices.
    excess
        Promotions beyond each cap, relative to its scale, where the model pays for nothing else.
    """

    model: pulp.LpProblem
    columns: Sequence[Column]
    x: list[pulp.LpVariable]
    unit_s: float
    fixed_s: float
    rows: dict[str, families.Rows] = field(default_factory=dict)
    excess: list[pulp.LpVariable] = field(default_factory=list)

    @property
    def size(self) -> Size:
        """Numbers of variables and constraints."""
        return Size(variables=self.model.numVariables(), constraints=self.model.numConstraints())

    @property
    def objective_s(self) -> float:
        """Seconds per block of the columns taken, in whole or in parts."""
        return self.fixed_s + float(pulp.value(self.model.objective)) * self.unit_s

    @property
    def chosen(self) -> list[Column]:
        """The columns taken, in order of rows."""
        taken = zip(self.x, self.columns, strict=True)
        return sorted(
            (column for x, column in taken if (x.value() or 0.0) > 0.5), key=lambda c: c.row
        )

    def most_exceeded(self, problem: Problem) -> int:
        """Return the step whose cap is exceeded most."""
        excess = [variable.value() for variable in self.excess]
        return int(problem.caps[int(np.argmax(excess))])

    def prices(self, problem: Problem) -> Prices:
        """Return the dual values as prices in range, whatever sign the backend gives them."""
        free = no_prices(problem, costs=0.0 if self.excess else 1.0)
        caps = free.caps.copy()
        if problem.caps.size:
            caps[problem.caps] = self._duals("copies") / _scales(problem) * self.unit_s
        duals = replace(
            free,
            requests=self._duals("worst") if "worst" in self.rows else free.requests,
            caps=caps,
            backlog=self._duals("carry") if "carry" in self.rows else free.backlog,
            slot_s=float(self._duals("memory").sum()) * self.unit_s,
        )
        return duals.in_range(problem)

    def _duals(self, family: str) -> FloatArray:
        return np.array([abs(row.pi or 0.0) for row in self.rows.get(family, [])])


def build(
    problem: Problem,
    columns: Sequence[Column],
    *,
    unit_s: float = 1.0,
    relaxed: bool = False,
    only_caps: bool = False,
) -> Master:
    """Build the model of FORMULATION.md, section ``Columns``.

    Parameters
    ----------
    problem
        Gives memory and couplings.
    columns
        At least one of each row.
    unit_s
        Seconds the objective is counted in.
    relaxed
        Take columns in parts.
    only_caps
        Minimise the promotions beyond the caps, each relative to its scale, and nothing else.
    """
    model = pulp.LpProblem("columns", pulp.LpMinimize)
    kind = {"upBound": None if relaxed else 1, "cat": "Continuous" if relaxed else "Integer"}
    x = [model.add_variable(f"x_{n}", 0, **kind) for n in range(len(columns))]
    apart = only_caps or problem.step_s is not None  # the rows of the steps hold what is fixed
    fixed_s = 0.0 if apart else problem.fixed_s
    master = Master(model=model, columns=columns, x=x, unit_s=unit_s, fixed_s=fixed_s)
    taken = stacked(columns)
    _choose(master, problem)
    if problem.caps.size:
        _cap(master, problem, taken, only_caps=only_caps)
    if only_caps:
        terms = [(excess, 1.0) for excess in master.excess]
    elif problem.step_s is not None:
        terms = _background(master, problem, taken)
    else:
        terms = list(zip(x, (taken.cost_s / unit_s).tolist(), strict=True))
        terms += _worst(master, problem, taken) if problem.risk > 0 else []
    families.objective(model, terms)
    return master


def _choose(master: Master, problem: Problem) -> None:
    """Take one column of each row, within the memory."""
    by_row: dict[int, list[pulp.LpVariable]] = {}
    for variable, column in zip(master.x, master.columns, strict=True):
        by_row.setdefault(column.row, []).append(variable)
    for row, variables in by_row.items():
        families.choose_one(master.model, variables, row=row)
    if problem.slots is not None:
        enough = problem.layers * int(problem.budgets[-1])
        sizes = [column.slots for column in master.columns]
        slots = min(problem.slots, enough)
        master.rows["memory"] = families.memory(master.model, master.x, sizes=sizes, slots=slots)


def _cap(master: Master, problem: Problem, taken: Taken, *, only_caps: bool) -> None:
    assert problem.most_copies is not None
    scales = _scales(problem)
    if only_caps:
        master.excess = [master.model.add_variable(f"e_{n}", 0) for n in range(scales.size)]
    master.rows["copies"] = families.copies(
        master.model,
        master.x,
        promotions=taken.copies[:, problem.caps] / scales,
        caps=problem.most_copies[problem.caps] / scales,
        excess=master.excess,
    )


def _scales(problem: Problem) -> FloatArray:
    """Return what a promotion beyond each cap is counted in: the cap, or one promotion."""
    assert problem.most_copies is not None
    scales: FloatArray = np.maximum(problem.most_copies[problem.caps], 1.0)
    return scales


def _worst(master: Master, problem: Problem, taken: Taken) -> families.Terms:
    assert problem.requests is not None
    slowest = master.model.add_variable("slowest", 0)
    master.rows["worst"] = families.worst(
        master.model,
        master.x,
        slowest=slowest,
        request_s=taken.request_s / master.unit_s,
        fixed_s=problem.requests.fixed / master.unit_s,
    )
    return [(slowest, problem.risk)]


def _background(master: Master, problem: Problem, taken: Taken) -> families.Terms:
    assert problem.step_s is not None
    model, unit_s = master.model, master.unit_s
    lasts = [model.add_variable(f"t_{step}", 0) for step in range(problem.steps + 1)]
    backlog = [model.add_variable(f"q_{step}", 0) for step in range(1, problem.steps + 1)]
    families.compute(
        model,
        master.x,
        lasts=lasts,
        step_s=taken.step_s / unit_s,
        fixed_s=problem.step_s.fixed / unit_s,
    )
    copies_s = problem.copy_s * taken.copies / unit_s
    master.rows["carry"] = families.link(
        model, master.x, lasts=lasts, backlog=backlog, copies_s=copies_s
    )
    return [(step, 1.0) for step in lasts]
