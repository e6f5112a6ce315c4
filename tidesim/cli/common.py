"""What every command shares: options, tables, JSON and progress."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.model_spec import ModelSpec, load_model_spec
from tidesim.overrides import overridden
from tidesim.resources import atomic_path
from tidesim.schedule import Schedule, check_schedule, load_schedule
from tidesim.trace.io import load_trace
from tidesim.trace.passes import Trace

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
TraceName = Annotated[
    str, typer.Argument(metavar="TRACE", help="A bundled trace's name or a Parquet file.")
]
Hardware = Annotated[
    str, typer.Option("--hardware", metavar="NAME", help="A bundled profile's name or a TOML file.")
]
Sizes = Annotated[
    str | None,
    typer.Option(
        "--sizes",
        metavar="MODEL",
        help="Let the trace's routing drive this model's sizes (hidden, intermediate, dtype): "
        "a what-if, and labelled so. A name of `tidesim model list` (some are unverified), a "
        "checkpoint directory or a config.json.",
    ),
]
Budget = Annotated[
    int | None, typer.Option("--budget", metavar="B", help="Expert slots per mixture layer.")
]
MemoryGb = Annotated[
    float | None,
    typer.Option("--memory-gb", metavar="G", help="Instead of --budget: GPU memory to use, in GB."),
]
MostPromotions = Annotated[
    str,
    typer.Option(
        "--most-promotions",
        metavar="M,…",
        help="Limits to choose from, layer by layer, for the promotions of one refresh: numbers "
        "with commas; all is no limit.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="What-if: replace a number of the profile, as 5e10, 50GB/s or x1.5 (times what it is); "
        "repeatable.",
    ),
]
Requests = Annotated[
    str | None,
    typer.Option("--requests", metavar="N,…", help="Of these requests only, by number."),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Accept a schedule made for another trace, profile, sizes or name of the model.",
    ),
]
CpuWorkers = Annotated[
    int | None,
    typer.Option("--cpu-workers", metavar="N", help="Threads that compute missed experts."),
]
LinkRate = Annotated[
    float | None,
    typer.Option(
        "--link-gb-per-s", metavar="G", help="Slow the link of backend cpu down to this rate."
    ),
]


class Split(StrEnum):
    """Which requests of a trace."""

    TRAIN = "train"
    HELDOUT = "heldout"
    ALL = "all"


SplitOption = Annotated[
    Split | None,
    typer.Option("--split", help="Which requests; by default the held-out ones, if there are any."),
]

out = Console()
err = Console(stderr=True)


def choose_split(trace: Trace, split: Split | None) -> tuple[Trace, str]:
    """Return the requests to report on and the split's name."""
    marked = {info.split for info in trace.meta.requests}
    name: Literal["train", "heldout", "all"]
    name = split.value if split else ("heldout" if "heldout" in marked else "all")
    return trace.split(name), name


def only_requests(trace: Trace, numbers: tuple[int, ...] | None, split: str) -> Trace:
    """Return some requests of a split, or all of them.

    Raises
    ------
    SettingError
        A number that the split does not have.
    """
    if numbers is None:
        return trace
    there = [info.request for info in trace.meta.requests]
    for wanted in numbers:
        if wanted not in there:
            raise SettingError(
                f"--requests {wanted}: the {split} requests are {', '.join(map(str, there))}; "
                "choose among them, or another --split"
            )
    return trace.only(numbers)


def read_trace(name: str) -> Trace:
    """Load a trace by name or path."""
    return load_trace(name)


def read_profile(name: str, overrides: list[str] | None = None) -> HardwareProfile:
    """Load a profile and apply ``--set`` overrides.

    Raises
    ------
    SettingError
        As `overridden`.
    """
    return overridden(load_profile(name), overrides or ())


def read_sizes(name: str | None) -> ModelSpec | None:
    """Load the model spec that ``--sizes`` names."""
    return None if name is None else load_model_spec(name)


def read_schedule(
    path: Path,
    model: ModelSpec,
    *,
    trace: Trace | None = None,
    profile: HardwareProfile | None = None,
    sizes: ModelSpec | None = None,
    force: bool = False,
) -> Schedule:
    """Load a schedule and refuse one made for something else, as `check_schedule` does."""
    plan = load_schedule(path)
    check_schedule(plan, model, trace=trace, profile=profile, sizes=sizes, forced=force)
    return plan


