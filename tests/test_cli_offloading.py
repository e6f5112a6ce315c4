"""Offloading from the command line: generate with a schedule or a policy, verify, replay."""

import json

import pytest

from tidesim.hardware import load_profile
from tidesim.measured_io import load_measured
from tidesim.resources import find
from tidesim.simulate import simulate
from tidesim.timeline import load_timeline
from tidesim.trace.io import load_trace

TRACE, MACHINE = "tide-tiny-mixed", "a100-40gb-pcie4-xeon48"
GENERATE = ("generate", "--prompt", "def main(", "--gen-length", 24, "--steps", 8)


@pytest.fixture(scope="module")
def schedule(tmp_path_factory):
    from tidesim.optimize import optimize  # noqa: PLC0415
    from tidesim.schedule import save_schedule  # noqa: PLC0415

    path = tmp_path_factory.mktemp("s") / "S.json"
    # Experts this small are computed so fast that refreshing pays on a slower CPU only.
    slow_cpu = load_profile(MACHINE).with_overrides({"cpu.expert_bytes_per_s": 1e9})
    solved = optimize(load_trace(TRACE), slow_cpu, budget=16, trace_name=TRACE)
    save_schedule(solved.schedule, path)
    return path


def test_generate_obeys_a_schedule_and_verifies_it(ok, schedule, tmp_path):
    plain = ok(*GENERATE)
    offloading = ("--schedule", schedule, "--backend", "cpu", "--trace", TRACE)
    answer = ok(*GENERATE, *offloading, "--verify", "--timeline", tmp_path / "t.json")

    assert answer.keys() >= plain.keys() | {"promotions", "hit_rate", "identical", "counters"}
    assert answer["tokens"] == plain["tokens"]
    assert answer["identical"] is True
    assert answer["verification"]["differences"] == []
    assert (answer["backend"], answer["engine"], answer["policy"]) == ("cpu", "tidesim", "tide")
    assert 0 < answer["hit_rate"] < 1
    assert answer["budgets"] == [16] * 4
    timeline = load_timeline(tmp_path / "t.json")
    assert timeline.metadata["times"] == "measured"
    copied = sum(row.num_bytes for row in timeline.records if row.label.startswith("promote"))
    assert copied == answer["counters"]["h2d_bytes_by_purpose"]["promotions"]


def test_without_offloading_nothing_changes(ok):
    assert ok(*GENERATE).keys() == {
        "tokens", "steps", "seconds", "passes", "blocks", "tokens_per_s", "window", "text",
    }  # fmt: skip


def test_the_window_is_the_engines(ok, refused):
    reference = ("--policy", "tide", "--interval", 4, "--budget", 16, "--engine", "tide-reference")

    answer = ok(*GENERATE, *reference)

    assert (answer["window"], answer["identical"]) == ("full", None)
    assert answer["counters"]["d2h_bytes_by_purpose"]["write_backs"] > 0
    assert "computes window full" in refused(*GENERATE, *reference, "--window", "block")


def test_a_run_that_differs_has_status_1_and_says_where(tidesim, monkeypatch):
    from tidesim.runtime.backends import CpuBackend  # noqa: PLC0415

    real = CpuBackend.link_copy

    def link_copy(backend, target, source, resource, label, layer, **more):
        wrong = -source if label.startswith("promote") else source
        real(backend, target, wrong, resource, label, layer, **more)

    monkeypatch.setattr(CpuBackend, "link_copy", link_copy)
    command = (*GENERATE, "--policy", "lru", "--budget", 8, "--verify")

    status, out, err = tidesim(*command, "--json")
    assert (status, json.loads(out)["identical"]) == (1, False)
    status, out, err = tidesim(*command)
    assert status == 1
    assert "NOT identical" in err
    assert "routing of pass 0: mixture layer" in err


