"""Prices of what couples the layers: they split a problem into layers, and bound it from below.

Any prices within their ranges give a valid bound (FORMULATION.md, section ``The bound``), so a
backend's dual values are only suggestions: they are moved into the ranges first.
"""

from dataclasses import dataclass, replace

import numpy as np

from solver.best import Best, Costs
from solver.checks import FloatArray
from solver.columns import Taken
from solver.problem import Problem, Use


@dataclass(frozen=True, kw_only=True, eq=False)
class Prices:
    """What layers pay for what couples them.

    Parameters
    ----------
    requests
        Seconds paid per second of each request, shape [R], or empty where none is priced.
    caps
        Seconds paid per promotion at each step because of its cap, shape [T].
    backlog
        Seconds paid per second of copies issued at each step, shape [T].
    slot_s
        Seconds paid per slot.
    costs
        Seconds paid per second: 1, or 0 where only the excess over caps counts.
    """

    requests: FloatArray
    caps: FloatArray
    backlog: FloatArray
    slot_s: float = 0.0
    costs: float = 1.0

    def in_range(self, problem: Problem) -> "Prices":
        """Return the nearest prices, roughly, at which the bound is valid.

        Those of requests are not negative and add up to the risk; those of caps are not negative
        and, where only the excess counts, cost no more than it; those of copies are in [0, 1]; and
        what has no limit has no price.
        """
        caps = np.zeros(problem.steps)
        caps[problem.caps] = np.maximum(self.caps[problem.caps], 0.0)
        if self.costs == 0.0 and problem.most_copies is not None:
            caps = np.minimum(caps, 1.0 / np.maximum(problem.most_copies, 1.0))
        return replace(
            self,
            requests=_to_sum(self.requests, problem.risk * self.costs),
            caps=caps,
            backlog=np.clip(self.backlog, 0.0, self.costs),
            slot_s=0.0 if problem.slots is None else max(self.slot_s, 0.0),
        )

    def towards(self, other: "Prices", share: float) -> "Prices":
        """Return prices that lie ``share`` of the way to others; ranges are convex."""

        def between(here: FloatArray, there: FloatArray) -> FloatArray:
            return (1 - share) * here + share * there

        return replace(
            self,
            requests=between(self.requests, other.requests),
            caps=between(self.caps, other.caps),
            backlog=between(self.backlog, other.backlog),
            slot_s=(1 - share) * self.slot_s + share * other.slot_s,
        )

    def paid_s(self, problem: Problem, taken: Taken, slots: FloatArray) -> FloatArray:
        """Return what columns pay, slots included."""
        cost, *factors = self._factors(problem)
        parts = zip((taken.request_s, taken.copies, taken.step_s), factors, strict=True)
        total_s: FloatArray = cost * taken.cost_s + self.slot_s * slots
        for part, factor in parts:
            total_s = total_s + part @ factor[: part.shape[-1]]
        return total_s

    def costs_of(self, problem: Problem) -> Costs:
        """Return what every arc, and never, pays; slots not included."""
        cost, *factors = self._factors(problem)
        arcs = cost * problem.arc_cost_s
        never = None if problem.never_s is None else cost * problem.never_s
        uses = problem.requests, problem.copies, problem.step_s
        for use, factor in zip(uses, factors, strict=True):
            if use is not None and factor.any():
                arcs += np.tensordot(factor, use.arcs, axes=1)
                never = None if never is None else never + _never(factor, use)
        return arcs, never

    def bound_s(self, problem: Problem, best: Best) -> float:
        """Return a lower bound of the objective from what the best schedules pay."""
        paid_s = best.cost_s + self.slot_s * problem.budgets
        limits_s = 0.0 if problem.slots is None else self.slot_s * problem.slots
        return self.fixed_s(problem) - limits_s + float(paid_s.min(axis=1).sum())

    def fixed_s(self, problem: Problem) -> float:
        """Return what is paid for what no decision changes, less what the caps give away."""
        _, requests, _, steps = self._factors(problem)
        total_s = 0.0 if problem.step_s is not None else self.costs * problem.fixed_s
        if problem.requests is not None and requests.size:
            total_s += float(requests @ problem.requests.fixed)
        if problem.step_s is not None:
            total_s += float(steps @ problem.step_s.fixed)
        if problem.most_copies is not None:
            given = self.caps[problem.caps] @ problem.most_copies[problem.caps]
            total_s -= float(given)
        return total_s

    def _factors(self, problem: Problem) -> tuple[float, FloatArray, FloatArray, FloatArray]:
        """Return the factors of costs, of requests, of copies and of seconds at steps.

        Of a second at step s is paid what its link does not hide: 1 - max of the prices of copies
        issued at s and at s - 1.
        """
        if problem.step_s is None:
            return self.costs, self.requests, self.caps, np.zeros(0)
        issued = np.concatenate([self.backlog, [0.0]])
        carried = np.concatenate([[0.0], self.backlog])
        steps = self.costs - np.maximum(issued, carried)
        return 0.0, self.requests, self.caps + problem.copy_s * self.backlog, steps


def no_prices(problem: Problem, *, costs: float = 1.0) -> Prices:
    """Return prices of nothing, but for requests, which always share the risk."""
    requests = problem.requests.fixed.size if problem.requests and problem.risk > 0 else 0
    free = Prices(
        requests=np.zeros(requests),
        caps=np.zeros(problem.steps),
        backlog=np.zeros(problem.steps),
        costs=costs,
    )
    return free.in_range(problem)


def _to_sum(shares: FloatArray, total: float) -> FloatArray:
    shares = np.maximum(shares, 0.0)
    if not shares.size:
        return shares
    whole = float(shares.sum())
    scaled: FloatArray = (
        shares * (total / whole) if whole > 0 else np.full_like(shares, total / shares.size)
    )
    return scaled


def _never(factor: FloatArray, use: Use) -> FloatArray:
    assert use.never is not None  # a rule of Problem
    weighed: FloatArray = np.tensordot(factor, use.never, axes=1)
    return weighed
