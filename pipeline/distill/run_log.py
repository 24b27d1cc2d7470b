"""What a run writes while it goes on: `metrics.jsonl` and TensorBoard events."""

import json
import math
import pathlib
from collections.abc import Mapping

from tensorboard.summary import Writer

from pipeline import files, json_text

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Appends what was measured.

    Args:
        output_dir: the run's directory.
        start: updates already done; lines of later ones, from a run that was
            killed after its last checkpoint, are taken out.
    """

    def __init__(self, output_dir: files.PathLike, *, start: int) -> None:
        self._directory = pathlib.Path(output_dir)
        self._path = self._directory / METRICS_FILE
        self._writers: dict[str, Writer] = {}
        if self._path.is_file():
            lines = self._path.read_bytes().split(b"\n")
            kept = [line for line in lines if _step(line) <= start]
            files.write_bytes(self._path, b"".join(line + b"\n" for line in kept))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds one line, and its values as TensorBoard scalars.

        Args:
            step: updates done.
            split: `train` or `eval`.
            values: by name.
        """
        line = json.dumps({"step": step, "split": split, **values})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if split not in self._writers:
            self._writers[split] = Writer(str(self._directory / "tensorboard" / split))
        for name, value in values.items():
            self._writers[split].add_scalar(name, value, step)
        self._writers[split].flush()

    def close(self) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()


def _step(line: bytes) -> float:
    """Returns a line's step; infinity for what a run left that was killed while it wrote."""
    try:
        step = json_text.load(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf
