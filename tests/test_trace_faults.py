"""Damaged or wrong trace files are refused in one sentence that names the place."""

import contextlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from strategies import sample_trace

from tidesim.errors import FormatError, NotFoundError
from tidesim.trace import io
from tidesim.trace.io import check_trace, load_trace, save_trace
from tidesim.trace.passes import RequestInfo


@pytest.fixture
def trace():
    return sample_trace()


@pytest.fixture
def file(trace, tmp_path):
    path = tmp_path / "t.parquet"
    save_trace(trace, path)
    return path


def rewrite(path, *, columns=None, meta=None):
    """Write the file again with other columns or metadata, past every check of the writer."""
    source = pq.ParquetFile(path)
    table, entries = source.read(), dict(source.metadata.metadata)
    for name, change in (columns or {}).items():
        index = table.schema.names.index(name)
        values = table.column(name).to_pylist()
        change(values)
        type_ = table.schema.field(name).type
        if pa.types.is_list(type_):
            type_ = pa.list_(type_.value_type)
        table = table.set_column(index, pa.field(name, type_), pa.array(values, type_))
    entries |= meta or {}
    entries = {k: v for k, v in entries.items() if v is not None and k != b"ARROW:schema"}
    pq.write_table(table.replace_schema_metadata(entries), path)


def put(row, value):
    return lambda values: values.__setitem__(row, value)


def put_inside(row, position, value):
    return lambda values: values[row].__setitem__(position, value)


class TestDamage:
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
    def test_a_truncated_file_is_named(self, file, share):
        """It is refused when opened, in one sentence."""
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])

        with pytest.raises(FormatError, match=r"t\.parquet: cannot be read as Parquet .*damaged"):
            load_trace(file)

    def test_a_file_that_is_no_parquet_is_named(self, tmp_path):
        """So is a text file."""
        (tmp_path / "t.parquet").write_text("layer,expert\n" * 99)

        with pytest.raises(FormatError, match="cannot be read as Parquet"):
            load_trace(tmp_path / "t.parquet")

    def test_flipped_bits_never_surface_as_another_error(self, file):
        """Page checksums and row checks turn damage into a FormatError."""
        data, rng, refused = file.read_bytes(), random.Random(0), 0
        for _ in range(150):
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            with contextlib.suppress(FormatError):
                check_trace(file)
                refused -= 1
            refused += 1
        assert refused > 75

    def test_damaged_rows_are_found_while_reading(self, file):
        """A flipped bit in the first data page fails its checksum."""
        data = bytearray(file.read_bytes())
        column = pq.ParquetFile(file).metadata.row_group(0).column(8)
        data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
        file.write_bytes(data)
        loaded = load_trace(file)

        with pytest.raises(FormatError, match="cannot be read as Parquet"):
            list(loaded)

    def test_a_missing_file_lists_the_bundled_names(self):
        """Neither a file nor a bundled trace."""
        with pytest.raises(NotFoundError, match="no-such: no such file and no bundled name"):
            load_trace("no-such")


L, K, E, T = 2, 2, 8, 4  # small_model's sizes

ROW_FAULTS = {
    "id too large": ({"experts": put_inside(2, 1, E)}, r"row 2 .*experts holds id 8.*below.* 8"),
    "id twice": (
        {"experts": lambda v: v[2].__setitem__(1, v[2][0])},
        r"row 2 .*holds id \d twice in the top-2 of one token",
    ),
    "experts short": ({"experts": lambda v: v[2].pop()}, r"row 2 .*experts has 15 values, not 16"),
    "masked long": ({"masked": lambda v: v[3].append(True)}, r"row 3 .*masked has 5 values, not 4"),
    "committed short": ({"committed": lambda v: v[3].pop()}, r"committed has 3 values, not 4"),
    "counts short": ({"counts": lambda v: v[5].pop()}, r"row 5 .*counts has 15 values, not 16"),
    "counts sum": (
        {"counts": lambda v: v[5].__setitem__(8, v[5][8] + 1)},
        r"row 5 .*counts of mixture layer 1 sum to 9, not 8 \(4 tokens × top-2\)",
    ),
    "count over tokens": (
        {"counts": put(0, [5, 3, 0, 0, 0, 0, 0, 0, 4, 4, 0, 0, 0, 0, 0, 0])},
        r"row 0 .*layer 0 give one expert 5 of 4 tokens",
    ),
    "neither": ({"experts": put(2, None)}, r"row 2 .*neither of experts and counts"),
    "both": ({"counts": lambda v: v.__setitem__(2, v[0])}, r"row 2 .*both of experts and counts"),
    "kind": ({"kind": put(4, "verify")}, r"row 4: kind is 'verify', not one of prefill, denoise"),
    "null kind": ({"kind": put(4, None)}, r"column kind is null in row 4"),
    "null number": ({"tokens": put(4, None)}, r"column tokens is null in row 4"),
    "null in list": ({"experts": put_inside(2, 1, None)}, r"column experts has a null inside"),
    "negative request": ({"request": put(0, -1)}, r"row 0 .*request is -1, not within 0"),
    "negative block": ({"block": put(1, -2)}, r"row 1 .*block is -2, not within -1"),
    "negative step": ({"step": put(1, -1)}, r"row 1 .*step is -1, not within 0 to 32767"),
    "no tokens": ({"tokens": put(1, 0)}, r"row 1 .*tokens is 0, not within 1"),
    "negative context": ({"context": put(1, -1)}, r"row 1 .*context is -1"),
    "block of prefill": ({"block": put(0, 0)}, r"row 0 .*kind is prefill in block 0"),
    "block of denoise": ({"block": put(1, -1)}, r"row 1 .*kind is denoise in block -1"),
    "step of prefill": ({"step": put(0, 1)}, r"row 0 .*step of the prefill is 1"),
    "request order": ({"request": lambda v: v.reverse()}, r"row 5 .*follows request 3, block 1"),
    "step order": ({"step": put(2, 0)}, r"row 2 .*follows request 0, block 1, step 0.*sort them"),
    "commit first": ({"kind": put(1, "commit")}, r"row 1 .*commit has no denoise pass"),
    "commit twice": ({"kind": put(3, "commit")}, r"row 4 .*commit follows the commit"),
    "unlisted request": (
        {"request": lambda v: v.__setitem__(slice(5, 10), [4] * 5)},
        r"request 4 has rows but the metadata does not list it",
    ),
    "request twice": (
        {"request": lambda v: v.__setitem__(slice(5, 10), [0] * 5)},
        r"row 5 .*follows request 0, block 1, step 3.*sort them",
    ),
}


