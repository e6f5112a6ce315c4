"""What a hardware profile may hold: its numbers, sections and curves, as pydantic models.

`tidesim.hardware` reads the files; ``hwprofiles/README.md`` describes them.
"""

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tidesim.strict import Strict

Kind = Literal["measured", "datasheet", "estimated"]
NOT_BLANK = r"\S"
ENGINE_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_Text = Annotated[str, Field(pattern=NOT_BLANK)]
EngineName = Annotated[str, Field(pattern=ENGINE_NAME)]
_Size = Annotated[int, Field(ge=1)]
_Axis = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False, min_length=1)]
_Times = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)]


class Quantity(Strict):
    """One number, at least 0, in the unit its key names, with where it came from and how."""

    value: float = Field(ge=0)
    source: _Text
    kind: Kind


class Positive(Quantity):
    """A number above 0: a rate or a size."""

    value: float = Field(gt=0)


class Count(Quantity):
    """A whole number, at least 1."""

    value: float = Field(ge=1, multiple_of=1)


class Factor(Quantity):
    """The share of its rate that a resource keeps, above 0 and at most 1."""

    value: float = Field(gt=0, le=1)


class Machine(Strict):
    """What the machine is called, and what its GPU (not the host) costs and draws.

    With `unified_memory` GPU and CPU read the same memory: a promotion copies nothing, and price
    and power are those of the whole machine.
    """

    name: _Text
    note: str = ""
    unified_memory: bool = False
    price_usd: Quantity | None = None
    cloud_usd_per_h: Quantity | None = None
    power_w: Positive | None = None


class Gpu(Strict):
    """The GPU; `memory_bytes_per_s` is the rate it reaches while streaming weights."""

    memory_bytes: Positive | None = None
    flops_bf16: Positive | None = None
    memory_bytes_per_s: Positive | None = None
    launch_s: Quantity | None = None
    fused_call_s: Quantity | None = None


class Cpu(Strict):
    """The host; `expert_bytes_per_s` is the weight traffic its expert kernels reach."""

    cores: Count | None = None
    memory_bytes: Positive | None = None
    memory_bytes_per_s: Positive | None = None
    expert_bytes_per_s: Positive | None = None
    flops_bf16: Positive | None = None


class Link(Strict):
    """Host to GPU and back; a duplex factor applies while both directions are busy."""

    h2d_bytes_per_s: Positive | None = None
    d2h_bytes_per_s: Positive | None = None
    h2d_pageable_bytes_per_s: Positive | None = None
    d2h_pageable_bytes_per_s: Positive | None = None
    latency_s: Quantity | None = None
    h2d_duplex_factor: Factor | None = None
    d2h_duplex_factor: Factor | None = None


class ContentionFactors(Strict):
    """The share of its rate each side keeps while CPU experts and copies run together."""

    cpu_factor: Factor | None = None
    h2d_factor: Factor | None = None
    d2h_factor: Factor | None = None


class EngineCosts(Strict):
    """What one engine pays per call.

    `expert_copy_call_s` is what a copy of an expert's weights costs where that is more than another
    copy, such as in an engine that makes new tensors for it; without it, `copy_call_s`.
    `cpu_rate_factor` is the share of the ``[cpu]`` rates that its CPU kernels reach; an engine
    without it runs the kernels those rates were measured with. `cpu_workers` is how many workers
    compute experts beside one another, each with an equal share of those rates; without it all
    cores compute one expert after another.
    """

    gpu_expert_call_s: Quantity | None = None
    cpu_expert_call_s: Quantity | None = None
    copy_call_s: Quantity | None = None
    expert_copy_call_s: Quantity | None = None
    sync_s: Quantity | None = None
    decide_s: Quantity | None = None
    cpu_rate_factor: Factor | None = None
    cpu_workers: Count | None = None


