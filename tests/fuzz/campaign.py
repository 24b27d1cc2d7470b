"""Fuzzes the readers of files from outside for as long as one likes.

python -m tests.fuzz.campaign --seconds=60 --reader=manifest --output=/tmp/fuzz
python -m tests.fuzz.campaign --engine=atheris --seconds=60 --reader=corpus

Each reader runs in a process of its own, with little memory; a table says what was tried.
The bytes of each finding, and what happened, are in the output folder. Engine `random`
makes right files wrong at random; `atheris` (github.com/google/atheris) watches which
lines of ours the bytes reach, and goes on from those that reached new ones.
"""

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import hashlib
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from tests.fuzz.checking import Finding, Reader, check

# Beyond what the process has when the reader is imported.
_MEMORY = 2**30
# Of real time without a word of a process: it hangs outside Python.
_PATIENCE = 600.0
_MAX_DEATHS = 20


@dataclasses.dataclass
class Tally:
    """What a process has seen so far."""

    tried: int = 0
    good: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Tally") -> None:
        """Adds what another process has seen."""
        for name in ("tried", "good", "refused", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.findings.update(other.findings)


class Session:
    """The work of one process on one reader."""

    def __init__(self, reader: Reader, folder: pathlib.Path, output: pathlib.Path) -> None:
        self.reader = reader
        self.folder = folder
        self.output = output
        self.tally = Tally()
        reader.prepare(folder)
        self.right = (folder / reader.file).read_bytes()
        # Imports what is needed.
        check(reader, folder, self.right)
        _limit_memory()
        self.begun = self.written = time.monotonic()

    def try_bytes(self, content: bytes) -> None:
        """Reads wrong bytes and keeps those of a finding."""
        self.tally.tried += 1
        try:
            if check(self.reader, self.folder, content):
                self.tally.good += 1
            else:
                self.tally.refused += 1
        except Finding as finding:
            if not self.tally.findings[finding.place]:
                save(self.output, self.reader.name, finding.place, str(finding), content)
            self.tally.findings[finding.place] += 1
        if time.monotonic() - self.written > 0.5:
            self.write()

    def write(self) -> None:
        """Tells the parent process."""
        self.written = time.monotonic()
        self.tally.seconds = self.written - self.begun
        path = self.folder / "tally.json"
        path.with_suffix(".tmp").write_text(json.dumps(vars(self.tally)))
        os.replace(path.with_suffix(".tmp"), path)


def find_readers() -> dict[str, Reader]:
    """Returns all readers by name; imports them, and most of the library, only now."""
    from tests.fuzz.readers import all_readers

    return all_readers()


def save(output: pathlib.Path, reader: str, place: str, text: str, content: bytes) -> None:
    """Keeps a finding: its bytes, and beside them what happened."""
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    path = output / f"{reader.replace(' ', '_')}-{digest}"
    path.with_suffix(".bin").write_bytes(content)
    story = f"{reader}\n{place}\n{text}\n{traceback.format_exc(limit=-12)}\n"
    path.with_suffix(".txt").write_text(story, "utf-8", "replace")


def _limit_memory() -> None:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_random(session: Session, seconds: float, seed: int) -> None:
    below = random.Random(seed).randrange
    while time.monotonic() - session.begun < seconds:
        session.try_bytes(session.reader.mutate(below, session.right))
    session.write()


def _run_atheris(session: Session, seconds: float, seed: int) -> None:
    import atheris

    corpus = session.folder.with_name("corpus")
    corpus.mkdir(exist_ok=True)
    below = random.Random(seed).randrange
    for number in range(200):
        content = session.reader.mutate(below, session.right) if number else session.right
        (corpus / f"{number}").write_bytes(content)
    flags = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", "-rss_limit_mb=0"]
    flags += [f"-artifact_prefix={corpus}/", "-timeout=600", "-max_len=65536", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], session.try_bytes)
    atheris.Fuzz()


