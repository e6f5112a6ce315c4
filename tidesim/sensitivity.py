"""Sensitivity: which inputs move the answer, each changed by a share either way, one at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tidesim.contest import INTERVALS, Contest, Standing
from tidesim.engines import Engine
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.latency import needed_keys
from tidesim.model_spec import ModelSpec
from tidesim.simulate.result import SimulationResult
from tidesim.trace.passes import Trace
from tidesim.trace.synth.parameters import Parameters
from tidesim.trace.synth.vary import variables, varied

BY = 0.2
CLEARLY = 0.01  # candidates nearer to each other are as good


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A number that can be given another value.

    Attributes
    ----------
    name : str
        Key of the profile, or number of a synthetic trace's process.
    kind : str
        How it is known: measured, datasheet or estimated; synthetic for a trace's.
    value : float
    at : callable
        How fast every candidate is where it has another value.
    tried : callable
        What is tried for a value, within the number's range.
    """

    name: str
    kind: str
    value: float
    at: Callable[[float], Standing]
    tried: Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swing:
    """What one input does to the answer.

    Attributes
    ----------
    name, kind, value
        As `Input`.
    low, high : float
        The two values tried, within the number's range.
    at_low, at_high, base : Standing
        Of all candidates there, and with the value as given.
    """

    name: str
    kind: str
    value: float
    low: float
    high: float
    at_low: Standing
    at_high: Standing
    base: Standing

    @property
    def changes(self) -> tuple[float, float]:
        """Relative change of the base's best candidate at the low and the high value."""
        name = self.base.best.name
        as_given = self.base.tokens_per_s[name]
        low, high = (at.tokens_per_s[name] / as_given - 1 for at in (self.at_low, self.at_high))
        return low, high

    @property
    def width(self) -> float:
        """Largest change of the two."""
        return max(abs(change) for change in self.changes)

    @property
    def flips(self) -> tuple[str, ...]:
        """What is clearly faster than the base's best candidate at one of the two values."""
        mine = self.base.best.name
        clear = (
            at.best.name
            for at in (self.at_low, self.at_high)
            if at.tokens_per_s[at.best.name] > at.tokens_per_s[mine] * (1 + CLEARLY)
        )
        return tuple(dict.fromkeys(clear))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Every input's swing, widest first.

    Attributes
    ----------
    swings : tuple of Swing
    base : Standing
    run : SimulationResult
        Static residents on the machine as it is.
    by : float
        Share by which inputs were changed.
    requests : str
    """

    swings: tuple[Swing, ...]
    base: Standing
    run: SimulationResult
    by: float
    requests: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        return {
            "best": self.base.best.name,
            "tokens_per_s": self.base.tokens_per_s[self.base.best.name],
            "by": self.by,
            "swings": [
                {
                    "name": swing.name,
                    "kind": swing.kind,
                    "value": swing.value,
                    "low": swing.low,
                    "high": swing.high,
                    "change_at_low": swing.changes[0],
                    "change_at_high": swing.changes[1],
                    "flips": list(swing.flips),
                }
                for swing in self.swings
            ],
            "requests": self.requests,
            "budgets": list(self.run.budgets),
            "engine": self.run.engine,
            "hardware": self.run.hardware,
            "sizes": self.run.sizes,
            "provenance": self.run.provenance,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Remake:
    """A number of a synthetic trace's process.

    Attributes
    ----------
    name : str
    value : float
    trace_at : callable
        Makes the trace at another value.
    tried : callable
        What is tried for a value, within the number's range.
    """

    name: str
    value: float
    trace_at: Callable[[float], Trace]
    tried: Callable[[float], float] = float


def remakes_of(parameters: Parameters, draw: Callable[[Parameters], Trace]) -> list[Remake]:
    """Return the numbers of a synthetic process that are not 0.

    Parameters
    ----------
    parameters : Parameters
    draw : callable
        Draws a trace from parameters.
    """

    def remade(name: str, value: float) -> Trace:
        return draw(varied(parameters, name, value))

    def tried(name: str, value: float) -> float:
        return variables(varied(parameters, name, value))[name]

    return [
        Remake(name=name, value=value, trace_at=partial(remade, name), tried=partial(tried, name))
        for name, value in variables(parameters).items()
        if value > 0
    ]


def sensitivity(
    trace: Trace,
    profile: HardwareProfile,
    *,
    budget: int | None = None,
    memory_bytes: int | None = None,
    engine: str | Engine = "tidesim",
    sizes: ModelSpec | None = None,
    intervals: Sequence[int] = INTERVALS,
    remakes: Sequence[Remake] = (),
    by: float = BY,
) -> Sensitivity:
    """Change every number that a run needs, one at a time, and see what the answer does.

    Parameters
    ----------
    trace, profile, budget, memory_bytes, engine, sizes, intervals
        As `Contest.of`.
    remakes : sequence of Remake
        Numbers of a synthetic trace's process, to be changed as well.
    by : float
        Share, above 0 and below 1.

    Raises
    ------
    SettingError, CapacityError, FormatError
        As `Contest.of`; or the share is out of its range.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> settings = {"budget": 16, "sizes": load_model_spec("llada2.0-mini"), "intervals": (2,)}
    >>> found = sensitivity(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> found.base.best.name, found.swings[0].name
    ('tide in the background τ=2', 'cpu.expert_bytes_per_s')
    """
    if not 0 < by < 1:
        raise SettingError(f"by is {by} but must be above 0 and below 1; 0.2 is 20 %")
    contest_of = partial(
        Contest.of,
        profile=profile,
        budget=budget,
        memory_bytes=memory_bytes,
        engine=engine,
        sizes=sizes,
        intervals=intervals,
    )
    contest = contest_of(trace)
    base = contest.on(profile)
    inputs = [*_numbers(contest, profile)]
    inputs += [
        Input(
            name=each.name,
            kind="synthetic",
            value=each.value,
            at=partial(_remade, contest_of, each.trace_at, profile),
            tried=each.tried,
        )
        for each in remakes
    ]
    swings = [_swing(one, base, by=by) for one in inputs]
    return Sensitivity(
        swings=tuple(sorted(swings, key=lambda swing: -swing.width)),
        base=base,
        run=contest.base,
        by=by,
        requests=contest.requests,
    )


def _numbers(contest: Contest, profile: HardwareProfile) -> Iterator[Input]:
    """Yield the numbers of a machine that a run with this engine needs."""
    engine = contest.case.setup.engine
    for key in needed_keys(engine.name, pinned=engine.pinned):
        yield Input(
            name=key,
            kind=profile.kind_of(key),
            value=profile.value(key),
            at=partial(_overridden, contest, profile, key),
            tried=_share if key.endswith("_factor") else float,
        )


def _share(value: float) -> float:
    return min(value, 1.0)


def _overridden(contest: Contest, profile: HardwareProfile, key: str, value: float) -> Standing:
    return contest.on(profile.with_overrides({key: value}))


def _remade(
    contest_of: Callable[[Trace], Contest],
    make: Callable[[float], Trace],
    profile: HardwareProfile,
    value: float,
) -> Standing:
    return contest_of(make(value)).on(profile)


def _swing(one: Input, base: Standing, *, by: float) -> Swing:
    low, high = one.tried(one.value * (1 - by)), one.tried(one.value * (1 + by))
    return Swing(
        name=one.name,
        kind=one.kind,
        value=one.value,
        low=low,
        high=high,
        at_low=one.at(low),
        at_high=one.at(high),
        base=base,
    )
