"""Muon for matrices, Adam for the rest, and bias-based load balancing for the router."""

import torch
from torch import Tensor, nn

from tidesim.runtime.model import Transformer
from tidesim.runtime.products import Experts

# Quintic Newton-Schulz coefficients of Muon (Keller Jordan, 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(gradient: Tensor, *, iterations: int = 5) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, approximately; [..., rows, cols]."""
    x = gradient.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every update of a matrix has the same size in every direction.

    Parameters are matrices, or expert banks whose views are matrices (`views` in the group).
    """

    def __init__(
        self, groups: list[dict[str, object]], *, lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                matrices = group["views"] if group.get("views") else lambda tensor: (tensor,)
                for target, matrix in zip(matrices(parameter), matrices(update), strict=True):
                    scale = max(1.0, matrix.shape[-2] / matrix.shape[-1]) ** 0.5
                    target.sub_(orthogonalise(matrix).to(target.dtype), alpha=group["lr"] * scale)


def _three_matrices(bank: Experts):  # type: ignore[no-untyped-def]
    def views(tensor: Tensor) -> tuple[Tensor, ...]:
        gate_up, down = bank.views(tensor)
        return (*gate_up.chunk(2, dim=1), down)

    return views


def make_optimizers(model: Transformer, *, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon over hidden matrices and expert banks, Adam over everything else."""
    banks = [mixture.experts for mixture in model.mixtures()]
    routers = [mixture.gate.weight for mixture in model.mixtures()]
    special = {id(p) for p in (model.word_embeddings.weight, model.lm_head.weight, *routers)}
    special |= {id(bank.bank) for bank in banks}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in special]
    vectors = [p for p in trained if p.ndim == 1]
    groups: list[dict[str, object]] = [{"params": matrices, "views": None}]
    groups += [{"params": [bank.bank], "views": _three_matrices(bank)} for bank in banks]
    adam = torch.optim.AdamW(
        [
            {"params": [model.word_embeddings.weight], "lr": 0.2 * lr},
            {"params": [model.lm_head.weight], "lr": 0.1 * lr},
            {"params": routers, "lr": 0.05 * lr},
            {"params": vectors, "lr": 0.2 * lr},
        ],
        betas=(0.9, 0.97),
        weight_decay=0.0,
    )
    return [Muon(groups, lr=lr), adam]


@torch.no_grad()
def balance(model: Transformer, loads: list[Tensor], *, rate: float) -> None:
    """Move the expert bias of every layer against its load (arXiv 2408.15664)."""
    for mixture, load in zip(model.mixtures(), loads, strict=True):
        load32 = load.float()
        mixture.gate.expert_bias.add_(torch.sign(load32.mean() - load32), alpha=rate)


@torch.no_grad()
def initialise(model: Transformer, generator: torch.Generator) -> None:
    """Draw every matrix from a normal distribution; norms are one, biases zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.zeros_(parameter) if "bias" in name else nn.init.ones_(parameter)
            continue
        fan_in = model.spec.hidden_size if "bank" in name else parameter.shape[1]
        std = 0.02 if "embed" in name or "head" in name else 0.6 * fan_in**-0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
