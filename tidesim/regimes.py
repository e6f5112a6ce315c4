"""Regimes: where interval refresh pays and where static residents do, as link and CPU change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidesim.contest import INTERVALS, Contest, Standing
from tidesim.engines import Engine
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.model_spec import ModelSpec
from tidesim.simulate.result import SimulationResult
from tidesim.trace.passes import Trace

LINK_KEYS = ("link.h2d_bytes_per_s", "link.d2h_bytes_per_s")
CPU_KEYS = ("cpu.expert_bytes_per_s", "cpu.flops_bf16")
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the base machine's rates
_NO_LINK_BYTES_PER_S = 1e15  # of GPU and CPU with one memory; see hwprofiles/README.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One machine of the grid.

    Attributes
    ----------
    link_bytes_per_s, cpu_bytes_per_s : float
        Host-to-GPU copies of pinned memory; experts' weights read by the CPU.
    standing : Standing
    """

    link_bytes_per_s: float
    cpu_bytes_per_s: float
    standing: Standing


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
                    "best": cell.standing.best.name,
                    "interval": cell.standing.best.interval,
                    "gain_over_static": cell.standing.gain,
                    "tokens_per_s": cell.standing.tokens_per_s,
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
    trace, budget, memory_bytes, engine, sizes, intervals
        As `Contest.of`.
    profile : HardwareProfile
        The base machine.
    factors : sequence of float
        Of the base machine's link rates, both ways, and of its CPU's rates.
    marks : sequence of HardwareProfile
        Machines to place on the map by their own two rates.

    Raises
    ------
    SettingError, CapacityError, FormatError
        As `prepare`; or a factor is not above 0.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> sizes = load_model_spec("llada2.0-mini")
    >>> settings = {"budget": 16, "sizes": sizes, "intervals": (2,), "factors": (0.1, 1)}
    >>> found = regime_map(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> [cell.standing.best.name for row in found.cells for cell in row]
    ['tide τ=2', 'static-frequency', 'tide τ=2', 'tide in the background τ=2']
    """
    if not factors or min(factors) <= 0:
        raise SettingError(f"factors are {list(factors)} but must be numbers above 0")
    contest = Contest.of(
        trace,
        profile,
        budget=budget,
        memory_bytes=memory_bytes,
        engine=engine,
        sizes=sizes,
        intervals=intervals,
    )
    grid = sorted(factors)
    return RegimeMap(
        cells=tuple(
            tuple(_cell(contest, profile, link=link, cpu=cpu) for cpu in grid) for link in grid
        ),
        marks=tuple(_mark(machine) for machine in marks),
        base=contest.base,
        requests=contest.requests,
    )


def _cell(contest: Contest, profile: HardwareProfile, *, link: float, cpu: float) -> Cell:
    """Scale the rates of the link and of the CPU."""
    scaled = {key: profile.value(key) * link for key in LINK_KEYS}
    scaled |= {key: profile.value(key) * cpu for key in CPU_KEYS}
    return Cell(
        link_bytes_per_s=scaled[LINK_KEYS[0]],
        cpu_bytes_per_s=scaled[CPU_KEYS[0]],
        standing=contest.on(profile.with_overrides(scaled)),
    )


def has_link(profile: HardwareProfile) -> bool:
    """Whether a machine has a place on a map: both rates, and a link that takes time."""
    if profile.missing((LINK_KEYS[0], CPU_KEYS[0])):
        return False
    return profile.value(LINK_KEYS[0]) < _NO_LINK_BYTES_PER_S


def _mark(profile: HardwareProfile) -> Mark:
    return Mark(
        hardware=profile.name,
        link_bytes_per_s=profile.value(LINK_KEYS[0]),
        cpu_bytes_per_s=profile.value(CPU_KEYS[0]),
    )
