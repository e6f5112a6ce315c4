"""Writing one's own policy: a class of ten lines, used as it is or under a name."""

import numpy as np
from builders import small_spec, steps_trace

from tidesim.hardware import load_profile
from tidesim.placement import KEEP, Decision
from tidesim.policies import POLICIES
from tidesim.policies.base import PolicyBase
from tidesim.simulate import simulate


class BusiestMiss(PolicyBase):
    """Let the busiest missed expert replace the resident with the fewest tokens, if it has more."""

    name = "busiest-miss"

    def decide(self, view):
        new = int(np.where(view.resident, -1, view.counts).argmax())
        old = int(np.where(view.resident, view.counts, np.inf).argmin())
        if view.resident[new] or view.counts[new] <= view.counts[old]:
            return KEEP
        return Decision(promote=(new,), evict=(old,))


MACHINE = load_profile("a100-40gb-pcie4-xeon48")
TRACE = steps_trace(
    small_spec(num_experts=4), [[[1, 2, 0, 0]], [[0, 1, 2, 0]], [[0, 1, 2, 3]], [[0, 0, 1, 5]]]
)


def test_a_policy_of_ones_own_is_given_as_it_is():
    """Expert 2 replaces 0 in the second step, 3 replaces 1 in the third."""
    result = simulate(TRACE, MACHINE, policy=BusiestMiss, budget=2)

    assert result.policy == "busiest-miss"
    assert (result.promotions, result.evictions) == (2, 2)
    assert (result.hits, result.misses) == (3 + 3 + 5 + 6, 0 + 0 + 1 + 0)


def test_a_policy_of_ones_own_goes_by_its_name_once_registered(monkeypatch):
    monkeypatch.setitem(POLICIES, BusiestMiss.name, BusiestMiss)

    by_name = simulate(TRACE, MACHINE, policy="busiest-miss", budget=2)

    assert by_name.to_json() == simulate(TRACE, MACHINE, policy=BusiestMiss, budget=2).to_json()


def test_with_a_slot_for_every_expert_it_has_nothing_to_do():
    result = simulate(TRACE, MACHINE, policy=BusiestMiss, budget=4)

    assert (result.hit_rate, result.promotions) == (1.0, 0)
