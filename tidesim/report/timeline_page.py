"""The page of a timeline: what every resource does in some passes, and what bounds them."""

import json
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


def path_table(chosen: Extract) -> Table:
    """Return seconds and shares of the critical path, and their sum."""
    rows = list(chosen.path_rows())
    return Table(
        columns=["resource", "operation", "milliseconds", "share %"],
        rows=[
            [resource, operation, 1e3 * seconds, 100 * share]
            for resource, operation, seconds, share in rows
        ],
        total=["all", "", 1e3 * sum(row[2] for row in rows), 100 * sum(row[3] for row in rows)],
    )


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
    passes = chosen.label
    return (
        f"{run}{passes} take{'s' if len(chosen.steps) == 1 else ''} {1e3 * chosen.seconds:.4g} ms. "
        f"Critical path: {shares}."
    )


def _explanation(chosen: Extract) -> str:
    drawn = (
        f"{len(chosen.records):,} operations of {chosen.label}. Hatched bars are on the "
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
