"""What the optimiser answers, in words no backend owns."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

from solver.intervals import Steps, common_interval
from solver.problem import Problem


class Formulation(StrEnum):
    """Which schedules are searched, and by which costs."""

    CLOSED_FORM = "closed-form"  # the paper's Eq. 7 over one interval
    UNIFORM = "uniform"  # one interval and one option for all layers, costs from the trace
    LAYERED = "layered"  # an interval and an option for each layer
    FREE = "free"  # any refresh steps and an option for each layer


class Backend(StrEnum):
    """Program that solves the integer model."""

    CBC = "cbc"  # bundled with PuLP
    HIGHS = "highs"  # the highspy package


class Status(StrEnum):
    """What was proved."""

    OPTIMAL = "optimal"  # no answer is better by more than the gap asked
    FEASIBLE = "feasible"  # the answer holds, the backend stopped before it proved it best
    INFEASIBLE = "infeasible"  # no answer exists; the message says what would do


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A schedule and the proof that comes with it.

    Attributes
    ----------
    formulation, backend
        As asked; ``closed-form`` is arithmetic and calls no backend.
    status
        What was proved.
    objective_s
        Seconds per block, ``fixed_s`` included; None when infeasible. For ``closed-form`` the
        paper's own number: seconds per block *and layer* that offloading adds.
    bound_s
        Proven lower bound of the objective; None when infeasible.
    gap
        ``(objective_s - bound_s) / objective_s``, 0 where both are 0. Choices that differ by less
        than rounding (``intervals.TIE_RELATIVE``) are equal, so it may exceed the gap asked by it.
    seconds
        Wall time of the whole call.
    budget
        Slots per layer, length L; empty when infeasible.
    promotions
        Most promotions of a refresh per layer, None for no limit; empty when infeasible.
    refresh_steps
        Per layer, ascending, ``()`` where it never refreshes; empty when infeasible.
    interval
        τ where all layers refresh at its multiples, None otherwise; T means once per block, at
        its start.
    variables, constraints
        Size of the integer model; 0 where none was built.
    cost_by_interval_s
        Objective of each interval 1..T at the chosen option, infinite where a cap forbids it; empty
        for ``layered`` and ``free``, which have no one interval.
    message
        One sentence; an infeasible problem's names the smallest memory that would do, or the step
        whose cap cannot be kept.
    """

    formulation: Formulation
    backend: Backend
    status: Status
    objective_s: float | None
    bound_s: float | None
    gap: float | None
    seconds: float
    budget: tuple[int, ...]
    promotions: tuple[int | None, ...]
    refresh_steps: tuple[Steps, ...]
    interval: int | None
    variables: int
    constraints: int
    cost_by_interval_s: tuple[float, ...]
    message: str


def relative_gap(objective_s: float, bound_s: float) -> float:
    """Return ``(objective - bound) / objective``, 0 where both are 0."""
    return (objective_s - bound_s) / objective_s if objective_s > 0 else 0.0


class Size(TypedDict):
    """Size of an integer model."""

    variables: int
    constraints: int


NO_MODEL = Size(variables=0, constraints=0)


def found(
    problem: Problem,
    formulation: Formulation,
    backend: Backend,
    *,
    options: Sequence[int],
    refreshes: Sequence[Steps],
    objective_s: float,
    bound_s: float,
    status: Status,
    size: Size,
    message: str,
    cost_by_interval_s: tuple[float, ...] = (),
) -> Solution:
    """Return the answer that gives each layer its option and refresh steps."""
    promotions = problem.promotions or (None,) * problem.budgets.size
    return Solution(
        formulation=formulation,
        backend=backend,
        status=status,
        objective_s=objective_s,
        bound_s=bound_s,
        gap=relative_gap(objective_s, bound_s),
        seconds=0.0,
        budget=tuple(int(problem.budgets[option]) for option in options),
        promotions=tuple(promotions[option] for option in options),
        refresh_steps=tuple(refreshes),
        interval=common_interval(problem.steps, refreshes),
        **size,
        cost_by_interval_s=cost_by_interval_s,
        message=message,
    )


def infeasible(
    formulation: Formulation,
    backend: Backend,
    *,
    message: str,
    size: Size = NO_MODEL,
) -> Solution:
    """Return the answer of a problem that has none."""
    return Solution(
        formulation=formulation,
        backend=backend,
        status=Status.INFEASIBLE,
        objective_s=None,
        bound_s=None,
        gap=None,
        seconds=0.0,
        budget=(),
        promotions=(),
        refresh_steps=(),
        interval=None,
        **size,
        cost_by_interval_s=(),
        message=message,
    )


def does_not_fit(problem: Problem) -> str:
    """Say what memory the smallest budgets need."""
    smallest = int(problem.budgets[0])
    return (
        f"The smallest budget, {smallest} slots in each of {problem.layers} layers, needs "
        f"{problem.memory_of(smallest)} bytes of GPU memory, {problem.memory_bytes} are left."
    )


def breaks_cap(problem: Problem, step: int) -> str:
    """Say which cap cannot be kept."""
    assert problem.most_copies is not None
    return (
        f"No choice of schedules keeps the promotions of step {step} within "
        f"most_copies[{step}] = {problem.most_copies[step]:g} and those of the others within "
        "theirs: raise the cap, or let layers never refresh."
    )
