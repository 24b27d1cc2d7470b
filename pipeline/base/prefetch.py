"""Items made in a thread while earlier ones are used."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# How often a thread with a full queue looks whether anyone still wants its items.
_PATIENCE = 0.1


def ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Yields items in their order; a thread makes the next ones meanwhile.

    It saves the time in which one side waits for a device, or computes without Python's lock.

    Args:
        items: iterated over in the thread, from the first `next` on.
        depth: at most so many items wait to be used; one more is being made.

    Raises:
        Exception: what `items` raised, after the items before it.
    """
    made: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(depth)
    unwanted = threading.Event()

    def put(is_item: bool, value: Item | BaseException | None) -> None:
        while not unwanted.is_set():
            with contextlib.suppress(queue.Full):
                made.put((is_item, value), timeout=_PATIENCE)
                return

    def make() -> None:
        try:
            for item in items:
                put(True, item)
                if unwanted.is_set():
                    return
            put(False, None)
        # Whatever it is, it is raised again where the items are used.
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = made.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        unwanted.set()
        thread.join()