def integers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Read integers with commas; nothing stays nothing.

    Raises
    ------
    SettingError
        Something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"{option} {text}: not integers with commas; write {option} 1,2,5"
        ) from None


def limits(most_promotions: str) -> tuple[int | None, ...]:
    """Read ``--most-promotions``, such as ``2,4,all``.

    Raises
    ------
    SettingError
        Something else.
    """
    try:
        return tuple(None if part == "all" else int(part) for part in most_promotions.split(","))
    except ValueError:
        raise SettingError(
            f"--most-promotions {most_promotions}: not numbers with commas, or all; write for "
            "example --most-promotions 2,4,all"
        ) from None


def to_bytes(memory_gb: float | None, option: str = "--memory-gb") -> int | None:
    """Convert ``--memory-gb``, or another `option`.

    Raises
    ------
    SettingError
        Not a positive number.
    """
    if memory_gb is None:
        return None
    if not 0 < memory_gb < 1e9:
        raise SettingError(f"{option} is {memory_gb} but must be a positive number of gigabytes")
    return int(memory_gb * 1e9)


def bytes_per_s(gb_per_s: float | None) -> float | None:
    """Convert ``--link-gb-per-s``."""
    return None if gb_per_s is None else 1e9 * gb_per_s


def print_json(payload: dict[str, Any]) -> None:
    """Print one JSON object on stdout; NaN and infinity are refused."""
    typer.echo(json.dumps(payload, allow_nan=False))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    texts: Sequence[int] = (0,),
    aside: bool = False,
) -> None:
    """Print a table.

    Parameters
    ----------
    title : str
    columns : sequence of str
    rows : iterable of sequence of str
    caption : str
    texts : sequence of int
        Which columns are text; the others are right-aligned numbers.
    aside : bool
        Not the answer itself: --quiet leaves it out.
    """
    if aside and err.quiet:
        return
    table = Table(
        title=Text(title),  # a name in it may look like markup
        caption=caption or None,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    rows = list(rows)
    for number, column in enumerate(columns):
        text = number in texts
        justify: Literal["left", "right"] = "left" if text else "right"
        width = _widest_word([column, *(row[number] for row in rows)])
        table.add_column(column, justify=justify, overflow="fold", no_wrap=text, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


def _widest_word(cells: Iterable[str]) -> int:
    """Return the columns that keep words and numbers whole, within reason."""
    return min(24, max(cell_len(word) for cell in cells for word in cell.split() or [""]))


def print_pairs(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    table = Table(title=Text(title), title_justify="left", box=None, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for pair in pairs:
        table.add_row(*map(Text, pair))
    out.print(table)


def tell(text: str) -> None:
    """Say on stderr what is not the answer; --quiet leaves it out."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def progress(*, rate: str | None = None) -> Progress:
    """Return a progress display on stderr; it vanishes when done.

    Parameters
    ----------
    rate : str or None
        Unit of a rate to show, such as ``points/s``.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([] if rate is None else [_RateColumn(rate)]),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


@contextmanager
def shown_late(bar: Progress, description: str) -> Iterator[Callable[..., None]]:
    """Yield what updates the only task of a display, which appears with its first update.

    So an error that comes before any work stands alone.
    """
    with ExitStack() as stack:
        task = bar.add_task(description, total=None)

        def update(**changes: Any) -> None:
            if not bar.live.is_started:
                stack.enter_context(bar)
            bar.update(task, **changes)

        yield update


class _RateColumn(ProgressColumn):
    """How many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate, a dash until there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{'–' if speed is None else f'{speed:.2g}'} {self._unit}")


class _WritableError(Exception):
    """Tell atomic_path that there is nothing to write."""


def check_writable(path: Path) -> None:
    """Refuse a folder that cannot be written before long work starts.

    Raises
    ------
    OutputError
        The folder is missing or read-only, or `path` is a folder itself.
    """
    with suppress(_WritableError), atomic_path(path):
        raise _WritableError  # which drops the temporary file


def number(value: float | None, digits: int = 3) -> str:
    """Format a number for a table; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """Format a share as a percentage."""
    return "–" if value is None else f"{100 * value:.1f} %"
