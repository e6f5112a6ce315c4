"""What an importer reads, before it is a trace: passes without numbers, some without every layer.

Dimension letters: L mixture layers, T tokens of a pass, K experts per token, E experts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

import numpy as np
import numpy.typing as npt

from tidesim.errors import FormatError
from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Kind, Pass

Ints = npt.NDArray[np.int64]
Note = str | int | float | bool | None


class Missing(StrEnum):
    """What to do where a pass was not recorded in every mixture layer."""

    REFUSE = "refuse"
    DROP_LAYERS = "drop-layers"
    DROP_PASSES = "drop-passes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the file does not say.

    Attributes
    ----------
    model : ModelSpec
        Whose routing was recorded.
    tokens_per_pass : int
        Tokens that one pass computes, where the file is a stream of tokens.
    steps_per_block : int
        Consecutive passes that are steps of one block.
    prompt_tokens : int
        Recorded tokens of the prompt; their passes become the request's prefill.
    context : int
        Tokens before the first recorded one, served from the prefix cache.
    first_tokens : int or None
        Read only so many tokens of the stream.
    missing : Missing
    """

    model: ModelSpec
    tokens_per_pass: int
    steps_per_block: int = 1
    prompt_tokens: int = 0
    context: int = 0
    first_tokens: int | None = None
    missing: Missing = Missing.REFUSE


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPass:
    """One pass as recorded.

    Attributes
    ----------
    place : str
        Where it stands in the file, for error messages.
    tokens : int
    experts : [L, T, K] int or None
    counts : [L, E] int or None
        One of the two is given, unless the pass is left out: then it only takes its number.
    request : int
    """

    place: str
    tokens: int
    experts: Ints | None = None
    counts: Ints | None = None
    request: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One pass as recorded, layer by layer, None where a layer is missing.

    Attributes
    ----------
    place : str
        Where it stands in the file, for error messages.
    tokens : int
    layers : sequence of [T, K] or [E] int or None
        By mixture layer; empty if no layer was recorded.
    request : int
    """

    place: str
    tokens: int
    layers: Sequence[Ints | None]
    request: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What an importer returns.

    Attributes
    ----------
    model : ModelSpec
        Of the layers that are there; its name says if those are not all.
    passes : iterable of RecordedPass
        Read once, in order.
    notes : dict
        What the trace's settings should say, such as what was left out.
    source : str
        Where the file itself says that it comes from.
    steps_per_block : int or None
        As the file says; None leaves it to the options.
    generated_tokens : int or None
        As the file says; None counts the tokens of the blocks.
    """

    model: ModelSpec
    passes: Iterable[RecordedPass]
    notes: dict[str, Note]
    source: str = ""
    steps_per_block: int | None = None
    generated_tokens: int | None = None


def complete(sheets: Sequence[Sheet], options: ImportOptions, source: str) -> Recording:
    """Turn sheets into a recording without gaps, or refuse gaps, as the options say.

    Raises
    ------
    FormatError
        Layers are missing and are to be refused, or nothing is left without them.
    """
    dense = options.model.first_k_dense_replace
    here = np.array([[layer is not None for layer in sheet.layers] for sheet in sheets])
    if options.missing is Missing.DROP_LAYERS:
        kept = np.flatnonzero(here.all(axis=0))
    else:
        kept = np.arange(options.model.moe_layers)
    whole = np.asarray(here[:, kept].all(axis=1), dtype=np.bool_)
    if options.missing is Missing.REFUSE and not whole.all():
        _refuse_gap(sheets, here, options.model, source)
    if not (len(kept) and whole.any()):
        raise FormatError(
            f"{source}: --missing {options.missing} leaves nothing; record every layer of a pass, "
            "or choose another --missing"
        )
    absent = [str(dense + layer) for layer in range(here.shape[1]) if layer not in kept]
    notes: dict[str, Note] = {"missing": str(options.missing)} if not here.all() else {}
    notes |= {"left_out_layers": ", ".join(absent)} if absent else {}
    notes |= {} if whole.all() else {"left_out_passes": int((~whole).sum())}
    model = _of_layers(options.model, len(kept))
    passes = [_join(sheet, kept, whole=bool(w)) for sheet, w in zip(sheets, whole, strict=True)]
    return Recording(model=model, passes=passes, notes=notes)


