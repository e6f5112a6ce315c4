"""What is asked of the optimiser: arrays in, checked once, never changed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from solver import checks
from solver.checks import FloatArray, IntArray
from solver.errors import ProblemError

#: Sums of ``step_s`` may differ from the seconds they split by rounding, relative to the largest.
SPLIT_RELATIVE = 1e-6


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
        store(self, "promotion_s", checks.seconds("promotion_s", self.promotion_s))
        store(self, "miss_s", checks.seconds("miss_s", self.miss_s))
        store(self, "budget", checks.whole("budget", self.budget, at_least=1))
        store(self, "drift", checks.share("drift", self.drift))
        share = checks.floats("miss_share", self.miss_share, dimensions=1)
        share = checks.in_range("miss_share", share)
        falls = np.flatnonzero(np.diff(share) < 0)
        if falls.size:
            at = int(falls[0]) + 1
            raise ProblemError(
                f"miss_share[{at}] is {share[at]:g} after {share[at - 1]:g}, must not fall as the "
                "interval grows: fit it with a running maximum."
            )
        store(self, "miss_share", share)


@dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """Q measures of a placement, each a sum over layers: what a coupling limits or counts.

    Parameters
    ----------
    arcs
        Of each arc, shape [Q, L, K, F, T, T + 1], indexed as `Problem.arc_cost_s`.
    fixed
        What no decision changes, shape [Q].
    never
        Of a layer that never refreshes, shape [Q, L, K]; given if `Problem.never_s` is.

    Raises
    ------
    ProblemError
        If a value is not finite, negative or of the wrong number of dimensions.
    """

    arcs: FloatArray
    fixed: FloatArray
    never: FloatArray | None = None

    def __post_init__(self) -> None:
        store = object.__setattr__
        store(self, "arcs", checks.arcs("arcs of a Use", self.arcs, dimensions=6))
        fixed = checks.floats("fixed of a Use", self.fixed, dimensions=1)
        store(self, "fixed", checks.in_range("fixed of a Use", fixed))
        if self.never is not None:
            never = checks.floats("never of a Use", self.never, dimensions=3)
            store(self, "never", checks.in_range("never of a Use", never))


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Schedules and budgets to choose for every layer, and what each choice costs.

    L layers, K options, T steps of the longest block, F first steps. Arrays are copied and made
    read-only.

    Parameters
    ----------
    steps
        T: denoise steps of the longest block.
    budgets
        Slots per layer of each option, ascending, shape [K].
    arc_cost_s
        Expected seconds per block, shape [L, K, F, T, T + 1]. Entry ``[l, k, f, i, j]`` is the time
        of the passes i+1..j of layer l at option k when it first refreshes at step f, and its
        residents are chosen at step i and next at step j; the pass at j runs with the new residents
        and pays their promotions. j = T stands for the first refresh of the next block, and the
        passes up to step f belong to the arc that ends there. Costs are already weighted by the
        share of blocks that reach each step. Entries with i < f or j <= i are ignored (stored as 0).
    promotions
        Most promotions of a refresh at each option, None for no limit; of options with equal
        budgets ascending, None last. None: no option has a limit.
    never_s
        Expected seconds per block of a layer that never refreshes and keeps its first residents,
        shape [L, K]; None: every layer refreshes.
    fixed_s
        Seconds per block that no decision changes.
    expert_bytes
        Bytes of one expert slot.
    memory_bytes
        GPU bytes left for expert slots; None means no limit.
    closed_form
        Terms of the paper's closed form; only that formulation needs them.
    requests
        Seconds per block of each of Q = R training requests.
    risk
        Weight of the slowest request: the objective is the mean + ``risk`` x the slowest.
    copies
        Q = T: expected promotions per block at each step, ``fixed`` all 0.
    most_copies
        Upper limit of `copies` at each step, shape [T], infinity where there is none.
    step_s
        Promotion in the background, Q = T + 1: seconds per block of the passes at each step, last
        those that are no denoise steps. They split `arc_cost_s`, `never_s` and `fixed_s`, which
        then count no copies; the objective adds what `copies` hold up.
    copy_s
        Seconds of one promotion on the link; needed with `step_s`.

    Raises
    ------
    ProblemError
        If a value is not finite, out of its range or of the wrong shape, or contradicts another;
        the sentence names the value, the rule and the repair.
    """

    steps: int
    budgets: IntArray
    arc_cost_s: FloatArray
    promotions: tuple[int | None, ...] | None = None
    never_s: FloatArray | None = None
    fixed_s: float = 0.0
    expert_bytes: int = 0
    memory_bytes: int | None = None
    closed_form: ClosedFormTerms | None = None
    requests: Use | None = None
    risk: float = 0.0
    copies: Use | None = None
    most_copies: FloatArray | None = None
    step_s: Use | None = None
    copy_s: float = 0.0

    def __post_init__(self) -> None:
        store = object.__setattr__
        store(self, "steps", checks.whole("steps", self.steps, at_least=1))
        slots, promotions = checks.options(self.budgets, self.promotions)
        store(self, "budgets", slots)
        store(self, "promotions", None if self.promotions is None else promotions)
        store(self, "arc_cost_s", checks.arcs("arc_cost_s", self.arc_cost_s, dimensions=5))
        self._check_costs()
        store(self, "fixed_s", checks.seconds("fixed_s", self.fixed_s))
        store(self, "expert_bytes", checks.whole("expert_bytes", self.expert_bytes, at_least=0))
        if self.memory_bytes is not None:
            memory_bytes = checks.whole("memory_bytes", self.memory_bytes, at_least=0)
            store(self, "memory_bytes", memory_bytes)
            self._check_expert_bytes()
        self._check_closed_form()
        store(self, "risk", checks.weight("risk", self.risk))
        store(self, "copy_s", checks.seconds("copy_s", self.copy_s))
        if self.never_s is not None:
            store(self, "never_s", self._checked("never_s", self.never_s, self._shape[:2]))
        if self.most_copies is not None:
            caps = self._checked("most_copies", self.most_copies, (self.steps,), most=np.inf)
            store(self, "most_copies", caps)
        self._check_uses()
        self._check_couplings()
        self._check_split()

    @property
    def layers(self) -> int:
        """L: mixture layers."""
        return int(self.arc_cost_s.shape[0])

    @property
    def slots(self) -> int | None:
        """Expert slots that fit the memory, all layers together; None means no limit."""
        return None if self.memory_bytes is None else self.memory_bytes // self.expert_bytes

    @property
    def caps(self) -> IntArray:
        """Steps whose copies are limited, ascending."""
        limits = np.full(self.steps, np.inf) if self.most_copies is None else self.most_copies
        capped: IntArray = np.flatnonzero(np.isfinite(limits))
        return capped

    @property
    def coupled(self) -> bool:
        """Whether more than memory couples the layers."""
        return self.risk > 0 or self.step_s is not None or self.caps.size > 0

    def memory_of(self, budget: int) -> int:
        """Return the bytes that ``budget`` slots in each of the layers take."""
        return self.layers * budget * self.expert_bytes

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.arc_cost_s.shape

    def _check_costs(self) -> None:
        layers, _, first, _, _ = self._shape
        expected = (self.budgets.size, first, self.steps, self.steps + 1)
        if self._shape[1:] != expected or layers < 1 or not 1 <= first <= self.steps:
            raise ProblemError(
                f"arc_cost_s has shape {list(self._shape)}, must be [layers, {expected[0]} options, "
                f"first steps, {expected[2]} steps, {expected[3]}] with at least one layer and 1 to "
                f"{self.steps} first steps: rebuild the cost table for these steps and budgets."
            )

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

    def _checked(
        self, name: str, value: Any, shape: tuple[int, ...], *, most: float = checks.LONGEST_S
    ) -> FloatArray:
        array = checks.floats(name, value, dimensions=len(shape))
        if array.shape != shape:
            raise ProblemError(
                f"{name} has shape {list(array.shape)}, must be {list(shape)}: rebuild it for "
                "these layers, options and steps."
            )
        return checks.in_range(name, array, most=most)

    def _check_uses(self) -> None:
        expected = {"copies": self.steps, "step_s": self.steps + 1}
        for name in ("requests", "copies", "step_s"):
            use: Use | None = getattr(self, name)
            if use is None:
                continue
            measures = expected.get(name, max(1, use.fixed.size))
            never_shape = None if self.never_s is None else (measures, *self._shape[:2])
            shapes = use.arcs.shape, use.fixed.shape, None if use.never is None else use.never.shape
            if shapes != ((measures, *self._shape), (measures,), never_shape):
                raise ProblemError(
                    f"{name} has arcs, fixed and never of shape {shapes}, must be "
                    f"{(measures, *self._shape)}, {(measures,)} and {never_shape}: build it with "
                    "arc_cost_s and never_s."
                )
        if self.copies is not None and self.copies.fixed.any():
            raise ProblemError(
                "fixed of copies is not 0: count as copies only the promotions of schedules."
            )

    def _check_couplings(self) -> None:
        wrong = {
            "risk needs requests: give the seconds of each": self.risk > 0
            and self.requests is None,
            "most_copies needs copies: give the promotions at each step": (
                self.most_copies is not None and self.copies is None
            ),
            "step_s needs copies: give the promotions at each step": (
                self.step_s is not None and self.copies is None
            ),
            "copy_s needs step_s: give the seconds at each step": (
                self.copy_s > 0 and self.step_s is None
            ),
            "risk and step_s cannot be combined: leave one out": (
                self.risk > 0 and self.step_s is not None
            ),
        }
        for sentence, broken in wrong.items():
            if broken:
                raise ProblemError(f"{sentence}.")

    def _check_split(self) -> None:
        if self.step_s is None:
            return
        for name, parts, whole in (
            ("arc_cost_s", self.step_s.arcs, self.arc_cost_s),
            ("fixed_s", self.step_s.fixed, np.array(self.fixed_s)),
            ("never_s", self.step_s.never, self.never_s),
        ):
            if parts is None or whole is None:
                continue
            apart_s = float(np.abs(parts.sum(axis=0) - whole).max())
            if apart_s > SPLIT_RELATIVE * float(whole.max()):
                raise ProblemError(
                    f"step_s adds up to {name} but for {apart_s:g} s, must split it: build both "
                    "from the same passes."
                )
