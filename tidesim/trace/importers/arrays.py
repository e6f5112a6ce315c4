"""Arrays of expert ids and of counts that others wrote, read without unpickling and checked.

Dimension letters: L mixture layers, K experts per token, E experts.
"""

from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from tidesim.errors import FormatError, NotFoundError
from tidesim.model_spec import ModelSpec
from tidesim.strict import reason
from tidesim.trace.importers.recording import Ints, Sheet

LONGEST_HEADER = 10_000  # bytes; numpy itself trusts no longer one


def load_npy(path: Path, axes: tuple[str, str, str]) -> npt.NDArray[Any]:
    """Map a three-dimensional array of numbers from an npy file into memory.

    Raises
    ------
    NotFoundError, FormatError
        No such file, or not such an array; nothing is unpickled.
    """
    words = f"an npy array [{', '.join(axes)}] of numbers"
    try:
        _check_start(path, words)
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; give the npy file that was recorded") from None
    except FormatError:
        raise
    except (OSError, ValueError, EOFError, TypeError, OverflowError, TokenError) as error:
        raise FormatError(
            f"{path}: not a plain npy array ({reason(error)}); tidesim never unpickles, so load it where "
            "it was recorded and write it with numpy.save"
        ) from None
    if array.ndim != 3 or array.dtype.kind not in "iuf" or not array.size:
        raise FormatError(
            f"{path}: holds {array.dtype} of shape {list(array.shape)}, not {words}; save that"
        )
    return array


def _check_start(path: Path, words: str) -> None:
    """Refuse an archive, and a header too long to be one, before numpy reads it."""
    with path.open("rb") as file:
        start = file.read(12)
    if start.startswith(b"PK"):
        raise FormatError(f"{path}: an archive of arrays, not {words}; save the one array alone")
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if start.startswith(b"\x93NUMPY") and length > LONGEST_HEADER:
        raise FormatError(f"{path}: its header is too long for {words}; save that alone")


def check_size(got: int, needed: int, words: str, model: ModelSpec, source: str) -> None:
    """Refuse an axis that is not the model's.

    Raises
    ------
    FormatError
        Names both sizes.
    """
    if got != needed:
        raise FormatError(
            f"{source}: holds {got} {words}, but {model.name} has {needed}; give the --model that "
            "was recorded"
        )


def check_ids(
    ids: Ints, num_experts: int, source: str, place: Callable[[int, int], str], *, first: int = 0
) -> None:
    """Refuse ids that no token can have.

    Parameters
    ----------
    ids : [L, T, K] int
    num_experts : int
    source : str
    place : callable
        Names a mixture layer and a token of the file.
    first : int
        Number in the file of the first token.

    Raises
    ------
    FormatError
        An id out of range, or twice in one token's top-k.
    """
    outside = np.argwhere((ids < 0) | (ids >= num_experts))
    if outside.size:
        layer, token, rank = (int(index) for index in outside[0])
        raise FormatError(
            f"{source}: {place(layer, first + token)}: expert id is {ids[layer, token, rank]}, not "
            f"within 0 to {num_experts - 1}; give the --model that was recorded, or repair the id"
        )
    ordered = np.sort(ids, axis=-1)
    twice = np.argwhere(ordered[..., 1:] == ordered[..., :-1])
    if twice.size:
        layer, token, rank = (int(index) for index in twice[0])
        raise FormatError(
            f"{source}: {place(layer, first + token)}: expert id {ordered[layer, token, rank]} "
            f"stands twice in one token's top-{ids.shape[-1]}, but a token uses an expert once; "
            "repair the ids"
        )


def tokens_of(counts: Ints, model: ModelSpec, place: str) -> int:
    """Return the tokens that a histogram of one layer counts.

    Parameters
    ----------
    counts : [E] int
    model : ModelSpec
    place : str

    Raises
    ------
    FormatError
        The counts are those of no number of tokens.
    """
    total, top_k = int(counts.sum()), model.num_experts_per_tok
    if total % top_k:
        raise FormatError(
            f"{place}: counts sum to {total}, which is no multiple of top-{top_k}; count every "
            "token once per chosen expert"
        )
    if counts.max() > total // top_k:
        raise FormatError(
            f"{place}: counts give one expert {counts.max()} of {total // top_k} tokens; a token "
            "uses an expert once, so repair the counts"
        )
    return total // top_k


def count_sheets(
    array: npt.NDArray[Any], model: ModelSpec, source: str, *, by_request: bool
) -> list[Sheet]:
    """Turn counts [N, layers, E] into one sheet per entry.

    Recorders reserve entries and rows: an entry of zeros alone is a sheet without layers, and the
    layers may be all hidden layers, if the dense ones hold zeros.

    Parameters
    ----------
    array : [N, layers, E]
        Whole numbers, as floats or integers.
    model : ModelSpec
    source : str
    by_request : bool
        Entries are requests; otherwise passes of one request.

    Raises
    ------
    FormatError
        A value is no count. A layer that counts other tokens than most is None in its sheet.
    """
    check_size(array.shape[2], model.num_experts, "experts", model, source)
    dense = model.first_k_dense_replace if array.shape[1] == model.num_hidden_layers else 0
    check_size(array.shape[1] - dense, model.moe_layers, "mixture layers", model, source)
    return [
        _count_sheet(entry, number, dense, model, source, by_request=by_request)
        for number, entry in enumerate(array)
    ]


def _count_sheet(
    entry: npt.NDArray[Any], number: int, dense: int, model: ModelSpec, source: str, *,
    by_request: bool,
) -> Sheet:  # fmt: skip
    whole = np.isfinite(entry) & (entry >= 0) & (entry < 2**31) & (entry == np.floor(entry))
    wrong = np.argwhere(~whole)
    if wrong.size:
        index = ", ".join(map(str, (number, *wrong[0])))
        raise FormatError(
            f"{source}: [{index}] is {entry[tuple(wrong[0])]}, but counts are whole numbers from 0 "
            "to 2**31 - 1; save the counts as they were recorded"
        )
    counts = entry.astype(np.int64)
    if counts[:dense].any():
        raise FormatError(
            f"{source}: [{number}, 0]: layer 0 is dense in {model.name} but has counts; give the "
            "--model that was recorded"
        )
    layers = list(counts[dense:])
    tokens = [tokens_of(row, model, f"{source}: [{number}, {dense + at}]")
              for at, row in enumerate(layers)]  # fmt: skip
    most = max(tokens)
    return Sheet(
        place=f"entry {number}",
        tokens=most,
        layers=[row if found and found == most else None
                for row, found in zip(layers, tokens, strict=True)],
        request=number if by_request else 0,
    )  # fmt: skip
