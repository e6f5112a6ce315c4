"""Synthetic traces: the router's rule, the phases of a block, and what holds of every trace."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import model_specs

from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.model_spec import load_model_spec
from tidesim.resources import bundled_names, sha256_file
from tidesim.runtime.model import Router
from tidesim.trace.io import check_trace, save_trace
from tidesim.trace.passes import Kind, Window
from tidesim.trace.similarity import shared_experts
from tidesim.trace.stats import trace_stats
from tidesim.trace.synth.decoding import expected_steps, probability_for
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.parameters import KIND, load_parameters, save_parameters, to_toml
from tidesim.trace.synth.routing import select_experts

MINI = load_parameters("llada2.0-mini")
SPEC = load_model_spec("llada2.0-mini").model_copy(update={"num_hidden_layers": 4})

SHORT_PROMPTS = MINI.model_copy(
    update={
        "workloads": {
            name: item.model_copy(update={"prompt_tokens": 5})
            for name, item in MINI.workloads.items()
        }
    }
)


def draw(parameters=MINI, model=SPEC, *, requests=2, gen_length=96, seed=0, **options):
    return synthesize(
        parameters, model, requests=requests, gen_length=gen_length, seed=seed, **options
    )


def with_routing(**values):
    """Return mini's parameters with some routing numbers replaced."""
    routing = MINI.routing
    changed = {
        name: getattr(routing, name).model_copy(update={"value": value})
        for name, value in values.items()
    }
    return MINI.model_copy(update={"routing": routing.model_copy(update=changed)})


# ── the router's rule ────────────────────────────────────────────────────────────────────────────


@given(model_specs(), st.integers(0, 1000))
def test_experts_are_those_of_the_models_own_router(model, seed):
    """The router's weight is the identity here: its hidden state is the logits."""
    model = model.model_copy(update={"hidden_size": model.num_experts})
    logits = np.random.default_rng(seed).normal(size=(5, model.num_experts)).astype(np.float32)
    router = Router(model)
    router.load_state_dict(
        {"weight": torch.eye(model.num_experts), "expert_bias": torch.zeros(model.num_experts)}
    )

    expected = router(torch.from_numpy(logits))[0]

    assert select_experts(logits, model).tolist() == expected.tolist()


def test_no_token_uses_more_groups_than_the_limit():
    groups_used = set()
    for pass_ in draw(requests=1):
        if pass_.experts is not None:
            groups = np.sort(pass_.experts // (SPEC.num_experts // SPEC.n_group), axis=-1)
            groups_used |= set((1 + (np.diff(groups, axis=-1) > 0).sum(axis=-1)).ravel().tolist())

    assert max(groups_used) == SPEC.topk_group


# ── steps of a block ─────────────────────────────────────────────────────────────────────────────


def test_expected_steps_at_the_ends_and_by_hand():
    assert expected_steps(32, 0.0) == 32
    assert expected_steps(32, 1.0) == 1
    assert expected_steps(2, 0.5) == pytest.approx(1 + 3 / 4)  # two at once with chance 1/4


@given(st.integers(1, 64), st.floats(1, 64))
def test_the_probability_gives_the_asked_steps(positions, tokens_per_forward):
    wanted = max(1.0, positions / tokens_per_forward)

    steps = expected_steps(positions, probability_for(tokens_per_forward, positions))

    assert steps == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("workload", MINI.workloads)
def test_blocks_take_the_steps_of_their_workload(workload):
    model = SPEC.model_copy(update={"num_hidden_layers": 2})
    trace = draw(model=model, requests=1, gen_length=3200, workload=workload)
    steps = trace_stats(trace, window=Window.BLOCK).steps_per_block

    assert steps == pytest.approx(32 / MINI.workloads[workload].tokens_per_forward, rel=0.08)


# ── phases ───────────────────────────────────────────────────────────────────────────────────────


@given(model_specs(), st.integers(1, 3), st.integers(1, 20), st.integers(0, 100))
@settings(max_examples=30)
def test_every_trace_is_a_valid_file_with_the_passes_of_decoding(
    tmp_path_factory, model, requests, gen_length, seed
):
    path = tmp_path_factory.mktemp("synth") / "t.parquet"
    save_trace(
        draw(SHORT_PROMPTS, model, requests=requests, gen_length=gen_length, seed=seed), path
    )
    trace, T = check_trace(path), model.block_length  # which checks ids, counts and order

    assert trace.meta.provenance == "synthetic"
    for info in trace.meta.requests:
        passes = [p for p in trace if p.request == info.request]
        first, end = info.prompt_tokens // T, -(-(info.prompt_tokens + gen_length) // T)
        prefill = [p for p in passes if p.kind is Kind.PREFILL]
        assert [p.tokens for p in prefill] == ([first * T] if first else [])
        assert [p.block for p in passes if p.kind is Kind.COMMIT] == list(range(first, end))
        for p in passes:
            counts = p.counts(model.num_experts)
            assert (counts.sum(axis=1) == p.tokens * model.num_experts_per_tok).all()
            assert p.context == (0 if p.kind is Kind.PREFILL else p.block * T)


def test_positions_are_decoded_once_and_stay_decoded():
    for _, rows in itertools.groupby(draw(), key=lambda p: (p.request, p.block)):
        steps = [p for p in rows if p.kind is Kind.DENOISE]
        for earlier, later in itertools.pairwise(steps):
            assert earlier.committed.any()
            assert (earlier.committed <= earlier.masked).all()
            assert (later.masked == (earlier.masked & ~earlier.committed)).all()
        assert not steps or (steps[-1].masked == steps[-1].committed).all()


def test_a_prompts_tail_is_never_masked():
    trace = draw(requests=8)
    for info in trace.meta.requests:
        tail = info.prompt_tokens % 32
        first = next(p for p in trace if p.request == info.request and p.kind is Kind.DENOISE)

        assert first.masked.tolist() == [False] * tail + [True] * (32 - tail)


def test_masked_positions_route_alike_and_jump_when_decoded():
    stats = trace_stats(draw(requests=4), window=Window.BLOCK)

    assert stats.just_decoded_overlap < stats.masked.token_overlap < stats.decoded.token_overlap
    steps = [p for p in draw(requests=4) if p.kind is Kind.DENOISE and p.masked.all()]
    ends = [p for p in draw(requests=4) if p.kind is Kind.COMMIT]
    assert mean_distinct(steps) < 0.8 * mean_distinct(ends)


def mean_distinct(passes):
    return np.mean([(p.counts(SPEC.num_experts) > 0).sum(axis=1).mean() for p in passes])


def test_nothing_moves_where_nothing_drifts():
    """Only a position that is decoded changes its experts."""
    still = with_routing(context_keep=1.0, decoded_keep=1.0, masked_keep=1.0)
    steps = [p for p in draw(still, requests=1) if p.kind is Kind.DENOISE]
    pairs = [(a, b) for a, b in itertools.pairwise(steps) if a.block == b.block]

    for earlier, later in pairs:
        kept = shared_experts(earlier.experts, later.experts)[:, ~earlier.committed]
        assert (kept == SPEC.num_experts_per_tok).all()


# ── seeds ────────────────────────────────────────────────────────────────────────────────────────


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path):
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save_trace(draw(seed=seed, requests=1), tmp_path / name)
        digests.append(sha256_file(tmp_path / name))

    assert digests[0] == digests[1] != digests[2]


