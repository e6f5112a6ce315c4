"""Fit the process to statistics: damped Gauss-Newton steps on synthetic traces of equal draws.

A residual is (statistic of a synthetic trace - target) / tolerance. The seed stays the same, so
that the residuals are nearly smooth in the parameters; standard deviations move by their logarithm,
coefficients k by the logarithm of 1 - k. Between steps every layer's spread is scaled towards the
distinct experts it is to have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Trace
from tidesim.trace.synth.figures import figures
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.parameters import Kept, Parameters, Routing, Target

Vector = npt.NDArray[np.float64]
_ROUNDS = 8
_DIFFERENCE = 0.1  # of the transformed parameters
_LONGEST_STEP = 0.7
_DAMPING = (0.03, 1.0)
_LIMIT = 6.0  # transformed parameters stay within exp(±6)
_SPREAD_POWER = 0.8


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
    """

    parameters: Parameters
    reached: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean squared residual."""
        return float(np.mean(_residuals(self.parameters.targets, self.reached) ** 2))


def fit(
    parameters: Parameters,
    model: ModelSpec,
    size: Size,
    *,
    observe: Callable[[int, Fitted], None] = lambda _round, _fitted: None,
) -> Fitted:
    """Fit routing numbers and spread to the targets of `parameters`, starting from its numbers.

    Parameters
    ----------
    parameters : Parameters
    model : ModelSpec
    size : Size
    observe : callable
        Called after every round with its number, from 1, and the best so far.
    """
    best = _spread_fitted(_evaluate(parameters, model, size), model, size)
    for number in range(1, _ROUNDS + 1):
        jacobian = _jacobian(best, model, size)
        for damping in _DAMPING:
            moved = _moved(best.parameters, _step(best, jacobian, damping))
            tried = _spread_fitted(_evaluate(moved, model, size), model, size)
            if tried.loss < best.loss:
                best = tried
                break
        observe(number, best)
    return best


def _residuals(targets: Sequence[Target], reached: Sequence[float]) -> Vector:
    return np.array(
        [(value - t.value) / t.tolerance for t, value in zip(targets, reached, strict=True)]
    )


def _evaluate(parameters: Parameters, model: ModelSpec, size: Size) -> Fitted:
    lengths = dict.fromkeys(t.block_length or model.block_length for t in parameters.targets)
    found = {length: _figures(parameters, model, size, length) for length in lengths}
    return Fitted(
        parameters,
        tuple(found[t.block_length or model.block_length][t.figure] for t in parameters.targets),
    )


def _figures(
    parameters: Parameters, model: ModelSpec, size: Size, block_length: int
) -> dict[str, float]:
    trace = synthesize(
        parameters,
        model.model_copy(update={"block_length": block_length}),
        requests=size.requests,
        gen_length=size.gen_length,
        seed=size.seed,
    )
    return figures(Trace(trace.meta, list(trace)))


def _spread_fitted(fitted: Fitted, model: ModelSpec, size: Size) -> Fitted:
    """Scale every layer's spread towards its distinct experts; the mean goes into deviations."""
    parameters = fitted.parameters
    wanted = parameters.spread_by_layer.distinct_experts
    if not wanted:
        return fitted
    found = _figures(parameters, model, size, model.block_length)
    is_ = [found[f"late.by_layer.{n}.distinct_experts.mean"] for n in range(len(wanted))]
    spread = np.array(parameters.spread_by_layer.value) * (
        np.array(is_) / np.array(wanted)
    ) ** _SPREAD_POWER
    mean = float(spread.mean())
    factors = tuple(np.round(spread / mean, 4).tolist())
    moved = _with_values(
        parameters,
        {
            name: getattr(parameters.routing, name).value * mean
            for name in ("popularity_std", "topic_std", "mask_std")
        },
    )
    by_layer = moved.spread_by_layer.model_copy(update={"value": factors})
    return _evaluate(moved.model_copy(update={"spread_by_layer": by_layer}), model, size)


def _jacobian(fitted: Fitted, model: ModelSpec, size: Size) -> Vector:
    """Return d residual / d transformed parameter, [targets, parameters]."""
    names = list(Routing.model_fields)
    targets = fitted.parameters.targets
    here = _residuals(targets, fitted.reached)
    columns = []
    for column in range(len(names)):
        step = np.zeros(len(names))
        step[column] = _DIFFERENCE
        there = _evaluate(_moved(fitted.parameters, step), model, size)
        columns.append((_residuals(targets, there.reached) - here) / _DIFFERENCE)
    return np.stack(columns, axis=1)


def _step(fitted: Fitted, jacobian: Vector, damping: float) -> Vector:
    residuals = _residuals(fitted.parameters.targets, fitted.reached)
    normal = jacobian.T @ jacobian
    scale = damping * np.trace(normal) / len(normal)
    step = np.linalg.solve(normal + scale * np.eye(len(normal)), -jacobian.T @ residuals)
    return step * min(1.0, _LONGEST_STEP / np.abs(step).max())


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
    return parameters.model_copy(
        update={"routing": parameters.routing.model_copy(update=numbers)}
    )
