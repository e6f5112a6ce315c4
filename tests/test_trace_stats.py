"""Every statistic against a slow oracle that only uses Python loops."""

import json
import math
from itertools import pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

from tidesim.errors import SettingError
from tidesim.trace.io import load_trace, save_trace
from tidesim.trace.passes import Kind, Window
from tidesim.trace.stats import default_budgets, trace_stats

LAGS = (0, 1, 2, 5)


def mean_or_none(values):
    values = list(values)
    return fmean(values) if values else None


def ratio_or_none(over, under):
    return over / under if under else None


class Oracle:
    """The statistics of `trace_stats`, computed from the definitions."""

    def __init__(self, trace, window, *, masked_at_most=None):
        self.model = trace.meta.model
        self.layers = range(self.model.moe_layers)
        rows = list(trace)
        self.steps = [
            (p, self.counts(rows[:n], p, window))
            for n, p in enumerate(rows)
            if p.kind is Kind.DENOISE
        ]
        self.all_steps = self.steps
        if masked_at_most is not None:
            self.steps = [s for s in self.steps if sum(s[0].masked) <= masked_at_most]

    def counts(self, before, pass_, window):
        parts = [pass_]
        if window is Window.FULL:
            parts += [
                p for p in before if p.request == pass_.request and p.kind is not Kind.DENOISE
            ]
        return [
            [sum(self.hits_of(p, layer, e) for p in parts) for e in range(self.model.num_experts)]
            for layer in self.layers
        ]

    @staticmethod
    def hits_of(pass_, layer, expert):
        if pass_.histogram is not None:
            return int(pass_.histogram[layer, expert])
        return int((pass_.experts[layer] == expert).sum())

    def active(self, counts, layer):
        return {e for e, n in enumerate(counts[layer]) if n}

    def pairs(self, lag):
        for a in self.steps:
            for b in self.steps:
                same = (a[0].request, a[0].block) == (b[0].request, b[0].block)
                if same and b[0].step - a[0].step == lag:
                    yield a, b

    def distinct(self, layers):
        values = [len(self.active(c, layer)) for _, c in self.steps for layer in layers]
        return {
            "mean": mean_or_none(values),
            "std": pstdev(values) if values else None,
        }

    def cosine(self, pairs, layers):
        def one(a, b):
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

        return mean_or_none(one(a[layer], b[layer]) for (_, a), (_, b) in pairs for layer in layers)

    def jaccard(self, lag):
        return mean_or_none(
            len(self.active(a, layer) & self.active(b, layer))
            / len(self.active(a, layer) | self.active(b, layer))
            for (_, a), (_, b) in self.pairs(lag)
            for layer in self.layers
        )

    def hit_ratio(self, budget, lag):
        hit = total = 0
        for (_, a), (_, b) in self.pairs(lag):
            for layer in self.layers:
                order = sorted((-n, e) for e, n in enumerate(a[layer]) if n)
                hit += sum(b[layer][e] for _, e in order[:budget])
                total += sum(b[layer])
        return ratio_or_none(hit, total)

    def overlap(self, lag, chosen=None):
        shares = []
        for (p, _), (q, _) in self.pairs(lag):
            if p.experts is None or (chosen and p.masked is None):
                continue
            for token in range(p.tokens):
                if chosen and (bool(p.masked[token]), bool(q.masked[token])) != chosen:
                    continue
                for layer in self.layers:
                    common = set(p.experts[layer, token]) & set(q.experts[layer, token])
                    shares.append(len(common) / self.model.num_experts_per_tok)
        return mean_or_none(shares)

    def distinct_among(self, masked):
        sizes = []
        for p, _ in self.steps:
            if p.experts is None or p.masked is None:
                continue
            tokens = [t for t in range(p.tokens) if bool(p.masked[t]) is masked]
            if tokens:
                sizes += [len({*p.experts[layer, tokens].ravel()}) for layer in self.layers]
        return mean_or_none(sizes)

    def blocks(self):
        found = []
        for p, _ in self.all_steps:
            if (p.request, p.block) not in found:
                found.append((p.request, p.block))
        return found

    def of_block(self, block, steps):
        return [s for s in steps if (s[0].request, s[0].block) == block]

    def last_to_next_first(self):
        pairs = []
        for before, after in self.neighbours():
            last, first = (
                self.of_block(before, self.all_steps)[-1],
                self.of_block(after, self.all_steps)[0],
            )
            kept = [id(s) for s in self.steps]
            if id(last) in kept and id(first) in kept:
                pairs.append((last, first))
        return self.cosine(pairs, self.layers)

    def same_step(self):
        pairs = [
            (a, b)
            for before, after in self.neighbours()
            for a in self.of_block(before, self.steps)
            for b in self.of_block(after, self.steps)
            if a[0].step == b[0].step
        ]
        return self.cosine(pairs, self.layers)

    def neighbours(self):
        blocks = self.blocks()
        return [(a, b) for a, b in pairwise(blocks) if a[0] == b[0]]

    def popularity_in_block(self, k):
        held = [self.of_block(block, self.steps) for block in self.blocks()]
        return mean_or_none(self.popularity(k, steps) for steps in held if steps)

    def popularity(self, k, steps=None):
        steps = self.steps if steps is None else steps
        shares = []
        for layer in self.layers:
            totals = [sum(c[layer][e] for _, c in steps) for e in range(self.model.num_experts)]
            if not sum(totals):
                return None
            shares.append(sum(sorted(totals, reverse=True)[:k]) / sum(totals))
        return fmean(shares)

    def single(self):
        values = [n for _, c in self.steps for layer in self.layers for n in c[layer] if n]
        return ratio_or_none(values.count(1), len(values))

    def to_json(self, lags, budgets):
        powers = [2**n for n in range(20) if 2**n <= self.model.num_experts]
        sizes = sorted({*powers, *(3 * k for k in powers if 3 * k <= self.model.num_experts)})
        return {
            "passes": len(self.steps),
            "blocks": len(self.blocks()),
            "steps_per_block": len(self.all_steps) / len(self.blocks()),
            "distinct_experts": self.distinct(self.layers),
            "cosine": {str(g): self.cosine(self.pairs(g), self.layers) for g in lags},
            "jaccard": {str(g): self.jaccard(g) for g in lags},
            "token_overlap": {str(g): self.overlap(g) for g in lags},
            "hit_ratio": {str(b): {str(g): self.hit_ratio(b, g) for g in lags} for b in budgets},
            "between_blocks": {
                "last_to_next_first": self.last_to_next_first(),
                "same_step": self.same_step(),
            },
            "popularity": {str(k): self.popularity(k) for k in powers},
            "popularity_in_block": {str(k): self.popularity_in_block(k) for k in sizes},
            "single_token_share": self.single(),
            "masked": {
                "distinct_experts": self.distinct_among(True),
                "token_overlap": self.overlap(1, (True, True)),
            },
            "decoded": {
                "distinct_experts": self.distinct_among(False),
                "token_overlap": self.overlap(1, (False, False)),
            },
            "just_decoded": {"token_overlap": self.overlap(1, (True, False))},
            "by_layer": [
                {
                    "layer": layer,
                    "distinct_experts": self.distinct([layer]),
                    "cosine": {str(g): self.cosine(self.pairs(g), [layer]) for g in lags},
                }
                for layer in self.layers
            ],
        }


