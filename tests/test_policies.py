"""What each policy decides, on cases small enough to check by hand."""

import numpy as np
import pytest
from builders import FakeLatency, case_of, check_run, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st

from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.errors import SettingError
from tidesim.placement import Decision, LayerView, Setup, replay
from tidesim.policies import POLICIES, get_policy, make_policy
from tidesim.policies.base import PolicyBase, most_popular
from tidesim.policies.tide import busiest, refresh_to
from tidesim.trace.passes import Kind, Window
from tidesim.trace.windows import windowed


def setup_of(experts=4, **changes):
    usual = {
        "num_experts": experts,
        "layers": 1,
        "budget": 2,
        "popularity": np.zeros((1, experts)),
        "engine": TIDESIM,
        "latency": FakeLatency(),
        "interval": 1,
    }
    return Setup(**(usual | changes))


def view_of(counts, resident, *, step=0, kind=Kind.DENOISE, generated_block=1, budget=2):
    return LayerView(
        layer=0,
        request=0,
        block=generated_block,
        generated_block=generated_block,
        step=step,
        kind=kind,
        counts=np.array(counts),
        resident=np.isin(np.arange(len(counts)), resident),
        budget=budget,
    )


@pytest.mark.parametrize(
    ("counts", "resident", "promote", "evict"),
    [
        ([5, 4, 0, 0], [0, 1], (), ()),  # nothing better
        ([1, 2, 3, 4], [0, 1], (2, 3), (0, 1)),
        ([1, 9, 3, 1], [0, 1], (2,), (0,)),
        ([2, 2, 2, 2], [2, 3], (0, 1), (2, 3)),  # ties go to the lower id
        ([0, 0, 7, 0], [0, 1], (2,), (0,)),  # lowest id leaves, only as many as needed
        ([0, 0, 7, 0], [0], (2,), ()),  # a free slot is used first
        ([0, 0, 0, 0], [1, 3], (), ()),
    ],
)
def test_tide_promotes_the_busiest_and_evicts_the_lowest_ids(counts, resident, promote, evict):
    decision = make_policy("tide", setup=setup_of()).decide(view_of(counts, resident))

    assert decision == Decision(promote=promote, evict=evict, refresh=True)


@pytest.mark.parametrize(
    ("counts", "resident", "most", "promote", "evict"),
    [
        ([1, 2, 3, 4], [0, 1], 1, (3,), (0,)),  # the busiest missing one, for the idlest resident
        ([2, 1, 3, 4], [0, 1], 1, (3,), (1,)),
        ([0, 0, 7, 7], [0, 1], 1, (2,), (0,)),  # ties go to the lower id, both ways
        ([2, 1, 3, 4], [0, 1], 2, (2, 3), (0, 1)),
        ([1, 2, 3, 4], [0, 1], 9, (2, 3), (0, 1)),
        ([0, 0, 7, 0], [0], 1, (2,), ()),  # a free slot is used first
        ([5, 4, 0, 0], [0, 1], 1, (), ()),
    ],
)
def test_a_limited_refresh_promotes_the_busiest_for_the_idlest(
    counts, resident, most, promote, evict
):
    view = view_of(counts, resident)

    decision = refresh_to(busiest(view.counts, view.budget), view, most=most)

    assert decision == Decision(promote=promote, evict=evict, refresh=True)


@st.composite
def refreshes(draw):
    """Return the view of a pass: counts, as many residents as slots or fewer."""
    counts = draw(st.lists(st.integers(0, 4), min_size=2, max_size=8))
    budget = draw(st.integers(1, len(counts)))
    ids = st.integers(0, len(counts) - 1)
    resident = draw(st.lists(ids, unique=True, max_size=budget))
    return view_of(counts, resident, budget=budget)


@given(refreshes(), st.integers(1, 8))
def test_a_limited_refresh_is_the_rule_spelt_out(view, most):
    counts, target = view.counts.tolist(), busiest(view.counts, view.budget)
    missing = [e for e in range(len(counts)) if target[e] and not view.resident[e]]
    others = [e for e in range(len(counts)) if view.resident[e] and not target[e]]
    promoted = sorted(missing, key=lambda e: (-counts[e], e))[:most]
    lacking = max(0, int(view.resident.sum()) + len(promoted) - view.budget)
    evicted = sorted(others, key=lambda e: (counts[e], e))[:lacking]

    decision = refresh_to(target, view, most=most)

    assert decision.promote == tuple(sorted(promoted))
    assert decision.evict == tuple(sorted(evicted))


@given(refreshes())
def test_a_limit_that_never_binds_promotes_what_no_limit_promotes(view):
    target = busiest(view.counts, view.budget)

    free, limited = refresh_to(target, view), refresh_to(target, view, most=len(target))

    assert limited.promote == free.promote
    assert len(limited.evict) == len(free.evict)


def test_tide_refreshes_at_multiples_of_the_interval_in_denoise_passes_only():
    policy = make_policy("tide", setup=setup_of(interval=3))

    def refreshed(**place):
        return policy.decide(view_of([0, 0, 1, 1], [0, 1], **place)).refresh

    assert [refreshed(step=step) for step in range(7)] == [True, False, False] * 2 + [True]
    assert not refreshed(kind=Kind.PREFILL, generated_block=-1)
    assert not refreshed(kind=Kind.COMMIT, step=3)
    assert not refreshed(step=1, generated_block=0)


def test_the_reference_engine_refreshes_every_step_of_the_first_generated_block():
    policy = make_policy("tide", setup=setup_of(interval=3, engine=TIDE_REFERENCE))

    steps = [view_of([0, 0, 1, 1], [0, 1], step=step, generated_block=0) for step in range(4)]

    assert all(policy.decide(view).refresh for view in steps)
    assert not policy.decide(view_of([0, 0, 1, 1], [0, 1], step=1)).refresh


