"""The offload runtime on the bundled checkpoint against tide-reference and against no offloading.

Everything runs on backend ``cpu``, on one thread per worker, in one process, taking turns.
"""

from dataclasses import replace

import numpy as np
import torch

from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.placement import Setup
from tidesim.policies import make_policy
from tidesim.runtime.backends import make_backend
from tidesim.runtime.checkpoint import load_model, load_tokenizer
from tidesim.runtime.decode import DecodeSettings, decode
from tidesim.runtime.offloading import make_offload
from tidesim.runtime.prompts import load_prompts
from tidesim.trace.passes import Window

REPEATS = 3
INTERVAL = 4
BUDGETS = {"1/8": 8, "1/4": 16, "1/2": 32}


def tokens_per_s(model, prompt, *, gen_length, engine=None, budget=16, window=Window.BLOCK):
    """Decode one prompt; without an engine all experts are resident."""
    how = DecodeSettings(gen_length=gen_length, window=window, stop_at_eos=False)
    if engine is None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        decoded = decode(model, prompt, how)
        torch.set_num_threads(before)
        return len(decoded.tokens) / decoded.seconds
    spec = model.spec
    setup = Setup(
        num_experts=spec.num_experts,
        layers=spec.moe_layers,
        budget=budget,
        popularity=np.zeros((spec.moe_layers, spec.num_experts)),
        engine=engine,
        interval=INTERVAL,
    )
    with make_backend("cpu") as backend:
        backend.recorder.enabled = False
        offload = make_offload(model, make_policy("tide", setup=setup), setup, backend)
        offload.attach()
        try:
            decoded = decode(model, prompt, how, frame=offload)
            offload.finish()
        finally:
            offload.detach()
    return len(decoded.tokens) / decoded.seconds


def medians(runs, repeats=REPEATS):
    """Let the runs take turns; return the median tokens/s of each."""
    taken = [{name: run() for name, run in runs.items()} for _ in range(repeats)]
    return {name: float(np.median([each[name] for each in taken])) for name in runs}


def bench_runtime_over_reference(measured):
    """Tokens/s of tidesim over tide-reference at equal budgets, prefix cache and offloading apart."""
    prompt = next(p for p in load_prompts(None) if p.split == "heldout")
    ids = prompt.tokens(load_tokenizer("tide-tiny"), chat=False)
    cached = replace(TIDE_REFERENCE, window=Window.BLOCK)
    measured["runtime_over_reference"] = rows = {}
    for dtype, gen_length, repeats in (
        ("bfloat16", 256, 3),
        ("float32", 256, 3),
        ("bfloat16", 1024, 1),
        ("float32", 1024, 1),
    ):
        model = load_model("tide-tiny", dtype=dtype)

        def at(engine, model=model, gen_length=gen_length):
            return tokens_per_s(
                model, ids, gen_length=gen_length, engine=engine, window=engine.window
            )

        engines = {"tidesim": TIDESIM, "cached": cached, "reference": TIDE_REFERENCE}
        found = medians({name: lambda e=e: at(e) for name, e in engines.items()}, repeats)
        rows[f"{dtype}, {gen_length} tokens"] = {
            "tokens_per_s": round(found["tidesim"], 1),
            "reference_tokens_per_s": round(found["reference"], 1),
            "ratio": round(found["tidesim"] / found["reference"], 2),
            "by_prefix_cache": round(found["cached"] / found["reference"], 2),
            "by_offloading": round(found["tidesim"] / found["cached"], 2),
        }
    print(rows)


def bench_runtime_over_resident(measured):
    """Tokens/s of tidesim at shares of the experts over no offloading at all."""
    prompt = next(p for p in load_prompts(None) if p.split == "heldout")
    ids = prompt.tokens(load_tokenizer("tide-tiny"), chat=False)
    measured["runtime_over_resident"] = rows = {}
    for dtype in ("bfloat16", "float32"):
        model = load_model("tide-tiny", dtype=dtype)
        runs = {"resident": lambda m=model: tokens_per_s(m, ids, gen_length=256)}
        for name, budget in BUDGETS.items():
            runs[name] = lambda b=budget, m=model: tokens_per_s(
                m, ids, gen_length=256, engine=TIDESIM, budget=b
            )
        found = medians(runs)
        rows[dtype] = {name: round(found[name] / found["resident"], 2) for name in BUDGETS}
    print(rows)
