"""Routing statistics of a trace: how many experts are active and how fast that changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Counts, Trace, Window
from tidesim.trace.similarity import Floats, popularity
from tidesim.trace.tally import Ratios, add_between, add_block, blocks

DEFAULT_LAGS = (0, 1, 2, 5)
LARGEST_LAG = 32767  # a trace numbers steps in 16 bits
Curve = Mapping[int, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and standard deviation; None where nothing was counted."""

    mean: float | None
    std: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the two numbers under their names."""
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStats:
    """Statistics of one mixture layer, numbered from 0."""

    layer: int
    distinct_experts: Moments
    cosine: Curve

    def to_json(self) -> dict[str, Any]:
        """Return the layer as JSON values."""
        return {
            "layer": self.layer,
            "distinct_experts": self.distinct_experts.to_json(),
            "cosine": _keys_to_text(self.cosine),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats:
    """Statistics over some positions of a block: distinct experts, and token overlap at lag 1."""

    distinct_experts: float | None
    token_overlap: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the two numbers under their names."""
        return {"distinct_experts": self.distinct_experts, "token_overlap": self.token_overlap}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStats:
    """Routing statistics over the denoise passes of a trace.

    Numbers are None where no pass or pair of passes counts towards them. "Pairs" are denoise
    steps s and s + lag of the same block.

    Attributes
    ----------
    model, provenance : str
    window : Window
        What `counts` a pass has; `token_overlap`, `masked` and `decoded` always look at the
        positions of the block.
    masked_at_most : int or None
        Passes are restricted to at most so many masked positions.
    num_experts, top_k : int
    requests, blocks, passes : int
        `passes` counts the denoise passes that take part.
    steps_per_block : float or None
        Denoise passes per block, all of them.
    distinct_experts : Moments
        Active experts per layer and step; deviation over layer-steps.
    cosine, jaccard : {lag: x}
        Of counts and of active-expert sets, mean over layers and pairs.
    token_overlap : {lag: x}
        Share of a token's top-k it keeps, mean over layers, tokens and pairs; None where the
        trace holds counts only.
    hit_ratio : {budget: {lag: x}}
        Share of the token-expert pairs of step s + lag served when the best-B experts by counts
        of step s are resident, ties to the lower id; experts step s does not use never are.
    last_to_next_first : float or None
        Cosine of a block's last step and the next block's first.
    same_step : float or None
        Cosine of equal steps of consecutive blocks.
    popularity : {k: x}
        Share of all hits by the k most used experts of a layer, mean over layers.
    popularity_in_block : {k: x}
        The same within one block: mean over layers and blocks.
    single_token_share : float or None
        Share of active experts that serve exactly one token.
    masked, decoded : GroupStats
        Over positions masked, and over positions decoded, on entry; overlap between two steps
        that both see them so.
    just_decoded_overlap : float or None
        Token overlap across the step that decodes a position.
    by_layer : tuple of LayerStats
    """

    model: str
    provenance: str
    window: Window
    masked_at_most: int | None
    num_experts: int
    top_k: int
    requests: int
    blocks: int
    passes: int
    steps_per_block: float | None
    distinct_experts: Moments
    cosine: Curve
    jaccard: Curve
    token_overlap: Curve
    hit_ratio: Mapping[int, Curve]
    last_to_next_first: float | None
    same_step: float | None
    popularity: Curve
    popularity_in_block: Curve
    single_token_share: float | None
    masked: GroupStats
    decoded: GroupStats
    just_decoded_overlap: float | None
    by_layer: tuple[LayerStats, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON values; lags, budgets and k become text keys."""
        return {
            "model": self.model,
            "provenance": self.provenance,
            "window": str(self.window),
            "masked_at_most": self.masked_at_most,
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "requests": self.requests,
            "blocks": self.blocks,
            "passes": self.passes,
            "steps_per_block": self.steps_per_block,
            "distinct_experts": self.distinct_experts.to_json(),
            "cosine": _keys_to_text(self.cosine),
            "jaccard": _keys_to_text(self.jaccard),
            "token_overlap": _keys_to_text(self.token_overlap),
            "hit_ratio": {str(b): _keys_to_text(curve) for b, curve in self.hit_ratio.items()},
            "between_blocks": {
                "last_to_next_first": self.last_to_next_first,
                "same_step": self.same_step,
            },
            "popularity": _keys_to_text(self.popularity),
            "popularity_in_block": _keys_to_text(self.popularity_in_block),
            "single_token_share": self.single_token_share,
            "masked": self.masked.to_json(),
            "decoded": self.decoded.to_json(),
            "just_decoded": {"token_overlap": self.just_decoded_overlap},
            "by_layer": [layer.to_json() for layer in self.by_layer],
        }


def _keys_to_text(curve: Curve) -> dict[str, float | None]:
    return {str(key): value for key, value in curve.items()}


def trace_stats(
    trace: Trace,
    *,
    window: Window,
    lags: Sequence[int] = DEFAULT_LAGS,
    budgets: Sequence[int] | None = None,
    masked_at_most: int | None = None,
) -> TraceStats:
    """Compute the routing statistics of a trace in one pass over it.

    Parameters
    ----------
    trace : Trace
    window : Window
    lags : sequence of int
        Distances between the steps compared.
    budgets : sequence of int, optional
        Residents per layer; an eighth, a quarter and half of the experts by default.
    masked_at_most : int, optional
        Restrict to passes with at most so many masked positions on entry; a pair counts when
        both passes qualify.

    Raises
    ------
    SettingError
        A lag, budget or `masked_at_most` is out of range, or masked positions are not recorded.
    FormatError
        The trace breaks a rule of its format.

    Examples
    --------
    >>> from tidesim.trace.io import load_trace
    >>> from tidesim.trace.passes import Window
    >>> stats = trace_stats(load_trace("tide-tiny-mixed").only((3,)), window=Window.BLOCK)
    >>> stats.passes, round(stats.cosine[1], 3), round(stats.hit_ratio[16][1], 3)
    (18, 0.973, 0.721)
    """
    model = trace.meta.model
    budgets = default_budgets(model) if budgets is None else budgets
    _check_settings(model, lags, budgets, masked_at_most)
    ratios, totals = Ratios(), np.zeros((model.moe_layers, model.num_experts), dtype=np.int64)
    before = None
    for block in blocks(trace, window, masked_at_most=masked_at_most):
        totals += block.counts.sum(axis=0)
        add_block(ratios, block, lags=lags, budgets=budgets)
        if before is not None and before.request == block.request:
            add_between(ratios, before, block)
        before = block
    return TraceStats(
        model=model.name,
        provenance=trace.meta.provenance,
        window=window,
        masked_at_most=masked_at_most,
        num_experts=model.num_experts,
        top_k=model.num_experts_per_tok,
        requests=len(trace.meta.requests),
        popularity=_popularity(totals),
        popularity_in_block=_at(ratios.by_layer("popularity"), _sizes(model.num_experts)),
        by_layer=tuple(_layer(ratios, layer, lags) for layer in range(model.moe_layers)),
        **_summary(ratios, lags, budgets),
    )


def _summary(ratios: Ratios, lags: Sequence[int], budgets: Sequence[int]) -> dict[str, Any]:
    return {
        "blocks": ratios.under("stored_steps"),
        "passes": ratios.under("distinct"),
        "steps_per_block": ratios.mean("stored_steps"),
        "distinct_experts": _moments(ratios),
        "cosine": {lag: ratios.mean(("cosine", lag)) for lag in lags},
        "jaccard": {lag: ratios.mean(("jaccard", lag)) for lag in lags},
        "token_overlap": {lag: ratios.mean(("overlap", lag)) for lag in lags},
        "hit_ratio": {b: {lag: ratios.mean(("hits", lag, b)) for lag in lags} for b in budgets},
        "last_to_next_first": ratios.mean("last_to_next_first"),
        "same_step": ratios.mean("same_step"),
        "single_token_share": ratios.mean("single"),
        "masked": _group(ratios, "masked"),
        "decoded": _group(ratios, "decoded"),
        "just_decoded_overlap": ratios.mean(("overlap", "just_decoded")),
    }


def default_budgets(model: ModelSpec) -> tuple[int, ...]:
    """Return an eighth, a quarter and half of the experts, rounded up, at least top-k."""
    shares = (-(-model.num_experts // part) for part in (8, 4, 2))
    return tuple(dict.fromkeys(max(share, model.num_experts_per_tok) for share in shares))


def _check_settings(
    model: ModelSpec, lags: Sequence[int], budgets: Sequence[int], masked_at_most: int | None
) -> None:
    top_k, num_experts = model.num_experts_per_tok, model.num_experts
    for lag in lags:
        if not _is_int(lag) or not 0 <= lag <= LARGEST_LAG:
            raise SettingError(
                f"lag is {lag!r}, but a lag is a whole number of steps, 0 to {LARGEST_LAG}"
            )
    for budget in budgets:
        if not _is_int(budget) or not top_k <= budget <= num_experts:
            raise SettingError(
                f"budget is {budget!r}, but model {model.name} needs a whole number from "
                f"{top_k} (its top-k) to {num_experts} (its experts)"
            )
    if not lags or not budgets:
        raise SettingError("lags and budgets need at least one value each; leave out the option")
    if masked_at_most is not None and (not _is_int(masked_at_most) or masked_at_most < 0):
        raise SettingError(
            f"masked_at_most is {masked_at_most!r}, but it counts positions; give 0 or more"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _moments(ratios: Ratios) -> Moments:
    means, squares = ratios.by_layer("distinct"), ratios.by_layer("distinct_squared")
    if means is None or squares is None:
        return Moments(mean=None, std=None)
    return _spread(float(means.mean()), float(squares.mean()))


def _spread(mean: float, mean_of_squares: float) -> Moments:
    return Moments(mean=mean, std=max(mean_of_squares - mean * mean, 0.0) ** 0.5)


def _layer(ratios: Ratios, layer: int, lags: Sequence[int]) -> LayerStats:
    means, squares = ratios.by_layer("distinct"), ratios.by_layer("distinct_squared")
    moments = Moments(mean=None, std=None)
    if means is not None and squares is not None:
        moments = _spread(float(means[layer]), float(squares[layer]))
    curves = {lag: ratios.by_layer(("cosine", lag)) for lag in lags}
    return LayerStats(
        layer=layer,
        distinct_experts=moments,
        cosine={lag: None if c is None else float(c[layer]) for lag, c in curves.items()},
    )


def _group(ratios: Ratios, group: str) -> GroupStats:
    return GroupStats(
        distinct_experts=ratios.mean(("distinct", group)),
        token_overlap=ratios.mean(("overlap", group)),
    )


def _popularity(totals: Counts) -> Curve:
    powers = [1 << bit for bit in range(totals.shape[1].bit_length())]  # 1, 2, 4 … up to E
    return _at(popularity(totals) if totals.any() else None, powers)


def _sizes(num_experts: int) -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12 … up to the number of experts."""
    bits = range(num_experts.bit_length())
    return [k for bit in bits for k in (1 << bit, 3 << bit) if k <= num_experts]


def _at(shares: Floats | None, sizes: Sequence[int]) -> Curve:
    return {k: None if shares is None else float(shares[k - 1]) for k in sorted(sizes)}
