"""Bench: passes of a random model on a backend, timed by the records the runtime itself keeps.

What a profile states so is what a run will see: the same calls, threads, memory and caches.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from statistics import fmean
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tidesim.engines import Engine
from tidesim.model_spec import ModelSpec
from tidesim.placement import Policy, Setup
from tidesim.policies.base import PolicyBase
from tidesim.records import Record, Records, operation_of
from tidesim.runtime.backends import Backend
from tidesim.runtime.decode import DecodeSettings, write_tokens
from tidesim.runtime.experts import Offload
from tidesim.runtime.model import TORCH_DTYPES, Context, KeyValueCache, block_causal_mask
from tidesim.runtime.offloading import make_offload
from tidesim.runtime.replay import random_model
from tidesim.trace.passes import Kind, PassKey

WARM = 1  # rounds that are not counted
MOST = 400  # rounds, however short they are


class Timing(NamedTuple):
    """Median of repeated times, and how far they spread."""

    seconds: float
    spread: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise times; `spread` is the interquartile range over the median."""
        low, middle, high = (float(q) for q in np.percentile(values, (25, 50, 75)))
        return cls(middle, (high - low) / middle if middle > 0 else 0.0, len(values))


class Samples:
    """Seconds by point and operation, one for every pass of a point."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, str], list[float]] = defaultdict(list)

    def add(self, point: int, name: str, seconds: float) -> None:
        """Keep one time."""
        self._values[point, name].append(seconds)

    def timing(self, name: str, points: Iterable[int] | None = None) -> Timing | None:
        """Summarise an operation over some points, or all; None where nobody saw it."""
        wanted = None if points is None else set(points)
        values = [
            value
            for (point, key), each in self._values.items()
            if key == name and (wanted is None or point in wanted)
            for value in each
        ]
        return Timing.of(values) if values else None

    def seconds(self, name: str, points: Iterable[int] | None = None) -> float:
        """Return the median of an operation; 0 where nobody saw it."""
        timing = self.timing(name, points)
        return timing.seconds if timing else 0.0

    def spreads(self) -> list[float]:
        """Return how far the times of every operation at every point spread."""
        return [Timing.of(each).spread for each in self._values.values()]


class Still(PolicyBase):
    """Experts 0 .. budget - 1 stay resident."""

    name = "still"


class Scene:
    """A model under an engine and a policy; `forward` and `layers` run one pass each.

    Parameters
    ----------
    bench : Bench
    offload : Offload
        Attached.
    """

    def __init__(self, bench: "Bench", offload: Offload) -> None:
        self.bench, self.offload = bench, offload

    def forward(self, key: PassKey, tokens: int, context: int, last: int) -> None:
        """Run a whole pass as `decode.Decoder` does; the last positions are decoded."""
        bench, device = self.bench, self.bench.backend.device
        self.offload.routes = None
        ids = torch.full((tokens,), bench.spec.mask_token_id, device=device)
        masked = torch.ones(last, dtype=torch.bool, device=device)
        generator = torch.Generator(device).manual_seed(0)
        self.offload.begin(key)
        mask = bench.mask(tokens, context)
        logits, _ = bench.model(ids, start=context, mask=mask, cache=bench.cache, last=last)
        written = write_tokens(ids[-last:], logits, masked, DecodeSettings(), generator, quota=1)
        int(written.sum())
        self.offload.end()

    def layers(self, key: PassKey, routes: list[Tensor]) -> None:
        """Run the mixture layers alone on given routes, [T, K] each."""
        bench = self.bench
        x = bench.hidden[:, : len(routes[0])]
        context = Context(
            cos=x, sin=x, mask=None, cache=None, start=0, routes=[], mark=bench.backend.mark
        )
        self.offload.routes = routes
        self.offload.begin(key)
        for mixture in bench.model.mixtures():
            mixture(x, context)
        self.offload.end()


class Bench:
    """A model of a spec's shapes with random weights on a backend.

    Parameters
    ----------
    spec : ModelSpec
    backend : Backend
        Entered by the caller.
    tokens, longest : int
        The most tokens of a pass, and of a pass with its context.

    Raises
    ------
    CapacityError
        The model does not fit.
    """

    def __init__(self, spec: ModelSpec, backend: Backend, *, tokens: int, longest: int) -> None:
        self.spec, self.backend = spec, backend
        self.model = random_model(spec, device=backend.device)
        self.cache = KeyValueCache.empty(spec, longest, self.model.lm_head.weight)
        for tensor in (self.cache.keys, self.cache.values):
            tensor.uniform_(-1, 1)
        drawn = torch.randn(1, tokens, spec.hidden_size)
        self.hidden = drawn.to(backend.device, TORCH_DTYPES[spec.dtype])

    def mask(self, tokens: int, context: int) -> Tensor | None:
        """Return who may look where as decoding does: a single block sees everything."""
        if tokens <= self.spec.block_length:
            return None
        device = self.backend.device
        mask = block_causal_mask(tokens, self.spec.block_length, device)
        seen = torch.ones(tokens, context, dtype=torch.bool, device=device)
        return torch.cat((seen, mask), dim=1)

    @contextmanager
    def scene(
        self,
        engine: Engine,
        budget: int,
        make: Callable[[Setup], Policy] = Still,
        *,
        interval: int | None = None,
    ) -> Iterator[Scene]:
        """Let an engine run the experts, `budget` slots a layer."""
        setup = Setup(
            num_experts=self.spec.num_experts,
            layers=self.spec.moe_layers,
            budget=budget,
            popularity=np.zeros((self.spec.moe_layers, self.spec.num_experts)),
            engine=engine,
            interval=interval,
        )
        offload = make_offload(self.model, make(setup), setup, self.backend)
        offload.attach()
        try:
            yield Scene(self, offload)
            offload.finish()
        finally:
            offload.detach()
            self.backend.recorder.take()

    def sweep(
        self,
        points: Sequence[Callable[[PassKey], None]],
        seconds: float,
        observe: Callable[[float], None] = lambda _: None,
    ) -> Samples:
        """Run all points in turn, round after round, for about `seconds`; one round at least.

        A round meets whatever else the machine does at one time, so that no point alone suffers.
        `observe` is told the seconds that went by.
        """
        samples, rounds = Samples(), 0
        began = last = time.perf_counter()
        took = 0.0
        self.backend.recorder.take()
        while rounds <= WARM or (last - began + took < seconds and rounds < MOST + WARM):
            for number, run in enumerate(points):
                run(PassKey(0, rounds, 1, number, Kind.DENOISE))
            records = self.backend.recorder.take()
            if rounds >= WARM:
                _read(records, samples)
            now = time.perf_counter()
            took, last, rounds = now - last, now, rounds + 1
            observe(took)
        return samples


def _read(records: Records, samples: Samples) -> None:
    """Keep what the passes of a round took: the mean over a pass's layers."""
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    rows = sorted(records, key=lambda row: (row.step, row.layer))  # keeps the order in time
    for (point, _), layer in groupby(rows, key=lambda row: (row.step, row.layer)):
        for name, seconds in read_layer(list(layer)).items():
            found[point, name].append(seconds)
    for (point, name), each in found.items():
        samples.add(point, name, fmean(each))


