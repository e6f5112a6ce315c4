"""Policies by name. A new one is a file beside these and a line in `POLICIES`."""

from collections.abc import Callable

from tidesim.errors import SettingError
from tidesim.placement import Policy, Setup
from tidesim.policies.all_cpu import AllCpu
from tidesim.policies.all_gpu import AllGpu
from tidesim.policies.belady import Belady
from tidesim.policies.capped_insert import CappedInsert
from tidesim.policies.dali import Dali
from tidesim.policies.fiddler import Fiddler
from tidesim.policies.full_knowledge import FullKnowledge
from tidesim.policies.hybrimoe import HybriMoe
from tidesim.policies.lfu import Lfu
from tidesim.policies.lru import Lru
from tidesim.policies.mixtral_offload import MixtralOffload
from tidesim.policies.mixtral_offload_lru import MixtralOffloadLru
from tidesim.policies.pay import Pay
from tidesim.policies.previous_step import PreviousStep
from tidesim.policies.q_split import QSplit
from tidesim.policies.static_frequency import StaticFrequency
from tidesim.policies.tide import Tide

PolicyFactory = Callable[[Setup], Policy]

POLICIES: dict[str, PolicyFactory] = {
    Tide.name: Tide,
    MixtralOffload.name: MixtralOffload,
    MixtralOffloadLru.name: MixtralOffloadLru,
    Fiddler.name: Fiddler,
    StaticFrequency.name: StaticFrequency,
    Lru.name: Lru,
    Lfu.name: Lfu,
    HybriMoe.name: HybriMoe,
    Dali.name: Dali,
    QSplit.name: QSplit,
    CappedInsert.name: CappedInsert,
    PreviousStep.name: PreviousStep,
    Pay.name: Pay,
    Belady.name: Belady,
    FullKnowledge.name: FullKnowledge,
    AllGpu.name: AllGpu,
    AllCpu.name: AllCpu,
}


def get_policy(name: str) -> PolicyFactory:
    """Return what makes the policy of a name.

    Raises
    ------
    SettingError
        No policy of that name.

    Examples
    --------
    >>> get_policy("lru").name
    'lru'
    """
    if name not in POLICIES:
        raise SettingError(f"policy {name!r} is not known; use one of: {', '.join(POLICIES)}")
    return POLICIES[name]


def make_policy(name: str, *, setup: Setup) -> Policy:
    """Make a fresh policy for one replay.

    Raises
    ------
    SettingError
        No policy of that name, or the setup lacks what it needs.
    """
    return get_policy(name)(setup)
