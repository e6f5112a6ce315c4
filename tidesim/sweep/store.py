"""Store: results kept as they come, one small Parquet file each, and one file of all in the end.

A result's file is named by its digest and appears whole or not at all, so a sweep that is killed
loses what its workers were at, and the next one finds the rest. The files lie in ``OUT.parts``
beside the output, which goes when the output is there, or in a cache folder, which stays.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tidesim.errors import FormatError, OutputError, SettingError
from tidesim.resources import atomic_path
from tidesim.sweep.jobs import Job
from tidesim.sweep.rows import FORMAT, Row, point_row, results_in, table_of

_OURS = re.compile(r"[0-9a-f]{64}\.parquet|\.[0-9a-f]{64}\.parquet\.[0-9a-f]+\.tmp")


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where the results of a sweep are kept; open it with `opened`.

    Attributes
    ----------
    out : Path
        The file of all in the end.
    folder : Path
        Of the results' own files.
    schema : pyarrow.Schema
    earlier : dict of Row
        Results of an output that is gone on with, by digest.
    """

    out: Path
    folder: Path
    schema: pa.Schema
    earlier: dict[str, Row]

    def known(self, job: Job) -> Row | None:
        """Return the result of a job computed before; one that failed is none."""
        row = self.earlier.get(job.digest) or _read_one(self.folder / f"{job.digest}.parquet")
        return None if row is None or row["error"] is not None else row

    def keep(self, job: Job, result: Row) -> None:
        """Write a result before anything else happens.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        row = point_row(job.point) | result
        with atomic_path(self.folder / f"{job.digest}.parquet") as temporary:
            table = table_of([row], self.schema)
            pq.write_table(table, temporary, compression="none", use_dictionary=False)

    def finish(self, rows: Iterable[Row]) -> None:
        """Write the output.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        with atomic_path(self.out) as temporary:
            pq.write_table(table_of(rows, self.schema), temporary, compression="zstd")


@contextmanager
def opened(
    out: str | Path, schema: pa.Schema, *, cache: str | Path | None, resume: bool
) -> Iterator[Store]:
    """Open the store of an output and, if all goes well, remove what the output makes needless.

    Parameters
    ----------
    out : str or Path
    schema : pyarrow.Schema
    cache : str or Path or None
        Keep results here, for any sweep to find.
    resume : bool
        Also take results from the output, and go on with those beside it.

    Raises
    ------
    SettingError
        An interrupted sweep left results and shall not go on, or another is at work.
    FormatError
        The output to go on with is no sweep's.
    OutputError
        A folder cannot be written.
    """
    out = Path(out)
    parts = out.with_name(f"{out.name}.parts")
    if not resume and parts.exists():
        raise SettingError(
            f"{parts}: holds results of a sweep that did not end; go on with --resume, "
            "or delete that folder"
        )
    earlier = _earlier(out) if resume else {}
    folder = parts if cache is None else Path(cache)
    try:
        folder.mkdir(parents=cache is not None, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created ({error.strerror})") from None
    if cache is not None:
        yield Store(out=out, folder=folder, schema=schema, earlier=earlier)
        return
    with _alone(folder):
        yield Store(out=out, folder=folder, schema=schema, earlier=earlier)
        _remove(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against other sweeps; the system lets go of it should this process die."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise SettingError(
            f"{folder}: another sweep is at work on it; wait for it or choose another --out"
        ) from None
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Remove our files, and the folder if nothing else lies there."""
    for path in sorted(folder.iterdir()):
        if _OURS.fullmatch(path.name):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _read_one(path: Path) -> Row | None:
    """Return the result in a file, None where there is none that can be read."""
    with suppress(pa.ArrowException, OSError, UnicodeDecodeError):
        rows = results_in(pq.read_table(path))
        return rows[0] if len(rows) == 1 and "error" in rows[0] else None
    return None


def _earlier(out: Path) -> dict[str, Row]:
    """Return the results in an output by digest; none where there is no output."""
    if not out.exists():
        return {}
    try:
        table: Any = pq.read_table(out)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        table = None
    if table is None or (table.schema.metadata or {}).get(b"format") != FORMAT.encode():
        raise FormatError(
            f"{out}: not a file that tidesim sweep wrote, so there is nothing to resume; "
            "leave --resume out or choose another --out"
        )
    return {row["digest"]: row for row in results_in(table)}
