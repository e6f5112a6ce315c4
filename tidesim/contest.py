"""Contest: static residents and interval refresh, placed once and timed on any machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from tidesim.engines import Engine, Promotion
from tidesim.hardware import HardwareProfile
from tidesim.latency import Latency
from tidesim.model_spec import ModelSpec
from tidesim.optimize import in_memory, splits
from tidesim.simulate import Case, prepare
from tidesim.simulate.chunks import Chunk, chunked
from tidesim.simulate.fast import time_passes
from tidesim.simulate.prices import Prices
from tidesim.simulate.result import SimulationResult
from tidesim.simulate.run import run
from tidesim.trace.passes import Trace

INTERVALS = (1, 2, 4, 8, 16, 32)
STATIC = "static-frequency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy that takes part.

    Attributes
    ----------
    policy : str
    interval : int or None
        Steps between refreshes; None where the residents are static.
    promotion : Promotion
    """

    policy: str
    interval: int | None = None
    promotion: Promotion = Promotion.BLOCKING

    @property
    def family(self) -> str:
        """What it is called without its interval."""
        background = self.promotion is Promotion.BACKGROUND
        return f"{self.policy} in the background" if background else self.policy

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.family} τ={self.interval}" if self.interval else self.family


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How fast every candidate is on one machine.

    Attributes
    ----------
    tokens_per_s : dict of float
        By the candidates' names.
    best : Candidate
        The fastest; of equals the first.
    """

    tokens_per_s: dict[str, float]
    best: Candidate

    @property
    def gain(self) -> float:
        """How much faster the best is than static residents; 0 where they are the best."""
        return self.tokens_per_s[self.best.name] / self.tokens_per_s[STATIC] - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Candidates with their placement, which no machine changes.

    Attributes
    ----------
    case : Case
        Static residents on the base machine.
    base : SimulationResult
        Of `case`.
    placed : tuple of (Candidate, list of Chunk)
    requests : str
        Whose: ``heldout`` or ``all``.
    """

    case: Case
    base: SimulationResult
    placed: tuple[tuple[Candidate, list[Chunk]], ...]
    requests: str

    @classmethod
    def of(
        cls,
        trace: Trace,
        profile: HardwareProfile,
        *,
        budget: int | None = None,
        memory_bytes: int | None = None,
        engine: str | Engine = "tidesim",
        sizes: ModelSpec | None = None,
        intervals: Sequence[int] = INTERVALS,
    ) -> Self:
        """Place static residents, and tide at some intervals, blocking and in the background.

        Parameters
        ----------
        trace : Trace
            Its held-out requests are placed, all where it marks none; popularity comes from its
            training requests.
        profile, budget, memory_bytes, engine, sizes
            As `optimize`.
        intervals : sequence of int

        Raises
        ------
        SettingError, CapacityError, FormatError
            As `prepare`.
        """
        whole = in_memory(trace)
        training, heldout = splits(whole)
        make_case = partial(
            prepare,
            heldout or whole,
            profile,
            budget=budget,
            memory_bytes=memory_bytes,
            engine=engine,
            sizes=sizes,
            popularity_from=training,
        )
        static = make_case(policy=STATIC)
        return cls(
            case=static,
            base=run(static, method=time_passes),
            placed=tuple(_placed(make_case, static, intervals)),
            requests="all" if heldout is None else "heldout",
        )

    def on(self, profile: HardwareProfile) -> Standing:
        """Time every candidate on a machine."""
        setup, spec = self.case.setup, self.case.spec
        prices = Prices(Latency(profile, spec, engine=setup.engine.name), setup.engine, spec)
        speeds = {
            one.name: self.base.tokens
            / time_passes(chunks, prices, promotion=one.promotion).seconds
            for one, chunks in self.placed
        }
        best = max((one for one, _ in self.placed), key=lambda one: speeds[one.name])
        return Standing(tokens_per_s=speeds, best=best)


def _placed(
    make_case: partial[Case], static: Case, intervals: Sequence[int]
) -> Iterator[tuple[Candidate, list[Chunk]]]:
    yield Candidate(policy=STATIC), list(chunked(static.placed()))
    ways = list(Promotion) if static.setup.engine.overlap else [Promotion.BLOCKING]
    for promotion in ways:
        for interval in intervals:
            case = make_case(policy="tide", interval=interval, promotion=promotion.value)
            one = Candidate(policy="tide", interval=interval, promotion=promotion)
            yield one, list(chunked(case.placed()))
