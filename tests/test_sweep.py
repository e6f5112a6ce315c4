"""Sweep: every point is a row, equal to a simulation of its own, whatever fails on the way."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from sweeping import A100, RTX4090, deadly, rows_of, small_axes, small_grid, telling
from test_optimize import MINI, fixed_trace

import tidesim
from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.hardware import load_profile
from tidesim.optimize import optimize
from tidesim.overrides import overridden
from tidesim.simulate import Case, simulate
from tidesim.sweep import Grid, load_grid, sweep
from tidesim.sweep import work as sweep_work
from tidesim.sweep.jobs import TOGETHER, jobs_of, tasks_of
from tidesim.sweep.pools import in_processes
from tidesim.trace.io import save_trace

LINK = "link.h2d_bytes_per_s"
ONE = partial(sweep, workers=1)

# ── the grid ─────────────────────────────────────────────────────────────────────────────────────


def test_points_come_in_the_stated_order_and_only_where_an_axis_applies():
    grid = Grid.of(
        {
            "traces": ["a", "b"], "hardware": ["h"], "overrides": [{}, {LINK: [1.0, 2.0]}],
            "budgets": [8], "memory_gb": [1.5], "policies": ["lru", "tide"], "intervals": [1, 4],
            "formulations": ["free"],
        }
    )  # fmt: skip

    points = list(grid.points())

    ways = [("lru", None, None), ("tide", 1, None), ("tide", 4, None), (None, None, "free")]
    expected = [
        (trace, overrides, budget, memory_gb, *way)
        for trace in ("a", "b")
        for overrides in ((), ((LINK, 1.0),), ((LINK, 2.0),))
        for budget, memory_gb in ((8, None), (None, 1.5))
        for way in ways
    ]
    found = [
        (p.trace, p.overrides, p.budget, p.memory_gb, p.policy, p.interval, p.formulation)
        for p in points
    ]
    assert found == expected
    assert [point.point for point in points] == list(range(len(grid)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ["tides"]}, "'tides' is not known; use some of: tide, mixtral"),
        ({"engines": ["x"]}, "'x' is not known; use some of: tidesim, tide-reference"),
        ({"promotions": ["later"]}, "'later' is not known; use some of: blocking, background"),
        ({"formulations": ["best"]}, "'best' is not known; use some of: .*free"),
        ({"polices": ["tide"]}, "polices = .* is no key of tidesim-grid 1; did you mean policies?"),
        ({"budgets": [0]}, "budgets.0 is 0 but must be at least 1"),
        ({"budgets": [1.5]}, "budgets.0 is 1.5 but must be a whole number"),
        ({"budgets": []}, "neither budgets nor memory_gb"),
        ({"policies": []}, "neither a policy nor a formulation"),
        ({"memory_gb": [float("nan")]}, "memory_gb.0 is nan but must be"),
        ({"intervals": [2, 4, 2]}, "intervals is .* but must not name 2 twice"),
        ({"traces": []}, "traces is .* but must not be empty"),
        ({"traces": "a"}, "traces is 'a' but must be a list"),
        ({"overrides": [{LINK: 1.0}]}, r"must be a list; write \[\[overrides\]\] tables"),
        ({"overrides": [{LINK: []}]}, "must not be empty"),
        (
            {"overrides": [{LINK: [1.0, True]}]},
            'is True but must be a number, or a text such as "50G',
        ),
        ({"overrides": [{LINK: [" "]}]}, "is ' ' but must be a number, or a text"),
        ({"overrides": [{LINK: [float("nan")]}]}, "is nan but must be finite"),
        ({"overrides": [{LINK: [10**400]}]}, "must be finite"),
        ({"solver": {"backend": "x"}}, "solver.backend is 'x' but 'x' is not known"),
        (
            {"budgets": list(range(1, 999)), "intervals": list(range(1, 999))},
            "996,004 points, more",
        ),
        ({"version": 2}, "version is 2 but must be 1"),
        ({"format": "x"}, "format is 'x' but must be 'tidesim-grid'"),
    ],
)
def test_a_grid_with_a_mistake_is_refused_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(FormatError, match=message) as refused:
        small_grid(tmp_path, **changes)

    assert len(str(refused.value).splitlines()) == 1


def test_a_grid_is_read_from_toml_with_or_without_quotes_around_keys(tmp_path):
    path = tmp_path / "g.toml"
    head = 'format = "tidesim-grid"\nversion = 1\ntraces = ["a"]\nhardware = ["h"]\nbudgets = [8]\n'
    rest = f'policies = ["lru"]\n[[overrides]]\n[[overrides]]\n{LINK} = [1, 2.5, "x1.5"]\n'

    path.write_text(head + rest)
    bare = load_grid(path)
    path.write_text((head + rest).replace(LINK, f'"{LINK}"'))

    assert load_grid(path) == bare
    assert [point.overrides for point in bare.points()] == [
        (), ((LINK, 1.0),), ((LINK, 2.5),), ((LINK, "x1.5"),),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["traces = [", "a = 1", "\xff", ""])
def test_a_file_that_is_no_grid_is_refused(tmp_path, text):
    path = tmp_path / "g.toml"
    path.write_text(text, encoding="latin-1")

    with pytest.raises(FormatError, match=r"g\.toml: "):
        load_grid(path)
    with pytest.raises(FormatError, match="cannot be read"):
        load_grid(tmp_path / "none.toml")


def test_what_a_grid_names_must_be_there(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        jobs_of(small_grid(tmp_path, traces=["none"]))
    with pytest.raises(NotFoundError, match="no such file"):
        jobs_of(small_grid(tmp_path, hardware=["none"]))
    with pytest.raises(
        SettingError, match=r"overrides: link\.speed = 1.0 is no number of a profile"
    ):
        jobs_of(small_grid(tmp_path, overrides=[{}, {"link.speed": [1.0]}]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fast",
            "fast is no number; write for example link.h2d_bytes_per_s=5e10, =50GB/s or =x1.5",
        ),
        ("50GB", "GB does not fit link.h2d_bytes_per_s; give bytes per second"),
        ("x2GB/s", "a factor has no unit; leave GB/s out"),
        ("x0", "must be above 0"),
    ],
)
def test_a_text_that_no_machine_takes_is_refused_as_on_the_command_line(tmp_path, text, message):
    grid = small_grid(tmp_path, hardware=[A100, RTX4090], overrides=[{}, {LINK: [text]}])

    with pytest.raises(SettingError) as refused:
        jobs_of(grid)
    with pytest.raises(SettingError) as said:
        overridden(load_profile(A100), [f"{LINK}={text}"])

    assert message in str(refused.value)
    assert str(refused.value) == f"overrides: {said.value}"


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_row_is_what_a_simulation_of_its_own_says(tmp_path):
    axes = {
        "hardware": [A100, RTX4090], "overrides": [{}, {LINK: [1e9, 1e11]}],
        "engines": ["tidesim", "tide-reference"], "policies": ["tide", "pay", "belady"],
    }  # fmt: skip
    grid, out = small_grid(tmp_path, **axes), tmp_path / "r.parquet"

    frame = ONE(grid, out).to_frame()

    trace = fixed_trace()
    assert len(frame) == len(grid) == 2 * 3 * 2 * 4
    for point, row in zip(grid.points(), frame.to_dict("records"), strict=True):
        result = simulate(
            trace.split("heldout"), load_profile(point.hardware).with_overrides(dict(point.overrides)),
            policy=point.policy, budget=3, interval=point.interval, engine=point.engine, sizes=MINI,
            popularity_from=trace.split("train"), method="fast",
        )  # fmt: skip
        assert row["seconds"] == pytest.approx(result.seconds, rel=1e-12)
        assert row["tokens_per_s"] == pytest.approx(result.tokens_per_s, rel=1e-12)
        for name in ("hits", "misses", "promotions", "evictions", "h2d_bytes", "bottleneck"):
            assert row[name] == getattr(result, name)
        assert row["waited_cpu"] == pytest.approx(result.waited["cpu"], abs=1e-12)
        assert (row["requests"], row["provenance"]) == ("heldout", "synthetic")
    assert frame[LINK].isna().sum() == len(frame) / 3


def test_a_text_is_a_number_of_each_machine_and_stands_in_the_row_as_written(tmp_path):
    values = ["x1.5", "50GB/s", 2e10]
    axes = {"hardware": [A100, RTX4090], "overrides": [{}, {LINK: values}], "intervals": [2]}
    grid, trace = small_grid(tmp_path, **axes), fixed_trace()

    frame = ONE(grid, tmp_path / "r.parquet").to_frame()

    assert [None if pd.isna(text) else text for text in frame[LINK]] == (
        [None, "x1.5", "50GB/s", str(2e10)] * 2
    )
    for row in frame.to_dict("records"):
        profile = load_profile(row["hardware"])
        own = profile.value(LINK)
        number = {"x1.5": 1.5 * own, "50GB/s": 50e9, str(2e10): 2e10}.get(row[LINK])
        machine = profile if number is None else profile.with_overrides({LINK: number})
        result = simulate(
            trace.split("heldout"), machine, policy="tide", budget=3, interval=2, sizes=MINI,
            popularity_from=trace.split("train"), method="fast",
        )  # fmt: skip
        assert row["seconds"] == pytest.approx(result.seconds, rel=1e-12)
        assert row["profile_sha256"] == result.profile_sha256


def test_a_column_is_of_numbers_unless_one_of_its_values_is_a_text(tmp_path):
    latency = "link.latency_s"
    tables = [{LINK: [1e9], latency: ["5us"]}, {LINK: [2], latency: [1e-6]}, {}]
    grid = small_grid(tmp_path, overrides=tables, intervals=[2])

    table = pq.read_table(ONE(grid, tmp_path / "r.parquet").path)

    assert table[LINK].to_pylist() == [1e9, 2.0, None]
    assert table[latency].to_pylist() == ["5us", "1e-06", None]


def test_a_formulation_is_solved_for_and_simulated(tmp_path):
    grid = small_grid(tmp_path, policies=[], formulations=["uniform"], promotions=["blocking"])

    (row,) = rows_of(ONE(grid, tmp_path / "r.parquet").path)

    solved = optimize(fixed_trace(), load_profile(A100), budget=3, sizes=MINI)
    assert row["error"] is None
    assert row["ran_interval"] == solved.schedule.interval
    assert row["tokens_per_s"] == pytest.approx(solved.heldout.tokens_per_s, rel=1e-12)
    assert row["objective_s"] == pytest.approx(solved.solution.objective_s, rel=1e-9)


def test_impossible_points_are_rows_with_their_error(tmp_path):
    axes = {
        "budgets": [3, 99], "promotions": ["blocking", "background"], "intervals": [1],
        "engines": ["tidesim", "tide-reference"], "policies": ["tide", "previous-step"],
    }  # fmt: skip

    swept = ONE(small_grid(tmp_path, **axes), tmp_path / "r.parquet")

    rows = rows_of(swept.path)
    good = [row for row in rows if row["error"] is None]
    assert swept.points == len(rows) == 16
    assert swept.failed == 16 - len(good)
    assert {row["budget"] for row in good} == {3}
    for row in rows:
        if row["budget"] == 99:
            assert "budget is 99 but must be" in row["error"]
        elif (row["policy"], row["promotion"]) == ("previous-step", "blocking"):
            assert "previous-step has no blocking promotion" in row["error"]
        assert (row["tokens_per_s"] is None) == (row["error"] is not None)


def test_an_override_that_fits_one_machine_only_fails_on_the_others(tmp_path):
    text, other = Path(load_profile(RTX4090).file).read_text(), tmp_path / "plain.toml"
    other.write_text(text.replace("[engine.tide-reference]", "[engine.mine]"))
    key = "engine.mine.sync_s"
    grid = small_grid(tmp_path, hardware=[A100, str(other)], overrides=[{key: [1e-5]}])

    rows = rows_of(ONE(grid, tmp_path / "r.parquet").path)

    assert [f"{key} = 1e-05 is no number" in (row["error"] or "") for row in rows] == [
        True, True, False, False,
    ]  # fmt: skip


def test_an_unforeseen_error_is_a_row_too(tmp_path, monkeypatch):
    real = sweep_work.prepare

    def broken(*arguments, budget, **settings):
        if budget == 3:
            raise ZeroDivisionError("by chance")
        return real(*arguments, budget=budget, **settings)

    monkeypatch.setattr(sweep_work, "prepare", broken)
    grid = small_grid(tmp_path, budgets=[3, 4], intervals=[1])

    rows = rows_of(ONE(grid, tmp_path / "r.parquet").path)

    assert [row["error"] for row in rows] == ["ZeroDivisionError: by chance", None]


def test_another_file_under_a_traces_name_is_noticed(tmp_path):
    grid = small_grid(tmp_path)
    (task,) = [(jobs_of(grid)[0],)]
    changed = (replace(task[0], trace_sha256="0" * 64),)

    (row,) = sweep_work.compute(changed)

    assert "not the file that the sweep was started with" in row["error"]


def test_a_worker_reads_a_trace_once_and_places_once_what_no_machine_changes(tmp_path, monkeypatch):
    calls = []

    def counted(name, real):
        def call(*arguments):
            calls.append(name)
            return real(*arguments)

        return call

    sweep_work._requests.cache_clear()
    monkeypatch.setattr(sweep_work, "load_trace", counted("load", sweep_work.load_trace))
    monkeypatch.setattr(Case, "placed", counted("place", Case.placed))
    axes = {"hardware": [A100, RTX4090], "overrides": [{}, {LINK: [1e9, 1e11]}], "intervals": [2]}

    ONE(small_grid(tmp_path, **axes), tmp_path / "1.parquet")
    assert calls == ["load", "place"]
    ONE(small_grid(tmp_path, **axes | {"policies": ["pay"]}), tmp_path / "2.parquet")
    assert calls == ["load", "place"] + ["place"] * 6


def test_tasks_hold_points_that_differ_in_the_machine_alone(tmp_path):
    axes = {"hardware": [A100, RTX4090], "overrides": [{LINK: [1e9 * n for n in range(1, 8)]}]}
    axes |= {"formulations": ["uniform"], "policies": ["lru", "tide"]}
    jobs = jobs_of(small_grid(tmp_path, **axes))

    tasks = tasks_of(jobs)

    assert sorted(job.point.point for task in tasks for job in task) == list(range(len(jobs)))
    for task in tasks:
        assert len({(job.point.policy, job.point.interval) for job in task}) == 1
        assert len(task) <= (1 if task[0].point.formulation else TOGETHER)
    assert max(map(len, tasks)) == TOGETHER


# ── what is computed again, and what is not ──────────────────────────────────────────────────────


def test_a_digest_follows_the_content_and_never_the_name(tmp_path):
    def digests(**changes):
        return [job.digest for job in jobs_of(small_grid(tmp_path, **changes))]

    profile, trace = tmp_path / "machine.toml", tmp_path / "copy.parquet"
    profile.write_bytes(Path(load_profile(A100).file).read_bytes())
    save_trace(fixed_trace(), trace)
    usual = digests()

    assert digests(hardware=[str(profile)]) == digests(traces=[str(trace)]) == usual
    assert len(set(usual)) == 2
    other_trace, halved = tmp_path / "other.parquet", tmp_path / "halved.toml"
    save_trace(fixed_trace(seed=1), other_trace)
    halved.write_text(profile.read_text().replace("value = 2.513e10", "value = 1.256e10"))
    changes = [
        {"traces": [str(other_trace)]}, {"hardware": [RTX4090]}, {"hardware": [str(halved)]},
        {"overrides": [{LINK: [1e9]}]}, {"engines": ["tide-reference"]}, {"budgets": [4]},
        {"budgets": [], "memory_gb": [4.0]}, {"promotions": ["blocking"]}, {"intervals": [2, 3]},
        {"sizes": []}, {"policies": ["lru"]},
        {"policies": [], "formulations": ["free"]},
        {"policies": [], "formulations": ["free"], "solver": {"gap": 0.5}},
    ]  # fmt: skip
    found = [digest for change in changes for digest in digests(**change)]
    assert len({*found, *usual}) == len(found) + len(usual)


def test_an_override_counts_with_what_it_replaced(tmp_path):
    """A measured curve scales with both, so the same number may mean another machine."""
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    text = Path(load_profile(A100).file).read_text()
    one.write_text(text)
    two.write_text(text.replace("value = 2.513e10", "value = 1.256e10"))
    machines = [load_profile(path).with_overrides({LINK: 1e9}) for path in (one, two)]
    assert machines[0].sha256 == machines[1].sha256

    grid = small_grid(tmp_path, hardware=[str(one), str(two)], overrides=[{LINK: [1e9]}])

    assert len({job.digest for job in jobs_of(grid)}) == len(grid)


def test_a_text_counts_as_the_number_that_it_is_on_the_machine(tmp_path):
    doubled = 2 * load_profile(A100).value(LINK)

    def digests(*values, hardware=A100):
        grid = small_grid(tmp_path, hardware=[hardware], overrides=[{LINK: values}], intervals=[2])
        return [job.digest for job in jobs_of(grid)]

    assert len(set(digests("x2", "×2", doubled, f"{doubled!r}B/s"))) == 1
    assert len(set(digests("x2", "x3", "2GB/s", 3e9))) == 4
    assert digests("x2") != digests("x2", hardware=RTX4090)


def test_a_sweep_of_numbers_goes_on_with_texts(tmp_path):
    out, cache, own = tmp_path / "r.parquet", tmp_path / "kept", load_profile(A100).value(LINK)
    numbers = [{LINK: [2 * own, 3 * own]}]
    ONE(small_grid(tmp_path, overrides=numbers), out, cache=cache)
    texts = small_grid(tmp_path, overrides=[{LINK: ["x2", "x3", "x4"]}])

    fresh = ONE(texts, tmp_path / "fresh.parquet")
    kept = ONE(texts, tmp_path / "kept.parquet", cache=cache)
    resumed = ONE(texts, out, resume=True)
    again = ONE(texts, out, resume=True)

    assert [one.computed for one in (fresh, kept, resumed, again)] == [6, 2, 2, 0]
    assert rows_of(fresh.path) == rows_of(kept.path) == rows_of(out)
    assert [row[LINK] for row in rows_of(out)] == ["x2", "x2", "x3", "x3", "x4", "x4"]


def test_twins_are_computed_once_and_stand_in_every_row(tmp_path):
    profile = tmp_path / "machine.toml"
    profile.write_bytes(Path(load_profile(A100).file).read_bytes())

    swept = ONE(small_grid(tmp_path, hardware=[A100, str(profile)]), tmp_path / "r.parquet")

    rows = rows_of(swept.path)
    assert (swept.points, swept.computed) == (4, 2)
    assert [row["tokens_per_s"] for row in rows[:2]] == [row["tokens_per_s"] for row in rows[2:]]
    assert [row["hardware"] for row in rows] == [A100, A100, str(profile), str(profile)]


def test_a_longer_grid_resumes_from_the_output_of_a_shorter_one(tmp_path):
    out = tmp_path / "r.parquet"
    ONE(small_grid(tmp_path), out)

    longer = ONE(small_grid(tmp_path, intervals=[4, 2, 1]), out, resume=True)
    fresh = ONE(small_grid(tmp_path, intervals=[4, 2, 1]), tmp_path / "fresh.parquet")

    assert (longer.points, longer.computed, fresh.computed) == (3, 1, 3)
    assert rows_of(out) == rows_of(fresh.path)


def test_failed_points_are_tried_again(tmp_path, monkeypatch):
    out, grid = tmp_path / "r.parquet", small_grid(tmp_path, budgets=[3, 4])
    with monkeypatch.context() as patch:
        patch.setattr(sweep_work, "prepare", lambda *_, **__: 1 / 0)
        assert ONE(grid, out).failed == 4

    again = ONE(grid, out, resume=True)

    assert (again.computed, again.failed) == (4, 0)


def test_a_cache_serves_other_outputs_until_the_tool_changes(tmp_path, monkeypatch):
    grid, cache = small_grid(tmp_path), tmp_path / "kept" / "here"

    first = ONE(grid, tmp_path / "1.parquet", cache=cache)
    second = ONE(grid, tmp_path / "2.parquet", cache=cache)
    monkeypatch.setattr(tidesim, "__version__", "next")
    third = ONE(grid, tmp_path / "3.parquet", cache=cache)

    assert [one.computed for one in (first, second, third)] == [2, 0, 2]
    assert rows_of(first.path) == rows_of(second.path)
    assert len(list(cache.glob("*.parquet"))) == 4


def test_damaged_results_are_computed_again(tmp_path):
    grid, cache = small_grid(tmp_path), tmp_path / "kept"
    ONE(grid, tmp_path / "1.parquet", cache=cache)
    for path, content in zip(sorted(cache.iterdir()), (b"", b"PAR1 but no more"), strict=True):
        path.write_bytes(content)

    again = ONE(grid, tmp_path / "2.parquet", cache=cache)

    assert again.computed == 2
    assert rows_of(again.path) == rows_of(tmp_path / "1.parquet")


def test_only_what_a_sweep_wrote_is_gone_on_with(tmp_path):
    out, grid = tmp_path / "r.parquet", small_grid(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(out)
    with pytest.raises(FormatError, match="not a file that tidesim sweep wrote"):
        ONE(grid, out, resume=True)

    parts = tmp_path / "r.parquet.parts"
    parts.mkdir()
    with pytest.raises(SettingError, match="go on with --resume, or delete that folder"):
        ONE(grid, out)

    (parts / "mine.txt").write_text("stays")
    out.unlink()
    assert ONE(grid, out, resume=True).computed == 2
    assert [path.name for path in parts.iterdir()] == ["mine.txt"]


def test_a_second_sweep_on_the_same_output_is_refused(tmp_path):
    out, grid = tmp_path / "r.parquet", small_grid(tmp_path)

    def meddle(_):
        with pytest.raises(SettingError, match="another sweep is at work on it"):
            ONE(grid, out, resume=True)

    assert ONE(grid, out, watch=meddle).points == 2


# ── processes ────────────────────────────────────────────────────────────────────────────────────


def test_processes_give_the_rows_that_one_process_gives(tmp_path):
    grid = small_grid(
        tmp_path, hardware=[A100, RTX4090], policies=["tide", "lru", "pay"], budgets=[3, 99]
    )

    alone = ONE(grid, tmp_path / "1.parquet")
    seen = []
    beside = sweep(grid, tmp_path / "2.parquet", workers=2, watch=seen.append)

    assert rows_of(alone.path) == rows_of(beside.path)
    assert alone.failed == beside.failed == len(grid) / 2
    assert [one.computed for one in seen] == sorted(one.computed for one in seen)
    assert (seen[-1].computed, seen[-1].total, seen[-1].failed) == (16, 16, 8)


def test_a_point_that_kills_its_worker_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tidesim.sweep.pools.compute", deadly)
    grid = small_grid(tmp_path, budgets=[3, 4, 5, 6], hardware=[A100, RTX4090], intervals=[1])
    jobs = jobs_of(grid)

    done = list(in_processes(tasks_of(jobs), workers=2))

    found = {job.digest: row for task, rows in done for job, row in zip(task, rows, strict=True)}
    assert sum(len(task) for task, _ in done) == len(found) == len(jobs)
    for job in jobs:
        error = found[job.digest].get("error")
        assert (error is not None) == (job.point.budget == 4)
        assert error is None or error.startswith("the worker died at this point")


def test_each_process_computes_with_one_thread_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr("tidesim.sweep.pools.compute", telling)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    tasks = tasks_of(jobs_of(small_grid(tmp_path)))

    told = [row["error"] for _, rows in in_processes(tasks, workers=2) for row in rows]

    assert told == [["1", "1", "3"]] * 2
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("options", "message"),
    [({"workers": 0}, "workers is 0 but must be"), ({"workers": 2, "dask": "a"}, "contradict")],
)
def test_workers_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(SettingError, match=message):
        sweep(small_grid(tmp_path), tmp_path / "r.parquet", **options)


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_the_bundled_grid_names_what_there_is():
    grid = load_grid(Path(__file__).parents[1] / "notebooks/grid.toml")

    assert len(jobs_of(grid)) == len(grid) == 48


def test_the_command_writes_prints_and_refuses(ok, tidesim, refused, tmp_path):
    axes, out = small_axes(tmp_path), tmp_path / "r.parquet"
    path = tmp_path / "g.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in axes.items()]
    path.write_text("\n".join(['format = "tidesim-grid"', "version = 1", *lines]))

    answer = ok("sweep", path, "--out", out, "--workers", 1)
    status, printed, _ = tidesim("sweep", path, "--out", out, "--workers", 1, "--resume")

    assert list(answer) == ["out", "points", "failed", "computed", "seconds", "points_per_s"]
    assert (answer["points"], answer["failed"], answer["computed"]) == (2, 0, 2)
    assert pq.read_table(out).num_rows == 2
    assert status == 0
    assert "2 (2 known before or alike)" in printed
    assert "choose a folder" in refused("sweep", path, "--out", tmp_path / "no" / "r.parquet")
    assert "contradict" in refused("sweep", path, "--out", out, "--workers", 1, "--dask", "x")
