"""What if: two runs of the same requests, their differences, their timelines, and the command."""

import json
from dataclasses import replace

import pytest
from builders import FakeLatency, case_of, small_spec, steps_trace

from tidesim.errors import SettingError
from tidesim.hardware import load_profile
from tidesim.optimize import optimize
from tidesim.report.whatif_page import (
    difference_table,
    extracts,
    timeline_figures,
    waiting_figure,
    write_whatif_page,
)
from tidesim.simulate import prepare, run
from tidesim.trace.io import load_trace
from tidesim.variants import Variant
from tidesim.whatif import compare_variants, what_if

COUNTS = [[[0, 2, 1]], [[2, 1, 0]], [[1, 1, 1]], [[0, 0, 3]]]
TRACE, A100, H100 = "tide-tiny-mixed", "a100-40gb-pcie4-xeon48", "h100-80gb-sxm-pcie5-xeon48"
COMMAND = ("whatif", TRACE, "--hardware", A100, "--policy", "tide", "--interval", 4, "--budget", 8)


@pytest.fixture(scope="module")
def cases():
    """A run, and one whose copies take half as long; eight passes and a commit after every two."""
    trace = steps_trace(small_spec(), COUNTS * 2, steps_per_block=2, commits=True)
    return case_of(trace), case_of(trace, latency=FakeLatency(expert_copy=4.0))


@pytest.fixture(scope="module")
def found(cases):
    return what_if(*cases, keep_records=True)


def test_both_runs_are_what_run_says_of_them(cases, found):
    for case, result in zip(cases, (found.base, found.changed), strict=True):
        assert result.to_json() == run(case).to_json()

    assert found.speedup == pytest.approx(found.base.seconds / found.changed.seconds)
    assert found.speedup > 1


def test_a_change_is_relative_and_of_shares_in_points(found):
    by_name = {one.name: one for one in found.differences()}

    rate, waited = by_name["tokens per second"], by_name["waited for: link"]
    assert rate.change == pytest.approx(found.speedup - 1)
    assert waited.change == pytest.approx(found.changed.waited["link"] - found.base.waited["link"])
    assert waited.change < 0
    assert by_name["promotions"].change == 0


@pytest.mark.parametrize("kind", ["busy", "waited for", "critical path"])
def test_every_share_of_the_time_is_there_and_what_adds_up_adds_up(found, kind):
    rows = [one for one in found.differences() if one.name.startswith(f"{kind}: ")]

    assert len(rows) == (4 if kind == "waited for" else 5)
    if kind != "busy":
        assert sum(one.base for one in rows) == pytest.approx(100)
        assert sum(one.changed for one in rows) == pytest.approx(100)


def test_a_case_against_itself_differs_in_nothing(cases):
    same = what_if(cases[0], cases[0])

    assert same.speedup == 1
    assert all(one.base == one.changed for one in same.differences())


def test_from_zero_there_is_no_relative_change(cases):
    still = case_of(cases[0].trace, policy="static-frequency", popularity=[[2, 1, 0]])
    by_name = {one.name: one for one in what_if(still, cases[0]).differences()}

    assert (by_name["promotions"].base, by_name["promotions"].change) == (0, None)
    assert by_name["promotions"].changed > 0
    assert by_name["critical path: h2d"].change is not None


def test_the_frames_hold_every_difference_and_pass(found):
    frame, passes = found.frame(), found.pass_frame()

    assert list(frame.columns) == ["quantity", "unit", "base", "changed", "change"]
    assert frame.set_index("quantity").loc["tokens per second", "change"] == found.speedup - 1
    assert frame["change"].dtype == float
    assert passes["base_s"].sum() == pytest.approx(found.base.seconds)
    assert passes["changed_s"].sum() == pytest.approx(found.changed.seconds)
    assert passes["is_step"].sum() == found.base.steps


def test_both_timelines_show_the_same_steps_over_the_same_milliseconds(found):
    base, changed = extracts(found, block=1)
    figures = timeline_figures(base, changed)

    assert base.label == changed.label == "request 0, block 1, steps 0 to 2"
    assert base.seconds > changed.seconds
    spans = [figure.layout.xaxis.range for figure in figures]
    assert spans[0] == spans[1] == (0, 1e3 * base.seconds)
    bars = [sum(len(trace.x) for trace in figure.data if trace.type == "bar") for figure in figures]
    assert min(bars) >= len(base.records)
    assert [figure.layout.title.text.split(":")[0] for figure in figures] == ["base", "changed"]


