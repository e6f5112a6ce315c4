"""Sensitivity: every swing is what a simulation of the changed machine says; flips are named."""

import json

import pytest
from test_optimize import A100, MINI, fixed_trace

import tidesim.cli.sensitivity as command
from tidesim.contest import Contest
from tidesim.errors import SettingError
from tidesim.report.sensitivity_figures import tornado_figure, write_sensitivity_page
from tidesim.sensitivity import Remake, remakes_of, sensitivity
from tidesim.simulate import simulate
from tidesim.trace.synth.parameters import load_parameters
from tidesim.trace.synth.vary import variables, varied

SETTINGS = {"budget": 3, "sizes": MINI, "intervals": (1, 4)}


@pytest.fixture(scope="module")
def found():
    return sensitivity(fixed_trace(), A100, **SETTINGS)


def test_a_swing_is_the_simulated_change_of_the_best_candidate(found):
    trace, best = fixed_trace(), found.base.best

    def speed(machine):
        return simulate(
            trace.split("heldout"), machine, policy=best.policy, interval=best.interval,
            promotion=best.promotion if best.interval else None, budget=3, sizes=MINI,
            popularity_from=trace.split("train"),
        ).tokens_per_s  # fmt: skip

    for swing in found.swings:
        for value, change in zip((swing.low, swing.high), swing.changes, strict=True):
            machine = A100.with_overrides({swing.name: value})
            assert change == pytest.approx(speed(machine) / speed(A100) - 1, abs=1e-9)


def test_swings_come_widest_first_and_shares_stay_at_most_1(found):
    widths = [swing.width for swing in found.swings]

    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0
    for swing in found.swings:
        assert swing.low == pytest.approx(0.8 * swing.value)
        assert swing.high <= 1 or not swing.name.endswith("_factor")


def test_faster_parts_never_make_static_residents_slower():
    trace = fixed_trace()
    contest = Contest.of(trace, A100, **SETTINGS)
    slow_link = A100.with_overrides({"link.h2d_bytes_per_s": 1e3})
    assert contest.on(slow_link).best.interval is None

    found = sensitivity(trace, slow_link, **SETTINGS)

    for swing in found.swings:
        low, high = swing.changes
        rate = swing.name.endswith(("_per_s", "flops_bf16", "_factor"))
        assert (high >= low - 1e-12) if rate else (high <= low + 1e-12)


def test_what_turns_the_answer_round_is_named():
    """At a link where static residents and refresh are nearly even, the link decides."""
    trace = fixed_trace()
    contest = Contest.of(trace, A100, **SETTINGS)

    def gain(rate):
        standing = contest.on(A100.with_overrides({"link.h2d_bytes_per_s": rate}))
        speeds = standing.tokens_per_s
        return speeds["tide τ=1"] / speeds["static-frequency"] - 1

    low, high = 1e9, 1e12
    for _ in range(40):  # bisect to where both are as fast
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gain(middle) < 0 else (low, middle)
    even = A100.with_overrides({"link.h2d_bytes_per_s": low})
    found = sensitivity(trace, even, **SETTINGS, by=0.9)

    link = next(swing for swing in found.swings if swing.name == "link.h2d_bytes_per_s")
    assert link.flips


def test_statistics_of_a_trace_swing_too():
    found = sensitivity(
        fixed_trace(), A100, **SETTINGS, remakes=[
            Remake(name="seed", value=10.0, trace_at=lambda at: fixed_trace(seed=int(at)))
        ]
    )  # fmt: skip

    swing = next(one for one in found.swings if one.name == "seed")
    assert (swing.kind, swing.low, swing.high) == ("synthetic", 8.0, 12.0)
    expected = Contest.of(fixed_trace(seed=8), A100, **SETTINGS).on(A100)
    assert swing.at_low.tokens_per_s == expected.tokens_per_s


@pytest.mark.parametrize("by", [0.0, 1.0, -0.2])
def test_a_share_out_of_range_is_refused(by):
    with pytest.raises(SettingError, match="above 0 and below 1"):
        sensitivity(fixed_trace(), A100, **SETTINGS, by=by)


def test_the_page_draws_the_widest_and_lists_all(found, tmp_path):
    page = tmp_path / "tornado.html"

    write_sensitivity_page(page, found, trace="<b>mine</b>")

    bars = tornado_figure(found).data
    assert len(bars) == 2
    assert list(bars[0].y)[-1].startswith(found.swings[0].name)
    text = page.read_text()
    assert "<b>mine" not in text
    assert all(swing.name in text for swing in found.swings)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


def test_the_command_prints_writes_and_refuses(ok, tidesim, refused, tmp_path):
    page = tmp_path / "t.html"
    command = (
        "sensitivity", "tide-tiny-mixed", "--hardware", "a100-40gb-pcie4-xeon48",
        "--budget", 8, "--intervals", "32",
    )  # fmt: skip

    answer = ok(*command, "--out", page)
    status, out, _ = tidesim(*command)

    assert page.exists()
    assert status == 0
    assert answer["swings"][0]["name"] in out.replace("\n", "")
    assert "above 0 and below 1" in refused(*command, "--by", 2)


def test_numbers_of_a_synthetic_process_can_be_changed_one_at_a_time():
    parameters = load_parameters("llada2.0-mini")

    for name, value in variables(parameters).items():
        same, other = varied(parameters, name, value), varied(parameters, name, 0.5 * value)
        assert variables(same) == pytest.approx(variables(parameters))
        changed = {key for key, at in variables(other).items() if at != variables(same)[key]}
        assert changed == ({name} if value else set())
    beyond = varied(parameters, "1 - context_keep", 2.0)
    assert beyond.routing.context_keep.value == 0
    draws = {each.name: each for each in remakes_of(parameters, lambda changed: changed)}
    assert draws["1 - masked_keep"].tried(1.2) == 1.0
    assert "repeat_share" not in draws  # 0 in this file
    for name, each in draws.items():
        at = each.tried(0.9 * each.value)
        assert variables(each.trace_at(0.9 * each.value))[name] == at


def test_a_model_instead_of_a_trace_draws_its_own_and_changes_their_numbers(
    ok, refused, monkeypatch
):
    monkeypatch.setattr(command, "GEN_LENGTH", 8)
    base = ("sensitivity", "--hardware", "a100-40gb-pcie4-xeon48", "--budget", 64)
    options = ("--intervals", 4)

    answer = ok(*base, *options, "--model", "llada2.0-mini")

    kinds = {swing["name"]: swing["kind"] for swing in answer["swings"]}
    assert kinds["popularity_std"] == kinds["tokens_per_forward"] == "synthetic"
    assert "link.h2d_bytes_per_s" in kinds
    for wrong in ((), ("tide-tiny-mixed", "--model", "llada2.0-mini")):
        assert "give a TRACE, or --model" in refused(*base, *wrong)
