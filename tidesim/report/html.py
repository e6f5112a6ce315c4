"""Self-contained HTML: figures and tables in one file that works offline, light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import tidesim
from tidesim.resources import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #ffffff; --line: #d0d0d5; --soft: #5f5f66; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --paper: #17181b; --line: #3a3b40; --soft: #a0a0a8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.lead { font-size: 1.1rem; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .92rem; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { vertical-align: bottom; min-width: 4rem; } td { white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
td.long { white-space: normal; min-width: 13rem; }
.text:not(:first-child) { padding-left: 1.4rem; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th button::after { content: "\\a0↕"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: "\\a0↑"; }
th[aria-sort=descending] button::after { content: "\\a0↓"; }
tr.chosen td { font-weight: 700; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem;
  overflow-wrap: anywhere; }
.js-plotly-plot :is(.infolayer, .menulayer, .xaxislayer-above, .yaxislayer-above) text,
.js-plotly-plot .bartext-outside { fill: var(--ink) !important; }
.js-plotly-plot :is(.updatemenu-item-rect, .annotation .bg) { fill: var(--paper) !important; }
@media (max-width: 40rem) {
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper);
    white-space: normal; min-width: 0; max-width: 45vw; }
}
@media print {
  @page { margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 13px; }
  table { font-size: 10px; }
  th, td { min-width: 0 !important; padding: .2rem .3rem !important; white-space: normal !important; }
  th button::after { content: "" !important; }
  .scroll { overflow: visible; } .scroll > div { min-width: 0 !important; }
  h2, figcaption { break-after: avoid; } figure, tr, footer { break-inside: avoid; }
}
"""

# Numbers stand before text and what is missing stands last, whichever the direction. Paper is
# narrower than a screen, so charts are drawn anew for it; and on a touch screen a finger on a chart
# scrolls the page instead of zooming.
_SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = row => {
    const cell = row.cells[head.cellIndex], number = parseFloat(cell.dataset.value);
    const text = cell.textContent;
    return { row, number, text, rank: isNaN(number) ? (["", "–"].includes(text) ? 2 : 1) : 0 };
  };
  const compare = (a, b) => a.rank - b.rank || sign *
    (a.rank ? a.text.localeCompare(b.text, "en", { numeric: true }) : a.number - b.number);
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  [...body.rows].map(key).sort(compare).forEach(({ row }) => body.append(row));
}));
const change = update => document.querySelectorAll(".js-plotly-plot").forEach(
  plot => Plotly.relayout(plot, update));
addEventListener("beforeprint", () => change({ width: 680 }));
addEventListener("afterprint", () => change({ width: null, autosize: true }));
if (matchMedia("(pointer: coarse)").matches) change({ dragmode: false });
"""

_LONG = 28  # characters of a cell that stay on one line
_PLOT_PIXELS = 150  # least width of what stands between a chart's margins
_TITLE_PIXELS = 40  # height of a title, which on a page stands above the chart


Row = Sequence[str | float | None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of numbers and text; numbers are shown with four significant digits.

    Attributes
    ----------
    columns : sequence of str
    rows : sequence of rows
        The first cell of a row is its name.
    chosen : int or None
        Row to emphasise.
    total : row or None
        Stands below the others however they are sorted.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    chosen: int | None = None
    total: Row | None = None


@dataclass(frozen=True)
class Section:
    """A heading, and under it a sentence, a figure, a table or any of them."""

    title: str
    figure: go.Figure | None = None
    text: str = ""
    table: Table | None = field(default=None, kw_only=True)


def _cell(value: str | float | None) -> str:
    if value is None or value != value:  # noqa: PLR0124 (not a number)
        return "<td>–</td>"
    if isinstance(value, str):
        kind = "text" if len(value) <= _LONG else '"text long"'
        return f"<td class={kind}>{escape(value)}</td>"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f'<td data-value="{float(value)!r}">{shown}</td>'


def table_html(table: Table, title: str) -> str:
    """Return a table that sorts by a click on a heading; its caption is for those who hear it."""
    texts = [all(isinstance(row[n], str) for row in table.rows) for n in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{" class=text" if text else ""}>'
        f'<button type="button">{escape(column)}</button></th>'
        for column, text in zip(table.columns, texts, strict=True)
    )
    body = "".join(
        f"<tr{' class=chosen' if number == table.chosen else ''}>{''.join(map(_cell, row))}</tr>"
        for number, row in enumerate(table.rows)
    )
    foot = f"<tr class=chosen>{''.join(map(_cell, table.total))}</tr>" if table.total else ""
    return (
        f'<div class="scroll"><table><caption>{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def figure_html(figure: go.Figure, heading: str, *, name: str) -> str:
    """Return a chart under its title, unless that is the heading; on a narrow page it scrolls.

    Parameters
    ----------
    figure : Figure
        ``layout.minreducedwidth`` is the least width of what stands between its margins.
    heading : str
        What stands above.
    name : str
        Of its element.
    """
    title = unescape(figure.layout.title.text or "")
    caption = "" if title == heading else f"<figcaption>{escape(title)}</figcaption>"
    bare = go.Figure(figure).update_layout(title=None)
    layout, margin = bare.layout, bare.layout.margin
    layout.margin.t = max(16, (margin.t or 0) - _TITLE_PIXELS)
    if layout.height:
        layout.height -= _TITLE_PIXELS
    least = (margin.l or 0) + (layout.minreducedwidth or _PLOT_PIXELS) + (margin.r or 0)
    chart = bare.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"responsive": True, "displaylogo": False},
    )
    return (
        f'<figure>{caption}<div class="scroll">'
        f'<div role="img" aria-label="{escape(title)}" style="min-width: {least:.0f}px">{chart}</div>'
        "</div></figure>"
    )


def _section_html(section: Section, number: int) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.figure is not None:
        parts.append(figure_html(section.figure, section.title, name=f"figure-{number}"))
    if section.table is not None:
        parts.append(table_html(section.table, section.title))
    return f"<section>{''.join(parts)}</section>"


def report_html(
    *,
    title: str,
    sections: Sequence[Section],
    footer: Sequence[tuple[str, str]],
    lead: str = "",
) -> str:
    """Return a whole page; everything it needs is inside.

    Parameters
    ----------
    title, lead : str
    sections : sequence of Section
    footer : sequence of (name, value)
        Where the numbers come from: provenance, digests, versions.
    """
    provenance = [*footer, ("tidesim", tidesim.__version__)]
    lines = "<br>".join(f"{escape(name)}: {escape(value)}" for name, value in provenance)
    told = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    body = "".join(_section_html(section, number) for number, section in enumerate(sections))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><h1>{escape(title)}</h1>"
        f"{told}{body}<footer><p>{lines}</p></footer>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def write_report(
    path: Path,
    *,
    title: str,
    sections: Sequence[Section],
    footer: Sequence[tuple[str, str]],
    lead: str = "",
) -> None:
    """Write `report_html` whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_text(path, report_html(title=title, sections=sections, footer=footer, lead=lead))