def test_waiting_adds_up_to_the_time_of_a_block(found):
    figure = waiting_figure(found)

    for number, result in enumerate((found.base, found.changed)):
        total_ms = sum(trace.x[number] for trace in figure.data)
        assert total_ms == pytest.approx(1e3 * result.seconds_per_block)


def test_the_page_escapes_names_and_holds_both_machines(cases, tmp_path):
    trace = steps_trace(small_spec(), COUNTS, steps_per_block=2, commits=True)
    other = case_of(trace, latency=FakeLatency(expert_copy=4.0))
    object.__setattr__(other, "hardware", "<i>changed</i>")
    found = what_if(case_of(trace), other, keep_records=True)
    page = tmp_path / "w.html"

    write_whatif_page(page, found, extracts(found), trace="<b>mine</b>")

    text = page.read_text()
    assert "<b>mine" not in text
    assert "<i>changed" not in text
    assert "&lt;i&gt;changed" in text
    assert "tokens per second" in text
    assert text.count('class="plotly-graph-div"') == 3


def test_without_records_there_is_no_timeline(cases):
    with pytest.raises(SettingError, match="keep_records=True"):
        extracts(what_if(*cases))


def test_cases_of_other_requests_are_refused():
    trace, machine = load_trace(TRACE), load_profile(A100)
    first, second = (
        prepare(trace.only((request,)), machine, policy="tide", interval=4, budget=8)
        for request in (0, 1)
    )

    with pytest.raises(SettingError, match="different requests; give both the same"):
        what_if(first, second)


def test_passes_of_different_batches_belong_to_no_table():
    trace, machine = load_trace(TRACE).only((0, 1)), load_profile(A100)
    alone, together = (
        prepare(trace, machine, policy="tide", interval=4, budget=8, batch=batch)
        for batch in (1, 2)
    )
    found = what_if(alone, together, method="fast")

    assert found.speedup > 1
    with pytest.raises(SettingError, match="passes, so none belong together"):
        found.pass_frame()


def test_the_table_names_every_quantity_once(found):
    names = [row[0] for row in difference_table(found).rows]

    assert len(names) == len(set(names)) == len(found.differences())


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_the_command_says_what_simulate_says_of_both_machines(ok):
    change = ("--set", "link.h2d_bytes_per_s=x1.5", "--set", "link.latency_s=1us")
    answer = ok(*COMMAND, *change)

    simulate = ("simulate", *COMMAND[1:], "--no-gains")
    for name, options in (("base", ()), ("changed", change)):
        told = ok(*simulate, *options)
        assert answer[name].items() <= told.items()
    assert answer["report"] is None
    assert answer["speedup"] > 1
    assert answer["changed"]["hardware"] == (
        f"{A100} with link.h2d_bytes_per_s = {1.5 * load_profile(A100).value('link.h2d_bytes_per_s'):g}, "
        "link.latency_s = 1e-06"
    )


def test_the_other_machine_is_the_base(ok):
    half = ("--against-set", "cpu.expert_bytes_per_s=x0.5")

    against = ok(*COMMAND, "--against-hardware", H100, *half)
    itself = ok(*COMMAND, *half)

    assert against["base"]["hardware"] == f"{H100} with cpu.expert_bytes_per_s = 8.05e+10"
    assert against["changed"]["hardware"] == itself["changed"]["hardware"] == A100
    assert itself["base"]["hardware"] == f"{A100} with cpu.expert_bytes_per_s = 2.81e+10"
    assert itself["speedup"] > 1


def test_the_page_is_written_and_the_table_fits_80_columns(tidesim, tmp_path):
    page = tmp_path / "what if é.html"
    few = ("--requests", "0", "--set", "link.h2d_bytes_per_s=x2")

    status, out, _ = tidesim(*COMMAND, *few, "--out", page, "--block", 2, "--steps", "1:3")

    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "tokens per second" in out
    assert "points" in out
    assert "block 2, steps 1 to 2" in page.read_text()