def test_mixtral_offload_is_tide_at_every_step():
    ours = make_policy("mixtral-offload", setup=setup_of(interval=None))

    assert ours.interval == 1
    assert ours.decide(view_of([0, 0, 1, 1], [0, 1], step=5)).promote == (2, 3)


@pytest.mark.parametrize("interval", [None, 0, -1])
def test_tide_needs_an_interval(interval):
    with pytest.raises(SettingError, match="give an interval of 1 or more"):
        make_policy("tide", setup=setup_of(interval=interval))


def test_residents_start_popular_in_our_engine_and_by_id_in_the_reference():
    popular = {"popularity": np.array([[0.0, 9.0, 1.0, 1.0]])}

    ours, theirs, unknown = (
        make_policy("tide", setup=setup).initial(setup).tolist()
        for setup in (
            setup_of(**popular),
            setup_of(**popular, engine=TIDE_REFERENCE),
            setup_of(),
        )
    )

    assert ours == [[False, True, True, False]]
    assert theirs == unknown == [[True, True, False, False]]


def test_most_popular_takes_unequal_budgets():
    scores = np.array([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 5.0]])

    marked = most_popular(scores, np.array([2, 1, 0]))

    assert marked.tolist() == [[False, True, True], [True, False, False], [False, False, False]]


def test_static_frequency_spends_the_slots_where_tokens_are():
    setup = setup_of(experts=3, layers=2, popularity=np.array([[9.0, 8.0, 7.0], [1.0, 7.0, 0.0]]))
    policy = make_policy("static-frequency", setup=setup)

    assert policy.budgets(setup).tolist() == [3, 1]
    assert policy.initial(setup).tolist() == [[True, True, True], [False, True, False]]
    assert policy.decide(view_of([0, 0, 5], [1])) == Decision()


def test_fiddler_copies_a_miss_only_where_that_is_cheaper():
    class Growing(FakeLatency):
        """The CPU takes a second per token, a copy eight, the GPU none."""

        def cpu_experts_s(self, tokens_per_expert):
            return float(tokens_per_expert.sum())

        def cpu_expert_s(self, tokens):
            return 1.0 * tokens

    machine = {"latency": Growing(gpu_experts=0.0, gpu_expert=0.0)}
    popular = {"popularity": np.array([[1.0, 0.0, 0.0, 0.0]])}
    for engine, copies in ((TIDESIM, 1), (TIDE_REFERENCE, 3)):
        setup = setup_of(**machine, **popular, engine=engine)
        policy = make_policy("fiddler", setup=setup)
        assert policy.initial(setup).tolist() == [[True, True, False, False]]

        limit = 8 * copies  # a tie stays on the CPU
        assert policy.decide(view_of([99, 0, limit, limit + 1], [0, 1])) == Decision(stream=(3,))
        assert policy.decide(view_of([99, 99, 0, 1], [0, 1])) == Decision()
        assert policy.scratch_slots(setup) == 2


@pytest.mark.parametrize("name", ["fiddler", "static-frequency"])
def test_static_policies_need_popularity(name):
    with pytest.raises(SettingError, match="give training requests"):
        make_policy(name, setup=setup_of())


def test_fiddler_needs_costs():
    with pytest.raises(SettingError, match="hardware profile"):
        make_policy("fiddler", setup=setup_of(popularity=np.ones((1, 4)), latency=None))


def test_bounds_hold_everything_or_nothing():
    setup = setup_of(layers=2, popularity=np.zeros((2, 4)))
    everything, nothing = (make_policy(name, setup=setup) for name in ("all-gpu", "all-cpu"))

    assert everything.initial(setup).all()
    assert everything.budgets(setup).tolist() == [4, 4]
    assert not nothing.initial(setup).any()
    assert nothing.budgets(setup).tolist() == [0, 0]
    assert everything.is_bound
    assert nothing.is_bound


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(SettingError, match="'tides' is not known; use one of: tide, mixtral-off"):
        get_policy("tides")


def test_policies_are_registered_under_their_own_names():
    setup = setup_of(popularity=np.ones((1, 4)), future=list)

    assert [make_policy(name, setup=setup).name for name in POLICIES] == list(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_says_whether_the_interval_matters_to_it(name):
    setups = [setup_of(popularity=np.ones((1, 4)), future=list, interval=n) for n in (3, 5)]

    found = [make_policy(name, setup=setup).interval for setup in setups]

    assert POLICIES[name].takes_interval == (found == [3, 5])


def test_with_a_slot_for_every_expert_nothing_misses_and_nothing_moves():
    trace = steps_trace(small_spec(), [[[2, 1, 0]], [[0, 1, 2]], [[1, 1, 1]]])

    result = check_run(case_of(trace, policy="tide", budget=3))

    assert (result.hit_rate, result.promotions, result.h2d_bytes) == (1.0, 0, 0)


def test_free_slots_fill_without_evictions():
    class Empty(PolicyBase):
        """Tide that starts without residents."""

        name = "empty"

        def __init__(self, setup):
            super().__init__(setup)
            self.decide = make_policy("tide", setup=setup).decide

        def initial(self, setup):
            return np.zeros((setup.layers, setup.num_experts), dtype=bool)

    setup = setup_of(experts=3, budget=3)
    trace = steps_trace(small_spec(), [[[2, 1, 0]], [[0, 1, 2]], [[1, 1, 1]]])

    placed = list(replay(windowed(trace, Window.BLOCK), Empty(setup), setup))

    assert [one.decisions[0].promote for one in placed] == [(0, 1), (2,), ()]
    assert not any(one.decisions[0].evict for one in placed)
    assert not any(one.misses.any() for one in placed)
