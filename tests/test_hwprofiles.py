"""Bundled profiles: complete, physically plausible, every number with a public source."""

import math
import re

import pytest

from tidesim.errors import FormatError
from tidesim.hardware import HardwareProfile, describe, load_profile, profile_names
from tidesim.latency import Direction, Latency, needed_keys
from tidesim.model_spec import load_model_spec

# Bytes per second and direction of a link, by what a profile's name says of it.
LINK_BYTES_PER_S = {"pcie4x8": 16e9, "pcie4": 32e9, "pcie5": 64e9, "c2c": 450e9}
# Published peaks: memory bytes per second, dense bf16 FLOP/s where one was found that holds.
GPU_PEAKS: dict[str, tuple[float, float | None]] = {
    "a100-40gb": (1555e9, 312e12),
    "a100-80gb-sxm": (2039e9, 312e12),
    "a6000-48gb": (768e9, 154.8e12),
    "dgx-spark-128gb": (273e9, None),
    "gh200-96gb": (4000e9, 989e12),
    "h100-80gb-pcie": (2000e9, 756.5e12),
    "h100-80gb-sxm": (3350e9, 989e12),
    "h200-141gb-sxm": (4800e9, 989e12),
    "jetson-agx-thor-128gb": (273e9, None),
    "l40s-48gb": (864e9, 362.05e12),
    "rtx3090-24gb": (936e9, None),
    "rtx4060-8gb": (256e9, None),
    "rtx4090-24gb": (1008e9, 165.2e12),
    "rtx5090-32gb": (1792e9, None),
    "rtxpro6000-96gb": (1792e9, 467.8e12),
}
# Machines of which too little is known to simulate a run, with the first key that is missing.
INCOMPLETE = {"jetson-agx-thor-128gb-unified": "gpu.launch_s"}
COMPLETE = [name for name in profile_names() if name not in INCOMPLETE]
UNIFIED = "dgx-spark-128gb-unified"  # one memory: a copy takes no time
ENGINES = ("tide-reference", "tidesim")


@pytest.fixture(params=profile_names())
def profile(request: pytest.FixtureRequest) -> HardwareProfile:
    """Any machine."""
    return load_profile(str(request.param))


@pytest.fixture(params=COMPLETE)
def complete(request: pytest.FixtureRequest) -> HardwareProfile:
    """A machine that runs can be simulated on."""
    return load_profile(str(request.param))


@pytest.fixture(params=[name for name in COMPLETE if name != UNIFIED])
def linked(request: pytest.FixtureRequest) -> HardwareProfile:
    """A machine whose GPU has a memory of its own."""
    return load_profile(str(request.param))


def test_at_least_twelve_machines_can_be_simulated() -> None:
    assert len(COMPLETE) >= 12
    assert set(GPU_PEAKS) == {
        gpu for gpu in GPU_PEAKS for name in profile_names() if name.startswith(f"{gpu}-")
    }
    assert len(GPU_PEAKS) == len(profile_names())


def test_a_profile_bears_the_name_of_its_file() -> None:
    assert [load_profile(name).name for name in profile_names()] == profile_names()


def test_every_engine_can_run(complete: HardwareProfile) -> None:
    for engine in ENGINES:
        for pinned in (True, False):
            assert complete.missing(needed_keys(engine, pinned=pinned)) == []
    assert complete.missing(("gpu.memory_bytes", "cpu.cores", "cpu.memory_bytes_per_s")) == []


@pytest.mark.parametrize(("name", "key"), INCOMPLETE.items())
def test_a_machine_of_which_too_little_is_known_says_what_is_missing(name: str, key: str) -> None:
    profile = load_profile(name)

    assert profile.missing(needed_keys("tidesim", pinned=True))[0] == key
    with pytest.raises(FormatError, match=rf"{name}.*{key} is missing but needed"):
        profile.value(key)


def test_what_a_machine_costs_and_draws_is_plausible_where_it_is_known(
    profile: HardwareProfile,
) -> None:
    assert 100 <= profile.value("machine.power_w") <= 1000
    for key, low, high in (
        ("machine.price_usd", 500, 50_000),
        ("machine.cloud_usd_per_h", 0.1, 10),
    ):
        if not profile.missing((key,)):
            assert low <= profile.value(key) <= high


