"""Tests of columns, which hold one feature of many records."""

import numpy as np

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
