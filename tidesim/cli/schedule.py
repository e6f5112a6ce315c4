"""``tidesim schedule``: look into schedule files and hand them over."""

import json as json_lib
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tidesim.cli.common import Json, number, out, print_json, print_pairs, print_table
from tidesim.errors import SettingError
from tidesim.report.schedule_words import (
    NEVER,
    first_residents,
    first_steps,
    limit_of,
    limits,
    residents_of,
)
from tidesim.resources import sha256_file
from tidesim.schedule import LayerSchedule, Schedule, json_schema, load_schedule
from tidesim.schedule_export import to_tide

app = typer.Typer(help="Look into schedule files and hand them over.", no_args_is_help=True)

BAR = 8  # characters of the largest budget
File = Annotated[Path, typer.Argument(metavar="FILE", help="A schedule that tidesim solve wrote.")]


class Runtime(StrEnum):
    """Whose settings to export to."""

    TIDE = "tide"


@app.command("schema")
def schema(*, json: Json = False) -> None:
    """Print the JSON Schema of schedule files; --json puts it on one line.

    Example: tidesim schedule schema

    JSON: $defs, additionalProperties, description, properties, required, title, type.
    """
    if json:
        print_json(json_schema())
        return
    typer.echo(json_lib.dumps(json_schema(), indent=1))


@app.command("show")
def show(
    file: File,
    *,
    page: Annotated[
        Path | None, typer.Option("--out", help="Also draw it as an HTML page.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a schedule: what it was made for, what it predicts, and every layer's steps and slots.

    Example: tidesim schedule show schedule.json --out schedule.html

    JSON: format, version, tool_version, model, sizes, trace, profile, engine, policy, settings,
    promotion, steps, interval, layers, memory_bytes, predictions, solver.
    """
    if page is not None and page.resolve() == file.resolve():
        raise SettingError(f"--out {page} is the schedule itself; name another file for the page")
    plan = load_schedule(file)
    if page is not None:
        from tidesim.report.schedule_page import write_schedule_page  # noqa: PLC0415 (plotly)

        write_schedule_page(page, plan, source=file.name, sha256=sha256_file(file))
    if json:
        print_json(plan.model_dump(mode="json"))
        return
    print_pairs(str(file), _about(plan))
    print_table(
        "mixture layers",
        ["layer", f"steps 0 to {plan.steps - 1}", "slots", "", "promotes", "starts"],
        [[str(number), *_row(layer, plan)] for number, layer in enumerate(plan.layers)],
        caption="● the residents are chosen anew at this step of every block",
        texts=(0, 1, 3),
    )
    if page is not None:
        out.print(f"the page is {page}", highlight=False, markup=False, soft_wrap=True)


def _row(layer: LayerSchedule, plan: Schedule) -> list[str]:
    bar = "█" * max(1, round(BAR * layer.budget / max(plan.budgets)))
    return [
        picture(layer.refresh_steps, plan.steps),
        str(layer.budget),
        bar,
        limit_of(layer),
        residents_of(layer, plan.engine),
    ]


def picture(refresh_steps: tuple[int, ...], steps: int) -> str:
    """Draw one layer: a mark per denoise step, filled where it refreshes."""
    if not refresh_steps:
        return NEVER
    return "".join("●" if step in refresh_steps else "·" for step in range(steps))


def _about(plan: Schedule) -> list[tuple[str, str]]:
    train, heldout = plan.predictions.train, plan.predictions.heldout
    speeds = [f"{number(train.tokens_per_s, 2)} (training)"]
    if heldout:
        speeds.append(f"{number(heldout.tokens_per_s, 2)} (held-out)")
    return [
        ("model, sizes", f"{plan.model.name}, {plan.sizes.name}"),
        ("trace, machine", f"{plan.trace.name or '–'}, {plan.profile.name}"),
        ("policy, engine", f"{plan.policy}, {plan.engine}, {plan.promotion} promotion"),
        ("interval", str(plan.interval or "differs by layer")),
        ("first step", first_steps(plan)),
        ("a refresh promotes", limits(plan)),
        ("first residents", first_residents(plan)),
        ("GPU memory", f"{plan.memory_bytes / 1e9:.2f} GB"),
        ("tokens/s, simulated", ", ".join(speeds)),
        ("solver", f"{plan.solver.formulation}, {plan.solver.status}, gap {plan.solver.gap:.2%}"),
    ]


@app.command("export")
def export(
    file: File,
    *,
    to: Annotated[Runtime, typer.Option("--to", help="Whose settings: tide.")] = Runtime.TIDE,
    json: Json = False,
) -> None:
    """Print the settings of another runtime that come closest, and what they lose.

    Example: tidesim schedule export schedule.json --to tide

    JSON: to, jump_steps, max_gpu_experts_per_layer, lost.
    """
    knobs = to_tide(load_schedule(file))
    if json:
        print_json({"to": str(to), **asdict(knobs)})
        return
    typer.echo(f"jump_steps = {knobs.jump_steps}")
    typer.echo(f"max_gpu_experts_per_layer = {knobs.max_gpu_experts_per_layer}")
    for sentence in knobs.lost:
        out.print(f"lost: {sentence}", highlight=False, markup=False)
