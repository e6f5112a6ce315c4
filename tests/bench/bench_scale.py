"""Time and memory of runs over ever longer traces, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import scale

HERE = Path(__file__).parent
GIGABYTE = 1e9


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Return traces of 10,000, 100,000 and a million passes: the last is the second ten times."""
    found = {n: tmp_path_factory.mktemp("scale") / f"{n}.parquet" for n in (10**4, 10**5, 10**6)}
    scale.write(10**4, found[10**4])
    scale.write(10**5, found[10**5])
    scale.stack(found[10**5], 10, found[10**6])
    return found


def cost(method, path):
    python_path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [sys.executable, str(HERE / "scale.py"), "run", method, str(path)],
        env=os.environ | {"PYTHONPATH": python_path},
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(finished.stdout)


@pytest.mark.parametrize("method", ["fast", "des"])
def test_time_is_in_proportion_to_passes_and_memory_is_bounded(method, paths, measured):
    """Predictions before it ran: fast 60 us a pass, des 150 us; 250 MB for a million passes.

    Found: fast 74 us, des 140 us; 170 MB and 200 MB. A pass costs the same however many come before
    it, and leaves one float and one flag behind.
    """
    costs = {n: cost(method, path) for n, path in paths.items()}

    each_us = {n: 1e6 * found["run_s"] / n for n, found in costs.items()}
    measured[f"scale_{method}_us_per_pass"] = each_us
    measured[f"scale_{method}_peak_mb"] = {n: one["peak_bytes"] / 1e6 for n, one in costs.items()}
    assert all(found["passes"] == n for n, found in costs.items())
    assert costs[10**6]["peak_bytes"] < GIGABYTE
    assert each_us[10**6] < 1.5 * min(each_us[10**4], each_us[10**5])