def _of_layers(model: ModelSpec, kept: int) -> ModelSpec:
    """Return a model of fewer mixture layers; its name says so, wherever it is printed."""
    if kept == model.moe_layers:
        return model
    name = f"{model.name} ({kept} of {model.moe_layers} mixture layers)"
    layers = model.first_k_dense_replace + kept
    return model.model_copy(update={"name": name, "num_hidden_layers": layers})


def _refuse_gap(
    sheets: Sequence[Sheet], here: npt.NDArray[np.bool_], model: ModelSpec, source: str
) -> None:
    number, layer = (int(index) for index in np.argwhere(~here)[0])
    raise FormatError(
        f"{source}: {sheets[number].place} has no routing of layer "
        f"{model.first_k_dense_replace + layer} for all its tokens ({(~here).sum()} of {here.size} "
        "passes × layers are so); give --missing drop-layers to keep the layers that every pass "
        "has, or --missing drop-passes to keep the passes that have every layer"
    )


def _join(sheet: Sheet, kept: Ints, *, whole: bool) -> RecordedPass:
    out = RecordedPass(place=sheet.place, tokens=sheet.tokens, request=sheet.request)
    if not whole:
        return out
    array = np.stack([layer for layer in map(sheet.layers.__getitem__, kept) if layer is not None])
    return replace(out, experts=array) if array.ndim == 3 else replace(out, counts=array)


def number_passes(recording: Recording, options: ImportOptions, source: str) -> Iterator[Pass]:
    """Yield the passes of a trace: prefill first, then blocks of equally many steps.

    Blocks follow each other: one begins where the last ended, the first behind `context` and
    prompt. A pass that is left out keeps its step.

    Raises
    ------
    FormatError
        The prompt ends inside a pass, or a block's passes compute different numbers of tokens.
    """
    for request, passes in groupby(recording.passes, key=lambda item: item.request):
        yield from _request_passes(request, passes, recording, options, source)


def _request_passes(
    request: int,
    passes: Iterator[RecordedPass],
    recording: Recording,
    options: ImportOptions,
    source: str,
) -> Iterator[Pass]:
    prompt = _prompt_passes(passes, options.prompt_tokens, source)
    counts = [_histogram(item, recording.model.num_experts) for item in prompt]
    known = [item for item in counts if item is not None]
    if known and len(known) == len(prompt):
        yield Pass(
            request=request, block=-1, step=0, kind=Kind.PREFILL,
            tokens=options.prompt_tokens, context=options.context,
            histogram=np.sum(known, axis=0).astype(np.uint32),
        )  # fmt: skip
    context = options.context + options.prompt_tokens
    first, tokens = context // recording.model.block_length, 0
    for number, item in enumerate(passes):
        block, step = divmod(number, recording.steps_per_block or options.steps_per_block)
        if step == 0:
            context, tokens = context + tokens, item.tokens
        tokens = tokens or item.tokens  # a pass that is left out may not say its tokens
        if item.tokens not in {tokens, 0}:
            raise FormatError(
                f"{source}: {item.place} computes {item.tokens} tokens after {tokens} in the same "
                "block, but all steps of a block compute the same positions; give "
                "--steps-per-block, --prompt-tokens and --first-tokens as they were recorded"
            )
        if item.experts is None and item.counts is None:
            continue
        yield Pass(
            request=request, block=first + block, step=step, kind=Kind.DENOISE, tokens=tokens,
            context=context,
            experts=None if item.experts is None else item.experts.astype(np.uint16),
            histogram=None if item.counts is None else item.counts.astype(np.uint32),
        )  # fmt: skip


def _prompt_passes(
    passes: Iterator[RecordedPass], prompt_tokens: int, source: str
) -> list[RecordedPass]:
    taken: list[RecordedPass] = []
    there = 0
    while there < prompt_tokens:
        item = next(passes, None)
        if item is None or there + item.tokens > prompt_tokens:
            place = "the file" if item is None else item.place
            raise FormatError(
                f"{source}: --prompt-tokens is {prompt_tokens}, but {place} ends at "
                f"{there + (0 if item is None else item.tokens)} tokens; give the tokens of whole "
                "passes"
            )
        taken.append(item)
        there += item.tokens
    return taken


def _histogram(item: RecordedPass, num_experts: int) -> Ints | None:
    if item.experts is None:
        return item.counts
    return np.stack([np.bincount(row.ravel(), minlength=num_experts) for row in item.experts])
