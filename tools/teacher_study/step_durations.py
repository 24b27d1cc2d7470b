"""The durations of steps, summed over all runs of a tool."""

import dataclasses
import time

from pipeline.base.location import Location
from tools.commands import Step


class StepDurations:
    """A file with the seconds of each finished step.

    Args:
        path: the file.
        root: the directory that contains the results of the steps.
    """

    def __init__(self, path: Location, root: Location) -> None:
        self._path = path
        self._root = root

    def timed(self, step: Step) -> Step:
        """Returns a step that writes its seconds to the file when it is finished."""

        def make() -> None:
            start_time = time.monotonic()
            step.make()
            seconds = self._read() | {self._key(step.result): time.monotonic() - start_time}
            self._path.write_json(seconds)

        return dataclasses.replace(step, make=make)

    @property
    def total(self) -> float:
        """The sum of the seconds of all finished steps."""
        return sum(self._read().values())

    def seconds(self, result: Location) -> float:
        """Returns the seconds of the step that made a result; 0 if it was not timed."""
        return self._read().get(self._key(result), 0.0)

    def _key(self, result: Location) -> str:
        return str(result.relative_to(self._root))

    def _read(self) -> dict[str, float]:
        return self._path.read_json() if self._path.is_file() else {}
