"""scheduled: each layer refreshes at its own steps, within its own slots."""

import numpy as np
import pytest
from builders import assert_same_run, case_of, check_run, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from strategies import traces
from test_policies import setup_of, view_of
from test_schedule import made

from tidesim.engines import TIDE_REFERENCE, Promotion
from tidesim.errors import SettingError
from tidesim.policies.scheduled import Scheduled, follow
from tidesim.schedule import LayerSchedule
from tidesim.simulate.fast import run_fast
from tidesim.trace.passes import Kind


def layers(*rows):
    """Make layers from budget, steps and, if given, the limit and the first residents."""
    names = ("budget", "refresh_steps", "most_promotions", "initial")
    return tuple(LayerSchedule(**dict(zip(names, row, strict=False))) for row in rows)


def policy_of(*rows, **changes):
    setup = setup_of(layers=len(rows), popularity=np.zeros((len(rows), 4)), **changes)
    return Scheduled(setup, layers=layers(*rows))


def test_a_layer_refreshes_at_its_steps_only():
    policy = policy_of((2, (0, 3)), interval=None)

    due = [policy.decide(view_of([0, 0, 1, 1], [0, 1], step=step)).refresh for step in range(5)]

    assert due == [True, False, False, True, False]
    commit = view_of([0, 0, 1, 1], [0, 1], step=3, kind=Kind.COMMIT)
    assert not policy.decide(commit).refresh


def test_layers_differ_in_their_first_step_and_without_interval_nothing_refreshes_later():
    policy = policy_of((2, (1, 2)), (2, ()), (2, (0,)), interval=None)

    due = [
        [
            policy.decide(view_of([0, 0, 1, 1], [0, 1], step=step)._replace(layer=layer)).refresh
            for step in range(6)
        ]
        for layer in range(3)
    ]

    assert due == [[False, True, True] + [False] * 3, [False] * 6, [True] + [False] * 5]


def test_a_layer_promotes_no_more_than_its_limit():
    policy = policy_of((2, (0,), 1), (2, (0,)), interval=None)

    promoted = [
        policy.decide(view_of([0, 0, 1, 2], [0, 1])._replace(layer=layer)).promote
        for layer in range(2)
    ]

    assert promoted == [(3,), (2, 3)]


def test_first_residents_are_those_named_and_otherwise_the_engines_choice():
    popular = np.array([[0, 1, 2, 3]] * 3)
    setup = setup_of(layers=3, popularity=popular)
    rows = layers((2, (0,), None, (0, 2)), (2, (0,)), (3, (0,), None, ()))

    initial = Scheduled(setup, layers=rows).initial(setup)

    assert [np.flatnonzero(row).tolist() for row in initial] == [[0, 2], [2, 3], []]


def test_the_first_generated_block_of_the_reference_engine_refreshes_layers_that_never_do():
    policy = policy_of((2, (), 1), interval=None, engine=TIDE_REFERENCE)

    first, later = (
        policy.decide(view_of([0, 0, 1, 2], [0, 1], step=5, generated_block=block))
        for block in (0, 1)
    )

    assert (first.promote, first.evict) == ((3,), (0,))
    assert not later.refresh


@st.composite
def scheduled(draw):
    """Return a trace, and layers of all kinds for its model."""
    trace = draw(traces(max_requests=2))
    model = trace.meta.model
    budgets = st.integers(model.num_experts_per_tok, model.num_experts)
    steps = st.sets(st.integers(0, 4)).map(sorted)
    ids = st.sets(st.integers(0, model.num_experts - 1), max_size=model.num_experts_per_tok)
    row = st.tuples(budgets, steps, st.none() | st.integers(1, 3), ids.map(sorted))
    return trace, layers(*[draw(row) for _ in range(model.moe_layers)])


@given(scheduled())
def test_in_the_background_the_same_decisions_serve_from_the_next_pass_on(drawn):
    trace, rows = drawn
    made_by = {"policy": lambda setup: Scheduled(setup, layers=rows), "interval": None}

    blocking, background = (
        list(case_of(trace, **made_by, promotion=promotion).placed()) for promotion in Promotion
    )

    experts = np.arange(trace.meta.model.num_experts)
    before = np.array([np.isin(experts, row.initial) for row in rows])
    for one, other in zip(blocking, background, strict=True):
        assert one.decisions == other.decisions
        assert np.array_equal(other.resident, before)
        before = one.resident


@given(scheduled(), st.sampled_from(list(Promotion)))
def test_layers_of_all_kinds_keep_every_rule_of_a_run_by_both_methods(drawn, promotion):
    trace, rows = drawn
    case = case_of(
        trace,
        policy=lambda setup: Scheduled(setup, layers=rows),
        interval=None,
        promotion=promotion,
    )

    result = check_run(case)

    assert_same_run(run_fast(case), result)
    for placement in case.placed():
        for layer, decision in zip(rows, placement.decisions, strict=True):
            assert len(decision.promote) <= (layer.most_promotions or layer.budget)
            assert not decision.refresh or placement.pass_.step in layer.refresh_steps


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
