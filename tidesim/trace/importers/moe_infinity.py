"""MoE-Infinity's trace collection: an npy array [sequences, layers, experts] of token counts."""

from pathlib import Path

from tidesim.trace.importers.arrays import count_sheets, load_npy
from tidesim.trace.importers.recording import ImportOptions, Recording, complete


def read(path: Path, options: ImportOptions) -> Recording:
    """Read one request per sequence; its only pass holds all tokens of the sequence.

    Raises
    ------
    NotFoundError, FormatError
        No such file, another array, or counts that no tokens can have.
    """
    array = load_npy(path, ("sequences", "layers", "experts"))
    sheets = count_sheets(array, options.model, str(path), by_request=True)
    return complete(sheets, options, str(path))
