"""LLaDA2.0-MoE in PyTorch: block-causal attention and a group-limited mixture of experts.

Dimension letters: T tokens of a pass, S tokens attended to, H hidden size, N heads, G key/value
heads, D head dimension, E experts, K experts per token, I expert intermediate size, V vocabulary.
Checked against the published implementation by ``tests/golden/llada2-a``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tidesim.model_spec import ModelSpec
from tidesim.runtime.products import Dispatch, Experts, routed_experts

Run = Callable[[Tensor, Tensor, Tensor, "MixtureOfExperts"], Tensor]
Mark = Callable[[str, int], None]
TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def unmarked(_label: str, _layer: int) -> None:
    """Take no note of an operation."""


def normalised(x: Tensor, eps: float) -> Tensor:
    """Divide the last dimension by its root mean square, computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.weight * normalised(x, self.eps)


def rotary_table(positions: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotated dimensions, each [T, rotary_dim] in float32."""
    dim = spec.rotary_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    angles = positions.float()[:, None] * spec.rope_theta**-exponents  # [T, rotary_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dimensions of every head, half against half; x is [..., T, heads, D]."""
    dim = cos.shape[-1]
    rotated, kept = x[..., :dim], x[..., dim:]
    left, right = rotated.chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    return torch.cat((rotated * cos + turned * sin, kept), dim=-1)


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of finished blocks, filled in place.

    Attributes
    ----------
    keys, values : [layers, G, max_tokens, D]
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, spec: ModelSpec, max_tokens: int, like: Tensor) -> "KeyValueCache":
        """Allocate room for `max_tokens` tokens in the dtype and on the device of `like`."""
        shape = (spec.num_hidden_layers, spec.num_key_value_heads, max_tokens, spec.head_dim)
        return cls(keys=like.new_empty(shape), values=like.new_empty(shape))

    def extend(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [1, G, T, D] at `start`; return everything up to the end, [1, G, start + T, D]."""
        end = start + keys.shape[-2]
        self.keys[layer, :, start:end] = keys[0]
        self.values[layer, :, start:end] = values[0]
        return self.keys[None, layer, :, :end], self.values[None, layer, :, :end]


@dataclass(slots=True)
class Context:
    """What every layer of one pass shares.

    Attributes
    ----------
    cos, sin : [T, rotary_dim]
    mask : [T, S] bool or None
        True where a token may look; None lets every token see all S.
    cache : KeyValueCache or None
    start : int
        Position in the cache of the pass's first token.
    routes : list of ([T, K] experts)
        Filled by the mixture layers in order.
    mark : callable
        Called with its name and layer when an operation has been issued.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    cache: KeyValueCache | None
    start: int
    routes: list[Tensor]
    mark: Mark = unmarked


class Attention(nn.Module):
    """Grouped-query attention with per-head norms and partial rotary embedding."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        self.head_dim = spec.head_dim
        rows = (self.heads + 2 * self.kv_heads) * spec.head_dim
        self.query_key_value = nn.Linear(spec.hidden_size, rows, bias=False)
        self.query_layernorm = RMSNorm(spec.head_dim, spec.rms_norm_eps)
        self.key_layernorm = RMSNorm(spec.head_dim, spec.rms_norm_eps)
        self.dense = nn.Linear(self.heads * spec.head_dim, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Attend; x is [batch, T, H]."""
        batch, tokens, _ = x.shape
        heads = self.query_key_value(x).view(batch, tokens, -1, self.head_dim)
        both, v = heads.tensor_split((self.heads + self.kv_heads,), dim=2)  # [b, T, N, D]
        both = self._norm_weights() * normalised(both, self.query_layernorm.eps)
        both = rotate(both, context.cos, context.sin).transpose(1, 2)
        q, k = both.tensor_split((self.heads,), dim=1)  # [b, N, T, D]
        v = v.transpose(1, 2)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, context.start, k, v)  # [1, G, S, D]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=context.mask, enable_gqa=True)
        return self.dense(y.transpose(1, 2).reshape(batch, tokens, -1))  # type: ignore[no-any-return]

    def _norm_weights(self) -> Tensor:
        """Return the norm's weights of every query and key head, [N + G, D]."""
        queries = self.query_layernorm.weight.expand(self.heads, -1)
        return torch.cat((queries, self.key_layernorm.weight.expand(self.kv_heads, -1)))


class MLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [..., H]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Router(nn.Module):
    """Group-limited sigmoid top-k routing in float32; the bias decides selection only."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.num_experts, spec.hidden_size))
        self.expert_bias = nn.Parameter(torch.zeros(spec.num_experts), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route tokens.

        Parameters
        ----------
        x : [T, H]

        Returns
        -------
        experts : [T, K] int64, best first
        weights : [T, K] float32
        """
        spec = self.spec
        scores = F.linear(x.float(), self.weight.float()).sigmoid()  # [T, E]
        ranked = scores.detach() + self.expert_bias
        groups = ranked.view(len(x), spec.n_group, -1)
        per_group = min(2, groups.shape[-1])
        best_groups = (
            groups.topk(per_group, dim=-1).values.sum(-1).topk(spec.topk_group, -1).indices
        )
        closed = torch.ones_like(groups[..., :1], dtype=torch.bool)
        closed.scatter_(1, best_groups[..., None], value=False)
        allowed = groups.masked_fill(closed, -torch.inf).view(ranked.shape)
        experts = allowed.topk(spec.num_experts_per_tok, dim=-1).indices  # [T, K]
        chosen = scores.gather(1, experts)
        weights = chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * spec.routed_scaling_factor
        return experts, weights


class MixtureOfExperts(nn.Module):
    """Routed experts plus shared experts.

    Attributes
    ----------
    dispatch : callable
        Computes the routed experts: `routed_experts`, or another that gives the same sums.
    run : callable or None
        Computes routed *and* shared experts instead, for a runtime that overlaps the two:
        ``run(x, experts, weights, mixture)`` returns [T, H] in the dtype of x.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = Router(spec)
        self.experts = Experts(spec)
        self.dispatch: Dispatch = routed_experts
        self.run: Run | None = None
        self.shared_experts = (
            MLP(spec.hidden_size, spec.moe_intermediate_size * spec.num_shared_experts)
            if spec.num_shared_experts
            else None
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Transform [batch, T, H] and note the experts chosen."""
        flat = x.reshape(-1, x.shape[-1])
        experts, weights = self.gate(flat)
        context.routes.append(experts)
        if self.run is not None:
            return self.run(flat, experts, weights, self).view(x.shape)
        y = self.dispatch(flat, experts, weights, self.experts).to(x.dtype).view(x.shape)
        return y if self.shared_experts is None else y + self.shared_experts(x)


class Layer(nn.Module):
    """Attention and MLP or mixture, each behind a norm and a residual."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.attention = Attention(spec, layer)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        dense = layer < spec.first_k_dense_replace
        self.mlp = (
            MLP(spec.hidden_size, spec.intermediate_size) if dense else MixtureOfExperts(spec)
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Transform [batch, T, H]."""
        x = x + self.attention(self.input_layernorm(x), context)
        normed = self.post_attention_layernorm(x)
        context.mark("attention", self.layer)
        if isinstance(self.mlp, MixtureOfExperts):
            return x + self.mlp(normed, context)  # type: ignore[no-any-return]
        x = x + self.mlp(normed)
        context.mark("dense MLP", self.layer)
        return x


class Transformer(nn.Module):
    """The whole model; parameter names follow the published checkpoints without ``model.``."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.mark: Mark = unmarked
        self.word_embeddings = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, layer) for layer in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tie_word_embeddings:
            self.lm_head.weight = self.word_embeddings.weight

    def mixtures(self) -> list[MixtureOfExperts]:
        """Return the mixture layers in order."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, MixtureOfExperts)]

    def hidden(self, ids: Tensor, positions: Tensor, context: Context) -> Tensor:
        """Run every layer and the final norm; ids [batch, T], positions [T]; [batch, T, H]."""
        x = self.word_embeddings(ids)
        for layer in self.layers:
            x = layer(x, context)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward(
        self,
        ids: Tensor,
        *,
        start: int = 0,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one pass of one request.

        Parameters
        ----------
        ids : [T] int64
            Tokens at positions ``start .. start + T - 1``.
        mask : [T, S] bool, optional
            True where a token may look; without it every token sees all S tokens.
        cache : KeyValueCache, optional
            Keys and values before `start` are read from it, those of the pass are written to it.
        last : int, optional
            Compute logits of this many last tokens only; 0 for none.

        Returns
        -------
        logits : [T or last, V] float32
        routes : [L, T, K] int64
        """
        positions = torch.arange(start, start + len(ids), device=ids.device)
        cos, sin = rotary_table(positions, self.spec)
        context = Context(
            cos=cos, sin=sin, mask=mask, cache=cache, start=start, routes=[], mark=self.mark
        )
        x = self.hidden(ids[None], positions, context)[0]
        if last is not None:
            x = x[len(x) - last :]
        routes = (
            torch.stack(context.routes)
            if context.routes
            else ids.new_empty(0, len(ids), self.spec.num_experts_per_tok)
        )
        return self.lm_head(x).float(), routes


def block_causal_mask(tokens: int, block_length: int, device: torch.device) -> Tensor:
    """Return [tokens, tokens] bool: a token sees its own block and all earlier ones."""
    block = torch.arange(tokens, device=device) // block_length
    return block[:, None] >= block[None, :]
