"""full-knowledge: what it holds, and that nothing with as many slots serves more."""

from dataclasses import replace

import numpy as np
import pytest
from builders import FakeLatency, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from strategies import traces

from tidesim.engines import TIDESIM, Promotion
from tidesim.errors import SettingError
from tidesim.placement import Setup, popularity, replay
from tidesim.policies import POLICIES, make_policy
from tidesim.trace.passes import Window
from tidesim.trace.windows import windowed


def setup_for(trace, *, budget):
    model = trace.meta.model
    return Setup(
        num_experts=model.num_experts,
        layers=model.moe_layers,
        budget=budget,
        popularity=popularity(trace) + 1.0,
        engine=TIDESIM,
        latency=FakeLatency(),
        interval=2,
        future=lambda: windowed(trace, Window.BLOCK),
    )


def place(trace, name, setup):
    return list(replay(windowed(trace, Window.BLOCK), make_policy(name, setup=setup), setup))


def test_it_spends_the_slots_on_the_busiest_cells_of_all_layers():
    counts = [[[5, 4, 3], [2, 1, 0]], [[0, 0, 0], [1, 1, 1]], [[2, 2, 2], [2, 2, 2]]]
    trace = steps_trace(small_spec(num_hidden_layers=2), counts)

    first, few, tied = place(trace, "full-knowledge", setup_for(trace, budget=1))

    assert first.resident.tolist() == [[True, True, False], [False, False, False]]
    assert few.resident.tolist() == [[False, False, False], [True, True, False]]
    assert tied.resident.tolist() == [[True, True, False], [False, False, False]]
    assert all(decision.free for decision in first.decisions)


def test_it_is_a_limit_that_knows_the_future_and_needs_it():
    setup = setup_for(steps_trace(small_spec(), [[[1, 1, 1]]]), budget=1)
    policy = make_policy("full-knowledge", setup=setup)

    assert (policy.is_bound, policy.knows_future) == (True, True)
    assert policy.budgets(setup).tolist() == [3]
    assert not policy.initial(setup).any()
    with pytest.raises(SettingError, match="full-knowledge knows the passes to come"):
        make_policy("full-knowledge", setup=replace(setup, future=None))
    with pytest.raises(SettingError, match="no background promotion"):
        make_policy("full-knowledge", setup=replace(setup, promotion=Promotion.BACKGROUND))


@given(traces(max_blocks=2), st.sampled_from(sorted(set(POLICIES) - {"all-gpu"})), st.data())
def test_no_policy_with_as_many_slots_serves_more_tokens_of_any_pass(trace, name, data):
    model = trace.meta.model
    setup = setup_for(trace, budget=data.draw(st.integers(1, model.num_experts)))

    limit, other = place(trace, "full-knowledge", setup), place(trace, name, setup)

    for best, one in zip(limit, other, strict=True):
        assert np.count_nonzero(best.resident) <= model.moe_layers * setup.budget
        assert best.hits.sum() >= one.hits.sum()
