"""Measure: a machine's profile from what the runtime does on it, at one model's sizes.

Curves and costs per call come from passes of a model with random weights under the runtime's own
engines (`bench`), rates and shares from micro-benchmarks (`micro`).
"""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.errors import SettingError
from tidesim.hardware import FORMAT, VERSION, HardwareProfile
from tidesim.memory import gigabytes
from tidesim.model_spec import ModelSpec
from tidesim.runtime import micro
from tidesim.runtime.backends import Backend
from tidesim.runtime.bench import Bench, Timing
from tidesim.runtime.measure_scenes import Findings, Grid, looped, moving, pieces, together
from tidesim.runtime.model import TORCH_DTYPES

LEAST_S, MOST_S = 1.0, 300.0
SPARE = 8  # of the memory, one part at most is filled with experts
COPY_BYTES = tuple(1 << power for power in range(8, 25, 2))
# Share of the time that each part of the measurement takes.
PARTS = {"pieces": 0.34, "together": 0.24, "looped": 0.14, "moving": 0.1, "rates": 0.03, "copies": 0.1, "beside": 0.05}  # fmt: skip

Observe = Callable[[str, float], None]


@dataclass(kw_only=True)
class _Measured:
    """A profile's numbers while they are found, by dotted key."""

    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    spread: float = 0.0

    def put(self, key: str, value: float, source: str) -> None:
        """Keep a number, rounded to four digits."""
        rounded = float(f"{value:.4g}")
        self.numbers[key] = {"value": rounded, "source": source, "kind": "measured"}


def check_measurable(spec: ModelSpec, seconds: float) -> None:
    """Refuse what cannot be measured.

    Raises
    ------
    SettingError
        An impossible time, or a model without mixture layers.
    """
    if not LEAST_S <= seconds <= MOST_S:
        raise SettingError(
            f"seconds is {seconds} but must be between {LEAST_S:.0f} and {MOST_S:.0f}"
        )
    if not spec.moe_layers:
        raise SettingError(f"{spec.name} has no mixture layers; give a model that has experts")


