"""Harness: a set of configurations simulated, run for real, and compared.

Repeats are interleaved: every configuration once, then every one again, so that a machine that
drifts while it measures does so for all of them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from tidesim.calibrate import calibrate
from tidesim.configurations import Configuration
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import HardwareProfile, count_kinds, what_if_label
from tidesim.latency import Latency
from tidesim.measured import MeasuredRun
from tidesim.model_spec import ModelSpec
from tidesim.policies.scheduled import Scheduled
from tidesim.simulate import Case, prepare, run
from tidesim.simulate.case import sizes_label
from tidesim.simulate.fast import run_fast
from tidesim.trace.passes import Trace
from tidesim.validate import Report, Tolerances, Trial, validate

REPEATS = 5
SCORED = 13
PASSES = 150  # enough for percentiles, few enough for minutes

Stage = Callable[[str], None]


class Replay(Protocol):
    """Way to run a case for real, once."""

    def __call__(self, case: Case, *, keep_records: bool) -> MeasuredRun:
        """Run every pass of the case; one repeat."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a validation found, and the profile that the predictions are made with.

    Attributes
    ----------
    report : Report
    profile : HardwareProfile
        The calibrated one, where there was a calibration.
    skipped : dict of str
        Configurations that do not fit the machine's memory, with the reason.
    not_run : tuple of str
        Configurations that were left out because others are predicted further apart.
    """

    report: Report
    profile: HardwareProfile
    skipped: dict[str, str]
    not_run: tuple[str, ...] = ()


def name_of(case: Case, label: str = "") -> str:
    """Name a case, such as ``tide τ=4 B=16 blocking``; B is the mean where layers differ."""
    policy = case.policy(case.known)
    budgets = policy.budgets(case.setup)
    slots = f"B={budgets.mean():g}{' by layer' * (len(set(budgets.tolist())) > 1)}"
    interval = f"τ={policy.interval}" if policy.interval and case.setup.interval else ""
    engine = "" if case.setup.engine.name == "tidesim" else case.setup.engine.name
    parts = (label or policy.name, interval, slots, str(policy.promotion), engine)
    return " ".join(part for part in parts if part)


def some_requests(trace: Trace, *, passes: int = PASSES) -> Trace:
    """Return the first requests of a trace that together hold at least so many passes."""
    chosen: list[int] = []
    for number, pass_ in enumerate(trace):
        if pass_.request not in chosen:
            if number >= passes:
                break
            chosen.append(pass_.request)
    return trace.only(chosen)


def run_validation(
    trace: Trace,
    profile: HardwareProfile,
    *,
    replay: Replay,
    configurations: Sequence[Configuration],
    at_most: int | None = None,
    calibration: Sequence[Configuration] = (),
    sizes: ModelSpec | None = None,
    popularity_from: Trace | None = None,
    repeats: int = REPEATS,
    tolerances: Tolerances | None = None,
    stage: Stage = lambda _: None,
) -> Outcome:
    """Run configurations for real, calibrate if asked to, predict, and compare.

    Policies that weigh costs decide by `profile`, before and after calibration, so that what a
    prediction places is what was run.

    Parameters
    ----------
    trace : Trace
        The requests to run.
    profile : HardwareProfile
        Of the machine that `replay` runs on.
    replay : callable
        See `Replay`; `replaying` gives the real one.
    configurations : sequence of Configuration
        To score; of two that come to the same run, the first counts.
    at_most : int or None
        Score no more than this: the first, and those whose seconds `profile` predicts to be
        furthest apart, because ranks of runs that take the same say nothing.
    calibration : sequence of Configuration
        To fit per-call costs to; none leaves the profile as it is. Those that come to the same run
        as a scored one are left out.
    sizes, popularity_from
        As `prepare`.
    repeats : int
    tolerances : Tolerances, optional
    stage : callable
        Told before each real run what it is.

    Raises
    ------
    SettingError
        No repeats, nothing to score or to calibrate with, or a setting out of range. A
        configuration that does not fit the machine's memory is left out and named.
    AssertionError
        Two repeats of a configuration moved different things.
    """
    if repeats < 1:
        raise SettingError(f"repeats is {repeats} but must be at least 1")
    if at_most is not None and at_most < 1:
        raise SettingError(f"configurations to score are {at_most} but must be at least 1")
    make = partial(prepare, trace, profile, sizes=sizes, popularity_from=popularity_from)
    cases, skipped = _cases(configurations, make)
    if not cases:
        raise SettingError("no configuration to score fits; give one with a smaller budget")
    candidates, cases = cases, spread(cases, at_most)
    others, others_skipped = _cases(calibration, make)
    fitted_on = {name: case for name, case in others.items() if _is_new(case, cases)}
    if calibration and not fitted_on:
        raise SettingError(
            "no configuration is left to calibrate with: each is also scored or does not fit; "
            "choose others, or leave calibration out"
        )
    runs = measure(cases | fitted_on, replay, repeats=repeats, stage=stage)
    stage("predict")
    predicted_by, calibrated = profile, {}
    if fitted_on:
        found = calibrate(profile, {name: (case, runs[name]) for name, case in fitted_on.items()})
        predicted_by, calibrated = found.profile, found.values
    trials = [
        Trial(
            name=name,
            predicted=run(timed_by(case, predicted_by), keep_records=True),
            measured=runs[name],
            calibration=name in fitted_on,
        )
        for name, case in (cases | fitted_on).items()
    ]
    report = validate(trials, tolerances=tolerances, calibrated=calibrated)
    return Outcome(
        report=report,
        profile=predicted_by,
        skipped=skipped | others_skipped,
        not_run=tuple(name for name in candidates if name not in cases),
    )


def spread(cases: dict[str, Case], at_most: int | None) -> dict[str, Case]:
    """Return the first case and those whose predicted seconds are furthest apart, in their order."""
    if at_most is None or len(cases) <= at_most:
        return cases
    at = {name: math.log(run_fast(case).seconds) for name, case in cases.items()}
    chosen = [next(iter(cases))]
    while len(chosen) < at_most:
        left = [name for name in cases if name not in chosen]
        chosen.append(max(left, key=lambda name: min(abs(at[name] - at[one]) for one in chosen)))
    return {name: case for name, case in cases.items() if name in chosen}


def measure(
    cases: dict[str, Case], replay: Replay, *, repeats: int, stage: Stage
) -> dict[str, MeasuredRun]:
    """Run every case, then every case again; records are kept in the last round.

    One run before them, which does not count, warms caches, memory and clocks.
    """
    rounds: dict[str, list[MeasuredRun]] = {name: [] for name in cases}
    stage("warm up")
    replay(next(iter(cases.values())), keep_records=False)
    for number in range(repeats):
        for name, case in cases.items():
            stage(f"run {number + 1} of {repeats}: {name}")
            rounds[name].append(replay(case, keep_records=number == repeats - 1))
    return {name: stacked(name, runs) for name, runs in rounds.items()}


def stacked(name: str, runs: Sequence[MeasuredRun]) -> MeasuredRun:
    """Return repeats of a run as one.

    Raises
    ------
    AssertionError
        Two of them moved or served different things.
    """
    first = runs[0]
    for number, other in enumerate(runs[1:], start=2):
        for what in ("keys", "counters"):
            if getattr(other, what) != getattr(first, what):
                raise AssertionError(
                    f"{name}: {what} of repeat 1 are {getattr(first, what)} but those of repeat "
                    f"{number} are {getattr(other, what)}"
                )
    return replace(
        first,
        pass_s=np.concatenate([one.pass_s for one in runs]),
        records=runs[-1].records,
    )


def timed_by(case: Case, profile: HardwareProfile) -> Case:
    """Return a case timed by another profile; its policy decides as before."""
    engine = case.setup.engine.name
    return replace(
        case,
        latency=Latency(profile, case.spec, engine=engine),
        hardware=what_if_label(profile),
        hardware_kinds=count_kinds(profile),
        profile_sha256=profile.sha256,
    )


def _cases(
    configurations: Iterable[Configuration], make: Callable[..., Case]
) -> tuple[dict[str, Case], dict[str, str]]:
    """Build the cases by name, each run once; and the reasons of those that do not fit."""
    cases: dict[str, Case] = {}
    skipped: dict[str, str] = {}
    for one in configurations:
        try:
            case = make(
                policy=one.policy,
                budget=one.budget,
                interval=one.interval,
                promotion=one.promotion,
                engine=one.engine,
            )
        except CapacityError as error:
            skipped[f"{one.label or one.policy} B={one.budget}"] = str(error)
        else:
            if _is_new(case, cases):
                cases[name_of(case, one.label)] = case
    return cases, skipped


def _is_new(case: Case, cases: dict[str, Case]) -> bool:
    return _identity(case) not in map(_identity, cases.values())


def _identity(case: Case) -> tuple[object, ...]:
    """Return what two cases share that place alike: a schedule that is tide is that policy."""
    policy = case.policy(case.known)
    budgets = tuple(policy.budgets(case.setup).tolist())
    own = isinstance(policy, Scheduled) and not policy.is_tide
    by = case.policy if own else policy.interval
    first = policy.initial(case.setup).tobytes()
    return (policy.name, by, budgets, first, policy.promotion, case.setup.engine.name)


@contextmanager
def replaying(
    spec: ModelSpec,
    backend: str,
    *,
    cpu_workers: int | None = None,
    link_bytes_per_s: float | None = None,
) -> Iterator[Replay]:
    """Give what runs cases for real: real copies and products, random weights of a model's sizes.

    Parameters
    ----------
    spec : ModelSpec
        The sizes of every case.
    backend : str
        ``cpu`` or ``cuda``.
    cpu_workers, link_bytes_per_s
        As `tidesim.runtime.backends.make_backend`.

    Raises
    ------
    SettingError, CapacityError
        An unknown backend or one that is not here; a model that does not fit.
    """
    from tidesim.runtime.backends import make_backend  # noqa: PLC0415 (imports torch)
    from tidesim.runtime.replay import About, Replayer  # noqa: PLC0415 (imports torch)

    with make_backend(
        backend, cpu_workers=cpu_workers, link_bytes_per_s=link_bytes_per_s
    ) as machine:
        replayer = Replayer(spec, machine)

        def replay(case: Case, *, keep_records: bool) -> MeasuredRun:
            about = About(
                sizes=sizes_label(case.trace.meta.model, case.spec),
                provenance=case.trace.meta.provenance,
                trace_sha256=case.trace.sha256,
            )
            return replayer.run(
                case.passes(), case.policy, case.known, keep_records=keep_records, about=about
            )

        yield replay
