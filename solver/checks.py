"""Checks of single values: each returns the value in its own type, or says what is wrong with it."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from solver.errors import ProblemError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Longest time accepted, 30,000 years: sums of times then stay far from float64's end.
LONGEST_S = 1e12


def whole(name: str, value: Any, *, at_least: int) -> int:
    """Return a whole number of at least ``at_least``."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < at_least:
        raise ProblemError(
            f"{name} is {value!r}, must be a whole number of at least {at_least}: correct it."
        )
    return int(value)


def seconds(name: str, value: Any) -> float:
    """Return a time between 0 and `LONGEST_S`."""
    if not _is_number(value) or not 0 <= value <= LONGEST_S:
        raise ProblemError(
            f"{name} is {value!r}, must be seconds between 0 and {LONGEST_S:g}: correct it."
        )
    return float(value)


def share(name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ProblemError(f"{name} is {value!r}, must be at least 0 and below 1: correct it.")
    return float(value)


def weight(name: str, value: Any) -> float:
    """Return a number between 0 and a million."""
    if not _is_number(value) or not 0 <= value <= 1e6:
        raise ProblemError(f"{name} is {value!r}, must be between 0 and 1e+06: correct it.")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def floats(name: str, value: Any, *, dimensions: int) -> FloatArray:
    """Return a copy in float64; the caller makes it read-only."""
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
    return array


def in_range(name: str, array: FloatArray, *, most: float = LONGEST_S) -> FloatArray:
    """Return the array, read-only, if every entry is between 0 and ``most``."""
    wrong = np.argwhere(~((array >= 0) & (array <= most)))
    if wrong.size:
        at = tuple(int(index) for index in wrong[0])
        raise ProblemError(
            f"{name}{list(at)} is {array[at]:g}, must be between 0 and {most:g}: "
            "correct the rates or counts it was computed from."
        )
    array.setflags(write=False)
    return array


def arcs(name: str, value: Any, *, dimensions: int) -> FloatArray:
    """Return values of arcs, shape [..., F, T, T + 1], with 0 where no schedule has an arc.

    An arc (i, j) goes forward, i < j, and starts no earlier than its schedule's first refresh.
    """
    array = floats(name, value, dimensions=dimensions)
    firsts, starts, ends = array.shape[-3:]
    first, start, end = np.ogrid[:firsts, :starts, :ends]
    array[..., ~((first <= start) & (start < end))] = 0.0
    return in_range(name, array)


def options(budgets: Any, promotions: Any) -> tuple[IntArray, tuple[int | None, ...]]:
    """Return slots and most promotions of each option, in the order of options."""
    slots = _slots(budgets)
    most = (None,) * slots.size if promotions is None else tuple(promotions)
    if len(most) != slots.size:
        raise ProblemError(
            f"promotions has {len(most)} values, must have one per option, {slots.size}: "
            "use None where a refresh may promote any number."
        )
    for option, limit in enumerate(most):
        if limit is not None:
            whole(f"promotions[{option}]", limit, at_least=1)
    order = [(int(size), np.inf if m is None else m) for size, m in zip(slots, most, strict=True)]
    if any(later <= earlier for earlier, later in pairwise(order)):
        raise ProblemError(
            f"budgets is {slots.tolist()} with promotions {list(most)}, must be ascending, of "
            "equal budgets by promotions, None last: sort the options and drop repeats."
        )
    return slots, tuple(None if m is None else int(m) for m in most)


def _slots(value: Any) -> IntArray:
    slots = np.array(value)
    good = (
        slots.ndim == 1
        and slots.size > 0
        and np.issubdtype(slots.dtype, np.integer)
        and bool(np.all((slots >= 1) & (slots < 2**31)))
    )
    if not good:
        raise ProblemError(
            f"budgets is {value!r}, must be one or more ascending whole numbers of slots, 1 to "
            "2**31 - 1: sort them and drop repeats."
        )
    slots = slots.astype(np.int64)
    slots.setflags(write=False)
    return slots
