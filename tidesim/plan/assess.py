"""Assess: one machine with one memory budget: its best schedule, how sure that is, what to upgrade."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tidesim.engines import get_engine
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.latency import needed_keys
from tidesim.model_spec import ModelSpec
from tidesim.optimize import Optimised, optimize
from tidesim.optimize.job import FORMULATIONS
from tidesim.optimize.search import case_of
from tidesim.plan.band import RUN_ERROR, Band, band_of
from tidesim.plan.kept import Kept
from tidesim.plan.upgrades import PARTS, Part, Upgrade
from tidesim.schedule import Schedule
from tidesim.simulate import Case, SimulationResult
from tidesim.trace.passes import Kind, Trace

CLOSED_FORM = "closed-form"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A machine, and how much of its GPU memory to use.

    Attributes
    ----------
    profile : HardwareProfile
    memory_bytes : int
    """

    profile: HardwareProfile
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How schedules are found and judged, alike for every machine.

    Attributes
    ----------
    sizes : ModelSpec or None
        As `optimize`.
    engine, formulation : str
        As `optimize`.
    gap, time_limit_s : float
        At which relative gap, and after how long, a solution is good enough; the band around a
        prediction is far wider.
    promotions : tuple of str
        Each is solved for, and the one that is faster on the training requests taken; by default
        those that the engine and the formulation have.
    run_error : float
        Relative error of the simulator itself; see `band`.
    upgrades : bool
        Whether to solve for every upgrade as well.
    trace_name : str
        For the schedule file.

    Raises
    ------
    SettingError
        The run error is out of its range; no such engine or formulation.
    """

    sizes: ModelSpec | None = None
    engine: str = "tidesim"
    formulation: str = "layered"
    gap: float = 0.02
    time_limit_s: float = 20.0
    promotions: tuple[str, ...] = ()
    run_error: float = RUN_ERROR
    upgrades: bool = True
    trace_name: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.run_error < 1:
            raise SettingError(f"run error is {self.run_error} but must be a share below 1")
        get_engine(self.engine)
        if self.formulation not in FORMULATIONS:
            raise SettingError(
                f"formulation {self.formulation!r} is not known; use one of: "
                f"{', '.join(FORMULATIONS)}"
            )

    def ways(self) -> tuple[str, ...]:
        """Return the promotions to solve for."""
        engine = get_engine(self.engine)
        hides = engine.overlap and engine.pinned and not engine.write_back
        both = hides and self.formulation != CLOSED_FORM
        return self.promotions or (("blocking", "background") if both else ("blocking",))

    def missing(self, profile: HardwareProfile) -> tuple[str, ...]:
        """List the numbers that a machine's profile lacks for a run and for what fits."""
        engine = get_engine(self.engine)
        needed = needed_keys(engine.name, pinned=engine.pinned)
        return tuple(profile.missing(("gpu.memory_bytes", "cpu.memory_bytes", *needed)))


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What one machine does with one memory budget.

    Attributes
    ----------
    site : Site
    schedule : Schedule
        The best of those solved for.
    result : SimulationResult
        It on the held-out requests, on all where the trace marks none.
    block_s : (float, float)
        Seconds per block, prefills apart, at the 50th and 95th percentile.
    band : Band
        Of the tokens per second.
    upgrades : tuple of Upgrade
        The most helpful first.
    host_bytes : int
        Memory of the host that the experts take.
    """

    site: Site
    schedule: Schedule
    result: SimulationResult
    block_s: tuple[float, float]
    band: Band
    upgrades: tuple[Upgrade, ...]
    host_bytes: int


def assess(trace: Trace, site: Site, method: Method) -> Assessment:
    """Solve for the schedule of a machine, simulate it, and say how sure that is.

    Parameters
    ----------
    trace : Trace
        Schedules come from its training requests, results from its held-out ones.
    site : Site
    method : Method

    Raises
    ------
    SettingError, CapacityError, FormatError
        As `optimize`.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> method = Method(sizes=load_model_spec("llada2.0-mini"), upgrades=False)
    >>> site = Site(profile=load_profile("a100-40gb-pcie4-xeon48"), memory_bytes=4_000_000_000)
    >>> found = assess(trace, site, method)
    >>> found.schedule.budgets, found.band.low < found.result.tokens_per_s < found.band.high
    ((38, 38, 38, 38), True)
    """
    solved = [_solved(trace, site, method, promotion=name) for name in method.ways()]
    best = max(solved, key=lambda one: one.training.tokens_per_s)
    kept = Kept.of(_judged(best))
    p50, p95 = np.percentile(block_seconds(kept.result, kept.case), (50, 95)).tolist()
    upgrades = _upgrades(trace, kept, site, method) if method.upgrades else ()
    return Assessment(
        site=site,
        schedule=best.schedule,
        result=kept.result,
        block_s=(p50, p95),
        band=band_of(kept, run_error=method.run_error),
        upgrades=tuple(sorted(upgrades, key=lambda upgrade: -upgrade.gain)),
        host_bytes=kept.case.spec.all_experts_bytes,
    )


def block_seconds(result: SimulationResult, case: Case) -> list[float]:
    """Return the seconds of every block of a run, denoise and commit passes together."""
    seconds: dict[tuple[int, int], float] = {}
    for pass_, pass_s in zip(case.passes(), result.pass_s.tolist(), strict=True):
        if pass_.kind is not Kind.PREFILL:
            block = pass_.request, pass_.block
            seconds[block] = seconds.get(block, 0.0) + pass_s
    return list(seconds.values())


def _solved(trace: Trace, site: Site, method: Method, *, promotion: str) -> Optimised:
    return optimize(
        trace,
        site.profile,
        engine=method.engine,
        memory_bytes=site.memory_bytes,
        sizes=method.sizes,
        formulation=method.formulation,
        gap=method.gap,
        time_limit_s=method.time_limit_s,
        promotion=promotion,
        trace_name=method.trace_name,
    )


def _judged(solved: Optimised) -> Case:
    """Return a run of the requests that results come from, under a solved schedule."""
    job = solved.job
    return replace(case_of(job, solved.solution), trace=job.heldout or job.training)


def _upgrades(trace: Trace, kept: Kept, site: Site, method: Method) -> Iterator[Upgrade]:
    """Yield what every upgrade gives; memory is none where some of the machine's is left unused."""
    as_is = kept.result
    whole = int(site.profile.value("gpu.memory_bytes"))
    for part in PARTS:
        if part.memory > 1 and site.memory_bytes < whole:
            continue
        better = upgraded(site, part)
        solved = _solved(trace, better, method, promotion=as_is.promotion)
        anew = solved.heldout or solved.training
        speed = max(anew.tokens_per_s, kept.on(better.profile))
        yield Upgrade(name=part.name, tokens_per_s=speed, gain=speed / as_is.tokens_per_s - 1)


def upgraded(site: Site, part: Part) -> Site:
    """Return a machine with one part twice as good."""
    return Site(
        profile=site.profile.with_overrides(part.replaced(site.profile)),
        memory_bytes=int(site.memory_bytes * part.memory),
    )