def test_wrong_settings_are_refused(refused, tmp_path):
    assert "nothing differs between the two runs; give --set" in refused(*COMMAND)
    change = ("--set", "cpu.cores=x2")
    assert "--out FILE" in refused(*COMMAND, *change, "--steps", "0:2")
    assert "a factor has no unit" in refused(*COMMAND, "--set", "cpu.cores=x2GB")
    assert "--requests 77" in refused(*COMMAND, *change, "--requests", "77")


def test_the_answer_is_plain_json(ok):
    answer = ok(*COMMAND, "--requests", "0", "--set", "cpu.expert_bytes_per_s=80GB/s")

    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    rows = {row["name"]: row for row in answer["differences"]}
    assert rows["tokens per second"]["base"] == answer["base"]["tokens_per_s"]


def test_three_lines_of_python_do_the_same(ok):
    base = Variant(hardware=A100, policy="tide", interval=4, budget=8)
    changed = replace(base, overrides=["link.h2d_bytes_per_s=x2"])
    found = compare_variants(TRACE, base, changed)

    answer = ok(*COMMAND, "--set", "link.h2d_bytes_per_s=x2")
    assert found.to_json().items() <= answer.items()


# ── what tells two runs apart ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def schedule(tmp_path_factory):
    """A schedule for the small model whose layers differ, and refresh at steps of their own."""
    solved = optimize(load_trace(TRACE), load_profile(A100), budget=8)
    layers = [
        {"budget": budget, "refresh_steps": [0, 3 + budget]} for budget in (8, 12, 16, 8)
    ]  # fmt: skip
    data = json.loads(solved.schedule.model_dump_json()) | {"layers": layers, "interval": None}
    path = tmp_path_factory.mktemp("s") / "S.json"
    path.write_text(json.dumps(data))
    return path


MACHINE = ("whatif", TRACE, "--hardware", A100, "--requests", 0)
PAY = ("--policy", "pay", "--budget", 8)
TIDE = ("--policy", "tide", "--interval", 4, "--budget", 8)
FAST = ("--set", "link.h2d_bytes_per_s=x2")


@pytest.mark.parametrize(
    ("changed", "against", "base", "names"),
    [
        (
            PAY,
            ("--against-policy", "tide", "--against-interval", 4),
            TIDE,
            (
                "tide every 4 steps, 8 slots per layer, blocking promotion",
                "pay, 7 to 9 slots per layer, background promotion",
            ),
        ),
        (
            (*TIDE, "--promotion", "background"),
            ("--against-policy", "lru"),
            ("--policy", "lru", "--budget", 8),
            ("lru, blocking promotion", "tide every 4 steps, background promotion"),
        ),
        (
            TIDE,
            ("--against-interval", 1),
            ("--policy", "tide", "--interval", 1, "--budget", 8),
            ("tide every 1 step", "tide every 4 steps"),
        ),
        (
            TIDE,
            ("--against-budget", 16),
            ("--policy", "tide", "--interval", 4, "--budget", 16),
            ("16 slots per layer", "8 slots per layer"),
        ),
        (
            ("--policy", "lru", "--memory-gb", 1.512),
            ("--against-budget", 16),
            ("--policy", "lru", "--budget", 16),
            None,
        ),
        (
            ("--policy", "lru", "--budget", 16),
            ("--against-memory-gb", 1.512),
            ("--policy", "lru", "--memory-gb", 1.512),
            None,
        ),
        (
            TIDE,
            ("--against-engine", "tide-reference"),
            (*TIDE, "--engine", "tide-reference"),
            ("engine tide-reference", "engine tidesim"),
        ),
        (
            TIDE,
            ("--against-promotion", "background"),
            (*TIDE, "--promotion", "background"),
            ("background promotion", "blocking promotion"),
        ),
        (
            (*TIDE, *FAST),
            ("--against-policy", "lru"),
            ("--policy", "lru", "--budget", 8, *FAST),
            ("lru", "tide every 4 steps"),
        ),
        (
            (*TIDE, *FAST),
            ("--against-set", "link.latency_s=1us", "--against-policy", "lru"),
            ("--policy", "lru", "--budget", 8, "--set", "link.latency_s=1us"),
            None,
        ),
    ],
)  # fmt: skip
def test_the_base_is_the_same_run_but_for_what_is_named(ok, changed, against, base, names):
    answer = ok(*MACHINE, *changed, *against)

    simulate = ("simulate", *MACHINE[1:], "--no-gains")
    for name, options in (("base", base), ("changed", changed)):
        assert answer[name].items() <= ok(*simulate, *options).items()
    if names:
        assert (answer["base_name"], answer["changed_name"]) == names
    assert answer["base_name"] != answer["changed_name"]


