"""The seconds that steps have taken, over all processes of a tool."""

import dataclasses
import time

from pipeline.base.location import Location
from tools.commands import Step


class Clock:
    """A file of the seconds of finished steps.

    Args:
        path: the file.
        root: the directory below which steps leave their results.
    """

    def __init__(self, path: Location, root: Location) -> None:
        self._path = path
        self._root = root

    def timed(self, step: Step) -> Step:
        """Returns a step whose seconds are written when it is finished."""

        def make() -> None:
            begun = time.monotonic()
            step.make()
            seconds = self._read() | {self._key(step.result): time.monotonic() - begun}
            self._path.write_json(seconds)

        return dataclasses.replace(step, make=make)

    @property
    def total(self) -> float:
        """Seconds of all finished steps."""
        return sum(self._read().values())

    def seconds(self, result: Location) -> float:
        """Returns the seconds of the step that left a result; 0 where none was timed."""
        return self._read().get(self._key(result), 0.0)

    def _key(self, result: Location) -> str:
        return str(result.relative_to(self._root))

    def _read(self) -> dict[str, float]:
        return self._path.read_json() if self._path.is_file() else {}
