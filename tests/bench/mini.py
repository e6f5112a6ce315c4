"""A synthetic trace of LLaDA2.0-mini's size: two requests of 256 tokens, one of them held out."""

import numpy as np

from tidesim.model_spec import MODELS
from tidesim.trace.io import TraceWriter
from tidesim.trace.passes import Kind, Pass, RequestInfo, TraceMeta

SPEC = MODELS["llada2.0-mini"]
TOKENS, STEPS = 256, 32  # of a request, of a block: one token a step, the longest there is
DRIFT = 0.2  # of routing from step to step


def passes_of(request):
    """Yield the passes of a request: routing drifts from step to step and starts anew at blocks."""
    rng = np.random.default_rng(request)
    shape = (SPEC.moe_layers, SPEC.block_length, SPEC.num_experts)
    liked = rng.normal(size=(SPEC.moe_layers, 1, SPEC.num_experts))
    for block in range(TOKENS // SPEC.block_length):
        scores = liked + rng.normal(size=shape)
        for step in range(STEPS + 1):
            scores += DRIFT * rng.normal(size=shape)
            top = np.argpartition(scores, -SPEC.num_experts_per_tok, axis=-1)
            yield Pass(
                request=request,
                block=block,
                step=step,
                kind=Kind.DENOISE if step < STEPS else Kind.COMMIT,
                tokens=SPEC.block_length,
                context=SPEC.block_length * block,
                experts=top[..., -SPEC.num_experts_per_tok :].astype(np.uint16),
            )


def write_mini(path):
    """Write the trace."""
    infos = tuple(
        RequestInfo(request=number, prompt_tokens=0, generated_tokens=TOKENS, split=split)
        for number, split in enumerate(("train", "heldout"))
    )
    with TraceWriter(path, model=SPEC) as writer:
        for info in infos:
            for pass_ in passes_of(info.request):
                writer.append(pass_)
        writer.close(TraceMeta(model=SPEC, provenance="synthetic", requests=infos))