def run_child(arguments: argparse.Namespace) -> None:
    """Fuzzes one reader in this process."""
    faulthandler.enable()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    watched: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    run = _run_random
    if arguments.engine == "atheris":
        import atheris

        # What the reader imports when it is first used, too.
        watched = atheris.instrument_imports(include=["pipeline", "data_specs", "yaml", "tools"])
        run = _run_atheris
    folder = pathlib.Path(arguments.folder)
    (folder / "work").mkdir()
    with watched:
        session = Session(find_readers()[arguments.reader], folder / "work", folder.parent)
    run(session, arguments.seconds, arguments.seed)


def _watch(process: subprocess.Popen, tally: pathlib.Path, patience: float) -> None:
    """Waits for a process; kills one that says nothing for long."""
    begun = time.time()
    while process.poll() is None:
        time.sleep(0.3)
        last = tally.stat().st_mtime if tally.is_file() else begun
        if time.time() - max(last, begun) > patience:
            process.send_signal(signal.SIGKILL)
            process.wait()


def fuzz(reader: Reader, arguments: argparse.Namespace, output: pathlib.Path) -> Tally:
    """Fuzzes one reader in other processes, another one for each that dies."""
    total, seed = Tally(), arguments.seed
    while total.seconds < arguments.seconds and seed < arguments.seed + _MAX_DEATHS:
        with tempfile.TemporaryDirectory(dir=output) as folder:
            command = [sys.executable, "-m", "tests.fuzz.campaign", "--child", folder]
            left = arguments.seconds - total.seconds
            command += [f"--reader={reader.name}", f"--seconds={left}", f"--seed={seed}"]
            command += [f"--engine={arguments.engine}"]
            said = pathlib.Path(folder) / "said.txt"
            with open(said, "wb") as stream:
                process = subprocess.Popen(command, stdout=stream, stderr=stream)
                tally = pathlib.Path(folder) / "work" / "tally.json"
                _watch(process, tally, _PATIENCE)
            part = Tally()
            if tally.is_file():
                value = json.loads(tally.read_text())
                part = Tally(**{**value, "findings": collections.Counter(value["findings"])})
            if process.returncode:
                place = f"the process ended with {process.returncode}"
                wrong = pathlib.Path(folder) / "work" / reader.file
                content = wrong.read_bytes() if wrong.is_file() else b""
                text = said.read_text("utf-8", "replace")[-3000:]
                save(output, reader.name, place, text, content)
                part.findings[place] += 1
            total.add(part)
        seed += 1
    return total


def _table(found: dict[str, Tally]) -> str:
    lines = [f"{'reader':28} {'tried':>9} {'a second':>9} {'good':>8} {'refused':>9}  findings"]
    for name, tally in found.items():
        speed = tally.tried / max(tally.seconds, 1e-9)
        lines.append(
            f"{name:28} {tally.tried:9,} {speed:9,.0f} {tally.good:8,} {tally.refused:9,}  "
            f"{len(tally.findings)}"
        )
        lines += [f"    {count:,} × {place}" for place, count in tally.findings.most_common()]
    return "\n".join(lines)


def choose(
    readers: dict[str, Reader], names: str, parser: argparse.ArgumentParser
) -> dict[str, Reader]:
    """Returns the readers whose names begin in one of several ways; ends where one has none."""
    for name in names.split(";"):
        if not any(reader.startswith(name) for reader in readers):
            parser.error(
                f"--reader: expected the beginning of one of {'; '.join(readers)}, "
                f"received {name!r}"
            )
    return {key: one for key, one in readers.items() if key.startswith(tuple(names.split(";")))}


def main() -> int:
    """Runs the campaign; 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each reader")
    parser.add_argument("--reader", default="", help="those whose name begins so, separated by ;")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["random", "atheris"], default="random")
    parser.add_argument("--output", help="where findings go; a new folder by default")
    parser.add_argument("--child", dest="folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        run_child(arguments)
        return 0
    output = pathlib.Path(arguments.output or tempfile.mkdtemp(prefix="fuzz-"))
    output.mkdir(parents=True, exist_ok=True)
    chosen = choose(find_readers(), arguments.reader, parser)
    found: dict[str, Tally] = {}
    for name, reader in chosen.items():
        found[name] = fuzz(reader, arguments, output)
        print(_table({name: found[name]}).split("\n", 1)[1], flush=True)
    print(f"\n{_table(found)}\n\nfindings: {output}")
    return 1 if any(tally.findings for tally in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
