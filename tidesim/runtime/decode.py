"""Block-diffusion decoding, with or without a prefix cache.

A request's tokens stand in blocks aligned to absolute positions. Each denoise step writes the
positions whose confidence exceeds a threshold, and at least its quota of the best ones.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tidesim.errors import FormatError, SettingError
from tidesim.runtime.model import KeyValueCache, Transformer, block_causal_mask
from tidesim.trace.passes import Kind, PassKey, Window


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How to decode; the defaults are LLaDA2.0's.

    Attributes
    ----------
    gen_length : int
        Tokens to write at most.
    steps : int
        Denoise steps a block may take; its quotas are `block_length` spread over them.
    threshold : float
        Confidence above which a position is written at once.
    temperature, top_p, top_k
        Sampling; temperature 0 takes the most probable token.
    mask_id, eos_id : int or None
        None takes the model's.
    stop_at_eos : bool
        Stop after a block that holds the end-of-text token and cut the text there; False writes
        `gen_length` tokens whatever they are.
    """

    gen_length: int = 256
    block_length: int = 32
    steps: int = 32
    threshold: float = 0.95
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    window: Window = Window.BLOCK
    mask_id: int | None = None
    eos_id: int | None = None
    stop_at_eos: bool = True

    def __post_init__(self) -> None:
        rules = {
            "gen_length": (self.gen_length, self.gen_length >= 1, "at least 1"),
            "block_length": (self.block_length, self.block_length >= 1, "at least 1"),
            "steps": (self.steps, self.steps >= 1, "at least 1"),
            "threshold": (self.threshold, 0 <= self.threshold <= 1, "between 0 and 1"),
            "temperature": (
                self.temperature,
                self.temperature == 0 or 1e-6 <= self.temperature <= 1e6,
                "0, or between 1e-6 and 1e6",
            ),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k, self.top_k >= 0, "0 (off) or more"),
            "seed": (self.seed, 0 <= self.seed < 1 << 63, "0 or more and below 2**63"),
        }
        for name, (value, holds, rule) in rules.items():
            if not holds:
                raise SettingError(f"{name} is {value} but must be {rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassEvent:
    """What one forward pass did, before anything is converted or copied.

    Attributes
    ----------
    masked, committed : [T] bool or None
    routes : [L, T, K] int64
    ids : [T] int64
        The block's tokens after the pass.
    """

    block: int
    step: int
    kind: Kind
    tokens: int
    context: int
    masked: Tensor | None
    committed: Tensor | None
    routes: Tensor
    ids: Tensor


Observer = Callable[[PassEvent], None]


class Frame(Protocol):
    """What frames every pass: a runtime that places experts."""

    def begin(self, key: PassKey) -> None:
        """Begin a pass."""

    def end(self) -> float:
        """End the pass in progress, its choice of tokens included; return its seconds."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What decoding wrote.

    Attributes
    ----------
    tokens : list of int
        At most `gen_length`, up to and with the first end-of-text token.
    steps, passes : int
        Denoise passes, and all passes.
    written : int
        Positions written, those after the cut included.
    seconds : float
        Wall-clock time of the passes.
    """

    tokens: list[int]
    steps: int
    passes: int
    blocks: int
    written: int
    seconds: float


def quotas(block_length: int, steps: int) -> list[int]:
    """Spread a block over its steps, the remainder on the first ones."""
    base, rest = divmod(block_length, steps)
    return [base + (step < rest) for step in range(steps)]


def choose(
    logits: Tensor, settings: DecodeSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the candidate of every position and its probability; logits [T, V] float32."""
    if settings.temperature == 0:
        confidence, candidates = logits.softmax(-1).max(-1)
        return candidates, confidence
    logits = logits / settings.temperature
    if settings.top_k:
        kept = logits.topk(min(settings.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(logits, dtype=torch.bool)
        dropped.scatter_(1, order, before >= settings.top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    probabilities = logits.softmax(-1)
    candidates = torch.multinomial(probabilities, 1, generator=generator)
    return candidates[:, 0], probabilities.gather(1, candidates)[:, 0]


def positions_to_write(
    confidence: Tensor, masked: Tensor, *, quota: int, threshold: float
) -> Tensor:
    """Return [T] bool: everything above the threshold, else the `quota` most confident."""
    ranked = confidence.masked_fill(~masked, -torch.inf)
    confident = ranked > threshold
    if int(confident.sum()) >= quota:
        return confident
    chosen = torch.zeros_like(masked)
    chosen[ranked.topk(min(quota, int(masked.sum()))).indices] = True
    return chosen


def write_tokens(
    ids: Tensor,
    logits: Tensor,
    masked: Tensor,
    settings: DecodeSettings,
    generator: torch.Generator,
    *,
    quota: int,
) -> Tensor:
    """Write what a step decides into a block's ids [T], in place; return where, [T] bool."""
    candidates, confidence = choose(logits, settings, generator)
    written = positions_to_write(confidence, masked, quota=quota, threshold=settings.threshold)
    ids.copy_(torch.where(written, candidates, ids))
    return written


class Decoder:
    """The state of one request while it is decoded.

    Parameters
    ----------
    model : Transformer
    prompt : list of int
        Token ids, at least one.
    settings : DecodeSettings
    observe : callable, optional
        Called after every pass.
    frame : Frame, optional
        Told when every pass begins and ends.
    request : int
        Its number, for the frame.

    Raises
    ------
    SettingError
        The prompt is empty, holds an id outside the vocabulary or a mask, or is too long.
    """

    def __init__(
        self,
        model: Transformer,
        prompt: list[int],
        settings: DecodeSettings,
        *,
        observe: Observer | None = None,
        frame: Frame | None = None,
        request: int = 0,
    ) -> None:
        spec = model.spec
        self.model, self.settings = model, settings
        self.observe, self.frame, self.request = observe, frame, request
        self.mask_id = spec.mask_token_id if settings.mask_id is None else settings.mask_id
        self.eos_id = spec.eos_token_id if settings.eos_id is None else settings.eos_id
        self.prompt_length, self.block = len(prompt), settings.block_length
        self.blocks = -(-(len(prompt) + settings.gen_length) // self.block)
        self._check(prompt)
        device = model.lm_head.weight.device
        self.ids = torch.full((self.blocks * self.block,), self.mask_id, device=device)
        self.ids[: len(prompt)] = torch.tensor(prompt, device=device)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.cache = (
            KeyValueCache.empty(spec, len(self.ids), model.lm_head.weight)
            if settings.window is Window.BLOCK
            else None
        )
        self.passes = self.steps = self.written = self.block_steps = self.finished = 0

    def _check(self, prompt: list[int]) -> None:
        spec = self.model.spec
        for name, token in (("mask id", self.mask_id), ("eos id", self.eos_id)):
            if not 0 <= token < spec.vocab_size:
                raise SettingError(
                    f"{name} {token} is outside the vocabulary of {spec.vocab_size} tokens; "
                    "give the checkpoint's own with --mask-id and --eos-id"
                )
        if not prompt:
            raise SettingError("the prompt is empty; give at least one token")
        wrong = [token for token in prompt if not 0 <= token < spec.vocab_size]
        if wrong:
            raise SettingError(
                f"prompt token {wrong[0]} is outside the vocabulary of {spec.vocab_size} tokens; "
                "use the checkpoint's own tokenizer"
            )
        if self.mask_id in prompt:
            raise SettingError(f"the prompt holds the mask token {self.mask_id}; remove it")
        if self.blocks * self.block > spec.max_position_embeddings:
            raise SettingError(
                f"prompt and generation fill {self.blocks * self.block} positions but the model has "
                f"{spec.max_position_embeddings}; shorten the prompt or --gen-length"
            )

    def run(self) -> None:
        """Decode every block."""
        first = self.prompt_length // self.block
        self._prefill(first * self.block)
        for block in range(first, self.blocks):
            self._denoise(block)
            self._commit(block)
            self.finished += 1
            if self.settings.stop_at_eos and self._has_eos((block + 1) * self.block):
                break

    def _has_eos(self, end: int) -> bool:
        return bool((self.ids[self.prompt_length : end] == self.eos_id).any())

    @contextmanager
    def _framed(self, kind: Kind, block: int, step: int) -> Iterator[None]:
        if self.frame is None:
            yield
            return
        generated = -1 if kind is Kind.PREFILL else block - self.prompt_length // self.block
        self.frame.begin(PassKey(self.request, block, generated, step, kind))
        yield
        self.frame.end()

    def _forward(self, start: int, end: int, *, last: int) -> tuple[Tensor, Tensor]:
        """Run positions start..end (window block) or 0..end (window full, logits included)."""
        self.passes += 1
        if self.cache is None:
            logits, routes = self.model(self.ids[:end], mask=self._mask(end))
            return logits[end - last :], routes
        mask = self._mask(end) if end - start > self.block else None  # one block sees all of itself
        return self.model(  # type: ignore[no-any-return]
            self.ids[start:end], start=start, mask=mask, cache=self.cache, last=last
        )

    def _mask(self, tokens: int) -> Tensor:
        return block_causal_mask(tokens, self.block, self.ids.device)

    def _prefill(self, tokens: int) -> None:
        if tokens and self.cache is not None:
            with self._framed(Kind.PREFILL, -1, 0):
                _, routes = self._forward(0, tokens, last=0)
            self._emit(Kind.PREFILL, -1, 0, (0, tokens), routes)

    def _denoise(self, block: int) -> None:
        settings, start, end = self.settings, block * self.block, (block + 1) * self.block
        schedule = quotas(self.block, min(settings.steps, self.block))
        earlier_steps, self.block_steps = self.block_steps, 0
        for step, quota in enumerate(schedule):
            masked = self.ids[start:end] == self.mask_id
            if not bool(masked.any()):
                break
            with self._framed(Kind.DENOISE, block, step):
                logits, routes = self._forward(start, end, last=self.block)
                self._check_logits(logits)
                written = write_tokens(
                    self.ids[start:end], logits, masked, settings, self.generator, quota=quota
                )
                self.written += int(written.sum())
            self._emit_prefix(block, step, routes, earlier_steps=earlier_steps)
            self.steps += 1
            self.block_steps += 1
            self._emit(
                Kind.DENOISE, block, step, (start, end), self._block_routes(routes),
                masked=masked, committed=written,
            )  # fmt: skip

    def _block_routes(self, routes: Tensor) -> Tensor:
        """Return the routes of the block alone, so that an event keeps no prefix in memory."""
        return routes if self.cache is not None else routes[:, -self.block :].clone()

    def _check_logits(self, logits: Tensor) -> None:
        if bool(logits.sum().isnan()):  # one NaN is enough, and a sum is quick
            raise FormatError(
                f"model {self.model.spec.name} computes NaN in {self.model.lm_head.weight.dtype}; "
                "use --dtype bfloat16 or float32, or fetch the checkpoint again"
            )

    def _commit(self, block: int) -> None:
        """Store the finished block's exact keys and values."""
        if self.cache is not None:
            span = (block * self.block, (block + 1) * self.block)
            with self._framed(Kind.COMMIT, block, self.block_steps):
                _, routes = self._forward(*span, last=0)
            self._emit(Kind.COMMIT, block, self.block_steps, span, routes)

    def _emit_prefix(self, block: int, step: int, routes: Tensor, *, earlier_steps: int) -> None:
        """In window full, a block's first pass also routes what a cache would have served."""
        if self.cache is not None or step:
            return
        first, start = self.prompt_length // self.block, block * self.block
        if block == first and start:
            self._emit(Kind.PREFILL, -1, 0, (0, start), routes[:, :start])
        elif block > first:
            span = (start - self.block, start)
            self._emit(Kind.COMMIT, block - 1, earlier_steps, span, routes[:, span[0] : span[1]])

    def _emit(
        self,
        kind: Kind,
        block: int,
        step: int,
        span: tuple[int, int],
        routes: Tensor,
        *,
        masked: Tensor | None = None,
        committed: Tensor | None = None,
    ) -> None:
        if self.observe is None:
            return
        self.observe(
            PassEvent(
                block=block,
                step=step,
                kind=kind,
                tokens=span[1] - span[0],
                context=span[0],
                masked=masked,
                committed=committed,
                routes=routes,
                ids=self.ids[span[0] : span[1]].clone(),
            )
        )

    def result(self, seconds: float) -> Decoded:
        """Cut the text at `gen_length` and after the first end-of-text token."""
        end = self.prompt_length + self.settings.gen_length
        tokens = [t for t in self.ids[self.prompt_length : end].tolist() if t != self.mask_id]
        if self.eos_id in tokens and self.settings.stop_at_eos:
            tokens = tokens[: tokens.index(self.eos_id) + 1]
        return Decoded(
            tokens=tokens,
            steps=self.steps,
            passes=self.passes,
            blocks=self.finished,
            written=self.written,
            seconds=seconds,
        )


def _synchronised_clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def decode(
    model: Transformer,
    prompt: list[int],
    settings: DecodeSettings,
    *,
    observe: Observer | None = None,
    frame: Frame | None = None,
    request: int = 0,
) -> Decoded:
    """Decode one request.

    Parameters
    ----------
    model : Transformer
    prompt : list of int
    settings : DecodeSettings
    observe : callable, optional
        Called with a `PassEvent` after every pass.
    frame : Frame, optional
        Told when every pass begins and ends.
    request : int
        Its number, for the frame.

    Raises
    ------
    SettingError
        The prompt does not suit the model.
    FormatError
        The model computes NaN.
    """
    decoder = Decoder(model, prompt, settings, observe=observe, frame=frame, request=request)
    device = model.lm_head.weight.device
    started = _synchronised_clock(device)
    decoder.run()
    return decoder.result(_synchronised_clock(device) - started)


def chat_markup(text: str) -> str:
    """Wrap a prompt in LLaDA2.0's role markup."""
    return f"<role>HUMAN</role>{text}<|role_end|><role>ASSISTANT</role>"
