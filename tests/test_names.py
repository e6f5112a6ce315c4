"""Files whose paths and names hold spaces, letters of any script and HTML: every command takes them.

No page shows such a name as anything but text.
"""

import json
import re
import shutil

import pytest
from test_fuzz import write_checkpoint
from test_importers import MODEL, llama_csv, routed
from test_optimize import fixed_trace

from tidesim.resources import find
from tidesim.trace.io import load_trace, save_trace
from tidesim.trace.passes import Trace

EVIL = "<img src=x onerror=alert(1)> é 日本 &amp; '\""
A100 = "a100-40gb-pcie4-xeon48"
SHORT = ("--gen-length", 8, "--block-length", 4, "--steps", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("names") / EVIL


@pytest.fixture(scope="module")
def files(folder):
    """Write a checkpoint, prompts, a trace and a profile whose names and contents are hostile."""
    folder.mkdir()
    write_checkpoint(folder / "model")
    (folder / "ids.json").write_text('{"ids": [3, 4, 5]}')
    (folder / "prompts.jsonl").write_text(json.dumps({"ids": [3, 4], "kind": EVIL, "source": EVIL}))
    (folder / "moe.csv").write_text(llama_csv([routed(4), routed(4, seed=1)]))
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "sizes").mkdir()
    (folder / "sizes" / "config.json").write_text(
        json.dumps(config | MODEL.model_dump(exclude={"name"}))
    )
    trace = fixed_trace()
    meta = trace.meta.model_copy(
        update={"source": EVIL, "model": trace.meta.model.model_copy(update={"name": EVIL})}
    )
    save_trace(Trace(meta, list(trace)), folder / f"{EVIL}.parquet")
    text = find("hwprofiles", A100).read_text()
    assert f'name = "{A100}"' in text
    evil = json.dumps(EVIL, ensure_ascii=False)
    (folder / f"{EVIL}.toml").write_text(text.replace(f'name = "{A100}"', f"name = {evil}", 1))
    return folder


@pytest.fixture
def trace(files):
    return files / f"{EVIL}.parquet"


@pytest.fixture
def machine(files):
    return ("--hardware", files / f"{EVIL}.toml", "--budget", 3)


@pytest.fixture
def schedule(ok, files, trace, machine):
    if not (files / "s é.json").exists():
        ok("solve", trace, *machine, "--no-judge", "--out", files / "s é.json")
    return files / "s é.json"


def check_page(path):
    """Check that the hostile name is on the page, and nowhere as HTML or as a label's markup."""
    page = path.read_text()
    script = re.search(r"<script>.*?</script>", page, re.DOTALL)  # plotly's own
    own = page.replace(script[0], "")

    assert "&lt;img src=x" in own
    assert "<img" not in own
    assert "\\u003cimg" not in own  # as plotly writes it into its figures
    path.unlink()


def test_checkpoints_and_prompts_are_read_from_and_traces_written_to_any_path(ok, files, tmp_path):
    out = tmp_path / f"{EVIL}.parquet"
    model = ("--checkpoint", files / "model")

    ok("generate", *model, "--prompt-ids", files / "ids.json", *SHORT)
    ok("capture", *model, "--prompts", files / "prompts.jsonl", "--out", out, *SHORT)

    assert load_trace(out).meta.requests[0].prompt_kind == EVIL


def test_recordings_are_imported_from_and_to_any_path(ok, files, tmp_path):
    out = tmp_path / f"{EVIL}.parquet"

    ok("trace", "import", files / "moe.csv", "--from", "llama.cpp", "--model", files / "sizes",
       "--out", out)  # fmt: skip

    assert ok("trace", "info", out)["provenance"] == "imported"


def test_runs_with_offloading_take_any_path(ok, files, tmp_path):
    options = ("--checkpoint", files / "model", "--prompt-ids", files / "ids.json", *SHORT)
    timeline = tmp_path / f"{EVIL}.json"

    ok("generate", *options, "--policy", "tide", "--interval", 2, "--budget", 3,
       "--backend", "cpu", "--timeline", timeline)  # fmt: skip
    ok("report", timeline, "--out", tmp_path / f"{EVIL}.html")

    assert (tmp_path / f"{EVIL}.html").exists()


def test_schedules_are_solved_shown_exported_and_replayed_at_any_path(
    ok, files, trace, schedule, tmp_path
):
    ok("schedule", "export", schedule)
    ok("schedule", "show", schedule, "--out", tmp_path / "page é.html")
    ok("replay", schedule, trace, "--requests", 2, "--repeats", 1, "--out", tmp_path / EVIL)

    check_page(tmp_path / "page é.html")
    assert (tmp_path / EVIL).exists()


def test_machines_and_models_are_shown_from_any_path(ok, files):
    assert ok("hardware", "show", files / f"{EVIL}.toml")["name"] == EVIL
    fitting = ("--prompt-tokens", 8, "--gen-length", 16)
    assert ok("model", "memory", files / "sizes", *fitting)["model"] == "sizes"


def test_the_page_of_a_timeline_shows_names_as_text(ok, files, trace, machine, tmp_path):
    timeline = tmp_path / f"{EVIL}.json"
    ok("simulate", trace, *machine, "--policy", "lru", "--no-gains", "--timeline", timeline)
    content = json.loads(timeline.read_text())
    event = next(event for event in content["traceEvents"] if event["ph"] == "X")
    event["name"] = EVIL
    timeline.write_text(json.dumps(content))

    ok("report", timeline, "--out", tmp_path / f"{EVIL}.html")

    check_page(tmp_path / f"{EVIL}.html")


def test_the_page_of_statistics_shows_names_as_text(ok, trace, tmp_path):
    ok("trace", "stats", trace, "--plot", tmp_path / f"{EVIL}.html", "--window", "block")

    check_page(tmp_path / f"{EVIL}.html")


@pytest.mark.parametrize("command", ["regimes", "sensitivity"])
def test_pages_of_many_machines_show_names_as_text(ok, command, trace, machine, tmp_path):
    marks = ("--marks", machine[1]) if command == "regimes" else ()

    ok(command, trace, *machine, "--intervals", 2, *marks, "--out", tmp_path / f"{EVIL}.html")

    check_page(tmp_path / f"{EVIL}.html")


def test_names_stand_in_tables_as_they_are(tidesim, files, trace, machine, monkeypatch):
    monkeypatch.chdir(files)
    shutil.copy(machine[1], "[red]m[.toml")

    for command in (
        ("trace", "info", trace.name),
        ("hardware", "show", "[red]m[.toml"),
        ("simulate", trace.name, "--hardware", "[red]m[.toml", "--policy", "all-cpu", "--no-gains"),
    ):
        status, out, err = tidesim(*command)
        assert (status, err) == (0, "")
        assert "<img src=x" in out
