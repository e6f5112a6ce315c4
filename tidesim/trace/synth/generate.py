"""A synthetic trace: requests of a workload, pass by pass, as the process routes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

import tidesim
from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta, expert_counts
from tidesim.trace.synth.decoding import positions_to_commit, probability_for
from tidesim.trace.synth.parameters import MIXED, Parameters
from tidesim.trace.synth.process import (
    Biases,
    BlockProcess,
    model_biases,
    request_biases,
)

_HELDOUT_EVERY = 4  # of so many requests one is held out, each time of another workload


def synthesize(
    parameters: Parameters,
    model: ModelSpec,
    *,
    requests: int,
    gen_length: int,
    seed: int,
    workload: str = MIXED,
    block_length: int | None = None,
) -> Trace:
    """Return a synthetic trace; its passes are drawn anew, the same ones, on every iteration.

    Parameters
    ----------
    parameters : Parameters
    model : ModelSpec
        Its geometry; other layers than the file's take its spread over depth.
    requests : int
    gen_length : int
        Tokens that every request generates.
    seed : int
        Draws requests: prompts, topics, tokens. Request r is the same whatever `requests` is.
    workload : str
        A workload of the file, or ``mixed``: all of them, request by request in turn.
    block_length : int, optional
        Instead of the model's.

    Raises
    ------
    SettingError
        A number out of range, an unknown workload, or more tokens than the model has positions.

    Examples
    --------
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.trace.synth.parameters import load_parameters
    >>> mini = load_model_spec("llada2.0-mini")
    >>> lengths = {"requests": 1, "gen_length": 32, "seed": 0}
    >>> trace = synthesize(load_parameters("llada2.0-mini"), mini, **lengths)
    >>> trace.meta.provenance, [str(pass_.kind) for pass_ in trace][-1]
    ('synthetic', 'commit')
    """
    names = _workloads(parameters, workload)
    if block_length is not None:
        model = model.model_copy(update={"block_length": block_length})
    _check(requests, gen_length, seed, model.block_length)
    infos = tuple(
        _request_info(parameters, names, request, gen_length=gen_length, seed=seed)
        for request in range(requests)
    )
    for info in infos:
        _check_positions(info, model)
    meta = TraceMeta(
        model=model,
        provenance="synthetic",
        requests=infos,
        source=f"tidesim trace synth, parameters of {parameters.model}",
        settings=_settings(parameters, workload=workload, gen_length=gen_length),
        seed=seed,
        tool_version=tidesim.__version__,
    )
    return Trace(meta, _Synthetic(parameters, meta))


def _workloads(parameters: Parameters, workload: str) -> list[str]:
    if workload == MIXED:
        return list(parameters.workloads)
    if workload not in parameters.workloads:
        raise SettingError(
            f"workload is {workload!r}, but the parameters of {parameters.model} have "
            f"{', '.join(parameters.workloads)}; give one of them, or {MIXED}"
        )
    return [workload]


def _check(requests: int, gen_length: int, seed: int, block_length: int) -> None:
    for name, value, low, high in (
        ("block_length", block_length, 1, 256),
        ("requests", requests, 1, 1_000_000),
        ("gen_length", gen_length, 1, 1_000_000),
        ("seed", seed, 0, (1 << 63) - 1),
    ):
        if not low <= value <= high:
            raise SettingError(f"{name} is {value} but must be {low} to {high}")


def _check_positions(info: RequestInfo, model: ModelSpec) -> None:
    positions = _blocks(info, model) * model.block_length
    if positions > model.max_position_embeddings:
        raise SettingError(
            f"prompt and generation of request {info.request} fill {positions} positions, but "
            f"{model.name} has {model.max_position_embeddings}; lower gen_length"
        )


def _settings(
    parameters: Parameters, *, workload: str, gen_length: int
) -> dict[str, str | int | float | bool | None]:
    routing = {
        name: getattr(parameters.routing, name).value
        for name in type(parameters.routing).model_fields
    }
    return {
        "workload": workload,
        "gen_length": gen_length,
        "model_seed": parameters.model_seed,
        **routing,
        "spread_by_layer": ", ".join(map(str, parameters.spread_by_layer.value)),
        **{
            f"tokens_per_forward {name}": item.tokens_per_forward
            for name, item in parameters.workloads.items()
        },
    }


def _rng(seed: int, request: int, part: int) -> np.random.Generator:
    return np.random.default_rng([seed, request, part])


def _request_info(
    parameters: Parameters, names: list[str], request: int, *, gen_length: int, seed: int
) -> RequestInfo:
    """Draw a prompt's length, uniform from half to one and a half times the workload's mean."""
    turn, place = divmod(request, len(names))
    mean = parameters.workloads[names[place]].prompt_tokens
    low = max(1, mean // 2)
    heldout = (turn + place) % _HELDOUT_EVERY == _HELDOUT_EVERY - 1
    return RequestInfo(
        request=request,
        prompt_kind=names[place],
        prompt_source="drawn",
        prompt_tokens=int(_rng(seed, request, 0).integers(low, 2 * mean - low, endpoint=True)),
        generated_tokens=gen_length,
        split="heldout" if heldout else "train",
    )


@dataclass(frozen=True, slots=True)
class _Synthetic:
    parameters: Parameters
    meta: TraceMeta

    def __iter__(self) -> Iterator[Pass]:
        shared = model_biases(self.parameters, self.meta.model)
        for info in self.meta.requests:
            yield from self._request(info, shared)

    def _request(self, info: RequestInfo, shared: Biases) -> Iterator[Pass]:
        model = self.meta.model
        rng = _rng(self.meta.seed or 0, info.request, 1)
        biases = request_biases(shared, self.parameters, model, rng)

        def block_process(block: int) -> BlockProcess:
            positions = np.arange(block * model.block_length, (block + 1) * model.block_length)
            masked = positions >= info.prompt_tokens
            return BlockProcess(biases, self.parameters.routing, masked, model=model, rng=rng)

        first = info.prompt_tokens // model.block_length
        if first:
            yield _prefill(info.request, map(block_process, range(first)), model)
        per_forward = self.parameters.workloads[info.prompt_kind].tokens_per_forward
        probability = probability_for(per_forward, model.block_length)
        for block in range(first, _blocks(info, model)):
            yield from _block(info.request, block, block_process(block), probability, rng)


def _blocks(info: RequestInfo, model: ModelSpec) -> int:
    return -(-(info.prompt_tokens + info.generated_tokens) // model.block_length)


def _prefill(request: int, blocks: Iterable[BlockProcess], model: ModelSpec) -> Pass:
    counts = np.zeros((model.moe_layers, model.num_experts), dtype=np.int64)
    tokens = 0
    for process in blocks:
        counts += expert_counts(process.experts(), model.num_experts)
        tokens += model.block_length
    return Pass(
        request=request,
        block=-1,
        step=0,
        kind=Kind.PREFILL,
        tokens=tokens,
        context=0,
        histogram=counts.astype(np.uint32),
    )


def _block(
    request: int, block: int, process: BlockProcess, probability: float, rng: np.random.Generator
) -> Iterator[Pass]:
    """Yield the denoise passes of a block and its commit pass."""
    T = len(process.masked)
    step = 0
    while process.masked.any():
        committed = positions_to_commit(process.masked, probability, rng)
        yield Pass(
            request=request,
            block=block,
            step=step,
            kind=Kind.DENOISE,
            tokens=T,
            context=block * T,
            masked=process.masked.copy(),
            committed=committed,
            experts=process.experts(),
        )
        process.advance(committed)
        step += 1
    yield Pass(
        request=request,
        block=block,
        step=step,
        kind=Kind.COMMIT,
        tokens=T,
        context=block * T,
        experts=process.experts(),
    )
