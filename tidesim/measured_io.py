"""Measured runs as files (``tidesim-measured`` 1, Parquet).

One row per record; the schema metadata keys ``format``, ``version`` and ``run``, everything else of
a `MeasuredRun` as JSON.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tidesim.errors import FormatError, NotFoundError
from tidesim.measured import Counters, MeasuredRun
from tidesim.records import Record, Records, Resource
from tidesim.resources import atomic_path
from tidesim.strict import Strict, reason, sentence
from tidesim.trace.passes import Kind, PassKey

FORMAT = "tidesim-measured"
VERSION = 1

_TYPES = {
    "resource": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "label": pa.string(),
    "request": pa.int64(),
    "block": pa.int64(),
    "step": pa.int64(),
    "layer": pa.int64(),
    "experts": pa.int64(),
    "num_bytes": pa.int64(),
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TYPES.items()])

_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0)]
_Lines = Field(strict=False, min_length=1)  # a list in the file, a tuple here


class _Counters(Strict):
    hits: _Count
    misses: _Count
    promotions: _Count
    evictions: _Count
    streams: _Count
    refreshes: _Count
    h2d_bytes_by_purpose: dict[str, _Count]
    d2h_bytes_by_purpose: dict[str, _Count]


class _Run(Strict):
    policy: str
    engine: str
    promotion: str
    interval: int | None
    budgets: Annotated[tuple[_Count, ...], _Lines]
    backend: Literal["cpu", "cuda"]
    machine: str
    sizes: str
    provenance: str
    keys: Annotated[tuple[tuple[int, int, int, int, Kind], ...], _Lines]
    pass_s: Annotated[tuple[tuple[_Seconds, ...], ...], _Lines]
    counters: _Counters
    has_records: bool
    trace_sha256: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        for repeat in self.pass_s:
            if len(repeat) != len(self.keys):
                raise ValueError(
                    f"has {len(repeat)} pass_s in a repeat but {len(self.keys)} keys; each pass "
                    "needs both"
                )
        return self


def save_measured(run: MeasuredRun, path: str | Path) -> None:
    """Write a measured run whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    rows = list(run.records or ())
    columns = [
        pa.array([str(row[at]) if not at else row[at] for row in rows], type=kind)
        for at, kind in enumerate(_TYPES.values())
    ]
    entries = {"format": FORMAT, "version": str(VERSION), "run": _to_json(run)}
    table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(entries))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _to_json(run: MeasuredRun) -> str:
    stored = {name: getattr(run, name) for name in _Run.model_fields if name != "has_records"}
    stored |= {"has_records": run.records is not None, "counters": asdict(run.counters)}
    stored |= {"pass_s": run.pass_s.tolist(), "keys": [tuple(key) for key in run.keys]}
    return _Run.model_validate(
        stored | {"pass_s": tuple(map(tuple, stored["pass_s"]))}
    ).model_dump_json()


def load_measured(path: str | Path) -> MeasuredRun:
    """Read and check a measured run.

    Raises
    ------
    NotFoundError
        No such file.
    FormatError
        Not a measured run of this format and version; names file, key, value, rule and repair.
    """
    table = _read(Path(path))
    entries = table.schema.metadata or {}
    for key, expected in (("format", FORMAT), ("version", str(VERSION))):
        found = entries.get(key.encode(), b"").decode(errors="replace")
        if found != expected:
            raise FormatError(
                f"{path}: {key} is {found or 'not stated'}, not {expected}; "
                "give a file that this version's tidesim replay wrote"
            )
    try:
        parsed = _Run.model_validate_json(entries.get(b"run", b""))
    except ValidationError as error:
        raise FormatError(f"{path}: {_sentence(error)}") from None
    records = _records(table, str(path)) if parsed.has_records else None
    return _measured(parsed, records)


def _read(path: Path) -> Any:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_rows(file.metadata.num_rows, path)
            return file.read()
    except FileNotFoundError:
        raise NotFoundError(
            f"{path}: no such measured run; give a file that tidesim replay wrote"
        ) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}: cannot be read as Parquet ({reason(error)}); the file is truncated, damaged or no "
            "measured run: copy it or replay again"
        ) from None


def _check_rows(rows: int, path: Path) -> None:
    """Refuse a small file that swells when read: times differ, so a row takes several bytes."""
    if rows > path.stat().st_size:
        raise FormatError(
            f"{path}: claims {rows} rows in {path.stat().st_size} bytes, but every record takes "
            "more than a byte; the file is damaged: replay again"
        )


def _measured(parsed: _Run, records: Records | None) -> MeasuredRun:
    stored = {name: getattr(parsed, name) for name in _Run.model_fields if name != "has_records"}
    stored["keys"] = tuple(PassKey(*key) for key in parsed.keys)
    stored["pass_s"] = np.array(parsed.pass_s, dtype=np.float64)
    stored["counters"] = Counters(**dict(parsed.counters))
    return MeasuredRun(records=records, **stored)


def _records(table: Any, source: str) -> Records:
    """Read the rows, in the order of `Records`."""
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise FormatError(
            f"{source}: its columns are not those of {FORMAT} {VERSION}: "
            f"{', '.join(SCHEMA.names)}; replay again"
        )
    known = {str(resource): resource for resource in Resource}
    rows = []
    for number, row in enumerate(zip(*(each.to_pylist() for each in table.columns), strict=True)):
        if row[0] not in known:
            raise FormatError(
                f"{source}: row {number}: resource is {row[0]!r}, not one of {', '.join(known)}; "
                "replay again"
            )
        record = Record(known[row[0]], *row[1:])
        if not 0 <= record.start_s <= record.end_s < float("inf"):
            raise FormatError(
                f"{source}: row {number}: starts at {record.start_s} s and ends at {record.end_s} s "
                "but must start at 0 or later and end after that; replay again"
            )
        rows.append(record)
    return Records(rows)


def _sentence(error: ValidationError) -> str:
    form = f"{FORMAT} {VERSION}"
    words = {"json_invalid": "must hold metadata key run as JSON ({error})"}
    return sentence(error, _Run, form=form, repair=_repair, words=words)


def _repair(_: ErrorDetails, _path: tuple[str, ...]) -> str:
    return "replay again"
