"""Configurations: the runs that a validation scores, and those it may calibrate with."""

from collections.abc import Iterable
from dataclasses import dataclass

from tidesim.model_spec import ModelSpec
from tidesim.policies import PolicyFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Settings of one run.

    Attributes
    ----------
    policy : str or callable
        As `prepare` takes it.
    budget : int
        Slots per mixture layer.
    interval : int or None
    promotion : str or None
        None leaves it to the policy.
    engine : str
    label : str
        Instead of the policy's name; needed where `policy` has none.
    """

    policy: str | PolicyFactory
    budget: int
    interval: int | None = None
    promotion: str | None = None
    engine: str = "tidesim"
    label: str = ""


def budget_of(model: ModelSpec, sixteenths: int) -> int:
    """Return a share of the experts in sixteenths, at least those of one token."""
    return max(model.num_experts_per_tok, model.num_experts * sixteenths // 16)


# Policy, interval, promotion and sixteenths of the experts: run times differ clearly, by misses as
# well as by promotions.
_Row = tuple[str, int | None, str | None, int]
_SCORED: tuple[_Row, ...] = (
    ("static-frequency", None, None, 2),
    ("static-frequency", None, None, 5),
    ("static-frequency", None, None, 11),
    ("tide", 1, None, 2),
    ("tide", 16, None, 3),
    ("tide", 4, None, 5),
    ("tide", 8, None, 7),
    ("tide", 2, None, 9),
    ("tide", 4, None, 12),
    ("tide", 2, "background", 4),
    ("tide", 8, "background", 8),
    ("lru", None, None, 3),
    ("lru", None, None, 6),
    ("previous-step", None, None, 3),
    ("previous-step", None, None, 10),
    ("q-split", None, None, 4),
    ("pay", None, None, 5),
)
_CALIBRATION: tuple[_Row, ...] = (
    ("static-frequency", None, None, 4),
    ("tide", 1, None, 8),
    ("lfu", None, None, 2),
    ("previous-step", None, None, 12),
)


def default_configurations(model: ModelSpec) -> tuple[Configuration, ...]:
    """Return configurations to score: policies, intervals, promotions and budgets."""
    return _configurations(_SCORED, model)


def calibration_configurations(model: ModelSpec) -> tuple[Configuration, ...]:
    """Return configurations to calibrate with: few and many misses and promotions."""
    return _configurations(_CALIBRATION, model)


def _configurations(rows: Iterable[_Row], model: ModelSpec) -> tuple[Configuration, ...]:
    return tuple(
        Configuration(
            policy=policy,
            interval=interval,
            promotion=promotion,
            budget=budget_of(model, sixteenths),
        )
        for policy, interval, promotion, sixteenths in rows
    )
