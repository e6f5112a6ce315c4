"""``tidesim plan``: which machine to get for a model."""

from pathlib import Path
from typing import Annotated

import typer

from tidesim.cli.common import (
    Json,
    Overrides,
    check_writable,
    number,
    print_json,
    print_pairs,
    print_table,
    progress,
    read_trace,
    shown_late,
    tell,
    to_bytes,
)
from tidesim.cli.simulation import Engine
from tidesim.cli.solving import Formulation
from tidesim.errors import NotFoundError, SettingError
from tidesim.hardware import HardwareProfile, load_profile, profile_names
from tidesim.model_spec import ModelSpec, load_model_spec
from tidesim.overrides import overridden
from tidesim.plan import RUN_ERROR, Assumptions, Goal, Method, Plan, Row
from tidesim.plan import plan as make_plan
from tidesim.plan.words import answers, scope
from tidesim.schedule import save_schedule
from tidesim.trace.passes import Trace
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.parameters import load_parameters

ALL = "all"
REQUESTS, GEN_LENGTH, SEED = 8, 256, 0  # of the synthetic trace that stands for none


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("plan")(plan)


def plan(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The model to serve: a name of `tidesim model list`, a checkpoint directory or a "
            "config.json.",
        ),
    ],
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace",
            metavar="TRACE",
            help="Its routing: a bundled trace's name or a Parquet file. Without, a synthetic one "
            f"of the model: {REQUESTS} mixed requests of {GEN_LENGTH} tokens. The routing of "
            "another model is a what-if, and labelled so.",
        ),
    ] = None,
    hardware: Annotated[
        str,
        typer.Option(
            "--hardware",
            metavar="NAME,…",
            help="Machines: bundled profiles' names or TOML files with commas; all is every "
            "bundled one.",
        ),
    ] = ALL,
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="GB,…",
            help="GPU memory to use, in GB with commas; all is the whole of each machine.",
        ),
    ] = ALL,
    target_tokens_per_s: Annotated[
        float | None,
        typer.Option(
            "--target-tokens-per-s",
            metavar="X",
            help="Least speed asked for, of one request at a time.",
        ),
    ] = None,
    max_price: Annotated[
        float | None,
        typer.Option("--max-price", metavar="USD", help="Highest price to buy."),
    ] = None,
    set_: Overrides = None,
    formulation: Formulation = "layered",
    gap: Annotated[
        float, typer.Option("--gap", help="Relative gap at which a solution is good enough.")
    ] = Method().gap,
    engine: Engine = "tidesim",
    years: Annotated[
        float, typer.Option("--years", help="Over which a purchase is written off.")
    ] = Assumptions().years,
    use: Annotated[
        float, typer.Option("--use", help="Share of that time in which the machine decodes.")
    ] = Assumptions().use,
    usd_per_kwh: Annotated[
        float, typer.Option("--usd-per-kwh", help="Of electricity, for a machine that is owned.")
    ] = Assumptions().usd_per_kwh,
    run_error: Annotated[
        float,
        typer.Option(
            "--run-error",
            help="Relative error of the simulator itself: the run_error that tidesim validate "
            "finds. The default is the largest that README reports of ours.",
        ),
    ] = RUN_ERROR,
    upgrades: Annotated[
        bool,
        typer.Option(
            "--upgrades/--no-upgrades", help="Also solve for every machine with one part doubled."
        ),
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Processes; by default one per core."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write a page.")] = None,
    schedule: Annotated[
        Path | None,
        typer.Option("--schedule", metavar="FILE", help="Also write the schedule of the choice."),
    ] = None,
    json: Json = False,
) -> None:
    """Plan capacity: what every machine would do and cost, and the cheapest that will do.

    Example: tidesim plan --model llada2.0-mini --target-tokens-per-s 20 --out plan.html

    Example: tidesim plan --model llada2.0-mini --trace m.parquet --memory 12,18,all
    --hardware rtx4090-24gb-pcie4-desktop,a100-40gb-pcie4-xeon48 --max-price 5000

    JSON: rows, choice, sure_choice, target_tokens_per_s, max_price_usd, not_assessable, left_out,
    assumptions, model, requests, split, engine, formulation, sizes, provenance, trace_sha256,
    report, schedule.
    """
    for path in (out, schedule):
        if path is not None:
            check_writable(path)
    spec = load_model_spec(model)
    requests = _requests(spec, trace)
    method = Method(
        sizes=spec,
        engine=engine,
        formulation=formulation,
        gap=gap,
        run_error=run_error,
        upgrades=upgrades,
        trace_name=trace or "",
    )
    names = profile_names() if hardware == ALL else [one.strip() for one in hardware.split(",")]
    machines = [_machine(name, set_, method) for name in names]
    with shown_late(progress(), "plan") as update:
        found = make_plan(
            requests,
            machines,
            memory_bytes=_memory(memory),
            goal=Goal(tokens_per_s=target_tokens_per_s, most_usd=max_price),
            method=method,
            assumed=Assumptions(years=years, use=use, usd_per_kwh=usd_per_kwh),
            workers=workers,
            watch=lambda done, total: update(completed=done, total=total),
        )
    if out is not None:
        from tidesim.report.plan_page import write_plan_page  # noqa: PLC0415 (imports plotly)

        write_plan_page(out, found, trace=_trace_name(trace, spec))
    written = {"report": out, "schedule": schedule}
    if schedule is not None:
        if found.choice is None:
            tell(f"nothing was chosen, so {schedule} is not written")
            written["schedule"] = None
        else:
            save_schedule(found.choice.found.schedule, schedule)
    if json:
        paths = {name: str(path) if path else None for name, path in written.items()}
        print_json(found.to_json() | paths)
        return
    _print(found, _trace_name(trace, spec))


