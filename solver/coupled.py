"""An option and a schedule for each layer where more than memory couples the layers.

Column generation finds columns and a bound; an integer model over the columns gives the answer.
FORMULATION.md, section ``Coupled layers``, says what is proved.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from time import perf_counter
from typing import NamedTuple

import numpy as np

from solver.backends import BACKEND_ACCURACY, Ending, Limits, run
from solver.best import Found, Search
from solver.columns import Column, exceeded, seconds_of, summed
from solver.errors import BackendError
from solver.generation import Pool, Priced, Task, extend, generate, meet_caps, paid, price
from solver.intervals import TIE_RELATIVE
from solver.master import Master, build
from solver.pareto import best_options
from solver.prices import no_prices
from solver.problem import Problem
from solver.solution import (
    NO_MODEL,
    Backend,
    Formulation,
    Size,
    Solution,
    Status,
    breaks_cap,
    does_not_fit,
    found,
    infeasible,
    relative_gap,
)
from solver.uniform import best_shared

#: A model over all columns that could be in a better answer is built up to this size.
MOST_COLUMNS = 5_000

#: Share of the gap asked that an integer model may leave.
INTEGER_SHARE = 0.5


class Incumbent(NamedTuple):
    """The best placement so far, a column for each layer, and how long a block then takes."""

    columns: tuple[Column, ...] = ()
    seconds: float = np.inf


class Proof(NamedTuple):
    """What is proved so far, and by a model of what size."""

    bound_s: float
    size: Size = NO_MODEL
    impossible: bool = False


def solve_coupled(
    problem: Problem,
    search: Search,
    limits: Limits,
    *,
    backend: Backend,
    formulation: Formulation,
) -> Solution:
    """Choose an option and a schedule for each layer.

    Raises
    ------
    BackendError
        If the backend cannot run, contradicts the problem, or found no answer in its time.
    """
    if problem.slots is not None and problem.layers * int(problem.budgets[0]) > problem.slots:
        return infeasible(formulation, backend, message=does_not_fit(problem))
    end = perf_counter() + limits.time_limit_s
    task = Task(problem=problem, search=search, backend=backend, gap=limits.gap, end=end)
    first = price(task, no_prices(problem))
    pool, best = _start(problem, first)
    task = replace(task, unit_s=_unit_s(best, pool))
    broken = meet_caps(task, pool) if problem.caps.size and not best.columns else None
    if broken is not None:
        return infeasible(formulation, backend, message=breaks_cap(problem, broken))
    best, proof = _search(task, pool, first, best)
    if proof.impossible:
        message = breaks_cap(problem, int(problem.caps[0]))
        return infeasible(formulation, backend, message=message, size=proof.size)
    return _answer(task, best, proof, formulation=formulation)


def _start(problem: Problem, first: Priced) -> tuple[Pool, Incumbent]:
    """Return columns of every layer and option, and the best placement that is easy to find."""
    pool: Pool = {}
    layers, options = range(problem.layers), range(problem.budgets.size)
    extend(problem, pool, ((x, k, first.best.steps[x][k]) for x in layers for k in options))
    placements = [_cheapest(problem, first)]
    shared = best_shared(problem)
    if shared is not None:
        placements.append([(layer, shared.option, shared.steps) for layer in layers])
    if problem.never_s is not None:
        extend(problem, pool, ((x, k, ()) for x in layers for k in options))
        placements.append([(layer, 0, ()) for layer in layers])
    best = Incumbent()
    for placement in placements:
        best = _better(problem, best, extend(problem, pool, placement))
    return pool, best


def _cheapest(problem: Problem, priced: Priced) -> list[Found]:
    """Return the placement that pays least at the prices, within the memory."""
    options = best_options(priced.best, problem.budgets.tolist(), slots=problem.slots)
    assert options is not None  # the smallest budgets fit
    return [(x, k, priced.best.steps[x][k]) for x, k in enumerate(options)]


def _better(problem: Problem, best: Incumbent, columns: Sequence[Column]) -> Incumbent:
    """Return the better of the best and a placement, which may break a cap."""
    taken = summed(columns)
    if exceeded(problem, taken).any():
        return best
    seconds = float(seconds_of(problem, taken))
    return Incumbent(tuple(columns), seconds) if seconds < best.seconds else best


def _unit_s(best: Incumbent, pool: Pool) -> float:
    """Count the objective so that the answer is about 1 and no entry above 1e6."""
    costs_s = [float(column.taken.cost_s) for column in pool.values()]
    about_s = best.seconds if best.columns else min(costs_s)
    return max(about_s, max(costs_s) * 1e-6) or 1.0


def _search(task: Task, pool: Pool, first: Priced, best: Incumbent) -> tuple[Incumbent, Proof]:
    """Find an answer and a bound, until the gap asked is proved or time is up."""
    known = generate(task, pool, first)
    cheapest = extend(task.problem, pool, _cheapest(task.problem, known))
    best = _better(task.problem, best, cheapest)
    proof = Proof(_whole_slots_s(task, known, cheapest))
    if not _is_proved(task, best, proof):
        best, proof, _ = _integer(task, _useful(task, pool, known, best), best, proof)
    if not _is_proved(task, best, proof):
        best, proof = _close(task, pool, known, best=best, proof=proof)
    return best, proof


def _is_proved(task: Task, best: Incumbent, proof: Proof) -> bool:
    return bool(best.columns) and relative_gap(best.seconds, proof.bound_s) <= task.gap


def _whole_slots_s(task: Task, known: Priced, cheapest: Sequence[Column]) -> float:
    """Return the bound with memory kept exactly instead of priced; never worse."""
    free = replace(known.prices, slot_s=0.0)
    paid_s = float(paid(task.problem, cheapest, free).sum())
    whole_s = (free.fixed_s(task.problem) + paid_s) * (1 - task.problem.layers * TIE_RELATIVE)
    return max(known.bound_s, whole_s)


def _room_s(known: Priced, best: Incumbent) -> float:
    """Return how much more than the cheapest a column of a better answer can pay."""
    return (best.seconds - known.bound_s) + 1e-9 * abs(known.bound_s)


def _useful(task: Task, pool: Pool, known: Priced, best: Incumbent) -> list[Column]:
    """Return the columns that a better answer could have, and those of the best."""
    columns = list(pool.values())
    paid_s = paid(task.problem, columns, known.prices)
    least_s = (known.best.cost_s + known.prices.slot_s * task.problem.budgets).min(axis=1)
    extra_s = paid_s - least_s[[column.row for column in columns]]
    useful = (extra_s <= _room_s(known, best)).tolist()
    kept = {(c.row, c.option, c.steps) for c in best.columns}
    return [
        c
        for c, use in zip(columns, useful, strict=True)
        if use or (c.row, c.option, c.steps) in kept
    ]


def _integer(
    task: Task, columns: Sequence[Column], best: Incumbent, proof: Proof
) -> tuple[Incumbent, Proof, Ending]:
    """Solve the integer model over columns, in the time left."""
    share = INTEGER_SHARE * task.gap
    limits = task.limits(share)
    if limits is None:
        return best, proof, Ending.STOPPED
    master = build(task.problem, columns, unit_s=task.unit_s)
    ending = run(master.model, limits, backend=task.backend)
    if ending in {Ending.PROVED, Ending.INCUMBENT}:
        best = _better(task.problem, best, _checked(task, master))
    return best, proof._replace(size=master.size), ending


def _checked(task: Task, master: Master) -> list[Column]:
    """Return the backend's placement, evaluated anew."""
    chosen, problem = master.chosen, task.problem
    complete = [c.row for c in chosen] == list(range(problem.layers))
    slots = sum(c.slots for c in chosen)
    if not complete or (problem.slots is not None and slots > problem.slots):
        raise BackendError("The backend's answer breaks a constraint: report this.")
    return chosen


