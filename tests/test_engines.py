import pytest

from tidesim.engines import ENGINES, TIDE_REFERENCE, TIDESIM, get_engine
from tidesim.errors import SettingError
from tidesim.trace.passes import Window


def test_engines_are_found_by_name():
    assert get_engine("tide-reference") is TIDE_REFERENCE
    assert get_engine("tidesim") is TIDESIM
    assert [engine.name for engine in ENGINES.values()] == list(ENGINES)


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(SettingError, match=r"'tide' is not known; use one of: tidesim, tide-ref"):
        get_engine("tide")


def test_the_reference_pays_every_cost_that_tidesim_avoids():
    assert TIDE_REFERENCE.window is Window.FULL
    assert TIDESIM.window is Window.BLOCK
    costs = ("write_back", "looped", "refresh_first_block")
    assert all(getattr(TIDE_REFERENCE, cost) for cost in costs)
    assert not any(getattr(TIDESIM, cost) for cost in costs)
    assert (TIDE_REFERENCE.copies_per_expert, TIDESIM.copies_per_expert) == (3, 1)
