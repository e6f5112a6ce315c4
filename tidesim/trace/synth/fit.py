"""Fit the process to statistics: damped Gauss-Newton steps on synthetic traces of equal draws.

The loss is the mean fourth power of (statistic of a synthetic trace - target) / tolerance, so that
the worst statistic counts most. The seed stays the same, which makes it nearly smooth in the
parameters; standard deviations move by their logarithm, coefficients k by the logarithm of 1 - k.
With every step each layer's spread is scaled towards the distinct experts it is to have.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidesim.model_spec import ModelSpec
from tidesim.trace.synth.figures import figures
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.parameters import Kept, Parameters, Routing

Vector = npt.NDArray[np.float64]
ROUNDS = 8
_DIFFERENCE = 0.1  # of the transformed parameters
_LONGEST_STEP = 0.7
_DAMPING = (0.01, 0.1, 1.0, 10.0)  # of the mean curvature, tried in turn
_LIMIT = 9.0  # transformed parameters stay within ±9
_SPREAD_POWER = 0.8  # below 1, or layers would swing about their numbers
_BY_LAYER = "late.by_layer.{}.distinct_experts.mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is synthesised for every evaluation."""

    requests: int
    gen_length: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit found.

    Attributes
    ----------
    parameters : Parameters
    reached : tuple of float
        The statistic of every target, of the synthetic trace that the fit looked at.
    by_layer : tuple of float
        Distinct experts of every layer in late steps, of the same trace.
    """

    parameters: Parameters
    reached: tuple[float, ...]
    by_layer: tuple[float, ...]

    @property
    def misses(self) -> Vector:
        """How far every statistic is from its target, in tolerances, [targets]."""
        return np.array(
            [
                (value - target.value) / target.tolerance
                for target, value in zip(self.parameters.targets, self.reached, strict=True)
            ]
        )

    @property
    def loss(self) -> float:
        """Mean fourth power of `misses`."""
        return float(np.mean(self.misses**4))


def fit(
    parameters: Parameters,
    model: ModelSpec,
    size: Size,
    *,
    rounds: int = ROUNDS,
    observe: Callable[[int, Fitted], None] = lambda _round, _fitted: None,
) -> Fitted:
    """Fit routing numbers and spread to the targets of `parameters`, starting from its numbers.

    Parameters
    ----------
    parameters : Parameters
    model : ModelSpec
    size : Size
    rounds : int
        Steps at most; fewer where no step helps any more.
    observe : callable
        Called after every round with its number, from 1, and the best so far.
    """
    best = _with_spread(_evaluate(parameters, model, size), model, size)
    for number in range(1, rounds + 1):
        jacobian = _jacobian(best, model, size)
        for damping in _DAMPING:
            moved = _moved(best.parameters, _step(best, jacobian, damping))
            tried = _with_spread(_evaluate(moved, model, size), model, size)
            if tried.loss < best.loss:
                best = tried
                break
        else:
            break
        observe(number, best)
    return best


def _evaluate(parameters: Parameters, model: ModelSpec, size: Size) -> Fitted:
    native = model.block_length
    lengths = dict.fromkeys([native, *(t.block_length or native for t in parameters.targets)])
    found = {length: _figures(parameters, model, size, length) for length in lengths}
    return Fitted(
        parameters,
        tuple(found[t.block_length or native][t.figure] for t in parameters.targets),
        tuple(found[native].get(_BY_LAYER.format(n), 0.0) for n in range(model.moe_layers)),
    )


def _figures(
    parameters: Parameters, model: ModelSpec, size: Size, block_length: int
) -> dict[str, float]:
    return figures(
        synthesize(
            parameters,
            model,
            requests=size.requests,
            gen_length=size.gen_length,
            seed=size.seed,
            block_length=block_length,
        )
    )


def _with_spread(fitted: Fitted, model: ModelSpec, size: Size) -> Fitted:
    """Scale every layer's spread towards its distinct experts; the mean goes into deviations."""
    parameters = fitted.parameters
    wanted = parameters.spread_by_layer.distinct_experts
    if not wanted:
        return fitted
    ratio = np.array(fitted.by_layer) / np.array(wanted)
    spread = np.array(parameters.spread_by_layer.value) * ratio**_SPREAD_POWER
    mean = float(spread.mean())
    shared = ("popularity_std", "topic_std", "context_std", "mask_std")
    moved = _with_values(
        parameters, {name: getattr(parameters.routing, name).value * mean for name in shared}
    )
    by_layer = moved.spread_by_layer.model_copy(
        update={"value": tuple(np.round(spread / mean, 4).tolist())}
    )
    return _evaluate(moved.model_copy(update={"spread_by_layer": by_layer}), model, size)


def _signed_squares(misses: Vector) -> Vector:
    """Return residuals whose squares add up to the loss."""
    return misses * np.abs(misses)


def _jacobian(fitted: Fitted, model: ModelSpec, size: Size) -> Vector:
    """Return d residual / d transformed parameter, [targets, parameters]."""
    here = _signed_squares(fitted.misses)
    columns = []
    for step in _DIFFERENCE * np.eye(len(Routing.model_fields)):
        there = _evaluate(_moved(fitted.parameters, step), model, size)
        columns.append((_signed_squares(there.misses) - here) / _DIFFERENCE)
    return np.stack(columns, axis=1)


def _step(fitted: Fitted, jacobian: Vector, damping: float) -> Vector:
    normal = jacobian.T @ jacobian
    scale = damping * np.trace(normal) / len(normal)
    downhill = -jacobian.T @ _signed_squares(fitted.misses)
    step = np.linalg.solve(normal + scale * np.eye(len(normal)), downhill)
    return np.asarray(step * min(1.0, _LONGEST_STEP / max(np.abs(step).max(), 1e-9)))


def _moved(parameters: Parameters, step: Vector) -> Parameters:
    values = {}
    for (name, number), by in zip(parameters.routing, step.tolist(), strict=True):
        kept = isinstance(number, Kept)
        start = np.log(max(1 - number.value if kept else number.value, np.exp(-_LIMIT)))
        end = float(np.exp(np.clip(start + by, -_LIMIT, 0 if kept else _LIMIT)))
        values[name] = 1 - end if kept else end
    return _with_values(parameters, values)


def _with_values(parameters: Parameters, values: dict[str, float]) -> Parameters:
    numbers = {
        name: getattr(parameters.routing, name).model_copy(update={"value": round(value, 5)})
        for name, value in values.items()
    }
    return parameters.model_copy(update={"routing": parameters.routing.model_copy(update=numbers)})
