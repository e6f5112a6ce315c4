"""The import rules of docs/architecture.md, read from the sources as a graph of modules."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tidesim", "solver")

# From top to bottom: a part of tidesim imports parts of lower tiers, never of its own or a higher.
TIERS: tuple[set[str], ...] = (
    {"cli"},
    {"demo"},
    {"report", "harness"},
    {"regimes", "reproduce", "sensitivity", "whatif"},
    {"validate", "calibrate", "configurations", "plan", "sweep", "compare"},
    {"contest", "reference_runs", "variants"},
    {"optimize"},
    {"closed_form"},
    {"costs"},
    {"simulate", "runtime"},
    {"policies"},
    {"measured_io"},
    {"timeline", "critical_path", "measured"},
    {"placement", "records"},
    {"schedule_export"},
    {"engines", "hardware_write", "latency", "memory", "overrides", "schedule"},
    {"gpu_work", "hardware", "trace"},
    {"hardware_schema", "model_spec"},
    {"known_models", "model_config", "processes", "resources", "strict"},
    {"errors", ""},  # "" is tidesim/__init__.py: the version, no imports
)
# Who may import what others may not.
OWNERS: dict[str, tuple[str, ...]] = {
    "distributed": ("tidesim.sweep",),
    "plotly": ("tidesim.report",),
    "pulp": ("solver",),
    "simpy": ("tidesim.simulate",),
    "solver": ("solver", "tidesim.optimize", "tidesim.closed_form"),
    "torch": ("tidesim.runtime",),
    "typer": ("tidesim.cli", "tidesim.runtime.training"),
    "importlib": (),  # a module imported by its name would escape these rules
}
SOLVER_MAY_IMPORT = {"numpy", "pulp", "solver", *sys.stdlib_module_names}
# Slow to import: an import inside a function is allowed where it defers one of these.
HEAVY = {"distributed", "networkx", "pandas", "plotly", "pulp", "torch"}


class Import(NamedTuple):
    target: str
    deferred: bool  # runs when a function is called
    typing: bool  # never runs


def imports(node: ast.AST, *, deferred: bool = False, typing: bool = False) -> Iterator[Import]:
    """Yield what a piece of source imports; ``from a import b`` as ``a.b``."""
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, deferred, typing) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (Import(f"{node.module}.{a.name}", deferred, typing) for a in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from imports(child, deferred=deferred, typing=True)
        for child in node.orelse:
            yield from imports(child, deferred=deferred, typing=typing)
    else:
        deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from imports(child, deferred=deferred, typing=typing)


def read_graph(root: Path) -> nx.MultiDiGraph:
    """Build the graph: our modules by dotted name, everything else by its first name."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    modules = {_dotted(path.relative_to(root)): path for path in paths}
    graph = nx.MultiDiGraph()
    for module, path in modules.items():
        graph.add_node(module)
        for found in imports(ast.parse(path.read_text(encoding="utf-8"))):
            target = _resolve(found.target, set(modules))
            graph.add_edge(module, target, deferred=found.deferred, typing=found.typing)
    return graph


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _resolve(name: str, modules: set[str]) -> str:
    if name.partition(".")[0] not in PACKAGES:
        return name.partition(".")[0]
    return name if name in modules else name.rpartition(".")[0]


def _inside(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _part(module: str) -> str:
    return f"{module}.".split(".")[1]


# ── the rules: each lists what breaks it ─────────────────────────────────────────────────────────


def upward(graph: nx.MultiDiGraph) -> list[str]:
    """List imports between parts of tidesim that do not point down."""
    tiers = {part: height for height, parts in enumerate(TIERS) for part in parts}
    ours = sorted(module for module in graph if _inside(module, "tidesim"))
    unknown = [f"{module}: no tier" for module in ours if _part(module) not in tiers]
    return unknown or [
        f"{source} -> {target}"
        for source, target in dict.fromkeys(graph.subgraph(ours).edges())
        if _part(source) != _part(target) and tiers[_part(source)] >= tiers[_part(target)]
    ]


def cycles(graph: nx.MultiDiGraph) -> list[str]:
    """List groups of modules that import each other, deferred and typing imports included."""
    groups = [sorted(group) for group in nx.strongly_connected_components(graph)]
    return [" <-> ".join(group) for group in sorted(groups) if len(group) > 1]


def trespassing(graph: nx.MultiDiGraph) -> list[str]:
    """List imports of something that another part owns, or that the solver may not see."""
    return [
        f"{source} -> {target}"
        for source, target in dict.fromkeys(graph.edges())
        if not any(_inside(source, owner) for owner in OWNERS.get(_top(target), PACKAGES))
        or (_inside(source, "solver") and _top(target) not in SOLVER_MAY_IMPORT)
    ]


def needlessly_deferred(graph: nx.MultiDiGraph) -> list[str]:
    """List imports inside functions that defer nothing heavy, and so may hide a cycle."""
    return [
        f"{source} -> {target}"
        for source, target, deferred in graph.edges(data="deferred")
        if deferred and not HEAVY & loaded(graph, target)
    ]


def loaded(graph: nx.MultiDiGraph, module: str) -> set[str]:
    """Return what importing a module loads: its imports, their packages, and so on."""
    runs = nx.DiGraph(
        (a, b) for a, b, d in graph.edges(data=True) if not d["deferred"] | d["typing"]
    )
    runs.add_nodes_from(graph)
    for name in list(runs):
        if "." in name:
            runs.add_edge(name, name.rpartition(".")[0])
    return {module} | nx.descendants(runs, module)


def _top(module: str) -> str:
    return module.partition(".")[0]


@pytest.fixture(scope="module")
def graph() -> nx.MultiDiGraph:
    return read_graph(ROOT)


@pytest.mark.parametrize("rule", [upward, cycles, trespassing, needlessly_deferred])
def test_the_sources_keep_the_rule(rule, graph: nx.MultiDiGraph) -> None:
    assert rule(graph) == []


def test_the_tiers_are_those_of_the_documentation(graph: nx.MultiDiGraph) -> None:
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    documented = [set(re.findall(r"`(\w+)", row)) for row in rows]
    present = {_part(module) for module in graph if _inside(module, "tidesim")} - {""}

    assert documented == [tier & present for tier in TIERS if tier & present]


def test_the_graph_holds_the_whole_project(graph: nx.MultiDiGraph) -> None:
    assert {"tidesim", "tidesim.errors", "solver", "solver.problem", "torch", "pulp"} <= set(graph)
    assert graph.has_edge("tidesim.hardware", "tidesim.errors")


@pytest.mark.parametrize(
    ("rule", "sources", "broken"),
    [
        (upward, {"trace/io": "from tidesim import cli", "cli": ""}, "tidesim.trace.io -> tidesim.cli"),
        (upward, {"simulate": "import tidesim.runtime", "runtime/__init__": ""},
         "tidesim.simulate -> tidesim.runtime"),
        (upward, {"runtime": "def f():\n  from tidesim.simulate import x", "simulate": ""},
         "tidesim.runtime -> tidesim.simulate"),
        (upward, {"helpers": ""}, "tidesim.helpers: no tier"),
        (cycles, {"trace/a": "import tidesim.trace.b", "trace/b": "from tidesim.trace import a"},
         "tidesim.trace.a <-> tidesim.trace.b"),
        (cycles, {"trace/a": "import tidesim.trace.b",
                  "trace/b": "if TYPE_CHECKING:\n  from tidesim.trace.a import A"},
         "tidesim.trace.a <-> tidesim.trace.b"),
        (trespassing, {"cli": "def f():\n  import torch.nn"}, "tidesim.cli -> torch"),
        (trespassing, {"cli": "if TYPE_CHECKING:\n  from torch import Tensor"}, "tidesim.cli -> torch"),
        (trespassing, {"optimize": "import pulp"}, "tidesim.optimize -> pulp"),
        (trespassing, {"trace/io": "import simpy"}, "tidesim.trace.io -> simpy"),
        (trespassing, {"compare": "from solver import solve"}, "tidesim.compare -> solver"),
        (trespassing, {"demo": "from importlib import import_module"}, "tidesim.demo -> importlib"),
        (trespassing, {"../solver/a": "import scipy"}, "solver.a -> scipy"),
        (trespassing, {"../solver/a": "import tidesim.errors", "errors": ""},
         "solver.a -> tidesim.errors"),
        (needlessly_deferred, {"cli": "def f():\n  import json"}, "tidesim.cli -> json"),
        (needlessly_deferred,
         {"cli": "def f():\n  import tidesim.runtime.a",
          "runtime/a": "def f():\n  import torch\nif TYPE_CHECKING:\n  import pandas"},
         "tidesim.cli -> tidesim.runtime.a"),
    ],
)  # fmt: skip
def test_the_rule_finds_a_bad_import(
    tmp_path: Path, rule, sources: dict[str, str], broken: str
) -> None:
    write_sources(tmp_path, {"__init__": ""} | sources)

    assert rule(read_graph(tmp_path)) == [broken]


def test_an_import_may_be_deferred_where_it_loads_something_heavy(tmp_path: Path) -> None:
    write_sources(
        tmp_path,
        {
            "cli": "def f():\n  from tidesim.runtime.a import x\n  import pandas",
            "runtime/__init__": "import tidesim.runtime.b",
            "runtime/a": "",
            "runtime/b": "import torch",
        },
    )

    assert needlessly_deferred(read_graph(tmp_path)) == []


def write_sources(root: Path, sources: dict[str, str]) -> None:
    for name, text in sources.items():
        path = root / "tidesim" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("module", "absent"), [("tidesim", HEAVY), ("tidesim.cli", HEAVY - {"pulp"})]
)
def test_an_import_is_light(module: str, absent: set[str]) -> None:
    """Nothing heavy is loaded: that, not a stopwatch, is what keeps the start fast."""
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=60
    )

    assert absent & set(json.loads(done.stdout)) == set()


def test_the_declared_dependencies_are_the_imported_ones(graph: nx.MultiDiGraph) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dask"]]
    imported = {name for name in graph if "." not in name} - {*PACKAGES, *sys.stdlib_module_names}
    imported.discard("pydantic_core")  # a part of pydantic with a wheel of its own
    imported.add("highspy")  # imported by PuLP, which does not ask for it

    owners = packages_distributions()

    assert {re.split(r"[<>=]", text)[0] for text in declared} == {
        owners[name][0].lower() for name in imported
    }
