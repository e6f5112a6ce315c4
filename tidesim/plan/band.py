"""Band: between which speeds a machine lies, by how its numbers are known.

Two things can be wrong. The simulator: `RUN_ERROR` is by how much it missed measured runs on a
machine that it had measured. And the numbers of a machine that nobody measured: each published or
estimated one is moved against the run, and for it, all of them together, and the schedule is timed
again. A profile in which everything is measured has the first alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tidesim.hardware import OVERRIDE, HardwareProfile
from tidesim.latency import needed_keys
from tidesim.plan.kept import Kept

# The largest error of a run in the validations that README reports: a measured two-core machine,
# backend cpu, whose repeats themselves spread by more. While others load a machine, errors are larger.
RUN_ERROR = 0.114
# Rates and shares: by as much do figures of one part, or of its class, differ in the sources of
# hwprofiles/: CPU expert kernels reach 0.61-0.82 of the DRAM rate where 0.7 is taken, pinned copies
# 74-90 % of nominal, fused experts 0.85-0.94 of the GPU's memory rate.
RATE_SPREAD = 1.25
# Per-call costs of an engine: `tidesim reproduce` needs 154 µs for an expert's call of the TIDE
# authors' code to meet the paper's throughputs, where 22 µs had been estimated.
CALL_SPREAD = 7.0
_OPTIONAL = ("cpu_rate_factor", "expert_copy_call_s")  # that an engine may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Tokens per second between which a machine is expected.

    Attributes
    ----------
    low, high : float
    measured : float
        Share of the numbers needed that were measured on the machine or its like.
    """

    low: float
    high: float
    measured: float


def band_of(kept: Kept, *, run_error: float = RUN_ERROR) -> Band:
    """Return the band of a run.

    Parameters
    ----------
    kept : Kept
    run_error : float
        Relative error of the simulator's seconds: of e, measured tokens per second lie between
        1 - e and 1 + e times the predicted ones.
    """
    profile, engine = kept.case.latency.profile, kept.case.setup.engine
    optional = (f"engine.{engine.name}.{name}" for name in _OPTIONAL)
    keys = _held(profile, (*needed_keys(engine.name, pinned=engine.pinned), *optional))
    measured = [key for key in keys if profile.kind_of(key) == "measured"]
    low, high = (kept.on(_moved(profile, keys, slower=slower)) for slower in (True, False))
    return Band(
        low=low * (1 - run_error), high=high * (1 + run_error), measured=len(measured) / len(keys)
    )


def _moved(profile: HardwareProfile, keys: Sequence[str], *, slower: bool) -> HardwareProfile:
    """Return a machine with every number that is not sure moved one way."""
    unsure = [key for key in keys if _is_unsure(profile, key)]
    return profile.with_overrides(
        {key: _value(key, profile.value(key), slower=slower) for key in unsure}
    )


def _held(profile: HardwareProfile, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if not profile.missing((key,))]


def _is_unsure(profile: HardwareProfile, key: str) -> bool:
    """Whether a number may be off: neither measured nor supposed by a what-if."""
    quantity = profile.quantity(key)
    return quantity.kind != "measured" and quantity.source != OVERRIDE


def _value(key: str, value: float, *, slower: bool) -> float:
    """Return a number moved to where runs are slower, or faster."""
    leaf = key.rpartition(".")[2]
    is_time = leaf.endswith("_s") and not leaf.endswith("_per_s")
    spread = CALL_SPREAD if key.startswith("engine.") else RATE_SPREAD
    moved = value * spread if slower == is_time else value / spread
    return min(1.0, moved) if leaf.endswith("_factor") else moved
