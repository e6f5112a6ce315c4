"""Cost tables: hand arithmetic on a tiny case, and equality with the simulator on drawn ones."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from builders import FakeLatency, case_of, small_spec, steps_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from strategies_hardware import profile_dicts
from test_fast import HYBRIDS

from tidesim.closed_form import closed_form_terms
from tidesim.costs import FIRST_STEPS, Option, arc_costs
from tidesim.engines import TIDE_REFERENCE, TIDESIM, Promotion
from tidesim.errors import FormatError, SettingError
from tidesim.hardware import HardwareProfile
from tidesim.latency import Contention, Latency
from tidesim.placement import popularity
from tidesim.policies.scheduled import Scheduled
from tidesim.schedule import LayerSchedule
from tidesim.simulate.fast import run_fast
from tidesim.trace.passes import Kind, Trace

TWO_EXPERTS = [[[3, 0]], [[0, 3]], [[1, 2]]]  # three steps of one layer
NEVER = ()


def two_experts(**settings):
    return case_of(steps_trace(small_spec(num_experts=2), TWO_EXPERTS), **settings)


def along(arcs, never, steps):
    """Return the sum along a layer's schedule of arcs [..., F, T, T + 1], or never [...]."""
    if not steps:
        return never
    ends = [*steps[1:], arcs.shape[-2]]
    return sum(arcs[..., steps[0], i, j] for i, j in zip(steps, ends, strict=True))


def cost(table, chosen, measure=None, number=0):
    """Return the cost of (option, steps) of every layer, or measure `number` of `measure`."""
    arcs, never, fixed = table.arc_cost_s, table.never_s, table.fixed_s
    if measure:
        arcs, never, fixed = (part[number] for part in (measure.arcs, measure.never, measure.fixed))
    layers = enumerate(chosen)
    return fixed + sum(
        along(arcs[layer, option], never[layer, option], steps) for layer, (option, steps) in layers
    )


def simulated(case, options, chosen):
    """Simulate (option, steps) of every layer."""
    rows = [
        LayerSchedule(
            budget=options[option].budget,
            refresh_steps=steps,
            most_promotions=options[option].promotions,
        )
        for option, steps in chosen
    ]
    setup = replace(case.setup, interval=None, budget=max(row.budget for row in rows))
    return run_fast(replace(case, policy=partial(Scheduled, layers=rows), setup=setup))


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────


def test_costs_of_two_experts_and_three_steps_are_those_worked_out_by_hand():
    """FakeLatency, budget 1, expert 0 resident at first.

    Hits alone take max(shared 2, no copy) + experts 3 = 5; a miss takes hidden 1 + CPU 16 +
    result 1 = 18 and hides hits and copies; hits after a promotion take copy 8 + experts 3 = 11.
    A pass has 12 s besides: attention 4, router 1, ids 1, sync 1, decide 1, combine 1, head 2,
    sync 1. What comes before the first refresh is on every arc into T = 3: step 0 finds its expert
    resident, 5 s, and if the first refresh is at step 1, 11 s more, at step 2 a miss and one more.
    """
    table = arc_costs(two_experts(), [Option(1)])

    before = [5, 5 + 11, 5 + 18 + 18]
    assert table.fixed_s == pytest.approx(3 * 12)
    assert table.arc_cost_s[0, 0].tolist() == [
        [[0, 11, 18 + 18, 18 + 18 + before[0]], [0, 0, 18, 18 + before[0]], [0, 0, 0, before[0]]],
        [[0] * 4, [0, 0, 18, 18 + before[1]], [0, 0, 0, before[1]]],
        [[0] * 4, [0] * 4, [0, 0, 0, before[2]]],
    ]
    assert table.never_s[0, 0] == pytest.approx(5 + 18 + 18)
    assert (table.steps, table.blocks, table.unfilled.tolist()) == (3, 1, [0.0])
    assert table.requests is None
    assert table.step_s is None
    assert table.copy_s == 8


