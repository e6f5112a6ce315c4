"""Hypothesis strategies that damage Parquet files: columns, values, types and metadata."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from strategies_damage import damaged_bytes, damaged_values, odd_values, to_json

_TYPES = (
    pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64(), pa.float32(),
    pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.null(),
    pa.timestamp("s"), pa.list_(pa.int32()), pa.list_(pa.list_(pa.int32())), pa.large_list(pa.bool_()),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string()),
    pa.struct([("a", pa.int32())]), pa.map_(pa.string(), pa.int32()),
)  # fmt: skip


@st.composite
def damaged_parquet(draw: st.DrawFn, content: bytes, *, key: str = "") -> bytes:
    """Damage the bytes, the columns, or the JSON metadata under a key, if the file has one."""
    how = draw(st.sampled_from(("bytes", "columns", *["metadata"] * bool(key))))
    if how == "bytes":
        return draw(damaged_bytes(content))
    table = pq.ParquetFile(io.BytesIO(content)).read()
    entries = {k: v for k, v in (table.schema.metadata or {}).items() if k != b"ARROW:schema"}
    if how == "metadata":
        entries[key.encode()] = to_json(draw(damaged_values(json.loads(entries[key.encode()]))))
    else:
        for _ in range(draw(st.integers(1, 2))):
            table = _damage(draw, table)
    return _written(table.replace_schema_metadata(entries), draw)


def _damage(draw: st.DrawFn, table: Any) -> Any:
    if not table.num_columns:
        return table
    at = draw(st.integers(0, table.num_columns - 1))
    field, column = table.schema.field(at), table.column(at)
    change = draw(
        st.sampled_from(("values", "values", "values", "type", "drop", "twice", "rename", "rows"))
    )
    try:
        if change == "values":
            return _with_values(draw, table, at)
        if change == "type":
            other = draw(st.sampled_from(_TYPES))
            return table.set_column(at, pa.field(field.name, other), column.cast(other))
        if change == "drop":
            return table.remove_column(at)
        if change == "twice":
            return table.append_column(field, column)
        if change == "rename":
            names = table.schema.names
            names[at] = draw(st.sampled_from(("", "é", "a.b", *names)))
            return table.rename_columns(names)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return table  # nothing that Arrow itself can hold
    start, count = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    pieces = (table.slice(start, count), table.slice(0, start), table)
    return pa.concat_tables(draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=3)))


def _with_values(draw: st.DrawFn, table: Any, at: int) -> Any:
    """Change some values of a column within its type, or leave its type where they need another."""
    field, values = table.schema.field(at), table.column(at).to_pylist()
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, max(0, len(values) - 1)))
        others = st.one_of(odd_values, st.integers(-3, 70), st.sampled_from([*values, None]))
        new = draw(others)
        if row < len(values) and isinstance(values[row], list) and draw(st.booleans()):
            values[row] = draw(damaged_values(values[row]))
        elif row < len(values):
            values[row] = new
    try:
        array = pa.array(values, _nullable(field.type))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        array = pa.array(values)
    return table.set_column(at, pa.field(field.name, array.type), array)


def _nullable(kind: Any) -> Any:
    return pa.list_(kind.value_type) if pa.types.is_list(kind) else kind


def _written(table: Any, draw: st.DrawFn) -> bytes:
    sink = io.BytesIO()
    options = {
        "compression": draw(st.sampled_from(("zstd", "none", "snappy"))),
        "row_group_size": draw(st.sampled_from((1, 3, 1000))),
        "use_dictionary": draw(st.booleans()),
        "write_page_checksum": draw(st.booleans()),
        "data_page_version": draw(st.sampled_from(("1.0", "2.0"))),
        "store_schema": draw(st.booleans()),
    }
    pq.write_table(table, sink, **options)
    return sink.getvalue()
