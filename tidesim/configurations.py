"""Configurations: the runs that a validation may score, and those it may calibrate with."""

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


# Policy, interval, promotion and sixteenths of the experts. A profile knows one cost of a decision,
# so policies that think for long (pay, q-split, hybrimoe, dali) are not among them.
_Row = tuple[str, int | None, str | None, int]
_SCORED: tuple[_Row, ...] = (
    *(("static-frequency", None, None, part) for part in (1, 2, 3, 6, 10, 12, 14)),
    *(("tide", interval, None, part) for interval in (1, 4, 16) for part in (1, 2, 3, 5, 7, 12)),
    *(("tide", interval, "background", part) for interval in (2, 8) for part in (1, 4, 8)),
    *(("lru", None, None, part) for part in (1, 2, 3, 6)),
    *(("previous-step", None, None, part) for part in (1, 3, 10)),
    *(("mixtral-offload-lru", None, None, part) for part in (1, 2, 3, 6, 8)),
    *(("fiddler", None, None, part) for part in (1, 3, 8)),
    ("all-cpu", None, None, 1),
    ("all-gpu", None, None, 16),
)
_CALIBRATION: tuple[_Row, ...] = (
    ("static-frequency", None, None, 4),
    ("static-frequency", None, None, 8),
    ("tide", 1, None, 8),
    ("mixtral-offload-lru", None, None, 4),
    ("previous-step", None, None, 12),
)


def default_configurations(model: ModelSpec) -> tuple[Configuration, ...]:
    """Return configurations that may be scored: policies, intervals, promotions and budgets."""
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
