"""Verify: one prompt without and with offloading, compared pass by pass.

The run without offloading has every expert on the device. Both take the same settings, dtype and
threads. Memory stays small: of the first run, routing and tokens are kept, and a digest of the
logits of every pass; the second is compared as it goes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tidesim.runtime.backends import Backend
from tidesim.runtime.decode import DecodeSettings, PassEvent, decode
from tidesim.runtime.experts import Stale, keep
from tidesim.runtime.generate import Offloaded, Placing, check_window, generate_offloaded, on_device
from tidesim.runtime.model import Router, Transformer

NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}  # what rounding explains
# Relative error of the middle token's last hidden state that other rounding explains, on a GPU: it
# flips near-ties of few tokens, while a wrong expert moves most of them.
HIDDEN = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

Array = npt.NDArray[Any]


class What(StrEnum):
    """What differs."""

    ROUTING = "routing"
    LOGITS = "logits"
    TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two runs differ in something.

    Attributes
    ----------
    what : What
    number : int
        The pass, counted from 0 over the run.
    place : str
        Layer, token or position, and both values.
    margin : float or None
        How far apart the two candidates were in the run with offloading: router scores, logits
        as a share of the largest, or confidences; None where that says nothing.
    is_near_tie : bool
        The margin is within `NEAR`: rounding alone explains it.
    """

    what: What
    number: int
    place: str
    margin: float | None = None
    is_near_tie: bool = False

    def __str__(self) -> str:
        """Say it in one line."""
        tie = "a near-tie" if self.is_near_tie else "no near-tie"
        margin = "" if self.margin is None else f", margin {self.margin:.3g} ({tie})"
        return f"{self.what} of pass {self.number}: {self.place}{margin}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Whether offloading changed anything.

    Attributes
    ----------
    identical : bool
        Tokens, routing and, where they are compared, logits are the same bit by bit.
    tokens_equal, routing_equal : bool
    logits_equal : bool or None
        None on a GPU, whose products of few tokens round differently from those of a CPU.
    hidden_error : float or None
        On a GPU: relative error of the last hidden state, of the middle token of the worst pass
        up to the first whose tokens differ. None where bits are compared.
    explained : bool
        Identical; or, on a GPU, the first difference of all is a near-tie, the others follow, and
        hidden states are within `HIDDEN`.
    passes : int
        Passes compared.
    differences : tuple of Difference
        The first of each kind, in order of the passes.
    """

    identical: bool
    tokens_equal: bool
    routing_equal: bool
    logits_equal: bool | None
    hidden_error: float | None
    explained: bool
    passes: int
    differences: tuple[Difference, ...]


def verify(
    model: Transformer,
    prompt: list[int],
    settings: DecodeSettings,
    placing: Placing,
    backend: Backend,
    *,
    keep_records: bool = False,
    stale: Stale = keep,
    bitwise: bool | None = None,
) -> tuple[Offloaded, Verification]:
    """Decode a prompt without and with offloading, and compare.

    Parameters
    ----------
    model, prompt, settings, placing, backend, keep_records, stale
        As for `generate_offloaded`. The backend's threads are those of both runs.
    bitwise : bool or None
        Compare logits bit by bit, or only hidden states within `HIDDEN`; None compares bits where
        the backend has one kind of processor.

    Returns
    -------
    Offloaded
        The run with offloading; its seconds hold the comparison.
    Verification

    Raises
    ------
    SettingError, CapacityError, FormatError, RunError
        As `generate_offloaded`; on a GPU, its memory must hold all experts for the first run.
    """
    check_window(settings, placing)
    bitwise = backend.device.type == "cpu" if bitwise is None else bitwise
    noted = _Noted(bitwise=bitwise)
    with ExitStack() as stack:
        stack.enter_context(_all_on_device(model, backend.device))
        stack.enter_context(_watched(model, noted.route, noted.logits))
        plain = decode(model, prompt, settings, observe=noted.tokens)
    compared = _Compared(noted, model, settings)
    with _watched(model, compared.route, compared.logits):
        offloaded = generate_offloaded(
            model, prompt, settings, placing, backend,
            observe=compared.tokens, keep_records=keep_records, stale=stale,
        )  # fmt: skip
    same_text = (
        plain.tokens == offloaded.decoded.tokens and plain.passes == offloaded.decoded.passes
    )
    return offloaded, _verdict(compared, same_text=same_text, bitwise=bitwise)


def _verdict(compared: "_Compared", *, same_text: bool, bitwise: bool) -> Verification:
    first = compared.first
    tokens, routing = same_text and What.TOKENS not in first, What.ROUTING not in first
    logits = What.LOGITS not in first if bitwise else None
    identical = tokens and routing and logits is not False
    differences = tuple(first.values())  # in the order they were found
    close = bitwise or compared.hidden_error <= HIDDEN[compared.dtype]
    identical = identical and close
    near = not bitwise and close and bool(differences) and differences[0].is_near_tie
    return Verification(
        identical=identical,
        tokens_equal=tokens,
        routing_equal=routing,
        logits_equal=logits,
        hidden_error=None if bitwise else compared.hidden_error,
        explained=identical or near,
        passes=compared.passes,
        differences=differences,
    )


class _Noted:
    """What the run without offloading did, pass by pass."""

    def __init__(self, *, bitwise: bool) -> None:
        self.bitwise = bitwise
        self.routes: list[list[Array]] = [[]]
        self.digests: list[bytes] = []
        self.ids: list[Array] = []
        self.hidden: list[Tensor] = []

    def route(self, _layer: int, _router: Router, _x: Tensor, experts: Tensor) -> None:
        self.routes[-1].append(_on_host(experts))

    def logits(self, logits: Tensor, hidden: Tensor) -> None:
        """Note the end of a pass: its logits, or the hidden states they come from."""
        self.digests.append(_digest(logits) if self.bitwise else b"")
        self.hidden.append(hidden[:0] if self.bitwise else hidden.cpu())
        self.routes.append([])

    def tokens(self, event: PassEvent) -> None:
        self.ids.append(event.ids.cpu().numpy())


class _Compared:
    """The run with offloading against what was noted; keeps the first difference of each kind."""

    def __init__(self, noted: _Noted, model: Transformer, settings: DecodeSettings) -> None:
        self.first: dict[What, Difference] = {}
        self.passes, self.hidden_error = 0, 0.0
        self.dtype = model.lm_head.weight.dtype
        self._noted, self._settings, self._events = noted, settings, 0
        self._mask = model.spec.mask_token_id if settings.mask_id is None else settings.mask_id
        self._near = NEAR[model.lm_head.weight.dtype]
        self._logits = model.lm_head.weight[:0]

    def route(self, layer: int, router: Router, x: Tensor, experts: Tensor) -> None:
        """Compare the experts of a mixture layer, [T, K]."""
        if What.ROUTING in self.first:
            return
        expected, got = _at(_at(self._noted.routes, self.passes), layer), _on_host(experts)
        if expected is None or expected.shape != got.shape:
            self._note(What.ROUTING, "the run without offloading has no such pass")
            return
        unlike = np.argwhere(expected != got)
        if len(unlike):
            token, rank = unlike[0].tolist()
            one, other = int(expected[token, rank]), int(got[token, rank])
            place = f"mixture layer {layer}, token {token}: expert {other} instead of {one}"
            self._note(What.ROUTING, place, _router_margin(router, x[token], one, other))

    def logits(self, logits: Tensor, hidden: Tensor) -> None:
        """Compare the logits of a pass, which they end, or the hidden states they come from."""
        self._logits = logits
        if not self._noted.bitwise and What.TOKENS not in self.first:
            self._compare_hidden(hidden)
        if self._noted.bitwise and What.LOGITS not in self.first:
            expected = _at(self._noted.digests, self.passes)
            if expected != _digest(logits):
                self._note(What.LOGITS, "their bits differ")
        self.passes += 1

    def _compare_hidden(self, hidden: Tensor) -> None:
        expected = _at(self._noted.hidden, self.passes)
        if expected is None or expected.shape != hidden.shape or not len(hidden):
            return
        ours, theirs = hidden.cpu().float(), expected.float()
        error = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median()
        self.hidden_error = max(self.hidden_error, error.nan_to_num(torch.inf).item())

    def tokens(self, event: PassEvent) -> None:
        """Compare the tokens after a pass."""
        expected, got = _at(self._noted.ids, self._events), event.ids.cpu().numpy()
        self._events += 1
        if What.TOKENS in self.first:
            return
        if expected is None or expected.shape != got.shape:
            self._note(What.TOKENS, "the run without offloading has no such pass")
            return
        unlike = np.flatnonzero(expected != got)
        if len(unlike):
            at = int(unlike[0])
            one, other = int(expected[at]), int(got[at])
            place = f"position {event.context + at}: token {other} instead of {one}"
            self._note(What.TOKENS, place, self._token_margin(event, at, one, other))

    def _note(self, what: What, place: str, margin: float | None = None) -> None:
        number = self.passes - (what is What.TOKENS)  # tokens come after the logits
        near = margin is not None and margin <= self._near
        self.first[what] = Difference(
            what=what, number=number, place=place, margin=margin, is_near_tie=near
        )

    def _token_margin(self, event: PassEvent, at: int, one: int, other: int) -> float | None:
        """Return how near two tokens were, or how near a position was to being written or not."""
        if self._settings.temperature or event.masked is None:
            return None
        logits = self._logits.float()
        if self._mask not in (one, other):
            row = logits[at]
            return (row[one] - row[other]).abs().item() / max(1.0, row.abs().max().item())
        confidence = logits.softmax(-1).max(-1).values
        others = event.masked.clone()
        others[at] = False
        rivals = torch.cat((confidence[others], confidence.new_tensor([self._settings.threshold])))
        return (rivals - confidence[at]).abs().min().item()


def _at(items: Sequence[Any] | None, index: int) -> Any:
    return items[index] if items is not None and index < len(items) else None


def _on_host(experts: Tensor) -> Array:
    return experts.to(torch.int32).cpu().numpy().astype(np.uint16)


def _digest(logits: Tensor) -> bytes:
    return hashlib.blake2b(logits.contiguous().view(torch.uint8).numpy().data).digest()


def _router_margin(router: Router, x: Tensor, one: int, other: int) -> float:
    """Return how far apart two experts, or their groups if that decided, were for one token."""
    ranked = F.linear(x.float(), router.weight.float()).sigmoid() + router.expert_bias
    margins = [abs(ranked[one] - ranked[other]).item()]
    groups = ranked.view(router.spec.n_group, -1)
    best = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1)
    sides = one // groups.shape[-1], other // groups.shape[-1]
    if sides[0] != sides[1]:
        margins.append(abs(best[sides[0]] - best[sides[1]]).item())
    return min(margins)


Routed = Callable[[int, Router, Tensor, Tensor], None]


@contextmanager
def _watched(
    model: Transformer, route: Routed, logits: Callable[[Tensor, Tensor], None]
) -> Iterator[None]:
    """Tell of every mixture layer's routing, and of the logits of every pass."""
    handles = [
        mixture.gate.register_forward_hook(
            lambda router, args, out, layer=layer: route(layer, router, args[0], out[0])
        )
        for layer, mixture in enumerate(model.mixtures())
    ]
    handles.append(
        model.lm_head.register_forward_hook(lambda _head, args, out: logits(out, args[0]))
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _all_on_device(model: Transformer, device: torch.device) -> Iterator[None]:
    """Have every expert on the device; the banks in host memory come back."""
    banks = [mixture.experts.bank for mixture in model.mixtures()]
    try:
        for mixture in model.mixtures():
            bank = mixture.experts.bank
            if bank.device != device:
                mixture.experts.bank = on_device(bank, device, what="all experts, to verify,")
        yield
    finally:
        for mixture, bank in zip(model.mixtures(), banks, strict=True):
            mixture.experts.bank = bank
