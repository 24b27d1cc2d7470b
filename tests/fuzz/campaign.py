"""Fuzzes the readers of external files for a given time.

python -m tests.fuzz.campaign --seconds=60 --reader=manifest --output=/tmp/fuzz
python -m tests.fuzz.campaign --engine=atheris --seconds=60 --reader=corpus

Each reader runs in a separate process with limited memory. The output folder has the bytes and a
description of each finding. The engine `random` draws random bytes for hypothesis. The engine
`atheris` (github.com/google/atheris) searches for bytes that reach new lines of the project.
"""

import argparse
import contextlib
import hashlib
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback

from tests.fuzz.checking import Finding, Reader, fuzz_target

# Bytes of memory that a reader may use in addition to those of the process after the imports.
_MEMORY = 2**30
# Seconds beyond its time after which a process counts as hanging outside Python code.
_PATIENCE = 600.0
_MAX_DEATHS = 20
_INPUT_BYTES = 1024


def _save(output: pathlib.Path, reader: Reader, place: str, text: str, wrong: pathlib.Path) -> None:
    """Saves a finding: its bytes, and a description."""
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    path = output / f"{reader.name.replace(' ', '_')}-{digest}"
    if not path.with_suffix(".txt").exists():
        path.with_suffix(".bin").write_bytes(wrong.read_bytes() if wrong.is_file() else b"")
        path.with_suffix(".txt").write_text(f"{reader.name}\n{place}\n{text}", "utf-8", "replace")


def _run_child(reader_name: str, arguments: argparse.Namespace) -> None:
    """Fuzzes one reader in this process, in a folder of the output folder."""
    watched: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if arguments.engine == "atheris":
        import atheris

        watched = atheris.instrument_imports(include=["pipeline", "data_specs", "yaml", "tools"])
    folder = pathlib.Path(arguments.folder) / "work"
    folder.mkdir()
    with watched:
        from tests.fuzz.readers import all_readers

        reader = all_readers()[reader_name]
        target = fuzz_target(reader, folder).hypothesis.fuzz_one_input
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def try_bytes(content: bytes) -> None:
        try:
            target(content)
        except Finding as finding:
            text = f"{finding}\n{traceback.format_exc(limit=-12)}"
            _save(folder.parents[1], reader, finding.place, text, folder / reader.file)

    if arguments.engine == "atheris":
        flags = [f"-max_total_time={int(arguments.seconds)}", f"-seed={arguments.seed + 1}"]
        flags += ["-rss_limit_mb=0", "-timeout=600", f"-max_len={_INPUT_BYTES}", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *flags], try_bytes)
        atheris.Fuzz()
    draw, end, tried = random.Random(arguments.seed).randbytes, time.monotonic(), 0
    end += arguments.seconds
    while time.monotonic() < end:
        try_bytes(draw(_INPUT_BYTES))
        tried += 1
    print(f"{reader.name}: {tried:,} inputs", flush=True)


def _fuzz(reader: Reader, arguments: argparse.Namespace, output: pathlib.Path) -> None:
    """Fuzzes one reader in a new process; if this dies, another one continues."""
    end = time.monotonic() + arguments.seconds
    for seed in range(arguments.seed, arguments.seed + _MAX_DEATHS):
        seconds_left = end - time.monotonic()
        if seconds_left <= 0:
            return
        with tempfile.TemporaryDirectory(dir=output) as folder:
            command = [sys.executable, "-m", "tests.fuzz.campaign", f"--folder={folder}"]
            command += [f"--reader={reader.name}", f"--seconds={seconds_left}", f"--seed={seed}"]
            try:
                result = subprocess.run(
                    [*command, f"--engine={arguments.engine}"],
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=seconds_left + _PATIENCE,
                    check=False,
                )
                status, text = result.returncode, result.stderr[-3000:]
            except subprocess.TimeoutExpired:
                status, text = "no end", ""
            if status:
                place = f"the process ended with {status}"
                _save(output, reader, place, text, pathlib.Path(folder) / "work" / reader.file)


def main() -> int:
    """Runs the campaign; returns 1 if there is a finding, otherwise 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds for each reader")
    parser.add_argument("--reader", default="", help="prefixes of readers' names, separated by ;")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["random", "atheris"], default="random")
    parser.add_argument("--output", help="folder for findings; by default a new one")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        _run_child(arguments.reader, arguments)
        return 0
    from tests.fuzz.readers import all_readers

    output = pathlib.Path(arguments.output or tempfile.mkdtemp(prefix="fuzz-"))
    output.mkdir(parents=True, exist_ok=True)
    names = tuple(arguments.reader.split(";"))
    chosen = [reader for name, reader in all_readers().items() if name.startswith(names)]
    if not chosen:
        parser.error(f"--reader: no name begins with {arguments.reader!r}")
    for reader in chosen:
        _fuzz(reader, arguments, output)
    findings = sorted(output.glob("*.txt"))
    print(f"{len(findings)} findings in {output}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
