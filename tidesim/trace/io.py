"""Read and write traces as Parquet files, row group by row group.

The format is ``tidesim-trace`` version 1: one row per pass, zstd, and the schema metadata keys
``format``, ``version`` and ``meta`` (a `TraceMeta` as JSON).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from tidesim import resources
from tidesim.errors import FormatError
from tidesim.model_spec import ModelSpec
from tidesim.strict import dotted, reason, short_keys
from tidesim.trace.arrow import SCHEMA, batch_from_rows, check_schema, rows_from_batch
from tidesim.trace.checks import OrderCheck, check_meta, check_model, check_rows
from tidesim.trace.passes import Pass, Trace, TraceMeta
from tidesim.trace.rows import Rows, join_rows, row_from_pass

FORMAT = "tidesim-trace"
VERSION = 1
GROUP_ROWS = 256
GROUP_BYTES = 8 << 20
LARGEST_GROUP_BYTES = 128 << 20  # of what others write: one is held in memory


class TraceWriter:
    """Write a trace pass by pass; memory holds one row group.

    Use it as a context manager and end with `close`. The file appears, whole, when `close`
    returns; on any error, or without `close`, nothing is left behind.

    Parameters
    ----------
    path : str or Path
    model : ModelSpec
        Model the passes come from.
    """

    def __init__(self, path: str | Path, *, model: ModelSpec) -> None:
        self.path = Path(path)
        self.model = model
        check_model(model, str(path))
        self._order = OrderCheck(str(path))
        self._pending: list[Rows] = []
        self._pending_bytes = 0
        self._rows = 0
        self._stack = contextlib.ExitStack()
        self._file: Any = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(resources.atomic_path(self.path))
            self._file = pq.ParquetWriter(
                temporary, SCHEMA, compression="zstd", write_page_checksum=True
            )
            self._stack = stack.pop_all()
        return self

    def append(self, pass_: Pass) -> None:
        """Check one pass and keep it for the next row group.

        Raises
        ------
        FormatError
            The pass breaks a rule of the format.
        OutputError
            The disk is full or gone.
        """
        row = row_from_pass(pass_, self.model, source=str(self.path), number=self._rows)
        check_rows(row, self.model)
        self._order.feed(row)
        self._rows += 1
        self._pending.append(row)
        self._pending_bytes += row.list_bytes
        if len(self._pending) >= GROUP_ROWS or self._pending_bytes >= GROUP_BYTES:
            self._flush()

    def close(self, meta: TraceMeta) -> None:
        """Store the metadata and put the file in its place.

        Raises
        ------
        FormatError
            The metadata does not fit the passes.
        OutputError
            The file cannot be written.
        """
        if meta.model != self.model:
            raise FormatError(
                f"{self.path}: the metadata names model {meta.model.name}, but the passes were "
                f"written for {self.model.name}; give the same model to both"
            )
        check_meta(meta, str(self.path))
        self._order.finish(meta)
        if self._pending:
            self._flush()
        entries = {"format": FORMAT, "version": str(VERSION), "meta": meta.model_dump_json()}
        with self._writing():
            self._file.add_key_value_metadata(entries)
            self._file.close()
        self._file = None
        self._stack.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.close()
        self._stack.__exit__(_AbandonedError, _AbandonedError(), None)
        if error is None:
            raise FormatError(f"{self.path}: not written, because close(meta) was never called")

    def _flush(self) -> None:
        batch = batch_from_rows(join_rows(self._pending))
        with self._writing():
            self._file.write_batch(batch)
        self._pending, self._pending_bytes = [], 0

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise resources.not_written(self.path, error) from error


class _AbandonedError(Exception):
    """Tell atomic_path to drop its file without blaming the disk for the caller's error."""


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace whole or not at all; the same trace gives the same bytes.

    Raises
    ------
    FormatError
        A pass or the metadata breaks a rule of the format.
    OutputError
        The file cannot be written.

    Examples
    --------
    >>> save_trace(load_trace("tide-tiny-mixed").only((3,)), "one.parquet")
    >>> load_trace("one.parquet").meta.requests[0].split
    'heldout'
    """
    with TraceWriter(path, model=trace.meta.model) as writer:
        for pass_ in trace:
            writer.append(pass_)
        writer.close(trace.meta)


def load_trace(name_or_path: str | Path) -> Trace:
    """Open a trace; its passes are read and checked anew, a row group at a time, on iteration.

    Truncation, columns and metadata are checked now, rows while they are read.

    Parameters
    ----------
    name_or_path : str or Path
        Bundled name or file.

    Raises
    ------
    NotFoundError
        No such file and no bundled trace of that name.
    FormatError
        Not a tidesim-trace of this version.

    Examples
    --------
    >>> trace = load_trace("tide-tiny-mixed")
    >>> trace.meta.model.name, trace.meta.provenance, len(trace.meta.requests)
    ('tide-tiny', 'captured', 42)
    >>> str(next(iter(trace)).kind)
    'prefill'
    """
    path = resources.find("traces", name_or_path)
    with _open(path) as file:
        with _damage_named(path):
            entries, schema = file.metadata.metadata or {}, file.schema_arrow
        meta = _read_meta(entries, str(path))
        check_schema(schema, str(path))
        _check_groups(file.metadata, str(path))
        if not file.metadata.num_rows:
            raise FormatError(f"{path}: holds no passes; capture at least one request")
    return Trace(meta, _FilePasses(path, meta), sha256=resources.sha256_file(path))


def check_trace(name_or_path: str | Path) -> Trace:
    """Open a trace and check every row of it.

    Raises
    ------
    NotFoundError, FormatError
        As `load_trace`, and for the first row that breaks a rule.

    Examples
    --------
    >>> check_trace("llada2.0-flash-late").meta.provenance
    'imported'
    """
    trace = load_trace(name_or_path)
    for _ in trace:
        pass
    return trace


@dataclass(frozen=True, slots=True)
class _FilePasses:
    path: Path
    meta: TraceMeta

    def __iter__(self) -> Iterator[Pass]:
        order, first = OrderCheck(str(self.path)), 0
        with _open(self.path) as file:
            for batch in _batches(file, self.path):
                rows = rows_from_batch(batch, source=str(self.path), first=first)
                check_rows(rows, self.meta.model)
                order.feed(rows)
                first += len(rows)
                yield from rows.passes(self.meta.model)
        order.finish(self.meta)


def _check_groups(stored: Any, source: str) -> None:
    """Refuse a row group that does not fit in memory, however small it is when compressed."""
    for number in range(stored.num_row_groups):
        group = stored.row_group(number)
        columns = (group.column(at) for at in range(group.num_columns))
        values = max(column.num_values for column in columns)
        num_bytes = max(group.total_byte_size, values)
        if num_bytes > LARGEST_GROUP_BYTES:
            raise FormatError(
                f"{source}: row group {number} holds {num_bytes} bytes, more than "
                f"{LARGEST_GROUP_BYTES}; write it again in smaller row groups"
            )


def _batches(file: Any, path: Path) -> Iterator[Any]:
    for group in range(file.num_row_groups):
        batches = file.iter_batches(batch_size=GROUP_ROWS, row_groups=[group])
        while True:
            with _damage_named(path):
                batch = next(batches, None)
            if batch is None:
                break
            yield batch


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    with _damage_named(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        yield file


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}: cannot be read as Parquet ({reason(error)}); the file is truncated, damaged or "
            "not a trace: copy or capture it again"
        ) from None


def _read_meta(entries: dict[bytes, bytes], source: str) -> TraceMeta:
    found = entries.get(b"format", b"").decode(errors="replace")
    if found != FORMAT:
        raise FormatError(
            f"{source}: format is {found or 'not stated'}, not {FORMAT}; "
            "give a file that tidesim capture or tidesim trace wrote"
        )
    version = entries.get(b"version", b"").decode(errors="replace")
    if version != str(VERSION):
        raise FormatError(
            f"{source}: version is {version or 'not stated'}, but this tidesim reads {VERSION}; "
            "capture the trace again or use the tidesim that wrote it"
        )
    if b"meta" not in entries:
        raise FormatError(f"{source}: metadata key meta is missing; capture the trace again")
    try:
        meta = TraceMeta.model_validate_json(entries[b"meta"])
    except ValidationError as error:
        first = error.errors()[0]
        key = dotted(short_keys(("meta", *first["loc"])))
        raise FormatError(
            f"{source}: {key}: {first['msg']} (got {str(first.get('input'))[:60]!r}); "
            "repair the metadata or capture the trace again"
        ) from None
    check_meta(meta, source)
    return meta
