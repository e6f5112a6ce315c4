"""Derivatives: what a faster part gains, against what must hold of any machine."""

import pytest
from builders import case_of, small_spec, steps_trace
from hypothesis import given, settings
from strategies_hardware import profiles

from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.hardware import load_profile
from tidesim.latency import Latency
from tidesim.simulate import derivatives
from tidesim.simulate.derivatives import faster, parts
from tidesim.simulate.fast import run_fast

A100 = load_profile("a100-40gb-pcie4-xeon48")
TRACE = steps_trace(small_spec(), [[[0, 2, 1]], [[2, 1, 0]], [[1, 1, 1]]])


def case_on(profile, engine=TIDESIM, **settings):
    latency = Latency(profile, TRACE.meta.model, engine=engine.name)
    return case_of(TRACE, engine=engine, latency=latency, **settings)


@settings(max_examples=30)
@given(profiles())
def test_where_nothing_overlaps_the_parts_add_up_to_the_whole(profile):
    """Every second is one part's: time saved by all of them is a tenth of the rate's time."""
    gains = derivatives(case_on(profile, TIDE_REFERENCE))

    saved = sum(gain / (1 + gain) for gain in gains.values())
    assert saved == pytest.approx(1 - 1 / 1.1, rel=1e-6)
    assert all(gain >= -1e-12 for gain in gains.values())


def test_the_part_that_bounds_a_run_gains_most():
    link, cpu = ({"link.h2d_bytes_per_s": 1e4}, {"cpu.expert_bytes_per_s": 1e3})
    bounds = {
        part: derivatives(case_on(A100.with_overrides(slow), policy=policy))
        for part, slow, policy in (("link", link, "tide"), ("cpu", cpu, "all-cpu"))
    }

    for part, gains in bounds.items():
        assert max(gains, key=gains.get) == part
        assert gains[part] == pytest.approx(0.1, abs=0.01)


def test_all_parts_together_make_a_run_as_much_faster():
    keys = tuple(key for names in parts(A100, "tidesim").values() for key in names)

    slow, fast = (run_fast(case_on(each)) for each in (A100, faster(A100, keys, by=0.1)))

    assert slow.seconds / fast.seconds == pytest.approx(1.1, rel=1e-9)


def test_keys_a_machine_lacks_are_left_out():
    data = A100.model_dump(by_alias=True, exclude_none=True)
    del data["link"]["h2d_pageable_bytes_per_s"]
    poorer = type(A100).from_dict(data)

    assert "link.h2d_pageable_bytes_per_s" not in parts(poorer, "tidesim")["link"]
    assert set(parts(A100, "tidesim")) == {"link", "cpu", "gpu", "launches", "host"}
