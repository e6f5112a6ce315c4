import pytest
from builders import small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from strategies import model_specs, traces

from tidesim.errors import CapacityError
from tidesim.memory import RESERVE_BYTES, Extent, budget_for, extent, gigabytes, plan
from tidesim.model_spec import MODELS
from tidesim.trace.passes import Window
from tidesim.trace.windows import windowed

MINI = MODELS["llada2.0-mini"]
BLOCK = Extent(tokens=512, decoded=32, cached=1024)


def test_parts_of_a_plan_are_those_of_the_model():
    memory = plan(MINI, BLOCK, slots=19 * 64, scratch_slots=3)

    assert memory.non_expert_bytes == MINI.non_expert_bytes
    assert memory.slots_bytes == 19 * 64 * 6_291_456
    assert memory.scratch_bytes == 3 * 6_291_456
    assert memory.kv_bytes == 1024 * 40_960
    assert RESERVE_BYTES < memory.workspace_bytes < 1.1 * RESERVE_BYTES
    parts = memory.to_json()
    assert parts.pop("total_bytes") == sum(parts.values()) == memory.total_bytes


@pytest.mark.parametrize(("budget", "published_gb"), [(64, 10), (128, 18)])
def test_mini_takes_about_what_the_paper_reports(budget, published_gb):
    """arXiv 2605.20179 lists 10 GB at budget 64 and 18 GB at budget 128."""
    memory = plan(MINI, BLOCK, slots=19 * budget)

    assert memory.total_bytes / 1e9 == pytest.approx(published_gb, rel=0.15)


def test_the_reference_engine_keeps_no_keys_but_computes_all_logits():
    trace = steps_trace(small_spec(), [[[1, 1, 1]]] * 4, steps_per_block=2)

    assert extent(trace, Window.BLOCK) == Extent(tokens=3, decoded=3, cached=6)
    assert extent(trace, Window.FULL) == Extent(tokens=6, decoded=6, cached=0)


@given(traces(), st.sampled_from(Window))
def test_no_pass_exceeds_the_extent(trace, window):
    size = extent(trace, window)

    for pass_ in trace:
        assert pass_.tokens <= size.tokens
    if window is Window.BLOCK:
        for seen in windowed(trace, window):
            assert seen.tokens + seen.context <= size.cached


@given(model_specs(), st.integers(0, 2**34), st.integers(0, 3))
def test_the_budget_found_is_the_largest_that_fits(spec, memory_bytes, scratch):
    def total(budget):
        slots = spec.moe_layers * budget
        return plan(spec, BLOCK, slots=slots, scratch_slots=scratch).total_bytes

    try:
        found = budget_for(spec, BLOCK, memory_bytes, scratch_slots=lambda _: scratch)
    except CapacityError:
        assert total(spec.num_experts_per_tok) > memory_bytes
    else:
        assert total(found) <= memory_bytes
        assert found == spec.num_experts or total(found + 1) > memory_bytes


def test_too_little_memory_is_refused_with_the_smallest_that_would_do():
    needed = plan(MINI, BLOCK, slots=19 * 8).total_bytes
    named = gigabytes(needed, up=True)

    assert budget_for(MINI, BLOCK, needed) == 8
    with pytest.raises(CapacityError, match=rf"smallest memory that would do is {named}"):
        budget_for(MINI, BLOCK, needed - 1)


@pytest.mark.parametrize(
    ("num_bytes", "down", "up"),
    [(16e9, "16.00 GB", "16.00 GB"), (9_999_999_999, "9.99 GB", "10.00 GB")],
)
def test_gigabytes_round_to_the_safe_side(num_bytes, down, up):
    assert (gigabytes(num_bytes), gigabytes(num_bytes, up=True)) == (down, up)
