"""Plan: its table, figures and page."""

from dataclasses import replace

import pytest
from planning import RTX4090, THOR, made, with_goal

from tidesim.memory import MemoryPlan
from tidesim.plan import (
    Plan,
)
from tidesim.report.plan_figures import cost_figure, machines_figure, memory_figure
from tidesim.report.plan_page import write_plan_page


@pytest.fixture(scope="module")
def found():
    return made()


def test_the_frame_has_the_rows(found):
    frame = found.frame()

    assert frame.tokens_per_s.tolist() == [row.tokens_per_s for row in found.rows]
    assert {"hardware", "memory_gb", "low", "high", "usd_per_mtoken"} <= set(frame.columns)
    empty = replace(found, rows=())
    assert empty.frame().empty


def test_figures_hold_every_row_with_its_band(found):
    speeds = machines_figure(with_goal(found, tokens_per_s=30.0))
    bars = {
        name: (speed, more, less)
        for bar in speeds.data
        for name, speed, more, less in zip(
            bar.y, bar.x, bar.error_x.array, bar.error_x.arrayminus, strict=True
        )
    }
    for row in found.rows:
        speed, more, less = bars[row.name]
        assert speed == row.tokens_per_s
        assert (speed - less, speed + more) == pytest.approx(
            (row.found.band.low, row.found.band.high)
        )
    assert any(shape.x0 == 30.0 for shape in speeds.layout.shapes)

    held = {}
    for bar in memory_figure(found).data:
        for name, size in zip(bar.y, bar.x, strict=True):
            held[name] = held.get(name, 0) + size
    for row in found.rows:
        memory: MemoryPlan = row.found.result.memory
        assert held[row.name] == pytest.approx(memory.total_bytes / 1e9)

    bought, rented = cost_figure(found).data
    assert sorted(bought.y) == sorted(row.costs.owned_usd_per_mtoken for row in found.rows)
    assert len(rented.y) == len(found.rows)


def test_the_page_says_what_to_get_and_what_could_not_be_told(found, tmp_path):
    page = tmp_path / "plan.html"

    write_plan_page(page, with_goal(found, tokens_per_s=30.0), trace="some <trace>")

    text = page.read_text()
    assert "llada2.0-mini. Asked for: 30 tokens/s. The cheapest machine:" in text
    assert f"{RTX4090}: " in text
    assert THOR in text
    assert "link.h2d_bytes_per_s" in text
    assert "some &lt;trace&gt;" in text
    assert found.rows[0].found.result.trace_sha256 in text
    for row in found.rows:
        assert row.found.result.profile_sha256 in text


@pytest.mark.parametrize("goal", [{"tokens_per_s": 1e6}, {}, {"most_usd": 1.0}])
def test_a_page_without_a_choice_is_a_page(found, tmp_path, goal):
    asked = with_goal(found, **goal)
    for number, one in enumerate((asked, replace(asked, rows=()))):
        assert isinstance(one, Plan)
        page = tmp_path / f"{number}.html"
        write_plan_page(page, one, trace="a trace")
        assert "</html>" in page.read_text()
