"""What a trace says: one Pass per forward pass, with the experts each token was routed to.

Dimension letters: L mixture layers, T tokens of the pass, K experts per token, E experts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec

Counts = npt.NDArray[np.int64]  # [L, E]


class Kind(StrEnum):
    """What a pass is for."""

    PREFILL = "prefill"
    DENOISE = "denoise"
    COMMIT = "commit"


class Window(StrEnum):
    """Which tokens a denoise pass computes."""

    BLOCK = "block"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward pass of one request.

    Attributes
    ----------
    request, block, step : int
        `block` is -1 for prefill; `step` counts denoise passes of the block from 0
        (a commit pass has the number of denoise passes before it; prefill has 0).
    kind : Kind
    tokens : int
        Tokens computed by this pass in window ``block``.
    context : int
        Tokens served from the prefix cache.
    masked, committed : [T] bool or None
        Positions still masked on entry; positions this step writes. None where not recorded.
    experts : [L, T, K] uint16 or None
        Experts of every token.
    histogram : [L, E] uint32 or None
        Tokens per expert, where `experts` was not kept. Exactly one of the two is given.
    """

    request: int
    block: int
    step: int
    kind: Kind
    tokens: int
    context: int
    masked: npt.NDArray[np.bool_] | None = None
    committed: npt.NDArray[np.bool_] | None = None
    experts: npt.NDArray[np.uint16] | None = None
    histogram: npt.NDArray[np.uint32] | None = None

    def counts(self, num_experts: int) -> Counts:
        """Return how many tokens each expert serves, [L, E]."""
        if self.histogram is not None:
            return self.histogram.astype(np.int64)
        if self.experts is None:
            msg = "a pass needs experts or a histogram"
            raise AssertionError(msg)
        return expert_counts(self.experts, num_experts)


def expert_counts(experts: npt.NDArray[np.uint16], num_experts: int) -> Counts:
    """Return how many tokens each expert serves, [L, E].

    Parameters
    ----------
    experts : [L, T, K] uint16
    num_experts : int
    """
    layers = experts.shape[0]
    offset = np.arange(layers, dtype=np.int64)[:, None] * num_experts
    flat = (experts.reshape(layers, -1) + offset).ravel()
    return np.bincount(flat, minlength=layers * num_experts).reshape(layers, num_experts)


class RequestInfo(BaseModel):
    """Where one request of a trace came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: int = Field(ge=0)
    prompt_kind: str = ""
    prompt_source: str = ""
    prompt_tokens: int = Field(ge=0)
    generated_tokens: int = Field(ge=0)
    split: Literal["train", "heldout"] = "train"


class TraceMeta(BaseModel):
    """What holds for a whole trace; stored as JSON in the file's schema metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: ModelSpec
    provenance: Literal["captured", "synthetic", "imported"]
    requests: tuple[RequestInfo, ...]
    checkpoint_sha256: str = ""
    source: str = ""
    settings: dict[str, str | int | float | bool | None] = {}
    seed: int | None = None
    tool_version: str = ""


class Trace:
    """Passes in order with what holds for all of them; iterate it as often as needed.

    Parameters
    ----------
    meta : TraceMeta
    passes : iterable of Pass
        Re-iterable: a list, or an object that reads a file anew for every iteration.
    sha256 : str
        Digest of the file it was read from, "" when it never was a file.
    """

    def __init__(self, meta: TraceMeta, passes: Iterable[Pass], *, sha256: str = "") -> None:
        self.meta = meta
        self.sha256 = sha256
        self._passes = passes

    def __iter__(self) -> Iterator[Pass]:
        return iter(self._passes)

    def only(self, requests: Iterable[int]) -> "Trace":
        """Return the trace of some requests; the passes stay where they are."""
        kept = frozenset(requests)
        meta = self.meta.model_copy(
            update={"requests": tuple(r for r in self.meta.requests if r.request in kept)}
        )
        return Trace(meta, _Filtered(self._passes, kept), sha256=self.sha256)

    def split(self, name: Literal["train", "heldout", "all"]) -> "Trace":
        """Return the training or the held-out requests.

        Raises
        ------
        SettingError
            The trace has no request of that split.
        """
        if name == "all":
            return self
        chosen = [info.request for info in self.meta.requests if info.split == name]
        if not chosen:
            raise SettingError(
                f"the trace has no {name} requests; use --split all, or mark requests in its metadata"
            )
        return self.only(chosen)


@dataclass(frozen=True, slots=True)
class _Filtered:
    passes: Iterable[Pass]
    requests: frozenset[int]

    def __iter__(self) -> Iterator[Pass]:
        return (item for item in self.passes if item.request in self.requests)


class PassKey(NamedTuple):
    """Which pass: attributes as in `Pass` and `WindowedPass`."""

    request: int
    block: int
    generated_block: int
    step: int
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedPass:
    """A pass as a window computes it: what the simulator and the policies see.

    Attributes
    ----------
    generated_block : int
        0 for the first block that decoding writes, -1 for prefill.
    tokens, context : int
        Tokens computed, and tokens served from the prefix cache (0 in window ``full``).
    counts : [L, E] int64
        Tokens routed to every expert.
    requests : int
        Requests computed together; all numbers are sums over them.
    """

    request: int
    block: int
    generated_block: int
    step: int
    kind: Kind
    tokens: int
    context: int
    counts: Counts
    requests: int = 1

    @property
    def key(self) -> PassKey:
        """Which pass it is."""
        return PassKey(self.request, self.block, self.generated_block, self.step, self.kind)
