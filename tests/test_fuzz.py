"""Every parser, fed damaged files: it loads them, or refuses them in one sentence.

Never another exception, a hang, a crash or more than 1 GB. A process of its own reads the files.
`make test` tries a few files of every kind, the same each time; `make fuzz` 11,000 new ones.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import small_spec
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file
from strategies import sample_trace
from strategies_damage import damaged_bytes, damaged_values, to_json, to_toml
from strategies_parquet import damaged_parquet
from test_checkpoint import write_shards
from test_importers import flame_folder, histogram, histograms_json, llama_csv, routed, sglang_csv
from test_measured_io import RUN
from test_schedule import content as schedule_content
from test_timeline import COUNTERS, METADATA, ROWS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tidesim.measured_io import save_measured
from tidesim.resources import find
from tidesim.runtime.checkpoint import INDEX, SINGLE, save_checkpoint
from tidesim.runtime.model import Transformer
from tidesim.runtime.training.optimizer import initialise
from tidesim.timeline import save_timeline
from tidesim.trace.io import save_trace

CASES = 500  # of each kind in `make fuzz`: 22 kinds are 11,000
SAMPLE = 10  # of each kind in `make test`
FUZZING = settings.get_current_profile_name() == "fuzz"
HANG_S = 60  # for one file, on a machine that does other work


class Reader:
    """The process that reads; it is started again after it died."""

    def __init__(self, script: Path) -> None:
        self._script = script
        self._process = None

    def __call__(self, target: str, file: Path, *, hang_s: float = HANG_S) -> list[str]:
        """Let it read one file; return its verdict and words."""
        if self._process is None:
            paths = os.pathsep.join([str(self._script.parent), str(self._script.parents[1])])
            self._process = subprocess.Popen(
                [sys.executable, self._script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": paths},
            )  # fmt: skip
        self._process.stdin.write(json.dumps([target, str(file)]).encode() + b"\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], hang_s)[0]:
            self.stop()
            return ["broken", f"no answer within {hang_s} s"]
        answer = self._process.stdout.readline()
        if not answer:
            status = self._process.wait()
            self.stop()
            return ["broken", f"the process died with status {status}"]
        return json.loads(answer)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def reader():
    made = Reader(Path(__file__).with_name("fuzz_worker.py"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ── valid files ──────────────────────────────────────────────────────────────────────────────────

GRID = b"""
format = "tidesim-grid"
version = 1
traces = ["t.parquet"]
hardware = ["box.toml"]
overrides = [{ "link.h2d_bytes_per_s" = ["x2", 5e10, "50GB/s"] }, {}]
memory_gb = [3.45]
promotions = ["blocking"]
policies = ["tide"]
intervals = [1, 2]
formulations = ["uniform"]
solver = { backend = "highs", gap = 0.01 }
"""
PROMPTS = b'{"text": "import os", "kind": "a"}\n\n{"ids": [9, 8, 7], "split": "heldout"}\n'


def write_checkpoint(folder: Path) -> None:
    """Write a model of 300 tokens, two layers and four experts, with its tokenizer."""
    spec = small_spec(
        num_hidden_layers=2, first_k_dense_replace=1, num_experts=4, num_experts_per_tok=2,
        vocab_size=300, mask_token_id=0, eos_token_id=1, block_length=4,
    )  # fmt: skip
    model = Transformer(spec)
    with torch.no_grad():
        initialise(model, torch.Generator().manual_seed(0))
    folder.mkdir()
    save_checkpoint(model, folder, dtype="float32")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|mask|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["import os import sys def main return"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def valid(folder) -> dict[str, bytes]:
    """Return the bytes of a valid file of every kind."""
    save_trace(sample_trace(), folder / "trace.parquet")
    save_measured(RUN, folder / "measured.parquet")
    save_timeline(folder / "timeline.json", ROWS, counters=COUNTERS, metadata=METADATA)
    write_checkpoint(folder / "checkpoint")
    shutil.copytree(folder / "checkpoint", folder / "shards")
    (folder / "shards" / SINGLE).unlink()
    write_shards(load_file(folder / "checkpoint" / SINGLE), folder / "shards")
    names = {
        "trace": "trace.parquet", "trace-stats": "trace.parquet", "measured": "measured.parquet",
        "timeline": "timeline.json", "config": "checkpoint/config.json",
        "weights": f"checkpoint/{SINGLE}", "tokenizer": "checkpoint/tokenizer.json",
        "index": f"shards/{INDEX}",
    }  # fmt: skip
    ids = [routed(4, seed=number) for number in range(3)]
    counts = np.array([histogram(each) for each in ids])
    flame_folder(folder / "flame", ids[0])
    np.save(folder / "counts.npy", counts)
    np.save(folder / "ids.npy", np.transpose(ids[0], (1, 0, 2)))
    names |= {
        "flame-moe": "flame/layer_02.parquet", "moe-infinity": "counts.npy",
        "sglang-npy": "counts.npy", "vllm": "ids.npy",
    }  # fmt: skip
    schedule = json.dumps(schedule_content()).encode()
    return {kind: (folder / name).read_bytes() for kind, name in names.items()} | {
        "profile": find("hwprofiles", "a100-40gb-pcie4-xeon48").read_bytes(),
        "schedule": schedule,
        "schedule-export": schedule,
        "prompts": PROMPTS,
        "prompt-ids": b'{"ids": [3, 4, 5]}',
        "llama.cpp": llama_csv(ids).encode(),
        "sglang": sglang_csv(counts[0]).encode(),
        "histograms": histograms_json(counts).encode(),
        "grid": GRID,
        "parameters": find("traces/synth", "tide-tiny").read_bytes(),
    }


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def damaged_text(content: bytes, *, parse, write):
    """Damage the bytes of a text file, or the values in it."""
    return damaged_bytes(content) | damaged_values(parse(content)).map(write)


def damaged_lines(content: bytes):
    """Damage a file of JSON lines."""
    lines = [json.loads(line) for line in content.split(b"\n") if line]
    joined = damaged_values(lines).map(
        lambda rows: b"\n".join(map(to_json, rows if isinstance(rows, list) else [rows]))
    )
    return damaged_bytes(content) | joined


def damaged_table(content: bytes):
    """Damage the bytes of a CSV file, or the values of its rows."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    joined = damaged_values(rows).map(
        lambda rows: (
            "\n".join(
                ",".join(map(str, row)) if isinstance(row, list) else str(row)[:99] for row in rows
            ).encode(errors="surrogatepass")
            if isinstance(rows, list)
            else b""
        )
    )
    return damaged_bytes(content) | joined


