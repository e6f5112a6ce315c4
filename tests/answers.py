"""Answers of the commands, held against docs/json.md."""

import json
import re
import runpy
from pathlib import Path

from jsonschema import Draft202012Validator

PAGE = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "schemas.py"))
SCHEMAS = PAGE["schemas"]()
OBJECTS = SCHEMAS["$defs"]


def object_of(line):
    """Return the page's name for the answer of a command line."""
    words = [str(word) for word in line if not str(word).startswith("-")]
    names = ("-".join(["tidesim", *words[:count]]) for count in (2, 1))
    return next(name for name in names if name in OBJECTS)


def check(line, answer):
    """Raise where an answer is not what the page says of its command."""
    schema = SCHEMAS | {"$ref": f"#/$defs/{object_of(line)}"}
    faults = Draft202012Validator(schema).iter_errors(answer)
    told = [f"{fault.json_path}: {fault.message[:200]}" for fault in faults]
    if told:
        raise AssertionError(f"docs/json.md says otherwise of {line}: {'; '.join(told)}")


def unmet(answers):
    """Return the page's keys, as (object, key), to which no answer of these gives a value.

    `answers` are answers by command line; looked at are the objects that such answers may hold.
    """
    names = list(dict.fromkeys(map(object_of, answers)))
    for name in names:  # grows while it is walked
        held = re.findall(r'#/\$defs/([a-z-]+)"', json.dumps(OBJECTS[name]))
        names += [other for other in dict.fromkeys(held) if other not in names]
    met = {key for line, answer in answers.items() for key in _keys(object_of(line), answer)}
    return {(name, key) for name in names for key in OBJECTS[name].get("properties", ())} - met


def _keys(name, answer):
    """Yield every key of an object that has a value, as (object, key), and those within."""
    for key, schema in OBJECTS[name].get("properties", {}).items():
        if answer.get(key) is not None:
            yield name, key
            yield from _keys_within(schema, answer[key])


def _keys_within(schema, value):
    within = schema.get("items") or schema.get("additionalProperties")
    if "anyOf" in schema and value is not None:
        yield from _keys_within(schema["anyOf"][0], value)
    elif "$ref" in schema:
        yield from _keys(schema["$ref"].removeprefix("#/$defs/"), value)
    elif within:
        for each in value.values() if isinstance(value, dict) else value:
            yield from _keys_within(within, each)
