"""The log of a run: `metrics.jsonl` and TensorBoard events."""

import json
import math
import tempfile
from collections.abc import Mapping

from tensorboard.summary import Writer

from pipeline.base import json_text
from pipeline.base.local_mirror import mirror_folder
from pipeline.base.location import LocalLocation, Location
from pipeline.storage.manifest import EVAL

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Appends measurements to the log.

    Objects of a bucket cannot be appended to. For a directory in a bucket, lines and events
    are therefore collected on this machine. The complete files are uploaded before each
    checkpoint and at the end.

    Lines of steps after `start` are removed. A run that was killed after its last checkpoint
    leaves such lines.

    Attributes:
        directory: the local directory in which files are written or collected.
    """

    def __init__(self, output_dir: Location, *, start: int) -> None:
        self._output_dir = output_dir
        self._collected: tempfile.TemporaryDirectory[str] | None = None
        self.directory = output_dir
        if not output_dir.is_local:
            self._collected = tempfile.TemporaryDirectory(prefix="log-", dir=mirror_folder())
            self.directory = LocalLocation(self._collected.name)
        self._path = self.directory / METRICS_FILE
        self._writers: dict[str, Writer] = {}
        self._evaluated: set[float] = set()
        before = output_dir / METRICS_FILE
        if before.is_file():
            lines = before.read_bytes().split(b"\n")
            earlier = [line for line in lines if _step(line) <= start]
            self._path.write_whole(b"".join(line + b"\n" for line in earlier))
            evaluated = [line for line in earlier if json_text.load(line).get("split") == EVAL]
            self._evaluated = {_step(line) for line in evaluated}

    def has_evaluation(self, step: int) -> bool:
        """Whether the log has a line of this step's evaluation."""
        return step in self._evaluated

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends a line of a split's values at a step, and writes them as TensorBoard scalars."""
        if split == EVAL:
            self._evaluated.add(step)
        line = json.dumps({"step": step, "split": split, **values})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if split not in self._writers:
            self._writers[split] = Writer(str(self.directory / "tensorboard" / split))
        for name, value in values.items():
            self._writers[split].add_scalar(name, value, step)
        self._writers[split].flush()

    def publish(self) -> None:
        """Uploads the files that were collected for a directory in a bucket."""
        if self._collected is None:
            return
        for path in sorted(path for path in self.directory.rglob("*") if path.is_file()):
            name = path.relative_to(self.directory).as_posix()
            (self._output_dir / name).take(path)

    def close(self) -> None:
        """Closes the event files, and uploads the collected files."""
        try:
            for writer in self._writers.values():
                writer.close()
            self.publish()
        finally:
            if self._collected is not None:
                self._collected.cleanup()


def _step(line: bytes) -> float:
    """Returns a line's step; infinity for an incomplete line of a run that was killed."""
    try:
        step = json_text.load(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf
