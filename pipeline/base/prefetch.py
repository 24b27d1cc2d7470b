"""Prefetching: a thread makes the next items while earlier ones are used."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# Interval at which a thread with a full queue checks whether its items are still needed.
_POLL_SECONDS = 0.1


def prefetch(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Yields items in order while a thread makes the next ones.

    The two sides overlap while one of them waits for a device or runs without Python's global
    interpreter lock.

    Args:
        items: an iterable. The thread starts to iterate over it at the first `next`.
        depth: maximum number of finished items that wait. One more item may be in
            preparation.

    Raises:
        Exception: the exception that `items` raised, after the items before it.
    """
    results: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(is_item: bool, value: Item | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                results.put((is_item, value), timeout=_POLL_SECONDS)
                return

    def make_items() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    return
            put(False, None)
        # The consumer raises every exception again, even KeyboardInterrupt.
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=make_items, daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = results.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stopped.set()
        thread.join()
