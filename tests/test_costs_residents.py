"""Residents replayed for cost tables, features of prices, and what follows a block."""

from dataclasses import replace

import numpy as np
from builders import case_of, small_spec, steps_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

from tidesim.costs.blocks import Block, TrainingBlocks, with_onward
from tidesim.costs.features import factorised
from tidesim.costs.ordered import Option, Ordered
from tidesim.costs.residents import Replay, initial_residents
from tidesim.placement import Decision, LayerView
from tidesim.policies.tide import busiest, refresh_to
from tidesim.trace.passes import Kind


@settings(deadline=None)
@given(traces(max_requests=1, max_blocks=2), st.data())
def test_replayed_residents_are_those_of_the_policys_rule_layer_by_layer(trace, data):
    case = case_of(trace)
    L, E = case.setup.layers, case.setup.num_experts
    limits = st.sampled_from((1, 2, None))
    options = data.draw(st.lists(st.builds(Option, st.integers(1, E), limits), min_size=1))
    training = TrainingBlocks.of(case)
    due = np.array(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=L, max_size=L),
                min_size=training.steps,
                max_size=training.steps,
            )
        )
    )
    initial = initial_residents(case.setup, options)
    replay, expected = Replay(options, initial=initial, due=due), initial.copy()

    for block in training:
        if not block.steps:
            continue
        counts = np.stack([pass_.counts for pass_ in block.steps], axis=1)
        ordered = Ordered(counts, np.array([option.budget for option in options]))
        chosen = replay.block(ordered, len(block.steps), always=False)
        for step in range(len(block.steps)):
            for layer, number in np.ndindex(L, len(options)):
                before, option = expected[layer, number], options[number]
                after = refreshed(before, counts[layer, step], option)
                assert np.array_equal(chosen[layer, number, step], after)
                if due[step, layer]:
                    expected[layer, number] = after
    assert np.array_equal(replay.residents, expected)


def refreshed(before, counts, option):
    """Return the residents after the policy's refresh."""
    view = LayerView(0, 0, 0, 0, 0, Kind.DENOISE, counts, before, option.budget)
    decision = refresh_to(busiest(counts, option.budget), view, most=option.promotions)
    assert isinstance(decision, Decision)
    after = before.copy()
    after[list(decision.evict)] = False
    after[list(decision.promote)] = True
    return after


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_a_matrix_is_the_product_of_its_factors_to_the_digits_of_each_column(n, m, data):
    magnitudes = st.floats(1e-9, 1e3)
    row = np.array(data.draw(st.lists(magnitudes, min_size=n, max_size=n)))
    column = np.array(data.draw(st.lists(magnitudes, min_size=m, max_size=m)))
    added = data.draw(st.floats(0, 1e3))
    table = added + np.outer(row, column)

    left, right = factorised(table)

    assert np.all(np.abs(left @ right - table) <= 1e-12 * table.max(axis=0))
    assert left.shape[1] <= 2


def test_a_matrix_of_nothing_has_factors_of_nothing():
    left, right = factorised(np.zeros((3, 2)))

    assert np.array_equal(left @ right, np.zeros((3, 2)))


def onward(*lengths, first_steps, always=()):
    """Return, per block of some steps with a commit pass, what follows: pass, stays, refreshes."""
    spec = small_spec(num_experts=2)
    blocks = []
    for number, steps in enumerate(lengths):
        *denoise, commit = steps_trace(spec, [[[3, 0]]] * (steps), commits=True)
        blocks.append(
            Block(
                steps=[replace(pass_, block=number) for pass_ in denoise],
                after=[replace(commit, block=number)],
                refreshes_always=number in always,
            )
        )
    return [
        [
            (
                f"{each.pass_.kind[0]}{each.pass_.block}.{each.pass_.step}",
                np.flatnonzero(each.stays).tolist(),
                np.flatnonzero(each.refreshes).tolist(),
            )
            for each in later
        ]
        for _, later in with_onward(blocks, first_steps)
    ]


def test_a_block_is_followed_until_every_schedule_has_refreshed_again():
    assert onward(3, 3, first_steps=2) == [
        [("c0.3", [0, 1], []), ("d1.0", [1], [0]), ("d1.1", [], [1])],
        [("c1.3", [0, 1], [])],
    ]


def test_a_block_too_short_for_a_first_refresh_is_passed_with_its_commit():
    """Block 1 has one step: the schedule that refreshes first at step 1 does so in block 2."""
    assert onward(2, 1, 2, first_steps=2)[0] == [
        ("c0.2", [0, 1], []),
        ("d1.0", [1], [0]),
        ("c1.1", [1], []),
        ("d2.0", [1], []),
        ("d2.1", [], [1]),
    ]


def test_a_block_that_always_refreshes_ends_the_wait_of_every_schedule():
    assert onward(2, 1, first_steps=2, always=(1,))[0] == [
        ("c0.2", [0, 1], []),
        ("d1.0", [], [0, 1]),
    ]
