"""What was measured on LLaDA2.0-flash, as published histograms, against published statistics of it.

The statistics come from all 120 rows of the file; the bundled trace has the 27 layers that every
pass recorded, so its numbers may differ a little and are also checked against a plain count.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from strategies import same_pass

from tidesim.model_spec import MODELS
from tidesim.resources import find
from tidesim.trace.importers import ImportOptions, Missing, import_trace
from tidesim.trace.io import check_trace, load_trace
from tidesim.trace.passes import Window
from tidesim.trace.similarity import cosine, hits, jaccard, popularity, ranking
from tidesim.trace.stats import trace_stats

FILE = Path(__file__).parent / "golden" / "llada2-flash-single-request.json"
NAME, FLASH, MACHINE = "llada2.0-flash-late", "llada2.0-flash", "h100-80gb-sxm-pcie5-xeon48"
BUDGETS = (32, 64, 128)
LEFT_OUT = (11, 13, 14, 17)  # layers that one of the four passes lacks


@pytest.fixture(scope="module")
def rows():
    """Counts by (pass, layer), [E]."""
    cells = {}
    for at, layer, _, pairs in json.loads(FILE.read_text())["rows"]:
        cells[at, layer] = np.zeros(256, dtype=np.int64)
        for expert, tokens in pairs:
            cells[at, layer][expert] = tokens
    assert len(cells) == 120
    return cells


@pytest.fixture(scope="module")
def stats():
    lags = (0, 1, 2, 3)
    return trace_stats(load_trace(NAME), window=Window.BLOCK, lags=lags, budgets=BUDGETS)


def pairs_at(rows, lag):
    """Return counts of both passes wherever a layer has two passes `lag` apart, [P, E] each."""
    both = [(at, layer) for at, layer in rows if (at + lag, layer) in rows]
    return (
        np.array([rows[at, layer] for at, layer in both]),
        np.array([rows[at + lag, layer] for at, layer in both]),
    )


# ── our measures give the published values on all rows ───────────────────────────────────────────


@pytest.mark.parametrize(
    ("lag", "alike", "shared"), [(1, 0.978, 0.84), (2, 0.963, 0.77), (3, 0.951, 0.73)]
)
def test_similarity_of_passes_is_the_published_one(rows, lag, alike, shared):
    earlier, later = pairs_at(rows, lag)

    assert cosine(earlier, later).mean() == pytest.approx(alike, abs=5e-4)
    assert jaccard(earlier, later).mean() == pytest.approx(shared, abs=5e-3)


@pytest.mark.parametrize(
    ("lag", "served"),
    [
        (0, (0.728, 0.920, 0.998)),
        (1, (0.707, 0.889, 0.965)),
        (2, (0.690, 0.870, 0.945)),
        (3, (0.675, 0.856, 0.932)),
    ],
)
def test_hit_ratios_are_the_published_ones(rows, lag, served):
    earlier, later = pairs_at(rows, lag)
    counted = hits(earlier, ranking(earlier), later, BUDGETS).sum(axis=0)

    assert counted / later.sum() == pytest.approx(served, abs=1e-3)


def test_distinct_and_single_token_experts_are_the_published_ones(rows):
    counts = np.array(list(rows.values()))
    active = (counts > 0).sum(axis=1)

    assert active.mean() == pytest.approx(84.0, abs=0.05)
    assert (active.min(), active.max()) == (57, 144)
    assert (counts == 1).sum() / active.sum() == pytest.approx(0.41, abs=0.01)


def test_popularity_in_one_pass_of_layers_18_to_23_is_the_published_one(rows):
    counts = np.array([rows[at, layer] for at in range(81, 85) for layer in range(18, 24)])
    shares = popularity(counts)

    assert [shares[k - 1] for k in (8, 16, 32, 64, 96)] == pytest.approx(
        [0.38, 0.55, 0.75, 0.94, 1.00], abs=0.01
    )


# ── the bundled trace ────────────────────────────────────────────────────────────────────────────


def test_the_trace_is_what_the_importer_makes_of_the_file(tmp_path):
    options = ImportOptions(
        model=MODELS[FLASH], tokens_per_pass=32, context=128, missing=Missing.DROP_LAYERS
    )
    out = tmp_path / "again.parquet"
    import_trace(FILE, out, form="histograms", options=options, prompt_kind="humaneval")

    again, bundled = check_trace(out), check_trace(NAME)

    assert again.meta.model_dump(exclude={"tool_version"}) == bundled.meta.model_dump(
        exclude={"tool_version"}
    )
    assert all(same_pass(a, b) for a, b in zip(again, bundled, strict=True))


def test_the_trace_holds_the_rows_of_the_layers_that_every_pass_has(rows):
    trace = load_trace(NAME)
    layers = [layer for layer in range(1, 32) if layer not in LEFT_OUT]

    assert trace.meta.provenance == "imported"
    assert "MLLM-EP" in trace.meta.source
    assert trace.meta.settings["left_out_layers"] == ", ".join(map(str, LEFT_OUT))
    assert trace.meta.model.name == "llada2.0-flash (27 of 31 mixture layers)"
    assert trace.meta.model.num_experts == MODELS[FLASH].num_experts
    for at, pass_ in enumerate(trace, start=81):
        assert pass_.counts(256).tolist() == [rows[at, layer].tolist() for layer in layers]


def test_its_statistics_are_those_of_a_plain_count(rows, stats):
    kept = {key: counts for key, counts in rows.items() if key[1] not in LEFT_OUT}
    for lag in (1, 2, 3):
        a, b = (part.tolist() for part in pairs_at(kept, lag))
        alike = [
            np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y))
            for x, y in zip(a, b, strict=True)
        ]
        used = [({*np.flatnonzero(x)}, {*np.flatnonzero(y)}) for x, y in zip(a, b, strict=True)]
        best = [sorted(range(256), key=lambda e: (-x[e], e))[:64] for x in a]
        served = sum(y[e] for x, y, top in zip(a, b, best, strict=True) for e in top if x[e])

        assert stats.cosine[lag] == pytest.approx(np.mean(alike))
        assert stats.jaccard[lag] == pytest.approx(
            np.mean([len(x & y) / len(x | y) for x, y in used])
        )
        assert stats.hit_ratio[64][lag] == pytest.approx(served / np.sum(b))


def test_leaving_out_four_layers_moves_the_published_values_little(stats):
    """By at most 0.002 in cosine and Jaccard, 0.01 in hit ratios, 2 distinct experts of 84."""
    assert [stats.cosine[lag] for lag in (1, 2, 3)] == pytest.approx(
        [0.978, 0.963, 0.951], abs=2e-3
    )
    assert [stats.jaccard[lag] for lag in (1, 2, 3)] == pytest.approx([0.84, 0.77, 0.73], abs=5e-3)
    assert [stats.hit_ratio[b][1] for b in BUDGETS] == pytest.approx(
        [0.707, 0.889, 0.965], abs=0.01
    )
    assert stats.distinct_experts.mean == pytest.approx(84.0, abs=2)
    assert stats.single_token_share == pytest.approx(0.41, abs=0.015)


def test_simulate_and_solve_take_it_and_say_that_it_is_imported(ok, refused, tmp_path):
    shared = (NAME, "--hardware", MACHINE, "--budget", 64)
    run = ("simulate", *shared, "--policy", "tide", "--interval", 2, "--no-gains")

    simulated = ok(*run)
    solved = ok("solve", *shared, "--out", tmp_path / "S.json")

    assert simulated["passes"] == 4
    assert simulated["provenance"] == solved["provenance"] == "imported"
    assert simulated["sizes"] == "llada2.0-flash (27 of 31 mixture layers)"
    assert solved["status"] == "optimal"
    assert "window full is not known" in refused(*run, "--engine", "tide-reference")


def test_the_file_is_small():
    assert find("traces", NAME).stat().st_size < 20_000
