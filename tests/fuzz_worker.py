"""A process that reads damaged files for test_fuzz.py: it may crash, hang or be killed.

One JSON line in, ``[target, file]``; one out, ``[verdict, words]``. The verdict is ``loaded``,
``refused`` (with the sentence) or ``broken`` (with the traceback, or what else is wrong).
"""

import contextlib
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from strategies import small_model

from tidesim import cli
from tidesim.errors import TidesimError
from tidesim.measured_io import load_measured
from tidesim.runtime import checkpoint, decode  # noqa: F401 (torch, before memory is limited)
from tidesim.sweep import load_grid
from tidesim.trace.importers import ImportOptions, import_trace
from tidesim.trace.synth.parameters import load_parameters

MEMORY_BYTES = 10**9
# What reaches for more memory and is told so by the limit would have taken it without the limit.
_OUT_OF_MEMORY = ("malloc", "realloc", "out of memory", "allocate", "do not fit the memory")


def run(*arguments: str | Path) -> None:
    """Run a command line in this process; what it refuses or fails at is raised."""
    sys.argv = ["tidesim", "--debug", *map(str, arguments)]
    printed, said = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as stopped:
            status = stopped.code
    assert not status, f"status {status}"


def generate(folder: Path) -> None:
    """Write a few tokens with a checkpoint."""
    short = ("--gen-length", "4", "--block-length", "4", "--steps", "2", "--json")
    run("generate", "--checkpoint", folder, "--prompt", "import os é", *short)


def prompts(file: Path) -> None:
    """Capture with a prompts file is slow; read it, and encode what it holds."""
    from tidesim.runtime.prompts import load_prompts  # noqa: PLC0415

    tokenizer = checkpoint.load_tokenizer(file.parent / "checkpoint")
    for prompt in load_prompts(file):
        prompt.tokens(tokenizer)


def import_as(form: str) -> Callable[[Path], object]:
    """Return what imports a recording; of a folder, its first layer is the file."""
    options = ImportOptions(model=small_model(), tokens_per_pass=4)

    def read(file: Path) -> None:
        path = file.parent if form == "flame-moe" else file
        import_trace(path, file.parent / "imported", form=form, options=options)

    return read


TARGETS: dict[str, Callable[[Path], object]] = {
    "trace": lambda file: run("trace", "info", file),
    "trace-stats": lambda file: run("trace", "stats", file, "--json"),
    "measured": load_measured,
    "profile": lambda file: run("hardware", "show", file),
    "schedule": lambda file: run("schedule", "show", file),
    "schedule-export": lambda file: run("schedule", "export", file, "--json"),
    "timeline": lambda file: run("report", file, "--out", file.parent / "page.html"),
    "prompts": prompts,
    "prompt-ids": lambda file: run(
        "generate", "--checkpoint", file.parent / "checkpoint", "--prompt-ids", file,
        "--gen-length", "4", "--block-length", "4", "--steps", "2",
    ),
    "config": lambda file: generate(file.parent),
    "weights": lambda file: generate(file.parent),
    "index": lambda file: generate(file.parent),
    "tokenizer": lambda file: generate(file.parent),
    "llama.cpp": import_as("llama.cpp"),
    "moe-infinity": import_as("moe-infinity"),
    "flame-moe": import_as("flame-moe"),
    "vllm": import_as("vllm"),
    "sglang": import_as("sglang"),
    "sglang-npy": import_as("sglang"),
    "histograms": import_as("histograms"),
    "grid": lambda file: list(islice(load_grid(file).points(), 99)),
    "parameters": load_parameters,
    # what test_fuzz.py itself is tested with
    "raises": lambda file: {}[str(file)],
    "raises-a-base-exception": lambda _: (_ for _ in ()).throw(BaseException("panic")),
    "says-too-much": lambda _: (_ for _ in ()).throw(TidesimError("x" * 2000)),
    "says-nothing": lambda _: (_ for _ in ()).throw(TidesimError(" ")),
    "hangs": lambda _: exec("while True: pass"),  # noqa: S102
    "dies": lambda _: os.abort(),
    "swells": lambda _: bytearray(2 * MEMORY_BYTES),
    "swells-and-tells": lambda _: (_ for _ in ()).throw(TidesimError("malloc of 9 bytes failed")),
}  # fmt: skip


def judge(target: str, file: Path) -> tuple[str, str]:
    """Read one file and say how it went."""
    try:
        TARGETS[target](file)
    except TidesimError as error:
        return _judge_sentence(str(error))
    except BaseException:  # noqa: BLE001 (a panic of a library in Rust is no Exception)
        return "broken", traceback.format_exc()
    return "loaded", ""


def _judge_sentence(sentence: str) -> tuple[str, str]:
    if not sentence.strip() or not all(map(str.isprintable, sentence)):
        return "broken", f"not one printable sentence: {sentence!r}"
    if len(sentence) > 1000:
        return "broken", f"{len(sentence)} characters: {sentence!r}"
    if any(words in sentence.lower() for words in _OUT_OF_MEMORY):
        return "broken", f"too much memory: {sentence}"
    return "refused", sentence


def limit_memory() -> None:
    """Let the process have `MEMORY_BYTES` on top of what it has now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    now = int(status.partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + MEMORY_BYTES, resource.RLIM_INFINITY))


def serve() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    limit_memory()
    for line in sys.stdin:
        target, file = json.loads(line)
        answers.write(json.dumps(judge(target, Path(file))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
