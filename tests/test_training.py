"""The training recipe: objective, optimiser, resume and the corpus split."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec
from tidesim.runtime.model import Context, Transformer, rotary_table
from tidesim.runtime.products import routed_experts
from tidesim.runtime.training.corpus import is_heldout, read_corpus, train_tokenizer
from tidesim.runtime.training.evaluate import bigram_nats, largest_token_share
from tidesim.runtime.training.objective import (
    block_diffusion_loss,
    noise,
    trainable_dispatch,
    training_mask,
)
from tidesim.runtime.training.optimizer import balance, orthogonalise
from tidesim.runtime.training.train import Recipe, start_run, train_steps

BLOCK = 4


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(
        name="toy", num_hidden_layers=2, first_k_dense_replace=1, hidden_size=16,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=24,
        moe_intermediate_size=8, num_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2,
        num_shared_experts=1, vocab_size=40, max_position_embeddings=64, rope_theta=1e4,
        partial_rotary_factor=0.5, rms_norm_eps=1e-6, routed_scaling_factor=2.5, dtype="float32",
        mask_token_id=1, eos_token_id=0, block_length=BLOCK,
    )  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_weights_every_block_by_one_over_its_masked_share():
    clean = torch.full((6, 8), 7)

    noised, weight = noise(clean, block_length=BLOCK, mask_id=1, generator=generator())

    masked = (noised == 1).view(-1, BLOCK)
    assert (masked.sum(1) >= 1).all()
    assert torch.equal(weight > 0, noised == 1)
    assert torch.allclose(weight.view(-1, BLOCK).sum(1), torch.full((12,), float(BLOCK)))


def test_noise_covers_every_number_of_masked_positions_equally():
    noised, _ = noise(torch.full((8, 16), 7), block_length=BLOCK, mask_id=1, generator=generator())

    counts = torch.bincount((noised == 1).view(-1, BLOCK).sum(1), minlength=BLOCK + 1)
    assert counts.tolist() == [0, 8, 8, 8, 8]


def test_training_mask_lets_a_noised_block_see_itself_and_the_clean_blocks_before_it():
    mask = training_mask(8, BLOCK)

    noised_second_block = mask[5]
    assert noised_second_block.tolist() == [False] * 4 + [True] * 4 + [True] * 4 + [False] * 4
    clean_second_block = mask[8 + 5]
    assert clean_second_block.tolist() == [False] * 8 + [True] * 8


def test_training_pass_computes_what_decoding_computes(spec):
    """Noised logits in training equal those of a block pass after clean blocks were cached."""
    from tidesim.runtime.model import KeyValueCache, block_causal_mask  # noqa: PLC0415

    torch.manual_seed(0)
    model = start_run(spec, Recipe(seed=3), torch.device("cpu")).model
    for mixture in model.mixtures():
        mixture.dispatch = routed_experts
    clean = torch.randint(2, 40, (8,))
    noised = torch.where(torch.rand(8) < 0.5, 1, clean)
    cos, sin = rotary_table(torch.arange(8).repeat(2), spec)
    context = Context(cos, sin, training_mask(8, BLOCK), cache=None, start=0, routes=[])

    with torch.no_grad():
        hidden = model.hidden(torch.cat((noised, clean))[None], torch.arange(8).repeat(2), context)
        cache = KeyValueCache.empty(spec, 8, model.lm_head.weight)
        model(clean[:4], cache=cache, mask=block_causal_mask(4, BLOCK, clean.device))
        decoded, _ = model(noised[4:], start=4, cache=cache)

    assert torch.allclose(model.lm_head(hidden[0, 4:8]), decoded, atol=1e-5)


def test_training_dispatch_and_its_gradients_equal_autograd(spec):
    """The hand-written backward against autograd, within bfloat16's precision."""
    torch.manual_seed(0)
    mixture = start_run(spec, Recipe(), torch.device("cpu")).model.mixtures()[0]
    x = torch.randn(30, spec.hidden_size)
    experts, weights = mixture.gate(x)
    results = []
    for dispatch in (routed_experts, trainable_dispatch):
        inputs, w = x.clone().requires_grad_(), weights.detach().clone().requires_grad_()
        mixture.zero_grad()
        y = dispatch(inputs, experts, w, mixture.experts)
        (y.sin() * y).sum().backward()
        results.append((y.detach(), inputs.grad, w.grad, mixture.experts.bank.grad.clone()))

    for exact, ours in zip(*results, strict=True):
        assert (exact - ours).norm() < 0.02 * exact.norm()


