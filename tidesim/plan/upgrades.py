"""Upgrades: the same machine with one part twice as good (a link generation doubles its rate)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tidesim.hardware import HardwareProfile

TWICE = 2.0
_LINK = ("h2d", "d2h", "h2d_pageable", "d2h_pageable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What one upgrade gives, with the schedule kept or solved anew, whichever is faster.

    Attributes
    ----------
    name : str
    tokens_per_s : float
    gain : float
        Relative to the machine as it is.
    """

    name: str
    tokens_per_s: float
    gain: float


class Part(NamedTuple):
    """A part that can be had twice as good.

    Attributes
    ----------
    name : str
    replaced : callable
        A machine to the numbers that the upgrade replaces, by key.
    memory : float
        By how much the GPU memory to use grows.
    """

    name: str
    replaced: Callable[[HardwareProfile], dict[str, float]]
    memory: float = 1.0


def _times(profile: HardwareProfile, *keys: str) -> dict[str, float]:
    held = [key for key in keys if not profile.missing((key,))]
    return {key: TWICE * profile.value(key) for key in held}


def _link(profile: HardwareProfile) -> dict[str, float]:
    return _times(profile, *(f"link.{name}_bytes_per_s" for name in _LINK))


def _cores(profile: HardwareProfile) -> dict[str, float]:
    """Twice the products, and twice the weights read as far as DRAM delivers them."""
    found = _times(profile, "cpu.cores", "cpu.flops_bf16")
    rate = profile.value("cpu.expert_bytes_per_s")
    dram = None if profile.missing(("cpu.memory_bytes_per_s",)) else "cpu.memory_bytes_per_s"
    most = max(rate, profile.value(dram)) if dram else TWICE * rate
    return found | {"cpu.expert_bytes_per_s": min(TWICE * rate, most)}


def _channels(profile: HardwareProfile) -> dict[str, float]:
    """Twice the rate of memory, which expert kernels follow, and the GPU where it is its own."""
    found = _times(profile, "cpu.memory_bytes_per_s", "cpu.expert_bytes_per_s")
    shared = profile.machine.unified_memory
    return found | (_times(profile, "gpu.memory_bytes_per_s") if shared else {})


def _memory(profile: HardwareProfile) -> dict[str, float]:
    return _times(profile, "gpu.memory_bytes")


PARTS = (
    Part("link generation", _link),
    Part("CPU cores", _cores),
    Part("GPU memory", _memory, memory=TWICE),
    Part("DRAM channels", _channels),
)