def test_a_request_is_the_same_however_many_follow():
    alone, first = list(draw(requests=1)), [p for p in draw(requests=3) if p.request == 0]

    assert len(alone) == len(first)
    for a, b in zip(alone, first, strict=True):
        assert np.array_equal(a.counts(SPEC.num_experts), b.counts(SPEC.num_experts))


def test_the_models_own_popularity_is_that_of_every_seed():
    """Counts of different seeds are alike, those of another model seed are not."""
    other = MINI.model_copy(update={"model_seed": MINI.model_seed + 1})
    used = [
        sum(p.counts(SPEC.num_experts) for p in draw(parameters, requests=8, gen_length=32, seed=s))
        for parameters, s in ((MINI, 0), (MINI, 1), (other, 1))
    ]
    alike = [np.corrcoef(used[0].ravel(), each.ravel())[0, 1] for each in used[1:]]

    assert alike[0] > 0.5
    assert alike[1] < 0.2


def test_metadata_name_every_parameter_and_the_seed():
    meta = draw(seed=7, workload="gsm8k").meta

    assert meta.seed == 7
    assert {"workload": "gsm8k", "gen_length": 96}.items() <= meta.settings.items()
    for name, item in MINI.routing:
        assert meta.settings[name] == item.value
    assert "llada2.0-mini" in meta.source


def test_mixed_takes_workloads_in_turn_and_holds_the_last_of_four_turns_out():
    infos = draw(requests=16, gen_length=1).meta.requests

    assert [info.prompt_kind for info in infos] == list(MINI.workloads) * 4
    heldout = [info.request for info in infos if info.split == "heldout"]
    assert heldout == [3, 6, 9, 12]  # one of every four, and one of every workload


# ── files and errors ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", bundled_names(KIND))
def test_parameters_read_back_as_written(name, tmp_path):
    parameters = load_parameters(name)
    save_parameters(parameters, tmp_path / "p.toml")

    assert load_parameters(tmp_path / "p.toml") == parameters
    assert parameters.model == name


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("topic_std", "topic_sdt", "topic_sdt"),
        ("version = 1", "version = 2", "version is 2 but must be 1"),
        ("decoded_keep = { value = ", "decoded_keep = { value = 1", "must be at most 1"),
        ("tokens_per_forward = ", "tokens_per_forward = -", "must be at least 1"),
        ("[routing]", "[routing", "not valid TOML"),
        ("spread_by_layer = { value = [", "spread_by_layer = { value = [-1.0, ", "0 to 100"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(old, new, words, tmp_path):
    text = to_toml(MINI)
    assert old in text
    path = tmp_path / "p.toml"
    path.write_text(text.replace(old, new, 1))

    with pytest.raises(FormatError, match=words) as error:
        load_parameters(path)

    assert str(path) in str(error.value)


def test_unknown_parameters_are_refused_with_the_known_ones():
    with pytest.raises(NotFoundError, match=r"llada2\.0-flash, llada2\.0-mini"):
        load_parameters("llada9")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"requests": 0}, "requests is 0"),
        ({"gen_length": 0}, "gen_length is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workload": "mmlu"}, "mbpp, humaneval, gsm8k, ifeval"),
        ({"block_length": 0}, "block_length is 0"),
        ({"gen_length": 40_000}, "has 32768"),
    ],
)
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(SettingError, match=words):
        draw(**options)


def test_a_layers_place_in_depth_decides_how_many_experts_it_uses():
    """Flash's second layer uses the most, its twelfth among the fewest: so do a half as deep model's."""
    flash = load_parameters("llada2.0-flash")
    model = load_model_spec("llada2.0-flash").model_copy(update={"num_hidden_layers": 17})
    stats = trace_stats(draw(flash, model, requests=1), window=Window.BLOCK)
    distinct = [layer.distinct_experts.mean for layer in stats.by_layer]

    assert distinct.index(max(distinct)) == 1
    assert max(distinct) > 1.5 * distinct[5]
