"""Recordings of other projects become traces; what is malformed is refused by line or index."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import rngs, route, small_model

from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.trace.importers import FORMATS, ImportOptions, Missing, get_format, import_trace
from tidesim.trace.io import check_trace
from tidesim.trace.passes import Kind

MODEL = small_model()  # layer 0 dense, mixture layers 1 and 2, 8 experts, top-2, blocks of 4
L, E, K = MODEL.moe_layers, MODEL.num_experts, MODEL.num_experts_per_tok
OPTIONS = ImportOptions(model=MODEL, tokens_per_pass=MODEL.block_length)
IDS = [[[0, 1], [2, 3], [4, 5]], [[7, 6], [5, 4], [3, 2]]]  # [L, 3 tokens, K]


def routed(tokens, seed=0):
    """Draw the experts of some tokens, [L, T, K]."""
    return route(np.random.default_rng(seed), MODEL, tokens).astype(np.int64)


def histogram(ids):
    return np.stack([np.bincount(layer.ravel(), minlength=E) for layer in np.asarray(ids)])


# ── writers: each format as its project writes it ────────────────────────────────────────────────


def llama_csv(passes, *, header=False):
    rows = ["layer,expert"] if header else []
    for ids in passes:
        for layer, tokens in enumerate(ids, start=1):
            rows += [f"{layer},{expert}" for token in tokens for expert in token]
    return "\n".join(rows) + "\n"


def flame_folder(folder, ids, *, type_=None):
    folder.mkdir()
    for number, tokens in enumerate(ids, start=2):
        columns = {
            "scores": pa.array(np.ones_like(tokens, dtype=float).tolist()),
            "indices": pa.array(tokens.tolist(), type_ or pa.list_(pa.int16())),
        }
        pq.write_table(pa.table(columns), folder / f"layer_{number:02}.parquet")
    (folder / "README.md").write_text("not a layer")
    return folder


def sglang_csv(counts):
    rows = [
        f"{layer},{expert},{count}"
        for layer, row in enumerate(counts, start=1)
        for expert, count in enumerate(row)
        if count
    ]
    return "\n".join(["layer_id,expert_id,count", *rows]) + "\n"


def histograms_json(passes, *, first=81, masked=None, leave_out=()):
    masked = masked or range(len(passes), 0, -1)
    rows = [
        [first + at, layer, left, [[int(e), int(row[e])] for e in np.flatnonzero(row)]]
        for at, (counts, left) in enumerate(zip(passes, masked, strict=True))
        for layer, row in enumerate(counts, start=1)
        if (at, layer) not in leave_out
    ]
    return json.dumps({"source": "a paper", "rows": rows})


def imported(path, form, tmp_path, **options):
    """Import and read the trace back, every row checked; return it and its passes."""
    out = tmp_path / "trace.parquet"
    import_trace(path, out, form=form, options=replace(OPTIONS, **options))
    trace = check_trace(out)
    return trace, list(trace)


def write(path, content):
    path.write_text(content) if isinstance(content, str) else np.save(path, content)
    return path


def write_form(form, passes, folder):
    """Write passes of equally many tokens in one of the formats that keep passes apart."""
    counts = np.stack([histogram(ids) for ids in passes])
    stream = np.concatenate(passes, axis=1)  # [L, tokens, K]
    match form:
        case "llama.cpp":
            return write(folder / "t.csv", llama_csv(passes))
        case "vllm":
            return write(folder / "t.npy", stream.transpose(1, 0, 2).astype(np.int16))
        case "flame-moe":
            return flame_folder(folder / "iter_0540", stream)
        case "moe-infinity" | "sglang":
            return write(folder / "t.npy", counts.astype(np.float32))
        case "histograms":
            return write(folder / "t.json", histograms_json(counts))


# ── what comes back ──────────────────────────────────────────────────────────────────────────────


@given(rngs, st.integers(1, 5), st.sampled_from(sorted(FORMATS)))
@settings(max_examples=60)
def test_every_format_brings_back_the_routing_that_was_written(tmp_path_factory, rng, n, form):
    folder = tmp_path_factory.mktemp("import")
    passes = [route(rng, MODEL, MODEL.block_length).astype(np.int64) for _ in range(n)]

    trace, back = imported(write_form(form, passes, folder), form, folder)

    assert trace.meta.provenance == "imported"
    assert trace.meta.model == MODEL
    assert trace.meta.settings["format"] == form
    assert [p.kind for p in back] == [Kind.DENOISE] * n
    for ids, pass_ in zip(passes, back, strict=True):
        assert (pass_.counts(E) == histogram(ids)).all()
        assert pass_.experts is None or (pass_.experts == ids).all()


def test_formats_of_single_tokens_keep_their_experts(tmp_path):
    for form in ("llama.cpp", "vllm", "flame-moe"):
        (tmp_path / form).mkdir()
        path = write_form(form, [routed(4)], tmp_path / form)
        assert imported(path, form, tmp_path)[1][0].experts is not None


def test_a_vllm_buffer_of_all_layers_has_zeros_for_the_dense_ones(tmp_path):
    stream = routed(4).transpose(1, 0, 2).astype(np.int16)
    every = np.concatenate([np.zeros_like(stream[:, :1]), stream], axis=1)

    (alone, passes), (whole, others) = (
        imported(write(tmp_path / f"{number}.npy", array), "vllm", tmp_path)
        for number, array in enumerate((stream, every))
    )

    assert whole.meta.model == alone.meta.model
    assert [p.experts.tolist() for p in others] == [p.experts.tolist() for p in passes]


def test_blocks_follow_each_other_behind_prompt_and_context(tmp_path):
    ids = routed(11)
    path = write(tmp_path / "t.npy", ids.transpose(1, 0, 2).astype(np.int16))

    trace, (prefill, *blocks) = imported(path, "vllm", tmp_path, prompt_tokens=2, context=8)

    assert (prefill.kind, prefill.tokens, prefill.context) == (Kind.PREFILL, 2, 8)
    assert (prefill.histogram == histogram(ids[:, :2])).all()
    assert [(p.block, p.step, p.tokens, p.context) for p in blocks] == [
        (2, 0, 4, 10), (3, 0, 4, 14), (4, 0, 1, 18),
    ]  # fmt: skip
    info = trace.meta.requests[0]
    assert (info.prompt_tokens, info.generated_tokens) == (2, 9)


def test_consecutive_passes_may_be_steps_of_one_block(tmp_path):
    path = write_form("llama.cpp", [routed(4, seed) for seed in range(5)], tmp_path)

    trace, back = imported(path, "llama.cpp", tmp_path, steps_per_block=3)

    assert [(p.block, p.step, p.context) for p in back] == [
        (0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 4), (1, 1, 4),
    ]  # fmt: skip
    assert trace.meta.requests[0].generated_tokens == 8


def test_a_prompt_in_several_passes_becomes_one_prefill(tmp_path):
    parts = [routed(3, 1), routed(2, 2), routed(1, 3)]
    path = write(tmp_path / "t.csv", llama_csv(parts, header=True))

    prefill, decoded = imported(path, "llama.cpp", tmp_path, prompt_tokens=5)[1]

    assert (prefill.histogram == histogram(parts[0]) + histogram(parts[1])).all()
    assert (decoded.tokens, decoded.context) == (1, 5)


def test_sequences_of_moe_infinity_are_requests_and_its_free_entries_are_named(tmp_path):
    counts = np.zeros((3, 3, E))  # its layers may be all hidden layers, the dense one empty
    counts[0, 1:], counts[1, 1:] = histogram(routed(5)), histogram(routed(9))
    path = write(tmp_path / "t.npy", counts)

    with pytest.raises(FormatError, match=r"entry 2 has no routing of layer 1 .*--missing drop-p"):
        imported(path, "moe-infinity", tmp_path)
    trace, back = imported(path, "moe-infinity", tmp_path, missing=Missing.DROP_PASSES)

    assert [(p.request, p.tokens) for p in back] == [(0, 5), (1, 9)]
    assert [info.generated_tokens for info in trace.meta.requests] == [5, 9]
    assert trace.meta.settings["left_out_passes"] == 1


def test_a_distribution_of_sglang_is_one_pass_over_all_its_tokens(tmp_path):
    counts = histogram(routed(40))
    path = write(tmp_path / "expert_distribution_rank0.csv", sglang_csv(counts))

    (pass_,) = imported(path, "sglang", tmp_path)[1]

    assert (pass_.tokens, (pass_.histogram == counts).all()) == (40, True)


def test_flame_lists_may_have_a_fixed_size_and_the_stream_may_be_cut(tmp_path):
    ids = routed(50)
    path = flame_folder(tmp_path / "iter_1", ids, type_=pa.list_(pa.int16(), K))

    back = imported(path, "flame-moe", tmp_path, first_tokens=10)[1]

    assert [p.tokens for p in back] == [4, 4, 2]
    assert (np.concatenate([p.experts for p in back], axis=1) == ids[:, :10]).all()


def test_flame_files_are_read_batch_by_batch(tmp_path, monkeypatch):
    from tidesim.trace.importers import flame_moe  # noqa: PLC0415

    monkeypatch.setattr(flame_moe, "BATCH_ROWS", 3)
    ids = routed(10)

    back = imported(flame_folder(tmp_path / "iter_1", ids), "flame-moe", tmp_path)[1]

    assert (np.concatenate([p.experts for p in back], axis=1) == ids).all()


def test_histograms_say_how_many_tokens_their_steps_wrote(tmp_path):
    counts = [histogram(routed(4, seed)) for seed in range(3)]
    path = write(tmp_path / "t.json", histograms_json(counts, masked=(3, 1, 0)))

    trace, back = imported(path, "histograms", tmp_path, context=8)

    assert trace.meta.source == "a paper."
    assert trace.meta.requests[0].generated_tokens == 3
    assert [(p.block, p.step, p.context) for p in back] == [(2, 0, 8), (2, 1, 8), (2, 2, 8)]
    assert trace.meta.settings["masked_positions"] == "3, 1, 0"


# ── what is missing ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def gappy(tmp_path):
    """Three steps of which the second lacks layer 2."""
    counts = [histogram(routed(4, seed)) for seed in range(3)]
    return write(tmp_path / "t.json", histograms_json(counts, leave_out={(1, 2)})), counts


def test_a_missing_layer_is_refused_with_its_pass_and_the_way_out(gappy, tmp_path):
    with pytest.raises(FormatError, match=r"pass 82 has no routing of layer 2 .*1 of 6 .*drop-la"):
        imported(gappy[0], "histograms", tmp_path)


def test_layers_that_a_pass_lacks_can_be_left_out_and_the_model_says_so(gappy, tmp_path):
    path, counts = gappy
    trace, back = imported(path, "histograms", tmp_path, missing=Missing.DROP_LAYERS)

    assert [p.histogram.tolist() for p in back] == [c[:1].tolist() for c in counts]
    assert trace.meta.model.name == "small (1 of 2 mixture layers)"
    assert trace.meta.model.moe_layers == 1
    assert trace.meta.settings["left_out_layers"] == "2"


def test_passes_that_lack_a_layer_can_be_left_out_and_keep_their_step(gappy, tmp_path):
    path, counts = gappy
    trace, back = imported(path, "histograms", tmp_path, missing=Missing.DROP_PASSES)

    assert [(p.step, p.histogram.tolist()) for p in back] == [
        (0, counts[0].tolist()), (2, counts[2].tolist()),
    ]  # fmt: skip
    assert trace.meta.settings["left_out_passes"] == 1
    assert "left_out_layers" not in trace.meta.settings


def test_a_prompt_of_llama_cpp_lacks_tokens_in_the_last_layer(tmp_path):
    """Only the tokens whose logits are needed get there."""
    prompt, later = routed(5), routed(1, 1)
    path = write(tmp_path / "t.csv", llama_csv([[prompt[0], prompt[1, -1:]], later]))
    options = {"prompt_tokens": 5, "missing": Missing.DROP_PASSES}

    with pytest.raises(FormatError, match=r"the pass at line 1 has no routing of layer 2 for all"):
        imported(path, "llama.cpp", tmp_path)
    trace, (only,) = imported(path, "llama.cpp", tmp_path, **options)

    assert (only.experts == later).all()
    assert (only.context, trace.meta.settings["left_out_passes"]) == (5, 1)


def test_nothing_left_is_refused(tmp_path):
    path = write(tmp_path / "t.npy", np.zeros((2, L, E)))
    for missing in (Missing.DROP_LAYERS, Missing.DROP_PASSES):
        with pytest.raises(FormatError, match=f"--missing {missing} leaves nothing"):
            imported(path, "sglang", tmp_path, missing=missing)


# ── what is malformed ────────────────────────────────────────────────────────────────────────────

GOOD = llama_csv([IDS])  # lines 1 to 6 are layer 1, 7 to 12 layer 2


def lines(**changes):
    rows = GOOD.splitlines()
    for name, row in changes.items():
        rows[int(name[1:]) - 1] = row
    return "\n".join(row for row in rows if row is not None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (lines(_3="1;2"), "t.csv: line 3 is '1;2', not layer,expert in whole numbers"),
        (lines(_3="1,2,3"), "line 3 is '1,2,3', not layer,expert"),
        (lines(_3=""), "line 3 is '', not layer,expert"),
        (lines(_3="1,-2"), "line 3 is '1,-2', not layer,expert"),
        (lines(_3="1,2.0"), "line 3 is '1,2.0'"),
        (lines(_3="1,٣"), "line 3 is"),
        (lines(_3="1," + "9" * 5000), "line 3 is"),
        (lines(_3="0,2"), "line 3: layer is 0, but the mixture layers of small are 1 to 2"),
        (lines(_3="3,2"), "line 3: layer is 3, but the mixture layers"),
        (lines(_8="2,8"), "lines 7 to 8: expert id is 8, not within 0 to 7"),
        (lines(_10="2,5"), "lines 9 to 10: expert id 5 stands twice in one token's top-2"),
        (lines(_6=None), "line 1: 5 rows follow for one layer, which is no multiple of top-2"),
        ("", "holds no rows"),
        ("layer,expert\n", "holds no rows"),
        ("expert,layer\n1,1\n", "line 1 is 'expert,layer'"),
    ],
)
def test_a_malformed_row_of_llama_cpp_is_refused_by_its_line(tmp_path, text, sentence):
    refused(write(tmp_path / "t.csv", text), "llama.cpp", tmp_path, sentence)


def refused(path, form, tmp_path, sentence, **options):
    """Import what must be refused in one sentence that names the file; nothing is left behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(FormatError) as caught:
        imported(path, form, tmp_path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert sentence in message
    assert "\n" not in message
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,2,3\n", "line 1 is '1,2,3', not the header 'layer_id,expert_id,count'"),
        ("layer_id,expert_id,count\n1,2\n", "line 2 is '1,2', not layer_id,expert_id,count"),
        ("layer_id,expert_id,count\n1,8,2\n", "line 2: expert_id is 8, not within 0 to 7"),
        ("layer_id,expert_id,count\n9,1,2\n", "line 2: layer is 9"),
        ("layer_id,expert_id,count\n1,1,2\n1,1,2\n", "line 3: layer 1, expert 1 is counted twice"),
        ("layer_id,expert_id,count\n1,1,0\n", "line 2: layer 1, expert 1 is counted 0 times"),
        ("layer_id,expert_id,count\n1,1,3\n", "layer 1: counts sum to 3, which is no multiple"),
        ("layer_id,expert_id,count\n1,1,4\n", "layer 1: counts give one expert 4 of 2 tokens"),
        ("layer_id,expert_id,count\n", "holds no rows"),
        ("layer_id,expert_id,count\n1,1,1\n1,2,1\n", "the recording has no routing of layer 2"),
    ],
)
def test_a_malformed_row_of_sglang_is_refused_by_its_line(tmp_path, text, sentence):
    refused(write(tmp_path / "t.csv", text), "sglang", tmp_path, sentence)


