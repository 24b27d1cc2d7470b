"""A forecast of the quickstart's total time from the first steps of its first training."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage.manifest import TRAIN
from tools.report.runs import METRICS_FILE, read_metrics

_RATE = "examples_per_second"
# Seconds between two reads of the log.
_POLL_SECONDS = 0.5


def training_seconds(log: Location, num_steps: int, batch_size: int) -> float | None:
    """Returns the seconds that the remaining steps of a training take without evaluation.

    Args:
        log: the output directory of `run_distill`.
        num_steps: number of steps of the training.
        batch_size: examples per step.

    Returns:
        the seconds; None before the second line of the log, because the time of the first
        line includes compiling.
    """
    if not (log / METRICS_FILE).is_file():
        return None
    lines = [line for line in read_metrics(log / METRICS_FILE) if line["split"] == TRAIN]
    if len(lines) < 2:
        return None
    return (num_steps - lines[-1]["step"]) * batch_size / lines[-1][_RATE]


@contextlib.contextmanager
def reporting_total_time(
    remaining: Callable[[], float | None], report: Callable[[float], None]
) -> Iterator[None]:
    """Reports the expected total seconds of the block once, as soon as they are known.

    Args:
        remaining: returns the remaining seconds, or None, as `training_seconds` does.
        report: receives the total seconds; called in another thread.
    """
    start_time, is_over = time.monotonic(), threading.Event()

    def watch() -> None:
        while not is_over.wait(_POLL_SECONDS):
            # An incomplete line, which is still being written, raises. It is read again later.
            with contextlib.suppress(InputError):
                if (seconds := remaining()) is not None:
                    report(time.monotonic() - start_time + seconds)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
