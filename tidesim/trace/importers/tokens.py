"""Streams of tokens, each with its experts in every layer, cut into passes."""

from collections.abc import Callable, Iterator

from tidesim.trace.importers.arrays import check_ids
from tidesim.trace.importers.recording import ImportOptions, Ints, RecordedPass

Take = Callable[[int], Ints]


def cut(
    take: Take, options: ImportOptions, source: str, place: Callable[[int, int], str]
) -> Iterator[RecordedPass]:
    """Yield a pass for the prompt, then passes of equally many tokens; the last may be shorter.

    Parameters
    ----------
    take : callable
        Returns the next tokens, [L, T, K], at most as many as asked for; none at the end.
    options : ImportOptions
    source : str
    place : callable
        Names a mixture layer and a token of the stream.

    Raises
    ------
    FormatError
        An expert id that no token can have.
    """
    first, size = 0, options.prompt_tokens or options.tokens_per_pass
    while True:
        left = size if options.first_tokens is None else min(size, options.first_tokens - first)
        ids = take(left) if left else None
        if ids is None or not ids.shape[1]:
            return
        check_ids(ids, options.model.num_experts, source, place, first=first)
        yield RecordedPass(place=f"the pass at token {first}", tokens=ids.shape[1], experts=ids)
        first, size = first + ids.shape[1], options.tokens_per_pass
