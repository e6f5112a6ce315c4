"""Policies that work in the background: what a pass decides serves the next."""

from dataclasses import replace

import numpy as np
import pytest
from builders import case_of, check_run, small_spec, steps_trace
from test_policies import setup_of, view_of

from tidesim.engines import TIDE_REFERENCE, Promotion
from tidesim.errors import SettingError
from tidesim.placement import KEEP, Decision, replay
from tidesim.policies import make_policy
from tidesim.policies.capped_insert import CappedInsert
from tidesim.trace.passes import Kind, Window
from tidesim.trace.windows import windowed


@pytest.mark.parametrize("name", ["capped-insert", "previous-step"])
def test_they_have_background_promotion_only(name):
    assert make_policy(name, setup=setup_of()).promotion is Promotion.BACKGROUND
    with pytest.raises(SettingError, match="no blocking promotion; use background"):
        make_policy(name, setup=setup_of(promotion=Promotion.BLOCKING))


def test_capped_insert_promotes_two_a_pass_however_many_would_pay():
    policy = make_policy("capped-insert", setup=setup_of(8, budget=4))
    counts = [0, 0, 0, 0, 4, 5, 6, 7]

    first = policy.decide(view_of(counts, [0, 1, 2, 3], budget=4))
    second = policy.decide(view_of(counts, [2, 3, 6, 7], budget=4))
    third = policy.decide(view_of(counts, [4, 5, 6, 7], budget=4))

    assert first == Decision(promote=(7, 6), evict=(0, 1))
    assert second == Decision(promote=(5, 4), evict=(2, 3))
    assert third == KEEP


def test_capped_insert_leaves_a_resident_that_is_nearly_as_good():
    policy = make_policy("capped-insert", setup=setup_of(3, budget=1))

    assert policy.decide(view_of([8, 10, 0], [0], budget=1)) == KEEP  # 1.25 times is not over
    assert policy.decide(view_of([8, 11, 0], [0], budget=1)) == Decision(promote=(1,), evict=(0,))


def test_capped_insert_fills_free_slots_first_and_never_with_the_unused():
    policy = make_policy("capped-insert", setup=setup_of(4, budget=3))

    one_free = policy.decide(view_of([0, 9, 9, 9], [0, 1], budget=3))
    empty = make_policy("capped-insert", setup=setup_of(4, budget=3))

    assert one_free == Decision(promote=(2, 3), evict=(0,))
    assert empty.decide(view_of([0, 0, 1, 0], [], budget=3)) == Decision(promote=(2,))


def test_a_subclass_may_change_capped_inserts_constants():
    class Eager(CappedInsert):
        most, margin = 3, 1.0

    policy = Eager(setup_of(6, budget=3))

    assert policy.decide(view_of([1, 2, 3, 4, 5, 6], [0, 1, 2], budget=3)) == Decision(
        promote=(5, 4, 3), evict=(0, 1, 2)
    )


def test_averages_remember_so_one_quiet_pass_evicts_nobody():
    policy = make_policy("capped-insert", setup=setup_of(3, budget=1))

    for _ in range(3):
        assert policy.decide(view_of([9, 0, 0], [0], budget=1)) == KEEP

    assert policy.decide(view_of([0, 9, 0], [0], budget=1)) == KEEP
    assert policy.decide(view_of([0, 9, 0], [0], budget=1)) == Decision(promote=(1,), evict=(0,))


def test_a_long_prefill_weighs_as_much_as_a_step():
    policy = make_policy("capped-insert", setup=setup_of(2, budget=1))

    policy.decide(view_of([900, 0], [0], budget=1, kind=Kind.PREFILL))

    assert policy.decide(view_of([0, 2], [0], budget=1)).promote == (1,)


def test_previous_step_serves_each_step_with_the_busiest_of_the_step_before():
    counts = [[[0, 0, 3, 2]], [[3, 2, 0, 1]], [[0, 0, 1, 3]]]
    trace = steps_trace(small_spec(num_experts=4), counts)
    setup = setup_of(4, interval=None)
    policy = make_policy("previous-step", setup=setup)

    placed = list(replay(windowed(trace, Window.BLOCK), policy, setup))

    residents = [np.flatnonzero(one.resident).tolist() for one in placed]
    assert residents == [[0, 1], [2, 3], [0, 1]]
    assert [one.decisions[0].refresh for one in placed] == [True] * 3


def test_previous_step_refreshes_at_multiples_of_its_interval_one_unless_told():
    policy = make_policy("previous-step", setup=setup_of(interval=2))

    def refreshed(**place):
        return policy.decide(view_of([0, 0, 1, 1], [0, 1], **place)).refresh

    assert [refreshed(step=step) for step in range(4)] == [True, False] * 2
    assert not refreshed(kind=Kind.COMMIT)
    assert policy.interval == 2
    assert make_policy("previous-step", setup=setup_of(interval=None)).interval == 1
    with pytest.raises(SettingError, match="give an interval of 1 or more"):
        make_policy("previous-step", setup=setup_of(interval=0))


@pytest.mark.parametrize("name", ["capped-insert", "previous-step"])
def test_they_run(name):
    counts = [[[1, 0, 9, 4, 2]], [[0, 1, 4, 9, 2]], [[5, 0, 5, 1, 9]]]
    case = case_of(steps_trace(small_spec(num_experts=5), counts), policy=name, budget=2)

    result = check_run(case)

    assert result.promotions > 0
    assert check_run(replace(case, setup=replace(case.setup, engine=TIDE_REFERENCE))).promotions > 0
