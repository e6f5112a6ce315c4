"""The stochastic process: latent vectors of positions, and the router logits that follow from them.

Everything is Gaussian and independent over experts and layers. A position's logits are ::

    decoded   spread[l] · (popularity[l] + topic[l] + context[l]) + own[l, t]
    masked    spread[l] · (popularity[l] + topic[l] + context[l] + mask[l]) + masked_std · own[l, t]

`popularity` and `mask` belong to the model, `topic` to the request, `context` to the block, `own`
(unit variance, so that every other deviation is a multiple of it) to the position. `context` and
`own` drift at every step as first-order autoregressions: what a step decodes moves all positions of
the block a little, together and each by itself. The coefficient of `own` depends on the phase,
masked or decoded, and it jumps when the position is decoded: with probability `repeat_share` to near
the `own` of a position decoded before, as equal tokens of a text route nearly alike.

Dimension letters: L mixture layers, T tokens, E experts.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tidesim.model_spec import ModelSpec
from tidesim.trace.synth.parameters import Parameters, Routing
from tidesim.trace.synth.routing import Floats, select_experts

Flags = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]
Experts = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Biases:
    """What all positions of a request share.

    Attributes
    ----------
    decoded, masked : [L, 1, E] float32
        Added to the own part of positions in that phase.
    spread : [L, 1, 1] float32
    """

    decoded: Floats
    masked: Floats
    spread: Floats


def model_biases(parameters: Parameters, model: ModelSpec) -> Biases:
    """Draw what belongs to the model: equal for every seed of a trace."""
    rng = np.random.default_rng(parameters.model_seed)
    routing, spread = parameters.routing, _spread(parameters, model)
    popularity = spread * routing.popularity_std.value * _normal(rng, model)
    mask = spread * routing.mask_std.value * _normal(rng, model)
    return Biases(decoded=popularity, masked=popularity + mask, spread=spread)


def request_biases(
    biases: Biases, parameters: Parameters, model: ModelSpec, rng: np.random.Generator
) -> Biases:
    """Add a request's topic."""
    topic = biases.spread * parameters.routing.topic_std.value * _normal(rng, model)
    return replace(biases, decoded=biases.decoded + topic, masked=biases.masked + topic)


def _normal(rng: np.random.Generator, model: ModelSpec) -> Floats:
    return rng.standard_normal((model.moe_layers, 1, model.num_experts), dtype=np.float32)


def _spread(parameters: Parameters, model: ModelSpec) -> Floats:
    """Return [L, 1, 1]: the file's spread over depth, interpolated to the model's layers."""
    listed = parameters.spread_by_layer.value
    depth = np.linspace(0, 1, model.moe_layers)
    spread = np.interp(depth, np.linspace(0, 1, len(listed)), listed)
    return spread.astype(np.float32)[:, None, None]


class BlockProcess:
    """The positions of one block, pass by pass.

    Parameters
    ----------
    biases : Biases
    routing : Routing
    masked : [T] bool
        Positions masked at the start; none for tokens of a prompt.
    """

    def __init__(
        self,
        biases: Biases,
        routing: Routing,
        masked: Flags,
        *,
        model: ModelSpec,
        rng: np.random.Generator,
    ) -> None:
        self.biases, self.routing, self.model, self.rng = biases, routing, model, rng
        self.masked = masked.copy()
        self.context = self._fresh(1)
        self.own = self._fresh(len(masked))
        given = np.flatnonzero(~masked)
        self._repeat(self.own, given, before=given[:0])

    def experts(self) -> Experts:
        """Route every position as it is now, [L, T, K]."""
        biases, mask = self.biases, self.masked
        logits = biases.decoded + self.own
        logits[:, mask] = biases.masked + self.routing.masked_std.value * self.own[:, mask]
        logits += biases.spread * self.routing.context_std.value * self.context
        return select_experts(logits, self.model)

    def advance(self, committed: Flags) -> None:
        """Go to the next pass: decoded positions jump, all others drift.

        Parameters
        ----------
        committed : [T] bool
            Positions that the pass just done writes.
        """
        routing = self.routing
        kept = np.where(self.masked, routing.masked_keep.value, routing.decoded_keep.value)
        kept = np.where(committed, routing.jump_keep.value, kept).astype(np.float32)[:, None]
        moves = self._fresh(len(kept))
        self._repeat(moves, np.flatnonzero(committed), before=np.flatnonzero(~self.masked))
        self.own = _drifted(self.own, kept, moves)
        context_keep = np.float32(routing.context_keep.value)
        self.context = _drifted(self.context, context_keep, self._fresh(1))
        self.masked &= ~committed

    def _repeat(self, moves: Floats, positions: Positions, *, before: Positions) -> None:
        """Draw which newly decoded positions repeat another, and pull their moves towards it."""
        routing, known = self.routing, before.tolist()
        repeats = self.rng.random(len(positions)) < routing.repeat_share.value
        keep = np.float32(routing.repeat_keep.value)
        for position, repeated in zip(positions.tolist(), repeats.tolist(), strict=True):
            if repeated and known:
                other = known[self.rng.integers(len(known))]
                model = moves if other in positions else self.own
                moves[:, position] = _drifted(model[:, other], keep, moves[:, position])
            known.append(position)

    def _fresh(self, tokens: int) -> Floats:
        shape = (self.model.moe_layers, tokens, self.model.num_experts)
        return self.rng.standard_normal(shape, dtype=np.float32)


def _drifted(latent: Floats, kept: Floats | np.float32, moves: Floats) -> Floats:
    """Return a latent of unit variance moved on, of correlation `kept` with itself before."""
    return np.asarray(kept * latent + np.sqrt(1 - kept * kept) * moves)
