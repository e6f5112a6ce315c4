"""The page of a timeline: what every resource does in some passes, and what bounds them."""

import json
from collections.abc import Iterator
from pathlib import Path

from tidesim.report.extract import OPERATIONS, Extract
from tidesim.report.html import Section, Table, write_report
from tidesim.report.run_figures import timeline_figure
from tidesim.timeline import Metadata


def write_timeline_page(
    path: Path, chosen: Extract, *, metadata: Metadata, source: str, sha256: str
) -> None:
    """Write a self-contained page with the chart and the critical path of some passes.

    Parameters
    ----------
    path : Path
    chosen : Extract
    metadata : mapping
        Of the timeline; stands in the footer, and policy, interval and hardware in the lead.
    source, sha256 : str
        The timeline file and its digest.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    figure = timeline_figure(
        chosen.records,
        beside=chosen.beside,
        path=chosen.path,
        counters=chosen.counters,
        span_s=(chosen.start_s, chosen.end_s),
    )
    write_report(
        path,
        title="tidesim: what each resource does when",
        lead=_lead(chosen, metadata),
        sections=[
            Section("Timeline", figure, _explanation(chosen)),
            Section(
                "What the critical path is made of",
                text="Every operation on it starts when the one before it ends, so together they "
                "take as long as these passes do: only what stands here can make them shorter.",
                table=path_table(chosen),
            ),
        ],
        footer=[
            ("timeline", f"{source}, sha256 {sha256}"),
            *((name.replace("_", " "), _written(value)) for name, value in metadata.items()),
        ],
    )


def path_rows(chosen: Extract) -> Iterator[tuple[str, str, float, float]]:
    """Yield resource, operation, seconds and share of the time on the critical path, most first.

    Time that nothing accounts for, as between measured operations, comes last as ``idle``.
    """
    seconds = chosen.path_seconds()
    for (resource, operation), spent_s in seconds.items():
        yield str(resource), operation, spent_s, spent_s / (chosen.seconds or 1.0)
    idle_s = chosen.seconds - sum(seconds.values())
    if idle_s > 1e-6 * chosen.seconds:
        yield "–", "idle", idle_s, idle_s / chosen.seconds


def path_table(chosen: Extract) -> Table:
    """Return seconds and shares of the critical path, and their sum."""
    rows = list(path_rows(chosen))
    total = ("all", "", sum(row[2] for row in rows), sum(row[3] for row in rows))
    return Table(
        columns=["resource", "operation", "milliseconds", "share %"],
        rows=[
            [resource, operation, 1e3 * seconds, 100 * share]
            for resource, operation, seconds, share in (*rows, total)
        ],
        chosen=len(rows),
    )


def passes_label(chosen: Extract) -> str:
    """Name the passes: request, block and steps."""
    first, last = chosen.steps[0], chosen.steps[-1]
    if chosen.block < 0:
        return f"request {chosen.request}, prefill"
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return f"request {chosen.request}, block {chosen.block}, {steps}"


def _lead(chosen: Extract, metadata: Metadata) -> str:
    shares = ", ".join(
        f"{name} {100 * share:.0f} %" for name, share in chosen.path_shares().items()
    )
    told = [
        f"{name} {_written(metadata[name])}"
        for name in ("policy", "interval")
        if metadata.get(name) is not None
    ]
    where = f" on {_written(metadata['hardware'])}" if metadata.get("hardware") else ""
    run = f"{', '.join(told)}{where}: " if told or where else ""
    passes = passes_label(chosen)
    return (
        f"{run}{passes} take{'s' if len(chosen.steps) == 1 else ''} {1e3 * chosen.seconds:.4g} ms. "
        f"Critical path: {shares}."
    )


def _explanation(chosen: Extract) -> str:
    drawn = (
        f"{len(chosen.records):,} operations of {passes_label(chosen)}. Hatched bars are on the "
        "critical path of the run, and the top row shows it alone. Drag to zoom, double-click to "
        "see everything, hover for the operation."
    )
    parts = [drawn]
    if chosen.beside:
        parts.append("Pale bars belong to other passes that run meanwhile.")
    if chosen.shortened:
        parts.append(
            f"Only so many steps are drawn as hold {OPERATIONS:,} operations; --steps chooses others."
        )
    return " ".join(parts)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
