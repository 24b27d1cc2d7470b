"""A forecast of the quickstart's whole time, from the first steps of its first training."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage.manifest import TRAIN
from tools.report.runs import METRICS_FILE, read_metrics

_RATE = "examples_per_second"
# Between two looks at the log.
_POLL_SECONDS = 0.5


def training_seconds(log: Location, num_steps: int, batch_size: int) -> float | None:
    """Returns the seconds that the remaining steps of a training take without evaluation.

    Args:
        log: the directory of `run_distill`.
        num_steps: of the training.
        batch_size: examples of a step.

    Returns:
        None before the second line of the log: the first one's time has the compiler in it.
    """
    if not (log / METRICS_FILE).is_file():
        return None
    lines = [line for line in read_metrics(log / METRICS_FILE) if line["split"] == TRAIN]
    if len(lines) < 2:
        return None
    return (num_steps - lines[-1]["step"]) * batch_size / lines[-1][_RATE]


@contextlib.contextmanager
def first_steps_measured(
    remaining: Callable[[], float | None], tell: Callable[[float], None]
) -> Iterator[None]:
    """Tells once, as soon as it is known in the block, how many seconds the block takes in all.

    Args:
        remaining: returns the seconds that are left, or None; as `training_seconds`.
        tell: called in another thread.
    """
    begun, is_over = time.monotonic(), threading.Event()

    def watch() -> None:
        while not is_over.wait(_POLL_SECONDS):
            # A line that is just being written is read again.
            with contextlib.suppress(InputError):
                if (seconds := remaining()) is not None:
                    tell(time.monotonic() - begun + seconds)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
