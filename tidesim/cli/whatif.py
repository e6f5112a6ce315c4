"""``tidesim whatif``: two variants of a machine compared on the same requests."""

from pathlib import Path
from typing import Annotated

import typer

from tidesim.cli.common import (
    Budget,
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
    read_profile,
    read_sizes,
    read_trace,
    to_bytes,
)
from tidesim.cli.report import Block, StepRange, read_steps
from tidesim.cli.simulation import Batch, Engine, Interval, PromotionName
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.optimize import in_memory, splits
from tidesim.simulate import prepare
from tidesim.whatif import Difference, WhatIf
from tidesim.whatif import what_if as compare_cases


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("whatif")(whatif)


def whatif(
    trace: TraceName,
    *,
    hardware: Hardware,
    policy: Annotated[str, typer.Option("--policy", help="Rule that places experts.")],
    set_: Overrides = None,
    against_hardware: Annotated[
        str | None,
        typer.Option(
            "--against-hardware",
            metavar="NAME",
            help="The machine to compare with; by default that of --hardware.",
        ),
    ] = None,
    against_set: Annotated[
        list[str] | None,
        typer.Option(
            "--against-set", metavar="KEY=VALUE", help="Replace a number of the other machine."
        ),
    ] = None,
    interval: Interval = None,
    budget: Budget = None,
    memory_gb: MemoryGb = None,
    engine: Engine = "tidesim",
    promotion: PromotionName = None,
    batch: Batch = 1,
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
    """Compare a changed machine with the one it was, or with another: what differs, and by how much.

    Example: tidesim whatif tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --policy tide
    --interval 4 --budget 16 --sizes llada2.0-mini --set link.h2d_bytes_per_s=x1.5 --out whatif.html

    JSON: base, changed, speedup, differences, split, report.
    """
    wanted = read_steps(steps)
    if out is not None:
        check_writable(out)
    elif block is not None or steps is not None:
        raise SettingError("--block and --steps choose what the page shows; give --out FILE too")
    machines = _machines(hardware, set_, against_hardware, against_set)
    whole = in_memory(read_trace(trace))
    requests, split_name = choose_split(whole, split)
    requests = only_requests(requests, integers(only, "--requests"), split_name)
    model_sizes, training = read_sizes(sizes), splits(whole)[0]
    base, changed = (
        prepare(
            requests,
            machine,
            policy=policy,
            interval=interval,
            budget=budget,
            memory_bytes=to_bytes(memory_gb),
            engine=engine,
            promotion=promotion,
            batch=batch,
            sizes=model_sizes,
            popularity_from=training,
        )
        for machine in machines
    )
    found = compare_cases(base, changed, keep_records=out is not None)
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
    _print(f"{trace} ({split_name} requests), {policy}", found)


def _machines(
    hardware: str,
    set_: list[str] | None,
    against_hardware: str | None,
    against_set: list[str] | None,
) -> tuple[HardwareProfile, HardwareProfile]:
    """Return the machine to compare with, and the changed one.

    Raises
    ------
    SettingError
        They are the same.
    """
    if not (set_ or against_hardware or against_set):
        raise SettingError(
            "nothing differs; give --set KEY=VALUE, --against-hardware NAME or "
            "--against-set KEY=VALUE"
        )
    changed = read_profile(hardware, set_)
    return read_profile(against_hardware or hardware, against_set), changed


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
        f"{title}\nbase: {base.hardware}\nchanged: {changed.hardware}",
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
