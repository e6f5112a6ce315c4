"""What is asked of the optimiser: arrays in, checked once, never changed.

Errors raised by this package::

    SolverError
    ├── ProblemError  (ValueError)    a problem or an option is out of its range
    └── BackendError  (RuntimeError)  a backend could not run, or contradicted itself
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


#: Longest time accepted, 30,000 years: sums of times then stay far from float64's end.
LONGEST_S = 1e12


class SolverError(Exception):
    """Base of every error this package raises on purpose."""


class ProblemError(SolverError, ValueError):
    """A problem or an option is out of its range."""


class BackendError(SolverError, RuntimeError):
    """A backend could not run, or its answer contradicts the problem."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClosedFormTerms:
    """The terms of the paper's closed form, fitted by the caller from a trace.

    Parameters
    ----------
    promotion_s
        ``C_IO``: seconds to bring one expert to the GPU.
    miss_s
        ``C_CPU``: seconds of CPU work per miss unit.
    budget
        ``B``: slots per layer.
    drift
        ``d`` in [0, 1): share of the best-B set that changes per step.
    miss_share
        ``f(τ)`` for τ = 1..T, shape [T], non-decreasing: mean share missed when residents are
        refreshed every τ steps.

    Raises
    ------
    ProblemError
        If a term is not finite or out of its range; the sentence names the repair.

    Notes
    -----
    Source: TIDE, arXiv 2605.20179, equations 5 and 6.
    """

    promotion_s: float
    miss_s: float
    budget: int
    drift: float
    miss_share: FloatArray

    def __post_init__(self) -> None:
        store = object.__setattr__
        store(self, "promotion_s", _seconds("promotion_s", self.promotion_s))
        store(self, "miss_s", _seconds("miss_s", self.miss_s))
        store(self, "budget", _whole("budget", self.budget, at_least=1))
        store(self, "drift", _share("drift", self.drift))
        share = _frozen("miss_share", self.miss_share, dimensions=1)
        _check_range("miss_share", share)
        falls = np.flatnonzero(np.diff(share) < 0)
        if falls.size:
            at = int(falls[0]) + 1
            raise ProblemError(
                f"miss_share[{at}] is {share[at]:g} after {share[at - 1]:g}, must not fall as the "
                "interval grows: fit it with a running maximum."
            )
        store(self, "miss_share", share)


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Refresh steps and budgets to choose, and what each choice costs.

    L layers, K budget options, T steps of the longest block. Arrays are copied and made read-only.

    Parameters
    ----------
    steps
        T: denoise steps of the longest block.
    budgets
        Budget options in slots per layer, ascending, shape [K].
    arc_cost_s
        Expected seconds per block, shape [L, K, T, T + 1]. Entry ``[l, k, i, j]`` is the time of
        steps i+1..j of layer l at budget option k when its residents are chosen at step i and next
        at step j; the pass at j runs with the new residents and pays their promotions. j = T stands
        for the start of the next block. Costs are already weighted by the share of blocks that
        reach each step. Entries with j <= i are ignored (stored as 0).
    fixed_s
        Seconds per block that no decision changes.
    expert_bytes
        Bytes of one expert slot.
    memory_bytes
        GPU bytes left for expert slots; None means no limit.
    closed_form
        Terms of the paper's closed form; only that formulation needs them.

    Raises
    ------
    ProblemError
        If a value is not finite, out of its range or of the wrong shape; the sentence names the
        value, the rule and the repair.
    """

    steps: int
    budgets: IntArray
    arc_cost_s: FloatArray
    fixed_s: float = 0.0
    expert_bytes: int = 0
    memory_bytes: int | None = None
    closed_form: ClosedFormTerms | None = None

    def __post_init__(self) -> None:
        store = object.__setattr__
        store(self, "steps", _whole("steps", self.steps, at_least=1))
        store(self, "budgets", _budgets(self.budgets))
        store(self, "arc_cost_s", self._checked_costs())
        store(self, "fixed_s", _seconds("fixed_s", self.fixed_s))
        store(self, "expert_bytes", _whole("expert_bytes", self.expert_bytes, at_least=0))
        if self.memory_bytes is not None:
            store(self, "memory_bytes", _whole("memory_bytes", self.memory_bytes, at_least=0))
            self._check_expert_bytes()
        self._check_closed_form()

    @property
    def layers(self) -> int:
        """L: mixture layers."""
        return int(self.arc_cost_s.shape[0])

    @property
    def slots(self) -> int | None:
        """Expert slots that fit the memory, all layers together; None means no limit."""
        return None if self.memory_bytes is None else self.memory_bytes // self.expert_bytes

    def memory_of(self, budget: int) -> int:
        """Return the bytes that ``budget`` slots in each of the layers take."""
        return self.layers * budget * self.expert_bytes

    def _checked_costs(self) -> FloatArray:
        costs = _frozen("arc_cost_s", self.arc_cost_s, dimensions=4)
        expected = (costs.shape[0], self.budgets.size, self.steps, self.steps + 1)
        if costs.shape != expected or costs.shape[0] < 1:
            raise ProblemError(
                f"arc_cost_s has shape {list(costs.shape)}, must be [layers, {expected[1]} budgets, "
                f"{expected[2]} steps, {expected[3]}] with at least one layer: "
                "rebuild the cost table for these steps and budgets."
            )
        costs = np.where(np.tri(self.steps, self.steps + 1, dtype=bool), 0.0, costs)
        _check_range("arc_cost_s", costs)
        costs.setflags(write=False)
        return costs

    def _check_expert_bytes(self) -> None:
        if self.expert_bytes == 0:
            raise ProblemError(
                f"memory_bytes is {self.memory_bytes} but expert_bytes is 0, must be positive where "
                "memory is limited: give the bytes of one expert slot."
            )

    def _check_closed_form(self) -> None:
        terms = self.closed_form
        if terms is not None and terms.miss_share.shape != (self.steps,):
            raise ProblemError(
                f"miss_share has {terms.miss_share.size} values, must have one per interval "
                f"1..{self.steps}: fit the closed form for these steps."
            )


def _whole(name: str, value: Any, *, at_least: int) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < at_least:
        raise ProblemError(
            f"{name} is {value!r}, must be a whole number of at least {at_least}: correct it."
        )
    return int(value)


def _seconds(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= LONGEST_S:
        raise ProblemError(
            f"{name} is {value!r}, must be seconds between 0 and {LONGEST_S:g}: correct it."
        )
    return float(value)


def _share(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= value < 1:
        raise ProblemError(f"{name} is {value!r}, must be at least 0 and below 1: correct it.")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _frozen(name: str, value: Any, *, dimensions: int) -> FloatArray:
    try:
        array: FloatArray = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(
            f"{name} is not an array of numbers ({error}): pass a NumPy array of float64."
        ) from error
    if array.ndim != dimensions:
        raise ProblemError(
            f"{name} has {array.ndim} dimensions, must have {dimensions}: reshape it."
        )
    array.setflags(write=False)
    return array


def _check_range(name: str, array: FloatArray) -> None:
    wrong = np.argwhere(~((array >= 0) & (array <= LONGEST_S)))
    if wrong.size:
        at = tuple(int(index) for index in wrong[0])
        raise ProblemError(
            f"{name}{list(at)} is {array[at]:g}, must be between 0 and {LONGEST_S:g}: "
            "correct the rates or counts it was computed from."
        )


def _budgets(value: Any) -> IntArray:
    budgets = np.array(value)
    rising = (
        budgets.ndim == 1
        and budgets.size > 0
        and np.issubdtype(budgets.dtype, np.integer)
        and budgets[0] >= 1
        and budgets[-1] < 2**31
        and bool(np.all(budgets[1:] > budgets[:-1]))
    )
    if not rising:
        raise ProblemError(
            f"budgets is {value!r}, must be one or more ascending whole numbers of slots, 1 to "
            "2**31 - 1: sort them and drop repeats."
        )
    budgets = budgets.astype(np.int64)
    budgets.setflags(write=False)
    return budgets
