"""scheduled: each layer refreshes at its own steps, within its own slots."""

import numpy as np
import pytest
from builders import case_of, check_run, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from strategies import traces
from test_policies import setup_of, view_of
from test_schedule import made

from tidesim.errors import SettingError
from tidesim.policies.scheduled import Scheduled, follow
from tidesim.schedule import LayerSchedule
from tidesim.trace.passes import Kind


def layers(*rows):
    return tuple(LayerSchedule(budget=budget, refresh_steps=steps) for budget, steps in rows)


def policy_of(*rows, **changes):
    setup = setup_of(layers=len(rows), popularity=np.zeros((len(rows), 4)), **changes)
    return Scheduled(setup, layers=layers(*rows))


def test_a_layer_refreshes_at_its_steps_only():
    policy = policy_of((2, (0, 3)), interval=None)

    due = [policy.decide(view_of([0, 0, 1, 1], [0, 1], step=step)).refresh for step in range(5)]

    assert due == [True, False, False, True, False]
    commit = view_of([0, 0, 1, 1], [0, 1], step=3, kind=Kind.COMMIT)
    assert not policy.decide(commit).refresh


def test_an_interval_goes_on_beyond_the_steps_of_the_schedule():
    policy = policy_of((2, (0, 2)), interval=2)

    assert policy.decide(view_of([0, 0, 1, 1], [0, 1], step=4)).refresh


def test_layers_have_their_own_slots_and_one_may_never_refresh():
    spec = small_spec(num_hidden_layers=2, num_experts=4)
    trace = steps_trace(spec, [[[0, 1, 1, 1], [0, 1, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 0]]])
    rows = layers((3, (0, 1)), (1, ()))

    result = check_run(
        case_of(trace, policy=lambda setup: Scheduled(setup, layers=rows), interval=None)
    )

    assert result.budgets == (3, 1)
    assert (result.promotions, result.refreshes) == (1 + 1, 2)


@given(traces(max_requests=2), st.integers(1, 4), st.data())
def test_one_interval_in_every_layer_is_tide(trace, interval, data):
    model = trace.meta.model
    budget = data.draw(st.integers(model.num_experts_per_tok, model.num_experts))
    rows = layers(*[(budget, tuple(range(0, 9, interval)))] * model.moe_layers)
    common = {"budget": budget, "interval": interval}

    tide = list(case_of(trace, policy="tide", **common).placed())
    ours = case_of(trace, policy=lambda setup: Scheduled(setup, layers=rows), **common).placed()

    for one, other in zip(tide, ours, strict=True):
        assert one.decisions == other.decisions
        assert np.array_equal(one.resident, other.resident)


def test_a_schedule_of_another_policy_or_depth_is_refused():
    with pytest.raises(SettingError, match="which has no refresh steps to follow"):
        follow(made(policy="lru"))
    with pytest.raises(SettingError, match="the schedule has 2 layers but the model 1"):
        follow(made())(setup_of())
