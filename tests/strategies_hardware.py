"""Hypothesis strategies for machines: small dictionaries first, profiles built from them."""

import math
from typing import Any, get_args

from hypothesis import strategies as st

from tidesim.hardware import Curve, HardwareProfile
from tidesim.hardware_schema import CopyCurve, Curves

ENGINES = ("tide-reference", "tidesim")

# Least and greatest value of each number; wide enough that every resource can be the bottleneck.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "gpu": {
        "memory_bytes": (1e9, 2e11),
        "flops_bf16": (1e12, 2e15),
        "memory_bytes_per_s": (5e10, 1e13),
        "launch_s": (0.0, 1e-5),
        "fused_call_s": (0.0, 1e-4),
    },
    "cpu": {
        "cores": (1, 256),
        "memory_bytes": (1e9, 4e12),
        "memory_bytes_per_s": (5e9, 1e12),
        "expert_bytes_per_s": (1e9, 5e11),
        "flops_bf16": (1e10, 5e13),
    },
    "link": {
        "h2d_bytes_per_s": (1e9, 4e11),
        "d2h_bytes_per_s": (1e9, 4e11),
        "h2d_pageable_bytes_per_s": (1e8, 1e11),
        "d2h_pageable_bytes_per_s": (1e8, 1e11),
        "latency_s": (0.0, 1e-4),
        "h2d_duplex_factor": (0.1, 1.0),
        "d2h_duplex_factor": (0.1, 1.0),
    },
    "contention": {
        "cpu_factor": (0.1, 1.0),
        "h2d_factor": (0.1, 1.0),
        "d2h_factor": (0.1, 1.0),
    },
}
ENGINE_RANGES = {
    "gpu_expert_call_s": (0.0, 1e-3),
    "cpu_expert_call_s": (0.0, 1e-3),
    "copy_call_s": (0.0, 1e-3),
    "sync_s": (0.0, 1e-3),
    "decide_s": (0.0, 1e-3),
}


def quantities(
    low: float, high: float, *, whole: bool = False
) -> st.SearchStrategy[dict[str, Any]]:
    """Draw one number of a profile."""
    numbers = st.integers(int(low), int(high)) if whole else st.floats(low, high)
    return st.fixed_dictionaries(
        {
            "value": numbers,
            "source": st.just("drawn"),
            "kind": st.sampled_from(("measured", "datasheet", "estimated")),
        }
    )


def _sections(ranges: dict[str, tuple[float, float]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {key: quantities(*bounds, whole=key == "cores") for key, bounds in ranges.items()}
    )


def engine_costs() -> st.SearchStrategy[dict[str, Any]]:
    """Draw the per-call costs of one engine, sometimes with its own CPU kernels, workers or copies."""
    return st.builds(
        lambda costs, own: costs | own,
        _sections(ENGINE_RANGES),
        st.fixed_dictionaries(
            {},
            optional={
                "cpu_rate_factor": quantities(0.1, 1.0),
                "cpu_workers": quantities(1, 4, whole=True),
                "expert_copy_call_s": quantities(0.0, 1e-3),
            },
        ),
    )


def profile_dicts() -> st.SearchStrategy[dict[str, Any]]:
    """Draw a complete profile as parsed TOML: every number that any engine needs."""
    return st.fixed_dictionaries(
        {
            "format": st.just("tidesim-hardware"),
            "version": st.just(1),
            "machine": st.just({"name": "drawn"}),
            **{section: _sections(ranges) for section, ranges in RANGES.items()},
            "engine": st.fixed_dictionaries({name: engine_costs() for name in ENGINES}),
        }
    )


def profiles() -> st.SearchStrategy[HardwareProfile]:
    """Draw a complete, valid profile without curves."""
    return profile_dicts().map(HardwareProfile.from_dict)


def curve_dicts(kind: type[Curve]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw one curve of a kind, with sizes that suit no model."""

    def on_grid(axes: dict[str, list[int]]) -> st.SearchStrategy[dict[str, Any]]:
        points = math.prod(len(axis) for axis in axes.values())
        seconds = st.lists(st.floats(1e-9, 1e3), min_size=points, max_size=points)
        own = {name: st.integers(1, 9) for name in sizes}
        text = {name: st.just("drawn") for name in ("source", "dtype") if name in fields}
        return st.fixed_dictionaries(
            {**own, **text, "seconds": seconds, "kind": st.just("measured")}
        ).map(lambda curve: curve | axes)

    fields = set(kind.model_fields)
    sizes = sorted(fields - {*kind.axes, "seconds", "source", "dtype", "kind"})
    grids = st.sets(st.integers(0, 10**9), min_size=1, max_size=3).map(sorted)
    return st.fixed_dictionaries(dict.fromkeys(kind.axes, grids)).flatmap(on_grid)


def curves() -> st.SearchStrategy[dict[str, Any]]:
    """Draw the curves of a profile, any of which may be absent."""
    kinds = {
        name: get_args(info.annotation)[0]
        for name, info in Curves.model_fields.items()
        if name != "copies"
    }
    copies = dict.fromkeys(("h2d", "d2h", "h2d_pageable", "d2h_pageable"), curve_dicts(CopyCurve))
    return st.fixed_dictionaries(
        {},
        optional={
            **{name: curve_dicts(kind) for name, kind in kinds.items()},
            "copy": st.fixed_dictionaries({}, optional=copies),
        },
    )