def test_promotions_are_counted_at_the_step_that_makes_them():
    """Of the case above: step 1 promotes expert 1, step 2 does if it was expert 0 that stayed."""
    copies = arc_costs(two_experts(), [Option(1)]).copies

    assert copies.arcs[:, 0, 0, 0].tolist() == [
        np.zeros((3, 4)).tolist(),
        [[0, 1, 0, 0], [0] * 4, [0] * 4],
        [[0, 0, 1, 0], [0] * 4, [0] * 4],
    ]
    assert copies.arcs[1, 0, 0, 1].tolist() == [[0] * 4, [0, 0, 0, 1], [0, 0, 0, 1]]
    assert not copies.never.any()
    assert not copies.fixed.any()


def test_a_block_that_ends_early_pays_its_commit_and_the_next_block_on_the_arc_then_active():
    """Blocks of two steps and of one; the commit pass and the way over are on the arc into 2."""
    counts = [[[3, 0]], [[0, 3]], [[3, 0]]]
    spec = small_spec(num_experts=2)
    passes = list(steps_trace(spec, counts, steps_per_block=2, commits=True))
    trace = steps_trace(spec, counts, steps_per_block=2, commits=True)
    assert [pass_.kind for pass_ in passes] == [*[Kind.DENOISE] * 2, Kind.COMMIT, Kind.DENOISE]

    table = arc_costs(case_of(trace), [Option(1)])

    # Entry 5. Refresh at step 1: 11, commit of its counts hits: 5, next block promotes: 11.
    # No refresh: step 1 and commit miss, 18 each, next block finds its expert: 5.
    arcs = table.arc_cost_s[0, 0]
    refreshed = arcs[0, 0, 1] + arcs[0, 1, 2]
    assert 2 * refreshed == pytest.approx(5 + 11 + 5 + 11)
    assert 2 * arcs[0, 0, 2] == pytest.approx(5 + 18 + 18 + 5)
    # First refresh at step 1: step 0 finds expert 0, 5; promotes, 11; the commit hits, 5. The next
    # block is too short to refresh and misses, 18.
    assert 2 * arcs[1, 1, 2] == pytest.approx(5 + 11 + 5 + 18)
    assert 2 * table.never_s[0, 0] == pytest.approx(5 + 18 + 18 + 5)
    assert table.reach.tolist() == [1.0, 0.5]


def test_a_limit_promotes_the_busiest_and_evicts_the_idlest():
    """Budget 2 of 4 experts, ids 0 and 1 at first; step 1 wants 3 and 2 but may promote one.

    Evicting 0 or 1 is a tie that the lower id loses; either way expert 2 is missed, 18 s.
    """
    counts = [[[2, 1, 0, 0]], [[0, 0, 1, 2]], [[0, 3, 0, 0]]]
    case = case_of(steps_trace(small_spec(num_experts=4), counts))

    table = arc_costs(case, [Option(2), Option(2, 1)])

    free, limited = table.arc_cost_s[0, :, 0]
    assert free[0, 1] == pytest.approx(2 * 8 + 3)
    assert limited[0, 1] == pytest.approx(18)
    # Step 2 wants expert 1 alone, which the limit has kept.
    assert free[1, 2] == pytest.approx(8 + 3)
    assert limited[1, 2] == pytest.approx(5)
    assert table.copies.arcs[1, 0, :, 0, 0, 1].tolist() == [2, 1]


