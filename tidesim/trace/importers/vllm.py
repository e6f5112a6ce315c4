"""vLLM's ``routed_experts``: an npy array [tokens, layers, top-k] of expert ids.

The layers are the mixture layers, or all hidden layers with zeros for the dense ones.
"""

from pathlib import Path

import numpy as np

from tidesim.errors import FormatError
from tidesim.trace.importers.arrays import check_size, load_npy
from tidesim.trace.importers.recording import ImportOptions, Ints, Recording
from tidesim.trace.importers.tokens import cut


def read(path: Path, options: ImportOptions) -> Recording:
    """Read routed experts of one request.

    Raises
    ------
    NotFoundError, FormatError
        No such file, another array, or ids that no token can have.
    """
    model, source = options.model, str(path)
    array = load_npy(path, ("tokens", "mixture layers", "top-k"))
    if array.dtype.kind == "f":
        raise FormatError(f"{path}: holds {array.dtype}, but expert ids are integers; save those")
    dense = model.first_k_dense_replace if array.shape[1] == model.num_hidden_layers else 0
    if array[:, :dense].any():
        raise FormatError(
            f"{path}: layer 0 is dense in {model.name} but has expert ids; give the --model that "
            "was recorded"
        )
    array = array[:, dense:]
    check_size(array.shape[1], model.moe_layers, "mixture layers", model, source)
    check_size(array.shape[2], model.num_experts_per_tok, "experts per token", model, source)
    position = 0

    def take(count: int) -> Ints:
        nonlocal position
        part = array[position : position + count]
        position += len(part)
        return np.ascontiguousarray(part.transpose(1, 0, 2), dtype=np.int64)

    passes = cut(take, options, source, lambda layer, token: f"[{token}, {layer}]")
    return Recording(model=model, passes=passes, notes={})
