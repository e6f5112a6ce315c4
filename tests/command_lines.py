"""Every command, cheap command lines that call them, and the files that these read."""

import re
import runpy
import shlex
from pathlib import Path

import typer.main

from tidesim import cli
from tidesim.trace.io import load_trace, save_trace

ROOT = Path(__file__).parents[1]
DOCS = runpy.run_path(str(ROOT / "docs" / "commands.py"))
LEAVES = dict(DOCS["leaves"](typer.main.get_command(cli.app), "tidesim"))
A100 = ("--hardware", "a100-40gb-pcie4-xeon48", "--budget", "16", "--sizes", "llada2.0-mini")
THOR = "jetson-agx-thor-128gb-unified"  # its profile lacks what a run needs
TRACE, SMALL = "tide-tiny-mixed", "small.parquet"
# Cheap command lines, in an order in which each finds the files that it reads.
LINES = (
    ("trace", "info", TRACE),
    ("trace", "stats", TRACE, "--lags", "1,2", "--masked-at-most", "8"),
    ("trace", "stats", TRACE, "--window", "block"),
    ("hardware", "list"),
    ("hardware", "show", "a100-40gb-pcie4-xeon48"),
    ("hardware", "measure", "--model", "tide-tiny", "--seconds", "2", "--out", "box.toml"),
    ("model", "list"),
    ("model", "memory", "llada2.0-mini"),
    ("model", "memory", "llada2.0-mini", "--memory-gb", "20"),
    ("simulate", SMALL, *A100, "--policy", "tide", "--interval", "2", "--timeline", "run.json"),
    ("report", "run.json", "--out", "run.html"),
    ("solve", SMALL, *A100, "--out", "schedule.json"),
    ("solve", SMALL, *A100, "--no-judge", "--most-promotions", "2,4", "--out", "schedule.json"),
    ("schedule", "show", "schedule.json"),
    ("schedule", "export", "schedule.json"),
    ("schedule", "schema"),
    ("compare", SMALL, *A100, "--intervals", "2,4"),
    ("regimes", SMALL, *A100, "--intervals", "2", "--out", "regimes.html"),
    ("sensitivity", SMALL, *A100, "--intervals", "2", "--out", "sensitivity.html"),
    ("whatif", SMALL, *A100, "--policy", "tide", "--interval", "2",
     "--set", "link.h2d_bytes_per_s=x2", "--out", "whatif.html"),
    ("plan", "--model", "llada2.0-mini", "--trace", SMALL, "--hardware", f"{A100[1]},{THOR}",
     "--memory", "1,3.45", "--target-tokens-per-s", "1", "--max-price", "90000",
     "--out", "plan.html", "--schedule", "plan.json", "--workers", "1", "--set", "gpu.launch_s=x2"),
    ("sweep", "grid.toml", "--out", "r.parquet", "--workers", "1"),
    ("trace", "synth", "--model", "tide-tiny", "--requests", "1", "--gen-length", "8",
     "--seed", "0", "--out", "s.parquet"),
    ("generate", "--prompt", "import os", "--gen-length", "16"),
    ("generate", "--prompt", "import os", "--gen-length", "16", "--policy", "lru", "--budget", "8",
     "--verify"),
    ("capture", "--prompts", "prompts.jsonl", "--gen-length", "16", "--out", "t.parquet"),
    ("trace", "import", "moe.csv", "--from", "llama.cpp", "--model", "tide-tiny", "--out", "i.parquet"),
    ("replay", "schedule.json", SMALL, "--layers", "1", "--repeats", "1", "--force",
     "--out", "m.parquet"),
)  # fmt: skip
# test_wheel.py, test_cli_validate.py, test_reproduce.py and test_cli_synth.py run them, and look
# for every key of their answers.
DEAR = {"tidesim demo", "tidesim validate", "tidesim reproduce", "tidesim trace fit"}

GRID = """
format = "tidesim-grid"
version = 1
traces = ["small.parquet"]
hardware = ["a100-40gb-pcie4-xeon48"]
budgets = [8]
policies = ["lru"]
"""


def name_of(line):
    """Return the command that a line calls."""
    return next(
        name for name in LEAVES if f"{' '.join(['tidesim', *line])} ".startswith(f"{name} ")
    )


def documented_keys(name):
    """Return the JSON keys that a command's help names: those that are always there, and all."""
    told = " ".join(re.search(r"JSON: ([^.]*)\.(?:\n|$)", LEAVES[name].help)[1].split())
    required, _, optional = told.partition("; ")
    keys = set(required.split(", "))
    return keys, keys | set(optional.partition(": ")[2].split(", ")) - {""}


def examples(name):
    """Return the command lines in a command's help."""
    text = " ".join(LEAVES[name].help.split())
    return [
        shlex.split(line)[1:]
        for line in re.findall(r"Example: (tidesim .*?)(?= Example: | JSON: |$)", text)
    ]


def furnish(folder):
    """Write the files that the command lines read."""
    (folder / "prompts.jsonl").write_text('{"text": "import os"}\n')
    (folder / "grid.toml").write_text(GRID)
    rows = [f"{layer},{expert}" for _ in range(2) for layer in range(1, 5) for expert in range(4)]
    (folder / "moe.csv").write_text("\n".join(rows) + "\n")
    trace = load_trace(TRACE)
    split = {info.split: info.request for info in trace.meta.requests}
    save_trace(trace.only(split.values()), folder / SMALL)
