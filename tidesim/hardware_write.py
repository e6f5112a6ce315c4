"""Write a hardware profile as the TOML file that `tidesim.hardware.load_profile` reads."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tidesim.hardware import HardwareProfile
from tidesim.resources import write_text

_LAST = ("seconds", "source", "kind")  # of a curve, after its sizes and its grid
_PER_LINE = 8  # seconds of a curve over one axis


def save_profile(profile: HardwareProfile, path: str | Path) -> None:
    """Write a profile whole or not at all; loading it gives the same content.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_text(path, to_toml(profile))


def to_toml(profile: HardwareProfile) -> str:
    """Return a profile as TOML: one number a line, one table per section and curve."""
    head = f"format = {_text(profile.format)}\nversion = {profile.version}\n"
    content = profile.model_dump(by_alias=True, exclude_none=True, exclude={"format", "version"})
    curves = content.pop("curves")
    copies = {f"copy.{name}": curve for name, curve in curves.pop("copy").items()}
    engines = {f"engine.{name}": costs for name, costs in content.pop("engine").items()}
    sections = {name: section for name, section in (content | engines).items() if section}
    parts = [head, *(_section(name, section) for name, section in sections.items())]
    parts += [_section(f"curves.{name}", curve) for name, curve in (copies | curves).items()]
    return "\n".join(parts)


def _section(name: str, section: Mapping[str, Any]) -> str:
    return "\n".join([f"[{name}]", *_lines(section)]) + "\n"


def _lines(section: Mapping[str, Any]) -> Iterator[str]:
    for key, value in sorted(section.items(), key=lambda item: item[0] in _LAST):
        if key == "seconds":
            yield from _seconds(value, section)
        elif value not in ("", False):  # a machine without a note, or with two memories
            yield f"{key} = {_value(value)}"


def _seconds(values: tuple[float, ...], curve: Mapping[str, Any]) -> Iterator[str]:
    """Write a curve's seconds, a line for each point of its first axis if it has two."""
    axes = [axis for axis in curve.values() if isinstance(axis, tuple) and axis is not values]
    width = len(axes[-1]) if len(axes) > 1 else _PER_LINE
    yield "seconds = ["
    for start in range(0, len(values), width):
        yield f"  {', '.join(map(_number, values[start : start + width]))},"
    yield "]"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_value(item)}' for key, item in value.items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_number, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return _text(value) if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Write a number as short as it reads back the same."""
    short = f"{value:.6g}"
    return short if float(short) == value else repr(value)


def _text(text: str) -> str:
    """Write a TOML basic string: JSON's, which leaves only DEL unescaped that TOML forbids."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