class TestRows:
    @pytest.mark.parametrize("fault", ROW_FAULTS)
    def test_a_broken_row_is_named(self, file, fault):
        """The message names file, row, value and rule; opening alone does not read rows."""
        columns, message = ROW_FAULTS[fault]
        rewrite(file, columns=columns)
        load_trace(file)

        with pytest.raises(FormatError, match=message) as caught:
            check_trace(file)
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)

    def test_a_block_keeps_its_size(self, file):
        """Tokens may not change between passes of a block."""
        halves = {
            "tokens": put(2, T // 2),
            "masked": put(2, None),
            "committed": put(2, None),
            "experts": lambda v: v.__setitem__(2, v[2][: L * K * T // 2]),
        }
        rewrite(file, columns=halves)

        with pytest.raises(FormatError, match=r"row 2 .*tokens is 2 after 4 in the same block"):
            check_trace(file)

    def test_order_is_checked_across_row_groups(self, file, monkeypatch):
        """The last row of a group is compared with the first of the next."""
        rewrite(file, columns={"step": put(3, 0)})
        monkeypatch.setattr(io, "GROUP_ROWS", 1)

        with pytest.raises(FormatError, match=r"row 3 \(request 0, block 1, step 0\).*sorted"):
            check_trace(file)

    def test_a_request_of_the_metadata_needs_rows(self, file, trace):
        """A request that was lost is not passed over in silence."""
        extra = RequestInfo(request=7, prompt_tokens=1, generated_tokens=1)
        meta = trace.meta.model_copy(update={"requests": (*trace.meta.requests, extra)})
        rewrite(file, meta={b"meta": meta.model_dump_json().encode()})

        with pytest.raises(FormatError, match="lists request 7 but no row has it"):
            check_trace(file)


class TestColumnsAndMetadata:
    def test_a_row_group_too_large_for_memory_is_refused_on_opening(self, file, monkeypatch):
        """However small it is in the file, where it is compressed."""
        monkeypatch.setattr(io, "LARGEST_GROUP_BYTES", 100)

        with pytest.raises(FormatError, match=r"row group 0 holds \d+ bytes, more than 100"):
            load_trace(file)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop_columns("masked"), "column masked is missing"),
            (lambda t: t.append_column("gpu", t.column("step")), "column gpu is not part of"),
            (lambda t: t.append_column("step", t.column("step")), "step appears more than once"),
            (
                lambda t: t.set_column(2, "step", t.column("step").cast(pa.int64())),
                "column step has type int64, not int16",
            ),
            (
                lambda t: t.set_column(3, "kind", t.column("kind").cast(pa.string())),
                "column kind has type string, not dictionary<string>",
            ),
            (
                lambda t: t.set_column(
                    8, "experts", t.column("experts").cast(pa.list_(pa.int32()))
                ),
                r"column experts has type list<int32>, not list<uint16>",
            ),
            (lambda t: t.slice(0, 0), "holds no passes"),
        ],
    )
    def test_wrong_columns_are_refused_on_opening(self, file, change, message):
        """Missing, unknown, doubled or mistyped columns and an empty table, before any row."""
        source = pq.ParquetFile(file)
        entries = {k: v for k, v in source.metadata.metadata.items() if k != b"ARROW:schema"}
        pq.write_table(change(source.read()).replace_schema_metadata(entries), file)

        with pytest.raises(FormatError, match=message):
            load_trace(file)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({b"format": b"other"}, "format is other, not tidesim-trace"),
            ({b"format": None}, "format is not stated"),
            ({b"version": b"2"}, "version is 2, but this tidesim reads 1"),
            ({b"version": None}, "version is not stated"),
            ({b"meta": None}, "metadata key meta is missing"),
            ({b"meta": b"{"}, "meta: Invalid JSON"),
            ({b"meta": b"\xff"}, "meta"),
        ],
    )
    def test_wrong_metadata_is_refused_on_opening(self, file, entries, message):
        """Another format or version, or metadata that is not there."""
        rewrite(file, meta=entries)

        with pytest.raises(FormatError, match=message):
            load_trace(file)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (('"provenance":"synthetic"', '"provenance":"guessed"'), r"meta\.provenance: .*guess"),
            (('"settings":{"a":0.5}', '"settings":{"a":NaN}'), r"meta\.settings\.a"),
            (('"seed":null', '"seed":null,"color":1'), r"meta\.color: Extra inputs"),
            (('"request":3', '"request":0'), "lists request 0 twice"),
            (('"request":3', '"request":-3'), r"meta\.requests\.1\.request"),
            (('"num_experts":8', '"num_experts":"many"'), r"meta\.model\.num_experts"),
            (('"first_k_dense_replace":1', '"first_k_dense_replace":3'), "no mixture layers"),
            (
                ('"num_experts":8', '"num_experts":131072'),
                r"num_experts: .* less than or equal to 65536",
            ),
        ],
    )
    def test_wrong_values_in_the_metadata_are_named(self, file, trace, change, message):
        """The key, the value and the rule."""
        text = trace.meta.model_dump_json()
        assert change[0] in text
        rewrite(file, meta={b"meta": text.replace(*change).encode()})

        with pytest.raises(FormatError, match=message):
            load_trace(file)
