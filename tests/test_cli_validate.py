"""``tidesim validate``: its answer, its status, its page, and what it refuses."""

import json
from contextlib import contextmanager

import answers
import numpy as np
import pytest
from measuring import measured_like, recounted

from tidesim.cli import validation
from tidesim.hardware import load_profile
from tidesim.harness import timed_by
from tidesim.model_spec import load_model_spec
from tidesim.optimize import optimize
from tidesim.schedule import save_schedule
from tidesim.simulate import run
from tidesim.trace.io import load_trace

TRACE, MACHINE = "tide-tiny-mixed", "a100-40gb-pcie4-xeon48"
SIZES = ("--sizes", "llada2.0-mini")
SHORT = ("--requests", 3)  # the held-out request with the fewest passes
SYNC = "engine.tidesim.sync_s"


@pytest.fixture(scope="module")
def schedule(tmp_path_factory):
    """Return a schedule for the small model at mini's sizes."""
    path = tmp_path_factory.mktemp("validate") / "S.json"
    solved = optimize(
        load_trace(TRACE), load_profile(MACHINE), budget=16, sizes=load_model_spec("llada2.0-mini")
    )
    save_schedule(solved.schedule, path)
    return path


@pytest.fixture
def machine(monkeypatch):
    """Let a simulation with other numbers stand for the real machine; return what is changed."""
    chosen = {"overrides": {}, "factor": 1.0, "counts": {}, "settings": None}

    @contextmanager
    def fake(spec, backend, **settings):
        chosen["settings"] = {"spec": spec.name, "backend": backend, **settings}
        profile = load_profile(MACHINE).with_overrides(chosen["overrides"])

        def replay(case, *, keep_records):
            result = run(timed_by(case, profile), keep_records=keep_records)
            measured = measured_like(result, tuple(case.passes()), factor=chosen["factor"])
            return recounted(measured, **chosen["counts"])

        yield replay

    monkeypatch.setattr(validation, "replaying", fake)
    return chosen


def command(schedule, *more, sizes=SIZES, repeats=1):
    base = ("validate", schedule, TRACE, "--hardware", MACHINE, *sizes, *SHORT)
    return (*base, "--repeats", repeats, *more)


def test_a_machine_as_predicted_passes(ok, machine, schedule):
    answer = ok(*command(schedule, repeats=2), "--backend", "cpu", "--cpu-workers", 2)

    assert answer["passed"] is True
    assert answer["run_error"] == pytest.approx(0, abs=1e-9)
    assert answer["kendall_tau"] == pytest.approx(1)
    flags = [row["calibration"] for row in answer["configurations"]]
    assert flags.count(False) >= 12
    assert flags.count(True) == 5
    assert answer["configurations"][0]["name"].startswith("schedule τ=")
    assert machine["settings"] == {
        "spec": "llada2.0-mini", "backend": "cpu", "cpu_workers": 2, "link_bytes_per_s": None,
    }  # fmt: skip


def test_outside_the_tolerances_the_status_is_1_after_the_answer(tidesim, machine, schedule):
    machine["factor"] = 1.25  # every pass is predicted 20 % too fast

    status, out, _ = tidesim(*command(schedule, "--no-calibrate", "--json"))
    wide = ("--max-run-error", 0.21, "--max-pass-mape", 0.21)
    passed, _, _ = tidesim(*command(schedule, "--no-calibrate", *wide))

    answer = json.loads(out)
    assert (status, passed) == (1, 0)
    assert answer["run_error"] == pytest.approx(0.2)
    assert len(answer["failures"]) == 2
    assert answer["calibrated"] == {}
    assert not any(row["calibration"] for row in answer["configurations"])


def test_calibration_finds_what_the_profile_lacks(ok, machine, schedule):
    machine["overrides"] = {SYNC: 1.5e-3}

    answer = ok(*command(schedule))

    assert answer["calibrated"][SYNC]["after"] > 100 * answer["calibrated"][SYNC]["before"]
    assert answer["run_error"] < 0.02


def test_every_documented_key_of_the_answer_has_a_value(tidesim, machine, schedule, tmp_path):
    machine["counts"], machine["overrides"] = {"evictions": -1}, {SYNC: 1.5e-3}
    line = command(schedule, "--out", tmp_path / "v.html", "--json", repeats=2)

    status, out, _ = tidesim(*line)

    assert status == 1
    assert answers.unmet({line: json.loads(out)}) == set()


def test_counters_that_differ_fail_whatever_the_tolerances(tidesim, machine, schedule):
    machine["counts"] = {"evictions": -1}
    wide = ("--max-run-error", 9, "--max-pass-mape", 9, "--min-kendall-tau", -1)

    status, out, _ = tidesim(*command(schedule, "--no-calibrate", *wide))

    assert status == 1
    assert "evictions is -1 but was predicted to be" in " ".join(out.split())


def test_the_text_names_every_configuration_and_marks_calibration(tidesim, machine, schedule):
    status, out, _ = tidesim(*command(schedule))

    assert status == 0
    assert "schedule τ=" in out
    assert "mixtral-offload-lru B=16 blocking *" in out
    assert "as predicted" in out
    assert out.strip().endswith("yes")


def test_so_many_are_scored_and_the_calibrated_profile_is_kept(ok, machine, schedule, tmp_path):
    machine["overrides"] = {SYNC: 1.5e-3}
    kept = tmp_path / "a profile é.toml"

    answer = ok(*command(schedule), "--configurations", 12, "--save-profile", kept)

    assert [row["calibration"] for row in answer["configurations"]].count(False) == 12
    assert load_profile(kept).value(SYNC) == answer["calibrated"][SYNC]["after"]
    assert "calibrated on" in load_profile(kept).quantity(SYNC).source


def test_the_page_is_written(ok, machine, schedule, tmp_path):
    page = tmp_path / "a page é.html"

    answer = ok(*command(schedule), "--out", page)

    assert answer["report"] == str(page)
    assert "predicted against measured" in page.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--repeats", 0), "repeats is 0"),
        (("--max-run-error", -1), "tolerance run_error is -1"),
        (("--max-run-error", "inf"), "tolerance run_error is inf"),
        (("--configurations", 0), "configurations to score are 0"),
        (("--min-kendall-tau", 2), "tolerance kendall_tau is 2"),
        (("--requests", 999), "the heldout requests are"),
        (("--out", "/no/such/folder/v.html"), "/no/such/folder"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(refused, machine, schedule, options, said):
    assert said in refused(*command(schedule), *options)


def test_a_schedule_for_other_sizes_is_refused_unless_forced(refused, tidesim, machine, schedule):
    assert "solve again, or force it" in refused(*command(schedule, sizes=()))

    status, _, _ = tidesim(*command(schedule, "--force", sizes=()))
    assert status in {0, 1}
    assert machine["settings"]["spec"] == "tide-tiny"


def test_a_backend_that_is_not_known_is_refused(refused, schedule):
    assert "backend 'tpu' is not known" in refused(*command(schedule), "--backend", "tpu")


def test_predictions_depend_on_the_machines_times_only_through_calibration(ok, machine, schedule):
    machine["factor"] = 1.02

    rows = [
        {row["name"]: row["predicted_s"] for row in answer["configurations"]}
        for answer in (ok(*command(schedule, "--no-calibrate")), ok(*command(schedule)))
    ]

    assert rows[0].keys() < rows[1].keys()
    measured_longer = [rows[1][name] / rows[0][name] for name in rows[0]]
    assert np.mean(measured_longer) == pytest.approx(1.02, abs=0.005)
