"""Regimes: where interval refresh pays and where static residents do, as link and CPU change.

Placement does not depend on the machine, so every candidate is placed once and timed on all machines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tidesim.compare import INTERVALS
from tidesim.engines import Engine, Promotion
from tidesim.errors import SettingError
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

LINK_KEYS = ("link.h2d_bytes_per_s", "link.d2h_bytes_per_s")
CPU_KEYS = ("cpu.expert_bytes_per_s", "cpu.flops_bf16")
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the base machine's rates
STATIC = "static-frequency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy that is judged on every machine.

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
class Cell:
    """One machine of the grid.

    Attributes
    ----------
    link_bytes_per_s, cpu_bytes_per_s : float
        Host-to-GPU copies of pinned memory; experts' weights read by the CPU.
    tokens_per_s : dict of float
        By the candidates' names.
    best : Candidate
        The fastest; of equals the first.
    """

    link_bytes_per_s: float
    cpu_bytes_per_s: float
    tokens_per_s: dict[str, float]
    best: Candidate

    @property
    def gain(self) -> float:
        """How much faster the best is than static residents; 0 where they are the best."""
        return self.tokens_per_s[self.best.name] / self.tokens_per_s[STATIC] - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where a machine's own rates lie on the map."""

    hardware: str
    link_bytes_per_s: float
    cpu_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class RegimeMap:
    """The best policy and interval over link rate and CPU rate.

    Attributes
    ----------
    cells : tuple of tuple of Cell
        Rows by link rate, columns by CPU rate, both ascending.
    marks : tuple of Mark
    base : SimulationResult
        Static residents on the base machine, whose other numbers all cells share.
    requests : str
        Whose: ``heldout`` or ``all``.
    """

    cells: tuple[tuple[Cell, ...], ...]
    marks: tuple[Mark, ...]
    base: SimulationResult
    requests: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        return {
            "cells": [
                {
                    "link_bytes_per_s": cell.link_bytes_per_s,
                    "cpu_bytes_per_s": cell.cpu_bytes_per_s,
                    "best": cell.best.name,
                    "interval": cell.best.interval,
                    "gain_over_static": cell.gain,
                    "tokens_per_s": cell.tokens_per_s,
                }
                for row in self.cells
                for cell in row
            ],
            "marks": [
                {
                    "hardware": mark.hardware,
                    "link_bytes_per_s": mark.link_bytes_per_s,
                    "cpu_bytes_per_s": mark.cpu_bytes_per_s,
                }
                for mark in self.marks
            ],
            "requests": self.requests,
            "budgets": list(self.base.budgets),
            "engine": self.base.engine,
            "hardware": self.base.hardware,
            "sizes": self.base.sizes,
            "provenance": self.base.provenance,
        }


def regime_map(
    trace: Trace,
    profile: HardwareProfile,
    *,
    budget: int | None = None,
    memory_bytes: int | None = None,
    engine: str | Engine = "tidesim",
    sizes: ModelSpec | None = None,
    intervals: Sequence[int] = INTERVALS,
    factors: Sequence[float] = FACTORS,
    marks: Sequence[HardwareProfile] = (),
) -> RegimeMap:
    """Simulate static residents and interval refresh on machines between slow and fast.

    Parameters
    ----------
    trace : Trace
        Its held-out requests are simulated, all where it marks none; popularity comes from its
        training requests.
    profile : HardwareProfile
        The base machine.
    budget, memory_bytes, engine, sizes
        As `optimize`.
    intervals : sequence of int
        Of tide, blocking and in the background.
    factors : sequence of float
        Of the base machine's link rates, both ways, and of its CPU's rates.
    marks : sequence of HardwareProfile
        Machines to place on the map by their own two rates.

    Raises
    ------
    SettingError, CapacityError, FormatError
        As `prepare`; or a factor is not above 0.
    """
    if not factors or min(factors) <= 0:
        raise SettingError(f"factors are {list(factors)} but must be numbers above 0")
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
    grid, base = sorted(factors), run(static, method=time_passes)
    timer = _Timer(static, profile, list(_placed(make_case, static, intervals)), base.tokens)
    return RegimeMap(
        cells=tuple(tuple(timer.cell(link=link, cpu=cpu) for cpu in grid) for link in grid),
        marks=tuple(_mark(machine) for machine in marks),
        base=base,
        requests="all" if heldout is None else "heldout",
    )


Placed = tuple[Candidate, list[Chunk]]


def _placed(make_case: partial[Case], static: Case, intervals: Sequence[int]) -> Iterator[Placed]:
    """Place every candidate once."""
    yield Candidate(policy=STATIC), list(chunked(static.placed()))
    ways = list(Promotion) if static.setup.engine.overlap else [Promotion.BLOCKING]
    for promotion in ways:
        for interval in intervals:
            case = make_case(policy="tide", interval=interval, promotion=promotion.value)
            one = Candidate(policy="tide", interval=interval, promotion=promotion)
            yield one, list(chunked(case.placed()))


@dataclass(frozen=True, slots=True)
class _Timer:
    """Times every candidate on the base machine with other rates."""

    case: Case
    profile: HardwareProfile
    placed: Sequence[Placed]
    tokens: int

    def cell(self, *, link: float, cpu: float) -> Cell:
        """Scale the rates of the link and of the CPU."""
        value, setup, spec = self.profile.value, self.case.setup, self.case.spec
        scaled = {key: value(key) * link for key in LINK_KEYS}
        scaled |= {key: value(key) * cpu for key in CPU_KEYS}
        latency = Latency(self.profile.with_overrides(scaled), spec, engine=setup.engine.name)
        prices = Prices(latency, setup.engine, spec)
        speeds = {
            one.name: self.tokens / time_passes(chunks, prices, promotion=one.promotion).seconds
            for one, chunks in self.placed
        }
        best = max((one for one, _ in self.placed), key=lambda one: speeds[one.name])
        return Cell(
            link_bytes_per_s=scaled[LINK_KEYS[0]],
            cpu_bytes_per_s=scaled[CPU_KEYS[0]],
            tokens_per_s=speeds,
            best=best,
        )


def _mark(profile: HardwareProfile) -> Mark:
    return Mark(
        hardware=profile.name,
        link_bytes_per_s=profile.value(LINK_KEYS[0]),
        cpu_bytes_per_s=profile.value(CPU_KEYS[0]),
    )
