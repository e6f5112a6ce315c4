"""``tidesim hardware``: the machines that are known and what is known about them."""

from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from tidesim.cli.common import Json, Overrides, out, print_json, print_table, read_profile
from tidesim.hardware import count_kinds, describe, load_profile, profile_names

app = typer.Typer(help="Look into machine profiles.", no_args_is_help=True)


@app.command("list")
def list_profiles(*, json: Json = False) -> None:
    """List the bundled machines."""
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
    """Show every number of a machine with its kind and source."""
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
