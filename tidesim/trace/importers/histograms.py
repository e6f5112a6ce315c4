"""Histograms of single layers as JSON: ``rows`` of [pass, layer, masked positions, counts].

Counts are pairs [expert id, tokens] of the experts that serve any. Passes are steps of one block of
one request; layers are numbered as in the whole model. ``description`` and ``source``, if there,
become the trace's source. Which positions are masked is not in the file, only how many.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tidesim.errors import FormatError, NotFoundError
from tidesim.model_spec import ModelSpec
from tidesim.trace.importers.arrays import tokens_of
from tidesim.trace.importers.recording import (
    ImportOptions,
    Ints,
    Note,
    Recording,
    Sheet,
    complete,
)
from tidesim.trace.importers.tables import LARGEST, layer_index

LAST_STEP = 32767  # a trace counts steps in 16 bits
Cells = dict[int, dict[int, Ints]]  # pass: mixture layer: counts


def read(path: Path, options: ImportOptions) -> Recording:
    """Read the steps of one block.

    Raises
    ------
    NotFoundError, FormatError
        No such file, or a row that is malformed or contradicts another.
    """
    content = _load(path)
    cells: Cells = {}
    masked: dict[int, int] = {}
    for number, row in enumerate(content["rows"]):
        _add(cells, masked, row, options.model, f"{path}: rows[{number}]")
    tokens = {tokens_of(counts, options.model, f"{path}: pass {at}, layer "
                        f"{options.model.first_k_dense_replace + layer}")
              for at, layers in cells.items() for layer, counts in layers.items()}  # fmt: skip
    if len(tokens) > 1:
        raise FormatError(
            f"{path}: counts are of {min(tokens)} and of {max(tokens)} tokens, but all steps of a "
            "block compute the same positions; give the rows of one block"
        )
    first, last = min(cells), max(cells)
    if last - first > LAST_STEP:
        raise FormatError(
            f"{path}: passes are {first} to {last}, but a block has at most {LAST_STEP + 1} steps; "
            "give the passes of one block"
        )
    sheets = [
        Sheet(
            place=f"pass {at}",
            tokens=max(tokens),
            layers=[cells.get(at, {}).get(layer) for layer in range(options.model.moe_layers)],
        )
        for at in range(first, last + 1)
    ]
    recording = complete(sheets, options, str(path))
    notes: dict[str, Note] = {
        "first_pass": first,
        "masked_positions": ", ".join(str(masked.get(at, "?")) for at in range(first, last + 1)),
    }
    return Recording(
        model=recording.model,
        passes=recording.passes,
        notes=recording.notes | notes,
        source=" ".join(
            str(content[key]).rstrip(".") + "."
            for key in ("description", "source")
            if content.get(key)
        ),
        steps_per_block=len(sheets),
        generated_tokens=_written(masked, str(path)),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; give the JSON of histograms") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error}); repair or replace it") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise FormatError(f"{path}: rows is missing; give a JSON object with a list of rows")
    if not content["rows"]:
        raise FormatError(f"{path}: holds no rows; record at least one pass")
    return content


def _add(cells: Cells, masked: dict[int, int], row: Any, model: ModelSpec, place: str) -> None:
    if not (isinstance(row, list) and len(row) == 4 and all(map(_is_count, row[:3]))):
        raise FormatError(
            f"{place} is {str(row)[:60]}, not [pass, layer, masked positions, counts]; repair it"
        )
    at, layer, left, pairs = row
    index = layer_index(layer, model, place)
    if index in cells.setdefault(at, {}):
        raise FormatError(f"{place}: pass {at}, layer {layer} stands twice; keep one of the rows")
    if masked.setdefault(at, left) != left:
        raise FormatError(
            f"{place}: pass {at} has {left} masked positions after {masked[at]} in another row; "
            "give all layers of a pass the same"
        )
    cells[at][index] = _counts(pairs, model, place)


def _counts(pairs: Any, model: ModelSpec, place: str) -> Ints:
    counts = np.zeros(model.num_experts, dtype=np.int64)
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        fits = isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair))
        if not fits or pair[0] >= model.num_experts or not pair[1] or counts[pair[0]]:
            raise FormatError(
                f"{place}: counts hold {str(pair)[:60]}, not [expert id, tokens] with an id below "
                f"{model.num_experts}, once per layer, and 1 token or more; repair the pair"
            )
        counts[pair[0]] = pair[1]
    return counts


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _written(masked: dict[int, int], source: str) -> int:
    """Return how many positions are decoded from the first pass to the last."""
    left = [masked[at] for at in sorted(masked)]
    if left != sorted(left, reverse=True):
        raise FormatError(
            f"{source}: masked positions are {', '.join(map(str, left))} from pass to pass, but a "
            "step never masks a position again; give the passes of one block in order"
        )
    return left[0] - left[-1]
