"""``tidesim report``: which passes it draws, what the page says, and what it refuses."""

import json
import re
import sys

import pytest
from builders import case_of, small_spec, steps_trace

from tidesim import cli
from tidesim.errors import SettingError
from tidesim.records import Counter, Record, Records, Resource
from tidesim.report.extract import extract
from tidesim.report.run_figures import timeline_figure
from tidesim.report.timeline_page import write_timeline_page
from tidesim.simulate import run
from tidesim.timeline import Timeline, save_timeline

COUNTS = [[[0, 2, 1]], [[2, 1, 0]], [[1, 1, 1]], [[0, 0, 3]]]
METADATA = {"policy": "tide", "interval": 4, "hardware": "fake <machine>", "trace_sha256": "0" * 64}


def row(resource, start_s, end_s, label="work", *, request=0, block=0, step=0):
    return Record(resource, start_s, end_s, label, request, block, step, 0)


@pytest.fixture(scope="module")
def simulated():
    """Four blocks of two steps and a commit, each pass after the other."""
    trace = steps_trace(small_spec(), COUNTS * 2, steps_per_block=2, commits=True)
    result = run(case_of(trace), keep_records=True)
    counters = [Counter("hit rate", float(number), number / 500) for number in range(500)]
    return Timeline(records=result.records, counters=tuple(counters), metadata=METADATA), result


def background():
    """Step 0 promotes; the copy goes on beside step 1, whose end waits for it."""
    return Records(
        [
            row(Resource.GPU, 0, 2, "attention", block=-1),
            row(Resource.GPU, 2, 4, "attention"),
            row(Resource.H2D, 3, 9, "promote 5"),
            row(Resource.GPU, 4, 6, "attention", step=1),
            row(Resource.GPU, 9, 10, "experts gpu (1)", step=1),
            row(Resource.GPU, 10, 12, "attention", step=2),
        ]
    )


# ── which passes ─────────────────────────────────────────────────────────────────────────────────


def test_without_a_range_the_first_three_steps_of_the_first_block_are_drawn(simulated):
    timeline, result = simulated

    chosen = extract(timeline, "run.json")

    assert (chosen.request, chosen.block, chosen.steps) == (0, 0, (0, 1, 2))
    assert {(r.block, r.step) for r in chosen.records} == {(0, 0), (0, 1), (0, 2)}
    assert chosen.beside == ()
    assert (chosen.start_s, chosen.seconds) == (0, pytest.approx(result.pass_s[:3].sum()))


def test_a_prefill_is_no_block_unless_it_is_asked_for():
    timeline = Timeline(records=background())

    assert extract(timeline, "t").block == 0
    assert extract(timeline, "t", block=-1).seconds == 2
    assert extract(Timeline(records=Records([background()[0]])), "t").block == -1


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((0, 1), (0,)),
        ((1, None), (1, 2)),
        ((0, 2), (0, 1)),
        ((2, 99), (2,)),
        ((0, None), (0, 1, 2)),
    ],
)
def test_a_range_of_steps_is_half_open(simulated, steps, expected):
    timeline, result = simulated

    chosen = extract(timeline, "run.json", block=2, steps=steps)

    assert chosen.steps == expected
    numbers = [6 + step for step in expected]
    assert chosen.seconds == pytest.approx(result.pass_s[numbers].sum())
    assert sum(chosen.path_seconds().values()) == pytest.approx(chosen.seconds)
    assert sum(chosen.path_shares().values()) == pytest.approx(1)


def test_too_many_operations_leave_out_steps_but_never_the_first():
    def steps_of(*sizes):
        rows = [
            row(Resource.GPU, 9999 * step + n, 9999 * step + n + 1, step=step)
            for step, size in enumerate(sizes)
            for n in range(size)
        ]
        chosen = extract(Timeline(records=Records(rows)), "t")
        return chosen.steps, chosen.shortened

    assert steps_of(1000, 1000, 1000, 5) == ((0, 1, 2), False)
    assert steps_of(1000, 1000, 1001) == ((0, 1), True)
    assert steps_of(3001, 1) == ((0,), True)
    assert steps_of(3001) == ((0,), True)


def test_a_promotion_that_runs_on_is_drawn_beside_and_counts_in_the_path():
    timeline = Timeline(records=background())

    first, second = (extract(timeline, "t", steps=(n, n + 1)) for n in (0, 1))

    assert (first.start_s, first.end_s, len(first.records)) == (2, 4, 2)
    assert [r.label for r in second.beside] == ["promote 5"]
    assert (second.start_s, second.end_s) == (4, 10)
    assert second.path_seconds() == {(Resource.H2D, "promote"): 5, (Resource.GPU, "experts gpu"): 1}
    assert sum(first.path_seconds().values()) <= first.seconds


def test_counters_of_the_range_begin_with_the_value_that_held():
    counters = (Counter("a", 0, 1), Counter("a", 3, 2), Counter("a", 5, 3), Counter("b", 11, 4))
    timeline = Timeline(records=background(), counters=counters)

    assert extract(timeline, "t", steps=(1, 2)).counters == (Counter("a", 4, 2), Counter("a", 5, 3))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"request": 7}, "run.json: has no request 7; it holds requests 0$"),
        ({"block": 9}, "run.json: has no block 9; it holds blocks 0 to 3$"),
        ({"block": 9, "request": 0}, "no block 9; request 0 of it holds blocks 0 to 3"),
        ({"steps": (5, 8)}, "request 0, block 0 has steps 0 to 2 and none in the range"),
    ],
)
def test_a_range_that_holds_nothing_says_what_there_is(simulated, choice, said):
    with pytest.raises(SettingError, match=said):
        extract(simulated[0], "run.json", **choice)


