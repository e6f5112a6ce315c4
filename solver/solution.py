"""What the optimiser answers, in words no backend owns."""

from dataclasses import dataclass
from enum import StrEnum


class Formulation(StrEnum):
    """Which schedules are searched, and by which costs."""

    CLOSED_FORM = "closed-form"  # the paper's Eq. 7 over one interval
    UNIFORM = "uniform"  # one interval and one budget for all layers, costs from the trace
    LAYERED = "layered"  # an interval and a budget for each layer
    FREE = "free"  # any refresh steps and a budget for each layer


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
    refresh_steps
        Per layer, ascending, 0 first; empty when infeasible.
    interval
        τ where all layers refresh at its multiples, None otherwise; T means once per block, at
        its start.
    variables, constraints
        Size of the integer model; 0 where none was built.
    cost_by_interval_s
        Objective of each interval 1..T at the chosen budget; empty for ``layered`` and ``free``,
        which have no one interval.
    message
        One sentence; an infeasible problem's names the smallest memory that would do.
    """

    formulation: Formulation
    backend: Backend
    status: Status
    objective_s: float | None
    bound_s: float | None
    gap: float | None
    seconds: float
    budget: tuple[int, ...]
    refresh_steps: tuple[tuple[int, ...], ...]
    interval: int | None
    variables: int
    constraints: int
    cost_by_interval_s: tuple[float, ...]
    message: str


def relative_gap(objective_s: float, bound_s: float) -> float:
    """Return ``(objective - bound) / objective``, 0 where both are 0."""
    return (objective_s - bound_s) / objective_s if objective_s > 0 else 0.0


def infeasible(
    formulation: Formulation,
    backend: Backend,
    *,
    message: str,
    variables: int = 0,
    constraints: int = 0,
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
        refresh_steps=(),
        interval=None,
        variables=variables,
        constraints=constraints,
        cost_by_interval_s=(),
        message=message,
    )