def test_a_schedule_for_another_model_is_refused(refused, ok, schedule, tmp_path):
    other, smaller = tmp_path / "o.json", tmp_path / "s.json"
    plan = json.loads(schedule.read_text())
    plan["model"]["name"] = "other"
    other.write_text(json.dumps(plan))
    plan["model"] |= {"num_experts": 32}
    plan["layers"] = [layer | {"initial": None} for layer in plan["layers"]]
    smaller.write_text(json.dumps(plan))

    assert "another model (other, not tide-tiny)" in refused(*GENERATE, "--schedule", other)
    assert ok(*GENERATE, "--schedule", other, "--force")["promotions"] > 0
    for more in ((), ("--force",)):
        assert "num_experts = 32, tide-tiny has 64" in refused(
            *GENERATE, "--schedule", smaller, *more
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backend", "cpu"), "--schedule FILE or --policy NAME"),
        (("--verify",), "--schedule FILE or --policy NAME"),
        (("--budget", 0), "--schedule FILE or --policy NAME"),
        (("--schedule", "s.json", "--interval", 0), "--schedule decides"),
        (("--schedule", "none.json"), "no such schedule file"),
        (("--policy", "none", "--budget", 8), "is not known"),
        (("--policy", "lru"), "give a budget"),
        (("--policy", "lru", "--budget", 3), "budget is 3"),
        (("--policy", "lru", "--budget", 8, "--backend", "tpu"), "use one of: cpu, cuda"),
        (("--policy", "lru", "--budget", 8, "--cpu-workers", 0), "cpu workers are 0"),
        (("--policy", "lru", "--budget", 8, "--link-gb-per-s", -1), "must be above 0"),
        (("--policy", "lru", "--budget", 8, "--threads", 4), "1 thread per operator"),
        (("--policy", "lru", "--budget", 8, "--timeline", "/none/t.json"), "cannot be written"),
        (("--policy", "belady", "--budget", 8), "use another policy"),
    ],
)
def test_contradictions_are_refused(refused, options, said):
    assert said in refused(*GENERATE, *options)


def test_replay_counts_what_a_simulation_counts_and_writes_it_all(ok, schedule, tmp_path):
    out, number = tmp_path / "M.parquet", 35
    command = ("replay", schedule, TRACE, "--split", "all", "--requests", number, "--out", out)

    answer = ok(*command, "--repeats", 2, "--timeline", tmp_path / "t.json")

    trace = load_trace(TRACE)
    simulated = simulate(
        trace.only([number]), load_profile(MACHINE), policy="tide", interval=answer["interval"],
        budget=16, popularity_from=trace.split("train"),
    )  # fmt: skip
    for name in ("hits", "misses", "promotions", "evictions", "refreshes"):
        assert answer["counters"][name] == getattr(simulated, name)
    assert len(answer["repeat_s"]) == 2
    assert answer["step_ms"].keys() == {"p50", "p90", "p99"}
    assert set(answer["busy"]) == {"gpu", "h2d", "d2h", "cpu", "host"}
    run = load_measured(out)
    assert run.run_s.tolist() == answer["repeat_s"]
    assert run.records == load_timeline(tmp_path / "t.json").records
    assert run.trace_sha256 == trace.sha256


def test_replay_of_the_first_layers_at_borrowed_sizes(tidesim, ok, refused, schedule, tmp_path):
    out = tmp_path / "M.parquet"
    command = ("replay", schedule, TRACE, "--split", "all", "--requests", 35, "--out", out)

    answer = ok(*command, "--repeats", 1, "--layers", 2)
    status, text, _ = tidesim(*command, "--repeats", 1, "--layers", 1)

    assert answer["budgets"] == [16, 16]
    assert load_measured(out).trace_sha256 == ""
    assert (status, "seconds per repeat" in text) == (0, True)
    assert "layers are 5 but must be 1 to 4" in refused(*command, "--layers", 5)
    assert "--repeats is 0" in refused(*command, "--repeats", 0)
    assert "the sizes of tide-tiny, not of llada2.0-mini" in refused(
        *command, "--sizes", "llada2.0-mini"
    )
    assert "cannot be written" in refused(*command[:-1], tmp_path / "none" / "M.parquet")
    assert "no such schedule" in refused("replay", "none.json", TRACE, "--out", out)
    wrong = tmp_path / "t.parquet"
    wrong.write_bytes(find("traces", TRACE).read_bytes()[:50_000])
    assert "t.parquet" in refused("replay", schedule, wrong, "--out", out)
