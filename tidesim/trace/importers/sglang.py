"""SGLang's expert distribution recorder: its CSV of counts, or its ``logical_count`` as npy.

Recent versions write a pickle (``.pt``), which is never read: load it where it was written and save
``logical_count``, [passes, layers, experts], with numpy.save.
"""

from pathlib import Path

import numpy as np

from tidesim.errors import FormatError
from tidesim.trace.importers.arrays import count_sheets, load_npy, tokens_of
from tidesim.trace.importers.recording import ImportOptions, Ints, Recording, Sheet, complete
from tidesim.trace.importers.tables import layer_index, rows_of

HEADER = ("layer_id", "expert_id", "count")


def read(path: Path, options: ImportOptions) -> Recording:
    """Read a CSV as one pass over all its tokens, or an npy array as passes of one request.

    Raises
    ------
    NotFoundError, FormatError
        No such file, a pickle, or rows and counts that no tokens can have.
    """
    if path.suffix == ".npy":
        array = load_npy(path, ("passes", "layers", "experts"))
        sheets = count_sheets(array, options.model, str(path), by_request=False)
    elif path.suffix == ".csv":
        sheets = [_table(path, options)]
    else:
        raise FormatError(
            f"{path}: neither .csv nor .npy; a .pt file is a pickle, which tidesim never reads: "
            "load it where it was recorded and write its logical_count with numpy.save"
        )
    return complete(sheets, options, str(path))


def _table(path: Path, options: ImportOptions) -> Sheet:
    model = options.model
    found: dict[int, Ints] = {}
    for line, (layer, expert, count) in rows_of(path, HEADER, header="needed"):
        place = f"{path}: line {line}"
        at = layer_index(layer, model, place)
        if not 0 <= expert < model.num_experts:
            raise FormatError(
                f"{place}: expert_id is {expert}, not within 0 to {model.num_experts - 1}; give "
                "the --model that was recorded, or repair the id"
            )
        counts = found.setdefault(at, np.zeros(model.num_experts, dtype=np.int64))
        if counts[expert] or not count:
            rule = "counted twice" if counts[expert] else "counted 0 times"
            raise FormatError(
                f"{place}: layer {layer}, expert {expert} is {rule}; give every used expert one row"
            )
        counts[expert] = count
    tokens = {at: tokens_of(row, model, f"{path}: layer {model.first_k_dense_replace + at}")
              for at, row in sorted(found.items())}  # fmt: skip
    most = max(tokens.values())
    layers = [found[at] if tokens.get(at) == most else None for at in range(model.moe_layers)]
    return Sheet(place="the recording", tokens=most, layers=layers)
