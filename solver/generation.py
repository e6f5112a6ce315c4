"""Column generation: which schedules are worth a place in the integer model, and the best bound.

A relaxed model over the columns so far gives prices; at these prices the best schedule of each
layer and option is a new column, and all of them together a lower bound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

import numpy as np

from solver.backends import Ending, Limits, run
from solver.best import Best, Found, Search
from solver.checks import FloatArray
from solver.columns import CAP_TOLERANCE, Column, column, stacked
from solver.master import Master, build
from solver.prices import Prices, no_prices
from solver.problem import Problem
from solver.solution import Backend

#: How far prices move from those of the best bound towards new dual values.
STEP = 0.5

#: A schedule is new only if it pays less than the known ones by more than rounding, relative.
WORTH_RELATIVE = 1e-9

#: Columns per layer that are kept where more than twice as many are known.
KEPT_PER_LAYER = 50

#: Share of the gap asked that the relaxation may leave.
RELAXED_SHARE = 0.25

Pool = dict[Found, Column]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every part of the work needs.

    Parameters
    ----------
    problem, search, backend
        As given.
    gap
        Relative gap asked.
    end
        When to stop, by `time.perf_counter`.
    unit_s
        Seconds the objective is counted in.
    """

    problem: Problem
    search: Search
    backend: Backend
    gap: float
    end: float
    unit_s: float = 1.0

    def part(self, share: float) -> "Task":
        """Return the same task with a share of the time left."""
        now = perf_counter()
        return replace(self, end=now + share * (self.end - now))

    def limits(self, gap: float) -> Limits | None:
        """Return limits for the time that is left; None if there is none."""
        left_s = self.end - perf_counter()
        return Limits(time_limit_s=left_s, gap=gap) if left_s > 0 else None


class Priced(NamedTuple):
    """The best schedules at some prices, and the bound they give."""

    prices: Prices
    best: Best
    bound_s: float


def price(task: Task, prices: Prices) -> Priced:
    """Find the best schedules at prices that are in their ranges."""
    best = task.search.best(prices.costs_of(task.problem))
    return Priced(prices, best, prices.bound_s(task.problem, best))


def extend(problem: Problem, pool: Pool, chosen: Iterable[Found]) -> list[Column]:
    """Return the columns of schedules, new ones added to the pool."""
    keys = list(chosen)
    for key in keys:
        if key not in pool:
            pool[key] = column(problem, *key)
    return [pool[key] for key in keys]


def generate(task: Task, pool: Pool, start: Priced) -> Priced:
    """Add columns until the relaxation is solved to a share of the gap, or time is up.

    Returns
    -------
    Priced
        The best bound found and its prices; never worse than ``start``.
    """
    known = start
    while True:
        master = _relaxed(task, pool)
        if master is None:
            return known
        duals = master.prices(task.problem)
        _forget(task, pool, duals)
        known, added = _improve(task, pool, known, duals)
        close_s = RELAXED_SHARE * task.gap * master.objective_s
        if not added or master.objective_s - known.bound_s <= close_s:
            return known


def meet_caps(task: Task, pool: Pool) -> int | None:
    """Add columns until the relaxation keeps every cap.

    Returns
    -------
    int or None
        A step whose cap no choice keeps, proved; None if there is none, or time is up.
    """
    known = price(task, no_prices(task.problem, costs=0.0))
    while True:
        master = _relaxed(task, pool, only_caps=True)
        if master is None or master.objective_s <= WORTH_RELATIVE:
            return None
        duals = master.prices(task.problem)
        known, added = _improve(task, pool, known, duals)
        if known.bound_s > CAP_TOLERANCE * task.problem.steps:
            return master.most_exceeded(task.problem)
        if not added:
            return None


def _relaxed(task: Task, pool: Pool, *, only_caps: bool = False) -> Master | None:
    """Solve the relaxation over the columns so far; None if time is up."""
    limits = task.limits(0.0)
    if limits is None:
        return None
    unit_s = 1.0 if only_caps else task.unit_s
    columns = list(pool.values())
    master = build(task.problem, columns, unit_s=unit_s, relaxed=True, only_caps=only_caps)
    ending = run(master.model, limits, backend=task.backend)
    return master if ending is Ending.PROVED else None


def _improve(task: Task, pool: Pool, known: Priced, duals: Prices) -> tuple[Priced, bool]:
    """Price between the best prices and the duals, then at the duals if that found no column.

    Between them the bound improves faster than at the duals, which jump.
    """
    for prices in (known.prices.towards(duals, STEP), duals):
        priced = price(task, prices)
        known = priced if priced.bound_s > known.bound_s else known
        if _add_worthy(task, pool, priced.best, duals):
            return known, True
    return known, False


def _add_worthy(task: Task, pool: Pool, best: Best, duals: Prices) -> bool:
    """Add the schedules that would pay less at the duals than all known ones of their layer."""
    problem, layers = task.problem, len(best.steps)
    columns = list(pool.values())
    paid_s = paid(problem, columns, duals)
    least_s = np.full(layers, np.inf)
    np.minimum.at(least_s, [c.row for c in columns], paid_s)
    keys = [(x, k, steps) for x, row in enumerate(best.steps) for k, steps in enumerate(row)]
    new = [column(problem, *key) for key in keys if key not in pool]
    if not new:
        return False
    rows = [c.row for c in new]
    worth = paid(problem, new, duals) < least_s[rows] - WORTH_RELATIVE * float(paid_s.max())
    for c, worthy in zip(new, worth.tolist(), strict=True):
        if worthy:
            pool[c.row, c.option, c.steps] = c
    return bool(worth.any())


def _forget(task: Task, pool: Pool, duals: Prices) -> None:
    """Drop columns that pay most where there are many; those the relaxation takes pay least."""
    most = KEPT_PER_LAYER * task.problem.layers
    if len(pool) <= 2 * most:
        return
    keys, columns = list(pool), list(pool.values())
    paid_s = paid(task.problem, columns, duals)
    rows = np.array([c.row for c in columns])
    least_s = np.full(task.problem.layers, np.inf)
    np.minimum.at(least_s, rows, paid_s)
    for n in np.argsort(paid_s - least_s[rows], kind="stable")[most:].tolist():
        del pool[keys[n]]


def paid(problem: Problem, columns: Sequence[Column], prices: Prices) -> FloatArray:
    """Return what columns pay at prices, slots included."""
    slots = np.array([c.slots for c in columns])
    return prices.paid_s(problem, stacked(columns), slots)
