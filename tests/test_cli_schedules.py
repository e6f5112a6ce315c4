"""Commands that take a schedule: what they refuse, and that all of them place alike."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from measuring import measured_like

from tidesim.cli import validation
from tidesim.hardware import load_profile
from tidesim.harness import timed_by
from tidesim.optimize import optimize
from tidesim.placement import popularity
from tidesim.policies.base import most_popular
from tidesim.schedule import save_schedule
from tidesim.simulate import run
from tidesim.trace.io import load_trace

TRACE, MACHINE = "tide-tiny-mixed", "a100-40gb-pcie4-xeon48"
SHORT = ("--requests", 3)  # the held-out request with the fewest passes
GENERATE = ("generate", "--prompt", "def main(", "--gen-length", 24, "--steps", 8)

MIXED = [
    {"budget": 8, "refresh_steps": [], "initial": [1, 5, 9, 33, 40, 41, 60, 63]},
    {"budget": 16, "refresh_steps": [2, 5], "most_promotions": 3},
    {"budget": 12, "refresh_steps": [1], "most_promotions": 1, "initial": [2, 3]},
    {"budget": 20, "refresh_steps": [0, 1, 4, 7]},
]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Return a schedule for the small model as its file holds it."""
    path = tmp_path_factory.mktemp("s") / "S.json"
    solved = optimize(load_trace(TRACE), load_profile(MACHINE), budget=16, trace_name=TRACE)
    save_schedule(solved.schedule, path)
    return json.loads(path.read_text())


@pytest.fixture
def write(plan, tmp_path):
    """Write the schedule with changes; return its path."""

    def written(name="S.json", **changes):
        (tmp_path / name).write_text(json.dumps(plan | changes))
        return tmp_path / name

    return written


@pytest.fixture
def machine(monkeypatch):
    """Let a simulation stand for the real machine of ``tidesim validate``."""

    @contextmanager
    def fake(spec, backend, **settings):
        profile = load_profile(MACHINE)

        def replay(case, *, keep_records):
            result = run(timed_by(case, profile), keep_records=keep_records)
            return measured_like(result, tuple(case.passes()))

        yield replay

    monkeypatch.setattr(validation, "replaying", fake)


def commands(schedule, out):
    """Return every command that takes a schedule, with all it can be compared to."""
    return {
        "simulate": (
            "simulate", TRACE, "--hardware", MACHINE, *SHORT, "--schedule", schedule, "--no-gains",
        ),
        "generate": (*GENERATE, "--schedule", schedule, "--trace", TRACE, "--hardware", MACHINE),
        "replay": ("replay", schedule, TRACE, *SHORT, "--out", out, "--repeats", 1),
        "validate": (
            "validate", schedule, TRACE, "--hardware", MACHINE, *SHORT, "--repeats", 1,
            "--no-calibrate", "--configurations", 2,
        ),
    }  # fmt: skip


OTHERS = {
    "trace": "made for another trace",
    "profile": "made for another profile",
    "sizes": "for other sizes of tide-tiny",
    "model": r"made for another model (other, not tide-tiny)",
}


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (command, what)
        for command in ("simulate", "generate", "replay", "validate")
        for what in OTHERS
        if (command, what) not in {("replay", "profile"), ("generate", "sizes")}
    ],
)
def test_what_was_made_for_something_else_is_refused(refused, write, plan, tmp_path, command, what):
    change = {"name": "other"} if what == "model" else {"sha256": "0" * 64}
    schedule = write(**{what: plan[what] | change})
    arguments = commands(schedule, tmp_path / "M.parquet")[command]

    said = refused(*arguments)

    assert OTHERS[what] in said
    assert "solve again" in said


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("command", ["simulate", "generate", "replay", "validate"])
def test_forced_it_is_followed_all_the_same(tidesim, write, plan, tmp_path, command):
    other = {"name": "other"}, {"sha256": "0" * 64}
    schedule = write(
        model=plan["model"] | other[0],
        **{what: plan[what] | other[1] for what in ("trace", "profile", "sizes")},
    )

    arguments = commands(schedule, tmp_path / "M.parquet")[command]
    status, out, _ = tidesim(*arguments, "--force", "--json")

    assert status in ({0, 1} if command == "validate" else {0})
    assert json.loads(out)


@pytest.mark.parametrize("promotion", ["blocking", "background"])
def test_what_was_made_for_these_inputs_places_alike_in_a_simulation_and_for_real(
    ok, write, tmp_path, promotion
):
    schedule = write(layers=MIXED, interval=None, promotion=promotion)
    both = commands(schedule, tmp_path / "M.parquet")

    simulated, replayed = ok(*both["simulate"]), ok(*both["replay"])

    assert simulated["promotion"] == replayed["promotion"] == promotion
    assert replayed["budgets"] == [8, 16, 12, 20]
    assert simulated["promotions"] == replayed["promotions"] > 0
    assert simulated["hit_rate"] == replayed["hit_rate"] > 0


@pytest.mark.usefixtures("machine")
def test_validate_runs_the_schedules_own_promotion(tidesim, write, tmp_path):
    schedule = write(layers=MIXED, interval=None, promotion="background")

    _, out, _ = tidesim(*commands(schedule, tmp_path / "M.parquet")["validate"], "--json")

    answer = json.loads(out)
    assert answer["configurations"][0]["name"] == "schedule B=14 by layer background"
    assert answer["counters_match"] is True


@pytest.mark.parametrize("promotion", ["blocking", "background"])
def test_generate_obeys_a_schedule_of_every_kind_and_loses_nothing(ok, write, promotion):
    schedule = write(layers=MIXED, interval=None, promotion=promotion)

    answer = ok(*GENERATE, "--schedule", schedule, "--verify")

    assert answer["identical"] is True
    assert answer["budgets"] == [8, 16, 12, 20]
    assert answer["promotion"] == promotion
    assert answer["promotions"] > 0


def test_generate_starts_from_the_residents_that_the_schedule_names(ok, write):
    """Without a trace as well, which would otherwise be needed to know the popular ones."""
    budgets = np.array([16] * 4)
    popular = most_popular(popularity(load_trace(TRACE).split("train")), budgets)
    static = [{"budget": 16, "refresh_steps": []} for _ in budgets]
    named = [
        layer | {"initial": np.flatnonzero(row).tolist()}
        for layer, row in zip(static, popular, strict=True)
    ]
    files = {
        "first ids": write("a.json", layers=static, interval=None),
        "named": write("b.json", layers=named, interval=None),
    }

    first_ids = ok(*GENERATE, "--schedule", files["first ids"])
    known = ok(*GENERATE, "--schedule", files["first ids"], "--trace", TRACE)
    by_name = ok(*GENERATE, "--schedule", files["named"])

    assert by_name["counters"] == known["counters"] != first_ids["counters"]
    assert by_name["promotions"] == 0
