"""Hypothesis strategies for models, passes and traces, small to large.

Structure (sizes, steps, which columns are recorded) is drawn by hypothesis and shrinks; the routing
itself comes from a NumPy generator seeded by a drawn integer.
"""

from typing import Literal

import numpy as np
from hypothesis import strategies as st

from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta

Form = Literal["experts", "counts", "mixed"]

rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def small_model():
    """Return one fixed small model: 2 mixture layers, 8 experts, top-2, blocks of 4."""
    return ModelSpec(
        name="small",
        num_hidden_layers=3,
        first_k_dense_replace=1,
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=16,
        moe_intermediate_size=4,
        num_experts=8,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        num_shared_experts=0,
        vocab_size=16,
        max_position_embeddings=64,
        rope_theta=10000.0,
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-6,
        routed_scaling_factor=1.0,
        mask_token_id=15,
        eos_token_id=14,
        block_length=4,
    )


@st.composite
def model_specs(draw, *, max_layers=3, max_experts=24, max_block=6):
    """Draw a small model with 1 to `max_layers` mixture layers."""
    n_group = draw(st.sampled_from([1, 2, 4]))
    per_group = draw(st.integers(1, max(1, max_experts // n_group)))
    topk_group = draw(st.integers(1, n_group))
    kv_heads = draw(st.sampled_from([1, 2]))
    dense = draw(st.integers(0, 1))
    return ModelSpec(
        name="drawn",
        num_hidden_layers=draw(st.integers(1, max_layers)) + dense,
        first_k_dense_replace=dense,
        hidden_size=draw(st.sampled_from([8, 64, 2048])),
        num_attention_heads=2 * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        intermediate_size=48,
        moe_intermediate_size=draw(st.sampled_from([4, 32, 512])),
        num_experts=n_group * per_group,
        num_experts_per_tok=draw(st.integers(1, min(4, per_group * topk_group))),
        n_group=n_group,
        topk_group=topk_group,
        num_shared_experts=draw(st.integers(0, 1)),
        vocab_size=64,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-6,
        routed_scaling_factor=1.0,
        dtype=draw(st.sampled_from(["bfloat16", "float32"])),
        mask_token_id=63,
        eos_token_id=62,
        block_length=draw(st.integers(1, max_block)),
    )


def route(rng, model, tokens, *, before=None):
    """Draw the experts of `tokens` tokens, [L, T, K]; each keeps those of `before` half the time."""
    shape = (model.moe_layers, tokens, model.num_experts)
    popularity = rng.exponential(size=(model.moe_layers, 1, model.num_experts))
    order = np.argsort(rng.random(shape) - 0.5 * popularity, axis=-1)
    experts = order[..., : model.num_experts_per_tok].astype(np.uint16)
    if before is None:
        return experts
    keep = rng.random((model.moe_layers, tokens, 1)) < 0.5
    return np.where(keep, before, experts)


def _recorded(experts, model, *, as_counts):
    if not as_counts:
        return {"experts": experts}
    flags = experts[..., None] == np.arange(model.num_experts)
    return {"histogram": flags.sum(axis=(1, 2)).astype(np.uint32)}


@st.composite
def passes(draw, model, *, kind=Kind.DENOISE, form="mixed"):
    """Draw one pass of `model`, on its own."""
    tokens = draw(st.integers(1, model.block_length))
    rng = draw(rngs)
    as_counts = form == "counts" or (form == "mixed" and draw(st.booleans()))
    return Pass(
        request=draw(st.integers(0, 5)),
        block=-1 if kind is Kind.PREFILL else draw(st.integers(0, 5)),
        step=0 if kind is Kind.PREFILL else draw(st.integers(0, 5)),
        kind=kind,
        tokens=tokens,
        context=draw(st.integers(0, 100)),
        masked=draw(st.sampled_from([None, rng.random(tokens) < 0.5])),
        committed=draw(st.sampled_from([None, rng.random(tokens) < 0.5])),
        **_recorded(route(rng, model, tokens), model, as_counts=as_counts),
    )


@st.composite
def traces(draw, *, models=None, max_requests=3, max_blocks=3, form: Form = "mixed"):
    """Draw a valid trace: prefill, denoise and commit passes with true contexts and masks.

    `form` says how routing is recorded: as experts, as counts, or either by request. Prefill may
    be counts in every form; the last block of a request may lack its commit pass.
    """
    model = draw(model_specs() if models is None else models)
    requests = sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=max_requests)))
    rows: list[Pass] = []
    infos = []
    for request in requests:
        mine = draw(_request(model, request, max_blocks=max_blocks, form=form))
        rows.extend(mine)
        infos.append(
            RequestInfo(
                request=request,
                prompt_kind=draw(st.sampled_from(["code", "chat", ""])),
                prompt_tokens=sum(p.tokens for p in mine if p.kind is Kind.PREFILL),
                generated_tokens=sum(p.tokens for p in mine if p.kind is Kind.COMMIT),
                split=draw(st.sampled_from(["train", "heldout"])),
            )
        )
    meta = TraceMeta(
        model=model,
        provenance=draw(st.sampled_from(["captured", "synthetic", "imported"])),
        requests=tuple(infos),
        settings=draw(st.dictionaries(st.sampled_from("ab"), st.booleans() | st.integers(0, 9))),
        seed=draw(st.none() | st.integers(0, 9)),
    )
    return Trace(meta, rows)


@st.composite
def _request(draw, model, request, *, max_blocks, form):
    rng = draw(rngs)
    as_counts = form == "counts" or (form == "mixed" and draw(st.booleans()))
    positions = draw(st.booleans())
    T, rows = model.block_length, []
    prefix_blocks = draw(st.integers(0, 2))
    if prefix_blocks:
        experts = route(rng, model, prefix_blocks * T)
        histogram = as_counts or draw(st.booleans())
        common = {"request": request, "block": -1, "step": 0, "kind": Kind.PREFILL}
        recorded = _recorded(experts, model, as_counts=histogram)
        rows.append(Pass(**common, tokens=prefix_blocks * T, context=0, **recorded))
    block_count = draw(st.integers(1, max_blocks))
    for number in range(block_count):
        block = prefix_blocks + number
        commit = number + 1 < block_count or draw(st.booleans())
        steps = draw(st.integers(1, T))
        common = {"request": request, "block": block, "tokens": T, "context": block * T}
        for step, masked, committed, experts in _steps(rng, model, steps):
            kind = Kind.DENOISE if step < steps else Kind.COMMIT
            if kind is Kind.COMMIT and not commit:
                continue
            flags = {"masked": masked, "committed": committed} if positions else {}
            recorded = _recorded(experts, model, as_counts=as_counts)
            rows.append(Pass(**common, step=step, kind=kind, **flags, **recorded))
    return rows


def _steps(rng, model, steps):
    """Yield (step, masked, committed, experts) of a block that takes `steps`, then its commit."""
    T = model.block_length
    written_at = rng.permutation(np.arange(T) % steps)  # every step writes at least one position
    experts = None
    for step in range(steps + 1):
        experts = route(rng, model, T, before=experts)
        yield step, written_at >= step, written_at == step, experts


PASS_FIELDS = ("request", "block", "step", "kind", "tokens", "context")
PASS_ARRAYS = ("masked", "committed", "experts", "histogram")


def same_pass(a, b):
    """Say whether two passes hold the same values, types and shapes."""
    return all(getattr(a, name) == getattr(b, name) for name in PASS_FIELDS) and all(
        same_array(getattr(a, name), getattr(b, name)) for name in PASS_ARRAYS
    )


def same_array(a, b):
    """Say whether two arrays, or two None, are the same."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


def sample_trace():
    """Return a fixed trace of two requests of one block: three denoise passes and a commit."""
    model = small_model()
    rng = np.random.default_rng(0)
    T, rows = model.block_length, []
    for request in (0, 3):
        rows.append(sample_pass(rng, model, request, -1, 0, Kind.PREFILL, histogram=True))
        for step in range(4):
            kind = Kind.DENOISE if step < 3 else Kind.COMMIT
            rows.append(sample_pass(rng, model, request, 1, step, kind))
    infos = tuple(
        RequestInfo(request=r, prompt_tokens=T, generated_tokens=T, split=s)
        for r, s in ((0, "train"), (3, "heldout"))
    )
    meta = TraceMeta(model=model, provenance="synthetic", requests=infos, settings={"a": 0.5})
    return Trace(meta, rows)


def sample_pass(rng, model, request, block, step, kind, *, histogram=False):
    """Return a fixed pass over one block, with positions and experts or with a histogram."""
    T = model.block_length
    experts = route(rng, model, T)
    flags = experts[..., None] == np.arange(model.num_experts)
    return Pass(
        request=request,
        block=block,
        step=step,
        kind=kind,
        tokens=T,
        context=T if block >= 0 else 0,
        masked=None if histogram else rng.random(T) < 0.5,
        committed=None if histogram else rng.random(T) < 0.5,
        experts=None if histogram else experts,
        histogram=flags.sum(axis=(1, 2)).astype(np.uint32) if histogram else None,
    )
