"""Rows: one machine with one memory budget, priced and held against the goal."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from tidesim.errors import SettingError
from tidesim.plan.assess import Assessment
from tidesim.plan.prices import Assumptions, Costs, costs_of
from tidesim.plan.upgrades import Upgrade

WORTH_AN_UPGRADE = 0.02  # solutions may be as far from the best


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the machine is for.

    Attributes
    ----------
    tokens_per_s : float or None
        Least speed, of one request at a time.
    most_usd : float or None
        Highest price to buy.

    Raises
    ------
    SettingError
        A number is out of its range.
    """

    tokens_per_s: float | None = None
    most_usd: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("tokens per second", self.tokens_per_s), ("price", self.most_usd)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingError(f"the {name} asked for is {value} but must be above 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One machine with one memory budget.

    Attributes
    ----------
    found : Assessment
    costs : Costs
    meets : str or None
        How sure the speed asked for is: ``surely`` where the low end of the band reaches it,
        ``probably`` where the prediction does, ``perhaps`` where the high end does, else ``no``.
        None where no speed is asked for.
    affordable : bool
        Not dearer to buy than asked for; without a known price only where none is asked for.
    """

    found: Assessment
    costs: Costs
    meets: str | None
    affordable: bool

    @property
    def hardware(self) -> str:
        """Name of the machine."""
        return self.found.site.profile.name

    @property
    def memory_gb(self) -> float:
        """GPU memory to use, in GB."""
        return self.found.site.memory_bytes / 1e9

    @property
    def what_if(self) -> str | None:
        """The machine and every number of it that an override replaced; None where none was."""
        label = self.found.result.hardware
        return None if label == self.hardware else label

    @property
    def name(self) -> str:
        """The machine, with its memory where that is not all of it."""
        profile = self.found.site.profile
        whole = self.found.site.memory_bytes == int(profile.value("gpu.memory_bytes"))
        return self.hardware if whole else f"{self.hardware}, {self.memory_gb:g} GB"

    @property
    def tokens_per_s(self) -> float:
        """Predicted tokens per second, one request at a time."""
        return self.found.result.tokens_per_s

    @property
    def best_upgrade(self) -> Upgrade | None:
        """The single upgrade that helps most; None where none is clearly faster or none was tried."""
        best = next(iter(self.found.upgrades), None)
        return best if best is not None and best.gain >= WORTH_AN_UPGRADE else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        result, band, schedule = self.found.result, self.found.band, self.found.schedule
        p50, p95 = self.found.block_s
        best = self.best_upgrade
        return {
            "hardware": self.hardware,
            "what_if": self.what_if,
            "unified_memory": self.found.site.profile.machine.unified_memory,
            "memory_gb": self.memory_gb,
            "tokens_per_s": self.tokens_per_s,
            "low": band.low,
            "high": band.high,
            "measured": band.measured,
            "meets": self.meets,
            "affordable": self.affordable,
            "way": self.costs.way,
            "block_p50_s": p50,
            "block_p95_s": p95,
            "bottleneck": result.bottleneck,
            "waited": result.waited,
            "promotion": result.promotion,
            "interval": schedule.interval,
            "solver": schedule.solver.model_dump(),
            "refreshes": result.refreshes,
            "budgets": list(result.budgets),
            "hit_rate": result.hit_rate,
            "memory": result.memory.to_json(),
            "host_gb": self.found.host_bytes / 1e9,
            **self.costs.to_json(),
            "upgrades": [
                {"name": one.name, "tokens_per_s": one.tokens_per_s, "gain": one.gain}
                for one in self.found.upgrades
            ],
            "best_upgrade": None if best is None else best.name,
            "profile_sha256": result.profile_sha256,
        }


class NotAssessable(NamedTuple):
    """A machine whose profile lacks numbers that a run needs.

    Attributes
    ----------
    hardware : str
    missing : tuple of str
        Their keys.
    """

    hardware: str
    missing: tuple[str, ...]


class LeftOut(NamedTuple):
    """A machine or memory budget that does not hold the model, or whose assessment failed.

    Attributes
    ----------
    hardware : str
    memory_gb : float
    reason : str
        One sentence.
    """

    hardware: str
    memory_gb: float
    reason: str


def row_of(found: Assessment, goal: Goal, assumed: Assumptions) -> Row:
    """Price an assessment and hold it against a goal."""
    costs = costs_of(found.site.profile, found.result.tokens_per_s, assumed)
    most, price = goal.most_usd, costs.price_usd
    return Row(
        found=found,
        costs=costs,
        meets=None if goal.tokens_per_s is None else _meets(found, goal.tokens_per_s),
        affordable=most is None or (price is not None and price <= most),
    )


def _meets(found: Assessment, target: float) -> str:
    if found.band.low >= target:
        return "surely"
    if found.result.tokens_per_s >= target:
        return "probably"
    return "perhaps" if found.band.high >= target else "no"
