"""What the project ships: the small checkpoint's worth, and traces that belong to it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tidesim.model_spec import load_model_spec
from tidesim.resources import bundled_names, data_dir, sha256_file
from tidesim.runtime.checkpoint import checkpoint_digest, load_model, load_tokenizer
from tidesim.runtime.decode import DecodeSettings, decode
from tidesim.runtime.prompts import load_prompts
from tidesim.runtime.training.corpus import is_heldout, read_corpus
from tidesim.runtime.training.evaluate import evaluate, largest_token_share
from tidesim.trace.io import check_trace, load_trace
from tidesim.trace.passes import Kind, Window
from tidesim.trace.stats import trace_stats

CHECKPOINT = "tide-tiny"
TRACES = bundled_names("traces")
CAPTURED = [name for name in TRACES if load_trace(name).meta.provenance == "captured"]


def test_checkpoint_is_small_and_of_the_asked_geometry():
    folder = data_dir("traces") / CHECKPOINT
    spec = load_model_spec(CHECKPOINT)

    assert sum(file.stat().st_size for file in folder.iterdir()) <= 16e6
    assert spec.num_experts >= 64
    assert spec.num_experts_per_tok >= 4
    assert spec.moe_layers >= 4
    assert (spec.block_length, spec.dtype) == (32, "bfloat16")
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip


@pytest.mark.slow
def test_checkpoint_predicts_heldout_text_better_than_a_bigram_model():
    """Bits per byte on standard-library files that a hash of their path kept out of training."""
    torch.manual_seed(0)

    quality = evaluate(
        load_model(CHECKPOINT), load_tokenizer(CHECKPOINT), read_corpus(), sequences=32
    )

    assert quality.masked_bits_per_byte < quality.bigram_bits_per_byte


SAMPLED = {"temperature": 1.0, "top_p": 0.95, "threshold": 0.9}  # as the bundled trace


@pytest.mark.parametrize("how", [SAMPLED, {}])
def test_no_token_dominates_what_the_checkpoint_writes_for_heldout_prompts(how):
    model, tokenizer = load_model(CHECKPOINT), load_tokenizer(CHECKPOINT)
    prompts = [prompt for prompt in load_prompts() if prompt.split == "heldout"][:16]
    settings = DecodeSettings(gen_length=48, **how)

    outputs = [decode(model, prompt.tokens(tokenizer), settings).tokens for prompt in prompts]

    assert len(outputs) == 16
    assert largest_token_share(outputs) <= 0.30


def test_prompts_come_from_files_kept_out_of_training():
    for prompt in load_prompts():
        assert is_heldout(prompt.source.removeprefix("Lib/"))


@pytest.mark.parametrize("name", CAPTURED)
def test_bundled_trace_belongs_to_the_bundled_checkpoint_and_prompts(name):
    meta = load_trace(name).meta

    assert meta.checkpoint_sha256 == checkpoint_digest(CHECKPOINT)
    assert meta.checkpoint_sha256 == sha256_file(
        data_dir("traces") / CHECKPOINT / "model.safetensors"
    )
    assert meta.model == load_model_spec(CHECKPOINT)
    assert [r.prompt_source for r in meta.requests] == [p.source for p in load_prompts()]


@pytest.mark.parametrize("name", CAPTURED)
def test_bundled_trace_has_enough_requests_kinds_and_both_splits(name):
    requests = load_trace(name).meta.requests

    assert len(requests) >= 24
    assert len({info.prompt_kind for info in requests}) == 3
    assert {info.split for info in requests} == {"train", "heldout"}


@pytest.mark.parametrize("name", CAPTURED)
def test_every_expert_of_every_layer_is_used(name):
    trace = check_trace(name)
    total = sum(pass_.counts(trace.meta.model.num_experts) for pass_ in trace)

    assert (np.asarray(total) > 0).all()


@pytest.mark.parametrize("name", CAPTURED)
def test_routing_is_stable_within_a_block_and_changes_at_its_start(name):
    """The published shape: neighbours near 0.98 in cosine, falling with lag, a jump between blocks."""
    stats = trace_stats(load_trace(name), window=Window.BLOCK).to_json()

    assert 0.96 < stats["cosine"]["1"] < 1
    assert stats["cosine"]["1"] > stats["cosine"]["2"] > stats["cosine"]["5"]
    assert stats["between_blocks"]["last_to_next_first"] < stats["between_blocks"]["same_step"]
    assert stats["between_blocks"]["last_to_next_first"] < 0.6


@pytest.mark.parametrize("name", CAPTURED)
def test_bundled_trace_is_what_its_settings_capture(name):
    """Decoding the first request again routes the first block's first tokens as recorded."""
    trace = load_trace(name)
    recorded = next(p for p in trace if p.kind is Kind.DENOISE)
    kept = {key: trace.meta.settings[key] for key in ("temperature", "top_p", "threshold", "seed")}
    prompt = load_prompts()[0]
    events = []

    decode(
        load_model(CHECKPOINT),
        prompt.tokens(load_tokenizer(CHECKPOINT)),
        DecodeSettings(gen_length=1, **kept),
        observe=events.append,
    )

    first = next(event for event in events if event.kind is Kind.DENOISE)
    same = np.sort(first.routes.numpy(), -1) == np.sort(recorded.experts, -1)
    assert same.mean() > 0.98  # another processor's kernels may turn a near-tie


def test_bundled_traces_are_captured_or_imported_and_hold_what_they_say():
    kinds = {name: check_trace(name).meta.provenance for name in TRACES}

    assert kinds == {"llada2.0-flash-late": "imported", "tide-tiny-mixed": "captured"}


def test_bundled_files_are_named_in_the_readme():
    text = (data_dir("traces") / "README.md").read_text()

    for name in (*TRACES, CHECKPOINT, "prompts.jsonl"):
        assert name in text


def test_readme_of_the_checkpoint_states_measured_figures():
    text = (Path(data_dir("traces")) / CHECKPOINT / "README.md").read_text()

    assert "bits per byte" in text
    assert "PSF licence" in text
