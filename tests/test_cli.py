"""The command line as its users meet it: the documented commands, their JSON, and wrong input."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidesim.resources import data_dir, find
from tidesim.trace.io import load_trace, save_trace
from tidesim.trace.passes import Kind, Trace

GOLDEN = Path(__file__).parent / "golden" / "llada2-a"
TRACE, MACHINE = "tide-tiny-mixed", "a100-40gb-pcie4-xeon48"


def test_version_and_help_work(tidesim):
    assert tidesim("--version")[1].startswith("tidesim 0.")
    for command in ("demo", "generate", "capture", "simulate", "solve", "compare"):
        status, out, _ = tidesim(command, "--help")
        assert (status, "--json" in out) == (0, True)


def test_generate_gives_the_published_tokens_in_both_windows(ok, tmp_path):
    from safetensors import safe_open  # noqa: PLC0415

    with safe_open(GOLDEN / "golden.safetensors", framework="np") as file:
        prompt, expected = (file.get_tensor(f"generate.{n}").tolist() for n in ("prompt", "output"))
    ids = tmp_path / "F.json"
    ids.write_text(json.dumps({"ids": prompt}))
    shared = ("--gen-length", 96, "--threshold", 0.06, "--dtype", "float32")
    tokens = ("--mask-id", 500, "--eos-id", 501, "--steps", 32, "--block-length", 32)

    for window in ("block", "full"):
        answer = ok(
            "generate", "--checkpoint", GOLDEN, "--prompt-ids", ids, *shared, *tokens,
            "--window", window,
        )  # fmt: skip

        assert answer["tokens"] == expected
        assert answer["steps"] == 87
        assert answer["seconds"] > 0


def test_generate_writes_text_and_chat_wraps_the_prompt(ok):
    plain = ok("generate", "--prompt", "def main(", "--gen-length", 23)
    chat = ok("generate", "--prompt", "def main(", "--gen-length", 23, "--chat")

    assert isinstance(plain["text"], str)
    assert plain["tokens"] != chat["tokens"]


def test_capture_writes_a_trace_that_info_reads(ok, tmp_path):
    prompts, out = tmp_path / "my prompts é.jsonl", tmp_path / "out é.parquet"
    prompts.write_text(
        '{"text": "import os", "kind": "a"}\n{"ids": [9, 8, 7], "split": "heldout"}\n'
    )

    answer = ok("capture", "--prompts", prompts, "--out", out, "--gen-length", 30)
    info = ok("trace", "info", out)

    assert answer["requests"] == info["requests"]["total"] == 2
    assert info["provenance"] == "captured"
    assert answer["steps"] == info["passes"]["denoise"]


def test_stats_have_the_documented_keys_and_expected_shape(ok):
    answer = ok("trace", "stats", TRACE, "--lags", "0,1,2,5", "--budgets", "8,16,32")

    assert answer["distinct_experts"].keys() >= {"mean", "std"}
    assert answer["cosine"]["0"] == pytest.approx(1.0)
    assert answer["cosine"]["1"] > answer["cosine"]["2"] > answer["cosine"]["5"]
    assert answer["jaccard"].keys() == {"0", "1", "2", "5"}
    assert answer["hit_ratio"].keys() == {"8", "16", "32"}
    assert answer["between_blocks"].keys() >= {"last_to_next_first", "same_step"}
    assert answer["windows"].keys() == {"block", "full"}


def test_stats_of_a_trace_without_commit_passes_leave_out_window_full(tidesim, tmp_path):
    trace = load_trace(TRACE)
    kept = [item for item in trace.only([0]) if item.kind is not Kind.COMMIT]
    save_trace(Trace(trace.only([0]).meta, kept), tmp_path / "t.parquet")

    status, out, err = tidesim("trace", "stats", tmp_path / "t.parquet", "--json")

    assert (status, "windows" in json.loads(out)) == (0, False)
    assert "window full is left out" in err


def test_stats_plot_is_a_page(ok, tmp_path):
    ok("trace", "stats", TRACE, "--window", "block", "--plot", tmp_path / "p.html")

    assert "Plotly.newPlot" in (tmp_path / "p.html").read_text()


def test_stats_of_the_full_window_alone_can_be_plotted(ok, tmp_path):
    answer = ok("trace", "stats", TRACE, "--window", "full", "--plot", tmp_path / "p.html")

    assert answer["window"] == "full"
    assert "window full" in (tmp_path / "p.html").read_text()


def test_hardware_list_and_show_give_kinds_and_sources(ok):
    names = [row["name"] for row in ok("hardware", "list")["hardware"]]
    shown = ok("hardware", "show", MACHINE, "--set", "link.h2d_bytes_per_s=5e10")

    assert {MACHINE, "h100-80gb-sxm-pcie5-xeon48", "rtx4090-24gb-pcie4-desktop"} <= set(names)
    assert shown["values"]["link.h2d_bytes_per_s"]["value"] == 5e10
    assert shown["values"]["link.d2h_bytes_per_s"]["source"]


def simulate(*more):
    base = ("simulate", TRACE, "--hardware", MACHINE, "--policy", "tide", "--interval", 4)
    return (*base, "--engine", "tidesim", *more)


def test_simulate_has_the_documented_keys(ok):
    answer = ok(*simulate("--budget", 16))

    assert answer.keys() >= {
        "tokens_per_s", "seconds", "steps", "hit_rate", "promotions", "h2d_bytes", "d2h_bytes",
        "busy", "bottleneck",
    }  # fmt: skip
    assert answer["split"] == "heldout"


def test_what_if_is_named_in_the_answer(ok):
    plain = ok(*simulate("--budget", 16, "--sizes", "llada2.0-mini"))
    faster = ok(
        *simulate("--budget", 16, "--sizes", "llada2.0-mini", "--set", "link.h2d_bytes_per_s=5e10")
    )

    assert plain["hardware"] == MACHINE
    assert faster["hardware"] == f"{MACHINE} with link.h2d_bytes_per_s = 5e+10"
    assert faster["hardware_kinds"]["measured"] == plain["hardware_kinds"]["measured"] - 1
    assert faster["seconds"] < plain["seconds"]


def test_sizes_are_labelled_and_change_bytes_but_not_placement(ok):
    own, mini = (
        ok(*simulate("--budget", 16)),
        ok(*simulate("--budget", 16, "--sizes", "llada2.0-mini")),
    )

    assert "llada2.0-mini" in mini["sizes"]
    assert mini["promotions"] == own["promotions"]
    assert mini["h2d_bytes"] > own["h2d_bytes"]


def test_solve_writes_a_schedule_that_simulate_obeys(ok, tmp_path):
    schedule = tmp_path / "S.json"

    solved = ok(
        "solve", TRACE, "--hardware", MACHINE, "--budget", 16, "--formulation", "uniform",
        "--sizes", "llada2.0-mini", "--out", schedule,
    )  # fmt: skip
    simulated = ok(
        "simulate", TRACE, "--hardware", MACHINE, "--schedule", schedule, "--sizes", "llada2.0-mini"
    )

    assert solved.keys() >= {"status", "interval", "objective_s", "bound_s", "gap", "seconds"}
    assert solved["status"] == "optimal"
    assert simulated["interval"] == solved["interval"]
    assert simulated["tokens_per_s"] == pytest.approx(solved["heldout_tokens_per_s"])


def test_schedule_is_refused_at_other_sizes_and_beside_other_choices(ok, refused, tmp_path):
    schedule = tmp_path / "S.json"
    solve = ("solve", TRACE, "--hardware", MACHINE, "--budget", 16, "--out", schedule)
    ok(*solve, "--sizes", "llada2.0-mini")
    command = ("simulate", TRACE, "--hardware", MACHINE, "--schedule", schedule)

    assert "--sizes llada2.0-mini" in refused(*command)
    assert "leave those out" in refused(*command, "--engine", "tidesim")
    assert "leave those out" in refused(*command, "--interval", 0)


def test_some_requests_of_a_split_are_simulated_alone(ok, refused):
    command = ("simulate", TRACE, "--hardware", MACHINE, "--policy", "all-cpu", "--no-gains")
    numbers = [info.request for info in load_trace(TRACE).split("heldout").meta.requests]

    alone = [ok(*command, "--requests", number)["passes"] for number in numbers[:2]]
    together = ok(*command, "--requests", f"{numbers[0]},{numbers[1]}")["passes"]

    assert together == sum(alone)
    assert "the heldout requests are" in refused(*command, "--requests", 999)


def test_schedule_whose_layers_differ_is_obeyed_layer_by_layer(ok, tmp_path):
    schedule = tmp_path / "S.json"
    solve = ("solve", TRACE, "--hardware", MACHINE, "--budget", 16, "--out", schedule)
    ok(*solve, "--sizes", "llada2.0-mini")
    plan = json.loads(schedule.read_text())
    assert plan["trace"]["name"] == TRACE
    plan |= {"interval": None, "promotion": "background"}
    plan["layers"][0] = {"budget": 32, "refresh_steps": [0, 3, 4]}
    plan["layers"][1] = {"budget": 8, "refresh_steps": []}
    schedule.write_text(json.dumps(plan))

    answer = ok(
        "simulate", TRACE, "--hardware", MACHINE, "--schedule", schedule,
        "--sizes", "llada2.0-mini", "--no-gains",
    )  # fmt: skip

    assert answer["budgets"] == [32, 8, 16, 16]
    assert (answer["promotion"], answer["interval"]) == ("background", None)


def test_compare_holds_every_policy_the_schedule_and_the_bounds(ok):
    answer = ok("compare", TRACE, "--hardware", MACHINE, "--budget", 16, "--sizes", "llada2.0-mini")

    policies = {row["policy"] for row in answer["rows"]}
    assert policies >= {
        "tide", "mixtral-offload", "fiddler", "static-frequency", "all-gpu", "all-cpu",
    }  # fmt: skip
    assert [row["interval"] for row in answer["rows"] if row["is_chosen"]] == [
        answer["chosen"]["interval"]
    ]
    assert answer["bounds"]["all-gpu"] >= answer["best"]["tokens_per_s"]


def test_tables_are_printed_without_json(tidesim, tmp_path):
    for command in (
        ("trace", "info", TRACE),
        ("hardware", "list"),
        ("hardware", "show", MACHINE),
        simulate("--budget", 16),
        ("compare", TRACE, "--hardware", MACHINE, "--budget", 16),
        ("solve", TRACE, "--hardware", MACHINE, "--budget", 16, "--out", tmp_path / "s.json"),
    ):
        status, out, err = tidesim(*command)
        assert (status, bool(out)) == (0, True), err


def test_budget_below_top_k_or_above_the_experts_is_refused(refused):
    assert "3" in refused(*simulate("--budget", 3))
    assert "65" in refused(*simulate("--budget", 65))


def test_memory_too_small_names_what_would_do(refused):
    assert "GB" in refused(*simulate("--memory-gb", 0.001))
    assert "--memory-gb" in refused(*simulate("--memory-gb", "nan"))


def test_unknown_names_list_the_known_ones(refused):
    assert TRACE in refused("trace", "info", "no-such-trace")
    assert MACHINE in refused("hardware", "show", "no-such-machine")
    assert "tide" in refused("simulate", TRACE, "--hardware", MACHINE, "--policy", "none")


def test_truncated_parquet_is_refused(refused, tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(find("traces", TRACE).read_bytes()[:50_000])

    assert "t.parquet" in refused("trace", "stats", path)


def test_expert_out_of_range_is_refused(refused, tmp_path):
    path = tmp_path / "t.parquet"
    source = find("traces", TRACE)
    table, metadata = pq.read_table(source), pq.read_metadata(source).metadata
    column = table.column("experts").to_pylist()
    row = next(index for index, value in enumerate(column) if value)
    column[row][0] = 999
    index = table.schema.get_field_index("experts")
    field = table.schema.field(index)
    changed = table.set_column(index, field, pa.array(column, field.type))
    pq.write_table(changed.replace_schema_metadata(metadata), path)

    assert "999" in refused("trace", "info", path)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("version = 1", "version = 2", "version"),
        ("version = 1", "version = 1\nmystery = 3", "mystery"),
        ("[gpu]", "[gpu]\nspeed = 3", "speed"),
        ('format = "tidesim-hardware"', "", "format"),
    ],
)
def test_wrong_profile_names_the_key(refused, tmp_path, old, new, named):
    text = find("hwprofiles", MACHINE).read_text()
    assert old in text
    path = tmp_path / "h.toml"
    path.write_text(text.replace(old, new, 1))

    assert named in refused("hardware", "show", path)


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "0", "fast"])
def test_impossible_rate_is_refused(refused, value):
    assert "h2d_bytes_per_s" in refused(
        "hardware", "show", MACHINE, "--set", f"link.h2d_bytes_per_s={value}"
    )


def test_every_command_with_a_machine_takes_what_ifs(tidesim):
    machines = ("simulate", "compare", "whatif", "solve", "regimes", "sensitivity", "validate")
    for command in (*machines, "generate"):
        _, out, _ = tidesim(command, "--help")

        assert "--hardware" in out, command
        assert "--set" in out, command


def test_a_what_if_without_a_machine_is_refused(refused):
    assert "give --hardware NAME" in refused(
        "generate", "--prompt", "x", "--policy", "tide", "--set", "cpu.cores=x2"
    )


def test_empty_prompt_and_unknown_token_are_refused(refused, tmp_path):
    ids = tmp_path / "f.json"
    ids.write_text('{"ids": [99999]}')

    assert "empty" in refused("generate", "--prompt", "")
    assert "either" in refused("generate")
    assert "99999" in refused("generate", "--prompt-ids", ids)


def test_truncated_weights_are_refused(refused, tmp_path):
    source = data_dir("traces") / "tide-tiny"
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:9999])

    assert "model.safetensors" in refused("generate", "--checkpoint", tmp_path, "--prompt", "a")


def test_output_that_cannot_be_written_is_refused_before_work_and_leaves_nothing(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "none", tmp_path / "file"):
        assert "cannot be written" in refused("capture", "--out", folder / "t.parquet")
        assert "cannot be written" in refused(
            "solve", TRACE, "--hardware", MACHINE, "--budget", 16, "--out", folder / "s.json"
        )
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_refused(refused, tmp_path):
    tmp_path.chmod(0o500)

    assert "cannot be written" in refused("capture", "--out", tmp_path / "t.parquet")


@pytest.mark.parametrize("name", [".", "/", "", "folder", "n" * 300])
def test_output_that_is_no_file_name_is_refused_before_work(refused, tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    assert "cannot be written" in refused("capture", "--out", name)
    assert "cannot be written" in refused(
        "solve", TRACE, "--hardware", MACHINE, "--budget", 16, "--out", name
    )
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_impossible_names_are_refused_like_unknown_ones(refused):
    long = "n" * 5000

    assert "no such file" in refused("trace", "info", long)
    assert "no such checkpoint" in refused("generate", "--checkpoint", long, "--prompt", "a")
    assert "no such model" in refused(*simulate("--budget", 16, "--sizes", long))


@pytest.mark.parametrize(
    "option",
    [("--seed", 10**30), ("--temperature", 1e-40), ("--threads", 10**12), ("--gen-length", 0)],
)
def test_settings_beyond_what_torch_takes_are_refused(refused, option):
    assert str(option[1]) in refused("generate", "--prompt", "a", *option)


@pytest.mark.parametrize("option", ["--budget", "--interval"])
def test_schedule_beside_a_setting_is_refused_even_if_that_is_zero(refused, option):
    assert "a schedule decides" in refused(
        "simulate", TRACE, "--hardware", MACHINE, "--schedule", "s.json", option, 0
    )


def test_names_that_look_like_markup_are_printed_as_they_are(tidesim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("[red]/[").mkdir(parents=True)
    Path("[red]/[/x].parquet").write_bytes(find("traces", TRACE).read_bytes())

    status, out, _ = tidesim("trace", "info", "[red]/[/x].parquet")

    assert (status, "[red]/[/x].parquet" in out) == (0, True)


def test_failed_solve_keeps_an_older_schedule(refused, tmp_path):
    out = tmp_path / "s.json"
    out.write_text("older")

    refused("solve", TRACE, "--hardware", MACHINE, "--budget", 999, "--out", out)

    assert out.read_text() == "older"


def test_schedule_for_another_trace_is_refused_unless_forced(ok, refused, tmp_path):
    other, schedule = tmp_path / "o.parquet", tmp_path / "S.json"
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"ids": [5, 6, 7]}\n')
    ok("capture", "--prompts", prompts, "--out", other, "--gen-length", 30)
    ok("solve", TRACE, "--hardware", MACHINE, "--budget", 16, "--out", schedule)
    command = ("simulate", other, "--hardware", MACHINE, "--schedule", schedule)

    assert "trace" in refused(*command)
    assert ok(*command, "--force")["policy"] == "tide"
