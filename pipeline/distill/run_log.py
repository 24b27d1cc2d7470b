"""What a run writes while it goes on: `metrics.jsonl` and TensorBoard events."""

import json
import pathlib
from collections.abc import Mapping

from tensorboard.summary import Writer

from pipeline import files
from pipeline.storage.manifest import EVAL

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
        self._evaluated: set[float] = set()
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= start]
            files.write_bytes(self._path, "".join(f"{line}\n" for line in kept).encode())
            evaluated = [line for line in kept if json.loads(line).get("split") == EVAL]
            self._evaluated = {_step(line) for line in evaluated}

    def has_evaluation(self, step: int) -> bool:
        """Whether there is a line of this step's evaluation."""
        return step in self._evaluated

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds one line, and its values as TensorBoard scalars.

        Args:
            step: updates done.
            split: `train` or `eval`.
            values: by name.
        """
        if split == EVAL:
            self._evaluated.add(step)
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


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        # The last line of a run that was killed while it wrote.
        return float("inf")
