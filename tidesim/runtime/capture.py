"""Capture a trace: decode prompts and record every pass with the experts each token used."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

import tidesim
from tidesim.model_spec import ModelSpec
from tidesim.runtime.decode import Decoded, DecodeSettings, PassEvent, decode
from tidesim.runtime.model import Transformer
from tidesim.runtime.prompts import Prompt
from tidesim.trace.io import TraceWriter
from tidesim.trace.passes import Kind, Pass, RequestInfo, TraceMeta


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What a capture wrote.

    Attributes
    ----------
    requests : tuple of RequestInfo
    decoded : tuple of Decoded
    decode_s : float
        Wall-clock seconds spent decoding.
    record_s : float
        Wall-clock seconds spent on recording, on top of decoding.
    """

    requests: tuple[RequestInfo, ...]
    decoded: tuple[Decoded, ...]
    decode_s: float
    record_s: float

    @property
    def overhead(self) -> float:
        """Recording time as a share of decoding time."""
        return self.record_s / self.decode_s


def to_pass(event: PassEvent, spec: ModelSpec, *, request: int) -> Pass:
    """Convert an event to a row of a trace; a prefill pass keeps counts only.

    Parameters
    ----------
    event : PassEvent
    spec : ModelSpec
    request : int
    """
    routes = event.routes.to(torch.int32).cpu().numpy().astype(np.uint16)
    row = Pass(
        request=request,
        block=event.block,
        step=event.step,
        kind=event.kind,
        tokens=event.tokens,
        context=event.context,
        masked=None if event.masked is None else event.masked.cpu().numpy(),
        committed=None if event.committed is None else event.committed.cpu().numpy(),
        experts=routes,
    )
    if event.kind is not Kind.PREFILL:
        return row
    histogram = row.counts(spec.num_experts).astype(np.uint32)
    return replace(row, experts=None, histogram=histogram)


def capture(
    model: Transformer,
    prompts: Sequence[tuple[Prompt, list[int]]],
    settings: DecodeSettings,
    out: Path,
    *,
    checkpoint_sha256: str,
    source: str = "",
    observe: Callable[[int, PassEvent], None] = lambda _request, _event: None,
) -> Captured:
    """Decode prompts one after another and write their trace.

    Parameters
    ----------
    model : Transformer
    prompts : sequence of (Prompt, token ids)
    settings : DecodeSettings
        Either window; the trace is the same up to the last commit pass of a request.
    out : Path
        Parquet file; it appears whole when the last request is done.
    checkpoint_sha256 : str
        From `checkpoint_digest`.
    source : str
        Where the prompts came from.
    observe : callable
        Called with the request's number and every event while decoding goes on.

    Raises
    ------
    SettingError, OutputError
        A prompt does not suit the model; `out` cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tidesim.runtime.checkpoint import load_model, load_tokenizer
    >>> prompt = Prompt(text="import os")
    >>> ids = prompt.tokens(load_tokenizer("tide-tiny"), chat=False)
    >>> settings = DecodeSettings(gen_length=8)
    >>> out = {"out": Path("t.parquet"), "checkpoint_sha256": "0" * 64}
    >>> captured = capture(load_model("tide-tiny"), [(prompt, ids)], settings, **out)
    >>> len(captured.requests), len(captured.decoded[0].tokens)
    (1, 8)
    """
    infos: list[RequestInfo] = []
    results: list[Decoded] = []
    started = time.perf_counter()
    with TraceWriter(out, model=model.spec) as writer:
        for request, (prompt, ids) in enumerate(prompts):
            events, decoded = _decode_one(model, ids, settings, request, observe)
            for row in _rows(events, model.spec, request):
                writer.append(row)
            infos.append(_info(request, prompt, ids, decoded))
            results.append(decoded)
        writer.close(
            TraceMeta(
                model=model.spec,
                provenance="captured",
                requests=tuple(infos),
                checkpoint_sha256=checkpoint_sha256,
                source=source,
                settings=_settings(settings, model),
                seed=settings.seed,
                tool_version=tidesim.__version__,
            )
        )
    decode_s = sum(result.seconds for result in results)
    return Captured(
        requests=tuple(infos),
        decoded=tuple(results),
        decode_s=decode_s,
        record_s=time.perf_counter() - started - decode_s,
    )


def _decode_one(
    model: Transformer,
    ids: list[int],
    settings: DecodeSettings,
    request: int,
    observe: Callable[[int, PassEvent], None],
) -> tuple[list[PassEvent], Decoded]:
    events: list[PassEvent] = []

    def keep(event: PassEvent) -> None:
        events.append(event)
        observe(request, event)

    return events, decode(model, ids, settings, observe=keep)


def _rows(events: Iterable[PassEvent], spec: ModelSpec, request: int) -> Iterable[Pass]:
    return (to_pass(event, spec, request=request) for event in events)


def _info(request: int, prompt: Prompt, ids: list[int], decoded: Decoded) -> RequestInfo:
    return RequestInfo(
        request=request,
        prompt_kind=prompt.kind,
        prompt_source=prompt.source,
        prompt_tokens=len(ids),
        generated_tokens=len(decoded.tokens),
        split=prompt.split,
    )


def _settings(
    settings: DecodeSettings, model: Transformer
) -> dict[str, str | int | float | bool | None]:
    weight = model.lm_head.weight
    return asdict(settings) | {
        "window": str(settings.window),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
