"""Schedules in a table, as a page, as a schema, and as the settings of the TIDE authors' code."""

import json
import re
from html import escape

import pytest
from rich.console import Console
from test_schedule import content, made

from tidesim.cli import common
from tidesim.cli.schedule import picture
from tidesim.report.schedule_page import schedule_figure
from tidesim.report.schedule_words import first_residents, first_steps, limits
from tidesim.schedule import Schedule, save_schedule
from tidesim.schedule_export import to_tide


def test_a_uniform_schedule_of_that_engine_loses_nothing():
    knobs = to_tide(made(engine="tide-reference"))

    assert (knobs.jump_steps, knobs.max_gpu_experts_per_layer, knobs.lost) == (2, 4, ())


def test_another_engine_is_said():
    (sentence,) = to_tide(made()).lost

    assert "times were predicted for engine tidesim" in sentence


@pytest.mark.parametrize(
    ("layers", "interval", "slots"),
    [
        ([(5, [0]), (3, [0, 1, 2])], 2, 4),  # two refreshes of three steps on average
        ([(4, []), (3, [])], 3, 3),  # never: once per block is as seldom as it gets
        ([(8, [0, 1, 2]), (2, [0, 1, 2])], 1, 5),
    ],
)
def test_layers_that_differ_get_about_as_many_refreshes_and_no_more_slots(layers, interval, slots):
    rows = [{"budget": budget, "refresh_steps": steps} for budget, steps in layers]
    plan = made(interval=None, layers=rows, promotion="background", engine="tide-reference")

    knobs = to_tide(plan)

    assert (knobs.jump_steps, knobs.max_gpu_experts_per_layer) == (interval, slots)
    assert knobs.max_gpu_experts_per_layer * len(rows) <= sum(plan.budgets)
    assert "promotion in the background becomes blocking" in knobs.lost
    assert any("slots, which become" in sentence for sentence in knobs.lost)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"refresh_steps": []}, "1 of 5 layers never refresh; there all do, every 2 steps"),
        ({"refresh_steps": [1]}, "1 of 5 layers refresh first at step 1 of a block, which becomes"),
        ({"refresh_steps": [0]}, "1 of 5 layers refresh at other steps than every 2"),
        ({"most_promotions": 3}, "1 of 5 layers promote at most 3 experts at a refresh; that code"),
        ({"initial": [0, 1, 2, 4]}, "1 of 5 layers have first residents of their own; that code"),
        ({"initial": [0, 1, 2]}, "starts with ids 0 to 3"),
        ({"initial": [0, 1, 2, 3]}, None),  # with which that code starts
    ],
)
def test_each_thing_that_is_lost_has_its_sentence(layer, said):
    usual = {"budget": 4, "refresh_steps": [0, 2]}
    rows = [*[usual] * 4, usual | layer]
    model = content()["model"] | {"moe_layers": 5}
    plan = made(model=model, interval=None, layers=rows, engine="tide-reference")

    lost = to_tide(plan).lost

    assert len(lost) == (said is not None)
    assert said is None or said in lost[0]


def test_limits_and_first_steps_that_differ_are_given_as_a_range():
    rows = [
        {"budget": 4, "refresh_steps": [step], "most_promotions": most}
        for step, most in ((1, 7), (2, 3))
    ]

    lost = to_tide(made(interval=None, layers=rows, engine="tide-reference")).lost

    assert "2 of 2 layers refresh first at step 1 to 2 of a block, which becomes step 0" in lost
    assert any("promote at most 3 to 7 experts" in sentence for sentence in lost)


def test_a_layer_is_drawn_with_a_mark_per_step():
    assert picture((0, 3), 5) == "●··●·"
    assert picture((), 5) == "never"


@pytest.fixture
def file(tmp_path):
    save_schedule(made(), tmp_path / "S.json")
    return tmp_path / "S.json"


def test_the_commands_show_and_export(ok, file):
    shown = ok("schedule", "show", file)
    exported = ok("schedule", "export", file, "--to", "tide")

    assert Schedule.model_validate_json(json.dumps(shown)) == made()
    assert exported.keys() == {"to", "jump_steps", "max_gpu_experts_per_layer", "lost"}


def test_the_table_holds_every_layer(tidesim, file):
    _, text, _ = tidesim("schedule", "show", file)

    assert text.count("●·●") == 2
    assert "tidesim, blocking promotion" in text


def of_all_kinds(layers=31, steps=32):
    """Return a schedule of the largest model: layers of every kind, numbers as wide as they get."""
    model = content()["model"] | {"moe_layers": layers, "num_experts": 256}
    kinds = [
        {"budget": 256, "refresh_steps": []},
        {"budget": 100, "refresh_steps": [], "initial": list(range(1, 101))},
        {"budget": 128, "refresh_steps": list(range(steps)), "most_promotions": 128},
        {"budget": 64, "refresh_steps": [0, 7]},
        {"budget": 2, "refresh_steps": [3, steps - 1], "initial": [8]},
    ]
    rows = [kinds[number % len(kinds)] for number in range(layers)]
    return made(model=model, steps=steps, interval=None, layers=rows)


