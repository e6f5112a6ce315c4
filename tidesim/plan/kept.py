"""Kept: a schedule that stays while the machine changes; its experts are placed once."""

from dataclasses import dataclass, replace
from typing import Self

from tidesim.hardware import HardwareProfile
from tidesim.latency import Latency
from tidesim.simulate import Case, SimulationResult, run
from tidesim.simulate.fast import time_passes
from tidesim.simulate.run import Placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A run under a schedule, which does not look at the machine.

    Attributes
    ----------
    case : Case
    placed : Placed
    result : SimulationResult
        On the machine of `case`.
    """

    case: Case
    placed: Placed
    result: SimulationResult

    @classmethod
    def of(cls, case: Case) -> Self:
        """Place and time a run."""
        placed = Placed.of(case).kept()
        return cls(case=case, placed=placed, result=run(case, method=time_passes, placed=placed))

    def on(self, profile: HardwareProfile) -> float:
        """Return tokens per second on another machine."""
        latency = Latency(profile, self.case.spec, engine=self.case.setup.engine.name)
        case = replace(self.case, latency=latency)
        return run(case, method=time_passes, placed=self.placed).tokens_per_s
