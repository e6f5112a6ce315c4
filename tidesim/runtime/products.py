"""Products of routed experts: one over exactly each expert's tokens, summed in top-k order.

Dimension letters as in `model`, and n token-expert pairs.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tidesim.model_spec import ModelSpec

Dispatch = Callable[[Tensor, Tensor, Tensor, "Experts"], Tensor]


class Experts(nn.Module):
    """The routed experts of a layer, one contiguous blob each: gate, up, down.

    Attributes
    ----------
    bank : [E, 3 * I * H]
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.hidden, self.intermediate = spec.hidden_size, spec.moe_intermediate_size
        self.bank = nn.Parameter(torch.empty(spec.num_experts, spec.expert_params))

    def views(self, bank: Tensor) -> tuple[Tensor, Tensor]:
        """Return gate and up [E, 2I, H], and down [E, H, I], as views of a bank."""
        split = 2 * self.intermediate * self.hidden
        gate_up = bank[:, :split].view(-1, 2 * self.intermediate, self.hidden)
        return gate_up, bank[:, split:].view(-1, self.hidden, self.intermediate)


def expert_product(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Apply one expert to its tokens; x is [n, H], gate_up [2I, H], down [H, I]."""
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


def expert_products(x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
    """Apply many experts in one call, each as one product over exactly its tokens.

    A row's bits depend on its expert's tokens alone, not on which other experts share the call:
    on the CPU they are those of `expert_product`.

    Parameters
    ----------
    x : [n, H]
        The tokens of expert 0, then those of expert 1, …
    gate_up : [E, 2I, H]
    down : [E, H, I]
    ends : [E] int32
        Where each expert's tokens end in `x`; the last is n. On the device of `x`; on the host
        where the weights are not `groupable`, or reading it holds up the host.

    Returns
    -------
    [n, H]
    """
    if not groupable(gate_up):
        return _looped_products(x, gate_up, down, ends)
    gate, up = F.grouped_mm(x, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)


def groupable(gate_up: Tensor) -> bool:
    """Whether one call serves many experts of such weights, without a look at the counts.

    Rows of both matrices, and of what lies between, must start at multiples of 16 bytes. On a GPU
    torch has such a kernel for bfloat16 on compute capability 9 and 10 only; for all else its
    `grouped_mm` copies the counts to the host and loops over idle experts too.
    """
    _, twice_intermediate, hidden = gate_up.shape
    item = gate_up.element_size()
    aligned = hidden * item % 16 == 0 and twice_intermediate // 2 * item % 16 == 0
    return aligned and (
        gate_up.device.type == "cpu"
        or (gate_up.dtype == torch.bfloat16 and _capability(gate_up.device) in (9, 10))
    )


@cache
def _capability(device: torch.device) -> int:
    """Return the major compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)[0]


def _looped_products(x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
    outputs, start = torch.empty_like(x), 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            outputs[start:end] = expert_product(x[start:end], gate_up[expert], down[expert])
            start = end
    return outputs


def combine(outputs: Tensor, weights: Tensor) -> Tensor:
    """Sum each token's experts in float32, in top-k order.

    Parameters
    ----------
    outputs : [T * K, H]
    weights : [T, K] float32

    Returns
    -------
    [T, H] float32
    """
    tokens, top_k = weights.shape
    weighted = outputs.view(tokens, top_k, -1).float() * weights[..., None]
    total = weighted[:, 0]
    for k in range(1, top_k):
        total = total + weighted[:, k]
    return total


def routed_experts(x: Tensor, experts: Tensor, weights: Tensor, bank: Experts) -> Tensor:
    """Compute the chosen experts of every token where their weights are, and sum them.

    Parameters
    ----------
    x : [T, H]
    experts : [T, K]
    weights : [T, K] float32
    bank : Experts

    Returns
    -------
    [T, H] float32
    """
    gate_up, down = bank.views(bank.bank)
    flat = experts.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(gate_up))
    ends = counts.cumsum(0).to(torch.int32)
    products = expert_products(x[order // experts.shape[1]], gate_up, down, ends)
    outputs = torch.empty_like(products).index_copy_(0, order, products)
    return combine(outputs, weights)
