"""Regimes: every cell is what simulate says of that machine; slow and fast extremes are known."""

import json

import pytest
from test_optimize import A100, MINI, fixed_trace

from tidesim.contest import STATIC
from tidesim.errors import SettingError
from tidesim.hardware import load_profile
from tidesim.regimes import CPU_KEYS, LINK_KEYS, regime_map
from tidesim.report.regime_figures import regime_figure, write_regime_page
from tidesim.simulate import simulate

H100 = load_profile("h100-80gb-sxm-pcie5-xeon48")


@pytest.fixture(scope="module")
def regimes():
    return regime_map(
        fixed_trace(),
        A100,
        budget=3,
        sizes=MINI,
        intervals=(1, 4),
        factors=(2.0, 1.0),
        marks=(A100, H100),
    )


def test_every_cell_is_what_simulate_says_of_a_machine_with_those_rates(regimes):
    trace = fixed_trace()

    for link, row in zip((1.0, 2.0), regimes.cells, strict=True):
        for cpu, cell in zip((1.0, 2.0), row, strict=True):
            machine = A100.with_overrides(
                {key: A100.value(key) * link for key in LINK_KEYS}
                | {key: A100.value(key) * cpu for key in CPU_KEYS}
            )
            for policy, interval, promotion, name in (
                (STATIC, None, None, STATIC),
                ("tide", 1, "blocking", "tide τ=1"),
                ("tide", 4, "background", "tide in the background τ=4"),
            ):
                result = simulate(
                    trace.split("heldout"),
                    machine,
                    policy=policy,
                    interval=interval,
                    promotion=promotion,
                    budget=3,
                    sizes=MINI,
                    popularity_from=trace.split("train"),
                )
                assert cell.standing.tokens_per_s[name] == pytest.approx(
                    result.tokens_per_s, rel=1e-9
                )
            assert cell.standing.tokens_per_s[cell.standing.best.name] == max(
                cell.standing.tokens_per_s.values()
            )
            assert cell.link_bytes_per_s == machine.value("link.h2d_bytes_per_s")
            assert cell.standing.gain >= 0


def test_static_residents_win_on_a_slow_link_and_refresh_on_a_slow_cpu():
    """A copy a thousand times slower never pays; a CPU a thousand times slower always pays it."""
    shared = {"budget": 3, "sizes": MINI, "intervals": (1,)}

    found = regime_map(fixed_trace(), A100, factors=(1e-3, 1e3), **shared)

    slow_link_fast_cpu, fast_link_slow_cpu = (
        found.cells[0][1].standing,
        found.cells[1][0].standing,
    )
    assert slow_link_fast_cpu.best.policy == STATIC
    assert slow_link_fast_cpu.gain == 0
    assert fast_link_slow_cpu.best.policy == "tide"


def test_an_engine_without_background_promotion_is_mapped_without_it():
    found = regime_map(
        fixed_trace(), A100, budget=3, sizes=MINI, engine="tide-reference", intervals=(1,), factors=(1,)
    )  # fmt: skip

    assert set(found.cells[0][0].standing.tokens_per_s) == {STATIC, "tide τ=1"}


@pytest.mark.parametrize("factors", [(), (0.0, 1.0), (-1.0,)])
def test_rates_must_stay_above_0(factors):
    with pytest.raises(SettingError, match="must be numbers above 0"):
        regime_map(fixed_trace(), A100, budget=3, factors=factors)


def test_the_figure_and_page_show_every_cell_and_machine(regimes, tmp_path):
    page = tmp_path / "map.html"

    write_regime_page(page, regimes, trace="<b>mine</b>")

    figure, text = regime_figure(regimes), page.read_text()
    assert [len(row) for row in figure.data[0].z] == [2, 2]
    assert [mark.hardware for mark in regimes.marks] == list(figure.data[-1].hovertext)
    numbers = " ".join(label.text for label in figure.layout.annotations).split()
    assert sorted(map(int, numbers)) == list(range(1, 1 + len(regimes.marks)))
    assert "<b>mine" not in text
    assert text.count("<tr>") == 1 + len(regimes.marks) + 1 + 4
    assert json.loads(json.dumps(regimes.to_json(), allow_nan=False)) == regimes.to_json()


def test_the_command_prints_writes_and_refuses(ok, tidesim, refused, tmp_path):
    page = tmp_path / "r.html"
    base = ("regimes", "tide-tiny-mixed", "--hardware", "a100-40gb-pcie4-xeon48")
    command = (*base, "--budget", 8, "--intervals", "32")

    answer = ok(*command, "--out", page)
    status, out, _ = tidesim(*command, "--marks", "rtx4090-24gb-pcie4-desktop")

    marked = {mark["hardware"] for mark in answer["marks"]}
    assert len(answer["cells"]) == 49
    assert {A100.name, H100.name} <= marked
    assert not [name for name in marked if name.endswith("-unified")]
    assert answer["report"] == str(page)
    assert page.exists()
    assert status == 0
    assert "static" in out
    assert "budget is 1" in refused(*base, "--budget", 1)
