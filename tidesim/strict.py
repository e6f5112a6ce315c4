"""Strict parsing shared by the file formats: a frozen base model, and one sentence per error.

A message names the key, the value, the rule and the repair; the caller adds the file.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

Keys = tuple[str, ...]

_UNITS = {
    "_bytes_per_s": "bytes per second",
    "_usd_per_h": "US dollars per hour",
    "_bytes": "bytes",
    "_usd": "US dollars",
    "_s": "seconds",
    "_w": "watts",
    "_factor": "a share above 0 and at most 1",
    "flops_bf16": "floating-point operations per second",
    "cores": "whole cores",
    "cpu_workers": "whole workers",
}
_SUFFIX = re.compile(
    r"_(?:[kmgt]?i?b(?:ytes)?|[kmgt]?bits?|[kmg]?w|watts|usd|eur|[num]?s|sec|h|factor|percent)"
    r"(?P<per>(?:_per_|_|p)(?:s|sec|second|h|hour))?$"
)
_RULES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a whole number",
    "finite_number": "must be finite",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "literal_error": "must be {expected}",
    "string_type": "must be text",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
}
_NO_WORDS: Mapping[str, str] = MappingProxyType({})


class Strict(BaseModel):
    """A frozen table of a file: no unknown key, no conversion, no NaN, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def sentence(
    error: ValidationError,
    model: type[BaseModel],
    *,
    form: str,
    repair: Callable[[ErrorDetails, Keys], str],
    words: Mapping[str, str] = _NO_WORDS,
) -> str:
    """Say the first error of a file as key, value, rule and repair.

    Parameters
    ----------
    error : ValidationError
        What `model` raised.
    model : type of BaseModel
        The whole file.
    form : str
        Format and version, such as ``tidesim-hardware 1``.
    repair : callable
        Says the repair of an error at a path of keys.
    words : mapping of str to str
        The rule by pydantic error type or by regular expression, where this format has its own.
    """
    first = min(error.errors(include_url=False), key=_urgency)
    path = short_keys(first["loc"])
    key = dotted(path)
    value = short(first.get("input"))
    if first["type"] == "extra_forbidden":
        return f"{key} = {value} is no key of {form}; {hint(path[-1], fields_at(model, path[:-1]))}"
    if first["type"] == "missing":
        return f"{key} is missing but needed; add it"
    if not path:  # the caller has just named the file
        return f"{_rule(first, _RULES | dict(words))}; {repair(first, path)}"
    if path == ("version",):
        return f"version is {value} but must be {form.rpartition(' ')[2]}; {repair(first, path)}"
    return f"{key} is {value} but {_rule(first, _RULES | dict(words))}; {repair(first, path)}"


def short_keys(location: Iterable[object]) -> Keys:
    """Return pydantic's path to a value as texts, long keys cut."""
    parts = (str(part) for part in location if part != "[key]")
    return tuple(part if len(part) <= 60 else f"{part[:57]}..." for part in parts)


def dotted(path: Keys) -> str:
    """Write a path of keys for a message."""
    return ".".join(part if part.isprintable() else repr(part) for part in path)


def reason(error: Exception) -> str:
    """Return what a library says of a file, on one line and not too long."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


def unit(key: str) -> str:
    """Name the unit that a key ends in."""
    return next((name for end, name in _UNITS.items() if key.endswith(end)), "the documented form")


def short(value: object) -> str:
    """Write a value for a message; a table that wraps a value is shown by that value."""
    try:
        text = repr(value["value"] if isinstance(value, dict) and "value" in value else value)
    except ValueError:  # an integer too long to print
        return "a huge integer"
    except RecursionError:
        return "something deeply nested"
    return text if len(text) <= 60 else text[:57] + "..."


def hint(key: str, known: list[str]) -> str:
    """Say which of the known keys was probably meant."""
    for candidate in known:
        if _stem(candidate) == _stem(key) or _stem(candidate)[0] == key:
            return f"write {candidate}, in {unit(candidate)}"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]}?"
    section = key.rpartition(".")[0]
    near = [each for each in known if each.rpartition(".")[0] == section] or known
    return f"known are {', '.join(near[:9])}{', …' if len(near) > 9 else ''}"


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model inside an annotation such as ``Gpu``, ``Rate | None``, ``dict[str, X]``."""
    inside = (annotation, *get_args(annotation))
    return next((a for a in inside if isinstance(a, type) and issubclass(a, BaseModel)), None)


def fields_at(model: type[BaseModel], path: Keys) -> list[str]:
    """List the keys allowed in the table at a path of a model."""
    parts = iter(path)
    for part in parts:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part not in fields:
            continue
        annotation = fields[part].annotation
        model = model_of(annotation) or model
        if get_origin(annotation) in {dict, list, tuple}:  # the next part is a name or an index
            next(parts, None)
    return [field.alias or name for name, field in model.model_fields.items()]


def _stem(key: str) -> tuple[str, bool]:
    """Split a key into its name without the unit, and whether the unit is per time."""
    match = _SUFFIX.search(key)
    return (key[: match.start()], bool(match["per"])) if match else (key, False)


def _urgency(error: ErrorDetails) -> tuple[bool, bool]:
    """Order errors: another format or version explains the rest, a misspelt key a missing one."""
    return error["loc"][:1] not in {("format",), ("version",)}, error["type"] != "extra_forbidden"


def _rule(error: ErrorDetails, rules: Mapping[str, str]) -> str:
    context = error.get("ctx", {})
    if error["type"] == "string_pattern_mismatch":
        return rules.get(context["pattern"], error["msg"])
    if error["type"] == "value_error":
        return str(context["error"])
    rule = rules.get(error["type"])
    return rule.format(**context) if rule else error["msg"]
