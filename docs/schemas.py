"""Print docs/json.schema.json, the JSON Schema of every answer, from docs/json.md: ``make docs``."""

import json
import re
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).with_name("json.md")
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_ALL_KEYS = re.compile(r"^All keys of \[([^]]+)\]", re.MULTILINE)
_ROW = re.compile(r"^\| (?!key \|)([a-z0-9_]+) \| (.+?) \| (.*?) ?\| (.+?) \|$", re.MULTILINE)
_TYPES = {"text": "string", "integer": "integer", "number": "number", "flag": "boolean"}


def glossary() -> dict[str, dict[str, tuple[str, str, str]]]:
    """Return every object of the page: keys with their type, unit and meaning."""
    parts = _SECTION.split(_PAGE.read_text(encoding="utf-8"))[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))

    def keys(name: str) -> dict[str, tuple[str, str, str]]:
        found = {}
        for other in _ALL_KEYS.findall(texts[name]):
            found |= keys(other)
        return found | {key: tuple(rest) for key, *rest in _ROW.findall(texts[name])}

    return {name: keys(name) for name in texts}


def schema_of(words: str, unit: str = "") -> dict[str, Any]:
    """Return the JSON Schema of a type as the page writes it."""
    head, _, rest = words.partition(" ")
    if head == "null":
        return {"anyOf": [schema_of(rest.removeprefix("or "), unit), {"type": "null"}]}
    if head == "optional":
        return schema_of(rest, unit)
    if head == "list":
        return {"type": "array", "items": schema_of(rest.removeprefix("of "), unit)}
    if head == "map":
        return {"type": "object", "additionalProperties": schema_of(rest.removeprefix("of "), unit)}
    if words.startswith("["):
        return {"$ref": f"#/$defs/{words[1 : words.index(']')].replace(' ', '-')}"}
    if words == "any":
        return {}
    least = {} if unit in ("", "relative") else {"minimum": 0}
    most = {"maximum": 1.000001} if unit == "share" else {}  # sums round
    return {"type": _TYPES[words]} | least | most


def schemas() -> dict[str, Any]:
    """Return one JSON Schema with a definition per command and object of the page."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Answers of tidesim's commands with --json",
        "$defs": {name.replace(" ", "-"): _object(keys) for name, keys in glossary().items()},
    }


def _object(keys: dict[str, tuple[str, str, str]]) -> dict[str, Any]:
    if not keys:  # tidesim schedule schema: a schema of its own
        return {"type": "object"}
    return {
        "type": "object",
        "properties": {
            key: {"description": f"{meaning} ({unit})" if unit else meaning}
            | schema_of(words, unit)
            for key, (words, unit, meaning) in keys.items()
        },
        "required": [key for key, (words, *_) in keys.items() if "optional" not in words],
        "additionalProperties": False,
    }


if __name__ == "__main__":
    print(json.dumps(schemas(), indent=1, ensure_ascii=False))  # noqa: T201
