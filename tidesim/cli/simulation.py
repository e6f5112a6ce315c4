"""``tidesim simulate`` and ``tidesim compare``: what a trace would take on a machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tidesim.cli.common import (
    Budget,
    Force,
    Hardware,
    Json,
    MemoryGb,
    MostPromotions,
    Overrides,
    Requests,
    Sizes,
    SplitOption,
    TraceName,
    check_writable,
    choose_split,
    integers,
    limits,
    number,
    only_requests,
    out,
    print_json,
    print_pairs,
    print_table,
    read_profile,
    read_sizes,
    read_trace,
    share,
    to_bytes,
)
from tidesim.compare import Comparison
from tidesim.compare import compare as compare_policies
from tidesim.optimize import splits
from tidesim.simulate import derivatives, get_method, run
from tidesim.timeline import save_timeline
from tidesim.variants import Variant

Engine = Annotated[
    str, typer.Option("--engine", help="How the runtime executes: tidesim or tide-reference.")
]
Interval = Annotated[
    int | None, typer.Option("--interval", help="Steps between refreshes, for tide.")
]
PromotionName = Annotated[
    str | None,
    typer.Option(
        "--promotion",
        help="When promoted experts serve: blocking (this pass) or background (the next); "
        "by default as the policy is meant.",
    ),
]
PolicyName = Annotated[str | None, typer.Option("--policy", help="Rule that places experts.")]
ScheduleFile = Annotated[
    Path | None, typer.Option("--schedule", help="A schedule file instead of these settings.")
]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="tidesim (the default) or tide-reference.")
]
Batch = Annotated[
    int, typer.Option("--batch", metavar="N", help="Requests decoded in step, sharing experts.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("simulate")(simulate)
    app.command("compare")(compare)


def simulate(
    trace: TraceName,
    *,
    hardware: Hardware,
    policy: PolicyName = None,
    interval: Interval = None,
    budget: Budget = None,
    memory_gb: MemoryGb = None,
    schedule: ScheduleFile = None,
    force: Force = False,
    engine: EngineName = None,
    promotion: PromotionName = None,
    batch: Batch = 1,
    method: Annotated[
        str,
        typer.Option("--method", help="des (events on a SimPy clock) or fast (closed form)."),
    ] = "des",
    timeline: Annotated[
        Path | None,
        typer.Option(
            "--timeline",
            metavar="FILE",
            help="Write every operation as Chrome trace JSON: for ui.perfetto.dev, and for "
            "tidesim report.",
        ),
    ] = None,
    gains: Annotated[
        bool,
        typer.Option(
            "--gains/--no-gains", help="Also simulate each part of the machine 10 % faster."
        ),
    ] = True,
    sizes: Sizes = None,
    split: SplitOption = None,
    only: Requests = None,
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Simulate one policy: throughput, hits, copies, where the time went, and what would help.

    Example: tidesim simulate tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --policy tide
    --interval 4 --budget 16 --sizes llada2.0-mini

    JSON: policy, engine, hardware, hardware_kinds, sizes, provenance, interval, promotion, batch,
    budgets, trained_on, is_bound, knows_future, memory, seconds, tokens, blocks, steps, passes,
    hits, misses, promotions, evictions, streams, refreshes, h2d_bytes_by_purpose,
    d2h_bytes_by_purpose, busy, waited, critical, trace_sha256, profile_sha256, tokens_per_s,
    seconds_per_block, hit_rate, h2d_bytes, d2h_bytes, exposed_copy_s, exposed_cpu_s, host_sync_s,
    bottleneck, step_ms, split, method, gains.
    """
    time_passes = get_method(method)
    if timeline is not None:
        check_writable(timeline)
    whole = read_trace(trace)
    requests, split_name = choose_split(whole, split)
    requests = only_requests(requests, integers(only, "--requests"), split_name)
    variant = Variant(
        hardware=hardware,
        overrides=set_ or (),
        policy=policy,
        interval=interval,
        budget=budget,
        memory_bytes=to_bytes(memory_gb),
        engine=engine,
        promotion=promotion,
        batch=batch,
        schedule=schedule,
        sizes=sizes,
        force=force,
    )
    case = variant.case(requests, popularity_from=splits(whole)[0])
    result = run(case, keep_records=timeline is not None, method=time_passes)
    if timeline is not None and result.records is not None:
        about = result.timeline_metadata() | {"trace": trace, "split": split_name}
        save_timeline(timeline, result.records, counters=result.counters, metadata=about)
    answer = result.to_json() | {"split": split_name, "method": method}
    answer["gains"] = derivatives(case) if gains else None
    if json:
        print_json(answer)
        return
    _print_result(f"{trace} ({split_name} requests) on {result.hardware}", answer)