def assert_alike(got, expected, path=""):
    """Compare nested JSON values; numbers to 1e-9."""
    if isinstance(expected, dict):
        assert list(got) == list(expected), path
        for key in expected:
            assert_alike(got[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), path
        for n, item in enumerate(expected):
            assert_alike(got[n], item, f"{path}[{n}]")
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-7), path
    else:
        assert got == expected, path


def check(trace, window, *, masked_at_most=None, lags=LAGS):
    budgets = default_budgets(trace.meta.model)
    got = trace_stats(trace, window=window, lags=lags, masked_at_most=masked_at_most).to_json()
    expected = Oracle(trace, window, masked_at_most=masked_at_most).to_json(lags, budgets)
    assert_alike({key: got[key] for key in expected}, expected)
    return got


@pytest.mark.parametrize("window", Window)
@given(traces())
@settings(max_examples=20, deadline=None)
def test_every_statistic_equals_its_definition(window, trace):
    """In both windows, whatever the trace records."""
    got = check(trace, window)

    assert got["window"] == str(window)
    assert (got["model"], got["provenance"]) == (trace.meta.model.name, trace.meta.provenance)
    assert got["requests"] == len(trace.meta.requests)


@given(traces(form="experts"), st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_masked_at_most_keeps_late_passes_and_their_pairs(trace, limit):
    """A pair counts when both its passes qualify; without any, numbers are None."""
    denoise = [p for p in trace if p.kind is Kind.DENOISE]
    if any(p.masked is None for p in denoise):
        with pytest.raises(SettingError, match="does not record masked positions"):
            trace_stats(trace, window=Window.BLOCK, masked_at_most=limit)
        return
    got = check(trace, Window.BLOCK, masked_at_most=limit)

    assert got["passes"] == sum(int(p.masked.sum()) <= limit for p in denoise)


@given(traces())
@settings(max_examples=20, deadline=None)
def test_statistics_stay_within_their_ranges(trace):
    """Shares within 0 and 1, lag 0 exactly 1, hits rise with the budget, and never NaN."""
    model = trace.meta.model
    budgets = range(model.num_experts_per_tok, model.num_experts + 1)
    for window in Window:
        stats = trace_stats(trace, window=window, budgets=list(budgets))

        assert stats.cosine[0] == stats.jaccard[0] == 1.0
        assert stats.token_overlap[0] in {1.0, None}
        assert all(x is None or 0 <= x <= 1 + 1e-12 for x in stats.cosine.values())
        for lag in LAGS:
            curve = [stats.hit_ratio[budget][lag] for budget in budgets]
            if curve[0] is not None:
                assert curve == sorted(curve)
                assert curve[-1] == 1.0 or lag > 0
        assert model.num_experts_per_tok <= stats.distinct_experts.mean <= model.num_experts
        json.dumps(stats.to_json(), allow_nan=False)


@given(traces(form="counts"))
@settings(max_examples=20, deadline=None)
def test_a_trace_of_counts_has_no_token_statistics(trace):
    """What was not recorded is None, and all else is there."""
    stats = trace_stats(trace, window=Window.BLOCK)

    assert set(stats.token_overlap.values()) == {None}
    assert stats.masked.distinct_experts is stats.decoded.token_overlap is None
    assert stats.distinct_experts.mean is not None


@given(traces())
@settings(max_examples=20, deadline=None)
def test_statistics_of_a_file_equal_those_of_the_trace(tmp_path_factory, trace):
    """Streaming from Parquet changes nothing."""
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    save_trace(trace, path)

    assert trace_stats(load_trace(path), window=Window.FULL) == trace_stats(
        trace, window=Window.FULL
    )
