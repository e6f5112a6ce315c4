"""Latency: the seconds that each piece of a pass takes on one machine.

On the GPU every piece costs kernels × launch + bytes / memory rate + FLOPs / peak. The *sum* fits
published tables of fused expert kernels within 2-9 % (H100, H200, A100, L40S; tables of
ai-dynamo/aiconfigurator), better than the larger of the two terms. A CPU expert costs the larger of
reading its weights and computing its tokens. Where the profile holds a measured curve, the curve
counts; outside its grid its nearest point is scaled by the formula.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidesim.gpu_work import Work, attention_work, combine_work, head_work, mlp_work, router_work
from tidesim.hardware import Curve, HardwareProfile
from tidesim.model_spec import ModelSpec

# Numbers one by one or as arrays, and seconds of the same shape.
Numbers = Any
Seconds = Any


class Direction(StrEnum):
    """Which way a copy goes."""

    H2D = "h2d"
    D2H = "d2h"


class Basis(StrEnum):
    """What stands behind a time."""

    CURVE = "curve"
    EXTRAPOLATED = "extrapolated"
    FORMULA = "formula"


@dataclass(frozen=True, kw_only=True)
class Contention:
    """The share of its rate each side keeps while CPU experts and copies run together."""

    cpu_factor: float
    h2d_factor: float
    d2h_factor: float


@dataclass(frozen=True, kw_only=True)
class Duplex:
    """The share of its rate each direction keeps while both copy."""

    h2d_factor: float
    d2h_factor: float


def needed_keys(engine: str, *, pinned: bool) -> tuple[str, ...]:
    """List the profile keys that a run with an engine needs, host link included."""
    names = (_link_name(direction, pinned=pinned) for direction in Direction)
    link = tuple(f"link.{name}_bytes_per_s" for name in names)
    shares = ("link.h2d_duplex_factor", "link.d2h_duplex_factor")
    contention = tuple(f"contention.{side}_factor" for side in ("cpu", *Direction))
    return _base_keys(engine) + link + shares + contention


def _base_keys(engine: str) -> tuple[str, ...]:
    rates = ("flops_bf16", "memory_bytes_per_s", "launch_s", "fused_call_s")
    calls = ("gpu_expert_call_s", "cpu_expert_call_s", "copy_call_s", "sync_s", "decide_s")
    return (
        *(f"gpu.{key}" for key in rates),
        *("cpu.expert_bytes_per_s", "cpu.flops_bf16", "link.latency_s"),
        *(f"engine.{engine}.{key}" for key in calls),
    )


class _Table:
    """A measured curve as arrays; lookups are multilinear on its grid."""

    def __init__(self, curve: Curve) -> None:
        self.grid = [np.asarray(axis) for axis in curve.points]
        self.seconds = np.reshape(curve.seconds, [len(axis) for axis in self.grid])

    def clamp(self, point: tuple[Any, ...]) -> tuple[NDArray[np.float64], ...]:
        """Return the nearest point inside the grid."""
        pairs = zip(point, self.grid, strict=True)
        return tuple(np.clip(x, axis[0], axis[-1]) for x, axis in pairs)

    def seconds_at(self, point: tuple[NDArray[np.float64], ...]) -> Any:
        """Interpolate at a point inside the grid, or at arrays of points."""
        corners: list[tuple[Any, tuple[Any, ...]]] = [(1.0, ())]
        for x, axis in zip(point, self.grid, strict=True):
            low = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(len(axis) - 2, 0))
            high = np.minimum(low + 1, len(axis) - 1)
            gap = axis[high] - axis[low]
            share = (x - axis[low]) / np.where(gap > 0, gap, 1.0)
            corners = [
                (weight * part, (*index, at))
                for weight, index in corners
                for part, at in ((1 - share, low), (share, high))
            ]
        return sum(weight * self.seconds[index] for weight, index in corners)


class Latency:
    """Time the pieces of a pass for one machine, one model's sizes and one engine.

    Parameters
    ----------
    profile : HardwareProfile
        The machine.
    spec : ModelSpec
        The sizes to time, which need not be those of the traced model.
    engine : str
        Whose per-call costs apply: a section ``[engine.<name>]`` of the profile.

    Raises
    ------
    FormatError
        The profile lacks a number that every run needs; see `needed_keys`. Rates of the link,
        duplex and contention factors are looked up when first asked for.
    """

    def __init__(self, profile: HardwareProfile, spec: ModelSpec, *, engine: str) -> None:
        at = {key: profile.value(key) for key in _base_keys(engine)}
        costs = profile.engine[engine]
        cpu_factor = costs.cpu_rate_factor.value if costs.cpu_rate_factor else 1.0
        self.profile = profile
        self.spec = spec
        self.engine = engine
        self.launch_s = at["gpu.launch_s"]
        self.sync_s = at[f"engine.{engine}.sync_s"]
        self.decide_s = at[f"engine.{engine}.decide_s"]
        self._gpu_bytes_per_s = at["gpu.memory_bytes_per_s"]
        self._gpu_flops = at["gpu.flops_bf16"]
        self._fused_call_s = at["gpu.fused_call_s"]
        self._cpu_bytes_per_s = at["cpu.expert_bytes_per_s"] * cpu_factor
        self._cpu_flops = at["cpu.flops_bf16"] * cpu_factor
        self._latency_s = at["link.latency_s"]
        self._gpu_expert_call_s = at[f"engine.{engine}.gpu_expert_call_s"]
        self.cpu_call_s = at[f"engine.{engine}.cpu_expert_call_s"]
        self.cpu_workers = int(costs.cpu_workers.value) if costs.cpu_workers else 1
        self._copy_call_s = at[f"engine.{engine}.copy_call_s"]
        own = costs.expert_copy_call_s
        self._expert_copy_call_s = own.value if own else self._copy_call_s
        self._tables = _fitting_tables(profile, spec)
        same = not self._tables or profile.baseline is profile
        self._baseline = self if same else Latency(profile.baseline, spec, engine=engine)

    @property
    def contention(self) -> Contention:
        """Shares of rate while CPU experts and copies run together."""
        value = self.profile.value
        return Contention(
            cpu_factor=value("contention.cpu_factor"),
            h2d_factor=value("contention.h2d_factor"),
            d2h_factor=value("contention.d2h_factor"),
        )

    @property
    def duplex(self) -> Duplex:
        """Shares of rate while both directions copy."""
        value = self.profile.value
        return Duplex(
            h2d_factor=value("link.h2d_duplex_factor"), d2h_factor=value("link.d2h_duplex_factor")
        )

    def attention_s(self, tokens: int, context: int, *, requests: int = 1) -> float:
        """Time one layer's attention over `context` cached tokens and `tokens` new ones.

        Both are sums over the requests of the pass. Curves are measured with one; the formula says
        how much less several take, of which each attends to its own tokens.
        """
        seconds = float(self._calibrated("attention", _attention_s, tokens, context))
        if requests == 1:
            return seconds
        apart_s = _attention_s(self, tokens, context, requests=requests)
        return seconds * apart_s / _attention_s(self, tokens, context)

    def dense_mlp_s(self, tokens: int) -> float:
        """Time the MLP of a dense layer."""
        return float(self._calibrated("dense_mlp", _dense_mlp_s, tokens))

    def shared_s(self, tokens: int) -> float:
        """Time the shared experts of a mixture layer; 0 for a model without."""
        if not self.spec.shared_expert_params:
            return 0.0
        return float(self._calibrated("shared", _shared_s, tokens))

    def router_s(self, tokens: int) -> float:
        """Time the router of a mixture layer."""
        return float(self._calibrated("router", _router_s, tokens))

    def combine_s(self, tokens: int) -> float:
        """Time the sum of a mixture layer's expert outputs."""
        return float(self._calibrated("combine", _combine_s, tokens))

    def head_s(self, tokens: int) -> float:
        """Time the output head on `tokens` positions, softmax and sampling included."""
        return float(self._calibrated("head", _head_s, tokens))

    def gpu_experts_s(self, tokens_per_expert: NDArray[np.integer[Any]]) -> float:
        """Time one grouped call over the experts that have tokens; 0 when none has.

        Seconds = fused call + (experts × bytes + activations) / memory rate + FLOPs / peak.

        Parameters
        ----------
        tokens_per_expert : ndarray of int
            Tokens of each expert; its order does not matter.
        """
        experts = int(np.count_nonzero(tokens_per_expert))
        return float(self.gpu_call_s(experts, int(np.sum(tokens_per_expert))))

    def gpu_call_s(self, experts: Numbers, pairs: Numbers) -> Seconds:
        """Time one grouped call over `experts` distinct experts and `pairs` token-expert pairs.

        Of arrays, time a call for each; 0 where it has no experts.
        """
        formula, some = Latency._gpu_experts_formula, np.maximum(experts, 1)
        return self._calibrated("gpu_experts", formula, pairs / some, some) * (experts > 0)

    def gpu_expert_s(self, tokens: Numbers) -> Seconds:
        """Time one GPU expert of an engine that loops over experts; 0 without tokens.

        Of an array, time each by itself.
        """
        seconds = self._calibrated("gpu_expert", _gpu_expert_s, tokens)
        return (self._gpu_expert_call_s + seconds) * (tokens > 0)

    def cpu_experts_s(self, tokens_per_expert: NDArray[np.integer[Any]]) -> float:
        """Time all CPU experts of a layer, handed over together; 0 when none has tokens.

        Seconds = call + Σ over experts with tokens of max(bytes / rate, FLOPs / CPU FLOP/s):
        weights are read once however many tokens share them. Several workers (`cpu_workers`) have
        an equal share of both rates each and an expert stays with one of them, so that the largest
        expert takes at least workers times as long (McNaughton's bound, which even sharing meets).

        Parameters
        ----------
        tokens_per_expert : ndarray of int
            Tokens of each expert; its order does not matter.
        """
        active = tokens_per_expert[np.nonzero(tokens_per_expert)]
        if not active.size:
            return 0.0
        times = self.cpu_alike_s(np.full(active.shape, active.size), active) - self.cpu_call_s
        largest = float(np.max(times)) / active.size * self.cpu_workers
        return self.cpu_call_s + max(float(np.mean(times)), largest)

    def cpu_alike_s(self, experts: Numbers, tokens: Numbers) -> Seconds:
        """Time one call of all CPU cores over `experts` experts that have `tokens` tokens each.

        Of arrays, time a call for each.
        """
        formula = Latency._cpu_experts_formula
        return self.cpu_call_s + self._calibrated("cpu_experts", formula, tokens, experts)

    def cpu_expert_s(self, tokens: Numbers) -> Seconds:
        """Time one CPU expert of an engine that loops over experts; 0 without tokens.

        Of an array, time each by itself.
        """
        seconds = self._calibrated("cpu_expert", _cpu_expert_s, tokens)
        return (self.cpu_call_s + seconds) * (tokens > 0)

    def copy_s(self, num_bytes: Numbers, direction: Direction, *, pinned: bool) -> Seconds:
        """Time one copy alone on the link: latency + bytes / rate + the engine's cost per copy.

        Of an array, time each by itself.

        Raises
        ------
        FormatError
            The profile lacks the rate of this direction and kind of memory.
        """
        name = _link_name(direction, pinned=pinned)

        def formula(latency: Latency, size: Numbers) -> Seconds:
            return latency._latency_s + size / latency.profile.value(f"link.{name}_bytes_per_s")

        return self._copy_call_s + self._calibrated(f"copy.{name}", formula, num_bytes)

    def expert_copy_s(self, copies: int, direction: Direction, *, pinned: bool) -> float:
        """Time the copy of one expert cut into `copies` equal copies, one after the other."""
        moved_s = float(self.copy_s(self.spec.expert_bytes / copies, direction, pinned=pinned))
        return copies * (moved_s + (self._expert_copy_call_s - self._copy_call_s))

    def basis(self, curve: str, *point: float) -> Basis:
        """Say what stands behind a time.

        Parameters
        ----------
        curve : str
            ``attention``, ``gpu_experts`` or another field of the profile's curves, or
            ``copy.<rate>`` such as ``copy.h2d_pageable``.
        point : float
            Where on that curve's axes.
        """
        table = self._tables.get(curve)
        if table is None:
            return Basis.FORMULA
        return Basis.CURVE if table.clamp(point) == point else Basis.EXTRAPOLATED

    def _gpu_s(self, work: Work) -> float:
        return (
            work.kernels * self.launch_s
            + work.num_bytes / self._gpu_bytes_per_s
            + work.flops / self._gpu_flops
        )

    def _gpu_experts_formula(self, tokens_per_expert: float, experts: int) -> float:
        work = mlp_work(self.spec, tokens_per_expert, params=self.spec.expert_params)
        one = work.num_bytes / self._gpu_bytes_per_s + work.flops / self._gpu_flops
        return self._fused_call_s + experts * one

    def _cpu_experts_formula(
        self, tokens: NDArray[np.float64], experts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        read_s = self.spec.expert_bytes / self._cpu_bytes_per_s
        compute_s = 2 * self.spec.expert_params * tokens / self._cpu_flops
        return experts * np.maximum(read_s, compute_s)

    def _calibrated(self, name: str, formula: Callable[..., Any], *point: Any) -> Any:
        """Look a point up in a measured curve, scaled by the formula beyond its grid.

        Overrides scale it too: by the formula with them over the formula without.
        """
        table = self._tables.get(name)
        if table is None:
            return formula(self, *point)
        inside = table.clamp(point)
        return table.seconds_at(inside) * formula(self, *point) / formula(self._baseline, *inside)


def _attention_s(latency: Latency, tokens: int, context: int, *, requests: int = 1) -> float:
    return latency._gpu_s(attention_work(latency.spec, tokens, context, requests=requests))


def _dense_mlp_s(latency: Latency, tokens: Numbers) -> Seconds:
    spec = latency.spec
    return latency._gpu_s(mlp_work(spec, tokens, params=spec.dense_mlp_params))


def _shared_s(latency: Latency, tokens: Numbers) -> Seconds:
    spec = latency.spec
    return latency._gpu_s(mlp_work(spec, tokens, params=spec.shared_expert_params))


def _router_s(latency: Latency, tokens: Numbers) -> Seconds:
    return latency._gpu_s(router_work(latency.spec, tokens))


def _combine_s(latency: Latency, tokens: Numbers) -> Seconds:
    return latency._gpu_s(combine_work(latency.spec, tokens))


def _head_s(latency: Latency, tokens: Numbers) -> Seconds:
    return latency._gpu_s(head_work(latency.spec, tokens))


def _gpu_expert_s(latency: Latency, tokens: Numbers) -> Seconds:
    spec = latency.spec
    return latency._gpu_s(mlp_work(spec, tokens, params=spec.expert_params))


def _cpu_expert_s(latency: Latency, tokens: Numbers) -> Seconds:
    """Time one expert on one of the workers, the share of the rates it has included."""
    alone = latency.cpu_alike_s(np.ones_like(tokens), tokens) - latency.cpu_call_s
    return latency.cpu_workers * alone


def _link_name(direction: Direction, *, pinned: bool) -> str:
    return direction.value if pinned else f"{direction}_pageable"


def _fitting_tables(profile: HardwareProfile, spec: ModelSpec) -> dict[str, _Table]:
    """Collect the measured curves that hold for a model's shapes."""
    copies = ((f"copy.{name}", curve) for name, curve in profile.curves.copies)
    held = [(name, curve) for name, curve in (*copies, *profile.curves) if isinstance(curve, Curve)]
    return {name: _Table(curve) for name, curve in held if _fits(curve, spec)}


def _fits(curve: Curve, spec: ModelSpec) -> bool:
    """Whether a curve was measured at a model's shapes."""
    sizes = set(type(curve).model_fields) & set(ModelSpec.model_fields)
    return all(getattr(curve, name) == getattr(spec, name) for name in sorted(sizes))
