"""``tidesim generate`` and ``tidesim capture``: run a checkpoint."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidesim.cli import offloading
from tidesim.cli.common import (
    Budget,
    CpuWorkers,
    Force,
    Json,
    LinkRate,
    Overrides,
    check_writable,
    print_json,
    print_pairs,
    progress,
    tell,
)
from tidesim.engines import get_engine
from tidesim.errors import SettingError
from tidesim.trace.passes import Window

if TYPE_CHECKING:
    from tidesim.runtime.decode import DecodeSettings

Checkpoint = Annotated[
    str,
    typer.Option("--checkpoint", metavar="DIR", help="A checkpoint directory or a bundled name."),
]
GenLength = Annotated[int, typer.Option("--gen-length", help="Tokens to write at most.")]
BlockLength = Annotated[int, typer.Option("--block-length", help="Positions decoded together.")]
Steps = Annotated[int, typer.Option("--steps", help="Denoise steps a block may take.")]
Threshold = Annotated[
    float, typer.Option("--threshold", help="Confidence above which a position is written at once.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="0 takes the most probable token.")
]
TopP = Annotated[float, typer.Option("--top-p", help="Sample from this share of the probability.")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample from this many tokens; 0 is all.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the sampling.")]
WINDOW = typer.Option(
    "--window",
    help="block: prefix cache; full: recompute prompt and blocks each step. By default block, or "
    "what the engine of an offloaded run computes.",
)
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16; by default the checkpoint's."),
]
MaskId = Annotated[
    int | None, typer.Option("--mask-id", help="Mask token; by default the model's.")
]
EosId = Annotated[int | None, typer.Option("--eos-id", help="End token; by default the model's.")]
StopAtEos = Annotated[
    bool,
    typer.Option(
        "--stop-at-eos/--no-stop-at-eos",
        help="Stop after a block with the end token and cut the text there.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads; 0 leaves torch's choice.")]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap text in LLaDA2.0's role markup.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("generate")(generate)
    app.command("capture")(capture)


def _settings(options: dict[str, Any]) -> "DecodeSettings":
    """Pick the decode settings out of a command's options."""
    from tidesim.runtime.decode import DecodeSettings  # noqa: PLC0415

    return DecodeSettings(**{item.name: options[item.name] for item in fields(DecodeSettings)})


def generate(
    *,
    checkpoint: Checkpoint = "tide-tiny",
    prompt: Annotated[str | None, typer.Option("--prompt", help="The prompt as text.")] = None,
    prompt_ids: Annotated[
        Path | None, typer.Option("--prompt-ids", help='A JSON file {"ids": [...]}.')
    ] = None,
    chat: Chat = False,
    gen_length: GenLength = 256,
    block_length: BlockLength = 32,
    steps: Steps = 32,
    threshold: Threshold = 0.95,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    window: Annotated[Window | None, WINDOW] = None,
    dtype: Dtype = None,
    mask_id: MaskId = None,
    eos_id: EosId = None,
    stop_at_eos: StopAtEos = True,
    device: Device = "cpu",
    threads: Threads = 0,
    schedule: offloading.ScheduleFile = None,
    policy: offloading.PolicyName = None,
    interval: offloading.Interval = None,
    budget: Budget = None,
    promotion: offloading.PromotionName = None,
    engine: offloading.EngineName = None,
    backend: offloading.BackendName = None,
    trace: offloading.TrainingTrace = None,
    hardware: offloading.Machine = None,
    set_: Overrides = None,
    cpu_workers: CpuWorkers = None,
    link_gb_per_s: LinkRate = None,
    force: Force = False,
    verify: offloading.Verify = False,
    timeline: offloading.TimelineFile = None,
    json: Json = False,
) -> None:
    """Decode one prompt with a LLaDA2.0 checkpoint, all of it resident or with experts offloaded.

    Example: tidesim generate --prompt "def main(" --gen-length 96 --temperature 0.7

    Example: tidesim generate --prompt "def main(" --gen-length 96 --policy tide --interval 4
    --budget 16 --verify

    JSON: tokens, steps, seconds, passes, blocks, tokens_per_s, window, text; with offloading:
    backend, engine, policy, promotion, budgets, promotions, hit_rate, counters, identical,
    verification.
    """
    from tidesim.runtime import checkpoint as files  # noqa: PLC0415
    from tidesim.runtime.decode import decode  # noqa: PLC0415
    from tidesim.runtime.device import set_up_torch  # noqa: PLC0415
    from tidesim.runtime.prompts import Prompt, load_prompt_ids  # noqa: PLC0415

    options = offloading.Offloading.chosen(locals())
    set_up_torch(device=device, threads=threads, dtype=dtype)
    if (prompt is None) == (prompt_ids is None):
        raise SettingError("give either --prompt TEXT or --prompt-ids FILE")
    if prompt == "":
        raise SettingError("--prompt is empty; give at least one character")
    settings = _settings(locals() | {"window": window or Window.BLOCK})
    request = Prompt(text=prompt) if prompt_ids is None else load_prompt_ids(prompt_ids)
    tokenizer = files.load_tokenizer(checkpoint) if prompt_ids is None else None
    ids = request.tokens(tokenizer, chat=chat)
    if options is None:
        run = verification = None
        decoded = decode(files.load_model(checkpoint, dtype=dtype, device=device), ids, settings)
    else:
        where = offloading.Where(checkpoint=checkpoint, dtype=dtype, device=device, threads=threads)
        run, verification = offloading.generate(options, where, ids, settings, window=window)
        decoded, window = run.decoded, get_engine(run.engine).window
    text = None if tokenizer is None else tokenizer.decode(decoded.tokens)
    answer: dict[str, Any] = {
        "tokens": decoded.tokens,
        "steps": decoded.steps,
        "seconds": decoded.seconds,
        "passes": decoded.passes,
        "blocks": decoded.blocks,
        "tokens_per_s": len(decoded.tokens) / decoded.seconds,
        "window": str(window or Window.BLOCK),
        "text": text,
    }
    if run is not None:
        answer |= offloading.describe(run, verification)
    if json:
        print_json(answer)
    else:
        typer.echo(f"{prompt}{text}" if text is not None else " ".join(map(str, decoded.tokens)))
        tell(
            f"{len(decoded.tokens)} tokens, {decoded.steps} steps, {decoded.seconds:.2f} s, "
            f"{answer['tokens_per_s']:.1f} tokens/s"
        )
        if run is not None:
            offloading.report(run, verification)
    if verification is not None and not verification.explained:
        raise typer.Exit(1)


