from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file
from strategies import small_model, traces

from tidesim.errors import FormatError
from tidesim.model_spec import load_model_spec
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta, Window
from tidesim.trace.windows import windowed

GOLDEN = Path(__file__).parent / "golden" / "llada2-a"


def slow_counts(pass_, model):
    """Count tokens per expert one by one."""
    if pass_.histogram is not None:
        return pass_.histogram.astype(int).tolist()
    counts = [[0] * model.num_experts for _ in range(model.moe_layers)]
    for layer, tokens in enumerate(pass_.experts.tolist()):
        for token in tokens:
            for expert in token:
                counts[layer][expert] += 1
    return counts


@given(traces())
@settings(max_examples=40, deadline=None)
def test_window_block_yields_every_pass_as_stored(trace):
    """Kind, tokens, context and counts are those of the row."""
    for pass_, seen in zip(trace, windowed(trace, Window.BLOCK), strict=True):
        assert seen.counts.tolist() == slow_counts(pass_, trace.meta.model)
        assert seen.counts.dtype == np.int64
        names = ("request", "block", "step", "kind", "tokens", "context")
        assert [getattr(seen, n) for n in names] == [getattr(pass_, n) for n in names]


@given(traces())
@settings(max_examples=40, deadline=None)
def test_window_full_adds_the_prefix_to_every_denoise_pass(trace):
    """Checked against sums over all earlier prefill and commit passes of the request."""
    rows, model = list(trace), trace.meta.model
    denoise = [(n, p) for n, p in enumerate(rows) if p.kind is Kind.DENOISE]
    for (n, pass_), seen in zip(denoise, windowed(trace, Window.FULL), strict=True):
        stored = [p for p in rows[:n] if p.request == pass_.request and p.kind is not Kind.DENOISE]
        expected = np.sum([slow_counts(p, model) for p in [*stored, pass_]], axis=0)

        assert seen.counts.tolist() == expected.tolist()
        assert seen.tokens == sum(p.tokens for p in [*stored, pass_])
        assert (seen.context, seen.kind) == (0, Kind.DENOISE)
        assert (seen.counts.sum(axis=1) == seen.tokens * model.num_experts_per_tok).all()
        assert (seen.request, seen.block, seen.step) == (pass_.request, pass_.block, pass_.step)


@given(traces())
@settings(max_examples=30, deadline=None)
def test_generated_blocks_are_numbered_from_0_in_each_request(trace):
    """Prefill is -1, whatever the absolute number of the first block."""
    for window in Window:
        for seen in windowed(trace, window):
            blocks = sorted({p.block for p in trace if p.request == seen.request} - {-1})
            number = -1 if seen.kind is Kind.PREFILL else blocks.index(seen.block)
            assert seen.generated_block == number


@given(traces())
@settings(max_examples=20, deadline=None)
def test_one_request_looks_the_same_alone(trace):
    """Windows do not leak from one request into the next."""
    for window in Window:
        together = list(windowed(trace, window))
        for info in trace.meta.requests:
            alone = list(windowed(trace.only([info.request]), window))
            mine = [seen for seen in together if seen.request == info.request]
            for a, b in zip(alone, mine, strict=True):
                assert (a.counts == b.counts).all()
                assert (a.tokens, a.generated_block) == (b.tokens, b.generated_block)


def denoise(block, context, **other):
    model = small_model()
    histogram = np.zeros((model.moe_layers, model.num_experts), np.uint32)
    histogram[:, :2] = 4
    fields = {"request": 0, "block": block, "step": 0, "kind": Kind.DENOISE, "tokens": 4}
    return Pass(**(fields | other), context=context, histogram=histogram)


def trace_of(*rows, model=None):
    info = RequestInfo(request=0, prompt_tokens=0, generated_tokens=0)
    meta = TraceMeta(model=model or small_model(), provenance="imported", requests=(info,))
    return Trace(meta, rows)


def test_window_full_needs_the_commit_of_a_finished_block():
    """A block that another follows must say what its cached routing is."""
    rows = (denoise(0, 0), denoise(1, 4))

    with pytest.raises(FormatError, match="block 0 of request 0 is followed by block 1 but has no"):
        list(windowed(trace_of(*rows), Window.FULL))
    assert len(list(windowed(trace_of(*rows), Window.BLOCK))) == 2


def test_window_full_needs_the_whole_prefix():
    """A context without its prefill row would give counts that are too small."""
    with pytest.raises(FormatError, match="has context 8, but the prefill and commit passes befo"):
        list(windowed(trace_of(denoise(2, 8)), Window.FULL))


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


def test_golden_prefix_routing_is_constant_within_a_block(golden):
    """The reference's full-window counts differ from its block counts by a constant per block."""
    block_counts = _block_counts(golden)
    prefix = golden["generate.window_counts"] - block_counts

    assert (prefix >= 0).all()
    for block in np.unique(golden["generate.block"]):
        of_block = prefix[golden["generate.block"] == block]
        assert (of_block == of_block[0]).all()
        assert (of_block.sum(axis=-1) == block * 32 * 4).all()


def test_golden_full_window_counts_follow_from_stored_passes(golden):
    """A trace with prefill, denoise and commit passes gives the reference's window counts."""
    rows = list(_golden_passes(golden))
    trace = trace_of(*rows, model=load_model_spec(GOLDEN))

    seen = list(windowed(trace, Window.FULL))

    assert np.array_equal([s.counts for s in seen], golden["generate.window_counts"])
    assert [s.step for s in seen] == golden["generate.step"].tolist()
    assert {s.generated_block for s in seen} == set(range(len(np.unique(golden["generate.block"]))))


def _block_counts(golden):
    experts = golden["generate.block_topk_idx"]  # [steps, 3, 32, 4]
    return (experts[..., None] == np.arange(32)).sum(axis=(2, 3))


def _golden_passes(golden):
    experts = golden["generate.block_topk_idx"].astype(np.uint16)
    prefixes = golden["generate.window_counts"] - _block_counts(golden)
    before = np.zeros_like(prefixes[0])
    common = {"request": 0, "masked": None}
    for block in np.unique(golden["generate.block"]).tolist():
        at = np.flatnonzero(golden["generate.block"] == block)
        prefix, tokens = prefixes[at[0]], int(prefixes[at[0], 0].sum()) // 4
        new = (prefix - before).astype(np.uint32)
        first = not before.any()
        yield Pass(
            **common,
            block=-1 if first else block - 1,
            step=0 if first else 99,
            kind=Kind.PREFILL if first else Kind.COMMIT,
            tokens=int(new[0].sum()) // 4,
            context=0 if first else tokens - 32,
            histogram=new,
        )
        for n in at.tolist():
            yield Pass(
                **common,
                block=block,
                step=int(golden["generate.step"][n]),
                kind=Kind.DENOISE,
                tokens=32,
                context=tokens,
                experts=experts[n],
            )
        before = prefix