def damaged_weights(content: bytes):
    """Damage the bytes of a safetensors file, or the values of its header."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]

    def join(values) -> bytes:
        text = to_json(values)
        return len(text).to_bytes(8, "little") + text + data

    return damaged_bytes(content) | damaged_values(header).map(join)


damaged_json = partial(damaged_text, parse=json.loads, write=to_json)
damaged_toml = partial(
    damaged_text, parse=lambda content: tomllib.loads(content.decode()), write=to_toml
)
DAMAGE = {
    "trace": partial(damaged_parquet, key="meta"),
    "trace-stats": partial(damaged_parquet, key="meta"),
    "measured": partial(damaged_parquet, key="run"),
    "profile": damaged_toml,
    "schedule": damaged_json,
    "schedule-export": damaged_json,
    "timeline": damaged_json,
    "prompts": damaged_lines,
    "prompt-ids": damaged_json,
    "config": damaged_json,
    "weights": damaged_weights,
    "index": damaged_json,
    "tokenizer": damaged_json,
    "llama.cpp": damaged_table,
    "moe-infinity": damaged_bytes,
    "flame-moe": damaged_parquet,
    "vllm": damaged_bytes,
    "sglang": damaged_table,
    "sglang-npy": damaged_bytes,
    "histograms": damaged_json,
    "grid": damaged_toml,
    "parameters": damaged_toml,
}
PLACES = {
    "flame-moe": "flame/layer_02.parquet", "sglang": "counts.csv", "sglang-npy": "counts.npy",
    "config": "checkpoint/config.json", "weights": f"checkpoint/{SINGLE}",
    "tokenizer": "checkpoint/tokenizer.json", "index": f"shards/{INDEX}",
}  # fmt: skip


class Damaged:
    """A damaged file; failures show its start."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __repr__(self) -> str:
        return f"{self.content[:99]!r} ({len(self.content)} bytes)"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_loaded_or_refused_in_one_sentence(kind, reader, folder, valid):
    place = folder / PLACES.get(kind, f"damaged {kind} é")
    verdicts = []

    @settings(
        max_examples=CASES if FUZZING else SAMPLE,
        derandomize=not FUZZING,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGE[kind](valid[kind]).map(Damaged))
    def read(damaged: Damaged) -> None:
        place.write_bytes(damaged.content)
        verdict, words = reader(kind, place)
        verdicts.append(verdict)
        if verdict == "broken":
            kept = folder / f"broken {kind}"
            kept.write_bytes(damaged.content)
            pytest.fail(f"{kept}: {words[:500]} … {words[-1500:]}", pytrace=False)

    try:
        read()
    finally:
        place.write_bytes(valid[kind])
    assert "refused" in verdicts
    assert reader(kind, place) == ["loaded", ""]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("raises", "KeyError"),
        ("raises-a-base-exception", "panic"),
        ("says-too-much", "2000 characters"),
        ("says-nothing", "not one printable sentence"),
        ("hangs", "no answer"),
        ("dies", "died"),
        ("swells", "MemoryError"),
        ("swells-and-tells", "too much memory"),
    ],
)
def test_the_reader_tells_of_everything_that_must_not_be(wrong, said, reader, folder):
    verdict, words = reader(wrong, folder / "file", hang_s=3 if wrong == "hangs" else HANG_S)

    assert (verdict, said in words) == ("broken", True)
