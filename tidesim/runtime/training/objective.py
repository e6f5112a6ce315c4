"""The block-diffusion objective: a noised copy of each block sees the clean blocks before it.

Every block of B tokens gets n masked positions, n uniform in 1..B, and the loss of a masked
position is weighted by 1/t with t = n/B: an unbiased bound of the negative log-likelihood
(block diffusion, arXiv 2503.09573; the weight as in LLaDA, arXiv 2502.09992).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tidesim.runtime.model import Context, Transformer, rotary_table
from tidesim.runtime.products import Experts


def noise(
    clean: Tensor, *, block_length: int, mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask n positions of every block, n stratified over 1..block_length within the batch.

    Parameters
    ----------
    clean : [batch, T] int64
        T a multiple of `block_length`.

    Returns
    -------
    noised : [batch, T] int64
    weight : [batch, T] float32
        1/t where masked, 0 elsewhere.
    """
    blocks = clean.numel() // block_length
    strata = (torch.arange(blocks) + torch.rand((), generator=generator)) / blocks  # [blocks]
    masked_count = 1 + (strata * block_length).long().clamp(max=block_length - 1)
    masked_count = masked_count[torch.randperm(blocks, generator=generator)]
    rank = torch.rand(blocks, block_length, generator=generator).argsort(1).argsort(1)
    masked = (rank < masked_count[:, None]).view(clean.shape)
    weight = (block_length / masked_count)[:, None].expand(-1, block_length).reshape(clean.shape)
    return clean.masked_fill(masked, mask_id), weight * masked


def training_mask(tokens: int, block_length: int) -> Tensor:
    """Return [2T, 2T] bool for a sequence of T noised tokens followed by their T clean ones.

    A noised token sees its own noised block and earlier clean blocks; a clean one sees its own
    clean block and earlier clean blocks.
    """
    block = torch.arange(tokens) // block_length
    same, earlier = block[:, None] == block[None, :], block[:, None] > block[None, :]
    noised = torch.cat((same, earlier), dim=1)
    clean = torch.cat((torch.zeros_like(same), same | earlier), dim=1)
    return torch.cat((noised, clean))


@dataclass(frozen=True, slots=True)
class Loss:
    """Outcome of one batch: the loss in nats per token and the tokens each expert served."""

    value: Tensor
    loads: list[Tensor]  # per mixture layer [E]


def block_diffusion_loss(model: Transformer, clean: Tensor, noised: Tensor, weight: Tensor) -> Loss:
    """Return the weighted cross-entropy of the masked positions, per token of the batch.

    Parameters
    ----------
    clean, noised : [batch, T] int64
    weight : [batch, T] float32
        From `noise`.
    """
    spec, tokens = model.spec, clean.shape[1]
    positions = torch.arange(tokens, device=clean.device).repeat(2)
    cos, sin = rotary_table(positions, spec)
    mask = training_mask(tokens, spec.block_length).to(clean.device)
    context = Context(cos=cos, sin=sin, mask=mask, cache=None, start=0, routes=[])
    x = model.hidden(torch.cat((noised, clean), dim=1), positions, context)[:, :tokens]
    chosen = weight > 0
    logits = model.lm_head(x[chosen]).float()
    losses = F.cross_entropy(logits, clean[chosen], reduction="none")
    loads = [torch.bincount(r.reshape(-1), minlength=spec.num_experts) for r in context.routes]
    return Loss(value=(losses * weight[chosen]).sum() / clean.numel(), loads=loads)