def test_in_the_background_a_pass_runs_under_the_residents_it_exchanges():
    """Step 1 misses, 18 s, of which the CPU works 16; its copy is in 8 / 0.5 s, and half of that
    work is lost beside it: 16 x (1 - 0.75) x 16 / 18.
    """
    latency = FakeLatency(contention=Contention(cpu_factor=0.75, h2d_factor=0.5, d2h_factor=1.0))
    case = two_experts(promotion=Promotion.BACKGROUND, latency=latency)

    table = arc_costs(case, [Option(1)])

    beside = 8 / 0.5 * 0.25 * 16 / 18
    arcs = table.arc_cost_s[0, 0, 0]
    assert arcs[0, 1] == pytest.approx(18 + beside)
    assert arcs[0, 2] == pytest.approx(18 + 18 + beside)
    assert arcs[1, 2] == pytest.approx(18)  # expert 1 is there since step 1, expert 0 misses
    assert table.step_s.arcs[:, 0, 0, 0, 0, 2] == pytest.approx([0, 18, 18 + beside, 0])
    assert table.step_s.fixed == pytest.approx([12, 12, 12, 0])
    assert table.copies.arcs[:, 0, 0, 0, 0, 2] == pytest.approx([0, 0, 1])


def test_slots_left_free_are_reported():
    assert arc_costs(two_experts(), [Option(1), Option(2)]).unfilled.tolist() == [0.0, 2 / 3]


# ── against the simulator ────────────────────────────────────────────────────────────────────────


def options_of(experts):
    """Draw options, ascending."""
    limits = st.sampled_from((1, 2, None))
    one = st.tuples(st.integers(1, experts), limits)
    return st.lists(one, min_size=1, max_size=3, unique=True).map(
        lambda rows: [Option(*row) for row in sorted(rows, key=lambda row: (row[0], row[1] or 99))]
    )


@st.composite
def steps_of(draw, steps):
    """Draw refresh steps whose first is tried, or none."""
    chosen = draw(st.sets(st.integers(0, steps - 1), max_size=steps))
    return tuple(sorted(chosen)) if not chosen or min(chosen) < FIRST_STEPS else NEVER


@st.composite
def machines(draw, model):
    """Draw a profile, sometimes with a measured curve of CPU experts for the model's shapes."""
    profile = draw(profile_dicts())
    if draw(st.booleans()):
        points = {"tokens_per_expert": [1, 3, 9], "experts": [1, 2, 7]}
        seconds = draw(st.lists(st.floats(1e-5, 1e-2), min_size=9, max_size=9))
        sizes = {key: getattr(model, key) for key in ("hidden_size", "moe_intermediate_size")}
        curve = {**sizes, **points, "seconds": seconds, "source": "drawn", "kind": "measured"}
        profile |= {"curves": {"cpu_experts": curve | {"dtype": model.dtype}}}
    return HardwareProfile.from_dict(profile)


@st.composite
def drawn(draw, *, engines=(TIDESIM, TIDE_REFERENCE, *HYBRIDS), promotion=None):
    """Draw a case, options, and an option and refresh steps for every layer."""
    trace = draw(traces(max_blocks=4, max_requests=3))
    model, engine = trace.meta.model, draw(st.sampled_from(engines))
    case = case_of(
        trace,
        engine=engine,
        latency=Latency(draw(machines(model)), model, engine=engine.name),
        popularity=popularity(trace, window=engine.window),
        promotion=promotion,
    )
    options = draw(options_of(model.num_experts))
    steps = max(pass_.step for pass_ in trace if pass_.kind is Kind.DENOISE) + 1
    one = st.tuples(st.integers(0, len(options) - 1), steps_of(steps))
    layers = draw(st.lists(one, min_size=model.moe_layers, max_size=model.moe_layers))
    return case, options, layers


@settings(max_examples=150, deadline=None)
@given(drawn())
def test_costs_around_a_schedule_add_up_to_its_simulated_seconds_and_promotions(example):
    case, options, layers = example

    table = arc_costs(case, options, around=[steps for _, steps in layers])

    result = simulated(case, options, layers)
    assert cost(table, layers) == pytest.approx(result.seconds_per_block, rel=1e-9)
    promotions = sum(cost(table, layers, table.copies, step) for step in range(table.steps))
    assert promotions * table.blocks == pytest.approx(result.promotions)


