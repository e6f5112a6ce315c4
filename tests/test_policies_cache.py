"""Caches: what a miss replaces, on cases small enough to check by hand, and what is provable."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from builders import case_of, check_run, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from strategies import traces

from tidesim.engines import TIDESIM, Promotion
from tidesim.errors import SettingError
from tidesim.placement import Setup, replay
from tidesim.policies import make_policy
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta, Window
from tidesim.trace.windows import windowed

BLOCKING, BACKGROUND = Promotion
BOTH = pytest.mark.parametrize("promotion", Promotion)


def setup_for(trace, *, budget, promotion=BLOCKING):
    model = trace.meta.model
    return Setup(
        num_experts=model.num_experts,
        layers=model.moe_layers,
        budget=budget,
        popularity=np.zeros((model.moe_layers, model.num_experts)),
        engine=TIDESIM,
        promotion=promotion,
        future=lambda: windowed(trace, Window.BLOCK),
    )


def place(trace, name, *, budget, promotion=BLOCKING):
    """Replay a trace; residents start as experts 0 .. budget - 1."""
    setup = setup_for(trace, budget=budget, promotion=promotion)
    return list(replay(windowed(trace, Window.BLOCK), make_policy(name, setup=setup), setup))


def moves(name, *uses, budget=2, experts=5, promotion=BLOCKING):
    """Return (promoted, evicted) of every pass of one layer, given the tokens of each expert."""
    counts = [[[use.get(expert, 0) for expert in range(experts)]] for use in uses]
    trace = steps_trace(small_spec(num_experts=experts), counts)
    placed = place(trace, name, budget=budget, promotion=promotion)
    return [(one.decisions[0].promote, one.decisions[0].evict) for one in placed]


def used(*experts):
    return dict.fromkeys(experts, 1)


def hits(placed):
    """Count the active experts that residents served, over layers and passes."""
    return sum(np.count_nonzero(one.hits) for one in placed)


def promotions(placed):
    return sum(len(decision.promote) for one in placed for decision in one.decisions)


@BOTH
def test_lru_evicts_what_was_used_longest_ago(promotion):
    found = moves("lru", used(0), used(1), used(0), used(2), used(3), promotion=promotion)

    assert found == [((), ()), ((), ()), ((), ()), ((2,), (1,)), ((3,), (0,))]


@BOTH
def test_lfu_evicts_what_was_used_in_the_fewest_passes_however_many_tokens(promotion):
    uses = ({0: 1}, {0: 1}, {1: 9}, {2: 1}, {3: 1})

    assert moves("lfu", *uses, promotion=promotion)[3:] == [((2,), (1,)), ((3,), (2,))]


@pytest.mark.parametrize("name", ["lru", "lfu", "mixtral-offload-lru", "belady"])
def test_the_misses_with_most_tokens_get_the_slots_and_ties_go_to_the_lower_id(name):
    (first,) = moves(name, {2: 1, 3: 2, 4: 2}, budget=1)
    (both,) = moves(name, {2: 1, 3: 2, 4: 2}, budget=2)

    assert first == ((3,), (0,))
    assert both == ((3, 4), (0, 1))


@BOTH
@pytest.mark.parametrize("name", ["lru", "lfu"])
def test_a_resident_in_use_never_leaves_so_a_miss_without_a_slot_moves_nothing(name, promotion):
    found = moves(name, used(0, 1, 2), used(0, 3), promotion=promotion)

    assert found == [((), ()), ((3,), (1,))]


def test_a_background_insertion_serves_from_the_next_pass_on():
    trace = steps_trace(small_spec(), [[[0, 0, 3]], [[0, 0, 3]]])

    blocking, background = (
        [one.hits.sum() for one in place(trace, "lru", budget=1, promotion=mode)]
        for mode in (BLOCKING, BACKGROUND)
    )

    assert (blocking, background) == ([3, 3], [0, 3])


def test_mixtral_offload_lru_computes_nothing_on_the_cpu():
    trace = steps_trace(small_spec(num_experts=4), [[[1, 0, 2, 3]], [[0, 1, 0, 0]]])

    first, second = place(trace, "mixtral-offload-lru", budget=2)

    assert (first.decisions[0].promote, first.decisions[0].evict) == ((3,), (1,))
    assert first.decisions[0].stream == (2,)
    assert (second.decisions[0].promote, second.decisions[0].evict) == ((1,), (0,))
    assert not first.cpu_tokens.any()
    assert not second.cpu_tokens.any()


def test_mixtral_offload_lru_has_scratch_for_every_non_resident_and_no_background():
    setup = setup_for(steps_trace(small_spec(), [[[1, 1, 1]]]), budget=1, promotion=BACKGROUND)

    assert (
        make_policy("mixtral-offload-lru", setup=replace(setup, promotion=None)).scratch_slots(
            setup
        )
        == 2
    )
    with pytest.raises(SettingError, match="has no background promotion; use blocking"):
        make_policy("mixtral-offload-lru", setup=setup)


def test_belady_evicts_what_is_needed_latest():
    blocking = moves("belady", used(2), used(1), used(2), used(0))
    never = moves("belady", used(2), used(0), used(2))

    assert blocking == [((2,), (0,)), ((), ()), ((), ()), ((0,), (1,))]
    assert never[0] == ((2,), (1,))


def test_belady_in_the_background_inserts_only_what_is_needed_sooner_than_a_resident():
    found = moves("belady", used(2, 3), used(0), used(2), used(1), used(3), promotion=BACKGROUND)

    assert found == [((2,), (1,)), ((), ()), ((), ()), ((), ()), ((), ())]


def test_of_two_needed_at_the_same_time_belady_holds_the_one_with_more_tokens():
    for tokens, moved in ((1, ((), ())), (2, ((2,), (1,)))):
        then = {0: 2, 1: 1, 2: tokens}
        assert moves("belady", used(2), then, promotion=BACKGROUND)[0] == moved


def test_belady_needs_the_future():
    setup = setup_for(steps_trace(small_spec(), [[[1, 1, 1]]]), budget=1)

    with pytest.raises(SettingError, match="belady knows the passes to come"):
        make_policy("belady", setup=replace(setup, future=None))


@pytest.mark.parametrize("name", ["belady", "full-knowledge"])
@pytest.mark.parametrize("known", [[], [[[0, 1, 2]]] * 2])
def test_a_future_that_is_not_replayed_is_refused(name, known):
    trace = steps_trace(small_spec(), [[[1, 1, 1]]] * 3)
    setup = setup_for(
        steps_trace(small_spec(), known) if known else Trace(trace.meta, []), budget=1
    )

    with pytest.raises(SettingError, match="give exactly the passes that are replayed"):
        list(replay(windowed(trace, Window.BLOCK), make_policy(name, setup=setup), setup))


def test_belady_is_told_apart_as_knowing_the_future_but_lives_in_the_memory_there_is():
    belady = make_policy(
        "belady", setup=setup_for(steps_trace(small_spec(), [[[1, 1, 1]]]), budget=1)
    )

    assert (belady.knows_future, belady.is_bound) == (True, False)


@given(traces(max_requests=1), st.data())
def test_no_cache_has_more_hits_than_belady_within_a_request(trace, data):
    model = trace.meta.model
    budget = data.draw(st.integers(1, model.num_experts))
    promotion = data.draw(st.sampled_from(Promotion))

    best, *others = (
        hits(place(trace, name, budget=budget, promotion=promotion))
        for name in ("belady", "lru", "lfu")
    )

    if promotion is BACKGROUND:
        assert best >= max(others)
    else:
        assert others == [best, best]


@given(traces(max_requests=1), st.data())
def test_no_background_policy_that_promotes_active_experts_has_more_hits_than_belady(trace, data):
    """Whatever it promotes: chance decides here."""
    budget = data.draw(st.integers(1, trace.meta.model.num_experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    held = np.arange(trace.meta.model.num_experts) < budget
    found, held = 0, np.tile(held, (trace.meta.model.moe_layers, 1))

    for pass_ in windowed(trace, Window.BLOCK):
        active = pass_.counts > 0
        found += np.count_nonzero(held & active)
        for row, may in zip(held, held | active, strict=True):
            chosen = rng.permutation(np.flatnonzero(may))[:budget]
            row[:] = False
            row[chosen] = True

    assert found <= hits(place(trace, "belady", budget=budget, promotion=BACKGROUND))


@given(traces(max_requests=1), st.data())
def test_belady_promotes_least_of_the_blocking_caches_where_active_experts_fit(trace, data):
    most = max(
        int(np.count_nonzero(one.counts, axis=1).max()) for one in windowed(trace, Window.BLOCK)
    )
    budget = data.draw(st.integers(most, trace.meta.model.num_experts))

    best, *others = (
        promotions(place(trace, name, budget=budget)) for name in ("belady", "lru", "lfu")
    )

    assert best <= min(others)


def best_hits(uses, budget, held):
    """Try every choice of residents among those held or active, from the first pass on."""
    if not uses:
        return 0
    may = sorted(held | uses[0])
    choices = combinations(may, min(budget, len(may)))
    return len(held & uses[0]) + max(best_hits(uses[1:], budget, set(each)) for each in choices)


@given(
    st.lists(st.sets(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_belady_in_the_background_equals_the_best_of_all_choices(uses, budget):
    counts = [[[int(expert in use) for expert in range(4)]] for use in uses]
    trace = steps_trace(small_spec(num_experts=4), counts)

    found = hits(place(trace, "belady", budget=budget, promotion=BACKGROUND))

    assert found == best_hits(uses, budget, set(range(budget)))


def test_belady_looks_no_further_than_the_request():
    """Expert 2 is needed in the next request only; in one request it would replace 1."""
    spec = small_spec()
    first, second = steps_trace(spec, [[[0, 0, 3]]]), steps_trace(spec, [[[0, 0, 3]]])
    rows = [*first, *(replace(one, request=1) for one in second)]
    apart = Trace(first.meta, rows)
    together = steps_trace(spec, [[[0, 0, 3]]] * 2)

    for trace, promoted in ((apart, ()), (together, (2,))):
        placed = place(trace, "belady", budget=2, promotion=BACKGROUND)
        assert placed[0].decisions[0].promote == promoted


def test_belady_looks_ahead_to_the_end_of_a_batch():
    """The first request's prefill and only block do not hide what the second still decodes."""
    spec, block = small_spec(num_experts=4), {"kind": Kind.DENOISE, "tokens": 3, "context": 0}
    rows = [
        Pass(request=request, block=number, step=0, **block, histogram=np.array([use], np.uint32))
        for request, number, use in (
            (0, 0, [0, 0, 3, 0]), (1, 0, [0, 0, 0, 3]), (1, 1, [0, 0, 3, 0]),
            (2, 0, [0, 0, 0, 3]), (3, 0, [0, 0, 0, 3]),
        )
    ]  # fmt: skip
    infos = tuple(RequestInfo(request=n, prompt_tokens=0, generated_tokens=0) for n in range(4))
    trace = Trace(TraceMeta(model=spec, provenance="synthetic", requests=infos), rows)
    case = case_of(trace, policy="belady", budget=1, promotion=BACKGROUND, batch=2)

    promoted = [one.decisions[0].promote for one in case.placed()]

    assert promoted == [(2,), (), ()]  # 3 is needed again, but by the next batch


@pytest.mark.parametrize("name", ["lru", "lfu", "mixtral-offload-lru", "belady"])
def test_caches_are_timed(name):
    trace = steps_trace(small_spec(num_experts=4), [[[1, 0, 2, 0]], [[0, 1, 0, 2]]], commits=True)

    result = check_run(case_of(trace, policy=name, budget=2))

    assert result.promotions > 0
    assert result.refreshes == 0
