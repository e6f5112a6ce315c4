"""How many points of LLaDA2.0-mini's size a sweep does in a second, and what a second core adds.

The points are the dear ones: no two share a placement, so that each places its experts anew.
"""

import os
from statistics import median

import pytest
from mini import write_mini

from tidesim.sweep import Grid, sweep

ROUNDS = 3
WAYS = {"policies": ["tide", "lru", "static-frequency", "pay"], "intervals": [1, 2, 4, 8, 16]}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Two requests of 256 tokens each, 32 steps a block; the results are one's, 264 passes."""
    path = tmp_path_factory.mktemp("mini") / "mini.parquet"
    write_mini(path)
    return path


def grid_of(trace, *, points):
    """Return a grid of so many points, eight at each of its budgets."""
    budgets = [16 + number for number in range(points // 8)]
    machine = "a100-40gb-pcie4-xeon48"
    return Grid.of({"traces": [str(trace)], "hardware": [machine], "budgets": budgets} | WAYS)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_second_core(trace, tmp_path, measured):
    """Prediction before it ran: 1.85 times the points per second of one core, starting included."""
    ratios = []
    for number in range(ROUNDS):
        each = [
            sweep(
                grid_of(trace, points=400),
                tmp_path / f"{number}-{workers}.parquet",
                workers=workers,
            )
            for workers in (1, 2)
        ]
        assert [swept.failed for swept in each] == [0, 0]
        ratios.append(each[1].points_per_s / each[0].points_per_s)

    measured["sweep_second_core_ratio"] = median(ratios)
    assert median(ratios) >= 1.7


def test_a_thousand_points(trace, tmp_path, measured):
    """Prediction before it ran: 1000 points on two cores in 80 s."""
    swept = sweep(grid_of(trace, points=1000), tmp_path / "r.parquet", workers=2)

    measured |= {"sweep_1000_points_s": swept.seconds, "sweep_points_per_s": swept.points_per_s}
    assert (swept.points, swept.computed, swept.failed) == (1000, 1000, 0)
    assert swept.seconds < 600
