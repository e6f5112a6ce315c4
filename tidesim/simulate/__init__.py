"""Simulate a trace on a machine: `simulate` in one call, `prepare` and `run` in two."""

from tidesim.engines import Engine
from tidesim.hardware import HardwareProfile
from tidesim.model_spec import ModelSpec
from tidesim.policies import PolicyFactory
from tidesim.simulate.case import Case, prepare, sized_spec
from tidesim.simulate.result import SimulationResult
from tidesim.simulate.run import run
from tidesim.trace.passes import Trace

__all__ = ["Case", "SimulationResult", "prepare", "run", "simulate", "sized_spec"]


def simulate(
    trace: Trace,
    profile: HardwareProfile,
    *,
    policy: str | PolicyFactory,
    budget: int | None = None,
    memory_bytes: int | None = None,
    interval: int | None = None,
    engine: str | Engine = "tidesim",
    sizes: ModelSpec | None = None,
    popularity_from: Trace | None = None,
    promotion: str | None = None,
    batch: int = 1,
    keep_records: bool = False,
) -> SimulationResult:
    """Simulate every request of a trace, one after another; see `prepare` for the settings.

    Parameters
    ----------
    keep_records : bool
        Also return a record per operation.

    Raises
    ------
    SettingError, CapacityError, FormatError
        As `prepare`; or the trace holds no denoise pass.
    """
    case = prepare(
        trace,
        profile,
        policy=policy,
        budget=budget,
        memory_bytes=memory_bytes,
        interval=interval,
        engine=engine,
        sizes=sizes,
        popularity_from=popularity_from,
        promotion=promotion,
        batch=batch,
    )
    return run(case, keep_records=keep_records)