@settings(max_examples=60, deadline=None)
@given(drawn())
def test_costs_without_limits_or_free_slots_add_up_whatever_they_are_around(example):
    case, options, layers = example
    table = arc_costs(case, options)
    exact = np.array([not share for share in table.unfilled])
    exact &= np.array([option.promotions is None for option in options])

    for number in np.flatnonzero(exact).tolist():
        chosen = [(number, steps) for _, steps in layers]
        result = simulated(case, options, chosen)
        assert cost(table, chosen) == pytest.approx(result.seconds_per_block, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(drawn())
def test_never_refreshing_costs_what_it_simulates_to_whatever_the_costs_are_around(example):
    case, options, layers = example

    table = arc_costs(case, options)

    chosen = [(option, NEVER) for option, _ in layers]
    result = simulated(case, options, chosen)
    assert cost(table, chosen) == pytest.approx(result.seconds_per_block, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(drawn(engines=(TIDE_REFERENCE, HYBRIDS[2]), promotion=Promotion.BACKGROUND))
def test_an_engine_without_overlap_promotes_in_the_background_exactly(example):
    case, options, layers = example

    table = arc_costs(case, options, around=[steps for _, steps in layers])

    result = simulated(case, options, layers)
    assert cost(table, layers) == pytest.approx(result.seconds_per_block, rel=1e-9)
    assert table.step_s is None


@settings(max_examples=60, deadline=None)
@given(drawn(engines=(TIDESIM, HYBRIDS[1]), promotion=Promotion.BACKGROUND))
def test_costs_in_the_background_are_exact_where_nothing_is_promoted(example):
    """Otherwise promotions are counted exactly, and seconds by step are those of the arcs."""
    case, options, layers = example

    table = arc_costs(case, options, around=[steps for _, steps in layers])

    result = simulated(case, options, layers)
    promotions = [cost(table, layers, table.copies, step) for step in range(table.steps)]
    assert sum(promotions) * table.blocks == pytest.approx(result.promotions)
    by_step = [cost(table, layers, table.step_s, step) for step in range(table.steps + 1)]
    assert sum(by_step) == pytest.approx(cost(table, layers))
    if not result.promotions:
        assert cost(table, layers) == pytest.approx(result.seconds_per_block, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(drawn())
def test_seconds_of_requests_are_those_of_their_passes_and_add_up_to_all(example):
    case, options, layers = example

    table = arc_costs(case, options, around=[steps for _, steps in layers], by_request=True)

    result, passes = simulated(case, options, layers), list(case.passes())
    starts = [pass_.step == 0 and pass_.kind is Kind.DENOISE for pass_ in passes]
    blocks = dict.fromkeys(dict.fromkeys(pass_.request for pass_ in passes), 0)
    seconds = dict.fromkeys(blocks, 0.0)
    for pass_, starts_block, taken_s in zip(passes, starts, result.pass_s, strict=True):
        blocks[pass_.request] += starts_block
        seconds[pass_.request] += taken_s
    expected = [seconds[request] / blocks[request] for request in blocks if blocks[request]]
    found = [cost(table, layers, table.requests, at) for at in range(len(table.requests.fixed))]
    assert found == pytest.approx(expected, rel=1e-9)
    plain = arc_costs(case, options, around=[steps for _, steps in layers])
    assert np.allclose(table.arc_cost_s, plain.arc_cost_s, rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(drawn(), st.booleans())
def test_costs_of_several_options_are_those_of_each_alone_and_nothing_is_negative(example, later):
    case, options, layers = example
    promotion = Promotion.BACKGROUND if later and case.setup.engine == TIDESIM else None
    case = replace(case, setup=replace(case.setup, promotion=promotion))
    around = [steps for _, steps in layers]

    together = arc_costs(case, options, around=around)

    for number, option in enumerate(options):
        alone = arc_costs(case, [option], around=around)
        ours, theirs = together.arc_cost_s[:, number], alone.arc_cost_s[:, 0]
        assert np.allclose(ours, theirs, rtol=1e-12, atol=0)
        assert np.array_equal(together.copies.arcs[:, :, number], alone.copies.arcs[:, :, 0])
        assert np.allclose(together.never_s[:, number], alone.never_s[:, 0], rtol=1e-12, atol=0)
    assert np.all(together.arc_cost_s >= 0)
    assert np.all(np.diff(together.unfilled) >= 0)
    assert np.all(np.diff(together.reach) <= 0)
    assert together.reach[0] == 1


@settings(max_examples=40, deadline=None)
@given(drawn())
def test_requests_decoded_in_step_cost_what_they_simulate_to(example):
    case, options, layers = example
    case = replace(case, batch=2)

    table = arc_costs(case, options, around=[steps for _, steps in layers])

    result = simulated(case, options, layers)
    assert cost(table, layers) * table.blocks == pytest.approx(result.seconds, rel=1e-9)
    with pytest.raises(SettingError, match="cannot be told apart; use batch 1"):
        arc_costs(case, options, by_request=True)


# ── refused ──────────────────────────────────────────────────────────────────────────────────────


def test_a_block_without_one_of_its_steps_is_refused():
    trace = steps_trace(small_spec(num_experts=2), TWO_EXPERTS)
    gap = Trace(trace.meta, [pass_ for pass_ in trace if pass_.step != 1])

    with pytest.raises(FormatError, match="has step 2 where step 1 should be"):
        arc_costs(case_of(gap), [Option(1)])


def test_a_trace_without_denoise_passes_is_refused():
    trace = steps_trace(small_spec(num_experts=2), TWO_EXPERTS)

    with pytest.raises(SettingError, match="nothing to schedule"):
        arc_costs(case_of(Trace(trace.meta, [])), [Option(1)])


def test_an_engine_that_cannot_promote_in_the_background_is_refused():
    case = two_experts(engine=HYBRIDS[0], promotion=Promotion.BACKGROUND)

    with pytest.raises(SettingError, match="nothing can be promoted in the background"):
        arc_costs(case, [Option(1)])


@pytest.mark.parametrize("engine", [TIDESIM, replace(TIDESIM, looped=True)])
def test_times_too_long_to_count_with_are_refused(engine):
    latency = FakeLatency(cpu_experts=np.inf, cpu_expert=np.inf)

    with pytest.raises(SettingError, match="too long to count with"):
        arc_costs(two_experts(engine=engine, latency=latency), [Option(1)])


# ── the paper's closed form ──────────────────────────────────────────────────────────────────────


def test_terms_of_the_papers_closed_form_are_those_worked_out_by_hand():
    """Budget 1: of two changes of step one changes the busiest expert; 9 pairs in all.

    Misses: 1 of 9 at τ = 1 (step 2's other expert); steps 1 and 2 miss 3 + 1 at τ = 2 and 3 + 2 at
    τ = 3. A layer with misses has 1 + 16 + 1 s on the CPU, so 18 × (1, 2, 2) / 3 s per step.
    """
    terms = closed_form_terms(two_experts(latency=FakeLatency()), 1)

    share, cpu_s = np.array([1, 4, 5]) / 9, np.array([6.0, 12.0, 12.0])
    assert terms.drift == pytest.approx(0.5)
    assert terms.miss_share.tolist() == pytest.approx(share.tolist())
    assert terms.promotion_s == 8
    assert terms.miss_s == pytest.approx(share @ cpu_s / (share @ share))


def test_routing_that_never_changes_has_no_drift_and_one_miss_share():
    trace = steps_trace(small_spec(num_experts=2), [[[2, 1]]] * 4)

    terms = closed_form_terms(case_of(trace), 1)

    assert terms.drift == 0
    assert terms.miss_share.tolist() == [1 / 3] * 4