@torch.no_grad()
def heldout_loss(
    model: Transformer, tokens: Tensor, *, length: int = 256, sequences: int = 64
) -> float:
    """Return nats per masked token on evenly spread held-out sequences, noise drawn from seed 0."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.linspace(0, len(tokens) - length - 1, sequences).long()
    clean = tokens[starts[:, None] + torch.arange(length)]
    total, parts = 0.0, torch.split(clean, 16)
    for part in parts:
        noised, weight = noise(
            part,
            block_length=model.spec.block_length,
            mask_id=model.spec.mask_token_id,
            generator=generator,
        )
        device = model.lm_head.weight.device
        loss = block_diffusion_loss(model, part.to(device), noised.to(device), weight.to(device))
        total += float(loss.value) * len(part)
    return total / sequences


class GroupedExperts(torch.autograd.Function):
    """The routed experts with a hand-written backward: one product per expert, few kernels.

    The rows of an expert are padded with zeros to a multiple of `PAD`, so that the matrix library
    meets few shapes; zero rows change no gradient.
    """

    PAD = 32

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        experts: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
    ) -> Tensor:
        """Return [T, H] float32; x [T, H], weights [T, K], gate_up [E, 2I, H], down [E, H, I]."""
        flat = experts.reshape(-1)
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=len(gate_up))
        padded = (counts + GroupedExperts.PAD - 1) // GroupedExperts.PAD * GroupedExperts.PAD
        ends = padded.cumsum(0)
        rows = order // experts.shape[1]  # token of each product row
        shift = (ends - padded) - (counts.cumsum(0) - counts)
        slots = torch.arange(len(order), device=x.device) + shift[flat[order]]
        spans = list(zip((ends - padded).tolist(), ends.tolist(), strict=True))
        gate_up, down = gate_up.to(torch.bfloat16), down.to(torch.bfloat16)
        inputs = gate_up.new_zeros(spans[-1][1], x.shape[1])
        inputs[slots] = x.to(inputs.dtype)[rows]
        h = inputs.new_empty(len(inputs), gate_up.shape[1])
        for e, (i, j) in enumerate(spans):
            torch.mm(inputs[i:j], gate_up[e].T, out=h[i:j])
        gate, up = h.chunk(2, dim=1)
        a, y = F.silu(gate) * up, torch.empty_like(inputs)
        for e, (i, j) in enumerate(spans):
            torch.mm(a[i:j], down[e].T, out=y[i:j])
        y, w = y[slots], weights.reshape(-1)[order]
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        out.index_add_(0, rows, y.float() * w[:, None])
        ctx.save_for_backward(inputs, h, a, y, w, order, rows, slots, gate_up, down)
        ctx.spans, ctx.shapes = spans, (x.shape, x.dtype, weights.shape)  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        """Return the gradients of x, weights, gate_up and down."""
        inputs, h, a, y, w, order, rows, slots, gate_up, down = ctx.saved_tensors
        x_shape, x_dtype, w_shape = ctx.shapes
        g = grad[rows]
        grad_w = torch.empty(len(rows), dtype=torch.float32, device=grad.device)
        grad_w[order] = (g * y.float()).sum(1)
        dy = torch.zeros_like(inputs)
        dy[slots] = (g * w[:, None]).to(dy.dtype)
        da, dx = torch.empty_like(a), torch.empty_like(inputs)
        d_gate_up, d_down = torch.empty_like(gate_up), torch.empty_like(down)
        for e, (i, j) in enumerate(ctx.spans):
            torch.mm(dy[i:j], down[e], out=da[i:j])
            torch.mm(dy[i:j].T, a[i:j], out=d_down[e])
        gate, up = h.chunk(2, dim=1)
        sig = torch.sigmoid(gate)
        act = gate * sig
        dh = torch.cat((da * up * (sig + act * (1 - sig)), da * act), dim=1)
        for e, (i, j) in enumerate(ctx.spans):
            torch.mm(dh[i:j], gate_up[e], out=dx[i:j])
            torch.mm(dh[i:j].T, inputs[i:j], out=d_gate_up[e])
        grad_x = torch.zeros(x_shape, dtype=torch.float32, device=grad.device)
        grad_x.index_add_(0, rows, dx[slots].float())
        return grad_x.to(x_dtype), None, grad_w.view(w_shape), d_gate_up.float(), d_down.float()


def trainable_dispatch(x: Tensor, experts: Tensor, weights: Tensor, bank: Experts) -> Tensor:
    """Stand in for the inference dispatch of the mixture layers during training."""
    return GroupedExperts.apply(x, experts, weights, *bank.views(bank.bank))  # type: ignore[no-any-return,no-untyped-call]