def capture(
    *,
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    checkpoint: Checkpoint = "tide-tiny",
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="JSON lines with text or ids; by default the bundled ones."),
    ] = None,
    chat: Chat = False,
    gen_length: GenLength = 256,
    block_length: BlockLength = 32,
    steps: Steps = 32,
    threshold: Threshold = 0.95,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    window: Annotated[Window, WINDOW] = Window.BLOCK,
    dtype: Dtype = None,
    mask_id: MaskId = None,
    eos_id: EosId = None,
    stop_at_eos: StopAtEos = True,
    device: Device = "cpu",
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Decode prompts and record which experts every token of every pass used.

    Example: tidesim capture --prompts my-prompts.jsonl --out my-trace.parquet

    JSON: trace, requests, tokens, steps, passes, decode_s, record_s, overhead.
    """
    from tidesim.runtime.device import set_up_torch  # noqa: PLC0415

    set_up_torch(device=device, threads=threads, dtype=dtype)
    check_writable(out)
    settings = _settings(locals())
    answer = _capture(checkpoint, prompts, out, settings, chat=chat, dtype=dtype, device=device)
    if json:
        print_json(answer)
    else:
        print_pairs(str(out), [(key, str(value)) for key, value in answer.items()])


def _capture(
    checkpoint: str,
    prompts: Path | None,
    out: Path,
    settings: "DecodeSettings",
    *,
    chat: bool,
    dtype: str | None,
    device: str,
) -> dict[str, Any]:
    from tidesim.runtime import capture as recording  # noqa: PLC0415
    from tidesim.runtime import checkpoint as files  # noqa: PLC0415
    from tidesim.runtime.prompts import load_prompts  # noqa: PLC0415

    requests = load_prompts(prompts)
    tokenizer = files.load_tokenizer(checkpoint) if any(p.text for p in requests) else None
    model = files.load_model(checkpoint, dtype=dtype, device=device)
    with progress() as bar:
        task = bar.add_task("capture", total=len(requests))
        captured = recording.capture(
            model,
            [(p, p.tokens(tokenizer, chat=chat)) for p in requests],
            settings,
            out,
            checkpoint_sha256=files.checkpoint_digest(checkpoint),
            source=prompts.name if prompts else "bundled prompts",
            observe=lambda request, _event: bar.update(task, completed=request),
        )
    return {
        "trace": str(out),
        "requests": len(captured.requests),
        "tokens": sum(len(decoded.tokens) for decoded in captured.decoded),
        "steps": sum(decoded.steps for decoded in captured.decoded),
        "passes": sum(decoded.passes for decoded in captured.decoded),
        "decode_s": captured.decode_s,
        "record_s": captured.record_s,
        "overhead": captured.overhead,
    }
