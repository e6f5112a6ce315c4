"""Replay: a trace's routing drives real copies and real matrix products with random weights.

Any model's shapes run without its weights, and the passes are those a simulation prices.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tidesim.errors import CapacityError, FormatError, SettingError
from tidesim.measured import Counters, MeasuredRun
from tidesim.memory import gigabytes
from tidesim.model_spec import ModelSpec
from tidesim.placement import IntArray, Policy, Setup
from tidesim.runtime.backends import Backend
from tidesim.runtime.decode import DecodeSettings, write_tokens
from tidesim.runtime.experts import Offload
from tidesim.runtime.model import (
    TORCH_DTYPES,
    KeyValueCache,
    Transformer,
    block_causal_mask,
)
from tidesim.runtime.offloading import make_offload
from tidesim.trace.passes import Kind, Window, WindowedPass

GREEDY = DecodeSettings()


def routes_of(counts: IntArray, tokens: int, top_k: int) -> IntArray:
    """Spread a layer's counts over tokens so that nobody has the same expert twice.

    Parameters
    ----------
    counts : [E] int64
        Tokens routed to every expert; none above `tokens`, all adding up to tokens × top-k.
    tokens, top_k : int

    Returns
    -------
    [T, K] int64

    Raises
    ------
    FormatError
        The counts are not those of so many tokens.
    """
    if counts.max(initial=0) > tokens or counts.sum() != tokens * top_k:
        raise FormatError(
            f"trace: a layer's counts add up to {counts.sum()}, at most {counts.max(initial=0)} an "
            f"expert, which {tokens} tokens with {top_k} experts each cannot be; replay needs every "
            "pass's whole routing"
        )
    flat = np.repeat(np.arange(len(counts)), counts)  # equal ids stand within `tokens` places
    return flat.reshape(top_k, tokens).T.copy()


@torch.inference_mode()
def random_model(spec: ModelSpec, *, device: torch.device, seed: int = 0) -> Transformer:
    """Return a model of a spec's shapes with random weights, its banks in host memory.

    The experts of later layers are those of the first in another order, in memory of their own.

    Raises
    ------
    CapacityError
        Host or device memory do not hold it.
    """
    dtype = TORCH_DTYPES[spec.dtype]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.device("meta"):
        model = Transformer(spec)
    try:
        state = {
            name: _random(name, tuple(parameter.shape), dtype, device, generator)
            for name, parameter in model.named_parameters()
            if not name.endswith(".bank")
        }
        state |= _random_banks(model, dtype, generator)
    except (MemoryError, RuntimeError) as error:
        raise CapacityError(
            f"{spec.name} with random weights needs {gigabytes(spec.all_experts_bytes, up=True)} of "
            f"host memory for its experts ({error}); replay fewer layers"
        ) from None
    model.load_state_dict(state, strict=False, assign=True)
    if spec.tie_word_embeddings:
        model.lm_head.weight = model.word_embeddings.weight
    return model.eval().requires_grad_(requires_grad=False)


def _random(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> Tensor:
    exact = name.endswith(("expert_bias", "mlp.gate.weight"))
    kind = torch.float32 if exact else dtype
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=kind, device=device)
    scale = shape[-1] ** -0.5
    drawn = torch.empty(shape, dtype=torch.float32).uniform_(-scale, scale, generator=generator)
    return drawn.to(device, kind)


def _random_banks(
    model: Transformer, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters() if name.endswith(".bank")]
    shape = (model.spec.num_experts, model.spec.expert_params)
    scale = model.spec.hidden_size**-0.5
    first = torch.empty(shape, dtype=dtype)
    for row in first:  # one expert at a time: float32 of a whole bank would be large
        row.copy_(torch.empty(shape[1]).uniform_(-scale, scale, generator=generator))
    return {name: first.roll(number, 0) for number, name in enumerate(names)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """One pass with what it takes that no clock should see."""

    pass_: WindowedPass
    routes: list[Tensor]


class Replayer:
    """Runs traces on one model with random weights and one backend; reuse it for many policies.

    Parameters
    ----------
    spec : ModelSpec
        The sizes to run.
    backend : Backend
        Entered by the caller.
    seed : int

    Raises
    ------
    CapacityError
        The model does not fit.
    """

    def __init__(self, spec: ModelSpec, backend: Backend, *, seed: int = 0) -> None:
        self.spec, self.backend, self._seed = spec, backend, seed
        self._model = random_model(spec, device=backend.device, seed=seed)
        self._cache: KeyValueCache | None = None

    def run(
        self,
        passes: Iterable[WindowedPass],
        make: Callable[[Setup], Policy],
        setup: Setup,
        *,
        repeats: int = 1,
        keep_records: bool = True,
        about: "About | None" = None,
        observe: Callable[[], None] = lambda: None,
    ) -> MeasuredRun:
        """Run some passes several times.

        Parameters
        ----------
        passes : iterable of WindowedPass
            In the window of the setup's engine.
        make : callable
            Makes a fresh policy for every repeat.
        setup : Setup
        repeats : int
        keep_records : bool
        about : About or None
            Where the routing comes from.
        observe : callable
            Called after every pass.

        Raises
        ------
        SettingError, CapacityError, FormatError, RunError
            As `make_offload`; the trace holds no pass or not all of its routing; the hardware failed.
        """
        prepared = [self._prepare(pass_) for pass_ in passes]
        if not prepared or repeats < 1:
            raise SettingError("there is nothing to replay; give passes and at least one repeat")
        about = about or About(sizes=self.spec.name)
        seconds, counters, records = [], [], None
        for _ in range(repeats):
            policy = make(setup)
            offload = make_offload(self._model, policy, setup, self.backend)
            self.backend.recorder.enabled = keep_records
            seconds.append(self._once(prepared, offload, setup.engine.window, observe))
            records = self.backend.recorder.take()
            counters.append(offload.tally.counters())
        return MeasuredRun(
            policy=policy.name,
            engine=setup.engine.name,
            promotion=str(policy.promotion),
            interval=policy.interval,
            budgets=tuple(policy.budgets(setup).tolist()),
            backend=self.backend.name,
            machine=self.backend.machine,
            sizes=about.sizes,
            provenance=about.provenance,
            keys=tuple(each.pass_.key for each in prepared),
            pass_s=np.array(seconds),
            counters=_agreed(counters),
            records=records if keep_records else None,
            trace_sha256=about.trace_sha256,
        )

    @torch.inference_mode()
    def _once(
        self,
        prepared: Sequence[_Prepared],
        offload: Offload,
        window: Window,
        observe: Callable[[], None],
    ) -> list[float]:
        self.backend.recorder.take()  # forget the copies of the first residents
        self._reserve(prepared, window)
        offload.attach()
        seconds = []
        try:
            for each in prepared:
                offload.routes = each.routes
                seconds.append(self._pass(each.pass_, offload, window))
                observe()
            offload.finish()
        finally:
            offload.detach()
        return seconds

    def _pass(self, pass_: WindowedPass, offload: Offload, window: Window) -> float:
        """Compute one pass as `decode.Decoder` does."""
        model, block, device = self._model, self.spec.block_length, self.backend.device
        decodes = pass_.kind is Kind.DENOISE
        ids = torch.full((pass_.tokens,), self.spec.mask_token_id, device=device)
        masked = torch.ones(block, dtype=torch.bool, device=device)
        generator = torch.Generator(device).manual_seed(self._seed)
        whole = window is Window.FULL or pass_.tokens > block
        offload.begin(pass_.key)
        mask = block_causal_mask(pass_.tokens, block, device) if whole else None
        cache = self._cache if window is Window.BLOCK else None
        last = None if window is Window.FULL else block if decodes else 0
        logits, _ = model(ids, start=pass_.context, mask=mask, cache=cache, last=last)
        if decodes:
            written = write_tokens(
                ids[-block:], logits[-block:], masked, GREEDY, generator, quota=1
            )
            int(written.sum())
        return offload.end()

    def _prepare(self, pass_: WindowedPass) -> _Prepared:
        top_k = self.spec.num_experts_per_tok
        routes = [
            torch.from_numpy(routes_of(counts, pass_.tokens, top_k)).to(self.backend.device)
            for counts in pass_.counts
        ]
        return _Prepared(pass_=pass_, routes=routes)

    def _reserve(self, prepared: Sequence[_Prepared], window: Window) -> None:
        """Make room for the longest context, filled with numbers of the usual size."""
        if window is Window.FULL:
            return
        longest = max(each.pass_.tokens + each.pass_.context for each in prepared)
        if self._cache is None or self._cache.keys.shape[2] < longest:
            cache = KeyValueCache.empty(self.spec, longest, self._model.lm_head.weight)
            for tensor in (cache.keys, cache.values):
                tensor.uniform_(-1, 1)
            self._cache = cache


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Where the routing of a replay comes from."""

    sizes: str
    provenance: str = ""
    trace_sha256: str = ""


def _agreed(counters: Sequence[Counters]) -> Counters:
    """Return what every repeat counted."""
    for other in counters[1:]:
        if other != counters[0]:
            raise AssertionError(f"repeats counted differently: {counters[0]} and {other}")
    return counters[0]