def changed(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


STREAM = np.array(IDS).transpose(1, 0, 2).astype(np.int16)  # [tokens, L, K]
COUNTS = np.stack([histogram(routed(4, seed)) for seed in range(2)]).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "array", "sentence"),
    [
        ("vllm", changed(STREAM, (2, 1, 0), 8), "[2, 1]: expert id is 8, not within 0 to 7"),
        ("vllm", changed(STREAM, (2, 1, 0), -1), "[2, 1]: expert id is -1"),
        ("vllm", changed(STREAM, (1, 0, 1), 2), "[1, 0]: expert id 2 stands twice"),
        ("vllm", STREAM[:, :1], "holds 1 mixture layers, but small has 2"),
        ("vllm", STREAM[..., :1], "holds 1 experts per token, but small has 2"),
        ("vllm", STREAM.astype(float), "holds float64, but expert ids are integers"),
        ("vllm", np.concatenate([STREAM, STREAM[:, :1]], 1), "layer 0 is dense in small but has"),
        ("moe-infinity", changed(COUNTS.astype(float), (1, 0, 3), 1e300), "[1, 0, 3] is 1e+300"),
        ("vllm", STREAM[0], "shape [2, 2], not an npy array [tokens, mixture layers, top-k]"),
        ("vllm", STREAM[:0], "shape [0, 2, 2], not an npy array"),
        ("moe-infinity", STREAM > 0, "holds bool of shape"),
        ("moe-infinity", COUNTS[..., :5], "holds 5 experts, but small has 8"),
        ("moe-infinity", COUNTS[:, :1], "holds 1 mixture layers, but small has 2"),
        ("moe-infinity", changed(COUNTS, (1, 0, 3), np.nan), "[1, 0, 3] is nan, but counts are"),
        ("moe-infinity", changed(COUNTS, (1, 0, 3), 0.5), "[1, 0, 3] is 0.5, but counts are whole"),
        ("moe-infinity", changed(COUNTS, (1, 0, 3), -1), "[1, 0, 3] is -1.0, but counts are"),
        ("sglang", changed(COUNTS, (1, 1), 2), "entry 1 has no routing of layer 1 for all its tokens"),
        ("sglang", changed(COUNTS, (1, 1), 3 * np.eye(E)[0]), "[1, 1]: counts sum to 3"),
        ("sglang", changed(COUNTS, (1, 1), 4 * np.eye(E)[0]), "[1, 1]: counts give one expert 4"),
        ("sglang", np.concatenate([COUNTS, COUNTS[:, :1]], 1), "[0, 0]: layer 0 is dense in small"),
    ],
)  # fmt: skip
def test_a_wrong_array_is_refused_by_its_index(tmp_path, form, array, sentence):
    refused(write(tmp_path / "t.npy", array), form, tmp_path, sentence)


