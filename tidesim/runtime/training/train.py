"""Train the bundled checkpoint: seeded, resumable, prints loss and throughput.

Run it as ``make tiny-checkpoint`` or ``python -m tidesim.runtime.training.train --help``.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors import safe_open
from torch import Tensor

from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec
from tidesim.resources import atomic_path
from tidesim.runtime.checkpoint import write_tensors
from tidesim.runtime.model import Transformer
from tidesim.runtime.training.corpus import (
    EOS,
    MASK,
    SPECIAL,
    Corpus,
    encode_files,
    read_corpus,
    train_tokenizer,
)
from tidesim.runtime.training.export import export
from tidesim.runtime.training.objective import (
    block_diffusion_loss,
    heldout_loss,
    noise,
    trainable_dispatch,
)
from tidesim.runtime.training.optimizer import balance, initialise, make_optimizers

VOCAB_SIZE = 2048


def tiny_spec() -> ModelSpec:
    """Return the geometry of the bundled checkpoint: 64 experts, top-4, 4 mixture layers."""
    return ModelSpec(
        name="tide-tiny",
        num_hidden_layers=5,
        first_k_dense_replace=1,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        moe_intermediate_size=64,
        num_experts=64,
        num_experts_per_tok=4,
        n_group=8,
        topk_group=4,
        num_shared_experts=1,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=4096,
        rope_theta=10000.0,
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-6,
        routed_scaling_factor=2.5,
        mask_token_id=SPECIAL.index(MASK),
        eos_token_id=SPECIAL.index(EOS),
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the outcome of a training run.

    The learning rate warms up, stays constant and falls linearly to zero over the last
    `decay_share` of the steps, where sequences get `final_length` tokens.
    """

    steps: int = 3200
    tokens_per_step: int = 4096
    length: int = 128
    final_length: int = 256
    lr: float = 0.02
    warmup: int = 100
    decay_share: float = 0.35
    balance_rate: float = 1e-3
    seed: int = 0

    def decaying(self, step: int) -> bool:
        """Tell whether a step belongs to the last phase."""
        return step >= self.steps * (1 - self.decay_share)

    def lr_factor(self, step: int) -> float:
        """Return the share of the peak learning rate at a step."""
        left = (self.steps - step) / (self.steps * self.decay_share)
        return min(1.0, (step + 1) / self.warmup, left)


