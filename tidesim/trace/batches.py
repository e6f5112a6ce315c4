"""Batches: several requests decoded in step, so that their tokens share the experts of a pass."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice, zip_longest

from tidesim.errors import SettingError
from tidesim.trace.passes import Kind, WindowedPass


def batched(passes: Iterable[WindowedPass], size: int) -> Iterator[WindowedPass]:
    """Yield the passes of a trace whose requests are decoded `size` at a time.

    Prefills run one by one. Then blocks run in step: a pass computes step s of the n-th generated
    block of every request of the batch that has one, and all wait until the slowest has finished
    its block, as static batching does. Commit passes of a block run together. Passes of a block
    carry request, block and generated block of the first request that has it; tokens, context and
    counts are sums over those that take part. Batches are formed in the order of the trace; only
    one is held in memory.

    Parameters
    ----------
    passes : iterable of WindowedPass
    size : int
        Requests of a batch; 1 changes nothing.

    Raises
    ------
    SettingError
        `size` is below 1.
    """
    if size < 1:
        raise SettingError(f"batch is {size} but must be at least 1 request")
    if size == 1:
        yield from passes
        return
    requests = (list(mine) for _, mine in groupby(passes, key=lambda pass_: pass_.request))
    while batch := list(islice(requests, size)):
        for mine in batch:
            yield from (pass_ for pass_ in mine if pass_.kind is Kind.PREFILL)
        for blocks in zip_longest(*map(_blocks, batch), fillvalue=list[WindowedPass]()):
            yield from _in_step(list(blocks))


def _blocks(passes: list[WindowedPass]) -> list[list[WindowedPass]]:
    decoded = (pass_ for pass_ in passes if pass_.kind is not Kind.PREFILL)
    return [list(block) for _, block in groupby(decoded, key=lambda pass_: pass_.block)]


def _in_step(blocks: list[list[WindowedPass]]) -> Iterator[WindowedPass]:
    """Yield the passes of one block of every request, denoise passes first."""
    first, step = next(block[0] for block in blocks if block), 0
    for kind in (Kind.DENOISE, Kind.COMMIT):
        mine = ([pass_ for pass_ in block if pass_.kind is kind] for block in blocks)
        for together in zip_longest(*mine):
            passes = [pass_ for pass_ in together if pass_ is not None]
            yield replace(
                first,
                kind=kind,
                step=step,
                tokens=sum(pass_.tokens for pass_ in passes),
                context=sum(pass_.context for pass_ in passes),
                counts=sum((pass_.counts for pass_ in passes[1:]), passes[0].counts),
                requests=len(passes),
            )
            step += kind is Kind.DENOISE