def test_loss_of_an_untrained_model_is_near_uniform(spec):
    run = start_run(spec, Recipe(), torch.device("cpu"))
    clean = torch.randint(2, 40, (4, 16), generator=generator())
    noised, weight = noise(clean, block_length=BLOCK, mask_id=1, generator=generator())

    loss = block_diffusion_loss(run.model, clean, noised, weight)

    assert float(loss.value.detach()) == pytest.approx(np.log(40), rel=0.1)
    assert [int(load.sum()) for load in loss.loads] == [2 * 4 * 16 * 2]


def test_balance_moves_bias_towards_idle_experts(spec):
    model = Transformer(spec)

    balance(model, [torch.tensor([9, 1, 1, 1, 1, 1, 1, 1])], rate=0.5)

    assert model.mixtures()[0].gate.expert_bias.tolist() == [-0.5] + [0.5] * 7


def test_orthogonalised_matrix_has_singular_values_near_one():
    matrices = torch.randn(3, 12, 20, generator=generator())

    values = torch.linalg.svdvals(orthogonalise(matrices).float())

    assert values.min() > 0.5
    assert values.max() < 1.4


def losses(spec, recipe, tokens, *, until=None, path=None):
    run = start_run(spec, recipe, torch.device("cpu"))
    if path is not None and path.exists():
        run.restore(path)
    seen = []
    for step, loss in train_steps(run, tokens):
        seen.append(loss)
        if step == until:
            run.save(path)
            break
    return seen


def test_training_lowers_the_loss_and_a_resumed_run_goes_on_exactly(spec, tmp_path):
    recipe = Recipe(steps=30, tokens_per_step=64, length=16, final_length=16, warmup=3)
    tokens = (torch.arange(4000) * 7 % 11) + 3
    whole = losses(spec, recipe, tokens)

    first = losses(spec, recipe, tokens, until=12, path=tmp_path / "state.safetensors")
    rest = losses(spec, recipe, tokens, path=tmp_path / "state.safetensors")

    assert first + rest == whole
    assert np.mean(whole[-5:]) < 0.85 * whole[0]


def test_state_of_another_recipe_is_refused(spec, tmp_path):
    path = tmp_path / "state.safetensors"
    start_run(spec, Recipe(seed=1), torch.device("cpu")).save(path)

    with pytest.raises(SettingError, match="another recipe"):
        start_run(spec, Recipe(seed=2), torch.device("cpu")).restore(path)


def test_learning_rate_warms_up_and_ends_at_zero():
    recipe = Recipe(steps=100, warmup=10, decay_share=0.5)
    factors = [recipe.lr_factor(step) for step in range(101)]

    assert factors[0] == 0.1
    assert factors[9] == factors[49] == 1.0
    assert factors[100] == 0.0


def test_corpus_split_is_by_path_and_disjoint(tmp_path):
    for number in range(200):
        (tmp_path / f"m{number}.py").write_text(f"x = {number}\n")
    (tmp_path / "latin.py").write_bytes(b"\xff")

    corpus = read_corpus(tmp_path)

    assert len(corpus.train) + len(corpus.heldout) == 200
    assert all(is_heldout(path) for path, _ in corpus.heldout)
    assert 0 < len(corpus.heldout) < 20


def test_tokenizer_round_trips_text_it_never_saw(tmp_path):
    (tmp_path / "m.py").write_text("def f(x):\n    return x\n" * 50)
    tokenizer = train_tokenizer(read_corpus(tmp_path), vocab_size=300)
    text = "été = '→'\n\tpass"

    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_bigram_model_is_a_distribution_and_learns_a_cycle():
    train = np.tile(np.arange(4, dtype=np.uint16), 500)

    assert bigram_nats(train, train[:100], vocab_size=4) < 0.01
    alone = [
        np.exp(-bigram_nats(train[:9], np.array([2, t], np.uint16), vocab_size=4)) for t in range(4)
    ]
    assert sum(alone) == pytest.approx(1.0)


def test_largest_token_share_counts_over_all_outputs():
    assert largest_token_share([[1, 1], [1, 2]]) == 0.75


def test_recipe_module_is_what_the_makefile_runs():
    text = (Path(__file__).parents[1] / "Makefile").read_text()
    command = text.split("\ntiny-checkpoint:")[1].splitlines()[1].strip()
    module = command.removeprefix("$(RUN) ")

    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    ).stdout

    assert "--steps" in shown
