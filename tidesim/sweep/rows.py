"""Rows: what a sweep says of every point, as the columns of a Parquet file.

The columns of a point are the values it was asked for, then one column per key of the grid's
overrides (null where the machine keeps its own), then the columns of a result. A key whose values
are all numbers has a column of numbers. Where one is a text, such as ``x1.5``, its column holds texts
as the grid writes them, and numbers as ``str`` does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

import tidesim
from tidesim.optimize import Optimised
from tidesim.records import Resource
from tidesim.simulate import SimulationResult
from tidesim.sweep.grid import Grid, Point

FORMAT = "tidesim-sweep"
VERSION = 1

Row = dict[str, Any]

_POINT = {
    "point": pa.int64(),
    "trace": pa.string(),
    "sizes": pa.string(),
    "hardware": pa.string(),
    "engine": pa.string(),
    "budget": pa.int64(),
    "memory_gb": pa.float64(),
    "promotion": pa.string(),
    "policy": pa.string(),
    "interval": pa.int64(),
    "formulation": pa.string(),
}
_TEXTS = ("bottleneck", "provenance", "trace_sha256", "profile_sha256")
_COUNTS = (
    "tokens", "blocks", "steps", "passes", "hits", "misses", "promotions", "evictions", "streams",
    "refreshes", "h2d_bytes", "d2h_bytes",
)  # fmt: skip
_NUMBERS = (
    "tokens_per_s", "seconds_per_block", "seconds", "hit_rate", "exposed_copy_s", "exposed_cpu_s",
    "host_sync_s",
)  # fmt: skip
_STEPS = ("p50", "p90", "p99")
_WAITED = ("gpu", "link", "cpu", "host")
RESULT = {
    "digest": pa.string(),
    "error": pa.string(),
    "requests": pa.string(),
    **dict.fromkeys(_NUMBERS, pa.float64()),
    **{f"step_{name}_ms": pa.float64() for name in _STEPS},
    **dict.fromkeys(_COUNTS, pa.int64()),
    **{f"waited_{name}": pa.float64() for name in _WAITED},
    **{f"busy_{resource}": pa.float64() for resource in Resource},
    **dict.fromkeys(_TEXTS, pa.string()),
    "slots": pa.int64(),
    "memory_bytes": pa.int64(),
    "ran_interval": pa.int64(),
    "ran_promotion": pa.string(),
    "is_limit": pa.bool_(),
    "solver_status": pa.string(),
    "objective_s": pa.float64(),
    "bound_s": pa.float64(),
    "gap": pa.float64(),
    "solver_seconds": pa.float64(),
    "computed_s": pa.float64(),
    "tool_version": pa.string(),
}


def schema_of(grid: Grid) -> pa.Schema:
    """Return the columns of a grid's sweep."""
    columns = _POINT | _override_columns(grid) | RESULT
    return pa.schema(
        list(columns.items()),
        metadata={"format": FORMAT, "version": str(VERSION), "tool_version": tidesim.__version__},
    )


def _override_columns(grid: Grid) -> dict[str, pa.DataType]:
    columns: dict[str, pa.DataType] = {}
    for key, values in (item for table in grid.overrides for item in table.items()):
        if columns.get(key) != pa.string():
            texts = any(isinstance(value, str) for value in values)
            columns[key] = pa.string() if texts else pa.float64()
    return columns


def point_row(point: Point) -> Row:
    """Return what a point was asked for."""
    row = asdict(point)
    return row | dict(row.pop("overrides"))


def result_row(result: SimulationResult, *, requests: str) -> Row:
    """Return what a simulation says; `requests` names the split it ran on."""
    names = (*_NUMBERS, *_COUNTS, *_TEXTS)
    return {
        "requests": requests,
        **{name: getattr(result, name) for name in names},
        **{f"step_{name}_ms": value for name, value in result.step_ms.items()},
        **{f"waited_{name}": value for name, value in result.waited.items()},
        **{f"busy_{name}": value for name, value in result.busy.items()},
        "slots": sum(result.budgets),
        "memory_bytes": result.memory.total_bytes,
        "ran_interval": result.interval,
        "ran_promotion": result.promotion,
        "is_limit": result.is_bound or result.knows_future,
        "tool_version": tidesim.__version__,
    }


def solver_row(solved: Optimised) -> Row:
    """Return what the solver says of a schedule."""
    solution = solved.solution
    return {
        "solver_status": str(solution.status),
        "objective_s": solution.objective_s,
        "bound_s": solution.bound_s,
        "gap": solution.gap,
        "solver_seconds": solution.seconds,
    }


def table_of(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    """Return rows as a table; a column that a row lacks is null."""
    texts = [field.name for field in schema if field.type == pa.string()]
    return pa.Table.from_pylist([row | _written(row, texts) for row in rows], schema=schema)


def _written(row: Row, names: Iterable[str]) -> Row:
    """Return the numbers among some columns as texts: overrides that others write as a text."""
    return {name: str(row[name]) for name in names if isinstance(row.get(name), float)}


def results_in(table: pa.Table) -> list[Row]:
    """Return the results of a table, one row each."""
    kept: Sequence[str] = [name for name in RESULT if name in table.column_names]
    rows: list[Row] = table.select(kept).to_pylist()
    return rows
