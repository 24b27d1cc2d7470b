"""Tests of columns, which hold one feature of many records, and of groups of rows."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import arrays
from tools.verification.record_checks import Column


def test_column_operations_on_records_of_different_lengths() -> None:
    """The column has three records of 2, 0 and 3 numbers."""
    column = Column(np.array([5, 7, 1, 3, 3]), np.array([2, 0, 3]))
    assert column.starts.tolist() == [0, 2, 2]
    assert column.sums().tolist() == [12, 0, 7]
    assert column.any(column.values == 1).tolist() == [False, False, True]
    assert column.not_ascending().tolist() == [False, False, True]
    descending = Column(np.array([7, 5, 1, 3, 4]), np.array([2, 0, 3]))
    assert descending.not_ascending().tolist() == [True, False, False]


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 20))
def test_groups_of_rows_end_when_they_are_full(sizes: list[int], limit: int) -> None:
    bounds = arrays.group_bounds(np.array(sizes, int), limit).tolist()
    assert bounds[0] == 0 and bounds[-1] == len(sizes)
    assert bounds == sorted(set(bounds))
    for begin, end in itertools.pairwise(bounds):
        assert sum(sizes[begin : end - 1]) < limit
    assert arrays.group_bounds(np.array([3, 3, 3, 9, 1]), 6).tolist() == [0, 2, 4, 5]