def _print_result(title: str, answer: dict[str, Any]) -> None:
    busy = ", ".join(f"{name} {share(value)}" for name, value in answer["busy"].items())
    print_pairs(
        title,
        [
            ("routing and sizes", f"{answer['sizes']} ({answer['provenance']})"),
            (
                "machine's numbers",
                ", ".join(f"{n} {k}" for k, n in answer["hardware_kinds"].items()),
            ),
            (
                "policy",
                (
                    f"{answer['policy']}, interval {answer['interval'] or '–'}, "
                    f"{answer['promotion']} promotion"
                ),
            ),
            ("engine", f"{answer['engine']}, {answer['batch']} request(s) at a time"),
            ("tokens per second", number(answer["tokens_per_s"])),
            ("milliseconds per block", number(1e3 * answer["seconds_per_block"])),
            (
                "step, ms at P50 / P90 / P99",
                " / ".join(number(v) for v in answer["step_ms"].values()),
            ),
            ("hit rate", share(answer["hit_rate"])),
            ("promotions", f"{answer['promotions']:,}"),
            ("copied to the GPU", f"{answer['h2d_bytes'] / 1e9:,.3f} GB"),
            ("copied to the host", f"{answer['d2h_bytes'] / 1e9:,.3f} GB"),
            ("busy", busy),
            ("critical path", _critical_path(answer["critical"])),
            (
                "nothing hides",
                (
                    f"{number(answer['exposed_copy_s'])} s of copies, "
                    f"{number(answer['exposed_cpu_s'])} s of CPU experts, "
                    f"{number(answer['host_sync_s'])} s of host syncs"
                ),
            ),
            ("bound by", answer["bottleneck"]),
            *_gains(answer["gains"]),
        ],
    )


def _critical_path(shares: dict[str, dict[str, float]]) -> str:
    """Name the operations with the largest shares, until little is left."""
    flat = {
        f"{resource} {operation}": value
        for resource, operations in shares.items()
        for operation, value in operations.items()
    }
    largest = sorted(flat.items(), key=lambda item: -item[1])[:6]
    return ", ".join(f"{name} {share(value)}" for name, value in largest)


def _gains(gains: dict[str, float] | None) -> list[tuple[str, str]]:
    if gains is None:
        return []
    text = ", ".join(f"{part} {100 * gain:+.1f} %" for part, gain in gains.items())
    return [("if 10 % faster", text)]


def compare(
    trace: TraceName,
    *,
    hardware: Hardware,
    budget: Budget = None,
    memory_gb: MemoryGb = None,
    engine: Engine = "tidesim",
    sizes: Sizes = None,
    intervals: Annotated[
        str | None,
        typer.Option(
            "--intervals", help="Fixed intervals to try, with commas; by default every one."
        ),
    ] = None,
    formulations: Annotated[
        str,
        typer.Option(
            "--formulations",
            help="Schedules to solve for, with commas: closed-form, uniform, layered, free.",
        ),
    ] = "uniform",
    promotions: Annotated[
        str,
        typer.Option(
            "--promotions",
            help="Of schedules and fixed intervals, with commas: blocking, background.",
        ),
    ] = "blocking",
    most_promotions: MostPromotions = "all",
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Put every policy, every fixed interval, solved schedules and the bounds in one table.

    Example: tidesim compare tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --budget 16
    --formulations uniform,free --promotions blocking,background

    JSON: rows, bounds, chosen, best, gap, solver, schedules, requests, skipped, engine, hardware,
    sizes, provenance.
    """
    profile = read_profile(hardware, set_)
    comparison = compare_policies(
        read_trace(trace),
        profile,
        budget=budget,
        memory_bytes=to_bytes(memory_gb),
        engine=engine,
        sizes=read_sizes(sizes),
        intervals=integers(intervals, "--intervals"),
        formulations=formulations.split(","),
        promotions=promotions.split(","),
        most_promotions=limits(most_promotions),
    )
    if json:
        print_json(comparison.to_json())
        return
    print_comparison(trace, comparison)


def print_comparison(trace: str, comparison: Comparison) -> None:
    """Print every row of a comparison, fastest first."""
    rows = sorted(comparison.rows, key=lambda row: -row.tokens_per_s)
    run = comparison.solved.training
    print_table(
        f"{trace}, {comparison.requests} requests, on {run.hardware}\n{run.sizes} ({run.provenance})",
        ["policy", "tokens/s", "hit rate", "promoted", "copy s", "CPU s", "bound"],
        [
            [
                f"{row.name}{f' ← {row.formulation}' * bool(row.formulation)}{' (limit)' * row.is_bound}",
                number(row.tokens_per_s, 2),
                share(row.hit_rate),
                f"{row.promotions:,}",
                number(row.exposed_copy_s, 2),
                number(row.exposed_cpu_s, 2),
                row.bottleneck,
            ]
            for row in rows
        ],
        caption="copy s, CPU s: seconds of copies and CPU experts that nothing hides",
    )
    if (gap := comparison.gap) is not None:
        closed = "full knowledge is no faster" if gap.closed is None else share(gap.closed)
        out.print(
            f"{gap.policy}: {gap.tokens_per_s:.2f} tokens/s against {gap.best_other_tokens_per_s:.2f} "
            f"of {gap.best_other}; of the gap to full knowledge it closes: {closed}",
            highlight=False,
        )