def _close(
    task: Task, pool: Pool, known: Priced, *, best: Incumbent, proof: Proof
) -> tuple[Incumbent, Proof]:
    """Prove by an integer model over every column that a better answer could have, if few."""
    problem, prices = task.problem, known.prices
    paid_s = known.best.cost_s + prices.slot_s * problem.budgets
    limit_s = paid_s.min(axis=1, keepdims=True) + _room_s(known, best)
    listed = task.search.within(prices.costs_of(problem), limit_s - prices.slot_s * problem.budgets)
    keys = list(islice(_until(listed, task.end), MOST_COLUMNS + 1))
    if len(keys) > MOST_COLUMNS or task.limits(task.gap) is None:
        return best, proof
    mine = ((c.row, c.option, c.steps) for c in best.columns)
    columns = extend(problem, pool, dict.fromkeys(chain(keys, mine)))
    best, proof, ending = _integer(task, columns, best, proof)
    if ending is Ending.INFEASIBLE:
        return best, proof._replace(impossible=not best.columns)
    if ending is Ending.PROVED:
        left = max(INTEGER_SHARE * task.gap, BACKEND_ACCURACY)
        bound_s = max(proof.bound_s, best.seconds * (1 - left))
        proof = proof._replace(bound_s=bound_s)
    return best, proof


def _until(listed: Iterable[Found], end: float) -> Iterator[Found]:
    """Yield until the time is up."""
    for item in listed:
        yield item
        if perf_counter() > end:
            return


def _answer(task: Task, best: Incumbent, proof: Proof, *, formulation: Formulation) -> Solution:
    if not best.columns:
        raise BackendError(
            f"{task.backend.upper()} found no schedules that keep most_copies, nor a proof that "
            "there are none: allow more time, or raise the caps."
        )
    proved = _is_proved(task, best, proof)
    bound_s = min(proof.bound_s, best.seconds)
    gap = relative_gap(best.seconds, bound_s)
    return found(
        task.problem,
        formulation,
        task.backend,
        options=[column.option for column in best.columns],
        refreshes=[column.steps for column in best.columns],
        objective_s=best.seconds,
        bound_s=bound_s,
        status=Status.OPTIMAL if proved else Status.FEASIBLE,
        size=proof.size,
        message=f"{task.backend.upper()} and column generation proved the answer to a gap of "
        f"{gap:.2g}{'' if proved else f', not {task.gap:g}'}.",
    )
