"""Plan: how sure a prediction is, and what one part twice as good would give."""

from dataclasses import replace

import pytest
from planning import A100, KEYS, METHOD, MINI, RTX4090, SPARK, TIGHT, made, requests

from tidesim.hardware import load_profile
from tidesim.overrides import overridden
from tidesim.plan import (
    RUN_ERROR,
    Site,
    assess,
)
from tidesim.plan.assess import upgraded
from tidesim.plan.band import CALL_SPREAD, RATE_SPREAD, band_of
from tidesim.plan.kept import Kept
from tidesim.plan.upgrades import PARTS
from tidesim.simulate import prepare


@pytest.fixture(scope="module")
def trace():
    return requests()


@pytest.fixture(scope="module")
def found():
    return made()


@pytest.fixture(scope="module")
def tight(found):
    """The A100 with little memory."""
    return next(row for row in found.rows if (row.hardware, row.memory_gb) == (A100, 3.45)).found


# ── band ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def kept(trace):
    return Kept.of(
        prepare(trace, load_profile(A100), policy="tide", interval=4, budget=16, sizes=MINI)
    )


def on(kept, profile):
    """Return the same run with another profile as its own."""
    engine = kept.case.setup.engine.name
    latency = type(kept.case.latency)(profile, kept.case.spec, engine=engine)
    return replace(kept, case=replace(kept.case, latency=latency))


def test_a_measured_machine_has_the_simulators_own_error_alone(kept):
    profile = load_profile(A100)
    values = {key: profile.value(key) for key in KEYS}
    measured = on(kept, profile.calibrated(values, source="a test"))

    band = band_of(measured)

    speed = kept.result.tokens_per_s
    assert band.measured == 1
    assert band.low == pytest.approx(speed * (1 - RUN_ERROR))
    assert band.high == pytest.approx(speed * (1 + RUN_ERROR))


def test_the_band_of_published_numbers_is_wider_by_what_moving_them_does(kept):
    profile = load_profile(A100)
    unsure = [key for key in KEYS if profile.kind_of(key) != "measured"]
    slow, fast = {}, {}
    for key in unsure:
        value, by = profile.value(key), CALL_SPREAD if key.startswith("engine.") else RATE_SPREAD
        is_rate = key.endswith(("_per_s", "flops_bf16", "_factor"))
        less, more = value / by, value * by
        slow[key], fast[key] = (less, more) if is_rate else (more, less)
        if key.endswith("_factor"):
            fast[key] = min(1.0, more)
    assert "contention.cpu_factor" in unsure  # which is 1, and no share is more

    band = band_of(kept, run_error=0.0)

    assert band.low == pytest.approx(kept.on(profile.with_overrides(slow)))
    assert band.high == pytest.approx(kept.on(profile.with_overrides(fast)))
    assert band.low < kept.result.tokens_per_s < band.high
    assert band.measured == pytest.approx(1 - len(unsure) / len(KEYS))
    assert 0 < band.measured < 1


def test_what_an_engine_may_have_is_moved_where_it_has_it(trace):
    case = prepare(
        trace, load_profile(A100), policy="tide", interval=4, budget=16, sizes=MINI,
        engine="tide-reference",
    )  # fmt: skip
    reference = Kept.of(case)
    factor = "engine.tide-reference.cpu_rate_factor"
    value = load_profile(A100).value(factor)
    sure = on(reference, load_profile(A100).calibrated({factor: value}, source="a test"))

    assert band_of(reference).low < band_of(sure).low


@pytest.mark.parametrize("section", ["gpu", "cpu", "link", "engine"])
def test_measuring_a_part_makes_the_band_no_wider(kept, section):
    profile = load_profile(A100)
    values = {key: profile.value(key) for key in KEYS if key.startswith(section)}
    wide = band_of(kept)

    narrow = band_of(on(kept, profile.calibrated(values, source="a test")))

    assert wide.low <= narrow.low <= kept.result.tokens_per_s <= narrow.high <= wide.high
    assert narrow.high - narrow.low < wide.high - wide.low
    assert narrow.measured > wide.measured


