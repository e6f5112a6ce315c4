"""Jobs: points with the content that their names stand for, and the digest of all of it."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tidesim
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.model_spec import ModelSpec, load_model_spec
from tidesim.overrides import overridden
from tidesim.sweep.grid import Grid, Overrides, Point, Solver
from tidesim.trace.io import load_trace
from tidesim.trace.passes import Trace

TOGETHER = 8  # most points that one worker takes at once, because they share a placement

Task = tuple["Job", ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A point and all that a worker needs for it beside the trace.

    Attributes
    ----------
    point : Point
    trace : str
        Where a worker finds the trace: a bundled name or an absolute path.
    trace_sha256 : str
    profile : HardwareProfile or None
        With the point's overrides; None where they do not fit the machine.
    sizes : ModelSpec or None
    solver : Solver
    error : str
        Why there is no profile.
    digest : str
        SHA-256 of everything the result depends on.
    """

    point: Point
    trace: str
    trace_sha256: str
    profile: HardwareProfile | None
    sizes: ModelSpec | None
    solver: Solver
    error: str = ""
    digest: str = ""


def jobs_of(grid: Grid) -> list[Job]:
    """Load what a grid names and return a job per point, in order.

    Raises
    ------
    NotFoundError, FormatError
        A trace, profile or model is missing or damaged.
    SettingError
        An override fits none of the machines.
    """
    traces = {name: load_trace(name) for name in grid.traces}
    sizes = {name: load_model_spec(name) for name in grid.sizes}
    machines = _machines(grid)
    return [
        _job(point, grid.solver, traces[point.trace], sizes, machines) for point in grid.points()
    ]


Machines = dict[tuple[str, Overrides], HardwareProfile | str]


def _machines(grid: Grid) -> Machines:
    """Return every machine with every override, or what is wrong with the two together."""
    found: Machines = {}
    base = {name: load_profile(name) for name in grid.hardware}
    for overrides in grid.machines():
        for name, profile in base.items():
            try:
                found[name, overrides] = overridden(
                    profile, (f"{key}={value}" for key, value in overrides)
                )
            except SettingError as error:
                found[name, overrides] = str(error)
        said = [found[name, overrides] for name in base]
        if isinstance(said[0], str) and all(isinstance(one, str) for one in said):
            raise SettingError(f"overrides: {said[0]}")
    return found


def _job(
    point: Point,
    solver: Solver,
    trace: Trace,
    sizes: dict[str, ModelSpec],
    machines: Machines,
) -> Job:
    machine = machines[point.hardware, point.overrides]
    refused = isinstance(machine, str)
    job = Job(
        point=point,
        trace=_reachable(point.trace),
        trace_sha256=trace.sha256,
        profile=None if isinstance(machine, str) else machine,
        sizes=None if point.sizes is None else sizes[point.sizes],
        solver=solver,
        error=machine if isinstance(machine, str) else "",
    )
    return job if refused else replace(job, digest=_digest(job))


def _reachable(name: str) -> str:
    """Return what a worker finds a trace by, wherever it was started."""
    return str(Path(name).resolve()) if os.path.isfile(name) else name  # noqa: PTH113 (as `find`)


def _digest(job: Job) -> str:
    assert job.profile is not None
    settings = asdict(job.point)
    for name in ("point", "trace", "sizes", "hardware", "overrides"):  # their content counts
        del settings[name]
    content = {
        "tool_version": tidesim.__version__,
        "trace": job.trace_sha256,
        "profile": [job.profile.sha256, job.profile.baseline.sha256],  # curves scale with both
        "sizes": job.sizes and job.sizes.model_dump(mode="json"),
        "settings": settings,
        "solver": job.solver.model_dump() if job.point.formulation else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tasks_of(jobs: Iterable[Job]) -> list[Task]:
    """Group jobs that differ in the machine alone, so that a worker may place experts once.

    A job that solves for a schedule stays alone: it takes long, and shares nothing.
    """
    groups: dict[Point, list[list[Job]]] = {}
    for job in jobs:
        alike = replace(job.point, point=0, hardware="", overrides=())
        chunks = groups.setdefault(alike, [[]])
        if len(chunks[-1]) >= (1 if job.point.formulation else TOGETHER):
            chunks.append([])
        chunks[-1].append(job)
    return [tuple(chunk) for chunks in groups.values() for chunk in chunks]
