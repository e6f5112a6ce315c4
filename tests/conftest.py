import json
import os
import sys
from functools import partial

import answers
import command_lines
import pytest
import typer.main
from hypothesis import settings

from tidesim import cli

# The models here are small: one thread computes them as fast as many, and where other work runs
# on the machine, many wait for each other. Set before anything imports torch; commands that the
# tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines that run these tests are shared: a slow example is no failure.
# The same examples every time; `--hypothesis-profile explore` looks for new ones, and `fuzz` does
# in test_fuzz.py, many.
settings.register_profile("tidesim", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.register_profile("fuzz", deadline=None)
settings.load_profile("tidesim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an NVIDIA GPU on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch  # noqa: PLC0415 (heavy, and seldom needed here)

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def tidesim(monkeypatch, capsys):
    """Run a command line in this process; return (status, stdout, stderr).

    An answer as JSON must be what docs/json.md says.
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tidesim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured, status = capsys.readouterr(), stopped.value.code or 0
        if "--json" in arguments and captured.out:
            answers.check(arguments, json.loads(captured.out))
        return status, captured.out, captured.err

    return run


@pytest.fixture
def parsed(tidesim, monkeypatch):
    """Parse a command line without running it; return the name of its command."""
    called = []

    def record(which, /, **_):
        called.append(which)

    app = typer.main.get_command(cli.app)
    for name, command in command_lines.DOCS["leaves"](app, "tidesim"):
        monkeypatch.setattr(command, "callback", partial(record, name))
    monkeypatch.setattr(cli, "app", app)

    def parse(line):
        status, _, err = tidesim(*line)
        assert status == 0, err
        return called.pop()

    return parse


@pytest.fixture
def ok(tidesim):
    """Run a command with --json that must work; return its answer."""

    def run(*arguments):
        status, out, err = tidesim(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def refused(tidesim):
    """Run a command that must be refused in one sentence; return the sentence."""

    def run(*arguments):
        status, out, err = tidesim(*arguments)
        assert status == 2
        assert out == ""
        assert "Traceback" not in err
        assert err.startswith("tidesim: ")
        assert len(err.strip().splitlines()) == 1
        return err

    return run
