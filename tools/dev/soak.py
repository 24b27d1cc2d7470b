"""All three stages again and again under faults: is anything lost, is anything wrong?

python -m tools.dev.soak --input_dir=TEXT --vocab_file=vocab.txt --work=DIR --minutes=60

Runs the stages undisturbed first. Then rounds follow: each stage is killed, its disk runs
full, its files are damaged, as chance has it; the same command is given once more, and what
it leaves is compared with the undisturbed output, record by record. Ends with a table of the
faults, and with status 1 if one did harm, or the memory of a stage grew from run to run; what
harm was done to in round N is kept in harm-N. Filling a disk takes the right to mount one.
"""

import contextlib
import gzip
import itertools
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from tools.dev.soaking import differences, faults
from tools.dev.soaking.faults import Disturbance
from tools.dev.soaking.ledger import Ledger
from tools.dev.soaking.running import Outcome, Running
from tools.dev.soaking.stages import Stage, make_stages

SOAK_FILE = "soak.json"
# What the last command said that was disturbed, and the last that was not.
_DISTURBED_LOG, _LOG = "disturbed.log", "run.log"
_NUM_FILES = 4
# How often a command that should end well is given at most.
_ATTEMPTS = 3


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("input_dir", None, "Text: a file; its beginning is used.")
    table.string("vocab_file", None, "Its vocabulary, as create_pretraining_data takes it.")
    table.string("work", None, "Where everything goes: a new folder.")
    table.number("minutes", 60.0, "No round begins later than this.", low=0.0)
    table.integer("text_bytes", 1_000_000, "How much text is used.", low=50_000)
    table.integer("random_seed", 1, "Decides the faults.", low=0)
    table.require("input_dir", "vocab_file", "work")
    return table.values


def write_text(source: str, folder: pathlib.Path, num_bytes: int) -> None:
    """Writes the beginning of a text as a few files, plain and compressed in turns.

    Raises:
        InputError: there is no such file, or it is too short.
    """
    path = pathlib.Path(source)
    if not path.is_file() or path.stat().st_size < num_bytes:
        raise InputError(Setting("input_dir"), f"a text file of {num_bytes} bytes at least", source)
    with open(path, "rb") as file:
        lines = file.read(num_bytes).decode("utf-8", "ignore").splitlines(keepends=True)
    parts = np.array_split(np.arange(len(lines)), _NUM_FILES)
    for number, part in enumerate(parts):
        content = "".join(lines[part[0] : part[-1] + 1]).encode()
        if number % 2:
            content = gzip.compress(content, mtime=0)
        (folder / f"{number}.txt{'.gz' if number % 2 else ''}").write_whole(content)


