"""A small sweep for tests: a trace, a grid over it, faults for workers, and commands to kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from test_optimize import fixed_trace

from tidesim.sweep import Grid
from tidesim.sweep.work import compute
from tidesim.trace.io import save_trace

A100 = "a100-40gb-pcie4-xeon48"
RTX4090 = "rtx4090-24gb-pcie4-desktop"
COMMAND = [sys.executable, "-c", "from tidesim.cli import main\nmain()"]
LIMIT_S = 120
CLOCKS = {"computed_s", "solver_seconds"}  # what two runs of one point need not agree in


def small_axes(folder, **changes):
    """Return the axes of a grid over a trace of four short requests, which is written."""
    path = folder / "four requests.parquet"
    if not path.exists():
        save_trace(fixed_trace(), path)
    usual = {"traces": [str(path)], "hardware": [A100], "sizes": ["llada2.0-mini"]}
    return usual | {"budgets": [3], "policies": ["tide"], "intervals": [1, 4]} | changes


def small_grid(folder, **changes):
    """Return the grid of `small_axes`."""
    return Grid.of(small_axes(folder, **changes))


def rows_of(path):
    """Return the rows of an output, without clocks."""
    rows = pq.read_table(path).to_pylist()
    return [{key: row[key] for key in row.keys() - CLOCKS} for row in rows]


def deadly(task):
    """Compute a task, but end the process where a budget of 4 comes up."""
    if any(job.point.budget == 4 for job in task):
        os._exit(9)
    return compute(task)


def telling(task):
    """Answer with how many threads the libraries of this process may use."""
    return [{"error": [os.environ.get(name) for name in _THREADS]} for _ in task]


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def slow_grid(folder, *, points=24):
    """Write a grid file of points that take a while, each placed by itself; return its path."""
    budgets = ", ".join(str(budget) for budget in range(4, 4 + points))
    path = folder / "grid.toml"
    path.write_text(
        'format = "tidesim-grid"\nversion = 1\ntraces = ["tide-tiny-mixed"]\n'
        f'hardware = ["{A100}"]\npolicies = ["lru"]\nbudgets = [{budgets}]\n',
        encoding="utf-8",
    )
    return path


def start(*arguments):
    """Start a command line in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition):
    """Wait until something is true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.02)


def children_of(process):
    """Return the ids of the processes that a process started."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in listed.split()]


def is_alive(pid):
    """Say whether a process still works; one that only waits to be read does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def kill(process):
    """Kill a process as if for want of memory."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
