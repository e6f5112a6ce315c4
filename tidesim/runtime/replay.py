"""Replay: run the passes of a trace for real, with random weights of any model's shape."""

from collections.abc import Iterable

import torch

from tidesim.measured import MeasuredRun
from tidesim.model_spec import ModelSpec
from tidesim.placement import Setup
from tidesim.policies import PolicyFactory
from tidesim.trace.passes import WindowedPass


def replay(
    passes: Iterable[WindowedPass],
    spec: ModelSpec,
    policy: PolicyFactory,
    setup: Setup,
    *,
    backend: str,
    repeats: int,
    keep_records: bool,
) -> MeasuredRun:
    """Run passes for real."""
    raise NotImplementedError(torch.__version__)
