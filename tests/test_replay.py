"""Pairs sorted by who computes them, products in one call, and routing made from counts."""

import numpy as np
import pytest
import torch
from builders import small_spec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tidesim.errors import FormatError
from tidesim.runtime.products import Experts, expert_product, expert_products
from tidesim.runtime.replay import random_model, routes_of
from tidesim.runtime.slots import NOWHERE, Slots, sort_pairs

EXPERTS = 12


def slots(held, size):
    spec = small_spec(num_experts=EXPERTS)
    made = Slots(torch.zeros(size, spec.expert_params), Experts(spec), num_experts=EXPERTS)
    for expert in held:
        made.take(expert)
    return made


@st.composite
def layers(draw):
    """Draw the experts of every pair, and who is resident or streamed."""
    top_k, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rows = [draw(st.permutations(range(EXPERTS)))[:top_k] for _ in range(tokens)]
    order = draw(st.permutations(range(EXPERTS)))
    resident, streamed = draw(st.integers(0, EXPERTS)), draw(st.integers(0, 3))
    spare = draw(st.integers(0, 2))
    held, scratch = order[:resident], order[resident : resident + streamed]
    return np.array(rows).ravel(), top_k, slots(held, resident + spare), slots(scratch, 3)


@given(layer=layers())
def test_every_pair_is_sorted_to_the_slot_scratch_or_expert_that_computes_it(layer):
    flat, top_k, held, scratch = layer

    pairs = sort_pairs(flat, top_k, held, scratch)

    assert sorted(pairs.order) == list(range(len(flat)))
    assert np.array_equal(pairs.rows, pairs.order // top_k)
    parts = (
        (flat[pairs.order[: pairs.hits]], pairs.slot_ends, held.slot_of),
        (flat[pairs.order[pairs.hits : pairs.on_gpu]], pairs.scratch_ends, scratch.slot_of),
        (flat[pairs.order[pairs.on_gpu :]], pairs.miss_ends, np.arange(EXPERTS)),
    )
    for experts, ends, place in parts:
        where = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        assert np.array_equal(place[experts], where)
    missed = flat[pairs.order[pairs.on_gpu :]]
    assert (held.slot_of[missed] == NOWHERE).all()
    assert (scratch.slot_of[missed] == NOWHERE).all()
    assert pairs.distinct == len(set(flat.tolist()) - set(missed.tolist()))


def test_a_freed_slot_is_told_and_given_to_the_next():
    told, spec = [], small_spec(num_experts=EXPERTS)
    made = Slots(
        torch.zeros(2, spec.expert_params), Experts(spec), num_experts=EXPERTS, stale=told.append
    )
    first, _ = made.take(3), made.take(5)

    freed = made.release(3)

    assert freed.data_ptr() == first.data_ptr() == told[0].data_ptr()
    assert made.take(7).data_ptr() == first.data_ptr()
    assert made.slot_of[[3, 5, 7]].tolist() == [NOWHERE, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(128, 64), (32, 16), (20, 10), (8, 4)], ids=str)
@given(seed=st.integers(0, 2**32 - 1))
def test_products_in_one_call_are_bit_by_bit_those_of_single_experts(sizes, dtype, seed):
    """Also where rows do not start at multiples of 16 bytes and the grouped product is refused."""
    hidden, wide = sizes
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, size=6) * (rng.random(6) < 0.7)
    generator = torch.Generator().manual_seed(seed % 2**31)
    gate_up = torch.randn(6, 2 * wide, hidden, generator=generator).to(dtype)
    down = torch.randn(6, hidden, wide, generator=generator).to(dtype)
    x = torch.randn(int(counts.sum()), hidden, generator=generator).to(dtype)
    ends = torch.from_numpy(counts.cumsum().astype(np.int32))

    together = expert_products(x, gate_up, down, ends)

    singly = [
        expert_product(rows, gate_up[number], down[number])
        for number, rows in enumerate(x.split(counts.tolist()))
        if len(rows)
    ]
    assert torch.equal(together, torch.cat([x.new_empty(0, hidden), *singly]))


@given(data=st.data(), tokens=st.integers(1, 12), top_k=st.integers(1, 5))
def test_routing_made_from_counts_has_them_and_no_expert_twice(data, tokens, top_k):
    drawn = data.draw(
        hnp.arrays(np.float64, (tokens, EXPERTS), elements=st.floats(0, 1), unique=True)
    )
    counts = np.bincount(drawn.argsort(axis=1)[:, :top_k].ravel(), minlength=EXPERTS)

    routes = routes_of(counts, tokens, top_k)

    assert routes.shape == (tokens, top_k)
    assert np.array_equal(np.bincount(routes.ravel(), minlength=EXPERTS), counts)
    assert all(len(set(row)) == top_k for row in routes.tolist())


@pytest.mark.parametrize("counts", [[3, 0, 1], [2, 2, 1]], ids=["too many of one", "too many"])
def test_counts_that_no_tokens_have_are_refused(counts):
    with pytest.raises(FormatError, match="whole routing"):
        routes_of(np.array(counts), tokens=2, top_k=2)


def test_random_experts_of_all_layers_lie_apart_and_differ():
    spec = small_spec(num_hidden_layers=3, num_experts=4)

    banks = [
        mixture.experts.bank
        for mixture in random_model(spec, device=torch.device("cpu")).mixtures()
    ]

    assert len({bank.data_ptr() for bank in banks}) == 3
    assert not torch.equal(banks[0], banks[1])
    assert torch.equal(banks[0].sort(0).values, banks[1].sort(0).values)
    assert all(bank.isfinite().all() for bank in banks)
