"""What a model occupies on the GPU, and the largest budget that still fits."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from tidesim.errors import CapacityError, SettingError
from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Kind, Trace, Window

# What the TIDE authors' code keeps free at least (ims-kdks/TIDE 5611ace): driver context,
# libraries, fragmentation.
RESERVE_BYTES = 1_500_000_000
_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The largest pass a run must hold.

    Attributes
    ----------
    tokens : int
        Most tokens computed by one pass.
    decoded : int
        Most tokens whose logits one pass computes.
    cached : int
        Most tokens whose keys and values are kept.
    """

    tokens: int
    decoded: int
    cached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes on the GPU by purpose."""

    non_expert_bytes: int
    slots_bytes: int
    scratch_bytes: int
    kv_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return (
            self.non_expert_bytes
            + self.slots_bytes
            + self.scratch_bytes
            + self.kv_bytes
            + self.workspace_bytes
        )

    def kept_free_bytes(self, memory_bytes: int, free_percent: int) -> int:
        """Return what an engine keeps free on a GPU beyond the workspace.

        The TIDE authors' rule for the budget, (free - max(1.5 GB, 10 % of free)) // bytes of an
        expert in every mixture layer, with `free` what the other weights leave; here the workspace,
        which holds those 1.5 GB and the activations, takes the place of the first of the two.

        Parameters
        ----------
        memory_bytes : int
            Memory of the GPU, all of it.
        free_percent : int
            Of `Engine`.
        """
        share = -(-free_percent * (memory_bytes - self.non_expert_bytes) // 100)
        return max(0, share - self.workspace_bytes)

    def needed_bytes(self, free_percent: int) -> int:
        """Return the smallest GPU memory that holds it all and what an engine keeps free."""
        used = self.total_bytes - self.workspace_bytes
        whole = 100 * used - free_percent * self.non_expert_bytes
        return max(self.total_bytes, -(-whole // (100 - free_percent)))

    def to_json(self) -> dict[str, int]:
        """Return bytes by purpose and in total."""
        return asdict(self) | {"total_bytes": self.total_bytes}


def extent(trace: Trace, window: Window, *, batch: int = 1) -> Extent:
    """Return the largest pass of a trace; reads it once.

    Parameters
    ----------
    trace : Trace
    window : Window
    batch : int
        Requests decoded in step, each given room for the longest.
    """
    block = trace.meta.model.block_length
    computed = positions = block
    for pass_ in trace:
        together = 1 if pass_.kind is Kind.PREFILL else batch
        computed = max(computed, together * pass_.tokens)
        positions = max(positions, pass_.tokens + pass_.context)
    if window is Window.FULL:
        return Extent(tokens=batch * positions, decoded=batch * positions, cached=0)
    return Extent(
        tokens=max(computed, batch * block), decoded=batch * block, cached=batch * positions
    )


def request_extent(
    spec: ModelSpec, window: Window, *, prompt_tokens: int, gen_length: int, batch: int = 1
) -> Extent:
    """Return the largest pass of a request of some lengths.

    Blocks are aligned to absolute positions: the first generated block may hold the prompt's tail.

    Parameters
    ----------
    spec : ModelSpec
    window : Window
    prompt_tokens, gen_length : int
        Tokens of the prompt, and tokens to generate.
    batch : int
        Such requests decoded in step.

    Raises
    ------
    SettingError
        A length is out of range or more than the model has positions.

    Examples
    --------
    >>> from tidesim.model_spec import load_model_spec
    >>> mini = load_model_spec("llada2.0-mini")
    >>> request_extent(mini, Window.BLOCK, prompt_tokens=128, gen_length=256)
    Extent(tokens=128, decoded=32, cached=384)
    """
    least = {"prompt tokens": (prompt_tokens, 0), "generation length": (gen_length, 1)}
    for name, (value, low) in (least | {"batch": (batch, 1)}).items():
        if value < low:
            raise SettingError(f"{name} is {value} but must be at least {low}")
    block = spec.block_length
    positions = -(-(prompt_tokens + gen_length) // block) * block
    if positions > spec.max_position_embeddings:
        raise SettingError(
            f"prompt and generation take {positions} positions in whole blocks, but {spec.name} "
            f"has {spec.max_position_embeddings}; use shorter ones"
        )
    if window is Window.FULL:
        return Extent(tokens=batch * positions, decoded=batch * positions, cached=0)
    prefill = prompt_tokens // block * block
    return Extent(
        tokens=max(prefill, batch * block), decoded=batch * block, cached=batch * positions
    )


def workspace_bytes(spec: ModelSpec, size: Extent) -> int:
    """Return bytes of activations and reserve.

    Activations of a layer: residual, norm, queries, keys, values and the widest MLP in the model's
    dtype, and one float32 row per token-expert pair, because the sum over the top-k is exact.
    Logits and their softmax are float32.
    """
    heads = spec.num_attention_heads + 2 * spec.num_key_value_heads
    mlp = max(
        spec.intermediate_size * bool(spec.first_k_dense_replace),
        spec.num_experts_per_tok * spec.moe_intermediate_size,
    )
    row = (2 * spec.hidden_size + heads * spec.head_dim + 2 * mlp) * spec.dtype_bytes
    pairs = spec.num_experts_per_tok * spec.hidden_size * _FLOAT32
    logits = 2 * spec.vocab_size * _FLOAT32
    return size.tokens * (row + pairs) + size.decoded * logits + RESERVE_BYTES


def plan(spec: ModelSpec, size: Extent, *, slots: int, scratch_slots: int = 0) -> MemoryPlan:
    """Return what a run occupies.

    Parameters
    ----------
    spec : ModelSpec
        The sizes simulated.
    size : Extent
    slots : int
        Expert slots of all layers together.
    scratch_slots : int
        Slots for streamed experts, shared by all layers.

    Examples
    --------
    >>> from tidesim.engines import get_engine
    >>> from tidesim.model_spec import load_model_spec
    >>> mini = load_model_spec("llada2.0-mini")
    >>> lengths = {"prompt_tokens": 128, "gen_length": 256}
    >>> size = request_extent(mini, get_engine("tidesim").window, **lengths)
    >>> plan(mini, size, slots=64 * mini.moe_layers).slots_bytes
    7650410496
    """
    return MemoryPlan(
        non_expert_bytes=spec.non_expert_bytes,
        slots_bytes=slots * spec.expert_bytes,
        scratch_bytes=scratch_slots * spec.expert_bytes,
        kv_bytes=size.cached * spec.kv_bytes_per_token,
        workspace_bytes=workspace_bytes(spec, size),
    )


def budget_for(
    spec: ModelSpec,
    size: Extent,
    memory_bytes: int,
    *,
    scratch_slots: Callable[[int], int] = lambda _: 0,
    free_percent: int = 0,
) -> int:
    """Return the largest budget per layer that fits.

    Parameters
    ----------
    spec, size
        As for `plan`.
    memory_bytes : int
        Memory of the GPU, all of it.
    scratch_slots : callable
        Slots for streamed experts at a budget.
    free_percent : int
        Of the engine; see `MemoryPlan.kept_free_bytes`.

    Raises
    ------
    CapacityError
        Not even the smallest budget, one token's top-k, fits; names the memory that would do.

    Examples
    --------
    >>> from tidesim.model_spec import load_model_spec
    >>> mini = load_model_spec("llada2.0-mini")
    >>> size = request_extent(mini, Window.BLOCK, prompt_tokens=128, gen_length=256)
    >>> budget_for(mini, size, 18_000_000_000)
    121
    """
    needed = {
        budget: plan(
            spec, size, slots=spec.moe_layers * budget, scratch_slots=scratch_slots(budget)
        ).needed_bytes(free_percent)
        for budget in range(spec.num_experts_per_tok, spec.num_experts + 1)
    }
    fitting = [budget for budget, total in needed.items() if total <= memory_bytes]
    if not fitting:
        raise CapacityError(
            f"{gigabytes(memory_bytes)} do not hold {spec.name} with the smallest budget, "
            f"{spec.num_experts_per_tok} experts per layer; "
            f"the smallest memory that would do is {gigabytes(min(needed.values()), up=True)}"
        )
    return max(fitting)


def gigabytes(num_bytes: float, *, up: bool = False) -> str:
    """Return bytes as text in GB (1e9), with two decimals; rounded up on request."""
    hundredths = -(-num_bytes // 1e7) if up else num_bytes // 1e7
    return f"{hundredths / 100:.2f} GB"
