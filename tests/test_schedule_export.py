"""Schedules in a table, as a schema, and as the settings of the TIDE authors' code."""

import json

import pytest
from test_schedule import made

from tidesim.cli.schedule import picture
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


def test_a_layer_is_drawn_with_a_mark_per_step():
    assert picture((0, 3), 5) == "●··●·"


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


def test_the_schema_is_json_schema(tidesim):
    schema = json.loads(tidesim("schedule", "schema")[1])

    assert schema["type"] == "object"
    assert {"layers", "solver", "promotion"} <= schema["properties"].keys()


def test_a_file_that_is_no_schedule_is_refused(refused, tmp_path):
    (tmp_path / "x.json").write_text("{}")

    assert "x.json" in refused("schedule", "show", tmp_path / "x.json")
    assert "no such schedule file" in refused("schedule", "export", tmp_path / "none.json")
