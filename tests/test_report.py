"""Report pages: self-contained, escaped, and labelled with where their numbers come from."""

import re

import plotly.graph_objects as go
import pytest

from tidesim.errors import OutputError
from tidesim.records import Record, Resource
from tidesim.report.html import Section, Table, report_html, write_report
from tidesim.report.run_figures import (
    interval_figure,
    policies_figure,
    speed_figure,
    timeline_figure,
)
from tidesim.report.style import color_of


def page(**changes) -> str:
    values = {
        "title": "a <title>",
        "lead": "x & y",
        "sections": [Section("<b>", go.Figure(), "text <i>"), Section("t", table=TABLE)],
        "footer": [("trace", "<digest>")],
    }
    return report_html(**(values | changes))


TABLE = Table(columns=["policy", "tokens/s"], rows=[["<tide>", 3.25], ["lru", None]], chosen=0)


def test_page_needs_nothing_from_outside():
    own = page().replace(page().split("<script>")[1].split("</script>")[0], "")

    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", own)
    assert "@import" not in own
    assert "Plotly.newPlot" in own


def test_page_escapes_every_text():
    own = re.sub(r"<script.*?</script>", "", page(), flags=re.DOTALL)

    assert "a &lt;title&gt;" in own
    assert "x &amp; y" in own
    assert "&lt;tide&gt;" in own
    assert "&lt;digest&gt;" in own
    assert "<i>" not in own


def test_table_keeps_exact_numbers_for_sorting_and_a_dash_for_none():
    assert '<td data-value="3.25">3.25</td>' in page()
    assert "<td>–</td>" in page()


def test_same_input_gives_the_same_page():
    assert page() == page()


def test_report_into_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "none" / "r.html", title="t", sections=[], footer=[])


def test_interval_figure_marks_the_choice_and_draws_milliseconds():
    figure = interval_figure([0.002, 0.001], {1: 0.003}, chosen=2)

    assert list(figure.data[0].y) == [2.0, 1.0]
    assert list(figure.data[1].x) == [1]
    assert figure.layout.shapes[0].x0 == 2


def test_policies_figure_hatches_bounds():
    figure = policies_figure({"tide": 3.0, "all-gpu": 9.0}, bounds=["all-gpu"])

    assert list(figure.data[0].y) == ["all-gpu", "tide"]
    assert list(figure.data[0].marker.pattern.shape) == ["/", ""]


def test_speeds_stand_over_the_values_tried_in_the_colour_of_their_policy():
    curves = {"tide τ=2": {8: 3.0, 16: 4.0}, "<own>": {0.5: 1.0}}

    figure = speed_figure("slots", curves, x="slots")

    assert [(list(line.x), list(line.y)) for line in figure.data] == [
        ([8, 16], [3.0, 4.0]), ([0.5], [1.0]),
    ]  # fmt: skip
    assert [line.name for line in figure.data] == ["tide τ=2", "&lt;own&gt;"]
    assert figure.data[0].line.color == color_of("tide")
    assert list(figure.layout.xaxis.ticktext) == ["0.5", "8", "16"]


def test_timeline_starts_at_its_first_operation_with_one_row_per_resource():
    rows = [
        Record(Resource.GPU, 5.0, 6.0, "attention", 0, 1, 2, 3),
        Record(Resource.CPU, 5.5, 7.0, "experts", 0, 1, 2, 3),
    ]

    figure = timeline_figure(rows)

    assert [bar.name for bar in figure.data] == ["gpu", "cpu"]
    assert list(figure.data[0].base) == [0.0]
    assert list(figure.data[1].base) == [500.0]
    assert list(figure.data[1].x) == [1500.0]