class Bomb:
    """What is unpickled would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["vllm", "moe-infinity", "sglang"])
def test_nothing_is_unpickled(tmp_path, form):
    array, exploded = tmp_path / "t.npy", tmp_path / "exploded"
    np.save(array, np.array([Bomb(exploded)], dtype=object), allow_pickle=True)
    refused(array, form, tmp_path, "tidesim never unpickles")
    array.write_bytes(pickle.dumps(Bomb(exploded)))
    refused(array, form, tmp_path, "tidesim never unpickles")

    assert not exploded.exists()


def test_a_recording_of_recent_sglang_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "expert_distribution_recorder_1.pt"
    path.write_bytes(b"PK")

    refused(path, "sglang", tmp_path, "write its logical_count with numpy.save")


def test_an_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", a=STREAM)

    refused(tmp_path / "t.npz", "vllm", tmp_path, "an archive of arrays, not an npy array")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x93NUMPY\x03\x00\xff\xff\xff\xff{}", "its header is too long for an npy array"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': ('<i8'\n", "not a plain npy array"),
    ],
)
def test_an_array_with_a_broken_header_is_refused(tmp_path, content, sentence):
    (tmp_path / "t.npy").write_bytes(content)

    refused(tmp_path / "t.npy", "vllm", tmp_path, sentence)


def test_passes_that_lie_too_far_apart_for_one_block_are_refused(tmp_path):
    content = json.loads(histograms_json([histogram(routed(4))] * 2))
    content["rows"][-1][0] = 1 << 60
    path = write(tmp_path / "t.json", json.dumps(content))

    refused(path, "histograms", tmp_path, f"passes are 81 to {1 << 60}, but a block has at most")


def test_flame_rows_are_refused_by_file_and_row(tmp_path):
    ids = routed(20)
    short = flame_folder(tmp_path / "short", ids)
    pq.write_table(
        pq.read_table(short / "layer_03.parquet").slice(0, 19), short / "layer_03.parquet"
    )
    refused(short, "flame-moe", tmp_path, "has not as many rows as layer_02.parquet")
    wrong = flame_folder(tmp_path / "wrong", changed(ids, (1, 7, 0), 9))
    refused(wrong, "flame-moe", tmp_path, "layer_03.parquet: row 7: expert id is 9")
    ragged = tmp_path / "ragged"
    flame_folder(ragged, ids)
    lists = ids[0].tolist()
    lists[5] = [1]
    pq.write_table(pa.table({"indices": lists}), ragged / "layer_02.parquet")
    refused(ragged, "flame-moe", tmp_path, "row 5: indices has 1 ids, not top-2")
    (ragged / "layer_02.parquet").write_bytes(b"PAR1")
    refused(ragged, "flame-moe", tmp_path, "cannot be read as routing of a layer")
    pq.write_table(pa.table({"scores": [1.0]}), ragged / "layer_02.parquet")
    refused(ragged, "flame-moe", tmp_path, "column indices is missing")
    (ragged / "layer_02.parquet").unlink()
    refused(ragged, "flame-moe", tmp_path, "holds 1 layer files, but small has 2")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[1].pop(), "rows[1] is [81, 2, 2]"),
        (lambda rows: rows[1].__setitem__(0, True), "rows[1] is [True, 2"),
        (lambda rows: rows[1].__setitem__(1, 0), "rows[1]: layer is 0, but the mixture layers"),
        (lambda rows: rows[1].__setitem__(1, 1), "rows[1]: pass 81, layer 1 stands twice"),
        (lambda rows: rows[1].__setitem__(2, 7), "rows[1]: pass 81 has 7 masked positions after 2"),
        (lambda rows: rows[1][3].append([8, 1]), "rows[1]: counts hold [8, 1], not [expert id"),
        (lambda rows: rows[1][3].append([1, 0]), "rows[1]: counts hold [1, 0]"),
        (lambda rows: rows[1][3].append([1]), "rows[1]: counts hold [1]"),
        (lambda rows: rows[1][3].append(rows[1][3][0]), "rows[1]: counts hold ["),
        (lambda rows: rows[1].__setitem__(3, [[0, 1]]), "pass 81, layer 2: counts sum to 1"),
        (lambda rows: rows[1].__setitem__(3, [[0, 1], [1, 1]]), "are of 1 and of 4 tokens"),
        (lambda rows: [row.__setitem__(2, 9) for row in rows[2:]], "never masks a position again"),
        (lambda rows: rows.clear(), "holds no rows"),
    ],
)
def test_a_malformed_histogram_is_refused_by_its_row(tmp_path, change, sentence):
    content = json.loads(histograms_json([histogram(routed(4, seed)) for seed in range(2)]))
    change(content["rows"])
    path = write(tmp_path / "t.json", json.dumps(content))

    refused(path, "histograms", tmp_path, sentence)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": 3}', "[" * 100_000])
def test_a_file_that_is_no_json_of_histograms_is_refused(tmp_path, text):
    refused(write(tmp_path / "t.json", text), "histograms", tmp_path, "t.json: ")


# ── options ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_missing_file_is_named(tmp_path, form):
    suffix = {"sglang": ".csv"}.get(form, "")
    with pytest.raises(NotFoundError, match="none"):
        imported(tmp_path / f"none{suffix}", form, tmp_path)


def test_options_a_format_has_no_use_for_are_refused():
    with pytest.raises(SettingError, match=r"--tokens-per-pass is not for --from moe-infinity"):
        get_format("moe-infinity", ["tokens_per_pass"])
    with pytest.raises(SettingError, match=r"--from gguf: not known; use one of: llama\.cpp, "):
        get_format("gguf")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens_per_pass": 0}, "--tokens-per-pass is 0 but must be at least 1"),
        ({"steps_per_block": 0}, "--steps-per-block is 0"),
        ({"prompt_tokens": -1}, "--prompt-tokens is -1 but must be at least 0"),
        ({"context": -1}, "--context is -1"),
        ({"first_tokens": 0}, "--first-tokens is 0"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, sentence):
    with pytest.raises(SettingError, match=sentence):
        imported(write(tmp_path / "t.npy", STREAM), "vllm", tmp_path, **options)


def test_a_prompt_that_ends_inside_a_pass_is_refused(tmp_path):
    path = write(tmp_path / "t.csv", llama_csv([routed(4), routed(4)]))

    refused(path, "llama.cpp", tmp_path, "--prompt-tokens is 6, but the pass at", prompt_tokens=6)
    refused(path, "llama.cpp", tmp_path, "but the file ends at 8 tokens", prompt_tokens=9)


def test_steps_of_one_block_that_compute_different_tokens_are_refused(tmp_path):
    path = write(tmp_path / "t.csv", llama_csv([routed(4), routed(1)]))

    refused(path, "llama.cpp", tmp_path, "computes 1 tokens after 4 in the same", steps_per_block=2)


def test_the_command_imports_and_says_what_it_was_told(ok, refused, tmp_path):
    from tidesim.resources import data_dir  # noqa: PLC0415

    config = data_dir("traces") / "tide-tiny" / "config.json"
    rng = np.random.default_rng(0)
    ids = rng.random((40, 4, 64)).argsort(-1)[..., :4].astype(np.int16)
    np.save(tmp_path / "t.npy", ids)
    command = (
        "trace", "import", tmp_path / "t.npy", "--from", "vllm", "--model", config,
        "--out", tmp_path / "t.parquet",
    )  # fmt: skip

    answer = ok(*command, "--prompt-tokens", 8, "--source", "here", "--prompt-kind", "chat")
    info = ok("trace", "info", tmp_path / "t.parquet")

    assert (answer["passes"], answer["mixture_layers"], answer["source"]) == (2, 4, "here")
    assert answer["settings"] == {
        "format": "vllm", "file": "t.npy", "tokens_per_pass": 32, "steps_per_block": 1,
        "prompt_tokens": 8, "context": 0,
    }  # fmt: skip
    assert info["settings"] == answer["settings"]
    assert info["requests"]["prompt_kind"] == {"chat": 1}
    assert "--missing is not for --from vllm" in refused(*command, "--missing", "drop-passes")
    assert "no such model" in refused(*command, "--model", "none")