def test_the_largest_model_fits_80_columns_with_a_line_a_layer(tidesim, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "out", Console(width=80))
    save_schedule(of_all_kinds(), tmp_path / "L.json")

    _, text, _ = tidesim("schedule", "show", tmp_path / "L.json")

    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert all(str(layer) in rows for layer in range(31))
    assert rows["0"] == ["never", "256", "████████", "–", "popular"]
    assert rows["1"] == ["never", "100", "███", "–", "100", "named"]
    assert rows["2"] == ["●" * 32, "128", "████", "≤", "128", "popular"]
    assert rows["3"] == ["●······●" + "·" * 24, "64", "██", "all", "popular"]
    assert rows["4"] == ["···●" + "·" * 27 + "●", "2", "█", "all", "1", "named"]
    assert "0 in 12, 3 in 6, never in 13 layers" in text
    assert "≤ 128 in 6, all in 12 layers" in text
    assert "popular in 19, named in 12 layers" in text


def test_words_count_layers_and_know_the_engines_first_residents():
    never = [{"budget": 4, "refresh_steps": [], "most_promotions": 2}] * 2
    plan = made(interval=None, layers=never, engine="tide-reference")
    one = made(model=content()["model"] | {"moe_layers": 1}, layers=content()["layers"][:1])

    assert first_steps(plan) == "never in 2 layers"
    assert limits(plan) == "none in 0 layers"
    assert first_residents(plan) == "lowest in 2 layers"
    assert first_residents(made(engine="mine")) == "default in 2 layers"
    assert first_steps(one) == "0 in 1 layer"


def test_the_figure_marks_refreshes_by_layer_and_step_and_shows_slots_beside_them():
    plan = of_all_kinds(layers=5, steps=9)

    figure = schedule_figure(plan)

    *cells, slots = figure.data
    drawn = {
        (layer, step): cell.name
        for cell in cells
        for layer, row in enumerate(cell.z)
        for step, value in enumerate(row)
        if value
    }
    assert len(drawn) == sum(value is not None for cell in cells for row in cell.z for value in row)
    assert len(drawn) == 5 * 9
    for layer, row in enumerate(plan.layers):
        for step in range(9):
            limited = ", promotions limited" if row.most_promotions else ""
            refreshed = f"refresh{limited}" if step in row.refresh_steps else "no refresh"
            assert drawn[layer, step] == (refreshed if row.refresh_steps else "never refreshes")
    assert tuple(slots.x) == plan.budgets
    assert tuple(slots.text) == ("", "", "≤ 128", "", "")
    assert slots.xaxis == "x2"


def test_show_also_writes_a_page_that_needs_nothing_else(tidesim, ok, tmp_path):
    evil, file, page = "<b>evil</b>", tmp_path / "S.json", tmp_path / "S.html"
    save_schedule(made(trace={"name": evil, "sha256": "a" * 64, "provenance": "synthetic"}), file)

    _, text, _ = tidesim("schedule", "show", file, "--out", page)
    shown = ok("schedule", "show", file, "--out", page)

    assert f"the page is {page}" in text
    assert shown["steps"] == 3
    outside = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert "Plotly.newPlot" in page.read_text()
    assert not re.search(r'(src|href)="http', outside)
    assert evil not in page.read_text()
    assert f"{escape(evil)} (synthetic), sha256 {'a' * 64}" in outside
    assert "Every 2 steps." in outside
    assert "10 tokens/s on the requests it was made from and 10 on held-out ones" in outside


def test_show_refuses_to_write_over_the_schedule_or_where_nothing_can_be(refused, file, tmp_path):
    before = file.read_bytes()

    assert "is the schedule itself" in refused("schedule", "show", file, "--out", file)
    assert "cannot be written" in refused(
        "schedule", "show", file, "--out", tmp_path / "none" / "S.html"
    )
    assert file.read_bytes() == before


def test_the_schema_is_json_schema(tidesim):
    schema = json.loads(tidesim("schedule", "schema")[1])

    assert schema["type"] == "object"
    assert {"layers", "solver", "promotion"} <= schema["properties"].keys()


def test_a_file_that_is_no_schedule_is_refused(refused, tmp_path):
    (tmp_path / "x.json").write_text("{}")

    assert "x.json" in refused("schedule", "show", tmp_path / "x.json")
    assert "no such schedule file" in refused("schedule", "export", tmp_path / "none.json")
