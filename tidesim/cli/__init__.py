"""The command line: parse, call, print.

The only place that turns a `TidesimError` into one sentence on stderr and exit status 2, and any
other error, which is a fault of tidesim, into one sentence and status 3.
"""

import io
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

import tidesim
from tidesim.cli import (
    decoding,
    demo,
    hardware,
    model,
    planning,
    regimes,
    replaying,
    report,
    reproduce,
    schedule,
    sensitivity,
    simulation,
    solving,
    sweeping,
    trace,
    validation,
    whatif,
)
from tidesim.cli.common import err
from tidesim.errors import TidesimError
from tidesim.resources import NO_SPACE, not_written

INTERRUPTED = 130  # what a shell calls a program that Ctrl-C ended, and typer makes of it


class Group(TyperGroup):
    """Commands; their help says of each all that its first sentence says."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands, which click cuts to a line each."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, one.get_short_help_str(1000)) for name, one in commands if one]
            )


app = typer.Typer(
    name="tidesim",
    cls=Group,
    help="How fast a diffusion mixture-of-experts model runs on a machine that its experts do not "
    "fit, what bounds it, and which refresh schedule is best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in plain text: boxes cut the names of options where they are narrow
)
for module in (
    demo,
    decoding,
    simulation,
    whatif,
    planning,
    solving,
    regimes,
    sensitivity,
    reproduce,
    sweeping,
    replaying,
    validation,
    report,
):
    module.register(app)
app.add_typer(trace.app, name="trace", cls=Group)
app.add_typer(hardware.app, name="hardware", cls=Group)
app.add_typer(model.app, name="model", cls=Group)
app.add_typer(schedule.app, name="schedule", cls=Group)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"tidesim {tidesim.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error, as TIDESIM_DEBUG=1 does."
    ),
    quiet: bool = typer.Option(
        False, "--quiet", help="Print the answer and errors alone: no progress, no asides."
    ),
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and stop.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    _shown.debug = debug
    err.quiet = quiet


class _Shown:
    """What the root's options ask for; a command line is one per process."""

    debug = False


_shown = _Shown()


def main() -> None:
    """Run the command line; an error ends in one sentence, not in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name that the terminal cannot write is no fault
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except TidesimError as error:
        _end(error, str(error), status=2)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        typer.echo("tidesim: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (a fault of ours)
        if isinstance(error, OSError) and error.errno in NO_SPACE:  # files name themselves
            _end(error, str(not_written("stdout", error)), status=2)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        _end(error, f"a fault of tidesim ({what}); please report it with --debug", status=3)


def _end(error: Exception, sentence: str, *, status: int) -> None:
    if _shown.debug or os.environ.get("TIDESIM_DEBUG"):
        raise error
    typer.echo(f"tidesim: {sentence}", err=True)
    sys.exit(status)
