"""Simulate a trace on a machine: `simulate` in one call, `prepare` and `run` in two."""

from tidesim.engines import Engine
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.model_spec import ModelSpec
from tidesim.policies import PolicyFactory
from tidesim.simulate import des, fast
from tidesim.simulate.case import Case, prepare, sized_spec
from tidesim.simulate.derivatives import derivatives
from tidesim.simulate.result import SimulationResult
from tidesim.simulate.run import Method, run
from tidesim.trace.passes import Trace

__all__ = [
    "METHODS",
    "Case",
    "SimulationResult",
    "derivatives",
    "get_method",
    "prepare",
    "run",
    "simulate",
    "sized_spec",
]

METHODS: dict[str, Method] = {"des": des.time_passes, "fast": fast.time_passes}


def get_method(name: str) -> Method:
    """Return the way to time passes that a name means.

    Raises
    ------
    SettingError
        No method of that name.

    Examples
    --------
    >>> get_method("fast") is fast.time_passes
    True
    """
    if name not in METHODS:
        raise SettingError(f"method {name!r} is not known; use one of: {', '.join(METHODS)}")
    return METHODS[name]


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
    method: str = "des",
    keep_records: bool = False,
) -> SimulationResult:
    """Simulate every request of a trace; see `prepare` for the settings.

    Parameters
    ----------
    method : str
        ``des`` runs operations on a SimPy clock; ``fast`` computes the same times in closed form.
    keep_records : bool
        Also return a record per operation.

    Raises
    ------
    SettingError, CapacityError, FormatError
        As `prepare`; or the trace holds no denoise pass, or `fast` shall keep records.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> result = simulate(trace, load_profile("a100-40gb-pcie4-xeon48"), policy="lru", budget=16)
    >>> result.hits, result.misses, result.promotions, result.bottleneck
    (6365, 4387, 47, 'gpu')
    >>> round(sum(result.waited.values()), 9)
    1.0
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
    return run(case, keep_records=keep_records, method=get_method(method))
