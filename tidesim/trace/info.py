"""What a trace holds, in numbers a person reads first."""

from collections import Counter
from typing import Any

from tidesim.trace.passes import Kind, Trace


def trace_info(trace: Trace) -> dict[str, Any]:
    """Summarise a trace in one pass over it, which also checks a file's rows.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    dict
        JSON values: ``model``, ``provenance``, ``requests`` {total, split {name: n},
        prompt_kind {name: n}}, ``passes`` {total, kind: n}, ``blocks``, ``steps_per_block``
        (mean, None without blocks), ``tokens`` {prompt, generated, computed}, ``routing``
        {experts: passes, counts: passes}, ``sha256``, ``checkpoint_sha256``, ``source``,
        ``settings``, ``seed``, ``tool_version``.

    Raises
    ------
    FormatError
        A row of the file breaks a rule.

    Examples
    --------
    >>> from tidesim.trace.io import load_trace
    >>> trace_info(load_trace("tide-tiny-mixed").only((3,)))["passes"]
    {'total': 20, 'prefill': 1, 'denoise': 18, 'commit': 1}
    """
    meta = trace.meta
    return {
        "model": meta.model.name,
        "provenance": meta.provenance,
        "requests": _requests(trace),
        **_passes(trace),
        "sha256": trace.sha256,
        "checkpoint_sha256": meta.checkpoint_sha256,
        "source": meta.source,
        "settings": dict(meta.settings),
        "seed": meta.seed,
        "tool_version": meta.tool_version,
    }


def _passes(trace: Trace) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    routing: Counter[str] = Counter()
    blocks: set[tuple[int, int]] = set()
    computed = 0
    for pass_ in trace:
        kinds[str(pass_.kind)] += 1
        routing["counts" if pass_.experts is None else "experts"] += 1
        computed += pass_.tokens
        if pass_.kind is Kind.DENOISE:
            blocks.add((pass_.request, pass_.block))
    infos = trace.meta.requests
    return {
        "passes": {"total": kinds.total(), **{str(kind): kinds[kind] for kind in Kind}},
        "blocks": len(blocks),
        "steps_per_block": kinds[Kind.DENOISE] / len(blocks) if blocks else None,
        "tokens": {
            "prompt": sum(info.prompt_tokens for info in infos),
            "generated": sum(info.generated_tokens for info in infos),
            "computed": computed,
        },
        "routing": {name: routing[name] for name in ("experts", "counts")},
    }


def _requests(trace: Trace) -> dict[str, Any]:
    infos = trace.meta.requests
    splits = Counter(info.split for info in infos)
    kinds = Counter(info.prompt_kind for info in infos)
    return {
        "total": len(infos),
        "split": {name: splits[name] for name in ("train", "heldout")},
        "prompt_kind": {name: kinds[name] for name in sorted(kinds)},
    }
