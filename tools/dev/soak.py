"""Runs the three stages in a loop under injected faults, and checks that nothing is lost.

python -m tools.dev.soak --input_dir=TEXT --vocab_file=vocab.txt --work=DIR --minutes=60

First, the stages run undisturbed. Then rounds follow. In a round, a random fault strikes each stage
(a kill, a full disk, damaged files). The command is re-run, and its output is compared with the
undisturbed output, record by record.

The tool prints a table of the faults. The exit status is 1 if a fault did harm, or if the memory of
a stage grew from run to run. The folder of a round with harm is kept as harm-N. Filling a disk
requires the right to mount one.
"""

import collections
import contextlib
import dataclasses
import gzip
import itertools
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags as absl_flags

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.distill.step_times import CLOCK_FIELDS
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization
from tools.dev import faults
from tools.dev.faults import Disturbance, Outcome, Running, Stage
from tools.text_table import aligned_lines

SOAK_FILE = "soak.json"
_DISTURBED_LOG, _LOG = "disturbed.log", "run.log"
_NUM_FILES = 4
# Maximum number of runs of a command until it succeeds.
_ATTEMPTS = 3
_MAX_MESSAGES = 3
# Memory is checked only after this number of runs of a stage; then it must stay below this ratio.
_MIN_PEAKS = 6
_MAX_GROWTH = 1.25
_HARMS = ("lost", "wrong", "unrecovered", "tracebacks", "processes left", "files left")


@dataclasses.dataclass(frozen=True)
class SoakConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dir: Location = setting(dataclasses.MISSING, "Text file; only its beginning is used.")
    vocab_file: str = setting(
        dataclasses.MISSING, "Vocabulary of the text, as for create_pretraining_data."
    )
    work: Location = setting(dataclasses.MISSING, "New directory for all files.")
    minutes: float = setting(60.0, "Minutes after which no round starts.", low=0.0)
    text_bytes: int = setting(
        1_000_000, "Size of the beginning of the text that is used, in bytes.", low=10_000
    )
    random_seed: int = setting(1, "Seed of the faults.", low=0)


def make_stages(
    text: Location, vocab_file: str, teacher: Location, folder: Location
) -> tuple[Stage, ...]:
    """Returns the stages of a round, in order, small enough to run hundreds of times."""
    examples, cache = folder / "examples", folder / "cache"
    masking = {
        "vocab_file": vocab_file,
        "max_seq_length": 64,
        "segments": "single",
        "dupe_factor": 2,
        "num_shards": 6,
        "max_workers": 2,
    }
    capturing = {"teacher": teacher, "truncation_factor": 32, "verify": "sizes", "force": True}
    training = {
        "init_from": teacher,
        "student_layers": 1,
        "num_train_steps": 120,
        "save_checkpoints_steps": 20,
        "log_steps": 20,
        "max_eval_steps": 4,
        "train_batch_size": 16,
        "verify": "sizes",
    }
    return (
        Stage("prepare", "create_pretraining_data", text, examples, masking),
        Stage("capture", "create_teacher_output_data", examples, cache, capturing),
        Stage("distill", "run_distill", cache, folder / "student", training),
    )


def compare(stage: Stage, reference: Stage) -> tuple[int, int]:
    """Compares a disturbed stage's output with the undisturbed one.

    Returns:
        the numbers of lost and of wrong records. All records are lost if the output cannot be
        read. The records of a student are its weights and its lines of evaluation.
    """
    expected = collections.Counter(_records(reference))
    try:
        received = collections.Counter(_records(stage))
    except (OSError, ValueError):
        received = collections.Counter()
    return (expected - received).total(), (received - expected).total()