def batch(
    tokens: Tensor, recipe: Recipe, step: int, *, block: int
) -> tuple[Tensor, torch.Generator]:
    """Draw the sequences of a step, [batch, length] int64, from (seed, step) alone."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    length = recipe.final_length if recipe.decaying(step) else recipe.length
    length = max(block, length // block * block)
    starts = torch.randint(
        len(tokens) - length, (recipe.tokens_per_step // length,), generator=generator
    )
    return tokens[starts[:, None] + torch.arange(length)], generator


@dataclass(slots=True)
class Run:
    """A training run in memory: recipe, model, optimisers and the next step."""

    recipe: Recipe
    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    step: int = 0

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that a resumed run needs."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
        return {name: value.contiguous() for name, value in tensors.items()}

    def save(self, path: Path) -> None:
        """Write the state as safetensors, whole or not at all."""
        metadata = {"step": str(self.step), "recipe": json.dumps(asdict(self.recipe))}
        write_tensors(self.state(), path, metadata=metadata)

    def restore(self, path: Path) -> None:
        """Read a state that `save` wrote.

        Raises
        ------
        SettingError
            The state is of another recipe.
        """
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        model_state = {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if json.loads(metadata["recipe"]) != asdict(self.recipe):
                raise SettingError(
                    f"{path}: is the state of another recipe, {metadata['recipe']}; "
                    "go on with its settings, or give an empty --work folder"
                )
            self.step = int(metadata["step"])
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                kind, rest = name.split(".", 1)
                if kind == "model":
                    model_state[rest] = file.get_tensor(name)
                else:
                    number, index, key = rest.split(".")
                    states[int(number)].setdefault(int(index), {})[key] = file.get_tensor(name)
        self.model.load_state_dict(model_state)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )


def start_run(spec: ModelSpec, recipe: Recipe, device: torch.device) -> Run:
    """Return a fresh run."""
    model = Transformer(spec)
    initialise(model, torch.Generator().manual_seed(recipe.seed))
    model.to(device)
    for mixture in model.mixtures():
        mixture.dispatch = trainable_dispatch
    return Run(recipe=recipe, model=model, optimizers=make_optimizers(model, lr=recipe.lr))


def train_steps(run: Run, tokens: Tensor) -> Iterator[tuple[int, float]]:
    """Take the remaining steps; yield each step's number and loss in nats per masked token."""
    recipe, model, spec = run.recipe, run.model, run.model.spec
    device = model.lm_head.weight.device
    bases = [[group["lr"] for group in optimizer.param_groups] for optimizer in run.optimizers]
    while run.step < recipe.steps:
        clean, generator = batch(tokens, recipe, run.step, block=spec.block_length)
        noised, weight = noise(
            clean, block_length=spec.block_length, mask_id=spec.mask_token_id, generator=generator
        )
        with torch.autocast(device.type, torch.bfloat16):
            loss = block_diffusion_loss(
                model, clean.to(device), noised.to(device), weight.to(device)
            )
        loss.value.backward()  # type: ignore[no-untyped-call]
        for optimizer, rates in zip(run.optimizers, bases, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * recipe.lr_factor(run.step)
            optimizer.step()
            optimizer.zero_grad()
        balance(model, loss.loads, rate=recipe.balance_rate * recipe.lr_factor(run.step))
        run.step += 1
        yield run.step, float(loss.value.detach())


def prepare(work: Path) -> tuple[Tensor, Tensor]:
    """Return training and held-out tokens; they and the tokenizer stay in `work` for a resume."""
    stored = work / "tokens.npz"
    if not stored.exists():
        corpus: Corpus = read_corpus()
        tokenizer = train_tokenizer(corpus, vocab_size=VOCAB_SIZE)
        tokenizer.save(str(work / "tokenizer.json"))
        with atomic_path(stored) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                train=encode_files(tokenizer, corpus.train),
                heldout=encode_files(tokenizer, corpus.heldout),
            )
    with np.load(stored) as arrays:
        train, heldout = (
            torch.from_numpy(arrays[k].astype(np.int64)) for k in ("train", "heldout")
        )
    return train, heldout


def main(
    work: Annotated[Path, typer.Option(help="Folder for the state of the run.")] = Path("training"),
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = Path(
        "traces/tide-tiny"
    ),
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = Recipe.steps,
    lr: Annotated[float, typer.Option(help="Peak learning rate of Muon.")] = Recipe.lr,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = Recipe.seed,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
) -> None:
    """Train or resume, printing one JSON line every 50 steps; export when all steps are done."""
    if threads:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(steps=steps, lr=lr, seed=seed)
    train, heldout = prepare(work)
    spec = tiny_spec()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = start_run(spec, recipe, device)
    state = work / "state.safetensors"
    if state.exists():
        run.restore(state)
    _report_steps(run, train, heldout, state)
    quality = export(
        run.model,
        work / "tokenizer.json",
        out,
        recipe=asdict(recipe) | {"device": "on CUDA" if device.type == "cuda" else "on CPU cores"},
    )
    typer.echo(json.dumps({"checkpoint": str(out)} | asdict(quality)))


def _report_steps(run: Run, train: Tensor, heldout: Tensor, state: Path) -> None:
    recipe, clock, losses = run.recipe, time.perf_counter(), []
    for step, loss in train_steps(run, train):
        losses.append(loss)
        if step % 50 and step != recipe.steps:
            continue
        seconds = time.perf_counter() - clock
        line = {
            "step": step,
            "loss": round(float(np.mean(losses)), 4),
            "tokens_per_s": round(len(losses) * recipe.tokens_per_step / seconds),
        }
        if step % 250 == 0 or step == recipe.steps:
            line["heldout"] = round(heldout_loss(run.model, heldout), 4)
            run.save(state)
        typer.echo(json.dumps(line))
        clock, losses = time.perf_counter(), []


if __name__ == "__main__":
    typer.run(main)
