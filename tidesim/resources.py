"""Find bundled data by name, in an installed wheel or in a checkout; write files whole."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tidesim.errors import NotFoundError, OutputError

_PACKAGE = Path(__file__).resolve().parent
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SUFFIXES = {"traces": ".parquet", "traces/synth": ".toml", "hwprofiles": ".toml"}


def data_dir(kind: str) -> Path:
    """Return the folder that holds one kind of bundled data.

    Parameters
    ----------
    kind : str
        A key of `SUFFIXES`.
    """
    installed = _PACKAGE / "_data" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def bundled_names(kind: str) -> list[str]:
    """List the bundled names of one kind, sorted."""
    return sorted(path.stem for path in data_dir(kind).glob(f"*{SUFFIXES[kind]}"))


def find(kind: str, name_or_path: str | Path) -> Path:
    """Return the file that a bundled name or a path means.

    Raises
    ------
    NotFoundError
        Neither a file nor a bundled name.
    """
    path = Path(name_or_path)
    if os.path.isfile(path):  # noqa: PTH113 (False, not an error, for an impossible name)
        return path
    bundled = data_dir(kind) / f"{name_or_path}{SUFFIXES[kind]}"
    if path.name == str(name_or_path) and os.path.isfile(bundled):  # noqa: PTH113
        return bundled
    raise NotFoundError(
        f"{name_or_path}: no such file and no bundled name in {kind}; "
        f"give a path or one of: {', '.join(bundled_names(kind)) or '(none bundled)'}"
    )


def find_checkpoint(name_or_path: str | Path) -> Path:
    """Return the checkpoint directory that a bundled name or a path means.

    Raises
    ------
    NotFoundError
        Neither a directory nor the name of a bundled checkpoint.
    """
    path = Path(name_or_path)
    if os.path.isdir(path):  # noqa: PTH112 (False, not an error, for an impossible name)
        return path
    bundled = data_dir("traces") / str(name_or_path)
    if path.name == str(name_or_path) and os.path.isfile(bundled / "config.json"):  # noqa: PTH113
        return bundled
    raise NotFoundError(
        f"{name_or_path}: no such checkpoint directory and no bundled checkpoint of that name; "
        "give a directory that holds config.json and model.safetensors, or tide-tiny"
    )


def not_written(path: str | Path, error: OSError) -> OutputError:
    """Return the error that says why a file could not be written, and what to do."""
    repair = (
        "free space there or choose another folder"
        if error.errno in NO_SPACE
        else "choose a folder that exists and that you may write to"
    )
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); {repair}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends well.

    The content is flushed to disk before the rename; on any error the temporary file is removed
    and an older `path` stays as it was.

    Raises
    ------
    OutputError
        The folder is missing, read-only or full, or `path` is a folder or device.
    """
    target = Path(path)
    if os.path.exists(target) and not os.path.isfile(target):  # noqa: PTH110, PTH113 (as in `find`)
        raise OutputError(
            f"{target}: cannot be written (it is a folder or device); choose the name of a file"
        )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb"):  # fails now, before long work, where nothing can be written
            mode = temporary.stat().st_mode  # some writers make private files
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        if isinstance(error, OutputError | NotFoundError):
            raise
        raise not_written(target, error) from error
    finally:
        with suppress(OSError):  # where the folder is none, there is nothing to remove
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