def test_an_empty_timeline_is_refused():
    with pytest.raises(SettingError, match="holds no operation"):
        extract(Timeline(records=Records([])), "t")


# ── the figure and the page ──────────────────────────────────────────────────────────────────────


def test_the_figure_hatches_the_path_and_gives_it_a_row(simulated):
    chosen = extract(simulated[0], "t", block=1, steps=(0, 1))

    figure = timeline_figure(
        chosen.records,
        path=chosen.path,
        counters=chosen.counters,
        span_s=(chosen.start_s, chosen.end_s),
    )

    bars = [bar for bar in figure.data if bar.type == "bar"]
    on_row = sum(len(bar.x) for bar in bars if bar.name == "critical path")
    hatched = [s for bar in bars if bar.name != "critical path" for s in bar.marker.pattern.shape]
    assert on_row == hatched.count("/") == len(chosen.path)
    assert len(hatched) == len(chosen.records) > len(chosen.path)
    assert min(min(bar.base) for bar in bars) == 0
    ends = [base + x for bar in bars for base, x in zip(bar.base, bar.x, strict=True)]
    assert max(ends) == pytest.approx(1e3 * chosen.seconds)
    (curve,) = (data for data in figure.data if data.type == "scatter")
    assert (curve.name, curve.yaxis, curve.line.shape) == ("hit rate", "y2", "hv")
    assert curve.x[0] == 0
    assert curve.x[-1] == pytest.approx(1e3 * chosen.seconds)


def test_idle_time_of_measured_records_stands_in_the_table():
    rows = Records(
        [row(Resource.GPU, 0, 1, "attention"), row(Resource.CPU, 1.5, 2, "experts cpu (1)")]
    )

    assert list(extract(Timeline(records=rows), "t").path_rows()) == [
        ("gpu", "attention", 1, 0.5),
        ("cpu", "experts cpu", 0.5, 0.25),
        ("–", "idle", 0.5, 0.25),
    ]


def test_the_page_holds_figure_table_and_provenance_and_escapes_names(tmp_path):
    evil = "</script><b>bold"
    rows = Records([row(Resource.GPU, 0, 1, evil), row(Resource.H2D, 1, 2, "promote 4")])
    counters = (Counter(evil, 0, 1),)
    chosen = extract(Timeline(records=rows, counters=counters), "t")
    page = tmp_path / "r.html"

    write_timeline_page(
        page, chosen, metadata=METADATA | {"note": evil}, source="<run>.json", sha256="f" * 64
    )

    text = page.read_text()
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "Plotly.newPlot" in text
    assert evil not in text
    assert "<b>" not in outside
    assert '<td data-value="50.0">50</td>' in outside
    assert "&lt;/script&gt;&lt;b&gt;bold" in outside
    assert "policy tide, interval 4 on fake &lt;machine&gt;: request 0, block 0, step 0" in outside
    assert f"&lt;run&gt;.json, sha256 {'f' * 64}" in outside
    assert f"trace sha256: {'0' * 64}" in outside


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def report(monkeypatch, capsys, tmp_path, simulated):
    """Run ``tidesim report`` on the simulated timeline; return (status, stdout, stderr)."""
    timeline, _ = simulated
    save_timeline(
        tmp_path / "run.json",
        timeline.records,
        counters=timeline.counters,
        metadata=timeline.metadata,
    )

    def run_command(*arguments, file=tmp_path / "run.json", out=tmp_path / "r.html"):
        argv = ["tidesim", "report", str(file), "--out", str(out), *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run_command


def test_report_writes_the_page_and_prints_the_path(report, tmp_path):
    status, out, _ = report()

    assert status == 0
    assert "critical path of request 0, block 0, steps 0 to 2" in " ".join(out.split())
    assert "experts cpu" in out
    assert "promote" in (tmp_path / "r.html").read_text()


def test_report_answers_in_json(report, tmp_path):
    status, out, _ = report("--request", "0", "--block", "3", "--steps", "1:", "--json")

    answer = json.loads(out)
    assert status == 0
    assert answer.keys() == {
        "report", "request", "block", "steps", "operations", "seconds", "critical_path",
    }  # fmt: skip
    assert (answer["block"], answer["steps"]) == (3, [1, 2])
    assert answer["report"] == str(tmp_path / "r.html")
    assert answer["critical_path"][0].keys() == {"resource", "operation", "seconds", "share"}
    assert sum(line["share"] for line in answer["critical_path"]) == pytest.approx(1)


@pytest.mark.parametrize("steps", ["3", "4:4", "4:2", "-1:2", "a:b", "1:2:3", ":0", "١:2"])
def test_report_refuses_what_is_no_range(report, steps):
    status, out, err = report(f"--steps={steps}")

    assert (status, out) == (2, "")
    assert f"--steps {steps}: not a range of steps" in err


def test_report_refuses_to_write_over_the_timeline(report, tmp_path):
    file = tmp_path / "r.html"  # where the page would go
    file.write_text("kept")

    status, out, err = report(file=file)

    assert (status, out) == (2, "")
    assert "is the timeline itself" in err
    assert file.read_text() == "kept"


def test_report_refuses_other_files_and_leaves_no_page(report, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"format": "tidesim-schedule"}')

    for file, said in ((other, "is no timeline"), (tmp_path / "none", "no such timeline file")):
        status, out, err = report(file=file)

        assert (status, out, len(err.strip().splitlines())) == (2, "", 1)
        assert said in err
    assert not (tmp_path / "r.html").exists()
