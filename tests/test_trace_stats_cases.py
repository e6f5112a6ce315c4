"""Statistics of small traces worked out by hand, and settings out of range."""

import math

import numpy as np
import pytest
from strategies import small_model

from tidesim.errors import SettingError
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta, Window
from tidesim.trace.stats import default_budgets, trace_stats


def one_block(*tables):
    """Return a trace of one block whose step s routes tokens as tables[s], [T, K] per layer."""
    model = small_model()
    rows = [
        Pass(
            request=0,
            block=0,
            step=step,
            kind=Kind.DENOISE,
            tokens=4,
            context=0,
            experts=np.array([table] * 2, dtype=np.uint16),
        )
        for step, table in enumerate(tables)
    ]
    info = RequestInfo(request=0, prompt_tokens=0, generated_tokens=0)
    return Trace(TraceMeta(model=model, provenance="synthetic", requests=(info,)), rows)


def test_a_small_block_has_the_numbers_worked_out_by_hand():
    """Two steps, four tokens, top-2 of 8 experts."""
    first = [[0, 1], [0, 1], [0, 2], [3, 0]]  # counts 4 2 1 1
    second = [[0, 1], [1, 4], [0, 2], [0, 1]]  # counts 3 3 1 0 1
    stats = trace_stats(one_block(first, second), window=Window.BLOCK, budgets=[2, 3, 4])

    assert stats.distinct_experts.mean == 4
    assert stats.distinct_experts.std == 0
    assert stats.cosine[1] == pytest.approx((12 + 6 + 1) / math.sqrt(22 * 20))
    assert stats.jaccard[1] == pytest.approx(3 / 5)
    assert stats.token_overlap[1] == pytest.approx((2 + 1 + 2 + 1) / 8)
    assert [stats.hit_ratio[b][1] for b in (2, 3, 4)] == [6 / 8, 7 / 8, 7 / 8]
    assert [stats.hit_ratio[b][0] for b in (2, 3, 4)] == [12 / 16, 14 / 16, 1]
    assert stats.single_token_share == 4 / 8
    assert stats.popularity == {1: 7 / 16, 2: 12 / 16, 4: 15 / 16, 8: 1}
    assert stats.popularity_in_block == stats.popularity | {3: 14 / 16, 6: 1}
    assert stats.cosine[5] is None
    assert stats.last_to_next_first is None


def test_ties_go_to_the_lower_expert_id():
    """Of experts used equally often, the first are resident."""
    first = [[4, 5], [4, 5], [6, 7], [6, 7]]
    second = [[4, 5], [4, 5], [4, 5], [4, 5]]
    stats = trace_stats(one_block(first, second), window=Window.BLOCK, budgets=[2])

    assert stats.hit_ratio[2][1] == 1.0


def test_experts_that_were_not_used_are_not_resident():
    """Spare slots serve nothing, so the ratio does not hang on which ids are low."""
    stats = trace_stats(
        one_block([[4, 5]] * 4, [[0, 4]] * 4), window=Window.BLOCK, budgets=[2, 4, 8]
    )

    assert [stats.hit_ratio[b][1] for b in (2, 4, 8)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lags": [-1]}, "lag is -1, but a lag is a whole number of steps"),
        ({"lags": [1.5]}, r"lag is 1\.5"),
        ({"lags": [10**30]}, "lag is 10+, .* 0 to 32767"),
        ({"lags": [True]}, "lag is True"),
        ({"lags": []}, "at least one value"),
        ({"budgets": []}, "at least one value"),
        ({"budgets": [1]}, r"budget is 1, .*from 2 \(its top-k\) to 8 \(its experts\)"),
        ({"budgets": [9]}, "budget is 9"),
        ({"budgets": [4.0]}, r"budget is 4\.0"),
        ({"masked_at_most": -1}, "masked_at_most is -1"),
        ({"masked_at_most": 1}, "does not record masked positions"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    """The value, the rule and the model's own limits."""
    with pytest.raises(SettingError, match=message):
        trace_stats(one_block([[0, 1]] * 4), window=Window.BLOCK, **options)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "expected"),
    [
        (256, 8, (32, 64, 128)),
        (64, 4, (8, 16, 32)),
        (8, 2, (2, 4)),
        (9, 2, (2, 3, 5)),
        (2, 2, (2,)),
    ],
)
def test_default_budgets_are_shares_of_the_experts(num_experts, top_k, expected):
    """An eighth, a quarter and half, rounded up, each once, at least top-k."""
    sizes = {"num_experts": num_experts, "num_experts_per_tok": top_k}

    assert default_budgets(small_model().model_copy(update=sizes)) == expected