def test_other_batches_are_compared_on_the_same_requests(ok):
    answer = ok(*MACHINE[:-1], "0,1", *TIDE, "--against-batch", 2)

    assert (answer["base"]["batch"], answer["changed"]["batch"]) == (2, 1)
    assert answer["base"]["tokens"] == answer["changed"]["tokens"]
    assert answer["base_name"] == "2 requests at a time"


def test_a_schedule_is_compared_with_settings_and_with_another(ok, schedule, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(
        schedule.read_text().replace('"refresh_steps": [0, 11]', '"refresh_steps": [0]')
    )
    simulate = ("simulate", *MACHINE[1:], "--no-gains")
    obeyed = ok(*simulate, "--schedule", schedule)

    settings = ok(*MACHINE, "--schedule", schedule, "--against-interval", 4, "--against-budget", 8)
    itself = ok(*MACHINE, *TIDE, "--against-schedule", schedule)
    both = ok(*MACHINE, "--schedule", other, "--against-schedule", schedule)

    assert settings["changed"] == itself["base"] == both["base"]
    assert both["base"].items() <= obeyed.items()
    assert settings["base"] == itself["changed"]
    assert settings["base"].items() <= ok(*simulate, *TIDE).items()
    assert settings["changed_name"] == f"schedule {schedule}, 8 to 16 slots per layer"
    assert settings["base_name"] == "tide every 4 steps, 8 slots per layer"
    assert (both["base_name"], both["changed_name"]) == (
        f"schedule {schedule}",
        f"schedule {other}",
    )
    assert both["base"]["promotions"] != both["changed"]["promotions"]


def test_a_schedule_holds_for_a_what_if_on_its_machine_and_for_another_if_forced(
    ok, refused, schedule
):
    other = (*MACHINE, "--schedule", schedule, "--against-hardware", H100)

    assert ok(*MACHINE, "--schedule", schedule, *FAST)["speedup"] > 1
    assert "made for another profile" in refused(*other)
    assert ok(*other, "--force")["speedup"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TIDE, "nothing differs between the two runs; give --set KEY=VALUE alone, or"),
        ((*TIDE, "--against-policy", "tide"), "nothing differs"),
        ((*TIDE, *FAST, "--against-budget", 8), "nothing differs"),
        (("--budget", 8, *FAST), "a run needs a policy or a schedule"),
        ((*TIDE, "--against-memory-gb", -1), "--against-memory-gb is -1.0 but must be"),
        ((*TIDE, "--against-batch", 0), "batch is 0 but must be"),
        (("--schedule", "S", "--budget", 8, *FAST), "a schedule decides policy, interval"),
        ((*TIDE, "--against-policy", "lru", "--against-schedule", "S"), "a schedule decides"),
        (("--schedule", "S", "--against-interval", 4), "give a budget or a memory size"),
        (("--schedule", "S", "--against-schedule", "S"), "nothing differs"),
    ],
)
def test_what_cannot_be_compared_is_refused(refused, schedule, options, message):
    assert message in refused(*MACHINE, *(schedule if one == "S" else one for one in options))


def test_the_page_names_what_differs_at_both_timelines(ok, tmp_path):
    page = tmp_path / "w.html"

    ok(*MACHINE, *TIDE, "--against-policy", "previous-step", "--out", page, "--block", 2)

    text = page.read_text()
    base, changed = (
        "previous-step every 4 steps, background promotion",
        "tide every 4 steps, blocking promotion",
    )
    assert f"<h2>Timeline of the base: {base}</h2>" in text
    assert f"<h2>Timeline with the change: {changed}</h2>" in text
    assert f"{changed} against {base}: " in text
    assert f"{A100}, 8 slots per layer, engine tidesim" in text
