"""Bundled profiles: complete, physically plausible, every number with a public source."""

import math
import re

import pytest

from tidesim.hardware import HardwareProfile, describe, load_profile, profile_names
from tidesim.latency import needed_keys

# Bytes per second and direction of a ×16 link by PCIe generation.
PCIE_BYTES_PER_S = {"pcie4": 32e9, "pcie5": 64e9}
# Published peaks: memory bytes per second, dense bf16 FLOP/s.
GPU_PEAKS = {
    "a100-40gb": (1555e9, 312e12),
    "h100-80gb-sxm": (3350e9, 989e12),
    "rtx4090-24gb": (1008e9, 165.2e12),
}


@pytest.fixture(params=profile_names())
def profile(request: pytest.FixtureRequest) -> HardwareProfile:
    return load_profile(str(request.param))


def test_the_three_machines_are_there() -> None:
    wanted = ("a100-40gb-pcie4-xeon48", "h100-80gb-sxm-pcie5-xeon48", "rtx4090-24gb-pcie4-desktop")

    assert set(wanted) <= set(profile_names())


def test_a_profile_bears_the_name_of_its_file() -> None:
    assert [load_profile(name).name for name in profile_names()] == profile_names()


def test_every_engine_can_run(profile: HardwareProfile) -> None:
    for engine in ("tide-reference", "tidesim"):
        for pinned in (True, False):
            assert profile.missing(needed_keys(engine, pinned=pinned)) == []
    assert profile.missing(("gpu.memory_bytes", "cpu.cores", "cpu.memory_bytes_per_s")) == []


def test_every_source_says_something_public(profile: HardwareProfile) -> None:
    for row in describe(profile):
        assert len(row.source) > 10 or row.source == "as cpu_factor", row.key
        assert not re.search(r"(^|[\s'\"(])/(work|home|tmp|root|mnt|usr)\b|facts/", row.source)
        if row.kind != "estimated":
            assert re.search(r"https://|github:|arXiv", row.source), row.key


def test_a_link_is_slower_than_its_generation_and_pageable_slower_than_pinned(
    profile: HardwareProfile,
) -> None:
    generation = next(each for each in PCIE_BYTES_PER_S if each in profile.name)
    for direction in ("h2d", "d2h"):
        pinned = profile.value(f"link.{direction}_bytes_per_s")
        pageable = profile.value(f"link.{direction}_pageable_bytes_per_s")

        assert 0.7 * PCIE_BYTES_PER_S[generation] <= pinned <= PCIE_BYTES_PER_S[generation]
        assert 0.3 * pinned <= pageable <= 0.8 * pinned
    assert 1e-6 <= profile.value("link.latency_s") <= 2e-5


def test_a_gpu_stays_below_its_peaks(profile: HardwareProfile) -> None:
    rate, flops = next(peaks for gpu, peaks in GPU_PEAKS.items() if profile.name.startswith(gpu))

    assert 0.8 * rate <= profile.value("gpu.memory_bytes_per_s") <= rate
    assert 0.7 * flops <= profile.value("gpu.flops_bf16") <= flops
    assert 1e-6 <= profile.value("gpu.launch_s") <= 1e-5
    assert profile.value("gpu.launch_s") <= profile.value("gpu.fused_call_s") <= 1e-4


def test_a_host_reads_experts_no_faster_than_memory(profile: HardwareProfile) -> None:
    memory = profile.value("cpu.memory_bytes_per_s")
    experts = profile.value("cpu.expert_bytes_per_s")

    assert 0.45 * memory <= experts <= 0.82 * memory
    assert memory < profile.value("gpu.memory_bytes_per_s") / 5
    # An expert's time is flat up to this many tokens: bf16 has 2 bytes and 2 FLOPs per weight.
    assert 16 <= profile.value("cpu.flops_bf16") / experts <= 128


def test_cpu_experts_and_copies_together_do_not_exceed_memory(profile: HardwareProfile) -> None:
    together = profile.value("cpu.expert_bytes_per_s") * profile.value("contention.cpu_factor")
    together += profile.value("link.h2d_bytes_per_s") * profile.value("contention.h2d_factor")

    assert together <= 0.96 * profile.value("cpu.memory_bytes_per_s")


def test_engine_costs_are_microseconds_and_the_reference_is_no_cheaper(
    profile: HardwareProfile,
) -> None:
    for key in ("gpu_expert_call_s", "cpu_expert_call_s", "copy_call_s", "sync_s", "decide_s"):
        own = profile.value(f"engine.tidesim.{key}")
        reference = profile.value(f"engine.tide-reference.{key}")

        assert 1e-6 <= own <= reference <= 2e-4
        assert profile.kind_of(f"engine.tidesim.{key}") == "estimated"


def test_every_number_is_finite(profile: HardwareProfile) -> None:
    numbers = [row.value for row in describe(profile) if isinstance(row.value, float)]

    assert all(map(math.isfinite, numbers))
    assert len(numbers) >= 30
