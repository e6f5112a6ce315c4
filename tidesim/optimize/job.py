"""Job: what is to be optimised, checked: requests, machine, limits, and how to search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

from solver import Backend, Formulation
from tidesim.costs import Option
from tidesim.engines import Engine, Promotion
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.model_spec import ModelSpec
from tidesim.policies import PolicyFactory
from tidesim.simulate import Case, prepare
from tidesim.trace.passes import Trace

BUDGET_OPTIONS = 5  # up to an equal share of the memory
MORE_OPTIONS = 3  # from there to twice as much, where layers may differ
ROUNDS = 5
FORMULATIONS = tuple(map(str, Formulation))
BACKENDS = tuple(map(str, Backend))

Known = TypeVar("Known", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search, checked.

    Attributes
    ----------
    formulation : Formulation
    backend : Backend
    time_limit_s, gap : float
        Of one solution; see `solver.solve`.
    promotion : Promotion
        When promoted experts serve.
    most_promotions : tuple of (int or None)
        Limits of promotions per refresh to choose from; None is no limit.
    copies_per_step : float or None
        Most promotions of a denoise pass, all layers together, on average over blocks.
    risk : float
        Weight of the slowest training request beside the mean of all.
    rounds : int
        Most solutions, each from costs around the last.

    Raises
    ------
    SettingError
        An option is unknown, out of its range, or contradicts another.
    """

    formulation: Formulation
    backend: Backend
    time_limit_s: float
    gap: float
    promotion: Promotion
    most_promotions: tuple[int | None, ...]
    copies_per_step: float | None
    risk: float
    rounds: int

    def __post_init__(self) -> None:
        if not self.most_promotions:
            raise SettingError("most promotions has no option; give numbers or None for no limit")
        for most in self.most_promotions:
            if most is not None and most < 1:
                raise SettingError(f"most promotions is {most} but must be at least 1")
        if self.copies_per_step is not None and not self.copies_per_step >= 0:
            raise SettingError(f"copies per step is {self.copies_per_step} but must be at least 0")
        if not (math.isfinite(self.risk) and self.risk >= 0):
            raise SettingError(f"risk is {self.risk} but must be a number of at least 0")
        if self.rounds < 1:
            raise SettingError(f"rounds is {self.rounds} but must be at least 1")
        self._check_plain()

    def _check_plain(self) -> None:
        """Refuse what the chosen formulation or promotion has no terms for."""
        background = self.promotion is Promotion.BACKGROUND
        if self.risk and background:
            raise SettingError(
                "risk weighs the slowest request under blocking promotion only; "
                "leave the risk out or promote blocking"
            )
        plain = self.most_promotions == (None,) and self.copies_per_step is None and not self.risk
        if self.formulation is Formulation.CLOSED_FORM and (background or not plain):
            raise SettingError(
                "closed-form is the paper's: blocking promotion without limits or risk; "
                "use formulation uniform, layered or free for them"
            )


def known(kind: type[Known], value: str, *, what: str) -> Known:
    """Return the member of an enumeration that a word means.

    Raises
    ------
    SettingError
        There is none.
    """
    if value not in set(kind):
        raise SettingError(f"{what} {value!r} is not known; use one of: {', '.join(kind)}")
    return kind(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A trace's requests, a machine and its limits.

    Attributes
    ----------
    whole, training : Trace
    heldout : Trace or None
    profile : HardwareProfile
    engine : str or Engine
    sizes : ModelSpec or None
    budget, memory_bytes : int or None
        One of them.
    search : Search
    trace_name : str
    """

    whole: Trace
    training: Trace
    heldout: Trace | None
    profile: HardwareProfile
    engine: str | Engine
    sizes: ModelSpec | None
    budget: int | None
    memory_bytes: int | None
    search: Search
    trace_name: str

    def case(
        self,
        policy: str | PolicyFactory,
        *,
        interval: int | None,
        budget: int | None,
        memory_bytes: int | None = None,
    ) -> Case:
        """Return a run of all requests; its memory holds the largest of them.

        Raises
        ------
        SettingError, CapacityError, FormatError
            As `prepare`.
        """
        return prepare(
            self.whole,
            self.profile,
            policy=policy,
            interval=interval,
            budget=budget,
            memory_bytes=memory_bytes,
            engine=self.engine,
            sizes=self.sizes,
            popularity_from=self.training,
            promotion=self.search.promotion,
        )

    def fixed(self, interval: int) -> Case:
        """Return a run of tide at one interval, with as many slots in every layer as allowed."""
        return self.case(
            "tide", interval=interval, budget=self.budget, memory_bytes=self.memory_bytes
        )

    def options(self, case: Case) -> list[Option]:
        """Return what a layer may have; layers that differ may have more than an equal share."""
        budgets = self._budgets(case)
        limits = sorted(
            set(self.search.most_promotions), key=lambda m: math.inf if m is None else m
        )
        return [Option(budget, most) for budget in budgets for most in limits]

    def _budgets(self, case: Case) -> Sequence[int]:
        share, least = case.setup.budget, case.spec.num_experts_per_tok
        formulation = self.search.formulation
        if self.memory_bytes is None or formulation is Formulation.CLOSED_FORM:
            return [share]
        budgets = np.linspace(least, share, BUDGET_OPTIONS)
        if formulation in {Formulation.LAYERED, Formulation.FREE}:
            more = np.linspace(share, min(2 * share, case.spec.num_experts), MORE_OPTIONS)
            budgets = np.concatenate([budgets, more])
        return [int(budget) for budget in np.unique(budgets.round().astype(int))]


def in_memory(trace: Trace) -> Trace:
    """Return a trace whose passes are read and checked once, for work that reads them often.

    Examples
    --------
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> read = in_memory(trace)
    >>> read.sha256 == trace.sha256, len(list(read))
    (True, 20)
    """
    return Trace(trace.meta, list(trace), sha256=trace.sha256)


def splits(trace: Trace) -> tuple[Trace, Trace | None]:
    """Return the training requests, all where none is marked so, and the held-out ones, if any.

    Examples
    --------
    >>> from tidesim.trace.io import load_trace
    >>> training, heldout = splits(load_trace("tide-tiny-mixed"))
    >>> len(training.meta.requests), len(heldout.meta.requests)
    (24, 18)
    """
    marked = {info.split for info in trace.meta.requests}
    if "train" not in marked:
        return trace, None
    return trace.split("train"), trace.split("heldout") if "heldout" in marked else None
