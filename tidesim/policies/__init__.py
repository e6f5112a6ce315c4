"""Policies by name. A new one is a file beside these and a line in `POLICIES`."""

from collections.abc import Callable

from tidesim.errors import SettingError
from tidesim.placement import Policy, Setup
from tidesim.policies.all_cpu import AllCpu
from tidesim.policies.all_gpu import AllGpu
from tidesim.policies.fiddler import Fiddler
from tidesim.policies.mixtral_offload import MixtralOffload
from tidesim.policies.static_frequency import StaticFrequency
from tidesim.policies.tide import Tide

PolicyFactory = Callable[[Setup], Policy]

POLICIES: dict[str, PolicyFactory] = {
    Tide.name: Tide,
    MixtralOffload.name: MixtralOffload,
    Fiddler.name: Fiddler,
    StaticFrequency.name: StaticFrequency,
    AllGpu.name: AllGpu,
    AllCpu.name: AllCpu,
}


def get_policy(name: str) -> PolicyFactory:
    """Return what makes the policy of a name.

    Raises
    ------
    SettingError
        No policy of that name.
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
