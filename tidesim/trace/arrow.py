"""The Arrow schema of a trace file, and rows to and from its record batches.

Arrays cross over as buffers, because pyarrow's own conversions from and to NumPy import pandas.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidesim.errors import FormatError
from tidesim.trace.rows import KINDS, LISTS, NUMBERS, Ints, ListColumn, Rows


def _list_type(dtype: type[np.generic]) -> Any:
    return pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False))


SCHEMA = pa.schema(
    [
        pa.field("request", pa.int32(), nullable=False),
        pa.field("block", pa.int32(), nullable=False),
        pa.field("step", pa.int16(), nullable=False),
        pa.field("kind", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("context", pa.int32(), nullable=False),
        *(pa.field(name, _list_type(dtype)) for name, dtype in LISTS.items()),
    ]
)


def _texts(words: Sequence[str]) -> Any:
    ends = np.cumsum([0, *(len(word) for word in words)]).astype(np.int32)
    data = [None, pa.py_buffer(ends), pa.py_buffer("".join(words).encode("ascii"))]
    return pa.Array.from_buffers(pa.string(), len(words), data)


def batch_from_rows(rows: Rows) -> Any:
    """Return rows as an Arrow record batch of `SCHEMA`."""
    columns = {
        name: _to_arrow(getattr(rows, name).astype(dtype)) for name, dtype in NUMBERS.items()
    }
    columns["kind"] = pa.DictionaryArray.from_arrays(
        _to_arrow(rows.kind.astype(np.int8)), _texts(KINDS)
    )
    for name in LISTS:
        column: ListColumn = getattr(rows, name)
        offsets = pa.py_buffer(column.offsets.astype(np.int32))
        columns[name] = pa.Array.from_buffers(
            SCHEMA.field(name).type,
            len(rows),
            [_pack(column.present), offsets],
            children=[_to_arrow(column.values)],
        )
    return pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _pack(flags: npt.NDArray[np.bool_]) -> Any:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _to_arrow(values: npt.NDArray[Any]) -> Any:
    data = _pack(values) if values.dtype == np.bool_ else pa.py_buffer(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, data])


def _to_numpy(array: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the values of an Arrow array, nulls as whatever stands there."""
    start, stop, data = array.offset, array.offset + len(array), array.buffers()[1]
    if not len(array):
        return np.zeros(0, dtype=dtype)
    if dtype is np.bool_:
        return _unpack(data, start, stop)
    return np.frombuffer(data, dtype=dtype)[start:stop]


def _unpack(buffer: Any, start: int, stop: int) -> npt.NDArray[np.bool_]:
    packed = np.frombuffer(buffer, dtype=np.uint8)
    return np.unpackbits(packed, count=stop, bitorder="little")[start:].view(np.bool_)


def _present(array: Any) -> npt.NDArray[np.bool_]:
    if not array.null_count:
        return np.ones(len(array), dtype=np.bool_)
    return _unpack(array.buffers()[0], array.offset, array.offset + len(array))


def check_schema(schema: Any, source: str) -> None:
    """Refuse a file whose columns are not those of the format.

    Parameters
    ----------
    schema : pyarrow.Schema
    source : str
        File name, for error messages.

    Raises
    ------
    FormatError
        A column is missing, unknown, doubled or of another type.
    """
    for name in SCHEMA.names:
        if schema.names.count(name) != 1:
            state = "is missing" if name not in schema.names else "appears more than once"
            raise FormatError(
                f"{source}: column {name} {state}; a tidesim-trace has the columns "
                f"{', '.join(SCHEMA.names)}"
            )
        got, needed = schema.field(name).type, SCHEMA.field(name).type
        if not _same_type(got, needed):
            raise FormatError(
                f"{source}: column {name} has type {_type_name(got)}, not {_type_name(needed)}; "
                "write it with that type"
            )
    unknown = [name for name in schema.names if name not in SCHEMA.names]
    if unknown:
        raise FormatError(
            f"{source}: column {unknown[0]} is not part of tidesim-trace 1; leave it out"
        )


def _same_type(got: Any, needed: Any) -> bool:
    if pa.types.is_list(needed):
        return bool(pa.types.is_list(got) and got.value_type == needed.value_type)
    if pa.types.is_dictionary(needed):
        return bool(pa.types.is_dictionary(got) and got.value_type == needed.value_type)
    return bool(got == needed)


def _type_name(type_: Any) -> str:
    if pa.types.is_list(type_):
        return f"list<{type_.value_type}>"
    if pa.types.is_dictionary(type_):
        return f"dictionary<{type_.value_type}>"
    return str(type_)


def rows_from_batch(batch: Any, *, source: str, first: int) -> Rows:
    """Turn an Arrow record batch with the format's schema into columns.

    Raises
    ------
    FormatError
        A value is null that may not be, or `kind` is unknown.
    """
    for name in (*NUMBERS, "kind"):
        _refuse_nulls(batch.column(name), f"{source}: column {name}", first)
    columns: dict[str, Any] = {
        name: _to_numpy(batch.column(name), dtype).astype(np.int64)
        for name, dtype in NUMBERS.items()
    }
    columns["kind"] = _kind_index(batch.column("kind"), source, first)
    for name, dtype in LISTS.items():
        columns[name] = read_list(batch.column(name), dtype, f"{source}: column {name}")
    return Rows(source=source, first=first, **columns)


def _refuse_nulls(column: Any, place: str, first: int) -> None:
    if column.null_count:
        row = first + int(np.flatnonzero(~_present(column))[0])
        raise FormatError(f"{place} is null in row {row}; every row needs a value")


def _kind_index(column: Any, source: str, first: int) -> Ints:
    words = column.dictionary.to_pylist()
    codes = np.array([KINDS.index(w) if w in KINDS else -1 for w in words], dtype=np.int64)
    indices = column.indices
    index: Ints = codes[_to_numpy(indices, str(indices.type))]
    wrong = np.flatnonzero(index < 0)
    if wrong.size:
        row = int(wrong[0])
        raise FormatError(
            f"{source}: row {first + row}: kind is {column[row].as_py()!r}, "
            f"not one of {', '.join(KINDS)}; name the pass by one of these"
        )
    return index


def read_list(column: Any, dtype: type[np.generic], place: str) -> ListColumn:
    """Read an Arrow array of lists whose values have that type.

    Raises
    ------
    FormatError
        A value inside a list is null.
    """
    values = column.flatten()
    if values.null_count:
        raise FormatError(f"{place} has a null inside a list; a list is whole or null")
    present = _present(column)
    offsets = _to_numpy(column.offsets, np.int32)
    return ListColumn(
        values=_to_numpy(values, dtype),
        lengths=np.where(present, np.diff(offsets), 0).astype(np.int64),
        present=present,
    )
