"""README.md, the pages of docs and the help: every command line that they show runs, and the Python.

The command lines run as they stand, in the order of README.md, in a folder where the bundled trace's
name means a file with two of its requests.
"""

import re
import shlex
import shutil

import pytest
from command_lines import LEAVES, ROOT, TRACE, examples, name_of

from tidesim.trace.io import load_trace, save_trace

# Each takes a minute or more. command_lines.py has shorter lines of the second to the fourth, and says
# which tests run the others.
DEAR = {
    "tidesim demo",
    "tidesim hardware measure",
    "tidesim plan",
    "tidesim replay",
    "tidesim reproduce",
    "tidesim trace fit",
    "tidesim validate",
}


def lines_of(text):
    """Return the tidesim command lines in an indented block, joined where they go on."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"^ {4}(tidesim .*)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in found]


README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "docs/models.md", "docs/regimes.md")
SHOWN = [line for page in PAGES for line in lines_of((ROOT / page).read_text())]
EXAMPLES = [line for name in LEAVES for line in examples(name)]
PICTURES = (ROOT / "docs" / "screenshots.py").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    for name in ("mine.jsonl", "my-prompts.jsonl"):
        (folder / name).write_text('{"text": "import os"}\n')
    rows = [f"{layer},{expert}" for _ in range(2) for layer in range(1, 5) for expert in range(4)]
    (folder / "moe_trace.csv").write_text("\n".join(rows) + "\n")
    shutil.copy(ROOT / "traces" / "tide-tiny" / "config.json", folder)
    shutil.copy(ROOT / "hwprofiles" / "a100-40gb-pcie4-xeon48.toml", folder / "box.toml")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "grid.toml", folder / "notebooks")
    save_trace(load_trace(TRACE).only((0, 26)), folder / TRACE)
    return folder


@pytest.mark.parametrize("line", SHOWN, ids=" ".join)
def test_every_command_line_shown_parses(line, parsed):
    assert f"tidesim {' '.join(line)}".startswith(parsed(line))


def test_the_readme_shows_most_commands():
    shown = {name_of(line) for line in SHOWN}

    assert len(SHOWN) > 15
    assert shown >= {f"tidesim {name}" for name in ("simulate", "solve", "compare", "validate")}


def test_every_option_that_the_readme_names_is_one():
    options = {option for command in LEAVES.values() for param in command.params
               for option in (*param.opts, *param.secondary_opts)}  # fmt: skip
    named = set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", README))

    assert len(named) > 50
    assert named - options == {
        "--debug",
        "--help",
        "--install-completion",
        "--quiet",
    }  # tidesim's own


def test_every_command_line_of_a_picture_parses_and_is_shown(parsed):
    lines = re.findall(r"^ {8}(tidesim .*)$", PICTURES, re.MULTILINE)

    for line in lines:
        parsed(shlex.split(line)[1:])
        name = name_of(shlex.split(line)[1:])
        assert any(name_of(shown) == name for shown in SHOWN) or name == "tidesim demo"
    assert len(lines) >= 6


@pytest.mark.slow
def test_every_command_line_shown_that_is_not_dear_runs(tidesim, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    lines = [line for line in [*SHOWN, *EXAMPLES] if name_of(line) not in DEAR]
    lines = list(dict.fromkeys(map(tuple, lines)))

    failed = {line: err for line in lines for status, _, err in [tidesim(*line)] if status}

    assert len(lines) > 30
    assert failed == {}


def test_the_python_of_the_readme_runs(capsys, workplace, monkeypatch):
    """Every block by itself."""
    monkeypatch.chdir(workplace)

    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102

    assert len(PYTHON) == 3
    assert capsys.readouterr().out
