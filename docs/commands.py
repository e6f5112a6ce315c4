"""Print docs/commands.md from the commands themselves: ``make docs``."""

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main

from tidesim import cli

_HEAD = """# Commands

Made from the commands themselves by `make docs`; a test compares. Every command prints text, or with
`--json` one JSON object with the keys listed under it; [json.md](json.md) has their types, units and
meanings. Status 0 is done, 1 a check that failed, 2 wrong input, said in one sentence on stderr, 3 a
fault of tidesim.
"""


def leaves(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with its full name."""
    for part, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{name} {part}")
        else:
            yield f"{name} {part}", command


def page() -> str:
    """Return the whole page."""
    root = typer.main.get_command(cli.app)
    sections = [_HEAD, "## tidesim\n", _options(root)]
    for name, command in leaves(root, "tidesim"):
        sections += [f"## {name}\n", _usage(name, command), _about(command), _options(command)]
    return "\n".join(sections)


def _usage(name: str, command: Any) -> str:
    places = [param.metavar for param in command.params if param.param_type_name == "argument"]
    return f"    {' '.join([name, *places, '[OPTIONS]'])}\n"


def _about(command: Any) -> str:
    """Return the docstring: a sentence, examples as commands, JSON keys as code."""
    paragraphs = []
    for text in inspect.cleandoc(command.help).replace("\f", "").split("\n\n"):
        line = " ".join(text.split())
        head, _, rest = line.partition(": ")
        if head == "Example":
            line = f"    {rest}"
        elif head == "JSON":
            required, _, optional = rest.rstrip(".").partition("; ")
            line = f"JSON: {_codes(required)}"
            when, _, keys = optional.partition(": ")
            line += f"; {when}: {_codes(keys)}." if optional else "."
        paragraphs.append(line + "\n")
    return "\n".join(paragraphs)


def _codes(keys: str) -> str:
    return ", ".join(f"`{key}`" for key in keys.split(", "))


def _options(command: Any) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for param in command.params:
        if param.param_type_name == "argument":
            names = f"`{param.metavar}`"
        else:
            word = param.opts[0].rpartition("-")[2].upper()
            value = "" if param.is_flag else f" {param.metavar or word}"
            names = " / ".join(f"`{each}{value}`" for each in [*param.opts, *param.secondary_opts])
        rows.append(f"| {names.replace('|', chr(92) + '|')} | {_meaning(param)} |")
    return "\n".join(rows) + "\n"


def _meaning(param: Any) -> str:
    words = (param.help or "").replace("|", "\\|")
    if param.required:
        return f"{words} Required."
    default = getattr(param.default, "value", param.default)
    if param.multiple:
        return f"{words} May be repeated."
    if isinstance(default, bool) or default in (None, "") or callable(default):
        return words
    return f"{words} Default: `{default}`."


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
