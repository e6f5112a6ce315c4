"""Compare: every policy, tide at fixed intervals, solved schedules and the bounds, in one table.

All run on the same requests: the held-out ones where the trace marks some. What policies know
beforehand (popularity, the schedule) comes from the training requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from tidesim.contest import INTERVALS
from tidesim.engines import Engine, Promotion
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import HardwareProfile
from tidesim.model_spec import ModelSpec
from tidesim.optimize import Optimised, in_memory, optimize, splits
from tidesim.policies import POLICIES
from tidesim.simulate import Case, SimulationResult, prepare
from tidesim.simulate.fast import run_fast
from tidesim.trace.passes import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of a comparison.

    Attributes
    ----------
    policy : str
    interval : int or None
        Steps between refreshes, of policies that have some.
    promotion : str
        ``blocking`` or ``background``.
    slots : int
        Of all layers together.
    tokens_per_s, hit_rate, promotions, seconds_per_block, bottleneck
        As in `SimulationResult`.
    exposed_copy_s, exposed_cpu_s : float
        Seconds of expert copies and of CPU experts that nothing hides.
    is_bound : bool
        No runtime could do it: it ignores the GPU's memory or knows the passes to come.
    is_chosen : bool
        The solver's schedule; of several the first.
    formulation : str
        How the schedule was solved for; empty for what is no solver's.
    """

    policy: str
    interval: int | None
    promotion: str
    slots: int
    tokens_per_s: float
    hit_rate: float
    promotions: int
    seconds_per_block: float
    exposed_copy_s: float
    exposed_cpu_s: float
    bottleneck: str
    is_bound: bool
    is_chosen: bool
    formulation: str = ""

    @property
    def name(self) -> str:
        """The policy, and its interval where it has one to choose."""
        if self.policy != "tide":
            return self.policy
        name = f"tide τ={self.interval}" if self.interval else f"tide, {self.formulation}"
        return f"{name}, background" if self.promotion == Promotion.BACKGROUND else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far tidesim's own policy gets from the best of the others to full knowledge.

    Attributes
    ----------
    policy, best_other : str
        ``pay``, and the fastest of what it is measured by: static popularity, tide at its best
        interval, and the counts of the step before.
    tokens_per_s, best_other_tokens_per_s, full_knowledge_tokens_per_s : float
    closed : float or None
        Share of the gap between the last two that the policy closes; None where full knowledge of
        the routing, which is a limit on hits, is no faster than the others.
    """

    policy: str
    tokens_per_s: float
    best_other: str
    best_other_tokens_per_s: float
    full_knowledge_tokens_per_s: float

    @property
    def closed(self) -> float | None:
        """Share of the gap."""
        gap = self.full_knowledge_tokens_per_s - self.best_other_tokens_per_s
        return (self.tokens_per_s - self.best_other_tokens_per_s) / gap if gap > 0 else None


_MEASURED_BY = ("static-frequency", "tide", "previous-step")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows in the order of `POLICIES`, tide's by interval, and what they share.

    Attributes
    ----------
    rows : tuple of Row
    schedules : tuple of Optimised
        The solved schedules, with their training runs.
    requests : str
        ``heldout``; or ``train`` where the trace marks no others, and ``all`` where it marks none
        for training: then popularity and the schedule have seen the very requests they are judged by.
    skipped : dict of str
        Policies that do not fit the machine's memory at these settings, with the reason.
    """

    rows: tuple[Row, ...]
    schedules: tuple[Optimised, ...]
    requests: str
    skipped: dict[str, str]

    @property
    def solved(self) -> Optimised:
        """The schedule of the chosen row."""
        return self.schedules[0]

    @property
    def chosen(self) -> Row:
        """The solver's schedule; of several the first."""
        return next(row for row in self.rows if row.is_chosen)

    @property
    def best(self) -> Row:
        """The fastest row that is no limit."""
        return max((row for row in self.rows if not row.is_bound), key=lambda row: row.tokens_per_s)

    @property
    def gap(self) -> Gap | None:
        """What tidesim's own policy reaches; None where it, or the limit, does not fit."""
        by_name = {row.policy: row for row in self.rows}
        others = [row for row in self.rows if row.policy in _MEASURED_BY]
        if not others or not {"pay", "full-knowledge"} <= by_name.keys():
            return None
        best = max(others, key=lambda row: row.tokens_per_s)
        return Gap(
            policy="pay",
            tokens_per_s=by_name["pay"].tokens_per_s,
            best_other=best.name,
            best_other_tokens_per_s=best.tokens_per_s,
            full_knowledge_tokens_per_s=by_name["full-knowledge"].tokens_per_s,
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        result, gap = self.solved.training, self.gap
        return {
            "rows": [asdict(row) for row in self.rows],
            "bounds": {row.policy: row.tokens_per_s for row in self.rows if row.is_bound},
            "chosen": asdict(self.chosen),
            "best": asdict(self.best),
            "gap": asdict(gap) | {"closed": gap.closed} if gap else None,
            "solver": self.solved.to_json(),
            "schedules": [solved.to_json() for solved in self.schedules],
            "requests": self.requests,
            "skipped": self.skipped,
            "engine": result.engine,
            "hardware": result.hardware,
            "sizes": result.sizes,
            "provenance": result.provenance,
        }


def compare(
    trace: Trace,
    profile: HardwareProfile,
    *,
    budget: int | None = None,
    memory_bytes: int | None = None,
    engine: str | Engine = "tidesim",
    sizes: ModelSpec | None = None,
    intervals: Sequence[int] | None = INTERVALS,
    formulations: Sequence[str] = ("uniform",),
    promotions: Sequence[str] = (Promotion.BLOCKING,),
    most_promotions: Sequence[int | None] = (None,),
    backend: str = "cbc",
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
) -> Comparison:
    """Solve for schedules, then simulate them beside everything they could be compared with.

    Parameters
    ----------
    intervals : sequence of int or None
        Fixed intervals of tide; None tries each, up to the longest block's steps.
    formulations, promotions : sequence of str
        A schedule is solved for every pair, and fixed intervals are tried under every promotion;
        the paper's closed form knows only blocking promotion.
    most_promotions : sequence of (int or None)
        As `optimize`; the closed form promotes without limit.
    trace, profile, budget, memory_bytes, engine, sizes, backend, time_limit_s, gap
        As `optimize`. Under `memory_bytes` each policy has the largest budget that fits with what
        else it needs there; a schedule's budget is the solver's choice.

    Raises
    ------
    SettingError, CapacityError, FormatError
        As `optimize`. A policy other than tide that does not fit is left out and named.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> sizes = load_model_spec("llada2.0-mini")
    >>> settings = {"budget": 16, "sizes": sizes, "intervals": (2, 4)}
    >>> compared = compare(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> compared.requests, compared.chosen.name, compared.best.policy
    ('heldout', 'tide τ=1', 'q-split')
    >>> [row.policy for row in compared.rows if row.is_bound]
    ['belady', 'full-knowledge', 'all-gpu', 'all-cpu']
    """
    _check_intervals(intervals or ())
    whole = in_memory(trace)
    training, heldout = splits(whole)
    inputs: dict[str, Any] = {
        "budget": budget,
        "memory_bytes": memory_bytes,
        "engine": engine,
        "sizes": sizes,
    }
    schedules = tuple(
        optimize(
            whole,
            profile,
            formulation=formulation,
            promotion=promotion,
            most_promotions=(None,) if formulation == "closed-form" else most_promotions,
            backend=backend,
            time_limit_s=time_limit_s,
            gap=gap,
            **inputs,
        )
        for formulation, promotion in _pairs(formulations, promotions)
    )
    steps = schedules[0].costs.steps
    tried = tuple(range(1, steps + 1)) if intervals is None else intervals
    make_case = partial(prepare, whole, profile, interval=1, popularity_from=training, **inputs)
    runs: list[SimulationResult] = []
    skipped: dict[str, str] = {}
    for name in POLICIES:
        for promotion in promotions if name == "tide" else (None,):
            try:
                case = replace(
                    make_case(policy=name, promotion=promotion), trace=heldout or training
                )
            except CapacityError as error:
                skipped[name] = str(error)
            else:
                runs.extend(_runs(case, tried))
    return _comparison(schedules, runs, requests=_name(whole, heldout), skipped=skipped)


def _pairs(formulations: Sequence[str], promotions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what to solve for.

    Raises
    ------
    SettingError
        There is nothing, or something is named twice.
    """
    for name, values in (("formulations", formulations), ("promotions", promotions)):
        if not values or len(set(values)) < len(values):
            raise SettingError(f"{name} {list(values)} must be one or more, each named once")
    pairs = [
        (formulation, promotion)
        for promotion in promotions
        for formulation in formulations
        if (formulation, promotion) != ("closed-form", Promotion.BACKGROUND)
    ]
    if not pairs:
        raise SettingError(
            "closed-form is the paper's and knows blocking promotion only; add blocking, or another "
            "formulation"
        )
    yield from pairs


def _check_intervals(intervals: Sequence[int]) -> None:
    for number, interval in enumerate(intervals):
        if interval < 1:
            raise SettingError(f"interval is {interval} but must be at least 1 step")
        if interval in intervals[:number]:
            raise SettingError(f"intervals {list(intervals)} name {interval} twice; give each once")


def _name(whole: Trace, heldout: Trace | None) -> str:
    """Name the requests that are compared; `all` where the only ones are held out."""
    if heldout is not None:
        return "heldout"
    return "train" if any(info.split == "train" for info in whole.meta.requests) else "all"


def _runs(case: Case, intervals: Sequence[int]) -> Iterator[SimulationResult]:
    """Run a policy, tide once per interval."""
    if case.policy is not POLICIES["tide"]:
        yield run_fast(case)
        return
    for interval in intervals:
        yield run_fast(replace(case, setup=replace(case.setup, interval=interval)))


def _comparison(
    schedules: tuple[Optimised, ...],
    runs: Sequence[SimulationResult],
    *,
    requests: str,
    skipped: dict[str, str],
) -> Comparison:
    solved = [one.heldout or one.training for one in schedules]
    pairs = zip(solved, schedules, strict=True)
    alike = {_key(run) for run, one in pairs if one.schedule.is_unlimited}
    rows = [_row(run) for run in runs if _key(run) not in alike]
    for number, (result, one) in enumerate(zip(solved, schedules, strict=True)):
        at = sum(row.policy == "tide" and _order(row) <= _order(_row(result)) for row in rows)
        formulation = str(one.solution.formulation)
        rows.insert(
            _first_tide(rows) + at, _row(result, is_chosen=number == 0, formulation=formulation)
        )
    return Comparison(rows=tuple(rows), schedules=schedules, requests=requests, skipped=skipped)


def _key(run: SimulationResult) -> tuple[str, str, int | None, tuple[int, ...]]:
    return run.policy, run.promotion, run.interval, run.budgets


def _order(row: Row) -> tuple[bool, int, int]:
    return row.promotion == Promotion.BACKGROUND, row.interval or 0, row.slots


def _first_tide(rows: Sequence[Row]) -> int:
    return next((n for n, row in enumerate(rows) if row.policy == "tide"), 0)


def _row(run: SimulationResult, *, is_chosen: bool = False, formulation: str = "") -> Row:
    return Row(
        policy=run.policy,
        interval=run.interval,
        promotion=run.promotion,
        slots=sum(run.budgets),
        tokens_per_s=run.tokens_per_s,
        hit_rate=run.hit_rate,
        promotions=run.promotions,
        seconds_per_block=run.seconds_per_block,
        exposed_copy_s=run.exposed_copy_s,
        exposed_cpu_s=run.exposed_cpu_s,
        bottleneck=run.bottleneck,
        is_bound=run.is_bound or run.knows_future,
        is_chosen=is_chosen,
        formulation=formulation,
    )
