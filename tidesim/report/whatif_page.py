"""A what-if as figures and a page: two runs beside each other, over the same milliseconds."""

from pathlib import Path

import plotly.graph_objects as go

from tidesim.errors import SettingError
from tidesim.report.extract import Extract, Steps, extract
from tidesim.report.html import Section, Table, write_report
from tidesim.report.run_figures import timeline_figure
from tidesim.report.style import RESOURCES, new_figure
from tidesim.simulate import SimulationResult
from tidesim.timeline import Timeline
from tidesim.whatif import Difference, WhatIf

# What a run waits for, in the colour of the resource that it waits for.
_WAITS = {"gpu": "gpu", "link": "h2d", "cpu": "cpu", "host": "host"}
_NAMES = ("base", "changed")


def waiting_figure(found: WhatIf) -> go.Figure:
    """Draw what a block of each run waits for, in milliseconds."""
    figure = new_figure("Where the time goes", x="milliseconds per block", y="")
    runs = (found.base, found.changed)
    for name, resource in _WAITS.items():
        figure.add_bar(
            y=_NAMES,
            x=[1e3 * one.seconds_per_block * one.waited.get(name, 0.0) for one in runs],
            name=f"waits for {name}",
            orientation="h",
            marker={"color": RESOURCES[resource]},
        )
    figure.update_layout(
        barmode="stack", hovermode="closest", height=300, margin={"l": 90, "b": 120},
        legend={"y": -0.55, "traceorder": "normal"},
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return figure


def extracts(
    found: WhatIf,
    *,
    request: int | None = None,
    block: int | None = None,
    steps: Steps | None = None,
) -> tuple[Extract, Extract]:
    """Choose the same passes of both runs.

    Parameters
    ----------
    found : WhatIf
        Its runs keep records.
    request, block, steps
        As `extract`; what is not given is chosen in the base run.

    Raises
    ------
    SettingError
        The runs keep no records, or hold no operation in the range.
    """
    base = extract(_timeline(found.base), "base run", request=request, block=block, steps=steps)
    changed = extract(
        _timeline(found.changed),
        "changed run",
        request=base.request,
        block=base.block,
        steps=(base.steps[0], base.steps[-1] + 1),
    )
    return base, changed


def timeline_figures(base: Extract, changed: Extract) -> tuple[go.Figure, go.Figure]:
    """Draw the same passes of both runs, each from its start on and as far as the longer takes."""
    seconds = max(base.seconds, changed.seconds)
    first, second = (
        timeline_figure(
            one.records,
            beside=one.beside,
            path=one.path,
            counters=one.counters,
            span_s=(one.start_s, one.start_s + seconds),
        ).update_layout(title={"text": f"{name}: {one.label}, {1e3 * one.seconds:.4g} ms"})
        for name, one in zip(_NAMES, (base, changed), strict=True)
    )
    return first, second


def difference_table(found: WhatIf) -> Table:
    """Return every quantity of both runs and its change in percent."""
    return Table(
        columns=["quantity", "unit", *_NAMES, "change, %"],
        rows=[
            [one.name, one.unit or "–", one.base, one.changed, _percent(one)]
            for one in found.differences()
        ],
        chosen=0,
    )


def write_whatif_page(
    path: Path, found: WhatIf, chosen: tuple[Extract, Extract], *, trace: str
) -> None:
    """Write the differences and the two timelines as one HTML file.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    base, changed = found.base, found.changed
    names = found.names
    figures = timeline_figures(*chosen)
    write_report(
        path,
        title="tidesim: what if",
        lead=_lead(found),
        sections=[
            Section("Where the time goes", waiting_figure(found)),
            Section(
                "Every difference",
                text="Shares (%) change by points, everything else relative to the base.",
                table=difference_table(found),
            ),
            Section(
                f"Timeline of the base: {names[0]}",
                figures[0],
                "Both timelines show the same steps over the same milliseconds. Hatched bars are on "
                "the critical path of the run, and the top row shows it alone; pale bars belong to "
                "other passes that run meanwhile.",
            ),
            Section(f"Timeline with the change: {names[1]}", figures[1]),
            Section("What the critical path of these steps is made of", table=_path_table(*chosen)),
        ],
        footer=[
            ("times", "simulated"),
            ("routing", f"{base.sizes}, {base.provenance}, {trace}"),
            *zip(_NAMES, names, strict=True),
            ("both", found.common),
            ("trace sha256", base.trace_sha256),
            ("profile sha256", _told(base, changed, "profile_sha256")),
        ],
    )


def _timeline(result: SimulationResult) -> Timeline:
    if result.records is None:
        raise SettingError("the runs keep no records; ask what_if for them with keep_records=True")
    return Timeline(records=result.records, counters=result.counters)


def _percent(one: Difference) -> float | None:
    return None if one.change is None else 100 * one.change


def _lead(found: WhatIf) -> str:
    base, changed, names = found.base, found.changed, found.names
    bound = (
        f"Both wait longest for: {base.bottleneck}."
        if base.bottleneck == changed.bottleneck
        else f"The base waits longest for: {base.bottleneck}, the changed run for: "
        f"{changed.bottleneck}."
    )
    return (
        f"{names[1]} against {names[0]}: {changed.tokens_per_s:.4g} tokens/s instead "
        f"of {base.tokens_per_s:.4g} ({100 * (found.speedup - 1):+.1f} %). {bound}"
    )


def _told(base: SimulationResult, changed: SimulationResult, name: str) -> str:
    """Write what both runs say of themselves, once where it is the same."""
    first, second = str(getattr(base, name)), str(getattr(changed, name))
    return first if first == second else f"{first}; {second}"


def _path_table(base: Extract, changed: Extract) -> Table:
    """Return milliseconds on the critical path by resource and operation, of both runs."""
    first, second = _milliseconds(base), _milliseconds(changed)
    rows: list[list[str | float]] = [
        [*key, first.get(key, 0.0), second.get(key, 0.0)]
        for key in dict.fromkeys((*first, *second))
    ]
    rows.append(["all", "", 1e3 * base.seconds, 1e3 * changed.seconds])
    return Table(
        columns=["resource", "operation", *(f"{name}, ms" for name in _NAMES)],
        rows=rows,
        chosen=len(rows) - 1,
    )


def _milliseconds(one: Extract) -> dict[tuple[str, str], float]:
    return {(row[0], row[1]): 1e3 * row[2] for row in one.path_rows()}