def test_every_source_says_something_public(profile: HardwareProfile) -> None:
    for row in describe(profile):
        assert len(row.source) > 10 or row.source == "as cpu_factor", row.key
        assert not re.search(r"(^|[\s'\"(])/(work|home|tmp|root|mnt|usr)\b|facts/", row.source)
        if row.kind != "estimated":
            assert re.search(r"https://|github:|arXiv", row.source), row.key


def test_a_link_is_slower_than_its_generation_and_pageable_slower_than_pinned(
    linked: HardwareProfile,
) -> None:
    peak = next(rate for name, rate in LINK_BYTES_PER_S.items() if f"-{name}-" in linked.name)
    for direction in ("h2d", "d2h"):
        pinned = linked.value(f"link.{direction}_bytes_per_s")
        pageable = linked.value(f"link.{direction}_pageable_bytes_per_s")

        assert 0.6 * peak <= pinned <= 0.95 * peak
        assert 0.25 * pinned <= pageable <= 0.8 * pinned
    assert 1e-6 <= linked.value("link.latency_s") <= 2e-5


def test_a_copy_within_one_memory_takes_no_time() -> None:
    unified = load_profile(UNIFIED)
    sizes = load_model_spec("llada2.0-flash")

    for engine in ENGINES:
        latency = Latency(unified, sizes, engine=engine)
        for pinned in (True, False):
            copy_s = latency.expert_copy_s(1, Direction.H2D, pinned=pinned)

            assert copy_s < 0.01 * unified.value("gpu.launch_s")
    assert unified.value("gpu.memory_bytes") == unified.value("cpu.memory_bytes")
    assert unified.value("cpu.memory_bytes_per_s") <= unified.value("gpu.memory_bytes_per_s")


def test_a_gpu_stays_below_its_peaks(profile: HardwareProfile) -> None:
    rate, flops = next(peaks for gpu, peaks in GPU_PEAKS.items() if profile.name.startswith(gpu))

    assert 0.8 * rate <= profile.value("gpu.memory_bytes_per_s") <= rate
    if flops is not None:
        assert 0.65 * flops <= profile.value("gpu.flops_bf16") <= flops


def test_a_fused_call_takes_longer_than_a_launch(complete: HardwareProfile) -> None:
    launch_s = complete.value("gpu.launch_s")

    assert 1e-6 <= launch_s <= 1e-5
    assert launch_s <= complete.value("gpu.fused_call_s") <= 1e-4


def test_a_host_reads_experts_no_faster_than_memory(complete: HardwareProfile) -> None:
    memory = complete.value("cpu.memory_bytes_per_s")
    experts = complete.value("cpu.expert_bytes_per_s")

    assert 0.45 * memory <= experts <= 0.95 * memory
    # An expert's time is flat up to this many tokens: bf16 has 2 bytes and 2 FLOPs per weight.
    assert 12 <= complete.value("cpu.flops_bf16") / experts <= 128


def test_a_memory_of_its_own_makes_a_gpu_five_times_as_fast_as_its_host(
    linked: HardwareProfile,
) -> None:
    assert linked.value("cpu.memory_bytes_per_s") < linked.value("gpu.memory_bytes_per_s") / 5


def test_cpu_experts_and_copies_together_do_not_exceed_memory(linked: HardwareProfile) -> None:
    together = linked.value("cpu.expert_bytes_per_s") * linked.value("contention.cpu_factor")
    together += linked.value("link.h2d_bytes_per_s") * linked.value("contention.h2d_factor")

    assert together <= 0.96 * linked.value("cpu.memory_bytes_per_s")


def test_engine_costs_are_microseconds_and_the_reference_is_no_cheaper(
    complete: HardwareProfile,
) -> None:
    for key in ("gpu_expert_call_s", "cpu_expert_call_s", "copy_call_s", "sync_s", "decide_s"):
        own = complete.value(f"engine.tidesim.{key}")
        reference = complete.value(f"engine.tide-reference.{key}")
        is_free = key == "copy_call_s" and complete.name == UNIFIED

        assert (0 if is_free else 1e-6) <= own <= reference <= 2e-4
        assert complete.kind_of(f"engine.tidesim.{key}") == "estimated"


def test_every_number_is_finite(complete: HardwareProfile) -> None:
    numbers = [row.value for row in describe(complete) if isinstance(row.value, float)]

    assert all(map(math.isfinite, numbers))
    assert len(numbers) >= 30