def read_layer(rows: Sequence[Record]) -> dict[str, float]:
    """Return what the operations of one layer of one pass took, by label without numbers.

    The mean where there are several. Also ``wait``: from the router's end to the decision, the copy
    of the ids taken off; ``chain``: from the decision to the sum, the copies and the computation of
    the misses taken off; ``gap``: between one promotion on the link and the next.
    """
    by_label: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        by_label[operation_of(row.label)].append(row)
    seconds = {
        label: fmean(row.end_s - row.start_s for row in each) for label, each in by_label.items()
    }
    first = {label: each[0] for label, each in by_label.items()}
    if "decide" in first:
        waited = first["decide"].start_s - first["router"].end_s
        seconds["wait"] = waited - seconds.get("ids", 0.0)
    if "experts cpu" in first:
        whole = first["combine"].start_s - first["decide"].end_s
        parts = ("hidden", "experts cpu", "result")
        seconds["chain"] = whole - sum(seconds[part] for part in parts)
    if len(by_label["promote"]) > 1:
        copies = pairwise(by_label["promote"])
        seconds["gap"] = fmean(after.start_s - before.end_s for before, after in copies)
    return seconds


def even_routes(experts: Sequence[int], each: int, *, top_k: int, filler: int) -> Tensor:
    """Route `each` tokens to every one of some experts, and what is left over to a filler.

    Returns
    -------
    [T, K] int64
    """
    pairs = np.tile(np.asarray(experts, dtype=np.int64), each)
    left_over = np.full(-len(pairs) % top_k, filler)
    return torch.from_numpy(np.concatenate((pairs, left_over)).reshape(-1, top_k))
