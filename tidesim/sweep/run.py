"""Sweep: every point of a grid, simulated or solved, wherever workers are; crash-safe."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tidesim.errors import SettingError
from tidesim.processes import count_workers
from tidesim.sweep.grid import Grid, load_grid
from tidesim.sweep.jobs import Job, Task, jobs_of, tasks_of
from tidesim.sweep.pools import Done, Pool, here, in_processes, on_cluster
from tidesim.sweep.rows import Row, point_row, schema_of
from tidesim.sweep.store import Store, opened
from tidesim.sweep.work import failed

if TYPE_CHECKING:
    import pandas as pd

Watch = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a sweep is: points to compute, computed so far, and how many of those failed."""

    total: int
    computed: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A sweep that has ended.

    Attributes
    ----------
    path : Path
        The Parquet file, a row per point in the order of `Grid.points`.
    points, failed : int
        All rows, and those with an error.
    computed : int
        Computed now; the others were known or are twins of these.
    seconds : float
        Wall time of computing.
    """

    path: Path
    points: int
    failed: int
    computed: int
    seconds: float

    @property
    def points_per_s(self) -> float:
        """Points computed per second; 0 where none had to be."""
        return self.computed / self.seconds if self.computed else 0.0

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas table."""
        import pandas as pd  # noqa: PLC0415 - a heavy import, paid only where a table is wanted

        return pd.read_parquet(self.path)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        names = ("points", "failed", "computed", "seconds", "points_per_s")
        return {"out": str(self.path)} | {name: getattr(self, name) for name in names}


def sweep(
    grid: Grid | str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    dask: str | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    watch: Watch | None = None,
) -> Swept:
    """Run every point of a grid and write a row for each.

    A point with a policy is simulated on the trace's held-out requests (all where it marks none); a
    point with a formulation is solved for on the training requests first. A point that fails is a
    row with its error.

    Parameters
    ----------
    grid : Grid, str or Path
        Or its file.
    out : str or Path
        Parquet file to write.
    workers : int or None
        Processes; all cores by default, and 1 computes in this one. A script that uses more must
        guard its start by ``if __name__ == "__main__"``.
    dask : str or None
        Instead: address of a Dask scheduler.
    resume : bool
        Take what `out`, and a sweep that did not end, already hold; failed points are tried again.
    cache : str or Path or None
        Folder that keeps results by digest, for other sweeps to find.
    watch : callable or None
        Told how far it is.

    Raises
    ------
    SettingError, FormatError, NotFoundError
        The grid, or a file it names, is wrong; see `jobs_of` and `opened`.
    OutputError
        The output cannot be written.
    RunError
        The Dask scheduler went away.

    Examples
    --------
    >>> from tidesim.trace.io import load_trace, save_trace
    >>> save_trace(load_trace("tide-tiny-mixed").only((3,)), "one.parquet")
    >>> axes = {"traces": ["one.parquet"], "hardware": ["a100-40gb-pcie4-xeon48"]}
    >>> grid = Grid.of(axes | {"budgets": [8, 16], "policies": ["lru"]})
    >>> swept = sweep(grid, "r.parquet", workers=1)
    >>> swept.points, swept.failed, swept.to_frame()["budget"].tolist()
    (2, 0, [8, 16])
    """
    if not isinstance(grid, Grid):
        grid = load_grid(grid)
    pool = _pool(workers, dask)
    jobs = jobs_of(grid)
    with opened(out, schema_of(grid), cache=cache, resume=resume) as store:
        started = perf_counter()
        results, computed = _results(jobs, store, pool, watch)
        seconds = perf_counter() - started
        rows = [
            point_row(job.point) | (results[job.digest] if job.digest else failed(job, job.error))
            for job in jobs
        ]
        store.finish(rows)
    return Swept(
        path=Path(out),
        points=len(rows),
        failed=sum(row.get("error") is not None for row in rows),
        computed=computed,
        seconds=seconds,
    )


def _pool(workers: int | None, dask: str | None) -> Pool:
    """Return where to run tasks.

    Raises
    ------
    SettingError
        Workers are out of range, or contradict a cluster.
    """
    if dask is not None:
        if workers is not None:
            raise SettingError("workers and a Dask address contradict each other; give one of them")
        return lambda tasks: on_cluster(tasks, address=dask)
    count_workers(workers, tasks=1)

    def local(tasks: Sequence[Task]) -> Generator[Done, None, None]:
        needed = count_workers(workers, tasks=len(tasks))
        return here(tasks) if needed == 1 else in_processes(tasks, workers=needed)

    return local


def _results(
    jobs: list[Job],
    store: Store,
    pool: Pool,
    watch: Watch | None,
) -> tuple[dict[str, Row], int]:
    """Return the results of all jobs by digest, and how many were computed now."""
    distinct = {job.digest: job for job in jobs if job.digest}
    known = {digest: store.known(job) for digest, job in distinct.items()}
    results = {digest: row for digest, row in known.items() if row is not None}
    todo = [job for digest, job in distinct.items() if digest not in results]
    computed = errors = 0
    if watch is not None:
        watch(Progress(total=len(todo), computed=0, failed=0))
    with closing(pool(tasks_of(todo))) as done:  # it ends its processes, whatever happens here
        for task, rows in done:
            for job, row in zip(task, rows, strict=True):
                store.keep(job, row)
                results[job.digest] = row
                computed += 1
                errors += row.get("error") is not None
            if watch is not None:
                watch(Progress(total=len(todo), computed=computed, failed=errors))
    return results, computed
