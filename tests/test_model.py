"""The model and its decoding against the published implementation (tests/golden/llada2-a)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tidesim.errors import FormatError, SettingError
from tidesim.runtime.checkpoint import load_model
from tidesim.runtime.decode import DecodeSettings, PassEvent, chat_markup, choose, decode, quotas
from tidesim.runtime.model import Transformer, block_causal_mask
from tidesim.trace.passes import Kind, Window

GOLDEN = Path(__file__).parent / "golden" / "llada2-a"


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(GOLDEN)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with safe_open(GOLDEN / "golden.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def settings(window: Window, **changes) -> DecodeSettings:
    values = {"gen_length": 96, "threshold": 0.06, "mask_id": 500, "eos_id": 501} | changes
    return DecodeSettings(window=window, **values)


def run(model, golden, window):
    events: list[PassEvent] = []
    prompt = golden["generate.prompt"].tolist()
    decoded = decode(model, prompt, settings(window), observe=events.append)
    return decoded, events


def test_forward_logits_equal_the_published_model(model, golden):
    ids = golden["forward.input_ids"].long()

    logits, _ = model(ids, mask=block_causal_mask(len(ids), 32, ids.device))

    assert (logits - golden["forward.logits"]).abs().max() < 1e-4


def test_forward_routing_equals_the_published_model(model, golden):
    ids = golden["forward.input_ids"].long()

    _, routes = model(ids, mask=block_causal_mask(len(ids), 32, ids.device))

    expected = golden["forward.topk_idx"].long().sort(-1).values
    assert torch.equal(expected, routes.sort(-1).values)


def test_forward_router_weights_equal_the_published_model(model, golden):
    seen = []
    hooks = [
        m.gate.register_forward_hook(lambda _m, _i, out: seen.append(out)) for m in model.mixtures()
    ]
    ids = golden["forward.input_ids"].long()
    model(ids, mask=block_causal_mask(len(ids), 32, ids.device))
    for hook in hooks:
        hook.remove()

    for layer, (experts, weights) in enumerate(seen):
        theirs = torch.zeros(96, 32).scatter(
            1, golden["forward.topk_idx"][layer].long(), golden["forward.topk_weight"][layer]
        )
        assert torch.allclose(torch.zeros(96, 32).scatter(1, experts, weights), theirs, atol=1e-5)


@pytest.mark.parametrize("window", list(Window))
def test_generated_tokens_equal_the_published_decoding(model, golden, window):
    decoded, _ = run(model, golden, window)

    assert decoded.tokens == golden["generate.output"].tolist()
    assert decoded.steps == len(golden["generate.step"])


@pytest.mark.parametrize("window", list(Window))
def test_every_step_equals_the_published_decoding(model, golden, window):
    _, events = run(model, golden, window)
    denoise = [event for event in events if event.kind is Kind.DENOISE]

    assert [event.block for event in denoise] == golden["generate.block"].tolist()
    assert [event.step for event in denoise] == golden["generate.step"].tolist()
    assert [int(e.masked.sum()) for e in denoise] == golden["generate.active_tokens"].tolist()
    assert [int(e.committed.sum()) for e in denoise] == golden[
        "generate.transferred_tokens"
    ].tolist()
    for event, expected in zip(denoise, golden["generate.block_topk_idx"], strict=True):
        assert torch.equal(event.routes.sort(-1).values, expected.long().sort(-1).values)


def test_full_window_counts_are_the_block_plus_everything_before_it(model, golden):
    """The canonical events rebuild the counts of the recomputed window, whichever window ran."""
    for window in Window:
        _, events = run(model, golden, window)
        prefix, counts = torch.zeros(3, 32, dtype=torch.long), []
        for event in events:
            here = torch.stack([torch.bincount(r.reshape(-1), minlength=32) for r in event.routes])
            if event.kind is Kind.DENOISE:
                counts.append(prefix + here)
            else:
                prefix = prefix + here

        assert torch.equal(torch.stack(counts), golden["generate.window_counts"].long())


def test_both_windows_emit_the_same_passes_up_to_the_last_commit(model, golden):
    _, block = run(model, golden, Window.BLOCK)
    _, full = run(model, golden, Window.FULL)

    def describe(events):
        return [(e.kind, e.block, e.step, e.tokens, e.context) for e in events]

    assert describe(block)[-1][0] is Kind.COMMIT
    assert describe(block)[:-1] == describe(full)


def test_quotas_give_the_remainder_to_the_first_steps():
    assert quotas(32, 5) == [7, 7, 6, 6, 6]


def test_every_position_is_written_exactly_once(model, golden):
    _, events = run(model, golden, Window.BLOCK)
    for block in {event.block for event in events if event.kind is Kind.DENOISE}:
        steps = [e for e in events if e.block == block and e.kind is Kind.DENOISE]

        written = torch.stack([e.committed for e in steps]).sum(0)

        assert torch.equal(written, steps[0].masked.long())


def test_sampling_is_reproducible_and_depends_on_the_seed(model):
    def text(seed):
        chosen = settings(
            Window.BLOCK, temperature=1.0, top_p=0.9, top_k=50, seed=seed, gen_length=32
        )
        return decode(model, [1, 2, 3], chosen).tokens

    assert text(3) == text(3)
    assert text(3) != text(4)


@pytest.mark.parametrize("change", [{"top_k": 1}, {"top_p": 1e-9}])
def test_sampling_from_one_candidate_takes_the_most_probable(change):
    logits = torch.randn(50, 512, generator=torch.Generator().manual_seed(0))
    sampled = settings(Window.BLOCK, temperature=0.7, **change)

    candidates, confidence = choose(logits, sampled, torch.Generator())

    assert torch.equal(candidates, logits.argmax(-1))
    assert torch.equal(confidence, torch.ones(50))


def test_decoding_stops_after_a_block_with_the_end_token(model):
    """The token the model writes first serves as end of text."""
    free = decode(model, [1, 2, 3], settings(Window.BLOCK))
    eos = free.tokens[5]

    stopped = decode(model, [1, 2, 3], settings(Window.BLOCK, eos_id=eos))

    assert stopped.tokens == free.tokens[: free.tokens.index(eos) + 1]
    assert stopped.steps < free.steps


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([1, 512], "512 is outside"), ([-1], "-1 is outside"), ([500], "mask token")],
)
def test_bad_prompts_are_refused(model, prompt, message):
    with pytest.raises(SettingError, match=message):
        decode(model, prompt, settings(Window.BLOCK))


def test_default_mask_token_of_a_small_vocabulary_asks_for_the_option(model):
    with pytest.raises(SettingError, match="--mask-id"):
        decode(model, [1], DecodeSettings())


def test_generation_longer_than_the_model_is_refused(model):
    with pytest.raises(SettingError, match="2048"):
        decode(model, [1], settings(Window.BLOCK, gen_length=5000))


@pytest.mark.parametrize("prompt_length", [20, 32, 64, 70])
def test_both_windows_sample_the_same_tokens(model, prompt_length):
    prompt = [7 * number % 499 for number in range(prompt_length)]
    texts = [
        decode(model, prompt, settings(window, temperature=0.8, top_k=20, gen_length=50)).tokens
        for window in Window
    ]

    assert texts[0] == texts[1]
    assert len(texts[0]) == 50 or texts[0][-1] == 501


def test_steps_below_the_block_length_write_several_positions_each(model):
    decoded = decode(model, [1], settings(Window.BLOCK, steps=4, threshold=1.0, gen_length=31))

    assert decoded.steps == 4


def test_chat_markup_is_llada2s():
    assert chat_markup("hi") == "<role>HUMAN</role>hi<|role_end|><role>ASSISTANT</role>"


def test_bfloat16_model_keeps_the_router_bias_in_float32():
    half = load_model(GOLDEN, dtype="bfloat16")

    assert half.mixtures()[0].gate.expert_bias.dtype == torch.float32
    assert half.lm_head.weight.dtype == torch.bfloat16
    decoded = decode(half, [1, 2], settings(Window.BLOCK, gen_length=30))
    assert len(decoded.tokens) == 30 or decoded.tokens[-1] == 501


@pytest.mark.parametrize(
    "change",
    [{"seed": 1 << 63}, {"seed": -1}, {"temperature": 1e-40}, {"temperature": float("nan")}],
)
def test_settings_that_torch_cannot_compute_with_are_refused(change):
    with pytest.raises(SettingError, match=f"{next(iter(change))} is"):
        DecodeSettings(**change)


def test_coldest_and_hottest_temperature_decode(model):
    for temperature in (1e-6, 1e6):
        decoded = decode(
            model, [1, 2], settings(Window.BLOCK, temperature=temperature, gen_length=30)
        )
        assert len(decoded.tokens) == 30


def test_model_that_computes_nan_is_refused():
    broken = load_model(GOLDEN, dtype="bfloat16")  # converted: nothing of it lies in the file
    broken.norm.weight[0] = float("nan")

    with pytest.raises(FormatError, match="NaN"):
        decode(broken, [1, 2], settings(Window.BLOCK, gen_length=30))


def test_blocks_are_counted_as_decoded_even_if_a_mask_is_written_again():
    """A model that always proposes the mask token fills nothing, step after step."""
    stubborn = load_model(GOLDEN, dtype="bfloat16")
    stubborn.lm_head.weight.zero_()  # every token as probable: the first one, here the mask

    decoded = decode(stubborn, [5], settings(Window.BLOCK, mask_id=0, threshold=0.0, gen_length=63))

    assert (decoded.tokens, decoded.blocks) == ([], 2)


def test_full_window_events_keep_only_their_block_in_memory(model, golden):
    _, events = run(model, golden, Window.FULL)

    for event in events:
        if event.kind is Kind.DENOISE:
            assert event.routes.untyped_storage().nbytes() == event.routes.nbytes