def _records(stage: Stage) -> Iterator[bytes]:
    if (stage.output / "model.safetensors").is_file():
        yield (stage.output / "model.safetensors").read_bytes()
        for text in (stage.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            for name in CLOCK_FIELDS:
                line.pop(name, None)
            if line["split"] == manifests.EVAL:
                yield json.dumps(line, sort_keys=True).encode()
        return
    manifest = manifests.load(stage.output)
    # The manifest counts as a record, because it must not differ either.
    yield json_text.dump(manifest.to_json())
    for shards in manifest.splits.values():
        for shard in shards:
            yield from serialization.read_records(stage.output / shard.file)


class Ledger:
    """Counts of faults and harms, messages to users, and memory.

    Attributes:
        counts: by fault and stage: `injected`, `met` (the fault ended the run), and the harms.
        messages: messages to users, by fault and stage.
        peaks: by stage, the peak memory of each successful run, in order.
    """

    def __init__(self) -> None:
        self.counts = collections.defaultdict(collections.Counter)
        self.messages = collections.defaultdict(collections.Counter)
        self.peaks = collections.defaultdict(list)

    def note(self, key: tuple[str, str], outcome: Outcome, work: Location) -> None:
        """Adds the outcome of a disturbed run."""
        self.counts[key]["tracebacks"] += outcome.has_traceback
        self.counts[key]["processes left"] += outcome.num_left
        end = f"signal {-outcome.status}" if outcome.status < 0 else f"status {outcome.status}"
        message = re.sub(r"[0-9a-f]{32,}", "…", outcome.message.replace(str(work), "…"))
        self.messages[key][f"{end}: {re.sub(r'[0-9]+([.][0-9]+)?', 'N', message)}"] += 1

    def num_harms(self) -> int:
        """Returns the number of all harms of all faults."""
        return sum(counts[name] for counts in self.counts.values() for name in _HARMS)

    def is_clean(self) -> bool:
        """Returns whether no fault did harm, and no stage's memory grew from run to run."""
        return not (self.num_harms() or any(map(_grew, self.peaks.values())))

    def to_json(self) -> dict[str, object]:
        """Returns counts, messages and memory as JSON values."""
        rows = [
            {"fault": fault, "stage": stage, **counts, "messages": self.messages[fault, stage]}
            for (fault, stage), counts in sorted(self.counts.items())
        ]
        return {"faults": rows, "peak_bytes": self.peaks}

    def lines(self) -> Iterator[str]:
        """Yields the table, the most frequent messages of each fault, and the memory."""
        names = ("injected", "met", *_HARMS)
        rows = [
            [", ".join(key), *(str(counts[name]) for name in names)]
            for key, counts in sorted(self.counts.items())
        ]
        total = [str(sum(int(row[column]) for row in rows)) for column in range(1, 1 + len(names))]
        yield from aligned_lines(["fault, stage", *names], [*rows, ["all", *total]])
        yield ""
        for key, messages in sorted(self.messages.items()):
            for message, count in messages.most_common(_MAX_MESSAGES):
                yield f"{', '.join(key)}, {count} times: {message}"
        yield ""
        for stage, peaks in sorted(self.peaks.items()):
            first, last = (size / 2**20 for size in _thirds(peaks))
            grew = f", which is more than {_MAX_GROWTH} times as much" if _grew(peaks) else ""
            yield (
                f"memory of {stage}, highest peak: first third {first:,.0f} MB, "
                f"last third {last:,.0f} MB{grew}"
            )


def _thirds(peaks: Sequence[int]) -> tuple[int, int]:
    """Returns the highest peaks of the first and of the last third of runs, in bytes.

    Only the highest peak counts, because a run that resumes almost finished work needs little
    memory.
    """
    third = max(1, len(peaks) // 3)
    return max(peaks[:third]), max(peaks[-third:])


def _grew(peaks: Sequence[int]) -> bool:
    first, last = _thirds(peaks)
    return len(peaks) >= _MIN_PEAKS and last > _MAX_GROWTH * first


class Soak:
    """Rounds of disturbed stages, and an undisturbed reference."""

    def __init__(self, work: Location, vocab_file: str, seed: int) -> None:
        self.work = work
        self.ledger = Ledger()
        self._rounds = 0
        self._vocab_file = vocab_file
        self._random = np.random.default_rng(seed)
        self._reference = self._stages("reference")
        self._undisturbed: list[Outcome] = []
        self._can_mount = faults.can_mount((work / "mount").make_directory())

    def _stages(self, name: str) -> tuple[Stage, ...]:
        folder = (self.work / name).make_directory()
        return make_stages(self.work / "text", self._vocab_file, self.work / "teacher", folder)

    def make_reference(self) -> None:
        """Runs the stages undisturbed, with a random teacher.

        Raises:
            InputError: a stage fails.
        """
        for stage in self._reference:
            if stage.name == "capture":
                _write_teacher(stage.input, self.work / "teacher")
            outcome = self._run(stage)
            if outcome.status:
                raise InputError(f"{stage.command}, undisturbed", received=outcome.message)
            self._undisturbed.append(outcome)
            print(f"{stage.name}, undisturbed: {outcome.seconds:.1f} s", flush=True)

    def make_round(self) -> None:
        """Disturbs each stage, re-runs its command, and compares the output.

        A round ends at the first harm, because later harms follow from it; its folder is kept.
        """
        self._rounds += 1
        before = self.ledger.num_harms()
        with contextlib.ExitStack() as cleanup:
            # This callback runs last, when nothing is mounted in the folder any more.
            cleanup.callback(shutil.rmtree, self.work / "round")
            for stage, reference, undisturbed in zip(
                self._stages("round"), self._reference, self._undisturbed, strict=True
            ):
                size = sum(path.stat().st_size for path in reference.output.rglob("*.*"))
                log = self.work / _DISTURBED_LOG
                key = self._disturb(
                    Disturbance(stage, undisturbed.seconds, size, self._random, log, cleanup)
                )
                if self._finish(stage, key):
                    self._compare(stage, reference, key)
                if self.ledger.num_harms() > before:
                    self._keep(self.work / f"harm-{self._rounds}")
                    return

    def _keep(self, folder: Location) -> None:
        shutil.copytree(self.work / "round", folder, symlinks=True)
        for name in (_DISTURBED_LOG, _LOG):
            shutil.copy(self.work / name, folder / name)

    def _disturb(self, disturbance: Disturbance) -> tuple[str, str]:
        """Runs a stage under a random fault; returns the names of the fault and the stage."""
        stage = disturbance.stage
        names = [
            name
            for name, (_, commands) in faults.FAULTS.items()
            if stage.command in commands and (name != faults.DISK_FULL or self._can_mount)
        ]
        name = str(self._random.choice(names))
        self.ledger.counts[name, stage.name]["injected"] += 1
        outcome = faults.FAULTS[name][0](disturbance)
        if outcome is not None:
            self.ledger.counts[name, stage.name]["met"] += 1
            self.ledger.note((name, stage.name), outcome, self.work)
        return name, stage.name

    def _run(self, stage: Stage) -> Outcome:
        outcome = Running(stage, self.work / _LOG).finish()
        if not outcome.status:
            self.ledger.peaks[stage.name].append(outcome.peak)
        return outcome

    def _finish(self, stage: Stage, key: tuple[str, str]) -> bool:
        """Re-runs the command, and returns whether it succeeds."""
        for _ in range(_ATTEMPTS):
            outcome = self._run(stage)
            if not outcome.status:
                return True
            self.ledger.note(key, outcome, self.work)
            self.ledger.counts[key]["unrecovered"] += 1
        return False

    def _compare(self, stage: Stage, reference: Stage, key: tuple[str, str]) -> None:
        lost, wrong = compare(stage, reference)
        files = [*stage.output.rglob("*.tmp"), *stage.output.glob(".spill")]
        self.ledger.counts[key].update({"lost": lost, "wrong": wrong, "files left": len(files)})


def _write_teacher(examples: Location, folder: Location) -> None:
    running.import_quietly("keras")

    from tools import local_teacher

    manifest = manifests.load(examples)
    config = local_teacher.local_config(manifest, num_hidden_layers=2, hidden_size=64)
    local_teacher.write_initial_model(examples, folder, config, seed=1)


def write_text(source: Location, folder: Location, num_bytes: int) -> None:
    """Writes the beginning of a text to a few files, every second one compressed.

    Raises:
        InputError: the file does not exist, or is too short.
    """
    size = source.stat().st_size if source.is_file() else None
    if size is None or size < num_bytes:
        received = "no such file" if size is None else f"{size} bytes"
        raise InputError(source, f"a text file of at least {num_bytes} bytes", received)
    with open(source, "rb") as file:
        lines = file.read(num_bytes).decode("utf-8", "ignore").splitlines(keepends=True)
    for number, indices in enumerate(np.array_split(np.arange(len(lines)), _NUM_FILES)):
        content = "".join(lines[indices[0] : indices[-1] + 1]).encode()
        if number % 2:
            content = gzip.compress(content, mtime=0)
        (folder / f"{number}.txt{'.gz' if number % 2 else ''}").write_whole(content)


def _soak(values: absl_flags.FlagValues) -> None:
    start = time.monotonic()
    config = flags.read_config(values, SoakConfig)
    config.work.expect_local()
    config.work.expect_empty()
    work = config.work.make_directory().resolve()
    write_text(config.input_dir, (work / "text").make_directory(), config.text_bytes)
    soak = Soak(work, config.vocab_file, config.random_seed)
    soak.make_reference()
    for number in itertools.count(1):
        soak.make_round()
        minutes = (time.monotonic() - start) / 60
        report = {"rounds": number, "minutes": minutes, **soak.ledger.to_json()}
        (work / SOAK_FILE).write_json(report)
        harm = "" if soak.ledger.is_clean() else ", some with harm"
        count = sum(counts["met"] for counts in soak.ledger.counts.values())
        print(f"round {number}, {minutes:.1f} min: {count} faults met{harm}", flush=True)
        if minutes >= config.minutes:
            break
    print("\n".join(soak.ledger.lines()))
    print(f"{SOAK_FILE} is in {work}")
    if not soak.ledger.is_clean():
        expected = "no data loss after any fault and no memory growth between runs"
        raise InputError(config.work, expected, f"failures; see {SOAK_FILE}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(SoakConfig), _soak, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
