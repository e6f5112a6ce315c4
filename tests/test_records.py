import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidesim.records import Record, Records, Resource, busy_s, check, makespan_s, operation_of


def row(resource, start_s, end_s, label="work"):
    return Record(resource, start_s, end_s, label, request=0, block=1, step=2, layer=3)


def test_rows_stand_in_order_of_start_then_resource_then_end():
    last, cpu, gpu = row(Resource.GPU, 2, 3), row(Resource.CPU, 1, 2), row(Resource.GPU, 1, 2)

    records = Records([last, cpu, gpu])

    assert list(records) == [gpu, cpu, last]
    assert records[1] == cpu
    assert list(records[1:]) == [cpu, last]
    assert records == Records([gpu, last, cpu])
    assert hash(records) == hash(Records([gpu, last, cpu]))
    assert records != Records([])


def test_busy_seconds_name_every_resource():
    records = Records([row(Resource.GPU, 0, 2), row(Resource.GPU, 3, 4), row(Resource.CPU, 1, 9)])

    assert busy_s(records) == {"gpu": 3, "h2d": 0, "d2h": 0, "cpu": 8, "host": 0}
    assert makespan_s(records) == 9
    assert repr(records) == "<Records: 3 operations, 9 s>"


def test_operations_may_follow_without_a_gap_and_overlap_on_other_resources():
    check(Records([row(Resource.GPU, 0, 2), row(Resource.GPU, 2, 3), row(Resource.CPU, 1, 9)]))


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([row(Resource.GPU, 0, 2), row(Resource.GPU, 1, 3)], "before .* has ended"),
        ([row(Resource.GPU, 2, 1)], "end after its start"),
        ([row(Resource.GPU, -1, 1)], "start at 0 or later"),
        ([row(Resource.GPU, 0, math.nan)], "finite"),
        ([row(Resource.GPU, 0, math.inf)], "finite"),
    ],
)
def test_broken_records_are_named(rows, rule):
    with pytest.raises(AssertionError, match=rule):
        check(Records(rows))


def test_measured_records_may_overlap_by_the_clocks_resolution():
    rows = Records([row(Resource.GPU, 0, 2), row(Resource.GPU, 1.999, 3)])

    check(rows, tolerance_s=0.002)


@pytest.mark.parametrize(
    ("label", "operation"),
    [
        ("promote 17", "promote"),
        ("experts cpu (3)", "experts cpu"),
        ("expert 5 gpu", "expert gpu"),
        ("dense MLP", "dense MLP"),
        ("attention", "attention"),
        ("4", ""),
    ],
)
def test_an_operation_is_a_label_without_its_numbers(label, operation):
    assert operation_of(label) == operation


def test_the_table_has_one_column_per_field():
    frame = Records([row(Resource.H2D, 0, 2, "promote 3")]).to_frame()

    assert list(frame.columns) == list(Record._fields)
    assert frame.loc[0].tolist() == ["h2d", 0, 2, "promote 3", 0, 1, 2, 3, 0, 0]
    assert list(Records([]).to_frame().columns) == list(Record._fields)


spans = st.tuples(st.sampled_from(list(Resource)), st.floats(0, 9), st.floats(0, 9))


@given(st.lists(spans))
def test_order_of_rows_given_does_not_matter_to_sums(drawn):
    rows = [row(resource, min(a, b), max(a, b)) for resource, a, b in drawn]

    assert busy_s(Records(rows)) == busy_s(Records(reversed(rows)))
    assert makespan_s(Records(rows)) == max(
        [end for *_, a, b in drawn for end in (a, b)], default=0
    )
