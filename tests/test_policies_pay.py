"""pay: by hand on small cases, and never slower than what it must beat on the bundled trace."""

import numpy as np
import pytest
from builders import FakeLatency, case_of, check_run, small_spec, steps_trace
from test_policies import setup_of, view_of

from tidesim.errors import SettingError
from tidesim.hardware import load_profile, profile_names
from tidesim.latency import needed_keys
from tidesim.model_spec import MODELS
from tidesim.optimize import in_memory
from tidesim.placement import KEEP, Decision
from tidesim.policies import make_policy
from tidesim.simulate import prepare
from tidesim.simulate.fast import run_fast
from tidesim.trace.io import load_trace
from tidesim.trace.passes import Kind

POPULAR = np.array([[3.0, 3.0, 2.0, 2.0]])
WAITS = {"cpu_experts": 16.0, "gpu_experts": 1.0, "expert_copy": 1.0}  # for the CPU
BUSY = {"cpu_experts": 1e-3, "gpu_experts": 16.0, "copy": 0.0}  # and for the GPU


def policy_of(*, popularity=POPULAR, **machine):
    return make_policy("pay", setup=setup_of(popularity=popularity, latency=FakeLatency(**machine)))


def test_an_expert_with_tokens_replaces_one_without_where_the_cpu_is_waited_for():
    policy = policy_of(**WAITS)

    decision = policy.decide(view_of([0, 3, 3, 0], [0, 1]))

    assert decision == Decision(promote=(2,), evict=(0,))


def test_nothing_moves_where_the_copy_costs_more_than_all_it_saves():
    policy = policy_of(**WAITS | {"expert_copy": 1e4})

    assert policy.decide(view_of([0, 3, 3, 0], [0, 1])) is KEEP


def test_nothing_moves_where_the_gpu_is_waited_for():
    policy = policy_of(**BUSY)

    assert policy.decide(view_of([0, 3, 3, 0], [0, 1])) is KEEP


def test_where_promotions_cannot_pay_slots_follow_popularity_over_all_layers():
    popularity = np.array([[9.0, 8.0, 7.0, 0.0], [1.0, 1.0, 7.0, 0.0]])
    slots = {}
    for name, machine in (("waits", WAITS), ("busy", BUSY)):
        setup = setup_of(popularity=popularity, layers=2, latency=FakeLatency(**machine))
        slots[name] = make_policy("pay", setup=setup).budgets(setup).tolist()

    assert slots == {"waits": [2, 2], "busy": [3, 1]}


def test_between_blocks_it_fetches_what_earlier_blocks_began_with():
    """The first step of a block uses experts 2 and 3, its last one experts 0 and 1."""
    policy = policy_of(**WAITS)
    for _ in range(5):
        policy.decide(view_of([0, 0, 3, 3], [0, 1], step=0))
        policy.decide(view_of([3, 3, 0, 0], [0, 1], step=1))

    after = policy.decide(view_of([3, 3, 0, 0], [0, 1], step=2, kind=Kind.COMMIT))

    assert after == Decision(promote=(2, 3), evict=(0, 1))


def test_its_promotions_serve_from_the_next_pass_on():
    trace = steps_trace(small_spec(), [[[0, 2, 1]], [[0, 2, 1]], [[0, 2, 1]]])
    case = case_of(trace, policy="pay", popularity=[[3, 2, 2]], latency=FakeLatency(**WAITS))

    result = check_run(case)

    assert (result.promotion, result.promotions) == ("background", 1)
    assert (result.misses, result.hits) == (3 + 1 + 1, 2 + 2)


def test_it_needs_popularity_and_costs():
    with pytest.raises(SettingError, match="give training requests"):
        make_policy("pay", setup=setup_of())
    with pytest.raises(SettingError, match="hardware profile"):
        make_policy("pay", setup=setup_of(popularity=POPULAR, latency=None))


@pytest.fixture(scope="module")
def bundled():
    return in_memory(load_trace("tide-tiny-mixed"))


TUNED_ON = ("a100-40gb-pcie4-xeon48", "h100-80gb-sxm-pcie5-xeon48", "rtx4090-24gb-pcie4-desktop")
OTHERS = [
    name
    for name in profile_names()
    if name not in TUNED_ON and not load_profile(name).missing(needed_keys("tidesim", pinned=True))
]
# Where a copy takes no longer than the CPU's expert, tide promotes all and is this much faster.
BEHIND = {
    "dgx-spark-128gb-unified": 0.001,
    "gh200-96gb-c2c-grace72": 0.005,
    "rtx5090-32gb-pcie5-desktop": 0.013,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "sizes", "budget"),
    [
        *((name, None, 8) for name in TUNED_ON),
        *((name, "llada2.0-mini", 16) for name in (*TUNED_ON, *OTHERS)),
    ],
)
def test_on_held_out_requests_it_is_never_slower_than_what_it_must_beat(
    bundled, hardware, sizes, budget
):
    """Static popularity, tide at its best interval, previous-step; more cases in tests/bench."""

    def tokens_per_s(policy, interval=None):
        case = prepare(
            bundled.split("heldout"),
            load_profile(hardware),
            policy=policy,
            budget=budget,
            interval=interval,
            sizes=MODELS[sizes] if sizes else None,
            popularity_from=bundled.split("train"),
        )
        return run_fast(case).tokens_per_s

    others = {"static-frequency": tokens_per_s("static-frequency")}
    others |= {f"tide τ={tau}": tokens_per_s("tide", tau) for tau in (1, 2, 4, 8, 16, 32)}
    others |= {f"previous-step τ={tau}": tokens_per_s("previous-step", tau) for tau in (1, 4)}

    least = (1 - BEHIND.get(hardware, 0.0)) * max(others.values())
    assert tokens_per_s("pay") >= least, others
