"""Turn a finished training run into a checkpoint folder with a README of measured figures."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from tidesim.resources import write_text
from tidesim.runtime.checkpoint import load_model, save_checkpoint
from tidesim.runtime.model import Transformer
from tidesim.runtime.training.corpus import read_corpus
from tidesim.runtime.training.evaluate import Quality, evaluate

_CARD = """\
# {name}

A small LLaDA2.0-MoE model trained for tidesim: {parameters:.2f} M parameters, {layers} layers of which
{dense} dense, {experts} experts per mixture layer, {top_k} per token, block {block}, bfloat16.
It exists to give real routing, not good text.

- **Data**: the sources of the Python {python} standard library (PSF licence), minus one file in 40
  chosen by a hash of its path; byte-level BPE of {vocab} tokens trained on the same files.
- **Objective**: block diffusion, every block noised beside the clean blocks before it, masked
  positions weighted 1/t; bias-based load balancing.
- **Run**: {steps} steps of {tokens_per_step} tokens, seed {seed}, {device}; recipe:
  `make tiny-checkpoint`, code in `tidesim/runtime/training`.

| measured on held-out files | bits per byte | nats per token |
|---|---|---|
| this checkpoint, masked cross-entropy | {masked_bits_per_byte:.3f} | {masked_nats_per_token:.3f} |
| bigram model of the same tokens | {bigram_bits_per_byte:.3f} | {bigram_nats_per_token:.3f} |

{bytes_per_token:.2f} bytes per token. The masked cross-entropy is the block-diffusion bound, averaged
over 1 to {block} masked positions of a block.
"""


def model_card(model: Transformer, quality: Quality, recipe: dict[str, object]) -> str:
    """Return the README of a checkpoint."""
    spec = model.spec
    return _CARD.format(
        name=spec.name,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        layers=spec.num_hidden_layers,
        dense=spec.first_k_dense_replace,
        experts=spec.num_experts,
        top_k=spec.num_experts_per_tok,
        block=spec.block_length,
        vocab=spec.vocab_size,
        python=".".join(map(str, sys.version_info[:2])),
        **asdict(quality),
        **recipe,
    )


def export(model: Transformer, tokenizer: Path, out: Path, *, recipe: dict[str, object]) -> Quality:
    """Write config, weights in bfloat16, tokenizer and README; measure what was written.

    Parameters
    ----------
    model : Transformer
    tokenizer : Path
        The run's ``tokenizer.json``.
    out : Path
        Checkpoint folder.
    recipe : dict
        For the README: ``steps``, ``tokens_per_step``, ``seed``, ``device``.
    """
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, out, dtype="bfloat16")
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    written = load_model(out)
    quality = evaluate(written, Tokenizer.from_file(str(tokenizer)), read_corpus())
    write_text(out / "README.md", model_card(written, quality, recipe))
    return quality
