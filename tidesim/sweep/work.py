"""Work: what one worker does with one task; a failed point is a row with its error."""

import time
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from tidesim.errors import FormatError, SettingError, TidesimError
from tidesim.optimize import in_memory, optimize, splits
from tidesim.simulate import Case, get_method, prepare, run
from tidesim.simulate.run import Placed
from tidesim.sweep.jobs import Job, Task
from tidesim.sweep.rows import Row, result_row, solver_row
from tidesim.trace.io import load_trace
from tidesim.trace.passes import Trace

TRACES = 2  # that a worker holds in memory


class _Requests(NamedTuple):
    """A trace in memory: all of it, what policies learn from, what results come from, its name."""

    whole: Trace
    training: Trace
    judged: Trace
    name: str


@lru_cache(maxsize=TRACES)
def _requests(trace: str, sha256: str) -> _Requests:
    """Load a trace, once per worker.

    Raises
    ------
    FormatError
        It is another file than the one the sweep was started with.
    """
    whole = load_trace(trace)
    if whole.sha256 != sha256:
        raise FormatError(
            f"{trace}: not the file that the sweep was started with; give every worker the same one"
        )
    whole = in_memory(whole)
    training, heldout = splits(whole)
    marked = any(info.split == "train" for info in whole.meta.requests)
    name = "heldout" if heldout is not None else "train" if marked else "all"
    return _Requests(whole, training, heldout or training, name)


def compute(task: Task) -> list[Row]:
    """Run the jobs of a task in order.

    Parameters
    ----------
    task : tuple of Job
        They differ in their machines alone: where the policy does not look at the machine, experts
        are placed once.

    Returns
    -------
    list of Row
        The results, one per job.
    """
    placements = _Placements()
    return [_result(job, placements) for job in task]


def failed(job: Job, error: str) -> Row:
    """Return the result of a job that gave none."""
    return {"digest": job.digest or None, "error": error}


def _result(job: Job, placements: "_Placements") -> Row:
    started = time.perf_counter()
    try:
        row = _simulated(job, placements) if job.point.policy else _solved(job)
    except TidesimError as error:
        row = failed(job, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other points go on
        row = failed(job, f"{type(error).__name__}: {error}")
    return row | {"digest": job.digest, "computed_s": time.perf_counter() - started}


def _simulated(job: Job, placements: "_Placements") -> Row:
    requests, point = _requests(job.trace, job.trace_sha256), job.point
    assert job.profile is not None
    assert point.policy is not None
    case = prepare(
        requests.whole,  # whose longest request the memory holds
        job.profile,
        policy=point.policy,
        budget=point.budget,
        memory_bytes=_bytes(point.memory_gb),
        interval=point.interval,
        engine=point.engine,
        sizes=job.sizes,
        popularity_from=requests.training,
        promotion=point.promotion,
    )
    case = replace(case, trace=requests.judged)
    result = run(case, method=get_method("fast"), placed=placements.of(case))
    return result_row(result, requests=requests.name)


def _solved(job: Job) -> Row:
    requests, point = _requests(job.trace, job.trace_sha256), job.point
    assert job.profile is not None
    assert point.formulation is not None
    solved = optimize(
        requests.whole,
        job.profile,
        engine=point.engine,
        budget=point.budget,
        memory_bytes=_bytes(point.memory_gb),
        sizes=job.sizes,
        formulation=point.formulation,
        backend=job.solver.backend,
        time_limit_s=job.solver.time_limit_s,
        gap=job.solver.gap,
        promotion=point.promotion or "blocking",
    )
    result = solved.heldout or solved.training
    return result_row(result, requests=requests.name) | solver_row(solved)


def _bytes(memory_gb: float | None) -> int | None:
    return None if memory_gb is None else int(memory_gb * 1e9)


class _Placements:
    """The last placement, as long as the next case would be placed alike."""

    def __init__(self) -> None:
        self._last: tuple[int, Placed] | None = None

    def of(self, case: Case) -> Placed | None:
        """Return the placement of a case whose policy is sure not to look at the machine."""
        blind = replace(case, setup=replace(case.setup, latency=None))
        try:
            case.policy(blind.known)
        except SettingError:  # it weighs costs
            return None
        if self._last is None or self._last[0] != case.setup.budget:
            self._last = case.setup.budget, Placed.of(blind).kept()
        return self._last[1]
