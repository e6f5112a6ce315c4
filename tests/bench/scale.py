"""A synthetic trace of any length, and a run over one that says what it cost.

As a program: `python scale.py write N PATH` or `python scale.py run METHOD PATH`, so that each run
has a process, and thus a peak of memory, of its own.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidesim.hardware import load_profile
from tidesim.model_spec import ModelSpec
from tidesim.simulate import des, fast, prepare, run
from tidesim.trace.arrow import SCHEMA
from tidesim.trace.io import TraceWriter, load_trace
from tidesim.trace.passes import Kind, Pass, RequestInfo, TraceMeta

METHODS = {"des": des.time_passes, "fast": fast.time_passes}
STEPS, BLOCKS, PREFIXES = 4, 100, 50  # denoise passes of a block, blocks of a request
PASSES = (STEPS + 1) * BLOCKS  # of a request: every block also has a commit pass
SPEC = ModelSpec(
    name="scale",
    num_hidden_layers=2,
    first_k_dense_replace=0,
    hidden_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    intermediate_size=64,
    moe_intermediate_size=32,
    num_experts=8,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    num_shared_experts=0,
    vocab_size=64,
    max_position_embeddings=32768,
    rope_theta=10000.0,
    partial_rotary_factor=0.5,
    rms_norm_eps=1e-6,
    routed_scaling_factor=1.0,
    mask_token_id=63,
    eos_token_id=62,
    block_length=4,
)


def passes_of(request):
    """Yield the passes of a request; routing drifts, contexts take 5000 values over requests."""
    rng = np.random.default_rng(request)
    shape = (PASSES, SPEC.moe_layers, SPEC.block_length, SPEC.num_experts)
    liked = rng.normal(size=(1, SPEC.moe_layers, 1, SPEC.num_experts))
    order = np.argsort(rng.normal(size=shape) + liked, axis=-1)
    experts = order[..., : SPEC.num_experts_per_tok].astype(np.uint16)
    for number in range(PASSES):
        block, step = divmod(number, STEPS + 1)
        yield Pass(
            request=request,
            block=block,
            step=step,
            kind=Kind.DENOISE if step < STEPS else Kind.COMMIT,
            tokens=SPEC.block_length,
            context=SPEC.block_length * (request % PREFIXES * BLOCKS + block),
            experts=experts[number],
        )


def write(passes, path):
    """Write a trace of so many passes; memory holds one request."""
    infos = []
    with TraceWriter(path, model=SPEC) as writer:
        for request in range(passes // PASSES):
            infos.append(RequestInfo(request=request, prompt_tokens=0, generated_tokens=0))
            for pass_ in passes_of(request):
                writer.append(pass_)
        writer.close(TraceMeta(model=SPEC, provenance="synthetic", requests=tuple(infos)))


def stack(path, copies, out):
    """Write a trace `copies` times over, row group by row group, its requests numbered anew."""
    trace, number = load_trace(path), SCHEMA.get_field_index("request")
    requests = len(trace.meta.requests)
    infos = [
        RequestInfo(request=request, prompt_tokens=0, generated_tokens=0)
        for request in range(copies * requests)
    ]
    meta = trace.meta.model_copy(update={"requests": tuple(infos)})
    with pq.ParquetFile(path) as file:
        held = file.metadata.metadata | {b"meta": meta.model_dump_json().encode()}
        del held[b"ARROW:schema"]
        with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
            for copy in range(copies):
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group)
                    moved = pc.add(rows["request"], pa.scalar(copy * requests, pa.int32()))
                    writer.write_table(rows.set_column(number, SCHEMA.field(number), moved))
            writer.add_key_value_metadata(held)


def peak_bytes():
    """Return the most memory that this process has held.

    On Linux `getrusage` would also count its parent's, from before the program was loaded.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cost(method, path):
    """Simulate a trace; return passes, seconds of checking and of the run, and peak memory."""
    started = time.perf_counter()
    machine = load_profile("a100-40gb-pcie4-xeon48")
    case = prepare(load_trace(path), machine, policy="tide", budget=4, interval=2)
    checked = time.perf_counter()
    result = run(case, method=METHODS[method])
    return {
        "passes": result.passes,
        "prepare_s": checked - started,
        "run_s": time.perf_counter() - checked,
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(int(sys.argv[2]), sys.argv[3])
    else:
        print(json.dumps(cost(sys.argv[2], sys.argv[3])))