def _requests(spec: ModelSpec, trace: str | None) -> Trace:
    """Load the trace, or draw one of the model.

    Raises
    ------
    SettingError
        There is none, and no synthetic process of the model is known.
    """
    if trace is not None:
        return read_trace(trace)
    try:
        process = load_parameters(spec.name)
    except NotFoundError:
        raise SettingError(
            f"no synthetic routing of {spec.name} is known; give a trace with --trace"
        ) from None
    return synthesize(process, spec, requests=REQUESTS, gen_length=GEN_LENGTH, seed=SEED)


def _machine(name: str, set_: list[str] | None, method: Method) -> HardwareProfile:
    """Load a profile with its overrides, as far as it holds what they change.

    Raises
    ------
    SettingError
        As `overridden`, unless the machine could not be assessed anyway.
    """
    profile = load_profile(name)
    try:
        return overridden(profile, set_ or (), skip_absent=True)
    except SettingError:
        if method.missing(profile):
            return profile
        raise


def _trace_name(trace: str | None, spec: ModelSpec) -> str:
    return trace or f"{REQUESTS} requests of {GEN_LENGTH} tokens, drawn for {spec.name}"


def _memory(text: str) -> tuple[int | None, ...]:
    """Read ``--memory``, such as ``12,18,all``.

    Raises
    ------
    SettingError
        Something else.
    """
    try:
        sizes = [None if part.strip() == ALL else float(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(
            f"--memory {text}: not gigabytes with commas, or all; write for example "
            "--memory 12,18,all"
        ) from None
    return tuple(to_bytes(size, option="--memory") for size in sizes)


def _print(found: Plan, trace: str) -> None:
    labels = {row.what_if for row in found.rows if row.what_if}
    print_table(
        f"{found.model}: machines, the fastest first",
        ["machine", "tok/s", "band", "bound", "USD/M", "meets"],
        [_cells(row) for row in found.rows],
        texts=(0, 3, 5),
        caption=f"{scope(found)}. USD per million tokens, the cheaper of bought and rented",
    )
    print_pairs(
        "answer",
        [
            *answers(found),
            ("routing", trace),
            *(("what if", label) for label in sorted(labels)),
            *(
                ("not assessable", f"{hardware}: {', '.join(missing)} missing")
                for hardware, missing in found.not_assessable
            ),
            *(
                ("left out", f"{hardware}, {memory_gb:g} GB: {reason}")
                for hardware, memory_gb, reason in found.left_out
            ),
        ],
    )


def _cells(row: Row) -> list[str]:
    band, costs = row.found.band, row.costs
    return [
        row.name,
        number(row.tokens_per_s, 1),
        f"{band.low:,.0f}–{band.high:,.0f}",
        row.found.result.bottleneck,
        number(costs.usd_per_mtoken, 2),
        row.meets or "–",
    ]
