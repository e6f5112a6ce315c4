"""The rules rows of a trace obey, checked on whole row groups at once.

Every message names file, row, column, value, rule and repair.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tidesim.errors import FormatError
from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Kind, TraceMeta
from tidesim.trace.rows import KINDS, NUMBERS, Ints, ListColumn, Rows

PREFILL, DENOISE, COMMIT = (KINDS.index(k) for k in (Kind.PREFILL, Kind.DENOISE, Kind.COMMIT))
_LOWEST = {"request": 0, "block": -1, "step": 0, "tokens": 1, "context": 0}

Flags = npt.NDArray[np.bool_]


def check_meta(meta: TraceMeta, source: str) -> None:
    """Refuse metadata that no rows could match.

    Raises
    ------
    FormatError
        No requests, a request listed twice, or a model that routes nothing.
    """
    check_model(meta.model, source)
    ids = [info.request for info in meta.requests]
    if not ids:
        raise FormatError(f"{source}: the metadata lists no requests; a trace holds at least one")
    doubled = [number for number, times in Counter(ids).items() if times > 1]
    if doubled:
        raise FormatError(
            f"{source}: the metadata lists request {doubled[0]} twice; "
            "give every request one number"
        )


def check_model(model: ModelSpec, source: str) -> None:
    """Refuse a model whose routing a trace cannot hold.

    Raises
    ------
    FormatError
        No mixture layers.
    """
    if model.moe_layers < 1:
        raise FormatError(
            f"{source}: model {model.name} has no mixture layers, so there is no routing to "
            "trace; give a mixture-of-experts model"
        )


def check_rows(rows: Rows, model: ModelSpec) -> None:
    """Check everything that can be said of each row alone.

    Raises
    ------
    FormatError
        Names the first row that breaks the first broken rule.
    """
    _check_numbers(rows)
    _check_lengths(rows, model)
    _check_experts(rows, model)
    _check_counts(rows, model)


def _require(rows: Rows, ok: Flags, sentence: Callable[[int], str]) -> None:
    wrong = np.flatnonzero(~ok)
    if wrong.size:
        row = int(wrong[0])
        raise FormatError(f"{rows.place(row)}: {sentence(row)}")


def _require_values(
    rows: Rows, column: ListColumn, ok: Flags, sentence: Callable[[int], str]
) -> None:
    wrong = np.flatnonzero(~ok)
    if wrong.size:
        position = int(wrong[0]) * (len(column.values) // len(ok))
        raise FormatError(f"{rows.place(column.row_of(position))}: {sentence(int(wrong[0]))}")


def _check_numbers(rows: Rows) -> None:
    for name, dtype in NUMBERS.items():
        _check_range(rows, name, low=_LOWEST[name], high=int(np.iinfo(dtype).max))
    prefill = rows.kind == PREFILL
    _require(
        rows,
        (rows.block == -1) == prefill,
        lambda row: (
            f"kind is {KINDS[rows.kind[row]]} in block {rows.block[row]}, but prefill has block "
            "-1 and no other kind has; repair the block"
        ),
    )
    _require(
        rows,
        ~prefill | (rows.step == 0),
        lambda row: (
            f"step of the prefill is {rows.step[row]}, but a request has one prefill pass, with "
            "step 0; join its parts into one row"
        ),
    )


def _check_range(rows: Rows, name: str, *, low: int, high: int) -> None:
    column: Ints = getattr(rows, name)
    _require(
        rows,
        (column >= low) & (column <= high),
        lambda row: f"{name} is {column[row]}, not within {low} to {high}; repair the number",
    )


def _check_lengths(rows: Rows, model: ModelSpec) -> None:
    both = rows.experts.present & rows.counts.present
    _require(
        rows,
        rows.experts.present ^ rows.counts.present,
        lambda row: (
            f"{'both' if both[row] else 'neither'} of experts and counts given; "
            "a pass has exactly one of them"
        ),
    )
    L, K, E = model.moe_layers, model.num_experts_per_tok, model.num_experts
    _check_length(rows, "masked", rows.tokens, "tokens")
    _check_length(rows, "committed", rows.tokens, "tokens")
    _check_length(rows, "experts", rows.tokens * (L * K), f"{L} mixture layers × tokens × top-{K}")
    _check_length(rows, "counts", np.full(len(rows), L * E), f"{L} mixture layers × {E} experts")


def _check_length(rows: Rows, name: str, needed: Ints, words: str) -> None:
    column: ListColumn = getattr(rows, name)
    _require(
        rows,
        ~column.present | (column.lengths == needed),
        lambda row: (
            f"{name} has {column.lengths[row]} values, not {needed[row]} ({words}, with "
            f"{rows.tokens[row]} tokens); record them all, or name the right model"
        ),
    )


def _check_experts(rows: Rows, model: ModelSpec) -> None:
    column, K, E = rows.experts, model.num_experts_per_tok, model.num_experts
    _require_values(
        rows,
        column,
        column.values < E,
        lambda at: (
            f"experts holds id {column.values[at]}, but ids are below num_experts {E}; "
            "repair the id, or name the model the trace was captured from"
        ),
    )
    chosen = np.sort(column.values.reshape(-1, K), axis=1)
    repeated = chosen[:, 1:] == chosen[:, :-1]
    _require_values(
        rows,
        column,
        ~repeated.any(axis=1),
        lambda at: (
            f"experts holds id {chosen[at, 1:][repeated[at]][0]} twice in the top-{K} of one "
            "token; a token uses an expert once, so repair its ids"
        ),
    )


def _check_counts(rows: Rows, model: ModelSpec) -> None:
    column, L, K = rows.counts, model.moe_layers, model.num_experts_per_tok
    counts = column.values.reshape(-1, model.num_experts).astype(np.int64)
    tokens = np.repeat(rows.tokens[column.present], L)
    totals = counts.sum(axis=1)
    _require_values(
        rows,
        column,
        totals == tokens * K,
        lambda at: (
            f"counts of mixture layer {at % L} sum to {totals[at]}, not {tokens[at] * K} "
            f"({tokens[at]} tokens × top-{K}); count every token once per chosen expert"
        ),
    )
    _require_values(
        rows,
        column,
        counts.max(axis=1, initial=0) <= tokens,
        lambda at: (
            f"counts of mixture layer {at % L} give one expert {counts[at].max()} of "
            f"{tokens[at]} tokens; a token uses an expert once, so repair the counts"
        ),
    )


@dataclass(slots=True)
class OrderCheck:
    """Check what ties rows to each other: their order, their blocks and the metadata's requests.

    Feed it every group of rows in turn, then call `finish`.
    """

    source: str
    seen: list[int] = field(default_factory=list)
    _last: tuple[int, ...] | None = None

    def feed(self, rows: Rows) -> None:
        """Check consecutive rows that follow the ones fed before.

        Raises
        ------
        FormatError
            Rows out of order, a commit without its denoise passes, or a block that changes size.
        """
        if not len(rows):
            return
        key = np.stack([rows.request, rows.block, rows.step, rows.kind, rows.tokens], axis=1)
        before = np.roll(key, 1, axis=0)
        before[0] = (-2, -2, -2, PREFILL, 0) if self._last is None else self._last
        _check_order(rows, key[:, :3], before[:, :3])
        _check_blocks(rows, before)
        self._last = tuple(key[-1])
        new = rows.request[rows.request != before[:, 0]]
        self.seen.extend(int(request) for request in new)

    def finish(self, meta: TraceMeta) -> None:
        """Check that rows and metadata name the same requests.

        Raises
        ------
        FormatError
            A request stands in only one of the two, or there are no rows.
        """
        if not self.seen:
            raise FormatError(f"{self.source}: holds no passes; capture at least one request")
        listed = {info.request for info in meta.requests}
        unlisted = [request for request in self.seen if request not in listed]
        if unlisted:
            raise FormatError(
                f"{self.source}: request {unlisted[0]} has rows but the metadata does not list "
                "it; add it there"
            )
        absent = sorted(listed - set(self.seen))
        if absent:
            raise FormatError(
                f"{self.source}: the metadata lists request {absent[0]} but no row has it; "
                "remove it there, or capture it"
            )


def _check_order(rows: Rows, key: npt.NDArray[Any], before: npt.NDArray[Any]) -> None:
    change = key - before
    first = (change != 0).argmax(axis=1)
    rising = np.take_along_axis(change, first[:, None], axis=1)[:, 0] > 0
    _require(
        rows,
        rising,
        lambda row: (
            "follows request {}, block {}, step {}, but rows are sorted by request, block and "
            "step, each once; sort them".format(*before[row])
        ),
    )


def _check_blocks(rows: Rows, before: npt.NDArray[Any]) -> None:
    same_block = (rows.request == before[:, 0]) & (rows.block == before[:, 1])
    _require(
        rows,
        (rows.kind != COMMIT) | same_block,
        lambda row: "commit has no denoise pass of its block before it; record the whole block",
    )
    _require(
        rows,
        ~same_block | (before[:, 3] == DENOISE),
        lambda row: (
            f"{KINDS[rows.kind[row]]} follows the commit of its block, but a commit ends its "
            "block; number the blocks anew"
        ),
    )
    _require(
        rows,
        ~same_block | (rows.tokens == before[:, 4]),
        lambda row: (
            f"tokens is {rows.tokens[row]} after {before[row, 4]} in the same block; "
            "all passes of a block compute the same positions, so repair tokens"
        ),
    )
