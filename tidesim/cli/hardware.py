"""``tidesim hardware``: the machines that are known and what is known about them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from tidesim.cli.common import (
    CpuWorkers,
    Json,
    LinkRate,
    Overrides,
    bytes_per_s,
    check_writable,
    err,
    out,
    print_json,
    print_table,
    read_profile,
)
from tidesim.hardware import count_kinds, describe, load_profile, profile_names
from tidesim.hardware_write import save_profile
from tidesim.model_spec import load_model_spec

app = typer.Typer(help="Look into machine profiles; measure this machine.", no_args_is_help=True)


@app.command("list")
def list_profiles(*, json: Json = False) -> None:
    """List the bundled machines.

    Example: tidesim hardware list

    JSON: hardware.
    """
    profiles = [load_profile(name) for name in profile_names()]
    rows = [{"name": profile.name, **count_kinds(profile)} for profile in profiles]
    if json:
        print_json({"hardware": rows})
        return
    print_table(
        "Machines, with how many of their numbers are measured, from a datasheet or estimated",
        ["name", *count_kinds(profiles[0])],
        [[str(value) for value in row.values()] for row in rows],
    )


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A bundled name or a TOML file.")],
    *,
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Show every number of a machine with its kind and source.

    Example: tidesim hardware show a100-40gb-pcie4-xeon48 --set link.h2d_bytes_per_s=5e10

    JSON: name, sha256, values.
    """
    profile = read_profile(name, set_)
    rows = describe(profile)
    if json:
        values = {r.key: {"value": r.value, "kind": r.kind, "source": r.source} for r in rows}
        print_json({"name": profile.name, "sha256": profile.sha256, "values": values})
        return
    out.print(Text(profile.name, style="bold"))
    for row in rows:
        value = f"{row.value:.4g}" if isinstance(row.value, float) else str(row.value)
        out.print(Text.assemble((row.key, "bold"), f" {value} ", (f"({row.kind})", "cyan")))
        out.print(Padding(Text(row.source, style="dim"), (0, 0, 0, 4)))


@app.command("measure")
def measure_machine(
    *,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Measure at this model's sizes.")
    ],
    file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the profile goes, as TOML.")
    ],
    backend: Annotated[
        str, typer.Option("--backend", help="cpu: threads as GPU, CPU and link; or cuda.")
    ] = "cpu",
    seconds: Annotated[
        float, typer.Option("--seconds", help="About how long it may take.")
    ] = 120.0,
    link_gb_per_s: LinkRate = None,
    cpu_workers: CpuWorkers = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The machine's name in the profile.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine and write its profile.

    Example: tidesim hardware measure --model tide-tiny --out box.toml

    JSON: name, file, model, measured, datasheet, estimated.
    """
    from tidesim.runtime.backends import make_backend  # noqa: PLC0415
    from tidesim.runtime.measure import check_measurable, measure  # noqa: PLC0415

    spec = load_model_spec(model)
    check_measurable(spec, seconds)
    made = make_backend(
        backend, cpu_workers=cpu_workers, link_bytes_per_s=bytes_per_s(link_gb_per_s)
    )
    check_writable(file)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("measure", total=seconds)
        profile = measure(
            spec,
            made,
            seconds=seconds,
            name=name,
            observe=lambda part, went: bar.update(task, description=part, advance=went),
        )
    save_profile(profile, file)
    kinds = count_kinds(profile)
    if json:
        print_json({"name": profile.name, "file": str(file), "model": spec.name, **kinds})
        return
    out.print(Text(f"{profile.name}: {kinds['measured']} numbers and curves in {file}"))
