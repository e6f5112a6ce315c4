"""CSV files of whole numbers, read line by line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tidesim.errors import FormatError, NotFoundError
from tidesim.model_spec import ModelSpec

LARGEST = 1 << 62


def rows_of(
    path: Path, columns: tuple[str, ...], *, header: Literal["needed", "allowed"]
) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of every line, from 1, and its values.

    Raises
    ------
    NotFoundError, FormatError
        No such file, no rows, or a line that is not such a row.
    """
    title = ",".join(columns)
    try:
        with path.open(encoding="utf-8", newline=None) as file:
            line, text = 0, ""
            for line, text in enumerate(file, start=1):
                row = text.strip()
                if line == 1 and row == title:
                    continue
                if line == 1 and header == "needed":
                    raise FormatError(
                        f"{path}: line 1 is {row[:60]!r}, not the header {title!r}; give the file "
                        "as it was recorded"
                    )
                yield line, _values(row, columns, f"{path}: line {line}")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; give the CSV that was recorded") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read as text ({error}); give the CSV") from None
    if line == 0 or (line == 1 and text.strip() == title):
        raise FormatError(f"{path}: holds no rows; record at least one pass")


def _values(row: str, columns: tuple[str, ...], place: str) -> list[int]:
    parts = row.split(",")
    # isdecimal: int() also takes "1_0", " 1" and "+1"
    if len(parts) == len(columns) and all(part.isascii() and part.isdecimal() for part in parts):
        values = [int(part) for part in parts] if len(row) < 100 else [LARGEST]
        if max(values) < LARGEST:
            return values
    raise FormatError(
        f"{place} is {row[:60]!r}, not {','.join(columns)} in whole numbers; repair or remove it"
    )


def layer_index(layer: int, model: ModelSpec, place: str) -> int:
    """Return the mixture layer that a layer of the whole model is.

    Raises
    ------
    FormatError
        The model has no such mixture layer.
    """
    first = model.first_k_dense_replace
    if not first <= layer < model.num_hidden_layers:
        raise FormatError(
            f"{place}: layer is {layer}, but the mixture layers of {model.name} are {first} to "
            f"{model.num_hidden_layers - 1}; give the --model that was recorded, or repair the layer"
        )
    return layer - first