class Soak:
    """Rounds of disturbed stages beside an undisturbed one.

    Args:
        work: the folder.
        vocab_file: of the text in it.
        seed: decides the faults.
    """

    def __init__(self, work: pathlib.Path, vocab_file: str, seed: int) -> None:
        self.work = work
        self.ledger = Ledger()
        self._rounds = 0
        self._vocab_file = vocab_file
        self._random = np.random.default_rng(seed)
        self._reference = self._stages("reference")
        self._undisturbed: list[Outcome] = []
        self._can_mount = faults.can_mount((work / "mount").make_directory())

    def _stages(self, name: str) -> list[Stage]:
        text, teacher = self.work / "text", self.work / "teacher"
        folder = (self.work / name).make_directory()
        return make_stages(text, self._vocab_file, teacher, folder=folder)

    def make_reference(self) -> None:
        """Runs the stages undisturbed, on a random teacher.

        Raises:
            InputError: one does not end well.
        """
        for stage in self._reference:
            if stage.name == "1b":
                _write_teacher(stage, self.work / "teacher")
            outcome = self._run(stage)
            if outcome.status:
                raise InputError(f"{stage.command}, undisturbed", received=outcome.said)
            self._undisturbed.append(outcome)
            print(f"stage {stage.name}, undisturbed: {outcome.seconds:.1f} s", flush=True)

    def make_round(self) -> None:
        """Disturbs each stage, and compares what it leaves in the end.

        A round ends at the first harm, as what follows from it is no other fault's. Its
        folder is kept then.
        """
        self._rounds += 1
        stages, before = self._stages("round"), self.ledger.num_harms()
        with contextlib.ExitStack() as cleanup:
            # Last of all: nothing is mounted there any more.
            cleanup.callback(shutil.rmtree, self.work / "round")
            for number, stage in enumerate(stages):
                name = self._disturb(stage, number, cleanup)
                if self._finish(stage, name):
                    self._compare(stage, number, name)
                if self.ledger.num_harms() > before:
                    self._keep(self.work / f"harm-{self._rounds}")
                    return

    def _keep(self, folder: pathlib.Path) -> None:
        """Copies the round's folder, in which something may be mounted, and what was said last."""
        shutil.copytree(self.work / "round", folder, symlinks=True)
        for name in (_DISTURBED_LOG, _LOG):
            shutil.copy(self.work / name, folder / name)

    def _disturb(self, stage: Stage, number: int, cleanup: contextlib.ExitStack) -> str:
        """Puts a fault into a stage, and returns its name."""
        names = [name for name, (_, met) in faults.FAULTS.items() if stage.command in met]
        if not self._can_mount:
            names.remove(faults.DISK_FULL)
        name = str(self._random.choice(names))
        size = sum(path.stat().st_size for path in self._reference[number].output.rglob("*.*"))
        seconds = self._undisturbed[number].seconds
        log = self.work / _DISTURBED_LOG
        disturbance = Disturbance(stage, seconds, size, self._random, log, cleanup)
        row = self.ledger.row(name, stage.name)
        row.injected += 1
        outcome = faults.FAULTS[name][0](disturbance)
        if outcome is not None:
            row.met += 1
            self.ledger.note(row, outcome, work=str(self.work))
        return name

    def _run(self, stage: Stage) -> Outcome:
        outcome = Running(stage.command, stage.settings, self.work / _LOG).finish()
        if not outcome.status:
            self.ledger.peaks.setdefault(stage.name, []).append(outcome.peak)
        return outcome

    def _finish(self, stage: Stage, name: str) -> bool:
        """Gives the command once more, and returns whether it ends well."""
        row = self.ledger.row(name, stage.name)
        for _ in range(_ATTEMPTS):
            outcome = self._run(stage)
            if not outcome.status:
                return True
            self.ledger.note(row, outcome, work=str(self.work))
            row.unrecovered += 1
        return False

    def _compare(self, stage: Stage, number: int, name: str) -> None:
        row = self.ledger.row(name, stage.name)
        lost, wrong = differences.compare(stage, self._reference[number])
        row.lost += lost
        row.wrong += wrong
        row.files_left += len(differences.leftovers(stage))


def _write_teacher(stage: Stage, folder: pathlib.Path) -> None:
    running.import_quietly("keras")

    from pipeline.storage import manifest as manifests
    from tools import local_teacher

    manifest = manifests.load(stage.input)
    config = local_teacher.local_config(manifest, num_hidden_layers=2, hidden_size=64)
    local_teacher.write_start(stage.input, folder, config, seed=1)


def _soak(values: flags.FlagValues) -> None:
    begun = time.monotonic()
    Location.parse(values.work, "work").expect_empty()
    work = Location.parse(values.work, "work").make_directory().resolve()
    text = (work / "text").make_directory()
    write_text(values.input_dir, text, values.text_bytes)
    soak = Soak(work, values.vocab_file, values.random_seed)
    soak.make_reference()
    for number in itertools.count(1):
        soak.make_round()
        minutes = (time.monotonic() - begun) / 60
        report = {"rounds": number, "minutes": minutes, **soak.ledger.to_json()}
        (work / SOAK_FILE).write_json(report)
        harm = "" if soak.ledger.is_clean() else ", some with harm"
        count = sum(row.met for row in soak.ledger.rows.values())
        print(f"round {number}, {minutes:.1f} min: {count} faults met{harm}", flush=True)
        if minutes >= values.minutes:
            break
    print("\n".join(soak.ledger.lines()))
    print(f"{SOAK_FILE} is in {work}")
    if not soak.ledger.is_clean():
        raise InputError(
            Setting("work"),
            "no harm of any fault, and no more memory from run to run",
            f"some: see {SOAK_FILE}",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _soak, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
