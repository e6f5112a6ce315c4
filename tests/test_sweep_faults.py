"""Sweeps cut off: by SIGKILL, by Ctrl-C, by a Dask worker that dies; nothing lost, nothing twice."""

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from sweeping import (
    LIMIT_S,
    children_of,
    is_alive,
    kill,
    rows_of,
    slow_grid,
    small_grid,
    start,
    wait_for,
)

from tidesim.errors import SettingError
from tidesim.sweep import load_grid, pools, sweep

POINTS = 16
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """Rows of the slow grid, swept without a fault."""
    folder = tmp_path_factory.mktemp("uncut")
    return rows_of(sweep(slow_grid(folder, points=POINTS), folder / "r.parquet").path)


def kept(out):
    """Return the files of results that lie beside an output."""
    return sorted(out.with_name(f"{out.name}.parts").glob("[0-9a-f]*.parquet"))


def finished(process):
    """Return the answer of a command that must end well."""
    answer, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    return json.loads(answer)


def test_after_sigkill_resume_computes_the_rest_and_nothing_twice(tmp_path, uncut):
    grid, out = slow_grid(tmp_path, points=POINTS), tmp_path / "with space" / "r.parquet"
    out.parent.mkdir()
    first = start("sweep", grid, "--out", out, "--workers", 2)
    wait_for(lambda: len(kept(out)) >= 3)
    workers = children_of(first)
    kill(first)
    wait_for(lambda: not any(map(is_alive, workers)))
    results = {path: path.stat().st_mtime_ns for path in kept(out)}
    assert 3 <= len(results) < POINTS
    assert not out.exists()

    second = start("sweep", grid, "--out", out, "--workers", 2, "--resume")
    wait_for(lambda: len(kept(out)) > len(results))
    assert all(path.stat().st_mtime_ns == written for path, written in results.items())
    kill(second)
    done = len(kept(out))
    answer = finished(start("sweep", grid, "--out", out, "--workers", 2, "--resume", "--json"))

    assert (answer["points"], answer["failed"]) == (POINTS, 0)
    assert answer["computed"] == POINTS - done
    assert rows_of(out) == uncut
    assert [path.name for path in out.parent.iterdir()] == ["r.parquet"]


def test_ctrl_c_ends_a_sweep_and_its_processes_at_once(tmp_path):
    out = tmp_path / "r.parquet"
    process = start("sweep", slow_grid(tmp_path), "--out", out, "--workers", 2)
    wait_for(lambda: len(kept(out)) >= 2)
    workers = children_of(process)

    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 130
    assert printed == ""
    assert "Traceback" not in err
    wait_for(lambda: not any(map(is_alive, workers)))
    assert len(kept(out)) >= 2


# ── a Dask cluster ───────────────────────────────────────────────────────────────────────────────


@contextmanager
def dask(what, said, log, *arguments):
    """Run a part of a cluster; yield its process once its log says something."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *arguments]
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            wait_for(lambda: said in log.read_text())
            yield process
        finally:
            process.kill()


@pytest.fixture
def cluster(tmp_path):
    """The address of a scheduler on this machine, and its two workers."""
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file)]
    single = ["--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path)]
    with ExitStack() as stack:

        def add(name, what, said, *arguments):
            return stack.enter_context(dask(what, said, tmp_path / name, *where, *arguments))

        scheduler = add("log", "scheduler", "Scheduler at", "--host", "127.0.0.1", "--port", "0")
        wait_for(file.exists)
        workers = [add(f"log{n}", "worker", "Registered to", *single) for n in range(2)]
        yield json.loads(file.read_text())["address"], scheduler, workers


def test_a_dask_worker_may_die_midway(tmp_path, cluster, uncut):
    address, _, workers = cluster
    grid, out = slow_grid(tmp_path, points=POINTS), tmp_path / "r.parquet"
    process = start("sweep", grid, "--out", out, "--dask", address, "--json")
    wait_for(lambda: len(kept(out)) >= 4)
    workers[0].kill()
    assert len(kept(out)) < POINTS

    answer = finished(process)

    assert (answer["points"], answer["computed"], answer["failed"]) == (POINTS, POINTS, 0)
    assert rows_of(out) == uncut


def test_without_its_scheduler_a_sweep_ends_and_can_go_on(tmp_path, cluster, uncut):
    address, scheduler, _ = cluster
    grid, out = slow_grid(tmp_path, points=POINTS), tmp_path / "r.parquet"
    process = start("sweep", grid, "--out", out, "--dask", address)
    wait_for(lambda: len(kept(out)) >= 2)
    scheduler.kill()

    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 2
    assert "the Dask scheduler is gone" in err
    assert "Traceback" not in err
    done = len(kept(out))
    again = sweep(load_grid(grid), out, resume=True)
    assert again.computed == POINTS - done
    assert rows_of(out) == uncut


def test_dask_must_be_installed_and_answer(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        with pytest.raises(SettingError, match=r"install tidesim\[dask\]"):
            sweep(small_grid(tmp_path), tmp_path / "r.parquet", dask="tcp://127.0.0.1:9")

    monkeypatch.setattr(pools, "CONNECT_S", 0.1)
    for address in ("tcp://127.0.0.1:9", "nowhere://x", "not an address"):
        with pytest.raises(SettingError, match=f"--dask {address}: no Dask scheduler answers"):
            sweep(small_grid(tmp_path), tmp_path / "r.parquet", dask=address, resume=True)
