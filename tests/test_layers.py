"""A part of a model: the first mixture layers of a trace and of its schedule."""

import numpy as np
import pytest

from tests.test_schedule import made
from tidesim.errors import SettingError
from tidesim.schedule import first_layers as first_layers_of_schedule
from tidesim.trace.io import load_trace, save_trace
from tidesim.trace.layers import first_layers
from tidesim.trace.windows import windowed


@pytest.mark.parametrize("window", ["block", "full"])
def test_the_first_layers_count_as_in_the_whole(window):
    whole = load_trace("tide-tiny-mixed").only([35])

    part = first_layers(whole, 2)

    assert part.meta.model.moe_layers == 2
    assert part.sha256 == ""
    for cut, pass_ in zip(windowed(part, window), windowed(whole, window), strict=True):
        assert cut.key == pass_.key
        assert np.array_equal(cut.counts, pass_.counts[:2])


def test_a_part_can_be_stored(tmp_path):
    save_trace(first_layers(load_trace("tide-tiny-mixed").only([35]), 1), tmp_path / "t.parquet")

    assert load_trace(tmp_path / "t.parquet").meta.model.moe_layers == 1


@pytest.mark.parametrize("count", [0, 5, -1])
def test_layers_that_are_not_there_are_refused(count):
    with pytest.raises(SettingError, match=f"layers are {count} but must be 1 to 4"):
        first_layers(load_trace("tide-tiny-mixed"), count)


def test_a_schedule_is_cut_likewise():
    plan = made()

    part = first_layers_of_schedule(plan, 1)

    assert (part.model.moe_layers, part.layers) == (1, plan.layers[:1])
    with pytest.raises(SettingError, match="layers are 99"):
        first_layers_of_schedule(plan, 99)
