"""The page of a validation: what it draws, names and escapes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from builders import FakeLatency, case_of, small_spec, steps_trace
from measuring import recounted, trial_like

from tidesim.report.validate_figures import (
    errors_figure,
    operations_figure,
    passes_figure,
    runs_figure,
    spread_in_words,
)
from tidesim.report.validate_page import write_validate_page
from tidesim.simulate import run
from tidesim.validate import Tolerances, operations, validate

COUNTS = [[[0, 2, 1]], [[2, 1, 0]], [[1, 1, 1]], [[0, 0, 3]]]
TRACE = steps_trace(small_spec(), COUNTS, steps_per_block=2, commits=True)
REPEATS = np.array([[1.0], [1.25], [1.5]])
EVIL = "<b>evil</b>"


def trial(name, *, slower=1.0, calibration=False, **changes):
    case = case_of(TRACE, latency=FakeLatency(cpu_experts=16 * slower))
    result = run(case, keep_records=True)
    return trial_like(result, tuple(case.passes()), name=name, calibration=calibration, **changes)


@pytest.fixture(scope="module")
def report():
    """Two scored configurations, the first measured at 1.25 times its time, and a calibration."""
    trials = [
        trial("first", factor=REPEATS, repeats=3),
        trial(EVIL, slower=2, repeats=3),
        trial("fitted", slower=3, calibration=True, factor=2.0, repeats=3),
    ]
    return validate(
        trials,
        tolerances=Tolerances(least_configurations=2, kendall_tau=-1),
        calibrated={"engine.tidesim.sync_s": (1e-6, 2.5e-6)},
    )


def outside_scripts(page):
    return re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)


def test_points_stand_at_their_seconds_with_the_range_of_repeats(report):
    figure = runs_figure(report)

    equal, scored, fitted = figure.data
    first = report.trials[0]
    assert equal.x == equal.y
    assert scored.y[0] == first.predicted_s
    assert scored.x[0] == pytest.approx(1.25 * first.predicted_s)
    assert scored.error_x.array[0] == pytest.approx(0.25 * first.predicted_s)
    assert scored.error_x.arrayminus[0] == pytest.approx(0.25 * first.predicted_s)
    assert (fitted.name, len(fitted.x), len(scored.x)) == ("used for calibration", 1, 2)
    assert "-20.0%" in scored.text[0]


def test_the_menu_shows_one_configuration_at_a_time(report):
    figure = passes_figure(report)

    assert [line.visible for line in figure.data] == [True] * 4 + [False] * 8
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["first", "&lt;b&gt;evil&lt;/b&gt;", "fitted"]
    for number, button in enumerate(buttons):
        visible = button.args[0]["visible"]
        assert [n for n, shown in enumerate(visible) if shown] == list(
            range(4 * number, 4 * number + 4)
        )
    low, high, measured, predicted = figure.data[:4]
    expected = 1e3 * report.trials[0].predicted.pass_s
    assert predicted.y == pytest.approx(expected)
    assert low.y == pytest.approx(expected)
    assert measured.y == pytest.approx(1.25 * expected)
    assert high.y == pytest.approx(1.5 * expected)


def test_the_histogram_holds_every_scored_pass(report):
    (bars,) = errors_figure(report).data

    assert sorted(bars.x) == pytest.approx([-20.0] * 6 + [0.0] * 6)


def test_operations_stand_in_pairs_with_the_largest_difference_on_top(report):
    causes = operations(report.scored)

    measured, predicted = operations_figure(causes).data

    assert measured.y[-1] == f"{causes[0].resource}: {causes[0].operation}"
    assert measured.x[-1] == causes[0].measured_s
    assert predicted.x[-1] == causes[0].predicted_s


def test_the_spread_is_said_in_words(report):
    once = validate([trial("once")], tolerances=Tolerances(least_configurations=1))

    assert "spread by 20.0%" in spread_in_words(report)
    assert "40.0% at most" in spread_in_words(report)
    assert "ran once" in spread_in_words(once)


def test_the_page_holds_every_part_and_escapes_names(report, tmp_path):
    page = tmp_path / "v.html"

    write_validate_page(page, report, skipped={"lru B=9": "does not fit"})

    text = outside_scripts(page)
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Why it did not pass", "Runs", "Configurations", "Calibration", "Step by step", "Errors",
        "Where the seconds are", "Busy seconds by resource", "Worst passes", "Left out",
    ]  # fmt: skip
    assert EVIL not in page.read_text()
    assert "&lt;b&gt;evil&lt;/b&gt;" in text
    assert "Not passed: over 2 scored configurations" in text
    assert "run error is -20.0% (first)" in text
    assert "fitted to fitted, which are not scored" in text
    assert '<td data-value="2.5e-06">2.5e-06</td>' in text
    assert "request 0, block 0, step 0 (denoise)" in text
    assert page.read_text().count("Plotly.newPlot(") >= 4


def test_a_report_that_passes_without_records_has_fewer_parts(tmp_path):
    trials = [trial("one", records=None), trial("two", slower=2, records=None)]
    report = validate(trials, tolerances=Tolerances(least_configurations=2))
    page = tmp_path / "v.html"

    write_validate_page(page, report)

    text = outside_scripts(page)
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Runs", "Configurations", "Step by step", "Errors", "Worst passes",
    ]  # fmt: skip
    assert '<p class="lead">Passed: over 2' in text
    assert "no records" in text


def test_mismatches_are_counted_on_the_page(tmp_path):
    one = trial("one")
    wrong = replace(one, measured=recounted(one.measured, hits=-1, misses=-1))

    write_validate_page(tmp_path / "v.html", validate([wrong]))

    text = outside_scripts(tmp_path / "v.html")
    assert "2 differ" in text
    assert "counters not as predicted" in text


def test_figures_are_json(report):
    for figure in (runs_figure(report), passes_figure(report), errors_figure(report)):
        assert json.loads(figure.to_json())["data"]
