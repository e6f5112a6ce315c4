"""Make the runtime that an engine executes as, and check what it can execute."""

from tidesim.engines import Engine
from tidesim.errors import SettingError
from tidesim.placement import Policy, Setup
from tidesim.runtime.backends import Backend
from tidesim.runtime.experts import Offload, Stale, keep
from tidesim.runtime.model import Transformer
from tidesim.runtime.overlapped import Overlapped
from tidesim.runtime.serial import Serial


def make_offload(
    model: Transformer, policy: Policy, setup: Setup, backend: Backend, *, stale: Stale = keep
) -> Offload:
    """Return what runs a model's experts as the setup's engine does; see `Offload`.

    Raises
    ------
    SettingError
        As `Offload`; or the runtime does not execute such an engine.
    CapacityError
        As `Offload`.
    """
    check_engine(setup.engine)
    kind = Overlapped if setup.engine.overlap else Serial
    return kind(model, policy, setup, backend, stale=stale)


def check_engine(engine: Engine) -> None:
    """Refuse an engine that the runtime does not execute.

    Raises
    ------
    SettingError
        It overlaps but copies pageable memory, writes back or loops over experts; or it runs one
        operation at a time but not one expert at a time.
    """
    plain = not (engine.write_back or engine.looped) and engine.pinned
    if engine.overlap != plain:
        raise SettingError(
            f"engine {engine.name} is neither as tidesim nor as tide-reference, and the runtime "
            "executes no other; use one of them"
        )
