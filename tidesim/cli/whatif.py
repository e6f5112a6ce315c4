"""``tidesim whatif``: two variants of a run compared on the same requests."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tidesim.cli.common import (
    Budget,
    Force,
    Hardware,
    Json,
    MemoryGb,
    Overrides,
    Requests,
    Sizes,
    SplitOption,
    TraceName,
    check_writable,
    choose_split,
    integers,
    number,
    only_requests,
    print_json,
    print_table,
    read_trace,
    to_bytes,
)
from tidesim.cli.report import Block, StepRange, read_steps
from tidesim.cli.simulation import (
    Batch,
    EngineName,
    Interval,
    PolicyName,
    PromotionName,
    ScheduleFile,
)
from tidesim.errors import SettingError
from tidesim.variants import DECIDED, Variant
from tidesim.whatif import Difference, WhatIf, compare_variants


def _against(name: str, meaning: str, metavar: str | None = None) -> Any:
    """Return an option of the run to compare with."""
    return typer.Option(f"--against-{name}", metavar=metavar, help=meaning)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("whatif")(whatif)


def whatif(
    trace: TraceName,
    *,
    hardware: Hardware,
    set_: Overrides = None,
    policy: PolicyName = None,
    interval: Interval = None,
    budget: Budget = None,
    memory_gb: MemoryGb = None,
    schedule: ScheduleFile = None,
    force: Force = False,
    engine: EngineName = None,
    promotion: PromotionName = None,
    batch: Batch = 1,
    against_hardware: Annotated[
        str | None,
        _against("hardware", "The base's machine, without the numbers of --set.", "NAME"),
    ] = None,
    against_set: Annotated[
        list[str] | None,
        _against(
            "set",
            "Numbers of the base's machine, instead of those of --set; repeatable.",
            "KEY=VALUE",
        ),
    ] = None,
    against_policy: Annotated[
        str | None, _against("policy", "The base's policy, which promotes as it is meant.")
    ] = None,
    against_interval: Annotated[
        int | None, _against("interval", "The base's steps between refreshes.")
    ] = None,
    against_budget: Annotated[
        int | None, _against("budget", "The base's expert slots per mixture layer.", "B")
    ] = None,
    against_memory_gb: Annotated[
        float | None,
        _against("memory-gb", "Instead of these slots: GPU memory for the base, in GB.", "G"),
    ] = None,
    against_schedule: Annotated[
        Path | None,
        _against("schedule", "A schedule file for the base instead of these settings."),
    ] = None,
    against_engine: Annotated[str | None, _against("engine", "The base's engine.")] = None,
    against_promotion: Annotated[
        str | None, _against("promotion", "When the base's promoted experts serve.")
    ] = None,
    against_batch: Annotated[
        int | None, _against("batch", "Requests of the base decoded in step.", "N")
    ] = None,
    sizes: Sizes = None,
    split: SplitOption = None,
    only: Requests = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Also write a page with both timelines, beside each other."),
    ] = None,
    block: Block = None,
    steps: StepRange = None,
    json: Json = False,
) -> None:
    """Compare a run with one that differs in some settings: every difference, and both timelines.

    The run to compare with, the base, is the same but for what --against options name; with --set
    and none of those, it is the run on the machine as it was. Beside --schedule they change the
    policy nearest to it.

    Example: tidesim whatif tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --policy tide
    --interval 4 --budget 16 --sizes llada2.0-mini --set link.h2d_bytes_per_s=x1.5 --out whatif.html

    Example: tidesim whatif tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --policy pay
    --budget 16 --sizes llada2.0-mini --against-policy tide --against-interval 4

    JSON: base, changed, base_name, changed_name, speedup, differences, split, report.
    """
    wanted = read_steps(steps)
    if out is not None:
        check_writable(out)
    elif block is not None or steps is not None:
        raise SettingError("--block and --steps choose what the page shows; give --out FILE too")
    changed = Variant(
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
    base = _base(
        changed,
        {
            "hardware": against_hardware,
            "overrides": against_set,
            "policy": against_policy,
            "interval": against_interval,
            "budget": against_budget,
            "memory_bytes": to_bytes(against_memory_gb, "--against-memory-gb"),
            "engine": against_engine,
            "promotion": against_promotion,
            "batch": against_batch,
            "schedule": against_schedule,
        },
    )
    whole = read_trace(trace)
    requests, split_name = choose_split(whole, split)
    requests = only_requests(requests, integers(only, "--requests"), split_name)
    found = compare_variants(
        whole,
        base,
        changed,
        requests=[info.request for info in requests.meta.requests],
        keep_records=out is not None,
    )
    if out is not None:
        from tidesim.report.whatif_page import (  # noqa: PLC0415 (imports networkx, plotly)
            extracts,
            write_whatif_page,
        )

        chosen = extracts(found, block=block, steps=wanted)
        write_whatif_page(out, found, chosen, trace=trace)
    if json:
        report = str(out) if out else None
        print_json(found.to_json() | {"split": split_name, "report": report})
        return
    _print(f"{trace} ({split_name} requests), {found.common}", found)


def _base(changed: Variant, options: Mapping[str, Any]) -> Variant:
    """Return the run to compare with.

    Parameters
    ----------
    changed : Variant
    options : mapping
        What --against options say by the name of the setting, None where one is not given.

    Raises
    ------
    SettingError
        It is the same run.
    """
    named = {name: value for name, value in options.items() if value is not None}
    base = changed
    if not named or named.keys() & {"hardware", "overrides"}:  # numbers of --set are not its own
        base = replace(base, overrides=())
    if "schedule" in named:
        base = replace(
            base, policy=None, interval=None, budget=None, memory_bytes=None, engine=None,
            promotion=None,
        )  # fmt: skip
    elif named.keys() & set(DECIDED):
        base = base.unscheduled()
    if "policy" in named:
        base = replace(base, promotion=None)
    if named.keys() & {"budget", "memory_bytes"}:
        base = replace(base, budget=None, memory_bytes=None)
    base = replace(base, **named)
    if base == changed:
        raise SettingError(
            "nothing differs between the two runs; give --set KEY=VALUE alone, or another setting "
            "for the one to compare with, such as --against-hardware NAME or --against-policy NAME"
        )
    return base


def _print(title: str, found: WhatIf) -> None:
    base, changed = found.base, found.changed
    rows = [
        [
            f"{one.name}{f', {one.unit}' * bool(one.unit)}",
            *(number(value, 3 if one.unit else 0) for value in (one.base, one.changed)),
            _change(one),
        ]
        for one in found.differences()
    ]
    print_table(
        f"{title}\nbase: {found.names[0]}\nchanged: {found.names[1]}",
        ["", "base", "changed", "change"],
        [*rows, ["waits longest for", base.bottleneck, changed.bottleneck, ""]],
    )


def _change(one: Difference) -> str:
    """Write a change; shares change by points."""
    if one.change is None:
        return "–"
    if one.base == one.changed:
        return "same"
    return f"{100 * one.change:+.1f} {'points' if one.unit == '%' else '%'}"