class Curve(Strict):
    """Measured seconds over a grid, row-major, with where they came from and how."""

    axes: ClassVar[tuple[str, ...]]
    seconds: _Times
    source: _Text
    kind: Kind

    @property
    def points(self) -> tuple[tuple[float, ...], ...]:
        """The grid, one tuple of increasing points per axis."""
        return tuple(getattr(self, axis) for axis in self.axes)

    @property
    def size(self) -> str:
        """The grid in words."""
        sizes = zip(map(len, self.points), self.axes, strict=True)
        return " x ".join(f"{size} {axis}" for size, axis in sizes)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, axis in zip(self.axes, self.points, strict=True):
            if any(after <= before for before, after in pairwise(axis)):
                raise ValueError(f"{name} must increase from point to point")
        needed = math.prod(len(axis) for axis in self.points)
        if len(self.seconds) != needed:
            raise ValueError(f"seconds must hold {needed} values, one per point of the grid")
        return self


class CopyCurve(Curve):
    """One copy, over its size in bytes."""

    axes = ("bytes",)
    bytes: _Axis


class ExpertCurve(Curve):
    """All active experts of a layer, over (tokens per expert, experts), for one expert shape."""

    axes = ("tokens_per_expert", "experts")
    hidden_size: _Size
    moe_intermediate_size: _Size
    dtype: _Text
    tokens_per_expert: _Axis
    experts: _Axis


class AttentionCurve(Curve):
    """One layer's attention, over (tokens, context), for one attention shape."""

    axes = ("tokens", "context")
    hidden_size: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size
    head_dim: _Size
    dtype: _Text
    tokens: _Axis
    context: _Axis


class RouterCurve(Curve):
    """One mixture layer's router, over tokens."""

    axes = ("tokens",)
    hidden_size: _Size
    num_experts: _Size
    n_group: _Size
    topk_group: _Size
    num_experts_per_tok: _Size
    dtype: _Text
    tokens: _Axis


class SharedCurve(Curve):
    """The shared experts of a mixture layer, over tokens."""

    axes = ("tokens",)
    hidden_size: _Size
    moe_intermediate_size: _Size
    num_shared_experts: _Size
    dtype: _Text
    tokens: _Axis


class DenseMlpCurve(Curve):
    """The MLP of a dense layer, over tokens."""

    axes = ("tokens",)
    hidden_size: _Size
    intermediate_size: _Size
    dtype: _Text
    tokens: _Axis


class CombineCurve(Curve):
    """The sum of a mixture layer's expert outputs, over tokens."""

    axes = ("tokens",)
    hidden_size: _Size
    num_experts_per_tok: _Size
    dtype: _Text
    tokens: _Axis


class HeadCurve(Curve):
    """Final norm, output head, softmax and the choice of tokens, over the positions decoded."""

    axes = ("tokens",)
    hidden_size: _Size
    vocab_size: _Size
    dtype: _Text
    tokens: _Axis


class OneExpertCurve(Curve):
    """One expert by itself, over its tokens, for one expert shape."""

    axes = ("tokens",)
    hidden_size: _Size
    moe_intermediate_size: _Size
    dtype: _Text
    tokens: _Axis


class CopyCurves(Strict):
    """Copy curves by direction and, with ``_pageable``, for memory that is not pinned."""

    h2d: CopyCurve | None = None
    d2h: CopyCurve | None = None
    h2d_pageable: CopyCurve | None = None
    d2h_pageable: CopyCurve | None = None


class Curves(Strict):
    """Measured tables; where one is absent, the rates of the other sections are used."""

    copies: CopyCurves = Field(default=CopyCurves(), alias="copy")
    gpu_experts: ExpertCurve | None = None
    cpu_experts: ExpertCurve | None = None
    gpu_expert: OneExpertCurve | None = None
    cpu_expert: OneExpertCurve | None = None
    attention: AttentionCurve | None = None
    dense_mlp: DenseMlpCurve | None = None
    router: RouterCurve | None = None
    shared: SharedCurve | None = None
    combine: CombineCurve | None = None
    head: HeadCurve | None = None