def measure(
    spec: ModelSpec,
    backend: Backend,
    *,
    seconds: float = 120.0,
    name: str | None = None,
    observe: Observe = lambda _part, _seconds: None,
) -> HardwareProfile:
    """Measure this machine.

    Parameters
    ----------
    spec : ModelSpec
        The sizes that curves are measured at.
    backend : Backend
        Not entered yet.
    seconds : float
        About how long it may take; large models take what two rounds of every point take.
    name : str or None
        The machine's name in the profile.
    observe : callable
        Told the part in progress and the seconds it went on by.

    Raises
    ------
    SettingError
        As `check_measurable`.
    CapacityError
        The model's sizes do not fit the machine.
    RunError
        An operation failed.
    """
    check_measurable(spec, seconds)
    used = fewer_layers(spec, _memory_bytes() // SPARE)
    with backend, torch.inference_mode():
        found = _measure(used, backend, seconds, observe)
        machine = _machine(backend, spec, used, name, found.spread)
    return _profile(machine, found)


def fewer_layers(spec: ModelSpec, num_bytes: int) -> ModelSpec:
    """Return a spec with as many mixture layers as fit, one at least."""
    layers = max(1, min(spec.moe_layers, num_bytes // (spec.num_experts * spec.expert_bytes)))
    return spec.model_copy(update={"num_hidden_layers": spec.first_k_dense_replace + layers})


def _measure(spec: ModelSpec, backend: Backend, seconds: float, observe: Observe) -> _Measured:
    grid = Grid.of(spec)
    bench = Bench(spec, backend, tokens=grid.most_tokens, longest=grid.longest)
    found = _Measured()
    spent = {part: seconds * share for part, share in PARTS.items()}
    copies = micro.Copies(backend, max(micro.POOL_BYTES, min(spec.all_experts_bytes, 1 << 30)))
    _put_rates(found, bench, spent["rates"])
    observe("rates", spent["rates"])
    _put_copies(found, copies, spec, spent["copies"])
    observe("copies", spent["copies"])
    _put_beside(found, bench, copies, spent["beside"])
    observe("beside", spent["beside"])
    del copies
    seen = {}
    for part, scene in (("pieces", pieces), ("together", together), ("looped", looped)):
        seen[part] = scene(bench, grid, spent[part], lambda s, part=part: observe(part, s))  # type: ignore[misc]
        found.curves |= seen[part].curves
    for engine in (TIDESIM, TIDE_REFERENCE):
        seen[engine.name] = moving(
            bench, engine, spent["moving"] / 2, lambda s: observe("moving", s)
        )
    found.spread = median(each for part in seen.values() for each in part.spreads)
    _put_tidesim(found, seen)
    _put_reference(found, seen, spec)
    _put_fused(found, spec)
    return found


def _put_rates(found: _Measured, bench: Bench, seconds: float) -> None:
    dtype, backend = TORCH_DTYPES[bench.spec.dtype], bench.backend
    how = f"in {bench.spec.dtype}, median of repeated calls"
    sides = {"gpu": backend.device, "cpu": torch.device("cpu")}
    same = backend.device.type == "cpu"
    reached = {
        side: micro.rates(device, dtype, seconds / 2)
        for side, device in sides.items()
        if side == "gpu" or not same
    }
    gpu, cpu = reached["gpu"], reached.get("cpu", reached["gpu"])
    found.put("gpu.flops_bf16", gpu.flops, f"one large product {how}")
    streaming = f"one row times a matrix of {micro.POOL_BYTES >> 20} MiB (1 GiB on a GPU) {how}"
    found.put("gpu.memory_bytes_per_s", gpu.bytes_per_s, streaming)
    found.put("gpu.launch_s", gpu.launch.seconds, _said("one small sum", gpu.launch))
    threads = f", by one thread of {torch.get_num_threads()} inside an operator"
    found.put("cpu.flops_bf16", cpu.flops, f"one large product {how}{threads}")
    found.put("cpu.expert_bytes_per_s", cpu.bytes_per_s, streaming + threads)
    found.put("cpu.memory_bytes_per_s", cpu.bytes_per_s, streaming + threads)
    found.put("cpu.cores", float(os.cpu_count() or 1), "the operating system says so")
    memory = float(_memory_bytes())
    found.put("cpu.memory_bytes", memory, "the operating system says so")
    device_memory = memory if same else torch.cuda.get_device_properties(0).total_memory
    found.put("gpu.memory_bytes", device_memory, "the device says so")


def _put_copies(found: _Measured, copies: micro.Copies, spec: ModelSpec, seconds: float) -> None:
    sizes = sorted({*COPY_BYTES, spec.expert_bytes, spec.expert_bytes // 3})
    sizes = [size for size in sizes if size <= len(copies.host)]
    each = 0.8 * seconds / (4 * len(sizes))
    for up, direction in ((True, "h2d"), (False, "d2h")):
        linked = [copies.by_link(size, each, up=up) for size in sizes]
        direct = [copies.by_hand(size, each, up=up) for size in sizes]
        for name, timings, how in (
            (direction, linked, "one copy on the runtime's link by its clock"),
            (f"{direction}_pageable", direct, "one copy by the thread that asks for it"),
        ):
            rate = sizes[-1] / timings[-1].seconds
            source = _said(how, *timings)
            found.put(f"link.{name}_bytes_per_s", rate, f"{source}; {sizes[-1]} bytes")
            found.curves[f"copy.{name}"] = {
                "bytes": sizes,
                "seconds": [float(f"{timing.seconds:.4g}") for timing in timings],
                "source": source,
                "kind": "measured",
            }
        if up:
            rest = linked[0].seconds - sizes[0] * linked[-1].seconds / sizes[-1]
            found.put("link.latency_s", max(0.0, rest), f"a copy of {sizes[0]} bytes")
    _put_duplex(found, copies, sizes[-2], seconds / 5)


def _put_duplex(found: _Measured, copies: micro.Copies, size: int, seconds: float) -> None:
    whole = copies.whole_s(size, seconds / 3, ups=(True, False)).seconds
    how = f"eight copies of {size} bytes each way: alone, over both ways at once"
    for up, direction in ((True, "h2d"), (False, "d2h")):
        alone = copies.whole_s(size, seconds / 3, ups=(up,)).seconds
        found.put(f"link.{direction}_duplex_factor", min(1.0, alone / whole), how)


def _put_beside(found: _Measured, bench: Bench, copies: micro.Copies, seconds: float) -> None:
    up, down = (micro.beside(bench, copies, seconds / 2, up=each) for each in (True, False))
    how = (
        "half of a layer's experts on the CPU and copies of experts: alone, over beside each other"
    )
    found.put("contention.cpu_factor", up.cpu, how)
    found.put("contention.h2d_factor", up.copies, how)
    found.put("contention.d2h_factor", down.copies, how)


def _put_tidesim(found: _Measured, seen: Mapping[str, Findings]) -> None:
    """Split what the overlapped engine takes beyond curves over its calls."""
    still, missed, moved = seen["pieces"], seen["together"], seen["tidesim"]
    issue = max(0.0, missed.at("shared cpu") - still.at("shared"))
    copy = max(0.0, moved.at("gap"))
    costs = {
        "gpu_expert_call_s": (0.0, "experts of the GPU run in one call: gpu.fused_call_s"),
        "copy_call_s": (copy, "between one promotion on the link and the next"),
        "sync_s": (
            still.at("wait") - copy,
            "from the end of the router to the decision, without the copy of the ids",
        ),
        "decide_s": (
            moved.at("decide") + issue,
            "policy tide every 4 steps, sorting pairs, and handing misses over to the CPU",
        ),
        "cpu_expert_call_s": (
            missed.at("chain") - issue - 2 * copy,
            "from the decision to the sum, without copies, computation and handing over",
        ),
    }
    for key, (value, source) in costs.items():
        found.put(f"engine.tidesim.{key}", max(0.0, value), source)


def _put_reference(found: _Measured, seen: Mapping[str, Findings], spec: ModelSpec) -> None:
    """Split what the looped engine takes beyond curves over its calls."""
    alone, moved = seen["looped"], seen["tide-reference"]
    part_s = _copy_s(found, "h2d_pageable", spec.expert_bytes // 3)
    copy = max(0.0, moved.at("promote") / 3 - part_s)
    beyond = [
        hidden - _copy_s(found, "d2h_pageable", size) - _copy_s(found, "h2d_pageable", size)
        for size, hidden in alone.transfers
    ]
    costs = {
        "gpu_expert_call_s": (0.0, "in curves.gpu_expert, which was measured in this engine"),
        "copy_call_s": (copy, "a third of a promotion, without a copy of that size"),
        "sync_s": (alone.at("wait"), "reading the expert ids"),
        "decide_s": (moved.at("decide"), "policy tide every 4 steps"),
        "cpu_expert_call_s": (
            sum(beyond) / len(beyond) - 2 * copy,
            "hidden states there and results back, without copies of those sizes",
        ),
    }
    for key, (value, source) in costs.items():
        found.put(f"engine.tide-reference.{key}", max(0.0, value), source)


def _put_fused(found: _Measured, spec: ModelSpec) -> None:
    """Take from the least grouped call what its experts' bytes cost."""
    curve = found.curves["gpu_experts"]
    read_s = spec.expert_bytes / found.numbers["gpu.memory_bytes_per_s"]["value"]
    rest = curve["seconds"][0] - curve["experts"][0] * read_s
    found.put("gpu.fused_call_s", max(0.0, rest), "the least point of curves.gpu_experts")


def _copy_s(found: _Measured, name: str, size: int) -> float:
    """Interpolate a copy curve."""
    curve = found.curves[f"copy.{name}"]
    sizes, seconds = curve["bytes"], curve["seconds"]
    for low, high in zip(range(len(sizes) - 1), range(1, len(sizes)), strict=True):
        if size <= sizes[high]:
            share = max(0.0, (size - sizes[low]) / (sizes[high] - sizes[low]))
            return float(seconds[low] + share * (seconds[high] - seconds[low]))
    return float(seconds[-1] * size / sizes[-1])


def _said(how: str, *timings: Timing) -> str:
    spread, least = max(t.spread for t in timings), min(t.repeats for t in timings)
    return f"{how}, median of {least} or more, interquartile range up to {spread:.0%}"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def last_level_cache_bytes() -> int:
    """Return the size of the largest cache, 64 MiB where the system does not tell."""
    sizes = [64 << 10]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes) if len(sizes) > 1 else 64 << 20


def _machine(
    backend: Backend, spec: ModelSpec, used: ModelSpec, name: str | None, spread: float
) -> dict[str, str]:
    cache = last_level_cache_bytes()
    fits = used.all_experts_bytes <= cache
    regime = "fit it, so weights are warm" if fits else "exceed it, so weights are cold"
    return {
        "name": name or f"{platform.node() or 'this machine'} ({backend.name})",
        "note": (
            f"{backend.machine}; {platform.system()} {platform.machine()}. "
            f"Curves at the sizes of {spec.name}, {used.moe_layers} of {spec.moe_layers} mixture "
            f"layers. Last-level cache {cache >> 20} MiB; the experts of all layers measured, "
            f"{gigabytes(used.all_experts_bytes, up=True)}, {regime} as a run of them finds them. "
            f"Interquartile range of a time: {spread:.0%} in the middle of all, and more where "
            "other work ran beside it."
        ),
    }


def _profile(machine: dict[str, str], found: _Measured) -> HardwareProfile:
    data: dict[str, Any] = {"format": FORMAT, "version": VERSION, "machine": machine}
    curves = {f"curves.{key}": curve for key, curve in found.curves.items()}
    for key, value in (found.numbers | curves).items():
        *path, leaf = key.split(".")
        section = data
        for part in path:
            section = section.setdefault(part, {})
        section[leaf] = value
    return HardwareProfile.from_dict(data, source="the measured profile")