def test_a_number_that_a_what_if_supposes_is_not_moved(kept):
    supposed = overridden(load_profile(A100), [f"{key}=x1" for key in KEYS])

    band = band_of(on(kept, supposed), run_error=0.0)

    assert band.low == pytest.approx(band.high)


# ── upgrades ───────────────────────────────────────────────────────────────────────────────────────


def test_upgrades_come_with_the_most_helpful_first_and_none_harms(found):
    for row in found.rows:
        gains = [one.gain for one in row.found.upgrades]

        assert gains == sorted(gains, reverse=True)
        assert min(gains) >= -1e-12
        for one in row.found.upgrades:
            assert one.tokens_per_s == pytest.approx(row.tokens_per_s * (1 + one.gain))


def test_memory_is_an_upgrade_where_all_of_it_is_used(found):
    every = {part.name for part in PARTS}
    for row in found.rows:
        whole = row.name == row.hardware

        assert {one.name for one in row.found.upgrades} == every - (
            set() if whole else {"GPU memory"}
        )


def test_where_memory_is_short_an_upgrade_helps_and_where_all_fits_none_does(found):
    by_name = {row.name: row for row in found.rows}

    assert by_name[f"{A100}, 3.45 GB"].best_upgrade.gain > 0.05
    assert by_name[A100].found.result.hit_rate == 1
    assert by_name[A100].best_upgrade is None


def test_one_part_of_an_upgraded_machine_is_twice_as_good(tight):
    profile = tight.site.profile
    by_name = {part.name: upgraded(tight.site, part) for part in PARTS}

    link = by_name["link generation"].profile
    assert link.value("link.h2d_bytes_per_s") == 2 * profile.value("link.h2d_bytes_per_s")
    assert link.value("link.d2h_pageable_bytes_per_s") == 2 * profile.value(
        "link.d2h_pageable_bytes_per_s"
    )
    memory = by_name["GPU memory"]
    assert memory.memory_bytes == 2 * TIGHT
    assert memory.profile.value("gpu.memory_bytes") == 2 * profile.value("gpu.memory_bytes")
    cores = by_name["CPU cores"].profile
    assert cores.value("cpu.flops_bf16") == 2 * profile.value("cpu.flops_bf16")
    channels = by_name["DRAM channels"].profile
    rate = "cpu.expert_bytes_per_s"
    assert channels.value(rate) == 2 * profile.value(rate)
    for name, changed in {"link": link, "cpu": cores}.items():
        others = [key for key in KEYS if not key.startswith(f"{name}.")]
        assert [changed.value(key) for key in others] == [profile.value(key) for key in others]
    assert channels.value("gpu.memory_bytes_per_s") == profile.value("gpu.memory_bytes_per_s")


@pytest.mark.parametrize("name", [A100, RTX4090, SPARK])
def test_more_cores_read_weights_no_faster_than_memory(name):
    profile = load_profile(name)
    (cores,) = (part for part in PARTS if part.name == "CPU cores")

    rate = cores.replaced(profile)["cpu.expert_bytes_per_s"]

    dram, now = profile.value("cpu.memory_bytes_per_s"), profile.value("cpu.expert_bytes_per_s")
    assert rate == min(2 * now, max(dram, now))
    assert rate > now


def test_a_faster_link_is_nothing_to_a_machine_of_one_memory(trace):
    site = Site(profile=load_profile(SPARK), memory_bytes=TIGHT)

    found = assess(trace, site, replace(METHOD, promotions=("blocking",)))

    gains = {one.name: one.gain for one in found.upgrades}
    assert gains["link generation"] == pytest.approx(0, abs=1e-6)


def test_more_channels_of_one_memory_are_the_gpus_too():
    profile = load_profile(SPARK)
    (channels,) = (part for part in PARTS if part.name == "DRAM channels")

    replaced = channels.replaced(profile)

    rate = "gpu.memory_bytes_per_s"
    assert replaced[rate] == 2 * profile.value(rate)
