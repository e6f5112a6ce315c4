"""Exact counts of a run: they follow from trace, policy and engine, never from the clock."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tidesim.engines import Engine
from tidesim.measured import D2H_PURPOSES, H2D_PURPOSES
from tidesim.model_spec import ModelSpec
from tidesim.simulate.chunks import Chunk
from tidesim.simulate.prices import hidden_bytes, ids_bytes
from tidesim.trace.passes import Kind, Pass, Trace, WindowedPass
from tidesim.trace.windows import windowed_pairs


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts so far.

    Attributes
    ----------
    is_step : list of bool
        Whether each pass was a denoise pass.
    hits, misses : int
        Token-expert pairs of mixture layers.
    promotions, evictions, streams, refreshes : int
        Experts, and refreshed layers, summed over layers and passes.
    h2d_bytes, d2h_bytes : dict of int
        Bytes to the GPU and to the host by purpose.
    """

    engine: Engine
    spec: ModelSpec
    is_step: list[bool] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    promotions: int = 0
    evictions: int = 0
    streams: int = 0
    refreshes: int = 0
    h2d_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(H2D_PURPOSES, 0))
    d2h_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(D2H_PURPOSES, 0))

    @property
    def passes(self) -> int:
        """All passes."""
        return len(self.is_step)

    @property
    def steps(self) -> int:
        """Denoise passes."""
        return sum(self.is_step)

    def watch(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Pass chunks on, counting each."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk

    def add(self, chunk: Chunk) -> None:
        """Count some passes."""
        for placement in chunk.placements:
            self.is_step.append(placement.pass_.kind is Kind.DENOISE)
            self.refreshes += sum(decision.refresh for decision in placement.decisions)
        self.hits += chunk.hits
        self.misses += int(chunk.gpu.pairs.sum() + chunk.cpu.pairs.sum()) - chunk.hits
        self._move(
            int(chunk.promoted.sum()), int(chunk.evicted.sum()), streamed=int(chunk.streamed.sum())
        )
        self._transfer(chunk)

    def _move(self, promoted: int, evicted: int, *, streamed: int) -> None:
        expert_bytes = self.spec.expert_bytes
        self.promotions += promoted
        self.evictions += evicted
        self.streams += streamed
        self.h2d_bytes["promotions"] += promoted * expert_bytes
        self.h2d_bytes["streams"] += streamed * expert_bytes
        if self.engine.write_back:
            self.d2h_bytes["write_backs"] += evicted * expert_bytes

    def _transfer(self, chunk: Chunk) -> None:
        """Count activations: ids and hidden states down, a result row per CPU pair up."""
        tokens, pairs = chunk.tokens, chunk.cpu.pairs
        self.h2d_bytes["results"] += hidden_bytes(self.spec, int(pairs.sum()))
        if self.engine.overlap:
            self.d2h_bytes["ids"] += pairs.shape[1] * ids_bytes(self.spec, int(tokens.sum()))
        once = int((tokens[:, None] * (pairs > 0)).sum())
        one_by_one = self.engine.looped and not self.engine.overlap
        rows = int(pairs.sum()) if one_by_one else once
        self.d2h_bytes["hidden"] += hidden_bytes(self.spec, rows)


@dataclass(slots=True)
class _Written:
    """Tokens one request wrote."""

    committed: int = 0
    known: bool = False
    blocks: int = 0


class TokenCount:
    """Tokens the passes of a trace wrote.

    A request counts the tokens its trace says it generated; without, the positions its steps
    committed; without either, every block it decoded.

    Parameters
    ----------
    trace : Trace
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._written: dict[int, _Written] = {}

    def watch(self, engine: Engine) -> Iterator[WindowedPass]:
        """Yield the passes an engine computes, counting each."""
        block = (-1, -1)
        for pass_, seen in windowed_pairs(self._trace, engine.window):
            if pass_.kind is Kind.DENOISE:
                self._add(pass_, new_block=(pass_.request, pass_.block) != block)
                block = (pass_.request, pass_.block)
            yield seen

    @property
    def blocks(self) -> int:
        """Blocks decoded so far."""
        return sum(written.blocks for written in self._written.values())

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        meta = self._trace.meta
        generated = {info.request: info.generated_tokens for info in meta.requests}
        return sum(
            generated.get(request, 0)
            or (written.committed if written.known else written.blocks * meta.model.block_length)
            for request, written in self._written.items()
        )

    def _add(self, pass_: Pass, *, new_block: bool) -> None:
        written = self._written.setdefault(pass_.request, _Written())
        written.blocks += new_block
        if pass_.committed is not None:
            written.known = True
            written.committed += int(pass_.committed.sum())
