"""Rows of a trace as columns: where they are checked, between Pass objects and a file.

Dimension letters: N rows, L mixture layers, T tokens of a pass, K experts per token, E experts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tidesim.errors import FormatError
from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Kind, Pass

Ints = npt.NDArray[np.int64]
KINDS = tuple(Kind)
NUMBERS: dict[str, type[np.int16 | np.int32]] = {
    "request": np.int32,
    "block": np.int32,
    "step": np.int16,
    "tokens": np.int32,
    "context": np.int32,
}
LISTS: dict[str, type[np.bool_ | np.uint16 | np.uint32]] = {
    "masked": np.bool_,
    "committed": np.bool_,
    "experts": np.uint16,
    "counts": np.uint32,
}


@dataclass(frozen=True, slots=True)
class ListColumn:
    """A nullable list column.

    Attributes
    ----------
    values : [sum of lengths]
        The lists one after another.
    lengths : [N] int64
        0 where null.
    present : [N] bool
    """

    values: npt.NDArray[Any]
    lengths: Ints
    present: npt.NDArray[np.bool_]
    offsets: Ints = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", np.concatenate(([0], np.cumsum(self.lengths))))

    def __getitem__(self, row: int) -> npt.NDArray[Any] | None:
        if not self.present[row]:
            return None
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def row_of(self, position: int) -> int:
        """Return the row that holds a position of `values`."""
        return int(np.searchsorted(self.offsets, position, side="right")) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Consecutive rows of a trace.

    Attributes
    ----------
    source : str
        File the rows belong to, for error messages.
    first : int
        Number of the first row in the file, from 0.
    request, block, step, tokens, context : [N] int64
    kind : [N] int64
        Index in `KINDS`.
    masked, committed, experts, counts : ListColumn
    """

    source: str
    first: int
    request: Ints
    block: Ints
    step: Ints
    kind: Ints
    tokens: Ints
    context: Ints
    masked: ListColumn
    committed: ListColumn
    experts: ListColumn
    counts: ListColumn

    def __len__(self) -> int:
        return len(self.request)

    @property
    def list_bytes(self) -> int:
        """Bytes of the list values."""
        return sum(int(getattr(self, name).values.nbytes) for name in LISTS)

    def place(self, row: int) -> str:
        """Say which row is meant, for error messages."""
        return (
            f"{self.source}: row {self.first + row} (request {self.request[row]}, "
            f"block {self.block[row]}, step {self.step[row]})"
        )

    def passes(self, model: ModelSpec) -> Iterator[Pass]:
        """Yield the rows as passes; rows must be checked."""
        for row in range(len(self)):
            experts, histogram = self.experts[row], self.counts[row]
            yield Pass(
                request=int(self.request[row]),
                block=int(self.block[row]),
                step=int(self.step[row]),
                kind=KINDS[self.kind[row]],
                tokens=int(self.tokens[row]),
                context=int(self.context[row]),
                masked=self.masked[row],
                committed=self.committed[row],
                experts=None
                if experts is None
                else experts.reshape(model.moe_layers, -1, model.num_experts_per_tok),
                histogram=None if histogram is None else histogram.reshape(model.moe_layers, -1),
            )


def row_from_pass(pass_: Pass, model: ModelSpec, *, source: str, number: int = 0) -> Rows:
    """Turn one pass into columns of one row; its arrays are copied.

    Raises
    ------
    FormatError
        An array has another shape or type than the model and the pass's tokens ask for.
    """
    place = (
        f"{source}: row {number} (request {pass_.request}, block {pass_.block}, step {pass_.step})"
    )
    arrays = _arrays(pass_, model, place)
    columns: dict[str, Any] = {
        name: np.array([getattr(pass_, name)], dtype=np.int64) for name in NUMBERS
    }
    columns["kind"] = np.array([KINDS.index(pass_.kind)], dtype=np.int64)
    columns |= {name: _one_list(arrays[name], dtype) for name, dtype in LISTS.items()}
    return Rows(source=source, first=number, **columns)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Put consecutive rows together."""
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in (*NUMBERS, "kind")
    }
    columns |= {name: _join_lists([getattr(part, name) for part in parts]) for name in LISTS}
    return Rows(source=parts[0].source, first=parts[0].first, **columns)


def _arrays(pass_: Pass, model: ModelSpec, place: str) -> dict[str, npt.NDArray[Any] | None]:
    L, T, K, E = model.moe_layers, pass_.tokens, model.num_experts_per_tok, model.num_experts
    given = {
        "masked": (pass_.masked, (T,), "[tokens]"),
        "committed": (pass_.committed, (T,), "[tokens]"),
        "experts": (pass_.experts, (L, T, K), "[moe_layers, tokens, top_k]"),
        "counts": (pass_.histogram, (L, E), "[moe_layers, num_experts]"),
    }
    arrays: dict[str, npt.NDArray[Any] | None] = {}
    for name, (array, shape, words) in given.items():
        if array is not None and array.shape != shape:
            raise FormatError(
                f"{place}: {name} has shape {list(array.shape)}, not {words} = {list(shape)}; "
                "record every layer and token of the pass"
            )
        arrays[name] = None if array is None else _cast(array, LISTS[name], f"{place}: {name}")
    return arrays


def _cast(array: npt.NDArray[Any], dtype: type[np.generic], place: str) -> npt.NDArray[Any]:
    if array.dtype == dtype:
        return array.flatten()
    kinds = "b" if dtype is np.bool_ else "iu"
    if array.dtype.kind not in kinds:
        raise FormatError(
            f"{place} has type {array.dtype}, not {np.dtype(dtype)}; convert it before recording"
        )
    cast = array.ravel().astype(dtype)
    wrong = np.flatnonzero(cast != array.ravel())
    if wrong.size:
        raise FormatError(
            f"{place} holds {array.ravel()[wrong[0]]}, outside the range of {np.dtype(dtype)}; "
            "record ids and counts, unchanged and not negative"
        )
    return cast


def _one_list(array: npt.NDArray[Any] | None, dtype: type[np.generic]) -> ListColumn:
    values = np.zeros(0, dtype=dtype) if array is None else array
    return ListColumn(
        values=values,
        lengths=np.array([values.size], dtype=np.int64),
        present=np.array([array is not None]),
    )


def _join_lists(parts: Sequence[ListColumn]) -> ListColumn:
    return ListColumn(
        values=np.concatenate([part.values for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        present=np.concatenate([part.present for part in parts]),
    )
