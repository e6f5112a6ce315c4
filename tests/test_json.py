"""Answers as JSON: what docs/json.md says of them, to the last key, is so."""

import io
import json
import re
import sys
from contextlib import nullcontext, redirect_stdout

import answers
import pytest
from command_lines import DEAR, LEAVES, LINES, ROOT, documented_keys, furnish, name_of
from jsonschema import Draft202012Validator

from tidesim import cli


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """Return the answer of every cheap command line, by line."""
    folder = tmp_path_factory.mktemp("json")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return {line: answer(patch, line) for line in LINES}


def answer(patch, line):
    patch.setattr(sys, "argv", ["tidesim", *line, "--json"])
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code, line
    return json.loads(out.getvalue())


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_answer_is_what_the_page_of_json_says(line, answered):
    answers.check(line, answered[line])


def test_the_page_of_json_holds_no_key_that_never_has_a_value(answered):
    assert answers.unmet(answered) == {("verification", "hidden_error")}  # on a GPU


def test_the_page_of_json_holds_no_object_that_is_in_no_answer():
    page = (ROOT / "docs" / "json.md").read_text()
    linked = set(re.findall(r"\[([a-z ]+)\]\(#", page))

    assert set(answers.PAGE["glossary"]()) == linked | LEAVES.keys()


@pytest.mark.parametrize("name", LEAVES)
def test_a_commands_help_names_the_keys_of_the_page_of_json(name):
    keys = answers.OBJECTS[name.replace(" ", "-")]

    if name != "tidesim schedule schema":  # a schema itself
        assert documented_keys(name) == (set(keys["required"]), set(keys["properties"]))


UNIT_OF = {
    "_s": "s", "_ms": "ms", "_bytes": "bytes", "_gb": "GB", "_gib": "GiB", "_rate": "share",
    "_ratio": "share", "_usd": "USD", "_per_s": "(bytes|tokens|points)/s", "_per_h": "USD/h",
    "_per_kwh": "USD/kWh", "_per_mtoken": "(USD|Wh)/Mtoken",
}  # fmt: skip


def test_keys_that_end_in_a_unit_have_that_unit():
    seen = {}
    for name, keys in answers.PAGE["glossary"]().items():
        for key, (_, unit, _) in keys.items():
            ending = max((end for end in UNIT_OF if key.endswith(end)), key=len, default=None)
            if ending is not None:
                seen[name, key] = bool(re.fullmatch(UNIT_OF[ending], unit))

    assert len(seen) > 50
    assert [key for key, fits in seen.items() if not fits] == []


def test_the_schema_of_the_answers_is_what_the_page_of_json_says():
    published = json.loads((ROOT / "docs" / "json.schema.json").read_text())

    Draft202012Validator.check_schema(published)
    assert published == answers.SCHEMAS, "run make docs"


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"to": "tide", "jump_steps": 2, "max_gpu_experts_per_layer": 16, "lost": []}, None),
        ({"to": "tide", "jump_steps": 2, "max_gpu_experts_per_layer": 16}, "'lost' is a required"),
        ({"to": "tide", "jump_steps": "2", "max_gpu_experts_per_layer": 16, "lost": []}, "'2' is"),
        ({"to": "tide", "jump_steps": 2, "max_gpu_experts_per_layer": 16, "lost": [], "new": 1}, "new"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_as_documented_is_found_out(said, wrong):
    with nullcontext() if wrong is None else pytest.raises(AssertionError, match=wrong):
        answers.check(("schedule", "export", "s.json"), said)


def test_every_command_is_run_for_its_keys():
    assert {name_of(line) for line in LINES} | DEAR == LEAVES.keys()
