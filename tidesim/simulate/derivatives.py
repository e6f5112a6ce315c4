"""Derivatives: how much faster a run gets where one part of the machine is 10 % faster."""

from dataclasses import replace

from tidesim.hardware import HardwareProfile
from tidesim.latency import Latency
from tidesim.simulate.case import Case
from tidesim.simulate.fast import run_fast

STEP = 0.1
_COPIES = ("h2d", "d2h", "h2d_pageable", "d2h_pageable")
_CALLS = (
    "gpu_expert_call_s",
    "cpu_expert_call_s",
    "copy_call_s",
    "expert_copy_call_s",
    "sync_s",
    "decide_s",
)


def parts(profile: HardwareProfile, engine: str) -> dict[str, tuple[str, ...]]:
    """Return the keys of a profile by part of the machine, those that it holds.

    ``link``, ``cpu`` and ``gpu`` are rates, the link's latency among them; ``launches`` are kernel
    launches; ``host`` is what the engine pays per call, host syncs among them.
    """
    keys = {
        "link": (*(f"link.{name}_bytes_per_s" for name in _COPIES), "link.latency_s"),
        "cpu": ("cpu.expert_bytes_per_s", "cpu.flops_bf16"),
        "gpu": ("gpu.memory_bytes_per_s", "gpu.flops_bf16"),
        "launches": ("gpu.launch_s", "gpu.fused_call_s"),
        "host": tuple(f"engine.{engine}.{name}" for name in _CALLS),
    }
    absent = {part: profile.missing(names) for part, names in keys.items()}
    return {
        part: tuple(name for name in names if name not in absent[part])
        for part, names in keys.items()
    }


def faster(profile: HardwareProfile, keys: tuple[str, ...], *, by: float) -> HardwareProfile:
    """Return a what-if copy whose rates are higher and whose seconds are fewer, by a share."""
    return profile.with_overrides(
        {
            key: profile.value(key) * (1 + by if key.endswith(("_per_s", "bf16")) else 1 / (1 + by))
            for key in keys
        }
    )


def derivatives(case: Case, *, by: float = STEP) -> dict[str, float]:
    """Simulate a case once for every part of the machine that is made faster.

    Policies that weigh costs decide anew.

    Parameters
    ----------
    case : Case
    by : float
        How much faster, as a share.

    Returns
    -------
    dict of str to float
        Relative gain in tokens per second by part; see `parts`.

    Raises
    ------
    SettingError
        The trace holds no denoise pass.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.simulate import prepare
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> case = prepare(trace, load_profile("a100-40gb-pcie4-xeon48"), policy="lru", budget=16)
    >>> {part: round(gain, 3) for part, gain in derivatives(case).items()}
    {'link': 0.001, 'cpu': 0.0, 'gpu': 0.0, 'launches': 0.084, 'host': 0.012}
    """
    profile, engine = case.latency.profile, case.setup.engine.name
    base = run_fast(case).seconds
    gains = {}
    for part, keys in parts(profile, engine).items():
        latency = Latency(faster(profile, keys, by=by), case.spec, engine=engine)
        changed = replace(case, latency=latency, setup=replace(case.setup, latency=latency))
        gains[part] = base / run_fast(changed).seconds - 1
    return gains
