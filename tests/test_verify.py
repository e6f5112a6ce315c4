"""Verification of offloaded decoding: what is identical passes, and whatever differs is named."""

import pytest
import torch

from tidesim.errors import SettingError
from tidesim.hardware import load_profile
from tidesim.runtime.backends import CpuBackend
from tidesim.runtime.checkpoint import load_model
from tidesim.runtime.decode import DecodeSettings, decode
from tidesim.runtime.generate import place_by
from tidesim.runtime.verify import HIDDEN, Difference, What, _router_margin, verify
from tidesim.trace.io import load_trace

PROMPT = [5, 6, 7, 8]
SETTINGS = DecodeSettings(gen_length=40, steps=8)


@pytest.fixture(scope="module")
def model():
    return load_model("tide-tiny")


def verified(model, *, spoil=lambda _: None, settings=SETTINGS, bitwise=None, **how):
    how = {"policy": "tide", "budget": 8, "interval": 2} | how
    with CpuBackend() as backend:
        spoil(backend)
        placing = place_by(how.pop("policy"), model.spec, **how)
        return verify(model, PROMPT, settings, placing, backend, keep_records=True, bitwise=bitwise)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_lossless_is_identical(model, temperature):
    settings = DecodeSettings(gen_length=40, steps=8, temperature=temperature, seed=3)

    run, found = verified(model, settings=settings)

    assert run.decoded.tokens == decode(model, PROMPT, settings).tokens
    assert (found.identical, found.explained, found.differences) == (True, True, ())
    assert (found.tokens_equal, found.routing_equal, found.logits_equal) == (True, True, True)
    assert found.passes == run.decoded.passes
    assert run.records
    assert run.counters.promotions > 0


def wrong_copies(factor):
    """Return what makes a backend copy experts wrongly."""

    def spoil(backend):
        real = backend.link_copy

        def link_copy(target, source, resource, label, layer, **more):
            real(
                target,
                source * factor if "promote" in label else source,
                resource,
                label,
                layer,
                **more,
            )

        backend.link_copy = link_copy

    return spoil


def test_a_wrong_copy_is_found_and_named(model):
    _, found = verified(model, spoil=wrong_copies(-3.0))

    assert (found.identical, found.explained) == (False, False)
    assert {difference.what for difference in found.differences} == set(What)
    routing = next(d for d in found.differences if d.what is What.ROUTING)
    assert routing.number == 0
    assert "mixture layer 1, token" in routing.place
    assert str(routing).startswith("routing of pass 0: mixture layer 1")


def test_a_difference_in_the_last_bits_is_found(model):
    _, found = verified(model, spoil=wrong_copies(1.008))  # one step of bfloat16

    assert (found.logits_equal, found.identical, found.explained) == (False, False, False)
    logits = next(d for d in found.differences if d.what is What.LOGITS)
    assert str(logits) == "logits of pass 0: their bits differ"


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_what_rounding_does_not_explain_is_no_near_tie_where_bits_are_not_compared(model, factor):
    """As on a GPU: a wrong expert moves hidden states further than rounding does."""
    _, found = verified(model, spoil=wrong_copies(factor), bitwise=False)

    assert found.hidden_error > HIDDEN[torch.bfloat16]
    assert (found.logits_equal, found.identical, found.explained) == (None, False, False)


@pytest.mark.parametrize("factor", [1.0, 1.008])
def test_rounding_is_explained_where_bits_are_not_compared(model, factor):
    _, found = verified(model, spoil=wrong_copies(factor), bitwise=False)

    assert found.hidden_error < HIDDEN[torch.bfloat16]
    assert found.identical == (factor == 1.0)
    assert found.explained


def test_a_margin_says_whether_rounding_explains_it(model):
    router = model.mixtures()[0].gate
    x = torch.randn(model.spec.hidden_size, generator=torch.Generator().manual_seed(1))
    scores = torch.sigmoid(router.weight.float() @ x) + router.expert_bias
    best, second = scores.topk(2).indices.tolist()

    assert _router_margin(router, x, best, second) <= float(scores[best] - scores[second]) + 1e-6
    near = Difference(what=What.ROUTING, number=2, place="x", margin=1e-7, is_near_tie=True)
    assert str(near) == "routing of pass 2: x, margin 1e-07 (a near-tie)"


def test_the_window_must_be_the_engines(model):
    with pytest.raises(SettingError, match="engine tide-reference computes window full"):
        verified(model, engine="tide-reference")


def test_policies_that_need_to_know_more_say_so(model):
    for policy in ("belady", "full-knowledge"):
        with pytest.raises(SettingError, match=f"policy {policy} knows the passes to come"):
            place_by(policy, model.spec, budget=8)
    with pytest.raises(SettingError, match="none is known"):
        place_by("pay", model.spec, budget=8)
    training = load_trace("tide-tiny-mixed").only([0, 1])
    profile = load_profile("a100-40gb-pcie4-xeon48")
    pay = place_by("pay", model.spec, budget=8, training=training, profile=profile)
    assert pay.policy().name == "pay"
    with pytest.raises(SettingError, match="give a budget"):
        place_by("lru", model.spec)
    assert place_by("all-cpu", model.spec).policy().budgets(pay.setup).sum() == 0


def test_the_model_has_its_own_banks_and_experts_back(model):
    banks = [mixture.experts.bank for mixture in model.mixtures()]

    verified(model)

    assert all(a is b.experts.bank for a, b in zip(banks, model.mixtures(), strict=True))
    assert all(mixture.run is None for mixture in model.mixtures())
    assert not model.lm_head._forward_hooks
