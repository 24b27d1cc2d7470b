"""The table of faults: how often each was injected, what was lost, and what a user saw."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tools.dev.soaking.running import Outcome
from tools.text_table import aligned_lines

_MAX_SEEN = 3
# Of fewer runs of a stage the memory says nothing; of more it is to stay below this ratio.
_MIN_PEAKS = 6
_MAX_GROWTH = 1.25
_HARMS = ("lost", "wrong", "unrecovered", "tracebacks", "processes_left", "files_left")


@dataclasses.dataclass
class Row:
    """A fault in a stage.

    Attributes:
        injected: how often.
        met: how often it came in time to end the run.
        lost: records that were missing after the next undisturbed run.
        wrong: records that were others.
        unrecovered: how often the same command did not end well afterwards.
        tracebacks: how often Python's showed.
        processes_left: that outlived their command.
        files_left: that should have gone.
        seen: what a user read, and how often.
    """

    injected: int = 0
    met: int = 0
    lost: int = 0
    wrong: int = 0
    unrecovered: int = 0
    tracebacks: int = 0
    processes_left: int = 0
    files_left: int = 0
    seen: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def num_harms(self) -> int:
        """Returns all harm that the fault did, added up."""
        return sum(getattr(self, name) for name in _HARMS)


class Ledger:
    """All that was seen.

    Attributes:
        rows: by fault and stage.
        peaks: by stage, the most memory of each run that ended well, in order.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.peaks: dict[str, list[int]] = {}

    def row(self, fault: str, stage: str) -> Row:
        """Returns the row of a fault in a stage."""
        return self.rows.setdefault((fault, stage), Row())

    def note(self, row: Row, outcome: Outcome, *, work: str) -> None:
        """Adds how a run ended.

        Args:
            row: the fault that it has met.
            outcome: its end.
            work: a folder whose name says nothing to a reader.
        """
        row.tracebacks += outcome.has_traceback
        row.processes_left += outcome.num_left
        row.seen[f"{_ending(outcome.status)}: {_without_numbers(outcome.said, work)}"] += 1

    def num_harms(self) -> int:
        """Returns all harm of all faults, added up."""
        return sum(row.num_harms() for row in self.rows.values())

    def is_clean(self) -> bool:
        """Returns whether nothing did any harm, and no stage's memory grew from run to run."""
        return not (self.num_harms() or any(map(_grew, self.peaks.values())))

    def to_json(self) -> dict[str, Any]:
        """Returns all as JSON values."""
        rows = [
            {"fault": fault, "stage": stage, **vars(row)}
            for (fault, stage), row in sorted(self.rows.items())
        ]
        return {"faults": rows, "peak_bytes": self.peaks}

    def lines(self) -> Iterable[str]:
        """Returns the table, and what was seen of each fault most often."""
        names = ("injected", "met", "lost", "wrong", "unrecovered", "tracebacks")
        titles = ["fault, stage", *names, "left over"]
        cells = []
        for (fault, stage), row in sorted(self.rows.items()):
            left = row.processes_left + row.files_left
            counts = [str(getattr(row, name)) for name in names]
            cells.append([f"{fault}, {stage}", *counts, str(left)])
        total = [str(sum(int(row[column]) for row in cells)) for column in range(1, len(titles))]
        yield from aligned_lines(titles, [*cells, ["all", *total]])
        yield ""
        for (fault, stage), row in sorted(self.rows.items()):
            for said, count in row.seen.most_common(_MAX_SEEN):
                yield f"{fault}, {stage}, {count} times: {said}"
        yield ""
        yield from self._memory()

    def _memory(self) -> Iterable[str]:
        for stage, peaks in sorted(self.peaks.items()):
            first, last = _thirds(peaks)
            grew = f", more than {_MAX_GROWTH} times as much" if _grew(peaks) else ""
            yield (
                f"memory of stage {stage}, highest peak: first third {first / 2**20:,.0f} MB, "
                f"last third {last / 2**20:,.0f} MB{grew}"
            )


def _thirds(peaks: Sequence[int]) -> tuple[int, int]:
    """Returns the highest peaks of the first and of the last third of runs, in bytes.

    The highest, as a run that found nearly everything finished needs little.
    """
    third = max(1, len(peaks) // 3)
    return max(peaks[:third]), max(peaks[-third:])


def _grew(peaks: Sequence[int]) -> bool:
    first, last = _thirds(peaks)
    return len(peaks) >= _MIN_PEAKS and last > _MAX_GROWTH * first


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _without_numbers(said: str, work: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"[0-9a-f]{32,}", "…", said.replace(work, "…")))
