"""What each piece of a pass asks of the GPU: kernels, bytes of its memory, FLOPs. No machine."""

from typing import NamedTuple

from tidesim.model_spec import ModelSpec

# Kernels of one call, counted in an eager PyTorch implementation of LLaDA2.0 (estimates: fused
# implementations start fewer). Attention: 2 layer norms, 2 residual sums, 3 projections and layouts,
# 2 head norms, rotary, attention itself. Router: 2 casts, product, sigmoid, bias, group scores
# (top-2, sum), group choice (top-k, scatter, mask), top-k, gather, normalise (3), scale.
ATTENTION_KERNELS = 11
MLP_KERNELS = 5  # gate, up, SiLU, product, down
ROUTER_KERNELS = 16
COMBINE_KERNELS = 4  # gather to top-k order, weight, sum over top-k, add the shared experts
HEAD_KERNELS = 12  # norm, product, cast, softmax (3), maximum, gather, threshold, masks, write
LOOPED_EXPERT_KERNELS = 5  # the same five as an MLP, one expert at a time

# A float32 product against the bf16 peak: A100 312 / 19.5 TFLOP/s (NVIDIA A100 datasheet).
FLOAT32_COST = 16
FLOAT32_BYTES = 4


class Work(NamedTuple):
    """What a piece asks of the GPU: kernels, bytes of its memory moved, FLOPs at the bf16 peak."""

    kernels: int
    num_bytes: float
    flops: float


def attention_work(spec: ModelSpec, tokens: int, context: int, *, requests: int = 1) -> Work:
    """Count one layer's norms, projections, attention over context + tokens keys, residuals.

    Tokens and context are sums over requests, each of which attends to its own keys only: exact
    where all compute equally many tokens, as in a batch of blocks.
    """
    queries = spec.num_attention_heads * spec.head_dim
    kv = 2 * spec.num_key_value_heads * spec.head_dim
    keys = context + tokens
    moved = keys * kv + tokens * (8 * spec.hidden_size + 4 * (queries + kv))
    flops = 2 * tokens * spec.attention_params + 4 * tokens * keys * queries / requests
    return Work(ATTENTION_KERNELS, (spec.attention_params + moved) * spec.dtype_bytes, flops)


def mlp_work(spec: ModelSpec, tokens: float, *, params: int) -> Work:
    """Count one gated MLP of `params` weights; its inner width follows from them."""
    moved = tokens * _activations(spec, params // (3 * spec.hidden_size))
    return Work(MLP_KERNELS, (params + moved) * spec.dtype_bytes, 2 * tokens * params)


def router_work(spec: ModelSpec, tokens: int) -> Work:
    """Count one float32 router: product, sigmoid, group-limited choice of the top-k."""
    weights = spec.num_experts * spec.hidden_size
    moved = tokens * (2 * spec.hidden_size + 8 * spec.num_experts)
    flops = FLOAT32_COST * 2 * tokens * weights
    return Work(ROUTER_KERNELS, (weights + moved) * FLOAT32_BYTES, flops)


def combine_work(spec: ModelSpec, tokens: int) -> Work:
    """Count the float32 sum of the top-k outputs and the shared experts."""
    moved = tokens * spec.hidden_size * (3 * spec.num_experts_per_tok + 3)
    flops = FLOAT32_COST * 2 * tokens * spec.hidden_size * spec.num_experts_per_tok
    return Work(COMBINE_KERNELS, moved * FLOAT32_BYTES, flops)


def head_work(spec: ModelSpec, tokens: int) -> Work:
    """Count the final norm, output head, float32 softmax and the choice of tokens."""
    logits = tokens * spec.vocab_size * (2 * spec.dtype_bytes + 6 * FLOAT32_BYTES)
    num_bytes = spec.head_params * spec.dtype_bytes + logits
    return Work(HEAD_KERNELS, num_bytes, 2 * tokens * spec.head_params)


def _activations(spec: ModelSpec, width: int) -> int:
    """Values moved per token of a gated MLP: each intermediate written once and read once."""
    return 2 * spec.hidden_size + 6 * width
