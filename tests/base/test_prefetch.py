"""Tests of prefetching: the order of items, exceptions, and the end of the thread."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.prefetch import prefetch


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers())), st.integers(1, 4))
def test_items_are_yielded_in_order(items, depth) -> None:
    assert list(prefetch(items, depth)) == items


def test_only_depth_plus_one_items_are_made_in_advance() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    iterator = prefetch(items(), depth=2)
    assert next(iterator) == 0
    deadline = time.monotonic() + 10.0
    # Two items wait in the queue. One more is made, which has to wait for room in the queue.
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert made == [0, 1, 2, 3]
    iterator.close()


def test_no_item_is_made_before_the_first_next() -> None:
    made: list[int] = []
    iterator = prefetch(made.append(number) for number in range(3))
    time.sleep(0.05)
    assert made == []
    assert list(iterator) == [None, None, None]


@pytest.mark.parametrize("error", [InputError("broken record"), KeyboardInterrupt()])
def test_exception_of_the_items_is_raised_after_them(error) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    iterator = prefetch(items())
    assert next(iterator) == 1
    with pytest.raises(type(error)) as raised:
        next(iterator)
    assert raised.value is error


def test_thread_ends_when_the_iterator_is_closed() -> None:
    before = threading.active_count()
    iterator = prefetch(iter(int, 1))
    assert next(iterator) == 0
    assert threading.active_count() == before + 1
    iterator.close()
    assert threading.active_count() == before
