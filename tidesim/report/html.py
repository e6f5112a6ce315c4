"""Self-contained HTML: figures and tables in one file that works offline, light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import tidesim
from tidesim.resources import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #ffffff; --line: #d0d0d5; --soft: #6b6b70; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --paper: #17181b; --line: #3a3b40; --soft: #a0a0a8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.lead { font-size: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .92rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
th { cursor: pointer; user-select: none; } th::after { content: " ↕"; color: var(--soft); }
tr.chosen td { font-weight: 700; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem;
  overflow-wrap: anywhere; }
@media print { th::after { content: ""; } body { max-width: none; } section { break-inside: avoid; } }
"""

_SORT = """
document.querySelectorAll("table").forEach(table => {
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const body = table.tBodies[0], down = head.dataset.down !== "1";
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b), n = parseFloat(x) - parseFloat(y);
      return (isNaN(n) ? x.localeCompare(y) : n) * (down ? -1 : 1);
    });
    head.dataset.down = down ? "1" : "0";
    rows.forEach(row => body.append(row));
  }));
});
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of numbers and text; numbers are shown with three significant digits.

    Attributes
    ----------
    columns : sequence of str
    rows : sequence of rows
        The first cell of a row is its name.
    chosen : int or None
        Row to emphasise.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    chosen: int | None = None


@dataclass(frozen=True)
class Section:
    """A heading, and under it a sentence, a figure, a table or any of them."""

    title: str
    figure: go.Figure | None = None
    text: str = ""
    table: Table | None = field(default=None, kw_only=True)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, str):
        return f"<td class=text>{escape(value)}</td>"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f'<td data-value="{value!r}">{shown}</td>'


def table_html(table: Table) -> str:
    """Return a table that sorts by a click on a heading."""
    texts = [all(isinstance(row[n], str) for row in table.rows) for n in range(len(table.columns))]
    head = "".join(
        f"<th{' class=text' if text else ''}>{escape(column)}</th>"
        for column, text in zip(table.columns, texts, strict=True)
    )
    body = "".join(
        f"<tr{' class=chosen' if number == table.chosen else ''}>{''.join(map(_cell, row))}</tr>"
        for number, row in enumerate(table.rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _section_html(section: Section, number: int) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.table is not None:
        parts.append(table_html(section.table))
    if section.figure is not None:
        parts.append(
            section.figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=f"figure-{number}",
                config={"responsive": True, "displaylogo": False},
            )
        )
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
    body = "".join(_section_html(section, number) for number, section in enumerate(sections))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(lead)}</p>{body}<footer><p>{lines}</p></footer>'
        f"<script>{_SORT}</script></body></html>\n"
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
