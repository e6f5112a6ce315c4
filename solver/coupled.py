"""An option and a schedule for each layer where more than memory couples the layers.

Column generation finds columns and a bound; an integer model over the columns gives the answer.
FORMULATION.md, section ``Coupled layers``, says what is proved.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from time import perf_counter
from typing import NamedTuple

import numpy as np

from solver.backends import BACKEND_ACCURACY, Ending, Limits, run
from solver.best import Costs, Found, Search
from solver.checks import FloatArray
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
MOST_LISTED = 5_000

#: Integer models over the columns found: columns per layer, and share of the time left.
TRIES = ((10, 0.3), (50, 0.8))

#: Share of the time left that column generation may take.
GENERATION_SHARE = 0.5

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
    if not best.columns:
        broken = meet_caps(task, pool)
        if broken is None:
            best, broken = _within_caps(task, pool)
        if broken is not None:
            return infeasible(formulation, backend, message=breaks_cap(problem, broken))
    best, proof = _search(task, pool, first, best)
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
    """Return the better of the best and a placement, which may exceed a cap."""
    taken = summed(columns)
    if exceeded(problem, taken).any():
        return best
    seconds = float(seconds_of(problem, taken))
    return Incumbent(tuple(columns), seconds) if seconds < best.seconds else best


def _within_caps(task: Task, pool: Pool) -> tuple[Incumbent, int | None]:
    """Return a placement that keeps every cap, or a step whose cap none keeps, proved.

    The models pay for what exceeds the caps, so they always have an answer: CBC without
    preprocessing crashes where only the relaxation has one.

    Raises
    ------
    BackendError
        If neither is found.
    """
    problem = task.problem
    no_limit_s = np.full((problem.layers, problem.budgets.size), np.inf)
    every = _few(task, (problem.arc_cost_s, problem.never_s), no_limit_s)
    for found_all in (False, True):
        keys = every if found_all else list(pool)
        limits = task.limits(task.gap)
        if keys is None or limits is None:
            break
        master = build(problem, extend(problem, pool, keys), only_caps=True)
        ending = run(master.model, limits, backend=task.backend)
        if ending in {Ending.PROVED, Ending.INCUMBENT}:
            best = _better(problem, Incumbent(), _checked(task, master))
            if best.columns:
                return best, None
        if found_all and ending is Ending.PROVED:
            return Incumbent(), master.most_exceeded(problem)
    raise BackendError(
        f"{task.backend.upper()} found no schedules that keep most_copies, nor a proof that "
        "there are none: allow more time, or raise the caps."
    )


def _few(task: Task, costs: Costs, limit_s: FloatArray) -> list[Found] | None:
    """List the schedules within limits [L, K]; None if they are many, or time is up."""
    listed = task.search.within(costs, limit_s)
    keys = list(islice(_until(listed, task.end), MOST_LISTED + 1))
    return keys if len(keys) <= MOST_LISTED and perf_counter() < task.end else None


def _until(listed: Iterable[Found], end: float) -> Iterator[Found]:
    """Yield until the time is up."""
    return takewhile(lambda _: perf_counter() < end, listed)


def _unit_s(best: Incumbent, pool: Pool) -> float:
    """Count the objective so that the answer is about 1 and no entry above 1e6."""
    costs_s = [float(column.taken.cost_s) for column in pool.values()]
    about_s = best.seconds if best.columns else min(costs_s)
    return max(about_s, max(costs_s) * 1e-6) or 1.0


def _search(task: Task, pool: Pool, first: Priced, best: Incumbent) -> tuple[Incumbent, Proof]:
    """Find an answer and a bound, until the gap asked is proved or time is up."""
    known = generate(task.part(GENERATION_SHARE), pool, first)
    cheapest = extend(task.problem, pool, _cheapest(task.problem, known))
    best = _better(task.problem, best, cheapest)
    proof = Proof(_whole_slots_s(task, known, cheapest))
    for columns, share in TRIES:
        if not _is_proved(task, best, proof):
            promising = _promising(task, pool, known, best=best, most=columns)
            part = task.part(share)
            best, proof, _ = _integer(part, promising, best, proof)
    if not _is_proved(task, best, proof):
        best, proof = _close(task, pool, known, best=best, proof=proof)
    return best, proof


def _is_proved(task: Task, best: Incumbent, proof: Proof) -> bool:
    return relative_gap(best.seconds, proof.bound_s) <= task.gap


def _whole_slots_s(task: Task, known: Priced, cheapest: Sequence[Column]) -> float:
    """Return the bound with memory kept exactly instead of priced; never worse."""
    free = replace(known.prices, slot_s=0.0)
    paid_s = float(paid(task.problem, cheapest, free).sum())
    whole_s = (free.fixed_s(task.problem) + paid_s) * (1 - task.problem.layers * TIE_RELATIVE)
    return max(known.bound_s, whole_s)


def _room_s(known: Priced, best: Incumbent) -> float:
    """Return how much more than the cheapest a column of a better answer can pay."""
    return (best.seconds - known.bound_s) + 1e-9 * abs(known.bound_s)


def _promising(
    task: Task, pool: Pool, known: Priced, *, best: Incumbent, most: int
) -> list[Column]:
    """Return the columns that a better answer is likely to have, and those of the best.

    They pay little more at the prices than the cheapest of their layer.
    """
    columns = list(pool.values())
    paid_s = paid(task.problem, columns, known.prices)
    least_s = (known.best.cost_s + known.prices.slot_s * task.problem.budgets).min(axis=1)
    extra_s = paid_s - least_s[[column.row for column in columns]]
    order = np.argsort(extra_s, kind="stable")[: most * task.problem.layers]
    likely = [columns[n] for n in order.tolist() if extra_s[n] <= _room_s(known, best)]
    return list({(c.row, c.option, c.steps): c for c in (*likely, *best.columns)}.values())


def _integer(
    task: Task, columns: Sequence[Column], best: Incumbent, proof: Proof
) -> tuple[Incumbent, Proof, float]:
    """Solve the integer model over columns, in the time left.

    Returns
    -------
    tuple
        The better placement, the size of the model, and its optimum if it was proved, else 0.
    """
    share = INTEGER_SHARE * task.gap
    limits = task.limits(share)
    if limits is None:
        return best, proof, 0.0
    master = build(task.problem, columns, unit_s=task.unit_s)
    ending = run(master.model, limits, backend=task.backend)
    if ending in {Ending.PROVED, Ending.INCUMBENT}:
        best = _better(task.problem, best, _checked(task, master))
    least_s = min(master.objective_s, best.seconds) if ending is Ending.PROVED else 0.0
    return best, proof._replace(size=master.size), least_s


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
    slots_s = known.prices.slot_s * task.problem.budgets
    least_s = (known.best.cost_s + slots_s).min(axis=1, keepdims=True)
    limit_s = least_s + _room_s(known, best) - slots_s
    keys = _few(task, known.prices.costs_of(task.problem), limit_s)
    if keys is None:
        return best, proof
    mine = [(c.row, c.option, c.steps) for c in best.columns]
    columns = extend(task.problem, pool, dict.fromkeys([*keys, *mine]))
    best, proof, least_s = _integer(task, columns, best, proof)
    left = max(INTEGER_SHARE * task.gap, BACKEND_ACCURACY)
    return best, proof._replace(bound_s=max(proof.bound_s, least_s * (1 - left)))


def _answer(task: Task, best: Incumbent, proof: Proof, *, formulation: Formulation) -> Solution:
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
