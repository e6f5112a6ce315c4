"""The examples in docstrings run, and what a user of the Python API meets has one."""

import ast
import doctest
import re
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parents[1]
README = "\n".join(
    re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
)
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path.read_text()
    for package in ("solver", "tidesim")
    for path in sorted((ROOT / package).rglob("*.py"))
}
MODULES = [name for name, text in SOURCES.items() if ">>> " in text]
# What a user meets beside what the packages' __all__ and README.md name.
ENTRIES = {
    "tidesim.compare": ("compare",),
    "tidesim.critical_path": ("critical_path",),
    "tidesim.memory": ("budget_for", "plan", "request_extent"),
    "tidesim.regimes": ("regime_map",),
    "tidesim.runtime.capture": ("capture",),
    "tidesim.schedule": ("load_schedule", "save_schedule"),
    "tidesim.sensitivity": ("sensitivity",),
    "tidesim.timeline": ("load_timeline", "save_timeline"),
    "tidesim.trace.info": ("trace_info",),
    "tidesim.trace.io": ("check_trace", "save_trace"),
    "tidesim.trace.stats": ("trace_stats",),
    "tidesim.trace.synth.generate": ("synthesize",),
    "tidesim.trace.synth.parameters": ("load_parameters",),
}


def named_in(text):
    """Return what Python imports from these packages, as (module, name)."""
    return {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        and str(node.module).split(".")[0] in {"solver", "tidesim"}
        for alias in node.names
    }


def public_functions():
    """Return every function of the Python API, by its full name."""
    listed = {
        name: import_module(name).__all__
        for name, text in SOURCES.items()
        if re.search(r"^__all__ =", text, re.MULTILINE)
    }
    places = {(at, name) for at, names in (listed | ENTRIES).items() for name in names}
    places |= named_in(README)
    found = (getattr(import_module(module), name) for module, name in sorted(places))
    return {f"{each.__module__}.{each.__name__}": each for each in found
            if isinstance(each, FunctionType)}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    done = doctest.testmod(import_module(name))

    assert done.attempted > 0
    assert done.failed == 0


def test_every_function_that_a_user_meets_has_an_example():
    functions = public_functions()
    in_readme = {f"{module}.{name}" for module, name in named_in(README)}

    bare = {name for name, each in functions.items() if ">>> " not in each.__doc__}

    assert len(functions) > 40
    assert bare - in_readme == set()  # tests/test_readme.py runs its Python


def test_every_example_shows_what_it_gives():
    """An example whose last statement gives nothing cannot fail by its answer."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for name in MODULES for test in finder.find(import_module(name)) if test.examples]

    assert len(tests) > 40
    assert [test.name for test in tests if not test.examples[-1].want] == []
