"""llama.cpp's moe-trace example: a CSV ``layer,expert`` with one row per token and chosen expert.

The rows of a forward pass stand together, layer by layer in rising order, in a layer token by token;
where the layer falls, the next pass begins.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tidesim.errors import FormatError
from tidesim.trace.importers.arrays import check_ids
from tidesim.trace.importers.recording import ImportOptions, Ints, Recording, Sheet, complete
from tidesim.trace.importers.tables import layer_index, rows_of

Layers = dict[int, tuple[int, list[int]]]  # mixture layer: its first line, its expert ids


def read(path: Path, options: ImportOptions) -> Recording:
    """Read the passes of one request.

    llama.cpp computes only the tokens it needs logits of in the last layer of a prompt; that layer
    counts as missing in such a pass.

    Raises
    ------
    NotFoundError, FormatError
        No such file, a malformed row, or ids that no token can have.
    """
    if options.model.moe_layers < 2:
        raise FormatError(
            f"{path}: {options.model.name} has one mixture layer, so the file does not say where a "
            "pass ends; record another model"
        )
    sheets = [_sheet(layers, options, str(path)) for layers in _passes(path, options)]
    return complete(sheets, options, str(path))


def _passes(path: Path, options: ImportOptions) -> Iterator[Layers]:
    layers: Layers = {}
    last = -1
    for line, (layer, expert) in rows_of(path, ("layer", "expert"), header="allowed"):
        at = layer_index(layer, options.model, f"{path}: line {line}")
        if at < last:
            yield layers
            layers = {}
        layers.setdefault(at, (line, []))[1].append(expert)
        last = at
    yield layers


def _sheet(layers: Layers, options: ImportOptions, source: str) -> Sheet:
    model = options.model
    routed = {at: _ids(*found, options, source) for at, found in layers.items()}
    tokens = max(len(ids) for ids in routed.values())
    return Sheet(
        place=f"the pass at line {min(line for line, _ in layers.values())}",
        tokens=tokens,
        layers=[
            routed[at] if at in routed and len(routed[at]) == tokens else None
            for at in range(model.moe_layers)
        ],
    )


def _ids(line: int, flat: list[int], options: ImportOptions, source: str) -> Ints:
    top_k = options.model.num_experts_per_tok
    if len(flat) % top_k:
        raise FormatError(
            f"{source}: line {line}: {len(flat)} rows follow for one layer, which is no multiple of "
            f"top-{top_k}; give the --model that was recorded, or the whole file"
        )
    ids = np.array(flat, dtype=np.int64).reshape(-1, top_k)
    check_ids(
        ids[None], options.model.num_experts, source,
        lambda _, token: f"lines {line + token * top_k} to {line + (token + 1) * top_k - 1}",
    )  # fmt: skip
    return ids
