"""FLAME-MoE's routing traces: a folder of ``layer_NN.parquet``, one row per token.

Column ``indices`` holds the token's expert ids (list<int16>); ``scores`` is not read. Row i of every
file is the same token. Layers are taken in the order of their numbers.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidesim.errors import FormatError, NotFoundError
from tidesim.strict import reason
from tidesim.trace.arrow import read_list
from tidesim.trace.importers.arrays import check_size
from tidesim.trace.importers.recording import ImportOptions, Ints, Recording
from tidesim.trace.importers.tokens import cut

BATCH_ROWS = 65_536
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
_NAME = re.compile(r"layer_(\d+)\.parquet")


def read(path: Path, options: ImportOptions) -> Recording:
    """Read a folder of one checkpoint's routing; memory holds one batch per layer.

    Raises
    ------
    NotFoundError, FormatError
        No such folder, other files, or rows that are no token's experts.
    """
    if not path.is_dir():
        raise NotFoundError(f"{path}: no such folder; give the one that holds layer_NN.parquet")
    named = ((_NAME.fullmatch(item.name), item) for item in path.iterdir())
    numbered = sorted((int(match[1]), item) for match, item in named if match)
    check_size(len(numbered), options.model.moe_layers, "layer files", options.model, str(path))
    layers = [_Tokens(item, options.model.num_experts_per_tok) for _, item in numbered]

    def take(count: int) -> Ints:
        parts = [layer.take(count) for layer in layers]
        for layer, part in zip(layers, parts, strict=True):
            if len(part) != len(parts[0]):
                raise FormatError(
                    f"{layer.path}: has not as many rows as {layers[0].path.name}; row i of every "
                    "file is one token, so give files of the same tokens"
                )
        return np.stack(parts)

    passes = cut(
        take, options, str(path), lambda layer, row: f"{numbered[layer][1].name}: row {row}"
    )
    return Recording(model=options.model, passes=passes, notes={})


class _Tokens:
    """The rows of one layer's file, taken piece by piece."""

    def __init__(self, path: Path, top_k: int) -> None:
        self.path, self._top_k, self._row = path, top_k, 0
        self._held = np.zeros((0, top_k), dtype=np.int64)
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            self._batches = file.iter_batches(batch_size=BATCH_ROWS, columns=["indices"])
        except UNREADABLE as error:
            raise self._unreadable(error) from None
        if "indices" not in names:
            raise FormatError(f"{path}: column indices is missing; give the routing of a layer")

    def take(self, count: int) -> Ints:
        """Return the next rows, [T, K], fewer at the end."""
        pieces = [self._held]
        while sum(map(len, pieces)) < count and (more := self._next()) is not None:
            pieces.append(more)
        rows = np.concatenate(pieces)
        self._held = rows[count:]
        return rows[:count]

    def _next(self) -> Ints | None:
        try:
            batch = next(self._batches, None)
            lists = None if batch is None else batch.column(0).cast(pa.list_(pa.int32()))
        except UNREADABLE as error:
            raise self._unreadable(error) from None
        return None if lists is None else self._rows(lists)

    def _rows(self, lists: Any) -> Ints:
        column = read_list(lists, np.int32, f"{self.path}: column indices")
        wrong = np.flatnonzero(column.lengths != self._top_k)
        if wrong.size:
            raise FormatError(
                f"{self.path}: row {self._row + wrong[0]}: indices has "
                f"{column.lengths[wrong[0]]} ids, not top-{self._top_k}; give the --model that was "
                "recorded, or repair the row"
            )
        self._row += len(column.lengths)
        return column.values.reshape(-1, self._top_k).astype(np.int64)

    def _unreadable(self, error: Exception) -> FormatError:
        return FormatError(
            f"{self.path}: cannot be read as routing of a layer ({reason(error)}); copy it again"
        )
